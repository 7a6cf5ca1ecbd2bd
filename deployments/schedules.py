"""When a deployment runs by itself: schedules, as options say them and as Prefect keeps them.

They are Prefect's own, and so is what happens to runs that nobody could take (they are late, and run when a worker is
there again) and to those that overlap (the deployment's concurrency limit). This module makes and words them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError

if TYPE_CHECKING:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.schedules import SCHEDULE_TYPES

Overlap = Literal["queue", "skip", "cancel", "allow"]
OverlapOption = Annotated[
    Overlap | None,
    Parameter(
        name="--overlap",
        help="What becomes of a run that is due while --limit others are at work: it waits (queue), or is cancelled "
        "(skip or cancel: Prefect has both as one); allow sets no limit.",
    ),
]
LimitOption = Annotated[
    int | None, Parameter(name="--limit", help="How many runs of the deployment may be at work at once. (1)")
]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class When:
    """The options of a schedule: one of the first three, with what belongs to it."""

    cron: Annotated[str | None, Parameter(help='When it runs, as in a crontab: "0 6 * * 1-5".')] = None
    interval: Annotated[str | None, Parameter(help="Every so often: seconds, or 90s, 15m, 1h30m.")] = None
    rrule: Annotated[str | None, Parameter(help='A rule of iCalendar: "FREQ=WEEKLY;BYDAY=MO".')] = None
    timezone: Annotated[str | None, Parameter(help="The time zone that it is meant in, as Europe/Berlin. (UTC)")] = None
    anchor_date: Annotated[
        str | None, Parameter(help="When an interval begins, as 2026-01-31T06:00:00Z; without it, now.")
    ] = None

    @property
    def given(self) -> bool:
        """Whether any of it was asked for."""
        return any((self.cron, self.interval, self.rrule, self.timezone, self.anchor_date))


NO_TIMES = When()


def schedule_of(when: When) -> SCHEDULE_TYPES:
    """What Prefect makes of the options. Raises UsageError for what means nothing."""
    from prefect.client.schemas.schedules import construct_schedule
    from pydantic import ValidationError

    chosen = [each for each in (when.cron, when.interval, when.rrule) if each]
    if len(chosen) != 1:
        raise UsageError(
            "a schedule needs one of --cron, --interval and --rrule", hint='for example --cron "0 6 * * 1-5"'
        )
    try:
        return construct_schedule(
            cron=when.cron,
            rrule=when.rrule,
            interval=_seconds(when.interval),
            anchor_date=when.anchor_date,
            timezone=when.timezone,
        )
    except (ValidationError, ValueError, TypeError) as error:
        raise UsageError(
            f"this is no schedule: {_first_words(error)}", hint="`qo schedule add --help` shows examples"
        ) from error


def _seconds(interval: str | None) -> float | None:
    from quantum_orchestrator.blocks.durations import parse_duration

    if interval is None:
        return None
    try:
        return float(interval)
    except ValueError:
        return float(str(parse_duration(interval)))


def _first_words(error: Exception) -> str:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return str(error)


def created(when: When, *, slug: str, parameters: dict[str, Any], active: bool = True) -> DeploymentScheduleCreate:
    """A schedule, to be given to a deployment under a name of its own."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    return DeploymentScheduleCreate(schedule=schedule_of(when), active=active, slug=slug, parameters=parameters)


def in_words(schedule: SCHEDULE_TYPES) -> str:
    """`cron 0 6 * * 1-5 (Europe/Berlin)`, `every 900 s`, `rule FREQ=…`."""
    zone = getattr(schedule, "timezone", None)
    where = f" ({zone})" if zone and zone != "UTC" else ""
    if (cron := getattr(schedule, "cron", None)) is not None:
        return f"cron {cron}{where}"
    if (rrule := getattr(schedule, "rrule", None)) is not None:
        return f"rule {rrule}{where}"
    interval = getattr(schedule, "interval", None)
    return "never" if interval is None else f"every {interval.total_seconds():g} s{where}"


def as_json(each: DeploymentSchedule) -> dict[str, Any]:
    """A schedule of a deployment, for programs."""
    return {
        "id": str(each.id),
        "name": each.slug,
        "active": each.active,
        "when": in_words(each.schedule),
        "timezone": getattr(each.schedule, "timezone", None) or "UTC",
        "parameters": each.parameters,
    }


def concurrency(overlap: Overlap | None, limit: int | None) -> dict[str, Any]:
    """The fields of a deployment that say what becomes of runs that overlap: by default, they wait for each other."""
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    if overlap == "allow":
        if limit is not None:
            raise UsageError("--overlap allow sets no limit: it goes without --limit")
        return {"concurrency_limit": None}
    strategy = (
        ConcurrencyLimitStrategy.CANCEL_NEW if overlap in ("skip", "cancel") else ConcurrencyLimitStrategy.ENQUEUE
    )
    return {
        "concurrency_limit": 1 if limit is None else limit,
        "concurrency_options": ConcurrencyOptions(collision_strategy=strategy),
    }

"""Commands about the schedules of deployments. They are Prefect's own: what is done here shows in its UI, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_deploy import Name
from quantum_orchestrator.deployments.cli_options import TALK, InputPairs, InputsFile, Json, Talk, given_inputs
from quantum_orchestrator.deployments.schedules import NO_TIMES, LimitOption, OverlapOption, When
from quantum_orchestrator.deployments.screen import aligned

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

Schedule = Annotated[
    str | None,
    Parameter(help="The schedule, by its name or the beginning of its id; needed only if there are several."),
]


def add(
    deployment: Name,
    /,
    *,
    when: When = NO_TIMES,
    name: Annotated[str | None, Parameter(help="What the schedule is called; one of this name is replaced.")] = None,
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    paused: Annotated[bool, Parameter(help="Do not start with it yet: `qo schedule resume` does.")] = False,
    overlap: OverlapOption = None,
    limit: LimitOption = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Have a deployment run by itself.

    A run that is due while no worker is there is late, and runs once one is.
    What overlaps waits, unless --overlap says otherwise; that holds for the
    whole deployment.
    """
    from quantum_orchestrator.deployments import schedules
    from quantum_orchestrator.deployments.prefect_objects import asking, named
    from quantum_orchestrator.flows.deployment_form import parameters_for

    given = given_inputs(input, inputs_file)
    with asking(talk.screen) as client:
        found = named(client, deployment)
        slug = name or f"{found.name.lower().replace(' ', '-')}-{uuid4().hex[:6]}"
        values = _values(found, given)
        made = schedules.created(when, slug=slug, parameters=parameters_for(values), active=not paused)
        if overlap is not None or limit is not None:
            _limit(client, found, schedules.concurrency(overlap, limit))
        for each in found.schedules:
            if each.slug == slug:
                client.delete_deployment_schedule(found.id, each.id)
        (schedule,) = client.create_deployment_schedules(found.id, [made])
    if json_:
        talk.screen.document({"deployment": found.name, "schedule": schedules.as_json(schedule)})
    else:
        talk.screen.result(f"{found.name}: {schedules.in_words(schedule.schedule)}, as {slug}")
    return 0


def _values(deployment: DeploymentResponse, given: dict[str, Any]) -> dict[str, Any]:
    """The values of inputs, read as the deployment's parameters are declared."""
    from quantum_orchestrator.flows.inputs import read_value

    schema = deployment.parameter_openapi_schema or {}
    declared = schema.get("properties", {}).get("inputs", {}).get("properties", {})
    unknown = [each for each in given if each not in declared]
    if unknown:
        known = f"known are {', '.join(declared)}" if declared else "the set has no inputs"
        raise UsageError(f"--input {unknown[0]}: unknown input {unknown[0]!r}", hint=known)
    return {
        each: read_value(declared[each], value) if isinstance(value, str) else value for each, value in given.items()
    }


def _limit(client: SyncPrefectClient, deployment: DeploymentResponse, fields: dict[str, Any]) -> None:
    from prefect.client.schemas.actions import DeploymentUpdate

    client.update_deployment(deployment.id, DeploymentUpdate(**fields))


def list_(
    deployment: Annotated[str | None, Parameter(help="Only this deployment's.")] = None,
    /,
    *,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """List the schedules of deployments."""
    from quantum_orchestrator.deployments import schedules
    from quantum_orchestrator.deployments.prefect_objects import asking, named, ours

    with asking(talk.screen) as client:
        found = ours(client) if deployment is None else [named(client, deployment)]
    if json_:
        rows = [{"deployment": each.name, **schedules.as_json(one)} for each in found for one in each.schedules]
        talk.screen.document({"schedules": rows})
        return 0
    lines = [
        [each.name, one.slug or str(one.id), "on" if one.active else "paused", schedules.in_words(one.schedule)]
        for each in found
        for one in each.schedules
    ]
    if lines:
        talk.screen.result("\n".join(aligned([["DEPLOYMENT", "SCHEDULE", "", "WHEN"], *lines])))
    else:
        talk.screen.note("no schedules; `qo schedule add` makes one")
    return 0


def pause(deployment: Name, schedule: Schedule = None, /, *, json_: Json = False, talk: Talk = TALK) -> int:
    """Pause a schedule: it makes no runs until it is resumed."""
    return _switch(deployment, schedule, json_, talk, active=False)


def resume(deployment: Name, schedule: Schedule = None, /, *, json_: Json = False, talk: Talk = TALK) -> int:
    """Go on with a schedule that was paused. What was due meanwhile is not made up for."""
    return _switch(deployment, schedule, json_, talk, active=True)


def _switch(deployment: str, schedule: str | None, json_: bool, talk: Talk, *, active: bool) -> int:
    from quantum_orchestrator.deployments.prefect_objects import asking, named

    with asking(talk.screen) as client:
        found = named(client, deployment)
        one = _one(found, schedule)
        # With its parameters: the server forgets those that it is not told again.
        client.update_deployment_schedule(found.id, one.id, active=active, parameters=one.parameters)
    if json_:
        talk.screen.document({"deployment": found.name, "schedule": one.slug or str(one.id), "active": active})
    else:
        talk.screen.result(f"{found.name}: {one.slug or one.id} is {'on' if active else 'paused'}")
    return 0


def remove(deployment: Name, schedule: Schedule = None, /, *, json_: Json = False, talk: Talk = TALK) -> int:
    """Remove a schedule, and the runs that it has made for later."""
    from quantum_orchestrator.deployments.prefect_objects import asking, named

    with asking(talk.screen) as client:
        found = named(client, deployment)
        one = _one(found, schedule)
        client.delete_deployment_schedule(found.id, one.id)
    if json_:
        talk.screen.document({"deployment": found.name, "schedule": one.slug or str(one.id), "removed": True})
    else:
        talk.screen.result(f"{found.name}: removed {one.slug or one.id}")
    return 0


def _one(deployment: DeploymentResponse, chosen: str | None) -> DeploymentSchedule:
    """The schedule that is meant. Raises UsageError where that is none, or more than one."""
    found = [
        each
        for each in deployment.schedules
        if chosen is None or each.slug == chosen or str(each.id).startswith(chosen)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.slug or str(each.id) for each in deployment.schedules)
    if not found:
        wanted = "no schedules" if chosen is None else f"no schedule {chosen!r}"
        raise UsageError(
            f"{deployment.name} has {wanted}", hint=f"it has {names}" if names else "`qo schedule add` makes one"
        )
    raise UsageError(f"{deployment.name} has several schedules: {names}", hint="name one of them")

"""What a run tells beside its tasks: artifacts for the plan, the diff and the progress, and lines in logs.

The journal holds it all, so that nothing here may end a run or hold it up for long: a server that does not answer is
given up, said once. What the states of task runs and flow runs tell is elsewhere (`prefect_runner`, `flow_runs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.events import emit_event

from quantum_orchestrator.flows import quality_pages, report
from quantum_orchestrator.flows.attempts import Observer
from quantum_orchestrator.flows.engine import Run
from quantum_orchestrator.flows.results import EventKind, RunEvent, StepStatus
from quantum_orchestrator.tasks.prefect_task import SHOWN_PATHS

T = TypeVar("T")

TELLING_SECONDS = 20.0
"""A server that takes longer to hear of something counts as gone."""

BAR_SECONDS = 1.0
"""Between two looks at how far a run has come."""


class Telling:
    """What a run tells Prefect beside its tasks. The journal holds it all: a server that is gone ends no run."""

    def __init__(self, run_id: str, set_name: str, observers: Sequence[Observer]) -> None:
        self.lost = False
        self._set_name = set_name
        self._description = f"Run {run_id}"
        self._observers = observers
        self._bar: UUID | None = None

    async def page(self, kind: str, markdown: str) -> None:
        """A page of the flow run, or of the task run that this is called in."""
        key = self._key(kind)
        await self.tell(lambda: acreate_markdown_artifact(markdown, key=key, description=self._description))

    async def restored(self, paths: Sequence[str]) -> None:
        """A page with what was put back."""
        shown = "".join(f"    {path}\n" for path in paths[:SHOWN_PATHS])
        more = f"\nand {len(paths) - SHOWN_PATHS} more\n" if len(paths) > SHOWN_PATHS else ""
        count = "1 path" if len(paths) == 1 else f"{len(paths)} paths"
        try:
            await self.page("rollback", f"# {count} put back\n\n{shown}{more}")
        except asyncio.CancelledError:  # it has taken so long that the run goes on without it
            self.lose(TimeoutError("it does not hear of what was undone"))
            raise

    async def judged(self, operation: str, step_id: str, said: Mapping[str, Any]) -> None:
        """What a step says of code: a table of its findings, and a chart of its score."""
        if not quality_pages.is_shown(operation, said):
            return
        if rows := quality_pages.rows(said):
            key = self._key(f"{step_id} findings")
            await self.tell(partial(acreate_table_artifact, rows, key=key, description=self._description))
        if chart := quality_pages.chart(said):
            await self.page(f"{step_id} score", chart)

    async def progress(self, percent: float) -> None:
        """The bar, made when it is first moved."""
        bar, key = self._bar, self._key("progress")
        if bar is None:
            made = partial(acreate_progress_artifact, percent, key=key, description=self._description)
            self._bar = await self.tell(made)
        else:
            await self.tell(lambda: aupdate_progress_artifact(bar, percent))

    async def tell(self, words: Callable[[], Awaitable[T]]) -> T | None:
        """What the server answers; None if it does not, and from then on."""
        if self.lost:
            return None
        try:
            async with asyncio.timeout(TELLING_SECONDS):
                return await words()
        except (httpx.HTTPError, TimeoutError) as problem:
            self.lose(problem)
            return None

    def _key(self, kind: str) -> str:
        """Prefect allows lower-case letters, digits and dashes; runs of one set are versions of one artifact."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self._set_name} {kind}".lower()).strip("-")

    def lose(self, problem: Exception) -> None:
        """Say, once, that the server is gone."""
        if not self.lost:
            self.lost = True
            reason = str(problem) or type(problem).__name__
            message = f"the Prefect server no longer answers, and will not show all of this run: {reason}"
            for observe in self._observers:
                observe(RunEvent(EventKind.SERVER_LOST, message=message))


@contextlib.asynccontextmanager
async def pages(run: Run, telling: Telling) -> AsyncIterator[asyncio.Event]:
    """The plan's page, and a bar that follows the run until the event that this gives is set.

    The run does not wait for them: a short one has hardly more to wait for.
    """
    ended = asyncio.Event()

    async def follow() -> None:
        shown, is_last = None, False
        while not is_last:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), BAR_SECONDS)
            is_last = ended.is_set()
            if (now := _percent(run)) != shown:
                shown = now
                await telling.progress(now)

    told = [
        asyncio.create_task(telling.page("plan", report.plan_page(run.graph, run.document.description))),
        asyncio.create_task(follow()),
    ]
    try:
        yield ended
    finally:
        ended.set()
        await asyncio.gather(*told)


def _percent(run: Run) -> float:
    results = tuple(run.books.results.values())  # at once: the steps' threads go on adding to them
    ended = sum(result.status is not StepStatus.RUNNING for result in results)
    total = max(len(run.graph.steps), len(results), 1)
    return round(100.0 * ended / total, 1)


def log_to(logger: Any) -> Observer:
    """What steps say, and what becomes of the run, for the flow run's log."""

    def observe(event: RunEvent) -> None:
        if event.kind is EventKind.LOG:
            logger.info("%s: %s", event.step, event.message)
        elif event.kind in (EventKind.ROLLING_BACK, EventKind.AWAITING_APPROVAL, EventKind.RUN_FINISHED):
            logger.info("%s %s", event.kind.value.replace("_", " "), event.message)

    return observe


EVENT = "quantum-orchestrator"
"""How the names of our events begin: `.run.started`, `.run.committed`, `.step.failed` and so on."""
MOST_STEPS_TOLD = 200
"""From so many on, no step has an event of its own: those that share a task run would cost more than they do."""


class Events:
    """What Prefect's automations can react to, beside the states of flow runs and task runs.

    The resource is `quantum-orchestrator.run.ID`; related is the flow run. They are put in a queue that a thread of
    Prefect's empties: that one of them is lost with the server changes nothing.
    """

    def __init__(self, run_id: str, set_name: str, root: str, flow_run_id: UUID) -> None:
        self._resource = {
            "prefect.resource.id": f"{EVENT}.run.{run_id}",
            "prefect.resource.name": run_id,
            f"{EVENT}.set": set_name,
            f"{EVENT}.workspace": root,
        }
        flow_run = f"prefect.flow-run.{flow_run_id}"
        self._related = [{"prefect.resource.id": flow_run, "prefect.resource.role": "flow-run"}]

    def emit(self, name: str, payload: dict[str, Any]) -> None:
        """Tell of something. In a context of its own: in the run's, Prefect would ask the server what it belongs to."""
        event = partial(emit_event, f"{EVENT}.{name}", self._resource, related=self._related, payload=payload)
        Context().run(event)

    def observers(self, steps: int) -> list[Observer]:
        """Those who tell of so many steps."""
        return [self._observe] if steps < MOST_STEPS_TOLD else []

    def _observe(self, event: RunEvent) -> None:
        """That a step has ended. What it gave is its own."""
        if event.kind is EventKind.STEP_FINISHED and event.status is not None:
            payload = {"step": event.step, "op": event.op, "duration_s": round(event.duration_s, 4)}
            self.emit(f"step.{event.status.value}", {**payload, "message": event.message})

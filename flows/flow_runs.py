"""Flow runs as the Prefect server has them: made, entered again, ended in the state that tells how the run stands.

A run keeps its flow run for good: whoever goes on with it, or takes it back, does so in the same one. The journal is
the authority; here is only said what it holds. Task runs that a dead process left unended are closed, never taken up.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import Flow, get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Completed, Crashed, Failed, Paused, Pending

from quantum_orchestrator.blocks.errors import QuantumError, ServerError
from quantum_orchestrator.blocks.journal import RunRecord
from quantum_orchestrator.blocks.tree import printable
from quantum_orchestrator.blocks.workspace import Undo
from quantum_orchestrator.flows.document import InstructionSet
from quantum_orchestrator.flows.prefect_runner import SHOWING_SECONDS, PrefectRunner
from quantum_orchestrator.flows.recover import Unwind
from quantum_orchestrator.flows.results import RunStatus, StepStatus
from quantum_orchestrator.flows.telling import Telling
from quantum_orchestrator.tasks.prefect_task import Once, done_and_shown, restored_in_words

PARAMETER_BYTES = 400_000
"""Prefect refuses parameters over 512 KiB; the journal holds the whole set anyway."""
PAUSE_SECONDS = 10 * 365 * 86_400
"""Prefect wants an end to every pause; ours wait for people."""
_UNENDED = (StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED)


def build_flow(document: InstructionSet, body: Callable[[], Awaitable[Any]]) -> Flow[..., Any]:
    """The Prefect flow of a set: named after it, described by it."""
    return _flow(document.name, document.description, body)


def _flow(name: str, description: str, body: Callable[[], Awaitable[Any]]) -> Flow[..., Any]:
    async def conduct(workspace: str = "", inputs: dict[str, Any] | None = None) -> Any:  # noqa: ARG001 - for the UI
        return await body()

    return Flow(
        conduct,
        name=name,
        description=description or None,
        persist_result=False,
        validate_parameters=False,
    )


async def _nothing() -> None:
    """A flow is registered by its name; what it does is given when it runs."""


# Before a run begins.


@contextlib.asynccontextmanager
async def new_flow_run(record: RunRecord, document: InstructionSet, root: Path) -> AsyncIterator[FlowRun]:
    """A flow run for a run. Raises ServerError where Prefect cannot be reached."""
    async with get_client() as client:
        with _reaching():
            flow_run = await client.create_flow_run(
                build_flow(document, _nothing),
                name=record.id,
                parameters=_parameters(record, root),
                tags=[*document.tags],
            )
        yield flow_run


@contextlib.asynccontextmanager
async def flow_run_again(record: RunRecord, document: InstructionSet, root: Path) -> AsyncIterator[FlowRun]:
    """The flow run that the run began in, made ready to run again; a new one where the server has lost it."""
    found = None
    if record.flow_run_id:
        async with get_client() as client:
            with _reaching():
                found = await _made_ready(client, UUID(record.flow_run_id), "Resuming")
    if found is not None:
        yield found
        return
    async with new_flow_run(record, document, root) as flow_run:
        yield flow_run


async def _made_ready(client: PrefectClient, flow_run_id: UUID, name: str) -> FlowRun | None:
    """The flow run, pending; None on another server, or one whose database is new.

    Not scheduled: a worker would take up a deployment's flow run at once, beside this process.
    """
    with contextlib.suppress(ObjectNotFound):
        await client.set_flow_run_state(flow_run_id, Pending(name=name), force=True)
        return await client.read_flow_run(flow_run_id)
    return None


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """For what Prefect must hear before a run begins."""
    try:
        yield
    except httpx.HTTPError as problem:
        raise unreached(problem) from problem


def unreached(problem: Exception) -> ServerError:
    """The server did not answer when nothing had been done yet."""
    return ServerError(
        f"the Prefect server does not answer: {str(problem) or type(problem).__name__}",
        hint="nothing was changed; `qo doctor` says how the server is",
    )


def _parameters(record: RunRecord, root: Path) -> dict[str, Any]:
    parameters = {"workspace": str(root), "inputs": dict(record.inputs)}
    if len(json.dumps(parameters)) > PARAMETER_BYTES:
        return {"workspace": str(root)}
    return parameters


async def execute(flow: Flow[..., Any], flow_run: FlowRun) -> None:
    """Run a flow of `build_flow` in this flow run, which may be a deployment's: that has other parameters."""
    parameters = {"workspace": flow_run.parameters.get("workspace") or ""}
    running = run_flow(flow, flow_run=flow_run, parameters=parameters, return_type="state")
    await cast("Awaitable[Any]", running)  # the flow is asynchronous


# Inside of one.


def current_flow_run() -> FlowRun:
    """The flow run that this is called in."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise QuantumError("this must run inside a flow run")
    return context.flow_run


async def close_task_runs(flow_run_id: UUID) -> None:
    """Task runs that a process left unended when it died have crashed: those who go on make others."""
    async with get_client() as client:
        left = await client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
            task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[*_UNENDED]))),
        )
        for each in left:
            with contextlib.suppress(ObjectNotFound):  # somebody deletes the flow run
                await client.set_task_run_state(each.id, Crashed(message="its process died"), force=True)


# How it ends.


def state_of(status: RunStatus, summary: str, *, deployed: bool = False) -> State[Any]:
    """The state of a flow run whose run stands so. The names are Prefect's own, as automations go by them.

    With `deployed`, Prefect can start what waits again itself: its Resume, in the UI, has a worker take it up.
    """
    if status is RunStatus.COMMITTED:
        return Completed(message=summary)
    if status is RunStatus.CANCELLED:
        return Cancelled(message=summary)
    if status in (RunStatus.AWAITING_APPROVAL, RunStatus.PAUSED):
        name = "AwaitingApproval" if status is RunStatus.AWAITING_APPROVAL else "Paused"
        return Paused(name=name, message=summary, timeout_seconds=PAUSE_SECONDS, reschedule=deployed)
    return Failed(message=summary)


async def ended(state: State[Any]) -> State[Any]:
    """The flow's return value, or what it has to raise: a flow run that waits is left paused by an exception, as
    Prefect itself does it, and one that has retries left is only tried again after an exception.
    """
    if state.is_failed() and await _has_retries_left():
        raise QuantumError(state.message or "the run has failed")
    if not state.is_paused():
        return state
    async with get_client() as client:
        await client.set_flow_run_state(current_flow_run().id, state)
    raise Pause(state=state)


async def _has_retries_left() -> bool:
    """As the server itself decides it, when it is told of the failure."""
    async with get_client() as client:
        flow_run = await client.read_flow_run(current_flow_run().id)
    retries = flow_run.empirical_policy.retries
    return retries is not None and flow_run.run_count <= retries


def summarize(document: Mapping[str, Any]) -> str:
    """A run's end in one line."""
    counts, status = document["diff"], document["status"].replace("_", " ")
    files = "file" if counts["files"] == 1 else "files"
    changed = f"{counts['files']} {files} changed (+{counts['insertions']} −{counts['deletions']})"
    failed = next((step["id"] for step in document["steps"] if step["status"] == StepStatus.FAILED), None)
    reason = f": {document['error']['message']}" if document["error"] else ""
    where = f" at step {failed}" if failed and document["error"] else ""
    return f"{status}{where}{reason}; {changed}"


# Taking a run back when it is not at work.


async def rollback_in_flow_run(record: RunRecord, unwind: Unwind, *, to: str | None = None) -> Undo:
    """Undo a run, or what came after the checkpoint `to`, in its own flow run, which shows it as tasks.

    The flow run is then Cancelled, named RolledBack: nothing has failed, so that no automation for failures wakes up.
    `unwind` is called exactly once, with or without Prefect; gives what it gives and raises what it raises.
    """
    if not record.flow_run_id:
        return await unwind(None)
    runner = PrefectRunner(record.id, Telling(record.id, record.set_name, ()))
    once = Once(lambda: unwind(runner if FlowRunContext.get() else None))  # no tasks outside of the flow run

    async def show() -> None:
        async with get_client() as client:
            flow_run = await _made_ready(client, UUID(str(record.flow_run_id)), "RollingBack")

        async def body() -> State[Any]:
            undo = await once()  # raises what it raised: the flow run has failed
            return await ended(_rolled_back(record, undo, to))

        if flow_run is not None:
            with contextlib.suppress(Pause):  # it may be gone on with
                await execute(_flow(record.set_name, "", body), flow_run)

    return await done_and_shown(once, show, SHOWING_SECONDS)


def _rolled_back(record: RunRecord, undo: Undo, to: str | None) -> State[Any]:
    restored = restored_in_words([printable(change.path) for change in undo.changes])
    if to is None:
        return Cancelled(name="RolledBack", message=f"rolled back; {restored}")
    message = f"rolled back to the checkpoint {to!r}; {restored}"
    if record.status in (RunStatus.COMMITTED, RunStatus.KEPT):
        return Cancelled(name="RolledBack", message=message)
    return state_of(RunStatus.PAUSED, message)

"""The Prefect flow of a run: built for each set, named after it, with a task run for each step.

Prefect gets what it is good at (states, retries, time-outs, results, logs, artifacts, the UI); the engine keeps what
must survive without it. `run_set` starts a run in this process, `carry_on` takes up one that waited (an approval, a
pause) in the *same* flow run, and `orchestrate` is the one static flow that deployments use: it takes a set as a
parameter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

from prefect import Flow, flow, get_client, get_run_logger
from prefect.artifacts import acreate_markdown_artifact, acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Completed, Failed, Paused, Scheduled
from prefect.utilities.urls import url_for

from quantum_orchestrator.blocks.errors import Interrupted, NeedsAttention, QuantumError, TimedOut, UsageError
from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.document import InstructionSet, OnFailure
from quantum_orchestrator.flows.engine import Attempt, Observer, Outcome, Outputs, Run, RunSettings
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus, StepStatus, error_json
from quantum_orchestrator.tasks.prefect_task import Ended, TaskOptions, cache_key, run_task

PARAMETER_BYTES = 400_000
"""Prefect refuses parameters over 512 KiB; the journal holds the whole set anyway."""
POLL_SECONDS = 0.5
PAUSE_SECONDS = 10 * 365 * 86_400
"""Prefect wants an end to every pause; ours wait for people."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What somebody wants run: a valid set, its resolved inputs, where, and how."""

    document: InstructionSet
    inputs: Mapping[str, Any]
    root: Path
    parallel: int | None = None
    on_failure: OnFailure | None = None
    approve: bool = False
    wait: bool = True
    actor: str = ""
    ask: Callable[[str, str], bool | None] | None = None
    on_wait: Callable[[str], None] = lambda _holder: None
    observers: Sequence[Observer] = field(default_factory=tuple)


def new_run_id() -> str:
    """A readable id that sorts by time: `20260102-030405-1a2b3c`."""
    return time.strftime("%Y%m%d-%H%M%S") + "-" + uuid4().hex[:6]


def default_actor() -> str:
    """Who runs: user and host."""
    return f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"


def default_parallel(document: InstructionSet) -> int:
    """The set's `parallel`; `auto` is twice the processors, as steps wait for disks and processes."""
    return document.parallel if isinstance(document.parallel, int) else max(4, 2 * (os.cpu_count() or 1))


# Opening a workspace.


@dataclass(slots=True)
class OpenWorkspace:
    """A workspace whose lock this process holds."""

    workspace: Workspace
    policy: Policy

    @property
    def journal(self) -> Journal:
        """The workspace's journal."""
        return self.workspace.journal


def open_journal(root: Path) -> Journal:
    """The journal of a workspace."""
    return Journal(workspace_home(root))


@contextlib.asynccontextmanager
async def locked(root: Path, *, wait: bool, on_wait: Callable[[str], None]) -> AsyncIterator[OpenWorkspace]:
    """Hold a workspace. Raises WorkspaceBusy where another run does and `wait` is false."""
    if os.environ.get("QO_RUN_ROOT") == str(root.resolve()):
        raise UsageError("a script of this run cannot start another run in the same workspace", hint='use "call"')
    policy = Policy.load(home() / "policy.toml")
    journal = open_journal(root)
    try:
        await asyncio.to_thread(journal.lock.acquire, wait=wait, on_wait=on_wait)
        workspace = Workspace(root, journal, policy.snapshot_exclude)
        try:
            yield OpenWorkspace(workspace, policy)
        finally:
            workspace.close()
    finally:
        journal.lock.release()
        journal.close()


def refuse_unfinished(journal: Journal) -> None:
    """A run whose effects are neither committed nor undone must be settled first: runs never mix."""
    run = journal.unfinished()
    if run is None:
        return
    ways = {
        "running": f"`qo resume {run.id}` goes on with it, `qo rollback {run.id}` undoes it",
        "paused": f"`qo resume {run.id}` goes on with it, `qo rollback {run.id}` undoes it",
        "awaiting_approval": f"`qo approve {run.id}` or `qo reject {run.id}`",
        "needs_attention": f"`qo diff {run.id}` shows what it did; `qo rollback {run.id}` tries again to undo it",
    }
    what = "died before its end" if run.status == "running" else f"is {run.status.replace('_', ' ')}"
    raise NeedsAttention(f"run {run.id} of {run.set_name!r} in this workspace {what}", hint=ways[run.status])


# Starting and carrying on.


async def run_set(request: RunRequest) -> dict[str, Any]:
    """Run a set in this process as a flow run of its own; the public document of the run."""
    async with locked(request.root, wait=request.wait, on_wait=request.on_wait) as opened:
        refuse_unfinished(opened.journal)
        record = _new_record(request)
        opened.journal.begin(record)
        async with _flow_run_for(record, request) as flow_run:
            return await _in_flow_run(record, request, opened, flow_run)


async def carry_on(request: RunRequest, run_id: str) -> dict[str, Any]:
    """Go on with a run that waited or died, in its own flow run if that can be had."""
    async with locked(request.root, wait=request.wait, on_wait=request.on_wait) as opened:
        record = opened.journal.run(run_id)
        if record is None:
            raise UsageError(f"no run {run_id!r} in this workspace", hint="`qo history` lists them")
        if record.status not in ("running", "paused", "awaiting_approval"):
            raise UsageError(f"run {record.id} is {record.status}: there is nothing to go on with")
        opened.journal.update(record.id, status=RunStatus.RUNNING.value, pid=os.getpid(), ended_at=None)
        async with _flow_run_again(record, request) as flow_run:
            return await _in_flow_run(record, request, opened, flow_run)


def restored(record: RunRecord) -> tuple[InstructionSet, dict[str, Any]]:
    """A recorded run's set and inputs."""
    return InstructionSet.model_validate(record.document), dict(record.inputs)


def _new_record(request: RunRequest) -> RunRecord:
    return RunRecord(
        id=new_run_id(),
        set_name=request.document.name,
        status=RunStatus.RUNNING.value,
        document=request.document.model_dump(by_alias=True, mode="json", exclude_unset=True),
        inputs=dict(request.inputs),
        options={"parallel": request.parallel, "on_failure": request.on_failure, "actor": request.actor},
        started_at=time.time(),
        pid=os.getpid(),
    )


@contextlib.asynccontextmanager
async def _flow_run_for(record: RunRecord, request: RunRequest) -> AsyncIterator[FlowRun]:
    async with get_client() as client:
        yield await client.create_flow_run(
            build_flow(request.document, _nothing),
            name=record.id,
            parameters=_parameters(record, request.root),
            tags=[*request.document.tags],
        )


@contextlib.asynccontextmanager
async def _flow_run_again(record: RunRecord, request: RunRequest) -> AsyncIterator[FlowRun]:
    """The flow run that the run began in, made ready to run again; a new one where the server has lost it."""
    found: FlowRun | None = None
    async with get_client() as client:
        with contextlib.suppress(ObjectNotFound):  # another server, or one whose database is new
            flow_run_id = UUID(str(record.flow_run_id))
            await client.set_flow_run_state(flow_run_id, Scheduled(name="Resuming"), force=True)
            found = await client.read_flow_run(flow_run_id)
    if found is not None:
        yield found
        return
    async with _flow_run_for(record, request) as flow_run:
        yield flow_run


def _parameters(record: RunRecord, root: Path) -> dict[str, Any]:
    parameters = {"workspace": str(root), "inputs": dict(record.inputs)}
    if len(json.dumps(parameters)) > PARAMETER_BYTES:
        return {"workspace": str(root)}
    return parameters


async def _nothing() -> None:
    """A flow is registered by its name; what it does is given when it runs."""


def build_flow(document: InstructionSet, body: Callable[[], Awaitable[Any]]) -> Flow[..., Any]:
    """The Prefect flow of a set: named after it, described by it."""

    async def conduct(workspace: str = "", inputs: dict[str, Any] | None = None) -> Any:  # noqa: ARG001 - for the UI
        return await body()

    return Flow(
        conduct,
        name=document.name,
        description=document.description or None,
        persist_result=False,
        validate_parameters=False,
    )


async def _in_flow_run(
    record: RunRecord, request: RunRequest, opened: OpenWorkspace, flow_run: FlowRun
) -> dict[str, Any]:
    documents: list[dict[str, Any]] = []

    async def body() -> State[Any]:
        document, state = await conduct(record, request, opened)
        documents.append(document)
        return await _ended(state)

    built = build_flow(request.document, body)
    running = run_flow(built, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
    with contextlib.suppress(Pause):  # how Prefect leaves a flow run that waits
        await cast("Awaitable[Any]", running)  # the flow is asynchronous
    if not documents:
        raise QuantumError("Prefect did not start the flow run", hint=f"`qo logs {record.id}` or the UI may say why")
    return documents[0]


# Inside the flow.


async def conduct(record: RunRecord, request: RunRequest, opened: OpenWorkspace) -> tuple[dict[str, Any], State[Any]]:
    """The flow's body: the run's document, and the state that the flow run is to end in."""
    journal = opened.journal
    flow_run_id = _current_flow_run_id()
    record = replace(record, flow_run_id=str(flow_run_id), ui_url=url_for("flow-run", obj_id=flow_run_id))
    journal.update(record.id, flow_run_id=record.flow_run_id, ui_url=record.ui_url)
    run = Run(
        record,
        request.document,
        opened.workspace,
        _settings(record, request),
        policy=opened.policy,
        runner=PrefectRunner(record.id),
        observers=[*request.observers, _log_to(get_run_logger()), _log_file(journal.log_path(record.id))],
    )
    run.observe(RunEvent(EventKind.RUN_STARTED, message=record.ui_url or "", op=record.id))
    with _interruptible(run):
        async with _pages(run), _watching_for_cancel(run):
            outcome = await run.execute()
    return await _finish(record, run, outcome)


def _current_flow_run_id() -> UUID:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise QuantumError("this must run inside a flow run")
    return context.flow_run.id


def _settings(record: RunRecord, request: RunRequest) -> RunSettings:
    chosen = request.on_failure or record.options.get("on_failure") or request.document.on_failure
    return RunSettings(
        parallel=request.parallel or record.options.get("parallel") or default_parallel(request.document),
        on_failure=OnFailure(chosen),
        approve=request.approve,
        actor=request.actor or default_actor(),
        ask=request.ask,
        secrets=load_secrets,
    )


async def _finish(record: RunRecord, run: Run, outcome: Outcome) -> tuple[dict[str, Any], State[Any]]:
    record = replace(record, ended_at=time.time())
    error = None if outcome.error is None else error_json(outcome.error)
    steps = list(report.in_document_order(run.expansion, run.inner, run.results))
    document = report.run_document(record, outcome.status, steps, run.journal, error)
    run.journal.update(record.id, report=document)
    summary = summarize(document)
    await _publish("diff", run, report.diff_page(report.render_diff(run.journal, run.id), summary))
    run.observe(RunEvent(EventKind.RUN_FINISHED, message=summary))
    return document, _state(outcome.status, summary)


def _state(status: RunStatus, summary: str) -> State[Any]:
    if status is RunStatus.COMMITTED:
        return Completed(message=summary)
    if status is RunStatus.CANCELLED:
        return Cancelled(message=summary)
    if status in (RunStatus.AWAITING_APPROVAL, RunStatus.PAUSED):
        name = "AwaitingApproval" if status is RunStatus.AWAITING_APPROVAL else "Paused"
        return Paused(name=name, message=summary, timeout_seconds=PAUSE_SECONDS)
    return Failed(message=summary)


async def _ended(state: State[Any]) -> State[Any]:
    """The flow's return value; a flow run that waits is left paused by an exception, as Prefect itself does it."""
    if not state.is_paused():
        return state
    async with get_client() as client:
        await client.set_flow_run_state(_current_flow_run_id(), state)
    raise Pause(state=state)


def summarize(document: Mapping[str, Any]) -> str:
    """A run's end in one line."""
    counts, status = document["diff"], document["status"].replace("_", " ")
    changed = f"{counts['files']} files changed (+{counts['insertions']} −{counts['deletions']})"
    failed = next((step["id"] for step in document["steps"] if step["status"] == StepStatus.FAILED), None)
    reason = f": {document['error']['message']}" if document["error"] else ""
    where = f" at step {failed}" if failed and document["error"] else ""
    return f"{status}{where}{reason}; {changed}"


class PrefectRunner:
    """Runs steps as Prefect tasks; see engine.StepRunner."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._runs: dict[str, Ended] = {}

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: bool) -> Outputs:
        """See engine.StepRunner."""
        instruction = step.instruction
        options = TaskOptions(
            operation=instruction.op,
            step_id=step.id,
            key=cache_key(self._run_id, step.id, instruction.parameters),
            description=instruction.description,
            retries=instruction.retries,
            retry_delays=instruction.retry_delay,
            timeout=instruction.timeout,
            tags=instruction.tags,
            reuse=reuse,
        )
        state = await run_task(options, attempt, [ended for each in after for ended in self._ended(each)])
        self._runs[step.id] = Ended(state)
        if state.is_cancelled():
            raise Interrupted
        result = await state.aresult(raise_on_failure=False)
        if isinstance(result, TimeoutError):
            raise TimedOut(f"took longer than {instruction.timeout:g} s; all that it had started was ended")
        if isinstance(result, BaseException):
            raise result
        outputs: Outputs = result
        return outputs

    def _ended(self, step_id: str) -> Iterator[Ended]:
        """A step's task run, or those of the steps that it became; none for a step that was skipped."""
        if step_id in self._runs:
            yield self._runs[step_id]
        else:
            inner = (f"{step_id}/", f"{step_id}[")
            yield from (run for name, run in self._runs.items() if name.startswith(inner))


def load_secrets(names: Sequence[str]) -> dict[str, str]:
    """Prefect Secret blocks by the name of their variable: DEPLOY_TOKEN is the block `deploy-token`."""
    from prefect.blocks.system import Secret

    values = {}
    for name in names:
        block = name.lower().replace("_", "-")
        try:
            values[name] = str(Secret.load(block, _sync=True).get())  # type: ignore[call-arg, union-attr]
        except ValueError as error:
            raise QuantumError(
                f"there is no Secret block {block!r}", hint="make it in Prefect's UI, under Blocks"
            ) from error
    return values


# What is shown while it runs.


@contextlib.contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run in order; a second one ends the process at once, and says so."""
    loop = asyncio.get_running_loop()
    pressed = 0

    def handle() -> None:
        nonlocal pressed
        pressed += 1
        if pressed == 1:
            run.interrupt()
            return
        message = f"\nstopped at once; `qo rollback {run.id}` undoes what was done, `qo resume {run.id}` goes on\n"
        os.write(2, message.encode())
        os._exit(130)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, handle)
    except (ValueError, RuntimeError):  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _watching_for_cancel(run: Run) -> AsyncIterator[None]:
    """`qo cancel` leaves a mark in the journal."""

    async def watch() -> None:
        while not run.journal.cancel_requested(run.id):
            await asyncio.sleep(POLL_SECONDS)
        run.interrupt()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


@contextlib.asynccontextmanager
async def _pages(run: Run) -> AsyncIterator[None]:
    """The plan's page, and a bar that follows the run."""
    await _publish("plan", run, report.plan_page(run.graph, run.document.description))
    bar = await acreate_progress_artifact(0.0, key=_key(run, "progress"), description=f"Run {run.id}")

    async def follow() -> None:
        shown = 0.0
        while True:
            await asyncio.sleep(1)
            if (now := _percent(run)) != shown:
                shown = now
                await aupdate_progress_artifact(bar, now)

    follower = asyncio.create_task(follow())
    try:
        yield
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await aupdate_progress_artifact(bar, _percent(run))


def _percent(run: Run) -> float:
    ended = sum(result.status is not StepStatus.RUNNING for result in run.results.values())
    total = max(len(run.graph.steps), len(run.results), 1)
    return round(100.0 * ended / total, 1)


async def _publish(kind: str, run: Run, markdown: str) -> None:
    await acreate_markdown_artifact(markdown, key=_key(run, kind), description=f"Run {run.id}")


def _key(run: Run, kind: str) -> str:
    """Prefect allows lower-case letters, digits and dashes; runs of one set are versions of one artifact."""
    return re.sub(r"[^a-z0-9]+", "-", f"{run.document.name} {kind}".lower()).strip("-")


def _log_to(logger: Any) -> Observer:
    def observe(event: RunEvent) -> None:
        if event.kind is EventKind.LOG:
            logger.info("%s: %s", event.step, event.message)
        elif event.kind in (EventKind.ROLLING_BACK, EventKind.AWAITING_APPROVAL, EventKind.RUN_FINISHED):
            logger.info("%s %s", event.kind.value.replace("_", " "), event.message)

    return observe


def _log_file(path: Path) -> Observer:
    """One line an event, for `qo logs`."""

    def observe(event: RunEvent) -> None:
        outcome = f" {event.status}" if event.status else ""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event.kind.value}{outcome} {event.step} {event.message}"
        with path.open("a", encoding="utf-8") as file:
            file.write(line.rstrip().replace("\n", "\\n") + "\n")

    return observe


# The deployable flow.


@flow(name="orchestrate", persist_result=False, flow_run_name=lambda: new_run_id())
async def orchestrate(
    instruction_set: InstructionSet,
    inputs: dict[str, Any] | None = None,
    workspace: str | None = None,
    parallel: int | None = None,
    on_failure: OnFailure | None = None,
) -> State[Any]:
    """Run an instruction set on a workspace of the machine that the worker is on.

    Args:
        instruction_set: The set, as in a JSON document.
        inputs: Values for the set's inputs.
        workspace: The folder to work in; the set's own `workspace` if it is not given, or the current folder.
        parallel: How many steps may run at once.
        on_failure: What becomes of the effects when a step fails.
    """
    document = load_object(instruction_set.model_dump(by_alias=True, mode="json", exclude_unset=True))
    root = Path(workspace or document.workspace or ".").resolve()
    root.mkdir(parents=True, exist_ok=True)
    request = RunRequest(
        document, resolve_inputs(document, inputs or {}), root, parallel, on_failure, actor=default_actor()
    )
    async with locked(root, wait=True, on_wait=lambda _holder: None) as opened:
        refuse_unfinished(opened.journal)
        record = _new_record(request)
        opened.journal.begin(record)
        _, state = await conduct(record, request, opened)
        return await _ended(state)

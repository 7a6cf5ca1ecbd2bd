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
from typing import Any, Self, TypeVar, cast
from uuid import UUID, uuid4

import httpx
from prefect import Flow, flow, get_client, get_run_logger
from prefect.artifacts import acreate_markdown_artifact, acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Completed, Failed, Paused, Scheduled
from prefect.utilities.urls import url_for

from quantum_orchestrator.blocks.errors import (
    Interrupted,
    NeedsAttention,
    QuantumError,
    ServerError,
    TimedOut,
    UsageError,
    WorkspaceBusy,
)
from quantum_orchestrator.blocks.home import home, refuse_own_run, workspace_home, workspace_option
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.attempts import Observer, Outputs
from quantum_orchestrator.flows.document import InstructionSet, OnFailure
from quantum_orchestrator.flows.engine import Attempt, Outcome, Run, RunSettings
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus, StepStatus, error_json
from quantum_orchestrator.tasks.prefect_task import Ended, TaskOptions, cache_key, run_task

T = TypeVar("T")

PARAMETER_BYTES = 400_000
"""Prefect refuses parameters over 512 KiB; the journal holds the whole set anyway."""
POLL_SECONDS = 0.5
LOCK_SECONDS = 0.05
TELLING_SECONDS = 20.0
"""A server that takes longer to hear of something counts as gone."""
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
    refuse_own_run(root)
    policy = Policy.load(home() / "policy.toml")
    journal = open_journal(root)
    try:
        await _acquire(journal, wait=wait, on_wait=on_wait)
        workspace = Workspace(root, journal, policy.snapshot_exclude)
        try:
            yield OpenWorkspace(workspace, policy)
        finally:
            workspace.close()
    finally:
        journal.lock.release()
        journal.close()


async def _acquire(journal: Journal, *, wait: bool, on_wait: Callable[[str], None]) -> None:
    """Asks again and again, as whoever waits in the kernel cannot be interrupted."""
    told = False
    while True:
        try:
            journal.lock.acquire()
        except WorkspaceBusy:
            if not wait:
                raise
            if not told:
                on_wait(journal.lock.holder())
            told = True
            await asyncio.sleep(LOCK_SECONDS)
        else:
            return


def refuse_unfinished(journal: Journal, root: Path) -> None:
    """A run whose effects are neither committed nor undone must be settled first: runs never mix."""
    run = journal.unfinished()
    if run is None:
        return
    at = f"{run.id}{workspace_option(root)}"
    ways = {
        "running": f"`qo resume {at}` goes on with it, `qo rollback {at}` undoes it",
        "paused": f"`qo resume {at}` goes on with it, `qo rollback {at}` undoes it",
        "awaiting_approval": f"`qo approve {at}` or `qo reject {at}`",
        "needs_attention": f"`qo diff {at}` shows what it did; `qo rollback {at}` tries again to undo it",
    }
    what = "died before its end" if run.status == "running" else f"is {run.status.replace('_', ' ')}"
    raise NeedsAttention(f"run {run.id} of {run.set_name!r} in this workspace {what}", hint=ways[run.status])


# Starting and carrying on.


async def run_set(request: RunRequest) -> dict[str, Any]:
    """Run a set in this process as a flow run of its own; the public document of the run."""
    async with locked(request.root, wait=request.wait, on_wait=request.on_wait) as opened:
        refuse_unfinished(opened.journal, request.root)
        record = _new_record(request)
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
        with _reaching():
            flow_run = await client.create_flow_run(
                build_flow(request.document, _nothing),
                name=record.id,
                parameters=_parameters(record, request.root),
                tags=[*request.document.tags],
            )
        yield flow_run


@contextlib.asynccontextmanager
async def _flow_run_again(record: RunRecord, request: RunRequest) -> AsyncIterator[FlowRun]:
    """The flow run that the run began in, made ready to run again; a new one where the server has lost it."""
    found = await _made_ready(UUID(record.flow_run_id)) if record.flow_run_id else None
    if found is not None:
        yield found
        return
    async with _flow_run_for(record, request) as flow_run:
        yield flow_run


async def _made_ready(flow_run_id: UUID) -> FlowRun | None:
    async with get_client() as client:
        with _reaching(), contextlib.suppress(ObjectNotFound):  # another server, or one whose database is new
            await client.set_flow_run_state(flow_run_id, Scheduled(name="Resuming"), force=True)
            return await client.read_flow_run(flow_run_id)
    return None


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """For what Prefect must hear before a run begins."""
    try:
        yield
    except httpx.HTTPError as problem:
        raise _unreached(problem) from problem


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
    """Run the flow. What the run came to is decided in its body: if Prefect cannot hear of it, that is only said."""
    ends: list[dict[str, Any] | Exception] = []
    signals, telling = Signals(), Telling(request.observers)

    async def body() -> State[Any]:
        try:
            document, state = await conduct(record, request, opened, signals, telling)
        except Exception as problem:
            ends.append(problem)  # Prefect makes a state of it
            raise
        ends.append(document)
        if telling.lost:
            hurry.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        limit.reschedule(asyncio.get_running_loop().time() + (0 if telling.lost else TELLING_SECONDS))
        return await _ended(state)

    built = build_flow(request.document, body)
    running = run_flow(built, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
    try:
        with contextlib.ExitStack() as hurry, signals, contextlib.suppress(Pause):  # Pause: a flow run that waits
            async with asyncio.timeout(None) as limit:
                await cast("Awaitable[Any]", running)  # the flow is asynchronous
    except (httpx.HTTPError, TimeoutError) as problem:
        if not ends:
            raise _unreached(problem) from problem
        telling.lose(problem)
    return _end(record, ends)


def _end(record: RunRecord, ends: Sequence[dict[str, Any] | Exception]) -> dict[str, Any]:
    for end in ends:
        if isinstance(end, Exception):
            raise end
        return end
    raise QuantumError("Prefect did not start the flow run", hint=f"`qo logs {record.id}` or the UI may say why")


def _unreached(problem: Exception) -> ServerError:
    return ServerError(
        f"the Prefect server does not answer: {str(problem) or type(problem).__name__}",
        hint="nothing was changed; `qo doctor` says how the server is",
    )


# Inside the flow.


async def conduct(
    record: RunRecord, request: RunRequest, opened: OpenWorkspace, signals: Signals, telling: Telling
) -> tuple[dict[str, Any], State[Any]]:
    """The flow's body: the run's document, and the state that the flow run is to end in.

    The run begins here and not before: whatever ends the process until then, Ctrl-C or Prefect, leaves nothing.
    """
    journal = opened.journal
    await signals.take()
    if journal.run(record.id) is None:
        journal.begin(record)
    else:
        journal.update(record.id, status=RunStatus.RUNNING.value, pid=os.getpid(), ended_at=None)
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
    signals.end(run)
    async with _pages(run, telling), _watching_for_cancel(run):
        outcome = await run.execute()
    return await _finish(record, run, outcome, telling)


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


async def _finish(record: RunRecord, run: Run, outcome: Outcome, telling: Telling) -> tuple[dict[str, Any], State[Any]]:
    record = replace(record, ended_at=time.time())
    error = None if outcome.error is None else error_json(outcome.error)
    steps = list(report.in_document_order(run.expansion, run.inner, run.results))
    document = report.run_document(record, outcome.status, steps, run.journal, error)
    run.journal.update(record.id, report=document)
    summary = summarize(document)
    await telling.page(run, "diff", report.diff_page(run.redact(report.render_diff(run.journal, run.id)), summary))
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
    files = "file" if counts["files"] == 1 else "files"
    changed = f"{counts['files']} {files} changed (+{counts['insertions']} −{counts['deletions']})"
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
            limit = "its time-out" if instruction.timeout is None else f"{instruction.timeout:g} s"
            raise TimedOut(f"took longer than {limit}; all that it had started was ended")
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


class Signals:
    """What Ctrl-C and SIGTERM do to a run: the first ends it in order, the second ends the process, and says so.

    In force from `take` to the end of the context, so that also the last words of a run are not cut off. Before, there
    is nothing to undo, and Python's own way of ending will do; only SIGTERM is held back until then, as Prefect's way
    is to raise an exception wherever the program happens to be, which may be where none gets out.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._pressed = 0
        self._owners = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Self:
        """See `take`."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever owned the signals has them back."""
        for number in self._taken:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, self._owners[number])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    async def take(self) -> None:
        """Own them from now on. An interrupt that came before is raised here, before anything has begun."""
        loop = asyncio.get_running_loop()
        for number in self._owners:
            try:
                loop.add_signal_handler(number, self._received)
            except (ValueError, RuntimeError):  # not the main thread: whoever owns it handles signals
                break
            self._taken.append(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        await asyncio.sleep(0)

    def end(self, run: Run) -> None:
        """This is the run that they end."""
        self._run = run
        if self._pressed:
            run.interrupt()

    def _received(self) -> None:
        self._pressed += 1
        run = self._run
        if run is None:
            return
        if self._pressed == 1:
            run.interrupt()
            return
        where = workspace_option(run.workspace.root)
        message = f"`qo rollback {run.id}{where}` undoes what was done, `qo resume {run.id}{where}` goes on"
        os.write(2, f"\nstopped at once; {message}\n".encode())
        os._exit(130)


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


class Telling:
    """What a run tells Prefect beside its tasks. The journal holds it all: a server that is gone ends no run."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.lost = False
        self._observers = observers
        self._bar: UUID | None = None

    async def page(self, run: Run, kind: str, markdown: str) -> None:
        """A page of the flow run."""
        key, description = _key(run, kind), f"Run {run.id}"
        await self._tell(lambda: acreate_markdown_artifact(markdown, key=key, description=description))

    async def progress(self, run: Run, percent: float) -> None:
        """The bar, made when it is first moved."""
        bar, key, description = self._bar, _key(run, "progress"), f"Run {run.id}"
        if bar is None:
            self._bar = await self._tell(lambda: acreate_progress_artifact(percent, key=key, description=description))
        else:
            await self._tell(lambda: aupdate_progress_artifact(bar, percent))

    async def _tell(self, words: Callable[[], Awaitable[T]]) -> T | None:
        if self.lost:
            return None
        try:
            async with asyncio.timeout(TELLING_SECONDS):
                return await words()
        except (httpx.HTTPError, TimeoutError) as problem:
            self.lose(problem)
            return None

    def lose(self, problem: Exception) -> None:
        """Say, once, that the server is gone."""
        if not self.lost:
            self.lost = True
            reason = str(problem) or type(problem).__name__
            message = f"the Prefect server no longer answers, and will not show all of this run: {reason}"
            for observe in self._observers:
                observe(RunEvent(EventKind.SERVER_LOST, message=message))


@contextlib.asynccontextmanager
async def _pages(run: Run, telling: Telling) -> AsyncIterator[None]:
    """The plan's page, and a bar that follows the run."""
    await telling.page(run, "plan", report.plan_page(run.graph, run.document.description))
    await telling.progress(run, 0.0)

    async def follow() -> None:
        shown = 0.0
        while True:
            await asyncio.sleep(1)
            if (now := _percent(run)) != shown:
                shown = now
                await telling.progress(run, now)

    follower = asyncio.create_task(follow())
    try:
        yield
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await telling.progress(run, _percent(run))


def _percent(run: Run) -> float:
    ended = sum(result.status is not StepStatus.RUNNING for result in run.results.values())
    total = max(len(run.graph.steps), len(run.results), 1)
    return round(100.0 * ended / total, 1)


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
        refuse_unfinished(opened.journal, root)
        with (signals := Signals()):
            telling = Telling(request.observers)
            _, state = await conduct(_new_record(request), request, opened, signals, telling)
        return await _ended(state)

"""Runs as Prefect flows: started, gone on with, and the one flow that deployments use.

`run_set` starts a run in this process, in a flow run of a flow that is named after the set. `carry_on` takes up one
that waited, died or was undone, in the *same* flow run. `orchestrate` is the static flow of deployments, which takes a
set as a parameter; executed again (Retry in the UI, the flow's `retries`, a worker that takes over), it finds the run
that its flow run began, and does with it what `carry_on` does. All come to `conduct`: the journal decides what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.urls import url_for

from quantum_orchestrator.blocks import machine
from quantum_orchestrator.blocks.errors import NeedsAttention, QuantumError, UsageError, WorkspaceBusy
from quantum_orchestrator.blocks.holdings import when_pruned
from quantum_orchestrator.blocks.home import home, policy_path, refuse_own_run, workspace_home, workspace_option
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.levels import shortfall
from quantum_orchestrator.blocks.model import BLOCK, ModelSettings, settings_from_environment
from quantum_orchestrator.blocks.policy import Given, Policy
from quantum_orchestrator.blocks.profile import Measured, Profile
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.attempts import Observer
from quantum_orchestrator.flows.auditing import RunAudit
from quantum_orchestrator.flows.callbacks import Callback, deliver
from quantum_orchestrator.flows.deployment_form import FLOW_NAME, WORKSPACE_BLOCK
from quantum_orchestrator.flows.document import InstructionSet, OnFailure, RollbackTo
from quantum_orchestrator.flows.engine import Outcome, Run, RunSettings, boot_at_work
from quantum_orchestrator.flows.estimates import Estimates, places_of
from quantum_orchestrator.flows.flow_runs import (
    build_flow,
    close_task_runs,
    current_flow_run,
    ended,
    execute,
    flow_run_again,
    new_flow_run,
    state_of,
    summarize,
    unreached,
)
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.keeping import keep_within
from quantum_orchestrator.flows.prefect_runner import PrefectRunner
from quantum_orchestrator.flows.recover import UNDONE, start_again
from quantum_orchestrator.flows.requests import (
    RunRequest,
    narrowing,
    new_record,
    new_run_id,
    policy_for,
    sandbox_level,
)
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus, StepStatus, error_json
from quantum_orchestrator.flows.reusing import Wishes
from quantum_orchestrator.flows.run_diff import of_run
from quantum_orchestrator.flows.run_log import LogFile
from quantum_orchestrator.flows.signals import Signals
from quantum_orchestrator.flows.telling import TELLING_SECONDS, Events, Telling, log_to, pages

POLL_SECONDS = 0.5
LOCK_SECONDS = 0.05
RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
GOES_ON = (RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.AWAITING_APPROVAL, RunStatus.KEPT)
"""Runs whose effects stand, so far: what had ended is not run again."""


# Opening a workspace.


@dataclass(slots=True)
class OpenWorkspace:
    """A workspace whose lock this process holds."""

    workspace: Workspace
    policy: Policy
    afterwards: list[threading.Thread] = field(default_factory=list)
    """What is waited for only when the workspace is free again."""

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
    policy = await _policy()
    journal = open_journal(root)
    try:
        await _acquire(journal, wait=wait, on_wait=on_wait)
        workspace = Workspace(root, journal, policy.snapshot_exclude)
        opened = OpenWorkspace(workspace, policy)
        try:
            yield opened
        finally:
            workspace.close()
    finally:
        journal.lock.release()
        journal.close()
    for thread in opened.afterwards:
        thread.join()


async def _policy() -> Policy:
    """The machine's, narrowed by the server's where it names one."""
    policy = Policy.load(policy_path())
    if not policy.prefect_policy:
        return policy
    from quantum_orchestrator.blocks.policy_block import settings_of

    return policy.narrowed(await settings_of(policy.prefect_policy))


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


def refuse_unfinished(journal: Journal, root: Path, besides: str | None = None) -> None:
    """A run whose effects are neither committed nor undone must be settled first: runs never mix."""
    run = journal.unfinished()
    if run is None or run.id == besides:
        return
    at = f"{run.id}{workspace_option(root)}"
    ways = {
        "running": f"`qo resume {at}` goes on with it, `qo rollback {at}` undoes it",
        "paused": f"`qo resume {at}` goes on with it, `qo rollback {at}` undoes it",
        "awaiting_approval": f"`qo approve {at}` or `qo reject {at}`",
        "needs_attention": f"`qo diff {at}` shows what it did; `qo rollback {at}` tries again to undo it",
    }
    whats = {"running": "died before its end", "needs_attention": "needs attention"}
    what = whats.get(run.status, f"is {run.status.replace('_', ' ')}")
    raise NeedsAttention(f"run {run.id} of {run.set_name!r} in this workspace {what}", hint=ways[run.status])


# Starting and carrying on.


async def run_set(request: RunRequest) -> dict[str, Any]:
    """Run a set in this process as a flow run of its own; the public document of the run."""
    async with locked(request.root, wait=request.wait, on_wait=request.on_wait) as opened:
        record = new_record(request)
        if opened.journal.run(record.id) is not None:  # whose id was fixed before, and is begun once
            raise UsageError(f"run {record.id} was begun already", hint=f"`qo show {record.id}` says how it stands")
        refuse_unfinished(opened.journal, request.root)
        async with new_flow_run(record, request.document, request.root) as flow_run:
            return await _in_flow_run(record, request, opened, flow_run)


async def carry_on(request: RunRequest, run_id: str, *, chosen_as: str | None = None) -> dict[str, Any]:
    """Go on with a run that waited or died, or begin one again that was undone, in its own flow run if that can be had.

    `chosen_as` is the status by which the caller chose it: one that somebody has undone meanwhile is not begun again.
    Raises UsageError for such a one and one that is committed, NeedsAttention where it, or another, must be settled
    first.
    """
    async with locked(request.root, wait=request.wait, on_wait=request.on_wait) as opened:
        record = opened.journal.run(run_id)
        if record is None:
            raise UsageError(f"no run {run_id!r} in this workspace", hint="`qo history` lists them")
        if record.status == RunStatus.COMMITTED:
            raise UsageError(f"run {record.id} is {record.status}: there is nothing to go on with")
        if chosen_as is not None and chosen_as not in UNDONE and record.status in UNDONE:
            at = f"{record.id}{workspace_option(request.root)}"
            raise UsageError(
                f"run {record.id} was rolled back meanwhile", hint=f"`qo resume {at}` runs it again from its start"
            )
        _refuse_to_go_on(record, opened.journal, request.root)
        if request.start_at is not None and record.status not in UNDONE:
            settings = _settings(record, request)
            workspace, policy = opened.workspace, opened.policy
            run = Run(record, request.document, workspace, settings, policy=policy, graph=request.graph)
            run.refuse_conflicts(request.start_at)
        async with flow_run_again(record, request.document, request.root) as flow_run:
            return await _in_flow_run(record, request, opened, flow_run)


def _refuse_to_go_on(record: RunRecord, journal: Journal, root: Path) -> None:
    """Raises NeedsAttention where going on would build on what must be settled first."""
    if record.pruned and record.status not in UNDONE:
        raise NeedsAttention(
            f"run {record.id} cannot go on: its before-images were removed by `qo gc`{when_pruned(record)}",
            hint="run the set again",
        )
    goes_on = record.status in (*GOES_ON, *UNDONE)
    refuse_unfinished(journal, root, besides=record.id if goes_on else None)


def restored(record: RunRecord) -> tuple[InstructionSet, dict[str, Any]]:
    """A recorded run's set and inputs."""
    return InstructionSet.model_validate(record.document), dict(record.inputs)


async def _in_flow_run(
    record: RunRecord, request: RunRequest, opened: OpenWorkspace, flow_run: FlowRun
) -> dict[str, Any]:
    """Run the flow. What the run came to is decided in its body: if Prefect cannot hear of it, that is only said."""
    ends: list[dict[str, Any] | Exception] = []
    signals, telling = Signals(), Telling(record.id, record.set_name, request.observers)

    async def body() -> State[Any]:
        limit.reschedule(None)  # Prefect may call it again: retries by default are a setting of the user's
        try:
            document, state = await conduct(record, request, opened, signals, telling)
        except Exception as problem:
            ends.append(problem)  # Prefect makes a state of it
            raise
        ends.append(document)
        if telling.lost:
            hurry.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        limit.reschedule(asyncio.get_running_loop().time() + (0 if telling.lost else TELLING_SECONDS))
        return await ended(state)

    try:
        with contextlib.ExitStack() as hurry, signals, contextlib.suppress(Pause):  # Pause: a flow run that waits
            async with asyncio.timeout(None) as limit:
                await execute(build_flow(request.document, body), flow_run)
    except (httpx.HTTPError, TimeoutError) as problem:
        if not ends:
            raise unreached(problem) from problem
        telling.lose(problem)
    if not telling.lost:
        opened.journal.update(record.id, durable=False, told_crashed=1)
    return _end(record, ends)


def _end(record: RunRecord, ends: Sequence[dict[str, Any] | Exception]) -> dict[str, Any]:
    """The last one, if Prefect has had it run again."""
    if not ends:
        raise QuantumError("Prefect did not start the flow run", hint=f"`qo logs {record.id}` or the UI may say why")
    if isinstance(ends[-1], Exception):
        raise ends[-1]
    return ends[-1]


# Inside the flow.


async def conduct(
    record: RunRecord, request: RunRequest, opened: OpenWorkspace, signals: Signals, telling: Telling
) -> tuple[dict[str, Any], State[Any]]:
    """The flow's body: the run's document, and the state that the flow run is to end in.

    The run begins here and not before: whatever ends the process until then, Ctrl-C or Prefect, leaves nothing.
    """
    journal, flow_run = opened.journal, current_flow_run()
    await signals.take()
    policy = opened.policy.narrowed(narrowing(record))
    options = {**record.options, "sandbox": sandbox_level(record, request.document.trust, policy)}
    ui_url = url_for("flow-run", obj_id=flow_run.id)
    record = replace(record, flow_run_id=str(flow_run.id), ui_url=ui_url, options=options)
    audit = RunAudit(record, request.root)
    if _begin_or_go_on(record, journal, request, audit):
        await telling.tell(lambda: close_task_runs(flow_run.id))
    events = Events(record.id, record.set_name, str(request.root), flow_run.id)
    own: list[Observer] = [log_to(get_run_logger()), LogFile(journal.log_path(record.id))]
    run = Run(
        record,
        request.document,
        opened.workspace,
        replace(_settings(record, request), decided=partial(audit.decided, actor=request.actor)),
        policy=policy,
        runner=PrefectRunner(record.id, telling),
        observers=[*request.observers, *own, *events.observers(len(request.document.instructions))],
        graph=request.graph,
    )
    events.emit("run.started", {"set": record.set_name, "steps": len(run.graph.steps)})
    run.observe(RunEvent(EventKind.RUN_STARTED, message=record.ui_url or "", op=record.id))
    chosen = policy_for(request.document.trust, policy)
    if lower := shortfall(chosen.sandbox_require, chosen.sandbox_prefer):
        run.observe(RunEvent(EventKind.LOG, message=lower))
    signals.end(run)
    async with pages(run, telling) as executed:
        async with _watching_for_cancel(run):
            outcome = await run.execute()
        executed.set()
        document, summary = await _finish(record, run, outcome, telling)
    unsaid = audit.ended(request.actor, outcome.status, document["error"])
    if unsaid:
        run.observe(RunEvent(EventKind.LOG, message=unsaid))
    events.emit(f"run.{outcome.status.value}", {"set": record.set_name, "summary": summary})
    opened.afterwards += [_learn(run), *_call_back(record, document, policy, request.observers)]
    return document, state_of(outcome.status, summary, deployed=flow_run.deployment_id is not None)


def _begin_or_go_on(record: RunRecord, journal: Journal, request: RunRequest, audit: RunAudit) -> bool:
    """Make the run one that is at work, in this process; whether another one has died over it."""
    known = journal.run(record.id)
    if known is None:
        audit.begun(request.actor, request.source)
        journal.begin(record)
        return False
    _refuse_to_go_on(known, journal, request.root)
    audit.resumed(request.actor, known.status)
    start_again(journal, known)
    journal.update(
        known.id,
        status=RunStatus.RUNNING.value,
        pid=os.getpid(),
        boot_id=boot_at_work(known),
        ended_at=None,
        report=None,
        error=None,
        cancel_requested=0,
        told_crashed=0,
        pruned=0,  # what it has changed since is there to be undone
        flow_run_id=record.flow_run_id,
        ui_url=record.ui_url,
        options=record.options,
    )
    return known.status == RunStatus.RUNNING


def _settings(record: RunRecord, request: RunRequest) -> RunSettings:
    chosen = request.on_failure or record.options.get("on_failure") or request.document.on_failure
    on_failure = chosen if isinstance(chosen, RollbackTo) else OnFailure(chosen)
    fixed = request.parallel or record.options.get("parallel")
    return RunSettings(
        parallel=fixed or places_of(request.document, machine.processors()),
        adapts=fixed is None and request.document.parallel == "auto",
        on_failure=on_failure,
        start_at=request.start_at,
        approve=request.approve,
        actor=request.actor,
        ask=request.ask,
        secrets=load_secrets,
        models=load_model,
        reuse=request.reuse or Wishes(**(record.options.get("reuse") or {})),
        duration_of=Estimates(Profile(home()).load(record.set_name)),
    )


def _learn(run: Run) -> threading.Thread:
    """Remember how long the steps took; meanwhile Prefect hears of the end."""

    def learn() -> None:
        done = [each for each in run.books.results.values() if each.status is StepStatus.SUCCEEDED]
        measured = [Measured(each.id, each.op, run.worked.get(each.id, each.duration_s)) for each in done]
        profile.learn(run.document.name, measured)

    profile = Profile(home())
    thread = threading.Thread(target=learn, name="learn")
    thread.start()
    return thread


def _call_back(
    record: RunRecord, document: Mapping[str, Any], policy: Policy, observers: Sequence[Observer]
) -> list[threading.Thread]:
    """Tell whoever asked for it how the run has ended. By then, the workspace may be others'."""
    if not record.options.get("callback"):
        return []
    callback, logger = Callback(**record.options["callback"]), get_run_logger()

    def tell() -> None:
        try:
            secret = "".join(load_secrets([callback.secret] if callback.secret else []).values())
            unheard = deliver(callback, document, policy, secret)
        except QuantumError as error:
            unheard = error.message
        if unheard:
            logger.warning("the callback to %s was not heard: %s", callback.url, unheard)
            for observe in observers:
                observe(RunEvent(EventKind.LOG, message=f"the callback to {callback.url} was not heard: {unheard}"))

    thread = threading.Thread(target=tell, name="callback")
    thread.start()
    return [thread]


async def _finish(record: RunRecord, run: Run, outcome: Outcome, telling: Telling) -> tuple[dict[str, Any], str]:
    """The run's document, and the same in one line."""
    record = replace(record, ended_at=time.time())
    error = None if outcome.error is None else error_json(outcome.error)
    steps = list(report.in_document_order(run.books.expansion, run.books.inner, run.books.results))
    made = of_run(run.journal, run.id)  # read once, for the counts and the page
    document = report.run_document(record, outcome.status, steps, run.journal, error, made)
    run.journal.update(record.id, report=document)
    kept = keep_within(run.journal, run.policy, run_id=record.id)
    if kept is not None:
        said = f"the journal forgot the before-images of {len(kept.removal.runs)} runs, to stay within its limits"
        run.observe(RunEvent(EventKind.LOG, message=kept.problem or said))
    summary = summarize(document)
    await telling.page("diff", report.diff_page(run.redact(made.beginning(report.LONGEST_PAGE)), summary))
    run.observe(RunEvent(EventKind.RUN_FINISHED, message=summary))
    return document, summary


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


def load_model(name: str | None) -> ModelSettings:
    """Who answers questions: a Model block, the one that QO_MODEL_BLOCK names, or as the environment says."""
    block = name or os.environ.get(BLOCK)
    if not block:
        return settings_from_environment()
    from quantum_orchestrator.blocks.model_block import settings_of

    return settings_of(block)


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


# The deployable flow.


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a deployment's flow run is to do: a valid set, the values given for its inputs, where, and how."""

    document: InstructionSet
    inputs: Mapping[str, Any]
    workspace: str | None = None
    parallel: int | None = None
    on_failure: OnFailure | None = None
    source: str = "deployment"


def name_of_flow_run() -> str:
    """A run's id, kept when the flow run is executed again."""
    name = current_flow_run().name
    return name if RUN_ID.fullmatch(name) else new_run_id()


@flow(name=FLOW_NAME, persist_result=False, flow_run_name=name_of_flow_run)
async def orchestrate(
    instruction_set: InstructionSet,
    inputs: dict[str, Any] | None = None,
    workspace: str | None = None,
    parallel: int | None = None,
    on_failure: OnFailure | None = None,
) -> State[Any]:
    """Run an instruction set on a workspace of the machine that the worker is on.

    Executed again in the same flow run, it goes on with the run that this began, and does nothing twice.

    Args:
        instruction_set: The set, as in a JSON document.
        inputs: Values for the set's inputs.
        workspace: The folder to work in; the set's own `workspace` if it is not given, or the current folder.
        parallel: How many steps may run at once.
        on_failure: What becomes of the effects when a step fails.
    """
    document = load_object(instruction_set.model_dump(by_alias=True, mode="json", exclude_unset=True))
    return await take_up(Wanted(document, inputs or {}, workspace, parallel, on_failure))


async def take_up(wanted: Wanted) -> State[Any]:
    """Run what is wanted, or go on with the run that this flow run began."""
    folder, narrowed_by = await _place(wanted.workspace or wanted.document.workspace or ".")
    root = Path(folder).resolve()
    root.mkdir(parents=True, exist_ok=True)
    async with locked(root, wait=True, on_wait=_say_who_is_waited_for) as opened:
        begun = opened.journal.run_of_flow_run(str(current_flow_run().id))
        if begun is not None and begun.status == RunStatus.COMMITTED:
            # Without a report where a process died between the two.
            return state_of(RunStatus.COMMITTED, summarize(begun.report) if begun.report else "committed")
        document, inputs = (
            restored(begun) if begun else (wanted.document, resolve_inputs(wanted.document, wanted.inputs))
        )
        request = RunRequest(
            document,
            inputs,
            root,
            wanted.parallel,
            wanted.on_failure,
            source=wanted.source,
            narrowed_by=narrowed_by,
        )
        return await _orchestrated(begun, request, opened)


async def _place(workspace: str) -> tuple[str, list[Given]]:
    """The folder that is named, by its path or by a block, and what holds there."""
    if not workspace.startswith(WORKSPACE_BLOCK):
        return workspace, []
    from quantum_orchestrator.blocks.workspace_block import workspace_of

    return await workspace_of(workspace.removeprefix(WORKSPACE_BLOCK))


async def _orchestrated(begun: RunRecord | None, request: RunRequest, opened: OpenWorkspace) -> State[Any]:
    if begun is None:
        refuse_unfinished(opened.journal, request.root)
        run_id = current_flow_run().name
        begun = new_record(request)
        if opened.journal.run(run_id) is None:
            begun = replace(begun, id=run_id)
    with (signals := Signals()):
        telling = Telling(begun.id, begun.set_name, request.observers)
        _, state = await conduct(begun, request, opened, signals, telling)
        return await ended(state)


def _say_who_is_waited_for(holder: str) -> None:
    get_run_logger().info("waiting for another run in this workspace (process %s)", holder)

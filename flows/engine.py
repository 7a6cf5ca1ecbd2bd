"""A run: the steps of a set, carried out in the order that the plan found, and what becomes of their effects.

The engine decides; it does not know Prefect. Each step is handed to a `StepRunner` (Prefect's is in
`flows/orchestrate.py`), which calls the attempt that it is given, again after a failure if the instruction says so. The
journal is the authority: a step that it records as done is not run again, whoever asks.

How a run ends:
- every step succeeded (or its failure was handled): the effects stay, *committed*;
- a step failed: what runs is waited for, and all effects are undone (*rolled back*), or those up to the failed step
  stay (*kept*, *paused*), or those up to a checkpoint (*kept*). Steps that would have come after it, one by one, but
  had run already, are undone, so that what stays is what a run one by one leaves;
- an interrupt undoes everything (*cancelled*); an approval that nobody has given leaves the run *awaiting* it;
- a path that somebody else changed meanwhile is left alone: the run *needs attention*.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio

from quantum_orchestrator.blocks import machine
from quantum_orchestrator.blocks.errors import (
    Interrupted,
    NeedsAttention,
    OperationError,
    QuantumError,
    StateError,
    TimedOut,
    UsageError,
)
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.blocks.journal import RunRecord, StepRecord, boot_id
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.stamped_tree import StampedTree
from quantum_orchestrator.blocks.tree import printable
from quantum_orchestrator.blocks.workspace import Conflicts, Undo, Workspace
from quantum_orchestrator.flows.attempts import (
    EXPECTED,
    Attempts,
    Conflicted,
    Observer,
    ObserverOfMany,
    Outputs,
    conflict_error,
)
from quantum_orchestrator.flows.batching import BATCH_FROM, Batch, Batches, BatchSize, is_cheap
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.document import CHECKPOINT, ErrorHandler, InstructionSet, OnFailure, RollbackTo, Trust
from quantum_orchestrator.flows.guard import ApprovalNeeded
from quantum_orchestrator.flows.places import Places
from quantum_orchestrator.flows.plan import (
    Expansion,
    Graph,
    Step,
    effects_of,
    handler_steps,
    resolved_parameters,
)
from quantum_orchestrator.flows.prediction import is_wanted
from quantum_orchestrator.flows.priorities import best_order
from quantum_orchestrator.flows.results import (
    DONE,
    TO_CHECKPOINT,
    EventKind,
    RunEvent,
    RunStatus,
    StepResult,
    StepStatus,
    error_json,
)
from quantum_orchestrator.flows.reuse import Verdict, may_be_asked_for
from quantum_orchestrator.flows.reusing import Memory, Reusing, Wishes
from quantum_orchestrator.flows.schedule import ReadyQueue, Seconds
from quantum_orchestrator.flows.script_batches import RELIEF_SECONDS, ScriptBatch, is_quiet
from quantum_orchestrator.flows.script_batches import TARGET_SECONDS as SCRIPTS_SECONDS
from quantum_orchestrator.flows.stopping import Stop, in_a_thread_left_behind
from quantum_orchestrator.flows.undoing import Undoing, plainly
from quantum_orchestrator.tasks.operation import CancelToken, Effects

T = TypeVar("T")
Attempt = Callable[[], Awaitable[Outputs]]
Ends = list[tuple[Step, BaseException | None]]
"""Steps that have ended, with what ends the run for it."""

COSTLY_SECONDS = 0.25
"""A step that took so long is not to be run again for want of a record."""
_STAYS_UNTIL_SOMEBODY_DECIDES = (
    RunStatus.PAUSED,
    RunStatus.KEPT,
    RunStatus.AWAITING_APPROVAL,
    RunStatus.NEEDS_ATTENTION,
)
DONE_BEFORE = "done before, says the run's journal"
FATAL = (NeedsAttention, StateError)
"""What ends the run whatever the step's `on_error` says: the workspace is not as the journal has it."""


_Kind = Callable[[Step, Effects], bool]
"""A kind of batch, by what says which steps it takes."""
_Tell = Callable[[Sequence[Step], Sequence[Step]], None]
"""Tells which steps of a group at work have ended, and which have not begun and will not."""


class StepFailed(Exception):
    """A step has failed for good; its effects are undone."""

    def __init__(self, step: Step, error: QuantumError) -> None:
        super().__init__(f"{step.id}: {error.message}")
        self.step = step
        self.error = error


class ApprovalAwaited(Exception):
    """The run cannot go on before somebody approves a step."""

    def __init__(self, step: Step, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.message = message


class StepRunner(Protocol):
    """Carries out one step by calling `attempt`, more than once where the instruction's `retries` says so."""

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        """The outputs of the attempt that succeeded.

        `after` are the steps that this one waited for. `reuse` says why the step need not run: the attempt only gives
        outputs that are known, and a result that was stored for it may be taken; where it is empty, none must be, as
        the effects may have been undone.
        Raises what the last attempt raised, TimedOut when the instruction's `timeout` ended it, and Interrupted.
        """

    async def run_batch(
        self,
        steps: Sequence[Step],
        attempt: Callable[[], Awaitable[Mapping[str, Outputs]]],
        after: Sequence[str],
        *,
        reuse: Callable[[], str],
    ) -> None:
        """The same for several at once: one attempt, which gives the outputs of those that have succeeded, by id.

        `reuse` tells after the attempt why none of them had to run; nothing if one had to.
        """

    async def undo(self, name: str, work: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
        """Do the work, exactly once and whatever else fails, and show it under this name; the paths put back.

        Raises what the work raised.
        """


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the caller chooses for one run."""

    parallel: int
    on_failure: OnFailure | RollbackTo
    start_at: str | None = None
    """A step from which on everything runs again, whatever an earlier process has done."""
    approve: bool = False
    """Every approval is given in advance."""
    actor: str = "unknown"
    ask: Callable[[str, str], bool | None] | None = None
    """Asks a person at a terminal: step id and message to yes, no, or None for no answer."""
    decided: Callable[[str, bool], None] = lambda _subject, _approved: None
    """Hears of what is about to be approved or rejected: a step, or `step@digest` for a content."""
    secrets: Callable[[Sequence[str]], Mapping[str, str]] = lambda _names: {}
    """Values of secrets by name."""
    reuse: Wishes = field(default_factory=Wishes)
    batch_from: int = BATCH_FROM
    """How many steps a set has to have for cheap ones to be done together."""
    duration_of: Callable[[Step], Seconds] = lambda _step: 1.0
    """About how long a step takes."""
    adapts: bool = False
    """`parallel` is where it begins; how many run at once then follows how busy the machine is."""


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    status: RunStatus
    error: QuantumError | None = None
    failed_step: str | None = None
    conflicts: list[str] = field(default_factory=list)
    checkpoint: str | None = None
    """The effects up to here stay."""


class Run:
    """One run of one set in one workspace, whose lock the caller holds."""

    def __init__(
        self,
        record: RunRecord,
        document: InstructionSet,
        workspace: Workspace,
        settings: RunSettings,
        *,
        policy: Policy,
        runner: StepRunner | None = None,
        observers: Sequence[Observer] = (),
        graph: Graph | None = None,
    ) -> None:
        """`record` is in the journal already; a run that was begun before goes on from what the journal holds.

        Without a `runner` it can only be undone. `graph` is the document's, if it is known.
        """
        self.id = record.id
        self.document = document
        self.workspace = workspace
        self.journal = workspace.journal
        self.settings = settings
        self.policy = policy
        self.books = Books(record, document, self.journal, graph)
        self.graph = self.books.graph
        self._runner = runner
        self._observers = sorted(observers, key=lambda each: not isinstance(each, ObserverOfMany))  # the log first
        self._decisions = self.journal.decisions(record.id)
        self._places = Places(settings.parallel, adapts=settings.adapts)
        self._capacity = machine.capacity()
        self._threads = ThreadPoolExecutor(self._places.most_threads + 1, thread_name_prefix="step")  # one to undo
        self._stop = Stop()
        self._attempts = Attempts(
            record.id,
            document,
            workspace,
            policy,
            observe=self.observe,
            scope_of=self.books.scope,
            secrets=settings.secrets,
            decided=lambda subject: self._decisions.get(subject),
        )
        self._reusing = self._with_reuse()
        self._batches = Batches(self.books, workspace, self._attempts, self.observe_all, self._reusing)
        self._sizes: dict[_Kind, BatchSize] = {
            is_cheap: BatchSize(len(self.graph.steps)),
            is_quiet: BatchSize(target=SCRIPTS_SECONDS),
        }
        self.worked: dict[str, Seconds] = {}
        """How long the last try of each step took that had a task run of its own, without Prefect's part."""
        self._alone: set[str] = set()
        """Steps that were refused as members of a batch."""
        self._undoing = Undoing(
            self.books,
            workspace,
            self._attempts,
            in_thread=self._in_thread,
            show=plainly if runner is None else runner.undo,
            observe=self.observe,
            torn=was_cut_short(record),
        )

    def _with_reuse(self) -> Reusing | None:
        """Reuse, where any step may ask for it."""
        wishes = self.settings.reuse
        if self._runner is None or not wishes.enabled or not may_be_asked_for(self.document, self.graph):
            return None
        tree = StampedTree(self.workspace.folder, self.workspace.tree.umask)
        memory = Memory(self.document, self.journal.folder, tree, self.workspace.is_excluded)
        return Reusing(self.id, self.graph, memory, wishes)

    # The whole.

    async def execute(self) -> Outcome:
        """Run to an end, whichever; the journal and the workspace agree when it returns."""
        try:
            outcome = await self._execute()
            await asyncio.to_thread(self._make_durable, outcome)
        finally:
            self._close()
        self.journal.update(
            self.id,
            status=outcome.status.value,
            ended_at=time.time(),
            error=None if outcome.error is None else error_json(outcome.error),
        )
        if self._reusing is not None and outcome.status is RunStatus.COMMITTED:
            problem = await asyncio.to_thread(self._reusing.remember, self.document.name, self.books.results)
            if problem:
                self.observe(RunEvent(EventKind.LOG, message=problem))
        return outcome

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        self._attempts.close()

    def _make_durable(self, outcome: Outcome) -> None:
        """What stays until somebody decides must survive a power cut until then."""
        if outcome.status not in _STAYS_UNTIL_SOMEBODY_DECIDES:
            return
        try:
            self.workspace.sync()
        except OperationError as problem:
            if outcome.status is not RunStatus.NEEDS_ATTENTION:  # then worse has been told already
                outcome.status, outcome.error = RunStatus.NEEDS_ATTENTION, self._undoing.not_durable(problem)

    async def _execute(self) -> Outcome:
        limit = asyncio.timeout(self.document.timeout)
        try:
            async with limit:
                await self._in_thread(partial(self._attempts.load_secrets, self.graph.steps))
                await self._settle()
                if not await self._reuse_all(self._stop):
                    await self._run_graph(self.graph, None, self._stop)
            await self._in_thread(self.workspace.sync)
        except ApprovalAwaited as awaited:
            return Outcome(RunStatus.AWAITING_APPROVAL, failed_step=awaited.step.id)
        except StepFailed as failed:
            return await self._after_failure(failed)
        except Interrupted:
            return await self._roll_back(Outcome(RunStatus.CANCELLED))
        except FATAL as problem:
            return await self._roll_back(Outcome(RunStatus.ROLLED_BACK, problem))
        except Exception as problem:  # the engine's own, or Prefect's: nothing half done may stay all the same
            return await self._roll_back(Outcome(RunStatus.ROLLED_BACK, self._why_it_broke_off(problem, limit)))
        return Outcome(RunStatus.COMMITTED)

    def _why_it_broke_off(self, problem: Exception, limit: asyncio.Timeout) -> QuantumError:
        if isinstance(problem, TimeoutError) and limit.expired():
            return OperationError(f"the run took longer than its timeout of {self.document.timeout:g} s")
        if isinstance(problem, OperationError):
            return self._attempts.clean(problem)
        defect = QuantumError(f"the run broke off: {type(problem).__name__}: {problem}", hint="-v shows where")
        defect.__cause__ = problem
        self._attempts.clean(defect)
        return defect

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _settle(self) -> None:
        """Undo what an earlier process had begun and not seen to its end, or is to be done again: those run anew."""
        half = self.books.taken_back_in_part()
        again = [*half, *await self._in_thread(partial(self._settle_what_was_cut_short, half))]
        if self.settings.start_at is not None:
            again.append(self.settings.start_at)
        if again:
            self.books.take_over()
            await self._undoing.steps(self.graph.steps[self._first_place(again) :])
            self._decisions = self.journal.decisions(self.id)
        if self._undoing.torn:
            self.journal.update(self.id, boot_id=boot_id())
            self._undoing.torn = False

    def _first_place(self, step_ids: Sequence[str]) -> int:
        places = [self.books.place(step_id) for step_id in step_ids]
        found = [place for place in places if place is not None]
        if len(found) < len(places):
            raise StateError(f"run {self.id} has no step {', '.join(step_ids)}", hint="`qo show` lists its steps")
        return min(found)

    def _settle_what_was_cut_short(self, half: Sequence[str]) -> list[str]:
        """The steps that a power cut has taken back, as far as that could not be made up for.

        Of `half`, steps that are being taken back, nothing is put back yet: what came after them is in the way.
        """
        done = {step_id for step_id, record in self.books.recorded.items() if record.status in DONE}
        lost: list[str] = []
        if self._undoing.torn:
            redo = self.workspace.redo(self.id, done)
            self._undoing.tell_aside(redo.aside)
            lost = redo.lost
        begun = {effect.step for effect in self.journal.effects(self.id)} | set(self.journal.steps_captured(self.id))
        cut_short = begun - done
        if half:
            left = self.books.with_inner(self.graph.steps[self._first_place(half) :])
            cut_short -= self.books.recorded.keys() & set(left)
        if cut_short:
            self._undoing.put_back(cut_short)
        return lost

    def interrupt(self) -> None:
        """Ask for the end: running steps are stopped, and `execute` undoes everything. Safe in a signal handler."""
        self._stop.stop()

    def observe(self, event: RunEvent) -> None:
        """Tell everybody who watches."""
        self.observe_all([event])

    def observe_all(self, events: Sequence[RunEvent]) -> None:
        """The same for several at once."""
        shown = [replace(each, message=self.redact(each.message)) if each.message else each for each in events]
        for observer in self._observers if shown else ():
            if isinstance(observer, ObserverOfMany):
                observer.many(shown)
            else:
                for event in shown:
                    observer(event)

    def redact(self, text: str) -> str:
        """The text as it may be shown: without secrets, and in characters that every terminal and file takes."""
        return self._attempts.redactor.text(printable(text))

    # A graph of steps: the set's own, a called set's, the rounds of a list, an error handler's.

    async def _reuse_all(self, stop: Stop) -> bool:
        """Whether nothing of a large set has to run: its steps then end here, as one batch."""
        steps, reusing, runner = self.graph.steps, self._reusing, self._runner
        if runner is None or reusing is None or self.books.recorded or not self._is_batched(self.graph):
            return False
        found: list[StepResult] = await self._in_thread(partial(reusing.all_of, steps, self.books))
        if not found:
            return False

        async def attempt() -> Mapping[str, Outputs]:
            records = [result.record() for result in found]
            await self._in_thread(partial(self.journal.record_steps, self.id, records, durable=False))
            return {result.id: result.outputs or {} for result in found}

        why = partial(why_none_ran, steps, (), found)
        await stop.wait(partial(runner.run_batch, steps, attempt, (), reuse=why))
        for each in found:
            self.observe(RunEvent.finished(each))
        return True

    async def _run_graph(self, graph: Graph, owner: Step | None, stop: Stop) -> None:
        """Run all steps. Raises StepFailed for the failure that comes first one by one, after all others ended."""
        queue = self._queue(graph)
        running: dict[asyncio.Future[Ends], list[Step]] = {}
        problems: dict[Step, BaseException] = {}
        relief = _Relief(queue)
        try:
            while True:
                queue.parallel = self._places.now
                for group in [] if stop.stopped else self._take(queue, graph):
                    members = list(group)
                    tell = partial(relief.tell, members)
                    running[asyncio.create_task(self._run_group(group, graph, owner, stop, tell))] = members
                if not running:
                    break
                waited: list[asyncio.Future[Any]] = [*running, relief.bell()]
                patience = self._places.adapt(short=queue.is_short_of_places)
                await asyncio.wait(waited, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task.done()]:
                    self._ended(queue, running.pop(task), task, problems)
        except asyncio.CancelledError:
            stop.stop()
            with anyio.CancelScope(shield=True):  # nothing of it may go on when the caller does
                await asyncio.gather(*running, return_exceptions=True)
            raise
        stop.check()
        for step in sorted(problems, key=lambda each: graph.position[each.id]):
            raise problems[step]

    def _queue(self, graph: Graph) -> ReadyQueue:
        chosen: dict[str, Any] = {"capacity": self._capacity, "only_waits": self._places.only_waits}
        order = best_order(graph, parallel=self._places.now, duration_of=self.settings.duration_of, **chosen)
        return ReadyQueue(graph, parallel=self._places.now, priorities=order, **chosen)

    def _ended(
        self, queue: ReadyQueue, group: Sequence[Step], task: asyncio.Future[Ends], problems: dict[Step, BaseException]
    ) -> None:
        broken_off = task.exception()
        ends = task.result() if broken_off is None else [(group[0], broken_off)]
        if broken_off is not None and len(group) > 1:
            queue.stop()
        ended, members = {step.id for step, _ in ends}, {step.id for step in group}
        for step in group:
            if step.id not in ended:
                queue.give_back(step.id)
        for step, problem in ends:
            if step.id not in members:  # the queue was told while the others were at work
                continue
            if problem is None:
                queue.finish(step.id)
                continue
            problems[step] = problem
            queue.stop_after(step.id)
            if not _keeps_what_came_before(self.settings.on_failure) and step.instruction.on_error == "fail":
                queue.stop()  # everything is undone anyway

    def _take(self, queue: ReadyQueue, graph: Graph) -> list[list[Step]]:
        """Groups of steps to start now: of one step, or of several that one kind of batch does."""
        size = max(each.value for each in self._sizes.values()) if self._is_batched(graph) else 1
        groups: list[list[Step]] = []
        while taken := queue.take_together(lambda step: self._kind(graph, step) is not None, size):
            groups += [self._of_one_kind(group, queue, graph) for group in taken]
        return groups

    def _is_batched(self, graph: Graph) -> bool:
        """Whether steps of the graph may be done together."""
        return self.document.batch != "off" and len(graph.steps) >= self.settings.batch_from

    def _of_one_kind(self, group: list[Step], queue: ReadyQueue, graph: Graph) -> list[Step]:
        """The part of a group that goes with its first step; the others are given back."""
        kind = self._kind(graph, group[0])
        if kind is None:
            return group
        kept, gone = list[Step](), set[str]()
        for step in group:
            alike = len(kept) < self._sizes[kind].value and self._kind(graph, step) is kind
            if alike and gone.isdisjoint(graph.predecessors[step.id]):
                kept.append(step)
            else:
                gone.add(step.id)
                queue.give_back(step.id)
        return kept

    async def _run_group(
        self, group: Sequence[Step], graph: Graph, owner: Step | None, stop: Stop, tell: _Tell
    ) -> Ends:
        """Steps that were taken together, each with the problem that ends the run; without those not done."""
        members = {step.id for step in group}
        before = {each for step in group for each in graph.predecessors[step.id]} - members
        after = sorted(before) or ([] if owner is None else self._waited(owner))
        if len(group) == 1:
            await self._run_step(group[0], after, stop)
            return [(group[0], None)]
        async with self._places.one_for(group[0]):
            stop.check()
            if self._kind(graph, group[0]) is is_quiet:
                batch = await self._run_scripts(group, graph, after, stop, tell)
            else:
                batch = await self._run_batch(group, graph, after, stop)
        ended = {result.id for result in batch.ended}
        ends: Ends = [(step, None) for step in group if step.id in ended]
        for step, error in batch.failed:
            try:
                await self._failed(step, error, time.monotonic(), stop)
            except StepFailed as failed:
                ends.append((step, failed))
            else:
                ends.append((step, None))
        return ends

    def _kind(self, graph: Graph, step: Step) -> _Kind | None:
        """What says that a step may be a member of a batch; None if it goes alone."""
        if self._attempts.guards.of(step.scope.document.trust).asks_for(step.instruction.op):
            return None
        recorded = self.books.recorded.get(step.id)
        had_failed = recorded is not None and recorded.status == StepStatus.FAILED
        if step.id in self._alone or had_failed:
            return None
        return next((kind for kind in self._sizes if kind(step, graph.effects[step.id])), None)

    def _is_recorded(self, step_id: str) -> bool:
        """Whether an earlier process has done the step, or skipped it."""
        record = self.books.recorded.get(step_id)
        return record is not None and record.status in (*DONE, StepStatus.SKIPPED)

    async def _run_batch(self, steps: Sequence[Step], graph: Graph, after: Sequence[str], stop: Stop) -> Batch:
        if self._runner is None:
            raise QuantumError("a run without a runner cannot run steps")
        done: list[Batch] = []

        async def attempt() -> Mapping[str, Outputs]:
            done.append(await self._in_a_step_thread(partial(self._batches.make, steps, graph), stop))
            self._sizes[is_cheap].learn(len(steps), done[0].seconds)
            return {result.id: result.outputs or {} for result in done[0].ended}

        known = {step.id for step in steps if self._is_recorded(step.id)}

        def why() -> str:
            return why_none_ran(steps, known, done[0].ended)

        await stop.wait(partial(self._runner.run_batch, steps, attempt, after, reuse=why))
        batch = done[0]
        self.observe_all([RunEvent.finished(each) for each in batch.ended if each.id not in known])
        self._alone.update(step.id for step in (steps if batch.refused else batch.alone))
        return batch

    async def _run_scripts(
        self, steps: Sequence[Step], graph: Graph, after: Sequence[str], stop: Stop, tell: _Tell
    ) -> Batch:
        if self._runner is None:
            raise QuantumError("a run without a runner cannot run steps")
        work = ScriptBatch(steps, graph, self.books, self._attempts, self.observe, COSTLY_SECONDS, self._reusing)

        def relieve() -> None:
            left = work.relieve()
            ended = {result.id for result in work.batch.ended}
            tell([step for step in steps if step.id in ended], left)

        async def attempt() -> Mapping[str, Outputs]:
            relief = asyncio.get_running_loop().call_later(RELIEF_SECONDS, relieve)
            try:
                batch = await self._in_a_step_thread(work.make, stop)
            finally:
                relief.cancel()
            self._sizes[is_quiet].learn(len(batch.ended) + len(batch.failed), batch.seconds)
            return {result.id: result.outputs or {} for result in batch.ended}

        known = {step.id for step in steps if self._is_recorded(step.id)}
        why = partial(why_none_ran, steps, known, work.batch.ended)
        await stop.wait(partial(self._runner.run_batch, steps, attempt, after, reuse=why))
        return work.batch

    def _waited(self, step: Step) -> list[str]:
        return sorted(self.graph.predecessors.get(step.id, ()))

    # One step.

    async def _run_step(self, step: Step, after: list[str], stop: Stop) -> None:
        if await self._take_recorded(step, stop):
            return
        started = time.monotonic()
        try:
            if not is_wanted(step, self.books.scope(step)):
                self._end(step, StepResult(step.id, step.instruction.op, StepStatus.SKIPPED))
                return
            await self._run_wanted(step, after, started, stop)
        except EXPECTED as problem:
            await self._failed(step, problem, started, stop)

    async def _failed(self, step: Step, problem: Exception, started: float, stop: Stop) -> None:
        """Put it on record and handle it, as the instruction says. Raises StepFailed if that ends the run."""
        error = self._attempts.clean(_as_error(problem))
        self._fail(step, error, started)
        if isinstance(error, FATAL):
            raise StepFailed(step, error) from problem
        await self._handle(step, error, stop)

    async def _run_wanted(self, step: Step, after: list[str], started: float, stop: Stop) -> None:
        if step.deferred_expansion:
            await self._run_expansion(step, stop)
        else:
            await self._decide_approval(step, stop)
            while True:
                try:
                    async with self._places.one_for(step):
                        stop.check()
                        await self._run_operation(step, after, started, stop)
                except ApprovalNeeded as needed:
                    await self._decide(step, needed.subject, needed.message, stop, needed.as_json())
                else:
                    return

    async def _take_recorded(self, step: Step, stop: Stop) -> bool:
        """Whether the step ended before this process came, other than by success or by failing the run.

        One that succeeded goes to its runner all the same, so that Prefect shows it as cached; see `_run_operation`.
        """
        record = self.books.recorded.get(step.id)
        if record is None or record.status not in (StepStatus.SKIPPED, StepStatus.FAILED):
            return False
        result = StepResult.of(record)
        if record.status == StepStatus.FAILED and (step.instruction.on_error == "fail" or result.error is None):
            return False
        self.books.set(result)
        if result.error is not None:
            await self._handle(step, result.error, stop)
        return True

    async def _run_operation(self, step: Step, after: list[str], started: float, stop: Stop) -> None:
        result = StepResult(step.id, step.instruction.op, StepStatus.RUNNING)
        self.books.results[step.id] = result
        recorded = self._recorded_or_started(step)
        verdict = None if recorded is not None else await self._judged(step)
        result.reason = None if verdict is None else verdict.reason
        why = DONE_BEFORE if recorded is not None else verdict.reason if verdict is not None and verdict.reused else ""

        asked: list[ApprovalNeeded] = []

        async def attempt() -> Outputs:
            if recorded is not None:
                return recorded.outputs or {}
            if verdict is not None and verdict.reused:
                return verdict.outputs or {}
            result.attempts += 1
            if result.attempts > 1:
                self.observe(RunEvent(EventKind.STEP_RETRIED, step.id, step.instruction.op, f"try {result.attempts}"))
            return await self._attempt(step, stop, asked)

        if self._runner is None:
            raise QuantumError("a run without a runner cannot run steps")
        outputs = await _unless_asked(asked, stop, partial(self._runner.run, step, attempt, after, reuse=why))
        if recorded is not None:
            self.books.set(StepResult.of(recorded))
            return
        if verdict is not None and verdict.reused:
            self._end(step, StepResult.reused(step.id, step.instruction.op, outputs, verdict.reason))
            return
        if verdict is not None and self._reusing is not None:
            await self._in_thread(partial(self._reusing.has_run, step, self.books.scope(step), verdict))
        result.status, result.outputs, result.duration_s = StepStatus.SUCCEEDED, outputs, time.monotonic() - started
        self._end(step, result)

    def _recorded_or_started(self, step: Step) -> StepRecord | None:
        """The record of a step that an earlier process has done; else it is told that the step starts."""
        recorded = self.books.recorded.get(step.id)
        if recorded is not None and recorded.status in DONE:
            return recorded
        self.observe(RunEvent(EventKind.STEP_STARTED, step.id, step.instruction.op))
        return None

    async def _judged(self, step: Step) -> Verdict | None:
        """Whether the step is reused, if that is asked for."""
        if self._reusing is None:
            return None
        verdict: Verdict | None = await self._in_thread(partial(self._reusing.verdict, step, self.books.scope(step)))
        return verdict

    async def _attempt(self, step: Step, stop: Stop, asked: list[ApprovalNeeded]) -> Outputs:
        """One try, in a thread. A cancellation (Prefect's time-out) ends the operation, and then undoes it."""
        if step.id in self._attempts.stuck:
            raise self._attempts.stuck[step.id]
        started = time.monotonic()
        try:
            outputs = await self._in_a_step_thread(partial(self._attempts.make, step), stop)
        except ApprovalNeeded as needed:
            asked.append(needed)
            raise
        self.worked[step.id] = time.monotonic() - started
        return outputs

    async def _in_a_step_thread(self, work_of: Callable[[CancelToken], T], stop: Stop) -> T:
        token = CancelToken()
        with stop.working(token):
            work = asyncio.get_running_loop().run_in_executor(self._threads, work_of, token)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                token.cancel()
                with anyio.CancelScope(shield=True):  # the step must have undone itself before anybody goes on
                    await asyncio.wait([work])
                raise

    # Steps that become several.

    async def _run_expansion(self, step: Step, stop: Stop) -> None:
        expansion = self.books.expand(step)
        if not expansion.steps:
            self.books.add_groups(expansion)
            self._end(step, StepResult(step.id, step.instruction.op, StepStatus.SUCCEEDED))
            return
        if step.is_list:
            await self._run_inner(step, step.id, expansion, stop)
            return
        for number in range(step.instruction.retries + 1):
            limit = asyncio.timeout(step.instruction.timeout)
            try:
                with stop.inside() as inner:
                    async with limit:
                        await self._run_inner(step, step.id, expansion, inner)
                return
            except (StepFailed, TimeoutError) as problem:
                if isinstance(problem, TimeoutError) and not limit.expired():
                    raise
                if isinstance(problem, StepFailed) and isinstance(problem.error, FATAL):
                    raise
                await self._undoing.steps(expansion.steps)
                if number == step.instruction.retries:
                    raise _call_failed(step, problem) from problem
                await stop.wait(partial(asyncio.sleep, _delay(step, number)))

    async def _run_inner(self, step: Step, name: str, expansion: Expansion, stop: Stop) -> None:
        await self._run_graph(self.books.take_in(name, expansion), step, stop)

    # Failure.

    def _fail(self, step: Step, error: QuantumError, started: float) -> None:
        result = self.books.results.get(step.id) or StepResult(step.id, step.instruction.op, StepStatus.FAILED)
        result.status, result.error, result.duration_s = StepStatus.FAILED, error, time.monotonic() - started
        self._end(step, result)

    async def _handle(self, step: Step, error: QuantumError, stop: Stop) -> None:
        handler = step.instruction.on_error
        if handler == "continue":
            return
        if isinstance(handler, ErrorHandler):
            await self._run_inner(step, f"{step.id}/on_error", handler_steps(step, handler), stop)
            return
        raise StepFailed(step, error)

    async def _after_failure(self, failed: StepFailed) -> Outcome:
        outcome = Outcome(RunStatus.ROLLED_BACK, failed.error, failed.step.id)
        chosen = self.settings.on_failure
        self.books.take_over()
        if isinstance(chosen, RollbackTo):
            after = self.books.after_checkpoint(chosen.rollback_to)
            if after is not None:
                outcome.status, outcome.checkpoint = RunStatus.KEPT, chosen.rollback_to
                return await self._undo_after(outcome, after, shown=True)
        if chosen is OnFailure.KEEP or chosen is OnFailure.PAUSE:
            outcome.status = RunStatus.PAUSED if chosen is OnFailure.PAUSE else RunStatus.KEPT
            return await self._undo_after(outcome, self.books.after(failed.step.id), shown=False)
        return await self._roll_back(outcome)

    async def _undo_after(self, outcome: Outcome, steps: Sequence[Step], *, shown: bool) -> Outcome:
        """Undo steps that come after a checkpoint, or that ran ahead of a failure: one by one, they would not have."""
        if shown:
            self.observe(RunEvent(EventKind.ROLLING_BACK, message=f"{TO_CHECKPOINT}{outcome.checkpoint}"))
        try:
            await (self._undoing.shown(steps) if shown else self._undoing.steps(steps))
        except FATAL as problem:
            outcome.error = problem
        if isinstance(outcome.error, FATAL):
            outcome.status = RunStatus.NEEDS_ATTENTION
        return outcome

    async def _roll_back(self, outcome: Outcome) -> Outcome:
        """Undo everything that the run did; a second interrupt does not stop it."""
        self.observe(RunEvent(EventKind.ROLLING_BACK, message=str(outcome.error or "interrupted")))
        self.books.take_over()
        if isinstance(outcome.error, Conflicted):  # what a failed try had done is not undone, and is told once
            outcome.status, outcome.conflicts = RunStatus.NEEDS_ATTENTION, outcome.error.paths
        try:
            await self._undoing.everything()
        except Conflicted as problem:
            outcome.status, outcome.error, outcome.conflicts = RunStatus.NEEDS_ATTENTION, problem, problem.paths
        except NeedsAttention as problem:
            outcome.status, outcome.error = RunStatus.NEEDS_ATTENTION, self._attempts.clean(problem)
        except (QuantumError, OSError) as problem:
            outcome.status = RunStatus.NEEDS_ATTENTION
            outcome.error = self._attempts.clean(self._undoing.failed(problem))
        return outcome

    async def unwind(self, *, to: str | None = None, conflicts: Conflicts = Conflicts.REPORT) -> Undo:
        """Undo what a run that is not at work has left: all of it, or what came after a checkpoint.

        Raises NeedsAttention, or UsageError when the run has not passed that checkpoint.
        """
        try:
            self.books.take_over()
            compensated = [step for step in self.books.steps() if step.instruction.undo is not None]
            if compensated:
                await self._in_thread(partial(self._attempts.load_secrets, compensated))
            if to is None:
                return await self._undoing.everything(conflicts)
            return await self._undoing.shown(self.after_checkpoint(to), conflicts)
        finally:
            self._close()

    def refuse_conflicts(self, step_id: str) -> None:
        """Raises NeedsAttention, with nothing changed, if somebody has changed what would be undone to run again from
        this step on."""
        self.books.take_over()
        chosen = self.books.with_inner(self.graph.steps[self._first_place([step_id]) :])
        undo = self.workspace.plan_undo(self.id, chosen, torn=self._undoing.torn)
        if undo.conflicts:
            at = f"{self.id}{workspace_option(self.workspace.root)}"
            raise NeedsAttention(
                conflict_error(self.id, undo, self.workspace.root).message,
                hint=f"nothing was changed; `qo resume {at}` goes on with them as they are, `qo rollback {at} "
                "--force-conflicts overwrite` puts them aside and undoes the run",
            )

    def after_checkpoint(self, name: str) -> Sequence[Step]:
        """The steps after a checkpoint that the run has passed. Raises UsageError if it has not."""
        self.books.take_over()
        after = self.books.after_checkpoint(name)
        if after is None:
            passed = [
                str((result.outputs or {}).get("name"))
                for result in self.books.results.values()
                if result.op == CHECKPOINT and result.status is StepStatus.SUCCEEDED
            ]
            known = f"it has passed: {', '.join(passed)}" if passed else "it has passed none"
            raise UsageError(f"run {self.id} has not passed a checkpoint {name!r}", hint=known)
        return after

    # Approvals.

    async def _decide_approval(self, step: Step, stop: Stop) -> None:
        """Pass if the step needs no approval or has it. Raises ApprovalAwaited, and OperationError when rejected."""
        if step.instruction.op != "approval":
            return
        decision = self._decisions.get(step.id)
        if decision is None:
            message = str(getattr(resolved_parameters(step, self.books.scope(step)), "message", ""))
            decision = await self._decide(step, step.id, message, stop)
        if not decision:
            raise OperationError("the approval was rejected", hint="")

    async def _decide(
        self, step: Step, subject: str, message: str, stop: Stop, about: Mapping[str, Any] | None = None
    ) -> bool:
        """What somebody who can be asked now has decided, on record. Raises ApprovalAwaited where nobody can."""
        decision = await self._ask(step, message, stop)
        if decision is None:
            operation = step.instruction.op
            self.observe(RunEvent(EventKind.AWAITING_APPROVAL, step.id, operation, message))
            awaiting = StepResult(step.id, operation, StepStatus.AWAITING_APPROVAL, outputs=about)
            self.books.results[step.id] = awaiting
            self.journal.record_step(self.id, awaiting.record())
            raise ApprovalAwaited(step, message)
        self.settings.decided(subject, decision)
        self.journal.decide(self.id, subject, approved=decision, actor=self.settings.actor)
        self._decisions[subject] = decision
        return decision

    async def _ask(self, step: Step, message: str, stop: Stop) -> bool | None:
        if self.settings.approve and step.scope.document.trust is Trust.TRUSTED:
            return True
        if self.settings.ask is None:
            return None
        ask = partial(self.settings.ask, step.id, message)
        return await stop.wait(partial(in_a_thread_left_behind, ask))

    # The books.

    def _end(self, step: Step, result: StepResult) -> None:
        if step.instruction.op == CHECKPOINT:
            self.workspace.sync()
        self.books.end(result, durable=self._is_costly(step, result))
        self.observe(RunEvent.finished(result))

    def _is_costly(self, step: Step, result: StepResult) -> bool:
        """Whether running it again would be noticed: by the time it takes, or by what it is."""
        if result.status is StepStatus.REUSED:
            return False
        if result.duration_s >= COSTLY_SECONDS or step.instruction.op == CHECKPOINT:
            return True
        effects = self.graph.effects.get(step.id) or effects_of(step, self.books.scope(step))
        return not effects.predictable or effects.barrier


class _Relief:
    """Lets a queue know of members of a group while others of it are at work."""

    def __init__(self, queue: ReadyQueue) -> None:
        self._queue = queue
        self._bell = asyncio.get_running_loop().create_future()

    def bell(self) -> asyncio.Future[None]:
        """Done when something is told from now on."""
        if self._bell.done():
            self._bell = asyncio.get_running_loop().create_future()
        return self._bell

    def tell(self, members: list[Step], ended: Sequence[Step], left: Sequence[Step]) -> None:
        """These members have ended, those have not begun: `members` keeps the others, and one at least."""
        ended = ended[: len(members) - len(left) - 1]
        for step in left:
            self._queue.give_back(step.id)
        for step in ended:
            self._queue.finish(step.id)
        told = {step.id for step in (*ended, *left)}
        members[:] = [step for step in members if step.id not in told]
        if not self._bell.done():
            self._bell.set_result(None)


def why_none_ran(steps: Sequence[Step], known: Collection[str], ended: Sequence[StepResult]) -> str:
    """Why none of a batch's steps had to run; empty if one had to. `known` were done before this process came."""
    reused = [result for result in ended if result.id not in known and result.status is StepStatus.REUSED]
    if len(known) + len(reused) < len(steps):
        return ""
    reasons = list(dict.fromkeys([*(result.reason or "" for result in reused), *([DONE_BEFORE] if known else [])]))
    return reasons[0] + (f" and {len(reasons) - 1} other reasons" if len(reasons) > 1 else "")


async def _unless_asked(
    asked: list[ApprovalNeeded], stop: Stop, work: Callable[[], Coroutine[Any, Any, Outputs]]
) -> Outputs:
    """What the work gives. Raises ApprovalNeeded, which the runner may know as an interruption only."""
    try:
        return await stop.wait(work)
    except Interrupted:
        stop.check()
        raise asked[-1] if asked else Interrupted from None


def was_cut_short(record: RunRecord) -> bool:
    """Whether the machine has been started anew since the run was last at work, and not come to a durable end.

    What needs attention has come to one, unless it is being undone: what is found there is somebody's, and not torn.
    """
    at_work = record.status == RunStatus.RUNNING or (
        record.status == RunStatus.NEEDS_ATTENTION and record.ended_at is None
    )
    return at_work and record.boot_id not in (None, boot_id())


def boot_at_work(record: RunRecord) -> str | None:
    """The boot to note when a run is taken up again. One that was cut short stays so until that has been settled."""
    return record.boot_id if was_cut_short(record) else boot_id()


def _keeps_what_came_before(on_failure: OnFailure | RollbackTo) -> bool:
    """Whether what comes before a failed step, one by one, must be there in the end."""
    return on_failure is OnFailure.KEEP or on_failure is OnFailure.PAUSE


def _call_failed(step: Step, problem: StepFailed | TimeoutError) -> OperationError:
    if isinstance(problem, StepFailed):
        return OperationError(str(problem), hint=problem.error.hint)
    return TimedOut(f"took longer than {step.instruction.timeout:g} s; all that it had started was ended")


def _delay(step: Step, number: int) -> float:
    delays = step.instruction.retry_delay
    if isinstance(delays, list):
        return delays[min(number, len(delays) - 1)] if delays else 0.0
    return delays


def _as_error(problem: Exception) -> QuantumError:
    if isinstance(problem, QuantumError):
        return problem
    return OperationError(
        f"it refers to the outputs of a step that has none: {problem}",
        hint="a skipped step has no outputs; test steps.<id>.status first",
    )

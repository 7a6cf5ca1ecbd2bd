"""A run: the steps of a set, carried out in the order that the plan found, and what becomes of their effects.

Here a run begins and ends; `flows/pool.py` runs graphs of steps, `flows/one_step.py` each step. None of them knows
Prefect: a step is handed to a `StepRunner` (Prefect's is in `flows/prefect_runner.py`), which calls the attempt that it
is given, again after a failure if the instruction says so. The journal is the authority: a step that it records as done
is not run again, whoever asks.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from quantum_orchestrator.blocks.errors import (
    Interrupted,
    NeedsAttention,
    OperationError,
    QuantumError,
    StateError,
    UsageError,
)
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.blocks.journal import RunRecord, boot_id
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.stamped_tree import StampedTree
from quantum_orchestrator.blocks.tree import printable
from quantum_orchestrator.blocks.workspace import Conflicts, Undo, Workspace
from quantum_orchestrator.flows.attempts import (
    Attempts,
    Conflicted,
    Observer,
    ObserverOfMany,
    conflict_error,
)
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.document import CHECKPOINT, InstructionSet, OnFailure, RollbackTo
from quantum_orchestrator.flows.one_step import FATAL, ApprovalAwaited, RunParts, StepFailed, Steps, StepThreads
from quantum_orchestrator.flows.places import Places
from quantum_orchestrator.flows.plan import (
    Graph,
    Step,
)
from quantum_orchestrator.flows.pool import Pool
from quantum_orchestrator.flows.results import (
    DONE,
    TO_CHECKPOINT,
    EventKind,
    RunEvent,
    RunStatus,
    StepStatus,
    error_json,
)
from quantum_orchestrator.flows.reuse import may_be_asked_for
from quantum_orchestrator.flows.reusing import Memory, Reusing
from quantum_orchestrator.flows.run_settings import Attempt, RunSettings, StepRunner
from quantum_orchestrator.flows.schedule import Seconds
from quantum_orchestrator.flows.stopping import Stop
from quantum_orchestrator.flows.undoing import Undoing, plainly

__all__ = ["Attempt", "Outcome", "Run", "RunSettings", "StepRunner", "boot_at_work", "was_cut_short"]

_STAYS_UNTIL_SOMEBODY_DECIDES = (
    RunStatus.PAUSED,
    RunStatus.KEPT,
    RunStatus.AWAITING_APPROVAL,
    RunStatus.NEEDS_ATTENTION,
)


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
        places = Places(settings.parallel, adapts=settings.adapts)
        self._threads = StepThreads(places.most_threads + 1)  # one to undo
        self._stop = Stop()
        self._attempts = Attempts(
            record.id,
            document,
            workspace,
            policy,
            observe=self.observe,
            scope_of=self.books.scope,
            secrets=settings.secrets,
            models=settings.models,
            decided=lambda subject: self._decisions.get(subject),
        )
        self._reusing = self._with_reuse()
        self._undoing = Undoing(
            self.books,
            workspace,
            self._attempts,
            in_thread=self._threads.run,
            show=plainly if runner is None else runner.undo,
            observe=self.observe,
            torn=was_cut_short(record),
        )
        parts = RunParts(
            document,
            workspace,
            settings,
            self.books,
            self._attempts,
            self._reusing,
            places,
            self._threads,
            runner,
            self.observe_all,
            self._decisions,
        )
        self._steps = Steps(parts, self._undoing, self._run_graph)
        self._pool = Pool(parts, self._steps)

    @property
    def worked(self) -> Mapping[str, Seconds]:
        """How long the last try of each step took that had a task run of its own, without Prefect's part."""
        return self._steps.worked

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
        self._threads.close()
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
                await self._threads.run(partial(self._attempts.load_secrets, self.graph.steps))
                await self._settle()
                if not await self._pool.reuse_all(self._stop):
                    await self._run_graph(self.graph, None, self._stop)
            await self._threads.run(self.workspace.sync)
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

    async def _run_graph(self, graph: Graph, owner: Step | None, stop: Stop) -> None:
        await self._pool.run(graph, owner, stop)

    async def _settle(self) -> None:
        """Undo what an earlier process had begun and not seen to its end, or is to be done again: those run anew."""
        half = self.books.taken_back_in_part()
        again = [*half, *await self._threads.run(partial(self._settle_what_was_cut_short, half))]
        if self.settings.start_at is not None:
            again.append(self.settings.start_at)
        if again:
            self.books.take_over()
            await self._undoing.steps(self.graph.steps[self._first_place(again) :])
            self._decisions.clear()
            self._decisions.update(self.journal.decisions(self.id))
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

    # Failure.

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
                await self._threads.run(partial(self._attempts.load_secrets, compensated))
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

"""Taking back what steps have done: everything of a run, or what came after some place in it.

The order is such that a process which dies in between leaves a run that can be taken up: the journal says that the
`undo` instruction of a step begins; it runs, once, or again after a death in that very moment; then the journal says
that the step has to run again; then its effects are put back, which may be repeated.
What has reached the world outside of the workspace stays there, unless its `undo` has taken it back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import NeedsAttention, OperationError, QuantumError
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.blocks.journal import SendingState
from quantum_orchestrator.blocks.tree import printable
from quantum_orchestrator.blocks.workspace import Conflicts, Undo, Workspace
from quantum_orchestrator.flows.attempts import MOST_NAMED, Attempts, Conflicted, Observer, conflict_error
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.results import EventKind, RunEvent, StepStatus
from quantum_orchestrator.tasks.operation import CancelToken

ROLLBACK = "rollback"


Shown = Callable[[str, Callable[[], Awaitable[Sequence[str]]]], Awaitable[Sequence[str]]]
"""Does some work of undoing, exactly once, and shows it under a name; gives the paths put back, raises what it does."""


async def plainly(_name: str, work: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
    """Do it where nobody watches."""
    return await work()


class Undoing:
    """Takes steps of one run back."""

    def __init__(
        self,
        books: Books,
        workspace: Workspace,
        attempts: Attempts,
        *,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        show: Shown,
        observe: Observer,
        torn: bool = False,
    ) -> None:
        """`torn`: a power cut has ended the run; see `Workspace.undo`."""
        self._books = books
        self._workspace = workspace
        self._attempts = attempts
        self._in_thread = in_thread
        self._show = show
        self._observe = observe
        self.torn = torn

    async def steps(self, steps: Iterable[Step], conflicts: Conflicts = Conflicts.REPORT) -> Undo:
        """Take back steps and all that they became, as if they had not run.

        Raises NeedsAttention where something could not be put back, and stays as it is.
        """
        self._books.take_over()
        chosen = self._books.with_inner(steps)
        await self._compensate(chosen)
        self._workspace.journal.forget_decisions(self._books.run_id, chosen)
        self._books.forget(chosen)
        return await self._put_back([*chosen, *(f"{each}/undo" for each in chosen)], conflicts)

    async def shown(self, steps: Iterable[Step], conflicts: Conflicts = Conflicts.REPORT) -> Undo:
        """The same, shown as one piece of work; the books tell how the steps had ended before."""
        chosen = list(steps)
        ended = {step_id: self._books.results.get(step_id) for step_id in self._books.with_inner(chosen)}
        undo = await self._shown(lambda: self.steps(chosen, conflicts))
        self._books.results.update({step_id: result for step_id, result in ended.items() if result is not None})
        self._tell_rolled_back(ended)
        return undo

    async def everything(self, conflicts: Conflicts = Conflicts.REPORT) -> Undo:
        """Take back the whole run; the journal then holds its steps as rolled back. Raises like `steps`."""
        succeeded = [*self._books.succeeded(), *filter(self._books.is_being_undone, self._books.recorded)]
        await self._compensate(succeeded)

        async def work() -> Undo:
            self._books.journal.set_step_status(self._books.run_id, succeeded, StepStatus.PENDING.value)
            return await self._put_back(None, conflicts)

        try:
            undo = await self._shown(work)
        except Conflicted:
            self._mark_rolled_back(succeeded)  # what is left to be settled is files, not steps
            raise
        self._mark_rolled_back(succeeded)
        self._tell_what_stands()
        return undo

    def _tell_what_stands(self) -> None:
        for sending in self._books.journal.sendings(self._books.run_id):
            how = "has acted" if sending.state is SendingState.SENT else "may have acted"
            message = f"it {how} outside of the workspace, and that stands"
            self._observe(RunEvent(EventKind.LOG, sending.step, message=message))

    def _mark_rolled_back(self, step_ids: Collection[str]) -> None:
        self._books.journal.set_step_status(self._books.run_id, step_ids, StepStatus.ROLLED_BACK.value)
        self._tell_rolled_back(self._books.results)

    def _tell_rolled_back(self, step_ids: Iterable[str]) -> None:
        for step_id in step_ids:
            result = self._books.results.get(step_id)
            if result is not None and result.status in (StepStatus.SUCCEEDED, StepStatus.RUNNING):
                result.status = StepStatus.ROLLED_BACK

    async def _shown(self, work: Callable[[], Awaitable[Undo]]) -> Undo:
        done: list[Undo] = []

        async def act() -> Sequence[str]:
            undo = await work()
            done.append(undo)
            return [printable(change.path) for change in undo.changes]

        await self._show(ROLLBACK, act)
        return done[0]

    async def _put_back(self, step_ids: Collection[str] | None, conflicts: Conflicts) -> Undo:
        undo: Undo = await self._in_thread(partial(self.put_back, step_ids, conflicts))
        return undo

    def put_back(self, step_ids: Collection[str] | None, conflicts: Conflicts = Conflicts.REPORT) -> Undo:
        """Put back what steps have done in the workspace; None is all. Raises NeedsAttention where it cannot be."""
        try:
            undo = self._workspace.undo(self._books.run_id, step_ids, conflicts=conflicts, torn=self.torn)
            if step_ids is None:
                self._workspace.folder.syncfs()
        except (OperationError, OSError) as problem:
            raise self.failed(problem) from problem
        self.tell_aside(undo.aside)
        if undo.conflicts and conflicts is Conflicts.REPORT:
            raise conflict_error(self._books.run_id, undo, self._workspace.root)
        return undo

    def tell_aside(self, aside: Mapping[str, Path]) -> None:
        """Say where versions are that had to make room."""
        for path, place in list(aside.items())[:MOST_NAMED]:
            message = f"{printable(path)}: what was found there is put aside, in {place}"
            self._observe(RunEvent(EventKind.LOG, message=message))
        if len(aside) > MOST_NAMED:
            message = f"… and {len(aside) - MOST_NAMED} more paths beside it"
            self._observe(RunEvent(EventKind.LOG, message=message))

    def failed(self, problem: Exception) -> NeedsAttention:
        """What is said when the disk, or what is on it, does not let something be put back."""
        again = f"`qo rollback {self._books.run_id}{workspace_option(self._workspace.root)}`"
        return NeedsAttention(f"not everything could be put back: {problem}", hint=f"mend that, then {again} goes on")

    def not_durable(self, problem: Exception) -> NeedsAttention:
        """What is said when the disk does not take what the run leaves."""
        again = f"`qo rollback {self._books.run_id}{workspace_option(self._workspace.root)}`"
        return NeedsAttention(str(problem), hint=f"mend that, or undo the run with {again}")

    # `undo` instructions.

    async def _compensate(self, step_ids: Collection[str]) -> None:
        """Run the `undo` instructions of those of these steps that have succeeded, the last one first."""
        chosen = set(step_ids)
        steps = {
            step.id: step for step in self._books.steps() if step.id in chosen and step.instruction.undo is not None
        }
        for step_id in sorted(steps, key=self._books.rank, reverse=True):
            result = self._books.results.get(step_id)
            succeeded = result is not None and result.status is StepStatus.SUCCEEDED
            if succeeded or self._books.is_being_undone(step_id):
                await self._show(f"{step_id}/undo", partial(self._in_thread, partial(self._undo, steps[step_id])))

    def _undo(self, step: Step) -> Sequence[str]:
        undo, journal = step.instruction.undo, self._books.journal
        assert undo is not None
        journal.set_step_status(self._books.run_id, step.id, StepStatus.RUNNING.value)
        try:
            self._attempts.make(Step(f"{step.id}/undo", undo, step.scope, step.item), CancelToken())
        except QuantumError as error:
            message = f"its undo failed, and what it did outside the workspace stands: {error.message}"
            self._observe(RunEvent(EventKind.LOG, step.id, undo.op, message))
        else:
            for name in (step.id, f"{step.id}/undo"):
                journal.take_back_sending(self._books.run_id, name)
        journal.set_step_status(self._books.run_id, step.id, StepStatus.PENDING.value)  # once is enough
        return []

"""Undoing a run after it has ended, and finding the one that a command means.

The journal says what to put back; Prefect is not needed for it, and shows it where it can be had (`Shower`). Going on
with a run that waited is `orchestrate.carry_on`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks import diff
from quantum_orchestrator.blocks.audit import current_actor
from quantum_orchestrator.blocks.errors import NeedsAttention, UsageError, WorkspaceBusy
from quantum_orchestrator.blocks.holdings import when_pruned
from quantum_orchestrator.blocks.home import home, workspace_home, workspace_option
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.ref_changes import RefChange, git_changes
from quantum_orchestrator.blocks.tree import Change, parent
from quantum_orchestrator.blocks.workspace import GIT, Conflicts, Undo, Workspace
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.attempts import conflict_error
from quantum_orchestrator.flows.auditing import RunAudit
from quantum_orchestrator.flows.document import InstructionSet, OnFailure
from quantum_orchestrator.flows.engine import Run, RunSettings, StepRunner, boot_at_work, was_cut_short
from quantum_orchestrator.flows.results import RunEvent, RunStatus, StepStatus
from quantum_orchestrator.flows.run_diff import of_run

UNDONE = (RunStatus.ROLLED_BACK, RunStatus.CANCELLED)
ENDED = (RunStatus.COMMITTED, RunStatus.KEPT)

Unwind = Callable[[StepRunner | None], Awaitable[Undo]]
Shower = Callable[[RunRecord, Unwind], Awaitable[Undo]]
"""Does the unwinding of a run where somebody can see it, with a runner that shows its parts."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did, or with `check` would do. `patch` is a git patch."""

    run_id: str
    changes: list[Change]
    patch: str
    status: str = RunStatus.ROLLED_BACK.value
    refs: Sequence[RefChange] = ()
    """Git's refs that went back."""
    kept: Sequence[str] = ()
    """Paths that somebody else has changed and that stay so."""
    aside: Mapping[str, Path] = field(default_factory=dict)
    """Where the versions are that had to make room, by path."""
    outside: Sequence[str] = ()
    """Steps that have acted outside of the workspace; that stands."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How much to undo, and what to do about paths that somebody else has changed."""

    to: str | None = None
    """A checkpoint; None for everything."""
    conflicts: Conflicts = Conflicts.REPORT


async def plainly(_record: RunRecord, unwind: Unwind) -> Undo:
    """Where nobody watches."""
    return await unwind(None)


def find_run(journal: Journal, run_id: str | None) -> RunRecord:
    """The run with this id (or the only one whose id begins so); without one, the newest.

    Raises UsageError if there is none.
    """
    if run_id is None:
        newest = journal.runs(1)
        if not newest:
            raise UsageError("no run in this workspace yet", hint="`qo run FILE` makes the first")
        return newest[0]
    run = journal.run(run_id)
    if run is None:
        raise UsageError(f"no run {run_id!r} in this workspace", hint="`qo history` lists them")
    return run


def find_unfinished(journal: Journal) -> RunRecord:
    """The run of this workspace that is neither committed nor undone. Raises UsageError if there is none."""
    run = journal.unfinished()
    if run is None:
        raise UsageError("no unfinished run in this workspace", hint="name a run; `qo history` lists them")
    return run


def start_again(journal: Journal, record: RunRecord) -> None:
    """A run that was undone is to run again from its start: nothing counts of how its steps had ended."""
    if record.status not in UNDONE:
        return
    steps = list(journal.steps(record.id))
    journal.set_step_status(record.id, steps, StepStatus.PENDING.value)
    journal.forget_decisions(record.id, steps)


def rollback(
    root: Path,
    run_id: str | None,
    *,
    check: bool = False,
    choice: Choice = Choice(),
    show: Shower = plainly,
    with_patch: bool = True,
) -> RolledBack:
    """Undo a run: the unfinished one of the workspace, or the one named, committed ones too.

    Without `with_patch` the patch stays empty: to make it, every content is read.

    Raises WorkspaceBusy while a run is at work, UsageError if it is undone already, and NeedsAttention, with nothing
    changed, if somebody has changed its files since and `choice` does not say what to do about that.
    """
    policy = Policy.load(home() / "policy.toml")
    journal = Journal(workspace_home(root))
    try:
        _acquire(journal, root)
        journal.require_sound()
        workspace = Workspace(root, journal, policy.snapshot_exclude)
        try:
            run = find_unfinished(journal) if run_id is None else find_run(journal, run_id)
            case = _Case(workspace, policy, run, choice)
            return asyncio.run(_rollback(case, check=check, show=show, with_patch=with_patch))
        finally:
            workspace.close()
    finally:
        journal.lock.release()
        journal.close()


def _acquire(journal: Journal, root: Path) -> None:
    """Nobody who asks for a rollback waits: what runs is to be ended first, which undoes it."""
    try:
        journal.lock.acquire()
    except WorkspaceBusy as busy:
        at = workspace_option(root)
        raise WorkspaceBusy(
            busy.message, hint=f"`qo cancel{at}` ends it and undoes it; `qo status{at}` says more"
        ) from busy


@dataclass(slots=True)
class _Case:
    """One run that is to be undone."""

    workspace: Workspace
    policy: Policy
    run: RunRecord
    choice: Choice

    def unwinding(self, runner: StepRunner | None = None) -> Run:
        """The run, to be unwound; its log says what comes of `undo` instructions."""

        def note(event: RunEvent) -> None:
            with self.workspace.journal.log_path(self.run.id).open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event.kind.value} {event.step} {event.message}\n")

        document = InstructionSet.model_validate(self.run.document)
        settings = RunSettings(parallel=1, on_failure=OnFailure.ROLLBACK, secrets=_secrets)
        return Run(self.run, document, self.workspace, settings, policy=self.policy, runner=runner, observers=[note])

    def steps(self) -> list[str] | None:
        """The steps to undo; None for all. Raises UsageError if the run has not passed the checkpoint."""
        if self.choice.to is None:
            return None
        run = self.unwinding()
        return run.books.with_inner(run.after_checkpoint(self.choice.to))


def _secrets(names: Sequence[str]) -> Mapping[str, str]:
    """They are Prefect's, which is imported only where an `undo` instruction asks for one."""
    from quantum_orchestrator.flows.orchestrate import load_secrets

    return load_secrets(names)


async def _rollback(case: _Case, *, check: bool, show: Shower, with_patch: bool) -> RolledBack:
    run, workspace, choice = case.run, case.workspace, case.choice
    if run.status in UNDONE:
        raise UsageError(f"run {run.id} has been rolled back already")
    if run.pruned:
        raise UsageError(f"run {run.id} cannot be undone: its before-images were removed by `qo gc`{when_pruned(run)}")
    steps = case.steps()
    undo = workspace.plan_undo(run.id, steps, conflicts=choice.conflicts, torn=was_cut_short(run))
    if undo.conflicts and choice.conflicts is Conflicts.REPORT:
        raise _refused(run, undo, workspace.root, choice.to)
    planned = _planned(workspace, run, undo, with_patch=with_patch)
    if check:
        return planned
    done, status = await _undo(case, steps, show)
    outside = [each.step for each in workspace.journal.sendings(run.id) if steps is None or each.step in steps]
    return replace(planned, status=status, kept=done.left, aside=done.aside, outside=outside)


def _planned(workspace: Workspace, run: RunRecord, undo: Undo, *, with_patch: bool) -> RolledBack:
    """What a rollback would do: to files, and to what git says of its own."""
    contents = _contents(workspace, undo.changes)
    refs = list(git_changes(undo.changes, contents).refs)
    for git in undo.repositories:
        folder = parent(git.repository)
        refs += [RefChange(folder, move.name, move.current, move.wanted) for move in git.moves]
    files = [change for change in undo.changes if GIT not in change.path.split("/")]
    patch = diff.render(files, contents) if with_patch else ""
    return RolledBack(run.id, files, patch, run.status, refs, undo.left)


async def _undo(case: _Case, steps: Sequence[str] | None, show: Shower) -> tuple[Undo, str]:
    """In an order in which a process that dies leaves a run that is unfinished, and can be undone again."""
    journal, run, choice = case.workspace.journal, case.run, case.choice
    stood = (StepStatus.SUCCEEDED, StepStatus.RUNNING)  # running: a process died over its `undo`
    succeeded = [step.id for step in journal.steps(run.id).values() if step.status in stood]
    undone = succeeded if steps is None else [each for each in succeeded if each in steps]
    audit, actor = RunAudit(run, case.workspace.root), current_actor()
    audit.rolled_back(actor, choice.to)
    journal.update(run.id, status=RunStatus.NEEDS_ATTENTION.value, ended_at=None, boot_id=boot_at_work(run))

    async def unwind(runner: StepRunner | None) -> Undo:
        return await case.unwinding(runner).unwind(to=choice.to, conflicts=choice.conflicts)

    try:
        undo = await show(run, unwind)
    except NeedsAttention:
        case.workspace.folder.syncfs()
        journal.update(run.id, ended_at=time.time())
        raise
    case.workspace.folder.syncfs()
    status = RunStatus.ROLLED_BACK
    if steps is not None:
        status = RunStatus.KEPT if run.status in ENDED else RunStatus.PAUSED
    _record(journal, run, undone, status)
    audit.ended(actor, status)
    return undo, status.value


def _refused(run: RunRecord, undo: Undo, root: Path, to: str | None) -> NeedsAttention:
    error = conflict_error(run.id, undo, root, to=to)
    see = f"`qo diff {run.id}{workspace_option(root)}`"
    return NeedsAttention(error.message, hint=f"nothing was changed; {see} shows what the run did. {error.hint}")


def _contents(workspace: Workspace, changes: Iterable[Change]) -> _Contents:
    return _Contents(workspace, {c.before.sha256: c.path for c in changes if c.before is not None})


class _Contents:
    """Contents by digest: stored ones from the journal, the present ones from the disk."""

    def __init__(self, workspace: Workspace, present: dict[str, str]) -> None:
        self._workspace = workspace
        self._present = present

    def __call__(self, sha256: str) -> bytes:
        if sha256 in self._present:
            return self._workspace.tree.read(self._present[sha256])
        return self._workspace.journal.content(sha256)


def _record(journal: Journal, run: RunRecord, undone: Iterable[str], status: RunStatus) -> None:
    undone = set(undone)
    journal.set_step_status(run.id, undone, StepStatus.ROLLED_BACK.value)
    document: dict[str, Any] = dict(run.report or {})
    if document:
        document["status"] = status.value
        document["diff"] = report.counts(of_run(journal, run.id))
        for step in document["steps"]:
            if step["id"] in undone:
                step["status"] = StepStatus.ROLLED_BACK.value
    journal.update(run.id, status=status.value, ended_at=time.time(), report=document or None)

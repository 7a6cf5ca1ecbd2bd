"""Undoing a run after it has ended, and finding the one that a command means.

The journal says what to put back; Prefect is not needed for it. Going on with a run that waited is
`orchestrate.carry_on`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from quantum_orchestrator.blocks.errors import NeedsAttention, UsageError
from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.tree import Change
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.attempts import conflict_error
from quantum_orchestrator.flows.document import InstructionSet, OnFailure
from quantum_orchestrator.flows.engine import Run, RunSettings
from quantum_orchestrator.flows.results import RunEvent, RunStatus, StepStatus

UNDONE = (RunStatus.ROLLED_BACK, RunStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did, or with `check` would do. `patch` is a git patch."""

    run_id: str
    changes: list[Change]
    patch: str


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


def rollback(root: Path, run_id: str | None, *, check: bool = False) -> RolledBack:
    """Undo a run: the unfinished one of the workspace, or the one named, committed ones too.

    Raises WorkspaceBusy while a run is at work, UsageError if it is undone already, and NeedsAttention, with nothing
    changed, if somebody has changed its files since.
    """
    policy = Policy.load(home() / "policy.toml")
    journal = Journal(workspace_home(root))
    try:
        journal.lock.acquire()
        workspace = Workspace(root, journal, policy.snapshot_exclude)
        try:
            run = find_unfinished(journal) if run_id is None else find_run(journal, run_id)
            return _rollback(workspace, policy, run, check=check)
        finally:
            workspace.close()
    finally:
        journal.lock.release()
        journal.close()


def _rollback(workspace: Workspace, policy: Policy, run: RunRecord, *, check: bool) -> RolledBack:
    from quantum_orchestrator.blocks import diff

    if run.status in UNDONE:
        raise UsageError(f"run {run.id} has been rolled back already")
    undo = workspace.plan_undo(run.id)
    if undo.conflicts:
        raise _refused(run, undo.conflicts)
    patch = diff.render(undo.changes, _contents(workspace, undo.changes))
    if not check:
        _undo(workspace, policy, run)
    return RolledBack(run.id, undo.changes, patch)


def _undo(workspace: Workspace, policy: Policy, run: RunRecord) -> None:
    """In an order in which a process that dies leaves a run that is unfinished, and can be undone again."""
    journal = workspace.journal
    succeeded = [step.id for step in journal.steps(run.id).values() if step.status == StepStatus.SUCCEEDED]
    journal.update(run.id, status=RunStatus.NEEDS_ATTENTION.value)
    _compensate(workspace, policy, run)
    undo = workspace.undo(run.id)
    if undo.conflicts:
        raise _refused(run, undo.conflicts)
    workspace.folder.syncfs()
    _record(journal, run, succeeded)


def _compensate(workspace: Workspace, policy: Policy, record: RunRecord) -> None:
    """Run the `undo` instructions of the steps that have succeeded; the run's log says what came of them."""
    document = InstructionSet.model_validate(record.document) if record.document else None
    if document is None or not any(each.undo for each in document.instructions):
        return
    from quantum_orchestrator.flows.orchestrate import load_secrets

    def note(event: RunEvent) -> None:
        with workspace.journal.log_path(record.id).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {event.kind.value} {event.step} {event.message}\n")

    settings = RunSettings(parallel=1, on_failure=OnFailure.ROLLBACK, secrets=load_secrets)
    Run(record, document, workspace, settings, policy=policy, observers=[note]).compensate()


def _refused(run: RunRecord, conflicts: list[str]) -> NeedsAttention:
    error = conflict_error(run.id, conflicts)
    return NeedsAttention(error.message, hint=f"nothing was changed; {error.hint}, then `qo rollback {run.id}` again")


def _contents(workspace: Workspace, changes: list[Change]) -> _Contents:
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


def _record(journal: Journal, run: RunRecord, succeeded: list[str]) -> None:
    journal.set_step_status(run.id, succeeded, StepStatus.ROLLED_BACK.value)
    document = dict(run.report or {})
    if document:
        document["status"] = RunStatus.ROLLED_BACK.value
        document["diff"] = {"files": 0, "insertions": 0, "deletions": 0}
        for step in document["steps"]:
            if step["status"] == StepStatus.SUCCEEDED:
                step["status"] = StepStatus.ROLLED_BACK.value
    journal.update(run.id, status=RunStatus.ROLLED_BACK.value, ended_at=time.time(), report=document or None)

"""Which runs' before-images are kept, and removing the others: what `qo gc` does, and each run at its end, in small.

A run that has ended can be undone for as long as its before-images are there; they are given up by age, by number and
by size, the oldest first. `choose` says what goes, `carry_out` does it: what the one says is what the other removes.

Invariant: an unfinished run, and one that is at work, lose nothing; a run that loses its before-images keeps its
report, with the time in it. Whoever carries out holds the workspace's lock. The order is such that a kill at any moment
leaves what is right, at most with something that the next time removes: reports, runs, contents, single files.

This module must not touch a workspace, nor know of commands.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.database import DAMAGE_HINT
from quantum_orchestrator.blocks.errors import QuantumError, StateError
from quantum_orchestrator.blocks.holdings import PRUNED_AT, Holder, Holdings, Leftover, glance, look
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.reuse_store import NOTHING, ReuseStore, Unused
from quantum_orchestrator.blocks.script_folders import remove
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.instruction_set import InstructionSet
from quantum_orchestrator.flows.plan import expand
from quantum_orchestrator.flows.results import RunStatus, StepResult, StepStatus

DAY = 86_400.0
SLACK = 0.1
"""By so much, runs may go beyond age and number before anything is removed at a run's end; and the size is brought so
far below its limit. What is found then is looked for once in a while, not after every run."""
DRAFT_SECONDS = 3600.0
"""A draft of this age is no longer being written."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how many and how much. `seconds` since a run's end, `runs` with before-images, `size` in bytes."""

    seconds: float
    runs: int
    size: int

    @classmethod
    def of(cls, policy: Policy) -> Limits:
        """Those of the machine's owner."""
        return cls(policy.journal_keep_days * DAY, policy.journal_keep_runs, policy.journal_max_size_mb * 2**20)


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes from one state folder; bytes each."""

    runs: tuple[str, ...] = ()
    """The oldest first."""
    contents: int = 0
    logs: tuple[Leftover, ...] = ()
    aside: tuple[Leftover, ...] = ()
    objects: tuple[Leftover, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    remembered: Unused = NOTHING
    """Of what steps are reused by."""

    @property
    def files(self) -> list[Leftover]:
        """All that lies beside the database."""
        return [*self.logs, *self.aside, *self.objects, *self.leftovers]

    @property
    def size(self) -> int:
        """In all."""
        return self.contents + sum(each.size for each in self.files) + self.remembered.size

    def __bool__(self) -> bool:
        return bool(self.runs or self.contents or self.files or self.remembered.size)


# Choosing.


def choose(journal: Journal, limits: Limits, *, now: float, keep: str = "", most: int | None = None) -> Removal:
    """What is beyond the limits, and what nothing needs any more. `keep` is a run that stays in any case.

    `most` are the bytes to come down to once `limits.size` is passed. Raises StateError, as nothing must be removed
    from a journal that cannot be trusted.
    """
    held = look(journal.folder)
    aside = [each for each in held.aside if each.run_id and each.since < now - limits.seconds]
    chosen = _over_age_and_number(held, limits, now, keep)
    chosen = _over_size(held, limits, chosen, keep, limits.size if most is None else most, aside)
    runs = [each.run_id for each in held.holders if each.run_id in chosen]
    damaged = [each.run_id for each in held.holders if each.is_damaged and each.run_id not in chosen]
    if damaged:
        raise StateError(f"{journal.folder}: the rows of run {damaged[0]} are damaged", hint=DAMAGE_HINT)
    drafts = [each for each in held.drafts if each.since < now - DRAFT_SECONDS]
    return Removal(
        tuple(runs),
        held.unneeded(chosen),
        tuple(each for each in held.logs if _is_old_log(each, held, chosen, now - limits.seconds)),
        tuple(aside),
        tuple(held.unneeded_objects(chosen)),
        (*(each for each in held.aside if not each.run_id), *drafts, *held.layers),
        ReuseStore(journal.folder).unused(now - limits.seconds),
    )


def _over_age_and_number(held: Holdings, limits: Limits, now: float, keep: str) -> set[str]:
    finished = [each for each in held.holders if each.is_finished]
    beyond = finished[: max(0, len(finished) - limits.runs)]
    old = [each for each in finished if each.since < now - limits.seconds]
    return {each.run_id for each in (*old, *beyond)} - {keep}


def _over_size(
    held: Holdings, limits: Limits, chosen: set[str], keep: str, most: int, besides: Sequence[Leftover]
) -> set[str]:
    """The same runs, and as many of the oldest others as have to go for the rest to fit."""
    users: dict[str, int] = {}
    for holder in held.holders:
        if holder.run_id not in chosen:
            for sha256 in holder.contents:
                users[sha256] = users.get(sha256, 0) + 1
    gone = sum(each.row_bytes for each in held.holders if each.run_id in chosen)
    left = held.used - held.unneeded(chosen) - gone - sum(each.size for each in besides)
    if left <= limits.size:
        return chosen
    found = set(chosen)
    for holder in held.holders:
        if left > most and holder.is_finished and holder.run_id not in found and holder.run_id != keep:
            found.add(holder.run_id)
            left -= holder.row_bytes + _released(holder, users, held)
    return found


def _released(holder: Holder, users: dict[str, int], held: Holdings) -> int:
    """Bytes of the contents that nobody else uses; it uses them no longer."""
    released = 0
    for sha256 in holder.contents:
        users[sha256] -= 1
        if not users[sha256]:
            released += held.contents.get(sha256, 0) + held.files.get(sha256, 0)
    return released


def _is_old_log(log: Leftover, held: Holdings, chosen: Collection[str], before: float) -> bool:
    """A log goes with its run's before-images, or when it is old."""
    status = held.statuses.get(log.run_id)
    is_unfinished = status is not None and status not in _ENDED
    return not is_unfinished and (log.run_id in chosen or log.since < before)


_ENDED = tuple(each.value for each in (RunStatus.COMMITTED, RunStatus.ROLLED_BACK, RunStatus.KEPT, RunStatus.CANCELLED))


# Carrying out.


def carry_out(journal: Journal, removal: Removal, *, now: float) -> int:
    """Remove it, under the workspace's lock; the bytes that this has freed. Raises StateError if the journal is
    damaged: nothing is removed from it then."""
    if not removal:
        return 0
    journal.require_sound()
    for run_id in removal.runs:
        _leave_report(journal, run_id)
    if removal.runs:
        journal.prune(removal.runs)
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    for run_id in removal.runs:
        _reduce(journal, run_id, moment)
    freed = journal.sweep()
    for each in removal.files:
        freed += each.size
        _remove(each.path)
    ReuseStore(journal.folder).forget(removal.remembered)
    return freed + removal.remembered.size


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove(path)
    else:
        path.unlink(missing_ok=True)


def _leave_report(journal: Journal, run_id: str) -> None:
    """See that the run's report says how it stands: without before-images, none can be made that counts its changes."""
    run = journal.run(run_id)
    if run is not None and (run.report is None or run.report.get("status") != run.status):
        journal.update(run_id, report=_report(journal, run), durable=False)


def _report(journal: Journal, run: RunRecord) -> dict[str, Any]:
    known = {step.id: StepResult.of(step) for step in journal.steps(run.id).values()}
    steps = []
    with contextlib.suppress(ValueError, QuantumError):  # a set that this version cannot read: the steps are known
        steps = [
            known.pop(step.id, StepResult(step.id, step.instruction.op, StepStatus.SKIPPED))
            for step in expand(InstructionSet.model_validate(run.document), run.inputs).steps
        ]
    steps += known.values()
    error = None if run.error is None else {name: str(value) for name, value in run.error.items()}
    try:
        return report.run_document(run, RunStatus(run.status), steps, journal, error)
    except StateError:  # what is damaged cannot be counted; the rest of the report is as good as any
        uncounted = report.run_document(run, RunStatus.ROLLED_BACK, steps, journal, error)
        return {**uncounted, "status": run.status}


def _reduce(journal: Journal, run_id: str, moment: str) -> None:
    """Take out of a run's own row what is of no use any more. The set of one that was undone may still be run again."""
    run = journal.run(run_id)
    if run is None:
        return
    document = dict(run.document)
    if run.status == RunStatus.COMMITTED and "instructions" in document:
        document["instructions"] = []
    noted = {**(run.report or {}), PRUNED_AT: moment}
    journal.update(run_id, report=noted, document=document, predicted=None, durable=False)


# At the end of a run.


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run's end has removed; `problem` says why it could not."""

    removal: Removal = field(default_factory=Removal)
    problem: str = ""


def keep_within(journal: Journal, policy: Policy, *, run_id: str, now: float | None = None) -> Kept | None:
    """Remove what is beyond the policy's limits at the end of run `run_id`, which loses nothing; None if nothing is.

    Under the workspace's lock. Never raises: the run has ended, and keeping too much is no reason to call it failed.
    """
    moment, limits = time.time() if now is None else now, Limits.of(policy)
    try:
        if not _is_beyond(journal, limits, run_id, moment):
            return None
        removal = choose(journal, limits, now=moment, keep=run_id, most=int(limits.size * (1 - SLACK)))
        carry_out(journal, removal, now=moment)
    except Exception as problem:
        return Kept(problem=problem.message if isinstance(problem, QuantumError) else repr(problem))
    return Kept(removal) if removal else None


def _is_beyond(journal: Journal, limits: Limits, run_id: str, now: float) -> bool:
    seen = glance(journal.folder, run_id)
    old = seen.oldest is not None and seen.oldest < now - limits.seconds * (1 + SLACK)
    return old or seen.runs > int(limits.runs * (1 + SLACK)) or seen.used > limits.size

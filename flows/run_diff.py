"""What runs have changed, read from the journal: a run, one of its steps, or everything between two runs.

A path's net change is from the first state that the journal saw to the last one. Only effects that stand count: what
was rolled back has changed nothing. Invariant: what is told here depends on the journal alone, but for git's refs,
where a file that no run has changed since is read in the workspace, and for the subjects of commits.

Knows neither plans nor Prefect, and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quantum_orchestrator.blocks import diff
from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import QuantumError, UsageError
from quantum_orchestrator.blocks.holdings import when_pruned
from quantum_orchestrator.blocks.journal import Effect, Journal, RunRecord
from quantum_orchestrator.blocks.ref_changes import GitChanges, git_changes
from quantum_orchestrator.blocks.renames import Rename, find_renames, is_gits_own
from quantum_orchestrator.blocks.tree import Change, Entry, Kind


@dataclass
class RunDiff:
    """Changes that belong together, and what follows from them. `everything` holds git's own files as well."""

    journal: Journal
    everything: list[Change]
    last: int = 0
    """The number of the last effect: git's files are read as they were after it."""

    @cached_property
    def changes(self) -> list[Change]:
        """The changes of the workspace's files, by path."""
        return [change for change in self.everything if not is_gits_own(change.path)]

    @cached_property
    def renames(self) -> list[Rename]:
        """The files among them that went and came under another name."""
        return find_renames(self.changes, self._content_of)

    @cached_property
    def git(self) -> GitChanges:
        """What happened to the repositories."""
        with _Later(self.journal, self.last) as later:
            return git_changes(self.everything, self._content_of, later.read)

    @cached_property
    def files(self) -> list[diff.FileCounts]:
        """How much of each file changed."""
        return diff.file_counts(self.changes, self._content_of, renames=self.renames)

    @property
    def counts(self) -> diff.DiffCounts:
        """The same in sum."""
        return diff.summed(self.files)

    @property
    def remarks(self) -> list[str]:
        """What no file's counts can tell: folders that hold nothing, and git's refs."""
        return diff.remarks(self.everything, self.git)

    @cached_property
    def patch(self) -> str:
        """Everything as a git patch."""
        return diff.render(self.everything, self._content_of, renames=self.renames, git=self.git)

    def beginning(self, limit: int) -> str:
        """The same; of a long one, the files that come first, up to so many characters and the end of a file."""
        return diff.render(self.everything, self._content_of, renames=self.renames, git=self.git, limit=limit)

    @cached_property
    def _content_of(self) -> Callable[[str], bytes]:
        sides = (side for each in self.everything for side in (each.before, each.after))
        return self.journal.reader(side.sha256 for side in sides if side is not None and side.kind is Kind.FILE)


def of_run(journal: Journal, run_id: str, step_id: str | None = None) -> RunDiff:
    """What a run has changed, or one of its steps with those inside of it."""
    effects = effects_that_stand(journal, run_id)
    if step_id is not None:
        from quantum_orchestrator.flows.books import owners  # which knows all about sets: not needed for whole runs

        effects = [each for each in effects if step_id in owners(each.step)]
    return _diff(journal, effects)


def by_step(journal: Journal, run_id: str) -> dict[str, RunDiff]:
    """What each step of a run has changed, in the order in which they began to; steps that touched nothing left out."""
    effects: dict[str, list[Effect]] = {}
    for effect in effects_that_stand(journal, run_id):
        effects.setdefault(effect.step, []).append(effect)
    return {step: _diff(journal, several) for step, several in effects.items()}


def between(journal: Journal, first: RunRecord, second: RunRecord) -> RunDiff:
    """From the workspace as the first run left it to the workspace as the second one left it, in either order.

    Where somebody else changed a file of the first run before a later run changed it, that is told too. Raises
    UsageError when what a run of them has changed is no longer known.
    """
    ordered = list(reversed(journal.runs()))
    places = {run.id: place for place, run in enumerate(ordered)}
    start, end = sorted((places[first.id], places[second.id]))
    for run in ordered[start : end + 1]:
        require_known(run)
    left = {each.change.path: each.change.after for each in effects_that_stand(journal, ordered[start].id)}
    effects = [effect for run in ordered[start + 1 : end + 1] for effect in effects_that_stand(journal, run.id)]
    made = _diff(journal, effects, left)
    if places[first.id] > places[second.id]:
        made.everything = [Change(each.path, each.after, each.before) for each in made.everything]
    return made


def require_known(run: RunRecord) -> None:
    """Raises UsageError for a run whose before-images are gone."""
    if run.pruned:
        raise UsageError(
            f"what run {run.id} has changed is no longer known: its before-images were removed by `qo gc`"
            f"{when_pruned(run)}",
            hint=f"`qo show {run.id}` still tells how its steps ended",
        )


def effects_that_stand(journal: Journal, run_id: str) -> list[Effect]:
    """The effects of a run that stand, in order, without the claims of steps to folders that another one has made."""
    folders: set[str] = set()
    effects = []
    for effect in journal.effects(run_id):
        path, before, after = effect.change.path, effect.change.before, effect.change.after
        is_folder = after is not None and after.kind is Kind.FOLDER
        if before is None and is_folder and path in folders:
            continue
        (folders.add if is_folder else folders.discard)(path)
        effects.append(effect)
    return effects


def _diff(journal: Journal, effects: Sequence[Effect], left: dict[str, Entry | None] | None = None) -> RunDiff:
    """The net change of some effects. `left` is how paths were before the first of them, where that is known."""
    first: dict[str, Entry | None] = {}
    last: dict[str, Entry | None] = {}
    for effect in effects:
        path = effect.change.path
        first.setdefault(path, left[path] if left is not None and path in left else effect.change.before)
        last[path] = effect.change.after
    changes = [Change(path, first[path], last[path]) for path in sorted(last) if first[path] != last[path]]
    return RunDiff(journal, changes, max((effect.number for effect in effects), default=0))


class _Later:
    """Files as they were after a certain effect: from the effects that came later, else from the workspace now."""

    def __init__(self, journal: Journal, last: int) -> None:
        self._journal = journal
        self._last = last
        self._folder: ConfinedFolder | None = None

    def __enter__(self) -> _Later:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.close()

    def read(self, path: str) -> bytes | None:
        """A file's bytes; None if it was not there, or nobody can tell."""
        try:
            if "/objects/" not in path and path in self._replaced:  # an object's content never changes
                entry = self._replaced[path]
                return None if entry is None or entry.kind is not Kind.FILE else self._journal.content(entry.sha256)
            return self._read_now(path)
        except (QuantumError, OSError):
            return None  # it is told as unknown

    def _read_now(self, path: str) -> bytes:
        if self._folder is None:
            self._folder = ConfinedFolder.open(_root_of(self._journal))
        return self._folder.read(path)

    @cached_property
    def _replaced(self) -> dict[str, Entry | None]:
        """What was at the paths that have changed since, before that."""
        later: list[Effect] = []
        for run in self._journal.runs():
            effects = [] if run.pruned else self._journal.effects(run.id)
            since = [effect for effect in effects if effect.number > self._last]
            if effects and not since:
                break  # neither has any run before that one
            later += since
        return {each.change.path: each.change.before for each in sorted(later, key=_number, reverse=True)}


def _number(effect: Effect) -> int:
    return effect.number


def _root_of(journal: Journal) -> Path:
    """The workspace that a journal is of, as its state folder says."""
    return Path(os.fsdecode((journal.folder / "path").read_bytes()).removesuffix("\n"))

"""What undoing means: for every path that a run has changed, whether it can go back to what it was, and how.

The rule: a path goes back if what is there now is one of the run's own states (or what a path passes through between
two of them); anything else is somebody else's, a conflict. What becomes of a conflict is the caller's choice.

Nothing here changes anything, and only `Planner` looks at the disk, through functions that it is given. Repositories
are judged by `blocks/git_undo.py`; doing it is `blocks/workspace.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from quantum_orchestrator.blocks.disk_tree import (
    OWNER_WRITES,
    UNREACHABLE,
    DiskTree,
    OpenUp,
    inside,
    reachable_entry,
)
from quantum_orchestrator.blocks.journal import Effect, EffectState
from quantum_orchestrator.blocks.snapshot import is_repository
from quantum_orchestrator.blocks.tree import ROOT, Change, Entry, Kind, ancestors, join

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.git_undo import Checkout, GitUndo


class Conflicts(StrEnum):
    """What becomes of paths that somebody else has changed since. Either way they are listed."""

    REPORT = "report"  # they stay as they are, and so do their effects
    KEEP = "keep"  # they stay as they are, and count as undone
    OVERWRITE = "overwrite"  # what is there is put aside, and what was there before the run comes back


@dataclass(slots=True)
class Undo:
    """What putting things back means now."""

    changes: list[Change] = field(default_factory=list)
    """From what is there to what was there."""
    conflicts: list[str] = field(default_factory=list)
    """Paths that somebody else has changed since."""
    left: list[str] = field(default_factory=list)
    """Those of the conflicts that stay as they are: all of them, unless they are to be overwritten."""
    reasons: dict[str, str] = field(default_factory=dict)
    """More about some of the conflicts: what has moved a ref, for instance."""
    kept: list[str] = field(default_factory=list)
    """Folders that one step made and another one uses."""
    effects: list[Effect] = field(default_factory=list)
    """The journal's effects that are undone by this."""
    lasting: list[Effect] = field(default_factory=list)
    """Those that made the folders that are kept."""
    repositories: list[GitUndo] = field(default_factory=list)
    """Repositories that are put back by what their files mean, as git has been used in them since."""
    objects: dict[str, list[str]] = field(default_factory=dict)
    """Objects that steps have taken from repositories."""
    displaced: dict[str, Entry] = field(default_factory=dict)
    """What is at paths now that is put aside before they are overwritten."""
    aside: dict[str, Path] = field(default_factory=dict)
    """Where the present versions of overwritten paths are put."""


def is_making(change: Change) -> bool:
    """Whether it makes a folder where nothing was."""
    return change.before is None and change.after is not None and change.after.kind is Kind.FOLDER


def is_going(change: Change) -> bool:
    """Whether what was there is not there afterwards."""
    return change.before is not None and (change.after is None or change.after.kind is not change.before.kind)


def is_ours(current: Entry | None, history: Sequence[Effect]) -> bool:
    """Whether what is there now is one of a path's states, or what it passes through on the way between two."""
    states = [state for each in history for state in (each.change.before, each.change.after)]
    if current in states:
        return True
    if current is None:  # a path becomes something of another kind, or another link, by way of nothing
        return any(_passes_by_nothing(each.change) for each in history)
    folders = [state for state in states if state is not None and state.kind is Kind.FOLDER]
    if current.kind is not Kind.FOLDER or not folders:
        return False
    was = history[0].change.before
    if was is None or was.kind is not Kind.FOLDER:
        return True  # it goes, if nothing else is in it; its mode does not matter
    return any(current.mode == state.mode | OWNER_WRITES for state in folders)


def _passes_by_nothing(change: Change) -> bool:
    before, after = change.before, change.after
    return before is not None and after is not None and (before.kind is not after.kind or after.kind is Kind.LINK)


def histories_of(effects: Sequence[Effect]) -> dict[str, list[Effect]]:
    """Effects by path, in the order of writing."""
    histories: dict[str, list[Effect]] = {}
    for effect in effects:
        histories.setdefault(effect.change.path, []).append(effect)
    return histories


Histories = Mapping[str, Sequence[Effect]]


def _is_found(history: Sequence[Effect]) -> bool:
    """Whether it was found after a death, so that nobody knows whose work it is."""
    return any(each.state is EffectState.FOUND for each in history)


class Planner:
    """Plans the undoing of paths, each by what is there now. The result is in `undo`."""

    def __init__(
        self,
        tree: DiskTree,
        open_up: OpenUp,
        is_excluded: Callable[[str], bool],
        *,
        conflicts: Conflicts = Conflicts.REPORT,
        torn: bool = False,
    ) -> None:
        """`torn`: the power went while the run was at work, so that a file may be none of its states and its own."""
        self.undo = Undo()
        self._tree = tree
        self._open_up = open_up
        self._is_excluded = is_excluded
        self.torn = torn
        self.overwrite = conflicts is Conflicts.OVERWRITE
        self._conflicts = conflicts
        self._left: set[str] = set()
        self._in_the_way: set[str] = set()  # what stays and is no folder
        self._own_links: set[str] = set()
        self._checkouts: list[Checkout] = []
        self.own: set[str] = set()
        """Paths of which is known that what is there now is the run's own."""

    @property
    def left(self) -> set[str]:
        """Paths that stay as they are: conflicts that are not overwritten, and folders that are kept."""
        return self._left

    def look(self, path: str) -> Entry | None:
        """What is at a path now."""
        self._open_up(path)
        return reachable_entry(self._tree, path)

    def path(self, path: str, history: Sequence[Effect]) -> None:
        """From what is at the path now to what was there before, unless what is there is somebody else's."""
        current, first = self._look_behind_links(path), history[0].change.before
        if current == first or any(each.holds(path, current, self._tree.read) for each in self._checkouts):
            return
        if first is not None and first.kind is Kind.SPECIAL:
            self._conflict(path)  # a FIFO or a device cannot be made anew
        elif path in self.own or is_ours(current, history):
            self.undo.changes.append(Change(path, current, first))
            if current is not None and current.kind is Kind.LINK:
                self._own_links.add(path)
            if current is not None and current.kind in (Kind.FILE, Kind.LINK) and _is_found(history):
                self._displace(path, current)
            if current is None and is_repository(path) and path not in self.undo.objects:
                self._conflict(join(path, "objects"))  # not kept before the step: what it held is lost
        elif self.torn and (current is None or current.kind is Kind.FILE):
            self._displace(path, current)
            self.undo.changes.append(Change(path, current, first))
        else:
            self.undo.conflicts.append(path)
            if not self.overwrite or not self._overwritten(path, current, first):
                self._left.add(path)
                if current is not None and current.kind is not Kind.FOLDER:
                    self._in_the_way.add(path)

    def _look_behind_links(self, path: str) -> Entry | None:
        """What is at a path now, once the links have gone that the run has made in the place of folders."""
        current = self.look(path)
        return None if current == UNREACHABLE and not self._own_links.isdisjoint(ancestors(path)) else current

    def repository(self, git: GitUndo, paths: Iterable[str]) -> None:
        """A repository that goes back by what its files mean: whole, unless its conflicts are to be kept."""
        self.undo.conflicts += git.conflicts
        self.undo.reasons |= {path: reason for path, reason in git.conflicts.items() if reason}
        self._left.update(git.unsolved)
        if git.unsolved and self._conflicts is not Conflicts.KEEP:
            self._left.update(paths)
            self._left.update(git.conflicts)
            return
        self.undo.repositories.append(git)
        if git.checkout is not None:
            self._checkouts.append(git.checkout)
        self.undo.changes += git.files
        self.undo.displaced |= git.displaced_files

    def objects(self, repository: str, gone: Sequence[str]) -> None:
        """Git's objects that steps took away, and that cannot be given back."""
        if gone:
            path = join(repository, "objects")
            self._conflict(path)
            self.undo.reasons[path] = f"{len(gone)} objects are gone, {gone[0]} among them"

    def _conflict(self, path: str) -> None:
        self.undo.conflicts.append(path)
        self._left.add(path)

    def _displace(self, path: str, current: Entry | None) -> None:
        if current is not None:
            self.undo.displaced[path] = current

    def _overwritten(self, path: str, current: Entry | None, first: Entry | None) -> bool:
        """Plan to put aside what is there; False where that cannot be done."""
        if current == UNREACHABLE:
            if not any(each in self.undo.displaced for each in ancestors(path)):
                return False  # the link on the way is not the run's to replace
            current = None  # it leads elsewhere, and goes itself
        else:
            self._displace(path, current)
        if current is None and first is not None:
            self._make_folders_above(path)
        if current is not None and current.kind is Kind.FOLDER and (first is None or first.kind is not Kind.FOLDER):
            self._remove_below(path)
        if current != first:
            self.undo.changes.append(Change(path, current, first))
        return True

    def _make_folders_above(self, path: str) -> None:
        """Plan to make the folders above a path that comes back, where somebody else has removed them."""
        planned = {change.path for change in self.undo.changes}
        for folder in ancestors(path):
            if folder not in planned and self.look(folder) is None:
                mode = 0o777 & ~self._tree.umask
                self.undo.changes.append(Change(folder, None, Entry(Kind.FOLDER, mode)))

    def _remove_below(self, folder: str) -> None:
        """Plan to remove what is in a folder that is put aside."""
        waiting = [folder]
        while waiting:
            top = waiting.pop()
            self._open_up(join(top, ROOT))
            for path in inside(self._tree.folder, top):
                if self._is_excluded(path):
                    continue  # goes with its folder
                current = self.look(path)
                self.undo.changes.append(Change(path, current, None))
                if current is not None and current.kind is Kind.FOLDER:
                    waiting.append(path)

    def settle_folders(self, is_used: Callable[[str], bool], *, is_conflict: bool) -> None:
        """Leave folders that would be removed, but hold something that would not, or are used by a step at work."""
        by_path = {change.path: change for change in self.undo.changes}
        self.undo.changes = list(by_path.values())  # what was in a folder that is put aside may be there twice
        gone = {change.path for change in self.undo.changes if is_going(change)}
        for change in sorted(self.undo.changes, key=lambda each: each.path, reverse=True):
            if not is_going(change) or change.before is None or change.before.kind is not Kind.FOLDER:
                continue
            self._open_up(join(change.path, ROOT))
            more = [] if is_repository(change.path) else self._more(change.path, gone)
            if more and is_conflict and self.overwrite and not is_used(change.path):
                self.undo.conflicts.append(change.path)
                self._overwrite_all(more, gone)
            elif more or (is_used(change.path) and not is_repository(change.path)):
                gone.discard(change.path)
                (self.undo.conflicts if is_conflict else self.undo.kept).append(change.path)
                self._left.add(change.path)
        self._leave_what_has_no_place()
        self.undo.left = [path for path in self.undo.conflicts if path in self._left]
        self.undo.changes = [each for each in self.undo.changes if each.path not in self._left]

    def _leave_what_has_no_place(self) -> None:
        """What was in a folder cannot go back there as long as something else is in the folder's place."""
        for change in self.undo.changes if self._in_the_way else ():
            if change.path not in self._left and not self._in_the_way.isdisjoint(ancestors(change.path)):
                self._conflict(change.path)

    def _more(self, folder: str, gone: Container[str]) -> list[str]:
        """What is in a folder and would stay."""
        found = inside(self._tree.folder, folder)
        return [path for path in found if path not in gone and not self._is_excluded(path)]

    def _overwrite_all(self, paths: Iterable[str], gone: set[str]) -> None:
        """Put aside what somebody else has put into a folder that goes."""
        known = len(self.undo.changes)
        for path in paths:
            self._overwritten(path, self.look(path), None)
        gone.update(change.path for change in self.undo.changes[known:])

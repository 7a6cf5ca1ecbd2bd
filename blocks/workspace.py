"""The workspace: every effect on its files is journaled here, then done, and can be undone.

Two kinds of step change it. One that works on an overlay hands over its changes: `apply` makes INTENTs durable and then
does them. One that acts by itself (a script, git) is watched: `capture` makes durable everything that it may change,
`finish` takes the difference afterwards and journals it. `undo` puts either kind back, as absolute states, so that it
can be repeated; a path that somebody else has changed since is left alone and reported.

Invariant: nothing that a run changes is touched before the journal could put it back. Steps that run at once touch
different paths (the plan sees to it); making and removing the folders above them is the one thing that they share, and
the reason for the mutex. Every step that uses a folder which the run has made *claims* it, by an effect of its own: the
folder goes when the last step that claims it is undone.

It must not know operations, plans or Prefect.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantum_orchestrator.blocks.confined import ConfinedFolder, is_temporary
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.journal import Effect, EffectState, Journal
from quantum_orchestrator.blocks.tree import (
    ROOT,
    Change,
    Entry,
    Kind,
    ancestors,
    changed_meanwhile,
    digest,
    file_entry,
    folders_above,
    is_within,
    join,
    not_a_file,
    not_a_folder,
    parent,
)

GIT = ".git"
GIT_OBJECTS = ".git/objects"
SETTLED_NANOSECONDS = 50_000_000
"""A file younger than this may change again within one tick of the clock: its digest is not remembered."""

OWNER_WRITES = 0o700
"""Bits without which a folder's owner can neither list nor change it."""

ContentOf = Callable[[str], bytes]


def current_umask() -> int:
    """The process's umask (Linux gives it without the race of setting it)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


class DiskTree:
    """A folder on disk as a Tree."""

    def __init__(self, folder: ConfinedFolder, umask: int | None = None) -> None:
        self.folder = folder
        self.umask = current_umask() if umask is None else umask

    def kind(self, path: str) -> Kind | None:
        """See Tree."""
        found = self._lstat(path)
        return None if found is None else _kind_of(found)

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        found = self._lstat(path)
        if found is None:
            return None
        kind, mode = _kind_of(found), stat.S_IMODE(found.st_mode)
        if kind is Kind.FILE:
            return file_entry(self.read(path), mode)
        if kind is Kind.LINK:
            with readable_errors("read", path):
                return Entry(kind, 0o777, target=self.folder.readlink(path))
        return Entry(kind, mode)

    def read(self, path: str) -> bytes:
        """See Tree."""
        found = self.kind(path)
        if found is not Kind.FILE:
            raise not_a_file(path, found)
        with readable_errors("read", path):
            return self.folder.read(path)

    def names(self, path: str) -> list[str]:
        """See Tree."""
        found = self.kind(path)
        if found is not Kind.FOLDER:
            raise not_a_folder(path, found)
        with readable_errors("list", path):
            return sorted(name for name in self.folder.names(path) if not is_temporary(name))

    def _lstat(self, path: str) -> os.stat_result | None:
        with readable_errors("look at", path):
            return self.folder.lstat(path)


def _kind_of(found: os.stat_result) -> Kind:
    kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK}
    return kinds.get(stat.S_IFMT(found.st_mode), Kind.SPECIAL)


@contextlib.contextmanager
def readable_errors(what: str, path: str) -> Iterator[None]:
    """Turn an OSError into an OperationError that says what could not be done, where and why."""
    try:
        yield
    except OSError as error:
        raise OperationError(
            f"{path}: cannot {what} it: {error.strerror or error}",
            hint="check the space left, the permissions and the quota there",
        ) from error


@dataclass(slots=True)
class Undo:
    """What putting things back means now."""

    changes: list[Change] = field(default_factory=list)
    """From what is there to what was there."""
    conflicts: list[str] = field(default_factory=list)
    """Paths that somebody else has changed since: they stay as they are."""
    kept: list[str] = field(default_factory=list)
    """Folders that one step made and another one uses."""
    effects: list[Effect] = field(default_factory=list)
    """The journal's effects that are undone by this."""
    lasting: list[Effect] = field(default_factory=list)
    """Those that made the folders that are kept."""


class Workspace:
    """A folder whose effects are journaled. Any number of a run's steps may use it at once."""

    def __init__(self, root: Path, journal: Journal, exclude: Sequence[str] = ()) -> None:
        """`exclude` are names (with wildcards) of folders and files that captures leave out: caches, for instance."""
        self.root = root
        self.journal = journal
        self.exclude = tuple(exclude)
        self.folder = ConfinedFolder.open(root)
        self.tree = DiskTree(self.folder)
        self._mutex = threading.RLock()
        self._makers = _Makers(journal)
        self._areas: dict[str, list[str]] = {}  # of the last capture, by step
        self._at_work: set[str] = set()  # steps between their capture and its end

    def close(self) -> None:
        """Close the folder; the journal is its owner's."""
        self.folder.close()

    # Effects that are known before they happen.

    def apply(self, run_id: str, step_id: str, changes: Sequence[Change], content_of: ContentOf) -> None:
        """Journal the changes, then do them. Raises OperationError; `undo` then puts back what was done."""
        if not changes:
            return
        with self._mutex:
            changes = self._as_it_is_now(changes)
            changes = [*self._claims(run_id, step_id, changes), *changes]
            self.journal.intend(run_id, step_id, changes, self._contents(changes, content_of))
            self._makers.note(run_id, step_id, changes)
            self._make_so(changes, content_of)

    def _as_it_is_now(self, changes: Sequence[Change]) -> list[Change]:
        """The same changes, with the folders that another step took away meanwhile. Raises OperationError where
        something is not as the step found it, but for folders that both make."""
        named = {change.path for change in changes}
        above = folders_above(change.path for change in changes if change.after is not None)
        missing = [folder for folder in sorted(above - named) if self.tree.kind(folder) is None]
        for change in changes:
            if self.tree.entry(change.path) != change.before and not self._is_made_already(change):
                raise changed_meanwhile(change.path)
        made = [Change(folder, None, Entry(Kind.FOLDER, 0o777 & ~self.tree.umask)) for folder in missing]
        return [*made, *changes]

    def _is_made_already(self, change: Change) -> bool:
        return _is_making(change) and self.tree.kind(change.path) is Kind.FOLDER

    def _claims(self, run_id: str, step_id: str, changes: Sequence[Change]) -> list[Change]:
        """The folders above the changes that other steps of the run have made."""
        named = {change.path for change in changes}
        above = folders_above(change.path for change in changes if change.after is not None)
        shared = sorted(folder for folder in above - named if self._makers.others(run_id, folder, {step_id}))
        found = [(folder, self.tree.entry(folder)) for folder in shared]
        return [Change(folder, None, entry) for folder, entry in found if entry and entry.kind is Kind.FOLDER]

    def _contents(self, changes: Sequence[Change], content_of: ContentOf) -> Callable[[str], bytes | None]:
        """Where the journal finds contents: before-images on disk (proved by digest), the rest in the overlay."""
        places = {c.before.sha256: c.path for c in changes if c.before is not None and c.before.kind is Kind.FILE}

        def content(sha256: str) -> bytes | None:
            if self.journal.has_content(sha256):
                return None
            if sha256 not in places:
                return content_of(sha256)
            found = self.tree.read(places[sha256])
            if digest(found) != sha256:
                raise changed_meanwhile(places[sha256])
            return found

        return content

    def _make_so(self, changes: Sequence[Change], content_of: ContentOf) -> None:
        """Bring every path to its `after`: removals from the leaves up, then folders, then what is in them."""
        ordered = sorted(changes, key=lambda each: each.path)
        for change in reversed(ordered):
            if change.before is not None and (change.after is None or change.after.kind is not change.before.kind):
                with readable_errors("delete", change.path):
                    self._remove(change.path, change.before.kind)
        folders = [(each.path, each.after) for each in ordered if each.after and each.after.kind is Kind.FOLDER]
        made = [path for path, after in folders if self._make_folder(path, after.mode | OWNER_WRITES)]
        for change in ordered:
            if change.after is not None and change.after.kind is not Kind.FOLDER:
                with readable_errors("write", change.path):
                    self._put(change.path, change.before, change.after, content_of)
        shared = {change.path for change in changes if _is_making(change)} - set(made)
        for path, after in reversed(folders):  # last, as a folder may end up read-only
            if path not in shared:  # whoever made it has set its mode
                self._set_mode(path, after.mode)

    def _make_folder(self, path: str, mode: int) -> bool:
        with readable_errors("make", path):
            return self.folder.mkdir(path, mode)

    def _set_mode(self, path: str, mode: int) -> None:
        with readable_errors("change the mode of", path):
            found = self.folder.lstat(path)
            if found is None or stat.S_IMODE(found.st_mode) != mode:
                self.folder.chmod(path, mode)

    def _put(self, path: str, before: Entry | None, after: Entry, content_of: ContentOf) -> None:
        if after.kind is Kind.LINK:
            if before is not None and before.kind is Kind.LINK:
                self.folder.unlink(path)
            self.folder.symlink(path, after.target)
        elif before is not None and before.kind is Kind.FILE and before.sha256 == after.sha256:
            self.folder.chmod(path, after.mode)
        else:
            self.folder.write(path, content_of(after.sha256), after.mode)

    def _remove(self, path: str, kind: Kind) -> None:
        if kind is not Kind.FOLDER:
            self.folder.unlink(path)
            return
        for name in self.folder.names(path):
            inner = join(path, name)
            if _is_repository(path) or is_temporary(name):  # a repository's objects are not captured: they go with it
                self._remove_all(inner)
        self.folder.rmdir(path)

    def _remove_all(self, top: str) -> None:
        """Remove what is at a path, whatever it is, with all that is in it."""
        found, waiting = [top], [top]
        while waiting:
            path = waiting.pop()
            if self.tree.kind(path) is Kind.FOLDER:
                inside = [join(path, name) for name in self.folder.names(path)]
                found += inside
                waiting += inside
        for path in reversed(found):
            if self.tree.kind(path) is Kind.FOLDER:
                self.folder.rmdir(path)
            else:
                self.folder.unlink(path)

    # Effects that are known only afterwards.

    def capture(self, run_id: str, step_id: str, areas: Iterable[str]) -> None:
        """Make durable all that is in the areas (paths, and everything below them), before a step acts by itself."""
        areas = _outermost(areas)
        with self._mutex:
            scan = self._scan(areas, before=True)
            self.journal.capture(run_id, step_id, areas, scan.manifest, scan.contents, scan.stamps)
            self._areas[step_id] = areas
            self._at_work.add(step_id)

    def finish(self, run_id: str, step_id: str) -> list[Change]:
        """Journal what has changed since the capture, and give it; the step's effects are then like any other's."""
        captures = self.journal.captured(run_id)
        if step_id not in captures:
            return []
        areas, before = captures[step_id]
        with self._mutex:  # or a folder that another step is making would be half made
            scan = self._scan(areas, before=False)
            paths = sorted(before.keys() | scan.manifest.keys())
            changes = _without_unused_folders(
                areas,
                [
                    Change(path, before.get(path), scan.manifest.get(path))
                    for path in paths
                    if before.get(path) != scan.manifest.get(path)
                ],
            )
            claims = self._claims(run_id, step_id, changes)
            self.journal.intend(run_id, step_id, [*claims, *changes], scan.contents.get)
            self.journal.drop_capture(run_id, step_id)
            self._at_work.discard(step_id)
            self._makers.note(run_id, step_id, [*claims, *changes])
        return changes

    def _scan(self, areas: Sequence[str], *, before: bool) -> _Scan:
        with self._opened_up() as open_up:
            scan = _Scan(self, self.journal.known_digests(), open_up, before=before)
            for area in areas:
                for path in [*ancestors(area), area]:
                    scan.look(path)
                scan.look_below(area)
        return scan

    def is_excluded(self, path: str) -> bool:
        """Whether captures leave a path out."""
        name = path.rpartition("/")[2]
        if is_temporary(name) or path == GIT_OBJECTS or path.endswith("/" + GIT_OBJECTS):
            return True
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)

    # Undo.

    def undo(self, run_id: str, step_ids: str | Collection[str] | None = None) -> Undo:
        """Put back what a run, or some of its steps, have changed. May be repeated; needs no memory of the run.

        A folder that the steps made and that another step uses stays until that one is undone.
        """
        with self._mutex:
            undo = self.plan_undo(run_id, step_ids)
            with self._opened_up({change.path for change in undo.changes}) as open_up:
                for change in undo.changes:
                    open_up(join(change.path, ROOT) if _is_going(change) else change.path)
                self._remove_leftovers(undo)
                self._make_so(undo.changes, self.journal.content)
            self.journal.mark_undone(undo.effects, undo.lasting)
            self._makers.forget(run_id, undo.effects, undo.lasting)
            return undo

    def plan_undo(self, run_id: str, step_ids: str | Collection[str] | None = None) -> Undo:
        """What `undo` would do now. Only the journal is written: a step that was cut short gets its effects."""
        chosen = {step_ids} if isinstance(step_ids, str) else None if step_ids is None else set(step_ids)
        with self._mutex:
            for captured in self.journal.steps_captured(run_id):
                if chosen is None or captured in chosen:
                    self.finish(run_id, captured)
            histories = _histories(self.journal.effects(run_id, chosen))
            if chosen is not None:
                areas = [area for step_id in chosen for area in self._areas.get(step_id, ())]
                histories = self._kept_above(run_id, [*histories, *areas]) | histories
            undo = Undo()
            with self._opened_up() as open_up:
                for path, history in sorted(histories.items()):
                    if chosen is None or not self._is_claimed(run_id, path, history, chosen):
                        open_up(path)
                        self._plan_path(path, history, undo)
                self._keep_full_folders(undo, open_up, is_conflict=chosen is None)
            left = {*undo.conflicts, *undo.kept}
            undo.effects = [effect for path, history in histories.items() if path not in left for effect in history]
            undo.lasting = [effect for path in undo.kept for effect in histories[path]]
            return undo

    def _kept_above(self, run_id: str, paths: Iterable[str]) -> dict[str, list[Effect]]:
        """The folders above these paths whose makers are undone: they may go now."""
        folders = folders_above(paths) & self._makers.kept(run_id)
        if not folders:
            return {}
        return _histories(
            [
                effect
                for effect in self.journal.effects(run_id)
                if effect.state is EffectState.KEPT and effect.change.path in folders
            ]
        )

    def _is_claimed(self, run_id: str, path: str, history: Sequence[Effect], undone: set[str]) -> bool:
        """Whether it is a folder that these steps made, and that others claim."""
        return _is_making(history[0].change) and self._makers.others(run_id, path, undone)

    def _plan_path(self, path: str, history: Sequence[Effect], undo: Undo) -> None:
        """From what is at the path now to what was there before, unless what is there is somebody else's."""
        current, first = self._reachable_entry(path), history[0].change.before
        if current == first:
            return
        if first is not None and first.kind is Kind.SPECIAL:
            undo.conflicts.append(path)  # a FIFO or a device cannot be made anew
        elif _is_ours(current, history) or _changes_by_looking(path):
            undo.changes.append(Change(path, current, first))
            if current is None and _is_repository(path):
                undo.conflicts.append(join(path, "objects"))  # not captured: what it held is lost
        else:
            undo.conflicts.append(path)

    def _reachable_entry(self, path: str) -> Entry | None:
        """What is at the path; where a link has come on the way, something that is nothing of ours."""
        try:
            found = self.folder.lstat(path)
        except PathRefused:
            return Entry(Kind.SPECIAL, 0, target="unreachable")
        except PermissionError:  # what is in a folder that nobody may look into is seen once that is put back
            return Entry(Kind.SPECIAL, 0, target="unreachable")
        return None if found is None else _entry_or_stamp(self.tree, path, found)

    def _keep_full_folders(self, undo: Undo, open_up: Callable[[str], None], *, is_conflict: bool) -> None:
        """Leave folders that would be removed, but hold something that would not."""
        gone = {change.path for change in undo.changes if _is_going(change)}
        for change in sorted(undo.changes, key=lambda each: each.path, reverse=True):
            if not _is_going(change) or change.before is None or change.before.kind is not Kind.FOLDER:
                continue
            open_up(join(change.path, ROOT))
            if not _is_repository(change.path) and (self._holds_more(change.path, gone) or self._is_used(change.path)):
                gone.discard(change.path)
                (undo.conflicts if is_conflict else undo.kept).append(change.path)
        left = {*undo.conflicts, *undo.kept}
        undo.changes = [each for each in undo.changes if each.path not in left]

    def _is_used(self, folder: str) -> bool:
        """Whether a step at work counts on the folder: it may have found it there, and nobody could tell."""
        return any(is_within(area, folder) for step_id in self._at_work for area in self._areas[step_id])

    def _holds_more(self, folder: str, gone: set[str]) -> bool:
        inside = [join(folder, name) for name in self.folder.names(folder)]
        return any(path not in gone and not self.is_excluded(path) for path in inside)

    def _remove_leftovers(self, undo: Undo) -> None:
        """Remove what no capture holds: the caches in folders that go, and temporary files of a killed process."""
        for change in undo.changes:
            if _is_going(change) and change.before is not None and change.before.kind is Kind.FOLDER:
                inside = [join(change.path, name) for name in self.folder.names(change.path)]
                for path in filter(self.is_excluded, inside):
                    self._remove_all(path)
        for folder in {parent(each.change.path) for each in undo.effects if each.state is EffectState.INTENT}:
            if self.tree.kind(folder) is Kind.FOLDER:
                for name in filter(is_temporary, self.folder.names(folder)):
                    self.folder.unlink(join(folder, name))

    @contextlib.contextmanager
    def _opened_up(self, changed: Collection[str] = ()) -> Iterator[Callable[[str], None]]:
        """Gives a function that opens the folders above a path to their owner, who is not root, until the end.

        What a step did to a folder's mode may neither hide what else it did nor keep it from being undone. The modes
        of `changed` paths are the caller's matter.
        """
        modes: dict[str, int] = {}
        seen: set[str] = set()
        is_needed = os.geteuid() != 0

        def open_up(path: str) -> None:
            unseen = []
            while is_needed and (path := parent(path)) != ROOT and path not in seen:
                unseen.append(path)
                seen.add(path)
            for folder in reversed(unseen):
                self._open_folder(folder, modes)

        try:
            yield open_up
        finally:
            for folder in [each for each in reversed(modes) if each not in changed]:
                found = self.folder.lstat(folder)
                if found is not None and stat.S_IMODE(found.st_mode) == modes[folder] | OWNER_WRITES:
                    self._set_mode(folder, modes[folder])

    def _open_folder(self, folder: str, modes: dict[str, int]) -> None:
        found = self.folder.lstat(folder)
        if found is None or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        mode = stat.S_IMODE(found.st_mode)
        if mode & OWNER_WRITES != OWNER_WRITES:
            self.folder.chmod(folder, mode | OWNER_WRITES)
            modes[folder] = mode


def _is_making(change: Change) -> bool:
    """Whether it makes a folder where nothing was."""
    return change.before is None and change.after is not None and change.after.kind is Kind.FOLDER


def _is_going(change: Change) -> bool:
    """Whether what was there is not there afterwards."""
    return change.before is not None and (change.after is None or change.after.kind is not change.before.kind)


def _is_ours(current: Entry | None, history: Sequence[Effect]) -> bool:
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


def _without_unused_folders(areas: Sequence[str], changes: Sequence[Change]) -> list[Change]:
    """Without the folders above the areas that have come while the step made nothing in them: another made them."""
    used = folders_above(each.path for each in changes if any(is_within(each.path, area) for area in areas))
    above = folders_above(areas)
    return [each for each in changes if not (_is_making(each) and each.path in above - used)]


class _Makers:
    """Which steps of a run claim the folders that it has made: the journal's effects, kept at hand."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._run = ""
        self._steps: dict[str, set[str]] = {}
        self._kept: set[str] = set()

    def others(self, run_id: str, folder: str, steps: set[str]) -> bool:
        """Whether a step other than these claims the folder."""
        self._load(run_id)
        return not self._steps.get(folder, set()) <= steps

    def kept(self, run_id: str) -> set[str]:
        """The folders whose makers are undone."""
        self._load(run_id)
        return self._kept

    def note(self, run_id: str, step_id: str, changes: Iterable[Change]) -> None:
        """Changes that have been journaled."""
        if self._run == run_id:
            for change in changes:
                self._add(change, step_id)

    def forget(self, run_id: str, undone: Iterable[Effect], kept: Iterable[Effect]) -> None:
        """Effects that have been undone, and those whose steps have been."""
        self._load(run_id)
        for effect in (*undone, *kept):
            if _is_making(effect.change):
                self._steps.get(effect.change.path, set()).discard(effect.step)
                self._kept.discard(effect.change.path)
            elif effect.change.before is not None and effect.change.before.kind is Kind.FOLDER:
                self._run = ""  # what was deleted is claimed again by whoever had made it
        self._kept.update(effect.change.path for effect in kept)

    def _load(self, run_id: str) -> None:
        if self._run == run_id:
            return
        self._run, self._steps, self._kept = run_id, {}, set()
        for effect in self._journal.effects(run_id):
            if effect.state is EffectState.KEPT:
                self._kept.add(effect.change.path)
            else:
                self._add(effect.change, effect.step)

    def _add(self, change: Change, step: str) -> None:
        if _is_making(change):
            self._steps.setdefault(change.path, set()).add(step)
        elif change.after is None or change.after.kind is not Kind.FOLDER:
            self._steps.pop(change.path, None)


def _is_repository(path: str) -> bool:
    return path == GIT or path.endswith("/" + GIT)


def _changes_by_looking(path: str) -> bool:
    """Whether a mere `git status` rewrites the file: its content is a cache of the tree's."""
    return path.endswith(".git/index")


def _histories(effects: Sequence[Effect]) -> dict[str, list[Effect]]:
    """Effects by path, in the order of writing."""
    histories: dict[str, list[Effect]] = {}
    for effect in effects:
        histories.setdefault(effect.change.path, []).append(effect)
    return histories


def _outermost(areas: Iterable[str]) -> list[str]:
    """The areas that no other one holds."""
    kept: list[str] = []
    for area in sorted(set(areas), key=lambda each: (each != ROOT, each.count("/"), each)):
        if not any(is_within(area, outer) for outer in kept):
            kept.append(area)
    return kept


class _Scan:
    """One look at some areas: what is there, and the contents that the journal does not have yet."""

    def __init__(
        self,
        workspace: Workspace,
        known: dict[str, tuple[str, str]],
        open_up: Callable[[str], None],
        *,
        before: bool,
    ) -> None:
        self.manifest: dict[str, Entry] = {}
        self.contents: dict[str, bytes] = {}
        self.stamps: dict[str, tuple[str, str]] = {}
        self._workspace = workspace
        self._known = known
        self._open_up = open_up
        self._before = before

    def look(self, path: str) -> None:
        """Note what is at a path."""
        if path == ROOT or path in self.manifest:
            return
        self._open_up(path)
        found = self._workspace.folder.lstat(path)
        entry = None if found is None else self._entry(path, found)
        if entry is not None:
            self.manifest[path] = entry

    def look_below(self, top: str) -> None:
        """Note everything below a path, without what is excluded."""
        waiting = [top]
        while waiting:
            for path in self._inside(waiting.pop()):
                self.look(path)
                if path in self.manifest and self.manifest[path].kind is Kind.FOLDER:
                    waiting.append(path)

    def _inside(self, folder: str) -> list[str]:
        """The paths in a folder; none if it has gone meanwhile, is no folder, or may not be looked into."""
        if self._workspace.tree.kind(folder) is not Kind.FOLDER:
            return []
        self._open_up(join(folder, ROOT))
        try:
            names = self._workspace.folder.names(folder)
        except (FileNotFoundError, PermissionError, PathRefused):
            return []
        return [path for name in names if not self._workspace.is_excluded(path := join(folder, name))]

    def _entry(self, path: str, found: os.stat_result) -> Entry | None:
        if not stat.S_ISREG(found.st_mode):
            return _entry_or_stamp(self._workspace.tree, path, found)
        stamp = _stamp(found)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return Entry(Kind.FILE, stat.S_IMODE(found.st_mode), known[1], found.st_size)
        try:
            content = self._workspace.tree.read(path)
        except OperationError:
            return _entry_or_stamp(self._workspace.tree, path, found)
        entry = file_entry(content, stat.S_IMODE(found.st_mode))
        # Afterwards a repository's own files need no content: nothing ever goes back to them.
        if (self._before or GIT not in path.split("/")) and not self._workspace.journal.has_content(entry.sha256):
            self.contents[entry.sha256] = content
        if self._before and time.time_ns() - found.st_ctime_ns > SETTLED_NANOSECONDS:
            self.stamps[path] = (stamp, entry.sha256)
        return entry


def _stamp(found: os.stat_result) -> str:
    """Changes whenever a file does."""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _entry_or_stamp(tree: DiskTree, path: str, found: os.stat_result) -> Entry | None:
    """What is at a path. One that may not be read is like a device: known by its stamp, and cannot be made anew."""
    try:
        return tree.entry(path)
    except OperationError:
        if tree.kind(path) is None:
            return None  # it has gone since
        return Entry(Kind.SPECIAL, stat.S_IMODE(found.st_mode), target=_stamp(found))

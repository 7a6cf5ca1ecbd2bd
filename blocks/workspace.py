"""The workspace: every effect on its files is journaled here, then done, and can be undone.

Two kinds of step change it. One that works on an overlay hands over its changes: `apply` makes INTENTs durable and then
does them. One that acts by itself (a script, git) is watched: `capture` makes durable everything that it may change,
`finish` takes the difference afterwards and journals it. `undo` puts either kind back, as absolute states, so that it
can be repeated; a path that somebody else has changed since is left alone and reported.

Invariant: nothing that a run changes is touched before the journal could put it back. Steps that run at once touch
different paths (the plan sees to it); making and removing the folders above them is the one thing that they share, and
the reason for the mutex.

It must not know operations, plans or Prefect.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantum_orchestrator.blocks.confined import ConfinedFolder, is_temporary
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.journal import Effect, Journal
from quantum_orchestrator.blocks.tree import (
    ROOT,
    Change,
    Entry,
    Kind,
    ancestors,
    digest,
    file_entry,
    is_within,
    join,
    not_a_file,
    not_a_folder,
)

GIT = ".git"
GIT_OBJECTS = ".git/objects"
SETTLED_NANOSECONDS = 50_000_000
"""A file younger than this may change again within one tick of the clock: its digest is not remembered."""

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
            self.journal.intend(run_id, step_id, changes, self._contents(changes, content_of))
            self._make_so(changes, content_of)

    def _as_it_is_now(self, changes: Sequence[Change]) -> list[Change]:
        """The same changes less the folders that another step has made meanwhile, and with those it took away."""
        named = {change.path for change in changes}
        missing = {
            folder
            for change in changes
            if change.after is not None
            for folder in ancestors(change.path)
            if folder not in named and self.tree.kind(folder) is None
        }
        made = [Change(folder, None, Entry(Kind.FOLDER, 0o777 & ~self.tree.umask)) for folder in sorted(missing)]
        return [*made, *(change for change in changes if not self._is_made_already(change))]

    def _is_made_already(self, change: Change) -> bool:
        is_new_folder = change.before is None and change.after is not None and change.after.kind is Kind.FOLDER
        return is_new_folder and self.tree.kind(change.path) is Kind.FOLDER

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
                raise OperationError(
                    f"{places[sha256]}: somebody else changed it while the step was at work",
                    hint="nothing was overwritten; run the set again",
                )
            return found

        return content

    def _make_so(self, changes: Sequence[Change], content_of: ContentOf) -> None:
        """Bring every path to its `after`: removals from the leaves up, then folders, then what is in them."""
        for change in sorted(changes, key=lambda each: each.path, reverse=True):
            if change.before is not None and (change.after is None or change.after.kind is not change.before.kind):
                with readable_errors("delete", change.path):
                    self._remove(change.path, change.before.kind)
        ordered = sorted(changes, key=lambda each: each.path)
        folders = [each for each in ordered if each.after is not None and each.after.kind is Kind.FOLDER]
        for change in folders:
            with readable_errors("make", change.path):
                self.folder.mkdir(change.path, 0o700)
        for change in ordered:
            if change.after is not None and change.after.kind is not Kind.FOLDER:
                with readable_errors("write", change.path):
                    self._put(change.path, change.before, change.after, content_of)
        for change in reversed(folders):  # last, as a folder may end up read-only
            if change.after is not None:
                with readable_errors("change the mode of", change.path):
                    self.folder.chmod(change.path, change.after.mode)

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
        if _is_repository(path):
            self._remove_all_in(path)  # a repository's objects are not captured: they go with it
        self.folder.rmdir(path)

    def _remove_all_in(self, path: str) -> None:
        for name in self.folder.names(path):
            inner = join(path, name)
            found = self.folder.lstat(inner)
            if found is not None and stat.S_ISDIR(found.st_mode):
                self._remove_all_in(inner)
                self.folder.rmdir(inner)
            else:
                self.folder.unlink(inner)

    # Effects that are known only afterwards.

    def capture(self, run_id: str, step_id: str, areas: Iterable[str]) -> None:
        """Make durable all that is in the areas (paths, and everything below them), before a step acts by itself."""
        areas = _outermost(areas)
        scan = self._scan(areas, before=True)
        self.journal.capture(run_id, step_id, areas, scan.manifest, scan.contents, scan.stamps)

    def finish(self, run_id: str, step_id: str) -> list[Change]:
        """Journal what has changed since the capture, and give it; the step's effects are then like any other's."""
        captures = self.journal.captured(run_id)
        if step_id not in captures:
            return []
        areas, before = captures[step_id]
        scan = self._scan(areas, before=False)
        paths = sorted(before.keys() | scan.manifest.keys())
        changes = [
            Change(path, before.get(path), scan.manifest.get(path))
            for path in paths
            if before.get(path) != scan.manifest.get(path)
        ]
        self.journal.intend(run_id, step_id, changes, scan.contents.get)
        self.journal.drop_capture(run_id, step_id)
        return changes

    def _scan(self, areas: Sequence[str], *, before: bool) -> _Scan:
        scan = _Scan(self, self.journal.known_digests(), before=before)
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

    def undo(self, run_id: str, step_id: str | None = None) -> Undo:
        """Put back what a run, or one of its steps, has changed. May be repeated; needs no memory of the run.

        A folder that the step made and that holds another step's files stays until the whole run is undone.
        """
        with self._mutex:
            undo = self.plan_undo(run_id, step_id)
            self._make_so(undo.changes, self.journal.content)
            self.journal.mark_undone(undo.effects)
            return undo

    def plan_undo(self, run_id: str, step_id: str | None = None) -> Undo:
        """What `undo` would do now. Only the journal is written: a step that was cut short gets its effects."""
        with self._mutex:
            for captured in self.journal.captured(run_id):
                if step_id in (None, captured):
                    self.finish(run_id, captured)
            histories = _histories(self.journal.effects(run_id, step_id))
            undo = Undo()
            for path, history in histories.items():
                self._plan_path(path, history, undo)
            self._keep_full_folders(undo, is_conflict=step_id is None)
            left = {*undo.conflicts, *undo.kept}
            undo.effects = [effect for path, history in histories.items() if path not in left for effect in history]
            return undo

    def _plan_path(self, path: str, history: Sequence[Effect], undo: Undo) -> None:
        """From what is at the path now to what was there before, unless what is there is somebody else's."""
        current, first = self._reachable_entry(path), history[0].change.before
        states = [state for each in history for state in (each.change.before, each.change.after)]
        if current == first:
            return
        if first is not None and first.kind is Kind.SPECIAL:
            undo.conflicts.append(path)  # a FIFO or a device cannot be made anew
        elif current in states or _changes_by_looking(path):
            undo.changes.append(Change(path, current, first))
        else:
            undo.conflicts.append(path)

    def _reachable_entry(self, path: str) -> Entry | None:
        """What is at the path; where a link has come on the way, something that is nothing of ours."""
        try:
            return self.tree.entry(path)
        except PathRefused:
            return Entry(Kind.SPECIAL, 0, target="unreachable")

    def _keep_full_folders(self, undo: Undo, *, is_conflict: bool) -> None:
        """Leave folders that would be removed, but hold something that would not."""
        gone = {change.path for change in undo.changes if change.after is None}
        for change in sorted(undo.changes, key=lambda each: each.path, reverse=True):
            if change.after is not None or change.before is None or change.before.kind is not Kind.FOLDER:
                continue
            if not _is_repository(change.path) and self._holds_more(change.path, gone):
                gone.discard(change.path)
                (undo.conflicts if is_conflict else undo.kept).append(change.path)
        undo.changes = [each for each in undo.changes if each.path not in {*undo.conflicts, *undo.kept}]

    def _holds_more(self, folder: str, gone: set[str]) -> bool:
        return any(join(folder, name) not in gone for name in self.folder.names(folder))


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

    def __init__(self, workspace: Workspace, known: dict[str, tuple[str, str]], *, before: bool) -> None:
        self.manifest: dict[str, Entry] = {}
        self.contents: dict[str, bytes] = {}
        self.stamps: dict[str, tuple[str, str]] = {}
        self._workspace = workspace
        self._known = known
        self._before = before

    def look(self, path: str) -> None:
        """Note what is at a path."""
        if path == ROOT or path in self.manifest:
            return
        found = self._workspace.folder.lstat(path)
        if found is not None:
            self.manifest[path] = self._entry(path, found)

    def look_below(self, path: str) -> None:
        """Note everything below a path, without what is excluded."""
        if self._workspace.tree.kind(path) is not Kind.FOLDER:
            return
        for name in self._workspace.folder.names(path):
            inner = join(path, name)
            if not self._workspace.is_excluded(inner):
                self.look(inner)
                self.look_below(inner)

    def _entry(self, path: str, found: os.stat_result) -> Entry:
        if not stat.S_ISREG(found.st_mode):
            entry = self._workspace.tree.entry(path)
            return entry or Entry(Kind.SPECIAL, 0)
        stamp = f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return Entry(Kind.FILE, stat.S_IMODE(found.st_mode), known[1], found.st_size)
        content = self._workspace.tree.read(path)
        entry = file_entry(content, stat.S_IMODE(found.st_mode))
        # Afterwards a repository's own files need no content: nothing ever goes back to them.
        if (self._before or GIT not in path.split("/")) and not self._workspace.journal.has_content(entry.sha256):
            self.contents[entry.sha256] = content
        if self._before and time.time_ns() - found.st_ctime_ns > SETTLED_NANOSECONDS:
            self.stamps[path] = (stamp, entry.sha256)
        return entry

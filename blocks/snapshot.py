"""A look at parts of a workspace before and after a step that acts by itself: what is there, down to the contents.

Two looks compared are the step's effects. A file whose inode, size and times are as they were when it was hashed is not
read again. Left out are the policy's excluded names (caches), files that a killed write has left, and git's objects,
which `blocks/git_objects.py` keeps; whether a step has touched an excluded cache is told by its times alone.

It reads, and never changes what it looks at. It must not know of runs or of undoing.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quantum_orchestrator.blocks.confined import ConfinedFolder, is_temporary
from quantum_orchestrator.blocks.disk_tree import DiskTree, OpenUp, entry_or_stamp, inside, opened_up, stamp_of
from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.tree import (
    ROOT,
    Change,
    Entry,
    Kind,
    ancestors,
    file_entry,
    folders_above,
    is_within,
    join,
)

GIT = ".git"
SETTLED_NANOSECONDS = 50_000_000
"""A file younger than this may change again within one tick of the clock: its digest is not remembered."""
LARGEST_LOOK = 20_000
"""Entries of excluded caches that are looked at for one step; a change that only lies beyond them is not noticed."""

_COARSE_CLOCK = 5
"""Linux's CLOCK_REALTIME_COARSE, which Python has no name for."""
_OBJECTS = ".git/objects"
_PACKED_REFS = ".git/packed-refs"
_MEANT = re.compile(
    r"(?:HEAD|index|packed-refs|shallow|config(?:\.worktree)?|description|(?:refs|info|hooks)/.*)", re.DOTALL
)


def is_repository(path: str) -> bool:
    """Whether a path has the name of a repository's own folder."""
    return path == GIT or path.endswith("/" + GIT)


def outermost(areas: Iterable[str]) -> list[str]:
    """The areas that no other one holds."""
    kept: list[str] = []
    for area in sorted(set(areas), key=lambda each: (each != ROOT, each.count("/"), each)):
        if not any(is_within(area, outer) for outer in kept):
            kept.append(area)
    return kept


class Exclusions:
    """What looks leave out: names (with wildcards), leftovers of killed writes, and git's objects."""

    def __init__(self, names: Sequence[str]) -> None:
        self._plain = frozenset(each for each in names if not set(each) & set("*?["))
        self._patterns = tuple(each for each in names if each not in self._plain)

    def __call__(self, path: str) -> bool:
        """Whether a path is left out."""
        name = path.rpartition("/")[2]
        if name == "objects" and (path == _OBJECTS or path.endswith("/" + _OBJECTS)):
            return True
        return is_temporary(name) or self.is_cache(path)

    def is_cache(self, path: str) -> bool:
        """Whether it has one of the names. In a repository's own folder those are names of branches and the like."""
        return "/.git/" not in f"/{path}" and self._is_named(path.rpartition("/")[2])

    def _is_named(self, name: str) -> bool:
        return name in self._plain or any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns)


@dataclass(slots=True)
class Snapshot:
    """What a look has found."""

    manifest: dict[str, Entry] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Those that the journal does not have yet, by digest."""
    stamps: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of files that were read: stamp and digest."""
    caches: set[str] = field(default_factory=set)
    """Excluded caches, with nothing of what is in them."""

    @property
    def repositories(self) -> list[str]:
        """The repositories' folders."""
        return [path for path, entry in self.manifest.items() if entry.kind is Kind.FOLDER and is_repository(path)]


def take(tree: DiskTree, journal: Journal, excluded: Exclusions, areas: Sequence[str], *, before: bool) -> Snapshot:
    """Look at the areas (paths, and everything below them) and at the folders above them."""
    with opened_up(tree.folder) as open_up:
        look = _Look(tree, journal, excluded, open_up, before=before)
        for area in areas:
            for path in [*ancestors(area), area]:
                look.at(path)
            look.below(area)
    return look.found


def changes_between(areas: Sequence[str], before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[Change]:
    """What was done in the areas between two looks."""
    paths = sorted(before.keys() | after.keys())
    changes = [Change(path, before.get(path), after.get(path)) for path in paths if before.get(path) != after.get(path)]
    return _without_unused_folders(areas, changes)


def witnesses(changes: Sequence[Change], before: Mapping[str, Entry]) -> list[Change]:
    """The files of packed refs that say where refs were, or are, that have become files or are files no more.

    They are journaled as they are: much later, when git has packed the refs anew, nothing else would say it. So are the
    files of refs where the packed ones have changed: a file goes before what is packed.
    """
    named = {change.path for change in changes}
    repacked = {f"{path[: -len(_PACKED_REFS)]}.git/refs" for path in named if f"/{path}".endswith(f"/{_PACKED_REFS}")}
    found = [
        Change(path, entry, entry)
        for path, entry in (sorted(before.items()) if repacked else ())
        if entry.kind is Kind.FILE and path not in named and any(is_within(path, refs) for refs in repacked)
    ]
    for path in sorted({_packed_refs_of(each.path) for each in changes if None in (each.before, each.after)} - {""}):
        entry = before.get(path)
        if entry is not None and entry.kind is Kind.FILE and path not in named:
            found.append(Change(path, entry, entry))
    return found


def _packed_refs_of(path: str) -> str:
    folder, found, _ = f"/{path}".partition("/.git/refs/")
    return f"{folder}/.git/packed-refs".lstrip("/") if found else ""


def _without_unused_folders(areas: Sequence[str], changes: Sequence[Change]) -> list[Change]:
    """Without the folders above the areas that have come while the step made nothing in them: another made them."""
    above = folders_above(areas)
    used = folders_above(each.path for each in changes if any(is_within(each.path, area) for area in areas))
    unused = above - used
    return [
        each
        for each in changes
        if not (each.path in unused and each.before is None and each.after and each.after.kind is Kind.FOLDER)
    ]


class _Look:
    """One look at some areas."""

    def __init__(
        self, tree: DiskTree, journal: Journal, excluded: Exclusions, open_up: OpenUp, *, before: bool
    ) -> None:
        self.found = Snapshot()
        self._tree = tree
        self._folder = tree.folder
        self._journal = journal
        self._known = journal.known_digests()
        self._excluded = excluded
        self._open_up = open_up
        self._before = before

    def at(self, path: str) -> None:
        """Note what is at a path."""
        if path == ROOT or path in self.found.manifest:
            return
        self._open_up(path)
        found = self._folder.lstat(path)
        entry = None if found is None else self._entry(path, found)
        if entry is not None:
            self.found.manifest[path] = entry

    def below(self, top: str) -> None:
        """Note everything below a path, without what is excluded."""
        waiting = [top]
        while waiting:
            for path in self._inside(waiting.pop()):
                self.at(path)
                if path in self.found.manifest and self.found.manifest[path].kind is Kind.FOLDER:
                    waiting.append(path)

    def _inside(self, folder: str) -> list[str]:
        """The paths in a folder; none if it has gone meanwhile, is no folder, or may not be looked into."""
        if self._tree.kind(folder) is not Kind.FOLDER:
            return []
        self._open_up(join(folder, ROOT))
        try:
            found = inside(self._folder, folder)
        except (FileNotFoundError, PermissionError, PathRefused):
            return []
        kept = [path for path in found if not self._excluded(path)]
        if len(kept) < len(found):
            self.found.caches.update(path for path in set(found).difference(kept) if self._excluded.is_cache(path))
        return kept

    def _entry(self, path: str, found: os.stat_result) -> Entry | None:
        if not stat.S_ISREG(found.st_mode):
            return entry_or_stamp(self._tree, path, found)
        stamp = stamp_of(found)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return Entry(Kind.FILE, stat.S_IMODE(found.st_mode), known[1], found.st_size)
        try:
            content = self._folder.read(path)
        except (OSError, PathRefused):
            return entry_or_stamp(self._tree, path, found)
        entry = file_entry(content, stat.S_IMODE(found.st_mode))
        if (self._before or _is_needed_afterwards(path)) and not self._journal.has_content(entry.sha256):
            self.found.contents[entry.sha256] = content
        if self._before and time.time_ns() - found.st_ctime_ns > SETTLED_NANOSECONDS:
            self.found.stamps[path] = (stamp, entry.sha256)
        return entry


def _is_needed_afterwards(path: str) -> bool:
    """Whether undoing may need to know what a step has left in the file, beyond its digest.

    Of a repository's own files these are the ones that mean something, as refs do, and not those that git leaves about.
    """
    if GIT not in path.split("/"):
        return True
    return _MEANT.fullmatch(f"/{path}".rpartition("/.git/")[2]) is not None


# Caches.


def now() -> int:
    """The present as file times tell it: of the clock that the kernel stamps files by, in nanoseconds."""
    return time.clock_gettime_ns(_COARSE_CLOCK)


def touched_since(folder: ConfinedFolder, caches: Iterable[str], since: int) -> list[str]:
    """Those of the caches that are gone, or in which something has changed its status since.

    A change within the same tick of the kernel's clock (some milliseconds) before counts as one after.
    """
    looks = iter(range(LARGEST_LOOK))
    return [path for path in sorted(caches) if _is_touched(folder, path, since, looks)]


def _is_touched(folder: ConfinedFolder, top: str, since: int, looks: Iterator[int]) -> bool:
    waiting = deque([top])
    while waiting and next(looks, None) is not None:
        path = waiting.popleft()
        try:
            found = folder.lstat(path)
            if found is None or found.st_ctime_ns >= since:
                return True
            if stat.S_ISDIR(found.st_mode):
                waiting.extend(inside(folder, path))
        except (OSError, PathRefused):
            continue  # it goes while it is looked at, or nobody may look: the times above it tell
    return False

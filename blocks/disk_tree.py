"""A folder on disk as a tree of entries: how the product looks at a workspace.

Invariant: looking changes nothing but, until the look is over, the modes of folders that their own owner could not look
into, and never goes by way of a symbolic link. What cannot be read or is no file, folder or link is an entry too: it
can be compared, and neither copied nor made anew. It must not know of journals, runs or repositories.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from quantum_orchestrator.blocks.confined import ConfinedFolder, HeldFolders, is_temporary
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.tree import (
    ROOT,
    Entry,
    Kind,
    file_entry,
    join,
    not_a_file,
    not_a_folder,
    parent,
)

OWNER_WRITES = 0o700
"""Bits without which a folder's owner can neither list nor change it."""

TICK_NS = 50_000_000
"""A file that has changed so shortly before may change again without its times showing it: kernels count in ticks."""

UNREACHABLE = Entry(Kind.SPECIAL, 0, target="unreachable")
"""What stands for a path that cannot be looked at: a link has come on the way, or nobody may look into the folder."""

OpenUp = Callable[[str], None]
"""Opens the folders above a path to their owner."""


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
        return None if found is None else kind_of(found)

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        found = self._lstat(path)
        return None if found is None else self.entry_of(path, found)

    def entry_of(self, path: str, found: os.stat_result) -> Entry:
        """The same, when an lstat has just been made."""
        kind, mode = kind_of(found), stat.S_IMODE(found.st_mode)
        with readable_errors("read", path):
            if kind is Kind.FILE:
                return file_entry(self.folder.read(path), mode)
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


class Look(DiskTree):
    """A folder on disk that is looked at once: for steps that are done together or planned, one after another."""

    LARGEST_KEPT = 256 * 1024
    MOST_KEPT = 64 * 1024 * 1024
    """Bytes of contents, in all; what is over is read again."""

    folder: HeldFolders

    def __init__(self, folder: HeldFolders, umask: int) -> None:
        super().__init__(folder, umask)
        self._since = time.time_ns() - TICK_NS
        self._found: dict[str, os.stat_result | None] = {}
        self._entries: dict[str, Entry] = {}
        self._contents: dict[str, bytes] = {}
        self._room = self.MOST_KEPT

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        found = self._lstat(path)
        if found is None:
            return None
        if path not in self._entries:
            self._entries[path] = self.entry_of(path, found)
        return self._entries[path]

    def entry_of(self, path: str, found: os.stat_result) -> Entry:
        """See DiskTree."""
        if kind_of(found) is Kind.FILE:
            return file_entry(self.read(path), stat.S_IMODE(found.st_mode))
        return super().entry_of(path, found)

    def read(self, path: str) -> bytes:
        """See Tree."""
        content = self._contents.get(path)
        if content is None:
            content = super().read(path)
            if len(content) <= min(self.LARGEST_KEPT, self._room):
                self._contents[path] = content
                self._room -= len(content)
        return content

    def entry_now(self, path: str) -> Entry | None:
        """What is at a path at this moment; it is only read again if it has changed since it was looked at."""
        was, entry = self._found.pop(path, None), self._entries.pop(path, None)
        now = self._lstat(path)
        if entry is not None and was is not None and now is not None and self._is_same(was, now):
            self._entries[path] = entry
            return entry
        self._contents.pop(path, None)
        return self.entry(path)

    def _lstat(self, path: str) -> os.stat_result | None:
        if path not in self._found:
            above = self._found.get(path.rpartition("/")[0], self)
            self._found[path] = None if above is None else super()._lstat(path)
        return self._found[path]

    def _is_same(self, was: os.stat_result, now: os.stat_result) -> bool:
        if stat.S_ISDIR(now.st_mode):
            return was.st_mode == now.st_mode
        return stamp_of(was) == stamp_of(now) and now.st_ctime_ns < self._since


def kind_of(found: os.stat_result) -> Kind:
    """What an lstat says is there."""
    return _KINDS.get(stat.S_IFMT(found.st_mode), Kind.SPECIAL)


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK}


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


def stamp_of(found: os.stat_result) -> str:
    """Changes whenever a file does."""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def entry_or_stamp(tree: DiskTree, path: str, found: os.stat_result) -> Entry | None:
    """What is at a path. One that may not be read is like a device: known by its stamp, and cannot be made anew."""
    try:
        return tree.entry_of(path, found)
    except OperationError:
        if tree.kind(path) is None:
            return None  # it has gone since
        return Entry(Kind.SPECIAL, stat.S_IMODE(found.st_mode), target=stamp_of(found))


def reachable_entry(tree: DiskTree, path: str) -> Entry | None:
    """What is at a path; where it cannot be looked at, something that is nothing of ours."""
    try:
        found = tree.folder.lstat(path)
    except (PathRefused, PermissionError):  # what is in a folder that nobody may look into is seen once that is back
        return UNREACHABLE
    return None if found is None else entry_or_stamp(tree, path, found)


@contextlib.contextmanager
def opened_up(folder: ConfinedFolder, changed: Collection[str] = ()) -> Iterator[OpenUp]:
    """Gives a function that opens the folders above a path to their owner, who is not root, until the end.

    What a step did to a folder's mode may neither hide what else it did nor keep it from being undone. The modes of
    `changed` paths are the caller's matter.
    """
    modes: dict[str, int] = {}
    seen: set[str] = set()
    is_needed = os.geteuid() != 0

    def open_up(path: str) -> None:
        unseen = []
        while is_needed and (path := parent(path)) != ROOT and path not in seen:
            unseen.append(path)
            seen.add(path)
        for above in reversed(unseen):
            _open_folder(folder, above, modes)

    try:
        yield open_up
    finally:
        for path in [each for each in reversed(modes) if each not in changed]:
            found = folder.lstat(path)
            if found is not None and stat.S_IMODE(found.st_mode) == modes[path] | OWNER_WRITES:
                with readable_errors("change the mode of", path):
                    folder.chmod(path, modes[path])


def _open_folder(folder: ConfinedFolder, path: str, modes: dict[str, int]) -> None:
    found = folder.lstat(path)
    if found is None or not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & OWNER_WRITES != OWNER_WRITES:
        folder.chmod(path, mode | OWNER_WRITES)
        modes[path] = mode


def inside(folder: ConfinedFolder, path: str) -> list[str]:
    """The paths in a folder."""
    return [join(path, name) for name in folder.names(path)]

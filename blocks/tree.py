"""A workspace as a tree of entries, and an overlay that records what an operation would change in it.

An operation that works on files never touches the disk: it reads and changes an `Overlay` over a `Tree`. When it
returns, the overlay's `changes()` are its whole effect, known before the first byte is written: `qo plan` stops
there and prints them, a run hands them to the workspace, which journals and then applies them. The prediction and the
run are therefore the same code, and an operation that raises has changed nothing.

Paths are relative to the workspace, with `/` between the parts and `.` for the workspace itself, already judged by
`blocks/paths.py`. This module knows neither the disk, nor the journal, nor operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from quantum_orchestrator.blocks.errors import OperationError, PathRefused

ROOT = "."
DEFAULT_UMASK = 0o022


class Kind(StrEnum):
    """What is at a path. The values are those of the public JSON."""

    FILE = "file"
    FOLDER = "dir"
    LINK = "link"
    SPECIAL = "special"  # FIFO, socket, device: never read, never written


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at a path, by identity: equal entries are indistinguishable to any program that reads them.

    `mode` is the twelve permission bits. `sha256` (lower-case hex) and `size` (bytes) are those of a file's content;
    `target` is a link's text.
    """

    kind: Kind
    mode: int
    sha256: str = ""
    size: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One path before and after; `None` is absence. A file's bytes are in the content store under its digest."""

    path: str
    before: Entry | None
    after: Entry | None


class Tree(Protocol):
    """What operations may look at."""

    @property
    def umask(self) -> int:
        """Permission bits that new files and folders lose."""

    def kind(self, path: str) -> Kind | None:
        """What is at `path`, not following a link; `None` if nothing is. Cheap: no content is read."""

    def entry(self, path: str) -> Entry | None:
        """The same with mode, digest, size and link target. Reads a file's content."""

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises OperationError when `path` is no regular file."""

    def names(self, path: str) -> list[str]:
        """The sorted names in a folder. Raises OperationError when `path` is no folder."""


def digest(content: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(content).hexdigest()


def parent(path: str) -> str:
    """The folder that holds `path`; `.` for a name at the top."""
    return path.rpartition("/")[0] or ROOT


def ancestors(path: str) -> list[str]:
    """The folders above `path`, outermost first, without the workspace itself."""
    above, end = [], path.find("/")
    while end >= 0:
        above.append(path[:end])
        end = path.find("/", end + 1)
    return above


def folders_above(paths: Iterable[str]) -> set[str]:
    """The ancestors of all paths together, each looked at once."""
    found: set[str] = set()
    for path in paths:
        while (path := parent(path)) != ROOT and path not in found:
            found.add(path)
    return found


def join(folder: str, name: str) -> str:
    """`name` in `folder`."""
    return name if folder == ROOT else f"{folder}/{name}"


def is_within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it."""
    return folder == ROOT or path == folder or path.startswith(folder + "/")


def walk(tree: Tree, top: str = ROOT) -> Iterator[str]:
    """Every path below `top`, folders before what is in them, names in order. Links are not followed."""
    waiting = [join(top, name) for name in reversed(tree.names(top))]
    while waiting:  # not by calling itself: folders may be deeper than Python's stack
        path = waiting.pop()
        yield path
        if tree.kind(path) is Kind.FOLDER:
            waiting += [join(path, name) for name in reversed(tree.names(path))]


def file_entry(content: bytes, mode: int) -> Entry:
    """The entry of a file with this content and mode."""
    return Entry(Kind.FILE, mode, digest(content), len(content))


def printable(text: str) -> str:
    """The text in characters that every file and terminal takes: bytes of a name that are not UTF-8 as `\\udc..`."""
    return text.encode(errors="backslashreplace").decode()


def not_a_file(path: str, found: Kind | None) -> OperationError:
    """The error for a path where a file was needed."""
    if found is None:
        return OperationError(f"{path}: no such file", hint="check the path, or write the file in an earlier step")
    nouns = {Kind.FOLDER: "a folder", Kind.LINK: "a symbolic link", Kind.SPECIAL: "not a regular file"}
    return OperationError(f"{path}: is {nouns[found]}, and a file is needed")


def not_a_folder(path: str, found: Kind | None) -> OperationError:
    """The error for a path where a folder was needed."""
    what = "no such folder" if found is None else f"is a {found}, and a folder is needed"
    return OperationError(f"{path}: {what}")


def used_as_a_folder(path: str, part: str, found: Kind) -> PathRefused:
    """The error for a path below something that is no folder: a disk says the same."""
    if found is Kind.LINK:
        hint = "links are never followed; name the file that it leads to, if that is in the workspace"
        return PathRefused(f"{path!r}: {part!r} is a symbolic link", hint=hint)
    return PathRefused(f"{path!r}: {part!r} is not a folder, and is used as one", hint="name a path below a folder")


def changed_meanwhile(path: str) -> OperationError:
    """The error for a path that somebody else changed between a look at it and the change of it."""
    return OperationError(
        f"{path}: somebody else changed it while the step was at work",
        hint="nothing was overwritten; run the set again",
    )


class MemoryTree:
    """A tree in memory: the workspace of tests, and the base of plans that have no disk."""

    def __init__(self, umask: int = DEFAULT_UMASK) -> None:
        self.umask = umask
        self.entries: dict[str, Entry] = {}
        self.contents: dict[str, bytes] = {}

    def kind(self, path: str) -> Kind | None:
        """See Tree."""
        entry = self.entry(path)
        return entry.kind if entry else None

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        if path == ROOT:
            return Entry(Kind.FOLDER, 0o755)
        for folder in ancestors(path):
            above = self.entries.get(folder)
            if above is not None and above.kind is not Kind.FOLDER:
                raise used_as_a_folder(path, folder, above.kind)
        return self.entries.get(path)

    def read(self, path: str) -> bytes:
        """See Tree."""
        entry = self.entry(path)
        if entry is None or entry.kind is not Kind.FILE:
            raise not_a_file(path, entry.kind if entry else None)
        return self.contents[entry.sha256]

    def names(self, path: str) -> list[str]:
        """See Tree."""
        if self.kind(path) is not Kind.FOLDER:
            raise not_a_folder(path, self.kind(path))
        return sorted(each.rpartition("/")[2] for each in self.entries if parent(each) == path)

    def apply(self, changes: list[Change], content_of: Callable[[str], bytes]) -> None:
        """Make the changes real; contents are looked up by digest."""
        for change in changes:
            if change.after is None:
                self.entries.pop(change.path, None)
                continue
            self.entries[change.path] = change.after
            if change.after.kind is Kind.FILE:
                self.contents[change.after.sha256] = content_of(change.after.sha256)


class Overlay:
    """A tree whose changes are kept aside. Every operation that works on files works on one of these."""

    def __init__(self, base: Tree) -> None:
        self.base = base
        self.umask = base.umask
        self._entries: dict[str, Entry | None] = {}
        self._children: dict[str, set[str]] = {}  # names added in a folder, on top of the base's
        self._contents: dict[str, bytes] = {}
        self._before: dict[str, Entry | None] = {}
        self._read: dict[str, str] = {}  # digests of what was read of the base

    # What a Tree has.

    def kind(self, path: str) -> Kind | None:
        """See Tree."""
        if path in self._entries:
            entry = self._entries[path]
            return entry.kind if entry else None
        return self.base.kind(path) if self._shows_through(path) else None

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        if path in self._entries:
            return self._entries[path]
        return self.base.entry(path) if self._shows_through(path) else None

    def _shows_through(self, path: str) -> bool:
        """Whether the base says what is at a path that was not changed: not below a folder that came or went.

        Raises PathRefused below something that is no folder, as the base does.
        """
        for folder in ancestors(path) if self._entries else ():
            if folder in self._entries:
                entry, before = self._entries[folder], self._before[folder]
                if entry is not None and entry.kind is not Kind.FOLDER:
                    raise used_as_a_folder(path, folder, entry.kind)
                if entry is None or before is None or before.kind is not Kind.FOLDER:
                    return False
        return True

    def read(self, path: str) -> bytes:
        """See Tree."""
        entry = self._entries.get(path)
        if entry is not None and entry.kind is Kind.FILE:
            content = self._contents.get(entry.sha256)
            return self.base.read(path) if content is None else content
        if path in self._entries:
            raise not_a_file(path, self.kind(path))
        content = self.base.read(path)
        self._read.setdefault(path, digest(content))
        return content

    def names(self, path: str) -> list[str]:
        """See Tree."""
        if self.kind(path) is not Kind.FOLDER:
            raise not_a_folder(path, self.kind(path))
        names = set(self._children.get(path, ()))
        if self._shows_through(path) and self.base.kind(path) is Kind.FOLDER:
            names.update(self.base.names(path))
        return sorted(name for name in names if self.kind(join(path, name)) is not None)

    # What an operation may do.

    def write(self, path: str, content: bytes, mode: int | None = None) -> None:
        """Make `path` a file with this content, its parents made.

        Without `mode` an existing file keeps its own and a new one gets 0666 less the umask.
        Raises OperationError where a folder, a link or a special file is in the place.
        """
        found = self.kind(path)
        if found not in (None, Kind.FILE):
            raise not_a_file(path, found)
        if mode is None:
            existing = self.entry(path) if found else None
            mode = existing.mode if existing else 0o666 & ~self.umask
        self.make_parents(path)
        entry = file_entry(content, mode)
        self._contents[entry.sha256] = content
        self._set(path, entry)

    def mkdir(self, path: str, mode: int | None = None) -> None:
        """Make a folder, its parents made; an existing folder is fine."""
        found = self.kind(path)
        if found is Kind.FOLDER:
            return
        if found is not None:
            raise not_a_folder(path, found)
        self.make_parents(path)
        self._set(path, Entry(Kind.FOLDER, 0o777 & ~self.umask if mode is None else mode))

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link where nothing is (only to carry on links that the workspace already has)."""
        if self.kind(path) is not None:
            raise OperationError(f"{path}: already exists")
        self.make_parents(path)
        self._set(path, Entry(Kind.LINK, 0o777, target=target))

    def chmod(self, path: str, mode: int) -> None:
        """Set the twelve permission bits of a file or folder."""
        entry = self.entry(path)
        if entry is None or entry.kind not in (Kind.FILE, Kind.FOLDER):
            raise not_a_file(path, entry.kind if entry else None)
        if entry.kind is Kind.FILE:
            self._contents.setdefault(entry.sha256, self.read(path))
        self._set(path, Entry(entry.kind, mode, entry.sha256, entry.size))

    def delete(self, path: str) -> None:
        """Delete a file, a link, or a folder with everything in it."""
        inside = list(walk(self, path)) if self.kind(path) is Kind.FOLDER else []
        for each in (path, *inside):
            if self.kind(each) in (None, Kind.SPECIAL):
                raise not_a_file(each, self.kind(each))  # a FIFO or a socket could not be put back
        for each in (*reversed(inside), path):  # each on its own: the base's entries below must not show through
            self._set(each, None)

    def make_parents(self, path: str) -> None:
        """Make the folders above `path`. Raises OperationError where something else is in the way."""
        for folder in ancestors(path):
            found = self.kind(folder)
            if found is None:
                self._set(folder, Entry(Kind.FOLDER, 0o777 & ~self.umask))
            elif found is not Kind.FOLDER:
                raise not_a_folder(folder, found)

    def apply(self, changes: list[Change], content_of: Callable[[str], bytes]) -> None:
        """Take over what another overlay, over this one, would change."""
        for change in changes:
            if change.after is not None and change.after.kind is Kind.FILE:
                self._contents[change.after.sha256] = content_of(change.after.sha256)
            self._set(change.path, change.after)

    # What the plan and the workspace take from it.

    def changes(self) -> list[Change]:
        """What differs from the base: folders before what is in them, then by path; unchanged paths left out."""
        return [
            Change(path, self._before[path], self._entries[path])
            for path in sorted(self._entries)
            if self._before[path] != self._entries[path]
        ]

    def content_of(self, sha256: str) -> bytes:
        """The bytes of a changed file, by digest. Raises KeyError for a content that no change has."""
        return self._contents[sha256]

    def _set(self, path: str, entry: Entry | None) -> None:
        if path not in self._before:
            self._before[path] = self._base_entry(path)
        self._entries[path] = entry
        self._children.setdefault(parent(path), set()).add(path.rpartition("/")[2])

    def _base_entry(self, path: str) -> Entry | None:
        """What the base has there. Raises OperationError if it is no longer what was read."""
        try:
            entry = self.base.entry(path)
        except PathRefused:
            if self._shows_through(path):
                raise
            entry = None  # below a folder that comes in the place of something else
        read = self._read.get(path)
        if read is not None and (entry is None or entry.sha256 != read):
            raise changed_meanwhile(path)
        return entry

"""What a program at sandbox level 4 writes: kept apart in a layer over the workspace, and read as changes afterwards.

The kernel's overlay file system shows the workspace with the layer on it: files that are written are copied up first,
and what is deleted is covered by a *whiteout* (a character device of number 0). So the layer is the exact difference,
and neither a look at the whole workspace before nor one after is needed. Of what it holds:

| in the layer | means |
|---|---|
| a file, a link | is so now; nothing has changed if the workspace has the same |
| a folder | is there; what the workspace has in it shows through, unless the folder is *opaque* |
| a whiteout | is gone, with all that is in it |
| a socket, FIFO | the programs that used it have ended: left out, and told |
| an excluded cache | left out, and told |

Invariant: reading changes nothing but modes inside of the layer, which goes afterwards anyway, and no link is followed.
What the workspace has is taken as it is now; something that has changed after the program began, and that the program
has changed as well, is an error: neither version is lost. This module must not know how changes are journaled or done.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from quantum_orchestrator.blocks.confined import ConfinedFolder, is_temporary
from quantum_orchestrator.blocks.disk_tree import OWNER_WRITES, DiskTree, OpenUp, entry_or_stamp, opened_up
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.script_folders import bytes_in
from quantum_orchestrator.blocks.snapshot import Exclusions
from quantum_orchestrator.blocks.tree import (
    ROOT,
    Change,
    Entry,
    Kind,
    changed_meanwhile,
    join,
)

_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")
_OWNER_READS = 0o400


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and what the kernel needs beside it. `since` is when it was put on the workspace, in nanoseconds.

    That is of the precise clock: what had changed until then is never taken for newer, while a change within the first
    tick of the kernel's clock (some milliseconds) may be taken for older.
    """

    folder: Path
    since: int

    @classmethod
    def make(cls, folder: Path, root: Path) -> Layer:
        """A new one, for a workspace, in a folder of its own outside of it."""
        layer = cls(folder, time.time_ns())
        layer.work.mkdir(mode=OWNER_WRITES)
        layer.upper.mkdir(mode=OWNER_WRITES)
        layer.upper.chmod(stat.S_IMODE(root.stat().st_mode))  # it is what the program sees of the workspace's own mode
        return layer

    @property
    def upper(self) -> Path:
        """Where what is written goes."""
        return self.folder / "upper"

    @property
    def work(self) -> Path:
        """The kernel's own."""
        return self.folder / "work"

    def size(self) -> int:
        """Bytes that it takes of the disk, about."""
        return bytes_in(self.upper)


@dataclass(slots=True)
class Proposal:
    """What a program has done in its layer, and nobody has done in the workspace yet."""

    layer: Layer
    changes: list[Change] = field(default_factory=list)
    caches: list[str] = field(default_factory=list)
    """Excluded caches that it has changed: left out."""
    special: list[str] = field(default_factory=list)
    """Sockets and FIFOs: left out."""
    places: dict[str, str] = field(default_factory=dict)
    """Where each content lies in the layer, by digest."""

    def content_of(self, sha256: str) -> bytes:
        """A content that is new."""
        with ConfinedFolder.open(self.layer.upper) as upper:
            return upper.read(self.places[sha256])


def read(layer: Layer, workspace: DiskTree, excluded: Exclusions) -> Proposal:
    """What is in a layer whose program, with all that it has started, has ended.

    Raises OperationError for what cannot be read, and where somebody else has changed the same meanwhile.
    """
    with ConfinedFolder.open(layer.upper) as upper, opened_up(workspace.folder) as open_up:
        reading = _Reading(layer, DiskTree(upper, workspace.umask), workspace, excluded, open_up)
        try:
            reading.all()
        except OSError as error:
            raise OperationError(
                f"what the script has written cannot be read: {error.filename}: {error.strerror}",
                hint="the paths in it are too long, or the disk has failed",
            ) from error
    reading.found.changes.sort(key=lambda each: each.path)
    return reading.found


class _Below(Enum):
    """What the workspace has below a folder of the layer."""

    SHOWS = auto()
    HIDDEN = auto()  # the folder is opaque, or one above it is
    NOTHING = auto()  # it has no folder there


class _Reading:
    """One look at a layer."""

    def __init__(
        self, layer: Layer, upper: DiskTree, workspace: DiskTree, excluded: Exclusions, open_up: OpenUp
    ) -> None:
        self.found = Proposal(layer)
        self._layer = layer
        self._upper = upper
        self._workspace = workspace
        self._excluded = excluded
        self._open_up = open_up
        self._waiting: list[tuple[str, _Below]] = [(ROOT, _Below.SHOWS)]

    def all(self) -> None:
        """Look at everything."""
        while self._waiting:
            self._inside(*self._waiting.pop())

    def _inside(self, folder: str, below: _Below) -> None:
        """What is in a folder of the layer."""
        self._open(folder)
        names = self._upper.folder.names(folder)
        for name in names:
            self._at(join(folder, name), below)
        if below is _Below.HIDDEN:
            self._open_up(join(folder, ROOT))
            covered = set(names)
            for name in self._workspace.folder.names(folder):
                if name not in covered and not self._is_left_out(join(folder, name)):
                    self._gone(join(folder, name))

    def _at(self, path: str, above: _Below) -> None:
        if self._is_left_out(path):
            if self._excluded.is_cache(path):
                self.found.caches.append(path)
            return
        found = self._upper.folder.lstat(path)
        if found is None:  # nobody is at work here
            raise changed_meanwhile(path)
        self._open_up(path)
        before = None if above is _Below.NOTHING else self._before(path)
        if stat.S_ISDIR(found.st_mode):
            self._note(path, before, Entry(Kind.FOLDER, stat.S_IMODE(found.st_mode)))
            if before is None or before.kind is not Kind.FOLDER:
                self._waiting.append((path, _Below.NOTHING))
            else:
                hides = above is _Below.HIDDEN or self._is_opaque(path)
                self._waiting.append((path, _Below.HIDDEN if hides else _Below.SHOWS))
            return
        after = self._entry(path, found)
        if before is not None and before.kind is Kind.FOLDER:
            self._gone(path, after)
        else:
            self._note(path, before, after)

    def _gone(self, top: str, after: Entry | None = None) -> None:
        """What the workspace has at a path and below it is gone; something else may be at the path itself."""
        waiting = [top]
        while waiting:
            path = waiting.pop()
            self._open_up(path)
            before = self._before(path)
            self._note(path, before, after if path == top else None)
            if before is not None and before.kind is Kind.FOLDER:
                self._open_up(join(path, ROOT))
                inner = (join(path, name) for name in self._workspace.folder.names(path))
                waiting += [each for each in inner if not is_temporary(each.rpartition("/")[2])]

    def _note(self, path: str, before: Entry | None, after: Entry | None) -> None:
        if before != after:
            self.found.changes.append(Change(path, before, after))

    def _before(self, path: str) -> Entry | None:
        """What the workspace has. Raises OperationError if that is newer than the layer."""
        found = self._workspace.folder.lstat(path)
        if found is None:
            return None
        if not stat.S_ISDIR(found.st_mode) and found.st_ctime_ns > self._layer.since:
            raise changed_meanwhile(path)
        return entry_or_stamp(self._workspace, path, found)

    def _entry(self, path: str, found: os.stat_result) -> Entry | None:
        """What is there, in the layer, that is no folder."""
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            if not _is_whiteout(found):
                self.found.special.append(path)
            return None
        if stat.S_ISREG(found.st_mode) and not found.st_mode & _OWNER_READS:
            self._upper.folder.chmod(path, stat.S_IMODE(found.st_mode) | _OWNER_READS)
        entry = self._upper.entry_of(path, found)
        if entry.sha256:
            self.found.places.setdefault(entry.sha256, path)
        return entry

    def _open(self, folder: str) -> None:
        """Let its owner look into a folder of the layer; its mode has been noted."""
        found = self._upper.folder.lstat(folder)
        if folder != ROOT and found is not None and found.st_mode & OWNER_WRITES != OWNER_WRITES:
            self._upper.folder.chmod(folder, stat.S_IMODE(found.st_mode) | OWNER_WRITES)

    def _is_opaque(self, path: str) -> bool:
        place = self._layer.upper / path
        known = os.listxattr(place, follow_symlinks=False)
        return any(name in known and os.getxattr(place, name, follow_symlinks=False) == b"y" for name in _OPAQUE)

    def _is_left_out(self, path: str) -> bool:
        return self._excluded.is_cache(path) or is_temporary(path.rpartition("/")[2])


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0

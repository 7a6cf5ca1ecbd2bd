"""A folder on disk as a tree whose files are not read again while their inode, size and times are what they were.

Invariant: a digest is only known together with the stamp of the file that was read for it, and only if the file had
lain still for longer than a tick of the clock when it was read: one that is changed within the tick looks unchanged, as
in git's index ("racily clean"). It must not know of runs, nor where the stamps are kept from one run to the next.
"""

from __future__ import annotations

import os
import stat
import time

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.disk_tree import DiskTree, stamp_of
from quantum_orchestrator.blocks.snapshot import SETTLED_NANOSECONDS
from quantum_orchestrator.blocks.tree import Entry, Kind


class StampedTree(DiskTree):
    """A folder on disk as a Tree. Any number of threads may use it at once."""

    def __init__(self, folder: ConfinedFolder, umask: int | None = None) -> None:
        super().__init__(folder, umask)
        self._known: dict[str, tuple[str, str]] = {}

    def entry_of(self, path: str, found: os.stat_result) -> Entry:
        """See DiskTree."""
        if not stat.S_ISREG(found.st_mode):
            return super().entry_of(path, found)
        stamp, known = stamp_of(found), self._known.get(path)
        if known is not None and known[0] == stamp:
            return Entry(Kind.FILE, stat.S_IMODE(found.st_mode), known[1], found.st_size)
        looked_at = time.time_ns()
        entry = super().entry_of(path, found)
        after = self.folder.lstat(path)
        if looked_at - found.st_ctime_ns > SETTLED_NANOSECONDS and after is not None and stamp_of(after) == stamp:
            self._known[path] = (stamp, entry.sha256)
        return entry

    def learn(self, path: str, stamp: str, sha256: str) -> None:
        """What an earlier process knew; what this one has seen itself counts for more."""
        self._known.setdefault(path, (stamp, sha256))

    def stamp(self, path: str, sha256: str) -> str:
        """The stamp under which the file had this content; empty if that is not known."""
        known = self._known.get(path)
        return known[0] if known is not None and known[1] == sha256 else ""

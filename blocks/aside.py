"""Putting aside what somebody else has made, before an undo overwrites it.

Everything goes under one folder of the run in the state folder, by the path that it had: files with content and mode,
links with their target, folders with all that is in them. Invariant: what is put aside is there whole or not at all,
and nothing put aside is ever overwritten; what is put aside once more, after a kill, takes no second place.
It must not know why something is put aside, nor change anything in the workspace.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.disk_tree import OWNER_WRITES, inside, readable_errors

_PART = ".part"
"""Where something is built before it is renamed into place; one run undoes at a time."""


class Aside:
    """What is put aside for one run."""

    def __init__(self, workspace: ConfinedFolder, state: Path, run_id: str) -> None:
        self._workspace = workspace
        self._folder = state / "aside"
        self._run = run_id

    def usual(self, path: str) -> Path:
        """Where something is put aside if nothing else is in that place."""
        return self._folder / self._run / path

    def put(self, path: str, *, alone: bool = False) -> Path:
        """Put aside what is at a path of the workspace; where it is then. Raises OperationError.

        `alone`: a folder without what is in it, as only its mode is overwritten.
        """
        with readable_errors("put aside", path):
            part = self._part()
            self._copy(path, part, alone=alone)
            return self._settle(part, path)

    def put_content(self, path: str, content: bytes) -> Path:
        """The same for a content that says what was meant by a path, as the id that a packed ref had."""
        with readable_errors("put aside", path):
            part = self._part()
            part.write_bytes(content)
            return self._settle(part, path)

    def make_durable(self) -> None:
        """Wait until all that was put aside survives a power cut."""
        with ConfinedFolder.open(self._folder) as folder:
            folder.syncfs()

    def _part(self) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        part = self._folder / _PART
        _remove(part)
        return part

    def _settle(self, part: Path, path: str) -> Path:
        for place in self._places(path):
            if _is_folder(place.parent) or not any(map(os.path.lexists, _above(place, self._folder))):
                if not os.path.lexists(place):
                    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    part.rename(place)
                    return place
                if _is_held(part, place):
                    _remove(part)
                    return place
        raise AssertionError("places do not end")

    def _places(self, path: str) -> Iterator[Path]:
        yield self.usual(path)
        for number in itertools.count(2):
            yield self._folder / f"{self._run}~{number}" / path

    def _copy(self, path: str, place: Path, *, alone: bool) -> None:
        waiting = [(path, place)]
        while waiting:
            source, target = waiting.pop()
            found = self._workspace.lstat(source)
            if found is None:
                continue
            mode = stat.S_IMODE(found.st_mode)
            if stat.S_ISREG(found.st_mode):
                target.write_bytes(self._workspace.read(source))
                target.chmod(mode)
            elif stat.S_ISLNK(found.st_mode):
                target.symlink_to(self._workspace.readlink(source))
            elif stat.S_ISDIR(found.st_mode):
                target.mkdir()
                target.chmod(mode | OWNER_WRITES)
                names = [] if alone else inside(self._workspace, source)
                waiting += [(each, target / each.rpartition("/")[2]) for each in names]
            else:
                os.mknod(target, found.st_mode, found.st_rdev)


def _above(place: Path, top: Path) -> Iterator[Path]:
    """The folders above a place that are in the way if they are none."""
    for folder in place.parents:
        if folder == top:
            return
        if not _is_folder(folder):
            yield folder


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_held(part: Path, place: Path) -> bool:
    """Whether a place holds all that a part has, down to modes and contents; False where one may not be read.

    The place may hold more: an undo that was cut short has removed some of what it had put aside there.
    """
    waiting = [(part, place)]
    while waiting:
        left, right = waiting.pop()
        try:
            first, second = left.lstat(), right.lstat()
            if (first.st_mode, first.st_rdev) != (second.st_mode, second.st_rdev):
                return False
            if stat.S_ISREG(first.st_mode) and left.read_bytes() != right.read_bytes():
                return False
            if stat.S_ISLNK(first.st_mode) and left.readlink() != right.readlink():
                return False
            if stat.S_ISDIR(first.st_mode):
                waiting += [(each, right / each.name) for each in left.iterdir()]
        except OSError:
            return False
    return True

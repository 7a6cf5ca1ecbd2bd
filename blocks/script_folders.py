"""Folders that are there for one script: what it writes for a while, or apart from the workspace.

Invariant: such a folder goes with its script. One whose engine was killed goes when the next one is made, a run is
undone, or by `qo gc`; one that is in use never does. The kernel says which is which: whoever has made it holds a lock
on it (flock(2)), which ends with that process, however it ended.

A hostile script may leave folders that nobody can look into, or so deep that no path is long enough for them: removing
them needs neither. This module must not know what the folders are for.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

OWNER_ALONE = 0o700
LAYER = "layer-"
"""What the names of layers begin with, in a workspace's state folder (see `blocks/layer.py`)."""
TEMPORARY = "qo-script-"
"""What the names of scripts' temporary folders begin with, where the machine keeps those."""
_SMALLEST = 4096
"""Bytes that something takes at least: even an empty file has a name somewhere."""


@contextlib.contextmanager
def folder_for_now(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, for this user alone; gone at the end with all that is in it."""
    folder, lock = _made(parent, prefix)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # then it goes with those of killed processes
            remove(folder)
        os.close(lock)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}"
        folder.mkdir(mode=OWNER_ALONE)
        lock = _locked(folder)
        if lock is not None:
            return folder, lock
        # Somebody has taken it for one that was left, in the moment before it was locked.


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if another one does, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except OSError:
        pass  # a script that is at work holds it
    os.close(descriptor)
    return None


def abandoned(parent: Path, prefix: str) -> Iterator[Path]:
    """This user's folders that nobody uses any more. Each stays locked until the next one is asked for."""
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix) or not entry.is_dir(follow_symlinks=False):
                continue
            folder = Path(entry.path)
            lock = _locked(folder) if _is_ours(folder) else None
            if lock is not None:
                try:
                    yield folder
                finally:
                    os.close(lock)


def _is_ours(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what killed processes have left there; what cannot be removed stays for the next time."""
    for folder in abandoned(parent, prefix):
        with contextlib.suppress(OSError):
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder of this user's, whatever modes its folders have and however deep they are. Raises OSError.

    Folders are moved up to the top before they are looked into, so that no path has more than two names in it.
    """
    token, number = secrets.token_hex(8), itertools.count()
    waiting = [folder]
    while waiting:
        place = waiting[-1]
        os.chmod(place, OWNER_ALONE)  # noqa: PTH101 - one that is deep has a name that Path would split for nothing
        inner = []
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108
                elif place == folder:
                    inner.append(Path(entry.path))
                else:
                    os.chmod(entry.path, OWNER_ALONE)  # noqa: PTH101 - to be moved, a folder must be writable itself
                    raised = folder / f"{token}-{next(number)}"
                    os.rename(entry.path, raised)  # noqa: PTH104
                    inner.append(raised)
        if inner:
            waiting += inner
        else:
            place.rmdir()
            waiting.pop()


def bytes_in(folder: Path) -> int:
    """What is in a folder takes so much of the disk, about; folders that cannot be looked into are left out."""
    total, waiting = 0, [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:  # somebody may be at work in it
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                total += max(found.st_blocks * 512, _SMALLEST)
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)
    return total

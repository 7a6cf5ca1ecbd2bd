"""Whether the code that a process has loaded is still the code on the disk.

Taken once, when everything is loaded; asked before each command that is served. It counts every module's file and
every folder on the module path, where installing and removing a distribution shows. Invariant: what has changed since
the process began is noticed, also if that was before it was taken. Asking costs a `stat` a file: some 10 ms.
"""

from __future__ import annotations

import os
import sys

_Mark = tuple[int, int, int]


class LoadedCode:
    """The files behind this process as they were."""

    def __init__(self, since: float) -> None:
        """`since`, in seconds since the epoch, is when the process began to load."""
        files = _files()
        self._marks = {file: _mark(file) for file in files}
        self._too_new = next((file for file in files if _changed_after(file, since)), "")

    def __len__(self) -> int:
        return len(self._marks)

    def changed(self) -> str:
        """A file that is not as it was loaded; empty if there is none."""
        return self._too_new or next((file for file, mark in self._marks.items() if _mark(file) != mark), "")


def _files() -> set[str]:
    """Of folders the installed distributions show in their time, of `__pycache__` only that one was made."""
    found = {os.path.abspath(place) for place in sys.path if place}  # noqa: PTH100 - thousands, and links are kept
    for module in [*sys.modules.values()]:
        file = getattr(module, "__dict__", {}).get("__file__")  # no getattr: some modules import more when asked
        if isinstance(file, str):
            found.add(os.path.abspath(file))  # noqa: PTH100
    return found


def _mark(file: str) -> _Mark:
    """Without the time of the last status change: hard links change it too, which installers make in other places."""
    try:
        found = os.stat(file)  # noqa: PTH116 - thousands of them
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _changed_after(file: str, since: float) -> bool:
    """By the time of the last status change: what an installer writes often carries an old time of modification."""
    try:
        return os.stat(file).st_ctime_ns > since * 1e9  # noqa: PTH116 - thousands of them
    except OSError:
        return False

"""Named points at which a process can be killed: before and after every call that changes a disk or a journal.

Nothing in the product knows of them. `watch` replaces the functions of `os`, the folder's `syncfs` and the database's
connection by ones that count; a point's name is the function, the order of its call and the side, as in `rename 3
before`. What is given to `watch` decides at each point: note it, kill the process, or raise an error in the call's
place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest import mock

from quantum_orchestrator.blocks.confined import ConfinedFolder

CALLS = (
    "rename",
    "link",
    "mkdir",
    "rmdir",
    "unlink",
    "symlink",
    "write",
    "fchmod",
    "fsync",
    "replace",
    "pwrite",
    "chmod",
)
WRITING = ("INSERT", "UPDATE", "DELETE", "COMMIT", "BEGIN")

At = Callable[[str], None]
"""Called with a point's name."""


class _Database(sqlite3.Connection):
    at: ClassVar[Callable[..., None]]
    counts: ClassVar[dict[str, int]]

    def execute(self, statement: str, *values: Any) -> Any:
        return _around(statement.split()[0].lower(), lambda: super(_Database, self).execute(statement, *values), self)

    def executemany(self, statement: str, *values: Any) -> Any:
        return _around(
            statement.split()[0].lower(), lambda: super(_Database, self).executemany(statement, *values), self
        )


def _around(name: str, call: Callable[[], Any], database: _Database) -> Any:
    if name.upper() not in WRITING:
        return call()
    number = database.counts[name] = database.counts.get(name, 0) + 1
    database.at(f"{name} {number} before")
    result = call()
    database.at(f"{name} {number} after")
    return result


@contextlib.contextmanager
def watch(at: At) -> Iterator[None]:
    """Call `at` at every point that this process reaches inside of the block."""
    counts: dict[str, int] = {}

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            number = counts[name] = counts.get(name, 0) + 1
            at(f"{name} {number} before")
            result = original(*arguments, **keywords)
            at(f"{name} {number} after")
            return result

        return call

    class Database(_Database):
        pass

    Database.at, Database.counts = staticmethod(at), counts
    connect = sqlite3.connect
    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, counting(name, getattr(os, name))))
        stack.enter_context(
            mock.patch.object(sqlite3, "connect", lambda *a, **k: connect(*a, **{"factory": Database, **k}))
        )
        stack.enter_context(mock.patch.object(ConfinedFolder, "syncfs", counting("syncfs", ConfinedFolder.syncfs)))
        yield


def fail_at(chosen: str, number: int) -> At:
    """Raise the system's error with this number (ENOSPC, EIO, …) in place of the call, once."""

    def at(point: str) -> None:
        if point != chosen:
            return
        if point.split()[0] in ("begin", "insert", "update", "delete", "commit"):
            raise sqlite3.OperationalError("database or disk is full" if number == errno.ENOSPC else "disk I/O error")
        raise OSError(number, os.strerror(number))

    return at


def kill_at(chosen: str) -> At:
    """Kill this process, as `kill -9` does, when it reaches the point."""

    def at(point: str) -> None:
        if point == chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    return at

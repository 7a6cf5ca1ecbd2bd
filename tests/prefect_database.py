"""Prefect's database as its first start leaves it, made once and copied.

Making it takes a server most of its first start: some ten seconds of processor time, for hundreds of migrations.
`deployments/test_server.py` has a server make its own.
"""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from quantum_orchestrator.deployments import server


def put(home: Path, cache: Path) -> None:
    """Give this state folder the database that its server would otherwise make."""
    made = cache / f"prefect-{server.prefect_version()}.db"
    with _held(cache / "lock"):
        if not made.exists():
            _make(made)
    folder = home / "server" / "prefect"
    folder.mkdir(parents=True, mode=0o700)
    shutil.copyfile(made, folder / "prefect.db")


def _make(made: Path) -> None:
    with tempfile.TemporaryDirectory(dir=made.parent) as name:
        home = Path(name)
        server.ensure(home)
        server.stop(home)
        draft = home / "draft.db"
        with (
            closing(sqlite3.connect(home / "server/prefect/prefect.db")) as old,
            closing(sqlite3.connect(draft)) as new,
        ):
            old.backup(new)
        draft.rename(made)


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    """By one of the processes that run the tests at a time."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""How long steps have taken, for whoever orders them next time: one SQLite file, for all workspaces.

A row an operation, and a row a step whose time is far from its operation's: 10,000 cheap steps leave one row. It only
makes runs faster, so it never fails or delays one: it is written without waiting for the disk, a file that is locked is
left as it is, and one that is damaged is forgotten.

It must not know what a step is, nor what is made of its time; `flows/estimates.py` does.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

FILE = "profile.db"
VERSION = 1
FAR_SECONDS = 0.02
"""A step's time that differs by so much from its operation's is worth a row."""
LAST_RUNS = 4
"""What is remembered is about the mean of so many runs, the newest counting most."""
MOST_OF_A_RUN = 2_000
"""So many steps of one run get a row, those furthest from their operations."""
MOST_ROWS = 20_000
"""Beyond that, what was not run for longest is forgotten."""
LONGEST_NAME = 500
"""Characters; what is called by more is not remembered."""
_PATIENCE = 0.5
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_MISMATCH", "SQLITE_FORMAT", "SQLITE_ERROR")
_FAILURES = (sqlite3.Error, OSError, UnicodeError)
_SCHEMA = """
DROP TABLE IF EXISTS steps;
DROP TABLE IF EXISTS operations;
CREATE TABLE steps (
    set_name TEXT NOT NULL, step TEXT NOT NULL, seconds REAL NOT NULL, runs INTEGER NOT NULL, used_at REAL NOT NULL,
    PRIMARY KEY (set_name, step)
) WITHOUT ROWID;
CREATE TABLE operations (name TEXT PRIMARY KEY, seconds REAL NOT NULL, runs INTEGER NOT NULL) WITHOUT ROWID;
"""


class Measured(NamedTuple):
    """A step that has run."""

    step: str
    operation: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Learned:
    """Seconds, by step of one set and by operation."""

    steps: Mapping[str, float] = field(default_factory=dict)
    operations: Mapping[str, float] = field(default_factory=dict)


class Profile:
    """What is remembered in one state folder."""

    def __init__(self, folder: Path) -> None:
        """Nothing is opened or made before it is needed."""
        self.path = folder / FILE

    def load(self, set_name: str) -> Learned:
        """What was learned of a set's steps, and of all operations; nothing where that cannot be read."""
        if not self.path.exists():
            return Learned()
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self.path.as_uri()}?mode=ro", timeout=_PATIENCE, uri=True)
            ) as database:
                if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                    return Learned()
                steps, operations = _rows(database, set_name)
        except _FAILURES:
            return Learned()
        return Learned(
            {name: seconds for name, (seconds, _) in steps.items()},
            {name: seconds for name, (seconds, _) in operations.items()},
        )

    def learn(self, set_name: str, measured: Iterable[Measured]) -> None:
        """Remember how long the steps of a run took. Never raises for what the disk or the file does."""
        found = [each for each in measured if _is_sane(each.seconds) and len(each.step) <= LONGEST_NAME]
        if not found or len(set_name) > LONGEST_NAME:
            return
        try:
            self._learn(set_name, found)
        except sqlite3.Error as problem:
            if getattr(problem, "sqlite_errorname", "").startswith(_DAMAGED):
                self._forget()
        except (OSError, UnicodeError):
            return

    def _learn(self, set_name: str, measured: list[Measured]) -> None:
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            known, operations = _rows(database, set_name)
            for name, seconds in _medians(measured).items():
                operations[name] = _blended(operations.get(name), seconds)
            far = ((abs(each.seconds - operations[each.operation][0]), each) for each in measured)
            worth = sorted((each for each in far if each[0] > FAR_SECONDS or each[1].step in known), reverse=True)
            now = time.time()
            steps = [
                (set_name, each.step, *_blended(known.get(each.step), each.seconds), now)
                for _, each in worth[:MOST_OF_A_RUN]
            ]
            database.executemany("REPLACE INTO steps VALUES (?, ?, ?, ?, ?)", steps)
            database.executemany(
                "REPLACE INTO operations VALUES (?, ?, ?)", [(name, *row) for name, row in operations.items()]
            )
            (count,) = database.execute("SELECT count(*) FROM steps").fetchone()
            if count > MOST_ROWS:
                oldest = "SELECT set_name, step FROM steps ORDER BY used_at LIMIT ?"
                database.execute(f"DELETE FROM steps WHERE (set_name, step) IN ({oldest})", (count - MOST_ROWS // 2,))  # noqa: S608
            database.execute("COMMIT")

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            for path in self.path.parent.glob(f"{FILE}*"):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous=OFF")
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
            yield database


_Rows = dict[str, tuple[float, int]]
"""By name: seconds, and of how many runs."""


def _rows(database: sqlite3.Connection, set_name: str) -> tuple[_Rows, _Rows]:
    steps = database.execute("SELECT step, seconds, runs FROM steps WHERE set_name = ?", (set_name,))
    operations = database.execute("SELECT name, seconds, runs FROM operations")
    first, second = (
        {name: (seconds, runs) for name, seconds, runs in rows if _is_sane(seconds) and isinstance(runs, int)}
        for rows in (steps, operations)
    )
    return first, second


def _is_sane(seconds: object) -> bool:
    return isinstance(seconds, float) and math.isfinite(seconds) and seconds >= 0


def _medians(measured: Iterable[Measured]) -> dict[str, float]:
    by_operation: dict[str, list[float]] = {}
    for each in measured:
        by_operation.setdefault(each.operation, []).append(each.seconds)
    return {name: median(seconds) for name, seconds in by_operation.items()}


def _blended(known: tuple[float, int] | None, seconds: float) -> tuple[float, int]:
    before, runs = known or (0.0, 0)
    runs = min(max(runs, 0) + 1, LAST_RUNS)
    return before + (seconds - before) / runs, runs

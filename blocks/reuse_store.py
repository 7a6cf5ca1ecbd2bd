"""What the steps of committed runs rested on and left: one SQLite file per workspace, beside the journal.

A row a step of a set, the newest wins: what the step was, what it had read, what it left, what it gave. It is a cache
and no record: nothing is undone by it, and whoever takes a row compares it with what is on disk first. So it is written
without waiting for the disk, and whatever is wrong with it (a row with a bad checksum, a file that is no database)
means that nothing is remembered; it is never an error of a run. Written under the workspace's lock only.

It must not know what may be reused; `flows/reuse.py` decides that.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.tree import Entry, Kind

State = Mapping[str, Entry | None]
"""What is at some paths; None is absence."""

FILE = "reuse.db"
VERSION = 1
LARGEST_ROW = 2**20
"""Characters; a step with more to remember (outputs that hold whole files) is run again."""
MOST_ROWS = 100_000
"""In a workspace; beyond that, what was not used for longest is forgotten."""
MOST_BYTES = 64 * 2**20
"""The same, of what the rows take."""
KEEP_SECONDS = 90 * 86_400.0
"""What no run has used for so long is forgotten."""
_FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS steps (
    set_name TEXT NOT NULL, step TEXT NOT NULL, body TEXT NOT NULL, sum BLOB NOT NULL, used_at REAL NOT NULL,
    PRIMARY KEY (set_name, step)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON steps (used_at);
"""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A step that succeeded in a committed run."""

    run_id: str
    identity: Mapping[str, str]
    """What it was: digests by what they are of."""
    reads: State
    leaves: State
    outputs: Mapping[str, Any]
    stamps: Mapping[str, str]
    """Of files in `reads` and `leaves`; see StampedTree."""


@dataclass(frozen=True, slots=True)
class Unused:
    """Rows that nobody has used since a moment, and the bytes that they take; a file that cannot be read is all of
    it, without a row."""

    rows: int = 0
    size: int = 0
    since: float = 0.0


NOTHING = Unused()


class ReuseStore:
    """The steps that are remembered of one workspace."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the workspace's state folder. Nothing is opened or made before it is needed."""
        self.path = folder / FILE

    def load(self, set_name: str) -> dict[str, str]:
        """The rows of a set by step, encoded; empty if there are none, or none that can be read."""
        if not self.path.exists():
            return {}
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self.path.as_uri()}?mode=ro", timeout=1.0, uri=True)
            ) as database:
                if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                    return {}
                rows = database.execute("SELECT step, body, sum FROM steps WHERE set_name = ?", (set_name,)).fetchall()
        except _FAILURES:
            return {}
        return {step: body for step, body, proof in rows if proof == _sum(set_name, step, body)}

    def save(self, set_name: str, rows: Mapping[str, str], used: Iterable[str] = ()) -> None:
        """Remember encoded rows, and that those of other steps were `used`. A file that is damaged is made anew.

        Raises sqlite3.Error and OSError where that does not help.
        """
        try:
            self._save(set_name, rows, used)
        except sqlite3.DatabaseError:
            self._remove()
            self._save(set_name, rows, used)

    def _save(self, set_name: str, rows: Mapping[str, str], used: Iterable[str]) -> None:
        now = time.time()
        kept = [(set_name, step, body, _sum(set_name, step, body), now) for step, body in rows.items()]
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("REPLACE INTO steps VALUES (?, ?, ?, ?, ?)", kept)
            among = "step IN (SELECT value FROM json_each(?))"
            marked = (now, set_name, json.dumps(list(used)))
            database.execute(f"UPDATE steps SET used_at = ? WHERE set_name = ? AND {among}", marked)  # noqa: S608
            database.execute("DELETE FROM steps WHERE used_at < ?", (now - KEEP_SECONDS,))
            (count,) = database.execute("SELECT count(*) FROM steps").fetchone()
            if count > MOST_ROWS:
                oldest = "SELECT set_name, step FROM steps ORDER BY used_at LIMIT ?"
                database.execute(f"DELETE FROM steps WHERE (set_name, step) IN ({oldest})", (count - MOST_ROWS,))  # noqa: S608
            if _bytes_used(database) > MOST_BYTES:
                sums = "SELECT set_name, step, sum(length(body)) OVER (ORDER BY used_at DESC, step) AS total FROM steps"
                beyond = f"SELECT set_name, step FROM ({sums}) WHERE total > ?"  # noqa: S608
                database.execute(f"DELETE FROM steps WHERE (set_name, step) IN ({beyond})", (MOST_BYTES // 2,))  # noqa: S608
            database.execute("COMMIT")

    def unused(self, before: float) -> Unused:
        """What nobody has used since a moment."""
        if not self.path.exists():
            return NOTHING
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self.path.as_uri()}?mode=ro", timeout=1.0, uri=True)
            ) as database:
                if database.execute("PRAGMA user_version").fetchone() == (VERSION,):
                    counted = "SELECT count(*), coalesce(sum(length(body)), 0) FROM steps WHERE used_at < ?"
                    rows, size = database.execute(counted, (before,)).fetchone()
                    return Unused(rows, size, before) if rows else NOTHING
        except _FAILURES:
            pass
        return Unused(0, self.path.stat().st_size)

    def forget(self, unused: Unused) -> None:
        """Forget it, and give back the room. A file that cannot be read goes as a whole."""
        if unused == NOTHING:
            return
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=1.0, isolation_level=None)) as database:
                if database.execute("PRAGMA user_version").fetchone() == (VERSION,):
                    database.execute("DELETE FROM steps WHERE used_at < ?", (unused.since,))
                    database.execute("VACUUM")
                    return
        except _FAILURES:
            pass
        self._remove()

    def _remove(self) -> None:
        for path in self.path.parent.glob(f"{FILE}*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=1.0, isolation_level=None)) as database:
            if database.execute("PRAGMA user_version").fetchone() != (VERSION,):
                database.execute("DROP TABLE IF EXISTS steps")  # of a version that knew less, or more
                database.executescript(_SCHEMA)
                database.execute(f"PRAGMA user_version={VERSION}")
            database.execute("PRAGMA synchronous=OFF")
            yield database


def encode(remembered: Remembered) -> str | None:
    """A row's text; None if it is too large to be kept."""
    stamps = remembered.stamps
    text = json.dumps(
        [
            remembered.run_id,
            dict(remembered.identity),
            _encoded(remembered.reads, stamps),
            _encoded(remembered.leaves, stamps),
            dict(remembered.outputs),
        ]
    )
    return text if len(text) <= LARGEST_ROW else None


def decode(text: str) -> Remembered:
    """The inverse of `encode`."""
    run_id, identity, reads, leaves, outputs = json.loads(text)
    stamps: dict[str, str] = {}
    return Remembered(run_id, identity, _decoded(reads, stamps), _decoded(leaves, stamps), outputs, stamps)


def _encoded(state: State, stamps: Mapping[str, str]) -> dict[str, list[Any] | None]:
    return {
        path: None
        if entry is None
        else [entry.kind.value, entry.mode, entry.sha256, entry.size, entry.target, stamps.get(path, "")]
        for path, entry in state.items()
    }


def _decoded(state: Mapping[str, list[Any] | None], stamps: dict[str, str]) -> dict[str, Entry | None]:
    found: dict[str, Entry | None] = {}
    for path, columns in state.items():
        if columns is None:
            found[path] = None
            continue
        kind, mode, sha256, size, target, stamp = columns
        found[path] = Entry(Kind(kind), mode, sha256, size, target)
        if stamp:
            stamps[path] = stamp
    return found


def _bytes_used(database: sqlite3.Connection) -> int:
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in names)
    return (pages - free) * size


def _sum(set_name: str, step: str, body: str) -> bytes:
    return blake2b(f"{set_name}\0{step}\0{body}".encode(errors="surrogatepass"), digest_size=16).digest()

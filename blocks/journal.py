"""The journal: what every run did to one workspace, written down before it is done, so that it can be undone.

One SQLite database per workspace, outside of it, with `synchronous=FULL` (an acknowledged row survives a power cut),
and beside it a folder of large contents. The format:

    runs       one row a run: the document, its inputs, how it stands
    steps      one row a step of a run: how it ended, what it gave
    effects    one row a path that a step changes: before and after, in the order of writing. A row is an INTENT until
               `done`; it is durable before the path is touched, together with the content that it replaces
    captures   one row for a step that acts by itself (a script, git): everything it may change, as it was before
    contents   by SHA-256: contents of up to 64 KiB, compressed where that helps; larger ones are files

Invariant: whatever a run has changed can be put back from here alone. A row's `before` was read from the workspace,
never computed. Undoing marks rows `undone`, so that it can be interrupted and repeated.

This module knows neither operations nor Prefect, and never touches the workspace; `blocks/workspace.py` does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import StateError, WorkspaceBusy
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, digest

VERSION = 1
_DAMAGE_HINT = "`qo doctor` says more; a copy of the folder helps to find out what happened to it"
INLINE_BYTES = 64 * 1024
LOOK_SECONDS = 0.05
"""`is_held` holds the lock itself while it looks; for so long, that is not taken for a run."""
COMPRESS_FROM = 256  # bytes; below, compression costs more than it saves

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, set_name TEXT NOT NULL, status TEXT NOT NULL,
    document TEXT NOT NULL, inputs TEXT NOT NULL, options TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL,
    pid INTEGER NOT NULL, flow_run_id TEXT, ui_url TEXT, report TEXT, error TEXT, cancel_requested INTEGER DEFAULT 0
);
CREATE TABLE IF NOT EXISTS steps (
    run TEXT NOT NULL, id TEXT NOT NULL, op TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL,
    duration REAL, outputs TEXT, error TEXT, PRIMARY KEY (run, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS effects (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, step TEXT NOT NULL, path TEXT NOT NULL,
    before TEXT, after TEXT, state TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS effects_of_step ON effects (run, step, number);
CREATE TABLE IF NOT EXISTS captures (
    run TEXT NOT NULL, step TEXT NOT NULL, areas TEXT NOT NULL, manifest TEXT NOT NULL, PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (
    sha256 TEXT PRIMARY KEY, compressed INTEGER NOT NULL, data BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS approvals (
    run TEXT NOT NULL, step TEXT NOT NULL, approved INTEGER NOT NULL, actor TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS digests (
    path TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID;
"""


class EffectState(StrEnum):
    """How far an effect has come."""

    INTENT = "intent"
    DONE = "done"
    KEPT = "kept"  # a folder whose maker is undone, and which something else was in at that time
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of `effects`."""

    number: int
    step: str
    change: Change
    state: EffectState


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One row of `runs`. `started_at` and `ended_at` are seconds since the epoch."""

    id: str
    set_name: str
    status: str
    document: Mapping[str, Any]
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    started_at: float
    ended_at: float | None = None
    pid: int = 0
    flow_run_id: str | None = None
    ui_url: str | None = None
    report: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One row of `steps`. `duration` is seconds; `error` is `{"type", "message", "hint"}`."""

    id: str
    op: str
    status: str
    attempts: int = 0
    duration: float = 0.0
    outputs: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


def encode_entry(entry: Entry | None) -> str | None:
    """An entry as JSON; absence as None."""
    if entry is None:
        return None
    return json.dumps([entry.kind.value, entry.mode, entry.sha256, entry.size, entry.target])


def decode_entry(text: str | None) -> Entry | None:
    """The inverse of `encode_entry`."""
    if text is None:
        return None
    kind, mode, sha256, size, target = json.loads(text)
    return Entry(Kind(kind), mode, sha256, size, target)


def _encode_path(path: str) -> str | bytes:
    """A path as a column holds it: text, or bytes where a name is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _decode_path(column: str | bytes) -> str:
    """The inverse of `_encode_path`."""
    return os.fsdecode(column)


def _decode_change(path: str | bytes, before: str | None, after: str | None) -> Change:
    return Change(_decode_path(path), decode_entry(before), decode_entry(after))


def _is_full(error: Exception) -> bool:
    """Whether it is for want of space: even to read, SQLite must make its shared memory file."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class Lock:
    """The workspace's lock: `flock`, which the kernel frees when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it. Raises WorkspaceBusy if another process has it; whoever wants to wait asks again."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}".encode(), 0)
        self._descriptor = descriptor

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOOK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WorkspaceBusy(
                        f"another run (process {self.holder()}) holds this workspace",
                        hint="wait for it (`qo status`), end it (`qo cancel`), or leave out --no-wait",
                    ) from None
                time.sleep(LOOK_SECONDS / 10)
            else:
                return

    def release(self) -> None:
        """Give it back; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """The process that took it last."""
        return self._path.read_text() or "unknown"

    def is_held(self) -> bool:
        """Whether any process holds it now."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class Journal:
    """One workspace's journal. Any number of threads may use one object at once."""

    def __init__(self, folder: Path) -> None:
        """Open the journal in `folder` (the workspace's state folder), made if it is not there."""
        self.folder = folder
        self.lock = Lock(folder / "lock")
        self._mutex = threading.RLock()
        try:
            (folder / "contents").mkdir(mode=0o700, exist_ok=True)
            (folder / "logs").mkdir(mode=0o700, exist_ok=True)
            with (folder / "opening").open("w") as opening:  # SQLite does not wait while another makes the file
                fcntl.flock(opening, fcntl.LOCK_EX)
                self._database = self._open(folder / "journal.db")
        except (sqlite3.Error, OSError) as error:
            raise self._unreadable(error) from error

    def _open(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(database, path)
        except BaseException:
            database.close()
            raise
        return database

    @staticmethod
    def _prepare(database: sqlite3.Connection, path: Path) -> None:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise StateError(f"{path}: was written by a newer version", hint="use that version, or a newer one")
        if version < VERSION:
            database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")

    def close(self) -> None:
        """Close the database."""
        with self._mutex:
            self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction."""
        with self._mutex:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._unwritable(error) from error
                raise

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._mutex:
            try:
                return self._database.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StateError:
        return StateError(
            f"{self.folder / 'journal.db'}: the journal cannot be read: {error}",
            hint="free some disk space, and try again" if _is_full(error) else _DAMAGE_HINT,
        )

    def _unwritable(self, error: Exception) -> StateError:
        return StateError(
            f"{self.folder / 'journal.db'}: the journal cannot be written: {error}",
            hint="free some disk space or check the folder's permissions; nothing was changed unrecorded",
        )

    # Runs.

    def begin(self, run: RunRecord) -> None:
        """Record that a run starts."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO runs (id, set_name, status, document, inputs, options, started_at, pid)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run.id,
                    run.set_name,
                    run.status,
                    json.dumps(run.document),
                    json.dumps(run.inputs),
                    json.dumps(run.options),
                    run.started_at,
                    os.getpid(),
                ),
            )

    def update(self, run_id: str, **fields: Any) -> None:
        """Set columns of a run: status, ended_at, pid, flow_run_id, ui_url, report, error, cancel_requested."""
        encoded = {
            name: json.dumps(value) if name in ("report", "error") and value is not None else value
            for name, value in fields.items()
        }
        columns = ", ".join(f"{name} = ?" for name in encoded)
        with self._transaction() as database:
            database.execute(f"UPDATE runs SET {columns} WHERE id = ?", (*encoded.values(), run_id))  # noqa: S608 - our own column names

    def runs(self, limit: int = -1) -> list[RunRecord]:
        """The newest runs first."""
        return [self._run(row) for row in self._rows(f"{_SELECT_RUN} ORDER BY number DESC LIMIT ?", limit)]

    def run(self, run_id: str) -> RunRecord | None:
        """A run by its id, or by the beginning of it if that names one alone."""
        rows = self._rows(f"{_SELECT_RUN} WHERE id = ?", run_id)
        if not rows:
            rows = self._rows(f"{_SELECT_RUN} WHERE substr(id, 1, ?) = ? LIMIT 2", len(run_id), run_id)
        return self._run(rows[0]) if len(rows) == 1 else None

    def unfinished(self) -> RunRecord | None:
        """The run whose effects are neither committed nor undone, if there is one; at most one can be."""
        rows = self._rows(
            f"{_SELECT_RUN} WHERE status IN ('running', 'paused', 'awaiting_approval', 'needs_attention')"
            " ORDER BY number DESC LIMIT 1"
        )
        return self._run(rows[0]) if rows else None

    def cancel_requested(self, run_id: str) -> bool:
        """Whether somebody asked for the run's end."""
        return any(row[0] for row in self._rows("SELECT cancel_requested FROM runs WHERE id = ?", run_id))

    @staticmethod
    def _run(row: tuple[Any, ...]) -> RunRecord:
        values = list(row)
        for index in (3, 4, 5, 11, 12):
            values[index] = json.loads(values[index]) if values[index] else None
        return RunRecord(*values)

    # Steps.

    def record_step(self, run_id: str, step: StepRecord, *, done: bool = False) -> None:
        """Record how a step stands; with `done`, its intents become done in the same transaction."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run_id,
                    step.id,
                    step.op,
                    step.status,
                    step.attempts,
                    step.duration,
                    None if step.outputs is None else json.dumps(step.outputs),
                    None if step.error is None else json.dumps(step.error),
                ),
            )
            if done:
                self._mark_done(database, run_id, step.id)

    def set_step_status(self, run_id: str, step_ids: str | Iterable[str], status: str) -> None:
        """Change how steps stand, and nothing else of them."""
        changed = [step_ids] if isinstance(step_ids, str) else step_ids
        with self._transaction() as database:
            database.executemany(
                "UPDATE steps SET status = ? WHERE run = ? AND id = ?", [(status, run_id, each) for each in changed]
            )

    @staticmethod
    def _mark_done(database: sqlite3.Connection, run_id: str, step_id: str) -> None:
        database.execute(
            "UPDATE effects SET state = ? WHERE run = ? AND step = ? AND state = ?",
            (EffectState.DONE, run_id, step_id, EffectState.INTENT),
        )
        database.execute("DELETE FROM captures WHERE run = ? AND step = ?", (run_id, step_id))

    def steps(self, run_id: str) -> dict[str, StepRecord]:
        """The steps of a run, by id."""
        rows = self._rows("SELECT id, op, status, attempts, duration, outputs, error FROM steps WHERE run = ?", run_id)
        return {row[0]: StepRecord(*row[:5], *(json.loads(each) if each else None for each in row[5:])) for row in rows}

    # Effects.

    def intend(
        self, run_id: str, step_id: str, changes: Sequence[Change], content_of: Callable[[str], bytes | None]
    ) -> None:
        """Make INTENTs durable, with the contents before and after that are not stored yet.

        `content_of` gives a content by its digest, or None if it is stored already. Large ones are written first.
        """
        contents = self._new_contents(changes, content_of)
        rows = [
            (
                run_id,
                step_id,
                _encode_path(each.path),
                *map(encode_entry, (each.before, each.after)),
                EffectState.INTENT,
            )
            for each in changes
        ]
        with self._transaction() as database:
            database.executemany("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", contents)
            database.executemany(
                "INSERT INTO effects (run, step, path, before, after, state) VALUES (?, ?, ?, ?, ?, ?)", rows
            )

    def effects(self, run_id: str, step_ids: str | Iterable[str] | None = None) -> list[Effect]:
        """The effects of a run (or of some of its steps) that stand, in the order of writing."""
        query = "SELECT number, step, path, before, after, state FROM effects WHERE run = ? AND state != 'undone'"
        if step_ids is None:
            rows = self._rows(query + " ORDER BY number", run_id)
        else:
            chosen = [step_ids] if isinstance(step_ids, str) else step_ids
            rows = sorted(row for step_id in chosen for row in self._rows(query + " AND step = ?", run_id, step_id))
        return [
            Effect(number, step, _decode_change(*columns), EffectState(state)) for number, step, *columns, state in rows
        ]

    def mark_undone(self, effects: Iterable[Effect], kept: Iterable[Effect] = ()) -> None:
        """Record that these effects have been put back, but for those that are kept."""
        states = [(EffectState.UNDONE, effects), (EffectState.KEPT, kept)]
        rows = [(state, effect.number) for state, several in states for effect in several]
        with self._transaction() as database:
            database.executemany("UPDATE effects SET state = ? WHERE number = ?", rows)

    # Captures.

    def capture(
        self,
        run_id: str,
        step_id: str,
        areas: Sequence[str],
        manifest: Mapping[str, Entry],
        contents: Mapping[str, bytes],
        digests: Mapping[str, tuple[str, str]],
    ) -> None:
        """Make durable what a step that acts by itself may change: all of `manifest`, as it is before the step."""
        encoded = json.dumps({path: encode_entry(entry) for path, entry in manifest.items()})
        rows = [self._content_row(sha256, content) for sha256, content in contents.items()]
        with self._transaction() as database:
            database.executemany("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", rows)
            database.executemany(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?)",
                [(_encode_path(path), *each) for path, each in digests.items()],
            )
            database.execute(
                "INSERT OR REPLACE INTO captures VALUES (?, ?, ?, ?)",
                (run_id, step_id, json.dumps(list(areas)), encoded),
            )

    def captured(self, run_id: str) -> dict[str, tuple[list[str], dict[str, Entry]]]:
        """The captures of steps that have not ended: areas and manifest by step."""
        rows = self._rows("SELECT step, areas, manifest FROM captures WHERE run = ?", run_id)
        return {
            step: (
                json.loads(areas),
                {path: entry for path, text in json.loads(manifest).items() if (entry := decode_entry(text))},
            )
            for step, areas, manifest in rows
        }

    def steps_captured(self, run_id: str) -> list[str]:
        """The steps that have a capture and have not ended."""
        return [step for (step,) in self._rows("SELECT step FROM captures WHERE run = ? ORDER BY step", run_id)]

    def drop_capture(self, run_id: str, step_id: str) -> None:
        """Forget a capture whose step has been undone."""
        with self._transaction() as database:
            database.execute("DELETE FROM captures WHERE run = ? AND step = ?", (run_id, step_id))

    def known_digests(self) -> dict[str, tuple[str, str]]:
        """For files hashed before: stamp (inode, size, times) and digest, by path."""
        rows = self._rows("SELECT * FROM digests")
        return {_decode_path(path): (stamp, sha256) for path, stamp, sha256 in rows}

    # Contents.

    def has_content(self, sha256: str) -> bool:
        """Whether a content is stored."""
        return bool(self._rows("SELECT 1 FROM contents WHERE sha256 = ?", sha256))

    def content(self, sha256: str) -> bytes:
        """A stored content. Raises StateError if it is missing or not what its digest says."""
        rows = self._rows("SELECT compressed, data FROM contents WHERE sha256 = ?", sha256)
        if not rows:
            raise StateError(f"the content {sha256[:12]}… is not in the journal", hint="`qo doctor` checks the journal")
        compressed, data = rows[0]
        try:
            content = self._large(sha256).read_bytes() if data is None else bytes(data)
            content = zlib.decompress(content) if compressed else content
        except (OSError, zlib.error) as error:
            raise StateError(f"the content {sha256[:12]}… cannot be read: {error}") from error
        if digest(content) != sha256:
            raise StateError(f"the content {sha256[:12]}… is damaged", hint="`qo doctor` checks the journal")
        return content

    def _new_contents(
        self, changes: Sequence[Change], content_of: Callable[[str], bytes | None]
    ) -> list[tuple[str, int, bytes | None]]:
        wanted = {
            entry.sha256
            for change in changes
            for entry in (change.before, change.after)
            if entry is not None and entry.kind is Kind.FILE
        }
        rows = []
        for sha256 in sorted(wanted):
            content = content_of(sha256)
            if content is not None:
                rows.append(self._content_row(sha256, content))
        return rows

    def _content_row(self, sha256: str, content: bytes) -> tuple[str, int, bytes | None]:
        packed = zlib.compress(content, 1) if len(content) >= COMPRESS_FROM else content
        compressed = len(packed) < len(content)
        stored = packed if compressed else content
        if len(stored) <= INLINE_BYTES:
            return (sha256, int(compressed), stored)
        try:
            self._write_large(sha256, stored)
        except OSError as error:
            raise self._unwritable(error) from error
        return (sha256, int(compressed), None)

    def _large(self, sha256: str) -> Path:
        return self.folder / "contents" / sha256[:2] / sha256

    def _write_large(self, sha256: str, stored: bytes) -> None:
        """Durable before the row that names it."""
        path = self._large(sha256)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{sha256}.{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.write(stored)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        for folder in (path.parent, path.parent.parent):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    # Approvals.

    def decide(self, run_id: str, step_id: str, *, approved: bool, actor: str) -> bool:
        """Record an approval or a rejection; False if there was one before."""
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT OR IGNORE INTO approvals VALUES (?, ?, ?, ?, ?)",
                (run_id, step_id, int(approved), actor, time.time()),
            )
            return cursor.rowcount == 1

    def decisions(self, run_id: str) -> dict[str, bool]:
        """Approved or not, by step."""
        return {
            step: bool(approved)
            for step, approved in self._rows("SELECT step, approved FROM approvals WHERE run = ?", run_id)
        }

    def log_path(self, run_id: str) -> Path:
        """The run's log, one line an event."""
        return self.folder / "logs" / f"{run_id}.log"


_SELECT_RUN = (
    "SELECT id, set_name, status, document, inputs, options, started_at, ended_at, pid, flow_run_id, ui_url, report,"
    " error FROM runs"
)

"""The durable inbox of every door: what was accepted, and what has become of it.

API, webhooks and watched folders accept by `accept` alone, and acknowledge when it returns: by then the items are on
disk (SQLite, `synchronous=FULL`), with the keys that tell a repetition, in one transaction. A run's id is fixed here,
so that whoever carries it out, after however many deaths, asks the journal whether that run exists, and never begins a
second one. An item is `queued`, then `started`, and `ended` when nothing is left to do about it; it ends once.

Transactions that come at once are joined by one thread, which commits them with one `fsync`; each is in a savepoint of
its own and fails alone. Several processes may use one inbox. It knows nothing of HTTP, of Prefect and of how runs go;
`dispatcher` carries out what is here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from quantum_orchestrator.blocks.errors import InvalidInput, StateError

FILE = "inbox.db"
WAIT_SECONDS = 30
MOST_AT_ONCE = 1_000
"""Transactions that are joined to one; more would keep the first of them waiting."""
KEEP_DAYS = 30
"""For how long repetitions are recognised: longer than any sender tries again."""
_TRIES_FOR_AN_ID = 20

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Any]


class Kind(StrEnum):
    """What is to be done."""

    RUN = "run"
    RESUME = "resume"
    ROLLBACK = "rollback"


class State(StrEnum):
    """How far an item has come."""

    QUEUED = "queued"
    STARTED = "started"
    ENDED = "ended"


class KeyReused(InvalidInput):
    """A key came a second time, with other content."""


class Replayed(InvalidInput):
    """Content that may come once only has come again, under another key."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a door accepts. `source` is `api`, `watch` or `webhook:NAME`, `actor` who is to answer for it.

    `document` is the set's text, as it arrived; `file` is what faults name, `folder` where the sets are that it calls
    (None: it came without one). What goes on with a run, or undoes it, has `run_id` instead of a document.
    """

    source: str
    actor: str
    workspace: Path
    kind: Kind = Kind.RUN
    document: str = ""
    file: str = "set"
    folder: Path | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Once:
    """What makes an acceptance happen once: within `scope`, one `key` is accepted one time.

    The same key with the same `digest` of its content is a repetition, with another one an error. `unseen` are further
    keys that must not have come before under another key.
    """

    scope: str
    key: str
    digest: str = ""
    unseen: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One row. `status` is the run's when it was left, or `refused` or `failed` where none began; times are seconds
    since the epoch."""

    number: int
    run_id: str
    kind: Kind
    source: str
    actor: str
    workspace: Path
    document: str
    file: str
    folder: Path | None
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    state: State
    status: str
    error: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    note: str
    """What it waits for, in words."""
    attempts: int
    accepted_at: float
    started_at: float | None
    ended_at: float | None
    due: float
    """Not to be tried before."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an acceptance: the items, now or when they first came."""

    items: Sequence[int]
    run_ids: Sequence[str]
    repeated: bool = False


_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, kind TEXT NOT NULL, source TEXT NOT NULL,
    actor TEXT NOT NULL, workspace TEXT NOT NULL, document TEXT NOT NULL, file TEXT NOT NULL, folder TEXT,
    inputs TEXT NOT NULL, options TEXT NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL, error TEXT, result TEXT,
    note TEXT NOT NULL, attempts INTEGER NOT NULL, accepted_at REAL NOT NULL, started_at REAL, ended_at REAL,
    due REAL NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_item_a_run ON items (run_id) WHERE kind = 'run';
CREATE INDEX IF NOT EXISTS items_of_run ON items (run_id);
CREATE INDEX IF NOT EXISTS open_items ON items (workspace, number) WHERE state != 'ended';
CREATE TABLE IF NOT EXISTS keys (
    scope TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, items TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (scope, key)
) WITHOUT ROWID;
"""
_COLUMNS = (
    *("number", "run_id", "kind", "source", "actor", "workspace", "document", "file", "folder", "inputs", "options"),
    *("state", "status", "error", "result", "note", "attempts", "accepted_at", "started_at", "ended_at", "due"),
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM items"  # noqa: S608 - here and below, our own names
_INSERT = f"INSERT INTO items ({', '.join(_COLUMNS[1:])}) VALUES ({', '.join('?' * (len(_COLUMNS) - 1))})"  # noqa: S608
_OPEN = f"state != '{State.ENDED}'"
_SETTLING_FIRST = f"ORDER BY kind = '{Kind.RUN}', number"
"""What goes on with a run that waits, or undoes it, comes before the runs that it keeps waiting."""


class Inbox:
    """The inbox of one state folder. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Raises StateError where it cannot be used."""
        self.path = folder / FILE
        self._writer = _Writer(self.path)
        self._reading = threading.Lock()
        with self._reading, _explained(self.path):
            self._connection = _connected(self.path)

    def close(self) -> None:
        """Every acceptance that has begun is over when this returns."""
        self._writer.close()
        with self._reading:
            self._connection.close()

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What doors do.

    def accept(self, arrivals: Sequence[Arrival], once: Once | None = None) -> Accepted:
        """Accept all of them, or none; durable when it returns.

        Raises KeyReused, Replayed, and StateError where it cannot be kept: then nothing was accepted.
        """
        return self.accepting(arrivals, once).result()

    def accepting(self, arrivals: Sequence[Arrival], once: Once | None = None) -> Future[Accepted]:
        """The same for whoever must not block."""
        return self._writer.begin(lambda connection: _accept(connection, arrivals, once))

    def known(self, once: Once) -> Accepted | None:
        """What was accepted under this key before, if anything was. Raises KeyReused, Replayed."""
        with self._reading, _explained(self.path):
            return _known(self._connection, once)

    # What carries them out.

    def begin(self, number: int) -> None:
        """It is about to be tried."""
        sets = "state = ?, attempts = attempts + 1, started_at = coalesce(started_at, ?), note = ''"
        self._change(number, sets, State.STARTED.value, time.time())

    def postpone(self, number: int, note: str, seconds: float) -> None:
        """It cannot be carried out now, and nothing has happened: it is tried again, as if it had not been."""
        sets = "state = ?, attempts = 0, note = ?, due = ?"
        self._change(number, sets, State.QUEUED.value, note, time.time() + seconds)

    def try_again(self, number: int, note: str, seconds: float) -> None:
        """Whoever tried it has died; the attempt counts."""
        self._change(number, "note = ?, due = ?", note, time.time() + seconds)

    def end(
        self,
        number: int,
        status: str,
        error: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Nothing is left to do about it; whether this ended it."""

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute(f"{_SELECT} WHERE number = ? AND {_OPEN}", (number,)).fetchone()
            if row is None:
                return False
            item, now = _item(row), time.time()
            connection.execute(
                "UPDATE items SET state = ?, status = ?, error = ?, result = ?, note = '', ended_at = ?"
                " WHERE number = ?",
                (State.ENDED.value, status, _dumped(error), _dumped(result), now, number),
            )
            if item.kind is not Kind.RUN and error is None:  # the run that it is about has another end now
                connection.execute(
                    f"UPDATE items SET status = ? WHERE run_id = ? AND kind = ? AND NOT ({_OPEN})",  # noqa: S608
                    (status, item.run_id, Kind.RUN.value),
                )
            return True

        return bool(self._writer.begin(work).result())

    def withdraw(self, run_id: str) -> bool:
        """Whether a run that nobody has tried to begin was taken out: it ends as cancelled."""
        statement = "UPDATE items SET state = ?, status = 'cancelled', note = '', ended_at = ?"
        where = " WHERE run_id = ? AND kind = ? AND state = ?"
        values = (State.ENDED.value, time.time(), run_id, Kind.RUN.value, State.QUEUED.value)
        work: Work = lambda connection: connection.execute(statement + where, values).rowcount  # noqa: E731 - one line
        return bool(self._writer.begin(work).result())

    def forget(self, days: float = KEEP_DAYS) -> int:
        """Remove what ended, and keys that came, longer ago; how many items."""
        before = time.time() - days * 86_400

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM keys WHERE at < ?", (before,))
            return connection.execute("DELETE FROM items WHERE ended_at < ?", (before,)).rowcount

        return int(self._writer.begin(work).result())

    def _change(self, number: int, sets: str, *values: Any) -> None:
        statement = f"UPDATE items SET {sets} WHERE number = ? AND {_OPEN}"  # noqa: S608 - our own names
        self._writer.begin(lambda connection: connection.execute(statement, (*values, number)).rowcount).result()

    # What is in it.

    def item(self, number: int) -> Item | None:
        """The item of this number."""
        return next(iter(self._items("WHERE number = ?", number)), None)

    def of_run(self, run_id: str) -> Item | None:
        """The item that a run began as."""
        return next(iter(self._items("WHERE run_id = ? AND kind = ?", run_id, Kind.RUN.value)), None)

    def last_of_run(self, run_id: str) -> Item | None:
        """The newest item about a run."""
        return next(iter(self._items("WHERE run_id = ? ORDER BY number DESC LIMIT 1", run_id)), None)

    def items(self, limit: int = -1, workspace: Path | None = None) -> list[Item]:
        """The newest first; of all workspaces if none is named."""
        where = "" if workspace is None else "WHERE workspace = ? "
        named = () if workspace is None else (str(workspace),)
        return self._items(f"{where}ORDER BY number DESC LIMIT ?", *named, limit)

    def waiting(self, workspace: Path) -> list[Item]:
        """All that has not ended there, the newest first."""
        return self._items(f"WHERE workspace = ? AND {_OPEN} ORDER BY number DESC", str(workspace))

    def next(self, workspace: Path) -> Item | None:
        """What comes next in a workspace, due or not."""
        condition = f"WHERE workspace = ? AND {_OPEN} {_SETTLING_FIRST} LIMIT 1"
        return next(iter(self._items(condition, str(workspace))), None)

    def workspaces(self) -> list[Path]:
        """Those where anything is left to do."""
        return [Path(row[0]) for row in self._rows(f"SELECT DISTINCT workspace FROM items WHERE {_OPEN}")]  # noqa: S608

    def counts(self) -> dict[tuple[str, str], int]:
        """How many items of which source have come to what: their status at the end, else their state."""
        query = f"SELECT source, CASE WHEN {_OPEN} THEN state ELSE status END AS how, count(*) FROM items GROUP BY 1, 2"  # noqa: S608
        return {(source, how): count for source, how, count in self._rows(query)}

    def _items(self, condition: str, *values: Any) -> list[Item]:
        return [_item(row) for row in self._rows(f"{_SELECT} {condition}", *values)]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._reading, _explained(self.path):
            return self._connection.execute(query, values).fetchall()


# Accepting, inside of a transaction.


def _accept(connection: sqlite3.Connection, arrivals: Sequence[Arrival], once: Once | None) -> Accepted:
    if once is not None:
        known = _known(connection, once)
        if known is not None:
            return known
    added = [_add(connection, each) for each in arrivals]
    accepted = Accepted([number for number, _ in added], [run_id for _, run_id in added])
    if once is not None:
        rows = [(once.scope, key, once.digest, json.dumps(accepted.items), time.time()) for key in _keys(once)]
        connection.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?)", rows)
    return accepted


def _keys(once: Once) -> list[str]:
    return [f"key:{once.key}", *(f"seen:{each}" for each in once.unseen)]


def _known(connection: sqlite3.Connection, once: Once) -> Accepted | None:
    """What was accepted under this key before."""
    query = "SELECT digest, items FROM keys WHERE scope = ? AND key = ?"
    for key in _keys(once):
        row = connection.execute(query, (once.scope, key)).fetchone()
        if row is None:
            continue
        if not key.startswith("key:"):
            raise Replayed(f"{once.scope}: this content has come before, under another id", hint="nothing is run twice")
        if row[0] != once.digest:
            raise KeyReused(
                f"{once.scope}: the key {once.key!r} came before, with other content", hint="use a key for one request"
            )
        numbers = json.loads(row[1])
        runs = [connection.execute("SELECT run_id FROM items WHERE number = ?", (each,)).fetchone() for each in numbers]
        return Accepted(numbers, [run[0] for run in runs if run is not None], repeated=True)
    return None


def _add(connection: sqlite3.Connection, arrival: Arrival) -> tuple[int, str]:
    from quantum_orchestrator.flows.requests import new_run_id

    for _ in range(_TRIES_FOR_AN_ID):  # a second has 16 million ids: hundreds a second meet one that is taken
        run_id = arrival.run_id or new_run_id()
        try:
            number = connection.execute(_INSERT, _row(arrival, run_id)).lastrowid
        except sqlite3.IntegrityError:
            if arrival.run_id is not None:
                raise
            continue
        return int(number or 0), run_id
    raise StateError("the inbox finds no id for another run", hint="try again in a second")


def _row(arrival: Arrival, run_id: str) -> tuple[Any, ...]:
    return (
        run_id,
        arrival.kind.value,
        arrival.source,
        arrival.actor,
        str(arrival.workspace),
        arrival.document,
        arrival.file,
        None if arrival.folder is None else str(arrival.folder),
        json.dumps(dict(arrival.inputs)),
        json.dumps(dict(arrival.options)),
        State.QUEUED.value,
        *("", None, None, "", 0, time.time(), None, None, 0.0),
    )


def _item(row: Sequence[Any]) -> Item:
    values = dict(zip(_COLUMNS, row, strict=True))
    values |= {"kind": Kind(values["kind"]), "state": State(values["state"]), "workspace": Path(values["workspace"])}
    values["folder"] = None if values["folder"] is None else Path(values["folder"])
    for name in ("inputs", "options", "error", "result"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Item(**values)


def _dumped(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(dict(value), default=str)


# The database.


def _connected(path: Path) -> sqlite3.Connection:
    """A connection that loses nothing that it has committed. Raises sqlite3.Error."""
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> StateError:
    hint = "check the space left and the permissions there"
    return StateError(f"the inbox {path} cannot be used: {error}", hint=hint)


class _Writer:
    """One thread that does everybody's transactions. It is started by the first of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._works: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, work: Callable[[sqlite3.Connection], Result]) -> Future[Result]:
        """Do this within a transaction; the future has its result once that is durable."""
        future: Future[Result] = Future()
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
                self._thread.start()
            self._works.put((work, future))
        return future

    def close(self) -> None:
        """After everything that was begun."""
        with self._starting:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._works.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        going_on = True
        while going_on:
            batch, going_on = self._batch()
            if not batch:
                continue
            try:
                connection = connection or _connected(self._path)
                outcomes = _together(connection, [work for work, _ in batch])
            except (sqlite3.Error, OSError) as error:
                problem = _unusable(self._path, error)
                outcomes = [problem] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        if connection is not None:
            connection.close()

    def _batch(self) -> tuple[list[tuple[Work, Future[Any]]], bool]:
        """What is there, at least one; and whether to go on afterwards."""
        batch: list[tuple[Work, Future[Any]]] = []
        try:
            while len(batch) < MOST_AT_ONCE:
                found = self._works.get(block=not batch)
                if found is None:
                    return batch, False
                if found[1].set_running_or_notify_cancel():  # whoever asked may have gone
                    batch.append(found)
        except queue.Empty:
            pass  # nobody else has come
        return batch, True


def _together(connection: sqlite3.Connection, works: Sequence[Work]) -> list[Any]:
    """The result of each, or the exception that it raised; all that is done is durable. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [_alone(connection, work) for work in works]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return outcomes


def _alone(connection: sqlite3.Connection, work: Work) -> Any:
    connection.execute("SAVEPOINT one")
    try:
        outcome = work(connection)
    except sqlite3.OperationalError:
        raise  # the disk is full, or worse: nobody's work stays
    except Exception as error:
        connection.execute("ROLLBACK TO one")
        outcome = error
    connection.execute("RELEASE one")
    return outcome

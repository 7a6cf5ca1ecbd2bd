"""The journal's file: one SQLite database that loses nothing it has acknowledged, and notices what was done to it.

Writing. Transactions of threads that come at once are joined: one of them leads, does everybody's work (each in a
savepoint of its own, so that one which fails fails alone) and commits once, with one `fsync`; then all return. It has
two strengths: a durable transaction survives a power cut; one that is not durable survives `kill -9`, and becomes safe
from a power cut with the next durable one, as the write-ahead log is written in order.

Noticing. SQLite believes what it finds in its file, so three things are checked on top of it:

    row sums     every row of `TABLES` ends in a checksum over its columns; no row is read or changed without a look at
                 it, so that damage can neither be believed nor be given a good sum
    ledger       one row: a number that durable transactions raise, and how many rows each table has. Effects are
                 numbered without a gap instead
    `sequence`   a small file beside the database with that number and the newest effect's, as of the last durable
                 transaction. It is written after the COMMIT and never synced, so it may be behind; a database that is
                 behind *it* has lost its end

A file `sequence` that is missing, empty or damaged says nothing, and is not held against the database.

This module knows tables and rows, but not what they mean; `blocks/journal.py` does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from quantum_orchestrator.blocks.errors import StateError

VERSION = 2
WAIT_SECONDS = 30
"""For as long, another process may write."""
CACHE_KIB = 32 * 1024
CHECKPOINT_PAGES = 8 * 1024
"""So many pages of the write-ahead log are carried over at once: a large run writes some pages of contents often."""
MANY_PAGES = 256
"""As many empty ones (1 MiB) are worth writing the file anew."""

_FAILURES = (sqlite3.Error, UnicodeDecodeError)
"""SQLite quotes the damage that it finds, and Python cannot read every quotation."""

Row = tuple[Any, ...]
Result = TypeVar("Result")

DAMAGE_HINT = "`qo doctor` says more; a copy of the folder helps to find out what happened to it"


AMONG = "IN (SELECT value FROM json_each(?))"
"""A condition on one of many, given as JSON: one query, however many there are."""
_NEWEST_EFFECT = "SELECT coalesce(max(number), 0) FROM effects"


class Table:
    """A table whose rows end in a checksum, and the statements for whole rows."""

    def __init__(self, name: str, key: str, columns: str, reals: str = "") -> None:
        """Names with blanks between them: of the columns that name a row, of all, and of those that are fractions."""
        self.name = name
        self.key = tuple(key.split())
        self.columns = tuple(columns.split())
        self.reals = [self.columns.index(column) for column in reals.split()]
        self.key_places = [self.columns.index(column) for column in self.key]
        self.is_row = " AND ".join(f"{column} = ?" for column in self.key)
        listed = ", ".join(self.columns)
        self.selection = f"SELECT {listed}, sum FROM {name}"  # noqa: S608 - our own names
        self.values = f"INTO {name} ({listed}, sum) VALUES ({', '.join('?' * (len(self.columns) + 1))})"

    def place(self, column: str) -> int:
        """Where a column is in a row."""
        return self.columns.index(column)

    def key_of(self, row: Row) -> str:
        """What names a row, for messages."""
        return " ".join(str(row[place]) for place in self.key_places)


RUNS = Table(
    "runs",
    "number",
    "number id set_name status document inputs options started_at ended_at pid flow_run_id ui_url report error"
    " cancel_requested boot_id told_crashed predicted pruned",
    reals="started_at ended_at",
)
STEPS = Table("steps", "run id", "run id op status attempts duration outputs error", reals="duration")
EFFECTS = Table("effects", "number", "number run step path before after state")
CAPTURES = Table("captures", "run step", "run step areas manifest")
OUTBOX = Table("outbox", "run step", "run step key state")
APPROVALS = Table("approvals", "run step", "run step approved actor at", reals="at")
EXCHANGES = Table(
    "exchanges",
    "run step number",
    "run step number request state used input_tokens output_tokens money seconds answer",
    reals="money seconds",
)
TABLES = (RUNS, STEPS, EFFECTS, CAPTURES, OUTBOX, APPROVALS, EXCHANGES)
UNFINISHED_STATUSES = ("running", "paused", "awaiting_approval", "needs_attention")
IS_UNFINISHED = f"status IN {UNFINISHED_STATUSES}"
UNFINISHED = "unfinished"
"""Counted in the ledger beside the rows of the tables: how many runs have not come to an end."""
COUNTED = (RUNS, CAPTURES, OUTBOX, APPROVALS)
"""Tables of which no row may be lost; a step that was would be undone and run again."""
LAST_EFFECT, REMOVED = "last_effect", "removed"
"""Effects are numbered without a gap. The ledger says how far, when some were last removed, and how many have been."""
LEDGER = Table(
    "ledger", "id", " ".join(("id sequence", LAST_EFFECT, REMOVED, UNFINISHED, *(each.name for each in COUNTED)))
)

_SCHEMA = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, set_name TEXT NOT NULL, status TEXT NOT NULL,
    document TEXT NOT NULL, inputs TEXT NOT NULL, options TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL,
    pid INTEGER NOT NULL, flow_run_id TEXT, ui_url TEXT, report TEXT, error TEXT, cancel_requested INTEGER NOT NULL,
    boot_id TEXT, told_crashed INTEGER NOT NULL, predicted TEXT, pruned INTEGER NOT NULL, sum BLOB NOT NULL
);
CREATE TABLE steps (
    run TEXT NOT NULL, id TEXT NOT NULL, op TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL,
    duration REAL, outputs TEXT, error TEXT, sum BLOB NOT NULL, PRIMARY KEY (run, id)
) WITHOUT ROWID;
CREATE TABLE effects (
    number INTEGER PRIMARY KEY, run TEXT NOT NULL, step TEXT NOT NULL, path TEXT NOT NULL, before TEXT, after TEXT,
    state TEXT NOT NULL, sum BLOB NOT NULL
);
CREATE INDEX effects_of_step ON effects (run, step, number);
CREATE TABLE captures (
    run TEXT NOT NULL, step TEXT NOT NULL, areas TEXT NOT NULL, manifest TEXT NOT NULL, sum BLOB NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE outbox (
    run TEXT NOT NULL, step TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL, sum BLOB NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE approvals (
    run TEXT NOT NULL, step TEXT NOT NULL, approved INTEGER NOT NULL, actor TEXT NOT NULL, at REAL NOT NULL,
    sum BLOB NOT NULL, PRIMARY KEY (run, step)
) WITHOUT ROWID;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, last_effect INTEGER NOT NULL, removed INTEGER NOT NULL,
    unfinished INTEGER NOT NULL, runs INTEGER NOT NULL, captures INTEGER NOT NULL, outbox INTEGER NOT NULL,
    approvals INTEGER NOT NULL, sum BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS contents (
    sha256 TEXT PRIMARY KEY, compressed INTEGER NOT NULL, data BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS digests (
    path TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID;
"""

_LATER = """
CREATE TABLE IF NOT EXISTS exchanges (
    run TEXT NOT NULL, step TEXT NOT NULL, number INTEGER NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
    used INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, money REAL,
    seconds REAL NOT NULL, answer TEXT, sum BLOB NOT NULL, PRIMARY KEY (run, step, number)
) WITHOUT ROWID
"""
"""What came to this version later, and an older program may go on without: it is made where it is missing."""
_OF_VERSION_1 = {
    RUNS: "number, id, set_name, status, document, inputs, options, started_at, ended_at, pid, flow_run_id, ui_url,"
    " report, error, coalesce(cancel_requested, 0), NULL, 0, NULL, 0",
    STEPS: "*",
    EFFECTS: "*",
    CAPTURES: "*",
    APPROVALS: "*",
}
"""What version 1, which had no checksums, held of each table's columns."""


def row_sum(table: Table, row: Row) -> bytes:
    """The checksum of a row without one, from its table's name and its columns, as SQLite gives them back: 8 bytes."""
    return blake2b(ascii((table.name, row)).encode(), digest_size=8).digest()


def summed(table: Table, row: Row) -> Row:
    """A row with its checksum, its values as SQLite gives them back."""
    if not _PLAIN.issuperset(map(type, row)):
        row = tuple([value if type(value) in _PLAIN else _plain(value) for value in row])
    if table.reals:
        plain = list(row)
        for place in table.reals:
            if plain[place] is not None:
                plain[place] = float(plain[place])
        row = tuple(plain)
    return (*row, row_sum(table, row))


_PLAIN = frozenset((str, int, type(None), float, bytes))


def _plain(value: Any) -> str | int:
    return str(value) if isinstance(value, str) else int(value)  # members of enums, and booleans


def is_right(table: Table, row: Row) -> bool:
    """Whether a whole row has the checksum that it ends in."""
    return bool(row_sum(table, row[:-1]) == row[-1])


def _only(cursor: sqlite3.Cursor) -> Row:
    row: Row = cursor.fetchone()
    return row


def is_full(error: BaseException) -> bool:
    """Whether it is for want of space: even to read, SQLite must make its shared memory file."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


class Transaction:
    """What one transaction does. Rows are given and taken without their checksums."""

    def __init__(self, connection: sqlite3.Connection, damaged: Callable[[str], StateError], ledger: Row) -> None:
        self._connection = connection
        self._damaged = damaged
        self._ledger = ledger
        self._counts: dict[str, int] = dict(zip(LEDGER.columns[2:], ledger[2:-1], strict=True))
        self.sequence: int = ledger[1] + 1
        self.counts = dict(self._counts)
        self.newest = 0
        """The newest effect of this transaction."""

    @property
    def is_open(self) -> bool:
        """Whether SQLite has not given it up."""
        return self._connection.in_transaction

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Anything, in tables that have no checksums."""
        return self._connection.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Row]) -> None:
        """The same for several rows."""
        self._connection.executemany(statement, rows)

    def select(self, table: Table, where: str, *values: Any) -> list[Row]:
        """The rows that meet a condition. Raises StateError for one that is damaged."""
        rows = self._connection.execute(f"{table.selection} WHERE {where}", values).fetchall()
        return [checked(table, row, self._damaged) for row in rows]

    def last_effect(self) -> int:
        """The number of the newest effect that ever was."""
        (newest,) = _only(self._connection.execute(_NEWEST_EFFECT))
        return max(self.counts[LAST_EFFECT], int(newest))

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows."""
        self._connection.executemany(f"INSERT {table.values}", [summed(table, row) for row in rows])
        self._count(table, len(rows))

    def put_all(self, table: Table, rows: Iterable[Row]) -> None:
        """The same as `put` for several rows of a table that is not counted."""
        self._connection.executemany(f"INSERT OR REPLACE {table.values}", [summed(table, row) for row in rows])

    def put(self, table: Table, row: Row) -> None:
        """Add a row, or write it over the one with the same key."""
        query = f"SELECT 1 FROM {table.name} WHERE {table.is_row}"  # noqa: S608 - our own names
        if not self._connection.execute(query, row[: len(table.key)]).fetchall():
            self._count(table, 1)
        self._connection.execute(f"INSERT OR REPLACE {table.values}", summed(table, row))

    def change(self, table: Table, changes: Mapping[str, Any], where: str, *values: Any) -> list[Row]:
        """Set columns of the rows that meet a condition; the rows as they were."""
        found = self.select(table, where, *values)
        places = [(table.place(name), value) for name, value in changes.items()]
        updates = []
        for row in found:
            changed = list(row)
            for place, value in places:
                changed[place] = value
            whole = summed(table, tuple(changed))
            updates.append((*(whole[place] for place, _ in places), whole[-1], *(row[at] for at in table.key_places)))
        columns = "".join(f"{name} = ?, " for name in changes)
        if updates:
            statement = f"UPDATE {table.name} SET {columns}sum = ? WHERE {table.is_row}"  # noqa: S608 - our own names
            self._connection.executemany(statement, updates)
        return found

    def delete(self, table: Table, where: str, *values: Any) -> int:
        """Remove the rows that meet a condition; how many."""
        statement = f"DELETE FROM {table.name} WHERE {where}"  # noqa: S608 - our own names
        removed: int = self._connection.execute(statement, values).rowcount
        self._count(table, -removed)
        return removed

    def _count(self, table: Table, more: int) -> None:
        if table in COUNTED:
            self.counts[table.name] += more

    def end(self, *, noted: bool) -> Row:
        """Write the ledger if something in it has changed, or this is to be noted; the last thing that is done."""
        if not noted and self.counts == self._counts:
            return self._ledger
        row = summed(LEDGER, (0, self.sequence, *self.counts.values()))
        self._connection.execute(f"REPLACE {LEDGER.values}", row)
        return row


def checked(table: Table, row: Row, damaged: Callable[[str], StateError]) -> Row:
    """A row without its checksum. Raises what `damaged` makes if that is not right."""
    if not is_right(table, row):
        raise damaged(f"the row {table.key_of(row)!r} of {table.name} is damaged")
    return row[:-1]


@dataclass(slots=True, eq=False)
class _Entry:
    """One thread's work, and what became of it."""

    work: Callable[[Transaction], Any]
    durable: bool
    noted: bool
    gate: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False
    result: Any = None
    error: BaseException | None = None
    interrupt: BaseException | None = None

    def __post_init__(self) -> None:
        self.gate.acquire()

    def wait(self) -> None:
        """Until the work has ended, or is this thread's to lead.

        An interrupt is kept until the end: nobody else would lead in its place.
        """
        while True:
            try:
                self.gate.acquire()
            except BaseException as interrupt:
                self.interrupt = interrupt
            else:
                return

    def end(self, error: BaseException | None = None) -> None:
        """It has ended: well, if it has failed neither before nor now."""
        self.ended = True
        self.error = self.error or error


class Mark(NamedTuple):
    """How far a database has come: the ledger's sequence number, and the number of the newest effect."""

    sequence: int = 0
    effect: int = 0


class SequenceFile:
    """How far the database had come with the last durable transaction: two numbers of 8 bytes, and a checksum."""

    _FORMAT = struct.Struct("<QQ8s")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def read(self) -> Mark:
        """The numbers; zeros if the file says nothing."""
        content = os.pread(self._descriptor, self._FORMAT.size, 0)
        if len(content) == self._FORMAT.size:
            *numbers, proof = self._FORMAT.unpack(content)
            mark = Mark(*numbers)
            if proof == self._proof(mark):
                return mark
        return Mark()

    def is_damaged(self) -> bool:
        """Whether something is in it that nobody wrote; zeros may be left by a power cut."""
        content = os.pread(self._descriptor, self._FORMAT.size + 1, 0)
        return any(content) and (self.read() == Mark() or len(content) != self._FORMAT.size)

    def write(self, mark: Mark) -> None:
        """Set the numbers. What cannot be written is behind, as after a power cut: that is allowed."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, self._FORMAT.pack(*mark, self._proof(mark)), 0)

    @staticmethod
    def _proof(mark: Mark) -> bytes:
        return blake2b(struct.pack("<QQ", *mark), digest_size=8).digest()


class Database:
    """The journal's database. Any number of threads may use one object at once.

    One connection writes; whoever wants to read meanwhile gets another one, and need not wait for the disk.
    """

    def __init__(self, folder: Path) -> None:
        """Open the database in `folder`; made if nothing is there. Raises StateError."""
        self.path = folder / "journal.db"
        self._mutex = threading.Lock()  # of the queue
        self._queue: list[_Entry] = []
        self._is_led = False
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._second: sqlite3.Connection | None = None
        self._is_durable = True
        self._known: Row = (0, 0)  # the newest ledger that this process has seen
        self._mark = Mark()
        with contextlib.ExitStack() as opened:
            try:
                opening = opened.enter_context((folder / "opening").open("w"))
                fcntl.flock(opening, fcntl.LOCK_EX)  # SQLite does not wait while another makes the file
                self._file = SequenceFile(folder / "sequence")
                opened.callback(self._file.close)
                floor = self._file.read()  # before the database, which may go on meanwhile
                self._writer = self._connect(opened)
                self._prepare(floor)
            except (*_FAILURES, OSError) as error:
                raise self.unreadable(error) from error
            self._opened = opened.pop_all()
            opening.close()

    def _connect(self, opened: contextlib.ExitStack) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        opened.callback(connection.close)
        connection.execute("PRAGMA cell_size_check=1")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        return connection

    def close(self) -> None:
        """Close it; the last one to do so empties the write-ahead log."""
        self._opened.close()

    # Opening.

    def _prepare(self, floor: Mark) -> None:
        """Bring the tables to this version. Raises StateError if the end of the database has been lost."""
        database = self._writer
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (objects,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version > VERSION:
            raise StateError(f"{self.path}: was written by a newer version", hint="use that version, or a newer one")
        if version < VERSION and (not objects or version) and floor != Mark():
            raise self._behind(Mark(), floor)  # before the file is written anew, which alone knows of it
        if version == 0 and objects:
            raise self.damaged("it holds tables, but not of any version")
        if version < VERSION:
            self._migrate(version)
        database.execute(_LATER)
        database.execute("BEGIN")  # of one moment: effects may be removed by another process meanwhile
        try:
            self._known = self._ledger()
            self._mark = Mark(self._known[1], max(self._known[2], *_only(database.execute(_NEWEST_EFFECT))))
        finally:
            database.execute("ROLLBACK")
        if self._mark.sequence < floor.sequence or self._mark.effect < floor.effect:
            raise self._behind(self._mark, floor)

    def _migrate(self, version: int) -> None:
        """In one transaction: whoever is killed meanwhile leaves the older version."""
        database = self._writer
        older = _OF_VERSION_1 if version == 1 else {}
        renamed = "".join(f"ALTER TABLE {table.name} RENAME TO old_{table.name};" for table in older)
        try:
            database.executescript(f"BEGIN IMMEDIATE; {renamed} DROP INDEX IF EXISTS effects_of_step; {_SCHEMA}")
            counts = dict.fromkeys(LEDGER.columns[2:], 0)
            for table, columns in older.items():
                rows = database.execute(f"SELECT {columns} FROM old_{table.name}").fetchall()  # noqa: S608 - our names
                database.executemany(f"INSERT {table.values}", [summed(table, row) for row in rows])
                database.execute(f"DROP TABLE old_{table.name}")
                if table in COUNTED:
                    counts[table.name] = len(rows)
            (counts[UNFINISHED],) = _only(database.execute(f"SELECT count(*) FROM runs WHERE {IS_UNFINISHED}"))  # noqa: S608
            (counts[LAST_EFFECT],) = _only(database.execute(_NEWEST_EFFECT))
            counts[REMOVED] = counts[LAST_EFFECT] - _only(database.execute("SELECT count(*) FROM effects"))[0]
            database.execute(f"INSERT {LEDGER.values}", summed(LEDGER, (0, 1, *counts.values())))
            database.execute(f"PRAGMA user_version={VERSION}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._file.write(Mark(1, counts[LAST_EFFECT]))

    def _ledger(self) -> Row:
        rows = self._writer.execute(LEDGER.selection).fetchall()
        if len(rows) != 1 or (rows[0] != self._known and not is_right(LEDGER, rows[0])):
            raise self.damaged("its ledger is damaged")
        return tuple(rows[0])

    # Writing.

    def write(self, work: Callable[[Transaction], Result], *, durable: bool = True, noted: bool = True) -> Result:
        """Do some work in a transaction; what it returns, once that is safe. Raises what the work raised, StateError if
        the transaction failed: then nothing of it is there.

        Only what the numbers of effects show, should it be lost, or what may be, need not be `noted` in the ledger.
        """
        entry = _Entry(work, durable, durable and noted)
        with self._mutex:
            self._queue.append(entry)
            leads, self._is_led = not self._is_led, True
        if not leads:
            entry.wait()
        if not entry.ended:
            self._lead(entry)
        if entry.error is not None:
            if isinstance(entry.error, (*_FAILURES, InterruptedError)):
                raise self.unwritable(entry.error) from entry.error
            raise entry.error
        if entry.interrupt is not None:
            raise entry.interrupt
        result: Result = entry.result
        return result

    def _lead(self, own: _Entry) -> None:
        """Do the work of all who wait, and let one of those who came meanwhile lead next."""
        with self._mutex:
            batch, self._queue = self._queue, []
        error: BaseException | None = None
        try:
            with self._writing:
                self._commit(batch)
        except BaseException as problem:
            error = problem
        with self._mutex:
            heir = self._queue[0] if self._queue else None
            self._is_led = heir is not None
        for entry in batch:
            is_theirs = entry is own or error is None or isinstance(error, Exception)
            entry.end(error if is_theirs else InterruptedError("whoever wrote for all was interrupted"))
            entry.gate.release()
        if heir is not None:
            heir.gate.release()

    def _commit(self, batch: Sequence[_Entry]) -> None:
        database = self._writer
        durable = any(entry.durable for entry in batch)
        if durable is not self._is_durable:
            database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        try:
            database.execute("BEGIN IMMEDIATE")
            transaction = Transaction(database, self.damaged, self._ledger_to_write())
            for entry in batch:
                self._perform(entry, transaction, alone=len(batch) == 1)
            ledger = transaction.end(noted=any(entry.noted for entry in batch))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        self._known = ledger
        self._mark = Mark(ledger[1], max(self._mark.effect, transaction.newest))
        if durable:
            self._file.write(self._mark)

    def _ledger_to_write(self) -> Row:
        ledger = self._ledger()
        if ledger[1] < self._mark.sequence:
            raise self._behind(Mark(ledger[1], self._mark.effect), self._mark)
        return ledger

    @staticmethod
    def _perform(entry: _Entry, transaction: Transaction, *, alone: bool) -> None:
        """Do one entry's work. Raises only what must end the whole transaction."""
        if alone:
            entry.result = entry.work(transaction)
            return
        counts = dict(transaction.counts)
        transaction.execute("SAVEPOINT entry")
        try:
            entry.result = entry.work(transaction)
        except Exception as error:
            if not transaction.is_open:  # SQLite has given up everything, for want of space for instance
                raise
            transaction.execute("ROLLBACK TO entry")
            transaction.counts = counts
            entry.error = error
        transaction.execute("RELEASE entry")

    def compact(self) -> None:
        """Empty the write-ahead log, and write the file anew if much of it is empty; if there is room for that."""
        (pages,), (empty,) = (self.read(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count"))
        statements = ["VACUUM"] * (empty >= MANY_PAGES and empty * 4 >= pages) + ["PRAGMA wal_checkpoint(TRUNCATE)"]
        try:
            with self._writing:
                for statement in statements:
                    self._writer.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return  # somebody reads meanwhile, or the disk is full: what is empty in it is used again
        except _FAILURES as error:
            raise self.unwritable(error) from error

    # Reading.

    def read(self, query: str, *values: Any) -> list[Row]:
        """The rows of any query, as they are. Raises StateError."""
        try:
            if self._writing.acquire(blocking=False):  # the connection that has the pages at hand
                try:
                    return self._writer.execute(query, values).fetchall()
                finally:
                    self._writing.release()
            with self._reading:
                return self._reader().execute(query, values).fetchall()
        except _FAILURES as error:
            raise self.unreadable(error) from error

    def _reader(self) -> sqlite3.Connection:
        """A second connection, for whoever reads while another thread writes: it need not wait for the disk."""
        if self._second is None:
            self._second = self._connect(self._opened)
            self._second.execute("PRAGMA query_only=1")
        return self._second

    def select(self, table: Table, where: str, *values: Any) -> list[Row]:
        """The rows that meet a condition, without their checksums. Raises StateError for one that is damaged."""
        return [checked(table, row, self.damaged) for row in self.read(f"{table.selection} WHERE {where}", *values)]

    # Judging.

    def require_sound(self) -> None:
        """Raises StateError if rows may be missing, or the tables cannot be trusted. Contents prove themselves."""
        for problem in self._problems():
            raise self.damaged(problem)

    def problems(self) -> list[str]:
        """Everything that is wrong with the database: its structure, its tables, every row."""
        found = list(self._problems())
        if self._file.is_damaged():
            found.append(f"{self._file.path}: damaged; the next run writes it anew")
        for table in TABLES:
            try:
                rows = self.read(table.selection)
            except StateError as error:
                found.append(error.message)
                continue
            wrong = [row for row in rows if not is_right(table, row)]
            found += [f"the row {table.key_of(row)!r} of {table.name} is damaged" for row in wrong]
        return found

    def _problems(self) -> Iterator[str]:
        """What SQLite finds in the file (some ms for each of its MB), and rows that are missing or too many."""
        try:
            yield from (row[0] for row in self.read("PRAGMA integrity_check") if row[0] != "ok")
            yield from self._miscounts()
        except StateError as error:
            yield error.message

    def _miscounts(self) -> Iterator[str]:
        names = ("effects", UNFINISHED, *(table.name for table in COUNTED))
        counted = ["(SELECT count(*) FROM effects NOT INDEXED)"]
        counted += [f"(SELECT count(*) FROM runs WHERE {IS_UNFINISHED})"]  # noqa: S608 - our own names
        counted += [f"(SELECT count(*) FROM {table.name} NOT INDEXED)" for table in COUNTED]  # noqa: S608
        wanted = [f"max(last_effect, ({_NEWEST_EFFECT}), ?) - removed", *names[1:]]
        least = max(self._mark.effect, self._file.read().effect)
        rows = self.read(f"SELECT {', '.join(wanted)}, {', '.join(counted)} FROM ledger", least)  # noqa: S608
        for row in rows:
            for name, due, found in zip(names, row[: len(names)], row[len(names) :], strict=True):
                if due != found:
                    yield f"{found} rows of {name} are there, and {due} should be"

    def damaged(self, what: str) -> StateError:
        """The error for damage."""
        return StateError(f"{self.path}: the journal is damaged: {what}", hint=DAMAGE_HINT)

    def _behind(self, mark: Mark, floor: Mark) -> StateError:
        found, written = (f"transaction {each.sequence}, effect {each.effect}" for each in (mark, floor))
        return StateError(
            f"{self.path}: the end of the journal is lost: it ends with {found}, and {written} was written",
            hint=f"put the newest copy of {self.path.parent} back; if this is one, remove {self._file.path}",
        )

    def unreadable(self, error: Exception) -> StateError:
        """The error for what SQLite or the system says while reading."""
        return StateError(
            f"{self.path}: the journal cannot be read: {error}",
            hint="free some disk space, and try again" if is_full(error) else DAMAGE_HINT,
        )

    def unwritable(self, error: Exception) -> StateError:
        """The error for what SQLite or the system says while writing."""
        return StateError(
            f"{self.path}: the journal cannot be written: {error}",
            hint="free some disk space or check the folder's permissions; nothing was changed unrecorded",
        )

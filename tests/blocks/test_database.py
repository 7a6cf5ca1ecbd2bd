"""The journal's database: transactions that are joined, damage that is noticed, and the older version."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from quantum_orchestrator.blocks.database import APPROVALS, OUTBOX, VERSION, Database, Mark, SequenceFile, Transaction
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.journal import EffectState, Journal, RunRecord, StepRecord
from quantum_orchestrator.blocks.tree import Change, file_entry

RUN = RunRecord("r1", "set", "running", {}, {}, {}, 1.0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path)
    yield opened
    opened.close()


def post(transaction: Transaction, step: str) -> str:
    transaction.insert(OUTBOX, [("r1", step, "key", "trying")])
    return step


def steps_of(database: Database) -> list[str]:
    return sorted(row[1] for row in database.select(OUTBOX, "1"))


# Joined transactions.


class Traffic:
    """Threads whose work is joined: the first one leads, and holds the others up until all of them wait."""

    def __init__(self, database: Database, *works: object) -> None:
        self.database = database
        self.outcomes: dict[int, object] = {}
        self.commits = 0
        self._all_wait = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=each) for each in enumerate(works)]

    def _write(self, number: int, work: object) -> None:
        try:
            self.outcomes[number] = self.database.write(work)  # type: ignore[arg-type]
        except Exception as error:
            self.outcomes[number] = error

    def _first(self, transaction: Transaction) -> str:
        assert self._all_wait.wait(10)
        return post(transaction, "first")

    def run(self) -> None:
        first = threading.Thread(target=self._write, args=(-1, self._first))
        first.start()
        while not self.database._is_led:
            pass
        for thread in self._threads:
            thread.start()
        while len(self.database._queue) < len(self._threads):
            pass
        self._all_wait.set()
        for thread in [first, *self._threads]:
            thread.join(10)


def counting(database: Database) -> mock.Mock:
    return mock.patch.object(database, "_commit", wraps=database._commit).start()


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    mock.patch.stopall()


def test_threads_that_come_while_one_writes_share_the_next_transaction(database: Database) -> None:
    commits = counting(database)
    traffic = Traffic(database, *(lambda each, name=f"s{number}": post(each, name) for number in range(7)))
    traffic.run()
    assert [len(call.args[0]) for call in commits.call_args_list] == [1, 7]
    assert traffic.outcomes == {-1: "first"} | {number: f"s{number}" for number in range(7)}
    assert steps_of(database) == ["first", *(f"s{number}" for number in range(7))]


def test_one_that_fails_fails_alone(database: Database) -> None:
    def fail(transaction: Transaction) -> None:
        post(transaction, "half done")
        raise ValueError("mine")

    def refused(transaction: Transaction) -> None:
        post(transaction, "first")  # there is one already

    traffic = Traffic(database, lambda each: post(each, "a"), fail, refused, lambda each: post(each, "b"))
    traffic.run()
    assert steps_of(database) == ["a", "b", "first"]
    assert isinstance(traffic.outcomes[1], ValueError)
    assert isinstance(traffic.outcomes[2], StateError)
    assert (traffic.outcomes[0], traffic.outcomes[3]) == ("a", "b")
    database.require_sound()


def test_a_commit_that_fails_fails_for_all_of_them(tmp_path: Path) -> None:
    class Refusing(sqlite3.Connection):
        refuses = False

        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:  # type: ignore[override]
            if statement == "COMMIT" and Refusing.refuses:
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(statement, *values)  # type: ignore[arg-type]

    connect = sqlite3.connect
    with mock.patch.object(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Refusing)):
        database = Database(tmp_path)
    database.write(lambda each: post(each, "before"))

    def last(transaction: Transaction) -> None:
        Refusing.refuses = True

    traffic = Traffic(database, lambda each: post(each, "a"), lambda each: post(each, "b"), last)
    traffic.run()
    assert [type(traffic.outcomes[number]) for number in range(3)] == [StateError] * 3
    Refusing.refuses = False
    assert steps_of(database) == ["before", "first"]
    database.write(lambda each: post(each, "after"))
    database.close()


def test_an_interrupt_of_the_one_who_writes_for_all_is_nobody_elses(database: Database) -> None:
    def interrupted(transaction: Transaction) -> None:
        post(transaction, "interrupted")
        raise KeyboardInterrupt

    with mock.patch.object(threading, "excepthook"):
        traffic = Traffic(database, interrupted, lambda each: post(each, "a"))
        traffic.run()
    error = traffic.outcomes[1]
    assert isinstance(error, StateError)
    assert "whoever wrote for all was interrupted" in error.message
    assert steps_of(database) == ["first"]
    assert database.write(lambda each: post(each, "next")) == "next"


def test_whoever_reads_does_not_wait_for_whoever_writes(database: Database) -> None:
    database.write(lambda each: post(each, "before"))
    seen: list[list[str]] = []

    def work(transaction: Transaction) -> None:
        post(transaction, "within")
        reader = threading.Thread(target=lambda: seen.append(steps_of(database)))
        reader.start()
        reader.join(10)

    database.write(work)
    assert seen == [["before"]]
    assert steps_of(database) == ["before", "within"]


def test_only_durable_transactions_are_synced(tmp_path: Path) -> None:
    """As the system sees it."""
    code = (
        "import sys; from pathlib import Path; from quantum_orchestrator.blocks.journal import Journal, StepRecord\n"
        "journal = Journal(Path(sys.argv[1])); journal.record_step('r1', StepRecord('s', 'o', 'running'))\n"
        "print('now', flush=True)\n"
        "for n in range(10): journal.record_step('r1', StepRecord(f's{n}', 'o', 'running'), durable=sys.argv[2] == 'y')"
        "\nprint('then', flush=True)"
    )
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    counts = []
    for durable in "yn":
        (tmp_path / durable).mkdir()
        argv = ["strace", "-f", "-e", "trace=fdatasync,fsync,write", sys.executable, "-c", code]
        traced = subprocess.run([*argv, str(tmp_path / durable), durable], capture_output=True, text=True, check=False)
        assert "then" in traced.stdout, traced.stderr
        within = traced.stderr.partition('"now')[2].partition('"then')[0]
        counts.append(within.count("sync("))
    assert counts == [10, 0]


# Damage.


def fill(folder: Path) -> None:
    journal = Journal(folder)
    journal.begin(RUN)
    for number in range(5):
        entry = file_entry(b"%d" % number, 0o644)
        journal.intend("r1", "s", [Change(f"path {number}", None, entry)], {entry.sha256: b"%d" % number}.get)
    journal.close()


def change(folder: Path, statement: str) -> None:
    database = sqlite3.connect(folder / "journal.db")
    database.executescript(statement)
    database.commit()
    database.close()


def test_a_row_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    fill(tmp_path)
    change(tmp_path, "UPDATE effects SET state = 'undone' WHERE number = 3")
    journal = Journal(tmp_path)
    with pytest.raises(StateError, match=r"the journal is damaged: the row '3' of effects is damaged") as raised:
        journal.effects("r1")
    assert "qo doctor" in raised.value.hint
    assert [each for each in journal.verify() if "row '3' of effects" in each]
    journal.close()


def test_a_damaged_row_is_not_given_a_good_checksum_by_a_change(tmp_path: Path) -> None:
    fill(tmp_path)
    journal = Journal(tmp_path)
    effects = journal.effects("r1")
    change(tmp_path, "UPDATE effects SET path = 'elsewhere' WHERE number = 3")
    with pytest.raises(StateError, match="the row '3' of effects is damaged"):
        journal.mark_undone(effects)
    journal.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM effects WHERE number = 3", "4 rows of effects are there, and 5 should be"),
        ("DELETE FROM effects WHERE number = 5", "the end of the journal is lost"),
        ("DELETE FROM runs", "0 rows of unfinished are there, and 1 should be"),
        ("UPDATE runs SET status = 'committed'", "0 rows of unfinished are there, and 1 should be"),
        ("UPDATE runs SET status = 'committed', sum = (SELECT sum FROM effects)", "0 rows of unfinished"),
        ("UPDATE runs SET inputs = 'null'", "the row '1' of runs is damaged"),
        ("UPDATE ledger SET sequence = sequence + 1", "its ledger is damaged"),
        ("DELETE FROM ledger", "its ledger is damaged"),
        ("DROP INDEX effects_of_step", None),
        (
            "PRAGMA writable_schema = 1; DELETE FROM sqlite_schema WHERE name = 'effects_of_step'",
            "Page [0-9]+ is never used",
        ),
        ("PRAGMA user_version = 0", "it holds tables, but not of any version"),
    ],
)
def test_nothing_is_recovered_from_a_database_that_is_not_sound(
    tmp_path: Path, statement: str, message: str | None
) -> None:
    fill(tmp_path)
    change(tmp_path, statement)
    if message is None:
        Journal(tmp_path).require_sound()  # slower, but all is there
        return
    with pytest.raises(StateError, match=message):
        Journal(tmp_path).require_sound()


def test_an_unfinished_run_that_is_not_found_is_missed(tmp_path: Path) -> None:
    fill(tmp_path)
    change(tmp_path, "UPDATE runs SET status = 'committed'")
    with pytest.raises(StateError, match="does not have the unfinished runs that it should have"):
        Journal(tmp_path).unfinished()


def test_a_database_whose_end_is_lost_is_not_opened(tmp_path: Path) -> None:
    fill(tmp_path)
    early = tmp_path / "early"
    shutil.copytree(tmp_path, early)
    journal = Journal(tmp_path)
    journal.update("r1", status="committed")
    journal.close()
    shutil.copy(early / "journal.db", tmp_path)
    with pytest.raises(StateError, match="the end of the journal is lost: it ends with transaction") as raised:
        Journal(tmp_path)
    assert f"remove {tmp_path / 'sequence'}" in raised.value.hint
    (tmp_path / "sequence").unlink()
    journal = Journal(tmp_path)
    assert journal.unfinished()
    journal.close()


@pytest.mark.parametrize("left", [None, b"", b"not a database"])
def test_a_database_that_is_gone_is_not_made_anew(tmp_path: Path, left: bytes | None) -> None:
    fill(tmp_path)
    (tmp_path / "journal.db").unlink() if left is None else (tmp_path / "journal.db").write_bytes(left)
    for _ in range(2):
        with pytest.raises(StateError, match=r"the end of the journal is lost|cannot be read"):
            Journal(tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(24), b"x" * 24, b"x"])
def test_a_sequence_file_that_says_nothing_is_not_held_against_the_database(tmp_path: Path, content: bytes) -> None:
    """A power cut may leave it so; it is never synced."""
    fill(tmp_path)
    (tmp_path / "sequence").write_bytes(content)
    journal = Journal(tmp_path)
    assert [each for each in journal.verify() if "sequence" in each] == (
        [f"{tmp_path / 'sequence'}: damaged; the next run writes it anew"] if any(content) else []
    )
    journal.begin(RunRecord("r2", "set", "committed", {}, {}, {}, 1.0))
    assert SequenceFile(tmp_path / "sequence").read().effect == 5
    journal.close()


def test_what_is_not_durable_is_not_promised(tmp_path: Path) -> None:
    """Or a power cut, which may take it, would look like damage."""
    fill(tmp_path)
    before = SequenceFile(tmp_path / "sequence").read()
    journal = Journal(tmp_path)
    journal.record_step("r1", StepRecord("s", "file.write", "succeeded"), done=True, durable=False)
    journal.update("r1", status="committed", durable=False)
    assert SequenceFile(tmp_path / "sequence").read() == before
    journal.record_step("r1", StepRecord("s", "file.write", "succeeded"))
    assert SequenceFile(tmp_path / "sequence").read() == Mark(before.sequence + 2, 5)
    journal.close()


def test_a_database_that_is_put_back_under_a_run_is_noticed(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with mock.patch.object(database, "_mark", Mark(1000, 0)), pytest.raises(StateError, match="the end of the journal"):
        database.write(lambda each: post(each, "s"))
    database.close()


# The older version.

VERSION_1 = """
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
PRAGMA user_version=1;
"""


def of_version_1(folder: Path) -> None:
    """A run that has not ended, with an effect before and after a gap, a capture and a decision."""
    before = file_entry(b"before", 0o644)
    entry = f'["file", 420, "{before.sha256}", 6, ""]'
    database = sqlite3.connect(folder / "journal.db")
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript(VERSION_1)
    database.execute(
        "INSERT INTO runs (id, set_name, status, document, inputs, options, started_at, pid, cancel_requested)"
        " VALUES ('r1', 'set', 'paused', '{}', '{}', '{}', 1, 7, NULL)"
    )
    database.execute("INSERT INTO steps VALUES ('r1', 's', 'file.write', 'succeeded', 1, 2, '{}', NULL)")
    rows = [
        ("r1", "s", "a", entry, None, "done"),
        ("r1", "s", "b", None, None, "intent"),
        ("r1", "t", b"\xff") + (None,) * 2 + ("undone",),
    ]
    database.executemany("INSERT INTO effects (run, step, path, before, after, state) VALUES (?, ?, ?, ?, ?, ?)", rows)
    database.execute("DELETE FROM effects WHERE path = 'b'")
    database.execute("INSERT INTO contents VALUES (?, 0, ?)", (before.sha256, b"before"))
    database.execute("INSERT INTO captures VALUES ('r1', 't', '[\"area\"]', '{}')")
    database.execute("INSERT INTO approvals VALUES ('r1', 's', 1, 'ada', 5)")
    database.commit()
    database.close()


def test_a_journal_of_version_1_is_taken_over_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "contents").mkdir()
    of_version_1(tmp_path)
    for _ in range(2):
        journal = Journal(tmp_path)
        journal.require_sound()
        assert journal.verify() == []
        run = journal.unfinished()
        assert run is not None
        assert (run.id, run.pid, run.boot_id, run.told_crashed, run.predicted, run.pruned) == (
            "r1",
            7,
            None,
            False,
            None,
            False,
        )
        assert journal.steps("r1") == {"s": StepRecord("s", "file.write", "succeeded", 1, 2.0, {})}
        (effect,) = journal.effects("r1")
        assert (effect.number, effect.change.path, effect.state) == (1, "a", EffectState.DONE)
        assert effect.change.before is not None
        assert journal.content(effect.change.before.sha256) == b"before"
        assert journal.captured("r1") == {"t": (["area"], {})}
        assert journal.decisions("r1") == {"s": True}
        journal.close()
    journal = Journal(tmp_path)
    journal.intend("r1", "u", [Change("new", None, file_entry(b"", 0o644))], {file_entry(b"", 0).sha256: b""}.get)
    assert [effect.number for effect in journal.effects("r1", "u")] == [4]
    journal.require_sound()
    journal.close()


def test_a_migration_that_is_broken_off_leaves_version_1(tmp_path: Path) -> None:
    of_version_1(tmp_path)
    with (
        mock.patch.object(SequenceFile, "write", side_effect=AssertionError("not reached")),
        mock.patch("quantum_orchestrator.blocks.database.summed", side_effect=OSError("no")),
        pytest.raises(StateError),
    ):
        Database(tmp_path)
    found = sqlite3.connect(tmp_path / "journal.db")
    assert found.execute("PRAGMA user_version").fetchone() == (1,)
    assert found.execute("SELECT count(*) FROM effects").fetchone() == (2,)
    found.close()
    database = Database(tmp_path)
    assert database.read("PRAGMA user_version") == [(VERSION,)]
    assert [row[:2] for row in database.select(APPROVALS, "1")] == [("r1", "s")]
    database.close()


def test_an_older_version_put_back_in_the_place_of_a_newer_one_is_noticed_each_time(tmp_path: Path) -> None:
    of_version_1(tmp_path)
    SequenceFile(tmp_path / "sequence").write(Mark(5, 7))
    for _ in range(2):
        with pytest.raises(StateError, match="the end of the journal is lost"):
            Database(tmp_path)


def test_effects_that_are_removed_during_an_opening_are_not_missed(tmp_path: Path) -> None:
    fill(tmp_path)
    journal = Journal(tmp_path)
    journal.update("r1", status="committed")
    real = Database._ledger

    def ledger_before_they_go(database: Database) -> object:
        found = real(database)
        if database is not journal._database and not journal.runs()[0].pruned:
            journal.prune(["r1"])
        return found

    with mock.patch.object(Database, "_ledger", ledger_before_they_go):
        Database(tmp_path).close()
    assert journal.runs()[0].pruned
    journal.close()

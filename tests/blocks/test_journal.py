"""The journal: opened by many, damaged, full, too new; and what it keeps."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.contents import INLINE_BYTES
from quantum_orchestrator.blocks.database import Database
from quantum_orchestrator.blocks.errors import StateError, UsageError, WorkspaceBusy
from quantum_orchestrator.blocks.journal import Journal, RunRecord, Sending, SendingState, StepRecord
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, file_entry

RUN = RunRecord("r1", "set", "running", {}, {}, {}, 1.0)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path)
    yield opened
    opened.close()


def intend(journal: Journal, path: str, content: bytes, step: str = "s") -> None:
    entry = file_entry(content, 0o644)
    journal.intend("r1", step, [Change(path, None, entry)], {entry.sha256: content}.get)


def test_contents_read_together_are_those_that_are_read_alone(journal: Journal) -> None:
    contents = [b"small", b"x" * 10_000, bytes(range(256)) * INLINE_BYTES, b"", *(b"%d" % each for each in range(600))]
    for place, content in enumerate(contents[:4]):
        intend(journal, f"f{place}", content)
    digests = {file_entry(content, 0).sha256: content for content in contents}
    changes = [Change(f"g{each}", None, file_entry(content, 0o644)) for each, content in enumerate(contents[4:])]
    journal.intend("r1", "many", changes, digests.get)
    read = journal.reader(digests)
    assert [read(each) for each in digests] == contents
    assert [read(each) for each in reversed(digests)] == contents[::-1]
    with pytest.raises(StateError, match="is not in the journal"):
        read("0" * 64)


def test_a_content_that_is_damaged_is_not_read_with_others_either(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    intend(journal, "a", b"right")
    intend(journal, "b", b"wrong")
    digests = [file_entry(content, 0).sha256 for content in (b"right", b"wrong")]
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as database:
        database.execute("UPDATE contents SET data = ? WHERE sha256 = ?", (b"wrung", digests[1]))
        database.commit()
    read = journal.reader(digests)
    assert read(digests[0]) == b"right"
    with pytest.raises(StateError, match="is damaged"):
        read(digests[1])
    journal.close()


def test_ten_processes_may_open_it_for_the_first_time_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from quantum_orchestrator.blocks.journal import Journal, RunRecord\n"
        "sys.stdin.read(); journal = Journal(Path(sys.argv[1]))\n"
        "journal.begin(RunRecord(sys.argv[2], 'set', 'running', {}, {}, {}, 1.0)); journal.close()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*argv, f"r{number}"], stdin=subprocess.PIPE) for number in range(10)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0] * 10
    journal = Journal(tmp_path)
    assert len(journal.runs()) == 10
    journal.close()


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"this is no database, but long enough to be one" * 100)
    with pytest.raises(StateError, match=r"journal\.db: the journal cannot be read: file is not a database"):
        Journal(tmp_path)


def test_a_database_damaged_in_the_middle_is_a_clear_error_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(200):
        intend(journal, f"x{number}", os.urandom(2000))
    journal.close()
    path = tmp_path / "journal.db"
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(StateError, match="cannot be read"):
        contents_of(Journal(tmp_path))


def contents_of(journal: Journal) -> list[bytes]:
    entries = [effect.change.after for effect in journal.effects("r1")]
    return [journal.content(entry.sha256) for entry in entries if entry]


def test_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    database = sqlite3.connect(tmp_path / "journal.db")
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(StateError, match="written by a newer version"):
        Journal(tmp_path)


def test_a_folder_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "contents").write_text("a file")
    with pytest.raises(StateError, match="the journal cannot be read"):
        Journal(tmp_path)


FULL = """
import resource, signal, sys
from pathlib import Path
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.tree import Change, file_entry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]))
large = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
written = 0
try:
    for number in range(1000):
        content = number.to_bytes(4, "big") + __import__("os").urandom(large)
        entry = file_entry(content, 0o644)
        journal.intend("r1", "s", [Change(f"x{number}", None, entry)], {entry.sha256: content}.get)
        written += 1
except StateError as error:
    print(written, error.message)
    assert len(journal.effects("r1")) == written
"""


@pytest.mark.parametrize("size", [20_000, 400_000])
def test_a_full_disk_is_a_clear_error_and_records_nothing_by_halves(tmp_path: Path, size: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(size)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written, _, message = done.stdout.partition(" ")
    assert "the journal cannot be written" in message
    journal = Journal(tmp_path)
    assert len(journal.effects("r1")) == int(written)
    assert [path for path in (tmp_path / "contents").rglob(".*") if path.is_file()] == []
    intend(journal, "more", b"more")
    journal.close()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("full")])
def test_a_disk_that_is_full_at_the_opening_is_to_be_freed(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    if isinstance(error, sqlite3.Error):
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
    monkeypatch.setattr(Database, "_prepare", full)
    with pytest.raises(StateError) as raised:
        Journal(tmp_path)
    assert raised.value.hint == "free some disk space, and try again"


def test_a_name_that_is_not_utf_8_is_kept_as_it_is(journal: Journal) -> None:
    path = os.fsdecode(b"caf\xe9/\xff")
    intend(journal, path, b"x")
    assert [effect.change.path for effect in journal.effects("r1")] == [path]
    link = Entry(Kind.LINK, 0o777, target=path)
    sha256 = file_entry(b"x", 0).sha256
    journal.capture("r1", "s", [path], {path: link}, {}, {path: ("stamp", sha256)})
    assert journal.captured("r1") == {"s": ([path], {path: link})}
    assert journal.known_digests() == {path: ("stamp", sha256)}


@pytest.mark.parametrize(
    "content", [b"", b"x", b"a" * 10_000_000, os.urandom(INLINE_BYTES), os.urandom(INLINE_BYTES + 1)]
)
def test_contents_come_back_as_they_were(journal: Journal, content: bytes) -> None:
    intend(journal, "x", content)
    assert journal.content(file_entry(content, 0).sha256) == content


def test_a_content_that_was_changed_on_disk_is_refused(journal: Journal) -> None:
    content = os.urandom(INLINE_BYTES + 1)
    intend(journal, "x", content)
    (stored,) = [path for path in (journal.folder / "contents").rglob("*") if path.is_file()]
    stored.write_bytes(content[:-1] + b"?")
    with pytest.raises(StateError, match="is damaged"):
        journal.content(file_entry(content, 0).sha256)


def test_intents_are_done_with_their_step_and_vanish_when_undone(journal: Journal) -> None:
    journal.begin(RUN)
    intend(journal, "x", b"1", "a")
    intend(journal, "x", b"2", "b")
    journal.record_step("r1", StepRecord("a", "file.write", "succeeded"), done=True)
    assert journal.steps("r1").keys() == {"a"}
    assert [effect.step for effect in journal.effects("r1", ["b", "a"])] == ["a", "b"]
    journal.mark_undone(journal.effects("r1", "b"))
    assert [effect.step for effect in journal.effects("r1")] == ["a"]


def test_a_run_is_found_by_the_beginning_of_its_id_if_that_is_enough(journal: Journal) -> None:
    for run_id in ("2026-a", "2026-b"):
        journal.begin(RunRecord(run_id, "set", "committed", {}, {}, {}, 1.0))
    found = journal.run("2026-a")
    assert found is not None
    assert journal.run("2026") is None
    assert journal.run("%") is None


def test_a_digest_is_known_only_while_its_content_is_stored(journal: Journal) -> None:
    """A capture does not read a file whose digest is known."""
    journal.capture("r1", "s", ["x"], {}, {}, {"x": ("stamp", file_entry(b"x", 0).sha256)})
    assert journal.known_digests() == {}
    intend(journal, "x", b"x")
    assert journal.known_digests() == {"x": ("stamp", file_entry(b"x", 0).sha256)}


def test_a_run_says_since_which_start_of_the_system_it_is_at_work(journal: Journal) -> None:
    journal.begin(RUN)
    found = journal.run("r1")
    assert found is not None
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (found.pid, found.told_crashed, found.predicted, found.pruned) == (os.getpid(), False, None, False)
    journal.update("r1", boot_id="another", told_crashed=1, predicted=[{"path": "x"}])
    found = journal.run("r1")
    assert found is not None
    assert (found.boot_id, found.told_crashed, found.predicted) == ("another", True, [{"path": "x"}])


def test_a_run_is_found_by_its_flow_run(journal: Journal) -> None:
    journal.begin(RUN)
    assert journal.run_of_flow_run("f1") is None
    journal.update("r1", flow_run_id="f1")
    assert journal.run_of_flow_run("f1") == journal.run("r1")


def test_a_run_that_comes_to_an_end_is_not_unfinished_and_may_be_again(journal: Journal) -> None:
    journal.begin(RUN)
    for status in ("paused", "committed", "needs_attention", "rolled_back"):
        journal.update("r1", status=status)
        assert (journal.unfinished() is not None) is (status in ("paused", "needs_attention"))
    journal.require_sound()


def test_decisions_are_forgotten_with_their_steps(journal: Journal) -> None:
    assert journal.decide("r1", "a", approved=True, actor="ada")
    assert not journal.decide("r1", "a", approved=False, actor="bob")
    assert journal.decide("r1", "b", approved=False, actor="ada")
    journal.forget_decisions("r1", ["a", "c"])
    assert journal.decisions("r1") == {"b": False}


# What cannot be taken back.


def test_the_first_try_to_send_is_in_no_doubt_and_later_ones_have_its_key(journal: Journal) -> None:
    first = journal.begin_sending("r1", "s", "key 1")
    assert first == Sending("s", "key 1", SendingState.TRYING, in_doubt=False)
    journal.drop_sending("r1", "s")
    assert journal.sendings("r1") == []
    assert journal.begin_sending("r1", "s", "key 2") == Sending("s", "key 1", SendingState.DROPPED, in_doubt=False)
    assert journal.begin_sending("r1", "s", "key 3") == Sending("s", "key 1", SendingState.TRYING, in_doubt=True)


def test_a_try_that_is_dropped_says_nothing_of_an_earlier_one(journal: Journal) -> None:
    for _ in range(2):
        journal.begin_sending("r1", "s", "key")
    journal.drop_sending("r1", "s")
    assert [each.in_doubt for each in journal.sendings("r1")] == [True]
    assert journal.begin_sending("r1", "s", "key").in_doubt
    journal.record_step("r1", StepRecord("s", "git.push", "succeeded"), done=True)
    assert [each.state for each in journal.sendings("r1")] == [SendingState.SENT]


def test_a_sending_is_sent_with_its_step(journal: Journal) -> None:
    journal.begin_sending("r1", "s", "key")
    journal.begin_sending("r1", "other", "key")
    journal.record_step("r1", StepRecord("s", "git.push", "succeeded"), done=True)
    assert [each.state for each in journal.sendings("r1")] == [SendingState.TRYING, SendingState.SENT]
    journal.drop_sending("r1", "s")
    for _ in range(2):
        assert journal.begin_sending("r1", "s", "key").state is SendingState.SENT


# Whether it can be trusted.


def test_contents_can_be_checked_before_they_are_needed(journal: Journal) -> None:
    contents = [b"small", os.urandom(INLINE_BYTES + 1)]
    for content in contents:
        intend(journal, "x", content)
    digests = [file_entry(content, 0).sha256 for content in contents]
    journal.check_contents(digests)
    with pytest.raises(StateError, match="is not in the journal"):
        journal.check_contents([*digests, "0" * 64])
    next((journal.folder / "contents").rglob(digests[1])).unlink()
    assert not journal.has_content(digests[1])
    with pytest.raises(StateError, match=r"cannot be read: .*No such file"):
        journal.check_contents(digests)
    intend(journal, "y", contents[1])
    journal.check_contents(digests)


def test_verify_names_every_damage(journal: Journal) -> None:
    large = os.urandom(INLINE_BYTES + 1)
    entries = [file_entry(b"small", 0o644), file_entry(large, 0o644)]
    contents = {entries[0].sha256: b"small", entries[1].sha256: large}
    journal.intend("r1", "s", [Change(f"x{place}", entry, None) for place, entry in enumerate(entries)], contents.get)
    assert journal.verify() == []
    next((journal.folder / "contents").rglob(entries[1].sha256)).write_bytes(b"short")
    journal.close()
    with contextlib.closing(sqlite3.connect(journal.folder / "journal.db")) as database:
        database.execute("DELETE FROM contents WHERE sha256 = ?", [entries[0].sha256])
        database.commit()
    with contextlib.closing(Journal(journal.folder)) as again:
        assert sorted(again.verify()) == sorted(
            [
                f"the content {entries[0].sha256[:12]}… is not in the journal",
                f"the content {entries[1].sha256[:12]}… is damaged",
            ]
        )


# Growing no further.


def changed_by(journal: Journal, run_id: str, content: bytes) -> None:
    journal.begin(RunRecord(run_id, "set", "running", {}, {}, {}, 1.0))
    before = file_entry(content, 0o644)
    journal.intend(run_id, "s", [Change("x", before, None)], {before.sha256: content}.get)
    journal.update(run_id, status="committed", report={"status": "committed"})


def test_what_only_pruned_runs_need_is_swept_away(journal: Journal) -> None:
    old, shared, new = (os.urandom(size) for size in (INLINE_BYTES + 1, 2_000_000, 5_000))
    changed_by(journal, "r1", old)
    changed_by(journal, "r2", shared)
    changed_by(journal, "r3", shared)
    changed_by(journal, "r4", new)
    assert journal.sweep() == 0
    before = journal.size()
    journal.prune(["r1", "r2"])
    assert journal.sweep() == len(old)
    assert journal.size() <= before - len(old)
    assert [path.name for path in (journal.folder / "contents").rglob("*") if path.is_file()] == [
        file_entry(shared, 0).sha256
    ]
    journal.prune(["r3"])
    assert journal.sweep() == len(shared)
    assert journal.content(file_entry(new, 0).sha256) == new
    assert journal.verify() == []
    journal.require_sound()
    changed_by(journal, "r5", old)
    assert [effect.number for effect in journal.effects("r5")] == [5]
    journal.prune(["r5"])
    changed_by(journal, "r6", old)
    assert [effect.number for effect in journal.effects("r6")] == [6]
    journal.require_sound()


def test_the_file_shrinks_when_much_of_it_is_empty(journal: Journal) -> None:
    journal.begin(RUN)
    for _ in range(60):
        intend(journal, "x", os.urandom(INLINE_BYTES))
    journal.update("r1", status="committed")
    journal.prune(["r1"])
    assert journal.sweep() == 60 * INLINE_BYTES
    assert journal.size() < 10 * INLINE_BYTES


def test_a_pruned_run_keeps_its_report_and_says_why_there_is_no_more(journal: Journal) -> None:
    changed_by(journal, "r1", b"x")
    journal.prune(["r1"])
    found = journal.run("r1")
    assert found is not None
    assert (found.pruned, found.report) == (True, {"status": "committed"})
    for step in (None, "s"):
        with pytest.raises(UsageError, match="run r1: its before-images were removed by gc"):
            journal.effects("r1", step)


def test_a_run_that_has_not_ended_is_not_pruned(journal: Journal) -> None:
    changed_by(journal, "r1", b"x")
    journal.update("r1", status="needs_attention")
    with pytest.raises(UsageError, match="run r1 is not finished"):
        journal.prune(["r1"])
    assert journal.effects("r1")


def test_what_a_capture_names_is_not_swept_away(journal: Journal) -> None:
    entry = file_entry(b"x", 0o644)
    journal.capture("r1", "s", ["x"], {"x": entry}, {entry.sha256: b"x"}, {"x": ("stamp", entry.sha256)})
    assert journal.sweep() == 0
    journal.check_contents([entry.sha256])
    journal.drop_capture("r1", "s")
    assert journal.sweep() == 1
    assert journal._rows("SELECT path FROM digests") == []


def test_what_a_killed_process_left_is_swept_away(journal: Journal) -> None:
    changed_by(journal, "r1", os.urandom(INLINE_BYTES + 1))
    folder = journal.folder / "contents" / "ab"
    folder.mkdir(exist_ok=True)
    (folder / ".abcd.123").write_bytes(b"half")
    (folder / ("ab" * 32)).write_bytes(b"a file without a row")
    assert journal.sweep() == 24
    assert journal.verify() == []


def test_nothing_is_swept_from_a_damaged_journal(journal: Journal) -> None:
    changed_by(journal, "r1", os.urandom(INLINE_BYTES + 1))
    with contextlib.closing(sqlite3.connect(journal.folder / "journal.db")) as database:
        database.execute("DELETE FROM effects")
        database.commit()
    with pytest.raises(StateError, match="0 rows of effects are there, and 1 should be"):
        journal.sweep()
    assert [path for path in (journal.folder / "contents").rglob("*") if path.is_file()]


def test_many_threads_may_use_it_at_once(journal: Journal) -> None:
    def work(number: int) -> None:
        for each in range(20):
            intend(journal, f"{number}/{each}", b"x", f"s{number}")
            journal.record_step("r1", StepRecord(f"s{number}", "file.write", "succeeded"), done=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.effects("r1")) == 160
    assert journal.steps("r1").keys() == {f"s{number}" for number in range(8)}


def test_somebody_who_only_looks_does_not_keep_a_run_out(tmp_path: Path) -> None:
    """`qo status` takes the lock for a moment, to see whether it is free."""
    journal = Journal(tmp_path)
    with (tmp_path / "lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.01, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        journal.lock.acquire()
    journal.lock.release()
    journal.close()


def test_the_lock_is_one_processs_and_is_freed_by_its_end(journal: Journal, tmp_path: Path) -> None:
    journal.lock.acquire()
    code = (
        "import sys; from pathlib import Path; from quantum_orchestrator.blocks.journal import Journal\n"
        "from quantum_orchestrator.blocks.errors import WorkspaceBusy\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "try: journal.lock.acquire()\n"
        "except WorkspaceBusy as busy: print(busy.message)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    assert f"process {os.getpid()}" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    journal.lock.release()
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == ""
    assert not journal.lock.is_held()
    journal.lock.acquire()
    with pytest.raises(WorkspaceBusy):
        Journal(tmp_path).lock.acquire()

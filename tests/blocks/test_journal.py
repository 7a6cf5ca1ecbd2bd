"""The journal: opened by many, damaged, full, too new; and what it keeps."""

from __future__ import annotations

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

from quantum_orchestrator.blocks.errors import StateError, WorkspaceBusy
from quantum_orchestrator.blocks.journal import INLINE_BYTES, EffectState, Journal, RunRecord, StepRecord
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
    journal = Journal(tmp_path)
    with pytest.raises(StateError, match="cannot be read"):
        contents_of(journal)
    journal.close()


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
    monkeypatch.setattr(Journal, "_prepare", full)
    with pytest.raises(StateError) as raised:
        Journal(tmp_path)
    assert raised.value.hint == "free some disk space, and try again"


def test_a_name_that_is_not_utf_8_is_kept_as_it_is(journal: Journal) -> None:
    path = os.fsdecode(b"caf\xe9/\xff")
    intend(journal, path, b"x")
    assert [effect.change.path for effect in journal.effects("r1")] == [path]
    link = Entry(Kind.LINK, 0o777, target=path)
    journal.capture("r1", "s", [path], {path: link}, {}, {path: ("stamp", "sha")})
    assert journal.captured("r1") == {"s": ([path], {path: link})}
    assert journal.known_digests() == {path: ("stamp", "sha")}


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


def test_intents_become_done_with_their_step_and_vanish_when_undone(journal: Journal) -> None:
    journal.begin(RUN)
    intend(journal, "x", b"1", "a")
    intend(journal, "x", b"2", "b")
    journal.record_step("r1", StepRecord("a", "file.write", "succeeded"), done=True)
    assert [effect.state for effect in journal.effects("r1")] == [EffectState.DONE, EffectState.INTENT]
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
    assert {effect.state for effect in journal.effects("r1")} == {EffectState.DONE}


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

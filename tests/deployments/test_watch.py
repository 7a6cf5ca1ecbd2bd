"""A watched folder, look by look: what is taken, what is refused, and that a watcher that dies loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import eventually
from effort import ordinarily

from quantum_orchestrator.blocks.audit import Audit
from quantum_orchestrator.blocks.errors import NeedsAttention
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments import watch
from quantum_orchestrator.deployments.cli_watch import judge_for
from quantum_orchestrator.deployments.inbox import Inbox
from quantum_orchestrator.deployments.watch import Watcher

NOTE = {"id": "note", "op": "file.write", "with": {"path": "note.txt", "content": "hello\n"}}
SET = json.dumps({"name": "dropped", "instructions": [NOTE]})


class Folder:
    """A watched folder with a watcher that looks when it is told to."""

    def __init__(self, root: Path) -> None:
        self.path = root / "drop"
        self.path.mkdir()
        self.work = root / "work"
        self.work.mkdir()
        self.said: list[str] = []
        self.inbox = Inbox(home())
        self.watcher = self.restart()

    def restart(self, settle: float = 0) -> Watcher:
        """Another process watches."""
        source = f"watch:{self.path}"
        self.watcher = Watcher(self.path, self.work, self.inbox, judge_for(source), self.said.append, settle=settle)
        for name in (watch.DONE, watch.QUARANTINE):
            (self.path / name).mkdir(exist_ok=True)
        return self.watcher

    def drop(self, name: str, content: str | bytes = SET) -> Path:
        path = self.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    @property
    def accepted(self) -> list[Any]:
        return self.inbox.items(workspace=self.work)

    def names(self, where: str = ".") -> list[str]:
        found = (each for each in (self.path / where).iterdir() if not each.is_dir())
        return sorted(os.fsencode(each.name).decode("utf-8", "backslashreplace") for each in found)

    def reason(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / watch.QUARANTINE / f"{name}.reason.json").read_text())
        return found

    def ends(self, status: str, error: dict[str, Any] | None = None) -> None:
        """The oldest item that is open ends."""
        item = self.inbox.next(self.work)
        assert item is not None
        self.inbox.end(item.number, status, error)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("QO_HOME", str(tmp_path / "home"))  # nobody else carries out what is left in this inbox
    made = Folder(tmp_path)
    yield made
    made.inbox.close()


def test_a_set_is_accepted_once_and_moved_when_its_run_has_ended(folder: Folder) -> None:
    folder.drop("a.json")
    folder.watcher.look()
    (item,) = folder.accepted
    assert (item.source, item.document, item.folder) == (f"watch:{folder.path}", SET, folder.path)
    assert folder.names() == [f".qo-claim.{_claim(folder)}.a.json"]
    folder.watcher.look()
    assert (len(folder.accepted), folder.names("done")) == (1, [])
    folder.ends("committed")
    folder.watcher.look()
    assert (folder.names(), folder.names("done")) == ([], ["a.json"])


def _claim(folder: Folder) -> str:
    return folder.names()[0].split(".")[2]


@pytest.mark.parametrize("when", ["claimed", "accepted", "ended"])
def test_a_watcher_that_dies_loses_and_repeats_nothing(folder: Folder, when: str) -> None:
    folder.drop("a.json")
    if when == "claimed":  # and no more
        (folder.path / "a.json").rename(folder.path / ".qo-claim.20260102-030405-1a2b3c.a.json")
    else:
        folder.watcher.look()
    if when == "ended":
        folder.ends("committed")
    folder.restart().look()
    assert len(folder.accepted) == 1
    if when != "ended":
        folder.ends("committed")
    folder.restart().look()
    assert (len(folder.accepted), folder.names(), folder.names("done")) == (1, [], ["a.json"])


def test_names_that_are_taken_get_a_number(folder: Folder) -> None:
    for _ in range(2):
        folder.drop("a.json")
        folder.watcher.look()
        folder.ends("committed")
        folder.watcher.look()
    assert folder.names("done") == ["a.2.json", "a.json"]


def test_what_cannot_run_is_put_aside_with_the_reason_and_on_record(folder: Folder) -> None:
    folder.drop("bad.json", json.dumps({"name": "bad", "instructions": [{"id": "a", "op": "file.wirte"}]}, indent=1))
    folder.watcher.look()
    assert folder.accepted == []
    assert folder.names("quarantine") == ["bad.json", "bad.json.reason.json"]
    fault = folder.reason("bad.json")["errors"][0]
    assert (fault["line"], fault["message"]) == (6, "unknown operation 'file.wirte'")
    entry = list(Audit(home()).entries())[-1]
    assert (entry.event, entry.actor) == ("refused", f"watch:{folder.path}")


def test_a_run_that_fails_puts_its_set_aside_with_the_reason(folder: Folder) -> None:
    folder.drop("a.json")
    folder.watcher.look()
    folder.ends("failed", {"type": "OperationError", "message": "no space", "hint": ""})
    folder.watcher.look()
    assert folder.names("quarantine") == ["a.json", "a.json.reason.json"]
    assert folder.reason("a.json")["reason"] == "failed: no space"


def _symlink(path: Path) -> None:
    target = path.parent.parent / "secret.json"
    target.write_text(SET)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_symlink, "it is a symbolic link, not a file"),
        (os.mkfifo, "it is a named pipe, not a file"),
        (os.mkdir, "it is a folder, not a file"),
    ],
)
def test_what_is_no_file_is_put_aside_unopened(folder: Folder, make: Callable[[Path], None], why: str) -> None:
    make(folder.path / "a.json")
    folder.watcher.look()
    assert (folder.accepted, folder.names()) == ([], [])
    assert folder.reason("a.json")["reason"] == why


def test_a_name_that_is_no_text_is_put_aside(folder: Folder) -> None:
    path = os.fsencode(folder.path) + b"/\xff.json"
    with open(path, "w") as file:
        file.write(SET)
    folder.watcher.look()
    assert folder.accepted == []
    assert folder.names("quarantine") == ["\\xff.json", "\\xff.json.reason.json"]
    assert any("not UTF-8" in line for line in folder.said)


def test_a_file_that_is_too_large_is_put_aside(folder: Folder) -> None:
    with folder.drop("a.json").open("ab") as file:
        file.truncate(16 * 1024**2 + 1)
    folder.watcher.look()
    assert "16777216 are allowed" in folder.reason("a.json")["reason"]


def test_a_half_written_file_waits_for_its_other_half(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.drop("a.json", SET[:20])
    assert 9 < folder.watcher.look() <= 10
    assert (folder.accepted, folder.names()) == ([], ["a.json"])
    folder.drop("a.json", SET)
    folder.watcher.look()
    assert len(folder.accepted) == 1
    folder.drop("b.json", SET[:20])
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0)
    folder.watcher.look()
    assert folder.reason("b.json")["errors"][0]["line"] == 1


def test_a_file_is_left_alone_until_it_is_closed_or_has_settled(folder: Folder) -> None:
    watcher = folder.restart(settle=60)
    folder.drop("a.json")
    assert 0 < watcher.look() <= 60
    assert folder.accepted == []
    watcher.complete(str(folder.path / "a.json"))
    watcher.look()
    assert len(folder.accepted) == 1


@pytest.mark.parametrize("name", [".a.json", "a.json.part", "notes.txt"])
def test_other_files_are_none_of_its_business(folder: Folder, name: str) -> None:
    folder.drop(name)
    folder.watcher.look()
    assert (folder.accepted, folder.names()) == ([], [name])


def test_the_policy_counts_as_it_is_now(folder: Folder) -> None:
    policy = home() / "policy.toml"
    policy.write_text('[operations]\ndeny = ["file.write"]\n')
    try:
        folder.drop("a.json")
        folder.watcher.look()
        policy.write_text("")
        folder.drop("b.json")
        folder.watcher.look()
    finally:
        policy.unlink()
    assert "the policy refuses operation 'file.write'" in folder.reason("a.json")["reason"]
    assert [Path(item.file).name for item in folder.accepted] == ["b.json"]


def test_one_process_watches_a_folder(folder: Folder) -> None:
    with (
        folder.watcher.alone(),
        pytest.raises(NeedsAttention, match="another process watches"),
        folder.restart().alone(),
    ):
        pass


# Nothing lost, nothing twice.

LIGHTLY = """
import os, sys, threading
from pathlib import Path
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments.dispatcher import Dispatcher
from quantum_orchestrator.deployments.inbox import Inbox
from quantum_orchestrator.deployments.watch import Watcher, wakened_by, watch

folder, work, ledger = map(Path, sys.argv[1:])

def carry(item):  # in the place of a run: one line a run id, which is there before the item has ended
    if item.run_id not in ledger.read_text().split():
        with ledger.open("a") as file:
            file.write(f"{item.run_id}\\n")
    inbox.end(item.number, "committed")
    return ""

inbox, wake = Inbox(home()), threading.Event()
watcher = Watcher(folder, work, inbox, lambda *_: None, lambda _: None, settle=0.05)
with watcher.alone(), wakened_by(folder, wake, watcher.complete):
    Dispatcher(inbox, carry).start()
    watch(watcher.look, wake, print)
"""
"""A real watcher, inbox and dispatcher; only the runs are light, as 10,000 real ones take hours."""


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_runs_twice_while_the_watcher_is_killed(tmp_path: Path) -> None:
    files, most = ordinarily((120, 50), nightly=(10_000, 500))
    drop, work, ledger = tmp_path / "drop", tmp_path / "work", tmp_path / "ledger"
    for path in (drop, work):
        path.mkdir()
    ledger.touch()
    alone = {**os.environ, "QO_HOME": str(tmp_path / "home")}  # nothing of other tests is in this inbox
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-c", LIGHTLY, str(drop), str(work), str(ledger)]
    kills, dropped, chosen = 0, 0, random.Random(7)
    while _count(drop / "done") < files:
        with subprocess.Popen(command, env=alone) as process:
            for number in range(dropped, min(dropped + most, files)):  # while it starts and works
                (drop / f"{number}.part").write_text(SET)
                (drop / f"{number}.part").rename(drop / f"{number}.json")
                dropped = number + 1
            wanted = _lines(ledger) + chosen.randint(1, most)
            eventually(lambda wanted=wanted: files > _lines(ledger) >= wanted or _count(drop / "done") == files)
            process.send_signal(signal.SIGKILL)
        kills += 1
    runs = ledger.read_text().split()
    assert kills > 2
    assert len(runs) == len(set(runs)) == files
    assert sorted(path.name for path in (drop / "done").iterdir()) == sorted(
        f"{number}.json" for number in range(files)
    )
    assert [path.name for path in drop.iterdir() if path.is_file()] == []
    assert list((drop / "quarantine").iterdir()) == []


def _count(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.exists() else 0


def _lines(file: Path) -> int:
    return file.read_text().count("\n")


# By the command line.


@contextlib.contextmanager
def watching(*arguments: str, err: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "quantum_orchestrator.deployments.qo", "watch", *arguments]
    with err.open("ab") as told, subprocess.Popen(command, stdout=told, stderr=told) as process:
        try:
            eventually(lambda: "watching" in err.read_text(), err.read_text)
            yield process
        finally:
            process.terminate()


def test_sets_are_judged_when_they_are_saved(tmp_path: Path) -> None:
    err = tmp_path / "err"
    path = tmp_path / "a.json"
    with watching(str(tmp_path), "--validate", err=err) as process:
        path.write_text(SET.replace("file.write", "file.wirte"))
        eventually(lambda: "✗ a.json: 1 fault" in err.read_text(), err.read_text)
        assert f"{path}:1:" in err.read_text()
        path.write_text(SET)
        eventually(lambda: "✓ a.json: valid: 'dropped', 1 instruction" in err.read_text(), err.read_text)
    assert process.returncode == 0


def test_a_folder_in_the_workspace_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantum_orchestrator.deployments.qo", "watch", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "is in the workspace" in done.stderr) == (3, True)

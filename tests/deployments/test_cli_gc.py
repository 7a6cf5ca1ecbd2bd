"""`qo gc`: what it removes, here and in every workspace of the user, what it says, and what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Said

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord, StepRecord
from quantum_orchestrator.blocks.reuse_store import ReuseStore
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.deployments import cli
from quantum_orchestrator.deployments.cli_gc import human_size
from quantum_orchestrator.flows.recover import rollback

DAY = 86_400.0
DOCUMENT = {
    "version": 1,
    "name": "test",
    "instructions": [{"id": "write", "op": "file.write", "with": {"path": "x", "content": "x"}}],
}


class Here:
    """Workspaces of one user, with runs in them, and `qo`."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd

    def qo(self, *arguments: str) -> Said:
        self._capfd.readouterr()
        code = cli.invoke(arguments)
        sys.stdout.flush()
        return Said(code, *self._capfd.readouterr())

    def workspace(self, name: str) -> Path:
        root = self.folder / name
        root.mkdir(exist_ok=True)
        return root

    def ran(self, root: Path, run_id: str, content: str, *, days: float = 0, status: str = "committed") -> None:
        """A run that ended so many days ago, and has overwritten `x` in the workspace."""
        ended = time.time() - days * DAY
        journal = Journal(workspace_home(root))
        workspace = Workspace(root, journal)
        journal.begin(RunRecord(run_id, "test", "running", DOCUMENT, {}, {}, ended - 1))
        overlay = Overlay(workspace.tree)
        overlay.write("x", content.encode())
        workspace.apply(run_id, "write", overlay.changes(), overlay.content_of)
        journal.record_step(run_id, StepRecord("write", "file.write", "succeeded"), done=True)
        journal.update(run_id, status=status, ended_at=ended)
        journal.log_path(run_id).write_text("log\n")
        workspace.close()
        journal.close()


@pytest.fixture
def here(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "qo"))
    made = Here(tmp_path, capfd)
    monkeypatch.chdir(made.workspace("work"))
    return made


@pytest.fixture
def three(here: Here) -> Here:
    """Runs that ended 100, 20 and 0 days ago in the workspace `work`."""
    for number, days in enumerate((100, 20, 0)):
        here.ran(here.folder / "work", f"r{number}", f"{number}\n" * 1000, days=days)
    return here


def content(root: Path) -> str:
    return (root / "x").read_text()[:1]


def without(document: Any, *names: str) -> Any:
    return {name: value for name, value in document.items() if name not in names}


# Here.


def test_without_options_the_policy_says_what_goes(three: Here) -> None:
    said = three.qo("gc").exits(0).prints("the before-images of 1 run (r0), 1 log")
    assert said.err == ""
    (home() / "policy.toml").write_text("[journal]\nkeep_runs = 1\n")
    three.qo("gc").exits(0).prints("the before-images of 1 run (r1), 1 log")
    three.qo("gc").exits(0).prints_exactly(f"{three.folder}/work: nothing to remove\n")


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        (["--older-than", "30d"], ["r0"]),
        (["--older-than", "1d12h"], ["r0", "r1"]),
        (["--older-than", "0"], ["r0", "r1", "r2"]),
        (["--keep", "2"], ["r0"]),
        (["--keep", "0"], ["r0", "r1", "r2"]),
        (["--max-size", "0"], ["r0", "r1", "r2"]),
        (["--max-size", "1GiB", "--older-than", "200d"], []),
    ],
)
def test_a_dry_run_says_what_the_real_one_then_does(three: Here, options: list[str], runs: list[str]) -> None:
    predicted = three.qo("gc", *options, "--dry-run", "--json").exits(0).json
    assert three.qo("gc", *options, "--dry-run", "--json").json == predicted, "nothing was removed"
    done = three.qo("gc", *options, "--json").exits(0).json
    assert (predicted["dry_run"], done["dry_run"]) == (True, False)
    assert without(predicted, "dry_run") == without(done, "dry_run")
    assert done["workspaces"][0]["runs"] == runs
    assert (done["bytes"] > 0) is bool(runs)
    assert done["bytes"] == sum(done["workspaces"][0]["bytes_of"].values())
    again = three.qo("gc", *options, "--json").exits(0).json
    assert (again["bytes"], again["runs"]) == (0, 0)


def test_the_size_limit_takes_units(three: Here) -> None:
    for size in ("1", "1B", "0.5KiB", "1kb", "1 KiB"):
        assert three.qo("gc", "--max-size", size, "--dry-run", "--json").json["runs"] == 3
    for size in ("2GiB", "2g", "500MB", "1T"):
        assert three.qo("gc", "--max-size", size, "--older-than", "200d", "--dry-run", "--json").json["runs"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--older-than", "soon"], "--older-than soon: is no duration"),
        (["--older-than", "-1d"], "--older-than"),
        (["--keep", "-1"], "--keep -1: must be 0 or more"),
        (["--max-size", "2 parsecs"], "--max-size 2 parsecs: is no size"),
        (["--all", "--workspace", "."], "--all and --workspace exclude each other"),
        (["--workspace", "nowhere"], "there is no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_goes(three: Here, options: list[str], message: str) -> None:
    three.qo("gc", *options).exits(3).says(message)
    assert three.qo("gc", "--keep", "0", "--dry-run", "--json").json["runs"] == 3


def test_a_pruned_run_stays_in_the_history_and_says_why_it_cannot_be_undone(three: Here) -> None:
    three.qo("gc", "--keep", "1").exits(0)
    three.qo("history").exits(0).prints("r0").prints("r2")
    shown = three.qo("show", "r0", "--json").exits(0).json
    assert shown["run_id"] == "r0"
    assert shown["pruned_at"].startswith(time.strftime("%Y-"))
    assert [step["status"] for step in shown["steps"]] == ["succeeded"]
    three.qo("show", "r0").exits(0)
    three.qo("diff", "r0").exits(3).says("its before-images were removed by `qo gc`")
    with pytest.raises(UsageError, match="its before-images were removed by `qo gc`"):
        rollback(three.folder / "work", "r0")
    rollback(three.folder / "work", "r2")
    assert content(three.folder / "work") == "1"


def test_a_workspace_at_work_is_left_alone(three: Here) -> None:
    with HeldBySomebodyElse(three.folder / "work"):
        three.qo("gc", "--keep", "0").exits(4).says("another run").says("hint: ")
        three.qo("gc", "--keep", "0", "--dry-run").exits(4)
    assert three.qo("gc", "--keep", "0", "--json").exits(0).json["runs"] == 3


def test_a_workspace_without_runs_has_nothing_to_remove(here: Here) -> None:
    here.qo("gc").exits(0).prints("nothing to remove")


# Everywhere.


def test_all_goes_through_every_workspace_and_skips_those_at_work(three: Here) -> None:
    for name in ("shop", "busy"):
        three.ran(three.workspace(name), f"r-{name}", "1\n", days=100)
    with HeldBySomebodyElse(three.folder / "busy"):
        said = three.qo("gc", "--all").exits(0)
    said.prints("/busy: left alone: another run").prints("/shop: ").prints("(r-shop)").prints("(r0)")
    said.prints("3 workspaces: ")
    assert three.qo("gc", "--all", "--json").json["runs"] == 1


def test_the_state_of_a_workspace_that_is_gone_goes_once_it_is_old(here: Here) -> None:
    for name, days in (("old", 100), ("young", 10)):
        here.ran(here.workspace(name), f"r-{name}", "1\n", days=days)
        shutil.rmtree(here.folder / name)
    predicted = here.qo("gc", "--all", "--dry-run", "--json").json
    done = here.qo("gc", "--all", "--json").json
    assert without(predicted, "dry_run") == without(done, "dry_run")
    assert {Path(each["workspace"]).name: each["status"] for each in done["workspaces"]} == {
        "old": "dropped",
        "young": "gone",
    }
    assert [folder.name.rpartition("-")[0] for folder in (home() / "workspaces").iterdir()] == ["young"]
    here.qo("gc", "--all").prints("/young: the folder is gone; its state stays, as its runs are not old enough")


def test_an_unfinished_run_keeps_the_state_of_a_workspace_that_is_gone(here: Here) -> None:
    here.ran(here.workspace("away"), "r", "1\n", days=1000, status="paused")
    shutil.rmtree(here.folder / "away")
    here.qo("gc", "--all", "--older-than", "0").exits(0).prints("its run r is not finished")
    assert len(list((home() / "workspaces").iterdir())) == 1


def test_a_removal_that_was_killed_is_ended_by_the_next(here: Here) -> None:
    here.ran(here.workspace("old"), "r", "1\n", days=100)
    shutil.rmtree(here.folder / "old")
    (folder,) = (home() / "workspaces").iterdir()
    going = folder.rename(folder.with_name(f".gone-{folder.name}"))
    (going / "journal.db").unlink()
    for path in (*going.rglob("*"), going):
        os.utime(path, (time.time() - 100 * DAY,) * 2)
    here.qo("gc", "--all").exits(0).prints("all of its state")
    assert list((home() / "workspaces").iterdir()) == []


def test_a_damaged_journal_keeps_no_other_workspace_from_its_turn(three: Here) -> None:
    three.ran(three.workspace("alas"), "r", "1\n", days=100)
    (workspace_home(three.folder / "alas") / "journal.db").write_bytes(b"no database" * 1000)
    three.qo("gc", "--all").exits(4).says("cannot be read").says("qo doctor").prints("(r0)")


def test_sizes_are_told_as_people_say_them() -> None:
    sizes = (0, 1023, 1536, 5 * 1024**2, 3 * 1024**3)
    assert [human_size(size) for size in sizes] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB"]


class HeldBySomebodyElse:
    """A process that holds a workspace's lock."""

    def __init__(self, root: Path) -> None:
        code = "import sys; from pathlib import Path; from quantum_orchestrator.blocks.lock import Lock\n"
        code += "Lock(Path(sys.argv[1])).acquire(); print(flush=True); sys.stdin.read()"
        lock = workspace_home(root) / "lock"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "\n"

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


# What steps are reused by.


def remembered(root: Path, **rows_of_days: int) -> ReuseStore:
    """A store in which steps were last used so many days ago."""
    store = ReuseStore(workspace_home(root))
    store.save("test", dict.fromkeys(rows_of_days, "x" * 1000))
    with contextlib.closing(sqlite3.connect(store.path)) as database, database:
        for step, days in rows_of_days.items():
            used = (time.time() - days * DAY, step)
            database.execute("UPDATE steps SET used_at = ? WHERE step = ?", used)
    return store


def test_what_steps_could_be_reused_by_is_forgotten_when_no_run_has_used_it_for_long(three: Here) -> None:
    work = three.folder / "work"
    store = remembered(work, old=60, older=70, new=1)
    would = three.qo("gc", "--older-than", "30d", "--dry-run", "--json").json
    assert set(store.load("test")) == {"old", "older", "new"}
    said = three.qo("gc", "--older-than", "30d", "--keep", "9").exits(0)
    said.prints("what 2 steps could have been reused by")
    assert list(store.load("test")) == ["new"]
    assert would["workspaces"][0]["bytes_of"]["reuse"] == 2000
    three.qo("gc", "--older-than", "30d").exits(0).prints("nothing to remove")


def test_a_store_for_reuse_that_cannot_be_read_goes_and_the_next_run_makes_another(three: Here) -> None:
    store = remembered(three.folder / "work", new=1)
    store.path.write_bytes(b"no database" * 100)
    three.qo("gc", "--dry-run").exits(0).prints("a store for reuse that cannot be read")
    assert store.path.exists()
    three.qo("gc").exits(0).prints("a store for reuse that cannot be read")
    assert not store.path.exists()

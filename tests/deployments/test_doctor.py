"""`qo doctor`: what is well, what is not, and what to do about it; it starts nothing."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord, StepRecord
from quantum_orchestrator.blocks.levels import Level, why_not
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.deployments import doctor as doctors
from quantum_orchestrator.deployments import server
from quantum_orchestrator.deployments.doctor import Check, doctor


@pytest.fixture(autouse=True)
def user_without_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("PREFECT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def found(home: Path, name: str) -> Check:
    return next(check for check in doctor(home) if check.name == name)


def test_a_good_installation_has_no_complaint(tmp_path: Path) -> None:
    checks = doctor(tmp_path / "state")
    assert [check for check in checks if not check.ok] == []
    assert all(check.detail and not check.hint for check in checks)
    assert not (tmp_path / "state/server").exists(), "looking starts nothing"


def test_every_complaint_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(doctors, "version", lambda _name: "0.151.0")
    monkeypatch.setattr(doctors, "_ENOUGH_BYTES", 2**70)
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    bad = {check.name: check for check in doctor(tmp_path / "state") if not check.ok}
    assert set(bad) >= {"git", "state folder", "disk space", "Prefect", "fastapi", "Prefect API"}
    assert all(check.hint for check in bad.values())
    assert "needs one below 0.151" in bad["fastapi"].hint
    assert "Connection refused" in bad["Prefect API"].detail


def test_the_level_of_the_sandbox_is_told_and_judged_by_the_policy(tmp_path: Path) -> None:
    check = found(tmp_path, "sandbox")
    assert check.ok
    assert check.detail.startswith(
        "scripts run at level 1 (limits), where they can reach whatever this user can; level"
    )
    for level in (Level.LANDLOCK, Level.BUBBLEWRAP, Level.OVERLAY):
        reason = why_not(level)
        how = f"does not work here: {reason}" if reason else "works here"
        assert f"level {level:d} ({level.name.lower()}) {how}" in check.detail


@pytest.mark.usefixtures("no_namespaces")
def test_a_level_that_is_required_and_does_not_work_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[sandbox]\nrequire = 3\n")
    check = found(tmp_path, "sandbox")
    assert not check.ok
    assert "level 3 (bubblewrap) does not work here: bubblewrap fails (no namespaces)" in check.detail
    assert check.detail.endswith("every script is refused")
    assert "require = 3" in check.hint


def test_an_unusable_state_folder_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = found(tmp_path / "file/state", "state folder")
    assert not check.ok
    assert "QO_HOME" in check.hint


def test_a_broken_settings_file_of_prefect_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.toml").write_text("[")
    assert "prefect.toml is no TOML" in found(tmp_path, "Prefect API").detail


def test_a_missing_package_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise doctors.PackageNotFoundError(name)

    monkeypatch.setattr(doctors, "version", missing)
    assert found(tmp_path, "ruff") == Check("ruff", False, "ruff is not installed", doctors._LOCK_HINT)


def test_a_folder_on_a_network_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in: mounting a network file system takes root and a server.
    monkeypatch.setattr(doctors, "_mount", lambda _path: ("nfs4", "/home"))
    assert "local disk" in found(tmp_path, "file system").hint


def test_the_file_system_of_a_path_is_that_of_its_nearest_mount() -> None:
    assert doctors._mount(Path("/proc/self"))[1] == "/proc"
    assert doctors._mount(Path("/proc/self"))[0] == "proc"


def test_a_port_taken_by_another_program_is_told(tmp_path: Path) -> None:
    with socket.create_server((server.HOST, 0)) as other:
        port = other.getsockname()[1]
        record = server._Record(2**22 + 1, 1, "", port, "", "", "")
        (tmp_path / "server").mkdir()
        server._write(tmp_path / "server", record)
        assert f"{port} is taken" in found(tmp_path, "port").detail
    assert f"{port} is free" in found(tmp_path, "port").detail


# Journals.


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "qo"))
    return tmp_path / "qo"


def ran(root: Path, run_id: str, content: str, *, status: str = "committed") -> Path:
    """A run that has overwritten `x` in the workspace; the state folder."""
    root.mkdir(exist_ok=True)
    journal = Journal(workspace_home(root))
    workspace = Workspace(root, journal)
    journal.begin(RunRecord(run_id, "test", "running", {"name": "test"}, {}, {}, time.time()))
    overlay = Overlay(workspace.tree)
    overlay.write("x", content.encode())
    workspace.apply(run_id, "write", overlay.changes(), overlay.content_of)
    journal.record_step(run_id, StepRecord("write", "file.write", "succeeded"), done=True)
    journal.update(run_id, status=status)
    workspace.close()
    journal.close()
    return workspace_home(root)


def damaged(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / "journal.db") as database:
        assert database.execute(statement, values).rowcount > 0
    database.close()


def journal_check(home: Path, root: Path) -> Check:
    check = doctor(home, root)[-1]
    assert check.name == "journal"
    return check


def content_of(folder: Path, run_id: str) -> str:
    """The digest of the run's only before-image."""
    journal = Journal(folder)
    (before,) = [each.change.before for each in journal.effects(run_id) if each.change.before]
    journal.close()
    return before.sha256


def test_a_workspace_without_a_journal_is_well_and_gets_none(state: Path, tmp_path: Path) -> None:
    assert journal_check(state, tmp_path / "work").ok
    assert not (state / "workspaces").exists()


def test_a_sound_journal_is_well(state: Path, tmp_path: Path) -> None:
    ran(tmp_path / "work", "r1", "1\n")
    ran(tmp_path / "work", "r2", "2\n")
    check = journal_check(state, tmp_path / "work")
    assert check == Check("journal", True, f"2 contents of {tmp_path}/work, all as they were written")


def test_the_runs_that_a_damaged_before_image_keeps_from_being_undone_are_named(state: Path, tmp_path: Path) -> None:
    for number in range(1, 4):
        folder = ran(tmp_path / "work", f"r{number}", f"{number}\n")
    sha256 = content_of(folder, "r2")
    damaged(folder, "UPDATE contents SET data = ? WHERE sha256 = ?", b"something else", sha256)
    check = journal_check(state, tmp_path / "work")
    assert not check.ok
    assert f"the content {sha256[:12]}… is damaged" in check.detail
    assert check.detail.endswith("can no longer be undone: r2 (committed)")
    assert str(folder) in check.hint
    assert f"`qo gc --keep 0 --workspace {tmp_path}/work`" in check.hint


def test_damage_that_undoing_does_not_need_is_told_as_such(state: Path, tmp_path: Path) -> None:
    folder = ran(tmp_path / "work", "r1", "1\n")
    damaged(folder, "UPDATE contents SET data = ?", b"something else")  # of the content after
    check = journal_check(state, tmp_path / "work")
    assert not check.ok
    assert check.detail.endswith("every run can still be undone")


def test_a_run_that_is_undone_already_is_not_missed(state: Path, tmp_path: Path) -> None:
    ran(tmp_path / "work", "r1", "1\n")
    folder = ran(tmp_path / "work", "r2", "2\n", status="rolled_back")
    damaged(folder, "DELETE FROM contents WHERE sha256 = ?", content_of(folder, "r2"))
    check = journal_check(state, tmp_path / "work")
    assert not check.ok
    assert check.detail.endswith("every run can still be undone")


@pytest.mark.parametrize("statement", ["DELETE FROM effects WHERE run = 'r1'", "UPDATE runs SET document = '{'"])
def test_what_only_a_journal_that_is_whole_can_undo_is_told(state: Path, tmp_path: Path, statement: str) -> None:
    ran(tmp_path / "work", "r1", "1\n")
    folder = ran(tmp_path / "work", "r2", "2\n")
    damaged(folder, statement)
    check = journal_check(state, tmp_path / "work")
    assert not check.ok
    assert "none of its runs can be undone" in check.detail
    assert f"copy {folder} before anything else" in check.hint


def test_all_workspaces_are_read_when_asked_for_and_progress_is_told(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(tmp_path / "work", "r1", "1\n")
    folder = ran(tmp_path / "shop", "r2", "2\n")
    damaged(folder, "UPDATE contents SET data = ?", b"something else")
    assert all(check.ok for check in doctor(state, tmp_path / "work"))
    monkeypatch.setattr(doctors, "_LONG_BYTES", 0)
    said: list[str] = []
    checks = doctor(state, tmp_path / "work", every_workspace=True, progress=said.append)
    assert [check.name for check in checks if not check.ok] == [f"journal of {tmp_path}/shop"]
    assert [line.partition(": ")[0] for line in said] == [
        f"reading the journal of {tmp_path}/shop",
        f"reading the journal of {tmp_path}/work",
    ]


def test_unfinished_runs_are_told_with_the_commands_that_settle_them(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(state, "unfinished runs") == Check("unfinished runs", True, "none")
    for name, status in (("done", "committed"), ("dead", "running"), ("stuck", "needs_attention")):
        ran(tmp_path / name, f"r-{name}", "1\n", status=status)
    monkeypatch.chdir(tmp_path / "dead")
    check = found(state, "unfinished runs")
    assert not check.ok
    assert f"{tmp_path}/dead: run r-dead of 'test' is interrupted" in check.detail
    assert f"{tmp_path}/stuck: run r-stuck of 'test' needs attention" in check.detail
    assert "r-done" not in check.detail
    assert "\n  qo resume r-dead\n" in check.hint
    assert f"qo rollback r-stuck --workspace {tmp_path}/stuck" in check.hint


def test_what_waits_for_an_approval_or_is_gone_is_no_complaint(state: Path, tmp_path: Path) -> None:
    ran(tmp_path / "waits", "r-waits", "1\n", status="awaiting_approval")
    ran(tmp_path / "gone", "r-gone", "1\n", status="paused")
    shutil.rmtree(tmp_path / "gone")
    check = found(state, "unfinished runs")
    assert (check.ok, check.hint) == (True, "")
    assert f"qo approve r-waits --workspace {tmp_path}/waits" in check.detail
    assert "is paused, and the folder is gone" in check.detail


def test_a_run_at_work_is_no_complaint(state: Path, tmp_path: Path) -> None:
    folder = ran(tmp_path / "work", "r", "1\n", status="running")
    journal = Journal(folder)
    journal.lock.acquire()
    assert found(state, "unfinished runs").ok
    journal.lock.release()
    assert not found(state, "unfinished runs").ok
    journal.close()

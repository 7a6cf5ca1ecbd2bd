"""`qo doctor`: what is well, what is not, and what to do about it; it starts nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

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
    assert (check.ok, check.detail) == (True, "level 1 (LIMITS): scripts can reach whatever this user can")
    (tmp_path / "policy.toml").write_text("[sandbox]\nrequire = 3\n")
    check = found(tmp_path, "sandbox")
    assert not check.ok
    assert "every script is refused" in check.detail
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

"""The state folder: found where the user expects it, private, and outside the workspace."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import home as state
from quantum_orchestrator.blocks.errors import StateError


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QO_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_qo_home_is_used_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state.home() == tmp_path / "chosen"


def test_the_xdg_state_folder_is_used_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state.home() == tmp_path / "xdg" / "quantum-orchestrator"


@pytest.mark.parametrize("xdg", ["", "relative/state"])
def test_the_default_is_below_the_users_home(xdg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    assert state.home() == tmp_path / "user/.local/state/quantum-orchestrator"


def test_a_relative_qo_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QO_HOME", "a/../b")
    assert state.home() == tmp_path / "b"


def test_every_folder_made_is_private_and_others_keep_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    monkeypatch.setenv("QO_HOME", str(tmp_path / "there/a/b"))
    folder = state.workspace_home(tmp_path / "work")
    assert [mode(path) for path in (folder, folder.parent, tmp_path / "there/a/b", tmp_path / "there/a")] == [0o700] * 4
    assert mode(tmp_path / "there") == 0o755


def test_a_suggested_command_names_the_workspace_unless_it_is_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert state.workspace_option(tmp_path) == ""
    assert state.workspace_option(tmp_path / "a b") == f" --workspace '{tmp_path}/a b'"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for chosen in ("file", "file/below"):
        monkeypatch.setenv("QO_HOME", str(tmp_path / chosen))
        with pytest.raises(StateError, match="file") as refused:
            state.home()
        assert "QO_HOME" in refused.value.hint


def test_a_dangling_link_in_the_place_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("QO_HOME", str(tmp_path / "link"))
    with pytest.raises(StateError, match="cannot be made"):
        state.home()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for chosen, said in (("locked", "cannot be written"), ("locked/below", "cannot be made")):
        monkeypatch.setenv("QO_HOME", str(tmp_path / chosen))
        with pytest.raises(StateError, match=said):
            state.home()


def test_a_read_only_file_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", "/proc/quantum")  # nobody may make a folder there, root neither
    with pytest.raises(StateError, match="cannot be made"):
        state.home()


def test_each_workspace_has_a_folder_that_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    workspace = tmp_path / "Mein Projekt (ä)"
    digest = hashlib.sha256(str(workspace).encode()).hexdigest()[:16]
    folder = state.workspace_home(workspace)
    assert folder == tmp_path / "state/workspaces" / f"Mein-Projekt-{digest}"
    assert (folder / "path").read_text() == f"{workspace}\n"
    assert state.workspace_home(workspace) == folder


def test_a_link_and_its_target_are_one_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert state.workspace_home(tmp_path / "link") == state.workspace_home(tmp_path / "real")


def test_workspaces_of_one_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    assert state.workspace_home(tmp_path / "a/app") != state.workspace_home(tmp_path / "b/app")


def test_a_folder_that_names_another_workspace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    file = state.workspace_home(tmp_path / "work") / "path"
    file.write_text("/elsewhere\n")
    with pytest.raises(StateError, match="/elsewhere"):
        state.workspace_home(tmp_path / "work")


@pytest.mark.parametrize("inside", ["work", "work/.state", "link/.state"])
def test_state_inside_the_workspace_is_refused_and_not_made(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to("work")
    monkeypatch.setenv("QO_HOME", str(tmp_path / inside))
    with pytest.raises(StateError, match="inside the workspace"):
        state.workspace_home(tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_a_workspace_inside_the_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    with pytest.raises(StateError, match="lies inside the state folder"):
        state.workspace_home(state.workspace_home(tmp_path / "work") / "deeper")

"""The folder that a plan looks at, and how a command goes about a large set."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.disk_tree import Look
from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.deployments.garbage import collected_seldom
from quantum_orchestrator.deployments.planning import tree_of


def test_a_folder_is_looked_up_once_however_many_paths_below_it_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    with tree_of(tmp_path) as tree:
        assert isinstance(tree, Look)
        opened: list[str] = []
        opener = tree.folder._open_folder
        monkeypatch.setattr(
            tree.folder, "_open_folder", lambda folder, path: opened.append(path) or opener(folder, path)
        )
        assert {tree.kind("gone")} | {tree.kind(f"gone/{number}") for number in range(5)} == {None}
        assert {tree.entry(f"there/{number}") for number in range(5)} == {None}
    assert opened == ["there"]


def test_a_folder_that_is_moved_while_it_is_planned_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x").touch()
    looking = tree_of(tmp_path)
    looking.__enter__().read("folder/x")
    (tmp_path / "folder").rename(tmp_path / "elsewhere")
    with pytest.raises(PathRefused, match="'folder': a folder on the way changed"):
        looking.__exit__(None, None, None)


def test_contents_are_the_same_whether_there_is_room_to_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Look, "MOST_KEPT", 5)
    for name in "abc":
        (tmp_path / name).write_text(name * 3)
    with tree_of(tmp_path) as tree:
        assert [tree.read(name) for name in "abcabc"] == [b"aaa", b"bbb", b"ccc"] * 2
        assert isinstance(tree, Look)
        assert tree._contents == {"a": b"aaa"}


def test_the_pace_of_collecting_garbage_is_put_back() -> None:
    before = gc.get_threshold()
    with collected_seldom():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before

"""After a power cut: what steps had done and the disk has lost is brought back, or the steps run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from shell import sh

from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Workspace

RUN = "r1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("state", "workspace"):
        (tmp_path / name).mkdir()
    root = tmp_path / "workspace"
    (root / "old").write_text("one")
    return root


def write(workspace: Workspace, step: str, path: str, content: bytes) -> None:
    overlay = Overlay(workspace.tree)
    overlay.write(path, content)
    workspace.apply(RUN, step, overlay.changes(), overlay.content_of)


LOSSES: dict[str, Callable[[Path], object]] = {
    "the old content": lambda root: (root / "old").write_text("one"),
    "nothing": lambda root: (root / "old").unlink(),
    "an empty file": lambda root: (root / "old").write_text(""),
    "zeros": lambda root: (root / "old").write_bytes(bytes(3)),
    "no folder": lambda root: sh(root, "rm -r new"),
    "all": lambda root: None,
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_file_that_a_step_had_written_is_written_again(workspace: Workspace, root: Path, what: str) -> None:
    write(workspace, "a", "old", b"two")
    write(workspace, "b", "new/deep/x", b"x")
    LOSSES[what](root)
    redo = workspace.redo(RUN, ["a", "b"])
    assert redo.lost == []
    assert ((root / "old").read_text(), (root / "new" / "deep" / "x").read_text()) == ("two", "x")
    assert workspace.redo(RUN, ["a", "b"]).changes == []
    assert workspace.undo(RUN).conflicts == []
    assert (root / "old").read_text() == "one"
    assert not (root / "new").exists()


def test_a_torn_version_is_put_aside(workspace: Workspace, root: Path) -> None:
    write(workspace, "a", "old", b"two")
    (root / "old").write_text("torn")
    redo = workspace.redo(RUN, ["a"])
    assert redo.aside["old"].read_text() == "torn"
    assert (root / "old").read_text() == "two"


def test_what_a_step_that_was_not_done_wrote_is_left_to_the_undo(workspace: Workspace, root: Path) -> None:
    write(workspace, "a", "old", b"two")
    write(workspace, "b", "old", b"three")
    assert workspace.redo(RUN, ["a"]).changes == []
    assert workspace.undo(RUN, "b", torn=True).conflicts == []
    assert (root / "old").read_text() == "two"


@pytest.mark.parametrize("found", ["one", "two", "three", "", "torn"])
def test_whatever_is_found_a_step_that_was_not_done_is_undone(workspace: Workspace, root: Path, found: str) -> None:
    write(workspace, "a", "old", b"two")
    write(workspace, "b", "old", b"three")
    (root / "old").write_text(found)
    assert workspace.redo(RUN, ["a"]).lost == []
    undo = workspace.undo(RUN, "b", torn=True)
    assert undo.conflicts == []
    assert (root / "old").read_text() == "two"


def test_a_torn_file_is_no_conflict_of_an_undo_and_is_put_aside(workspace: Workspace, root: Path) -> None:
    write(workspace, "a", "old", b"two")
    (root / "old").write_text("torn")
    assert workspace.plan_undo(RUN).conflicts == ["old"]
    undo = workspace.undo(RUN, torn=True)
    assert undo.conflicts == []
    assert undo.aside["old"].read_text() == "torn"
    assert (root / "old").read_text() == "one"


def test_what_a_script_wrote_is_brought_back_too(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "s", ["."])
    sh(root, "echo script > made; rm old; ln -s made link")
    workspace.finish(RUN, "s")
    sh(root, "rm link; : > made; echo one > old; printf one > old")
    assert workspace.redo(RUN, ["s"]).lost == []
    assert (root / "link").read_text() == "script\n"
    assert not (root / "old").exists()


# Git.


def commit(workspace: Workspace, root: Path) -> None:
    sh(root, "git init -qb main .; git add .; git commit -qm first; git config core.logAllRefUpdates true")
    workspace.capture(RUN, "commit", [".git"])
    sh(root, "echo two > old; git commit -qam second")
    workspace.finish(RUN, "commit")


def test_refs_that_were_lost_are_brought_back(workspace: Workspace, root: Path) -> None:
    commit(workspace, root)
    wanted = sh(root, "git rev-parse HEAD")
    for text in (": > .git/refs/heads/main", "rm .git/refs/heads/main", ": > .git/index", "rm .git/index"):
        sh(root, text)
        assert workspace.redo(RUN, ["commit"]).lost == []
        assert sh(root, "git rev-parse HEAD") == wanted
        assert sh(root, "git status --porcelain") == ""


@pytest.mark.parametrize("kind", ["commit", "tree", "blob"])
def test_a_step_whose_objects_were_lost_runs_again(workspace: Workspace, root: Path, kind: str) -> None:
    commit(workspace, root)
    name = {"commit": "HEAD", "tree": "HEAD^{tree}", "blob": "HEAD:old"}[kind]
    identity = sh(root, f"git rev-parse {name}").strip()
    lost = root / ".git" / "objects" / identity[:2] / identity[2:]
    lost.chmod(0o644)
    lost.write_bytes(b"")
    assert workspace.redo(RUN, ["commit"]).lost == ["commit"]
    sh(root, "printf one > old")
    assert workspace.undo(RUN, "commit", torn=True).conflicts == []
    assert sh(root, "git log --format=%s") == "first\n"
    assert sh(root, "git status --porcelain") == ""


def test_what_the_journal_has_no_content_for_is_lost(workspace: Workspace, root: Path) -> None:
    sh(root, "git init -qb main .; mkdir .git/elsewhere")
    workspace.capture(RUN, "s", [".git"])
    sh(root, "echo x > .git/elsewhere/x")
    workspace.finish(RUN, "s")
    (root / ".git" / "elsewhere" / "x").write_text("")
    assert workspace.redo(RUN, ["s"]).lost == ["s"]

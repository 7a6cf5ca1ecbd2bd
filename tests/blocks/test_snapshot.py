"""What looks at a workspace leave out, and what they say of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import snapshot
from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.snapshot import Exclusions
from quantum_orchestrator.blocks.workspace import Workspace

RUN = "r1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("state", "workspace"):
        (tmp_path / name).mkdir()
    root = tmp_path / "workspace"
    sh(root, "mkdir -p .venv/lib/deep a/__pycache__ node_modules; echo x > .venv/lib/deep/x; echo c > a/__pycache__/c")
    sh(root, "echo 1 > a/file")
    time.sleep(0.02)
    return root


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    journal = Journal(root.parent / "state")
    made = Workspace(root, journal, Policy().snapshot_exclude)
    yield made
    made.close()
    journal.close()


def sh(root: Path, text: str) -> None:
    subprocess.run(["sh", "-ec", text], cwd=root, check=True)


TOUCHES = {
    "cat .venv/lib/deep/x; echo more >> a/file": [],
    "echo more >> .venv/lib/deep/x": [".venv"],
    "touch -d 2001-01-01 .venv/lib/deep/x": [".venv"],
    "chmod 600 .venv/lib/deep/x": [".venv"],
    "rm .venv/lib/deep/x": [".venv"],
    "mv .venv elsewhere": [".venv"],
    "mkdir .venv/lib/deep/new": [".venv"],
    "rm -r a/__pycache__ node_modules": ["a/__pycache__", "node_modules"],
    "mkdir -p b/.mypy_cache": ["b/.mypy_cache"],
    "rmdir node_modules; mkdir node_modules": ["node_modules"],
}


@pytest.mark.parametrize("text", TOUCHES)
def test_caches_that_a_step_has_touched_are_named(workspace: Workspace, root: Path, text: str) -> None:
    workspace.capture(RUN, "s", ["."])
    sh(root, text)
    workspace.finish(RUN, "s")
    assert workspace.excluded_touched(RUN, "s") == TOUCHES[text]


def test_caches_outside_of_what_a_step_may_write_are_not_looked_at(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "s", ["a"])
    sh(root, "echo more > .venv/more; echo more > a/__pycache__/more")
    workspace.finish(RUN, "s")
    assert workspace.excluded_touched(RUN, "s") == ["a/__pycache__"]


def test_a_step_without_a_capture_has_touched_nothing(workspace: Workspace) -> None:
    assert workspace.excluded_touched(RUN, "s") == []


def test_no_more_is_looked_at_than_was_said(workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "LARGEST_LOOK", 10)
    for number in range(30):
        (root / ".venv" / f"{number}").mkdir()
        (root / ".venv" / f"{number}" / "x").touch()
    time.sleep(0.02)
    workspace.capture(RUN, "s", ["."])
    (root / ".venv" / "29" / "x").write_text("changed")
    workspace.finish(RUN, "s")
    assert workspace.excluded_touched(RUN, "s") == []


def test_names_and_patterns_are_left_out_wherever_they_are() -> None:
    excluded = Exclusions(["cache", "*.tmp[0-9]"])
    left_out = ["cache", "a/cache", "x.tmp1", ".git/objects", "sub/.git/objects", "a/.qo-0123456789abcdef.tmp"]
    assert [path for path in left_out if not excluded(path)] == []
    kept = ["caches", "objects", "git/objects", ".git/objects.old", "x.tmp", ".qo-1.tmp"]
    assert [path for path in kept if excluded(path)] == []


def test_a_file_that_has_not_changed_is_not_read_again(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(root / "a" / "file", (1, 1))
    time.sleep(0.06)
    workspace.capture(RUN, "one", ["."])
    reads: list[str] = []
    real = ConfinedFolder.read
    monkeypatch.setattr(ConfinedFolder, "read", lambda folder, path: reads.append(path) or real(folder, path))
    workspace.capture(RUN, "two", ["."])
    (root / "a" / "file").write_text("2")
    workspace.finish(RUN, "two")
    assert reads == ["a/file"]


def test_where_packed_refs_were_is_journaled_with_refs_that_become_files(workspace: Workspace, root: Path) -> None:
    sh(root, "git init -qb main .; git commit -q --allow-empty -m first; git pack-refs --all")
    workspace.capture(RUN, "s", [".git"])
    sh(root, "git commit -q --allow-empty -m second")
    assert ".git/packed-refs" not in [change.path for change in workspace.finish(RUN, "s")]
    (witness,) = [each.change for each in workspace.journal.effects(RUN) if each.change.path == ".git/packed-refs"]
    assert witness.before == witness.after
    assert witness.before is not None
    assert b"refs/heads/main" in workspace.journal.content(witness.before.sha256)

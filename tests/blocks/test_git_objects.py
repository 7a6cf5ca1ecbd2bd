"""What a step deletes of git's objects comes back with the undo, and nothing that others need goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from shell import sh

from quantum_orchestrator.blocks import git_objects
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.git_objects import GitObjects
from quantum_orchestrator.blocks.workspace import Workspace

RUN = "r1"
KEPT = "objects/*/kept"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with loose and packed objects, some of which no ref leads to."""
    for name in ("state", "workspace"):
        (tmp_path / name).mkdir()
    root = tmp_path / "workspace"
    sh(root, "git init -qb main .; echo a > a; git add .; git commit -qm first; git gc -q; echo b > b; git add .")
    sh(root, "git commit -qm second; echo c > b; git add b; git commit -q --amend -m amended; echo u > u; git add u")
    return root


def objects(root: Path) -> str:
    """Every object that git can read, with its size; git reads all of them to say so."""
    sh(root, "git fsck --strict --no-dangling --no-progress")
    return sh(
        root,
        "git cat-file --batch-all-objects --batch-check; git status --porcelain; git log --all --reflog --format=%H",
    )


DAMAGE = {
    "deletes the repository": "rm -rf .git",
    "makes another one": "rm -rf .git; git init -qb main .; echo x > x; git add .; git commit -qm other",
    "deletes all objects": "rm -rf .git/objects",
    "deletes the packs": "rm -f .git/objects/pack/*",
    "deletes loose objects": "find .git/objects -name '[0-9a-f]*' -type f -delete",
    "prunes": "git reset -q --hard; git reflog expire --expire=now --all; git prune --expire=now",
    "collects garbage": "git reflog expire --expire=now --all; git gc -q --prune=now",
    "repacks": "git repack -adfq",
    "replaces a loose object by rubbish": "f=$(find .git/objects/[0-9a-f]? -type f | head -1); rm -f $f; echo x > $f",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_objects_that_a_script_deletes_come_back(workspace: Workspace, root: Path, what: str) -> None:
    before = objects(root)
    workspace.capture(RUN, "s", ["."])
    sh(root, DAMAGE[what])
    workspace.finish(RUN, "s")
    assert workspace.undo(RUN).conflicts == []
    found, wanted = objects(root).splitlines(), before.splitlines()
    assert [line for line in wanted if line not in found] == []
    assert sh(root, "git status --porcelain; git log --format=%s") == "A  u\namended\nfirst\n"
    assert list((root.parent / "state").glob("objects/*/lost/*")) == []


def test_a_script_that_was_cut_short_is_undone_alike(workspace: Workspace, root: Path) -> None:
    before = objects(root)
    workspace.capture(RUN, "s", ["."])
    sh(root, "rm -rf .git/objects .git/refs .git/HEAD")
    assert workspace.undo(RUN).conflicts == []
    assert objects(root) == before


def test_an_undo_that_is_cut_short_is_repeated(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = objects(root)
    workspace.capture(RUN, "s", ["."])
    sh(root, "rm -rf .git")
    workspace.finish(RUN, "s")
    for number in (1, 3, 6):
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", Breaking(number))
            with pytest.raises(Killed):
                workspace.undo(RUN)
    assert workspace.undo(RUN).conflicts == []
    assert objects(root) == before


class Killed(BaseException):
    """What nothing handles."""


class Breaking:
    """Lets so many calls through, and then breaks off."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.real = os.link

    def __call__(self, *arguments: str, **keywords: int) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Killed
        self.real(*arguments, **keywords)


def test_objects_are_linked_and_not_copied(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "s", ["."])
    kept = [path for path in (root.parent / "state").glob(f"{KEPT}/*/*") if path.is_file()]
    assert len(kept) > 5
    assert {path.stat().st_nlink for path in kept} == {2}


def test_only_new_objects_are_linked_the_next_time(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.capture(RUN, "one", ["."])
    sh(root, "echo new | git hash-object -w --stdin")
    names: list[str] = []
    real = os.link
    monkeypatch.setattr(os, "link", lambda name, *rest, **named: names.append(name) or real(name, *rest, **named))
    workspace.capture(RUN, "two", ["."])
    assert len(names) == 1


def test_a_step_that_is_known_to_delete_no_objects_does_not_pay(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "s", ["."], keeps_objects=True)
    assert not (root.parent / "state" / "objects").exists()
    workspace.capture(RUN, "other", ["a"])  # nor one that does not write the repository
    assert not (root.parent / "state" / "objects").exists()


def test_where_links_cannot_be_made_contents_are_copied(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = objects(root)
    monkeypatch.setattr(os, "link", refuse_links)
    workspace.capture(RUN, "s", ["."])
    sh(
        root,
        "for f in $(find .git/objects -path '*/??/*' -o -name 'pack-*'); do chmod u+w $f; echo damaged > $f; done",
    )
    workspace.finish(RUN, "s")
    assert workspace.undo(RUN).conflicts == []
    assert objects(root) == before


def refuse_links(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_what_is_too_large_to_be_copied_is_a_conflict_if_it_is_deleted(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    monkeypatch.setattr(git_objects, "LARGEST_COPY", 300)
    workspace.capture(RUN, "s", ["."])
    sh(root, "rm -rf .git/objects")
    workspace.finish(RUN, "s")
    undo = workspace.plan_undo(RUN)
    assert undo.conflicts == [".git/objects"]
    assert "objects are gone" in undo.reasons[".git/objects"]


def test_an_object_overwritten_in_place_is_a_conflict(workspace: Workspace, root: Path) -> None:
    loose = next(path for path in sorted((root / ".git" / "objects").glob("[0-9a-f][0-9a-f]/*")))
    workspace.capture(RUN, "s", ["."])
    loose.chmod(0o644)
    loose.write_bytes(b"damaged")
    workspace.finish(RUN, "s")
    undo = workspace.undo(RUN)
    assert undo.conflicts == [".git/objects"]
    assert f"{loose.parent.name}/{loose.name}" in undo.reasons[".git/objects"]


def test_an_object_that_git_has_only_touched_is_not_damaged(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "s", ["."])
    sh(root, "find .git/objects -type f -exec touch -d 2001-01-01 {} +")
    workspace.finish(RUN, "s")
    assert workspace.plan_undo(RUN).objects == {}


def test_alternates_that_are_deleted_come_back(workspace: Workspace, root: Path) -> None:
    sh(root, "git clone -q --shared --bare . ../other; git -C ../other repack -q; git init -q --bare ../third")
    (root / ".git" / "objects" / "info").mkdir(exist_ok=True)
    alternates = root / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"{root.parent}/third/objects\n")
    workspace.capture(RUN, "s", ["."])
    alternates.unlink()
    workspace.finish(RUN, "s")
    assert workspace.undo(RUN).conflicts == []
    assert alternates.read_text() == f"{root.parent}/third/objects\n"


def test_objects_of_a_nested_repository_are_kept_too(workspace: Workspace, root: Path) -> None:
    sh(root, "mkdir sub; cd sub; git init -qb main .; echo x > x; git add .; git commit -qm first")
    before = objects(root / "sub")
    workspace.capture(RUN, "s", ["."])
    sh(root, "rm -rf sub")
    workspace.finish(RUN, "s")
    assert workspace.undo(RUN).conflicts == []
    assert objects(root / "sub") == before


def test_what_the_user_has_collected_is_let_go(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "one", ["."])
    workspace.finish(RUN, "one")
    sh(root, "git gc -q --prune=now")
    workspace.capture(RUN, "two", ["."])
    kept = {path.name for path in (root.parent / "state").glob(f"{KEPT}/*/*")}
    there = {path.name for path in (root / ".git" / "objects").rglob("*") if path.is_file()}
    assert kept <= there
    git_objects.forget(root.parent / "state")
    assert not (root.parent / "state" / "objects").exists()


def test_a_link_in_place_of_the_objects_is_not_followed(root: Path, tmp_path: Path) -> None:
    sh(root, "mv .git/objects ../elsewhere; ln -s ../../elsewhere .git/objects")
    found = GitObjects(root, tmp_path / "state")
    found.keep(".git", RUN, "s")
    assert list((tmp_path / "state").glob(f"{KEPT}/*/*")) == []


def test_the_names_of_new_folders_are_durable(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sh(root, "rm -rf .git; git init -qb main .; git add a; git commit -qm first")
    synced: set[Path] = set()
    real = os.fsync

    def noted(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    workspace.capture(RUN, "s", ["."])
    state = root.parent / "state"
    made = [path for path in (state / "objects").rglob("*") if path.is_dir()]
    assert {state, *(path.parent for path in made)} <= synced


def test_objects_that_cannot_be_listed_stop_the_step(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.capture(RUN, "one", ["."])
    workspace.finish(RUN, "one")
    before = len(list((root.parent / "state").glob(f"{KEPT}/*/*")))

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(git_objects, "_listed", fails)
        with pytest.raises(OperationError, match="keep the objects"):
            workspace.capture(RUN, "two", ["."])
    assert len(list((root.parent / "state").glob(f"{KEPT}/*/*"))) == before > 0

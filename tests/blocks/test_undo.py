"""What becomes of paths that somebody else has changed since: reported, kept, or put aside and overwritten."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import OperationError, StateError
from quantum_orchestrator.blocks.journal import Journal, StepRecord
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.undo import Undo
from quantum_orchestrator.blocks.workspace import Conflicts, Workspace

RUN = "r1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("state", "workspace"):
        (tmp_path / name).mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    (root / "kept").mkdir()
    (root / "there").mkdir()
    (root / "there" / "file").write_text("before")
    (root / "old").write_text("before")
    (root / "old").chmod(0o640)
    (root / "link").symlink_to("before")
    (root / "folder").mkdir(mode=0o750)
    (root / "folder" / "inner").write_text("inner before")
    journal = Journal(root.parent / "state")
    made = Workspace(root, journal, ["cache"])
    yield made
    made.close()
    journal.close()


def sh(root: Path, text: str) -> None:
    subprocess.run(["sh", "-ec", text], cwd=root, check=True)


def run(workspace: Workspace) -> None:
    """A run that changes a bit of everything."""
    overlay = Overlay(workspace.tree)
    overlay.write("old", b"ours")
    overlay.write("new/deep/file", b"ours")
    overlay.write("other", b"ours")
    overlay.write("there/file", b"ours")
    overlay.delete("link")
    overlay.link("link", "ours")
    overlay.delete("folder")
    overlay.write("folder", b"a file now")
    overlay.chmod("kept", 0o700)
    workspace.apply(RUN, "s", overlay.changes(), overlay.content_of)


def tree(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = path.read_bytes()
        elif kind == stat.S_IFLNK:
            content = path.readlink()
        found[str(path.relative_to(root))] = (oct(status.st_mode), content)
    return found


THEIRS = {
    "edits a file": ("echo theirs > old", ["old"]),
    "changes a mode": ("chmod 600 old", ["old"]),
    "deletes a file": ("rm old", ["old"]),
    "edits a new file": ("echo theirs > new/deep/file", ["new/deep/file", "new/deep", "new"]),
    "puts a link in a file's place": ("rm old; ln -s nowhere old", ["old"]),
    "puts a folder in a file's place": ("rm old; mkdir -p old/a/b; echo x > old/a/b/c; ln -s c old/l", ["old"]),
    "puts a FIFO in a file's place": ("rm old; mkfifo -m 600 old", ["old"]),
    "changes a link": ("rm link; ln -s theirs link", ["link"]),
    "puts a file in a link's place": ("rm link; echo theirs > link", ["link"]),
    "adds to a new folder": ("echo theirs > new/deep/theirs", ["new/deep", "new"]),
    "adds folders to a new folder": ("mkdir -p new/more/deep; echo x > new/more/deep/x", ["new"]),
    "adds a cache to a new folder": ("mkdir new/cache; echo x > new/cache/x", []),
    "edits what was a folder": ("echo theirs > folder", ["folder"]),
    "makes the folder again": ("rm folder; mkdir -m 700 folder; echo theirs > folder/theirs", ["folder"]),
    "removes a folder that was there": ("rm -r there", ["there/file"]),
    "puts a link in a new folder's place": ("rm -r new; mkdir -p ../e/deep; ln -s ../e new", ["new", "new/deep/file"]),
    "changes a folder's mode": ("chmod 555 kept", ["kept"]),
    "does nothing": ("true", []),
}


@pytest.mark.parametrize("what", THEIRS)
def test_conflicts_are_reported_and_left(workspace: Workspace, root: Path, what: str) -> None:
    text, wanted = THEIRS[what]
    run(workspace)
    sh(root, text)
    theirs = tree(root)
    undo = workspace.undo(RUN)
    assert set(undo.conflicts) >= set(wanted)
    assert bool(undo.conflicts) == bool(wanted)
    assert {path: tree(root).get(path) for path in undo.conflicts} == {
        path: theirs.get(path) for path in undo.conflicts
    }
    assert {effect.change.path for effect in workspace.journal.effects(RUN)} == set(undo.conflicts)
    assert (undo.aside, undo.left) == ({}, undo.conflicts)


@pytest.mark.parametrize("what", THEIRS)
def test_what_is_kept_stays_and_settles_the_run(workspace: Workspace, root: Path, what: str) -> None:
    before = tree(root)
    text, wanted = THEIRS[what]
    run(workspace)
    sh(root, text)
    theirs = tree(root)
    undo = workspace.undo(RUN, conflicts=Conflicts.KEEP)
    assert set(undo.conflicts) >= set(wanted)
    found = tree(root)
    assert {path: found.get(path) for path in undo.conflicts} == {path: theirs.get(path) for path in undo.conflicts}
    tops = {path.partition("/")[0] for path in wanted}
    elsewhere = [path for path in before if path.partition("/")[0] not in tops]
    assert {path: found.get(path) for path in elsewhere} == {path: before[path] for path in elsewhere}
    assert workspace.journal.effects(RUN) == []
    assert workspace.undo(RUN).conflicts == []


@pytest.mark.parametrize("what", THEIRS)
def test_what_is_overwritten_is_put_aside_whole(workspace: Workspace, root: Path, what: str) -> None:
    before = tree(root)
    text, wanted = THEIRS[what]
    run(workspace)
    sh(root, text)
    theirs = tree(root)
    undo = workspace.undo(RUN, conflicts=Conflicts.OVERWRITE)
    assert (bool(undo.conflicts), undo.left) == (bool(wanted), [])
    found = tree(root)
    assert found.pop("folder/theirs", None) == theirs.get("folder/theirs")  # nobody's but theirs, and not in the way
    assert found == before
    assert workspace.journal.effects(RUN) == []
    for path, place in undo.aside.items():
        assert place == root.parent / "state" / "aside" / RUN / path
        assert without_folder_modes({".": entry_of(place), **tree(place)}) == without_folder_modes(
            {".": theirs[path], **below(theirs, path, empty="mode" in what or "again" in what)}
        )
    ours = {"new", "new/deep", "new/deep/file", "new/cache", "new/cache/x", "other"}
    gone = theirs.keys() - found.keys() - ours - {"folder/theirs"}
    assert {path for path in gone if not any(f"{path}/".startswith(f"{each}/") for each in undo.aside)} == set()


def entry_of(path: Path) -> tuple[str, object]:
    return tree(path.parent)[path.name]


def below(found: dict[str, Any], top: str, *, empty: bool) -> dict[str, Any]:
    return {} if empty else {path[len(top) + 1 :]: entry for path, entry in found.items() if path.startswith(f"{top}/")}


def without_folder_modes(found: dict[str, Any]) -> dict[str, Any]:
    """Folders that are put aside can be used by their owner, whatever they could before."""
    return {path: "folder" if entry[0].startswith("0o4") else entry for path, entry in found.items()}


CALLS = ("write", "mkdir", "chmod", "symlink", "unlink", "rmdir")


class Killed(BaseException):
    """What nothing handles, as little as a kill."""


def break_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    left = [number]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*arguments, **keywords)

        return call

    for name in CALLS:
        monkeypatch.setattr(ConfinedFolder, name, wrapped(getattr(ConfinedFolder, name)))
    monkeypatch.setattr(Path, "rename", wrapped(Path.rename))
    monkeypatch.setattr(Path, "write_bytes", wrapped(Path.write_bytes))


@pytest.mark.parametrize("what", ["edits a file", "puts a folder in a file's place", "adds to a new folder"])
def test_overwriting_that_is_cut_short_anywhere_loses_nothing(
    workspace: Workspace, root: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(root)
    run(workspace)
    sh(root, THEIRS[what][0])
    whole: set[str] = set()
    for number in range(1, 60):
        with monkeypatch.context() as patch:
            break_at(patch, number)
            try:
                workspace.undo(RUN, conflicts=Conflicts.OVERWRITE)
            except Killed:
                whole |= set(tree(root.parent / "state" / "aside").keys())
            else:
                break
    assert tree(root) == before
    aside = tree(root.parent / "state" / "aside")
    assert {path.partition("/")[0] for path in aside} <= {RUN, ".part"}  # nothing took a second place
    assert b"before" not in {content for _, content in aside.values()}
    contents = {content for _, content in aside.values()}
    assert b"theirs\n" in contents or b"x\n" in contents


def test_an_older_version_that_was_put_aside_is_not_overwritten(workspace: Workspace, root: Path) -> None:
    places = []
    for text in ("one", "two", "two"):
        run(workspace)
        (root / "old").write_text(text)
        places.append(workspace.undo(RUN, conflicts=Conflicts.OVERWRITE).aside["old"])
    assert [place.read_text() for place in places] == ["one", "two", "two"]
    assert places[0] != places[1] == places[2]


def test_what_cannot_be_put_aside_stops_the_undo_before_anything_is_changed(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace)
    (root / "old").write_text("theirs")
    theirs = tree(root)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OperationError, match="old: cannot put aside it: No space left"):
        workspace.undo(RUN, conflicts=Conflicts.OVERWRITE)
    assert tree(root) == theirs


def test_what_could_not_be_made_anew_is_not_overwritten(workspace: Workspace, root: Path) -> None:
    os.mkfifo(root / "fifo")
    workspace.capture(RUN, "s", ["."])
    sh(root, "rm fifo; echo theirs > fifo")
    workspace.finish(RUN, "s")
    for choice in (Conflicts.REPORT, Conflicts.OVERWRITE):
        undo = workspace.undo(RUN, conflicts=choice)
        assert (undo.conflicts, undo.left, undo.aside) == (["fifo"], ["fifo"], {})
    assert workspace.undo(RUN, conflicts=Conflicts.KEEP).conflicts == ["fifo"]
    assert workspace.journal.effects(RUN) == []


def test_a_damaged_before_image_refuses_before_anything_is_changed(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace)
    ours = tree(root)
    real = Journal.content

    def damaged(journal: Journal, sha256: str) -> bytes:
        if real(journal, sha256) == b"before":
            raise StateError("damaged")
        return real(journal, sha256)

    def check(journal: Journal, digests: Any) -> None:
        for each in digests:
            damaged(journal, each)

    monkeypatch.setattr(Journal, "check_contents", check)
    with pytest.raises(StateError):
        workspace.undo(RUN)
    assert tree(root) == ours


def test_a_plan_changes_nothing_and_says_where_things_would_be_put(workspace: Workspace, root: Path) -> None:
    run(workspace)
    (root / "old").write_text("theirs")
    theirs = tree(root)
    undo: Undo = workspace.plan_undo(RUN, conflicts=Conflicts.OVERWRITE)
    assert undo.aside == {"old": root.parent / "state" / "aside" / RUN / "old"}
    assert tree(root) == theirs
    assert not (root.parent / "state" / "aside").exists()


def test_a_temporary_file_that_an_undo_left_when_it_was_killed_goes(workspace: Workspace, root: Path) -> None:
    run(workspace)
    workspace.journal.record_step(RUN, StepRecord("s", "file.write", "succeeded"), done=True)
    (root / ".qo-0123456789abcdef.tmp").write_text("half")
    workspace.undo(RUN)
    assert not (root / ".qo-0123456789abcdef.tmp").exists()


def test_what_is_found_after_a_death_is_put_aside_as_it_may_be_somebodys(root: Path) -> None:
    (root / "old").write_text("one\n")
    with contextlib.closing(Journal(root.parent / "state")) as journal:
        dies = Workspace(root, journal)
        dies.capture(RUN, "script", ["."])
        (root / "made").write_text("by the script\n")
        dies.close()
        (root / "old").write_text("by somebody since\n")
        (root / "own").mkdir()
        (root / "own" / "work").write_text("mine\n")
        recovers = Workspace(root, journal)
        undo = recovers.undo(RUN)
        recovers.close()
    assert sorted(path.name for path in root.iterdir()) == ["old"]
    assert (root / "old").read_text() == "one\n"
    assert {path: place.read_text() for path, place in undo.aside.items()} == {
        "made": "by the script\n",
        "old": "by somebody since\n",
        "own/work": "mine\n",
    }

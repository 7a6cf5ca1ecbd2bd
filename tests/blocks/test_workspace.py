"""Effects on a real folder: journaled, done, and put back exactly, wherever they are cut short."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Workspace

RUN = "r1"


@pytest.fixture
def root() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="qo-workspace-"))
    for name in ("state", "workspace"):
        (top / name).mkdir()
    yield top / "workspace"
    shutil.rmtree(top)


@pytest.fixture(params=["as root", "as another user"])
def user(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Root may do what file modes forbid, and others may not: both must be able to undo."""
    if request.param == "as root" or os.geteuid() != 0:
        yield
        return
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(root.parent))
    (root.parent / ".gitconfig").write_text("[user]\n\tname = Ada Test\n\temail = ada@example.org\n")
    for path in (root.parent, *root.parent.rglob("*")):
        os.chown(path, 65534, 65534)
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(0)


@pytest.fixture
def workspace(user: None, root: Path) -> Iterator[Workspace]:
    journal = Journal(root.parent / "state")
    made = Workspace(root, journal, Policy().snapshot_exclude)
    yield made
    made.close()
    journal.close()


def state_of(root: Path) -> dict[str, Any]:
    """Everything that a program could see there, but for times."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(status.st_mode):
                with contextlib.suppress(PermissionError):
                    content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(root)))] = (status.st_mode, content)
    return found


def fill(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "e" / "x").write_text("x\n")
    (root / "d" / "y").write_text("y\n")
    (root / "d" / "y").chmod(0o600)
    (root / "empty").mkdir(mode=0o750)
    (root / "file").write_text("file\n")
    (root / "link").symlink_to("file")
    (root / "ro").mkdir()
    (root / "ro" / "z").write_text("z\n")
    (root / "sgid").mkdir()
    (root / "sgid").chmod(0o2775)


def act(workspace: Workspace, step: str, *areas: str) -> Callable[[Callable[[Path], object]], None]:
    """Do something to the folder as a script does it: behind the workspace's back, between a capture and a finish."""

    def between(doing: Callable[[Path], object]) -> None:
        workspace.capture(RUN, step, areas or ["."])
        doing(workspace.root)
        workspace.finish(RUN, step)

    return between


def run(root: Path, *argv: str) -> bytes:
    """As the user of the test: a shell would take back the real one's rights."""
    done = subprocess.run(argv, cwd=root, check=True, user=os.geteuid(), group=os.getegid(), stdout=subprocess.PIPE)
    return done.stdout


def sh(text: str) -> Callable[[Path], object]:
    return lambda root: run(root, "sh", "-ec", text)


def change_much(overlay: Overlay) -> None:
    """Every kind of change, kinds of entries included."""
    overlay.delete("d")
    overlay.write("d", b"a file where a folder was")
    overlay.delete("file")
    overlay.mkdir("file", 0o711)
    overlay.write("file/inner", b"in a folder where a file was")
    overlay.delete("link")
    overlay.link("link", "elsewhere")
    overlay.chmod("empty", 0o700)
    overlay.write("empty/new", b"new")
    overlay.write("ro/z", b"changed", 0o755)
    overlay.write("a/b/c", b"deep")
    overlay.mkdir("sgid/inner", 0o2775)


# Undoing what was cut short.


CALLS = ("write", "mkdir", "chmod", "symlink", "unlink", "rmdir")


class Breaking:
    """Makes the n-th change of the disk fail, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, error: int) -> None:
        self.left = number
        for name in CALLS:
            monkeypatch.setattr(ConfinedFolder, name, self.wrapped(getattr(ConfinedFolder, name), error))

    def wrapped(self, real: Callable[..., Any], error: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(error, os.strerror(error))
            return real(*arguments)

        return call


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_disk_that_fails_at_any_call_leaves_nothing_after_the_undo(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    fill(root)
    before = state_of(root)
    for number in range(1, 100):
        overlay = Overlay(workspace.tree)
        change_much(overlay)
        with monkeypatch.context() as patch:
            breaking = Breaking(patch, number, error)
            try:
                workspace.apply(RUN, f"s{number}", overlay.changes(), overlay.content_of)
            except OperationError:
                failed = True
            else:
                failed = False
        assert workspace.undo(RUN, f"s{number}").conflicts == []
        assert state_of(root) == before, number
        if not failed:
            assert breaking.left > 0
            return
    raise AssertionError


def test_an_undo_that_fails_at_any_call_can_be_repeated(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root)
    before = state_of(root)
    for number in range(1, 100):
        overlay = Overlay(workspace.tree)
        change_much(overlay)
        workspace.apply(RUN, f"s{number}", overlay.changes(), overlay.content_of)
        with monkeypatch.context() as patch:
            breaking = Breaking(patch, number, errno.EIO)
            try:
                workspace.undo(RUN)
            except OperationError:
                failed = True
            else:
                failed = False
        assert workspace.undo(RUN).conflicts == []
        assert state_of(root) == before, number
        if not failed:
            assert breaking.left > 0
            return
    raise AssertionError


def test_the_temporary_file_of_a_killed_write_goes_with_the_undo(workspace: Workspace, root: Path) -> None:
    overlay = Overlay(workspace.tree)
    overlay.write("new/x", b"x")
    workspace.apply(RUN, "s", overlay.changes(), overlay.content_of)
    (root / "new" / ".qo-0123456789abcdef.tmp").write_text("half")
    assert workspace.undo(RUN).conflicts == []
    assert state_of(root) == {}


# What others do meanwhile.


def test_a_file_that_came_meanwhile_is_not_overwritten(workspace: Workspace, root: Path) -> None:
    overlay = Overlay(workspace.tree)
    overlay.write("x", b"ours")
    (root / "x").write_text("theirs")
    with pytest.raises(OperationError, match="x: somebody else changed it"):
        workspace.apply(RUN, "s", overlay.changes(), overlay.content_of)
    assert (root / "x").read_text() == "theirs"


def test_a_file_changed_meanwhile_is_not_overwritten_though_the_journal_knows_its_old_content(
    workspace: Workspace, root: Path
) -> None:
    (root / "x").write_text("one")
    for step, content in (("a", b"two"), ("b", b"one")):
        overlay = Overlay(workspace.tree)
        overlay.write("x", content)
        workspace.apply(RUN, step, overlay.changes(), overlay.content_of)
    overlay = Overlay(workspace.tree)
    overlay.write("x", b"three")
    (root / "x").write_text("theirs")
    with pytest.raises(OperationError, match="x: somebody else changed it"):
        workspace.apply(RUN, "c", overlay.changes(), overlay.content_of)
    assert (root / "x").read_text() == "theirs"


def test_a_file_changed_since_is_a_conflict_and_all_else_is_undone(workspace: Workspace, root: Path) -> None:
    overlay = Overlay(workspace.tree)
    overlay.write("d/x", b"ours")
    overlay.write("y", b"ours")
    workspace.apply(RUN, "s", overlay.changes(), overlay.content_of)
    (root / "d" / "x").write_text("theirs")
    assert sorted(workspace.undo(RUN).conflicts) == ["d", "d/x"]
    assert sorted(state_of(root)) == ["d", "d/x"]


def test_a_file_that_vanishes_while_it_is_looked_at_is_as_if_it_had_not_been(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (root / name).write_text(name)
    (root / "d").mkdir()
    real_read, real_names = ConfinedFolder.read, ConfinedFolder.names

    def read(folder: ConfinedFolder, path: str) -> bytes:
        if path == "b":
            (root / "b").unlink(missing_ok=True)
        return real_read(folder, path)

    def names(folder: ConfinedFolder, path: str) -> list[str]:
        if path == "d":
            (root / "d").rmdir()
        return real_names(folder, path)

    monkeypatch.setattr(ConfinedFolder, "read", read)
    monkeypatch.setattr(ConfinedFolder, "names", names)
    workspace.capture(RUN, "s", ["."])
    monkeypatch.undo()
    (root / "a").write_text("changed")
    workspace.finish(RUN, "s")
    workspace.undo(RUN)
    assert (root / "a").read_text() == "a"


# What scripts do.


SCRIPTS = {
    "empties the workspace": "rm -rf d empty file link ro sgid",
    "renames folders": "mv d D; mv ro d; mv D ro",
    "swaps kinds": "rm link; mkdir link; rm file; ln -s nowhere file; rm -r d; echo d > d; rmdir empty; mkfifo empty",
    "makes hard links": "ln d/y d/z; echo more >> d/z",
    "changes modes": "chmod 000 d/y; chmod 0555 ro; chmod 0700 sgid; chmod 4755 file",
    "makes caches in a new folder": "mkdir -p pkg/__pycache__; echo c > pkg/__pycache__/m.pyc; echo m > pkg/m.py",
    "makes a repository": "git init -q .; git add .; git commit -qm first",
    "makes a nested repository": "mkdir sub; cd sub; git init -q .; echo s > s; git add .; git commit -qm first",
    "makes read-only folders": "mkdir -p new/in; echo n > new/in/n; chmod 0555 new/in new; rm ro/z; chmod 0500 ro",
    "hides what it did": "echo more > d/e/x; echo n > d/n; chmod 000 d",
    "makes names that are not UTF-8": "n=$(printf 'caf\\351'); mkdir $n; echo x > $n/$n; ln -s $n l; rm file",
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_whatever_a_script_does_is_undone(workspace: Workspace, root: Path, what: str) -> None:
    fill(root)
    before = state_of(root)
    act(workspace, "s")(sh(SCRIPTS[what]))
    assert state_of(root) != before
    assert workspace.undo(RUN).conflicts == []
    assert state_of(root) == before


@pytest.mark.parametrize("what", SCRIPTS)
def test_a_script_cut_short_is_undone(workspace: Workspace, root: Path, what: str) -> None:
    fill(root)
    before = state_of(root)
    workspace.capture(RUN, "s", ["."])
    sh(SCRIPTS[what])(root)
    assert workspace.undo(RUN).conflicts == []
    assert state_of(root) == before


def test_what_was_special_or_unreadable_before_is_a_conflict_only_if_it_was_touched(
    workspace: Workspace, root: Path
) -> None:
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "gone")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
    act(workspace, "s")(sh("rm gone; echo x > x"))
    assert workspace.undo(RUN).conflicts == ["gone"]
    assert sorted(state_of(root)) == ["fifo", "sock"]


def test_what_lies_very_deep_is_captured_and_undone(workspace: Workspace, root: Path, small_stack: None) -> None:
    deep = "/".join(["d"] * 300)
    run(root, "mkdir", "-p", deep)
    act(workspace, "s")(sh(f"rm -r d; mkdir -p n/{deep}; echo x > n/{deep}/x"))
    assert workspace.undo(RUN).conflicts == []
    count = run(root, "find", ".").count(b"\n")
    assert count == 301
    run(root, "rm", "-rf", "d")


def test_excluded_names_are_left_alone_in_folders_that_stay(workspace: Workspace, root: Path) -> None:
    (root / "pkg" / "__pycache__").mkdir(parents=True)
    act(workspace, "s")(sh("echo c > pkg/__pycache__/m.pyc; echo m > pkg/m.py"))
    assert [change.path for change in workspace.undo(RUN).changes] == ["pkg/m.py"]
    assert (root / "pkg" / "__pycache__" / "m.pyc").exists()


def test_a_very_large_file_is_put_back(workspace: Workspace, root: Path) -> None:
    content = os.urandom(3_000_000)
    (root / "large").write_bytes(content)
    act(workspace, "s")(sh("head -c 100 large > l2; mv l2 large"))
    workspace.undo(RUN)
    assert (root / "large").read_bytes() == content
    assert any(
        path.stat().st_size >= 3_000_000 for path in (root.parent / "state" / "contents").rglob("*") if path.is_file()
    )


LOG = ("git", "log", "--all", "--format=%H")


def test_collecting_garbage_loses_nothing_that_is_needed(workspace: Workspace, root: Path) -> None:
    sh("git init -q .; echo 1 > x; git add .; git commit -qm one; git tag kept; echo 2 > x; git commit -qam two")(root)
    log = run(root, *LOG)
    act(workspace, "s")(sh("git gc -q; git checkout -q kept; git branch -f main kept"))
    assert workspace.undo(RUN).conflicts == []
    assert run(root, *LOG) == log
    run(root, "git", "fsck", "--strict", "--no-progress")


# Folders that several steps make.


def test_a_folder_that_two_steps_make_goes_with_the_last_of_them(workspace: Workspace, root: Path) -> None:
    for order in (("a", "b"), ("b", "a")):
        for step in ("a", "b"):
            overlay = Overlay(workspace.tree)
            overlay.write(f"d/e/{step}", b"")
            workspace.apply(RUN, step, overlay.changes(), overlay.content_of)
        assert workspace.undo(RUN, order[0]).conflicts == []
        assert sorted(state_of(root)) == ["d", "d/e", f"d/e/{order[1]}"]
        assert workspace.undo(RUN, order[1]).conflicts == []
        assert state_of(root) == {}


def test_a_folder_asked_for_by_one_step_outlives_another_that_made_it(workspace: Workspace, root: Path) -> None:
    first, second = Overlay(workspace.tree), Overlay(workspace.tree)
    first.write("d/x", b"")
    second.mkdir("d")  # before the first has made it
    for step, overlay in (("a", first), ("b", second)):
        workspace.apply(RUN, step, overlay.changes(), overlay.content_of)
    workspace.undo(RUN, "a")
    assert sorted(state_of(root)) == ["d"]
    workspace.undo(RUN)
    assert state_of(root) == {}


def test_a_folder_taken_away_meanwhile_is_made_again(workspace: Workspace, root: Path) -> None:
    first, second = Overlay(workspace.tree), Overlay(workspace.tree)
    first.write("d/x", b"")
    workspace.apply(RUN, "a", first.changes(), first.content_of)
    second.write("d/y", b"")
    workspace.undo(RUN, "a")
    workspace.apply(RUN, "b", second.changes(), second.content_of)
    assert sorted(state_of(root)) == ["d", "d/y"]
    workspace.undo(RUN)
    assert state_of(root) == {}


def test_a_step_that_only_looked_on_while_a_folder_came_does_not_keep_it(workspace: Workspace, root: Path) -> None:
    workspace.capture(RUN, "script", ["d/x"])
    overlay = Overlay(workspace.tree)
    overlay.write("d/y", b"")
    workspace.apply(RUN, "b", overlay.changes(), overlay.content_of)
    assert workspace.finish(RUN, "script") == []
    workspace.undo(RUN, "b")
    assert state_of(root) == {}


def test_a_folder_of_another_step_that_later_ones_took_away_is_put_back(workspace: Workspace, root: Path) -> None:
    for step, content in (("a", b"1"), ("b", b"2")):
        overlay = Overlay(workspace.tree)
        overlay.write("d/file", content)  # b claims the folder that a has made
        workspace.apply(RUN, step, overlay.changes(), overlay.content_of)
    after_a = {**state_of(root), "d/file": None}
    overlay = Overlay(workspace.tree)
    overlay.delete("d")
    workspace.apply(RUN, "c", overlay.changes(), overlay.content_of)
    assert state_of(root) == {}
    undo = workspace.undo(RUN, ["b", "c"])
    assert not undo.conflicts
    assert {**state_of(root), "d/file": None} == after_a
    assert (root / "d/file").read_bytes() == b"1"
    workspace.undo(RUN, "a")
    assert state_of(root) == {}


def test_claims_are_known_to_the_next_process(workspace: Workspace, root: Path) -> None:
    for step in ("a", "b"):
        overlay = Overlay(workspace.tree)
        overlay.write(f"d/{step}", b"")
        workspace.apply(RUN, step, overlay.changes(), overlay.content_of)
    journal = Journal(root.parent / "state")
    other = Workspace(root, journal)
    other.undo(RUN, "a")
    assert sorted(state_of(root)) == ["d", "d/b"]
    other.undo(RUN, "b")
    assert state_of(root) == {}
    other.close()
    journal.close()


def test_what_is_put_back_is_durable_before_the_journal_calls_it_undone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = Overlay(workspace.tree)
    overlay.write("new", b"new", 0o644)
    workspace.apply(RUN, "s", overlay.changes(), overlay.content_of)
    order: list[str] = []
    sync, mark = ConfinedFolder.syncfs, Journal.mark_undone

    def syncs(folder: ConfinedFolder) -> None:
        order.append("gone" if not (folder.root / "new").exists() else "there")
        sync(folder)

    def marks(journal: Journal, *effects: Any) -> None:
        order.append("undone")
        mark(journal, *effects)

    monkeypatch.setattr(ConfinedFolder, "syncfs", syncs)
    monkeypatch.setattr(Journal, "mark_undone", marks)
    workspace.undo(RUN)
    assert order == ["gone", "undone"]


def test_a_branch_that_is_called_like_a_cache_is_put_back(workspace: Workspace, root: Path) -> None:
    run(root, "sh", "-ec", "git init -qb main .; git commit -q --allow-empty -m first; git branch node_modules")
    before = run(root, "git", "for-each-ref")
    with_git = act(workspace, "s")
    with_git(lambda root: run(root, "sh", "-ec", "git commit -q --allow-empty -m more; git branch -f node_modules"))
    assert workspace.undo(RUN).conflicts == []
    assert run(root, "git", "for-each-ref") == before

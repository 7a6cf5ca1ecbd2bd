"""What a confined folder does when nobody is hostile, in both ways of resolving. Attacks: tests/security."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import confined
from quantum_orchestrator.blocks.confined import ConfinedFolder, HeldFolders, has_openat2, is_temporary
from quantum_orchestrator.blocks.errors import PathRefused

# Two ways of resolving, one behaviour.
WAYS = [
    pytest.param(True, id="openat2", marks=pytest.mark.skipif(not has_openat2(), reason="needs openat2")),
    pytest.param(False, id="steps"),
]


@pytest.fixture(params=WAYS)
def openat2(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def folder(tmp_path: Path, openat2: bool) -> Iterator[ConfinedFolder]:
    with ConfinedFolder.open(tmp_path, openat2=openat2) as opened:
        yield opened


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_file_that_was_written_is_read_back(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for path in ("top", "a/b/deep"):
        folder.write(path, b"content\0\xff", 0o640)
        assert folder.read(path) == b"content\0\xff"
        assert (tmp_path / path).read_bytes() == b"content\0\xff"


def test_a_large_file_is_written_and_read_whole(folder: ConfinedFolder) -> None:
    content = os.urandom(3_000_001)
    folder.write("large", content, 0o644)
    assert folder.read("large") == content


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o777, 0o000, 0o4755, 0o2750])
def test_a_written_file_has_exactly_the_mode_asked_for(folder: ConfinedFolder, tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        folder.write("file", b"x", mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == mode


def test_writing_replaces_the_file_and_never_changes_it_in_place(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "other name").hardlink_to(tmp_path / "file")
    with (tmp_path / "file").open("rb") as reader:
        folder.write("file", b"new", 0o644)
        assert reader.read() == b"old"
    assert (tmp_path / "other name").read_bytes() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_writing_leaves_no_other_file_behind(folder: ConfinedFolder) -> None:
    folder.write("file", b"x", 0o644)
    assert folder.names(".") == ["file"]


def test_writing_into_a_folder_that_is_not_there_is_an_error_that_names_the_path(folder: ConfinedFolder) -> None:
    with pytest.raises(FileNotFoundError) as error:
        folder.write("no/such/file", b"x", 0o644)
    assert error.value.filename == "no/such/file"


def test_a_disk_error_passes_through_and_leaves_nothing_behind(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            folder.write("sub/file", b"x" * 20_000, 0o644)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == "sub/file"
    assert os.listdir(tmp_path / "sub") == ["file"]
    assert (tmp_path / "sub/file").read_bytes() == b"old"


def test_a_rename_that_fails_leaves_no_temporary_file(
    folder: ConfinedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")  # no real disk breaks on demand

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="the disk is gone"):
        folder.write("file", b"x", 0o644)
    assert os.listdir(tmp_path) == []


def test_only_what_a_killed_write_leaves_is_called_temporary(folder: ConfinedFolder, tmp_path: Path) -> None:
    killed = (
        "import os,sys; from pathlib import Path; from quantum_orchestrator.blocks.confined import ConfinedFolder\n"
    )
    killed += "os.rename = lambda *_, **__: os.kill(os.getpid(), 9)\n"
    killed += "ConfinedFolder.open(Path(sys.argv[1])).write('file', b'x', 0o644)"
    subprocess.run([sys.executable, "-c", killed, tmp_path], check=False)
    (left,) = folder.names(".")
    assert is_temporary(left)
    assert not any(map(is_temporary, ("file", ".qo-.tmp", ".qo-mine.tmp", f"{left}x", f"x{left}")))


def test_names_are_sorted_and_those_of_the_folder_alone(folder: ConfinedFolder, tmp_path: Path) -> None:
    for path in ("b", "a/y", "a/x/deep"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert folder.names(".") == ["a", "b"]
    assert folder.names("a") == ["x", "y"]
    assert folder.names("a/x") == ["deep"]


def test_looking_at_what_is_there_and_what_is_not(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_bytes(b"12345")
    found = folder.lstat("a/file")
    assert found is not None
    assert found.st_size == 5
    top = folder.lstat(".")
    assert top is not None
    assert top.st_ino == tmp_path.stat().st_ino
    assert folder.lstat("a/none") is None
    assert folder.lstat("none/none") is None
    assert folder.lstat("a/file/below") is None


def test_what_is_not_there_cannot_be_read_or_listed(folder: ConfinedFolder) -> None:
    for act in (folder.read, folder.names, folder.readlink, folder.unlink, folder.rmdir):
        for path in ("none", "none/none"):
            with pytest.raises(FileNotFoundError) as error:
                act(path)
            assert error.value.filename == path


def test_names_that_no_instruction_may_use_can_still_be_handled(folder: ConfinedFolder, tmp_path: Path) -> None:
    for name in ("a:b", "back\\slash", "ends ", ".git", "new\nline", os.fsdecode(b"not-utf8-\xff"), "e\u0301"):
        folder.mkdir(name, 0o755)
        folder.write(f"{name}/x", name.encode(errors="surrogateescape"), 0o644)
        assert folder.read(f"{name}/x") == os.fsencode(name)
        folder.unlink(f"{name}/x")
        folder.rmdir(name)
    assert os.listdir(tmp_path) == []


def test_making_a_folder_says_whether_it_is_new(folder: ConfinedFolder, tmp_path: Path) -> None:
    assert folder.mkdir("a", 0o750) is True
    assert folder.mkdir("a", 0o700) is False
    assert folder.mkdir("a/b", 0o755) is True
    assert mode_of(tmp_path / "a") == 0o750


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o500, 0o1777, 0o2755])
def test_a_new_folder_has_exactly_the_mode_asked_for(folder: ConfinedFolder, tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        folder.mkdir("a", mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == mode


def test_a_folder_is_not_made_over_a_file(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathRefused, match="'file': is a file, and a folder is needed"):
        folder.mkdir("file", 0o755)


def test_the_mode_of_files_and_folders_is_set_even_where_they_cannot_be_opened(
    folder: ConfinedFolder, tmp_path: Path
) -> None:
    (tmp_path / "file").touch(mode=0o000)
    (tmp_path / "dir").mkdir(mode=0o000)
    for path in ("file", "dir"):
        folder.chmod(path, 0o751)
        assert mode_of(tmp_path / path) == 0o751


def test_a_link_is_made_read_and_removed_without_being_followed(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    folder.symlink("link", "target")
    assert folder.readlink("link") == "target"
    found = folder.lstat("link")
    assert found is not None
    assert stat.S_ISLNK(found.st_mode)
    folder.rename("link", "moved")
    folder.unlink("moved")
    assert os.listdir(tmp_path) == ["target"]
    with pytest.raises(FileExistsError):
        folder.symlink("target", "elsewhere")


def test_moving_between_folders(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/file").write_bytes(b"x")
    folder.rename("a/file", "b/other")
    assert (tmp_path / "b/other").read_bytes() == b"x"
    assert os.listdir(tmp_path / "a") == []


def test_a_move_that_fails_names_both_paths(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        folder.rename("x", "b/x")
    assert (error.value.filename, error.value.filename2) == ("x", "b/x")
    with pytest.raises(FileNotFoundError) as error:
        folder.rename("b", "none/x")
    assert error.value.filename == "none/x"


def test_what_was_written_can_be_made_durable(folder: ConfinedFolder) -> None:
    folder.write("file", b"x", 0o644)
    folder.syncfs()


def test_a_closed_folder_does_nothing_more(folder: ConfinedFolder) -> None:
    folder.close()
    folder.close()
    for act in (lambda: folder.write("file", b"x", 0o644), folder.syncfs, lambda: folder.lstat(".")):
        with pytest.raises(OSError, match="Bad file descriptor"):
            act()


def test_the_root_must_be_a_folder_that_is_there(tmp_path: Path, openat2: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        ConfinedFolder.open(tmp_path / "file", openat2=openat2)
    with pytest.raises(FileNotFoundError):
        ConfinedFolder.open(tmp_path / "none", openat2=openat2)


def test_the_folder_stays_the_same_when_it_is_moved_and_another_takes_its_name(tmp_path: Path, openat2: bool) -> None:
    (tmp_path / "root").mkdir()
    with ConfinedFolder.open(tmp_path / "root", openat2=openat2) as folder:
        (tmp_path / "root").rename(tmp_path / "moved")
        (tmp_path / "root").mkdir()
        folder.write("file", b"x", 0o644)
    assert os.listdir(tmp_path / "moved") == ["file"]
    assert os.listdir(tmp_path / "root") == []


def test_no_descriptor_is_left_open(folder: ConfinedFolder, tmp_path: Path) -> None:
    def act() -> None:
        folder.mkdir("a", 0o711)
        folder.write("a/file", b"x", 0o644)
        folder.read("a/file")
        folder.names("a")
        folder.chmod("a/file", 0o600)
        folder.rename("a/file", "a/other")
        folder.unlink("a/other")
        for refused in ("a/link/x", "a/link", "fifo", "fifo/x", "none/x"):
            for attempt in (folder.read, folder.names, lambda path: folder.write(path, b"", 0o644)):
                with pytest.raises((PathRefused, OSError)):
                    attempt(refused)

    (tmp_path / "a").mkdir()
    (tmp_path / "a/link").symlink_to("..")
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    act()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_many_threads_make_the_same_folders_and_each_its_files(folder: ConfinedFolder, tmp_path: Path) -> None:
    def work(number: int) -> int:
        made = 0
        for round_ in range(40):
            made += folder.mkdir(f"d{round_}", 0o755)
            made += folder.mkdir(f"d{round_}/e", 0o755)
            path = f"d{round_}/e/{number}"
            folder.write(path, f"{path}\n".encode() * 50, 0o644)
            assert folder.read(path) == f"{path}\n".encode() * 50
        return made

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 80  # each folder was made by one of them, and by one only
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == 320


# Systems that this one is not.

FORBID_OPENAT2 = """
import ctypes, struct, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("HBBI", 0x20, 0, 0, 0) + struct.pack("HBBI", 0x15, 0, 1, 437)  # the call's number; openat2?
code += struct.pack("HBBI", 6, 0, 0, 0x00050000 | int(sys.argv[2])) + struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
if libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.exit(77)
from quantum_orchestrator.blocks.confined import ConfinedFolder, HeldFolders, has_openat2
assert has_openat2() is False
with ConfinedFolder.open(Path(sys.argv[1])) as folder:
    folder.write("a/file", b"x", 0o644)
"""


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["an old kernel", "a container's filter"])
def test_where_the_call_is_missing_or_forbidden_the_steps_are_taken(tmp_path: Path, error: int) -> None:
    (tmp_path / "a").mkdir()
    ended = subprocess.run([sys.executable, "-c", FORBID_OPENAT2, tmp_path, str(error)], check=False)
    if ended.returncode == 77:
        pytest.skip("this machine admits no seccomp filter")
    assert ended.returncode == 0
    assert (tmp_path / "a/file").read_bytes() == b"x"


ON_A_SMALL_DISK = """
import errno, os, sys
from pathlib import Path
from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import PathRefused
root, openat2 = Path(sys.argv[1]), sys.argv[2] == "True"
with ConfinedFolder.open(root / "small", openat2=openat2) as folder:
    folder.write("file", b"old", 0o644)
    try:
        folder.write("file", b"x" * 1_000_000, 0o644)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    assert os.listdir(root / "small") == ["file"]
    assert folder.read("file") == b"old"
with ConfinedFolder.open(root, openat2=openat2) as folder:
    for act in (lambda: folder.read("small/file"), lambda: folder.names("small"),
                lambda: folder.write("small/new", b"", 0o644), lambda: folder.mkdir("small/new", 0o755),
                lambda: folder.rename("small/file", "file")):
        try:
            act()
        except PathRefused as refused:
            assert "'small' is a mount point" in str(refused), refused
        else:
            sys.exit("a mount point was crossed")
assert os.listdir(root) == ["small"]
"""


def test_a_full_disk_leaves_nothing_behind_and_a_mount_point_is_not_crossed(tmp_path: Path, openat2: bool) -> None:
    """In a mount namespace of its own, where anybody may mount."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*own, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("this machine admits no user namespace")
    (tmp_path / "small").mkdir()
    mount = 'mount -t tmpfs -o size=64k none "$1/small" && exec "$3" -c "$4" "$1" "$2"'
    command = [*own, "sh", "-c", mount, "sh", tmp_path, str(openat2), sys.executable, ON_A_SMALL_DISK]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


# New files, and folders that stay open.


@pytest.mark.parametrize("unnamed", [True, False], ids=["a file without a name", "a temporary file"])
def test_what_is_made_never_takes_the_place_of_something(
    folder: ConfinedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.setattr(confined, "_UNNAMED", os.O_WRONLY | os.O_DIRECTORY)  # EISDIR: as a file system without it
    folder.create("new", b"new", 0o640)
    assert ((tmp_path / "new").read_bytes(), mode_of(tmp_path / "new")) == (b"new", 0o640)
    with pytest.raises(FileExistsError):
        folder.create("new", b"other", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new").read_bytes() == b"new"


def test_a_folder_that_is_held_open_is_checked_for_having_been_moved(folder: ConfinedFolder, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    with folder.keeping_open() as held:
        held.create("a/b/x", b"x", 0o644)
        held.check()
        (tmp_path / "a/b").rename(tmp_path / "away")
        (tmp_path / "a/b").mkdir()
        with pytest.raises(PathRefused, match="changed while it was being used"):
            held.check()


def test_a_folder_that_has_gone_while_it_was_held_is_told_and_no_other_is_taken_for_empty(
    folder: ConfinedFolder, tmp_path: Path
) -> None:
    for name in ("a", *map(str, range(HeldFolders.MOST))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with folder.keeping_open() as held:
        held.read("a/x")
        shutil.rmtree(tmp_path / "a")
        with pytest.raises(PathRefused, match="'a': a folder on the way changed while it was being used"):
            held.check()
        for number in range(held.MOST - 1):
            held.lstat(f"{number}/x")
        with pytest.raises(PathRefused, match="'a': a folder on the way changed"):  # as it is its turn to be let go
            held.lstat(f"{held.MOST - 1}/x")


def test_no_more_than_some_folders_are_held_open(folder: ConfinedFolder, tmp_path: Path) -> None:
    with folder.keeping_open() as held:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(2 * held.MOST):
            held.mkdir(f"d{number}", 0o755)
            held.create(f"d{number}/x", b"x", 0o644)
        assert len(os.listdir("/proc/self/fd")) - before <= held.MOST
    assert len(list(tmp_path.glob("*/x"))) == 2 * held.MOST


def test_a_folder_that_is_removed_and_made_again_is_not_mistaken_for_the_old_one(
    folder: ConfinedFolder, tmp_path: Path
) -> None:
    with folder.keeping_open() as held:
        held.mkdir("d", 0o755)
        held.create("d/x", b"x", 0o644)
        held.unlink("d/x")
        held.rmdir("d")
        held.mkdir("d", 0o755)
        held.create("d/y", b"y", 0o644)
        held.check()
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["y"]

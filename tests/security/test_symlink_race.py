"""Somebody swaps a folder for a link that leads outside, over and over, while files are read and written through it.

The swap is a process of its own that exchanges the two names atomically, so that both are there at every moment. A
control does the same work with `realpath()` and then `open()`, and does get out: so these tests can fail.
"""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.confined import ConfinedFolder, has_openat2
from quantum_orchestrator.blocks.errors import PathRefused

TRIES = 20_000
WAYS = [
    pytest.param(True, id="openat2", marks=pytest.mark.skipif(not has_openat2(), reason="needs openat2")),
    pytest.param(False, id="steps"),
]
# It ends when its parent does, whatever happens to the test.
SWAP = """
import ctypes, os, sys
rename = ctypes.CDLL(None).renameat2
one, other, parent = os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), int(sys.argv[3])
print(flush=True)
while os.getppid() == parent:
    for _ in range(1000):
        if rename(-100, one, -100, other, 2):  # AT_FDCWD, RENAME_EXCHANGE
            sys.exit(1)
"""


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    command = [sys.executable, "-c", SWAP, one, other, str(os.getpid())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None, "the swapping did not last"
        finally:
            process.kill()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """`folder` and `link`, `file` and `file_link`: each pair is one thing inside, and a link to its like outside."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for root, content in ((inside / "folder", b"inside"), (outside, b"secret")):
        (root / "sub").mkdir(parents=True)
        (root / "file").write_bytes(content)
        (root / "sub/file").write_bytes(content)
    (outside / "only outside").touch()
    (inside / "link").symlink_to("../outside")
    (inside / "file").write_bytes(b"inside")
    (inside / "file_link").symlink_to("../outside/file")
    return inside


def everything_in(folder: Path) -> dict[Path, tuple[int, int, int, bytes]]:
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[path] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content)
    return found


def outcomes(act: Callable[[int], None], tries: int) -> tuple[int, int]:
    """How many tries were done and how many refused: at least `tries`, and on until there were both."""
    done = refused = 0
    end = time.monotonic() + 10
    while done + refused < tries or (not (done and refused) and time.monotonic() < end):
        try:
            act(done + refused)
            done += 1
        except PathRefused:
            refused += 1
    return done, refused


@pytest.mark.parametrize("openat2", WAYS)
def test_a_swapped_folder_never_leads_outside(workspace: Path, openat2: bool) -> None:
    before = everything_in(workspace.parent / "outside")
    with ConfinedFolder.open(workspace, openat2=openat2) as folder, swapping(workspace / "folder", workspace / "link"):

        def read() -> None:
            assert folder.read("folder/sub/file") == b"inside"

        def look() -> None:
            assert "only outside" not in folder.names("folder")
            assert folder.lstat("folder/only outside") is None

        def write() -> None:
            folder.write("folder/file", b"changed", 0o600)

        def change() -> None:
            folder.chmod("folder/sub/file", 0o666)
            folder.mkdir("folder/sub/new", 0o755)

        acts = (read, look, read, write, read, change)
        done, refused = outcomes(lambda number: acts[number % len(acts)](), TRIES)
    assert done
    assert refused
    assert everything_in(workspace.parent / "outside") == before


@pytest.mark.parametrize("openat2", WAYS)
def test_a_swapped_file_is_never_read_nor_changed_outside(workspace: Path, openat2: bool) -> None:
    before = everything_in(workspace.parent / "outside")
    with (
        ConfinedFolder.open(workspace, openat2=openat2) as folder,
        swapping(workspace / "file", workspace / "file_link"),
    ):

        def read(_: int) -> None:
            assert folder.read("file") == b"inside"

        def change(number: int) -> None:
            folder.chmod("file", 0o600 + number % 2)

        done, refused = outcomes(lambda number: (read, change)[number % 2](number), TRIES)
        assert done
        assert refused
    assert everything_in(workspace.parent / "outside") == before


def test_a_swap_between_looking_and_replacing_replaces_the_link_itself(workspace: Path) -> None:
    before = everything_in(workspace.parent / "outside")
    with ConfinedFolder.open(workspace) as folder, swapping(workspace / "file", workspace / "file_link"):
        for _ in range(TRIES // 20):
            with suppress(PathRefused):
                folder.write("file", b"inside", 0o644)
    assert everything_in(workspace.parent / "outside") == before


def test_looking_first_and_opening_then_does_get_out(workspace: Path) -> None:
    """The control: without confinement the same race is lost, mostly within some hundred tries."""

    def naive_read(path: Path) -> bytes:
        real = os.path.realpath(path)
        if not real.startswith(f"{workspace}/"):
            raise PathRefused("is a symbolic link")
        return path.read_bytes()

    end = time.monotonic() + 10
    with swapping(workspace / "folder", workspace / "link"):
        while time.monotonic() < end:
            with suppress(PathRefused, OSError):  # it also trips over a name that has changed under it
                if naive_read(workspace / "folder/sub/file") == b"secret":
                    return
    pytest.skip("this machine never switched between the two processes at the wrong moment")

"""Who holds a workspace, and what becomes of that which a dead holder has left running. Real processes throughout."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.errors import StateError, WorkspaceBusy
from quantum_orchestrator.blocks.lock import Lock

Engine = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Lock]:
    made = Lock(tmp_path / "lock")
    yield made
    made.release()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Start a process that holds the lock and does something with it; it has begun once there is a file `begun`."""
    with ExitStack() as stack:

        def begin(act: str) -> subprocess.Popen[bytes]:
            code = (
                "import os, subprocess, sys, time\nfrom pathlib import Path\n"
                "from quantum_orchestrator.blocks.lock import Lock\n"
                "folder = Path(sys.argv[1])\nlock = Lock(folder / 'lock')\nlock.acquire()\n"
            )
            command = [sys.executable, "-c", code + act, str(tmp_path)]
            process = stack.enter_context(subprocess.Popen(command, start_new_session=True))
            stack.callback(process.kill)
            eventually(lambda: (tmp_path / "begun").exists())
            return process

        yield begin


SCRIPT = """
from quantum_orchestrator.blocks.sandbox import Processes
text = "trap '' TERM; sleep 60 & echo $! > child; echo $$ > begun; wait; wait"
Processes(lock=lock.descriptor).run(["sh", "-c", text], cwd=folder, env={})
"""
FETCH = """
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Repository
commands = Repository(folder / "work", Policy(), lock=lock.descriptor).commands()
commands.run("fetch", (folder / "url").read_text(), remote=True)
"""
HOLD = """
subprocess.Popen(HELPER, pass_fds=[lock.descriptor] if PASS else [], shell=True, cwd=folder)
time.sleep(60)
"""
STUBBORN = f"""exec {sys.executable} -c '
import os, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("child", "w") as child:  # which does not have the lock open, other than this one
    print(subprocess.Popen(["sleep", "60"]).pid, file=child)
with open("draft", "w") as begun:
    print(os.getpid(), file=begun)
os.rename("draft", "begun")
signal.pause()
'"""


def helper(text: str, *, passed: bool = True) -> str:
    return HOLD.replace("HELPER", repr(text)).replace("PASS", str(passed))


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def number_in(file: Path) -> int:
    eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# One holder.


def test_whoever_holds_it_keeps_others_out_and_is_named(lock: Lock, tmp_path: Path) -> None:
    lock.acquire()
    other = Lock(tmp_path / "lock")
    with pytest.raises(WorkspaceBusy, match=f"another run \\(process {os.getpid()}\\)"):
        other.acquire()
    assert other.is_held()
    assert other.holder() == str(os.getpid())


def test_nobody_holds_what_nobody_has_taken(lock: Lock) -> None:
    assert not lock.is_held()


def test_it_is_free_after_its_release_even_if_others_have_it_open(lock: Lock, tmp_path: Path) -> None:
    lock.acquire()
    assert lock.descriptor is not None
    shared = os.dup(lock.descriptor)
    lock.release()
    other = Lock(tmp_path / "lock")
    other.acquire()
    other.release()
    os.close(shared)


def test_the_next_holder_replaces_the_name_of_the_last(lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("9" * 500)
    lock.acquire()
    assert Lock(tmp_path / "lock").holder() == str(os.getpid())
    assert len((tmp_path / "lock").read_text()) < 500


def test_a_disk_that_is_full_is_said() -> None:
    with pytest.raises(StateError, match="/dev/full: the lock cannot be taken: No space left"):
        Lock(Path("/dev/full")).acquire()


# What a dead one leaves.


def test_a_script_has_ended_before_anybody_else_begins(lock: Lock, engine: Engine, tmp_path: Path) -> None:
    kill(engine(SCRIPT))
    lock.acquire()
    assert not alive(number_in(tmp_path / "begun"))
    assert not alive(number_in(tmp_path / "child"))


def test_a_git_command_that_hangs_is_ended(lock: Lock, engine: Engine, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path / "work")], check=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "url").write_text(f"https://127.0.0.1:{silent.getsockname()[1]}/")
        act = "import threading\nthreading.Timer(0, lambda: (folder / 'begun').touch()).start()\n"
        running = engine(act + FETCH)
        silent.accept()[0].detach()  # git waits for an answer
        kill(running)
        assert not lock.is_held()
        lock.acquire()
    assert not [
        pid for pid in filter(str.isdecimal, os.listdir("/proc")) if f"{tmp_path}/work".encode() in command_line(pid)
    ]


def command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_what_does_not_want_to_end_is_killed_with_all_below_it(lock: Lock, engine: Engine, tmp_path: Path) -> None:
    kill(engine(helper(STUBBORN)))
    lock.acquire()
    assert not alive(number_in(tmp_path / "begun"))
    eventually(lambda: not alive(number_in(tmp_path / "child")))


def test_it_is_asked_first(lock: Lock, engine: Engine, tmp_path: Path) -> None:
    text = "trap 'echo asked > answer; exit' TERM; echo $$ > begun; while :; do sleep 0.01; done"
    kill(engine(helper(text)))
    lock.acquire()
    assert (tmp_path / "answer").read_text() == "asked\n"


def test_a_dead_holder_is_told_at_once_from_one_that_lives(lock: Lock, engine: Engine) -> None:
    running = engine(helper(STUBBORN))
    assert lock.is_held()
    kill(running)
    began = time.monotonic()
    assert not lock.is_held()
    assert time.monotonic() - began < 0.5
    lock.acquire()


def test_a_holder_that_nobody_has_waited_for_is_dead_all_the_same(lock: Lock, engine: Engine) -> None:
    running = engine(helper(STUBBORN))
    running.kill()  # a zombie from now on
    eventually(lambda: not lock.is_held())
    lock.acquire()
    running.wait()


# What must not be touched.


def test_the_processes_of_a_run_that_lives_are_left_alone(lock: Lock, engine: Engine, tmp_path: Path) -> None:
    running = engine(helper(STUBBORN))
    with pytest.raises(WorkspaceBusy, match=f"process {running.pid}"):
        lock.acquire()
    assert alive(number_in(tmp_path / "begun"))
    os.killpg(running.pid, signal.SIGKILL)


def test_whoever_only_looks_at_the_file_is_left_alone(lock: Lock, engine: Engine, tmp_path: Path) -> None:
    kill(engine(helper(STUBBORN)))
    with (
        (tmp_path / "lock").open() as looking,
        subprocess.Popen(["sleep", "60"], pass_fds=[looking.fileno()]) as onlooker,
    ):
        lock.acquire()
        assert alive(onlooker.pid)
        onlooker.kill()


def test_a_process_that_got_the_id_of_a_dead_holder_does_not_count_as_it(lock: Lock, tmp_path: Path) -> None:
    """This process lives; the text says that one with its id, but an earlier start, took the lock."""
    with left_by_this_process(tmp_path, lambda words: [words[0], "1", *words[2:]]) as left:
        assert not lock.is_held()
        lock.acquire()
        assert left.wait() == -signal.SIGTERM


def test_a_holder_from_another_boot_or_container_counts_as_alive(lock: Lock, tmp_path: Path) -> None:
    with left_by_this_process(tmp_path, lambda words: ["1", "1", words[2], "pid:[1]"]) as left:
        assert lock.is_held()
        with pytest.raises(WorkspaceBusy):
            lock.acquire()
        assert alive(left.pid)
        left.kill()


def left_by_this_process(folder: Path, change: Callable[[list[str]], list[str]]) -> subprocess.Popen[bytes]:
    """A process that has the lock open which this one took, and then put down; the text is changed."""
    first = Lock(folder / "lock")
    first.acquire()
    assert first.descriptor is not None
    left = subprocess.Popen(["sleep", "60"], pass_fds=[first.descriptor])
    os.close(first.descriptor)  # a release would free it for the other one too
    text = (folder / "lock").read_text().split()
    (folder / "lock").write_text(" ".join(change(text)))
    return left


def test_a_lock_that_never_comes_free_is_no_dead_run_but_a_busy_workspace(lock: Lock, tmp_path: Path) -> None:
    """Somebody else has taken it, and the name in the file is still the last one's."""
    (tmp_path / "lock").write_text("no name")
    with (tmp_path / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(WorkspaceBusy, match="process unknown"):
            lock.acquire()


def test_a_lock_whose_file_has_gone_meanwhile_is_not_taken(lock: Lock, tmp_path: Path) -> None:
    lock.acquire()
    other = Lock(tmp_path / "lock")
    waiting = threading.Thread(target=release_once_it_is_open, args=(lock, tmp_path / "lock"))
    waiting.start()
    with pytest.raises(StateError, match="removed"):
        other.acquire()
    waiting.join()
    other.acquire()
    other.release()


def release_once_it_is_open(lock: Lock, path: Path) -> None:
    def opened_twice() -> bool:
        found = (os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if is_open(name))
        return list(found).count(str(path)) == 2

    eventually(opened_twice)
    path.unlink()
    lock.release()


def is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")

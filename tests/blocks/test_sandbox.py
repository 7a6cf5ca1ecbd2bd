"""Real programs, started, limited and ended. What is asserted of processes is looked up in /proc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import sandbox
from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PolicyRefused, TimedOut
from quantum_orchestrator.blocks.levels import Level
from quantum_orchestrator.blocks.sandbox import Completed, Limits, Processes
from quantum_orchestrator.blocks.supervisor import GRACE
from quantum_orchestrator.tasks.operation import CancelToken


@pytest.fixture(params=[True, False], ids=["tied", "not tied"])
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    started = Processes(tied=request.param)
    yield started
    started.close()


def shell(processes: Processes, text: str, folder: Path, **options: object) -> Completed:
    return processes.run(["sh", "-c", text], cwd=folder, env={}, **options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def gone(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def running_in(folder: Path) -> list[str]:
    """Process ids whose current folder is this one."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == str(folder.resolve()):
                found.append(pid)
        except OSError:
            continue  # ended meanwhile, or somebody else's
    return found


def written_pid(file: Path) -> int:
    deadline = time.monotonic() + 10
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{file} was never written"
        time.sleep(0.01)
    return int(file.read_text())


# What a program gets and gives.


def test_both_streams_and_the_exit_code_come_back_apart(processes: Processes, tmp_path: Path) -> None:
    completed = shell(processes, "echo out; echo err >&2; exit 3", tmp_path)
    assert (completed.exit_code, completed.stdout, completed.stderr) == (3, b"out\n", b"err\n")
    assert not completed.truncated
    assert 0 < completed.duration < 10


def test_the_end_by_a_signal_is_its_negative_number(processes: Processes, tmp_path: Path) -> None:
    assert shell(processes, "kill -KILL $$", tmp_path).exit_code == -signal.SIGKILL


def test_it_runs_in_the_folder_that_is_named(processes: Processes, tmp_path: Path) -> None:
    assert shell(processes, "pwd -P", tmp_path).stdout.decode().strip() == str(tmp_path.resolve())


def test_input_larger_than_a_pipe_passes_through(processes: Processes, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    assert processes.run(["cat"], cwd=tmp_path, env={}, stdin=content).stdout == content


def test_input_that_nobody_reads_is_no_error(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(["true"], cwd=tmp_path, env={}, stdin=b"x" * 1_000_000).exit_code == 0


def test_without_input_it_reads_the_end_at_once(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(["cat"], cwd=tmp_path, env={}, timeout=10).stdout == b""


def test_the_environment_is_what_is_given_and_six_variables_of_the_caller(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_KEY", "QO_HOME", "PYTHONPATH", "GIT_DIR", "GITHUB_TOKEN", "LD_PRELOAD_X", "PWD"):
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("LANG", "C.UTF-8")
    output = processes.run(["env", "-0"], cwd=tmp_path, env={"GIVEN": "a\nb", "TERM": "dumb"}).stdout.decode()
    found = dict(each.split("=", 1) for each in output.split("\0") if each)
    assert set(found) <= {"PATH", "HOME", "LANG", "TERM", "TMPDIR", "USER", "GIVEN"}
    assert (found["GIVEN"], found["TERM"], found["LANG"]) == ("a\nb", "dumb", "C.UTF-8")
    assert found["PATH"] == os.environ["PATH"]


def test_no_descriptor_of_the_engine_reaches_it(processes: Processes, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        listed = shell(processes, "ls /proc/self/fd | wc -l", tmp_path).stdout
    assert int(listed) == 4  # 0, 1, 2 and the folder that ls reads


def test_the_lock_does_not_reach_it(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        completed = shell(Processes(lock=lock.fileno()), "ls -l /proc/$PPID/fd /proc/self/fd", tmp_path)
    supervisor, program = completed.stdout.decode().split("/proc/self/fd:")
    assert "/lock" not in program
    assert "/lock" in supervisor


def test_it_leads_a_session_of_its_own(processes: Processes, tmp_path: Path) -> None:
    completed = shell(processes, "cut -d' ' -f6 /proc/$$/stat; echo $$", tmp_path)
    session, pid = completed.stdout.split()
    assert session == pid


def test_ignored_signals_of_python_are_not_passed_on(processes: Processes, tmp_path: Path) -> None:
    ignored = shell(processes, "grep SigIgn /proc/self/status", tmp_path).stdout.split()[1]
    assert int(ignored, 16) & sum(1 << (each - 1) for each in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM)) == 0


# Output.


def test_output_beyond_the_limit_is_read_and_dropped(processes: Processes, tmp_path: Path) -> None:
    completed = shell(processes, "head -c 300000 /dev/zero; echo end >&2", tmp_path, limits=Limits(output_bytes=1000))
    assert completed.stdout == bytes(1000)
    assert completed.stderr == b"end\n"
    assert completed.truncated
    assert completed.exit_code == 0


def test_output_of_exactly_the_limit_is_not_called_truncated(processes: Processes, tmp_path: Path) -> None:
    completed = shell(processes, "head -c 1000 /dev/zero", tmp_path, limits=Limits(output_bytes=1000))
    assert (len(completed.stdout), completed.truncated) == (1000, False)


def test_lines_come_while_the_program_runs(processes: Processes, tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    text = "echo one; while [ ! -e go ]; do sleep 0.01; done; printf two"

    def note(line: str) -> None:
        seen.append((line, (tmp_path / "go").exists()))
        (tmp_path / "go").touch()

    shell(processes, text, tmp_path, on_line=note, timeout=10)
    assert seen == [("one", False), ("two", True)]


def test_bytes_that_are_not_text_do_not_stop_the_lines(processes: Processes, tmp_path: Path) -> None:
    lines: list[str] = []
    shell(processes, r"printf 'a\377\r\n\303'; sleep 0.05; printf '\244\n'", tmp_path, on_line=lines.append)
    assert lines == ["a\ufffd", "ä"]


def test_an_error_of_the_listener_ends_the_program(processes: Processes, tmp_path: Path) -> None:
    def refuse(_line: str) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        shell(processes, "echo $$ > pid; echo x; sleep 60", tmp_path, on_line=refuse)
    assert not alive(written_pid(tmp_path / "pid"))


# The end.


def cancelled_when_ready(processes: Processes, text: str, folder: Path) -> float:
    """Run a text that says "ready" and goes on; cancel it then. Returns how many seconds the end took."""
    token = CancelToken()
    asked: list[float] = []

    def hear(line: str) -> None:
        if line == "ready":
            asked.append(time.monotonic())
            threading.Thread(target=token.cancel).start()

    with pytest.raises(Interrupted):
        shell(processes, text, folder, cancel=token, on_line=hear, timeout=60)
    return time.monotonic() - asked[0]


def test_a_time_out_ends_the_program_and_says_so(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(TimedOut, match=r"'sh' took longer than 0\.2 s; all of its processes were ended"):
        shell(processes, "sleep 60 & sleep 60", tmp_path, timeout=0.2)
    assert running_in(tmp_path) == []


def test_the_end_reaches_children_in_other_groups_and_sessions(processes: Processes, tmp_path: Path) -> None:
    away = "setsid sh -c 'echo $$ > away; sleep 60' & sh -c 'echo $$ > near; sleep 60' & "
    both = "while [ ! -s away ] || [ ! -s near ]; do sleep 0.01; done; echo ready; sleep 60"
    cancelled_when_ready(processes, away + both, tmp_path)
    assert not alive(written_pid(tmp_path / "away"))
    assert not alive(written_pid(tmp_path / "near"))


def test_a_program_is_asked_before_it_is_killed(processes: Processes, tmp_path: Path) -> None:
    text = "trap 'echo asked > answer; exit' TERM; echo ready; while :; do sleep 0.01; done"
    cancelled_when_ready(processes, text, tmp_path)
    assert (tmp_path / "answer").read_text() == "asked\n"


def test_what_ignores_the_asking_is_killed(processes: Processes, tmp_path: Path) -> None:
    text = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
    assert cancelled_when_ready(processes, text, tmp_path) < 10
    assert running_in(tmp_path) == []


def test_a_stopped_program_is_ended_too(processes: Processes, tmp_path: Path) -> None:
    cancelled_when_ready(processes, "echo ready; kill -STOP $$", tmp_path)
    assert running_in(tmp_path) == []


def test_nothing_is_started_after_a_cancellation(processes: Processes, tmp_path: Path) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Interrupted):
        shell(processes, "touch ran", tmp_path, cancel=token)
    assert not (tmp_path / "ran").exists()


def test_a_cancellation_after_the_end_does_nothing(processes: Processes, tmp_path: Path) -> None:
    token = CancelToken()
    shell(processes, "true", tmp_path, cancel=token)
    token.cancel()
    assert shell(processes, "true", tmp_path).exit_code == 0


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("daemon", "w") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(60)
    os._exit(0)
os.wait()
while not os.path.exists("daemon"):
    time.sleep(0.01)
"""


def test_a_daemon_that_forked_twice_does_not_survive_its_script(processes: Processes, tmp_path: Path) -> None:
    completed = processes.run([sys.executable, "-c", DAEMON], cwd=tmp_path, env={}, timeout=20)
    assert completed.exit_code == 0
    assert not alive(written_pid(tmp_path / "daemon"))


def test_a_background_process_that_holds_the_output_does_not_delay_the_end(
    processes: Processes, tmp_path: Path
) -> None:
    completed = shell(processes, "sleep 60 & echo done", tmp_path)
    assert completed.stdout == b"done\n"
    assert completed.duration < 10


def test_a_storm_of_forks_is_ended(processes: Processes, tmp_path: Path) -> None:
    storm = "breed() { [ $1 -gt 0 ] && { breed $(($1-1)) & breed $(($1-1)) & }; sleep 60; }; "
    cancelled_when_ready(processes, "trap '' TERM; " + storm + "breed 6 & echo ready; sleep 60", tmp_path)
    assert running_in(tmp_path) == []


def test_a_script_that_kills_its_keeper_is_ended_and_the_next_one_runs(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="ended from outside"):
        shell(processes, "echo $$ > pid; (trap '' TERM; sleep 60) & kill -9 $PPID; sleep 60", tmp_path, timeout=20)
    assert gone(written_pid(tmp_path / "pid"))
    assert running_in(tmp_path) == []
    assert shell(processes, "exit 4", tmp_path).exit_code == 4


def test_a_keeper_that_is_asked_to_end_keeps_on(processes: Processes, tmp_path: Path) -> None:
    """Whoever takes over from a dead engine asks all that it has left."""
    text = "kill -TERM $PPID $(cut -d' ' -f4 /proc/$PPID/stat); sleep 0.1; exit 3"
    assert shell(processes, text, tmp_path).exit_code == 3
    assert shell(processes, "exit 4", tmp_path).exit_code == 4


def test_the_keeper_is_started_again_when_it_was_killed(processes: Processes, tmp_path: Path) -> None:
    supervisor = shell(processes, "echo $PPID", tmp_path).stdout.decode().strip()
    keeper = shell(processes, "cut -d' ' -f4 /proc/$PPID/stat", tmp_path).stdout.decode().strip()
    assert keeper != supervisor
    os.kill(int(keeper), signal.SIGKILL)
    assert gone(int(keeper))
    assert shell(processes, "exit 5", tmp_path).exit_code == 5


ENGINE = """
import sys
from pathlib import Path
from quantum_orchestrator.blocks.sandbox import Processes
text = "trap '' TERM; echo $$ > script; (setsid sh -c 'echo $$ > away; sleep 60' &) ; sleep 60"
Processes().run(["sh", "-c", text], cwd=Path(sys.argv[1]), env={})
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", ENGINE, str(tmp_path)], stderr=subprocess.DEVNULL) as started:
        yield started
        started.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_scripts_of_an_engine_end_with_it(
    engine: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals
) -> None:
    script, away = written_pid(tmp_path / "script"), written_pid(tmp_path / "away")
    engine.send_signal(number)
    engine.wait()
    assert gone(script)
    assert gone(away)


def test_the_scripts_of_a_dead_engine_are_not_asked(engine: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """What they would do to end in order is undone or done again anyhow, and somebody may be waiting."""
    script = written_pid(tmp_path / "script")
    engine.kill()
    engine.wait()
    assert gone(script, seconds=GRACE / 2)


def test_the_end_of_the_thread_that_started_a_script_does_not_end_others(processes: Processes, tmp_path: Path) -> None:
    first = threading.Thread(target=shell, args=(processes, "true", tmp_path))
    codes: list[int] = []
    second = threading.Thread(target=lambda: codes.append(shell(processes, "sleep 0.3; exit 7", tmp_path).exit_code))
    second.start()
    first.start()
    first.join()
    second.join()
    assert codes == [7]


def test_many_run_at_once(processes: Processes, tmp_path: Path) -> None:
    codes: dict[int, int] = {}

    def one(number: int) -> None:
        codes[number] = shell(processes, f"sleep 0.1; exit {number}", tmp_path).exit_code

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {number: number for number in range(16)}


def test_runs_leave_no_descriptor(processes: Processes, tmp_path: Path) -> None:
    shell(processes, "true", tmp_path)
    processes.close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        shell(processes, "true", tmp_path)
        with pytest.raises(TimedOut):
            shell(processes, "sleep 60", tmp_path, timeout=0.02, stdin=b"x" * 200_000)
    processes.close()
    assert len(os.listdir("/proc/self/fd")) <= before


# Supervisors.


def supervisor_of(processes: Processes, folder: Path, **options: object) -> int:
    return int(shell(processes, "echo $PPID", folder, **options).stdout)


def test_a_supervisor_attends_to_one_program_after_another(processes: Processes, tmp_path: Path) -> None:
    first, second = supervisor_of(processes, tmp_path), supervisor_of(processes, tmp_path)
    assert first == second


def test_a_supervisor_ends_when_no_program_is_to_come(processes: Processes, tmp_path: Path) -> None:
    supervisor = supervisor_of(processes, tmp_path)
    processes.close()
    assert gone(supervisor)


def test_an_idle_supervisor_that_was_killed_is_replaced(processes: Processes, tmp_path: Path) -> None:
    supervisor = supervisor_of(processes, tmp_path)
    os.kill(supervisor, signal.SIGKILL)
    assert gone(supervisor)
    keeper_has_noticed = time.monotonic() + 5
    while Path(f"/proc/{supervisor}").exists() and time.monotonic() < keeper_has_noticed:
        time.sleep(0.01)
    time.sleep(0.05)  # then it closes the dead one's socket
    assert supervisor_of(processes, tmp_path) != supervisor


def test_a_supervisor_keeps_to_the_limits_it_began_with(processes: Processes, tmp_path: Path) -> None:
    """Nobody can raise them but root: other limits are another supervisor's."""
    one = supervisor_of(processes, tmp_path, limits=Limits(file_bytes=5000))
    other = supervisor_of(processes, tmp_path, limits=Limits(file_bytes=6000))
    assert one != other


def test_programs_of_two_locks_have_two_supervisors(tmp_path: Path) -> None:
    """Else a lock would be held by programs of another one, and not by its own."""
    with (tmp_path / "lock").open("w") as lock:
        first, second = Processes(lock=lock.fileno()), Processes(lock=lock.fileno())
        assert supervisor_of(first, tmp_path) != supervisor_of(second, tmp_path)


def test_what_a_program_leaves_running_is_gone_before_the_next_one(processes: Processes, tmp_path: Path) -> None:
    shell(processes, "(setsid sh -c 'echo $$ > away; sleep 60' &) ; while [ ! -s away ]; do sleep 0.01; done", tmp_path)
    listed = shell(processes, "cat /proc/$PPID/task/$PPID/children; echo $$", tmp_path).stdout.split()
    assert not alive(written_pid(tmp_path / "away"))
    assert [each for each in listed if each != listed[-1]] == []


def test_the_engine_and_its_fork_have_supervisors_of_their_own(processes: Processes, tmp_path: Path) -> None:
    ours = supervisor_of(processes, tmp_path)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if supervisor_of(processes, tmp_path) != ours else 2
            sandbox._keeper.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert supervisor_of(processes, tmp_path) == ours


def test_a_tied_program_ends_with_its_supervisor_when_the_keeper_cannot_help(tmp_path: Path) -> None:
    text = "echo $$ > pid; keeper=$(cut -d' ' -f4 /proc/$PPID/stat); kill -9 $keeper $PPID; exec sleep 60"
    with pytest.raises(OperationError, match="ended from outside"):
        shell(Processes(tied=True), text, tmp_path, timeout=20)
    assert gone(written_pid(tmp_path / "pid"))


# Limits.


def test_a_file_may_not_grow_beyond_the_limit(processes: Processes, tmp_path: Path) -> None:
    completed = processes.run(
        ["head", "-c", "100000", "/dev/zero"], cwd=tmp_path, env={}, limits=Limits(file_bytes=5000)
    )
    assert completed.exit_code == 0  # a pipe is no file
    completed = shell(processes, "exec head -c 100000 /dev/zero > big", tmp_path, limits=Limits(file_bytes=5000))
    assert completed.exit_code == -signal.SIGXFSZ
    assert (tmp_path / "big").stat().st_size == 5000


def test_the_default_limits_are_set_and_cannot_be_raised(processes: Processes, tmp_path: Path) -> None:
    output = shell(processes, "ulimit -c; ulimit -Hc; cat /proc/self/limits", tmp_path).stdout.decode()
    assert output.startswith("0\n0\n")
    row = next(line for line in output.splitlines() if line.startswith("Max file size"))
    assert row.split()[3:5] == ["1073741824", "1073741824"]


FORKING = """
from pathlib import Path
from quantum_orchestrator.blocks.sandbox import Limits, Processes
text = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done"
done = Processes().run(["sh", "-c", text], cwd=Path("/"), env={}, limits=Limits(processes=10), timeout=20)
print(done.exit_code, done.stderr.decode())
"""
NOBODY = 65534


@pytest.fixture
def readable_package() -> Iterator[Path]:
    """The modules that are needed, where every user can read them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        package = Path(folder) / "quantum_orchestrator" / "blocks"
        package.mkdir(parents=True)
        for name in ("bubblewrap.py", "errors.py", "landlock.py", "levels.py", "sandbox.py", "supervisor.py"):
            shutil.copyfile(Path(sandbox.__file__).with_name(name), package / name)
        yield Path(folder)


def run_as_somebody_else(program: str, package: Path) -> subprocess.CompletedProcess[str]:
    identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.run(
        [program, "-c", FORKING],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PYTHONPATH": str(package), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        **identity,  # type: ignore[call-overload]
    )


def test_the_number_of_processes_is_limited_for_everybody_but_root(readable_package: Path) -> None:
    for program in filter(Path.exists, map(Path, (sys.executable, "/usr/bin/python3"))):
        try:
            child = run_as_somebody_else(str(program), readable_package)
        except PermissionError:
            continue  # this interpreter is in the home folder of root
        assert "fork" in child.stdout, child.stdout + child.stderr
        assert not child.stdout.startswith("0")
        return
    pytest.skip("no interpreter that another user can execute")


# What cannot be started.


def test_a_program_that_does_not_exist_is_named(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="program 'no-such-thing' not found on PATH") as caught:
        processes.run(["no-such-thing"], cwd=tmp_path, env={})
    assert caught.value.hint


def test_a_file_beside_it_is_offered_when_a_bare_name_is_not_on_the_path(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    with pytest.raises(OperationError) as caught:
        processes.run(["tool"], cwd=tmp_path, env={})
    assert "./tool" in caught.value.hint


def test_the_path_that_is_given_decides(processes: Processes, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    assert processes.run(["tool"], cwd=tmp_path, env={"PATH": path}).stdout == b"found\n"


def test_a_name_with_a_slash_is_relative_to_the_folder(processes: Processes, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "$0"\n')
    tool.chmod(0o755)
    assert processes.run(["./tool"], cwd=tmp_path, env={}).stdout == b"./tool\n"


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("#!/bin/sh\n", 0o644, "is not executable"),
        ("#!/no/such/shell\n", 0o755, "interpreter"),
        ("echo hi\n", 0o755, "names no interpreter"),
    ],
)
def test_why_a_script_cannot_start_is_said(
    processes: Processes, tmp_path: Path, content: str, mode: int, said: str
) -> None:
    tool = tmp_path / "tool"
    tool.write_text(content)
    tool.chmod(mode)
    with pytest.raises(OperationError, match=said) as caught:
        processes.run(["./tool"], cwd=tmp_path, env={})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no program"),
        ([""], "no program"),
        (["./none"], "no such file"),
        (["./"], "folder"),
        (["cat", "\0"], "NUL"),
    ],
)
def test_what_is_no_program_is_refused(processes: Processes, tmp_path: Path, argv: list[str], said: str) -> None:
    with pytest.raises(OperationError, match=said):
        processes.run(argv, cwd=tmp_path, env={})


def test_a_folder_on_the_path_that_cannot_be_read_is_passed_over(processes: Processes, tmp_path: Path) -> None:
    closed = tmp_path / "closed" / "bin"
    closed.mkdir(parents=True)
    closed.parent.chmod(0)
    completed = processes.run(["true"], cwd=tmp_path, env={"PATH": f"{closed}:{os.environ['PATH']}"})
    closed.parent.chmod(0o700)
    assert completed.exit_code == 0


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_a_variable_that_cannot_be_is_refused(processes: Processes, tmp_path: Path, name: str) -> None:
    with pytest.raises(OperationError, match="environment variable"):
        processes.run(["true"], cwd=tmp_path, env={name: "x"})


def test_a_folder_that_does_not_exist_is_refused(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no such folder"):
        processes.run(["true"], cwd=tmp_path / "none", env={})


def test_arguments_that_are_too_long_for_the_kernel_are_refused(processes: Processes, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="too long"):
        processes.run(["true", "x" * 4_000_000], cwd=tmp_path, env={})


# Levels.


def test_programs_run_at_level_one_where_no_other_is_required() -> None:
    assert Processes().level is Level.LIMITS


@pytest.mark.usefixtures("no_namespaces")
def test_a_required_level_that_is_not_there_refuses_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        PolicyRefused, match="scripts need sandbox level 3, and the highest that works here is"
    ) as caught:
        shell(Processes(require=3), "touch ran", tmp_path)
    assert "no namespaces" in caught.value.hint
    assert "policy.toml" in caught.value.hint
    assert not (tmp_path / "ran").exists()

"""The only place that starts a process (git, through GitPython in `blocks/repository.py`, excepted).

`Processes.run` starts one program in a session of its own, with limits and a scrubbed environment, and returns when it
and everything that it started have ended, whichever way that came about: it ended, it took too long, the run was
cancelled, or the engine died. `blocks/supervisor.py` keeps that promise, and says what is out of its reach.

How far a script is confined is a *level*. Level 1, the one that exists, limits and cleans up; it hides nothing from
the script: not the network, not other files of the user. Processes are limited by RLIMIT_NPROC, which the kernel
counts for the user, not for the script (512 more than the user has when the script starts), and does not apply to root.

This module knows neither instructions nor the workspace.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PolicyRefused, TimedOut

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.supervisor import Report, Request

INHERITED = ("PATH", "HOME", "LANG", "TERM", "TMPDIR", "USER")
"""What of the caller's environment a script gets; everything else it must be given."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_HEADER = 8
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 16
_PATIENCE = 15.0  # seconds from asking for the end to concluding that nobody answers; above the supervisor's own


class Level(IntEnum):
    """How far scripts are confined."""

    NONE = 0
    LIMITS = 1
    """Resource limits, a session of its own, a scrubbed environment, the whole tree ended."""
    LANDLOCK = 2
    BUBBLEWRAP = 3
    OVERLAY = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What one script may use. `output_bytes` is for each of its two streams; the rest is read and dropped."""

    processes: int = 512
    output_bytes: int = 10 * 1024 * 1024
    file_bytes: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended. A negative `exit_code` is the number of the signal that ended it; seconds in `duration`."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool
    duration: float


class CancelTokenLike(Protocol):
    """What `tasks/operation.py` calls CancelToken."""

    @property
    def cancelled(self) -> bool:
        """Whether the end was asked for."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call this at cancellation (at once, if that was before)."""


class Processes:
    """Runs programs. Safe to use from several threads; costs nothing until the first run.

    `require` is the level below which nothing is run (`[sandbox] require` in the policy). `lock` is a descriptor that
    stays open, should this process die, until everything that it has run is ended; programs do not get it.
    """

    def __init__(self, *, require: int = Level.NONE, lock: int | None = None) -> None:
        self.require = require
        self._lock = lock

    @property
    def level(self) -> Level:
        """The level that programs run at here."""
        return Level.LIMITS

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bytes | None = None,
        timeout: float | None = None,
        cancel: CancelTokenLike | None = None,
        limits: Limits = Limits(),
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a program to its end and to that of everything it started.

        `env` is added to what INHERITED names. `argv[0]` with a `/` is relative to `cwd`, without one it is looked up
        on the PATH. `on_line` gets each line of both streams as it comes, in the calling thread.

        Raises TimedOut after `timeout` seconds, Interrupted when cancelled, OperationError when it cannot be started.
        """
        self._check_level()
        if cancel is not None and cancel.cancelled:
            raise Interrupted
        cwd = cwd.absolute()
        complete = {**inherited_environment(), **env}
        program = find_program(argv, complete.get("PATH", os.defpath), cwd)
        request: Request = {
            "program": program,
            "argv": list(argv),
            "cwd": str(cwd),
            "env": complete,
            "processes": limits.processes,
            "file_bytes": limits.file_bytes,
        }
        _check_texts(request)
        with ExitStack() as stack:
            attendance = _Attendance(stack, request, self._lock, stdin, limits.output_bytes, on_line)
            return attendance.run(timeout, cancel)

    def _check_level(self) -> None:
        if self.level < self.require:
            raise PolicyRefused(
                f"scripts need sandbox level {self.require}, and run at level {int(self.level)} here",
                hint="lower `require` under [sandbox] in policy.toml to run them all the same",
            )


def inherited_environment() -> dict[str, str]:
    """What every program gets of the caller's environment."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def find_program(argv: Sequence[str], search_path: str, cwd: Path) -> str:
    """What to execute for `argv[0]`. Raises OperationError when there is nothing, or nothing executable."""
    if not argv or not argv[0]:
        raise OperationError("no program is named", hint="give its name as the first entry of `argv`")
    name = argv[0]
    if not os.path.isdir(cwd):  # noqa: PTH112
        raise OperationError(f"{cwd}: no such folder to run {name!r} in", hint="make it in an earlier step")
    if "/" in name:
        _check_executable(name, cwd / name)
        return name  # after the change to `cwd`: a script then sees the name it was called by
    candidates = [cwd / folder / name for folder in search_path.split(os.pathsep)]
    # Not Path.is_file(): it raises for a folder on the PATH that is closed to this user.
    files = [candidate for candidate in candidates if os.path.isfile(candidate)]  # noqa: PTH113
    for candidate in files:
        if os.access(candidate, os.X_OK):
            return str(candidate)
    if files:
        raise _not_executable(str(files[0]))
    local = f"; write './{name}' for the one in the folder" if os.path.isfile(cwd / name) else ""  # noqa: PTH113
    raise OperationError(
        f"program {name!r} not found on PATH", hint=f"install it, or add its folder to PATH{local} (PATH={search_path})"
    )


def _check_executable(name: str, file: Path) -> None:
    if not os.path.lexists(file):
        raise OperationError(f"program {name!r} not found: there is no such file", hint="it is relative to `cwd`")
    if os.path.isdir(file):  # noqa: PTH112
        raise OperationError(f"program {name!r} is a folder")
    if not os.access(file, os.X_OK):
        raise _not_executable(name)


def _not_executable(name: str) -> OperationError:
    return OperationError(
        f"program {name!r} is not executable", hint="file.chmod with mode 0755 makes it so; or run its interpreter"
    )


def _check_texts(request: Request) -> None:
    """The kernel ends a text at its first NUL, and a variable's name at its first `=`."""
    if not all(map(_is_passable, request["argv"])):
        raise OperationError("an argument of the program holds a NUL character, or is not Unicode")
    for name, value in request["env"].items():
        if not name or "=" in name or not _is_passable(name) or not _is_passable(value):
            raise OperationError(f"environment variable {name!r} cannot be set", hint="no empty name, no '=', no NUL")


def _is_passable(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


class _Attendance:
    """One run: what is sent to the supervisor, what comes back from it and from the program."""

    def __init__(
        self,
        stack: ExitStack,
        request: Request,
        lock: int | None,
        stdin: bytes | None,
        output_bytes: int,
        on_line: Callable[[str], None] | None,
    ) -> None:
        self._request = request
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._alarm = _Alarm()
        stack.callback(self._alarm.close)
        self._run, far_run = (stack.enter_context(each) for each in socket.socketpair())
        with ExitStack() as far:
            far.enter_context(far_run)
            self._stdin, far_stdin = _input_pipe(far, stdin)
            stack.callback(self._close_input)
            self._stdout, far_stdout = _output_pipe(stack, far)
            self._stderr, far_stderr = _output_pipe(stack, far)
            self._started = time.monotonic()
            _keeper.send(far_run, lock)
            self._send_request((far_stdin, far_stdout, far_stderr))
        self._outputs = {each: _Output(output_bytes, on_line) for each in (self._stdout, self._stderr)}
        self._input = memoryview(stdin or b"")
        self._answer = bytearray()

    def _send_request(self, streams: tuple[int, int, int]) -> None:
        body = json.dumps(self._request).encode()
        try:
            socket.send_fds(self._run, [len(body).to_bytes(_HEADER, "big")], streams)
            self._run.sendall(body)
        except BrokenPipeError as error:
            raise _supervisor_lost(self._request) from error

    def run(self, timeout: float | None, cancel: CancelTokenLike | None) -> Completed:
        for stream in self._outputs:
            self._selector.register(stream, selectors.EVENT_READ)
        if self._stdin is not None:
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        self._selector.register(self._run, selectors.EVENT_READ)
        self._selector.register(self._alarm.descriptor, selectors.EVENT_READ)
        if cancel is not None:
            cancel.on_cancel(self._alarm.ring)
        deadline = None if timeout is None else self._started + timeout
        try:
            done = self._converse(deadline)
        except BaseException:
            self._end()
            raise
        if not done:
            self._end()
            if cancel is not None and cancel.cancelled:
                raise Interrupted
            raise TimedOut(
                f"{self._name} took longer than {timeout:g} s; all of its processes were ended",
                hint="raise the instruction's `timeout`, or make it faster",
            )
        return self._completed()

    def _end(self) -> None:
        """Have everything ended, and wait for that. Its output is still read, and no longer passed on."""
        for output in self._outputs.values():
            output.on_line = None
        if self._answered:
            return
        self._alarm.silence(self._selector)
        self._run.shutdown(socket.SHUT_WR)
        if not self._converse(time.monotonic() + _PATIENCE):
            raise _supervisor_lost(self._request)
        self._check_survivors(self._report())

    @property
    def _answered(self) -> bool:
        return self._run not in self._selector.get_map()

    def _converse(self, deadline: float | None) -> bool:
        """Attend to everything until the supervisor has answered. False when the deadline or the alarm came first."""
        while not self._answered:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            for key, _ in self._selector.select(left):
                if key.fd == self._alarm.descriptor:
                    return False
                self._attend(key.fd)
        self._drain()
        return True

    def _attend(self, source: int) -> None:
        if source == self._run.fileno():
            self._hear()
        elif source in self._outputs:
            self._read(source)
        else:
            self._feed(source)

    def _hear(self) -> None:
        try:
            received = self._run.recv(_CHUNK)
        except ConnectionResetError:
            received = b""
        self._answer += received
        if not received or received.endswith(b"\n"):
            self._selector.unregister(self._run)

    def _feed(self, stdin: int) -> None:
        try:
            written = os.write(stdin, self._input[:_CHUNK])
        except BrokenPipeError:  # the program does not read to the end, as it may
            written = len(self._input)
        self._input = self._input[written:]
        if not self._input:
            self._selector.unregister(stdin)
            self._close_input()

    def _close_input(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def _read(self, stream: int) -> bool:
        """Take what is there. False when there is nothing now, or never again."""
        try:
            received = os.read(stream, _CHUNK)
        except BlockingIOError:
            return False
        if not received:
            self._selector.unregister(stream)
            return False
        self._outputs[stream].take(received)
        return True

    def _drain(self) -> None:
        """All processes are gone: what they wrote is in the pipes, however little was read while they ran."""
        for stream, output in self._outputs.items():
            while stream in self._selector.get_map() and self._read(stream):
                pass
            output.finish()

    def _completed(self) -> Completed:
        report = self._report()
        if "stage" in report:
            raise _not_started(self._request, report["stage"], report["errno"])
        self._check_survivors(report)
        stdout, stderr = self._outputs[self._stdout], self._outputs[self._stderr]
        return Completed(
            exit_code=report["exit_code"],
            stdout=bytes(stdout.kept),
            stderr=bytes(stderr.kept),
            truncated=stdout.truncated or stderr.truncated,
            duration=time.monotonic() - self._started,
        )

    def _report(self) -> Report:
        if not self._answer.endswith(b"\n"):
            raise _supervisor_lost(self._request)
        report: Report = json.loads(self._answer)
        return report

    def _check_survivors(self, report: Report) -> None:
        if report.get("survivors"):
            numbers = ", ".join(map(str, report["survivors"]))
            raise OperationError(
                f"{self._name} has ended, and these processes of it could not be ended: {numbers}",
                hint="they run as another user or hang in the kernel; end them by hand",
            )

    @property
    def _name(self) -> str:
        return repr(self._request["argv"][0])


class _Output:
    """One stream of a program: the first bytes kept, every line passed on."""

    def __init__(self, limit: int, on_line: Callable[[str], None] | None) -> None:
        self.kept = bytearray()
        self.truncated = False
        self.on_line = on_line
        self._limit = limit
        self._line = bytearray()

    def take(self, received: bytes) -> None:
        room = self._limit - len(self.kept)
        self.kept += received[:room]
        self.truncated = self.truncated or len(received) > room
        if self.on_line is None:
            return
        *complete, last = received.split(b"\n")
        for part in complete:
            self._line += part
            self._pass_on()
        self._line += last
        if len(self._line) > _LONGEST_LINE:
            self._pass_on()

    def finish(self) -> None:
        if self._line:
            self._pass_on()

    def _pass_on(self) -> None:
        line = self._line.removesuffix(b"\r").decode(errors="replace")
        self._line.clear()
        if self.on_line is not None:
            self.on_line(line)


class _Alarm:
    """Wakes a selector from another thread; ringing it after its end does nothing."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._open = True

    def ring(self) -> None:
        with self._lock:
            if self._open:
                os.eventfd_write(self.descriptor, 1)

    def silence(self, selector: selectors.BaseSelector) -> None:
        selector.unregister(self.descriptor)

    def close(self) -> None:
        with self._lock:
            self._open = False
            os.close(self.descriptor)


class _Keeper:
    """The process that forks the supervisors: one for this process, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def send(self, run: socket.socket, lock: int | None) -> None:
        """Have a supervisor attend to this socket, and hold the lock meanwhile."""
        descriptors = [run.fileno()] if lock is None else [run.fileno(), lock]
        with self._lock:
            if self._control is None or self._owner != os.getpid():  # a fork of the engine needs its own
                self._start()
            try:
                self._pass(descriptors)
            except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                self._stop()
                self._start()
                self._pass(descriptors)

    def _pass(self, descriptors: list[int]) -> None:
        assert self._control is not None
        socket.send_fds(self._control, [b"r"], descriptors)

    def _start(self) -> None:
        self._control, far = socket.socketpair()
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_SUPERVISOR), str(far.fileno())],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal is for the engine, which then ends the scripts
                cwd="/",
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            )
        self._owner = os.getpid()

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.wait()
        self._control = self._process = None

    def close(self) -> None:
        """Let it end: it does when the scripts that still run have been ended."""
        with self._lock:
            if self._owner == os.getpid():
                self._stop()


_keeper = _Keeper()
atexit.register(_keeper.close)


def _output_pipe(near: ExitStack, far: ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe()
    near.callback(os.close, reader)
    far.callback(os.close, writer)
    os.set_blocking(reader, False)
    return reader, writer


def _input_pipe(far: ExitStack, stdin: bytes | None) -> tuple[int | None, int]:
    if not stdin:
        nothing = os.open(os.devnull, os.O_RDONLY)
        far.callback(os.close, nothing)
        return None, nothing
    reader, writer = os.pipe()
    far.callback(os.close, reader)
    os.set_blocking(writer, False)
    return writer, reader


_WHY_NOT_STARTED = {
    errno.ENOENT: ("the interpreter that its first line names is missing", "install it, or correct the line"),
    errno.ENOEXEC: ("it is no program: its first line names no interpreter", "begin it with a line such as #!/bin/sh"),
    errno.E2BIG: ("its arguments and environment are too long", "pass them by `stdin` or in a file"),
    errno.EACCES: ("permission denied", "look at its mode, its interpreter's, and the file system's `noexec`"),
    errno.EAGAIN: ("there are too many processes", "end some, or raise the limit"),
}


def _not_started(request: Request, stage: str, number: int) -> OperationError:
    name = repr(request["argv"][0])
    if stage == "chdir":
        return OperationError(f"{name} cannot run in {request['cwd']}: {os.strerror(number)}")
    reason, hint = _WHY_NOT_STARTED.get(number, (f"{os.strerror(number)} ({stage})", ""))
    return OperationError(f"{name} cannot be started: {reason}", hint=hint)


def _supervisor_lost(request: Request) -> OperationError:
    return OperationError(
        f"the process that keeps {request['argv'][0]!r} was ended from outside; what was left of the program was too",
        hint="look for the kernel's out-of-memory messages, and for a program that ends others; then run it again",
    )

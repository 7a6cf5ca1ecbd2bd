"""The only place that starts a process (git, through GitPython in `blocks/repository.py`, excepted).

`Processes.run` starts one program in a session of its own, with limits and a scrubbed environment, and returns when it
and everything that it started have ended, whichever way that came about: it ended, it took too long, the run was
cancelled, or the engine died. `blocks/supervisor.py` keeps that promise, and says what is out of its reach. Its
supervisors serve one program at a time, and the next one after it, so that there are as many as programs run at once.

How far a script is confined is a *level*, see `blocks/levels.py`. Level 1 limits and cleans up, which is done here; it
hides nothing from the script: not the network, not other files of the user.

Processes are limited by RLIMIT_NPROC, which the kernel counts for the user, not for the script (512 more than the user
had when the script started, or within the second before), and does not apply to root: those of root are counted by
their supervisor instead, many times a second, and all ended when they are too many. What a program writes in all is
measured at level 4 alone, several times a second.

This module knows neither instructions nor the workspace.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantum_orchestrator.blocks.bubblewrap import View
from quantum_orchestrator.blocks.errors import Interrupted, OperationError, TimedOut
from quantum_orchestrator.blocks.levels import Level, Start, level_for, level_problem, prepared
from quantum_orchestrator.blocks.supervisor import FRAME, HEADER, IDLE, REPORT, STDERR, STDOUT, Report, Request

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.layer import Layer

INHERITED = ("PATH", "HOME", "LANG", "TERM", "TMPDIR", "USER")
"""What of the caller's environment a script gets; everything else it must be given."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 16
_SERVICE = IDLE / 3  # seconds for which a supervisor is asked again: it has counted the user's processes at its start
_LOOKS = 0.2  # seconds between two looks at how much was written
_PATIENCE = 15.0  # seconds from asking for the end to concluding that nobody answers; above the supervisor's own


@dataclass(frozen=True, slots=True)
class Limits:
    """What one script may use. `output_bytes` is for each of its two streams; the rest is read and dropped."""

    processes: int = 512
    output_bytes: int = 10 * 1024 * 1024
    file_bytes: int = 1024 * 1024 * 1024
    memory_bytes: int = 0
    """Of address space, for each process; 0 is no limit."""
    cpu_seconds: int = 0
    """Of processor time, for each process; 0 is no limit."""
    written_bytes: int = 0
    """In the layer of level 4, in all; 0 is no limit."""
    seconds: float | None = None


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

    `require` is the level below which nothing is run (`[sandbox] require` in the policy), `prefer` the one that is had
    where it works. `lock` is a descriptor that
    stays open, should this process die, until everything that it has run is ended; programs do not get it.

    `tied` programs end with what keeps them, by the kernel's hand. Those of which it is known that they change nothing
    need not be, and start in a quarter of the time (see `blocks/supervisor.py`); from level 2 on, the workspace is
    read-only for them. That is `root`, or else the folder that a program runs in.
    """

    _number = itertools.count()

    def __init__(
        self,
        *,
        require: int = Level.NONE,
        prefer: int = Level.NONE,
        lock: int | None = None,
        tied: bool = True,
        limits: Limits = Limits(),
        root: Path | None = None,
    ) -> None:
        self.require = require
        self.prefer = prefer
        self.limits = limits
        self.root = root
        self.protected: tuple[Path, ...] = ()
        self.layer: Layer | None = None
        self._lock = lock
        self._tied = tied
        self._id = next(self._number)

    def close(self) -> None:
        """Let the supervisors end that wait for a next program. It may still be used; it is closed at exit at last."""
        _keeper.let_go(self._id)

    def protecting(self, places: Iterable[Path]) -> Processes:
        """The same, for programs that cannot change these places of the workspace, where their level can see to it."""
        same = copy(self)
        same.protected = tuple(places)
        return same

    def onto(self, layer: Layer) -> Processes:
        """The same, for programs that write to this layer and not to the workspace; at level 4 alone."""
        same = copy(self)
        same.layer = layer
        return same

    @property
    def level(self) -> Level:
        """The level that programs run at here."""
        return level_for(self.require, self.prefer)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bytes | None = None,
        timeout: float | None = None,
        cancel: CancelTokenLike | None = None,
        limits: Limits | None = None,
        on_line: Callable[[str], None] | None = None,
        network: bool = False,
        folders: Sequence[Path] = (),
    ) -> Completed:
        """Run a program to its end and to that of everything it started.

        `env` is added to what INHERITED names. `argv[0]` with a `/` is relative to `cwd`, without one it is looked up
        on the PATH. `on_line` gets each line of both streams as it comes, in the calling thread.

        From level 2 on it reaches the network only with `network`, and may write to `folders` beside the workspace; at
        level 3 on, its end by signal N is told as exit code 128 + N. At level 4 its changes of the workspace are in the
        layer that it was given, and if it was given none, in the workspace.

        Raises TimedOut after `timeout` seconds, Interrupted when cancelled, OperationError when it cannot be started.
        """
        limits = limits or self.limits
        if limits.seconds is not None:
            timeout = limits.seconds if timeout is None else min(timeout, limits.seconds)
        problem = level_problem(self.require)
        if problem is not None:
            raise problem
        if cancel is not None and cancel.cancelled:
            raise Interrupted
        cwd = cwd.absolute()
        complete = {**inherited_environment(), **env}
        view = View((self.root or cwd).absolute(), cwd, self._tied, tuple(folders), self.protected, network, self.layer)
        started = time.monotonic()
        outputs = {each: _Output(limits.output_bytes, on_line) for each in (STDOUT, STDERR)}
        with prepared(self.level, argv, complete, view) as start:
            exit_code = self._carried_out(start, cwd, limits, stdin or b"", outputs, cancel, started, timeout)
        out, err = outputs[STDOUT], outputs[STDERR]
        truncated = out.truncated or err.truncated
        return Completed(exit_code, bytes(out.kept), bytes(err.kept), truncated, time.monotonic() - started)

    def _carried_out(
        self,
        start: Start,
        cwd: Path,
        limits: Limits,
        stdin: bytes,
        outputs: Mapping[bytes, _Output],
        cancel: CancelTokenLike | None,
        started: float,
        timeout: float | None,
    ) -> int:
        """The exit code."""
        request: Request = {
            "called": start.called or start.argv[0],
            "program": start.program,
            "argv": start.argv,
            "cwd": str(cwd),
            "env": start.env,
            "boxed": start.boxed,
            "ruleset": start.ruleset is not None,
            "tied": self._tied or bool(limits.memory_bytes or limits.cpu_seconds) or start.ruleset is not None,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.cpu_seconds,
            "processes": limits.processes,
            "file_bytes": limits.file_bytes,
        }
        _check_texts(request)
        kind = _Kind(self._id, self._lock, limits.processes, limits.file_bytes)
        with _Input(stdin) as source, _Alarm(cancel) as alarm:
            descriptors = [each for each in (start.ruleset, source.descriptor) if each is not None]
            supervisor = _keeper.ask(kind, request, descriptors)
            with supervisor:
                attendance = _Attendance(request, supervisor, outputs, source, alarm, _Meter(self.layer, limits))
                exit_code = attendance.run(started, timeout, cancel)
            _keeper.give_back(supervisor)
        return exit_code


def inherited_environment() -> dict[str, str]:
    """What every program gets of the caller's environment."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def _check_texts(request: Request) -> None:
    """The kernel ends a text at its first NUL, and a variable's name at its first `=`."""
    if not all(map(_is_passable, request["argv"])):
        raise OperationError("an argument of the program holds a NUL character, or is not Unicode")
    for name, value in request["env"].items():
        if not name or "=" in name or not _is_passable(name) or not _is_passable(value):
            raise OperationError(f"environment variable {name!r} cannot be set", hint="no empty name, no '=', no NUL")


def _is_passable(text: str) -> bool:
    if text.isascii():
        return "\0" not in text
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


@dataclass(frozen=True, slots=True)
class _Kind:
    """What supervisors have in common that may stand in for each other."""

    owner: int
    lock: int | None
    processes: int
    file_bytes: int


class _Supervisor:
    """The near end of one supervisor's run socket. As a context manager, it is closed unless all went well."""

    def __init__(self, kind: _Kind, run: socket.socket) -> None:
        self.kind = kind
        self.run = run
        self.begun = time.monotonic()

    def __enter__(self) -> None:
        """See the class."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.close()

    def close(self) -> None:
        """It ends then, and before that all that it keeps."""
        self.run.close()

    def send(self, request: Request, descriptors: Sequence[int]) -> None:
        """Raises BrokenPipeError if it has ended without having had the whole request."""
        body = json.dumps(request).encode()
        message = len(body).to_bytes(HEADER, "big") + body
        sent = socket.send_fds(self.run, [message], list(descriptors))
        if sent < len(message):
            self.run.sendall(message[sent:])


class _Attendance:
    """One run: what comes back from its supervisor, and what its program is fed with."""

    def __init__(
        self,
        request: Request,
        supervisor: _Supervisor,
        outputs: Mapping[bytes, _Output],
        source: _Input,
        alarm: _Alarm,
        meter: _Meter,
    ) -> None:
        self._request = request
        self._meter = meter
        self._run = supervisor.run
        self._outputs = outputs
        self._source = source
        self._alarm = alarm
        self._received = bytearray()
        self._is_over = False
        self._report: Report | None = None
        self._poll = select.poll()
        self._poll.register(self._run, select.POLLIN)
        if alarm.descriptor is not None:
            self._poll.register(alarm.descriptor, select.POLLIN)
        if source.writer is not None:
            self._poll.register(source.writer, select.POLLOUT)

    def run(self, started: float, timeout: float | None, cancel: CancelTokenLike | None) -> int:
        """The program's exit code."""
        try:
            is_over = self._converse(None if timeout is None else started + timeout)
        except BaseException:
            self._end()
            raise
        if not is_over:
            self._end()
            if cancel is not None and cancel.cancelled:
                raise Interrupted
            self._meter.check(self._name)
            raise TimedOut(
                f"{self._name} took longer than {timeout:g} s; all of its processes were ended",
                hint="raise the instruction's `timeout`, or make it faster",
            )
        report = self._checked_report()
        if "stage" in report:
            raise _not_started(self._request, report["stage"], report["errno"])
        if report.get("too_many"):
            raise OperationError(
                f"{self._name} started more than {self._request['processes']} processes; all of them were ended",
                hint="`processes` under [limits] in policy.toml",
            )
        self._meter.look()
        self._meter.check(self._name)
        return report["exit_code"]

    def _end(self) -> None:
        """Have everything ended, and wait for that. Its output is still read, and no longer passed on."""
        for output in self._outputs.values():
            output.on_line = None
        if self._is_over:
            return
        self._meter.due = None
        if self._alarm.descriptor is not None:
            self._poll.unregister(self._alarm.descriptor)
        self._run.shutdown(socket.SHUT_WR)
        if not self._converse(time.monotonic() + _PATIENCE):
            raise _supervisor_lost(self._request)
        self._checked_report()

    def _converse(self, deadline: float | None) -> bool:
        """Attend to everything until the supervisor has answered. False when the deadline, the alarm or a limit came
        first."""
        while not self._is_over:
            moments = [each for each in (deadline, self._meter.due) if each is not None]
            left = min(moments) - time.monotonic() if moments else None
            if left is not None and left <= 0:
                if deadline is not None and deadline <= time.monotonic():
                    return False
                self._meter.look()
                if self._meter.is_over:
                    return False
                continue
            for descriptor, _ in self._poll.poll(None if left is None else left * 1000 + 1):
                if descriptor == self._run.fileno():
                    self._hear()
                elif descriptor == self._alarm.descriptor:
                    return False
                elif not self._source.feed():
                    self._poll.unregister(descriptor)
        for output in self._outputs.values():
            output.finish()
        return True

    def _hear(self) -> None:
        try:
            received = self._run.recv(_CHUNK)
        except ConnectionResetError:
            received = b""
        self._is_over = not received
        self._received += received
        while len(self._received) >= FRAME.size:
            kind, length = FRAME.unpack_from(self._received)
            if len(self._received) < FRAME.size + length:
                return
            told = bytes(self._received[FRAME.size : FRAME.size + length])
            del self._received[: FRAME.size + length]
            self._take(kind, told)

    def _take(self, kind: bytes, told: bytes) -> None:
        if kind == REPORT:
            self._report = json.loads(told)
            self._is_over = True
        else:
            self._outputs[kind].take(told)

    def _checked_report(self) -> Report:
        """Raises OperationError if there is none, or something could not be ended."""
        if self._report is None:
            raise _supervisor_lost(self._request)
        if self._report.get("survivors"):
            numbers = ", ".join(map(str, self._report["survivors"]))
            raise OperationError(
                f"{self._name} has ended, and these processes of it could not be ended: {numbers}",
                hint="they run as another user or hang in the kernel; end them by hand",
            )
        return self._report

    @property
    def _name(self) -> str:
        return repr(self._request["called"])


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


class _Meter:
    """Looks now and then at how much a program has written to its layer. The more there is, the more rarely."""

    def __init__(self, layer: Layer | None, limits: Limits) -> None:
        self._layer = layer if limits.written_bytes else None
        self._most = limits.written_bytes
        self.is_over = False
        self.due = None if self._layer is None else time.monotonic() + _LOOKS
        """When to look next."""

    def look(self) -> None:
        """Measure it, if there is something to measure."""
        if self._layer is not None and not self.is_over:
            begun = time.monotonic()
            self.is_over = self._layer.size() > self._most
            ended = time.monotonic()
            # Once it is over, nothing more is looked at: what ends it then is under way.
            self.due = None if self.is_over else ended + max(_LOOKS, 10 * (ended - begun))

    def check(self, name: str) -> None:
        """Raises OperationError if the last look found too much."""
        if self.is_over:
            raise OperationError(
                f"{name} wrote more than {self._most >> 20} MiB; all of its processes were ended",
                hint="`written_mb` under [limits] in policy.toml",
            )


class _Alarm:
    """A descriptor that becomes readable at a cancellation; None where there can be none. Closed at the end."""

    def __init__(self, cancel: CancelTokenLike | None) -> None:
        self.descriptor = None if cancel is None else os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._is_open = True
        if cancel is not None:
            cancel.on_cancel(self._ring)

    def _ring(self) -> None:
        """Called in another thread, perhaps after the end."""
        with self._lock:
            if self._is_open and self.descriptor is not None:
                os.eventfd_write(self.descriptor, 1)

    def __enter__(self) -> _Alarm:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_open = False
            if self.descriptor is not None:
                os.close(self.descriptor)


class _Input:
    """What a program reads from its standard input: nothing, or a pipe that is fed. Closed at the end."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self.writer: int | None = None
        self.descriptor: int | None = None
        """The program's end."""
        if content:
            self.descriptor, self.writer = os.pipe()
            os.set_blocking(self.writer, False)

    def feed(self) -> bool:
        """Write what the pipe takes. False when that was the last of it."""
        if self.writer is None:
            return False
        self._close_descriptor()
        try:
            written = os.write(self.writer, self._content[:_CHUNK])
        except BrokenPipeError:  # the program does not read to the end, as it may
            written = len(self._content)
        self._content = self._content[written:]
        if not self._content:
            os.close(self.writer)
            self.writer = None
        return self.writer is not None

    def _close_descriptor(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def __enter__(self) -> _Input:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_descriptor()
        if self.writer is not None:
            os.close(self.writer)


class _Keeper:
    """The process that forks the supervisors: one for this process, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._idle: list[_Supervisor] = []
        self._owner = os.getpid()

    def ask(self, kind: _Kind, request: Request, descriptors: Sequence[int]) -> _Supervisor:
        """Have a supervisor carry out a request: one that has done with another, or else a new one."""
        used = self._idle_one(kind)
        if used is not None:
            try:
                used.send(request, descriptors)
            except (BrokenPipeError, ConnectionResetError):  # it has ended meanwhile
                used.close()
            else:
                return used
        supervisor = self._new(kind)
        try:
            supervisor.send(request, descriptors)
        except (BrokenPipeError, ConnectionResetError) as error:
            supervisor.close()
            raise _supervisor_lost(request) from error
        return supervisor

    def give_back(self, supervisor: _Supervisor) -> None:
        """It has done its work, and may do other."""
        with self._lock:
            self._idle.append(supervisor)

    def let_go(self, owner: int) -> None:
        """No other programs of this owner will come."""
        with self._lock:
            self._close_idle(lambda each: each.kind.owner == owner)

    def _close_idle(self, is_meant: Callable[[_Supervisor], bool]) -> None:
        for each in [each for each in self._idle if is_meant(each)]:
            self._idle.remove(each)
            each.close()

    def _idle_one(self, kind: _Kind) -> _Supervisor | None:
        with self._lock:
            self._notice_fork()
            too_old = time.monotonic() - _SERVICE
            self._close_idle(lambda each: each.begun < too_old)
            found = next((each for each in self._idle if each.kind == kind), None)
            if found is not None:
                self._idle.remove(found)
            return found

    def _new(self, kind: _Kind) -> _Supervisor:
        run, far = socket.socketpair()
        with far:
            descriptors = [far.fileno()] if kind.lock is None else [far.fileno(), kind.lock]
            with self._lock:
                self._notice_fork()
                try:
                    self._pass(descriptors)
                except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                    self._stop()
                    self._pass(descriptors)
        return _Supervisor(kind, run)

    def _notice_fork(self) -> None:
        """A fork of the engine needs its own, and lets those of the engine alone."""
        if self._owner != os.getpid():
            self._let_go()
            self._process = None
            self._owner = os.getpid()

    def _pass(self, descriptors: list[int]) -> None:
        if self._control is None:
            self._control = self._start()
        socket.send_fds(self._control, [b"r"], descriptors)

    def _start(self) -> socket.socket:
        control, far = socket.socketpair()
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
        return control

    def _let_go(self) -> None:
        self._close_idle(lambda _each: True)
        if self._control is not None:
            self._control.close()
        self._control = None

    def _stop(self) -> None:
        self._let_go()
        if self._process is not None:
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Let it end: it does when the scripts that still run have been ended."""
        with self._lock:
            if self._owner == os.getpid():
                self._stop()


_keeper = _Keeper()
atexit.register(_keeper.close)


_WHY_NOT_STARTED = {
    errno.ENOENT: ("the interpreter that its first line names is missing", "install it, or correct the line"),
    errno.ENOEXEC: ("it is no program: its first line names no interpreter", "begin it with a line such as #!/bin/sh"),
    errno.E2BIG: ("its arguments and environment are too long", "pass them by `stdin` or in a file"),
    errno.EACCES: ("permission denied", "look at its mode, its interpreter's, and the file system's `noexec`"),
    errno.EAGAIN: ("there are too many processes", "end some, or raise the limit"),
}


def _not_started(request: Request, stage: str, number: int) -> OperationError:
    name = repr(request["called"])
    if stage == "chdir":
        return OperationError(f"{name} cannot run in {request['cwd']}: {os.strerror(number)}")
    reason, hint = _WHY_NOT_STARTED.get(number, (f"{os.strerror(number)} ({stage})", ""))
    return OperationError(f"{name} cannot be started: {reason}", hint=hint)


def _supervisor_lost(request: Request) -> OperationError:
    return OperationError(
        f"the process that keeps {request['called']!r} was ended from outside; what was left of the program was too",
        hint="look for the kernel's out-of-memory messages, and for a program that ends others; then run it again",
    )

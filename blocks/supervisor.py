"""The small program that keeps every process a script starts, and ends them all. Started by `blocks/sandbox.py`.

It runs by path (`python -I -S supervisor.py FD`), so it uses the standard library alone and nothing of this package.
One *keeper* serves a whole engine: it has a single thread, so it may fork. It forks *supervisors*, each of which
attends to one script at a time, one after another, for as long as the engine has some:

    engine ──control socket── keeper ── supervisor ── script ── whatever the script starts
      └───────────── run socket ─────────────┘

Invariant: a supervisor reports on its run socket only when none of its script's processes is left. It is the
*subreaper* of its descendants (prctl(2)): whatever leaves the process group, starts a session or forks twice still
becomes its child when its parent ends, so that "no child left" means "nothing left". It ends the tree when the script
ends, when the engine shuts its side of the run socket down (time-out, cancellation), and when the engine dies, which
the kernel tells by closing that socket, however it died. Processes are asked to end first; those of a dead engine are
killed at once, as what they do is undone or done again. Should a supervisor be killed, the keeper inherits what is left
and ends that.

A script starts in one of two ways. *Tied*, it is forked: that copies this interpreter (3 ms of processor time), and the
copy asks the kernel for SIGKILL at the supervisor's end, so that not even somebody who kills engine, keeper and
supervisor at one blow leaves it running. Not tied, it is spawned without a copy (vfork(2)), in a quarter of the time.
Limits are the supervisor's own, taken on before its first script, and inherited.

With a run socket may come the workspace's *lock*, a descriptor that is only kept open until everything has ended: so
nobody can begin there while a script of a dead engine is left (see `blocks/lock.py`). Scripts do not get it.

What a run socket carries: from the engine, a length (HEADER bytes, big-endian) and a Request as JSON, with the script's
standard input as a descriptor if it has one; to the engine, *frames*: a kind, a length, and so many bytes.

Out of reach: what another service starts on request (systemd, at, a container daemon), programs that changed to
another user, and a script bent on harm, which may kill its keepers, as they run as the same user.
"""

# ruff: noqa: PTH116, PTH208 - pathlib would cost every engine's first script ten milliseconds
from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn, TypedDict

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""
PATIENCE = 5.0
"""Seconds of SIGKILL after which what still lives is reported instead: it is another user's, or stuck in the kernel."""
IDLE = 3.0
"""Seconds without a request after which a supervisor ends; the engine asks one for less long than that."""
HEADER = 8
"""Bytes of the big-endian length before a request."""
FRAME = struct.Struct(">cI")
"""What comes before the bytes of a frame: its kind and their number."""
STDOUT, STDERR, REPORT = b"o", b"e", b"r"
"""Kinds of frames: some of what a script has written, or the one answer to a request."""
CHUNK = 1 << 16
"""The most bytes of output in a frame."""

_COUNTED = 0.05
"""Seconds between two counts of root's processes, for which the kernel knows no limit. Once they are too many, they are
some hundreds more before the next one."""
_OF_BUBBLEWRAP = 2
"""Processes that only keep what is meant."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_MOST_CAPABILITIES = 64
_LANDLOCK_RESTRICT_SELF = 446
_libc = ctypes.CDLL(None, use_errno=True)


class Request(TypedDict):
    """What to start. `program` is what is executed, `argv[0]` what it is called.

    The limits `processes` and `file_bytes` are those of the first request for all that one supervisor attends to.
    """

    called: str
    """What messages call the program that is meant."""
    program: str
    argv: list[str]
    cwd: str
    env: dict[str, str]
    boxed: bool
    """Whether what is started only keeps what is meant, in a process namespace of its own: it ends when that ends."""
    ruleset: bool
    """Whether a Landlock ruleset comes with it, before its standard input, that binds the program. For tied ones."""
    tied: bool
    processes: int
    file_bytes: int
    memory_bytes: int
    """Of address space; 0 is no limit. For tied programs alone."""
    cpu_seconds: int
    """Of processor time; 0 is no limit. For tied programs alone."""


class Report(TypedDict, total=False):
    """The one answer. Either `exit_code` (negative: a signal's number), or `stage` and `errno` of a failed start."""

    exit_code: int
    stage: str
    errno: int
    too_many: bool
    """It started more processes than it may: it, and they, were ended."""
    survivors: list[int]


def keep(control: socket.socket) -> None:
    """Fork a supervisor for every run socket that arrives, until the engine is gone and all of them are done."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child_ended = _child_signals()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all that a dead engine left: its keepers end the others
    runs: dict[int, Run] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(child_ended, select.POLLIN)
    open_for_runs = True
    while open_for_runs or runs:
        ready = dict(poll.poll())
        if control.fileno() in ready and not _accept(control, runs):
            poll.unregister(control)
            open_for_runs = False
        if child_ended in ready:
            os.read(child_ended, 4096)
            _settle(runs)


class Run:
    """What belongs to one script, and is closed when all of it has ended."""

    def __init__(self, socket_: int, lock: int | None) -> None:
        self.socket = socket.socket(fileno=socket_)
        self._lock = lock

    def close(self) -> None:
        """Free the lock first: the engine may be waiting for the socket's end."""
        if self._lock is not None:
            os.close(self._lock)
        self.socket.close()


def _accept(control: socket.socket, runs: dict[int, Run]) -> bool:
    """Start one supervisor. False when the engine has closed its side."""
    received, descriptors = _received(control, 1, 2)
    if not received:
        return False
    run = Run(descriptors[0], descriptors[1] if len(descriptors) > 1 else None)
    try:
        pid = os.fork()
    except OSError as error:
        _tell(run.socket, REPORT, json.dumps({"stage": "fork", "errno": error.errno or 0}).encode())
        run.close()
        return True
    if pid == 0:
        control.close()
        for other in runs.values():
            other.close()
        _supervisor_process(run.socket)
    runs[pid] = run  # kept open: the engine sees the end of an unanswered run only when _settle has cleaned up
    return True


def _received(connection: socket.socket, length: int, count: int) -> tuple[bytes, list[int]]:
    """Bytes and the descriptors that came with them, which no program is to inherit (recv_fds() forgets its flags)."""
    received, descriptors, _, _ = socket.recv_fds(connection, length, count)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return received, descriptors


def _settle(runs: dict[int, Run]) -> None:
    """Note which supervisors ended; end what one that did not end by itself has left behind."""
    ended = []
    killed = False
    for pid in list(runs):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended.append(runs.pop(pid))
            killed = killed or status != 0
    if killed:
        _kill_all(spare=runs)
    for run in ended:
        run.close()


def _supervisor_process(run: socket.socket) -> NoReturn:
    status = 1
    try:
        _supervise(run)
        status = 0
    finally:
        os._exit(status)


def _supervise(run: socket.socket) -> None:
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child_ended = _child_signals()
    is_limited = False
    while (received := _receive(run)) is not None:
        request, stdin, ruleset = received
        if not is_limited:
            _limit(request)
            is_limited = True
        if not _carry_out(request, stdin, ruleset, run, child_ended):
            return


def _receive(run: socket.socket) -> tuple[Request, int, int | None] | None:
    """The next request, with its standard input and the ruleset that binds it; None when there will be none."""
    poll = select.poll()
    poll.register(run, select.POLLIN)
    if not poll.poll(IDLE * 1000):
        run.shutdown(socket.SHUT_RD)  # from now on the engine cannot send; what it has sent is still read
    header, streams = _received(run, HEADER, 2)
    if not header:
        return None
    length = int.from_bytes(header, "big")
    body = bytearray()
    while len(body) < length:
        chunk = run.recv(min(length - len(body), 1 << 20))
        if not chunk:  # the engine went away in the middle
            return None
        body += chunk
    request: Request = json.loads(body)
    ruleset = streams.pop(0) if request["ruleset"] else None
    return request, streams[0] if streams else os.open(os.devnull, os.O_RDONLY), ruleset


def _carry_out(request: Request, stdin: int, ruleset: int | None, run: socket.socket, child_ended: int) -> bool:
    """Start one script, and see it and all that it starts to their end. False when no other one is to follow."""
    outputs = _Outputs(run)
    script, report, is_wanted = 0, Report(), True
    streams = (stdin, *outputs.writers)
    try:
        script = _start(request, streams, ruleset)
    except _NotStarted as failure:
        report = {"stage": failure.stage, "errno": failure.number}
    for descriptor in (*streams, *([] if ruleset is None else [ruleset])):
        os.close(descriptor)
    if script:
        most = request["processes"] + (_OF_BUBBLEWRAP if request["boxed"] else 0)
        report, is_wanted = _attend(run, script, child_ended, outputs, most if os.geteuid() == 0 else 0)
    keeps = script if request["boxed"] else 0
    survivors = _kill_all() if report.get("too_many") else _end_all(run, outputs, keeps=keeps)
    if survivors:
        report["survivors"] = survivors
    outputs.drain()
    _tell(run, REPORT, json.dumps(report).encode())
    return is_wanted and not survivors


class _Outputs:
    """The two streams of one script, on their way to the engine."""

    def __init__(self, run: socket.socket) -> None:
        self._run = run
        (stdout, to_stdout), (stderr, to_stderr) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self.writers = (to_stdout, to_stderr)
        self.open = {stdout: STDOUT, stderr: STDERR}
        for reader in self.open:
            os.set_blocking(reader, False)

    def take(self, reader: int) -> bool:
        """Pass on what is there. False when there is nothing now, or never again."""
        try:
            written = os.read(reader, CHUNK)
        except BlockingIOError:
            return False
        if written:
            _tell(self._run, self.open[reader], written)
            return True
        del self.open[reader]
        os.close(reader)
        return False

    def take_for(self, seconds: float) -> None:
        """Pass on what comes within this time."""
        poll = select.poll()
        for reader in self.open:
            poll.register(reader, select.POLLIN)
        ready = poll.poll(seconds * 1000)
        for reader, _ in ready:
            self.take(reader)
        if any(reader not in self.open for reader, _ in ready):
            time.sleep(seconds)  # a closed stream is always ready

    def drain(self) -> None:
        """All processes are gone: what they wrote is in the pipes, however little was read while they ran."""
        for reader in list(self.open):
            while self.take(reader):
                pass
        for reader in self.open:  # a process that is out of reach has it open as well
            os.close(reader)


class _NotStarted(Exception):
    """At which stage, and the error's number."""

    def __init__(self, stage: str, error: OSError | ValueError) -> None:
        super().__init__(stage)
        self.stage = stage
        self.number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL


def _start(request: Request, streams: Sequence[int], ruleset: int | None) -> int:
    """Start the script; its process id. Raises _NotStarted."""
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        raise _NotStarted("chdir", error) from error
    try:
        return _forked(request, streams, ruleset) if request["tied"] else _spawned(request, streams)
    except (OSError, ValueError) as error:
        raise _NotStarted("exec", error) from error
    finally:
        os.chdir("/")


_TO_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM)
"""Python ignores the first two, the keeper the third, and an ignored signal stays ignored over exec."""


def _spawned(request: Request, streams: Sequence[int]) -> int:
    return os.posix_spawn(
        request["program"],
        request["argv"],
        request["env"],
        file_actions=[(os.POSIX_SPAWN_DUP2, stream, target) for target, stream in enumerate(streams)],
        setsid=True,
        setsigmask=(),
        setsigdef=_TO_DEFAULT,
    )


def _forked(request: Request, streams: Sequence[int], ruleset: int | None) -> int:
    failure, tell_failure = os.pipe()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        _script_process(request, streams, ruleset, tell_failure, supervisor)
    os.close(tell_failure)
    told = os.read(failure, 64)  # nothing: the pipe was closed by a successful exec
    os.close(failure)
    if told:
        raise OSError(int(told), "the script cannot be started")
    return pid


def _script_process(
    request: Request, streams: Sequence[int], ruleset: int | None, tell_failure: int, supervisor: int
) -> NoReturn:
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it ended before the line above: nobody would end this process
            os._exit(127)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        for number in _TO_DEFAULT:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if request["memory_bytes"]:
            _lower(resource.RLIMIT_AS, request["memory_bytes"])
        if request["cpu_seconds"]:
            _lower(resource.RLIMIT_CPU, request["cpu_seconds"], beyond=1)  # SIGXCPU, and then SIGKILL
        if ruleset is not None:
            _bind(ruleset)
        os.execve(request["program"], request["argv"], request["env"])  # noqa: S606
    except OSError as error:
        os.write(tell_failure, str(error.errno or errno.EINVAL).encode())
    except ValueError:
        os.write(tell_failure, str(errno.EINVAL).encode())
    finally:
        os._exit(127)


def _bind(ruleset: int) -> None:
    """Be bound by a Landlock ruleset, and have no capabilities from the next exec on: some of them go around it."""
    if os.geteuid() == 0:
        for number in range(_MOST_CAPABILITIES):
            if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
                break  # there are no more
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")


def _limit(request: Request) -> None:
    """Take on what scripts may use: they inherit it."""
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, request["file_bytes"])
    if os.geteuid() != 0:  # the kernel never applies it to root, whose processes are counted; see _attend
        # The kernel compares with all threads of the user, so what already runs is added on top.
        _lower(resource.RLIMIT_NPROC, _threads_of_user() + request["processes"])


def _lower(which: int, value: int, beyond: int = 0) -> None:
    """Nobody but root can raise it again. What is `beyond` lies between the limit and the one that is final."""
    _, hard = resource.getrlimit(which)
    final = value + beyond if hard == resource.RLIM_INFINITY else min(value + beyond, hard)
    resource.setrlimit(which, (min(value, final), final))


def _threads_of_user() -> int:
    user, threads = os.getuid(), 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.stat(f"/proc/{name}").st_uid == user:
                    threads += os.stat(f"/proc/{name}/task").st_nlink - 2
            except FileNotFoundError:
                continue  # it ended meanwhile
    return threads


def _attend(run: socket.socket, script: int, child_ended: int, outputs: _Outputs, most: int) -> tuple[Report, bool]:
    """Wait for the script's end, or for the engine to want it: then the second value is False.

    Orphans that end meanwhile are reaped. `most`: so many processes may there be at once; 0 if the kernel counts them.
    """
    counted = time.monotonic()
    poll = select.poll()
    for source in (run.fileno(), child_ended, *outputs.open):
        poll.register(source, select.POLLIN)
    while True:
        ready = [source for source, _ in poll.poll(_COUNTED * 1000 if most else None)]
        if most and time.monotonic() - counted > _COUNTED:
            if _are_more_than(most):
                return {"exit_code": -signal.SIGKILL, "too_many": True}, True
            counted = time.monotonic()
        for source in ready:
            if source in outputs.open and not outputs.take(source) and source not in outputs.open:
                poll.unregister(source)
        if child_ended in ready:
            os.read(child_ended, 4096)
            status = _reap().get(script)
            if status is not None:
                return {"exit_code": os.waitstatus_to_exitcode(status)}, True
        if run.fileno() in ready:  # never a request: the engine's side is shut down or closed
            return {"exit_code": -signal.SIGKILL}, False


def _are_more_than(most: int) -> bool:
    """Whether there are more descendants. They are looked for from here down, as others' are not to cost anything."""
    waiting, number = [os.getpid()], -1
    while waiting and number <= most:
        pid = waiting.pop()
        number += 1
        with suppress(OSError):  # it ended meanwhile
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:  # noqa: PTH123
                    waiting += map(int, children.read().split())
    return number > most


def _reap() -> dict[int, int]:
    """Wait status by process id, of every child that has ended."""
    ended = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    except ChildProcessError:
        return ended
    return ended


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_alone(run: socket.socket) -> bool:
    """Whether the engine is dead: it has closed its side, rather than shut it down."""
    poll = select.poll()
    poll.register(run, 0)
    return bool(poll.poll(0))  # POLLHUP, which needs no asking


def _end_all(run: socket.socket, outputs: _Outputs, *, keeps: int) -> list[int]:
    """End every descendant: ask first, then SIGKILL. Returns those that could not be ended.

    The one that `keeps` the others is not asked: it ends with the last of them, and them with itself.
    """
    if not _has_children():
        return []
    asked = {keeps}
    deadline = time.monotonic() + GRACE
    while _has_children() and time.monotonic() < deadline and not _is_alone(run):
        for pid in _descendants():
            if pid not in asked:  # also what was forked while the others were asked
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)  # a stopped process cannot answer
                asked.add(pid)
        outputs.take_for(0.005)  # who is asked may have something to say
        _reap()
    return _kill_all() if _has_children() else []


def _kill_all(spare: Collection[int] = ()) -> list[int]:
    """SIGKILL every descendant (but those in `spare` and below), over and over, until none is left."""
    deadline = time.monotonic() + PATIENCE
    while living := _descendants(spare):
        if time.monotonic() > deadline:
            return living
        for pid in living:
            _signal(pid, signal.SIGSTOP)  # what is frozen cannot fork while the others are killed
        for pid in living:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.002)
        for pid in living:
            _reap_one(pid)
    return []


def _reap_one(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # not a child of this process yet: it will be, as the subreaper


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # ended meanwhile, or another user's: the caller looks again, and reports it


def _descendants(spare: Collection[int] = ()) -> list[int]:
    """Process ids below this one, parents first, from one look at /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            children.setdefault(_parent_of(name), []).append(int(name))
    found = [pid for pid in children.get(os.getpid(), []) if pid not in spare]
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, []))
    return found


def _parent_of(pid: str) -> int:
    """Parent's process id; 0 when the process has ended. See proc_pid_stat(5): the name may hold anything but NUL."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    try:
        return int(os.read(descriptor, 4096).rpartition(b") ")[2].split()[1])
    except ProcessLookupError:
        return 0
    finally:
        os.close(descriptor)


def _tell(run: socket.socket, kind: bytes, told: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the engine is dead: there is nobody to tell
        run.sendall(FRAME.pack(kind, len(told)) + told)


def _child_signals() -> int:
    """A descriptor that becomes readable when a child ends."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noted)
    return readable


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Python writes to the wakeup descriptor only for signals that have a handler."""


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    keep(socket.socket(fileno=int(sys.argv[1])))

"""The small program that keeps every process a script starts, and ends them all. Started by `blocks/sandbox.py`.

It runs by path (`python -I -S supervisor.py FD`), so it uses the standard library alone and nothing of this package.
One *keeper* serves a whole engine: it has a single thread, so it may fork, and forking it costs a millisecond where a
new interpreter costs ten. Each script gets a *supervisor*, forked from the keeper:

    engine ──control socket── keeper ── supervisor ── script ── whatever the script starts
      └───────────── run socket ─────────────┘

Invariant: a supervisor reports on its run socket only when none of its script's processes is left. It is the
*subreaper* of its descendants (prctl(2)): whatever leaves the process group, starts a session or forks twice still
becomes its child when its parent ends, so that "no child left" means "nothing left". It ends the tree when the script
ends, when the engine shuts its side of the run socket down (time-out, cancellation), and when the engine dies, which
the kernel tells by closing that socket, however it died. Processes are asked to end first; those of a dead engine are
killed at once, as what they do is undone or done again. Should a supervisor be killed, the script gets SIGKILL from
the kernel, the keeper inherits what is left and ends that.

With a run socket may come the workspace's *lock*, a descriptor that is only kept open until everything has ended: so
nobody can begin there while a script of a dead engine is left (see `blocks/lock.py`). Scripts do not get it.

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
import sys
import time
from collections.abc import Collection
from types import FrameType
from typing import NoReturn, TypedDict

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""
PATIENCE = 5.0
"""Seconds of SIGKILL after which what still lives is reported instead: it is another user's, or stuck in the kernel."""
HEADER = 8
"""Bytes of the big-endian length before a request; the three descriptors travel with them."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Request(TypedDict):
    """What to start, as JSON on the run socket. `program` is what is executed, `argv[0]` what it is called."""

    program: str
    argv: list[str]
    cwd: str
    env: dict[str, str]
    processes: int
    file_bytes: int


class Report(TypedDict, total=False):
    """The one answer. Either `exit_code` (negative: a signal's number), or `stage` and `errno` of a failed start."""

    exit_code: int
    stage: str
    errno: int
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
        _answer(run.socket, {"stage": "fork", "errno": error.errno or 0})
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
    request, streams = _receive(run)
    report, script = _start(request, streams)
    for stream in streams:
        os.close(stream)
    if script:
        report = _attend(run, script, child_ended)
    survivors = _end_all(run)
    if survivors:
        report["survivors"] = survivors
    _answer(run, report)


def _receive(run: socket.socket) -> tuple[Request, list[int]]:
    header, streams = _received(run, HEADER, 3)
    length = int.from_bytes(header, "big")
    body = bytearray()
    while len(body) < length:
        chunk = run.recv(min(length - len(body), 1 << 20))
        if not chunk:
            raise ConnectionError("the engine went away in the middle of a request")
        body += chunk
    request: Request = json.loads(body)
    return request, streams


def _start(request: Request, streams: list[int]) -> tuple[Report, int]:
    """Start the script. The report says why that failed; else the second value is its process id."""
    failure, tell_failure = os.pipe()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        _script_process(request, streams, tell_failure, supervisor)
    os.close(tell_failure)
    told = os.read(failure, 4096)  # nothing: the pipe was closed by a successful exec
    os.close(failure)
    if not told:
        return {}, pid
    report: Report = json.loads(told)
    return report, 0


def _script_process(request: Request, streams: list[int], tell_failure: int, supervisor: int) -> NoReturn:
    stage = "prepare"
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it ended before the line above: nobody would end this process
            os._exit(127)
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
        stage = "chdir"
        os.chdir(request["cwd"])
        stage = "limits"
        _limit(request)
        _ordinary_signals()
        stage = "exec"
        os.execve(request["program"], request["argv"], request["env"])  # noqa: S606
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        os.write(tell_failure, json.dumps({"stage": stage, "errno": number}).encode())
    finally:
        os._exit(127)


def _limit(request: Request) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, request["file_bytes"])
    if os.geteuid() != 0:  # the kernel never applies it to root
        # The kernel compares with all threads of the user, so what already runs is added on top.
        _lower(resource.RLIMIT_NPROC, _threads_of_user() + request["processes"])


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (lowest, lowest))


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


def _ordinary_signals() -> None:
    """Python ignores the first two, and an ignored signal stays ignored over exec."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the keeper ignores it
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _attend(run: socket.socket, script: int, child_ended: int) -> Report:
    """Wait for the script's end, or for the engine to want it. Orphans that end meanwhile are reaped."""
    poll = select.poll()
    poll.register(run, select.POLLIN)
    poll.register(child_ended, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if child_ended in ready:
            os.read(child_ended, 4096)
            status = _reap().get(script)
            if status is not None:
                return {"exit_code": os.waitstatus_to_exitcode(status)}
        if run.fileno() in ready:  # never a request: the engine's side is shut down or closed
            return {"exit_code": -signal.SIGKILL}


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


def _end_all(run: socket.socket) -> list[int]:
    """End every descendant: ask first, then SIGKILL. Returns those that could not be ended."""
    if not _has_children():
        return []
    asked: set[int] = set()
    deadline = time.monotonic() + GRACE
    while _has_children() and time.monotonic() < deadline and not _is_alone(run):
        for pid in _descendants():
            if pid not in asked:  # also what was forked while the others were asked
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)  # a stopped process cannot answer
                asked.add(pid)
        time.sleep(0.005)
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


def _answer(run: socket.socket, report: Report) -> None:
    try:
        run.sendall(json.dumps(report).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        return  # the engine is dead: there is nobody to tell, and everything is ended


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

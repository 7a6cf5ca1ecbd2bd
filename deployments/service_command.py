"""One connection of the warm service, in a process of its own: the keeper, and the command that it keeps.

The service forks a keeper for each connection, so that it never waits for a client itself. The keeper takes the request
(`service_client` says in which form), refuses it or forks once more; the second fork becomes the command, with the
client's session-less terminal, streams, folder, environment, limits and signals. The keeper passes signals on, waits,
and says how the command ended. Invariant: keeper and command need nothing of the service any more; whoever of the
client, the service and the keeper dies, the command goes on to its end. The client's descriptors are the command's
alone.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn, cast

from quantum_orchestrator.deployments import circumstances
from quantum_orchestrator.deployments.service_client import LENGTH_BYTES, PASSED_ON, interpreter, peer

REQUEST_SECONDS = 10.0
_MOST_BYTES = 64 * 1024**2
_MOST_DESCRIPTORS = 253


@dataclass(frozen=True, slots=True)
class Counter:
    """What the service hands to a keeper: what is wrong with its code, who is at work, and how to tell it something."""

    changed: Callable[[], str]
    at_work: Sequence[dict[str, Any]]
    tell: Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent."""

    body: dict[str, Any]
    descriptors: list[int]
    signals: bytes
    """What it passed on at once."""


class Refused(Exception):
    """Why a command is not carried out here."""

    def __init__(self, reason: str, *, startable: bool = False) -> None:
        super().__init__(reason)
        self.startable = startable


def keep(connection: socket.socket, counter: Counter) -> None:
    """Serve one connection."""
    client, user = peer(connection)
    try:
        if user != os.geteuid():
            raise Refused("it serves another user")
        request = _received(connection)
        if request.body.get("do") == "state":
            _answer(connection, {"at_work": [*counter.at_work]})
            return
        _check(request, client, counter)
    except (Refused, OSError, ValueError, KeyError) as reason:
        _answer(connection, {"refused": str(reason), "startable": getattr(reason, "startable", False)})
        return
    _Keeper(connection, request, counter).work()


def _received(connection: socket.socket) -> Request:
    connection.settimeout(REQUEST_SECONDS)
    data, descriptors, _, _ = socket.recv_fds(connection, 65536, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    while len(data) < LENGTH_BYTES or len(data) < LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big"):
        more = connection.recv(1024**2)
        if not more or len(data) > _MOST_BYTES:
            raise Refused("the request is incomplete")
        data += more
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big")
    connection.settimeout(None)
    return Request(json.loads(data[LENGTH_BYTES:end]), descriptors, data[end:])


def _check(request: Request, client: int, counter: Counter) -> None:
    """Raises Refused where the command cannot be here what it would be by itself; takes over what it can."""
    if changed := counter.changed():
        counter.tell({"end": f"{changed} has changed"})
        raise Refused(f"the service had loaded what has changed since: {changed}", startable=True)
    if request.body["interpreter"] != json.loads(json.dumps(interpreter())):
        raise Refused("it is another Python, or was told other things in its environment")
    if different := circumstances.difference(client):
        raise Refused(f"the service has another {different}")
    if len(request.descriptors) != len(request.body["descriptors"]) + 1:
        raise Refused("some of the open files did not arrive")
    circumstances.take_over(client)


def _answer(connection: socket.socket, value: dict[str, Any]) -> None:
    try:
        connection.sendall(json.dumps(value).encode() + b"\n")
    except OSError:
        return  # the client has died


class _Keeper:
    """Waits for one command."""

    def __init__(self, connection: socket.socket, request: Request, counter: Counter) -> None:
        self._connection = connection
        self._request = request
        self._counter = counter
        self._child = 0
        self._hears = True

    def work(self) -> None:
        """Begin the command, and stay until it has ended."""
        ended, tell_ended = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(tell_ended, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [*PASSED_ON, signal.SIGHUP])  # until the command can hear them
        self._child = os.fork()
        if self._child == 0:
            signal.set_wakeup_fd(-1)
            become(self._request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [*PASSED_ON, signal.SIGHUP])
        for descriptor in self._request.descriptors:
            os.close(descriptor)
        self._tell_service()
        _answer(self._connection, {"pid": self._child})
        self._pass_on(self._request.signals)
        _answer(self._connection, self._end(ended))

    def _tell_service(self) -> None:
        words = self._request.body["arguments"]
        self._counter.tell({"keeper": os.getpid(), "pid": self._child, "command": " ".join(["qo", *words])[:200]})

    def _end(self, ended: int) -> dict[str, int]:
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        poller.register(self._connection, select.POLLIN)
        while True:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return {"exit": code} if code >= 0 else {"signal": -code}
            for descriptor, _ in poller.poll():
                if descriptor == ended:
                    os.read(ended, 4096)
                elif not self._heard():
                    poller.unregister(self._connection)
                    self._send(signal.SIGHUP)

    def _heard(self) -> bool:
        """Pass on what the client says; whether there is still one."""
        try:
            received = self._connection.recv(64)
        except OSError:
            return False
        self._pass_on(received)
        return bool(received)

    def _pass_on(self, numbers: bytes) -> None:
        for number in numbers:
            if number in PASSED_ON:
                self._send(signal.SIGSTOP if number == signal.SIGTSTP else signal.Signals(number))

    def _send(self, number: signal.Signals) -> None:
        """What a terminal sends goes to the whole group there, so it does here."""
        try:
            if number in (signal.SIGINT, signal.SIGQUIT, signal.SIGSTOP, signal.SIGCONT):
                os.killpg(self._child, number)
            else:
                os.kill(self._child, number)
        except ProcessLookupError:  # it has no session of its own yet
            os.kill(self._child, number)  # it is not waited for yet, so the id is still its own


# ---------------------------------------------------------------- the command's own process


def become(request: Request) -> NoReturn:
    """Be the command that a client asked for: as if it had just been started there."""
    code = 70
    try:
        body = request.body
        os.setsid()
        _take_descriptors(request.descriptors, body["descriptors"])
        os.environ.clear()
        os.environ.update(body["environment"])
        _settle_environment()
        _open_streams(body["streams"])
        _settle_signals(set(body["ignored"]))
        sys.argv = ["qo", *body["arguments"]]
        from quantum_orchestrator.deployments.cli import carry_out

        code = carry_out(body["arguments"])
    except KeyboardInterrupt:  # before anything had begun
        os.write(2, b"error: interrupted\n")
        code = 130
    except BaseException:  # the last resort: nothing may come back into the service's code
        import traceback

        traceback.print_exc()
    from quantum_orchestrator.deployments.qo import leave

    leave(code)


def _take_descriptors(received: list[int], places: list[int]) -> None:
    """Everything at the numbers that it had in the client, the folder, and nothing else."""
    above = 1 + max([*received, *places])  # moved there first, so that none is overwritten on its way
    folder, *others = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in received]
    os.fchdir(folder)
    os.closerange(3, above)
    for descriptor, place in zip(others, places, strict=True):
        os.dup2(descriptor, place)
    for descriptor in (folder, *others):
        os.close(descriptor)


def _settle_environment() -> None:
    """What a Python reads from its environment when it starts."""
    import locale
    import time

    time.tzset()
    try:
        locale.setlocale(locale.LC_CTYPE, "")
    except locale.Error:
        return  # there is no such locale: the interpreter goes on without, too
    comm = Path("/proc/self/comm")
    comm.write_text("qo")


class _Terminal(io.FileIO):
    """A terminal that may go away: what is then written to it is lost, and ends no run."""

    def write(self, data: Any) -> int:
        """See FileIO."""
        try:
            return super().write(data) or 0
        except OSError:
            if self._is_there():
                raise
            return len(data)

    def _is_there(self) -> bool:
        try:
            return os.isatty(self.fileno()) and os.tcgetpgrp(self.fileno()) >= 0
        except OSError:
            return False


def _open_streams(chosen: list[list[str]]) -> None:
    """The standard streams, encoded as the client has them."""
    encodings = iter(chosen)
    raw = io.FileIO(0, "r", closefd=False)
    encoding, errors = next(encodings)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(raw), encoding=encoding, errors=errors)
    setattr(sys, "__stdin__", sys.stdin)  # noqa: B010 - typed as final
    for name, number in (("stdout", 1), ("stderr", 2)):
        at_terminal, (encoding, errors) = os.isatty(number), next(encodings)
        kind = _Terminal if at_terminal else io.FileIO
        raw_stream = cast("BinaryIO", io.BufferedWriter(kind(number, "w", closefd=False)))
        unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
        stream = io.TextIOWrapper(
            raw_stream,
            encoding=encoding,
            errors=errors,
            line_buffering=at_terminal or number == 2 or unbuffered,
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _settle_signals(ignored: set[int]) -> None:
    """As in a Python that has just started with these signals ignored."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, _hang_up)
    for number in ignored - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    """The client is gone: the terminal belongs to others now, if it still is there."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        if os.isatty(number) or not _usable(number):
            os.dup2(nothing, number)
    os.close(nothing)


def _usable(number: int) -> bool:
    """A terminal that has hung up is none any more: every request to it fails."""
    import termios

    try:
        termios.tcgetattr(number)
    except termios.error as problem:
        return bool(problem.args[0] != errno.EIO)
    return True

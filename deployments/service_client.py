"""The client of the warm service: what `qo run` is while a fork of the service does its work.

A connection to the service's unix socket carries one command:

    client  → length (8 bytes), a request as JSON, and by SCM_RIGHTS the current folder, the three standard streams and
              whatever else this process has inherited; then a byte for each signal that is passed on
    service → {"refused": why, "startable": …}          nothing has happened: the client runs the command by itself
            | {"pid": …}, then {"exit": code} or {"signal": number}

Invariant: whatever the fork cannot have as this process has it (see `circumstances`) is refused, and the command runs
as it would without a service. The client only waits: the terminal, the workspace and its lock are the fork's. If the
client dies, the run goes on; if the service does, so do both.

Speed is what this is for, so it imports nothing of ours but `location`, and of the standard library only what the
first lines say; no dataclass, no pathlib. `qo` asks `by_service` before it imports anything else.
"""

from __future__ import annotations

import binascii
import json
import os
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

from quantum_orchestrator.blocks.location import location

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SERVED = frozenset(
    {"approve", "automation", "deploy", "deployment", "inbox", "reject", "resume", "rollback", "run", "schedule"}
)
"""Commands that need Prefect, or what takes as long to import."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT)
"""Not SIGHUP: when the terminal goes, the run goes on."""
LENGTH_BYTES = 8
_ANSWER_SECONDS = 15.0  # the service answers within milliseconds, or is stopped
_NOT_SERVED = "this command needs no service"
_MOST_DESCRIPTORS = 200  # the kernel passes 253
_FLAGS = (
    *(
        "bytes_warning",
        "dev_mode",
        "dont_write_bytecode",
        "hash_randomization",
        "ignore_environment",
        "int_max_str_digits",
    ),
    *("isolated", "no_site", "no_user_site", "optimize", "utf8_mode"),
)


class Unserved:
    """Why a command runs by itself, and whether a service that is started now would serve the next one."""

    __slots__ = ("reason", "startable")

    def __init__(self, reason: str, *, startable: bool = False) -> None:
        self.reason = reason
        self.startable = startable

    @property
    def telling(self) -> bool:
        """Whether it is of a command that a service could carry out."""
        return self.reason != _NOT_SERVED


def by_service(arguments: list[str]) -> int | Unserved:
    """Have the service carry out a command line: the exit code, or why it has not.

    Ends this process by the signal that ended the command, if one did.
    """
    if reason := _not_for_it(arguments):
        return Unserved(reason)
    try:
        connection = connected(folder_of(os.environ))
    except (OSError, ValueError):
        return Unserved("no warm service runs", startable=True)
    with connection:
        if peer(connection)[1] != os.geteuid():
            return Unserved("what answers at the service's socket belongs to another user")
        return _Command(connection, arguments).outcome()


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the user wants a service: QO_SERVICE, on unless this is a CI job."""
    chosen = environment.get("QO_SERVICE", "").lower()
    if chosen:
        return chosen not in ("off", "0", "no", "false")
    return environment.get("CI", "").lower() in ("", "0", "false")


def folder_of(environment: os._Environ[str]) -> str:
    """Where the service of this installation and this state folder has its socket; there or not."""
    named = f"{sys.prefix}\0{sys.version}\0{__file__}"
    return f"{location(environment)}/service/{binascii.crc32(named.encode(errors='surrogateescape')):08x}"


def connected(folder: str) -> socket.socket:
    """A connection to the service of a folder. Raises OSError where none listens."""
    # The folder is named by a descriptor, as a socket's path may have 107 bytes.
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(f"/proc/self/fd/{place}/socket")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(place)
    return connection


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process id and user at the other end, as the kernel has them: unix(7), SO_PEERCRED."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(told[:4], sys.byteorder), int.from_bytes(told[4:8], sys.byteorder)


def message(value: object) -> bytes:
    """A request as it is sent. Texts that are no UTF-8 survive it."""
    body = json.dumps(value).encode()
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def interpreter() -> list[object]:
    """What this Python was told when it was started, which no fork can be told later."""
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PYTHON", "LD_", "MALLOC_", "GLIBC_", "GIT_PYTHON_", "OPENSSL_"))
    }
    flags = [getattr(sys.flags, name, None) for name in _FLAGS]
    return [sys.version, sys.prefix, __file__, flags, sys.warnoptions, sys.getfilesystemencoding(), chosen]


def _not_for_it(arguments: list[str]) -> str:
    command = next((each for each in arguments if not each.startswith("-")), "")
    if command not in SERVED or "--help" in arguments or "-h" in arguments:
        return _NOT_SERVED
    if not wanted(os.environ):
        return "QO_SERVICE is off" if os.environ.get("QO_SERVICE") else "CI is set: QO_SERVICE=on has it nevertheless"
    try:
        if os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp():
            return "it runs in the background of a terminal, which only the shell's own jobs may"
    except OSError:
        pass  # no terminal of ours
    return "" if all(map(_is_open, range(3))) else "a standard stream is closed"


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _inherited() -> list[int]:
    """The open descriptors that a program started from here would have: `qo run <(generate)` names one of them."""
    numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - pathlib takes 10 ms
    return [number for number in numbers if _is_open(number) and os.get_inheritable(number)]


class _Command:
    """One command line at work in a fork of the service."""

    def __init__(self, connection: socket.socket, arguments: list[str]) -> None:
        self._connection = connection
        self._arguments = arguments
        self._accepted = False
        self._received: list[int] = []
        self._owners: dict[int, Any] = {}

    def outcome(self) -> int | Unserved:
        """See `by_service`."""
        for each in PASSED_ON:
            if signal.getsignal(each) is not signal.SIG_IGN:
                self._owners[each] = signal.signal(each, self._pass_on)
        try:
            answer = self._asked()
            while "pid" in answer:
                answer = self._next()
        finally:
            for taken, owner in self._owners.items():
                signal.signal(taken, owner)
        if "exit" in answer:
            return int(str(answer["exit"]))
        if "signal" in answer:
            return self._died(int(str(answer["signal"])))
        if self._accepted:
            return self._lost()
        for missed in self._received:  # they were meant for the command, which now begins
            signal.raise_signal(missed)
        return Unserved(str(answer.get("refused")), startable=bool(answer.get("startable")))

    def _asked(self) -> dict[str, object]:
        """Send the request; the answer. Nothing has begun if it is not one with a `pid`."""
        numbers = _inherited()
        request = {
            "do": "run",
            "arguments": self._arguments,
            "environment": dict(os.environ),
            "interpreter": interpreter(),
            "descriptors": numbers,
            "streams": [[each.encoding, each.errors] for each in (sys.stdin, sys.stdout, sys.stderr)],
            "ignored": [int(each) for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN],
        }
        if len(numbers) > _MOST_DESCRIPTORS:
            return {"refused": f"{len(numbers)} files are open"}
        try:
            folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._send(message(request), [folder, *numbers])
            os.close(folder)
            answer = self._next()
        except OSError as error:
            return {"refused": f"the service does not answer: {error}", "startable": True}
        if "pid" in answer:
            self._accepted = True
            self._connection.settimeout(None)
            for each in self._received:
                self._tell(each)
        return answer or {"refused": "the service ended", "startable": True}

    def _send(self, request: bytes, descriptors: list[int]) -> None:
        sent = socket.send_fds(self._connection, [request], descriptors)
        self._connection.sendall(request[sent:])

    def _next(self) -> dict[str, object]:
        """The next line; nothing at the end."""
        line = b""
        while not line.endswith(b"\n"):
            received = self._connection.recv(1)
            if not received:
                return {}
            line += received
        found: dict[str, object] = json.loads(line)
        return found

    # Signals.

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if not self._accepted:
            self._received.append(number)
            return
        self._tell(number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _tell(self, number: int) -> None:
        try:
            self._connection.send(bytes([number]))
        except OSError:
            return  # it has ended: the end is read

    def _died(self, number: int) -> int:
        """End as the command did."""
        _say(f"error: the command's process was ended by {signal.Signals(number).name}")
        _say("hint: `qo status` says how the run stands, `qo resume` goes on with it, `qo rollback` undoes it")
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it had its own
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return 128 + number

    def _lost(self) -> int:
        _say("error: the process that watched over the command has died; the command itself may still be at work")
        _say("hint: `qo status` says how the run stands, `qo logs -f` follows it")
        return 4


def _say(line: str) -> None:
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:
        return  # nobody can be told any more

"""What a hostile script tries, nearly all of it in one start; a JSON object on standard output says what got through.

Run by path, inside of a sandbox, by `test_escapes.py`: standard library alone. An attack that gets through returns;
one that is blocked raises OSError, or Blocked. None of them does lasting harm where it gets through.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS: dict[str, Any] = json.loads(os.environ["TARGETS"])
OUTSIDE, ENGINE = Path(TARGETS["outside"]), int(TARGETS["engine"])
MIB = 2**20
MS_REMOUNT, MS_BIND = 32, 4096
CLONE_NEWUSER = 0x10000000
PTRACE_DETACH, PTRACE_SEIZE = 17, 0x4206
libc = ctypes.CDLL(None, use_errno=True)
attacks: dict[str, Callable[[], object]] = {}
alone_attacks: dict[str, Callable[[], object]] = {}
"""Each of them in a start of its own, by name, as the whole program may be ended for it."""


class Blocked(Exception):
    """It did not get through, and nothing says so but its absence."""


def attack(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def added(function: Callable[[], object]) -> Callable[[], object]:
        attacks[name] = function
        return function

    return added


def alone(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def added(function: Callable[[], object]) -> Callable[[], object]:
        alone_attacks[name] = function
        return function

    return added


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result


@attack("write a file outside")
def _() -> None:
    (OUTSIDE / "planted").write_text("x")


@attack("truncate a file outside")
def _() -> None:
    os.truncate(OUTSIDE / "victim", 0)


@attack("chmod a file outside")
def _() -> None:
    (OUTSIDE / "victim").chmod(0o777)


@attack("read a file of the user's")
def _() -> None:
    (OUTSIDE / "private").read_bytes()


@attack("read /etc/shadow")
def _() -> None:
    Path("/etc/shadow").read_bytes()


@attack("write to .git/hooks")
def _() -> None:
    hook = Path(".git/hooks/pre-commit")
    try:
        hook.write_text("x")
    except OSError:
        for flags in (MS_REMOUNT | MS_BIND, MS_REMOUNT):
            libc.mount(None, b".git", None, flags, None)
        Path(".git").rename("moved")  # or write to it: whichever works, got through
        hook.write_text("x")


@attack("read the engine's environment")
def _() -> None:
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"QO_ESCAPE_TOKEN=" in place.read_bytes():
                return
        except OSError:
            continue
    raise Blocked


@attack("signal the engine")
def _() -> None:
    os.kill(ENGINE, signal.SIGCONT)


@attack("trace the engine")
def _() -> None:
    called(libc.ptrace(PTRACE_SEIZE, ENGINE, None, None))
    libc.ptrace(PTRACE_DETACH, ENGINE, None, None)


@attack("mount")
def _() -> None:
    Path("mounted").mkdir(exist_ok=True)
    called(libc.mount(b"none", b"mounted", b"tmpfs", 0, None))
    libc.umount(b"mounted")


@attack("make a user namespace")
def _() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0 if libc.unshare(CLONE_NEWUSER) == 0 else 1)
    if os.waitpid(child, 0)[1] != 0:
        raise Blocked


@attack("make a device")
def _() -> None:
    os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 7))
    Path("device").unlink()


@attack("write a kernel setting")
def _() -> None:
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


@attack("connect by TCP")
def _() -> None:
    socket.create_connection(("127.0.0.1", TARGETS["tcp"]), timeout=5).close()


@attack("send by UDP")
def _() -> None:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(("127.0.0.1", TARGETS["udp"]))
    sender.send(b"x")
    time.sleep(0.01)
    sender.send(b"x")  # the first one's refusal is told now


@attack("connect to an abstract socket")
def _() -> None:
    socket.socket(socket.AF_UNIX).connect("\0" + TARGETS["abstract"])


@attack("connect to a socket outside")
def _() -> None:
    socket.socket(socket.AF_UNIX).connect(str(OUTSIDE / "socket"))


@attack("make a file larger than allowed")
def _() -> None:
    with open("large", "wb") as file:
        os.truncate(file.fileno(), TARGETS["file_bytes"] + 1)


@attack("fill /tmp")
def _() -> None:
    place = Path(os.environ.get("TMPDIR", "/tmp"), "qo-escape-large")
    try:
        with place.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 300 * MIB)
    finally:
        place.unlink(missing_ok=True)


@attack("change the workspace, and fail")
def _() -> None:
    """Whether it is changed is looked up from outside; that this program fails is of no account."""
    Path("changed").write_text("x")


@attack("leave a daemon")
def _() -> None:
    """Whether it is left is looked up from outside."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)", TARGETS["marker"]])
        os._exit(0)


@alone("start more processes than allowed")
def _() -> None:
    """For long enough to be noticed: where the kernel does not count root's processes, somebody else does."""
    children = []
    try:
        for _number in range(TARGETS["processes"] + 20):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
        time.sleep(2)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


@alone("write more in all than allowed")
def _() -> None:
    for number in range(5):
        with open(f"many-{number}", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 20 * MIB)


def main() -> None:
    through = {}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    chosen = {name: alone_attacks[name] for name in sys.argv[1:]} or attacks
    for name, function in chosen.items():
        try:
            function()
        except (OSError, Blocked) as error:
            through[name] = ""
            print(f"{name}: {error}", file=sys.stderr)
        else:
            through[name] = "through"
    print(json.dumps(through))


if __name__ == "__main__":
    main()

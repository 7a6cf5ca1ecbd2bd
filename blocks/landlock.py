"""What sandbox level 2 is: a Landlock ruleset, by which the kernel refuses a program and all that it starts.

| a program at level 2 | |
|---|---|
| writes, makes, deletes, renames, truncates | below the workspace and a /tmp of its own alone; no device nodes |
| TCP | not without `network` (Linux 6.7) |
| signals, ptrace, abstract sockets | to its own processes alone (signals and sockets: Linux 6.12) |
| capabilities, as root | none: with some of them, root may look at all processes in spite of Landlock |

Out of reach of this level: reading anything that the user can read; chmod, chown, times and extended attributes of
files anywhere; UDP and Unix sockets with a path; how much it writes; and, as rules only add, `.git` in the workspace.
It works inside containers, and needs no right. See landlock(7).

Invariant: a ruleset refuses all that this kernel's Landlock can refuse of the above. This module makes rulesets;
`blocks/supervisor.py` takes them on, between fork(2) and execve(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from enum import IntFlag
from functools import cache
from pathlib import Path

LEAST_ABI = 3
"""Below it, files anywhere could be truncated (Linux 6.2)."""

_CREATE_RULESET, _ADD_RULE = 444, 445
_PATH_BENEATH = 1
_VERSION = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Access(IntFlag):
    """What writes, as Landlock numbers it."""

    WRITE_FILE = 1 << 1
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_ALL = Access(sum(Access))
_OF_ABI_5 = Access.IOCTL_DEV
_ON_FILES = Access.WRITE_FILE | Access.TRUNCATE | Access.IOCTL_DEV
_NOWHERE = Access.MAKE_CHAR | Access.MAKE_BLOCK
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets, signals
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts")


@cache
def abi() -> int:
    """The kernel's version of Landlock; 0 if it has none, or has it switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def why_not() -> str:
    """Why this level does not work here, and what to do; empty if it does."""
    found = abi()
    if found == 0:
        return "the kernel has no Landlock, or has it switched off: see `lsm=` on its command line"
    if found < LEAST_ABI:
        return f"the kernel's Landlock (ABI {found}) lets files be truncated anywhere: Linux 6.2 or newer is needed"
    return ""


def ruleset(writable: Iterable[Path], *, network: bool) -> int:
    """A descriptor of a ruleset by which programs write below these folders alone. Raises OSError."""
    version = abi()
    handled = _ALL if version >= 5 else _ALL & ~_OF_ABI_5
    tcp = 0 if network else _TCP
    attributes = struct.pack("=QQQ", handled, tcp, _SCOPES)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    made = _called(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for folder in writable:
            _allow(made, folder, handled & ~_NOWHERE)
        for device in (Path("/dev", name) for name in _DEVICES):
            if device.exists():
                _allow(made, device, handled & (_ALL & ~_NOWHERE if device.is_dir() else _ON_FILES))
    except BaseException:
        os.close(made)
        raise
    return made


def _allow(made: int, place: Path, access: int) -> None:
    descriptor = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        _called(_ADD_RULE, made, _PATH_BENEATH, struct.pack("=Qi", access, descriptor), 0)
    finally:
        os.close(descriptor)


def _called(number: int, *arguments: int | bytes) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return result

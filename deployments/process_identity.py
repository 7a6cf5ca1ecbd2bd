"""Which process it is that a record names: its id, when it started, and in which boot.

A process id alone is used again, so that nothing is signalled by it: `Identity.alive` is asked first. All of it is read
from /proc, see proc(5). This module starts and signals nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told from all others that had or will have its id."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has this id now; None if there is none."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


def boot_id() -> str:
    """What the kernel calls the time since it was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; empty when there is no such process."""
    try:
        # The second, the name in parentheses, may hold blanks and parentheses itself.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if it is gone: no such process, or a zombie.

    A first thread that has ended is not enough: while others are still being killed, they hold port and database.
    """
    fields = stat_fields(pid)
    if not fields or (fields[0] in "ZX" and int(fields[17]) <= 1):
        with contextlib.suppress(ChildProcessError):  # not our child: its parent collects it
            os.waitpid(pid, os.WNOHANG)
        return None
    return int(fields[19])

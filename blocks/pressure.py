"""How busy this machine is: samples of its processors, its memory and what stalls.

The stalls are the kernel's (pressure stall information); where it has none, nothing stalls. It must not know what is
decided by them: `flows/pressure.py` does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

FOLDER = Path("/proc/pressure")


@dataclass(frozen=True, slots=True)
class Sample:
    """Fractions, of the time since the sample before."""

    busy: float = 0.0
    """Of all processors' time."""
    own: float = 0.0
    """Of one processor's time, used by this process itself."""
    memory_stalls: float = 0.0
    """With at least one task waiting for memory."""
    disk_stalls: float = 0.0
    """With all tasks that could run waiting for disks."""
    free_memory: float = 1.0
    """Of what there is, now."""


class Sampler:
    """Takes samples. The first covers the time since it was made."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._last = self._read()

    def __call__(self) -> Sample:
        """What has been since the last call."""
        before, self._last = self._last, self._read()
        changes = [max(0.0, now - then) for now, then in zip(self._last, before, strict=True)]
        elapsed, total, idle, own, memory, disk = changes
        memory_now = psutil.virtual_memory()
        return Sample(
            busy=1.0 - min(1.0, idle / total) if total else 0.0,
            own=own / elapsed if elapsed else 0.0,
            memory_stalls=min(1.0, memory / elapsed) if elapsed else 0.0,
            disk_stalls=min(1.0, disk / elapsed) if elapsed else 0.0,
            free_memory=memory_now.available / memory_now.total if memory_now.total else 1.0,
        )

    def _read(self) -> tuple[float, ...]:
        """Seconds so far: the clock's, processors' in all and idle, this process's, stalled for memory and disks."""
        processors = psutil.cpu_times()
        idle = processors.idle + getattr(processors, "iowait", 0.0)
        stalls = self._stalled("memory", "some"), self._stalled("io", "full")
        return time.monotonic(), sum(processors), idle, time.process_time(), *stalls

    def _stalled(self, resource: str, how: str) -> float:
        try:
            text = (self._folder / resource).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return 0.0
        for line in text.splitlines():
            kind, _, rest = line.partition(" ")
            total = rest.rpartition("total=")[2]
            if kind == how and total.isdecimal():
                return int(total) / 1e6
        return 0.0

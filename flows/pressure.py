"""How many places steps have, where a set leaves that open: a few more while the machine has room, far fewer when not.

Additive up, multiplicative down, as congestion is controlled in networks (Chiu and Jain, 1989). More places help while
processors idle. They do not while this process itself keeps one busy, as Python runs one thread at a time; a machine
whose processors are busy is no reason to fall below where it began, as others' work may be what keeps them so. One that
stalls for memory or for disks is: work there goes slower for all.

Pure: no clock, no files. `blocks/pressure.py` takes the samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.pressure import Sample

SAMPLE_SECONDS = 0.25
MOST_PER_PROCESSOR = 4
BUSY = 0.85
"""Of all processors' time; beyond, there is no room for more."""
CROWDED = 0.97
OWN_BUSY = 0.8
"""Of one processor's time."""
STALLED_FOR_MEMORY = 0.10
"""Of the time, so much with a task somewhere waiting for memory means that there are too many of them."""
STALLED_FOR_DISKS = 0.60
LEAST_FREE = 0.05
"""Of memory."""
REST = 4
"""So many samples after going down, the next step waits to see what came of it."""


class Pressure:
    """The number of places of one run."""

    def __init__(self, start: int, processors: int) -> None:
        self.limit = start
        self._start = start
        self.most = max(start, MOST_PER_PROCESSOR * processors)
        """There are never more."""
        self._rest = 0

    def observe(self, sample: Sample) -> int:
        """How many places there are to be from now on."""
        if self._rest:
            self._rest -= 1
        elif _stalls(sample):
            self._lower(self.limit // 2, least=1)
        elif sample.busy > CROWDED:
            self._lower(self.limit * 3 // 4, least=min(self._start, self.limit))
        elif sample.busy < BUSY and sample.own < OWN_BUSY:
            self.limit = min(self.limit + 1, self.most)
        return self.limit

    def _lower(self, limit: int, *, least: int) -> None:
        lower = max(limit, least)
        if lower < self.limit:
            self.limit, self._rest = lower, REST


def _stalls(sample: Sample) -> bool:
    short = sample.free_memory < LEAST_FREE
    return short or sample.memory_stalls > STALLED_FOR_MEMORY or sample.disk_stalls > STALLED_FOR_DISKS

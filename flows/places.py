"""The places of one run: how many steps work at once.

A fixed number stays, and every step takes one. Where the set leaves it open, the number follows how busy the machine
is, looked at only while steps wait for a place; steps that only wait themselves take none.

Invariant: whoever works holds one of them, also in a called set; one that is taken away is let go when its step ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import anyio

from quantum_orchestrator.blocks import machine
from quantum_orchestrator.flows import schedule
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.pressure import SAMPLE_SECONDS, Pressure

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.pressure import Sample


def _sampler() -> Callable[[], Sample]:
    from quantum_orchestrator.blocks.pressure import Sampler  # most runs never look

    return Sampler()


class Places:
    """As many places as there are now."""

    def __init__(self, start: int, *, adapts: bool = False) -> None:
        self._limiter = anyio.CapacityLimiter(start)
        self._pressure = Pressure(start, machine.processors()) if adapts else None
        self._sample: Callable[[], Sample] | None = None
        self._due = 0.0
        self.only_waits: Callable[[Step], bool] = schedule.only_waits if adapts else schedule.never
        """Which steps take no place."""
        self.most_threads = start if self._pressure is None else self._pressure.most + schedule.MOST_WAITING

    @property
    def now(self) -> int:
        """How many there are."""
        return int(self._limiter.total_tokens)

    def one_for(self, step: Step) -> AbstractAsyncContextManager[object]:
        """A place, if the step takes one."""
        return contextlib.nullcontext() if self.only_waits(step) else self._limiter

    def adapt(self, *, short: Callable[[], bool]) -> float | None:
        """Look at the machine if that is due and steps are `short` of places; in how many seconds to look again."""
        if self._pressure is None or not short():
            return None
        now = time.monotonic()
        if self._sample is None or now > self._due + SAMPLE_SECONDS:  # what was long ago says nothing
            self._sample = _sampler()
        elif now >= self._due:
            self._limiter.total_tokens = self._pressure.observe(self._sample())
        else:
            return self._due - now
        self._due = now + SAMPLE_SECONDS
        return SAMPLE_SECONDS

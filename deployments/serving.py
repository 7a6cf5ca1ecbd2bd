"""Runs several doors together: a Prefect worker for deployments, and whatever commands are named beside it.

Each door is a process of its own, the command that would be typed for it alone; so it fails, is started again and ends
by itself. Invariant: whoever of them ends is started again, later each time, unless its command line was wrong, which
ends all; and none of them outlives this process, however that ends. Knows nothing of what the doors do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantum_orchestrator.blocks.errors import InvalidInput, QuantumError

USAGE = InvalidInput.exit_code
"""The exit code of a command line that means nothing: to start it again would not help."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 60.0
"""Whoever ran so long begins with the first pause again."""
GRACE_SECONDS = 60.0
"""For runs that are undone when they are interrupted."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Door:
    """What is started, and what it is called."""

    name: str
    command: Sequence[str]


def qo_door(words: Sequence[str]) -> Door:
    """A command of ours."""
    return Door(words[0], [sys.executable, "-m", "quantum_orchestrator.deployments.cli", *words])


def worker(pool: str, limit: int | None = None) -> Door:
    """A worker of Prefect's for a pool of processes, which it makes if it is not there."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", pool, "--type", "process"]
    return Door("worker", [*command, *(["--limit", str(limit)] if limit is not None else [])])


async def serve(doors: Sequence[Door], say: Callable[[str], None]) -> None:
    """Keep all of them at work until this is interrupted. Raises QuantumError where one has a wrong command line."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    kept = [asyncio.create_task(_kept(door, stopping, say)) for door in doors]
    try:
        await asyncio.gather(*kept)
    finally:
        stopping.set()
        await asyncio.gather(*kept, return_exceptions=True)


async def _kept(door: Door, stopping: asyncio.Event, say: Callable[[str], None]) -> None:
    pause = FIRST_PAUSE
    while not stopping.is_set():
        began = time.monotonic()
        code = await _once(door, stopping)
        if stopping.is_set():
            return
        if code == USAGE:
            raise QuantumError(
                f"`{door.name}` ended with {code}: see what it said", hint="nothing else is served, either"
            )
        pause = FIRST_PAUSE if time.monotonic() - began > STEADY_SECONDS else pause
        say(f"{door.name} ended with {code}; it is started again in {pause:g} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause)
        pause = min(pause * 2, LONGEST_PAUSE)


async def _once(door: Door, stopping: asyncio.Event) -> int:
    """Run it to its end, which comes when all stop; its exit code."""
    process = await asyncio.create_subprocess_exec(*door.command, start_new_session=True, preexec_fn=_end_with_parent)
    ended = asyncio.create_task(process.wait())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not ended.done():
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), GRACE_SECONDS)
    if not ended.done():
        process.kill()
    return await ended


def _end_with_parent() -> None:
    """In the new process: to be told to end when this one dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

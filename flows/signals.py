"""What Ctrl-C and SIGTERM do to a run that is at work in this process.

The first ends it in order, undone; the second ends the process at once, and says what settles the rest. It knows runs,
not Prefect, whose own way with SIGTERM it takes the place of.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Self

from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.flows.engine import Run


class Signals:
    """What Ctrl-C and SIGTERM do to a run: the first ends it in order, the second ends the process, and says so.

    In force from `take` to the end of the context, so that also the last words of a run are not cut off. Before, there
    is nothing to undo, and Python's own way of ending will do; only SIGTERM is held back until then, as Prefect's way
    is to raise an exception wherever the program happens to be, which may be where none gets out.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._pressed = 0
        self._owners = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._taken: list[signal.Signals] = []

    def __enter__(self) -> Self:
        """See `take`."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever owned the signals has them back."""
        for number in self._taken:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, self._owners[number])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    async def take(self) -> None:
        """Own them from now on. An interrupt that came before is raised here, before anything has begun."""
        loop = asyncio.get_running_loop()
        for number in self._owners:
            try:
                loop.add_signal_handler(number, self._received)
            except (ValueError, RuntimeError):  # not the main thread: whoever owns it handles signals
                break
            self._taken.append(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        await asyncio.sleep(0)

    def end(self, run: Run) -> None:
        """This is the run that they end."""
        self._run = run
        if self._pressed:
            run.interrupt()

    def _received(self) -> None:
        self._pressed += 1
        run = self._run
        if run is None:
            return
        if self._pressed == 1:
            run.interrupt()
            return
        where = workspace_option(run.workspace.root)
        message = f"`qo rollback {run.id}{where}` undoes what was done, `qo resume {run.id}{where}` goes on"
        os.write(2, f"\nstopped at once; {message}\n".encode())
        os._exit(130)

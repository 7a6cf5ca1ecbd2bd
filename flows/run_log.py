"""What a run says, a line an event, in the journal's folder: what `qo logs` shows.

The file only grows, and a run that goes on goes on in it. Knows no Prefect.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from quantum_orchestrator.flows.results import RunEvent


class LogFile:
    """Writes one line an event, those that come together at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: RunEvent) -> None:
        """See attempts.Observer."""
        self.many([event])

    def many(self, events: Sequence[RunEvent]) -> None:
        """See attempts.ObserverOfMany."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        text = "".join(_line(now, event) for event in events)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode(errors="replace"))
        finally:
            os.close(descriptor)


def _line(now: str, event: RunEvent) -> str:
    outcome = f" {event.status}" if event.status else ""
    line = f"{now} {event.kind.value}{outcome} {event.step} {event.message}".rstrip()
    return line.replace("\n", "\\n") + "\n"

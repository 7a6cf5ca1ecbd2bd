"""`--json-stream`: what happens in a run as JSON Lines on standard output, each as soon as it happens.

A thread writes, so that a reader that is slow, or has stopped, holds no run up. One that goes away ends no run either:
nothing more is written, and the exit code says so at the end. Every stream that is read to its end has one last line,
`run_finished`, with what `--json` would have printed.

It knows nothing of commands, of the journal or of Prefect.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from quantum_orchestrator.flows.results import EventKind, RunEvent, error_json

LAST = EventKind.RUN_FINISHED.value
WAITING = "waiting"
"""The event of a run that waits for another one in its workspace: it has not begun."""


class JsonStream:
    """The events of one run on standard output. Use `writing` around the run, and `observe` as its observer."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        """`about` is told with the start of the run."""
        self._about = about
        self._run_id: str | None = None
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_until_the_end, name="JSON stream", daemon=True)
        self._problem: OSError | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Everything that was observed within is written, or lost with its reader, when this ends."""
        self._thread.start()
        try:
            yield
        finally:
            self._lines.put(None)
            self._thread.join()

    def observe(self, event: RunEvent) -> None:
        """Take an event in. Called from several threads."""
        if event.kind is not EventKind.RUN_FINISHED:  # its document comes a little later, and is the last line
            self._lines.put(self._line(event))

    def wait_for(self, holder: object) -> None:
        """Another run is at work in the workspace."""
        self._lines.put(_stamped(WAITING, None) | {"message": f"waiting for another run (process {holder})"})

    def finish(self, document: Mapping[str, Any]) -> None:
        """Write the last line. Raises OSError if that, or a line before it, could not be written."""
        if self._problem is not None:
            raise self._problem
        finish(document)

    def _line(self, event: RunEvent) -> dict[str, Any]:
        kind = event.kind.value
        if event.kind is EventKind.RUN_STARTED:
            self._run_id = event.op
            return _stamped(kind, self._run_id) | {**self._about, "ui_url": event.message or None}
        line = _stamped(kind, self._run_id)
        if event.kind is EventKind.STEP_FINISHED:
            return line | _end_of_step(event)
        whose = {"step": event.step, "op": event.op} if event.step else {}
        return line | whose | ({} if event.kind is EventKind.STEP_STARTED else {"message": event.message})

    def _write_until_the_end(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._problem is None:
                try:
                    _write(line)
                except OSError as problem:
                    self._problem = problem


def finish(document: Mapping[str, Any]) -> None:
    """Write a stream's last line: a run's document, or what takes its place where no run came to an end."""
    line = _stamped(LAST, document.get("run_id")) | {"status": document.get("status"), "run": document}
    _write(line)


def _stamped(kind: str, run_id: str | None) -> dict[str, Any]:
    now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    known = {} if run_id is None else {"run_id": run_id}
    return {"event": kind, "time": now.replace("+00:00", "Z"), **known}


def _end_of_step(event: RunEvent) -> dict[str, Any]:
    """The same as in the run's document, as far as it is known by now."""
    result = event.result
    said: dict[str, Any] = {"step": event.step, "op": event.op, "status": event.status}
    if result is None:
        return said
    reason = {} if result.reason is None else {"reason": result.reason}
    return {
        **said,
        "attempts": result.attempts,
        "duration_s": round(event.duration_s, 4),
        "outputs": result.outputs,
        "error": None if result.error is None else error_json(result.error),
        **reason,
    }


def _write(line: Mapping[str, Any]) -> None:
    """Past Python's buffer, which would try a line that nobody takes once more at the end of the process."""
    text = json.dumps(line, ensure_ascii=False, default=_plain) + "\n"
    rest = memoryview(text.encode("utf-8", "backslashreplace"))
    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody has made it so who shares it
            select.select([], [descriptor], [])


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)

"""Command lines of `qo` that one of its own long-lived processes starts: the MCP server, the watcher, a git hook.

A door does not run a set by itself: it has `qo run` do it, by the warm service where there is one. So each run has a
process of its own, and judging, trust, journal and audit are the command line's. Invariant: a command that has begun
needs nothing of whoever began it. It has its own session, and writes to files without a name, so that it ends in order
when its starter was killed. Nothing is imported from the current folder, whatever lies there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_OWN = [sys.executable, "-P", "-m", "quantum_orchestrator.deployments.qo"]
"""-P, or a `json.py` in the current folder would be imported."""


class Command:
    """A command line of `qo` at work, or at its end."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes] | None) -> None:
        self._process = process
        self._out = out
        self._err = err

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code; None if it has not ended within the time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document that it printed, once it has ended; an error's if it died before."""
        text = _all_of(self._out)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        message = f"`qo` ended with exit code {self._process.returncode} and said no more"
        return {"status": "error", "error": {"type": "QuantumError", "message": message, "hint": self.said[-500:]}}

    @property
    def said(self) -> str:
        """What it wrote to standard error; nothing where that was its starter's."""
        return "" if self._err is None else _all_of(self._err).decode("utf-8", "replace").strip()


def begin(
    arguments: Sequence[str],
    *,
    given: bytes = b"",
    shows: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Command:
    """Start a command line in the current folder. `given` is its standard input; with `shows`, its standard error is
    this process's."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        out = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the command
        err = None if shows else tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [*_OWN, *arguments],
            stdin=stdin,
            stdout=out,
            stderr=err,
            env=dict(os.environ if environment is None else environment),
            start_new_session=True,
        )
    return Command(process, out, err)


def script_line(*arguments: str) -> str:
    """The same command line for a shell script."""
    import shlex

    return shlex.join([str(Path(_OWN[0])), *_OWN[1:], *arguments])


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()

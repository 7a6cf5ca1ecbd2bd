"""Small files of settings that doors share: JSON, private, changed by one process at a time, and never half-written.

A file is read again when it has changed, so that a running service knows a token that was just made, or revoked. What
is in it is the caller's matter.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import StateError


class DoorFile:
    """One file, which holds one JSON object; an empty one where it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._found: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """What is in it now; not to be changed. Raises StateError where that cannot be told: nobody is let in then."""
        try:
            about = self.path.stat()
            stamp = (about.st_ino, about.st_mtime_ns, about.st_size)
            if stamp != self._stamp:
                self._found, self._stamp = _parsed(self.path.read_bytes()), stamp
        except FileNotFoundError:
            self._found, self._stamp = {}, None
        except (OSError, ValueError) as error:
            raise StateError(f"{self.path} cannot be read: {error}", hint="mend it, or move it away") from error
        return self._found

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """What is in it, to be changed: written at the end, durably, unless something is raised."""
        try:
            with self.path.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                value = json.loads(json.dumps(self.read()))
                yield value
                _write(self.path, json.dumps(value, indent=2) + "\n")
        except OSError as error:
            raise StateError(f"{self.path} cannot be written: {error.strerror}") from error


def _parsed(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

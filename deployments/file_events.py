"""What happens to the files of a watched folder, told to Prefect as events, for automations.

`quantum-orchestrator.file.created`, `.changed` and `.deleted`, about `quantum-orchestrator.file.<absolute path>`, with
`{path, folder, name, sha256}` as the payload. What was told last is kept in the state folder, so that a watcher that
was down tells what happened meanwhile. An event that could not be sent is sent with the next look: it may come twice
and is not lost. Of a file that is being written nothing is told before it has been left alone for a moment. Events go
by Prefect's API, which is not imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from quantum_orchestrator.blocks.home import home, private_folder

PREFIX = "quantum-orchestrator.file"
MOST_AT_ONCE = 50
SEND_SECONDS = 10.0
LOOK_SECONDS = 30.0

Seen = dict[str, list[int]]
"""Name -> inode, size and time of the last change of a file."""


class FileEvents:
    """The events of one folder. Files with the suffix `besides` are not told of."""

    def __init__(self, folder: Path, tell: Callable[[str], None], *, settle: float, besides: str | None = None) -> None:
        self.folder = folder
        self._settle = settle
        self._besides = besides
        self._tell = tell
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        self._record = private_folder(home() / "watch") / f"{digest}.json"
        self._told = self._known()
        self._lost = False
        self._due = LOOK_SECONDS

    def look(self) -> float:
        """Tell what has changed since the last time. After how many seconds there may be more, if nothing happens."""
        self._due = LOOK_SECONDS
        now = dict(self._files())
        if now != self._told and self._send(list(self._events(now))):
            self._told = now
            draft = self._record.with_suffix(".new")
            draft.write_text(json.dumps(now))
            draft.replace(self._record)
        return self._due

    def _known(self) -> Seen:
        try:
            found = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _files(self) -> Iterator[tuple[str, list[int]]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                    continue
                if self._besides is not None and entry.name.lower().endswith(self._besides):
                    continue
                try:
                    entry.name.encode()
                    state = entry.stat(follow_symlinks=False)
                except (OSError, UnicodeEncodeError):
                    continue  # it is gone, or has a name that no event can carry
                age = time.time() - state.st_ctime
                if age < self._settle:
                    self._due = min(self._due, self._settle - age + 0.01)
                    if entry.name in self._told:
                        yield entry.name, self._told[entry.name]
                    continue
                yield entry.name, [state.st_ino, state.st_size, state.st_mtime_ns]

    def _events(self, now: Seen) -> Iterator[dict[str, Any]]:
        for name in sorted(now.keys() | self._told.keys()):
            if name not in self._told:
                yield self._event("created", name)
            elif name not in now:
                yield self._event("deleted", name)
            elif now[name] != self._told[name]:
                yield self._event("changed", name)

    def _event(self, what: str, name: str) -> dict[str, Any]:
        path = self.folder / name
        sha256 = None if what == "deleted" else _sha256(path)
        return {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": f"{PREFIX}.{what}",
            "resource": {"prefect.resource.id": f"{PREFIX}.{path}", "prefect.resource.name": name},
            "payload": {"path": str(path), "folder": str(self.folder), "name": name, "sha256": sha256},
        }

    def _send(self, events: list[dict[str, Any]]) -> bool:
        """Whether there is nothing to be sent again: all was sent, or there is no server."""
        import httpx

        from quantum_orchestrator.deployments import prefect_settings, server

        connection = server.find(home())
        if connection is None:
            return True
        try:
            for start in range(0, len(events), MOST_AT_ONCE):
                answer = httpx.post(
                    f"{connection.api_url.rstrip('/')}/events",
                    json=events[start : start + MOST_AT_ONCE],
                    headers=prefect_settings.authorization(),
                    timeout=SEND_SECONDS,
                )
                answer.raise_for_status()
        except httpx.HTTPError as problem:
            if not self._lost:
                self._tell(f"Prefect cannot be told of the files here, and will be later: {problem}")
            self._lost = True
            self._due = 1.0
            return False
        self._lost = False
        return True


def _sha256(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # it is gone by now
    with open(descriptor, "rb") as file:  # noqa: PTH123 - by descriptor
        return hashlib.file_digest(file, "sha256").hexdigest() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None

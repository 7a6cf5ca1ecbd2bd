"""Who began, approved, ended and undid what: one append-only file for all workspaces of a state folder.

`$QO_HOME/audit.jsonl` has an entry a line, and each entry holds the sha256 of the line before it. So nobody can
change, remove or insert one without writing anew all that follow; and whoever keeps the head (the number and digest of
the last line) elsewhere notices that as well, and that the last ones were cut off. Invariant: an entry is durable when
`record` returns, and entries of several processes never mix. What was being written when a machine died is no entry;
the next one takes its place. Knows neither runs nor journals: what an entry tells is its caller's matter.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from quantum_orchestrator.blocks.errors import StateError, UsageError

FILE = "audit.jsonl"
NOTHING_BEFORE = "0" * 64
"""What the first entry holds in the place of a digest."""
_BLOCK = 64 * 1024
_HEAD = re.compile(r"(\d{1,15}):([0-9a-f]{64})")


_actor: ContextVar[str] = ContextVar("actor")


def current_actor() -> str:
    """Who runs and approves: user and host, unless it is done for somebody else."""
    return _actor.get("") or f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}"


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """What happens within is on record as this one's: the name of a token, of a webhook's sender."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


class Event(StrEnum):
    """What entries tell of."""

    RUN_STARTED = "run_started"
    RUN_RESUMED = "run_resumed"
    APPROVED = "approved"
    REJECTED = "rejected"
    RUN_ENDED = "run_ended"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"  # at a door: nothing has run


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `at` is seconds since the epoch, `previous` the sha256 of the line before it."""

    number: int
    at: float
    event: str
    actor: str
    run: str
    workspace: str
    details: Mapping[str, Any]
    previous: str


@dataclass(frozen=True, slots=True)
class Head:
    """The last line of a file: `12:<sha256>`. The file as it was then can be told from every other by it."""

    number: int = 0
    digest: str = NOTHING_BEFORE

    @classmethod
    def parse(cls, text: str) -> Head:
        """Raises UsageError."""
        found = _HEAD.fullmatch(text)
        if found is None:
            raise UsageError(f"{text!r} is no head of an audit", hint="`qo audit verify` prints it, as NUMBER:SHA256")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


@dataclass(slots=True)
class Verified:
    """What became of a check. `faults` are in words, each with the line it was found at."""

    head: Head = field(default_factory=Head)
    faults: list[str] = field(default_factory=list)
    unfinished: bool = False
    """Whether the file ends in what a process that died had begun to write."""


class Audit:
    """The file of one state folder. It is made by the first entry."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def record(self, event: Event, *, actor: str, run: str, workspace: str, **details: Any) -> Entry:
        """Append an entry. StateError where it cannot be written: then what it tells of must not happen."""
        try:
            with self._locked() as file:
                head, end = _last(file)
                entry = Entry(head.number + 1, time.time(), event.value, actor, run, workspace, details, head.digest)
                file.truncate(end)
                file.seek(end)
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StateError(
                f"the audit {self.path} cannot be written: {error.strerror}",
                hint="nothing happens that is not on record: check the space left and the permissions there",
            ) from error
        return entry

    def entries(self) -> Iterator[Entry]:
        """All that can be read, the oldest first."""
        for line in self._lines():
            entry = _parsed(line)
            if entry is not None:
                yield entry

    def verify(self, expected: Head | None = None) -> Verified:
        """Check every line against the one before it, and that `expected`, an earlier head, is among them."""
        found, digest, seen = Verified(), NOTHING_BEFORE, expected is None or expected == Head()
        for number, line in enumerate(self._lines(), 1):
            if not line.endswith(b"\n"):
                found.unfinished = True
                break
            found.faults += _faults(number, _parsed(line), digest)
            digest = hashlib.sha256(line).hexdigest()
            found.head = Head(number, digest)
            seen = seen or found.head == expected
        if not seen:
            found.faults.append(f"the entries do not contain {expected}: they were changed or cut off since")
        return found

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"the audit {self.path} cannot be read: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        new = not self.path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(self.path, flags, 0o600), "r+b") as file:  # noqa: PTH123 - by descriptor
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        if new:
            sync_folder(self.path.parent)


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), separators=(",", ":"), sort_keys=True).encode() + b"\n"


def _parsed(line: bytes) -> Entry | None:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _faults(number: int, entry: Entry | None, digest: str) -> Iterator[str]:
    """What is wrong with a line, given the digest of the one before it."""
    if entry is None:
        yield f"line {number} is no entry"
    elif entry.previous != digest:
        yield f"line {number} does not follow the line before it: one of them was changed, removed or inserted"
    elif entry.number != number:
        yield f"line {number} says that it is entry {entry.number}"


def _last(file: BinaryIO) -> tuple[Head, int]:
    """The head, and where its line ends; what follows was never finished."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start > 0 and tail.count(b"\n") < 2:
        step = min(start, _BLOCK)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
    whole, newline, unfinished = tail.rpartition(b"\n")
    if not newline:
        return Head(), 0
    line = whole.rpartition(b"\n")[2] + newline
    entry = _parsed(line)
    number = entry.number if entry is not None else _count(file)
    return Head(number, hashlib.sha256(line).hexdigest()), size - len(unfinished)


def _count(file: BinaryIO) -> int:
    """How many whole lines there are, where the last of them does not say it."""
    file.seek(0)
    return sum(line.endswith(b"\n") for line in file)


def sync_folder(folder: Path) -> None:
    """Make durable which names are in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

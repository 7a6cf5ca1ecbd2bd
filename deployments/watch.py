"""A watched folder: each set that is dropped there runs once, whoever dies meanwhile.

What becomes of a file `x.json` in the folder:

    x.json                  dropped; taken when it was renamed or closed, or left alone for a moment, and is JSON
    .qo-claim.ID.x.json     claimed, by that rename; ID is the key under which the inbox accepts it once
    done/x.json             its run was committed
    quarantine/x.json       anything else, with the reason beside it in `x.json.reason.json`

So the folder itself says how far each file has come, and the inbox (`deployments/inbox.py`), which fixes the run's id,
whether it was accepted. Invariant: a file is claimed before it is accepted, accepted before it is run, and moved on
only when its run has ended; after a death each of these is done again and changes nothing. Events of the kernel only
wake the watcher: what is there is what a look at the folder finds, so a lost event loses no file. One process watches a
folder at a time. Links, pipes and names that are no text are never opened. Knows neither Prefect nor how runs go.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.audit import Audit, Event, sync_folder
from quantum_orchestrator.blocks.errors import InvalidInput, NeedsAttention, QuantumError, UsageError
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments.dispatcher import run_of
from quantum_orchestrator.deployments.inbox import Accepted, Arrival, Inbox, Item, Once, State
from quantum_orchestrator.flows import reading

CLAIM = ".qo-claim."
DONE, QUARANTINE = "done", "quarantine"
SUFFIX = ".json"
REASON = ".reason.json"
RESCAN_SECONDS = 30.0
TICK_SECONDS = 0.5
"""How often it looks how runs stand."""
PATIENCE_SECONDS = 10.0
"""For how long a file that is no JSON may be one that is still being written."""
_KINDS = {
    stat.S_ISLNK: "a symbolic link",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISDIR: "a folder",
}

Tell = Callable[[str], None]
Judge = Callable[[bytes, Path], None]
"""Raises InvalidInput for what can never run."""


@dataclass(slots=True)
class _Claimed:
    """A file that has been claimed; `item` is its number in the inbox, as soon as it was accepted."""

    name: str
    claim: str
    item: int = 0

    @property
    def file(self) -> str:
        return f"{CLAIM}{self.claim}.{self.name}"


class Watcher:
    """One folder, whose sets run in one workspace. `look` is one look at it, to be called again and again."""

    def __init__(
        self, folder: Path, workspace: Path, inbox: Inbox, judge: Judge, tell: Tell, *, settle: float = 0.5
    ) -> None:
        self.folder = folder
        self.workspace = workspace
        self.source = f"watch:{folder}"
        self._inbox = inbox
        self._judge = judge
        self._tell = tell
        self._settle = settle
        self._closed: set[str] = set()
        self._passed_over: set[str] = set()
        self._claims: deque[_Claimed] = deque()
        self._waits: dict[int, str] = {}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder's own folders, and keep other watchers away. Raises NeedsAttention where there is one."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise NeedsAttention(f"another process watches {self.folder}", hint="one is enough") from error
        try:
            for name in (DONE, QUARANTINE):
                (self.folder / name).mkdir(exist_ok=True)
            yield
        finally:
            os.close(descriptor)

    def complete(self, path: str | bytes) -> None:
        """Somebody has closed or renamed this file: it need not be left alone before it is taken."""
        self._closed.add(Path(os.fsdecode(path)).name)

    @property
    def at_work(self) -> int:
        """How many files are claimed and have not come to their end."""
        return len(self._claims)

    def look(self) -> float:
        """Do what there is to do now. After how many seconds there may be more, if nothing happens."""
        taken, due = self._take()
        if taken:
            self._accept(taken)
        self._move_on()
        return min(due, TICK_SECONDS if self._claims else RESCAN_SECONDS)

    # Taking.

    def _take(self) -> tuple[list[_Claimed], float]:
        """Claim what is complete. Those, with what a watcher before has claimed; and when to look again."""
        known = {each.file for each in self._claims}
        taken, due = [], RESCAN_SECONDS
        found = sorted(self._found(), key=lambda each: (each[1].st_ctime_ns, each[0]))
        for name, state in found:
            if name.startswith(CLAIM):
                if name not in known:
                    taken.append(_parsed(name))
                continue
            waits = self._incomplete(name, state)
            if waits is None:
                claimed = _Claimed(name, uuid.uuid4().hex)
                os.rename(self.folder / name, self.folder / claimed.file)  # noqa: PTH104 - by plain names
                taken.append(claimed)
            elif waits > 0:
                due = min(due, waits)
        if taken:
            sync_folder(self.folder)
        self._closed.clear()
        return taken, due

    def _found(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name in (DONE, QUARANTINE) or (entry.name[0] == "." and not entry.name.startswith(CLAIM)):
                    continue
                if not entry.name.lower().endswith(SUFFIX):
                    self._pass_over(entry.name)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat(follow_symlinks=False)

    def _pass_over(self, name: str) -> None:
        if name not in self._passed_over:
            self._passed_over.add(name)
            self._tell(f"{_shown(name)}: left alone, as its name does not end in {SUFFIX}")

    def _incomplete(self, name: str, state: os.stat_result) -> float | None:
        """None for a file that can be claimed; else when to look at it again, 0 where it was refused."""
        unfit = _unfit(name, state)
        if unfit:
            self._quarantine(name, name, {"reason": unfit})
            return 0
        age = time.time() - state.st_ctime
        if name not in self._closed and age < self._settle:
            return max(self._settle - age, 0.01)
        try:
            reading.parse(_content(self.folder / name), _shown(name))
        except InvalidInput as problem:
            if age < PATIENCE_SECONDS:
                return PATIENCE_SECONDS - age  # it may be half of what it will be
            self._quarantine(name, name, _why(problem))
            return 0
        except OSError:
            return 0.1  # it was replaced or taken away meanwhile
        return None

    # Accepting.

    def _accept(self, taken: Iterable[_Claimed]) -> None:
        """Have the inbox accept what is claimed, in one transaction where it can."""
        begun: list[tuple[_Claimed, Future[Accepted]]] = []
        for each in taken:
            path = self.folder / each.name
            try:
                content = _content(self.folder / each.file)
                self._judge(content, path)
                arrival = Arrival(
                    self.source,
                    self.source,
                    self.workspace,
                    document=content.decode("utf-8-sig"),
                    file=str(path),
                    folder=self.folder,
                )
            except (InvalidInput, OSError, ValueError) as problem:
                self._quarantine(each.file, each.name, _why(problem))
                continue
            begun.append((each, self._inbox.accepting([arrival], Once(self.source, each.claim))))
        for each, future in begun:
            accepted = future.result()
            each.item = accepted.items[0]
            self._claims.append(each)
            if not accepted.repeated:
                self._tell(f"{each.name}: accepted as run {accepted.run_ids[0]}")
        self._claims = deque(sorted(self._claims, key=lambda each: each.item))

    # Moving on.

    def _move_on(self) -> None:
        """Put files whose runs have ended where they belong; runs end in the order in which they were accepted."""
        while self._claims:
            item = self._inbox.item(self._claims[0].item)
            if item is None or item.state is not State.ENDED or not self._settled(item):
                return
            self._put_away(self._claims.popleft(), item)

    def _settled(self, item: Item) -> bool:
        """Whether the run, if there is one, waits for nobody."""
        if item.status not in ("awaiting_approval", "paused", "needs_attention"):
            return True
        with run_of(item) as (_, standing):
            if standing not in ("awaiting_approval", "paused", "needs_attention", "running", "interrupted"):
                return True
        if self._waits.get(item.number) != standing:
            self._waits[item.number] = standing
            words = standing.replace("_", " ")
            self._tell(
                f"{Path(item.file).name}: run {item.run_id} is {words}: `qo status --workspace {item.workspace}`"
            )
        return False

    def _put_away(self, claimed: _Claimed, item: Item) -> None:
        with run_of(item) as (run, standing):
            status, error = standing or item.status, item.error or (run.error if run is not None else None)
        if status == "committed":
            self._move(claimed.file, DONE, claimed.name)
            self._tell(f"{claimed.name}: run {item.run_id} is committed")
            return
        reason = status.replace("_", " ") if run is None else f"run {item.run_id} is {status.replace('_', ' ')}"
        reason += f": {error['message']}" if error else ""
        why = {"reason": reason, "run_id": item.run_id, "status": status, "error": error}
        self._quarantine(claimed.file, claimed.name, why)

    def _quarantine(self, file: str, name: str, why: Mapping[str, Any]) -> None:
        """Put a file aside, with the reason beside it."""
        with contextlib.suppress(FileNotFoundError):
            self._move(file, QUARANTINE, name, why)
            self._tell(f"{_shown(name)}: in {QUARANTINE}/: {why['reason']}")
            details = {"source": self.source, "file": _shown(str(self.folder / name)), "reason": str(why["reason"])}
            Audit(home()).record(
                Event.REFUSED,
                actor=self.source,
                run=str(why.get("run_id", "")),
                workspace=str(self.workspace),
                **details,
            )

    def _move(self, file: str, where: str, name: str, why: Mapping[str, Any] | None = None) -> None:
        """Move a file into one of our folders, under its own name if that is free."""
        folder, stem = self.folder / where, name[: -len(SUFFIX)]
        place = folder / name
        for number in range(2, 1_000_000):
            if not os.path.lexists(place):
                break
            place = folder / f"{stem}.{number}{name[-len(SUFFIX) :]}"
        if why is not None:
            text = json.dumps({"file": _shown(name), **why}, indent=2, ensure_ascii=False, default=str)
            place.with_name(place.name + REASON).write_text(text + "\n", encoding="utf-8")
        os.rename(self.folder / file, place)  # noqa: PTH104


def _parsed(file: str) -> _Claimed:
    claim, _, name = file.removeprefix(CLAIM).partition(".")
    return _Claimed(name, claim)


def _unfit(name: str, state: os.stat_result) -> str:
    """Why something can never be taken, by what it is; empty if it can."""
    if not _is_text(name):
        return "its name is not UTF-8"
    kind = next((words for is_one, words in _KINDS.items() if is_one(state.st_mode)), "")
    if kind:
        return f"it is {kind}, not a file"
    if state.st_size > reading.LARGEST:
        return f"it has {state.st_size} bytes; {reading.LARGEST} are allowed"
    return ""


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _content(path: Path) -> bytes:
    """A file's bytes. Raises OSError for what is no file by now."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - by descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no file")
        return file.read(reading.LARGEST + 1)


def _why(problem: Exception) -> dict[str, Any]:
    faults = getattr(problem, "as_json", None)
    return {"reason": str(problem), **({"errors": faults()} if faults is not None else {})}


# Waking.


@contextlib.contextmanager
def wakened_by(folder: Path, wake: threading.Event, complete: Callable[[str | bytes], None]) -> Iterator[None]:
    """The kernel wakes whoever waits, while this lasts, when something changes in the folder."""
    from watchdog import events
    from watchdog.observers import Observer

    telling = (
        *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileClosedEvent),
        *(events.FileMovedEvent, events.FileDeletedEvent),
    )

    class Handler(events.FileSystemEventHandler):
        def on_any_event(self, event: events.FileSystemEvent) -> None:
            if isinstance(event, events.FileMovedEvent):
                complete(event.dest_path)
            elif isinstance(event, events.FileClosedEvent):
                complete(event.src_path)
            wake.set()

    observer = Observer()
    try:
        observer.schedule(Handler(), str(folder), event_filter=list(telling))
        observer.start()
    except OSError as error:
        raise UsageError(f"{folder} cannot be watched: {error.strerror or error}") from error
    try:
        yield
    finally:
        observer.stop()
        observer.join()


def watch(look: Callable[[], float], wake: threading.Event, tell: Tell) -> None:
    """Look again and again, until the process is told to end. What goes wrong meanwhile may pass."""
    while True:
        wake.clear()
        try:
            seconds = look()
        except (QuantumError, OSError) as problem:
            tell(f"error: {problem}")
            seconds = 1.0
        if wake.wait(seconds):
            time.sleep(0.02)  # for what comes with it

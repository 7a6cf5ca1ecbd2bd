"""The lock of one workspace: who may change it, and whether they still live.

`flock` on a file whose text names the holder. The kernel keeps the lock as long as any process has the *open file
description* that took it, and frees it when the last one ends, however it ends. The holder shares that description
(`descriptor`) with everything that acts for it on the workspace: the supervisors of its scripts and its git commands.

Invariant: nobody gets the lock while something that a dead run has left running could still change the workspace.
Whoever comes next ends that first: `acquire` asks it to end, and kills what has not ended after GRACE. It never touches
the processes of a run that lives: the text names the holder by its process id *and* start time (ids are used again),
and /proc says of every descriptor whether it is one that holds the lock, so that those who wait or look are not meant.
Of a holder that another kernel or process namespace has started nothing can be known: it counts as alive.

This module knows neither the journal nor what runs. The text: process id, start time, boot, process namespace.
"""

# ruff: noqa: PTH208 - names are all that is wanted of /proc
from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantum_orchestrator.blocks.errors import StateError, WorkspaceBusy

LOOK_SECONDS = 0.05
"""`is_held` holds the lock itself while it looks; for so long, that is not taken for a run."""
GRACE = 1.0
"""Seconds that a dead run's processes get to end: git removes its lock files, supervisors end their scripts."""
_PATIENCE = 5.0  # seconds of SIGKILL after which what still lives hangs in the kernel, or is another user's
_POLL = 0.005


class Lock:
    """The lock on one file. Its holder is this object's process; not safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int | None:
        """While it is held: what to let those have open who act for this process. As long as they do, it is held."""
        return self._descriptor

    def acquire(self) -> None:
        """Take it, ending what a dead holder has left running. Raises WorkspaceBusy if another process has it.

        Whoever wants to wait asks again. Raises StateError where the file cannot be written.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._take(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise StateError(
                f"{self._path}: the lock cannot be taken: {error.strerror}",
                hint="make room there, or mend who may write it",
            ) from error
        self._descriptor = descriptor

    def _take(self, descriptor: int) -> None:
        if not _try_until(descriptor, time.monotonic() + LOOK_SECONDS):
            self._succeed(descriptor)
        self._require_its_place(descriptor)
        text = str(_Process.this()).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))

    def _require_its_place(self, descriptor: int) -> None:
        """Raises StateError if the file has gone since it was opened: others would lock another one."""
        try:
            if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                return
        except FileNotFoundError:
            pass  # as if it were another one
        raise StateError(f"{self._path}: was removed while it was waited for", hint="try again")

    def release(self) -> None:
        """Give it back, whoever else has it open; nothing happens if it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """The process that took it last."""
        holder = self._named()
        return str(holder.pid) if holder else "unknown"

    def is_held(self) -> bool:
        """Whether a process that lives holds it now; not what a dead one has left running."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._named()
            return holder is None or holder.may_live()
        finally:
            os.close(descriptor)
        return False

    def _named(self) -> _Process | None:
        """Whom the text names; None if it is not one that `acquire` has written to its end."""
        words = self._path.read_text(errors="replace").split()
        if len(words) != 4 or not (words[0].isdecimal() and words[1].isdecimal()):
            return None
        return _Process(int(words[0]), int(words[1]), words[2], words[3])

    def _succeed(self, descriptor: int) -> None:
        """Take over from a holder that has died. Raises WorkspaceBusy if it lives, or what it left does not end."""
        for pid in self._left_by(self._dead()):
            _send(pid, signal.SIGTERM)
        if _try_until(descriptor, time.monotonic() + GRACE):
            return
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            _kill(self._left_by(self._dead()))
            if _try_until(descriptor, time.monotonic() + LOOK_SECONDS):
                return
        dead = self._dead()
        left = ", ".join(map(str, sorted(self._left_by(dead)))) or "unknown"
        raise WorkspaceBusy(
            f"a run (process {dead.pid}) died, and what it left running cannot be ended: process {left}",
            hint="it hangs in the kernel or belongs to another user; end it by hand",
        )

    def _dead(self) -> _Process:
        """The holder, which has died. Raises WorkspaceBusy if it may live."""
        holder = self._named()
        if holder is None or holder.may_live():
            raise WorkspaceBusy(
                f"another run (process {holder.pid if holder else 'unknown'}) holds this workspace",
                hint="wait for it (`qo status`), end it (`qo cancel`), or leave out --no-wait",
            )
        return holder

    def _left_by(self, dead: _Process) -> set[int]:
        """The processes that hold the lock which the dead one took. Empty as soon as somebody else has it."""
        return {pid for pid in _process_ids() if pid != os.getpid() and _holds(pid, self._path, taker=dead.pid)}


@dataclass(frozen=True, slots=True)
class _Process:
    """One process, told from all others that had or will have its id."""

    pid: int
    started: int
    boot: str
    namespace: str

    @classmethod
    def this(cls) -> _Process:
        _, started = _state(os.getpid())
        return cls(os.getpid(), started, *_world())

    def __str__(self) -> str:
        return f"{self.pid} {self.started} {self.boot} {self.namespace}"

    def may_live(self) -> bool:
        """False only if it has ended for certain."""
        if (self.boot, self.namespace) != _world():
            return True
        state, started = _state(self.pid)
        return started == self.started and state not in "ZX"


def _world() -> tuple[str, str]:
    """What makes process ids comparable: the boot, and the process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path, but a name such as pid:[4026531836]


def _state(pid: int) -> tuple[str, int]:
    """State and start time, in ticks since the boot; X and -1 for no such process."""
    fields = _fields(pid)
    return (fields[0].decode(), int(fields[19])) if fields else ("X", -1)


def _fields(pid: int) -> list[bytes]:
    """What proc_pid_stat(5) says of a process, from its third field on; nothing once it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return status.rpartition(b") ")[2].split()  # the second field, a name, may hold anything


def _try_until(descriptor: int, deadline: float) -> bool:
    """Take the lock, asking until the deadline. Whether it was got."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        else:
            return True


def _process_ids() -> Iterator[int]:
    return map(int, filter(str.isdecimal, os.listdir("/proc")))


def _holds(pid: int, file: Path, *, taker: int) -> bool:
    """Whether a process has a descriptor of this file through which `taker` took the lock.

    Its `fdinfo` has a line for each lock that was taken through the same open file description: see proc_pid_fdinfo(5).
    """
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            descriptor = Path(f"/proc/{pid}/fd/{number}")
            if descriptor.readlink().name == file.name and file.samefile(descriptor):
                told = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
                locks = [line.split() for line in told if line.startswith("lock:")]
                if any(lock[2:6] == ["FLOCK", "ADVISORY", "WRITE", str(taker)] for lock in locks):
                    return True
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # it ended meanwhile, or is another user's, who has nothing of ours open
    return False


def _kill(pids: set[int]) -> None:
    """SIGKILL these processes and all below them, which are stopped first: what is frozen cannot start another."""
    frozen: set[int] = set()
    while found := _with_descendants(pids) - frozen:
        for pid in found:
            _send(pid, signal.SIGSTOP)
        frozen |= found
    for pid in frozen:
        _send(pid, signal.SIGKILL)


def _with_descendants(pids: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid in _process_ids():
        if fields := _fields(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    found = list(pids)
    for pid in found:  # grows while it is walked
        found.extend(child for child in children.get(pid, []) if child not in pids)
    return set(found)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it ended meanwhile, or is another user's: the caller looks at the lock again

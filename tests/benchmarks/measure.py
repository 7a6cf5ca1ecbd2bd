"""How long a command takes, how much processor time and memory: of its processes, and of services it makes work.

What works for a command without being its child (our Prefect server, the warm service and its forks) is known by the
QO_HOME in its environment. Linux only, by /proc.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_SAMPLING = (0.01, 0.2)  # seconds between two looks at the memory: at first, and at most
_QUIET = 0.06  # share of a processor below which services count as idle


@dataclass(frozen=True)
class Measured:
    """One run of a command; `seconds` is the limit if it was stopped there."""

    seconds: float
    processor: float  # of the command and the children it waited for
    code: int | None  # None: stopped at the limit
    said: str  # the end of its output
    first_line: float | None = None  # seconds until it said something; only of what runs on a terminal
    memory: float = 0.0  # MB, the most that all processes had together; only if sampled

    @property
    def fault(self) -> str | None:
        """Why it does not count."""
        if self.code is None:
            return "stopped at the time limit"
        last = self.said.strip().splitlines()[-1:] or [""]
        return f"exit code {self.code}: {last[0][:80]}" if self.code else None


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    limit: float,
    *,
    terminal: bool = False,
    memory_of: Path | None = None,
) -> Measured:
    """Run it to its end, or to the limit. `memory_of`: the QO_HOME whose processes count for the memory, too."""
    log = folder.parent / f"{folder.name}.log"
    ours, theirs = os.openpty() if terminal else (None, os.open(log, os.O_WRONLY | os.O_CREAT, 0o600))
    memory = _Memory(memory_of)
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    stopped = True
    with memory.of(process.pid):
        try:
            first, said = _listened(ours, began, limit) if ours is not None else (None, "")
            stopped = not _ended(process, max(0.0, began + limit - time.monotonic()))
        finally:  # whoever interrupts us as well
            if stopped:
                _kill(_below([process.pid]))  # some have left the process group
            _, status, usage = os.wait4(process.pid, 0)
            took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    said = said or log.read_text(errors="replace")[-2000:]
    code = None if stopped else process.returncode
    seconds = limit if stopped else took
    return Measured(seconds, usage.ru_utime + usage.ru_stime, code, said, first, memory.most)


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ended(process: subprocess.Popen[bytes], limit: float) -> bool:
    descriptor = os.pidfd_open(process.pid)
    try:
        return bool(select.select([descriptor], [], [], limit)[0])
    finally:
        os.close(descriptor)


def _listened(terminal: int, began: float, limit: float) -> tuple[float | None, str]:
    """Until all have hung up: when the first line was there, and the end of all."""
    first, said = None, b""
    with contextlib.suppress(OSError):  # a terminal that all have left
        while select.select([terminal], [], [], max(0.0, began + limit - time.monotonic()))[0]:
            chunk = os.read(terminal, 65536)
            if not chunk:
                break
            said = (said + chunk)[-4000:]
            if first is None and said.strip():
                first = time.monotonic() - began
    os.close(terminal)
    return first, said.decode(errors="replace")


class _Memory:
    """The most memory that a command's processes have had together, each page counted once (PSS).

    Those of its QO_HOME count as well, but for what was there before it began: a Prefect server is not the run's.
    """

    def __init__(self, home: Path | None) -> None:
        self.most = 0.0
        self._home = home
        self._without = set(serving(home)) if home is not None else set()
        self._done = threading.Event()

    @contextlib.contextmanager
    def of(self, pid: int) -> Iterator[None]:
        if self._home is None:
            yield
            return
        thread = threading.Thread(target=self._watch, args=(pid, self._home))
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self, pid: int, home: Path) -> None:
        began = time.monotonic()
        while True:
            pids = (_below([pid]) | set(serving(home))) - self._without
            self.most = max(self.most, sum(map(_proportional, pids)) / 1000)
            least, most = _SAMPLING
            if self._done.wait(min(most, max(least, (time.monotonic() - began) / 20))):
                return


def _proportional(pid: int) -> int:
    """KB."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
    return 0


def _below(roots: Collection[int]) -> set[int]:
    """The processes and all that descend from them."""
    parents = {pid: int(fields[1]) for pid, fields in _statistics()}
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _statistics() -> Iterator[tuple[int, Sequence[str]]]:
    """The fields of /proc/PID/stat after the name, of all processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()


def serving(home: Path) -> Sequence[int]:
    """The processes with this QO_HOME in their environment, but for this one and its own."""
    entry = f"QO_HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(folder.name) != os.getpid() and entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def spent(home: Path) -> float:
    """Seconds of processor time that they, and what they have waited for, have used up to now."""
    pids = set(serving(home))
    return sum(sum(map(int, fields[11:15])) for pid, fields in _statistics() if pid in pids) * _TICK


def settled(home: Path, limit: float = 30.0) -> float:
    """Wait until they have nothing more to do (a Prefect server works on for a while); what they have spent by then."""
    until, before = time.monotonic() + limit, spent(home)
    while time.monotonic() < until:
        time.sleep(0.5)
        now = spent(home)
        if now - before < _QUIET * 0.5:
            break
        before = now
    return spent(home)

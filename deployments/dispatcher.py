"""Carries out what doors have accepted: each item once, in the order of its workspace, whoever dies meanwhile.

Several processes may dispatch from one inbox; a lock a workspace, which the kernel frees on death, lets one of them
work there at a time. Each item is handed to a carrier, as a rule a process `qo inbox run N`: the same code as the
command line, with a session of its own, so that it outlives us. Whatever becomes of that process, the journal says
afterwards how the run stands, and only that is believed. So a carrier may be started any number of times: the run's id
was fixed when it was accepted, and the run is begun under the workspace's lock if there is none of that id.

Knows neither HTTP nor Prefect.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.home import home, private_folder, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.deployments.inbox import Inbox, Item, Kind, State

LOOK_SECONDS = 0.5
"""How often it looks for what other processes have accepted."""
MOST_LANES = 4
"""Workspaces that are worked in at once."""
MOST_ATTEMPTS = 5
"""So often the process of an item may die before it is left as it is."""
BLOCKED_SECONDS = 1.0
_NOTE_LENGTH = 2_000

Carrier = Callable[[Item], str]
"""Sees an item to an end, and returns when it can do no more; what it said, for people. Must not raise."""


class Dispatcher:
    """Works through an inbox, in threads of its own, between `start` and `stop`."""

    def __init__(self, inbox: Inbox, carrier: Carrier | None = None) -> None:
        self._inbox = inbox
        self._carrier = carrier or in_a_process
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._lanes: dict[Path, threading.Thread] = {}
        self._thread = threading.Thread(target=self._look_out, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Something was accepted. Safe in every thread."""
        self._woken.set()

    def stop(self, seconds: float = 5.0) -> None:
        """Begin nothing more. What is at work goes on, and whoever dispatches next sees to its end."""
        self._ending.set()
        self._woken.set()
        self._thread.join(seconds)

    def _look_out(self) -> None:
        while not self._ending.is_set():
            self._woken.clear()
            self._lanes = {where: lane for where, lane in self._lanes.items() if lane.is_alive()}
            try:
                for workspace in self._inbox.workspaces():
                    if workspace not in self._lanes and len(self._lanes) < MOST_LANES:
                        self._open_lane(workspace)
            except QuantumError as problem:  # the disk is full, or somebody writes: it may pass
                _tell(problem.message)
            self._woken.wait(LOOK_SECONDS)

    def _open_lane(self, workspace: Path) -> None:
        lane = threading.Thread(target=self._work_in, args=(workspace,), name=f"dispatch {workspace}", daemon=True)
        self._lanes[workspace] = lane
        lane.start()

    def _work_in(self, workspace: Path) -> None:
        """Everything that is due in one workspace."""
        try:
            with _only_here(workspace) as mine:
                while mine and not self._ending.is_set():
                    item = self._inbox.next(workspace)
                    if item is None or item.due > time.time():
                        return
                    self._see_to(item)
        except (QuantumError, OSError) as problem:
            _tell(f"{workspace}: {problem}")
            self._ending.wait(LOOK_SECONDS)

    # One item.

    def _see_to(self, item: Item) -> None:
        waits = _waits_for(item)
        if waits:
            self._inbox.postpone(item.number, waits, BLOCKED_SECONDS)
            return
        if item.attempts >= MOST_ATTEMPTS:
            self._give_up(item)
            return
        if self._has_ended(item):  # when whoever began it died before it could say so
            return
        self._inbox.begin(item.number)
        said = self._carrier(item)
        now = self._inbox.item(item.number)
        if now is None or now.state is not State.STARTED or self._has_ended(now):
            return
        if not self._ending.is_set():
            self._inbox.try_again(item.number, said[-_NOTE_LENGTH:], min(0.2 * 2**now.attempts, 10))

    def _has_ended(self, item: Item) -> bool:
        """Whether the run of an item has come to an end for now; then so has the item."""
        if item.state is not State.STARTED or item.kind is Kind.ROLLBACK:
            return False
        with run_of(item) as (run, standing):
            if run is None or standing in ("running", "interrupted"):
                return False
            if item.kind is Kind.RESUME and [run.status, run.ended_at] == item.options.get("was"):
                return False
            return self._inbox.end(item.number, standing, run.error)

    def _give_up(self, item: Item) -> None:
        with run_of(item) as (run, standing):
            what = "before it had begun" if run is None else "over it"
            hint = f"`qo status --workspace {item.workspace}` says how the workspace stands"
            error = {"type": "StateError", "message": f"its process died {what} {item.attempts} times", "hint": hint}
            if item.note:
                error["message"] += f": {item.note}"
            self._inbox.end(item.number, "failed" if run is None else standing, error)


@contextlib.contextmanager
def run_of(item: Item) -> Iterator[tuple[RunRecord | None, str]]:
    """An item's run, as the journal has it, and how it stands."""
    with contextlib.closing(Journal(workspace_home(item.workspace))) as journal:
        run = journal.run(item.run_id)
        yield run, "" if run is None else _standing(journal, run)


def _standing(journal: Journal, run: RunRecord) -> str:
    died = run.status == "running" and not journal.lock.is_held()
    if died and (again := journal.run(run.id)) is not None and again.status != "running":
        return again.status  # it has ended between the two looks
    return "interrupted" if died else run.status


def _waits_for(item: Item) -> str:
    """Which other run must be settled first; empty if none."""
    if item.kind is not Kind.RUN:
        return ""
    with contextlib.closing(Journal(workspace_home(item.workspace))) as journal:
        run = journal.unfinished()
        if run is None or run.id == item.run_id:
            return ""
        standing = _standing(journal, run)
    if standing == "running":
        return ""  # the carrier waits for it, and is there at once
    return f"waits for run {run.id}, which is {standing.replace('_', ' ')}"


@contextlib.contextmanager
def _only_here(workspace: Path) -> Iterator[bool]:
    """Whether this is the one process that dispatches in a workspace, for as long as it lasts."""
    folder = private_folder(home() / "dispatch")
    name = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:16]
    with (folder / name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _tell(message: str) -> None:
    sys.stderr.write(f"dispatcher: {message}\n")
    sys.stderr.flush()


# The ordinary carrier.


def in_a_process(item: Item) -> str:
    """`qo inbox run N`, which the warm service carries out where there is one."""
    command = [sys.executable, "-m", "quantum_orchestrator.deployments.qo", "inbox", "run", str(item.number), "-q"]
    try:
        with _log(item.number) as log:
            process = subprocess.Popen(
                command,
                cwd=home(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
            process.wait()
            log.seek(0)
            return log.read().decode(errors="replace").strip()
    except OSError as problem:
        return f"no process can be started: {problem}"


@contextlib.contextmanager
def _log(number: int) -> Iterator[IO[bytes]]:
    """What a process may write to though we die: no pipe, which would break."""
    path = private_folder(home() / "dispatch") / f"item-{number}.log"
    with path.open("w+b") as file:
        yield file
    path.unlink(missing_ok=True)

"""Controls: each takes one barrier away and shows that cases then find the promise broken.

A proof that cannot fail proves nothing. A control is *caught* when at least one case with the barrier removed breaks;
those of a power cut need root and loop devices, and are left out where there are none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.lock import Lock
from quantum_orchestrator.blocks.tree import Change
from quantum_orchestrator.blocks.workspace import Workspace
from tests.crash.cases import Bench, Violation
from tests.crash.orphans import orphaned_git
from tests.crash.power import Cuts, can_cut
from tests.crash.scenarios import PLAIN_WRITE, POWER, SCRIPT, Scenario


@dataclass(frozen=True)
class Control:
    """A barrier, how to do without it, and the cases that must notice."""

    barrier: str
    without: Callable[[], AbstractContextManager[Any]]
    cases: Callable[[Path], Iterator[list[Violation]]]
    needs_disks: bool = False

    def is_possible(self) -> bool:
        """Whether it can be tried here."""
        return can_cut() or not self.needs_disks

    def caught_by(self, folder: Path) -> str | None:
        """The first case that notices, or None."""
        with self.without():
            return next((each.what for violations in self.cases(folder) for each in violations), None)


# Doing without.


@contextlib.contextmanager
def intent_after_effect() -> Iterator[None]:
    """What a step is about to do is written down once it is done."""
    intend_all, record_steps = Journal.intend_all, Journal.record_steps
    late: list[Callable[[], None]] = []

    def intend_later(
        self: Journal,
        run: str,
        changes_of: Sequence[tuple[str, Sequence[Change]]],
        content_of: Callable[[str], bytes | None],
    ) -> None:
        entries = [entry for _, changes in changes_of for each in changes for entry in (each.before, each.after)]
        contents = {entry.sha256: content_of(entry.sha256) for entry in entries if entry is not None and entry.sha256}
        late.append(lambda: intend_all(self, run, changes_of, contents.get))

    def record_after(self: Journal, *arguments: Any, **keywords: Any) -> None:
        while late:
            late.pop(0)()
        record_steps(self, *arguments, **keywords)

    with (
        mock.patch.object(Journal, "intend_all", intend_later),
        mock.patch.object(Journal, "record_steps", record_after),
    ):
        yield


@contextlib.contextmanager
def capture_after_script() -> Iterator[None]:
    """What a script may change is made durable once it has run."""
    capture, finish = Journal.capture, Workspace.finish
    late: list[Callable[[], None]] = []

    def finish_after(self: Workspace, *arguments: Any) -> Any:
        while late:
            late.pop(0)()
        return finish(self, *arguments)

    def capture_later(self: Journal, *arguments: Any, **keywords: Any) -> None:
        late.append(lambda: capture(self, *arguments, **keywords))

    with mock.patch.object(Journal, "capture", capture_later), mock.patch.object(Workspace, "finish", finish_after):
        yield


def no_lock() -> AbstractContextManager[Any]:
    """Anybody may have a workspace at any time."""
    return mock.patch.object(fcntl, "flock", return_value=None)


def lock_kept_to_itself() -> AbstractContextManager[Any]:
    """The lock comes free with its holder's death, whatever that has left running."""
    return mock.patch.object(Lock, "descriptor", None)


def no_sync_of_the_workspace() -> AbstractContextManager[Any]:
    """A run is acknowledged while its files are in memory alone."""
    return mock.patch.object(ConfinedFolder, "syncfs", return_value=None)


@contextlib.contextmanager
def no_sync_of_the_journal() -> Iterator[None]:
    """The journal's rows are in memory alone."""
    connect = sqlite3.connect

    def careless(*arguments: Any, **keywords: Any) -> Any:
        class Careless(keywords.get("factory", sqlite3.Connection)):  # type: ignore[misc]
            def execute(self, statement: str, *values: Any) -> Any:
                return super().execute(re.sub(r"synchronous\s*=\s*\w+", "synchronous=OFF", statement), *values)

        return connect(*arguments, **{**keywords, "factory": Careless})

    with mock.patch.object(sqlite3, "connect", careless):
        yield


@contextlib.contextmanager
def no_sync_of_contents() -> Iterator[None]:
    """A large before-image is in memory alone when the row that names it is durable."""
    fsync = os.fsync

    def careless(descriptor: int) -> None:
        if "/contents" not in os.readlink(f"/proc/self/fd/{descriptor}"):
            fsync(descriptor)

    with mock.patch.object(os, "fsync", careless):
        yield


# The cases.


def kills_of(scenario: Scenario) -> Callable[[Path], Iterator[list[Violation]]]:
    """Kills at the scenario's points, undone."""

    def cases(folder: Path) -> Iterator[list[Violation]]:
        bench = Bench(scenario, folder)
        return (bench.case(point, "rollback") for point in bench.points[::-5])

    return cases


def intrusions(folder: Path) -> Iterator[list[Violation]]:
    """Another process undoes a run that is at work."""
    bench = Bench(PLAIN_WRITE, folder)
    return (bench.intrusion(point) for point in bench.points if point.startswith("rename"))


def orphans(folder: Path) -> Iterator[list[Violation]]:
    """A git command outlives its engine."""
    yield orphaned_git(folder)


def cuts(*, at_the_end: bool) -> Callable[[Path], Iterator[list[Violation]]]:
    """Power cuts after the run's end, or before it."""

    def cases(folder: Path) -> Iterator[list[Violation]]:
        trials = Cuts(POWER, folder)
        if at_the_end:
            return iter([trials.at_the_end()])
        return (trials.at(point) for point in trials.bench.points[:-12:-1])

    return cases


CONTROLS = (
    Control("INTENT is durable before its effect", intent_after_effect, kills_of(PLAIN_WRITE)),
    Control("a capture is durable before its script", capture_after_script, kills_of(SCRIPT)),
    Control("one run at a time holds a workspace", no_lock, intrusions),
    Control("what a dead run left running holds the lock too", lock_kept_to_itself, orphans),
    Control("journal: synchronous=FULL", no_sync_of_the_journal, cuts(at_the_end=True), needs_disks=True),
    Control("workspace: syncfs before COMMIT", no_sync_of_the_workspace, cuts(at_the_end=True), needs_disks=True),
    Control("large before-images: fsync", no_sync_of_contents, cuts(at_the_end=False), needs_disks=True),
)

"""One case: run a set in a process that is killed at a point, recover, and look at what is left.

Whatever is killed is a process of its own. A recovery that is let come to its end happens in the process that looks,
as a fork costs more than all the rest of a case.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import gc
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from quantum_orchestrator.blocks.errors import QuantumError, WorkspaceBusy
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.model import NO_MODEL
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.document import InstructionSet
from quantum_orchestrator.flows.engine import Run, RunSettings
from quantum_orchestrator.flows.instruction_set import OnFailure, RollbackTo, load_object
from quantum_orchestrator.flows.recover import rollback
from quantum_orchestrator.tasks import registry
from tests.crash.points import At, fail_at, kill_at, watch
from tests.crash.scenarios import Scenario, git
from tests.model_double import DOUBLE, runs_asking
from tests.plain_runner import PlainRunner

RUN = "r1"
KILLED = -signal.SIGKILL
POLICY = Policy(git_protocols=("file",))
ENDED = ("committed", "rolled_back", "kept")
_PR_SET_CHILD_SUBREAPER = 36


@functools.cache
def document_of(scenario: Scenario) -> InstructionSet:
    """The scenario's set."""
    return load_object({"name": "crash", "instructions": list(scenario.instructions), "order": scenario.order})


def run_set(root: Path, scenario: Scenario, runner: PlainRunner | None = None) -> str:
    """Run the scenario's set, or go on with it; the run's status."""
    document = document_of(scenario)
    journal = Journal(workspace_home(root))
    try:
        journal.lock.acquire()
        workspace = Workspace(root, journal, POLICY.snapshot_exclude)
        try:
            return _run(document, workspace, scenario, runner or PlainRunner())
        finally:
            workspace.close()
    finally:
        journal.lock.release()
        journal.close()


def _run(document: InstructionSet, workspace: Workspace, scenario: Scenario, runner: PlainRunner) -> str:
    journal = workspace.journal
    record = journal.run(RUN)
    if record is None:
        written = document.model_dump(by_alias=True, mode="json", exclude_unset=True)
        record = RunRecord(RUN, "crash", "running", written, {}, {}, time.time(), pid=os.getpid())
        journal.begin(record)
    on_failure = RollbackTo(rollback_to=scenario.rollback_to) if scenario.rollback_to else OnFailure.ROLLBACK
    settings = RunSettings(
        parallel=scenario.parallel,
        on_failure=on_failure,
        batch_from=scenario.batch_from,
        models=lambda _block: DOUBLE if scenario.model else NO_MODEL,
    )
    policy = replace(POLICY, sandbox_prefer=scenario.prefer)
    with runs_asking(scenario.model) if scenario.model else contextlib.nullcontext():
        run = Run(record, document, workspace, settings, policy=policy, runner=runner)
        return str(asyncio.run(run.execute()).status.value)


def status_of(root: Path) -> str:
    """How the journal says that the run stands; `absent` if it had not begun."""
    with contextlib.closing(Journal(workspace_home(root))) as journal:
        record = journal.run(RUN)
        return record.status if record else "absent"


def recover(root: Path, scenario: Scenario, way: str) -> str | None:
    """Bring the run to an end; what went wrong, if anything did."""
    status = status_of(root)
    try:
        if way == "resume" and status not in ENDED:
            run_set(root, scenario)
        if way == "rollback" and status not in (*ENDED, "absent"):
            rollback(root, None)
    except QuantumError as error:
        return f"{error.message} ({error.hint})"
    return None


# Processes.


def prepare_forks() -> None:
    """Load everything once, before any child is forked, and let no child's collector touch what they share.

    Makes this process the one to whom all that its dead children leave running falls; see `left_running`.
    """
    registry.every()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()


def fork(act: Callable[[], Any], at: At | None = None) -> tuple[int, int]:
    """Begin it in a process of its own: its id, and a descriptor to read from what it returned, as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 1
    try:
        gc.disable()
        with watch(at) if at else contextlib.nullcontext():
            result = act()
        os.write(writing, json.dumps(result).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def in_child(act: Callable[[], Any], at: At | None = None) -> tuple[int, Any]:
    """Do it in a process of its own: exit status (negative: a signal), and what it returned."""
    pid, reading = fork(act, at)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(content) if content else None


def points_of(act: Callable[[], Any], *, watched: bool = True) -> list[str]:
    """The points that an undisturbed run reaches, in order; none if nobody watches it."""
    seen: list[str] = []

    def noting() -> list[str]:
        with watch(seen.append) if watched else contextlib.nullcontext():
            act()
        return seen

    code, points = in_child(noting)
    if code != 0:
        raise AssertionError("the undisturbed run failed")
    return list(points)


def left_running(known: Collection[int], within: float = 2.0) -> list[str]:
    """The command lines of processes that dead children have left, and that do not end within so many seconds.

    `known` are those that were there before; see `children`.
    """
    deadline = time.monotonic() + within
    while left := [pid for pid in children() if pid not in known]:
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in left]
        time.sleep(0.002)
    return []


def children() -> list[int]:
    """The processes that have this one as their parent."""
    return list(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


# What is there.


def observe(root: Path) -> dict[str, Any]:
    """Everything that a user could see: files with modes and links, and what git says of its own."""
    found: dict[str, Any] = {name: what for name, what in snapshot(root).items() if ".git" not in name.split("/")}
    for repository in sorted(root.rglob(".git")):
        found[str(repository.relative_to(root))] = _observe_repository(repository.parent)
    return found


def snapshot(root: Path) -> dict[str, str]:
    """Every file, folder and link byte by byte, git's own too."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what = f"link to {path.readlink()}"
        elif stat.S_ISDIR(status.st_mode):
            what = f"folder {stat.S_IMODE(status.st_mode):o}"
        else:
            what = f"file {stat.S_IMODE(status.st_mode):o} {path.read_bytes()!r}"
        found[str(path.relative_to(root))] = what
    return found


def _observe_repository(root: Path) -> list[str]:
    """Refs by the trees and messages that they lead to (ids hold times), HEAD, index, and a check of all objects."""
    refs = git(root, "for-each-ref", "--format=%(refname) %(tree) %(contents:subject)")
    history = git(root, "log", "--all", "--topo-order", "--format=%T %s") if refs else ""
    head = (root / ".git" / "HEAD").read_text()
    leftovers = [str(path.relative_to(root)) for path in (root / ".git").rglob("*.lock")]
    git(root, "fsck", "--strict", "--no-dangling")
    return [head, refs, history, git(root, "ls-files", "-s"), *leftovers]


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    case: str
    what: str


class Bench:
    """Folders for cases, and what the scenario's workspace is before and after an undisturbed run."""

    def __init__(self, scenario: Scenario, folder: Path, *, with_points: bool = True) -> None:
        """`with_points` has the undisturbed run's points noted; without, its `seconds` are those of a run as it is."""
        self.scenario = scenario
        self.folder = folder
        self._number = 0
        self._start = folder / "start"
        (self._start / "workspace").mkdir(parents=True)
        scenario.prepare(self._start / "workspace")
        with self.workspace() as root:
            self.exactly_before = snapshot(root)
            self.before = observe(root)
            began = time.monotonic()
            self.points = points_of(lambda: run_set(root, scenario), watched=with_points)
            self.seconds = time.monotonic() - began
            self.after = observe(root)
            self.outside = scenario.outside(root) if scenario.outside else None
            status = status_of(root)
        if status != scenario.ends:
            raise AssertionError(f"{scenario.name}: the undisturbed run is {status}")

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A fresh copy of the start, with a state folder of its own."""
        self._number += 1
        place = self.folder / str(self._number)
        root = place / "workspace"
        shutil.copytree(self._start, place, symlinks=True)
        os.environ["QO_HOME"] = str(place / "state")
        Journal(workspace_home(root)).close()
        (place / "scratch").mkdir()
        with mock.patch.object(tempfile, "tempdir", str(place / "scratch")):  # what the killed leave goes with the rest
            yield root
        shutil.rmtree(place, ignore_errors=True)

    def case(self, point: str, way: str, again: str | None = None) -> list[Violation]:
        """Kill at the point; recover that `way` (`rollback` or `resume`), being killed once more at `again`."""
        name = f"{self.scenario.name}: {way} after kill at {point}" + (f", killed again at {again}" if again else "")
        with self.workspace() as root:
            code, _ = in_child(lambda: run_set(root, self.scenario), kill_at(point))
            if code not in (KILLED, 0):
                return [Violation(name, f"the run exited with {code}")]
            if again:
                in_child(lambda: recover(root, self.scenario, way), kill_at(again))
            return self.verdict(name, root, way)

    def fault(self, point: str, number: int) -> list[Violation]:
        """Let the call at the point fail with an error of the system: a clear error, and all or nothing."""
        name = f"{self.scenario.name}: {errno.errorcode[number]} at {point}"

        def attempt() -> str:
            try:
                return run_set(root, self.scenario)
            except QuantumError as error:
                return f"{error.message} ({error.hint})"

        with self.workspace() as root:
            code, _ = in_child(attempt, fail_at(point, number))
            if code != 0:
                return [Violation(name, f"the run exited with {code}: an error that nobody explains")]
            return self.verdict(name, root, "rollback")

    def intrusion(self, point: str) -> list[Violation]:
        """Stop the run at the point and have another process undo it there: that is refused, and the run goes on."""
        name = f"{self.scenario.name}: rollback by another while it is at {point}"
        with self.workspace() as root:
            pid, reading = fork(lambda: run_set(root, self.scenario), _stop_at(point))
            os.waitpid(pid, os.WUNTRACED)
            _, refused = in_child(lambda: _is_refused(root))
            os.kill(pid, signal.SIGCONT)
            os.close(reading)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            found = [] if refused else [Violation(name, "nobody kept it from that")]
            found += [Violation(name, f"the run exited with {code}")] if code else []
            return found + self.verdict(name, root, "resume")

    def verdict(self, name: str, root: Path, way: str) -> list[Violation]:
        """Recover, and hold what is there against what should be."""
        try:
            problem = recover(root, self.scenario, way)
            found = list(self._judge(root, way))
        except Exception as error:  # whatever it is, it is what the case has found
            return [Violation(name, f"recovery: {type(error).__name__}: {error}")]
        return [Violation(name, what) for what in ([problem] if problem else []) + found]

    def _judge(self, root: Path, way: str) -> Iterator[str]:
        status = status_of(root)
        if status in ("rolled_back", "absent"):
            if snapshot(root) != self.exactly_before and (found := observe(root)) != self.before:
                yield f"{status}, but {_difference(self.before, found)}"
        elif status != self.scenario.ends:
            yield f"the run is {status}"
        elif (found := observe(root)) != self.after:
            yield f"{status}, but {_difference(self.after, found)}"
        elif self.scenario.outside and (elsewhere := self.scenario.outside(root)) != self.outside:
            yield f"{status}, but outside there is {elsewhere!r}, not {self.outside!r}"
        if way == "resume" and status != self.scenario.ends:
            yield f"resumed, but {status}"


def _stop_at(chosen: str) -> At:
    def at(point: str) -> None:
        if point == chosen:
            os.kill(os.getpid(), signal.SIGSTOP)

    return at


def _is_refused(root: Path) -> bool:
    try:
        rollback(root, None)
    except WorkspaceBusy:
        return True
    except QuantumError:
        return False
    return False


def _difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    names = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    return "; ".join(f"{name} is {found.get(name)!r:.200}, not {wanted.get(name)!r:.200}" for name in names[:3])

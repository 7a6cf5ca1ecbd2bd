"""One case: run a set in a process that is killed at a point, recover in another, and look at what is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.engine import Attempt, Run, RunSettings
from quantum_orchestrator.flows.instruction_set import OnFailure, load_object
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.recover import rollback
from quantum_orchestrator.tasks import registry
from tests.crash.points import At, fail_at, kill_at, watch
from tests.crash.scenarios import Scenario, git

registry.every()  # once, before any child is forked

RUN = "r1"
KILLED = -9


class PlainRunner:
    """Calls the attempt: what Prefect adds is not what is killed here."""

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: bool) -> Outputs:
        return await attempt()


def run_set(root: Path, scenario: Scenario) -> str:
    """Run the scenario's set, or go on with it; the run's status."""
    document = load_object({"name": "crash", "instructions": list(scenario.instructions), "order": "sequential"})
    journal = Journal(workspace_home(root))
    journal.lock.acquire()
    workspace = Workspace(root, journal, Policy().snapshot_exclude)
    record = journal.run(RUN)
    if record is None:
        record = RunRecord(RUN, "crash", "running", {}, {}, {}, time.time())
        journal.begin(record)
    settings = RunSettings(parallel=1, on_failure=OnFailure.ROLLBACK)
    run = Run(record, document, workspace, settings, policy=Policy(), runner=PlainRunner())
    try:
        return str(asyncio.run(run.execute()).status.value)
    finally:
        workspace.close()
        journal.lock.release()
        journal.close()


def status_of(root: Path) -> str:
    """How the journal says that the run stands; `absent` if it had not begun."""
    journal = Journal(workspace_home(root))
    try:
        record = journal.run(RUN)
        return record.status if record else "absent"
    finally:
        journal.close()


def in_child(act: Callable[[], Any], at: At | None = None) -> tuple[int, Any]:
    """Do it in a process of its own: exit status (negative: a signal), and what it returned."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with watch(at) if at else contextlib.nullcontext():
                result = act()
            os.write(writing, json.dumps(result).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, json.loads(content) if content else None


def points_of(act: Callable[[], Any]) -> list[str]:
    """The points that an undisturbed run reaches, in order."""
    seen: list[str] = []

    def noting() -> list[str]:
        with watch(seen.append):
            act()
        return seen

    code, points = in_child(noting)
    if code != 0:
        raise AssertionError("the undisturbed run failed")
    return list(points)


def observe(root: Path) -> dict[str, Any]:
    """Everything that a user could see: files with modes and links, and what git says of its own."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name == ".git" or name.startswith(".git/"):
            continue
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[name] = f"link to {path.readlink()}"
        elif stat.S_ISDIR(status.st_mode):
            found[name] = f"folder {stat.S_IMODE(status.st_mode):o}"
        else:
            found[name] = f"file {stat.S_IMODE(status.st_mode):o} {path.read_bytes()!r}"
    if (root / ".git").exists():
        found[".git"] = _observe_repository(root)
    return found


def _observe_repository(root: Path) -> list[str]:
    """Refs by the trees and messages that they lead to (ids hold times), HEAD, index, and a check of all objects."""
    refs = git(root, "for-each-ref", "--format=%(refname) %(tree) %(contents:subject)")
    history = git(root, "log", "--all", "--topo-order", "--format=%T %s") if refs else ""
    head = (root / ".git" / "HEAD").read_text()
    leftovers = [str(path.relative_to(root)) for path in (root / ".git").rglob("*.lock")]
    git(root, "fsck", "--strict", "--no-dangling")
    return [head, refs, history, git(root, "ls-files", "-s"), *leftovers]


def recover(root: Path, scenario: Scenario, way: str) -> str | None:
    """Bring the run to an end; what went wrong, if anything did."""
    status = status_of(root)
    if way == "resume":
        if status not in ("committed", "rolled_back"):
            run_set(root, scenario)
        return None
    if status in ("committed", "rolled_back", "absent"):
        return None
    try:
        rollback(root, None)
    except QuantumError as error:
        return f"{error.message} ({error.hint})"
    return None


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept."""

    case: str
    what: str


class Bench:
    """Folders for cases, and what the scenario's workspace is before and after an undisturbed run."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self._number = 0
        self._start = folder / "start"
        self._start.mkdir(parents=True)
        scenario.prepare(self._start)
        with self.workspace() as root:
            self.before = observe(root)
            self.points = points_of(lambda: run_set(root, scenario))
            self.after = observe(root)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A fresh copy of the start, with a state folder of its own."""
        self._number += 1
        place = self.folder / str(self._number)
        root = place / "workspace"
        shutil.copytree(self._start, root, symlinks=True)
        os.environ["QO_HOME"] = str(place / "state")
        Journal(workspace_home(root)).close()
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
            code, problem = in_child(lambda: recover(root, self.scenario, way))
            return [Violation(name, what) for what in self._judge(root, way, code, problem)]

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
            code, problem = in_child(lambda: recover(root, self.scenario, "rollback"))
            return [Violation(name, what) for what in self._judge(root, "rollback", code, problem)]

    def _judge(self, root: Path, way: str, code: int, problem: str | None) -> Iterator[str]:
        if code != 0:
            yield f"recovery exited with {code}"
            return
        if problem:
            yield problem
        status, found = status_of(root), observe(root)
        wanted = {"committed": self.after, "rolled_back": self.before, "absent": self.before}.get(status)
        if wanted is None:
            yield f"the run is {status}"
        elif found != wanted:
            yield f"{status}, but {_difference(wanted, found)}"
        if way == "resume" and status != "committed":
            yield f"resumed, but {status}"


def _difference(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    names = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    return "; ".join(f"{name} is {found.get(name)!r}, not {wanted.get(name)!r}" for name in names[:3])

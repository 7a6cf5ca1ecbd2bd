"""Resuming and rolling back, beside a run that nothing disturbs.

P9   N writes, killed at half and resumed: the resume beside a fresh run of all N; only what was in flight runs again
P10  N writes, committed and rolled back: the rollback beside the run

By the engine and the journal alone (a process that has everything imported), and with `--prefect N` also by `qo`
itself, each time a new process. Every repetition has folders of its own and deletes nothing, as creating files is slow
where many have just been deleted. What is shown is the median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.engine import Attempt
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.recover import rollback
from tests.benchmarks.rows import Row
from tests.benchmarks.setting import QO, environment, served, work_folder
from tests.crash import cases
from tests.crash.cases import RUN, in_child, prepare_forks, run_set
from tests.crash.scenarios import Scenario, nothing, write
from tests.plain_runner import PlainRunner

RESUME, ROLLBACK = 0.7, 1.0


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], metavar="N", help="numbers of writes")
    command.add_argument("--prefect", type=int, default=1000, metavar="N", help="writes by `qo` itself; 0 for none")
    command.add_argument("--repeat", type=int, default=3, help="repetitions of each")
    command.add_argument("--folder", type=Path, help="where to work, and leave it; default: for temporary files")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure all."""
    prepare_forks()
    with work_folder(options.folder) as folder:
        for size in options.sizes:
            trials = [_Trial(folder / f"{size}-{number}", size) for number in range(options.repeat)]
            yield from _rows_of(f"{size} writes, engine and journal", [trial.measured() for trial in trials])
        if options.prefect:
            home = folder / "home"
            os.environ["QO_HOME"] = str(home)
            with served(home):
                size = options.prefect
                by_qo = [_QoTrial(folder / f"qo-{number}", home, size) for number in range(options.repeat)]
                yield from _rows_of(f"{size} writes, whole qo", [each.measured() for each in by_qo])


@dataclass(frozen=True)
class _Measured:
    """Seconds; and of the killed run, how many steps it had recorded and begun, and how many ran when resumed."""

    fresh: float
    resume: float
    rollback: float
    recorded: int
    in_flight: int
    ran_again: int


def _rows_of(workload: str, measured: Sequence[_Measured]) -> Iterator[Row]:
    def median(of: Callable[[_Measured], float]) -> float:
        return statistics.median(map(of, measured))

    fresh, last = median(lambda each: each.fresh), measured[-1]
    runs = tuple(each.fresh for each in measured)
    resumes, rollbacks = tuple(each.resume for each in measured), tuple(each.rollback for each in measured)
    name = "a fresh run"
    note = f"killed with {last.recorded} recorded and {last.in_flight} in flight; {last.ran_again} ran in the resume"
    resume, undo = median(lambda each: each.resume), median(lambda each: each.rollback)
    what = f"{workload}, resumed at half"
    yield Row("P9", what, resume, fresh, RESUME, note, name, samples=resumes, beside_samples=runs)
    what = f"{workload}, rolled back"
    yield Row("P10", what, undo, fresh, ROLLBACK, peer=name, samples=rollbacks, beside_samples=runs)


def _writes(size: int) -> tuple[dict[str, Any], ...]:
    return tuple(write(f"folder-{number % 100}/file-{number}", f"content {number}\n" * 20) for number in range(size))


def _expect(root: Path, size: int) -> None:
    """Each file with its bytes, and no other."""
    wanted = {step["with"]["path"]: step["with"]["content"] for step in _writes(size)}
    found = {each.relative_to(root).as_posix(): each.read_text() for each in root.rglob("*") if each.is_file()}
    if found != wanted:
        raise SystemExit(f"{root} is not as it should be: {len(found)} files instead of {len(wanted)}")


def _standing(root: Path, run_id: str | None) -> tuple[set[str], int]:
    """The steps of the run that the journal holds as done, and how many it knows to have begun besides."""
    with contextlib.closing(Journal(workspace_home(root))) as journal:
        run = run_id or journal.runs(1)[0].id
        done = {step_id for step_id, step in journal.steps(run).items() if step.status == "succeeded"}
        begun = {effect.step for effect in journal.effects(run)}
        return done, len(begun - done)


class _Counting(PlainRunner):
    """Counts the steps that have run, but for those that were done already, and dies when there are so many."""

    def __init__(self, last: int | None = None, done: Collection[str] = ()) -> None:
        self.ran = 0
        self._last = last
        self._done = done

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        outputs = await super().run(step, attempt, after, reuse=reuse)
        self._count([step])
        return outputs

    async def run_batch(
        self,
        steps: Sequence[Step],
        attempt: Callable[[], Awaitable[Mapping[str, Outputs]]],
        after: Sequence[str],
        *,
        reuse: Callable[[], str],
    ) -> None:
        await super().run_batch(steps, attempt, after, reuse=reuse)
        self._count(steps)

    def _count(self, steps: Sequence[Step]) -> None:
        self.ran += sum(step.id not in self._done for step in steps)
        if self._last is not None and self.ran >= self._last:
            os.kill(os.getpid(), signal.SIGKILL)


class _Trial:
    """One repetition by the engine alone."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._scenario = Scenario(f"{size} writes", _writes(size), nothing, order="inferred", parallel=4)

    def measured(self) -> _Measured:
        cases.document_of(self._scenario)  # read once, as reading it is not what is measured
        fresh, _ = self._timed("undisturbed", self._run)
        _expect(self._root("undisturbed"), self._size)
        undone, _ = self._timed("undisturbed", self._rollback)
        _expect(self._root("undisturbed"), 0)
        self._timed("killed", lambda root: self._run(root, self._size // 2))
        done, in_flight = _standing(self._root("killed"), RUN)
        resumed, ran = self._timed("killed", lambda root: self._run(root, done=done))
        _expect(self._root("killed"), self._size)
        return _Measured(fresh, resumed, undone, len(done), in_flight, ran)

    def _root(self, name: str) -> Path:
        os.environ["QO_HOME"] = str(self._folder / f"{name}-state")
        return self._folder / name

    def _timed(self, name: str, act: Callable[[Path], Any]) -> tuple[float, Any]:
        root = self._root(name)
        root.mkdir(parents=True, exist_ok=True)

        def timed() -> tuple[float, Any]:
            began = time.monotonic()
            result = act(root)
            return time.monotonic() - began, result

        _, found = in_child(timed)
        return tuple(found) if found else (0.0, None)

    def _run(self, root: Path, last: int | None = None, done: Collection[str] = ()) -> int:
        runner = _Counting(last, done)
        run_set(root, self._scenario, runner)
        return runner.ran

    def _rollback(self, root: Path) -> None:
        rollback(root, RUN, with_patch=False)  # as `qo rollback` does it


class _QoTrial:
    """One repetition by `qo`: its processes, with all that their start takes."""

    def __init__(self, folder: Path, home: Path, size: int) -> None:
        self._folder = folder
        self._home = home
        self._size = size
        folder.mkdir()
        self._set = folder / "set.json"
        self._set.write_text(json.dumps({"name": "benchmark", "instructions": _writes(size)}))

    def measured(self) -> _Measured:
        fresh = self._qo("undisturbed", "run", str(self._set))
        _expect(self._folder / "undisturbed", self._size)
        undone = self._qo("undisturbed", "rollback", self._newest("undisturbed"))
        _expect(self._folder / "undisturbed", 0)
        self._kill_at_half()
        done, in_flight = _standing(self._folder / "killed", None)
        resumed = self._qo("killed", "resume")
        _expect(self._folder / "killed", self._size)
        return _Measured(fresh, resumed, undone, len(done), in_flight, self._size - len(done))

    def _newest(self, name: str) -> str:
        with contextlib.closing(Journal(workspace_home(self._folder / name))) as journal:
            return journal.runs(1)[0].id

    def _qo(self, name: str, *arguments: str) -> float:
        root = self._folder / name
        root.mkdir(exist_ok=True)
        began = time.monotonic()
        subprocess.run([QO, *arguments], cwd=root, env=environment(self._home), check=True, capture_output=True)
        return time.monotonic() - began

    def _kill_at_half(self) -> None:
        root = self._folder / "killed"
        root.mkdir()
        streams, command = subprocess.DEVNULL, [QO, "run", str(self._set)]
        alone = {**environment(self._home), "QO_SERVICE": "off"}  # so that it is the run itself that is killed
        with subprocess.Popen(command, cwd=root, env=alone, stdout=streams, stderr=streams) as process:
            while process.poll() is None and sum(1 for _ in root.glob("*/file-*")) < self._size / 2:
                time.sleep(0.01)
            process.kill()

"""How well runs are scheduled: real workflow graphs with a simulated clock, beside what no schedule can beat.

P8   the makespan, by the ReadyQueue that runs use, beside the lower bound max(critical path, work / workers)

The graphs are in ../shared/data/dags beside the checkout, or in --graphs FOLDER. A note gives what first come, first
served (document order) takes. The floor is a closer bound: what the first steps, the work after them and the last steps
take at least. Where the floor is above the target, no scheduler can keep to it.

Durations are known exactly, then as they are when learned (each off by a random factor), then not at all (all equal).
One real run, of `wait` steps and the real engine, confirms the simulation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.document import OnFailure
from quantum_orchestrator.flows.engine import Run, RunSettings
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import Graph
from quantum_orchestrator.flows.priorities import best_order, makespan
from quantum_orchestrator.flows.schedule import Priorities, ReadyQueue, longest_paths
from tests.benchmarks.rows import Row
from tests.plain_runner import PlainRunner

GRAPHS = Path(__file__).parents[3] / "shared" / "data" / "dags"
AVERAGE, WORST = 1.05, 1.15
NOISE = (0.1, 0.3)
SEEDS = range(5)


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--graphs", type=Path, default=GRAPHS, metavar="FOLDER", help="where the graphs are")
    command.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16], metavar="N")
    command.add_argument("--real", type=float, default=4.0, metavar="SECONDS", help="length of the real run; 0: none")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure all."""
    files = sorted(options.graphs.glob("*.json"))
    if not files:
        raise SystemExit(f"no graphs in {options.graphs}; name their folder with --graphs")
    workflows = [_Workflow.read(file) for file in files]
    cases = [_Case(workflow, workers) for workflow in workflows for workers in options.workers]
    yield from (case.row() for case in cases)
    yield from _totals("exact durations", [(case.ours, case.bound, case.reachable) for case in cases])
    behind = max(cases, key=lambda case: case.ours / case.first_come)
    what = "exact durations, where it gains least"
    yield Row("P8", what, behind.ours, behind.first_come, 1.0, peer="first come, first served")
    for noise in NOISE:
        yield from _totals(f"durations off by {noise:.0%}", [each for case in cases for each in case.noisy(noise)])
    yield from _totals("unknown durations", [case.unknown() for case in cases], judged=False)
    if options.real:
        yield _real(min(cases, key=lambda case: len(case.workflow.graph.steps)), options.real)


def _totals(what: str, times: Sequence[tuple[float, float, float]], *, judged: bool = True) -> Iterator[Row]:
    """Mean and worst ratio; the floor is what the closer bound leaves."""
    for name, of, target in (("average", statistics.mean, AVERAGE), ("worst", max, WORST)):
        ratio = of([took / bound for took, bound, _ in times])
        floor = of([reachable / bound for _, bound, reachable in times])
        most = target if judged else None
        yield Row("P8", f"{what}, {name}", ratio, 1.0, most, peer="lower bound", unit="×", floor=floor)


@dataclass(frozen=True)
class _Workflow:
    """A graph with what each of its steps takes."""

    name: str
    graph: Graph
    seconds: Mapping[str, float]

    @classmethod
    def read(cls, file: Path) -> _Workflow:
        tasks = json.loads(file.read_text())["tasks"]
        names = {task["id"]: f"t{number}" for number, task in enumerate(tasks)}
        instructions = [
            _instruction(names[task["id"]], "echo", {"message": ""}, [names[each] for each in task["deps"]])
            for task in tasks
        ]
        graph = plan.build(load_object(_set(instructions)), {})
        return cls(file.stem, graph, {names[task["id"]]: task["runtime"] for task in tasks})


def _set(instructions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"name": "workflow", "order": "explicit", "instructions": list(instructions)}


def _instruction(step_id: str, op: str, parameters: Mapping[str, Any], needs: Sequence[str]) -> dict[str, Any]:
    return {"id": step_id, "op": op, "with": parameters, "needs": needs}


class _Case:
    """One graph on some workers."""

    def __init__(self, workflow: _Workflow, workers: int) -> None:
        self.workflow = workflow
        self.workers = workers
        self.order = self._order(workflow.seconds)
        self.ours = self._takes(self.order)
        self.first_come = self._takes(dict.fromkeys(workflow.seconds, 0.0))
        self._bounds = _Bounds(workflow, workers)
        self.bound, self.reachable = self._bounds.simple, self._bounds.closer

    def row(self) -> Row:
        name = f"{self.workflow.name}, {self.workers} workers"
        note = f"first come {self.first_come:.0f} s"
        return Row("P8", name, self.ours, self.bound, WORST, note, "lower bound", floor=self.reachable)

    def noisy(self, noise: float) -> Iterator[tuple[float, float, float]]:
        for seed in SEEDS:
            chance = random.Random(seed)
            learned = {step: each * chance.lognormvariate(0, noise) for step, each in self.workflow.seconds.items()}
            yield self._takes(self._order(learned)), self.bound, self.reachable

    def unknown(self) -> tuple[float, float, float]:
        return self._takes(self._order(dict.fromkeys(self.workflow.seconds, 1.0))), self.bound, self.reachable

    def _order(self, learned: Mapping[str, float]) -> Priorities:
        return best_order(
            self.workflow.graph, parallel=self.workers, capacity={}, duration_of=lambda step: learned[step.id]
        )

    def _takes(self, order: Priorities) -> float:
        graph = self.workflow.graph
        return makespan(graph, ReadyQueue(graph, parallel=self.workers, priorities=order), self.workflow.seconds)


class _Bounds:
    """What no schedule is shorter than."""

    def __init__(self, workflow: _Workflow, workers: int) -> None:
        self._seconds = workflow.seconds
        self._workers = workers
        self._graph = workflow.graph
        paths = longest_paths(self._graph, lambda step: self._seconds[step.id])
        self._tails = {step: path - self._seconds[step] for step, path in paths.items()}
        self._heads: dict[str, float] = {}
        for each in self._graph.steps:
            before = self._graph.predecessors[each.id]
            self._heads[each.id] = max((self._heads[one] + self._seconds[one] for one in before), default=0.0)
        self.simple = max(max(paths.values()), sum(self._seconds.values()) / workers)
        self.closer = max(self.simple, *self._of_middles())

    def _of_middles(self) -> Iterator[float]:
        """Steps that start no earlier than `head` and have `tail` after them: their work lies between the two."""
        for head in set(self._heads.values()):
            later = [step for step, each in self._heads.items() if each >= head]
            for tail in {self._tails[step] for step in later}:
                middle = sorted((self._seconds[step] for step in later if self._tails[step] >= tail), reverse=True)
                yield head + sum(middle) / self._workers + tail
                rounds = range(self._workers, len(middle), self._workers)  # of more steps than workers, one does two
                yield from (head + middle[last] * (last // self._workers + 1) + tail for last in rounds)


# The real run.


def _real(case: _Case, length: float) -> Row:
    """The same graph by the engine, each step a `wait`; beside what the simulation says."""
    scale = length / case.ours
    workflow = case.workflow
    instructions = [
        _instruction(
            step.id,
            "wait",
            {"seconds": workflow.seconds[step.id] * scale},
            sorted(workflow.graph.predecessors[step.id]),
        )
        for step in workflow.graph.steps
    ]
    took = _run(_set(instructions), case.workers, lambda step_id: workflow.seconds[step_id] * scale)
    name = f"{workflow.name}, {case.workers} workers, really run"
    return Row("P8", name, took, length, AVERAGE, peer="simulated")


def _run(written: dict[str, Any], workers: int, seconds_of: Callable[[str], float]) -> float:
    document = load_object(written)
    with tempfile.TemporaryDirectory(prefix="qo-benchmark-") as folder:
        os.environ["QO_HOME"] = f"{folder}/state"
        root = Path(folder) / "workspace"
        root.mkdir()
        journal = Journal(workspace_home(root))
        try:
            journal.lock.acquire()
            record = RunRecord("r1", "workflow", "running", written, {}, {}, time.time(), pid=os.getpid())
            journal.begin(record)
            settings = RunSettings(
                parallel=workers, on_failure=OnFailure.ROLLBACK, duration_of=lambda step: seconds_of(step.id)
            )
            run = Run(record, document, Workspace(root, journal, ()), settings, policy=Policy(), runner=PlainRunner())
            began = time.monotonic()
            outcome = asyncio.run(run.execute())
            took = time.monotonic() - began
            if outcome.error is not None:
                raise outcome.error
            return took
        finally:
            journal.lock.release()
            journal.close()

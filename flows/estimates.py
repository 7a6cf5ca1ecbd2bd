"""About how long each step of a set will take: as it took before, as its operation does, or by what kind it is.

Never right, and good enough to put steps in order (`flows/priorities.py`) and to say beforehand how long a run takes.
Pure: what was learned is given. Cheap: it is asked for every step of every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantum_orchestrator.blocks.profile import Learned
from quantum_orchestrator.flows.document import InstructionSet
from quantum_orchestrator.flows.plan import Graph, Step
from quantum_orchestrator.flows.schedule import Seconds, longest_paths

IN_MEMORY = 0.001
GUESSES: Mapping[str, Seconds] = {"git": 0.03, "quality": 0.2, "http": 0.3, "script": 1.0, "call": 1.0, "llm": 5.0}
"""By family of operations; those of other families are taken for work in memory until one has run."""


def places_of(document: InstructionSet, processors: int) -> int:
    """The set's `parallel`; `auto` begins with twice the processors, as steps wait for disks and processes."""
    return document.parallel if isinstance(document.parallel, int) else max(4, 2 * processors)


class Estimates:
    """Estimates for the steps of one set."""

    def __init__(self, learned: Learned) -> None:
        self._steps = learned.steps
        self._operations = learned.operations
        self._kinds: dict[str, Seconds] = {}

    def __call__(self, step: Step) -> Seconds:
        """About how long it takes."""
        op = step.instruction.op
        if op == "wait":
            return _waits(step)
        if op == "approval":
            return 0.0  # however long somebody thinks: nothing is held meanwhile
        if step.deferred_expansion:
            return self._inside(step.id) or GUESSES["call"]
        found = self._steps.get(step.id)
        return found if found is not None else self._of_kind(op)

    def is_guess(self, step: Step) -> bool:
        """Whether it may be far off, as nothing was learned."""
        op = step.instruction.op
        if step.deferred_expansion:
            return not self._inside(step.id)
        return step.id not in self._steps and op not in self._operations and op.partition(".")[0] in GUESSES

    def _of_kind(self, op: str) -> Seconds:
        found = self._kinds.get(op)
        if found is None:
            guess = GUESSES.get(op.partition(".")[0], IN_MEMORY)
            found = self._kinds[op] = self._operations.get(op, guess)
        return found

    def _inside(self, step_id: str) -> Seconds:
        """What the steps took, all together, that it became in earlier runs."""
        inner = (f"{step_id}/", f"{step_id}[")
        return sum(seconds for name, seconds in self._steps.items() if name.startswith(inner))


def _waits(step: Step) -> Seconds:
    seconds = step.instruction.parameters.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """About how long a run takes, and which steps that is due to."""

    seconds: Seconds
    critical_path: tuple[str, ...]
    """The steps after one another that take longest, in their order."""


def forecast(graph: Graph, estimates: Estimates, *, parallel: int, capacity: Mapping[str, float]) -> Forecast | None:
    """What no run is shorter than, and most are hardly longer; None if that would be a guess."""
    if not graph.steps or any(estimates.is_guess(step) for step in graph.steps):
        return None
    seconds = {step.id: estimates(step) for step in graph.steps}
    paths = longest_paths(graph, lambda step: seconds[step.id])
    path = [max(graph.steps, key=lambda step: paths[step.id]).id]
    while after := graph.successors[path[-1]]:
        path.append(min(after, key=lambda each: (-paths[each], graph.position[each])))
    work = sum(seconds.values()) / parallel
    return Forecast(max(paths[path[0]], work, *_uses(graph, seconds, capacity)), tuple(path))


def _uses(graph: Graph, seconds: Mapping[str, Seconds], capacity: Mapping[str, float]) -> list[Seconds]:
    """How long each resource is in use, were it always in full use; at least one number."""
    uses: dict[str, Seconds] = {"": 0.0}
    for step in graph.steps:
        for name, amount in step.instruction.resources.items():
            there_is = capacity.get(name, 1.0)
            uses[name] = uses.get(name, 0.0) + seconds[step.id] * min(amount / there_is, 1.0)
    return list(uses.values())

"""What a run knows of its steps: which there are, how each stands, and how an earlier process left them.

One object a run, shared by what runs steps (`flows/engine.py`) and what takes them back (`flows/undoing.py`). Whatever
must outlive the process is written to the journal here. Knows neither threads nor Prefect, and touches no workspace.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.flows.document import CHECKPOINT, ErrorHandler, InstructionSet
from quantum_orchestrator.flows.expressions import Scope
from quantum_orchestrator.flows.plan import (
    Expansion,
    Graph,
    Step,
    build,
    connect,
    expand_step,
    handler_steps,
    values_of,
)
from quantum_orchestrator.flows.results import DONE, RunValues, StepResult, StepStatus
from quantum_orchestrator.tasks.operation import Unknown


class Books:
    """The steps of one run."""

    def __init__(
        self, record: RunRecord, document: InstructionSet, journal: Journal, graph: Graph | None = None
    ) -> None:
        """`graph` is that of the document with the run's inputs, where somebody has built it before."""
        self.run_id = record.id
        self.journal = journal
        self.graph = graph or build(document, record.inputs)
        self.expansion = self.graph.expansion
        self._positions = dict(self.graph.position)
        self.inner: dict[str, Expansion] = {}
        """What steps became while running, by their id (an error handler's under `<id>/on_error`)."""
        self.results: dict[str, StepResult] = {}
        """In the order of their ends."""
        self.recorded = journal.steps(record.id)
        """How an earlier process left the steps that this one has not come to."""
        self._values = RunValues(self.graph.groups)
        self.of_run = {"id": record.id, "name": document.name, "started_at": record.started_at}

    # Which steps there are.

    def steps(self) -> Iterator[Step]:
        """Every step that is known so far."""
        yield from self.graph.steps
        for expansion in self.inner.values():
            yield from expansion.steps

    def scope(self, step: Step) -> Scope:
        """What the step's expressions may refer to now."""
        return values_of(step, self._values.view(step.scope.prefixes), self.of_run)

    def expand(self, step: Step) -> Expansion:
        """What a step with `deferred_expansion` becomes now."""
        return expand_step(step, self._values.view(step.scope.prefixes), self.of_run)

    def take_in(self, name: str, expansion: Expansion) -> Graph:
        """A step has become several: from now on they are known. Gives the order between them."""
        graph = connect(expansion)
        self.inner[name] = expansion
        self._positions.update(graph.position)
        self.add_groups(expansion)
        return graph

    def add_groups(self, expansion: Expansion) -> None:
        """Ids that stand for several steps."""
        self._values.groups.update(expansion.groups)

    def with_inner(self, steps: Iterable[Step]) -> list[str]:
        """The ids of these steps, and of all that has become of them."""
        names = {step.id for step in steps}
        touched = {effect.step for effect in self.journal.effects(self.run_id)}  # one that a death cut short as well
        known = {*self.results, *self.recorded, *touched, *self.journal.steps_captured(self.run_id)}
        return sorted(names | {step_id for step_id in known if not names.isdisjoint(owners(step_id))})

    def place(self, step_id: str) -> int | None:
        """The place in linear order of a step, or of the one that it is inside of; None if there is no such step."""
        return next((self.graph.position[each] for each in owners(step_id) if each in self.graph.position), None)

    def rank(self, step_id: str) -> tuple[int, ...]:
        """Where a step comes, one by one: its place in the set, then in what the step around it became, and so on."""
        around = reversed(list(owners(step_id)))
        return tuple(self._positions[each] for each in around if each in self._positions)

    def after(self, step_id: str) -> list[Step]:
        """The steps that come after this one, one by one, and are not inside of it."""
        rank = self.rank(step_id)
        ranked = sorted(((self.rank(step.id), step) for step in self.steps()), key=lambda each: each[0])
        return [step for found, step in ranked if found > rank and found[: len(rank)] != rank]

    def after_checkpoint(self, name: str) -> Sequence[Step] | None:
        """The steps that come after the checkpoint of this name, one by one; None if the run has not passed it."""
        passed = [
            step_id
            for step_id, result in self.results.items()
            if result.op == CHECKPOINT
            and result.status is StepStatus.SUCCEEDED
            and (result.outputs or {}).get("name") == name
        ]
        return self.after(max(passed, key=self.rank)) if passed else None

    # How they stand.

    def set(self, result: StepResult) -> None:
        """A step has ended, now or in an earlier process."""
        self.results.pop(result.id, None)
        self.results[result.id] = result
        self._values.set(result.id, result.status, result.outputs or {})

    def end(self, result: StepResult, *, durable: bool) -> None:
        """A step has ended now. Without `durable` a power cut may forget it, with what it did: it then runs again."""
        self.set(result)
        done = result.status in DONE
        self.journal.record_step(self.run_id, result.record(), done=done, durable=durable)

    def succeeded(self) -> list[str]:
        """The steps whose effects stand, in the order of their ends."""
        return [step_id for step_id, result in self.results.items() if result.status is StepStatus.SUCCEEDED]

    def is_being_undone(self, step_id: str) -> bool:
        """Whether a process died over the step's `undo`: whether that came to its end, nobody knows."""
        record = self.recorded.get(step_id)
        return record is not None and record.status == StepStatus.RUNNING

    def taken_back_in_part(self) -> list[str]:
        """Steps whose `undo` was begun or done by a process that died before it had taken back what came after them."""
        taken = [each for each, record in self.recorded.items() if record.status in (StepStatus.PENDING, _UNDOING)]
        if not taken:
            return []
        self.take_over()
        with_undo = {step.id for step in self.steps() if step.instruction.undo is not None}
        last = max((self.rank(step_id) for step_id in self.succeeded()), default=())
        return [
            step_id
            for step_id in taken
            if self.is_being_undone(step_id)
            or (step_id in with_undo and self.rank(step_id) < last and not self._is_inside_of_a_failure(step_id))
        ]

    def _is_inside_of_a_failure(self, step_id: str) -> bool:
        """Whether it was undone with a call that failed and was gone on from."""
        around = [self.recorded[each] for each in owners(step_id) if each != step_id and each in self.recorded]
        return any(record.status == StepStatus.FAILED for record in around)

    def take_over(self) -> None:
        """Count what an earlier process left as this one's, with all that its steps had become."""
        for step_id, record in self.recorded.items():
            if step_id not in self.results:
                self.set(StepResult.of(record))
        waiting = list(self.graph.steps)
        while waiting:
            waiting += self._became(waiting.pop())

    def _became(self, step: Step) -> list[Step]:
        """The steps that a step became in an earlier process, as far as it can be known again."""
        found: list[Step] = []
        handler, name = step.instruction.on_error, f"{step.id}/on_error"
        if isinstance(handler, ErrorHandler) and self._ran_inside(name):
            self.take_in(name, handler_steps(step, handler))
            found += self.inner[name].steps
        if step.deferred_expansion and step.id not in self.inner and self._ran_inside(step.id):
            try:
                self.take_in(step.id, self.expand(step))
            except (QuantumError, Unknown):
                return found  # what the list came from was never recorded: then nothing of it has succeeded
            found += self.inner[step.id].steps
        return found

    def _ran_inside(self, name: str) -> bool:
        return any(name in owners(step_id) for step_id in self.results if step_id != name)

    def forget(self, step_ids: Collection[str]) -> None:
        """These steps have not run; that they have to run again is durable before anything of theirs is undone."""
        self.journal.set_step_status(self.run_id, step_ids, StepStatus.PENDING.value)
        for step_id in step_ids:
            self.results.pop(step_id, None)
            self.recorded.pop(step_id, None)


_UNDOING = StepStatus.RUNNING
"""What the journal says of a step from before its `undo` begins until that has ended."""


def owners(step_id: str) -> Iterator[str]:
    """The id itself, and those of the steps that it is inside of: `a[0]/b` is inside `a[0]`, and that inside `a`."""
    yield step_id
    for place in range(len(step_id) - 1, 0, -1):
        if step_id[place] in "/[":
            yield step_id[:place]

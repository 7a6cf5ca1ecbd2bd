"""Many cheap steps as one piece of work: one task run, one record in the journal before and one after.

A set stays one task a step while it is small, as that shows more; from BATCH_FROM steps on, those that are cheap (they
work in memory, and take no time limit, retries or resources of their own) go together, as many as take about
TARGET_SECONDS. Each keeps its own record, outputs, status and log lines. A member that fails fails alone; those that
wait for it are given back, and so is everything if the disk refuses: then each is tried by itself, which tells whose
fault it is.

Batches are made one at a time: in one process two would only keep each other waiting, at every call of the system.

Invariant: the members end as if they had run one by one, in the order given. Works in whichever thread it is called in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from quantum_orchestrator.blocks.disk_tree import Look
from quantum_orchestrator.blocks.errors import Interrupted, OperationError
from quantum_orchestrator.blocks.tree import Change, Overlay
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.attempts import Attempts
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.guard import ApprovalNeeded, contents_of
from quantum_orchestrator.flows.plan import Graph, Step, resolved_parameters
from quantum_orchestrator.flows.prediction import is_wanted
from quantum_orchestrator.flows.results import DONE, EventKind, RunEvent, StepResult, StepStatus
from quantum_orchestrator.flows.reusing import Reusing
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import CancelToken, Context, Effects, Outputs

BATCH_FROM = 200
TARGET_SECONDS = 0.15
"""Of processor time: a task run costs some 25 ms of it, client and server together."""
FIRST_SIZE = 32
LARGEST_SIZE = 512


class BatchSize:
    """How many steps to take together: as many as take the target time, as far as that is known."""

    def __init__(self, steps: int = 0, *, target: float = TARGET_SECONDS) -> None:
        """`steps` is how many there are: of many, more go together, so that there are some dozens of task runs."""
        self.value = max(FIRST_SIZE, min(steps // 4, LARGEST_SIZE))
        self._largest = max(LARGEST_SIZE, steps // 16)
        self._target = max(target, target * steps / 5_000)

    def learn(self, steps: int, seconds: float) -> None:
        """So many have taken so long. It at most doubles, as the next ones may be others."""
        wanted = int(steps * self._target / max(seconds, 1e-6))
        self.value = max(1, min(wanted, 2 * self.value, self._largest))


def is_cheap(step: Step, effects: Effects) -> bool:
    """Whether a step may be done together with others."""
    plain = effects.predictable and not effects.barrier and not effects.irreversible
    return plain and not has_wishes(step)


def has_wishes(step: Step) -> bool:
    """Whether an instruction asks for something that a task run of its own has to give."""
    each = step.instruction
    own = each.retries or each.timeout is not None or each.resources or each.tags or each.secrets
    return bool(own or step.deferred_expansion)


@dataclass(slots=True)
class Batch:
    """What has become of the members of a batch."""

    ended: list[StepResult] = field(default_factory=list)
    """Succeeded or skipped, on record."""
    failed: list[tuple[Step, Exception]] = field(default_factory=list)
    left: list[Step] = field(default_factory=list)
    """Not done: what they wait for has failed, or the disk has refused the batch as a whole (`refused`)."""
    alone: list[Step] = field(default_factory=list)
    """Of those left, the ones that need an approval first."""
    refused: bool = False
    seconds: float = 0.0
    """Processor time that it took."""


class Batches:
    """Does batches of one run's steps."""

    def __init__(
        self,
        books: Books,
        workspace: Workspace,
        attempts: Attempts,
        observe: Callable[[Sequence[RunEvent]], None],
        reusing: Reusing | None = None,
    ) -> None:
        self._at_work = threading.Lock()
        self._books = books
        self._workspace = workspace
        self._attempts = attempts
        self._observe = observe
        self._reusing = reusing

    def make(self, steps: Sequence[Step], graph: Graph, token: CancelToken) -> Batch:
        """Do the steps, one after another. Raises Interrupted, with nothing of them done, and what breaks the run."""
        started = time.thread_time()
        with self._at_work, self._workspace.look() as look:
            batch = self._make(
                steps, graph, token, _Work(Overlay(self._reusing.tree if self._reusing else look), token), look
            )
        batch.seconds = time.thread_time() - started
        return batch

    def _make(self, steps: Sequence[Step], graph: Graph, token: CancelToken, work: _Work, look: Look) -> Batch:
        try:
            for step in steps:
                if token.cancelled:
                    raise Interrupted
                self._one(step, graph.predecessors[step.id], work)
            self._observe(work.events)
            self._workspace.apply_all(self._books.run_id, work.changes, work.total.content_of, look)
        except OperationError as problem:  # the disk's: members keep theirs to themselves
            self._take_back(work, problem)
            return Batch(left=list(steps), refused=True)
        except BaseException as problem:
            self._take_back(work, problem)
            raise
        records = [result.record() for result in work.fresh]
        self._books.journal.record_steps(self._books.run_id, records, done=True, durable=False)
        return work.batch

    def _take_back(self, work: _Work, problem: BaseException) -> None:
        """As if none of them had been tried. Raises NeedsAttention where that cannot be."""
        for step_id in (*(result.id for result in work.fresh), *(step.id for step, _ in work.batch.failed)):
            self._books.results.pop(step_id, None)
        self._attempts.undo([result.id for result in work.fresh], problem)

    def _one(self, step: Step, before: Collection[str], work: _Work) -> None:
        if not work.stopped.isdisjoint(before):
            work.batch.left.append(step)
            work.stopped.add(step.id)
            return
        recorded = self._books.recorded.get(step.id)
        if recorded is not None and recorded.status in (*DONE, StepStatus.SKIPPED):
            self._end(StepResult.of(recorded), work)
            return
        started = time.monotonic()
        try:
            result = self._result(step, work)
        except ApprovalNeeded:
            self._books.results.pop(step.id, None)
            work.batch.left.append(step)
            work.batch.alone.append(step)
            work.stopped.add(step.id)
        except Exception as problem:
            work.batch.failed.append((step, self._attempts.explained(problem)))
            work.stopped.add(step.id)
        else:
            result.duration_s = time.monotonic() - started
            work.fresh.append(result)
            self._end(result, work)

    def _result(self, step: Step, work: _Work) -> StepResult:
        scope = self._books.scope(step)
        if not is_wanted(step, scope):
            return StepResult(step.id, step.instruction.op, StepStatus.SKIPPED)
        verdict = None if self._reusing is None else self._reusing.verdict(step, scope, work.total)
        if verdict is not None and verdict.reused:
            return StepResult.reused(step.id, step.instruction.op, verdict.outputs, verdict.reason)
        result = StepResult(step.id, step.instruction.op, StepStatus.RUNNING, 1)
        self._books.results[step.id] = result
        layer, guard = Overlay(work.total), self._attempts.guards.of(step.scope.document.trust)
        context = Context(
            layer,
            step_id=step.id,
            set_name=step.scope.document.name,
            run_id=self._books.run_id,
            policy=guard.policy,
            cancel=work.token,
            log=lambda line: work.events.append(RunEvent(EventKind.LOG, step.id, step.instruction.op, line)),
            before_run=partial(self._workspace.before_run, self._books.run_id),
        )
        work.events.append(RunEvent(EventKind.STEP_STARTED, step.id, step.instruction.op))
        operation, parameters = registry.get(step.instruction.op), resolved_parameters(step, scope)
        guard.check(step.id, operation, parameters, self._attempts.decided)
        outputs: Outputs = operation.run(parameters, context)
        if changes := layer.changes():
            if not guard.idle:
                self._attempts.check_changes(step, changes, contents_of(changes, work.total, layer))
            work.total.apply(changes, layer.content_of)
            work.changes.append((step.id, changes))
        result.status, result.outputs = StepStatus.SUCCEEDED, self._dumped(outputs)
        if self._reusing is not None and verdict is not None:
            result.reason = verdict.reason
            self._reusing.has_run(step, scope, verdict, work.total)
        return result

    def _dumped(self, outputs: Outputs) -> Mapping[str, Any]:
        dumped: Mapping[str, Any] = self._attempts.redactor.value(outputs.model_dump(mode="json"))
        return dumped

    def _end(self, result: StepResult, work: _Work) -> None:
        self._books.set(result)  # those after it may refer to it
        work.batch.ended.append(result)


@dataclass(slots=True)
class _Work:
    """A batch while it is being done."""

    total: Overlay
    token: CancelToken
    batch: Batch = field(default_factory=Batch)
    fresh: list[StepResult] = field(default_factory=list)
    """Those that ended now, and not in an earlier process."""
    changes: list[tuple[str, Sequence[Change]]] = field(default_factory=list)
    events: list[RunEvent] = field(default_factory=list)
    """Not told yet."""
    stopped: set[str] = field(default_factory=set)
    """Steps that have failed or been left out."""

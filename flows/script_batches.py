"""Many short scripts that change nothing as one piece of work: one task run, and each with its own process and record.

From `batching.BATCH_FROM` steps on, scripts go together that say that they write nothing, and take no secrets, network,
time limit, retries or resources of their own: as many as take about TARGET_SECONDS, one after another in one place. A
member that fails fails alone. Nobody waits for long for batch-mates: what has lasted RELIEF_SECONDS tells who has ended
and gives back who has not begun, so that of slow scripts each is soon a group of its own.

Invariant: a member that has ended is on record, safe from `kill -9`, before the next one begins. From a power cut it is
safe with the next durable record, which the batch makes before it ends; whatever a later step does to the workspace is
preceded by one as well, as the log is written in order. A script that a power cut has taken the record of runs again.
Works in whichever thread it is called in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence

from quantum_orchestrator.blocks.errors import Interrupted
from quantum_orchestrator.flows.attempts import Attempts, Observer
from quantum_orchestrator.flows.batching import Batch, has_wishes
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.plan import Graph, Step
from quantum_orchestrator.flows.prediction import is_wanted
from quantum_orchestrator.flows.results import DONE, EventKind, RunEvent, StepResult, StepStatus
from quantum_orchestrator.flows.reusing import Reusing
from quantum_orchestrator.tasks.operation import CancelToken, Effects

SCRIPT = "script.run"
TARGET_SECONDS = 0.5
RELIEF_SECONDS = 1.0
MOST_OUTPUT = 1 << 20
"""So many characters of outputs end a batch: Prefect keeps them in one result."""


def is_quiet(step: Step, effects: Effects) -> bool:
    """Whether a step is a script that may be done together with others."""
    changes = effects.writes or effects.makes or effects.barrier or effects.irreversible
    return step.instruction.op == SCRIPT and not changes and not has_wishes(step)


class ScriptBatch:
    """One batch of one run's scripts."""

    def __init__(
        self,
        steps: Sequence[Step],
        graph: Graph,
        books: Books,
        attempts: Attempts,
        observe: Observer,
        costly: float,
        reusing: Reusing | None = None,
    ) -> None:
        """One that has taken `costly` seconds is durable at once."""
        self._waiting = deque(steps)
        self._graph = graph
        self._books = books
        self._attempts = attempts
        self._observe = observe
        self._costly = costly
        self._reusing = reusing
        self._stopped: set[str] = set()
        self._output = 0
        self.batch = Batch()

    def relieve(self) -> list[Step]:
        """Take out those that have not begun. May be called in another thread."""
        left = []
        while self._waiting:
            try:
                left.append(self._waiting.popleft())
            except IndexError:  # the other thread was faster
                break
        return left

    def make(self, token: CancelToken) -> Batch:
        """Do the steps, one after another. Raises Interrupted and what breaks the run, with those on record that have
        ended."""
        started = time.monotonic()
        while self._waiting:
            if token.cancelled:
                raise Interrupted
            try:
                step = self._waiting.popleft()
            except IndexError:  # relieved meanwhile
                break
            self._one(step, self._graph.predecessors[step.id], token)
            if self._output > MOST_OUTPUT:
                self.batch.left += self.relieve()
        self._books.journal.record_steps(self._books.run_id, [], durable=True)
        self.batch.seconds = time.monotonic() - started
        return self.batch

    def _one(self, step: Step, before: Collection[str], token: CancelToken) -> None:
        if not self._stopped.isdisjoint(before):
            self.batch.left.append(step)
            self._stopped.add(step.id)
            return
        recorded = self._books.recorded.get(step.id)
        if recorded is not None and recorded.status in (*DONE, StepStatus.SKIPPED):
            result = StepResult.of(recorded)
            self._books.set(result)
            self.batch.ended.append(result)
            return
        started = time.monotonic()
        try:
            result = self._result(step, token)
        except Interrupted:
            raise
        except Exception as problem:
            self.batch.failed.append((step, problem))
            self._stopped.add(step.id)
            if step.instruction.on_error == "fail":
                self.batch.left += self.relieve()
        else:
            result.duration_s = time.monotonic() - started
            self._end(result)

    def _result(self, step: Step, token: CancelToken) -> StepResult:
        operation = step.instruction.op
        scope = self._books.scope(step)
        if not is_wanted(step, scope):
            return StepResult(step.id, operation, StepStatus.SKIPPED)
        verdict = None if self._reusing is None else self._reusing.verdict(step, scope)
        if verdict is not None and verdict.reused:
            return StepResult.reused(step.id, operation, verdict.outputs, verdict.reason)
        result = StepResult(step.id, operation, StepStatus.RUNNING, 1)
        self._books.results[step.id] = result
        self._observe(RunEvent(EventKind.STEP_STARTED, step.id, operation))
        result.outputs = self._attempts.make(step, token)
        result.status = StepStatus.SUCCEEDED
        if self._reusing is not None and verdict is not None:
            result.reason = verdict.reason
            self._reusing.has_run(step, scope, verdict)
        self._output += sum(len(text) for text in result.outputs.values() if isinstance(text, str))
        return result

    def _end(self, result: StepResult) -> None:
        self._books.set(result)
        durable = result.duration_s >= self._costly
        self._books.journal.record_step(self._books.run_id, result.record(), durable=durable)  # it has no intents
        self.batch.ended.append(result)
        self._observe(RunEvent.finished(result))

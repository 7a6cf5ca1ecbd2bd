"""One step of a run, from its start to its record: attempts, approvals, what becomes of a failure.

A step that becomes several (`for_each`, `call`, an error handler) hands their graph back to whoever runs graphs. Each
attempt runs in a thread of the run's; the rest in the run's own loop. How an attempt works is `flows/attempts.py`'s
matter, which steps begin when that of `flows/pool.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio

from quantum_orchestrator.blocks.errors import (
    Interrupted,
    NeedsAttention,
    OperationError,
    QuantumError,
    StateError,
    TimedOut,
)
from quantum_orchestrator.blocks.journal import StepRecord
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.attempts import (
    EXPECTED,
    Attempts,
    Outputs,
)
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.document import CHECKPOINT, ErrorHandler, InstructionSet, Trust
from quantum_orchestrator.flows.guard import ApprovalNeeded
from quantum_orchestrator.flows.places import Places
from quantum_orchestrator.flows.plan import (
    AGAIN,
    FIX,
    Expansion,
    Graph,
    Step,
    effects_of,
    handler_steps,
    resolved_parameters,
)
from quantum_orchestrator.flows.prediction import is_wanted
from quantum_orchestrator.flows.results import (
    DONE,
    EventKind,
    RunEvent,
    StepResult,
    StepStatus,
)
from quantum_orchestrator.flows.reuse import Verdict
from quantum_orchestrator.flows.reusing import Reusing
from quantum_orchestrator.flows.run_settings import RunSettings, StepRunner
from quantum_orchestrator.flows.schedule import Seconds
from quantum_orchestrator.flows.stopping import Stop, in_a_thread_left_behind
from quantum_orchestrator.flows.undoing import Undoing
from quantum_orchestrator.tasks.operation import CancelToken

T = TypeVar("T")
RunGraph = Callable[[Graph, Step | None, Stop], Awaitable[None]]

ObserveAll = Callable[[Sequence[RunEvent]], None]

COSTLY_SECONDS = 0.25
"""A step that took so long is not to be run again for want of a record."""
DONE_BEFORE = "done before, says the run's journal"
FATAL = (NeedsAttention, StateError)
"""What ends the run whatever the step's `on_error` says: the workspace is not as the journal has it."""


class StepFailed(Exception):
    """A step has failed for good; its effects are undone."""

    def __init__(self, step: Step, error: QuantumError) -> None:
        super().__init__(f"{step.id}: {error.message}")
        self.step = step
        self.error = error


class ApprovalAwaited(Exception):
    """The run cannot go on before somebody approves a step."""

    def __init__(self, step: Step, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.message = message


class StepThreads:
    """The threads that a run's steps work in."""

    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="step")

    def close(self) -> None:
        """Wait for what is at work; nothing more comes."""
        self._pool.shutdown(wait=True)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Work that nobody cancels."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def run_step(self, work_of: Callable[[CancelToken], T], stop: Stop) -> T:
        """Work that belongs to a step. A cancellation ends it, and waits until it has undone itself."""
        token = CancelToken()
        with stop.working(token):
            work = asyncio.get_running_loop().run_in_executor(self._pool, work_of, token)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                token.cancel()
                with anyio.CancelScope(shield=True):  # the step must have undone itself before anybody goes on
                    await asyncio.wait([work])
                raise


@dataclass(frozen=True, slots=True)
class RunParts:
    """What all that carries out a run's steps works with."""

    document: InstructionSet
    workspace: Workspace
    settings: RunSettings
    books: Books
    attempts: Attempts
    reusing: Reusing | None
    places: Places
    threads: StepThreads
    runner: StepRunner | None
    observe_all: ObserveAll
    decisions: dict[str, bool]
    """What has been approved or rejected, by its subject."""


class Steps:
    """Runs the steps of one run."""

    def __init__(self, parts: RunParts, undoing: Undoing, run_graph: RunGraph) -> None:
        self._settings = parts.settings
        self._workspace = parts.workspace
        self._journal = parts.workspace.journal
        self._books = parts.books
        self._graph = parts.books.graph
        self._id = parts.books.run_id
        self._attempts = parts.attempts
        self._reusing = parts.reusing
        self._places = parts.places
        self._threads = parts.threads
        self._runner = parts.runner
        self._observe_all = parts.observe_all
        self._decisions = parts.decisions
        self._undoing = undoing
        self._run_graph = run_graph
        self.worked: dict[str, Seconds] = {}
        """How long the last try of each step took that had a task run of its own, without Prefect's part."""

    def _observe(self, event: RunEvent) -> None:
        self._observe_all([event])

    async def run(self, step: Step, after: list[str], stop: Stop) -> None:
        """Run a step to its record; `after` are the steps that it waited for. Raises StepFailed, ApprovalAwaited."""
        if await self._take_recorded(step, stop):
            return
        started = time.monotonic()
        try:
            if not is_wanted(step, self._books.scope(step)):
                self._end(step, StepResult(step.id, step.instruction.op, StepStatus.SKIPPED))
                return
            await self._run_wanted(step, after, started, stop)
        except EXPECTED as problem:
            await self.failed(step, problem, started, stop)

    async def failed(self, step: Step, problem: Exception, started: float, stop: Stop) -> None:
        """Put it on record and handle it, as the instruction says. Raises StepFailed if that ends the run."""
        error = self._attempts.clean(_as_error(problem))
        self._fail(step, error, started)
        if isinstance(error, FATAL):
            raise StepFailed(step, error) from problem
        await self._handle(step, error, stop)

    async def _run_wanted(self, step: Step, after: list[str], started: float, stop: Stop) -> None:
        if step.deferred_expansion:
            await self._run_expansion(step, stop)
        else:
            await self._decide_approval(step, stop)
            while True:
                try:
                    async with self._places.one_for(step):
                        stop.check()
                        await self._run_operation(step, after, started, stop)
                except ApprovalNeeded as needed:
                    await self._decide(
                        step, needed.subject, needed.message, stop, needed.as_json(), in_advance=needed.in_advance
                    )
                else:
                    return

    async def _take_recorded(self, step: Step, stop: Stop) -> bool:
        """Whether the step ended before this process came, other than by success or by failing the run.

        One that succeeded goes to its runner all the same, so that Prefect shows it as cached; see `_run_operation`.
        """
        record = self._books.recorded.get(step.id)
        if record is None or record.status not in (StepStatus.SKIPPED, StepStatus.FAILED):
            return False
        result = StepResult.of(record)
        if record.status == StepStatus.FAILED and (step.instruction.on_error == "fail" or result.error is None):
            return False
        self._books.set(result)
        if result.error is not None:
            await self._handle(step, result.error, stop)
        return True

    async def _run_operation(self, step: Step, after: list[str], started: float, stop: Stop) -> None:
        result = StepResult(step.id, step.instruction.op, StepStatus.RUNNING)
        self._books.results[step.id] = result
        recorded = self._recorded_or_started(step)
        verdict = None if recorded is not None else await self._judged(step)
        result.reason = None if verdict is None else verdict.reason
        why = DONE_BEFORE if recorded is not None else verdict.reason if verdict is not None and verdict.reused else ""

        asked: list[ApprovalNeeded] = []

        async def attempt() -> Outputs:
            if recorded is not None:
                return recorded.outputs or {}
            if verdict is not None and verdict.reused:
                return verdict.outputs or {}
            result.attempts += 1
            if result.attempts > 1:
                self._observe(RunEvent(EventKind.STEP_RETRIED, step.id, step.instruction.op, f"try {result.attempts}"))
            return await self._attempt(step, stop, asked)

        if self._runner is None:
            raise QuantumError("a run without a runner cannot run steps")
        outputs = await _unless_asked(asked, stop, partial(self._runner.run, step, attempt, after, reuse=why))
        if recorded is not None:
            self._books.set(StepResult.of(recorded))
            return
        if verdict is not None and verdict.reused:
            self._end(step, StepResult.reused(step.id, step.instruction.op, outputs, verdict.reason))
            return
        if verdict is not None and self._reusing is not None:
            await self._threads.run(partial(self._reusing.has_run, step, self._books.scope(step), verdict))
        result.status, result.outputs, result.duration_s = StepStatus.SUCCEEDED, outputs, time.monotonic() - started
        self._end(step, result)

    def _recorded_or_started(self, step: Step) -> StepRecord | None:
        """The record of a step that an earlier process has done; else it is told that the step starts."""
        recorded = self._books.recorded.get(step.id)
        if recorded is not None and recorded.status in DONE:
            return recorded
        self._observe(RunEvent(EventKind.STEP_STARTED, step.id, step.instruction.op))
        return None

    async def _judged(self, step: Step) -> Verdict | None:
        """Whether the step is reused, if that is asked for."""
        if self._reusing is None:
            return None
        verdict: Verdict | None = await self._threads.run(partial(self._reusing.verdict, step, self._books.scope(step)))
        return verdict

    async def _attempt(self, step: Step, stop: Stop, asked: list[ApprovalNeeded]) -> Outputs:
        """One try, in a thread. A cancellation (Prefect's time-out) ends the operation, and then undoes it."""
        if step.id in self._attempts.stuck:
            raise self._attempts.stuck[step.id]
        started = time.monotonic()
        try:
            outputs = await self._threads.run_step(partial(self._attempts.make, step), stop)
        except ApprovalNeeded as needed:
            asked.append(needed)
            raise
        self.worked[step.id] = time.monotonic() - started
        return outputs

    # Steps that become several.

    async def _run_expansion(self, step: Step, stop: Stop) -> None:
        expansion = self._books.expand(step)
        if not expansion.steps:
            self._books.add_groups(expansion)
            self._end(step, StepResult(step.id, step.instruction.op, StepStatus.SUCCEEDED))
            return
        if step.is_list:
            await self._run_inner(step, step.id, expansion, stop)
            return
        for number in range(step.instruction.retries + 1):
            limit = asyncio.timeout(step.instruction.timeout)
            try:
                with stop.inside() as inner:
                    async with limit:
                        await self._run_inner(step, step.id, expansion, inner)
                return
            except (StepFailed, TimeoutError) as problem:
                if isinstance(problem, TimeoutError) and not limit.expired():
                    raise
                if isinstance(problem, StepFailed) and isinstance(problem.error, FATAL):
                    raise
                await self._undoing.steps(expansion.steps)
                if number == step.instruction.retries:
                    raise _call_failed(step, problem) from problem
                await stop.wait(partial(asyncio.sleep, _delay(step, number)))

    async def _run_inner(self, step: Step, name: str, expansion: Expansion, stop: Stop) -> None:
        await self._run_graph(self._books.take_in(name, expansion), step, stop)

    # Failure.

    def _fail(self, step: Step, error: QuantumError, started: float) -> None:
        result = self._books.results.get(step.id) or StepResult(step.id, step.instruction.op, StepStatus.FAILED)
        result.status, result.error, result.duration_s = StepStatus.FAILED, error, time.monotonic() - started
        self._end(step, result)

    async def _handle(self, step: Step, error: QuantumError, stop: Stop) -> None:
        handler = step.instruction.on_error
        if handler == "continue":
            return
        if isinstance(handler, ErrorHandler) and handler.llm is not None:
            await self._repair(step, handler, error, stop)
            return
        if isinstance(handler, ErrorHandler):
            await self._run_inner(step, f"{step.id}/on_error", handler_steps(step, handler), stop)
            return
        raise StepFailed(step, error)

    async def _repair(self, step: Step, handler: ErrorHandler, error: QuantumError, stop: Stop) -> None:
        """Have a model repair what made the step fail, and try it again: then it has succeeded.

        Raises StepFailed with what is known of the failure; what was tried is undone.
        """
        name = f"{step.id}/on_error"
        expansion = handler_steps(step, handler, error.message)
        try:
            await self._run_inner(step, name, expansion, stop)
        except StepFailed as failed:
            if isinstance(failed.error, FATAL):
                raise
            error = self._attempts.clean(_with_diagnosis(error, self._books.results.get(f"{name}/{FIX}"), failed))
            await self._undoing.steps(expansion.steps)
            result = self._books.results.get(step.id) or StepResult(step.id, step.instruction.op, StepStatus.FAILED)
            result.status, result.error = StepStatus.FAILED, error
            self._books.end(result, durable=True)
            raise StepFailed(step, error) from failed
        again = self._books.results.get(f"{name}/{AGAIN}")
        outputs = again.outputs if again is not None else None
        repaired = StepResult(step.id, step.instruction.op, StepStatus.SUCCEEDED, outputs=outputs or {})
        repaired.reason = "repaired by a model, and tried again"
        self._books.end(repaired, durable=True)

    # Approvals.

    async def _decide_approval(self, step: Step, stop: Stop) -> None:
        """Pass if the step needs no approval or has it. Raises ApprovalAwaited, and OperationError when rejected."""
        if step.instruction.op != "approval":
            return
        decision = self._decisions.get(step.id)
        if decision is None:
            message = str(getattr(resolved_parameters(step, self._books.scope(step)), "message", ""))
            decision = await self._decide(step, step.id, message, stop)
        if not decision:
            raise OperationError("the approval was rejected", hint="")

    async def _decide(
        self,
        step: Step,
        subject: str,
        message: str,
        stop: Stop,
        about: Mapping[str, Any] | None = None,
        *,
        in_advance: bool = True,
    ) -> bool:
        """What somebody who can be asked now has decided, on record. Raises ApprovalAwaited where nobody can."""
        decision = await self._ask(step, message, stop, in_advance=in_advance)
        if decision is None:
            operation = step.instruction.op
            self._observe(RunEvent(EventKind.AWAITING_APPROVAL, step.id, operation, message))
            awaiting = StepResult(step.id, operation, StepStatus.AWAITING_APPROVAL, outputs=about)
            self._books.results[step.id] = awaiting
            self._journal.record_step(self._id, awaiting.record())
            raise ApprovalAwaited(step, message)
        self._settings.decided(subject, decision)
        self._journal.decide(self._id, subject, approved=decision, actor=self._settings.actor)
        self._decisions[subject] = decision
        return decision

    async def _ask(self, step: Step, message: str, stop: Stop, *, in_advance: bool) -> bool | None:
        if in_advance and self._settings.approve and step.scope.document.trust is Trust.TRUSTED:
            return True
        if self._settings.ask is None:
            return None
        ask = partial(self._settings.ask, step.id, message)
        return await stop.wait(partial(in_a_thread_left_behind, ask))

    # The books.

    def _end(self, step: Step, result: StepResult) -> None:
        if step.instruction.op == CHECKPOINT:
            self._workspace.sync()
        self._books.end(result, durable=self._is_costly(step, result))
        self._observe(RunEvent.finished(result))

    def _is_costly(self, step: Step, result: StepResult) -> bool:
        """Whether running it again would be noticed: by the time it takes, or by what it is."""
        if result.status is StepStatus.REUSED:
            return False
        if result.duration_s >= COSTLY_SECONDS or step.instruction.op == CHECKPOINT:
            return True
        effects = self._graph.effects.get(step.id) or effects_of(step, self._books.scope(step))
        return not effects.predictable or effects.barrier


async def _unless_asked(
    asked: list[ApprovalNeeded], stop: Stop, work: Callable[[], Coroutine[Any, Any, Outputs]]
) -> Outputs:
    """What the work gives. Raises ApprovalNeeded, which the runner may know as an interruption only."""
    try:
        return await stop.wait(work)
    except Interrupted:
        stop.check()
        raise asked[-1] if asked else Interrupted from None


def _call_failed(step: Step, problem: StepFailed | TimeoutError) -> OperationError:
    if isinstance(problem, StepFailed):
        return OperationError(str(problem), hint=problem.error.hint)
    return TimedOut(f"took longer than {step.instruction.timeout:g} s; all that it had started was ended")


def _with_diagnosis(error: QuantumError, fix: StepResult | None, failed: StepFailed) -> QuantumError:
    """The error itself, which also says what a model or rules have made of it, and what came of that."""
    diagnosis = (fix.outputs or {}).get("diagnosis") if fix is not None else None
    if failed.step.id.endswith(f"/{FIX}"):
        error.message += f"\n{failed.error.message}"
    else:
        said = f"diagnosis: {diagnosis['cause']} ({diagnosis['explanation']})" if diagnosis else "it was repaired"
        error.message += f"\n{said}; tried again, it failed: {failed.error.message}"
    error.args = (error.message,)
    return error


def _delay(step: Step, number: int) -> float:
    delays = step.instruction.retry_delay
    if isinstance(delays, list):
        return delays[min(number, len(delays) - 1)] if delays else 0.0
    return delays


def _as_error(problem: Exception) -> QuantumError:
    if isinstance(problem, QuantumError):
        return problem
    return OperationError(
        f"it refers to the outputs of a step that has none: {problem}",
        hint="a skipped step has no outputs; test steps.<id>.status first",
    )

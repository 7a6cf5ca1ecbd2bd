"""A run: the steps of a set, carried out in the order that the plan found, and what becomes of their effects.

The engine decides and keeps the books; it does not know Prefect. Each step is handed to a `StepRunner` (Prefect's is in
`flows/orchestrate.py`), which calls the attempt that it is given, again after a failure if the instruction says so. The
journal is the authority: a step that it records as done is not run again, whoever asks.

How a run ends:
- every step succeeded (or its failure was handled): the effects stay, *committed*;
- a step failed: what runs is waited for, and all effects are undone (*rolled back*), or those up to the failed step
  stay (*kept*, *paused*). Steps that would have come after it, one by one, but had run already, are undone, so that
  what stays is what a run one by one leaves;
- an interrupt undoes everything (*cancelled*); an approval that nobody has given leaves the run *awaiting* it;
- a path that somebody else changed meanwhile is left alone: the run *needs attention*.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from quantum_orchestrator.blocks.errors import Interrupted, NeedsAttention, OperationError, QuantumError, TimedOut
from quantum_orchestrator.blocks.journal import RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.blocks.sandbox import Processes
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import GIT, Workspace
from quantum_orchestrator.flows.document import ErrorHandler, InstructionSet, OnFailure, Trust
from quantum_orchestrator.flows.expressions import Scope
from quantum_orchestrator.flows.plan import (
    Expansion,
    Graph,
    Step,
    connect,
    effects_of,
    expand,
    expand_step,
    handler_steps,
    resolved_parameters,
    values_of,
)
from quantum_orchestrator.flows.prediction import is_wanted
from quantum_orchestrator.flows.results import (
    EventKind,
    RunEvent,
    RunStatus,
    RunValues,
    StepResult,
    StepStatus,
    error_json,
)
from quantum_orchestrator.flows.schedule import ReadyQueue
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import CancelToken, Context, Effects, Unknown

Outputs = Mapping[str, Any]
Attempt = Callable[[], Awaitable[Outputs]]
Observer = Callable[[RunEvent], None]


EXPECTED = (QuantumError, Unknown)
"""What fails a step without being a defect of its operation."""


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


class StepRunner(Protocol):
    """Carries out one step by calling `attempt`, more than once where the instruction's `retries` says so."""

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: bool) -> Outputs:
        """The outputs of the attempt that succeeded.

        `after` are the steps that this one waited for. With `reuse` the journal holds the step's outputs, and a
        result that was stored for it may be taken; without, it must not be, as the effects may have been undone.
        Raises what the last attempt raised, TimedOut when the instruction's `timeout` ended it, and Interrupted.
        """


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the caller chooses for one run."""

    parallel: int
    on_failure: OnFailure
    approve: bool = False
    """Every approval is given in advance."""
    actor: str = "unknown"
    ask: Callable[[str, str], bool | None] | None = None
    """Asks a person at a terminal: step id and message to yes, no, or None for no answer."""
    secrets: Callable[[Sequence[str]], Mapping[str, str]] = lambda _names: {}
    """Values of secrets by name."""


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    status: RunStatus
    error: QuantumError | None = None
    failed_step: str | None = None
    conflicts: list[str] = field(default_factory=list)


class Run:
    """One run of one set in one workspace, whose lock the caller holds."""

    def __init__(
        self,
        record: RunRecord,
        document: InstructionSet,
        workspace: Workspace,
        settings: RunSettings,
        *,
        policy: Policy,
        runner: StepRunner,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`record` is in the journal already; a run that was begun before goes on from what the journal holds."""
        self.id = record.id
        self.document = document
        self.workspace = workspace
        self.journal = workspace.journal
        self.settings = settings
        self.policy = policy
        self.runner = runner
        self.expansion = expand(document, record.inputs)
        self.graph = connect(self.expansion, document.order)
        self.results: dict[str, StepResult] = {}
        self.inner: dict[str, Expansion] = {}
        """What steps became while running, by their id (an error handler's under `<id>/on_error`)."""
        self._observers = list(observers)
        self._values = RunValues(self.graph.groups)
        self._values_of_run = {"id": record.id, "name": document.name, "started_at": record.started_at}
        self._recorded = self.journal.steps(record.id)
        self._decisions = self.journal.decisions(record.id)
        self._places = asyncio.Semaphore(settings.parallel)
        self._threads = ThreadPoolExecutor(settings.parallel, thread_name_prefix="step")
        self._tokens: set[CancelToken] = set()
        self._interrupted = False
        self._stopping = False

    # The whole.

    async def execute(self) -> Outcome:
        """Run to an end, whichever; the journal and the workspace agree when it returns."""
        try:
            outcome = await self._execute()
        finally:
            self._threads.shutdown(wait=True)
        self.journal.update(
            self.id,
            status=outcome.status.value,
            ended_at=time.time(),
            error=None if outcome.error is None else error_json(outcome.error),
        )
        return outcome

    async def _execute(self) -> Outcome:
        try:
            async with asyncio.timeout(self.document.timeout):
                await self._run_graph(self.graph, None)
        except ApprovalAwaited as awaited:
            return Outcome(RunStatus.AWAITING_APPROVAL, failed_step=awaited.step.id)
        except StepFailed as failed:
            return await self._after_failure(failed)
        except Interrupted:
            return await self._roll_back(Outcome(RunStatus.CANCELLED))
        except TimeoutError:
            error = OperationError(f"the run took longer than its timeout of {self.document.timeout:g} s")
            return await self._roll_back(Outcome(RunStatus.ROLLED_BACK, error))
        except Exception as problem:  # the engine's own, or Prefect's: nothing half done may stay all the same
            defect = QuantumError(f"the run broke off: {type(problem).__name__}: {problem}", hint="-v shows where")
            defect.__cause__ = problem
            return await self._roll_back(Outcome(RunStatus.ROLLED_BACK, defect))
        await asyncio.to_thread(self.workspace.folder.syncfs)
        return Outcome(RunStatus.COMMITTED)

    def interrupt(self) -> None:
        """Ask for the end: running steps are stopped, and `execute` undoes everything. Safe in a signal handler."""
        self._interrupted = True
        self._stop_all()

    def observe(self, event: RunEvent) -> None:
        """Tell everybody who watches."""
        for observer in self._observers:
            observer(event)

    def _stop_all(self) -> None:
        self._stopping = True
        for token in list(self._tokens):
            token.cancel()

    # A graph of steps: the set's own, a called set's, the rounds of a list, an error handler's.

    async def _run_graph(self, graph: Graph, owner: Step | None) -> None:
        """Run all steps. Raises StepFailed for the failure that comes first one by one, after all others ended."""
        queue = ReadyQueue(graph, parallel=self.settings.parallel)
        running: dict[asyncio.Task[None], Step] = {}
        problems: dict[Step, BaseException] = {}
        try:
            while True:
                for step in [] if self._stopping else queue.take():
                    after = sorted(graph.predecessors[step.id]) or ([] if owner is None else self._waited(owner))
                    running[asyncio.create_task(self._run_step(step, after))] = step
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._ended(queue, running.pop(task), task.exception(), problems)
        except asyncio.CancelledError:
            self._stop_all()
            await asyncio.gather(*running, return_exceptions=True)
            raise
        if self._interrupted:
            raise Interrupted
        for step in sorted(problems, key=lambda each: graph.position[each.id]):
            raise problems[step]

    def _ended(
        self, queue: ReadyQueue, step: Step, problem: BaseException | None, problems: dict[Step, BaseException]
    ) -> None:
        if problem is None:
            queue.finish(step.id)
            return
        problems[step] = problem
        queue.stop_after(step.id)
        if self.settings.on_failure is OnFailure.ROLLBACK and step.instruction.on_error == "fail":
            queue.stop()  # everything is undone anyway

    def _waited(self, step: Step) -> list[str]:
        return sorted(self.graph.predecessors.get(step.id, ()))

    # One step.

    async def _run_step(self, step: Step, after: list[str]) -> None:
        if await self._take_recorded(step):
            return
        started = time.monotonic()
        try:
            if not is_wanted(step, self._scope(step)):
                self._end(step, StepResult(step.id, step.instruction.op, StepStatus.SKIPPED))
                return
            await self._run_wanted(step, after, started)
        except EXPECTED as problem:
            error = _as_error(problem)
            self._fail(step, error, started)
            await self._handle(step, error)

    def _scope(self, step: Step) -> Scope:
        return values_of(step, self._values.view(step.scope.prefixes), self._values_of_run)

    async def _run_wanted(self, step: Step, after: list[str], started: float) -> None:
        if step.deferred_expansion:
            await self._run_expansion(step)
        else:
            await self._decide_approval(step)
            async with self._places:
                if self._stopping:
                    raise Interrupted
                await self._run_operation(step, after, started)

    async def _take_recorded(self, step: Step) -> bool:
        """Whether the step ended before this process came, other than by success or by failing the run.

        One that succeeded goes to its runner all the same, so that Prefect shows it as cached; see `_run_operation`.
        """
        record = self._recorded.get(step.id)
        if record is None or record.status not in (StepStatus.SKIPPED, StepStatus.FAILED):
            return False
        result = StepResult.of(record)
        if record.status == StepStatus.FAILED and (step.instruction.on_error == "fail" or result.error is None):
            return False
        self._set(step, result)
        if result.error is not None:
            await self._handle(step, result.error)
        return True

    async def _run_operation(self, step: Step, after: list[str], started: float) -> None:
        result = StepResult(step.id, step.instruction.op, StepStatus.RUNNING)
        self.results[step.id] = result
        self.observe(RunEvent(EventKind.STEP_STARTED, step.id, step.instruction.op))

        recorded = self._recorded.get(step.id)
        if recorded is not None and recorded.status != StepStatus.SUCCEEDED:
            recorded = None

        async def attempt() -> Outputs:
            if recorded is not None:
                return recorded.outputs or {}
            result.attempts += 1
            if result.attempts > 1:
                self.observe(RunEvent(EventKind.STEP_RETRIED, step.id, step.instruction.op, f"try {result.attempts}"))
            return await self._attempt(step)

        outputs = await self.runner.run(step, attempt, after, reuse=recorded is not None)
        if recorded is not None:
            self._set(step, StepResult.of(recorded))
            return
        result.status, result.outputs, result.duration_s = StepStatus.SUCCEEDED, outputs, time.monotonic() - started
        self._end(step, result)

    async def _attempt(self, step: Step) -> Outputs:
        """One try, in a thread. A cancellation (Prefect's time-out) ends the operation, and then undoes it."""
        token = CancelToken()
        self._tokens.add(token)
        if self._stopping:
            token.cancel()
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._try, step, token)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            token.cancel()
            with anyio.CancelScope(shield=True):  # the step must have undone itself before anybody goes on
                await asyncio.wait([work])
            raise
        finally:
            self._tokens.discard(token)

    def _try(self, step: Step, token: CancelToken) -> Outputs:
        try:
            return self._perform(step, token)
        except BaseException as problem:
            self.workspace.undo(self.id, step.id)  # a failed try leaves nothing, also if it is tried again
            if isinstance(problem, Exception) and not isinstance(problem, EXPECTED):
                raise OperationError(f"{type(problem).__name__}: {problem}", hint="-v shows where") from problem
            raise

    def _perform(self, step: Step, token: CancelToken) -> Outputs:
        scope = self._scope(step)
        effects = effects_of(step, scope)
        context = self._context(step, token)
        operation = registry.get(step.instruction.op)
        parameters = resolved_parameters(step, scope)
        if effects.predictable:
            outputs = operation.run(parameters, context)
            self.workspace.apply(self.id, step.id, context.files.changes(), context.files.content_of)
            dumped: dict[str, Any] = outputs.model_dump(mode="json")
            return dumped
        return self._watched(step, effects, lambda: operation.run(parameters, context).model_dump(mode="json"))

    def _watched(self, step: Step, effects: Effects, act: Callable[[], dict[str, Any]]) -> Outputs:
        """Run an operation that acts by itself between a capture and its difference."""
        areas = [*(access.path for access in effects.writes), *effects.makes]
        if not areas:
            return act()
        self.workspace.capture(self.id, step.id, areas)
        outputs = act()
        changes = self.workspace.finish(self.id, step.id)
        if "changed" in outputs and not outputs["changed"]:  # a script cannot know
            outputs["changed"] = [change.path for change in changes if GIT not in change.path.split("/")]
        return outputs

    def _context(self, step: Step, token: CancelToken) -> Context:
        document, instruction = step.scope.document, step.instruction
        secrets = self.settings.secrets(instruction.secrets) if instruction.secrets else {}
        return Context(
            files=Overlay(self.workspace.tree),
            step_id=step.id,
            set_name=document.name,
            run_id=self.id,
            env={**self.document.env, **document.env, **secrets},
            cancel=token,
            log=lambda line: self.observe(RunEvent(EventKind.LOG, step.id, instruction.op, line)),
            root=self.workspace.root,
            policy=self.policy,
            processes=Processes(),
            repository=Repository(self.workspace.root, self.policy),
        )

    # Steps that become several.

    async def _run_expansion(self, step: Step) -> None:
        expansion = expand_step(step, self._values.view(step.scope.prefixes), self._values_of_run)
        if not expansion.steps:
            self._values.groups.update(expansion.groups)
            self._end(step, StepResult(step.id, step.instruction.op, StepStatus.SUCCEEDED))
            return
        if step.is_list:
            await self._run_inner(step, step.id, expansion)
            return
        for number in range(step.instruction.retries + 1):
            try:
                async with asyncio.timeout(step.instruction.timeout):
                    await self._run_inner(step, step.id, expansion)
                return
            except (StepFailed, TimeoutError) as problem:
                await self._undo_inner(expansion)
                if number == step.instruction.retries:
                    raise _call_failed(step, problem) from problem
                await asyncio.sleep(_delay(step, number))

    async def _run_inner(self, step: Step, name: str, expansion: Expansion) -> None:
        self.inner[name] = expansion
        self._values.groups.update(expansion.groups)
        await self._run_graph(connect(expansion), step)

    async def _undo_inner(self, expansion: Expansion) -> None:
        for inner in reversed(expansion.steps):
            await self._take_back(inner)

    async def _take_back(self, step: Step) -> None:
        """Undo a step and all that it became, as if it had not run."""
        for step_id in [*self._all_inside(step.id), step.id]:
            await asyncio.to_thread(self.workspace.undo, self.id, step_id)
            if self.results.pop(step_id, None) is not None:
                self.journal.set_step_status(self.id, step_id, StepStatus.PENDING.value)

    # Failure.

    def _fail(self, step: Step, error: QuantumError, started: float) -> None:
        result = self.results.get(step.id) or StepResult(step.id, step.instruction.op, StepStatus.FAILED)
        result.status, result.error, result.duration_s = StepStatus.FAILED, error, time.monotonic() - started
        self._end(step, result)

    async def _handle(self, step: Step, error: QuantumError) -> None:
        handler = step.instruction.on_error
        if handler == "continue":
            return
        if isinstance(handler, ErrorHandler):
            await self._run_inner(step, f"{step.id}/on_error", handler_steps(step, handler))
            return
        raise StepFailed(step, error)

    async def _after_failure(self, failed: StepFailed) -> Outcome:
        outcome = Outcome(RunStatus.ROLLED_BACK, failed.error, failed.step.id)
        if self.settings.on_failure is OnFailure.ROLLBACK:
            return await self._roll_back(outcome)
        await self._undo_what_came_after(failed.step)
        paused = self.settings.on_failure is OnFailure.PAUSE
        outcome.status = RunStatus.PAUSED if paused else RunStatus.KEPT
        return outcome

    async def _undo_what_came_after(self, failed: Step) -> None:
        """Undo steps that ran ahead of a failure: one by one, they would not have run."""
        place = self._place_of(failed.id)
        ahead = [step for step in self.graph.steps if self.graph.position[step.id] > place]
        for step in reversed(ahead):
            await self._take_back(step)

    def _place_of(self, step_id: str) -> int:
        """The place of a step, or of the step of the set's own graph that it is inside of."""
        if step_id in self.graph.position:
            return self.graph.position[step_id]
        owners = [step.id for step in self.graph.steps if step_id in self._all_inside(step.id)]
        return self.graph.position[owners[0]]

    def _all_inside(self, step_id: str) -> list[str]:
        names = [name for name in (step_id, f"{step_id}/on_error") if name in self.inner]
        inside = [inner.id for name in names for inner in self.inner[name].steps]
        return [each for inner in reversed(inside) for each in (*self._all_inside(inner), inner)]

    async def _roll_back(self, outcome: Outcome) -> Outcome:
        """Undo everything that the run did; a second interrupt does not stop it."""
        self.observe(RunEvent(EventKind.ROLLING_BACK, message=str(outcome.error or "interrupted")))
        await self._compensate()
        undo = await asyncio.to_thread(self.workspace.undo, self.id)
        await asyncio.to_thread(self.workspace.folder.syncfs)
        for result in self.results.values():
            if result.status in (StepStatus.SUCCEEDED, StepStatus.RUNNING):
                result.status = StepStatus.ROLLED_BACK
                self.journal.record_step(self.id, result.record())
        if undo.conflicts:
            outcome.conflicts = undo.conflicts
            outcome.status = RunStatus.NEEDS_ATTENTION
            outcome.error = conflict_error(self.id, undo.conflicts)
        return outcome

    async def _compensate(self) -> None:
        """Run the `undo` instructions of the steps that have succeeded, the last one first."""
        steps = [step for step in self.graph.steps if step.instruction.undo is not None]
        self._stopping, interrupted, self._interrupted = False, self._interrupted, False
        for step in reversed(steps):
            result, undo = self.results.get(step.id), step.instruction.undo
            if undo is None or result is None or result.status is not StepStatus.SUCCEEDED:
                continue
            compensation = Step(f"{step.id}/undo", undo, step.scope, step.item)
            try:
                await asyncio.to_thread(self._try, compensation, CancelToken())
            except QuantumError as error:
                message = f"its undo failed, and what it did outside the workspace stands: {error.message}"
                self.observe(RunEvent(EventKind.LOG, step.id, undo.op, message))
        self._interrupted = interrupted

    # Approvals.

    async def _decide_approval(self, step: Step) -> None:
        """Pass if the step needs no approval or has it. Raises ApprovalAwaited, and OperationError when rejected."""
        if step.instruction.op != "approval":
            return
        decision = self._decisions.get(step.id)
        if decision is None:
            message = str(getattr(resolved_parameters(step, self._scope(step)), "message", ""))
            decision = await self._ask(step, message)
            if decision is None:
                self.observe(RunEvent(EventKind.AWAITING_APPROVAL, step.id, "approval", message))
                awaiting = StepResult(step.id, "approval", StepStatus.AWAITING_APPROVAL)
                self.results[step.id] = awaiting
                self.journal.record_step(self.id, awaiting.record())
                raise ApprovalAwaited(step, message)
            self.journal.decide(self.id, step.id, approved=decision, actor=self.settings.actor)
        if not decision:
            raise OperationError("the approval was rejected", hint="")

    async def _ask(self, step: Step, message: str) -> bool | None:
        if self.settings.approve and self.document.trust is Trust.TRUSTED:
            return True
        if self.settings.ask is None:
            return None
        return await asyncio.to_thread(self.settings.ask, step.id, message)

    # The books.

    def _end(self, step: Step, result: StepResult) -> None:
        self._set(step, result)
        self.journal.record_step(self.id, result.record(), done=True)
        message = result.error.message if result.error else ""
        self.observe(RunEvent(EventKind.STEP_FINISHED, step.id, result.op, message, result.status, result.duration_s))

    def _set(self, step: Step, result: StepResult) -> None:
        self.results[step.id] = result
        self._values.set(step.id, result.status, result.outputs or {})


def _call_failed(step: Step, problem: StepFailed | TimeoutError) -> OperationError:
    if isinstance(problem, StepFailed):
        return OperationError(str(problem), hint=problem.error.hint)
    return TimedOut(f"took longer than {step.instruction.timeout:g} s; all that it had started was ended")


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


def conflict_error(run_id: str, paths: Sequence[str]) -> NeedsAttention:
    """Somebody else changed paths that were to be put back."""
    shown = ", ".join(paths[:10]) + (f" and {len(paths) - 10} more" if len(paths) > 10 else "")
    return NeedsAttention(
        f"changed by somebody else meanwhile, and left as they are: {shown}",
        hint=f"`qo diff {run_id}` shows what the run did; settle the files by hand",
    )

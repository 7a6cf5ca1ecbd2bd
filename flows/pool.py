"""Graphs of steps: what is ready begins, by itself or with others, as far as there are places.

One graph is the set's own; others are a called set's, the rounds of a list, an error handler's: all share the places.
How a single step goes on is `flows/one_step.py`'s matter, what a batch does that of `flows/batching.py` and
`flows/script_batches.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from quantum_orchestrator.blocks import machine
from quantum_orchestrator.blocks.errors import (
    QuantumError,
)
from quantum_orchestrator.flows.attempts import (
    Outputs,
)
from quantum_orchestrator.flows.batching import Batch, Batches, BatchSize, is_cheap
from quantum_orchestrator.flows.document import OnFailure, RollbackTo
from quantum_orchestrator.flows.one_step import COSTLY_SECONDS, DONE_BEFORE, RunParts, StepFailed, Steps
from quantum_orchestrator.flows.plan import (
    Graph,
    Step,
)
from quantum_orchestrator.flows.priorities import best_order
from quantum_orchestrator.flows.results import (
    DONE,
    RunEvent,
    StepResult,
    StepStatus,
)
from quantum_orchestrator.flows.schedule import ReadyQueue
from quantum_orchestrator.flows.script_batches import RELIEF_SECONDS, ScriptBatch, is_quiet
from quantum_orchestrator.flows.script_batches import TARGET_SECONDS as SCRIPTS_SECONDS
from quantum_orchestrator.flows.stopping import Stop
from quantum_orchestrator.tasks.operation import Effects

Ends = list[tuple[Step, BaseException | None]]
"""Steps that have ended, with what ends the run for it."""
_Kind = Callable[[Step, Effects], bool]
"""A kind of batch, by what says which steps it takes."""
_Tell = Callable[[Sequence[Step], Sequence[Step]], None]
"""Tells which steps of a group at work have ended, and which have not begun and will not."""


class Pool:
    """Runs the graphs of one run."""

    def __init__(self, parts: RunParts, steps: Steps) -> None:
        self._document = parts.document
        self._settings = parts.settings
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
        self._steps = steps
        self._capacity = machine.capacity()
        self._batches = Batches(parts.books, parts.workspace, parts.attempts, parts.observe_all, parts.reusing)
        self._sizes: dict[_Kind, BatchSize] = {
            is_cheap: BatchSize(len(self._graph.steps)),
            is_quiet: BatchSize(target=SCRIPTS_SECONDS),
        }
        self._alone: set[str] = set()
        """Steps that were refused as members of a batch."""

    def _observe(self, event: RunEvent) -> None:
        self._observe_all([event])

    async def reuse_all(self, stop: Stop) -> bool:
        """Whether nothing of a large set has to run: its steps then end here, as one batch."""
        steps, reusing, runner = self._graph.steps, self._reusing, self._runner
        if runner is None or reusing is None or self._books.recorded or not self._is_batched(self._graph):
            return False
        found: list[StepResult] = await self._threads.run(partial(reusing.all_of, steps, self._books))
        if not found:
            return False

        async def attempt() -> Mapping[str, Outputs]:
            records = [result.record() for result in found]
            await self._threads.run(partial(self._journal.record_steps, self._id, records, durable=False))
            return {result.id: result.outputs or {} for result in found}

        why = partial(why_none_ran, steps, (), found)
        await stop.wait(partial(runner.run_batch, steps, attempt, (), reuse=why))
        for each in found:
            self._observe(RunEvent.finished(each))
        return True

    async def run(self, graph: Graph, owner: Step | None, stop: Stop) -> None:
        """Run all steps. Raises StepFailed for the failure that comes first one by one, after all others ended."""
        queue = self._queue(graph)
        running: dict[asyncio.Future[Ends], list[Step]] = {}
        problems: dict[Step, BaseException] = {}
        relief = _Relief(queue)
        try:
            while True:
                queue.parallel = self._places.now
                for group in [] if stop.stopped else self._take(queue, graph):
                    members = list(group)
                    tell = partial(relief.tell, members)
                    running[asyncio.create_task(self._run_group(group, graph, owner, stop, tell))] = members
                if not running:
                    break
                waited: list[asyncio.Future[Any]] = [*running, relief.bell()]
                patience = self._places.adapt(short=queue.is_short_of_places)
                await asyncio.wait(waited, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task.done()]:
                    self._ended(queue, running.pop(task), task, problems)
        except asyncio.CancelledError:
            stop.stop()
            with anyio.CancelScope(shield=True):  # nothing of it may go on when the caller does
                await asyncio.gather(*running, return_exceptions=True)
            raise
        stop.check()
        for step in sorted(problems, key=lambda each: graph.position[each.id]):
            raise problems[step]

    def _queue(self, graph: Graph) -> ReadyQueue:
        chosen: dict[str, Any] = {"capacity": self._capacity, "only_waits": self._places.only_waits}
        order = best_order(graph, parallel=self._places.now, duration_of=self._settings.duration_of, **chosen)
        return ReadyQueue(graph, parallel=self._places.now, priorities=order, **chosen)

    def _ended(
        self, queue: ReadyQueue, group: Sequence[Step], task: asyncio.Future[Ends], problems: dict[Step, BaseException]
    ) -> None:
        broken_off = task.exception()
        ends = task.result() if broken_off is None else [(group[0], broken_off)]
        if broken_off is not None and len(group) > 1:
            queue.stop()
        ended, members = {step.id for step, _ in ends}, {step.id for step in group}
        for step in group:
            if step.id not in ended:
                queue.give_back(step.id)
        for step, problem in ends:
            if step.id not in members:  # the queue was told while the others were at work
                continue
            if problem is None:
                queue.finish(step.id)
                continue
            problems[step] = problem
            queue.stop_after(step.id)
            if not _keeps_what_came_before(self._settings.on_failure) and step.instruction.on_error == "fail":
                queue.stop()  # everything is undone anyway

    def _take(self, queue: ReadyQueue, graph: Graph) -> list[list[Step]]:
        """Groups of steps to start now: of one step, or of several that one kind of batch does."""
        size = max(each.value for each in self._sizes.values()) if self._is_batched(graph) else 1
        groups: list[list[Step]] = []
        while taken := queue.take_together(lambda step: self._kind(graph, step) is not None, size):
            groups += [self._of_one_kind(group, queue, graph) for group in taken]
        return groups

    def _is_batched(self, graph: Graph) -> bool:
        """Whether steps of the graph may be done together."""
        return self._document.batch != "off" and len(graph.steps) >= self._settings.batch_from

    def _of_one_kind(self, group: list[Step], queue: ReadyQueue, graph: Graph) -> list[Step]:
        """The part of a group that goes with its first step; the others are given back."""
        kind = self._kind(graph, group[0])
        if kind is None:
            return group
        kept, gone = list[Step](), set[str]()
        for step in group:
            alike = len(kept) < self._sizes[kind].value and self._kind(graph, step) is kind
            if alike and gone.isdisjoint(graph.predecessors[step.id]):
                kept.append(step)
            else:
                gone.add(step.id)
                queue.give_back(step.id)
        return kept

    async def _run_group(
        self, group: Sequence[Step], graph: Graph, owner: Step | None, stop: Stop, tell: _Tell
    ) -> Ends:
        """Steps that were taken together, each with the problem that ends the run; without those not done."""
        members = {step.id for step in group}
        before = {each for step in group for each in graph.predecessors[step.id]} - members
        after = sorted(before) or ([] if owner is None else self._waited(owner))
        if len(group) == 1:
            await self._steps.run(group[0], after, stop)
            return [(group[0], None)]
        async with self._places.one_for(group[0]):
            stop.check()
            if self._kind(graph, group[0]) is is_quiet:
                batch = await self._run_scripts(group, graph, after, stop, tell)
            else:
                batch = await self._run_batch(group, graph, after, stop)
        ended = {result.id for result in batch.ended}
        ends: Ends = [(step, None) for step in group if step.id in ended]
        for step, error in batch.failed:
            try:
                await self._steps.failed(step, error, time.monotonic(), stop)
            except StepFailed as failed:
                ends.append((step, failed))
            else:
                ends.append((step, None))
        return ends

    def _kind(self, graph: Graph, step: Step) -> _Kind | None:
        """What says that a step may be a member of a batch; None if it goes alone."""
        if self._attempts.guards.of(step.scope.document.trust).asks_for(step.instruction.op):
            return None
        recorded = self._books.recorded.get(step.id)
        had_failed = recorded is not None and recorded.status == StepStatus.FAILED
        if step.id in self._alone or had_failed:
            return None
        return next((kind for kind in self._sizes if kind(step, graph.effects[step.id])), None)

    def _is_recorded(self, step_id: str) -> bool:
        """Whether an earlier process has done the step, or skipped it."""
        record = self._books.recorded.get(step_id)
        return record is not None and record.status in (*DONE, StepStatus.SKIPPED)

    async def _run_batch(self, steps: Sequence[Step], graph: Graph, after: Sequence[str], stop: Stop) -> Batch:
        if self._runner is None:
            raise QuantumError("a run without a runner cannot run steps")
        done: list[Batch] = []

        async def attempt() -> Mapping[str, Outputs]:
            done.append(await self._threads.run_step(partial(self._batches.make, steps, graph), stop))
            self._sizes[is_cheap].learn(len(steps), done[0].seconds)
            return {result.id: result.outputs or {} for result in done[0].ended}

        known = {step.id for step in steps if self._is_recorded(step.id)}

        def why() -> str:
            return why_none_ran(steps, known, done[0].ended)

        await stop.wait(partial(self._runner.run_batch, steps, attempt, after, reuse=why))
        batch = done[0]
        self._observe_all([RunEvent.finished(each) for each in batch.ended if each.id not in known])
        self._alone.update(step.id for step in (steps if batch.refused else batch.alone))
        return batch

    async def _run_scripts(
        self, steps: Sequence[Step], graph: Graph, after: Sequence[str], stop: Stop, tell: _Tell
    ) -> Batch:
        if self._runner is None:
            raise QuantumError("a run without a runner cannot run steps")
        work = ScriptBatch(steps, graph, self._books, self._attempts, self._observe, COSTLY_SECONDS, self._reusing)

        def relieve() -> None:
            left = work.relieve()
            ended = {result.id for result in work.batch.ended}
            tell([step for step in steps if step.id in ended], left)

        async def attempt() -> Mapping[str, Outputs]:
            relief = asyncio.get_running_loop().call_later(RELIEF_SECONDS, relieve)
            try:
                batch = await self._threads.run_step(work.make, stop)
            finally:
                relief.cancel()
            self._sizes[is_quiet].learn(len(batch.ended) + len(batch.failed), batch.seconds)
            return {result.id: result.outputs or {} for result in batch.ended}

        known = {step.id for step in steps if self._is_recorded(step.id)}
        why = partial(why_none_ran, steps, known, work.batch.ended)
        await stop.wait(partial(self._runner.run_batch, steps, attempt, after, reuse=why))
        return work.batch

    def _waited(self, step: Step) -> list[str]:
        return sorted(self._graph.predecessors.get(step.id, ()))


class _Relief:
    """Lets a queue know of members of a group while others of it are at work."""

    def __init__(self, queue: ReadyQueue) -> None:
        self._queue = queue
        self._bell = asyncio.get_running_loop().create_future()

    def bell(self) -> asyncio.Future[None]:
        """Done when something is told from now on."""
        if self._bell.done():
            self._bell = asyncio.get_running_loop().create_future()
        return self._bell

    def tell(self, members: list[Step], ended: Sequence[Step], left: Sequence[Step]) -> None:
        """These members have ended, those have not begun: `members` keeps the others, and one at least."""
        ended = ended[: len(members) - len(left) - 1]
        for step in left:
            self._queue.give_back(step.id)
        for step in ended:
            self._queue.finish(step.id)
        told = {step.id for step in (*ended, *left)}
        members[:] = [step for step in members if step.id not in told]
        if not self._bell.done():
            self._bell.set_result(None)


def why_none_ran(steps: Sequence[Step], known: Collection[str], ended: Sequence[StepResult]) -> str:
    """Why none of a batch's steps had to run; empty if one had to. `known` were done before this process came."""
    reused = [result for result in ended if result.id not in known and result.status is StepStatus.REUSED]
    if len(known) + len(reused) < len(steps):
        return ""
    reasons = list(dict.fromkeys([*(result.reason or "" for result in reused), *([DONE_BEFORE] if known else [])]))
    return reasons[0] + (f" and {len(reasons) - 1} other reasons" if len(reasons) > 1 else "")


def _keeps_what_came_before(on_failure: OnFailure | RollbackTo) -> bool:
    """Whether what comes before a failed step, one by one, must be there in the end."""
    return on_failure is OnFailure.KEEP or on_failure is OnFailure.PAUSE

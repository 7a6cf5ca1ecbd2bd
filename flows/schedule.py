"""Which steps to start next: a ready queue by critical path, bounded by a number of places and by named resources.

A step is ready when everything it waits for has ended; among the ready ones, the one with the longest remaining path
starts first, and linear order breaks ties.

Pure: no clock, no threads, no Prefect. Whoever runs the steps calls `take` and `finish`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantum_orchestrator.flows.plan import Graph, Step

Seconds = float


@dataclass(slots=True, order=True)
class _Ready:
    priority: tuple[float, int]
    step: Step = field(compare=False)


class ReadyQueue:
    """The steps of one graph that have not started, and what each waits for.

    A called set's steps are a graph of their own, with places and resources of their own.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        parallel: int,
        capacity: Mapping[str, float] | None = None,
        duration_of: Callable[[Step], Seconds] = lambda _step: 1.0,
    ) -> None:
        """`capacity` is how much there is of a resource, by name; of one that it does not name, there is one.

        `duration_of` estimates how long a step takes.
        """
        self._graph = graph
        self._parallel = parallel
        self._capacity = dict(capacity or {})
        self._ready: list[_Ready] = []
        self._running: dict[str, Step] = {}
        self._group_of: dict[str, int] = {}
        self._left_in: dict[int, int] = {}  # members that have not ended, by group; a group takes one place
        self._groups = 0
        self._limit = len(graph.steps)
        self._waiting = {step.id: len(graph.predecessors[step.id]) for step in graph.steps}
        self._remaining = _longest_paths(graph, duration_of)
        for step in graph.steps:
            if not self._waiting[step.id]:
                self._make_ready(step)

    def take(self) -> list[Step]:
        """Steps to start now. Each must be given back by `finish`."""
        return [step for group in self.take_together(lambda _step: False, 1) for step in group]

    def take_together(self, fits: Callable[[Step], bool], size: int) -> list[list[Step]]:
        """Groups of steps to start now, each of at most `size`, to be done one after another.

        In a group is what `fits` says is ready, and what waits for members before it alone; any other step is a group
        of its own. A group takes one place, until its last member is given back.
        """
        groups: list[list[Step]] = []
        passed: list[_Ready] = []
        while self._ready and len(self._left_in) < self._parallel:
            ready = heapq.heappop(self._ready)
            if self._graph.position[ready.step.id] >= self._limit:
                continue
            if not self._fits(ready.step):
                passed.append(ready)
                continue
            group = self._group(ready, fits, size) if size > 1 and fits(ready.step) else [ready.step]
            self._start(group)
            groups.append(group)
        for each in passed:
            heapq.heappush(self._ready, each)
        return groups

    def _group(self, first: _Ready, fits: Callable[[Step], bool], size: int) -> list[Step]:
        """A ready step with others, which are taken out of the queue."""
        group: list[Step] = []
        candidates, others = [first], list[_Ready]()
        left: dict[str, int] = {}
        while len(group) < size and (candidates or self._ready):
            source = candidates if candidates and (not self._ready or candidates[0] < self._ready[0]) else self._ready
            ready = heapq.heappop(source)
            if self._graph.position[ready.step.id] >= self._limit:
                continue
            if not fits(ready.step):
                others.append(ready)
                continue
            group.append(ready.step)
            for after in self._graph.successors[ready.step.id]:
                left[after] = left.get(after, self._waiting[after]) - 1
                step = self._graph.steps[self._graph.position[after]]
                if not left[after] and fits(step):
                    heapq.heappush(candidates, self._entry(step))
        for each in others:
            heapq.heappush(self._ready, each)
        return group

    def _start(self, group: list[Step]) -> None:
        self._groups += 1
        self._left_in[self._groups] = len(group)
        for step in group:
            self._running[step.id] = step
            self._group_of[step.id] = self._groups

    def finish(self, step_id: str) -> None:
        """A step has ended, however: what waited for it alone is ready now."""
        self._leave(step_id)
        for after in self._graph.successors[step_id]:
            self._waiting[after] -= 1
            if not self._waiting[after] and after not in self._running:
                self._make_ready(self._graph.steps[self._graph.position[after]])

    def give_back(self, step_id: str) -> None:
        """A step of a group has not been started: to be called before its group's other members are finished."""
        self._leave(step_id)
        if not self._waiting[step_id]:
            self._make_ready(self._graph.steps[self._graph.position[step_id]])

    def _leave(self, step_id: str) -> None:
        del self._running[step_id]
        group = self._group_of.pop(step_id)
        self._left_in[group] -= 1
        if not self._left_in[group]:
            del self._left_in[group]

    def stop_after(self, step_id: str) -> None:
        """Start nothing more that comes after this step, one by one; what comes before it may still start."""
        self._limit = min(self._limit, self._graph.position[step_id])

    def stop(self) -> None:
        """Start nothing more."""
        self._limit = 0

    def _make_ready(self, step: Step) -> None:
        heapq.heappush(self._ready, self._entry(step))

    def _entry(self, step: Step) -> _Ready:
        return _Ready((-self._remaining[step.id], self._graph.position[step.id]), step)

    def _fits(self, step: Step) -> bool:
        """Whether the resources that it asks for are free; one that asks for more than there is runs alone."""
        for name, amount in step.instruction.resources.items():
            used = sum(each.instruction.resources.get(name, 0.0) for each in self._running.values())
            if used and used + amount > self._capacity.get(name, 1.0):
                return False
        return True


def _longest_paths(graph: Graph, duration_of: Callable[[Step], Seconds]) -> dict[str, Seconds]:
    """For each step, the time from its start to the end of the last step that waits for it."""
    remaining: dict[str, Seconds] = {}
    for step in reversed(graph.steps):  # every edge points forwards
        after = max((remaining[each] for each in graph.successors[step.id]), default=0.0)
        remaining[step.id] = after + duration_of(step)
    return remaining

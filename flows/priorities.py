"""In which order steps should start, so that a run ends soon: several orders are tried on paper, and the best is taken.

The longest remaining path first is nearly always best, and may still be a little behind document order. So a run is
simulated under the estimates, with each of some rules and with what becomes of the best of them when its schedule is
pushed together from behind (justified); the first of the best is chosen. Under exact estimates a run is then never
behind document order. Where simulating would cost more than it can gain, the longest path decides alone.

Pure: no clock, no threads, no Prefect.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from quantum_orchestrator.flows.plan import Edge, Graph, Step
from quantum_orchestrator.flows.schedule import Priorities, ReadyQueue, Seconds, by_longest_path, never

SIMULATION_SECONDS = 25e-6
"""About what one step of one simulation takes."""
WORTH = 0.005
"""Of the time that the steps take, so much may be spent on simulating each rule."""


def best_order(
    graph: Graph,
    *,
    parallel: int,
    capacity: Mapping[str, float],
    duration_of: Callable[[Step], Seconds],
    only_waits: Callable[[Step], bool] = never,
) -> Priorities:
    """Priorities for a ReadyQueue, with which the simulated run ends first. For the arguments see there."""
    seconds = {step.id: duration_of(step) for step in graph.steps}
    longest = by_longest_path(graph, lambda step: seconds[step.id])
    if parallel >= len(graph.steps) or not _is_worth_it(graph, parallel, seconds):
        return longest
    trial = _Trial(graph, parallel, capacity, seconds, only_waits)
    if trial.bound() >= trial.seconds_of(longest):
        return longest
    for rule in (_document_order, _longest_first):
        trial.seconds_of(rule(seconds))
    trial.justify()
    return trial.best


def makespan(graph: Graph, queue: ReadyQueue, seconds: Mapping[str, Seconds]) -> Seconds:
    """How long a run takes whose steps start as the queue says and take so long each."""
    return max((end for _, end in schedule(graph, queue, seconds).values()), default=0.0)


def schedule(graph: Graph, queue: ReadyQueue, seconds: Mapping[str, Seconds]) -> dict[str, tuple[Seconds, Seconds]]:
    """When each step of such a run starts and ends."""
    now, running = 0.0, list[tuple[Seconds, int]]()
    times: dict[str, tuple[Seconds, Seconds]] = {}
    while True:
        for step in queue.take():
            times[step.id] = (now, now + seconds[step.id])
            heapq.heappush(running, (now + seconds[step.id], graph.position[step.id]))
        if not running:
            return times
        now = running[0][0]
        while running and running[0][0] <= now:
            queue.finish(graph.steps[heapq.heappop(running)[1]].id)


def _is_worth_it(graph: Graph, parallel: int, seconds: Mapping[str, Seconds]) -> bool:
    return SIMULATION_SECONDS * len(graph.steps) <= WORTH * sum(seconds.values()) / parallel


def _document_order(seconds: Mapping[str, Seconds]) -> Priorities:
    return dict.fromkeys(seconds, 0.0)


def _longest_first(seconds: Mapping[str, Seconds]) -> Priorities:
    return {step_id: -each for step_id, each in seconds.items()}


class _Trial:
    """Simulates runs of one graph, and keeps the priorities of the shortest."""

    def __init__(
        self,
        graph: Graph,
        parallel: int,
        capacity: Mapping[str, float],
        seconds: Mapping[str, Seconds],
        only_waits: Callable[[Step], bool],
    ) -> None:
        self._graph = graph
        self._parallel = parallel
        self._capacity = capacity
        self._seconds = seconds
        self._only_waits = only_waits
        self._shortest = float("inf")
        self.best: Priorities = {}
        self._times: Mapping[str, tuple[Seconds, Seconds]] = {}

    def bound(self) -> Seconds:
        """No run is shorter."""
        path = -min(by_longest_path(self._graph, lambda step: self._seconds[step.id]).values())
        work = sum(self._seconds[step.id] for step in self._graph.steps if not self._only_waits(step))
        return max(path, work / self._parallel)

    def seconds_of(self, priorities: Priorities) -> Seconds:
        """How long the run takes."""
        times = schedule(self._graph, self._queue(self._graph, priorities), self._seconds)
        took = max(end for _, end in times.values())
        if took < self._shortest:
            self._shortest, self.best, self._times = took, priorities, times
        return took

    def justify(self) -> None:
        """Double justification (Valls, Ballestín and Quintanilla, 2005): push every step of the best run as far to the
        end as it goes, and then start them in the order in which they stand."""
        reverse = _reversed(self._graph)
        latest_first = {step_id: -end for step_id, (_, end) in self._times.items()}
        pushed = schedule(reverse, self._queue(reverse, latest_first), self._seconds)
        self.seconds_of({step_id: -end for step_id, (_, end) in pushed.items()})

    def _queue(self, graph: Graph, priorities: Priorities) -> ReadyQueue:
        return ReadyQueue(
            graph,
            parallel=self._parallel,
            capacity=self._capacity,
            priorities=priorities,
            only_waits=self._only_waits,
        )


def _reversed(graph: Graph) -> Graph:
    edges = [Edge(edge.after, edge.before, edge.reason) for edge in graph.edges]
    return Graph(graph.steps[::-1], edges, graph.effects, graph.expansion)

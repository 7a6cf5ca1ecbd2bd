"""Which steps to start next: a ready queue in an order of choice, bounded by a number of places and by named resources.

A step is ready when everything it waits for has ended. Among the ready ones that fit, the first in the order starts
first: by default the one with the longest remaining path (`by_longest_path`), which `flows/priorities.py` improves on.
Steps that ask for the same are kept together, so that one look tells that none of them fits.

Invariant: what runs never takes more than there is, but for a step that asks for more and has it to itself; and while
nothing runs, anything fits, so that a run always ends. Pure: no clock, no threads, no Prefect. Whoever runs the steps
calls `take` and `finish`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from quantum_orchestrator.flows.plan import Graph, Step

Seconds = float
Priorities = Mapping[str, float]
"""By step id; the lowest starts first, and linear order breaks ties."""

LOOK_PAST = 256
"""So many kinds of steps that do not fit are looked past for one that does, and steps that no batch takes for some."""
MOST_WAITING = 64
"""Steps that only wait at once; each has a thread all the same."""
_ROUNDING = 1e-9
_Entry = tuple[float, int]
"""Priority and position."""


def only_waits(step: Step) -> bool:
    """Whether a step leaves the machine alone while it runs: it waits for time, or for another machine."""
    op = step.instruction.op
    return op in ("wait", "http.request") or op.startswith("llm.")


def _same(_step: Step) -> Seconds:
    return 1.0


def never(_step: Step) -> bool:
    """Of no step."""
    return False


@dataclass(slots=True)
class _Kind:
    """The ready steps that take the same: resources by name, and a place or none."""

    number: int
    resources: tuple[tuple[str, float], ...]
    takes_place: bool
    ready: list[_Entry] = field(default_factory=list)
    shown: _Entry | None = None
    """The entry that stands for it among the heads of all kinds."""


class _Resources:
    """What is taken of each resource; sums, so that nobody counts again."""

    def __init__(self, capacity: Mapping[str, float]) -> None:
        self._capacity = dict(capacity)
        self._taken: dict[str, float] = {}
        self._takers: dict[str, int] = {}

    def fit(self, wanted: Iterable[tuple[str, float]]) -> bool:
        """Whether that much is free; one that asks for more than there is has it to itself."""
        for name, amount in wanted:
            taken = self._taken.get(name, 0.0)
            if taken > _ROUNDING and taken + amount > self._capacity.get(name, 1.0) + _ROUNDING:
                return False
        return True

    def take(self, wanted: Iterable[tuple[str, float]]) -> None:
        for name, amount in wanted:
            self._taken[name] = self._taken.get(name, 0.0) + amount
            self._takers[name] = self._takers.get(name, 0) + 1

    def give_back(self, given: Iterable[tuple[str, float]]) -> None:
        for name, amount in given:
            self._taken[name] -= amount
            self._takers[name] -= 1
            if not self._takers[name]:
                self._taken[name] = 0.0  # sums of fractions do not come back to nothing by themselves


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
        duration_of: Callable[[Step], Seconds] = _same,
        priorities: Priorities | None = None,
        only_waits: Callable[[Step], bool] = never,
    ) -> None:
        """`capacity` is how much there is of a resource, by name; of one that it does not name, there is one.

        `priorities` beats `duration_of`, which estimates how long a step takes. A step that `only_waits` takes no
        place.
        """
        self.parallel = parallel
        """How many places there are; may be changed at any time, and what runs is let run."""
        self._graph = graph
        self._only_waits = only_waits
        self._resources = _Resources(capacity or {})
        self._kinds: list[_Kind] = []
        self._kind_of: dict[tuple[bool, tuple[tuple[str, float], ...]], _Kind] = {}
        self._heads: list[tuple[_Entry, int]] = []
        """The first of each kind, with the kind's number; one that is not the first any more is passed over."""
        self._running: dict[str, tuple[int, _Kind]] = {}  # with the group that it is in
        self._left_in: dict[int, int] = {}  # members that have not ended, by group
        self._groups = 0
        self._placed = 0
        self._limit = len(graph.steps)
        self._waiting = {step.id: len(graph.predecessors[step.id]) for step in graph.steps}
        self._priorities = by_longest_path(graph, duration_of) if priorities is None else priorities
        for step in graph.steps:
            if not self._waiting[step.id]:
                self._make_ready(step)

    def take(self) -> list[Step]:
        """Steps to start now. Each must be given back by `finish`."""
        return [step for group in self.take_together(never, 1) for step in group]

    def take_together(self, fits: Callable[[Step], bool], size: int) -> list[list[Step]]:
        """Groups of steps to start now, each of at most `size`, to be done one after another.

        In a group is what `fits` says is ready, and what waits for members before it alone; any other step is a group
        of its own. A group takes one place, until its last member is given back. Steps that ask for resources, or only
        wait, are not to fit.
        """
        groups: list[list[Step]] = []
        passed: list[_Kind] = []
        while len(passed) < LOOK_PAST and (kind := self._first_kind()) is not None:
            if not self._has_room(kind):
                passed.append(kind)
                continue
            step = self._graph.steps[self._pop(kind)[1]]
            group = self._group(step, kind, fits, size) if size > 1 and fits(step) else [step]
            self._start(group, kind)
            groups.append(group)
        for kind in passed:
            self._show_head(kind)
        return groups

    def _first_kind(self) -> _Kind | None:
        """The kind of the ready step that comes first; whoever asks again gets the next one."""
        while self._heads:
            entry, number = heapq.heappop(self._heads)
            kind = self._kinds[number]
            if kind.shown != entry:
                continue
            kind.shown = None
            if kind.ready and entry[1] < self._limit:
                return kind
            if kind.ready:
                self._pop(kind)
        return None

    def _has_room(self, kind: _Kind) -> bool:
        free = self._placed < self.parallel if kind.takes_place else len(self._left_in) - self._placed < MOST_WAITING
        return free and self._resources.fit(kind.resources)

    def _group(self, first: Step, kind: _Kind, fits: Callable[[Step], bool], size: int) -> list[Step]:
        """A ready step with others, which are taken out of the queue."""
        group: list[Step] = []
        candidates, others = [self._entry(first)], list[_Entry]()
        left: dict[str, int] = {}
        while len(group) < size and len(others) < LOOK_PAST and (candidates or kind.ready):
            source = candidates if candidates and (not kind.ready or candidates[0] < kind.ready[0]) else kind.ready
            entry = heapq.heappop(source)
            if entry[1] >= self._limit:
                continue
            step = self._graph.steps[entry[1]]
            if not fits(step):
                others.append(entry)
                continue
            group.append(step)
            for after in self._graph.successors[step.id]:
                left[after] = left.get(after, self._waiting[after]) - 1
                next_ = self._graph.steps[self._graph.position[after]]
                if not left[after] and fits(next_):
                    heapq.heappush(candidates, self._entry(next_))
        for entry in others:
            heapq.heappush(kind.ready, entry)
        self._show_head(kind)
        return group

    def _start(self, group: list[Step], kind: _Kind) -> None:
        self._groups += 1
        self._left_in[self._groups] = len(group)
        self._placed += kind.takes_place
        for step in group:
            self._running[step.id] = (self._groups, kind)
        self._resources.take(kind.resources)

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
        group, kind = self._running.pop(step_id)
        self._left_in[group] -= 1
        if not self._left_in[group]:
            del self._left_in[group]
            self._placed -= kind.takes_place
            self._resources.give_back(kind.resources)

    def is_short_of_places(self) -> bool:
        """Whether a step is ready, and has no place."""
        return self._placed >= self.parallel and any(kind.takes_place and kind.ready for kind in self._kinds)

    def stop_after(self, step_id: str) -> None:
        """Start nothing more that comes after this step, one by one; what comes before it may still start."""
        self._limit = min(self._limit, self._graph.position[step_id])

    def stop(self) -> None:
        """Start nothing more."""
        self._limit = 0

    # The steps that are ready, by kind.

    def _make_ready(self, step: Step) -> None:
        takes_place, resources = not self._only_waits(step), step.instruction.resources
        key = (takes_place, tuple(sorted(resources.items())) if resources else ())
        kind = self._kind_of.get(key)
        if kind is None:
            kind = self._kind_of[key] = _Kind(len(self._kinds), key[1], takes_place)
            self._kinds.append(kind)
        heapq.heappush(kind.ready, self._entry(step))
        self._show_head(kind)

    def _entry(self, step: Step) -> _Entry:
        return self._priorities[step.id], self._graph.position[step.id]

    def _pop(self, kind: _Kind) -> _Entry:
        entry = heapq.heappop(kind.ready)
        self._show_head(kind)
        return entry

    def _show_head(self, kind: _Kind) -> None:
        if kind.ready and kind.shown != kind.ready[0]:
            kind.shown = kind.ready[0]
            heapq.heappush(self._heads, (kind.shown, kind.number))


def by_longest_path(graph: Graph, duration_of: Callable[[Step], Seconds] = _same) -> dict[str, float]:
    """First the step from whose start it takes longest to the end of the last step that waits for it."""
    return {step_id: -seconds for step_id, seconds in longest_paths(graph, duration_of).items()}


def longest_paths(graph: Graph, duration_of: Callable[[Step], Seconds]) -> dict[str, Seconds]:
    """For each step, the time from its start to the end of the last step that waits for it."""
    remaining: dict[str, Seconds] = {}
    for step in reversed(graph.steps):  # every edge points forwards
        after = max((remaining[each] for each in graph.successors[step.id]), default=0.0)
        remaining[step.id] = after + duration_of(step)
    return remaining

"""What holds for every schedule, of any graph, with any resources, places and durations."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import Graph
from quantum_orchestrator.flows.priorities import best_order, makespan, schedule
from quantum_orchestrator.flows.schedule import ReadyQueue, by_longest_path

CAPACITY = {"cpu": 2.0, "own": 1.0}


@dataclass(frozen=True)
class Case:
    graph: Graph
    parallel: int
    seconds: Mapping[str, float]

    def queue(self, **chosen: Any) -> ReadyQueue:
        return ReadyQueue(self.graph, parallel=self.parallel, capacity=CAPACITY, **chosen)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A graph whose steps wait for some before them and ask for some of the resources, or for too much."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    instructions = []
    for number in range(draw(st.integers(1, 25))):
        needs = [f"t{each}" for each in range(number) if chance.random() < 2 / (number + 1)]
        wanted = {name: chance.choice([0.1, 0.5, 0.7, 1.0, 3.0]) for name in CAPACITY if chance.random() < 0.3}
        echo = {"id": f"t{number}", "op": "echo", "with": {"message": ""}, "needs": needs, "resources": wanted}
        instructions.append(echo)
    graph = plan.build(load_object({"name": "any", "order": "explicit", "instructions": instructions}), {})
    seconds = {step.id: chance.choice([1.0, 2.0, 5.0, 30.0, chance.uniform(1, 50)]) for step in graph.steps}
    return Case(graph, draw(st.integers(1, 5)), seconds)


@given(cases())
@settings(max_examples=25, deadline=None)
def test_every_step_runs_after_those_that_it_waits_for(case: Case) -> None:
    times = schedule(case.graph, case.queue(duration_of=lambda step: case.seconds[step.id]), case.seconds)
    assert times.keys() == case.seconds.keys()
    assert all(times[edge.before][1] <= times[edge.after][0] for edge in case.graph.edges)


@given(cases())
@settings(max_examples=25, deadline=None)
def test_neither_places_nor_resources_are_overdrawn(case: Case) -> None:
    times = schedule(case.graph, case.queue(duration_of=lambda step: case.seconds[step.id]), case.seconds)
    for moment, _ in times.values():
        running = [step for step in case.graph.steps if times[step.id][0] <= moment < times[step.id][1]]
        assert len(running) <= case.parallel
        for name, there_is in CAPACITY.items():
            takers = [each for step in running if (each := step.instruction.resources.get(name, 0.0))]
            assert sum(takers) <= there_is + 1e-9 or len(takers) == 1


@given(cases())
@settings(max_examples=25, deadline=None)
def test_the_best_order_is_behind_neither_document_order_nor_the_longest_path(case: Case) -> None:
    order = best_order(
        case.graph, parallel=case.parallel, capacity=CAPACITY, duration_of=lambda step: case.seconds[step.id]
    )
    ours = makespan(case.graph, case.queue(priorities=order), case.seconds)
    first_come = case.queue(priorities=dict.fromkeys(case.seconds, 0.0))
    longest = case.queue(duration_of=lambda step: case.seconds[step.id])
    assert ours <= makespan(case.graph, first_come, case.seconds)
    assert ours <= makespan(case.graph, longest, case.seconds)


def test_steps_that_take_no_time_worth_planning_for_are_ordered_by_their_longest_path() -> None:
    instructions = [{"id": f"t{number}", "op": "echo", "with": {"message": ""}} for number in range(50)]
    graph = plan.build(load_object({"name": "quick", "instructions": instructions}), {})

    def instant(_step: plan.Step) -> float:
        return 1e-6

    assert best_order(graph, parallel=2, capacity={}, duration_of=instant) == by_longest_path(graph, instant)

"""The ready queue: what starts when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.instruction_set import load
from quantum_orchestrator.flows.plan import Graph, Step
from quantum_orchestrator.flows.schedule import ReadyQueue, only_waits


def graph_of(*instructions: Mapping[str, Any], **fields: Any) -> Graph:
    document = {"name": "test", "instructions": list(instructions), **fields}
    return plan.build(load(json.dumps(document).encode()), {})


def echo(step_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "echo", "with": {"message": step_id}, **fields}


def ids(steps: list[Step]) -> list[str]:
    return [step.id for step in steps]


def test_independent_steps_start_together_up_to_the_limit() -> None:
    queue = ReadyQueue(graph_of(echo("a"), echo("b"), echo("c")), parallel=2)
    assert ids(queue.take()) == ["a", "b"]
    assert queue.take() == []
    queue.finish("a")
    assert ids(queue.take()) == ["c"]


def test_a_step_starts_when_all_that_it_waits_for_has_ended() -> None:
    queue = ReadyQueue(graph_of(echo("a"), echo("b"), echo("c", needs=["a", "b"])), parallel=9)
    queue.take()
    queue.finish("b")
    assert queue.take() == []
    queue.finish("a")
    assert ids(queue.take()) == ["c"]


def test_the_longest_remaining_path_starts_first() -> None:
    steps = graph_of(echo("short"), echo("long"), echo("after", needs=["long"]))
    assert ids(ReadyQueue(steps, parallel=1).take()) == ["long"]


def test_learned_durations_decide_which_path_is_longest() -> None:
    steps = graph_of(echo("quick"), echo("slow"))
    durations = {"quick": 0.1, "slow": 60.0}
    queue = ReadyQueue(steps, parallel=1, duration_of=lambda step: durations[step.id])
    assert ids(queue.take()) == ["slow"]


def test_what_only_waits_takes_no_place() -> None:
    waits = [{"id": name, "op": "wait", "with": {"seconds": 1}, "needs": []} for name in "abc"]
    queue = ReadyQueue(graph_of(*waits, order="explicit"), parallel=1, only_waits=only_waits)
    assert ids(queue.take()) == ["a", "b", "c"]
    assert not queue.is_short_of_places()


def test_places_may_come_and_go_while_steps_run() -> None:
    queue = ReadyQueue(graph_of(*(echo(name) for name in "abcd")), parallel=1)
    queue.take()
    assert queue.is_short_of_places()
    queue.parallel = 3
    assert ids(queue.take()) == ["b", "c"]
    queue.parallel = 1
    queue.finish("a")
    assert queue.take() == []
    queue.finish("b")
    queue.finish("c")
    assert ids(queue.take()) == ["d"]
    assert not queue.is_short_of_places()


def test_a_resource_is_not_overdrawn_and_does_not_hold_up_others() -> None:
    steps = graph_of(
        echo("a", resources={"gpu": 1}), echo("b", resources={"gpu": 1}), echo("c"), echo("d", resources={"gpu": 1})
    )
    queue = ReadyQueue(steps, parallel=9, capacity={"gpu": 1})
    assert ids(queue.take()) == ["a", "c"]
    queue.finish("a")
    assert ids(queue.take()) == ["b"]


def test_a_step_that_asks_for_more_than_there_is_runs_alone() -> None:
    queue = ReadyQueue(graph_of(echo("a", resources={"gpu": 5})), parallel=9, capacity={"gpu": 1})
    assert ids(queue.take()) == ["a"]


def test_after_a_failure_only_what_comes_before_it_may_still_start() -> None:
    queue = ReadyQueue(graph_of(echo("a"), echo("b"), echo("c"), echo("d")), parallel=2)
    queue.take()
    queue.stop_after("b")
    queue.finish("a")
    assert queue.take() == []


def test_a_stopped_queue_starts_nothing() -> None:
    queue = ReadyQueue(graph_of(echo("a"), echo("b")), parallel=1)
    queue.take()
    queue.stop()
    queue.finish("a")
    assert queue.take() == []


def test_a_step_that_only_waits_takes_no_place() -> None:
    steps = graph_of(echo("a"), echo("wait"), echo("b"))
    queue = ReadyQueue(steps, parallel=1, only_waits=lambda step: step.id == "wait")
    assert ids(queue.take()) == ["a", "wait"]
    queue.finish("wait")
    assert queue.take() == []


def test_places_may_become_more_and_fewer_while_steps_run() -> None:
    queue = ReadyQueue(graph_of(*map(echo, "abcd")), parallel=1)
    assert ids(queue.take()) == ["a"]
    queue.parallel = 3
    assert ids(queue.take()) == ["b", "c"]
    queue.parallel = 1
    queue.finish("a")
    queue.finish("b")
    assert queue.take() == []


def test_fractions_of_a_resource_add_up_to_nothing_when_all_are_given_back() -> None:
    steps = graph_of(
        *(echo(f"s{number}", resources={"gpu": 0.1}) for number in range(3)),
        echo("all", resources={"gpu": 1}, needs=["s0", "s1", "s2"]),
    )
    queue = ReadyQueue(steps, parallel=9)
    for step in queue.take():
        queue.finish(step.id)
    assert ids(queue.take()) == ["all"]


def test_ten_thousand_steps_that_do_not_fit_are_not_looked_at_one_by_one() -> None:
    steps = graph_of(*(echo(f"s{number}", resources={"gpu": 1}) for number in range(10_000)))
    queue = ReadyQueue(steps, parallel=9)
    looks = 0
    fit = queue._resources.fit

    def counted(wanted: Any) -> bool:
        nonlocal looks
        looks += 1
        return fit(wanted)

    queue._resources.fit = counted  # type: ignore[method-assign]
    while started := queue.take():
        queue.finish(started[0].id)
    assert looks < 30_000

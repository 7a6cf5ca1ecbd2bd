"""About how long steps and runs will take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from quantum_orchestrator.blocks.profile import Learned
from quantum_orchestrator.flows import plan, priorities
from quantum_orchestrator.flows.estimates import Estimates, Forecast, forecast
from quantum_orchestrator.flows.instruction_set import load
from quantum_orchestrator.flows.plan import Graph


def graph_of(*instructions: Mapping[str, Any]) -> Graph:
    document = {"name": "test", "order": "explicit", "instructions": list(instructions)}
    return plan.build(load(json.dumps(document).encode()), {})


def script(step_id: str, *needs: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "script.run", "with": {"argv": ["true"]}, "needs": list(needs), "writes": [], **fields}


def write(step_id: str) -> dict[str, Any]:
    return {"id": step_id, "op": "file.write", "with": {"path": step_id, "content": ""}}


def wait(step_id: str, seconds: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "wait", "with": {"seconds": seconds}}


def test_a_step_counts_before_its_operation_and_that_before_its_kind() -> None:
    graph = graph_of(script("known"), script("other"), write("cheap"))
    estimates = Estimates(Learned({"known": 7.0}, {"script.run": 3.0}))
    assert [estimates(step) for step in graph.steps] == [7.0, 3.0, 0.001]


def test_kinds_are_guessed_when_nothing_is_known() -> None:
    approval = {"id": "ok", "op": "approval", "with": {"message": "?"}}
    graph = graph_of(script("s"), wait("w", 12), approval, {"id": "g", "op": "git.init"})
    assert [Estimates(Learned())(step) for step in graph.steps] == [1.0, 12.0, 0.0, 0.03]


def test_what_is_known_only_when_run_takes_as_long_as_what_it_became_before() -> None:
    graph = graph_of(
        script("first"),
        {**script("each"), "for_each": "${{ steps.first.outputs.stdout }}"},
    )
    inner = {"each[0]": 2.0, "each[1]": 3.0, "each_other": 99.0}
    assert Estimates(Learned(inner, {}))(graph.steps[1]) == 5.0


def test_a_run_takes_as_long_as_its_longest_path() -> None:
    graph = graph_of(script("lint"), script("build"), script("test", "build"), write("note"))
    known = Estimates(Learned({"lint": 1.0, "build": 4.0, "test": 8.0}, {}))
    assert forecast(graph, known, parallel=4, capacity={}) == Forecast(12.0, ("build", "test"))


@pytest.mark.parametrize(
    ("capacity", "parallel", "seconds"), [({}, 1, 9.0), ({}, 3, 9.0), ({"gpu": 2.0}, 3, 4.5), ({"gpu": 9.0}, 9, 3.0)]
)
def test_places_and_resources_hold_a_run_up(capacity: Mapping[str, float], parallel: int, seconds: float) -> None:
    graph = graph_of(*(script(name, resources={"gpu": 1}) for name in "abc"))
    known = Estimates(Learned({}, {"script.run": 3.0}))
    found = forecast(graph, known, parallel=parallel, capacity=capacity)
    assert found is not None
    assert found.seconds == seconds


def test_nothing_is_foretold_from_guesses() -> None:
    assert forecast(graph_of(script("s")), Estimates(Learned()), parallel=4, capacity={}) is None
    assert forecast(graph_of(write("w")), Estimates(Learned()), parallel=4, capacity={}) is not None


def test_many_cheap_steps_are_not_worth_simulating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(priorities, "_Trial")
    graph = graph_of(*(write(f"w{number}") for number in range(500)))
    order = priorities.best_order(graph, parallel=4, capacity={}, duration_of=Estimates(Learned()))
    assert len(order) == 500

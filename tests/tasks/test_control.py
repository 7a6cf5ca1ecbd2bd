"""Operations that steer a run, and HTTP requests to a real server on this machine."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, TimedOut
from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks import control, registry
from quantum_orchestrator.tasks.operation import UNKNOWN, Context, Outputs, Unknown


def context(**given: Any) -> Context:
    return Context(files=Overlay(MemoryTree()), **given)


def run(name: str, parameters: dict[str, Any], where: Context | None = None) -> Any:
    chosen = registry.get(name)
    return chosen.run(chosen.parameters.model_validate(parameters), where or context())


# echo, assert, approval, wait, call


def test_echo_logs_its_message_and_gives_it_back() -> None:
    lines: list[str] = []
    assert run("echo", {"message": "hello"}, context(log=lines.append)).message == "hello"
    assert lines == ["hello"]


def test_assert_passes_when_the_condition_is_true() -> None:
    assert isinstance(run("assert", {"that": True}), Outputs)


def test_assert_fails_with_its_message() -> None:
    with pytest.raises(OperationError, match="two and two"):
        run("assert", {"that": False, "message": "two and two"})


@pytest.mark.parametrize("value", [1, 0, "true", "", None, []])
def test_assert_takes_nothing_for_true_that_is_no_boolean(value: object) -> None:
    with pytest.raises(ValidationError):
        run("assert", {"that": value})


def test_assert_of_something_unknown_cannot_be_planned() -> None:
    parameters = control.AssertParameters.model_construct(that=UNKNOWN, message="")
    with pytest.raises(Unknown):
        control.Assert().run(parameters, context())


def test_nothing_passes_an_approval_and_it_says_that_it_was_given() -> None:
    assert control.Approval().effects(control.ApprovalParameters(message="?")).barrier
    assert run("approval", {"message": "Go on?"}).approved is True


def test_wait_waits_and_a_plan_does_not() -> None:
    effects = control.Wait().effects(control.WaitParameters(seconds=60))
    assert effects.barrier
    assert not effects.predictable
    started = time.monotonic()
    run("wait", {"seconds": 0.05})
    assert time.monotonic() - started >= 0.05


def test_wait_ends_when_the_run_is_cancelled() -> None:
    where = context()
    threading.Timer(0.05, where.cancel.cancel).start()
    with pytest.raises(Interrupted):
        run("wait", {"seconds": 60}, where)


def test_wait_heeds_the_timeout_of_its_step() -> None:
    with pytest.raises(TimedOut):
        run("wait", {"seconds": 60}, context(timeout=0.05))


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1"])
def test_wait_takes_a_length_of_time_alone(seconds: object) -> None:
    with pytest.raises(ValidationError):
        run("wait", {"seconds": seconds})


@pytest.mark.parametrize("parameters", [{}, {"set": {}, "file": "x.json"}])
def test_call_needs_exactly_one_set(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="either"):
        run("call", parameters)


def test_call_by_itself_explains_what_it_is_for() -> None:
    with pytest.raises(OperationError, match="part of an instruction set"):
        run("call", {"file": "inner.json", "inputs": {"a": [1]}})


@pytest.mark.parametrize("name", ["echo", "assert", "approval", "wait", "call", "http.request"])
def test_every_field_is_described_and_every_example_is_valid(name: str) -> None:
    chosen = registry.get(name)
    assert chosen.summary.endswith(".")
    for model in (chosen.parameters, chosen.outputs):
        assert all(field.description for field in model.model_fields.values())
    chosen.effects(chosen.parameters.model_validate(chosen.example))

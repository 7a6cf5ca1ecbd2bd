"""`llm.optimize`: a change is kept when the tests pass and the benchmark is faster beyond noise, and only then.

Times are given by the tests: a clock would say something else each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import BadAnswer, OperationError
from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks import llm_optimize
from quantum_orchestrator.tasks.llm_optimize import Comparison, Optimize, OptimizeOutputs, OptimizeParameters
from quantum_orchestrator.tasks.operation import Context
from quantum_orchestrator.tasks.trial import Tried
from tests.model_double import Payload, Replayed, models_saying, offline_models

SLOW = b"def squares(numbers):\n    return list([number * number for number in numbers])\n"
FAST = b"def squares(numbers):\n    return [number * number for number in numbers]\n"

Times = Callable[[Sequence[str], bytes], Tried]


def timed(before: float, after: float, *, fails: bytes = b"?") -> Times:
    """A benchmark that takes so long without and with a change; tests fail where the file has `fails` in it."""

    def run(argv: Sequence[str], content: bytes) -> Tried:
        seconds = before if content == SLOW else after
        return Tried(int(argv == ["test"] and fails in content), "it failed", "", seconds)

    return run


class Bench:
    """One optimization of a file in memory."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = MemoryTree()
        overlay = Overlay(base)
        overlay.write("squares.py", SLOW)
        base.apply(overlay.changes(), overlay.content_of)
        self.files = Overlay(base)
        self.model = Replayed([])
        self._state, self._patch = state, monkeypatch

    def optimize(self, times: Times, *payloads: Payload, **given: Any) -> OptimizeOutputs:
        def run(_context: Context, command: Any, contents: Mapping[str, bytes]) -> Tried:
            return times(command.argv, contents.get("squares.py", SLOW))

        self._patch.setattr(llm_optimize, "try_out", run)
        self.model = Replayed(payloads)
        models, journal = models_saying(self.model, self._state) if payloads else offline_models(self._state)
        parameters = {"benchmark": ["benchmark"], "test": ["test"], "paths": ["squares.py"], **given}
        try:
            context = Context(self.files, step_id="step", models=models)
            return Optimize().run(OptimizeParameters.model_validate(parameters), context)
        finally:
            journal.close()

    @property
    def content(self) -> bytes:
        return self.files.read("squares.py")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path / "state", monkeypatch)


def answer(replacement: str, search: str = "list([number * number for number in numbers])") -> Payload:
    suggestion = {"path": "squares.py", "line": 2, "what": "No second list.", "evidence": "It copies all."}
    edits = [{"path": "squares.py", "search": search, "replace": replacement}]
    return {"suggestions": [suggestion], "edits": edits}


RIGHT = answer("[number * number for number in numbers]")


def test_what_is_faster_beyond_noise_is_kept_with_its_evidence(bench: Bench) -> None:
    outputs = bench.optimize(timed(0.2, 0.1), RIGHT)
    assert (outputs.applied, outputs.changed, bench.content) == (True, ["squares.py"], FAST)
    assert (outputs.before, outputs.after, outputs.faster, outputs.pairs) == (0.2, 0.1, 7, 7)
    assert outputs.suggestions[0].evidence == "It copies all."


@pytest.mark.parametrize("after", [0.2, 0.198, 0.3])
def test_what_is_not_faster_changes_nothing_and_is_told(bench: Bench, after: float) -> None:
    outputs = bench.optimize(timed(0.2, after), RIGHT)
    assert (outputs.applied, bench.content) == (False, SLOW)
    assert "not faster beyond noise" in outputs.reason
    assert len(outputs.suggestions) == 1
    assert "not faster beyond noise" in bench.model.asked[1].messages[-1].text


def test_what_breaks_the_tests_is_not_measured(bench: Bench) -> None:
    outputs = bench.optimize(timed(0.2, 0.1, fails=b"return []"), answer("[]"), attempts=1)
    assert (outputs.applied, outputs.pairs, bench.content) == (False, 0, SLOW)
    assert outputs.reason.startswith("the tests fail with it:\nit failed")


def test_an_answer_that_cannot_be_used_goes_back(bench: Bench) -> None:
    outputs = bench.optimize(timed(0.2, 0.1), answer("x", "absent"), RIGHT)
    assert (outputs.applied, bench.content) == (True, FAST)


def test_answers_that_never_can_be_used_fail_the_step(bench: Bench) -> None:
    unusable = {"suggestions": [], "edits": [{"path": "other.py", "search": "", "replace": "x"}]}
    with pytest.raises(BadAnswer, match="may not be written"):
        bench.optimize(timed(0.2, 0.1), unusable)
    assert bench.content == SLOW


def test_what_fails_as_things_are_cannot_be_made_faster(bench: Bench) -> None:
    with pytest.raises(OperationError, match="the tests failed before anything was changed"):
        bench.optimize(timed(0.2, 0.1, fails=b"list"), RIGHT)
    assert bench.model.asked == []


def test_without_a_model_rules_suggest_and_are_measured_like_any_other(bench: Bench) -> None:
    outputs = bench.optimize(timed(0.2, 0.1))
    assert (outputs.applied, bench.content, outputs.provider) == (True, FAST, "offline")
    assert outputs.suggestions[0].evidence == "ruff's rule C411"


def test_a_few_pairs_by_chance_are_no_gain() -> None:
    one_in_two = Comparison((1.0,) * 8, (0.5,) * 4 + (1.5,) * 4)
    seven_of_eight = Comparison((1.0,) * 8, (0.5,) * 7 + (1.5,))
    six_of_eight = Comparison((1.0,) * 8, (0.5,) * 6 + (1.5,) * 2)
    assert [each.is_gain(0.05) for each in (one_in_two, six_of_eight, seven_of_eight)] == [False, False, True]
    assert not Comparison((1.0,) * 8, (0.97,) * 8).is_gain(0.05)
    assert Comparison((1.0,) * 8, (0.97,) * 8).is_gain(0.02)

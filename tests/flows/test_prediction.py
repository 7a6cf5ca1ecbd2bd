"""What the dry run says, held against what a run does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from effort import ordinarily
from hypothesis import HealthCheck, given, settings
from test_engine import Bench, fail, shell, write
from test_equivalence import documents, entries_on_disk, fill, one_by_one, trees

from quantum_orchestrator.blocks.tree import MemoryTree
from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.instruction_set import InstructionSet, load
from quantum_orchestrator.flows.prediction import Prediction, predict
from quantum_orchestrator.flows.results import RunStatus
from quantum_orchestrator.tasks.files import FileWrite, WriteParameters
from quantum_orchestrator.tasks.operation import Effects


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    for name in ("workspace", "state"):
        (tmp_path / name).mkdir()
    made = Bench(tmp_path / "workspace", tmp_path / "state")
    yield made
    made.workspace.close()
    made.journal.close()


def predicted(*instructions: Mapping[str, Any], tree: MemoryTree | None = None) -> Prediction:
    document = load(json.dumps({"name": "test", "instructions": list(instructions)}).encode())
    return predict(plan.build(document, {}), tree or MemoryTree())


def statuses(prediction: Prediction) -> dict[str, str]:
    return {step.id: step.status.value for step in prediction.steps}


def called(*instructions: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "c", "op": "call", "with": {"set": {"name": "inner", "instructions": list(instructions)}}, **fields}


def test_a_call_that_fails_and_is_continued_leaves_nothing_in_the_plan_as_in_the_run(bench: Bench) -> None:
    steps = [called(write("a", "x"), fail("f", needs=["a"]), on_error="continue"), write("b", "y")]
    prediction = predicted(*steps)
    assert [change.path for change in prediction.changes] == ["y"]
    assert statuses(prediction) == {"c/a": "skipped", "c/f": "failed", "c": "failed", "b": "succeeded"}
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.files() == {"y": "new\n"}


def test_a_round_whose_handler_fails_ends_the_plan_as_it_ends_the_run(bench: Bench) -> None:
    steps = [
        write("a", "x", "[1, 2]"),
        {"id": "read", "op": "file.read", "with": {"path": "x"}},
        fail("r", for_each="${{ steps.read.outputs.content | fromjson }}", on_error={"run": [fail("handler")]}),
    ]
    prediction = predicted(*steps)
    assert prediction.failure is not None
    assert prediction.failure.id == "r[0]/on_error/handler"
    assert bench.run(*steps).failed_step == "r[0]/on_error/handler"


def test_what_touches_what_a_deferred_step_may_change_is_deferred() -> None:
    prediction = predicted(
        shell("s", "true", writes=["d/e"], reads=[]),
        write("below", "d/e/x"),
        write("beside", "d/f"),
        {"id": "above", "op": "file.list", "with": {"path": "d"}},
        {"id": "all", "op": "file.list", "with": {}},
        write("else", "g"),
    )
    deferred = {step.id for step in prediction.deferred}
    assert deferred == {"s", "below", "above", "all"}
    assert [change.path for change in prediction.changes] == ["d", "d/f", "g"]


def test_what_touches_nothing_is_not_deferred_by_a_script() -> None:
    prediction = predicted(shell("s", "true"), {"id": "e", "op": "echo", "with": {"message": "x"}})
    assert statuses(prediction) == {"s": "deferred", "e": "succeeded"}


def test_what_a_literal_step_touches_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    effects = FileWrite.effects

    def noted(self: FileWrite, parameters: WriteParameters) -> Effects:
        if isinstance(parameters.path, str):  # and known
            asked.append(parameters.path)
        return effects(self, parameters)

    monkeypatch.setattr(FileWrite, "effects", noted)
    written = {"id": "later", "op": "file.write", "with": {"path": "${{ steps.read.outputs.content }}", "content": "x"}}
    read = {"id": "read", "op": "file.read", "with": {"path": "name"}}
    prediction = predicted(write("one", "a"), write("name", "name", "b"), read, written)
    assert [change.path for change in prediction.changes] == ["a", "b", "name"]
    assert sorted(asked) == ["a", "b", "name"]


def test_many_deferred_steps_are_planned_in_no_time() -> None:
    scripts = [shell(f"s{number}", "true", reads=[], writes=[f"d{number}/x"]) for number in range(1500)]
    writes = [write(f"w{number}", f"e{number}/x") for number in range(1500)]
    started = time.perf_counter()
    prediction = predicted(*scripts, *writes)
    assert time.perf_counter() - started < 5
    assert len(prediction.deferred) == 1500


@settings(max_examples=ordinarily(12, nightly=120), deadline=None, suppress_health_check=list(HealthCheck))
@given(document=documents(largest=6), tree=trees())
@pytest.mark.slow
def test_a_run_on_a_real_folder_leaves_what_was_predicted(
    document: InstructionSet, tree: MemoryTree, tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("predicted")
    for name in ("workspace", "state"):
        (top / name).mkdir()
    fill(top / "workspace", tree)
    bench = Bench(top / "workspace", top / "state")
    instructions = [each.model_dump(by_alias=True, mode="json", exclude_unset=True) for each in document.instructions]
    assert bench.run(*instructions).status is RunStatus.COMMITTED
    assert entries_on_disk(bench.root) == one_by_one(plan.build(document, {}), tree)
    assert bench.workspace.undo("r1").conflicts == []
    assert entries_on_disk(bench.root) == tree.entries
    bench.workspace.close()
    bench.journal.close()

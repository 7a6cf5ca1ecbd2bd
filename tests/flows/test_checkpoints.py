"""Places that a run can go back to, and steps from which it goes on again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, fail, shell, write

from quantum_orchestrator.blocks.errors import NeedsAttention, UsageError
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, StepRecord
from quantum_orchestrator.blocks.tree import MemoryTree
from quantum_orchestrator.flows.instruction_set import InvalidSet, load
from quantum_orchestrator.flows.plan import build
from quantum_orchestrator.flows.prediction import predict
from quantum_orchestrator.flows.recover import Choice, rollback
from quantum_orchestrator.flows.results import RunStatus

HALFWAY = Choice(to="halfway")


class Killed(BaseException):
    """In place of the death of the process."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = tmp_path / "workspace"
    root.mkdir()
    made = Bench(root, workspace_home(root))
    yield made
    made.workspace.close()
    made.journal.close()


def checkpoint(name: str = "halfway", **fields: Any) -> dict[str, Any]:
    return {"id": name, "op": "checkpoint", "with": {"name": name}, **fields}


def append(step_id: str, path: str, content: str) -> dict[str, Any]:
    return {"id": step_id, "op": "file.append", "with": {"path": path, "content": content}}


def end(bench: Bench, run_id: str = "r1", status: RunStatus = RunStatus.COMMITTED) -> None:
    """The engine leaves this to whoever runs it."""
    bench.journal.update(run_id, status=status.value)


# Rolling back to one.


def test_a_failure_goes_back_to_the_checkpoint(bench: Bench) -> None:
    back = {"on_failure": {"rollback_to": "halfway"}}
    outcome = bench.run(write("a", "x"), checkpoint(), write("b", "y"), append("c", "x", "more\n"), fail(), **back)
    assert (outcome.status, outcome.checkpoint) == (RunStatus.KEPT, "halfway")
    assert bench.files() == {"x": "new\n"}
    assert bench.statuses() == {
        "a": "succeeded", "halfway": "succeeded", "b": "rolled_back", "c": "rolled_back", "fail": "failed",
    }  # fmt: skip
    assert bench.runner.undone == ["rollback"]


def test_a_failure_before_the_checkpoint_undoes_everything(bench: Bench) -> None:
    back = {"on_failure": {"rollback_to": "halfway"}}
    outcome = bench.run(write("a", "x"), fail(needs=["a"]), checkpoint(), write("b", "y"), **back)
    assert outcome.status is RunStatus.ROLLED_BACK
    assert bench.files() == {}


def test_the_run_that_went_back_goes_on_from_there(bench: Bench) -> None:
    back = {"on_failure": {"rollback_to": "halfway"}}
    steps = [append("a", "x", "1"), checkpoint(), append("b", "x", "2"), shell("c", "test -e ../ready", needs=["b"])]
    assert bench.run(*steps, **back).status is RunStatus.KEPT
    assert bench.files() == {"x": "1"}
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps, **back).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "12"}


def test_nothing_crosses_a_checkpoint(bench: Bench) -> None:
    slow = shell("slow", "sleep 0.2; echo done > slow", writes=["slow"], reads=[])
    seen = shell("seen", "test -e slow", reads=[], writes=[])
    assert bench.run(slow, checkpoint(), seen).status is RunStatus.COMMITTED


def test_a_committed_run_is_rolled_back_to_its_checkpoint(bench: Bench) -> None:
    bench.run(write("a", "x"), checkpoint(), write("b", "y"), append("c", "x", "more\n"))
    end(bench)
    shown = rollback(bench.root, "r1", choice=HALFWAY, check=True)
    assert sorted(change.path for change in shown.changes) == ["x", "y"]
    assert bench.files() == {"x": "new\nmore\n", "y": "new\n"}
    undone = rollback(bench.root, "r1", choice=HALFWAY)
    assert undone.status == "kept"
    assert bench.files() == {"x": "new\n"}
    assert rollback(bench.root, "r1").status == "rolled_back"
    assert bench.files() == {}


def test_an_unfinished_run_waits_at_the_checkpoint_that_it_was_rolled_back_to(bench: Bench) -> None:
    steps = [write("a", "x"), checkpoint(), append("b", "x", "2"), fail(needs=["b"])]
    assert bench.run(*steps, on_failure="pause").status is RunStatus.PAUSED
    assert rollback(bench.root, None, choice=HALFWAY).status == "paused"
    assert bench.files() == {"x": "new\n"}
    assert bench.journal.unfinished() is not None


def test_the_last_of_several_checkpoints_is_one_of_them(bench: Bench) -> None:
    bench.run(write("a", "x"), checkpoint("one"), write("b", "y"), checkpoint("two"), write("c", "z"))
    end(bench)
    rollback(bench.root, "r1", choice=Choice(to="two"))
    assert bench.files() == {"x": "new\n", "y": "new\n"}
    rollback(bench.root, "r1", choice=Choice(to="one"))
    assert bench.files() == {"x": "new\n"}
    with pytest.raises(UsageError, match="has not passed a checkpoint 'two'") as refused:
        rollback(bench.root, "r1", choice=Choice(to="two"))
    assert refused.value.hint == "it has passed: one"


def test_files_changed_since_refuse_a_rollback_to_a_checkpoint(bench: Bench) -> None:
    bench.run(write("a", "x"), checkpoint(), write("b", "y"))
    end(bench)
    (bench.root / "y").write_text("mine\n")
    with pytest.raises(NeedsAttention, match="y"):
        rollback(bench.root, "r1", choice=HALFWAY)
    (bench.root / "y").write_text("new\n")
    (bench.root / "x").write_text("mine\n")  # before the checkpoint: not in the way
    rollback(bench.root, "r1", choice=HALFWAY)
    assert bench.files() == {"x": "mine\n"}


def test_a_refusal_names_the_command_that_goes_back_no_further(bench: Bench) -> None:
    bench.run(write("a", "x"), checkpoint(), write("b", "y"))
    end(bench)
    (bench.root / "y").write_text("mine\n")
    with pytest.raises(NeedsAttention) as refused:
        rollback(bench.root, "r1", choice=HALFWAY)
    assert "`qo rollback r1 --to halfway --workspace " in refused.value.hint


def test_what_a_death_cut_short_in_a_list_known_only_then_is_undone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = {
        "id": "copy",
        "op": "file.copy",
        "for_each": "${{ steps.list.outputs.paths }}",
        "with": {"source": "${{ item }}", "destination": "out/${{ item }}"},
    }
    make = shell("make", "mkdir in; touch in/1 in/2")
    record_step = Journal.record_step

    def record(journal: Journal, run_id: str, step: StepRecord, **options: Any) -> None:
        if step.id == "copy[1]":
            raise Killed
        record_step(journal, run_id, step, **options)

    monkeypatch.setattr(Journal, "record_step", record)
    with pytest.raises(Killed):
        bench.run(make, {"id": "list", "op": "file.list", "with": {"path": "in"}}, checkpoint(), copy)
    monkeypatch.undo()
    assert "out/in/2" in bench.files()
    assert rollback(bench.root, "r1", choice=HALFWAY).status == "paused"
    assert bench.files() == {"in/1": "", "in/2": ""}


def test_a_checkpoint_inside_a_call_that_stays_one_step_counts_too(bench: Bench) -> None:
    inner = {"name": "inner", "instructions": [write("w", "x"), checkpoint(), write("v", "y")]}
    bench.run({"id": "c", "op": "call", "with": {"set": inner}, "timeout": 60}, write("z", "z"))
    end(bench)
    rollback(bench.root, "r1", choice=HALFWAY)
    assert bench.files() == {"x": "new\n"}


def test_what_came_after_is_compensated_and_asked_for_again(bench: Bench) -> None:
    outside = shell("out", "touch ../outside", undo=shell("back", "rm ../outside"), reads=[], writes=[])
    gate = {"id": "gate", "op": "approval", "with": {"message": "ok?"}}
    assert bench.run(checkpoint(), outside, gate, approve=True).status is RunStatus.COMMITTED
    end(bench)
    rollback(bench.root, "r1", choice=HALFWAY)
    assert not (bench.root.parent / "outside").exists()
    assert bench.journal.decisions("r1") == {}


def test_checkpoints_of_a_called_set_count(bench: Bench) -> None:
    inner = {"name": "inner", "instructions": [write("i", "x"), checkpoint("inside"), write("j", "y")]}
    bench.run({"id": "c", "op": "call", "with": {"set": inner}}, write("after", "z"))
    end(bench)
    rollback(bench.root, "r1", choice=Choice(to="inside"))
    assert bench.files() == {"x": "new\n"}


# Steps that a dead process had made known only while it ran.


def test_a_rollback_compensates_the_rounds_of_a_list_that_was_known_only_then(bench: Bench) -> None:
    one = shell("o", "touch ../${{ item }}", reads=[], writes=[], undo=shell("b", "rm ../${{ item }}"))
    names = shell("names", "printf one,two", reads=[], writes=[])
    one |= {"for_each": "${{ steps.names.outputs.stdout | split(',') }}"}
    one["with"] = {"argv": ["touch", "../${{ item }}"]}
    one["undo"]["with"] = {"argv": ["rm", "../${{ item }}"]}
    try:
        assert bench.run(names, one).status is RunStatus.COMMITTED
    except InvalidSet:
        pytest.fail("the set is not valid")
    assert (bench.root.parent / "two").exists()
    end(bench)
    rollback(bench.root, "r1")
    assert not (bench.root.parent / "one").exists()
    assert not (bench.root.parent / "two").exists()


# Going on from a step.


def test_a_run_goes_on_from_a_step_that_had_been_done(bench: Bench) -> None:
    steps = [append("a", "x", "1"), append("b", "x", "2"), append("c", "y", "3"), shell("d", "test -e ../ready")]
    assert bench.run(*steps, on_failure="pause").status is RunStatus.PAUSED
    before = {name: step.attempts for name, step in bench.journal.steps("r1").items()}
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps, on_failure="pause", start_at="b").status is RunStatus.COMMITTED
    assert bench.files() == {"x": "12", "y": "3"}
    started = [event.step for event in bench.events if event.kind.value == "step_started"]
    assert started.count("a") <= 2  # its result is reused
    assert bench.journal.steps("r1")["b"].attempts == before["b"]


def test_a_run_that_was_undone_runs_again_from_its_start(bench: Bench) -> None:
    steps = [append("a", "x", "1"), shell("d", "test -e ../ready")]
    assert bench.run(*steps).status is RunStatus.ROLLED_BACK
    assert bench.files() == {}
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "1"}


def test_a_run_that_was_kept_goes_on_where_it_failed(bench: Bench) -> None:
    steps = [append("a", "x", "1"), shell("d", "test -e ../ready"), append("b", "x", "2")]
    assert bench.run(*steps, on_failure="keep", order="sequential").status is RunStatus.KEPT
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps, on_failure="keep", order="sequential").status is RunStatus.COMMITTED
    assert bench.files() == {"x": "12"}


# What is wrong about them.


def faults(*instructions: Mapping[str, Any], **fields: Any) -> list[str]:
    document = {"name": "test", "instructions": list(instructions), **fields}
    with pytest.raises(InvalidSet) as refused:
        load(json.dumps(document).encode())
    return [f"{fault.pointer}: {fault.message} ({fault.hint})" for fault in refused.value.faults]


def test_a_checkpoint_that_is_not_there_is_a_fault_with_the_nearest_name() -> None:
    (fault,) = faults(checkpoint("halfway"), on_failure={"rollback_to": "halfwey"})
    assert fault == "/on_failure/rollback_to: there is no checkpoint 'halfwey' (did you mean 'halfway'?)"


def test_a_rollback_to_needs_a_checkpoint() -> None:
    (fault,) = faults(write("a", "x"), on_failure={"rollback_to": "halfway"})
    assert "an instruction 'checkpoint' of the set must have that name" in fault


def test_two_checkpoints_of_one_name_are_a_fault() -> None:
    (fault,) = faults(checkpoint(), {**checkpoint(), "id": "again"})
    assert fault.startswith("/instructions/1/with/name: checkpoint 'halfway' is there twice")


@pytest.mark.parametrize("value", [{"rollback_to": ""}, {"rollback_to": 1}, {"to": "x"}, {}, "rolback", 7, None])
def test_what_is_no_policy_is_a_fault(value: object) -> None:
    found = faults(checkpoint(), on_failure=value)
    assert all(fault.startswith("/on_failure") for fault in found)


# What a plan says.


def predicted(*instructions: Mapping[str, Any], **fields: Any) -> list[str]:
    """The paths that a plan says will differ in the end."""
    document = load(json.dumps({"name": "test", "instructions": list(instructions), **fields}).encode())
    prediction = predict(build(document, {}), MemoryTree())
    return [change.path for change in prediction.changes_left(document.on_failure)]


def test_a_plan_that_fails_says_what_is_left_of_it() -> None:
    steps = [write("a", "x"), checkpoint(), write("b", "y"), fail(needs=["b"])]
    assert predicted(*steps, on_failure={"rollback_to": "halfway"}) == ["x"]
    assert predicted(*steps) == []
    assert predicted(*steps, on_failure="keep") == ["x", "y"]
    assert predicted(fail("first"), *steps, on_failure={"rollback_to": "halfway"}) == []

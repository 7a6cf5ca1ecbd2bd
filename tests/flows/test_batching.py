"""Cheap steps that are done together: what becomes of each is what would have become of it alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, fail, shell, write

from quantum_orchestrator.blocks import disk_changes
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.batching import BATCH_FROM, FIRST_SIZE, LARGEST_SIZE, TARGET_SECONDS, BatchSize
from quantum_orchestrator.flows.instruction_set import load
from quantum_orchestrator.flows.plan import Graph, Step, build
from quantum_orchestrator.flows.results import RunStatus
from quantum_orchestrator.flows.schedule import ReadyQueue


class Killed(BaseException):
    """In place of the death of the process."""


def new_bench(folder: Path) -> Bench:
    for name in ("workspace", "state"):
        (folder / name).mkdir(parents=True)
    made = Bench(folder / "workspace", folder / "state")
    made.batch_from = 2
    return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with contextlib.closing(new_bench(tmp_path)) as made:
        yield made


def append(step_id: str, path: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "file.append", "with": {"path": path, "content": content}, **fields}


def chain(count: int) -> list[dict[str, Any]]:
    return [append(f"s{number}", "x", f"{number}\n") for number in range(count)]


# Which steps go together.


def test_a_small_set_is_one_task_a_step(bench: Bench) -> None:
    bench.batch_from = BATCH_FROM
    assert bench.run(*chain(5)).status is RunStatus.COMMITTED
    assert bench.runner.batches == []


def test_what_is_said_of_a_run_is_the_same_with_batch_off(tmp_path: Path) -> None:
    edit = {"op": "file.edit", "with": {"path": "x", "edits": [{"find": "none", "replace": ""}]}}
    steps = [*chain(3), {"id": "e", **edit, "on_error": "continue"}, write("w", "y", when="${{ 1 == 2 }}")]
    quiet = [shell(f"q{number}", f"echo {number}", reads=[], writes=[]) for number in range(2)]
    said: dict[str, dict[str, Any]] = {}
    for choice in ("auto", "off"):
        with contextlib.closing(new_bench(tmp_path / choice)) as bench:
            outcome = bench.run(*steps, *quiet, batch=choice)
            assert bool(bench.runner.batches) is (choice == "auto")
            record = bench.journal.run("r1")
            assert record is not None
            said[choice] = report.run_document(record, outcome.status, bench.steps().values(), bench.journal, None)
            for each in (said[choice], *said[choice]["steps"]):
                each.pop("duration_s")
    assert said["auto"]["diff"]["files"] == 1
    assert said["auto"] == said["off"]


def test_steps_that_wait_for_each_other_go_together_in_order(bench: Bench) -> None:
    assert bench.run(*chain(5)).status is RunStatus.COMMITTED
    assert bench.runner.batches == [[f"s{number}" for number in range(5)]]
    assert bench.files() == {"x": "".join(f"{number}\n" for number in range(5))}


@pytest.mark.parametrize(
    "wish",
    [{"retries": 1}, {"timeout": 5}, {"resources": {"disk": 1}}, {"tags": ["slow"]}],
    ids=lambda wish: next(iter(wish)),
)
def test_a_step_with_wishes_of_its_own_goes_alone(bench: Bench, wish: Mapping[str, Any]) -> None:
    bench.run(write("a", "x"), write("b", "y", **wish), write("c", "z"))
    assert [sorted(batch) for batch in bench.runner.batches] == [["a", "c"]]


def test_what_acts_by_itself_goes_alone(bench: Bench) -> None:
    gate = {"id": "here", "op": "checkpoint", "with": {"name": "here"}}
    bench.run(write("a", "x"), shell("s", "true", reads=[], writes=[]), write("b", "y"), gate, write("c", "z"))
    assert [sorted(batch) for batch in bench.runner.batches] == [["a", "b"]]


def test_a_batch_takes_about_the_target_time() -> None:
    size = BatchSize()
    for _ in range(10):
        size.learn(size.value, size.value * TARGET_SECONDS / 100)
    assert 90 <= size.value <= 110
    for _ in range(10):
        size.learn(size.value, 1e-9)
    assert size.value == LARGEST_SIZE
    size.learn(LARGEST_SIZE, 1e9)
    assert size.value == 1


# What becomes of each.


def test_a_member_fails_alone(bench: Bench) -> None:
    edit = {"id": "b", "op": "file.edit", "with": {"path": "none", "edits": [{"find": "a", "replace": "b"}]}}
    steps = [write("a", "x"), {**edit, "on_error": "continue"}, write("c", "z")]
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.statuses() == {"a": "succeeded", "b": "failed", "c": "succeeded"}
    assert bench.files() == {"x": "new\n", "z": "new\n"}


def test_those_that_wait_for_a_failure_that_is_handled_run_after_it(bench: Bench) -> None:
    late = write("late", "late", needs=["f"], when="${{ steps.f.status == 'failed' }}")
    assert bench.run(write("a", "x"), fail("f", on_error="continue"), late).status is RunStatus.COMMITTED
    assert bench.files() == {"late": "new\n", "x": "new\n"}


def test_a_failure_undoes_the_whole_run(bench: Bench) -> None:
    outcome = bench.run(*chain(4), fail(needs=["s2"]))
    assert (outcome.status, outcome.failed_step) == (RunStatus.ROLLED_BACK, "fail")
    assert bench.files() == {}
    assert bench.statuses()["s1"] == "rolled_back"


def test_what_is_kept_is_what_came_before_the_failure(bench: Bench) -> None:
    outcome = bench.run(append("a", "x", "1"), fail(), append("b", "x", "2"), on_failure="keep")
    assert outcome.status is RunStatus.KEPT
    assert bench.files() == {"x": "1"}


def test_members_refer_to_each_other(bench: Bench) -> None:
    read = {"id": "r", "op": "file.read", "with": {"path": "x"}}
    copy = write("w", "y", "${{ steps.r.outputs.content }}")
    assert bench.run(write("a", "x", "hello\n"), read, copy).status is RunStatus.COMMITTED
    assert len(bench.runner.batches) == 1
    assert bench.files()["y"] == "hello\n"


def test_a_disk_that_refuses_a_batch_tells_whose_fault_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make_so = disk_changes.make_so

    def refuse(folder: Any, changes: Any, content_of: Any) -> None:
        if any(change.path == "bad" and change.after is not None for change in changes):
            raise OperationError("bad: cannot write it: no space left")
        make_so(folder, changes, content_of)

    monkeypatch.setattr(disk_changes, "make_so", refuse)
    steps = [write("a", "x"), write("b", "bad", on_error="continue"), write("c", "z")]
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.statuses() == {"a": "succeeded", "b": "failed", "c": "succeeded"}
    assert bench.files() == {"x": "new\n", "z": "new\n"}


def test_a_batch_is_seen_as_its_steps(bench: Bench) -> None:
    bench.run(write("a", "x"), write("b", "y", when="${{ false }}"))
    seen = [(event.kind.value, event.step) for event in bench.events if event.step]
    assert seen == [("step_started", "a"), ("step_finished", "a"), ("step_finished", "b")]
    a, b = bench.steps().values()
    assert (a.attempts, a.outputs is not None and a.outputs["bytes"]) == (1, 4)
    assert b.status.value == "skipped"


def test_each_member_can_be_undone_by_itself(bench: Bench) -> None:
    bench.run(write("a", "d/x"), write("b", "d/y"), append("c", "d/x", "more\n"))
    bench.workspace.undo("r1", ["b"])
    assert bench.files() == {"d/x": "new\nmore\n"}
    bench.workspace.undo("r1", ["a", "c"])
    assert list(bench.root.iterdir()) == []


# After a death.


def test_a_batch_that_was_cut_short_runs_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record_steps", _dies)
        patch.setattr(bench.workspace, "undo", _dies)  # as it would if the process had died
        with pytest.raises(Killed):
            bench.run(*chain(5))
    assert bench.files()["x"] != ""
    assert bench.run(*chain(5)).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "".join(f"{number}\n" for number in range(5))}


def _dies(*_arguments: object, **_keywords: object) -> None:
    raise Killed


def test_a_resumed_run_takes_what_is_done_together_too(bench: Bench) -> None:
    steps = [*chain(6), shell("s", "test -e ../ready", needs=["s5"])]
    assert bench.run(*steps, on_failure="pause").status is RunStatus.PAUSED
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps, on_failure="pause").status is RunStatus.COMMITTED
    assert bench.runner.batches[0] == bench.runner.batches[1]
    assert bench.files() == {"x": "".join(f"{number}\n" for number in range(6))}


# The queue's groups.


def graph_of(*instructions: Mapping[str, Any]) -> Graph:
    return build(load(json.dumps({"name": "test", "instructions": list(instructions)}).encode()), {})


def ids(groups: list[list[Step]]) -> list[list[str]]:
    return [[step.id for step in group] for group in groups]


def test_a_group_takes_one_place_until_its_last_member_ends() -> None:
    graph = graph_of(*chain(3), write("b", "y"), write("c", "z"))
    queue = ReadyQueue(graph, parallel=1)
    assert ids(queue.take_together(lambda _step: True, 4)) == [["s0", "s1", "s2", "b"]]
    for name in ("s0", "s1", "s2"):
        queue.finish(name)
        assert queue.take_together(lambda _step: True, 4) == []
    queue.finish("b")
    assert ids(queue.take_together(lambda _step: True, 4)) == [["c"]]


def test_what_waits_for_something_outside_of_the_group_is_not_taken() -> None:
    graph = graph_of(shell("s", "true", reads=[], writes=["y"]), write("a", "x"), append("b", "y", "1", needs=["a"]))
    queue = ReadyQueue(graph, parallel=2)
    groups = ids(queue.take_together(lambda step: step.instruction.op != "script.run", 8))
    assert sorted(groups) == [["a"], ["s"]]


def test_a_member_that_was_not_done_is_given_back_and_waits_again() -> None:
    queue = ReadyQueue(graph_of(*chain(3)), parallel=1)
    assert ids(queue.take_together(lambda _step: True, FIRST_SIZE)) == [["s0", "s1", "s2"]]
    queue.give_back("s1")
    queue.give_back("s2")
    assert queue.take() == []
    queue.finish("s0")
    assert [step.id for step in queue.take()] == ["s1"]


def test_a_folder_takes_the_place_of_a_link_in_one_batch(bench: Bench) -> None:
    (bench.root / "link").symlink_to("elsewhere")
    gone = {"id": "gone", "op": "file.delete", "with": {"path": "link"}}
    steps = [gone, write("made", "link/x", needs=["gone"]), write("more", "link/y", needs=["made"])]
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert len(bench.runner.batches) == 1
    assert (bench.root / "link/x").read_text() == "new\n"
    bench.workspace.undo("r1")
    assert (bench.root / "link").readlink() == Path("elsewhere")

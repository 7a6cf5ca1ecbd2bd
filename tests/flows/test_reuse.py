"""Steps whose inputs and results are as they were are not run again; whatever is different is told, and runs."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, fail, shell, write

from quantum_orchestrator.blocks import reuse_store, stamped_tree
from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.reuse_store import FILE, ReuseStore
from quantum_orchestrator.blocks.stamped_tree import StampedTree
from quantum_orchestrator.flows.batching import BATCH_FROM
from quantum_orchestrator.flows.instruction_set import InvalidSet, load
from quantum_orchestrator.flows.plan import build
from quantum_orchestrator.flows.prediction import Prediction, predict
from quantum_orchestrator.flows.results import RunStatus, StepStatus
from quantum_orchestrator.flows.reusing import Memory, Wishes


class Rerun(Bench):
    """Runs one set after another in one workspace."""

    runs = 0

    def again(self, *instructions: Any, **fields: Any) -> dict[str, str]:
        self.runs += 1
        outcome = self.run(*instructions, run_id=f"r{self.runs}", cache=True, **fields)
        assert outcome.status is RunStatus.COMMITTED, outcome.error
        return self.statuses()

    def why(self, step_id: str) -> str | None:
        return self.steps()[step_id].reason


@pytest.fixture(params=[BATCH_FROM, 2], ids=["single", "batched"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rerun]:
    for name in ("workspace", "state"):
        (tmp_path / name).mkdir()
    made = Rerun(tmp_path / "workspace", tmp_path / "state")
    made.batch_from = request.param
    yield made
    made.workspace.close()
    made.journal.close()


def copy(step_id: str, source: str, destination: str, **fields: Any) -> dict[str, Any]:
    given = {"source": source, "destination": destination, "overwrite": True}
    return {"id": step_id, "op": "file.copy", "with": given, **fields}


def counting(step_id: str = "s", **fields: Any) -> dict[str, Any]:
    """A script that leaves word, outside of the workspace, each time that it runs."""
    return shell(step_id, 'mkdir -p out; cat src/* > out/all; echo x >> "$COUNTER"', **BOTH, **fields)


BOTH = {"reads": ["src/**"], "writes": ["out/**"]}


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    return tmp_path / "counter"


def env(counter: Path) -> dict[str, dict[str, str]]:
    return {"env": {"COUNTER": str(counter)}}


# What is reused.


def test_a_step_whose_result_is_there_is_reused_with_its_outputs(bench: Rerun) -> None:
    pair = [
        write("a", "x"),
        write("b", "${{ steps.a.outputs.sha256 }}.txt", when="${{ steps.a.status == 'succeeded' }}"),
    ]
    bench.again(*pair)
    outputs = {name: step.outputs for name, step in bench.steps().items()}
    assert bench.again(*pair) == {"a": "reused", "b": "reused"}
    assert {name: step.outputs for name, step in bench.steps().items()} == outputs
    assert bench.why("a") == "inputs unchanged since run r1"
    assert bench.journal.effects("r2") == []


def test_without_cache_everything_runs(bench: Rerun) -> None:
    bench.again(write("a", "x"), write("b", "y"))
    bench.run(write("a", "x"), write("b", "y"), run_id="plain")
    assert bench.statuses() == {"a": "succeeded", "b": "succeeded"}
    assert bench.why("a") is None


def test_an_instruction_that_says_no_beats_its_set(bench: Rerun) -> None:
    pair = [write("a", "x", cache=False), write("b", "y")]
    bench.again(*pair)
    assert bench.again(*pair) == {"a": "succeeded", "b": "reused"}


def test_an_instruction_may_ask_alone(bench: Rerun) -> None:
    pair = [write("a", "x", cache=True), write("b", "y")]
    bench.run(*pair, run_id="one")
    bench.run(*pair, run_id="two")
    assert bench.statuses() == {"a": "reused", "b": "succeeded"}


def test_a_called_set_does_as_its_caller_unless_it_says_otherwise(bench: Rerun) -> None:
    inner = {"name": "inner", "instructions": [write("w", "x")]}
    own = {"name": "own", "cache": False, "instructions": [write("w", "y")]}
    calls = [{"id": name, "op": "call", "with": {"set": called}} for name, called in (("a", inner), ("b", own))]
    bench.again(*calls)
    assert bench.again(*calls) == {"a/w": "reused", "b/w": "succeeded"}


def test_a_pure_operation_need_not_be_asked(bench: Rerun) -> None:
    (bench.root / "m.py").write_text("x = 1\n")
    score = {"id": "score", "op": "quality.score", "with": {"paths": ["."]}}
    bench.run(score, run_id="one")
    bench.run(score, run_id="two")
    assert bench.statuses() == {"score": "reused"}
    bench.run({**score, "cache": False}, run_id="three")
    assert bench.statuses() == {"score": "succeeded"}


def test_a_script_that_says_what_it_touches_is_reused(bench: Rerun, counter: Path) -> None:
    pair = [write("a", "src/a"), counting()]
    bench.again(*pair, **env(counter))
    assert bench.again(*pair, **env(counter)) == {"a": "reused", "s": "reused"}
    assert counter.read_text() == "x\n"
    assert bench.steps()["s"].outputs["changed"] == ["out", "out/all"]  # type: ignore[index]


def test_a_large_set_of_which_nothing_has_to_run_is_one_batch(bench: Rerun) -> None:
    steps = [write("a", "x"), copy("b", "x", "y"), write("c", "${{ steps.b.status }}")]
    bench.again(*steps)
    bench.runner.batches.clear()
    assert bench.again(*steps) == dict.fromkeys("abc", "reused")
    assert bench.runner.batches == ([["a", "b", "c"]] if bench.batch_from == 2 else [])
    ends = [(event.step, event.message) for event in bench.events if event.status is StepStatus.REUSED]
    assert sorted(ends) == [(name, "inputs unchanged since run r1") for name in "abc"]
    recorded = {step.id: step.status for step in bench.journal.steps("r2").values()}
    assert recorded == dict.fromkeys("abc", "reused")


def test_one_step_that_has_to_run_leaves_the_others_as_they_are(bench: Rerun) -> None:
    steps = [write("a", "x"), write("b", "y"), write("c", "z")]
    bench.again(*steps)
    (bench.root / "z").unlink()
    assert bench.again(*steps) == {"a": "reused", "b": "reused", "c": "succeeded"}


# What is not, and why.


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda root: (root / "src/a").write_text("other\n"), "src/a changed"),
        (lambda root: (root / "src/b").write_text("more\n"), "src/b is new"),
        (lambda root: (root / "src/a").unlink(), "src/a is gone"),
        (lambda root: (root / "src/a").chmod(0o600), "src/a changed"),
        (lambda root: (root / "out/all").write_text("mine\n"), "out/all changed"),
        (lambda root: (root / "out/all").unlink(), "out/all is gone"),
    ],
    ids=["input changed", "input added", "input gone", "input mode", "output changed", "output gone"],
)
def test_a_step_runs_if_what_it_reads_or_left_is_different(bench: Rerun, counter: Path, spoil: Any, why: str) -> None:
    (bench.root / "src").mkdir()
    (bench.root / "src/a").write_text("a\n")
    (bench.root / "src/c").write_text("c\n")
    bench.again(counting(), **env(counter))
    spoil(bench.root)
    assert bench.again(counting(), **env(counter)) == {"s": "succeeded"}
    assert bench.why("s") == why
    assert bench.again(counting(), **env(counter)) == {"s": "reused"}


def test_a_change_of_the_same_size_and_time_is_seen(bench: Rerun) -> None:
    bench.again(write("a", "x", "one\n"), write("b", "y"))
    before = (bench.root / "x").stat()
    (bench.root / "x").write_text("two\n")
    os.utime(bench.root / "x", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bench.again(write("a", "x", "one\n"), write("b", "y")) == {"a": "succeeded", "b": "reused"}
    assert bench.files()["x"] == "one\n"


def test_other_parameters_run_and_take_the_place_of_what_was_remembered(bench: Rerun) -> None:
    bench.again(write("a", "x", "1"), write("b", "y"))
    assert bench.again(write("a", "x", "2"), write("b", "y"))["a"] == "succeeded"
    assert bench.why("a") == "parameters changed"
    assert bench.again(write("a", "x", "2"), write("b", "y"))["a"] == "reused"
    assert bench.again(write("a", "x", "1"), write("b", "y"))["a"] == "succeeded"
    assert bench.files()["x"] == "1"


def test_another_environment_is_another_script(bench: Rerun, counter: Path) -> None:
    (bench.root / "src").mkdir()
    (bench.root / "src/a").write_text("a\n")
    bench.again(counting(), **env(counter))
    bench.again(counting(), env={"COUNTER": str(counter), "MODE": "fast"})
    assert bench.why("s") == "environment changed"


def test_a_new_version_of_the_operation_runs(bench: Rerun, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.again(write("a", "x"), write("b", "y"))
    monkeypatch.setattr("quantum_orchestrator.tasks.registry.version", lambda _name: "other 2.0")
    bench.again(write("a", "x"), write("b", "y"))
    assert bench.why("a") == "implementation changed"


def test_a_step_is_judged_by_what_those_before_it_leave(bench: Rerun) -> None:
    chain = [write("a", "x"), copy("b", "x", "y"), copy("c", "y", "z")]
    bench.again(*chain)
    assert bench.again(write("a", "x", "other\n"), *chain[1:]) == dict.fromkeys("abc", "succeeded")
    assert bench.files() == dict.fromkeys("xyz", "other\n")
    assert bench.why("b") == "x changed"


def test_a_step_whose_work_is_changed_by_a_later_one_runs_each_time(bench: Rerun) -> None:
    pair = [write("a", "x", "1\n"), {"id": "b", "op": "file.append", "with": {"path": "x", "content": "2\n"}}]
    bench.again(*pair)
    assert bench.again(*pair) == {"a": "succeeded", "b": "succeeded"}
    assert bench.files() == {"x": "1\n2\n"}
    assert bench.why("b") == "file.append is never reused"


def test_a_script_that_does_not_say_what_it_touches_runs(bench: Rerun) -> None:
    bench.again(shell("s", "true"))
    assert bench.again(shell("s", "true")) == {"s": "succeeded"}
    assert bench.why("s") == "it does not say what it reads and writes"


# Runs that did not commit.


def test_a_run_that_was_rolled_back_leaves_nothing_to_reuse(bench: Rerun) -> None:
    bench.run(write("a", "x"), write("b", "y"), fail(needs=["a", "b"]), run_id="failed", cache=True)
    assert bench.again(write("a", "x"), write("b", "y")) == {"a": "succeeded", "b": "succeeded"}
    assert bench.why("a") == "no committed run is remembered"


def test_a_reused_step_has_nothing_to_be_undone(bench: Rerun) -> None:
    bench.again(write("a", "x"), write("b", "y"))
    (bench.root / "y").write_text("mine\n")
    outcome = bench.run(write("a", "x"), write("b", "y"), fail(needs=["a", "b"]), run_id="failed", cache=True)
    assert outcome.status is RunStatus.ROLLED_BACK
    assert bench.statuses() == {"a": "reused", "b": "rolled_back", "fail": "failed"}
    assert bench.files() == {"x": "new\n", "y": "mine\n"}


def test_a_run_that_is_gone_on_with_keeps_what_it_reused(bench: Rerun) -> None:
    gate = shell("gate", "test -e open", reads=["open"], writes=[], cache=False)
    (bench.root / "open").touch()
    steps = [write("a", "x"), write("b", "y"), {**gate, "needs": ["a", "b"]}]
    bench.again(*steps)
    (bench.root / "open").unlink()
    outcome = bench.run(*steps, run_id="paused", cache=True, on_failure="pause")
    assert outcome.status is RunStatus.PAUSED
    (bench.root / "open").touch()
    (bench.root / "x").write_text("mine\n")  # it is not looked at again
    outcome = bench.run(*steps, run_id="paused", cache=True, on_failure="pause")
    assert outcome.status is RunStatus.COMMITTED
    assert bench.statuses() == {"a": "reused", "b": "reused", "gate": "succeeded"}
    assert bench.files()["x"] == "mine\n"


# What the caller wishes.


def test_no_cache_reuses_nothing(bench: Rerun) -> None:
    bench.again(write("a", "x"), write("b", "y"))
    assert bench.again(write("a", "x"), write("b", "y"), reuse=Wishes(enabled=False)) == dict.fromkeys(
        "ab", "succeeded"
    )


def test_force_runs_a_step_and_what_depends_on_it(bench: Rerun) -> None:
    steps = [write("a", "x"), copy("b", "x", "y"), write("c", "z"), copy("d", "y", "w")]
    bench.again(*steps)
    found = bench.again(*steps, reuse=Wishes(force=["b"]))
    assert found == {"a": "reused", "b": "succeeded", "c": "reused", "d": "succeeded"}
    assert (bench.why("b"), bench.why("d")) == ("forced", "forced")


def test_force_reaches_the_rounds_of_a_list(bench: Rerun) -> None:
    rounds = {**write("a", "${{ item }}"), "for_each": ["x", "y"]}
    bench.again(rounds)
    assert bench.again(rounds, reuse=Wishes(force=["a[1]"])) == {"a[0]": "reused", "a[1]": "succeeded"}
    assert bench.again(rounds, reuse=Wishes(force=["a"])) == {"a[0]": "succeeded", "a[1]": "succeeded"}


# The store.


def test_a_store_that_is_damaged_remembers_nothing_and_is_made_anew(bench: Rerun) -> None:
    steps = [write("a", "x"), write("b", "y")]
    bench.again(*steps)
    (bench.journal.folder / FILE).write_bytes(b"no database" * 1000)
    assert bench.again(*steps) == {"a": "succeeded", "b": "succeeded"}
    assert bench.again(*steps) == {"a": "reused", "b": "reused"}


def test_a_row_that_is_damaged_is_not_believed(bench: Rerun) -> None:
    steps = [write("a", "x"), write("b", "y")]
    bench.again(*steps)
    with sqlite3.connect(bench.journal.folder / FILE) as database:
        database.execute("UPDATE steps SET body = replace(body, 'r1', 'r7') WHERE step = 'a'")
    database.close()
    assert bench.again(*steps) == {"a": "succeeded", "b": "reused"}


def test_what_no_run_has_used_for_long_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReuseStore(tmp_path)
    store.save("old", {"a": "1", "b": "2"})
    monkeypatch.setattr(
        reuse_store.time, "time", lambda now=reuse_store.time.time: now() + reuse_store.KEEP_SECONDS - 9
    )
    store.save("old", {}, ["b"])
    monkeypatch.undo()
    later = reuse_store.time.time() + reuse_store.KEEP_SECONDS + 9
    monkeypatch.setattr(reuse_store.time, "time", lambda: later)
    store.save("new", {"c": "3"})
    assert (store.load("old"), store.load("new")) == ({"b": "2"}, {"c": "3"})


def test_there_is_a_limit_to_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse_store, "MOST_ROWS", 2)
    store = ReuseStore(tmp_path)
    store.save("s", {"a": "1"})
    store.save("s", {"b": "2", "c": "3"})
    assert store.load("s") == {"b": "2", "c": "3"}


def test_what_was_used_last_stays_where_there_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReuseStore(tmp_path)
    store.save("s", {"a": "x" * 400_000})
    store.save("s", {"b": "x" * 400_000})
    monkeypatch.setattr(reuse_store, "MOST_BYTES", 1_000_000)
    store.save("s", {"c": "x" * 400_000})
    assert list(store.load("s")) == ["c"]


# Looking without reading.


class Reads(ConfinedFolder):
    """Counts the files that are read."""

    read_paths: list[str]

    def read(self, path: str) -> bytes:
        self.read_paths.append(path)
        return super().read(path)


def test_a_file_that_lay_still_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    os.utime(tmp_path / "x", (1, 1))
    with Reads.open(tmp_path) as folder:
        folder.read_paths = []
        tree = StampedTree(folder)
        stamped_when_settled(tree)
        folder.read_paths.clear()
        first = tree.entry("x")
        assert folder.read_paths == []
        (tmp_path / "x").write_text("y")
        assert tree.entry("x") != first


def stamped_when_settled(tree: StampedTree) -> None:
    entry = tree.entry("x")
    assert entry is not None
    while not tree.stamp("x", entry.sha256):
        tree.entry("x")


def test_a_file_of_this_very_moment_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamped_tree, "SETTLED_NANOSECONDS", 3_600 * 10**9)  # however slow the machine is
    with Reads.open(tmp_path) as folder:
        folder.read_paths = []
        tree = StampedTree(folder)
        (tmp_path / "x").write_text("x")
        tree.entry("x")
        tree.entry("x")
        assert folder.read_paths == ["x", "x"]


# Plans.


def planned(bench: Rerun, *instructions: Any) -> Prediction:
    document = load(json.dumps({"name": "test", "cache": True, "instructions": list(instructions)}).encode())
    tree = StampedTree(bench.workspace.folder)
    memory = Memory(document, bench.journal.folder, tree, bench.workspace.is_excluded)
    return predict(build(document, {}), tree, judge=memory.verdict)


def test_a_plan_says_what_would_be_reused_and_why_not(bench: Rerun, counter: Path) -> None:
    (bench.root / "src").mkdir()
    (bench.root / "src/a").write_text("a\n")
    script = shell("s", "cat src/a", reads=["src/**"], writes=[])
    echo = {"id": "say", "op": "echo", "with": {"message": "${{ steps.s.outputs.stdout }}"}}
    bench.again(script, echo, copy("c", "src", "lib"))
    steps = planned(bench, script, echo, copy("c", "src", "lib")).steps
    assert [step.status.value for step in steps] == ["reused", "succeeded", "reused"]
    prediction = planned(bench, write("w", "src/a"), script, echo, copy("c", "src", "lib"))
    assert [step.status.value for step in prediction.steps] == ["succeeded", "deferred", "deferred", "succeeded"]
    assert prediction.verdicts == {
        "w": "no committed run is remembered",
        "s": "src/a changed",
        "c": "src/a changed",
    }


# Where it cannot work.


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ({"id": "s", "op": "script.run", "with": {"shell": "true"}, "reads": ["x"]}, "declares `reads` and `writes`"),
        ({"id": "s", "op": "file.append", "with": {"path": "x", "content": "x"}}, "file.append is never reused"),
        ({"id": "s", "op": "git.push"}, "git.push is never reused"),
        (
            {"id": "s", "op": "call", "with": {"set": {"name": "inner", "instructions": []}}},
            "a call is not reused as a whole",
        ),
        (
            {"id": "s", "op": "script.run", "with": {"shell": "true", "network": True}, "reads": [], "writes": []},
            "what acts outside of the workspace is never reused",
        ),
    ],
    ids=lambda each: each["op"] if isinstance(each, dict) else "",
)
def test_cache_where_it_cannot_work_is_a_fault(instruction: dict[str, Any], message: str) -> None:
    document = {"name": "test", "instructions": [{**instruction, "cache": True}]}
    with pytest.raises(InvalidSet) as caught:
        load(json.dumps(document).encode())
    (fault,) = caught.value.faults
    assert fault.pointer == "/instructions/0/cache"
    assert message in fault.message
    assert fault.hint

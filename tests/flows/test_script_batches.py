"""Scripts that change nothing and are done together: each ends, fails, is recorded and shown as it would be alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, shell, write

from quantum_orchestrator.flows import pool, script_batches
from quantum_orchestrator.flows.batching import BATCH_FROM
from quantum_orchestrator.flows.engine import Run
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus


def made_in(folder: Path) -> Bench:
    for name in ("workspace", "state"):
        (folder / name).mkdir(exist_ok=True)
    made = Bench(folder / "workspace", folder / "state")
    made.batch_from = 2
    return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = made_in(tmp_path)
    yield made
    made.workspace.close()
    made.journal.close()


def quiet(step_id: str, script: str = "true", **fields: Any) -> dict[str, Any]:
    return shell(step_id, script, **{"reads": [], "writes": [], **fields})


def quiets(count: int) -> list[dict[str, Any]]:
    return [quiet(f"s{number}", f"echo {number}; echo {number} >> ../log") for number in range(count)]


def log_of(bench: Bench) -> list[str]:
    """What the scripts have noted beside the workspace, in the order of their ends."""
    return (bench.root.parent / "log").read_text().split()


def eventually(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


# Which go together.


def test_scripts_that_change_nothing_go_together_in_order(bench: Bench) -> None:
    assert bench.run(*quiets(5)).status is RunStatus.COMMITTED
    assert bench.runner.batches == [[f"s{number}" for number in range(5)]]
    assert log_of(bench) == ["0", "1", "2", "3", "4"]


def test_in_a_small_set_each_goes_alone(bench: Bench) -> None:
    bench.batch_from = BATCH_FROM
    assert bench.run(*quiets(3)).status is RunStatus.COMMITTED
    assert bench.runner.batches == []


@pytest.mark.parametrize(
    "wish",
    [
        {"writes": ["x"]},
        {"retries": 1},
        {"timeout": 5},
        {"resources": {"gpu": 1}},
        {"tags": ["slow"]},
        {"with": {"shell": "true", "network": True}},
    ],
    ids=str,
)
def test_a_script_with_wishes_of_its_own_goes_alone(bench: Bench, wish: Mapping[str, Any]) -> None:
    bench.run(quiet("a"), quiet("b", **wish), quiet("c"))
    assert bench.runner.batches == [["a", "c"]]


def test_a_script_with_secrets_goes_alone(bench: Bench) -> None:
    bench.run(quiet("a"), quiet("b", secrets=["TOKEN"]), quiet("c"), secrets=["TOKEN"], vault={"TOKEN": "hidden"})
    assert bench.runner.batches == [["a", "c"]]


def test_scripts_and_steps_that_work_in_memory_go_in_batches_of_their_own(bench: Bench) -> None:
    steps = [each for n in range(3) for each in (quiet(f"s{n}"), write(f"w{n}", f"{n}.txt"))]
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert sorted(bench.runner.batches) == [["s0", "s1", "s2"], ["w0", "w1", "w2"]]


# What becomes of each.


def test_each_has_its_outputs_its_lines_and_its_record(bench: Bench) -> None:
    bench.run(*quiets(2), quiet("s2", when="${{ false }}"))
    seen = [(event.kind.value, event.step, event.message) for event in bench.events if event.step]
    first, second = (
        [("step_started", f"s{n}", ""), ("log", f"s{n}", f"{n}"), ("step_finished", f"s{n}", "")] for n in range(2)
    )
    assert seen == [*first, *second, ("step_finished", "s2", "")]
    recorded = bench.journal.steps("r1")
    assert [(each.status, each.attempts, (each.outputs or {}).get("stdout")) for each in recorded.values()] == [
        ("succeeded", 1, "0\n"),
        ("succeeded", 1, "1\n"),
        ("skipped", 0, None),
    ]


def test_a_script_refers_to_one_before_it(bench: Bench) -> None:
    second = quiet("b", 'test "$GOT" = hello', needs=["a"])
    second["with"]["env"] = {"GOT": "${{ steps.a.outputs.stdout | trim }}"}
    assert bench.run(quiet("a", "echo hello"), second).status is RunStatus.COMMITTED
    assert bench.runner.batches == [["a", "b"]]


def test_one_fails_alone(bench: Bench) -> None:
    steps = [quiet("a"), quiet("b", "echo why >&2; exit 3", on_error="continue"), quiet("c"), quiet("d", needs=["b"])]
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.statuses() == {"a": "succeeded", "b": "failed", "c": "succeeded", "d": "succeeded"}
    failed = bench.steps()["b"]
    assert failed.attempts == 1
    assert failed.error is not None
    assert failed.error.message == "the shell text exited with 3 (expected 0)\nwhy"


def test_after_a_failure_that_ends_the_run_none_begins(bench: Bench) -> None:
    outcome = bench.run(write("w", "x"), quiet("a"), quiet("b", "exit 1"), *quiets(3))
    assert (outcome.status, outcome.failed_step) == (RunStatus.ROLLED_BACK, "b")
    assert bench.files() == {}
    assert not (bench.root.parent / "log").exists()


def test_what_comes_before_a_failure_runs_where_it_is_kept(bench: Bench) -> None:
    """`late` has a longer way to go, and starts first."""
    steps = [quiet("early", "echo early >> ../log"), quiet("late", "exit 1"), quiet("after", needs=["late"])]
    outcome = bench.run(*steps, on_failure="keep")
    assert (outcome.status, outcome.failed_step) == (RunStatus.KEPT, "late")
    assert log_of(bench) == ["early"]


def test_much_output_ends_a_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script_batches, "MOST_OUTPUT", 1000)
    steps = [quiet(f"s{n}", "head -c 600 /dev/zero | tr '\\0' x") for n in range(5)]
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert set(bench.statuses().values()) == {"succeeded"}
    assert len(bench.runner.batches) > 1


# Nobody waits for long.


def test_a_slow_script_does_not_hold_up_those_behind_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "RELIEF_SECONDS", 0.2)
    slow = quiet("slow", "while [ ! -e ../go ]; do sleep 0.01; done")
    after = quiet("after", "touch ../go", needs=["quick"])
    assert bench.run(quiet("quick"), slow, *quiets(3), after, timeout=30).status is RunStatus.COMMITTED
    assert bench.runner.batches[0] != bench.runner.batches[1]
    assert sorted(log_of(bench)) == ["0", "1", "2"]


def test_what_waits_for_one_that_has_ended_does_not_wait_for_its_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RELIEF_SECONDS", 0.2)
    slow = quiet("slow", "while [ ! -e ../workspace/x ]; do sleep 0.01; done")
    assert bench.run(quiet("quick"), slow, write("w", "x", needs=["quick"]), timeout=30).status is RunStatus.COMMITTED


# Interrupts and deaths.


def test_an_interrupt_ends_the_script_at_work_and_begins_no_other(bench: Bench) -> None:
    def interrupt(run: Run, event: RunEvent) -> None:
        if (event.kind, event.step) == (EventKind.LOG, "slow"):
            run.interrupt()

    bench.watch = interrupt
    steps = [quiet("first"), quiet("slow", "(setsid sleep 60 &) ; echo $$ > ../pid; echo ready; sleep 60"), *quiets(3)]
    assert bench.run(*steps).status is RunStatus.CANCELLED
    assert bench.statuses()["first"] == "rolled_back"
    assert not (bench.root.parent / "log").exists()
    assert not Path(f"/proc/{(bench.root.parent / 'pid').read_text().strip()}").exists()


def test_a_kill_loses_none_but_the_script_at_work(tmp_path: Path) -> None:
    steps = quiets(5)
    steps[2] = quiet("s2", "[ -e ../again ] || { echo $$ > ../pid; touch ../ready; sleep 60; }; echo 2 >> ../log")
    child = os.fork()
    if child == 0:
        try:
            made_in(tmp_path).run(*steps)
        finally:
            os._exit(1)
    eventually(tmp_path / "ready")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "again").touch()
    resumed = made_in(tmp_path)
    assert resumed.run(*steps).status is RunStatus.COMMITTED
    assert log_of(resumed) == ["0", "1", "2", "3", "4"]
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    resumed.workspace.close()
    resumed.journal.close()

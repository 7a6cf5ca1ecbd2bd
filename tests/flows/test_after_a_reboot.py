"""Runs that the machine went down over: what was not on disk yet is done again, what is torn is put aside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_engine import Bench, shell, write

from quantum_orchestrator.blocks.errors import NeedsAttention
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.flows.engine import Run, was_cut_short
from quantum_orchestrator.flows.recover import rollback
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus

STEPS = (
    write("a", "x", "one\n"),
    write("b", "y", "two\n", needs=["a"]),
    shell("s", "cat x y > z", needs=["b"], reads=["x", "y"], writes=["z"]),
    write("c", "w", "three\n", needs=["s"]),
)
ALL = {"w": "three\n", "x": "one\n", "y": "two\n", "z": "one\ntwo\n"}


class Killed(BaseException):
    """In place of the end of everything."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A run that was at its last step when the power went."""
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "y").write_text("before\n")
    made = Bench(root, workspace_home(root))

    def watch(_run: Run, event: RunEvent) -> None:
        if (event.kind, event.step) == (EventKind.STEP_STARTED, "c"):
            raise Killed

    made.watch = watch
    with pytest.raises(Killed):
        made.run(*STEPS)
    made.watch = lambda _run, _event: None
    yield made
    made.workspace.close()
    made.journal.close()


def the_machine_starts_anew(bench: Bench) -> None:
    bench.journal.update("r1", boot_id="another")


def aside(bench: Bench) -> list[str]:
    return [event.message for event in bench.events if "is put aside" in event.message]


def test_what_was_lost_is_brought_back_without_running_it_again(bench: Bench) -> None:
    the_machine_starts_anew(bench)
    (bench.root / "x").unlink()
    (bench.root / "y").write_text("before\n")
    bench.events.clear()
    assert bench.run(*STEPS).status is RunStatus.COMMITTED
    assert bench.files() == ALL
    assert aside(bench) == []
    assert bench.steps()["a"].attempts == 1


def test_what_is_torn_is_put_aside_and_brought_back(bench: Bench) -> None:
    the_machine_starts_anew(bench)
    (bench.root / "x").write_text("")
    (bench.root / "z").write_text("one\n\0\0\0\0")
    assert bench.run(*STEPS).status is RunStatus.COMMITTED
    assert bench.files() == ALL
    assert len(aside(bench)) == 2


def test_a_rollback_undoes_what_is_torn_too(bench: Bench) -> None:
    the_machine_starts_anew(bench)
    (bench.root / "x").write_text("")
    (bench.root / "y").write_text("tw")
    undone = rollback(bench.root, "r1")
    assert bench.files() == {"y": "before\n"}
    assert sorted(undone.aside) == ["x", "y"]
    assert undone.aside["y"].read_text() == "tw"


def test_without_a_reboot_such_files_are_somebody_elses(bench: Bench) -> None:
    (bench.root / "x").write_text("")
    with pytest.raises(NeedsAttention, match="x"):
        rollback(bench.root, "r1")
    assert bench.files()["x"] == ""


def test_a_run_that_waited_was_safe_before(bench: Bench) -> None:
    gate = {"id": "gate", "op": "approval", "with": {"message": "?"}, "needs": ["w"]}
    rollback(bench.root, "r1")
    assert bench.run(write("w", "v"), gate, run_id="r2").status is RunStatus.AWAITING_APPROVAL
    bench.journal.update("r2", boot_id="another")
    (bench.root / "v").write_text("mine\n")
    with pytest.raises(NeedsAttention, match="v"):
        rollback(bench.root, "r2")


def test_a_run_that_goes_on_belongs_to_the_new_boot(bench: Bench) -> None:
    the_machine_starts_anew(bench)
    assert bench.run(*STEPS).status is RunStatus.COMMITTED
    record = bench.journal.run("r1")
    assert record is not None
    assert record.boot_id != "another"


def test_what_git_has_lost_runs_again(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    bench = Bench(root, workspace_home(root))
    steps = (
        {"id": "init", "op": "git.init"},
        write("w", "x", needs=["init"]),
        {"id": "add", "op": "git.add", "with": {"paths": ["x"]}, "needs": ["w"]},
        {"id": "commit", "op": "git.commit", "with": {"message": "first"}, "needs": ["add"]},
        write("last", "y", needs=["commit"]),
    )

    def watch(_run: Run, event: RunEvent) -> None:
        if (event.kind, event.step) == (EventKind.STEP_STARTED, "last"):
            raise Killed

    bench.watch = watch
    with pytest.raises(Killed):
        bench.run(*steps)
    bench.watch = lambda _run, _event: None
    the_machine_starts_anew(bench)
    head = (root / ".git/refs/heads/main").read_text().strip()
    (root / f".git/objects/{head[:2]}/{head[2:]}").unlink()
    assert bench.run(*steps).status is RunStatus.COMMITTED
    head = (root / ".git/refs/heads/main").read_text().strip()
    assert (root / f".git/objects/{head[:2]}/{head[2:]}").exists()
    assert (root / "y").read_text() == "new\n"
    bench.workspace.close()
    bench.journal.close()


def test_what_somebody_changed_before_a_normal_reboot_is_a_conflict_after_it(bench: Bench) -> None:
    assert bench.run(*STEPS).status is RunStatus.COMMITTED
    conflict = bench.root / "y"

    def watch(_run: Run, event: RunEvent) -> None:
        if event.kind is EventKind.ROLLING_BACK:
            conflict.write_text("mine\n")

    bench.watch = watch
    rollback(bench.root, "r1")
    failing = shell("f", "exit 1", needs=["b"])
    conflict.write_text("before\n")
    assert bench.run(STEPS[0], STEPS[1], failing, run_id="r2").status is RunStatus.NEEDS_ATTENTION
    bench.journal.update("r2", boot_id="another")
    with pytest.raises(NeedsAttention, match="y"):
        rollback(bench.root, "r2")
    assert conflict.read_text() == "mine\n"


def test_a_rollback_that_dies_belongs_to_the_boot_that_it_ran_under(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.run(*STEPS).status is RunStatus.COMMITTED
    the_machine_starts_anew(bench)

    def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Journal, "mark_undone", dies)
    with pytest.raises(Killed):
        rollback(bench.root, "r1")
    monkeypatch.undo()
    (bench.root / "y").write_text("mine\n")
    with pytest.raises(NeedsAttention, match="y"):
        rollback(bench.root, "r1")
    the_machine_starts_anew(bench)
    undone = rollback(bench.root, "r1")
    assert undone.aside["y"].read_text() == "mine\n"


@pytest.mark.parametrize(("status", "found"), [("paused", False), ("running", True)])
def test_only_what_was_cut_short_is_still_so_when_it_is_taken_up_again(
    bench: Bench, status: str, *, found: bool
) -> None:
    from quantum_orchestrator.flows import orchestrate
    from quantum_orchestrator.flows.auditing import RunAudit

    bench.journal.update("r1", status=status, boot_id="another")
    record = bench.journal.run("r1")
    assert record is not None
    request = orchestrate.RunRequest(bench.last.document, {}, bench.root)
    orchestrate._begin_or_go_on(record, bench.journal, request, RunAudit(record, bench.root))
    now = bench.journal.run("r1")
    assert now is not None
    assert was_cut_short(now) is found

"""Undoing and going on: after failures, retries, time-outs, interrupts and deaths, at any moment and in any order."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from effort import ordinarily
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import Bench, Runner, fail, shell, write

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import NeedsAttention, QuantumError, UsageError, WorkspaceBusy
from quantum_orchestrator.blocks.home import workspace_home, workspace_option
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.tree import Entry, walk
from quantum_orchestrator.blocks.workspace import DiskTree
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.engine import Run
from quantum_orchestrator.flows.recover import rollback
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus
from quantum_orchestrator.flows.undoing import Undoing


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = new_bench(tmp_path)
    yield made
    close(made)


def new_bench(top: Path) -> Bench:
    for name in ("workspace", "state"):
        (top / name).mkdir()
    return Bench(top / "workspace", top / "state")


def close(bench: Bench) -> None:
    bench.workspace.close()
    bench.journal.close()


class Killed(BaseException):
    """In place of the death of the process: nothing of the engine catches it, and nothing is undone."""


def die_at(bench: Bench, kind: EventKind, step: str) -> None:
    """End the run as a kill would, when this event comes."""

    def watch(_run: Run, event: RunEvent) -> None:
        if (event.kind, event.step) == (kind, step):
            raise Killed

    bench.watch = watch


def tree_of(bench: Bench) -> dict[str, Entry]:
    with ConfinedFolder.open(bench.root) as folder:
        tree = DiskTree(folder)
        return {path: entry for path in walk(tree) if (entry := tree.entry(path)) is not None}


def called(*instructions: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "c", "op": "call", "with": {"set": {"name": "inner", "instructions": list(instructions)}}, **fields}


# Calls that take too long, or are tried again.


def test_a_calls_time_out_ends_the_call_and_nothing_else(bench: Bench) -> None:
    slow = called(write("x", "in-call"), shell("s", "sleep 30"), timeout=0.3, on_error="continue")
    started = time.monotonic()
    assert bench.run(slow, write("after", "after", needs=["c"])).status is RunStatus.COMMITTED
    assert time.monotonic() - started < 10
    assert bench.files() == {"after": "new\n"}
    assert bench.statuses()["after"] == "succeeded"


def test_a_call_that_took_too_long_is_tried_again(bench: Bench) -> None:
    slow_once = shell("s", "test -e ../second && exit; touch ../second; sleep 30")
    assert (
        bench.run(called(slow_once, write("x", "x", needs=["s"]), timeout=1, retries=1)).status is RunStatus.COMMITTED
    )
    assert bench.files() == {"x": "new\n"}


def test_what_a_resumed_call_had_done_is_done_again_after_it_is_undone(bench: Bench) -> None:
    inner = [write("one", "x"), shell("two", "test -e ../ready", needs=["one"])]
    assert bench.run(called(*inner, retries=0, timeout=60), on_failure="pause").status is RunStatus.PAUSED
    flaky = shell("two", "test -e ../tried || { touch ../tried; exit 1; }", needs=["one"])
    again = called(write("one", "x"), flaky, retries=1, timeout=60)
    die_at(bench, EventKind.STEP_STARTED, "c/two")
    with pytest.raises(Killed):
        bench.run(called(*inner, retries=1, timeout=60), run_id="r2")
    bench.watch = lambda _run, _event: None
    assert bench.journal.steps("r2")["c/one"].status == "succeeded"
    assert bench.run(again, run_id="r2").status is RunStatus.COMMITTED
    assert bench.files() == {"x": "new\n"}


def test_steps_inside_a_call_are_compensated_too(bench: Bench) -> None:
    outside = shell("out", "touch ../outside", undo=shell("back", "rm ../outside"), reads=[], writes=[])
    assert bench.run(called(outside, retries=1), fail(needs=["c"])).status is RunStatus.ROLLED_BACK
    assert not (bench.root.parent / "outside").exists()
    assert (
        bench.run(called(outside, fail(needs=["out"]), on_error="continue"), run_id="r2").status is RunStatus.COMMITTED
    )
    assert not (bench.root.parent / "outside").exists()


# Going on after a death.

ALL_PLACES_TAKEN = [
    shell("a", "test -e ../ready", reads=[], writes=[]),
    *(shell(f"busy{number}", "sleep 0.3", reads=[], writes=[]) for number in range(3)),
]
"""As many steps as run at once; the first fails before any other that comes after them is looked at."""


def test_a_step_that_a_death_cut_short_starts_from_what_was_there_before_it(bench: Bench) -> None:
    (bench.root / "log").write_text("old\n")
    append = {"id": "a", "op": "file.append", "with": {"path": "log", "content": "once\n"}}
    real = bench.journal.record_step
    bench.journal.record_step = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        bench.run(append)
    bench.journal.record_step = real  # type: ignore[method-assign]
    assert bench.files() == {"log": "old\nonce\n"}
    assert bench.run(append).status is RunStatus.COMMITTED
    assert bench.files() == {"log": "old\nonce\n"}


def dies(*_arguments: Any, **_keywords: Any) -> Any:
    raise Killed


def test_a_script_that_a_death_cut_short_starts_from_what_was_there_before_it(bench: Bench) -> None:
    (bench.root / "log").write_text("old\n")
    real = bench.workspace.finish
    bench.workspace.finish = dies  # type: ignore[method-assign]
    undo = bench.workspace.undo
    bench.workspace.undo = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        bench.run(shell("s", "echo once >> log"))
    bench.workspace.finish, bench.workspace.undo = real, undo  # type: ignore[method-assign]
    assert bench.run(shell("s", "echo once >> log")).status is RunStatus.COMMITTED
    assert bench.files() == {"log": "old\nonce\n"}


def test_a_step_undone_before_this_process_reached_it_runs_again(bench: Bench) -> None:
    """`b` ran ahead of `a` and the process died; `a` then fails before `b` is looked at."""
    steps = [*ALL_PLACES_TAKEN, write("b", "x"), write("c", "y")]
    bench.run(write("b", "x"), write("c", "y"), shell("z", "false", needs=["b", "c"]), on_failure="pause")
    assert bench.run(*steps, on_failure="pause").status is RunStatus.PAUSED
    assert bench.files() == {}
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps, on_failure="pause").status is RunStatus.COMMITTED
    assert bench.files() == {"x": "new\n", "y": "new\n"}


def test_a_death_in_the_middle_of_a_rollback_is_seen_by_a_resume(bench: Bench) -> None:
    steps = [write("a", "x"), write("b", "y"), shell("s", "test -e ../ready", needs=["a", "b"])]
    real = bench.journal.mark_undone
    undone = bench.workspace.undo

    def undo(run_id: str, step_ids: Any = None, **options: Any) -> Any:
        if step_ids is None:
            bench.journal.mark_undone = dies  # type: ignore[method-assign]
        return undone(run_id, step_ids, **options)

    bench.workspace.undo = undo  # type: ignore[method-assign]
    with pytest.raises(Killed):
        bench.run(*steps)
    bench.journal.mark_undone, bench.workspace.undo = real, undone  # type: ignore[method-assign]
    assert bench.files() == {}
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "new\n", "y": "new\n"}


def test_what_an_earlier_process_did_outside_is_compensated(bench: Bench) -> None:
    out = shell("out", "touch ../outside", undo=shell("back", "rm ../outside"), reads=[], writes=[])
    steps = [*ALL_PLACES_TAKEN, out]
    die_at(bench, EventKind.STEP_STARTED, "last")
    with pytest.raises(Killed):
        bench.run(out, shell("last", "true", needs=["out"]))
    bench.watch = lambda _run, _event: None
    assert bench.run(*steps).status is RunStatus.ROLLED_BACK
    assert not (bench.root.parent / "outside").exists()


OUT = shell("out", "touch ../outside", undo=shell("back", "rm -f ../outside"), reads=[], writes=[])


def test_what_an_earlier_process_did_outside_behind_a_failure_is_compensated_also_if_the_rest_is_kept(
    bench: Bench,
) -> None:
    die_at(bench, EventKind.STEP_STARTED, "last")
    with pytest.raises(Killed):
        bench.run(OUT, shell("last", "true", needs=["out"]))
    bench.watch = lambda _run, _event: None
    assert bench.run(*ALL_PLACES_TAKEN, OUT, on_failure="keep").status is RunStatus.KEPT
    assert not (bench.root.parent / "outside").exists()


def test_what_an_earlier_process_did_outside_in_a_call_that_fails_is_compensated(bench: Bench) -> None:
    die_at(bench, EventKind.STEP_STARTED, "c/last")
    with pytest.raises(Killed):
        bench.run(called(OUT, shell("last", "true", needs=["out"]), on_error="continue"))
    bench.watch = lambda _run, _event: None
    assert bench.run(called(*ALL_PLACES_TAKEN, OUT, on_error="continue")).status is RunStatus.COMMITTED
    assert not (bench.root.parent / "outside").exists()


def test_a_death_between_an_undo_instruction_and_the_rest_is_seen_by_a_resume(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been taken back runs again, and so does what was built on it."""
    base = write("base", "x", "1\n", undo=shell("u", "echo taken back >> ../log", reads=[], writes=[]))
    more = {"id": "more", "op": "file.append", "with": {"path": "x", "content": "2\n"}, "needs": ["base"]}
    steps = [base, more, shell("s", "test -e ../ready", reads=[], writes=[], needs=["more"])]
    compensate = Undoing._compensate

    async def compensate_and_die(undoing: Undoing, step_ids: Collection[str]) -> None:
        await compensate(undoing, step_ids)
        raise Killed

    monkeypatch.setattr(Undoing, "_compensate", compensate_and_die)
    with pytest.raises(Killed):
        bench.run(*steps)
    monkeypatch.undo()
    assert bench.files() == {"x": "1\n2\n"}
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "1\n2\n"}
    assert (bench.root.parent / "log").read_text() == "taken back\n"


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_death_over_an_undo_instruction_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch, goes_on: bool) -> None:
    """Whether it had come to its end, nobody knows: it runs again, and what it takes back then does."""
    steps = [OUT, shell("s", "test -e ../ready", reads=[], writes=[], needs=["out"])]
    monkeypatch.setattr(Journal, "take_back_sending", dies)
    with pytest.raises(Killed):
        bench.run(*steps)
    monkeypatch.undo()
    assert not (bench.root.parent / "outside").exists()
    (bench.root.parent / "outside").touch()  # as if the death had come before its effect
    if goes_on:
        (bench.root.parent / "ready").touch()
    assert bench.run(*steps).status is (RunStatus.COMMITTED if goes_on else RunStatus.ROLLED_BACK)
    assert (bench.root.parent / "outside").exists() == goes_on
    assert bench.journal.steps("r1")["out"].status == ("succeeded" if goes_on else "rolled_back")


# What somebody else changes meanwhile.


def test_a_failed_attempt_that_cannot_be_undone_is_neither_repeated_nor_continued(bench: Bench) -> None:
    meddle = shell("s", "echo ours > x; exit 1", retries=2, on_error="continue")
    real = bench.workspace.finish

    def finish(run_id: str, step_id: str) -> Any:
        changes = real(run_id, step_id)
        (bench.root / "x").write_text("theirs\n")
        return changes

    bench.workspace.finish = finish  # type: ignore[method-assign]
    outcome = bench.run(meddle, write("y", "y"))
    assert outcome.status is RunStatus.NEEDS_ATTENTION
    assert bench.files() == {"x": "theirs\n"}
    assert bench.steps()["s"].attempts == 1


@pytest.mark.parametrize("on_failure", ["rollback", "keep", "pause"])
def test_a_rollback_that_the_disk_refuses_needs_attention(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, on_failure: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    bench.watch = lambda _run, event: (
        monkeypatch.setattr(ConfinedFolder, "unlink", refuse)
        if (event.kind, event.step) == (EventKind.STEP_FINISHED, "b")
        else None
    )
    outcome = bench.run(fail_after("b"), write("b", "y"), on_failure=on_failure)
    assert outcome.status is RunStatus.NEEDS_ATTENTION
    assert outcome.error is not None
    assert "Read-only file system" in outcome.error.message
    monkeypatch.undo()
    bench.workspace.undo("r1")
    assert bench.files() == {}


def fail_after(_step: str) -> dict[str, Any]:
    return shell("a", "sleep 0.5; exit 1", reads=[], writes=[])


# Steps that share folders.


@st.composite
def storms(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Scripts over a few shared folders, half of which fail a few times; some of them for good."""
    steps = []
    for number in range(draw(st.integers(2, 5))):
        folder = draw(st.sampled_from(["d", "d/e", "d/e/f", "g"]))
        path, failures = f"{folder}/{number}", draw(st.integers(0, 2))
        count = f"echo >> ../tries{number}; test $(wc -l < ../tries{number}) -gt {failures}"
        pause = draw(st.sampled_from(["", "sleep 0.01; "]))
        text = f"mkdir -p {folder}; echo {number} > {path}; {pause}{count}"
        fields = {"retries": draw(st.integers(0, 2)), "on_error": "continue", "reads": [], "writes": [path]}
        steps.append(shell(f"s{number}", text, **fields))
    return steps


@settings(max_examples=ordinarily(6, nightly=40), deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=storms(), broken=st.booleans())
@pytest.mark.slow
def test_retries_among_shared_folders_leave_what_one_by_one_leaves(
    steps: list[dict[str, Any]], broken: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trees = []
    for order in ("inferred", "sequential"):
        bench = new_bench(tmp_path_factory.mktemp("storm"))
        last = [fail("last", needs=[step["id"] for step in steps])] if broken else []
        bench.run(*steps, *last, order=order)
        trees.append(tree_of(bench))
        close(bench)
    assert trees[0] == trees[1]
    assert not (broken and trees[0])


# Interrupts.


STEPS = [
    write("a", "a/x"),
    shell("s", "echo s > s; sleep 0.01", writes=["s"], reads=[]),
    {"id": "list", "op": "file.list", "with": {"path": "a"}},
    {
        "id": "each",
        "op": "file.copy",
        "for_each": "${{ steps.list.outputs.paths }}",
        "with": {"source": "${{ item }}", "destination": "copy/${{ item }}"},
    },
    called(write("in", "b/y"), shell("flaky", "test -e ../t || { touch ../t; exit 1; }", needs=["in"]), retries=1),
    fail("f", on_error={"run": [write("repair", "repaired")]}),
    {"id": "del", "op": "file.delete", "with": {"path": "old"}},
]


def interrupting_at(bench: Bench, number: int) -> Callable[[Run, RunEvent], None]:
    return lambda run, _event: run.interrupt() if len(bench.events) == number + 1 else None


def test_an_interrupt_at_any_event_leaves_the_tree_as_it_was(tmp_path: Path) -> None:
    ended: set[RunStatus] = set()
    for number in range(100):
        top = tmp_path / str(number)
        top.mkdir()
        bench = new_bench(top)
        (bench.root / "old").write_text("old\n")
        before = tree_of(bench)
        bench.watch = interrupting_at(bench, number)
        started = time.monotonic()
        status = bench.run(*STEPS).status
        assert time.monotonic() - started < 5
        ended.add(status)
        if status is RunStatus.CANCELLED:
            assert tree_of(bench) == before, number
        close(bench)
        if len(bench.events) < number:
            break
    assert ended == {RunStatus.CANCELLED, RunStatus.COMMITTED}


def test_an_interrupt_does_not_wait_for_a_further_attempt(bench: Bench) -> None:
    bench.watch = lambda run, event: (
        threading.Timer(0.1, run.interrupt).start() if event.kind is EventKind.STEP_FINISHED else None
    )
    started = time.monotonic()
    flaky = called(write("x", "x"), fail("f", needs=["x"]), retries=3, retry_delay=60)
    assert bench.run(flaky).status is RunStatus.CANCELLED
    assert time.monotonic() - started < 5
    assert bench.files() == {}


def test_an_interrupt_does_not_wait_for_a_runner_that_waits(bench: Bench) -> None:
    """As Prefect does between two attempts."""

    class Patient(Runner):
        async def run(self, *_arguments: Any, **_keywords: Any) -> Any:
            await asyncio.sleep(60)

    bench.runner = Patient()
    bench.watch = lambda run, event: threading.Timer(0.1, run.interrupt).start()
    started = time.monotonic()
    assert bench.run(write("x", "x")).status is RunStatus.CANCELLED
    assert time.monotonic() - started < 5


def test_an_interrupt_does_not_wait_for_a_persons_answer(bench: Bench) -> None:
    answered = threading.Event()

    def ask(_step: str, _message: str) -> bool:
        threading.Timer(0.1, bench.last.interrupt).start()
        answered.wait(60)
        return True

    started = time.monotonic()
    approval = {"id": "ok", "op": "approval", "with": {"message": "?"}}
    assert bench.run(write("x", "x"), approval, ask=ask).status is RunStatus.CANCELLED
    assert time.monotonic() - started < 5
    answered.set()
    assert bench.files() == {}


@pytest.mark.parametrize(
    "step",
    [
        shell("s", "sleep 60"),
        {"id": "w", "op": "wait", "with": {"seconds": 60}},
        called(shell("s", "sleep 60"), timeout=50, on_error="continue"),
        called(fail("f"), retries=5, retry_delay=60),
        fail("f", on_error={"run": [shell("s", "sleep 60")]}),
        {"id": "e", "op": "wait", "for_each": [60, 60], "with": {"seconds": "${{ item }}"}},
    ],
)
def test_the_sets_time_out_ends_every_phase(bench: Bench, step: dict[str, Any]) -> None:
    started = time.monotonic()
    outcome = bench.run(write("a", "x"), step, write("z", "z"), timeout=0.4)
    assert time.monotonic() - started < 10
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "longer than its timeout of 0.4 s" in outcome.error.message
    assert bench.files() == {}


# Approvals.


def test_an_approval_rejected_inside_a_list_of_calls_rolls_back(bench: Bench) -> None:
    approval = {"id": "ok", "op": "approval", "with": {"message": "?"}}
    inner = {"name": "inner", "inputs": {"n": {}}, "instructions": [write("w", "w${{ inputs.n }}"), approval]}
    call = {"id": "c", "op": "call", "for_each": [1, 2], "with": {"set": inner, "inputs": {"n": "${{ item }}"}}}
    assert bench.run(call).status is RunStatus.AWAITING_APPROVAL
    bench.journal.decide("r1", "c[0]/ok", approved=True, actor="ada")
    assert bench.run(call).status is RunStatus.AWAITING_APPROVAL
    assert sorted(bench.files()) == ["w1", "w2"] or sorted(bench.files()) == ["w1"]
    bench.journal.decide("r1", "c[1]/ok", approved=False, actor="ada")
    assert bench.run(call).status is RunStatus.ROLLED_BACK
    assert bench.files() == {}


# What stays when a run is not undone.


@st.composite
def broken_sets(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
    steps: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 6))):
        one = draw(
            st.one_of(
                st.builds(lambda path, text=str(number): ("file.write", {"path": path, "content": text}), names),
                st.builds(lambda path, text=str(number): ("file.append", {"path": path, "content": text}), names),
                st.builds(lambda path: ("file.mkdir", {"path": path}), names),
                st.builds(lambda path: ("file.delete", {"path": path, "recursive": True}), names),
                st.builds(lambda a, b: ("file.move", {"source": a, "destination": b, "overwrite": True}), names, names),
            )
        )
        steps.append({"id": f"s{number}", "op": one[0], "with": one[1], "on_error": draw(ON_ERROR)})
    place = draw(st.integers(0, len(steps)))
    slow = shell("slow", "sleep 0.02; exit 1", reads=[], writes=[])
    return [*steps[:place], draw(st.sampled_from([slow, fail()])), *steps[place:]]


ON_ERROR = st.sampled_from(["continue", "continue", "fail"])


@settings(max_examples=ordinarily(10, nightly=60), deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=broken_sets(), kept=st.sampled_from(["keep", "pause"]))
@pytest.mark.slow
def test_what_stays_is_what_a_run_one_by_one_leaves_up_to_the_failure(
    steps: list[dict[str, Any]], kept: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trees, failed = [], []
    for order in ("inferred", "sequential"):
        bench = new_bench(tmp_path_factory.mktemp("kept"))
        for name in ("a/b", "b"):
            (bench.root / name).parent.mkdir(exist_ok=True)
            (bench.root / name).write_text("old")
        outcome = bench.run(*steps, order=order, on_failure=kept)
        trees.append(tree_of(bench))
        failed.append(outcome.failed_step)
        close(bench)
    assert failed[0] == failed[1]
    assert trees[0] == trees[1]


# Secrets.


SECRET = "p4ss/w+rd & more"


def everything_stored(bench: Bench) -> str:
    """The journal's texts, the events, and the outcome: all that is shown or kept, but for the files' contents."""
    rows = bench.journal._rows("SELECT quote(status)||quote(outputs)||quote(error) FROM steps")
    runs = bench.journal._rows("SELECT quote(error) FROM runs")
    return json.dumps([rows, runs, [event.message for event in bench.events]], ensure_ascii=False)


FORMS = [
    'echo "$TOKEN"',
    'echo "$TOKEN" >&2',
    'printf %s "$TOKEN" | base64 -w0',
    'printf "user:%s" "$TOKEN" | base64 -w0',
    'echo "p4ss%2Fw%2Brd%20%26%20more p4ss%2fw%2brd+%26+more"',
    'echo "$TOKEN"; exit 1',
    'echo "$TOKEN" >&2; exit 1',
    'sleep 5; echo "$TOKEN"',
]


@pytest.mark.parametrize("text", FORMS)
def test_secrets_are_masked_wherever_they_would_be_seen(bench: Bench, text: str) -> None:
    step = shell("s", text, secrets=["TOKEN"], timeout=0.5, on_error="continue")
    show = {"id": "e", "op": "echo", "with": {"message": "${{ steps.s.outputs.stdout }}"}, "on_error": "continue"}
    assert bench.run(step, show, secrets=["TOKEN"], vault={"TOKEN": SECRET}).status is RunStatus.COMMITTED
    seen = everything_stored(bench)
    encoded = base64.b64encode(SECRET.encode()).decode()
    for form in (SECRET, encoded[:12], "p4ss", base64.b64encode(b"user:" + SECRET.encode()).decode()[8:24]):
        assert form not in seen
    assert "***" in seen or "sleep" in text


def test_what_prefect_is_given_of_a_failure_does_not_say_a_secret(bench: Bench) -> None:
    raised: list[BaseException] = []

    class Noting(Runner):
        async def run(self, *arguments: Any, **keywords: Any) -> Any:
            try:
                return await super().run(*arguments, **keywords)
            except QuantumError as error:
                raised.append(error)
                raise

    bench.runner = Noting()
    bench.run(shell("s", 'echo "$TOKEN"; exit 1', secrets=["TOKEN"]), secrets=["TOKEN"], vault={"TOKEN": SECRET})
    chain: list[BaseException | None] = [*raised]
    for error in chain:
        if error is not None:
            assert "p4ss" not in repr(error) + str(vars(error))
            chain += [error.__cause__, error.__context__]
    assert raised


def test_a_resumed_run_masks_what_an_earlier_process_wrote(bench: Bench) -> None:
    steps = [
        shell("s", 'echo "$TOKEN" > f', secrets=["TOKEN"]),
        shell("ready", "test -e ../ready"),
        {"id": "read", "op": "file.read", "with": {"path": "f"}},
    ]
    fields: dict[str, Any] = {"secrets": ["TOKEN"], "vault": {"TOKEN": SECRET}, "on_failure": "pause"}
    assert bench.run(*steps, **fields).status is RunStatus.PAUSED
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps, **fields).status is RunStatus.COMMITTED
    outputs = bench.steps()["read"].outputs
    assert outputs is not None
    assert outputs["content"] == "***\n"


# Undoing runs that have ended.


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose journal is where `qo rollback` looks for it."""
    (tmp_path / "workspace").mkdir()
    bench = Bench(tmp_path / "workspace", workspace_home(tmp_path / "workspace"))
    yield bench
    close(bench)


def test_a_committed_run_can_be_undone_once(ended: Bench) -> None:
    (ended.root / "x").write_text("old\n")
    ended.run(write("a", "x"), write("b", "d/y"))
    assert rollback(ended.root, "r1", check=True).patch.count("diff --git") == 2
    assert ended.files() == {"d/y": "new\n", "x": "new\n"}
    rollback(ended.root, "r1")
    assert ended.files() == {"x": "old\n"}
    assert not (ended.root / "d").exists()
    with pytest.raises(UsageError, match="rolled back already"):
        rollback(ended.root, "r1")


def test_a_rollback_that_dies_leaves_a_run_that_is_unfinished(ended: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ended.run(write("a", "x"), write("b", "y"))
    monkeypatch.setattr(Journal, "mark_undone", dies)
    with pytest.raises(Killed):
        rollback(ended.root, "r1")
    monkeypatch.undo()
    unfinished = ended.journal.unfinished()
    assert unfinished is not None
    assert unfinished.id == "r1"
    rollback(ended.root, None)
    assert ended.files() == {}
    assert ended.journal.unfinished() is None


def test_a_file_changed_since_refuses_the_whole_rollback(ended: Bench) -> None:
    ended.run(write("a", "x"), write("b", "y"))
    (ended.root / "x").write_text("theirs\n")
    with pytest.raises(NeedsAttention, match="x"):
        rollback(ended.root, "r1")
    assert ended.files() == {"x": "theirs\n", "y": "new\n"}
    run = ended.journal.run("r1")
    assert run is not None
    assert run.status == "committed"


def test_undo_instructions_run_when_an_ended_run_is_undone(ended: Bench) -> None:
    document = {"name": "test", "instructions": [shell("s", "touch ../out", undo=shell("u", "rm ../out"))]}
    ended.run(*document["instructions"])  # type: ignore[misc]
    assert (ended.root.parent / "out").exists()
    rollback(ended.root, "r1")
    assert not (ended.root.parent / "out").exists()
    assert ended.journal.steps("r1")["s"].status == "rolled_back"


def test_undo_instructions_of_an_ended_run_run_from_the_last_step_to_the_first(ended: Bench) -> None:
    def step(step_id: str, *needs: str) -> dict[str, Any]:
        undo = shell("u", f"echo {step_id} >> ../log", reads=[], writes=[])
        return shell(step_id, "true", undo=undo, reads=[], writes=[], needs=list(needs))

    inside = {"name": "inner", "instructions": [step("y"), step("b", "y")]}
    call = {"id": "m", "op": "call", "with": {"set": inside}, "timeout": 60, "needs": ["z"]}
    ended.run(step("z"), call, step("a", "m"))
    rollback(ended.root, "r1")
    assert (ended.root.parent / "log").read_text().split() == ["a", "b", "y", "z"]


def test_a_rollback_after_a_death_over_an_undo_instruction_repeats_it(
    ended: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended.run(OUT)
    monkeypatch.setattr(Journal, "take_back_sending", dies)
    with pytest.raises(Killed):
        rollback(ended.root, "r1")
    monkeypatch.undo()
    (ended.root.parent / "outside").touch()
    rollback(ended.root, "r1")
    assert not (ended.root.parent / "outside").exists()
    assert ended.journal.steps("r1")["out"].status == "rolled_back"


def test_a_rollback_of_what_is_at_work_says_how_to_end_it(ended: Bench) -> None:
    ended.run(write("a", "x"))
    ended.journal.lock.acquire()
    with pytest.raises(WorkspaceBusy) as refused:
        rollback(ended.root, "r1")
    ended.journal.lock.release()
    assert refused.value.hint.startswith(f"`qo cancel{workspace_option(ended.root)}` ends it")


def test_a_run_that_died_is_said_to_have_changed_what_it_has(bench: Bench) -> None:
    die_at(bench, EventKind.STEP_STARTED, "last")
    with pytest.raises(Killed):
        bench.run(write("a", "x"), shell("last", "true", needs=["a"]))
    run = bench.journal.run("r1")
    assert run is not None
    assert report.run_document(run, RunStatus.INTERRUPTED, [], bench.journal, None)["diff"]["files"] == 1


def test_caches_in_a_new_package_do_not_stop_a_rollback(bench: Bench) -> None:
    script = "mkdir pkg/__pycache__; echo c > pkg/__pycache__/m.pyc; exit 1"
    outcome = bench.run(write("m", "pkg/m.py"), shell("test", script, needs=["m"]))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert list(bench.root.iterdir()) == []

"""How a run ends, and what it leaves: real folders, journal, processes; a plain runner in Prefect's place.

The runner here calls each attempt directly, retries included, so that hundreds of runs take seconds. What Prefect
itself does with a run is tested in tests/end_to_end.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks import machine
from quantum_orchestrator.blocks.errors import OperationError, TimedOut
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.pressure import Sample
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import places, report
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.batching import BATCH_FROM
from quantum_orchestrator.flows.engine import Attempt, Outcome, Run, RunSettings
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import load
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.recover import start_again
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus, StepResult
from tests.plain_runner import PlainRunner


class Runner(PlainRunner):
    """Calls the attempt, again after a failure; ends it at the time-out as Prefect does, by cancelling it."""

    def __init__(self) -> None:
        self.undone: list[str] = []
        self.batches: list[list[str]] = []

    async def run_batch(
        self,
        steps: Sequence[Any],
        attempt: Callable[[], Awaitable[Mapping[str, Outputs]]],
        after: Sequence[str],
        *,
        reuse: Callable[[], str],
    ) -> None:
        self.batches.append([step.id for step in steps])
        await super().run_batch(steps, attempt, after, reuse=reuse)

    async def undo(self, name: str, work: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
        self.undone.append(name)
        return await super().undo(name, work)

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        for number in range(step.instruction.retries + 1):
            try:
                return await asyncio.wait_for(attempt(), step.instruction.timeout)
            except TimeoutError:
                raise TimedOut(f"took longer than {step.instruction.timeout:g} s") from None
            except OperationError:
                if number == step.instruction.retries:
                    raise
        raise AssertionError


class Bench:
    """A workspace and its journal; `run` runs a set in it."""

    def __init__(self, root: Path, state: Path) -> None:
        self.root = root
        self.journal = Journal(state)
        self.workspace = Workspace(root, self.journal, Policy().snapshot_exclude)
        self.events: list[RunEvent] = []
        self.watch: Callable[[Run, RunEvent], None] = lambda _run, _event: None
        self.last: Run
        self.runner = Runner()
        self.policy = Policy()
        self.batch_from = BATCH_FROM

    def run(self, *instructions: Mapping[str, Any], run_id: str = "r1", **fields: Any) -> Outcome:
        settings = {
            name: fields.pop(name) for name in ("approve", "ask", "start_at", "reuse", "adapts") if name in fields
        }
        vault = fields.pop("vault", {})
        settings["secrets"] = lambda names: {name: vault[name] for name in names}
        given = fields.pop("given", {})
        document = load(json.dumps({"name": "test", "instructions": list(instructions), **fields}).encode())
        inputs = resolve_inputs(document, given)
        recorded = document.model_dump(by_alias=True, mode="json", exclude_unset=True)
        record = self.journal.run(run_id) or RunRecord(run_id, "test", "running", recorded, inputs, {}, time.time())
        if self.journal.run(run_id) is None:
            self.journal.begin(record)
        start_again(self.journal, record)
        chosen = RunSettings(parallel=4, on_failure=document.on_failure, batch_from=self.batch_from, **settings)
        return asyncio.run(self._execute(record, document, chosen))

    async def _execute(self, record: RunRecord, document: Any, settings: RunSettings) -> Outcome:
        self.last = Run(
            record, document, self.workspace, settings, policy=self.policy, runner=self.runner, observers=[self._note]
        )
        return await self.last.execute()

    def close(self) -> None:
        self.workspace.close()
        self.journal.close()

    def _note(self, event: RunEvent) -> None:
        self.events.append(event)
        self.watch(self.last, event)

    def steps(self) -> dict[str, StepResult]:
        found = report.in_document_order(self.last.books.expansion, self.last.books.inner, self.last.books.results)
        return {result.id: result for result in found}

    def statuses(self) -> dict[str, str]:
        return {step_id: result.status.value for step_id, result in self.steps().items()}

    def files(self) -> dict[str, str]:
        return {str(p.relative_to(self.root)): p.read_text() for p in sorted(self.root.rglob("*")) if p.is_file()}


@pytest.fixture(params=[BATCH_FROM, 2], ids=["single", "batched"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    root, state = tmp_path / "workspace", tmp_path / "state"
    root.mkdir()
    state.mkdir()
    made = Bench(root, state)
    made.batch_from = request.param
    yield made
    made.workspace.close()
    made.journal.close()


def write(step_id: str, path: str, content: str = "new\n", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "file.write", "with": {"path": path, "content": content}, **fields}


def shell(step_id: str, script: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "script.run", "with": {"shell": script}, **fields}


def fail(step_id: str = "fail", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "assert", "with": {"that": False, "message": "no"}, **fields}


def test_a_run_whose_steps_succeed_is_committed(bench: Bench) -> None:
    outcome = bench.run(write("a", "x"), write("b", "d/y"))
    assert outcome.status is RunStatus.COMMITTED
    assert bench.files() == {"d/y": "new\n", "x": "new\n"}
    assert bench.statuses() == {"a": "succeeded", "b": "succeeded"}


def test_a_failed_run_leaves_the_workspace_as_it_was(bench: Bench) -> None:
    (bench.root / "old").write_text("old\n")
    (bench.root / "old").chmod(0o600)
    (bench.root / "gone").write_text("gone\n")
    (bench.root / "empty").mkdir()
    outcome = bench.run(
        write("a", "old"),
        write("b", "deep/er/file"),
        {"id": "c", "op": "file.delete", "with": {"path": "gone"}},
        {"id": "d", "op": "file.delete", "with": {"path": "empty"}},
        {"id": "e", "op": "file.chmod", "with": {"path": "old", "mode": "0755"}},
        fail(needs=["a", "b", "c", "d", "e"]),
    )
    assert outcome.status is RunStatus.ROLLED_BACK
    assert bench.files() == {"gone": "gone\n", "old": "old\n"}
    assert (bench.root / "old").stat().st_mode & 0o777 == 0o600
    assert (bench.root / "empty").is_dir()
    assert not (bench.root / "deep").exists()
    assert set(bench.statuses().values()) == {"rolled_back", "failed"}


@pytest.mark.parametrize("bench", [BATCH_FROM], indirect=True)
def test_more_steps_run_at_once_than_at_first_where_the_machine_has_room(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 2)
    monkeypatch.setattr(places, "_sampler", lambda: Sample)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    come = f"touch {meeting}/$0; until test $(ls {meeting} | wc -l) -ge 6; do sleep 0.02; done"
    scripts = [
        {"id": f"s{number}", "op": "script.run", "with": {"argv": ["sh", "-c", come, f"{number}"]}, "writes": []}
        for number in range(6)
    ]
    outcome = bench.run(*({**script, "timeout": 60} for script in scripts), adapts=True)
    assert outcome.status is RunStatus.COMMITTED


def test_what_a_script_did_is_rolled_back(bench: Bench) -> None:
    (bench.root / "kept").write_text("kept\n")
    (bench.root / "link").symlink_to("kept")
    bench.run(
        shell(
            "s",
            "rm link; ln -s elsewhere link; echo more >> kept; mkdir -p a/b; echo x > a/b/c; chmod 700 kept; mkfifo p",
        ),
        fail(needs=["s"]),
    )
    assert bench.files() == {"kept": "kept\n", "link": "kept\n"}
    assert (bench.root / "link").readlink() == Path("kept")
    assert sorted(p.name for p in bench.root.iterdir()) == ["kept", "link"]


def test_a_failed_scripts_own_effects_are_undone(bench: Bench) -> None:
    outcome = bench.run(shell("s", "echo half > x; exit 3"))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "exited with 3" in outcome.error.message
    assert bench.files() == {}


def test_keep_leaves_what_came_before_the_failure(bench: Bench) -> None:
    outcome = bench.run(write("a", "x"), fail(), write("b", "y"), on_failure="keep")
    assert outcome.status is RunStatus.KEPT
    assert bench.files() == {"x": "new\n"}
    assert bench.statuses() == {"a": "succeeded", "fail": "failed", "b": "skipped"}


def test_keep_undoes_steps_that_ran_ahead_of_the_failure(bench: Bench) -> None:
    slow_failure = {"id": "slow", "op": "script.run", "with": {"shell": "sleep 0.3; exit 1"}, "reads": [], "writes": []}
    outcome = bench.run(write("a", "x"), slow_failure, write("b", "y"), write("c", "d/z"), on_failure="keep")
    assert outcome.status is RunStatus.KEPT
    assert bench.files() == {"x": "new\n"}
    assert not (bench.root / "d").exists()
    assert bench.statuses() == {"a": "succeeded", "slow": "failed", "b": "skipped", "c": "skipped"}


def test_keep_undoes_rounds_of_a_list_known_only_then_that_ran_ahead(bench: Bench) -> None:
    first_fails = shell("s", "sleep 0.3; exit 1", when="${{ inputs.path == 'in/1' }}", reads=[], writes=[])
    of_path = {"path": {"type": "string"}}
    inner = {"name": "inner", "inputs": of_path, "instructions": [first_fails, write("w", "out/${{ inputs.path }}")]}
    rounds = {
        "id": "each",
        "op": "call",
        "for_each": "${{ steps.list.outputs.paths }}",
        "with": {"set": inner, "inputs": {"path": "${{ item }}"}},
    }
    make = shell("make", "mkdir in; touch in/1 in/2")
    listed = {"id": "list", "op": "file.list", "with": {"path": "in"}}
    assert bench.run(make, listed, rounds, on_failure="keep").status is RunStatus.KEPT
    assert bench.files() == {"in/1": "", "in/2": ""}


def test_pause_keeps_and_goes_on_from_the_failed_step(bench: Bench) -> None:
    steps = [write("a", "x"), shell("s", "test -f ready"), write("b", "y")]
    assert bench.run(*steps, on_failure="pause").status is RunStatus.PAUSED
    assert bench.files() == {"x": "new\n"}
    (bench.root / "ready").write_text("")
    bench.events.clear()
    assert bench.run(*steps, on_failure="pause").status is RunStatus.COMMITTED
    assert bench.files() == {"ready": "", "x": "new\n", "y": "new\n"}
    assert not any(event.op == "file.write" and event.kind is EventKind.STEP_RETRIED for event in bench.events)


def test_a_step_that_the_journal_holds_as_done_is_not_run_again(bench: Bench) -> None:
    count = shell("count", "echo tick >> ../ticks")
    assert bench.run(count, shell("s", "test -f ready"), on_failure="pause").status is RunStatus.PAUSED
    (bench.root / "ready").write_text("")
    assert bench.run(count, shell("s", "test -f ready"), on_failure="pause").status is RunStatus.COMMITTED
    assert (bench.root.parent / "ticks").read_text() == "tick\n"


def test_a_continued_failure_is_failed_and_the_run_committed(bench: Bench) -> None:
    outcome = bench.run(fail("f", on_error="continue"), write("a", "x", when="${{ steps.f.status == 'failed' }}"))
    assert outcome.status is RunStatus.COMMITTED
    assert bench.statuses() == {"f": "failed", "a": "succeeded"}


def test_a_handled_failure_runs_its_handler(bench: Bench) -> None:
    risky = shell("risky", "echo half > half; exit 1", on_error={"run": [write("repair", "repaired")]})
    assert bench.run(risky).status is RunStatus.COMMITTED
    assert bench.files() == {"repaired": "new\n"}
    assert bench.statuses() == {"risky": "failed", "risky/on_error/repair": "succeeded"}


def test_a_handler_may_refer_to_the_steps_around_it_and_to_its_own(bench: Bench) -> None:
    repair = [
        {"id": "look", "op": "file.read", "with": {"path": "x"}},
        write("repair", "y", "${{ steps.look.outputs.content }}${{ steps.before.outputs.bytes }}"),
    ]
    before = write("before", "x", "text")
    assert bench.run(before, fail("f", on_error={"run": repair})).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "text", "y": "text4"}


def test_a_handler_that_fails_fails_the_run(bench: Bench) -> None:
    outcome = bench.run(write("a", "x"), fail("f", on_error={"run": [fail("too")]}))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert bench.files() == {}


def test_attempts_are_counted_and_failed_ones_undone(bench: Bench) -> None:
    flaky = shell("flaky", "echo try >> ../tries; echo x >> out; test $(wc -l < ../tries) -ge 3", retries=2)
    assert bench.run(flaky).status is RunStatus.COMMITTED
    assert bench.steps()["flaky"].attempts == 3
    assert bench.files() == {"out": "x\n"}


def test_a_skipped_step_does_nothing(bench: Bench) -> None:
    assert bench.run(write("a", "x", when="${{ 1 > 2 }}")).status is RunStatus.COMMITTED
    assert bench.files() == {}
    assert bench.statuses() == {"a": "skipped"}


def test_a_time_out_ends_the_script_and_undoes_it(bench: Bench) -> None:
    outcome = bench.run(shell("s", "echo half > half; sleep 30", timeout=0.3))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert isinstance(outcome.error, TimedOut)
    assert bench.files() == {}


def test_the_sets_time_out_rolls_back(bench: Bench) -> None:
    outcome = bench.run(write("a", "x"), {"id": "w", "op": "wait", "with": {"seconds": 30}}, timeout=0.3)
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "longer than its timeout of 0.3 s" in outcome.error.message
    assert bench.files() == {}


def test_an_interrupt_ends_what_runs_and_rolls_back(bench: Bench) -> None:
    bench.watch = lambda run, event: (
        threading.Timer(0.2, run.interrupt).start()
        if (event.kind, event.step) == (EventKind.STEP_STARTED, "s")
        else None
    )
    outcome = bench.run(write("a", "x"), shell("s", "echo $$ > ../pid; sleep 30"), write("b", "y"))
    assert outcome.status is RunStatus.CANCELLED
    assert bench.files() == {}
    assert not Path(f"/proc/{(bench.root.parent / 'pid').read_text().strip()}").exists()


def test_for_each_over_a_list_known_at_run_time(bench: Bench) -> None:
    bench.run(
        shell("make", "mkdir in; for n in 1 2 3; do echo $n > in/$n; done"),
        {"id": "list", "op": "file.list", "with": {"path": "in"}},
        {
            "id": "copy",
            "op": "file.copy",
            "for_each": "${{ steps.list.outputs.paths }}",
            "with": {"source": "${{ item }}", "destination": "out/${{ item }}"},
        },
        {"id": "count", "op": "echo", "with": {"message": "${{ steps.copy.outputs | length }}"}},
    )
    assert {"out/in/1", "out/in/2", "out/in/3"} <= bench.files().keys()
    assert list(bench.steps()) == ["make", "list", "copy[0]", "copy[1]", "copy[2]", "count"]
    assert bench.steps()["count"].outputs == {"message": "3"}


def test_a_call_is_part_of_the_same_transaction(bench: Bench) -> None:
    inner = {
        "name": "inner",
        "inputs": {"n": {"type": "integer"}},
        "instructions": [write("one", "x", "${{ inputs.n }}"), {"id": "two", "op": "file.read", "with": {"path": "x"}}],
    }
    call = {"id": "c", "op": "call", "with": {"set": inner, "inputs": {"n": 7}}}
    use = write("use", "y", "${{ steps.c.outputs.two.content }}!")
    assert bench.run(call, use).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "7", "y": "7!"}
    assert list(bench.steps()) == ["c/one", "c/two", "use"]
    assert bench.run(call, use, fail(needs=["use"]), run_id="r2").status is RunStatus.ROLLED_BACK
    assert bench.files() == {"x": "7", "y": "7!"}


def test_a_call_that_fails_may_be_continued_as_a_whole(bench: Bench) -> None:
    inner = {"name": "inner", "instructions": [write("one", "x"), fail("two", needs=["one"])]}
    call = {"id": "c", "op": "call", "with": {"set": inner}, "on_error": "continue"}
    assert bench.run(call, write("after", "y")).status is RunStatus.COMMITTED
    assert bench.files() == {"y": "new\n"}


def test_a_call_may_be_tried_again(bench: Bench) -> None:
    flaky = shell("two", "echo try >> ../tries; test $(wc -l < ../tries) -ge 2")
    inner = {"name": "inner", "instructions": [write("one", "x"), flaky]}
    assert bench.run({"id": "c", "op": "call", "with": {"set": inner}, "retries": 1}).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "new\n"}


def test_an_approval_waits_durably_and_then_goes_on(bench: Bench) -> None:
    steps = [write("a", "x"), {"id": "ok", "op": "approval", "with": {"message": "go?"}}, write("b", "y")]
    assert bench.run(*steps).status is RunStatus.AWAITING_APPROVAL
    assert bench.files() == {"x": "new\n"}
    assert bench.statuses() == {"a": "succeeded", "ok": "awaiting_approval", "b": "skipped"}
    assert bench.journal.decide("r1", "ok", approved=True, actor="ada")
    assert not bench.journal.decide("r1", "ok", approved=True, actor="eve")
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert bench.files() == {"x": "new\n", "y": "new\n"}


def test_a_rejection_rolls_back(bench: Bench) -> None:
    steps = [write("a", "x"), {"id": "ok", "op": "approval", "with": {"message": "go?"}}]
    bench.run(*steps)
    bench.journal.decide("r1", "ok", approved=False, actor="ada")
    assert bench.run(*steps).status is RunStatus.ROLLED_BACK
    assert bench.files() == {}


def test_an_approval_inside_a_call_and_a_list_runs_nothing_twice(bench: Bench) -> None:
    inner = {
        "name": "inner",
        "inputs": {"n": {"type": "integer"}},
        "instructions": [
            shell("tick", "echo ${{ inputs.n }} >> ../ticks"),
            {"id": "ok", "op": "approval", "with": {"message": "?"}},
        ],
    }
    steps = [
        shell("list", "echo '[1, 2]'"),
        {
            "id": "c",
            "op": "call",
            "for_each": "${{ steps.list.outputs.stdout | fromjson }}",
            "with": {"set": inner, "inputs": {"n": "${{ item }}"}},
        },
    ]
    for step in ("c[0]/ok", "c[1]/ok"):
        assert bench.run(*steps).status is RunStatus.AWAITING_APPROVAL
        assert bench.journal.decide("r1", step, approved=True, actor="ada")
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert (bench.root.parent / "ticks").read_text() == "1\n2\n"


def test_approvals_may_be_given_in_advance_but_not_for_untrusted_sets(bench: Bench) -> None:
    steps = [{"id": "ok", "op": "approval", "with": {"message": "go?"}}]
    assert bench.run(*steps, approve=True).status is RunStatus.COMMITTED
    assert bench.run(*steps, approve=True, trust="untrusted", run_id="r2").status is RunStatus.AWAITING_APPROVAL


def test_undo_instructions_run_when_the_run_is_rolled_back(bench: Bench) -> None:
    outside = shell("out", "echo made > ../outside", undo=shell("back", "rm ../outside"))
    assert bench.run(outside, fail(needs=["out"])).status is RunStatus.ROLLED_BACK
    assert not (bench.root.parent / "outside").exists()


def test_a_file_that_somebody_else_changed_is_left_alone(bench: Bench) -> None:
    (bench.root / "x").write_text("old\n")
    bench.watch = lambda _run, event: (
        (bench.root / "x").write_text("theirs\n") and None
        if (event.kind, event.step) == (EventKind.STEP_FINISHED, "a")
        else None
    )
    outcome = bench.run(write("a", "x"), write("b", "y"), fail(needs=["a", "b"]))
    assert outcome.status is RunStatus.NEEDS_ATTENTION
    assert outcome.conflicts == ["x"]
    assert bench.files() == {"x": "theirs\n"}


def test_a_parameter_of_the_wrong_type_fails_the_step_with_a_clear_error(bench: Bench) -> None:
    outcome = bench.run(
        shell("s", "echo x"), {"id": "w", "op": "wait", "with": {"seconds": "${{ steps.s.outputs.stdout }}"}}
    )
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "seconds" in outcome.error.message


def test_referring_to_a_skipped_steps_outputs_is_a_clear_error(bench: Bench) -> None:
    outcome = bench.run(
        shell("s", "true", when="${{ false }}"),
        {"id": "e", "op": "echo", "with": {"message": "${{ steps.s.outputs.stdout }}"}},
    )
    assert outcome.error is not None
    assert "stdout" in outcome.error.message


def test_expect_sha256_protects_against_stale_beliefs(bench: Bench) -> None:
    (bench.root / "x").write_text("changed meanwhile\n")
    stale = {"id": "a", "op": "file.write", "with": {"path": "x", "content": "", "expect_sha256": "0" * 64}}
    assert bench.run(stale).status is RunStatus.ROLLED_BACK
    assert bench.files() == {"x": "changed meanwhile\n"}


def test_git_effects_are_rolled_back(bench: Bench) -> None:
    git = [
        {"id": "init", "op": "git.init"},
        write("a", "x"),
        {"id": "add", "op": "git.add", "with": {"paths": ["x"]}},
        {"id": "commit", "op": "git.commit", "with": {"message": "first"}},
    ]
    assert bench.run(*git, fail(needs=["commit"])).status is RunStatus.ROLLED_BACK
    assert list(bench.root.iterdir()) == []
    assert bench.run(*git, run_id="r2").status is RunStatus.COMMITTED
    head = (bench.root / ".git" / "refs" / "heads" / "main").read_text()
    second = [
        write("b", "y"),
        {"id": "add", "op": "git.add", "with": {"paths": ["y"]}},
        {"id": "commit", "op": "git.commit", "with": {"message": "second"}},
    ]
    assert bench.run(*second, fail(needs=["commit"]), run_id="r3").status is RunStatus.ROLLED_BACK
    assert (bench.root / ".git" / "refs" / "heads" / "main").read_text() == head
    assert not (bench.root / "y").exists()


def test_a_script_that_deletes_the_repository_is_undone(bench: Bench) -> None:
    add = {"id": "add", "op": "git.add", "with": {"paths": ["x"]}}
    bench.run({"id": "init", "op": "git.init"}, write("a", "x"), add)
    before = sorted(path.relative_to(bench.root) for path in bench.root.rglob("*"))
    outcome = bench.run(shell("s", "rm -rf .git"), fail(needs=["s"]), run_id="r2")
    assert outcome.status is RunStatus.ROLLED_BACK
    assert sorted(path.relative_to(bench.root) for path in bench.root.rglob("*")) == before


def test_steps_that_use_the_same_resource_do_not_overlap(bench: Bench) -> None:
    script = "mkdir ../held && sleep 0.1 && rmdir ../held"
    alone = {"reads": [], "writes": [], "resources": {"printer": 1}}
    assert bench.run(shell("a", script, **alone), shell("b", script, **alone)).status is RunStatus.COMMITTED


def test_an_object_that_a_failed_script_damaged_in_place_needs_attention(bench: Bench) -> None:
    add = {"id": "add", "op": "git.add", "with": {"paths": ["x"]}}
    bench.run({"id": "init", "op": "git.init"}, write("a", "x"), add)
    damage = "f=$(find .git/objects -type f | head -1); chmod u+w $f; echo garbage > $f; exit 2"
    outcome = bench.run(shell("s", damage), run_id="r2")
    assert (outcome.status, outcome.conflicts) == (RunStatus.NEEDS_ATTENTION, [".git/objects"])

"""What Prefect shows of runs that died, are tried again or are taken back: always the same flow run, nothing twice.

Every test reads the real server. Whether `qo resume`, Retry in the UI or a flow's `retries` has a flow run executed
again, the journal decides what is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect_api as prefect
import pytest
from commands import NOTE, Qo, eventually, script

from quantum_orchestrator.blocks.errors import NeedsAttention, UsageError
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.tree import Change
from quantum_orchestrator.blocks.workspace import Undo
from quantum_orchestrator.flows.engine import StepRunner
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

APPEND = {"id": "append", "op": "file.append", "with": {"path": "log.txt", "content": "once\n"}}
SECOND_TRY = script("test -e ../tried || { touch ../tried; exit 1; }", step="second-try", needs=["append"])
"""Fails when it is run first."""
HELD = script("until test -e ../go; do sleep 0.05; done; echo done > held.txt", step="held", needs=["append"])
"""At work until the test says go."""

UNKNOWN = RunRecord("r", "again", "committed", {}, {}, {}, 0.0, flow_run_id=str(UUID(int=1)))
"""A run whose flow run no server knows."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def a_set(*instructions: object, **fields: object) -> dict[str, Any]:
    return {"version": 1, "name": "again", **fields, "instructions": list(instructions)}


def journaled(root: Path) -> list[RunRecord]:
    """The runs of a workspace, the newest first."""
    with contextlib.closing(Journal(workspace_home(root))) as journal:
        return journal.runs()


class Deployed:
    """A flow run of the deployable flow, executed as a worker's child executes it."""

    def __init__(self, document: dict[str, Any], root: Path, **options: Any) -> None:
        from quantum_orchestrator.flows.orchestrate import orchestrate

        self._flow = orchestrate.with_options(**options)
        self._parameters = {"instruction_set": document, "workspace": str(root)}
        self.id = asyncio.run(self._made())

    async def _made(self) -> str:
        from prefect import get_client

        async with get_client() as client:
            return str((await client.create_flow_run(self._flow, parameters=self._parameters)).id)

    def execute(self) -> Deployed:
        asyncio.run(self._execute())
        return self

    async def _execute(self) -> None:
        from prefect import get_client
        from prefect.exceptions import Pause
        from prefect.flow_engine import run_flow

        async with get_client() as client:
            flow_run = await client.read_flow_run(UUID(self.id))
        with contextlib.suppress(Pause):
            await run_flow(self._flow, flow_run=flow_run, parameters=self._parameters, return_type="state")

    def again(self) -> Deployed:
        """As Retry does it, and the worker that then takes the flow run up."""
        for state in ({"type": "SCHEDULED", "name": "AwaitingRetry"}, {"type": "PENDING"}):
            prefect.post(f"/flow_runs/{self.id}/set_state", {"state": state, "force": True})
        return self.execute()

    @property
    def state(self) -> str:
        return str(prefect.flow_run(self.id)["state_name"])


class TestAKilledRun:
    def kill(self, qo: Qo) -> str:
        """Kill a run in the middle of its second step; its flow run."""
        running = qo.begins("run", qo.set(NOTE, {**HELD, "needs": ["note"]})).until("✓ note")
        eventually(lambda: journaled(qo.work)[0].flow_run_id)
        flow_run_id = str(journaled(qo.work)[0].flow_run_id)
        prefect.awaited(lambda: prefect.task_runs(flow_run_id), lambda found: len(found) == 2)
        running.signal(signal.SIGKILL)
        assert running.ended().code == -signal.SIGKILL
        return flow_run_id

    def test_is_interrupted_for_the_next_command_which_marks_the_flow_run_crashed(self, qo: Qo) -> None:
        flow_run_id = self.kill(qo)
        assert prefect.flow_run(flow_run_id)["state_name"] == "Running"
        said = qo("status", "--json").exits(0)
        assert said.json["status"] == "interrupted"
        assert said.seconds < 5, "one second on a machine that does nothing else"
        told = prefect.flow_run(flow_run_id)["state"]
        assert told["name"] == "Crashed"
        assert f"`qo resume {said.json['run_id']} --workspace {qo.work}` goes on with it" in told["message"]
        assert prefect.states(flow_run_id, 2) == {"note": ["Completed"], "held": ["Crashed"]}
        assert journaled(qo.work)[0].told_crashed

    def test_is_resumed_in_the_same_flow_run_with_what_was_done_cached(self, qo: Qo) -> None:
        flow_run_id = self.kill(qo)
        (qo.folder / "go").touch()
        document = qo("resume", "--json").exits(0).json
        assert (document["status"], document["flow_run_id"]) == ("committed", flow_run_id)
        found = prefect.flow_run(flow_run_id)
        assert (found["state_name"], found["run_count"]) == ("Completed", 2)
        done = prefect.states(flow_run_id, 4)
        assert done == {"note": ["Completed", "Cached"], "held": ["Crashed", "Completed"]}
        assert qo.files == {"note.txt": "hello\n", "held.txt": "done\n"}


class TestAFlowRunThatIsExecutedAgain:
    def test_after_it_was_committed_is_completed_and_does_nothing_twice(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND), root).execute()
        (run,) = journaled(root)
        assert deployed.again().state == "Completed"
        assert (root / "log.txt").read_text() == "once\n"
        assert journaled(root) == [run]
        assert prefect.flow_run(deployed.id)["name"] == run.id

    def test_after_it_was_committed_by_a_process_that_died_over_its_report_is_completed(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND), root).execute()
        with contextlib.closing(Journal(workspace_home(root))) as journal:
            journal.update(journal.runs()[0].id, report=None)
        assert deployed.again().state == "Completed"
        assert (root / "log.txt").read_text() == "once\n"

    def test_after_it_was_rolled_back_begins_again_as_the_same_run(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND, SECOND_TRY), root).execute()
        assert deployed.state == "Failed"
        (failed,) = journaled(root)
        assert (failed.status, list(root.iterdir())) == ("rolled_back", [])
        assert deployed.again().state == "Completed"
        (run,) = journaled(root)
        assert (run.id, run.status, run.error) == (failed.id, "committed", None)
        assert (root / "log.txt").read_text() == "once\n"
        shown = prefect.states(deployed.id, 5)
        assert shown["append"] == ["Completed", "Completed"]
        assert shown["second-try"] == ["Failed", "Completed"]

    def test_after_it_was_rolled_back_counts_nothing_of_what_was(self, root: Path) -> None:
        seen = script("test -e ../tried", step="seen", needs=["append"])
        seen["with"] = {"shell": "test -e ../tried", "expect_exit": [0, 1]}
        extra = {**NOTE, "when": "${{ steps.seen.outputs.exit_code == 0 }}"}
        deployed = Deployed(a_set(APPEND, seen, extra, {**SECOND_TRY, "needs": ["note"]}), root).execute()
        assert not (root / "note.txt").exists()
        assert deployed.again().state == "Completed"
        assert (root / "note.txt").exists(), "it was skipped at first, and is wanted now"

    def test_after_it_was_kept_goes_on_where_it_stopped(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND, SECOND_TRY, on_failure="keep"), root).execute()
        assert (deployed.state, journaled(root)[0].status) == ("Failed", "kept")
        assert deployed.again().state == "Completed"
        assert (root / "log.txt").read_text() == "once\n"
        shown = prefect.states(deployed.id, 4)
        assert shown == {"append": ["Completed", "Cached"], "second-try": ["Failed", "Completed"]}

    def test_after_it_was_paused_goes_on_where_it_stopped(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND, SECOND_TRY, on_failure="pause"), root).execute()
        assert deployed.state == "Paused"
        assert deployed.again().state == "Completed"
        assert [run.status for run in journaled(root)] == ["committed"]

    def test_where_prefect_has_lost_its_results_takes_those_of_the_journal(self, root: Path) -> None:
        from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

        deployed = Deployed(a_set(APPEND, SECOND_TRY, on_failure="pause"), root).execute()
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: root.parent / "other results"}):
            deployed.again()
        assert prefect.states(deployed.id, 4)["append"] == ["Completed", "Cached"]
        assert (root / "log.txt").read_text() == "once\n"

    def test_while_it_awaits_an_approval_awaits_it_still(self, root: Path) -> None:
        sign = {"id": "sign", "op": "approval", "with": {"message": "?"}, "needs": ["append"]}
        deployed = Deployed(a_set(APPEND, sign), root).execute()
        assert deployed.again().state == "AwaitingApproval"
        assert [run.status for run in journaled(root)] == ["awaiting_approval"]
        assert (root / "log.txt").read_text() == "once\n"

    def test_after_it_was_approved_at_the_command_line_is_completed(self, qo: Qo) -> None:
        sign = {"id": "sign", "op": "approval", "with": {"message": "?"}, "needs": ["append"]}
        deployed = Deployed(a_set(APPEND, sign), qo.work).execute()
        document = qo("approve", "--json").exits(0).json
        assert (document["flow_run_id"], deployed.state) == (deployed.id, "Completed")
        assert deployed.again().state == "Completed"
        assert qo.files == {"log.txt": "once\n"}

    def test_when_its_run_needs_attention_fails_and_touches_nothing(self, root: Path) -> None:
        meddle = script("echo mine > ../work/log.txt; exit 1", step="meddle", needs=["append"], writes=["other"])
        deployed = Deployed(a_set(APPEND, meddle), root).execute()
        assert (deployed.state, journaled(root)[0].status) == ("Failed", "needs_attention")
        found = prefect.flow_run(deployed.again().id)["state"]
        assert found["name"] == "Failed"
        assert "in this workspace needs attention" in found["message"]
        assert (root / "log.txt").read_text() == "mine\n"

    def test_by_the_flows_own_retries_is_the_same_run(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND, SECOND_TRY), root, retries=1).execute()
        found = prefect.flow_run(deployed.id)
        assert (found["state_name"], found["run_count"]) == ("Completed", 2)
        assert [run.status for run in journaled(root)] == ["committed"]
        assert (root / "log.txt").read_text() == "once\n"

    def test_by_retries_that_are_used_up_has_failed(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND, script("exit 1", step="never")), root, retries=1).execute()
        found = prefect.flow_run(deployed.id)
        assert (found["state_name"], found["run_count"]) == ("Failed", 2)
        assert found["state"]["message"].startswith("rolled back at step never")
        assert list(root.iterdir()) == []


def test_retries_that_the_user_has_set_for_every_flow_are_made(root: Path) -> None:
    from prefect.settings import PREFECT_FLOW_DEFAULT_RETRIES, temporary_settings

    from quantum_orchestrator.flows.orchestrate import run_set
    from quantum_orchestrator.flows.requests import RunRequest

    document = load(json.dumps(a_set(APPEND, SECOND_TRY)).encode())
    with temporary_settings({PREFECT_FLOW_DEFAULT_RETRIES: 1}):
        ended = asyncio.run(run_set(RunRequest(document, {}, root)))
    assert ended["status"] == "committed"
    found = prefect.flow_run(ended["flow_run_id"])
    assert (found["state_name"], found["run_count"]) == ("Completed", 2)
    assert [run.status for run in journaled(root)] == ["committed"]


def test_a_run_that_was_undone_while_somebody_waited_to_go_on_with_it_is_not_begun_again(root: Path) -> None:
    from quantum_orchestrator.flows.orchestrate import carry_on, run_set
    from quantum_orchestrator.flows.requests import RunRequest

    document = load(json.dumps(a_set(APPEND, SECOND_TRY)).encode())
    request = RunRequest(document, resolve_inputs(document, {}), root)
    failed = asyncio.run(run_set(request))
    with pytest.raises(UsageError, match="was rolled back meanwhile"):
        asyncio.run(carry_on(request, failed["run_id"], chosen_as="paused"))


def test_a_run_that_was_undone_can_be_begun_again_in_its_flow_run(root: Path) -> None:
    from quantum_orchestrator.flows.orchestrate import carry_on, run_set
    from quantum_orchestrator.flows.requests import RunRequest

    document = load(json.dumps(a_set(APPEND, SECOND_TRY)).encode())
    request = RunRequest(document, resolve_inputs(document, {}), root)
    failed = asyncio.run(run_set(request))
    assert failed["status"] == "rolled_back"
    ended = asyncio.run(carry_on(request, failed["run_id"]))
    kept = {name: failed[name] for name in ("run_id", "flow_run_id")}
    assert {name: ended[name] for name in (*kept, "status")} == {**kept, "status": "committed"}
    assert prefect.flow_run(ended["flow_run_id"])["state_name"] == "Completed"


class TestWhatIsUndone:
    def test_is_a_task_with_what_it_put_back(self, root: Path) -> None:
        compensated = {**APPEND, "undo": {"id": "tell", "op": "echo", "with": {"message": "sorry"}}}
        deployed = Deployed(a_set(NOTE, compensated, script("exit 1", step="no", needs=["append", "note"])), root)
        deployed.execute()
        runs = prefect.task_runs_by_name(deployed.id, 5)
        assert {"rollback", "append/undo"} < set(runs)
        (rollback,) = runs["rollback"]
        assert rollback["state_name"] == "Completed"
        assert rollback["state"]["message"].startswith("put back 2 paths: ")
        page = prefect.artifacts(deployed.id)["again-rollback"]
        assert page["task_run_id"] == rollback["id"]
        assert page["data"].startswith("# 2 paths put back")
        assert {"    log.txt", "    note.txt"} <= set(page["data"].splitlines())

    def test_is_undone_though_the_flow_run_is_cancelled_in_prefect(self, root: Path) -> None:
        end = script("until test -e ../go; do sleep 0.05; done; exit 1", step="end", needs=["append"])
        deployed = Deployed(a_set(APPEND, end), root)

        async def cancelled_meanwhile() -> None:
            executing = asyncio.create_task(deployed._execute())
            while not (root / "log.txt").exists():
                await asyncio.sleep(0.05)
            state = {"state": {"type": "CANCELLED"}, "force": True}
            await asyncio.to_thread(prefect.post, f"/flow_runs/{deployed.id}/set_state", state)
            (root.parent / "go").touch()
            await executing

        asyncio.run(cancelled_meanwhile())
        assert list(root.iterdir()) == []
        assert [run.status for run in journaled(root)] == ["rolled_back"]


class TestTakingARunBackLater:
    UNDONE = Undo(changes=[Change("log.txt", None, None)])

    def committed(self, root: Path) -> RunRecord:
        Deployed(a_set(APPEND), root).execute()
        (run,) = journaled(root)
        return run

    def take_back(self, record: RunRecord, **options: Any) -> int:
        """How often the work was done."""
        from quantum_orchestrator.flows.flow_runs import rollback_in_flow_run

        done = 0

        async def unwind(runner: StepRunner | None) -> Undo:
            nonlocal done
            done += 1
            if runner is not None:
                assert await runner.undo("rollback", self.restored) == ["log.txt"]
            return self.UNDONE

        assert asyncio.run(rollback_in_flow_run(record, unwind, **options)) is self.UNDONE
        return done

    async def restored(self) -> Sequence[str]:
        return ["log.txt"]

    def test_is_shown_by_its_flow_run_which_then_says_so(self, root: Path) -> None:
        run = self.committed(root)
        assert self.take_back(run) == 1
        found = prefect.flow_run(str(run.flow_run_id))
        assert (found["state_type"], found["state_name"]) == ("CANCELLED", "RolledBack")
        assert found["state"]["message"] == "rolled back; put back 1 path: log.txt"
        assert prefect.states(str(run.flow_run_id), 2) == {"append": ["Completed"], "rollback": ["Completed"]}

    def test_is_a_task_with_what_was_put_back(self, root: Path) -> None:
        from quantum_orchestrator.deployments.rollback_in_prefect import show
        from quantum_orchestrator.flows.recover import rollback

        run = self.committed(root)
        rollback(root, run.id, show=show)
        assert list(root.iterdir()) == []
        runs = prefect.task_runs_by_name(str(run.flow_run_id), 2)
        assert [each["state"]["message"] for each in runs["rollback"]] == ["put back 1 path: log.txt"]
        assert prefect.flow_run(str(run.flow_run_id))["state_name"] == "RolledBack"

    def test_to_a_checkpoint_leaves_a_run_that_had_not_ended_paused(self, root: Path) -> None:
        deployed = Deployed(a_set(APPEND, SECOND_TRY, on_failure="pause"), root).execute()
        assert self.take_back(journaled(root)[0], to="here") == 1
        assert prefect.flow_run(deployed.id)["state"]["message"].startswith("rolled back to the checkpoint 'here'; ")
        assert deployed.state == "Paused"

    def test_is_done_where_the_server_does_not_know_the_flow_run(self) -> None:
        assert self.take_back(UNKNOWN) == 1

    def test_is_done_where_no_server_answers(self) -> None:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            assert self.take_back(UNKNOWN) == 1
        assert time.monotonic() - began < 10

    def test_fails_the_flow_run_and_the_caller_where_it_fails(self, root: Path) -> None:
        from quantum_orchestrator.flows.flow_runs import rollback_in_flow_run

        async def unwind(_runner: StepRunner | None) -> Undo:
            raise NeedsAttention("log.txt is somebody else's")

        run = self.committed(root)
        with pytest.raises(NeedsAttention, match="somebody else's"):
            asyncio.run(rollback_in_flow_run(run, unwind))
        found = prefect.flow_run(str(run.flow_run_id))
        assert found["state_name"] == "Failed"
        assert "log.txt is somebody else's" in found["state"]["message"]

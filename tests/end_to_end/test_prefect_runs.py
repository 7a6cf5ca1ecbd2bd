"""What a run looks like in Prefect: a real server, read back through its API."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prefect_api as prefect
import pytest

from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

SET: dict[str, Any] = {
    "name": "a set with {braces}",
    "description": "Shown in the UI",
    "tags": ["nightly"],
    "instructions": [
        {"id": "a", "op": "file.write", "with": {"path": "a.txt", "content": "a\n"}},
        {"id": "b", "op": "file.write", "with": {"path": "b.txt", "content": "b\n"}},
        {"id": "c", "op": "file.read", "with": {"path": "a.txt"}},
        {"id": "d", "op": "echo", "with": {"message": "${{ steps.c.outputs.content }}"}, "needs": ["b"]},
    ],
}


def run(document: Mapping[str, Any], root: Path, **options: Any) -> dict[str, Any]:
    from quantum_orchestrator.flows.orchestrate import run_set
    from quantum_orchestrator.flows.requests import RunRequest

    loaded = load(json.dumps(document).encode())
    return asyncio.run(run_set(RunRequest(loaded, resolve_inputs(loaded, {}), root, **options)))


def state(document: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a run's flow run."""
    found: dict[str, Any] = prefect.flow_run(document["flow_run_id"])["state"]
    return found


def task_runs(document: Mapping[str, Any], expected: int) -> dict[str, dict[str, Any]]:
    """The task runs of a run in which every step has one."""
    return {name: run for name, (run,) in prefect.task_runs_by_name(document["flow_run_id"], expected).items()}


def artifacts(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each["data"] for key, each in prefect.artifacts(document["flow_run_id"]).items()}


def test_the_flow_is_named_after_the_set_and_its_steps_are_tasks_with_edges(tmp_path: Path) -> None:
    document = run(SET, tmp_path)
    found = prefect.flow_run(document["flow_run_id"])
    flow = prefect.get(f"/flows/{found['flow_id']}")
    assert (flow["name"], found["name"], found["tags"]) == (SET["name"], document["run_id"], ["nightly"])
    assert found["state_name"] == "Completed"
    assert found["state"]["message"].startswith("committed; 2 files changed")
    runs = task_runs(document, 4)
    assert set(runs) == {"a", "b", "c", "d"}
    upstream = {name: {each["id"] for each in run["task_inputs"].get("wait_for", [])} for name, run in runs.items()}
    ids = {name: run["id"] for name, run in runs.items()}
    assert upstream == {"a": set(), "b": set(), "c": {ids["a"]}, "d": {ids["b"], ids["c"]}}


def test_a_run_of_which_nothing_has_to_run_is_one_all_the_same(tmp_path: Path) -> None:
    writes = {**SET, "cache": True, "instructions": SET["instructions"][:3]}
    first = run(writes, tmp_path)
    document = run(writes, tmp_path)
    assert (document["status"], document["diff"]["files"]) == ("committed", 0)
    assert prefect.flow_run(document["flow_run_id"])["state_name"] == "Completed"
    states = {name: (each["state_name"], each["state"]["message"]) for name, each in task_runs(document, 3).items()}
    assert states == dict.fromkeys("abc", ("Cached", f"inputs unchanged since run {first['run_id']}"))


def test_plan_diff_and_progress_are_artifacts(tmp_path: Path) -> None:
    found = artifacts(run(SET, tmp_path))
    assert set(found) == {"a-set-with-braces-plan", "a-set-with-braces-diff", "a-set-with-braces-progress"}
    assert "```mermaid" in found["a-set-with-braces-plan"]
    assert "+++ b/a.txt" in found["a-set-with-braces-diff"]
    assert float(found["a-set-with-braces-progress"]) == 100


def test_results_are_json_without_classes(tmp_path: Path, user: Path) -> None:
    before = set(home().rglob("qo-*"))  # of runs that other tests have killed, some of them cut short
    run(SET, tmp_path)
    stored = [path for path in home().rglob("qo-*") if path.is_file() and path not in before]
    assert stored
    for path in stored:
        record = json.loads(path.read_text())
        assert record["metadata"]["serializer"]["type"] == "json"
        assert record["metadata"]["serializer"]["object_decoder"] is None


def test_retries_are_prefects(tmp_path: Path) -> None:
    flaky = {
        "id": "flaky",
        "op": "script.run",
        "with": {"shell": "echo try >> ../tries; test $(wc -l < ../tries) -ge 3"},
        "retries": 2,
        "retry_delay": [0.05, 0.1],
    }
    root = tmp_path / "workspace"
    root.mkdir()
    document = run({"name": "flaky", "instructions": [flaky]}, root)
    assert document["steps"][0]["attempts"] == 3
    assert task_runs(document, 1)["flaky"]["run_count"] == 3


def test_a_failed_run_is_failed_in_prefect_too(tmp_path: Path) -> None:
    steps = [SET["instructions"][0], {"id": "no", "op": "assert", "with": {"that": False, "message": "no"}}]
    document = run({"name": "fails", "instructions": steps}, tmp_path)
    assert document["status"] == "rolled_back"
    assert list(tmp_path.iterdir()) == []
    ended = state(document)
    assert ended["name"] == "Failed"
    assert "rolled back at step no" in ended["message"]
    assert task_runs(document, 3)["no"]["state_name"] == "Failed"


def test_prefects_time_out_ends_the_step(tmp_path: Path) -> None:
    slow = {"id": "slow", "op": "script.run", "with": {"shell": "echo x > x; sleep 30"}, "timeout": 0.5}
    started = time.monotonic()
    document = run({"name": "slow", "instructions": [slow]}, tmp_path)
    assert time.monotonic() - started < 20
    assert document["steps"][0]["error"]["type"] == "TimedOut"
    assert list(tmp_path.iterdir()) == []


def test_an_approval_pauses_the_flow_run_which_then_goes_on(tmp_path: Path) -> None:
    from quantum_orchestrator.flows.orchestrate import carry_on, open_journal, restored
    from quantum_orchestrator.flows.requests import RunRequest

    approval = {"id": "ok", "op": "approval", "with": {"message": "go on?"}}
    last = {"id": "z", "op": "file.write", "with": {"path": "z.txt", "content": "z\n"}}
    waiting = run({"name": "waits", "instructions": [*SET["instructions"], approval, last]}, tmp_path)
    assert waiting["status"] == "awaiting_approval"
    assert state(waiting)["name"] == "AwaitingApproval"
    journal = open_journal(tmp_path)
    assert journal.decide(waiting["run_id"], "ok", approved=True, actor="ada")
    record = journal.run(waiting["run_id"])
    journal.close()
    assert record is not None
    document = asyncio.run(carry_on(RunRequest(*restored(record), tmp_path), record.id))
    assert (document["status"], document["flow_run_id"]) == ("committed", waiting["flow_run_id"])
    assert state(document)["name"] == "Completed"
    assert (tmp_path / "z.txt").exists()
    done = prefect.states(document["flow_run_id"], 10)
    assert done == {**{name: ["Completed", "Cached"] for name in "abcd"}, "ok": ["Completed"], "z": ["Completed"]}


def test_a_run_that_died_before_it_knew_its_flow_run_gets_another(tmp_path: Path) -> None:
    from quantum_orchestrator.blocks.journal import RunRecord
    from quantum_orchestrator.flows.orchestrate import carry_on, open_journal, restored
    from quantum_orchestrator.flows.requests import RunRequest

    journal = open_journal(tmp_path)
    journal.begin(RunRecord("died", SET["name"], "running", SET, {}, {}, time.time()))
    record = journal.run("died")
    journal.close()
    assert record is not None
    assert record.flow_run_id is None
    document = asyncio.run(carry_on(RunRequest(*restored(record), tmp_path), "died"))
    assert document["status"] == "committed"
    assert state(document)["name"] == "Completed"


def test_a_second_run_does_not_start_beside_one_that_waits(tmp_path: Path) -> None:
    from quantum_orchestrator.blocks.errors import NeedsAttention

    run({"name": "waits", "instructions": [{"id": "ok", "op": "approval", "with": {"message": "?"}}]}, tmp_path)
    with pytest.raises(NeedsAttention, match="is awaiting approval"):
        run(SET, tmp_path)


def test_the_deployable_flow_takes_a_set_as_a_parameter_with_a_form(tmp_path: Path) -> None:
    from quantum_orchestrator.flows.orchestrate import orchestrate

    schema = (
        orchestrate.parameters.model_dump() if hasattr(orchestrate.parameters, "model_dump") else orchestrate.parameters
    )
    form = json.dumps(schema, default=str)
    assert "instruction_set" in form
    assert "What to do; the outcome is as if one by one" in form
    ended = asyncio.run(orchestrate(instruction_set=SET, workspace=str(tmp_path), return_state=True))
    assert ended.is_completed()
    assert (tmp_path / "a.txt").read_text() == "a\n"


def test_runs_in_different_workspaces_run_side_by_side(tmp_path: Path) -> None:
    from quantum_orchestrator.flows.orchestrate import run_set
    from quantum_orchestrator.flows.requests import RunRequest

    loaded = load(json.dumps(SET).encode())
    roots = [tmp_path / name for name in ("one", "two")]
    for root in roots:
        root.mkdir()

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(*(run_set(RunRequest(loaded, {}, root)) for root in roots))

    assert [document["status"] for document in asyncio.run(both())] == ["committed", "committed"]

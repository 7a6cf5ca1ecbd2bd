"""`qo deploy` and the schedules of what it makes, on a real server; what they start is run by a real worker."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import prefect_api as prefect
import pytest
from commands import Qo, eventually

pytestmark = pytest.mark.slow

POOL = "deployed"
WRITE = {"id": "write", "op": "file.append", "with": {"path": "log.txt", "content": "${{ inputs.word }}\n"}}
INPUTS = {"word": {"type": "string"}, "count": {"type": "integer", "default": 1}}


@pytest.fixture(scope="module")
def pool(prefect_server: str) -> str:
    """A work pool of processes."""
    return prefect.work_pool(POOL)


def deployed(qo: Qo, name: str, *options: str, **fields: object) -> dict[str, Any]:
    """What `qo deploy` says of a set that writes its input to a file."""
    document = {"name": name, "inputs": INPUTS, **fields}
    answer: dict[str, Any] = qo("deploy", qo.set(WRITE, **document), *options, "--json").exits(0).json
    return answer


def create_flow_run(deployment: str, parameters: dict[str, Any]) -> httpx.Response:
    """What the UI asks for when somebody fills in the form."""
    url = f"{os.environ['PREFECT_API_URL']}/deployments/{deployment}/create_flow_run"
    return httpx.post(url, json={"parameters": parameters, "state": {"type": "SCHEDULED"}}, timeout=20)


def sets_on_the_server() -> set[str]:
    found = prefect.post("/block_documents/filter", {"block_types": {"slug": {"any_": ["quantum-orchestrator-set"]}}})
    return {each["name"] for each in found}


def test_a_set_becomes_a_deployment_of_its_name_with_its_inputs_as_parameters(qo: Qo, pool: str) -> None:
    answer = deployed(
        qo, "greet", "--pool", pool, "--input", "count=2", "--tag", "extra", "--job-variable", "env.TZ=UTC"
    )
    assert (answer["deployment"], answer["created"], answer["pool"]) == ("orchestrate/greet", True, pool)
    found = prefect.get("/deployments/name/orchestrate/greet")
    assert found["entrypoint"] == "quantum_orchestrator.flows.deployed.deployed_set(word,count)"
    assert list(found["parameter_openapi_schema"]["properties"])[:2] == ["word", "count"]
    assert found["parameters"] == {"workspace": str(qo.work), "count": 2}
    assert found["job_variables"] == {"env": {"TZ": "UTC"}}
    assert found["tags"] == ["quantum-orchestrator", "extra"]
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert answer["sha256"] in sets_on_the_server()


def test_deployed_again_it_is_renewed_and_keeps_its_schedules(qo: Qo, pool: str) -> None:
    first = deployed(qo, "renewed", "--pool", pool, "--cron", "0 6 * * *", "--timezone", "Europe/Berlin")
    qo("schedule", "add", "renewed", "--interval", "15m", "--name", "often", "--input", "word=x").exits(0)
    second = deployed(qo, "renewed", "--pool", pool, "--overlap", "skip", description="Another one")
    assert (second["id"], second["created"]) == (first["id"], False)
    assert second["sha256"] != first["sha256"]
    assert {each["name"]: each["when"] for each in second["schedules"]} == {
        "deploy": "cron 0 6 * * * (Europe/Berlin)",
        "often": "every 900 s",
    }
    assert second["overlap"] == "CANCEL_NEW"
    assert sets_on_the_server() & {first["sha256"], second["sha256"]} == {second["sha256"]}
    third = deployed(qo, "renewed", "--pool", pool, "--rrule", "FREQ=WEEKLY;BYDAY=MO", "--overlap", "allow")
    assert {each["name"] for each in third["schedules"]} == {"deploy", "often"}
    assert third["limit"] is None


def test_what_there_is_no_longer_leaves_nothing_behind(qo: Qo, pool: str) -> None:
    answer = deployed(qo, "passing", description="Like no other")
    assert answer["pool"] == "quantum-orchestrator"
    assert "passing" in [
        each["deployment"].partition("/")[2] for each in qo("deployment", "list", "--json").json["deployments"]
    ]
    qo("deployment", "list").exits(0).prints("passing")
    qo("deployment", "remove", "passing").exits(0).prints("removed orchestrate/passing")
    qo("deployment", "remove", "pasing").exits(3).says("there is no deployment 'orchestrate/pasing'")
    assert answer["sha256"] not in sets_on_the_server()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pool", "nowhere"), "there is no work pool 'nowhere'"),
        (("--cron", "every day"), "this is no schedule: Invalid cron string"),
        (("--interval", "soon"), "this is no schedule"),
        (("--cron", "0 6 * * *", "--interval", "60"), "needs one of --cron, --interval and --rrule"),
        (("--cron", "0 6 * * *", "--timezone", "Mars/Base"), 'Invalid timezone: "Mars/Base"'),
        (("--input", "wrod=x"), "unknown input 'wrod'"),
        (("--input", "count=many"), "count"),
        (("--name", "a/b"), "a deployment's name"),
        (("--job-variable", "TZ"), "is not NAME=VALUE"),
        (("--overlap", "allow", "--limit", "2"), "goes without --limit"),
    ],
)
def test_what_cannot_be_deployed_is_refused_and_nothing_is_made(
    qo: Qo, pool: str, options: tuple[str, ...], said: str
) -> None:
    qo("deploy", qo.set(WRITE, name="refused", inputs=INPUTS), *options).exits(3).says(said)
    qo("deployment", "remove", "refused").exits(3)


def test_an_invalid_set_is_refused_with_every_fault(qo: Qo, pool: str) -> None:
    broken = qo.set({**WRITE, "op": "file.wirte"}, {**WRITE, "id": "other", "retry": 1}, name="refused")
    answer = qo("deploy", broken, "--json").exits(3).json
    assert answer["status"] == "invalid"
    assert len(answer["errors"]) >= 2


def test_what_a_run_is_given_is_judged_when_it_is_ordered(qo: Qo, pool: str) -> None:
    deployment = deployed(qo, "strict")["id"]
    assert create_flow_run(deployment, {"count": 1}).status_code == 409
    assert create_flow_run(deployment, {"word": 1}).status_code == 409
    assert create_flow_run(deployment, {"word": "a", "instruction_set": {}}).status_code == 409


def test_schedules_are_paused_resumed_and_removed(qo: Qo, pool: str) -> None:
    deployed(qo, "timed", "--input", "word=x")
    qo("schedule", "pause", "timed").exits(3).says("timed has no schedules")
    qo("schedule", "add", "timed", "--cron", "0 6 * * *", "--name", "daily").exits(0).prints(
        "timed: cron 0 6 * * *, as daily"
    )
    qo("schedule", "add", "timed", "--interval", "1h", "--name", "hourly", "--input", "count=4", "--paused").exits(0)
    qo("schedule", "add", "timed", "--interval", "1h", "--input", "cuont=4").exits(3).says("known are word, count")
    qo("schedule", "pause", "timed").exits(3).says("timed has several schedules: ")
    qo("schedule", "pause", "timed", "daily").exits(0)
    qo("schedule", "resume", "timed", "hourly").exits(0)
    found = {each["name"]: each for each in qo("schedule", "list", "timed", "--json").json["schedules"]}
    assert {name: each["active"] for name, each in found.items()} == {"daily": False, "hourly": True}
    assert found["hourly"]["parameters"] == {"count": 4}
    qo("schedule", "remove", "timed", "daily").exits(0)
    qo("schedule", "list", "timed").exits(0).prints("hourly")
    qo("schedule", "remove", "timed", "daily").exits(3).says("no schedule 'daily'")


def test_automations_are_added_once_listed_and_removed(qo: Qo, pool: str) -> None:
    from prefect.blocks.webhook import Webhook

    Webhook(url="http://127.0.0.1:9/").save("pager", overwrite=True, _sync=True)
    deployed(qo, "watched")
    (qo.work / "in").mkdir()
    for _ in range(2):
        qo("automation", "add", "watched", "--on-file", "in/*", "--event", "changed", "--as", "word").exits(0)
    qo("automation", "add", "watched", "--notify", "webhook/pager").exits(0).prints("watched failed to webhook pager")
    qo("automation", "add", "--notify", "webhook/pager", "--of", "awaiting-approval").exits(0)
    qo("automation", "add", "watched", "--on-file", "in/*").exits(3).says("has no input 'path' to take a path")
    qo("automation", "add", "watched", "--notify", "webhook/nobody").exits(3).says("no block 'webhook/nobody'")
    qo("automation", "add", "watched").exits(3).says("needs one of --on-file GLOB and --notify BLOCK")
    found = {each["name"]: each for each in qo("automation", "list", "--json").exits(0).json["automations"]}
    mine = [name for name in found if name.startswith("watched")]
    assert mine == ["watched failed to webhook pager", f"watched on changed {qo.work}/in/*"]
    assert found[mine[1]]["events"] == ["quantum-orchestrator.file.changed"]
    assert found["every deployment awaiting-approval to webhook pager"]["events"] == [
        "prefect.flow-run.AwaitingApproval"
    ]
    qo("automation", "remove", "watched").exits(3).says("2 automations by the name 'watched'")
    for name in (*mine, "every"):
        qo("automation", "remove", name).exits(0)
    qo("automation", "remove", "watched").exits(3).says("no automation by the name 'watched'")


@pytest.mark.timeout(300)  # five interpreters that import Prefect
def test_a_worker_runs_what_is_ordered_and_what_is_due(qo: Qo, pool: str, tmp_path: Path) -> None:
    ordered = deployed(qo, "ordered", "--pool", pool, "--workspace", str(tmp_path / "ordered"))
    soon = ("--interval", "20", "--input", "word=due")
    due = deployed(qo, "due", "--pool", pool, "--workspace", str(tmp_path / "due"), *soon)
    filed = deployed(qo, "filed", "--pool", pool, "--workspace", str(tmp_path / "filed"))
    qo("automation", "add", "filed", "--on-file", str(tmp_path / "in" / "*.csv"), "--as", "word").exits(0)
    run("deployment", "run", ordered["deployment"], "--param", "word=ordered")
    file_appears(tmp_path / "in" / "other.txt")
    file_appears(tmp_path / "in" / "data.csv")
    prefect.awaited(lambda: states(filed["id"]), lambda found: len(found) > 0)
    eventually(lambda: is_due(due["id"]), within=60)
    qo("schedule", "pause", "due").exits(0)  # which takes away the runs that are not due yet
    run("worker", "start", "--pool", pool, "--run-once")
    qo("automation", "remove", "filed").exits(0)

    assert states(ordered["id"]) == ["Completed"]
    assert (tmp_path / "ordered" / "log.txt").read_text() == "ordered\n"
    assert states(due["id"])[0] == "Completed"
    assert (tmp_path / "due" / "log.txt").read_text() == "due\n" * states(due["id"]).count("Completed")
    assert states(filed["id"]) == ["Completed"]
    assert (tmp_path / "filed" / "log.txt").read_text() == f"{tmp_path}/in/data.csv\n"
    (record,) = qo("history", "--workspace", str(tmp_path / "ordered"), "--json").exits(0).json["runs"]
    assert record["status"] == "committed"
    about = f"quantum-orchestrator.run.{record['run_id']}"
    prefect.awaited(lambda: events_about(about), lambda found: len(found) == 3)
    assert set(events_about(about)) == {
        f"quantum-orchestrator.{name}" for name in ("run.started", "step.succeeded", "run.committed")
    }


def file_appears(path: Path) -> None:
    """What whoever watches a folder tells Prefect."""
    resource = {"prefect.resource.id": f"quantum-orchestrator.file.{path}", "prefect.resource.name": path.name}
    payload = {"path": str(path), "folder": str(path.parent), "name": path.name, "sha256": "0" * 64}
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "quantum-orchestrator.file.created",
        "resource": resource,
        "payload": payload,
    }
    url = f"{os.environ['PREFECT_API_URL']}/events"
    httpx.post(url, json=[event], timeout=20, follow_redirects=True).raise_for_status()


def events_about(resource: str) -> list[str]:
    found = prefect.post("/events/filter", {"filter": {"resource": {"id": [resource]}}})
    return [each["event"] for each in found["events"]]


def run(*arguments: str) -> None:
    """A command of Prefect's own."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def is_due(deployment: str) -> bool:
    """Whether it has a run whose time has come."""
    chosen = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 1}
    found = prefect.post("/flow_runs/filter", chosen)
    return bool(found) and datetime.fromisoformat(found[0]["expected_start_time"]) < datetime.now(UTC)


def states(deployment: str) -> list[str]:
    """Of the flow runs of a deployment, in the order in which they were due."""
    chosen = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return [each["state_name"] for each in prefect.post("/flow_runs/filter", chosen)]

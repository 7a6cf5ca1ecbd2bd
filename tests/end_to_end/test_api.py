"""The REST API as programs use it: a real process, a real client, real runs in Prefect."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from api_service import SET, Service, ended, events, problem
from commands import NOTE, SHIP, SIGN, Qo, Warm, eventually

from quantum_orchestrator.blocks.errors import ServerError
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments.webhooks import Provider, Secrets, Webhook

pytestmark = pytest.mark.slow

SECRET = "s3cret"
MIB = 1024**2


@pytest.fixture(scope="module")
def service(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    qo = Qo(warm, tmp_path_factory.mktemp("api"))
    yield Service(qo, "api", "--rate", "0", environment={"HOOK_SECRET": SECRET})
    qo.close()


@pytest.fixture
def api(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


# Looking.


def test_it_says_how_it_is_to_anybody_and_everything_else_to_those_it_knows(service: Service) -> None:
    with service.client(None) as stranger:
        assert stranger.get("/health").json()["status"] == "ok"
        assert httpx.get(f"{service.address}/health").json()["status"] == "ok"
        paths = stranger.get("/openapi.json").json()["paths"]
        for path, methods in paths.items():
            for method in methods:
                if path.endswith(("/health", "/webhooks/{name}")):
                    continue
                response = stranger.request(method, f"{service.address}{path}".replace("{run_id}", "x"), json={})
                problem(response, 401, "no-token")
                assert response.headers["www-authenticate"] == "Bearer"


def test_operations_and_the_schema_are_those_of_the_command_line(service: Service, api: httpx.Client) -> None:
    listed = api.get("/operations").json()["operations"]
    assert listed == service.qo("ops", "--json").exits(0).json["operations"]
    assert api.get("/schema").json() == service.qo("schema").exits(0).json


def test_metrics_tell_prometheus_what_was_answered(service: Service, api: httpx.Client) -> None:
    api.get("/operations")
    text = httpx.get(f"{service.address}/metrics", headers=api.headers).text
    assert 'qo_http_requests_total{method="GET",route="/api/v1/operations",status="200"}' in text


# Judging and planning.


def test_a_set_is_judged_as_the_command_line_judges_it(api: httpx.Client) -> None:
    found = api.post("/validate", json={"set": SET}).json()
    assert found == {"status": "valid", "set": "greet", "instructions": 1, "inputs": ["who"], "trust": "untrusted"}


def test_faults_have_their_lines_in_the_body_that_was_sent(service: Service, api: httpx.Client) -> None:
    wrong = json.dumps({**SET, "instructions": [{**SET["instructions"][0], "op": "file.wirte"}]}, indent=2)  # type: ignore[index]
    body = f'{{"inputs": {{"who": "Ada"}},\n "set":\n{wrong}}}'
    for path in ("/validate", "/plan", "/runs"):
        answer = api.post(path, content=body, headers={"Content-Type": "application/json"})
        (fault,) = problem(answer, 422, "invalid-set")["errors"]
        file = service.qo.folder / "wrong.json"
        file.write_text(wrong)
        (shown,) = service.qo("validate", str(file), "--json").exits(3).json["errors"]
        assert (fault["pointer"], fault["message"], fault["hint"]) == (
            shown["pointer"],
            shown["message"],
            shown["hint"],
        )
        assert (fault["line"], fault["column"]) == (shown["line"] + 2, shown["column"])


def test_a_plan_changes_nothing_and_says_what_a_run_would(service: Service, api: httpx.Client) -> None:
    before = service.qo.files
    found = api.post("/plan", json={"set": SET, "inputs": {"who": "Ada"}}).raise_for_status().json()
    assert [change["path"] for change in found["changes"]] == ["greeting.txt"]
    assert service.qo.files == before


# Running.


@pytest.fixture(scope="module")
def committed(service: Service) -> dict[str, Any]:
    """A run that was accepted and has ended."""
    with service.client() as api:
        accepted = api.post("/runs", json={"set": SET, "inputs": {"who": "Ada"}}, headers={"Idempotency-Key": "one"})
        assert accepted.status_code == 202
        assert accepted.json()["status"] == "queued"
        assert accepted.headers["location"] == f"/api/v1/runs/{accepted.json()['run_id']}"
        return ended(api, accepted.json()["run_id"])


def test_a_set_runs_in_the_workspace_as_one_that_is_not_trusted(service: Service, committed: dict[str, Any]) -> None:
    assert committed["status"] == "committed"
    assert [step["status"] for step in committed["steps"]] == ["succeeded"]
    assert service.qo.files["greeting.txt"] == "Hello, Ada!\n"
    assert committed["accepted"]["source"] == "api"
    entries = service.qo("audit", "show", "--run", committed["run_id"], "--json").exits(0).json["entries"]
    assert [each["event"] for each in entries] == ["run_started", "run_ended"]
    assert {each["actor"] for each in entries} == {service.names["all"]}
    assert entries[0]["details"]["source"] == "api"
    assert entries[0]["details"]["trust"] == "untrusted"
    assert committed["ui_url"]


def test_the_command_line_and_the_api_speak_of_the_same_run(
    service: Service, api: httpx.Client, committed: Any
) -> None:
    run_id = committed["run_id"]
    shown = service.qo("show", run_id, "--json").exits(0).json
    assert {name: committed[name] for name in shown} == shown
    assert run_id in [run["run_id"] for run in api.get("/runs").json()["runs"]]
    patch = api.get(f"/runs/{run_id}/diff", params={"format": "patch"})
    assert patch.text == service.qo("diff", run_id).exits(0).out == api.get(f"/runs/{run_id}/diff").json()["patch"]
    assert api.get(f"/runs/{run_id}/diff", params={"step": "greet"}).json()["patch"] == patch.text
    report = api.get(f"/runs/{run_id}/report")
    assert report.text.startswith("# greet: committed\n")
    assert "| greet | file.write | succeeded |" in report.text


def test_the_same_key_and_body_have_the_same_reply_and_no_second_run(
    service: Service, api: httpx.Client, committed: dict[str, Any]
) -> None:
    key = {"Idempotency-Key": "one"}
    before = len(service.items())
    again = api.post("/runs", json={"set": SET, "inputs": {"who": "Ada"}}, headers=key)
    assert (again.status_code, again.json()["run_id"]) == (202, committed["run_id"])
    assert again.headers["idempotency-replayed"] == "true"
    problem(api.post("/runs", json={"set": SET, "inputs": {"who": "Eve"}}, headers=key), 422, "key-reused")
    assert len(service.items()) == before


def test_events_tell_of_every_step_with_what_it_gave_and_of_the_end(api: httpx.Client, committed: Any) -> None:
    told = list(events(api, committed["run_id"]))
    assert [name for name, _ in told] == ["run", "step", "end"]
    assert told[1][1]["outputs"]["bytes"] == 12
    assert told[2][1] == committed


def test_a_run_waits_for_an_approval_that_is_given_once_and_can_be_undone(service: Service, api: httpx.Client) -> None:
    approving = {
        "version": 1,
        "name": "ship",
        "instructions": [NOTE, {**SIGN, "needs": ["note"]}, {**SHIP, "needs": ["sign"]}],
    }
    run_id = api.post("/runs", json={"set": approving}).json()["run_id"]
    waiting = ended(api, run_id)
    assert (waiting["status"], waiting["waiting_for"]) == ("awaiting_approval", ["sign"])
    with service.client("runner") as runner:
        problem(runner.post(f"/runs/{run_id}/approve"), 403, "wrong-scope")
    with service.client("approver") as approver:
        assert approver.post(f"/runs/{run_id}/approve", json={"step": "sign"}).status_code == 202
        problem(approver.post(f"/runs/{run_id}/approve"), 409, "conflict")
    done = ended(api, run_id)
    assert (done["status"], done["accepted"]["status"]) == ("committed", "committed")
    assert service.qo.files["shipped.txt"] == "yes\n"
    entries = service.qo("audit", "show", "--run", run_id, "--json").exits(0).json["entries"]
    assert [each["actor"] for each in entries if each["event"] == "approved"] == [service.names["approver"]]
    shown = api.post(f"/runs/{run_id}/rollback", json={"check": True}).json()
    assert sorted(change["path"] for change in shown["changes"]) == ["note.txt", "shipped.txt"]
    undone = api.post(f"/runs/{run_id}/rollback", params={"wait": 60}).raise_for_status().json()
    assert undone["status"] == "rolled_back"
    assert "shipped.txt" not in service.qo.files
    problem(api.post(f"/runs/{run_id}/rollback"), 409, "conflict")
    problem(api.post(f"/runs/{run_id}/approve"), 409, "conflict")


def test_what_is_refused_says_so_and_changes_nothing(service: Service, api: httpx.Client, committed: Any) -> None:
    run_id = committed["run_id"]
    for path in ("cancel", "resume", "approve", "reject"):
        problem(api.post(f"/runs/{run_id}/{path}"), 409, "conflict")
    for path in ("", "/events", "/diff", "/report"):
        problem(api.get(f"/runs/20200101-000000-000000{path}"), 404, "unknown-run")
    problem(api.post("/runs/20200101-000000-000000/cancel"), 404, "unknown-run")


def test_a_set_that_was_right_is_judged_again_under_another_policy(service: Service, api: httpx.Client) -> None:
    """It is known by its digest after the first time, together with the policy's."""
    steps = {"set": {**SET, "name": "again"}}
    assert api.post("/runs", json=steps).status_code == 202
    policy = home() / "policy.toml"
    policy.write_text('[operations]\ndeny = ["file.write"]\n')
    try:
        problem(api.post("/runs", json=steps), 403, "policy-refused")
    finally:
        policy.unlink()
    assert ended(api, api.post("/runs", json=steps).json()["run_id"])["status"] == "committed"


def test_a_run_goes_on_though_the_service_is_killed_over_it_and_is_found_by_the_next_one(
    service: Service, api: httpx.Client
) -> None:
    slow = {"id": "slow", "op": "wait", "with": {"seconds": 2}}
    count = {"id": "count", "op": "file.append", "with": {"path": "once.txt", "content": "x"}, "needs": ["slow"]}
    run_id = api.post("/runs", json={"set": {"version": 1, "name": "slow", "instructions": [slow, count]}}).json()[
        "run_id"
    ]
    eventually(lambda: api.get(f"/runs/{run_id}").json()["status"] == "running", within=60)
    service.process.signal(signal.SIGKILL).ended()
    service.start()
    with service.client() as again:
        done = ended(again, run_id)
    assert (done["status"], done["accepted"]["status"]) == ("committed", "committed")
    assert service.qo.files["once.txt"] == "x"


# Bad input at the door.


def post(service: Service, path: str, headers: dict[str, str], *chunks: bytes, pause: float = 0) -> httpx.Response:
    with service.client(**({"token": headers.pop("token")} if "token" in headers else {})) as client:

        def content() -> Iterator[bytes]:
            for chunk in chunks:
                yield chunk
                time.sleep(pause)

        return client.post(path, content=content() if len(chunks) > 1 else chunks[0], headers=headers)


BAD: dict[str, Any] = {
    "an unknown token": ({"token": "qo_guess"}, b"{}", 401, "unknown-token"),
    "a token of the wrong scope": ({"token": "reader"}, b"{}", 403, "wrong-scope"),
    "another type": ({"Content-Type": "text/xml"}, b"<set/>", 415, "wrong-type"),
    "no JSON": ({}, b'{"set": {', 400, "invalid-json"),
    "the same key twice": ({}, b'{"set": {}, "set": {}}', 400, "invalid-json"),
    "no UTF-8": ({}, b'{"set": {"name": "\xff"}}', 400, "invalid-json"),
    "an unknown key": ({}, b'{"sett": {}}', 422, "invalid-request"),
    "a set that is none": ({}, b'{"set": []}', 422, "invalid-request"),
    "a number that is none": ({}, b'{"set": {}, "parallel": "2"}', 422, "invalid-request"),
    "an empty set": ({}, b'{"set": {}}', 422, "invalid-set"),
    "30 MB": ({}, b" " * 30 * MIB, 413, "too-large"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_put_on_record_and_nothing_runs(service: Service, case: str) -> None:
    headers, body, status, kind = BAD[case]
    before, items = len(service.refusals()), len(service.items())
    problem(post(service, "/runs", {"Content-Type": "application/json", **headers}, body), status, kind)
    refused = service.refusals()
    assert len(refused) == before + 1
    details = refused[-1]["details"]
    assert (details["reason"], details["status"], details["path"]) == (kind, status, "/api/v1/runs")
    assert refused[-1]["actor"] == {401: "127.0.0.1", 403: service.names["reader"]}.get(status, service.names["all"])
    assert len(service.items()) == items


def test_a_body_that_does_not_say_its_length_is_cut_off_at_the_limit(service: Service) -> None:
    answer = post(service, "/runs", {"Content-Type": "application/json"}, *[b" " * MIB] * 30)
    problem(answer, 413, "too-large")


def test_a_revoked_token_is_no_token(service: Service) -> None:
    name = service.names["runner"]
    secret = service.qo("token", "create", f"{name}-2", "--scope", "read").exits(0).out.strip()
    with service.client(secret) as client:
        assert client.get("/runs").status_code == 200
        service.qo("token", "revoke", f"{name}-2").exits(0)
        problem(client.get("/runs"), 401, "unknown-token")
    assert secret not in service.qo("token", "list", "--json").out


@pytest.fixture(scope="module")
def strict(service: Service, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Another one, that takes little and at once."""
    qo = Qo(warm, tmp_path_factory.mktemp("strict"))
    yield Service(qo, "strict", "--rate", "5", "--max-body", "1", "--body-seconds", "0.3")
    qo.close()


def test_a_body_that_dribbles_in_is_given_up(strict: Service) -> None:
    place = urlsplit(strict.address)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        head = f"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {strict.tokens['all']}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"problem:too-slow" in answer
    assert strict.refusals()[-1]["details"]["reason"] == "too-slow"


def test_those_who_ask_too_often_are_told_when_to_come_again(strict: Service) -> None:
    with strict.client() as client:
        answers = [client.get("/health") for _ in range(30)]
    refused = [each for each in answers if each.status_code == 429]
    assert refused
    problem(refused[0], 429, "too-many-requests")
    assert refused[0].headers["retry-after"] == "1"


def test_it_listens_elsewhere_only_for_those_who_have_a_token(qo: Qo, tmp_path: Path) -> None:
    nobody = {"QO_HOME": str(tmp_path / "nobody")}
    qo("api", "--host", "0.0.0.0", "--port", "0", environment=nobody).exits(3).says("there is no token yet")


# Webhooks.

PAYLOADS = {
    "version": 1,
    "name": "on-push",
    "inputs": {"payload": {"type": "object"}, "branch": {"type": "string", "default": ""}},
    "instructions": [
        {
            "id": "note",
            "op": "file.append",
            "with": {"path": "pushes.txt", "content": "${{ inputs.branch }} ${{ inputs.payload.after }}\n"},
        }
    ],
}


@pytest.fixture(scope="module")
def hook(service: Service) -> str:
    """A GitHub webhook, for pushes to main that touch sources."""
    file = service.qo.folder / "on-push.json"
    file.write_text(json.dumps(PAYLOADS))
    service.qo(
        *("webhooks", "add", "deploy", "--provider", "github", "--secret-env", "HOOK_SECRET", "--set", str(file)),
        *("--workspace", ".", "--event", "push", "--branch", "main", "--path", "src/**"),
        *("--when", "not inputs.payload.deleted"),
    ).exits(0)
    return "/webhooks/deploy"


def push(after: str, *, branch: str = "main", path: str = "src/app.py", deleted: bool = False) -> bytes:
    commits = [{"added": [], "modified": [path], "removed": []}]
    return json.dumps({"ref": f"refs/heads/{branch}", "after": after, "commits": commits, "deleted": deleted}).encode()


def deliver(client: httpx.Client, hook: str, body: bytes, delivery: str, **changed: str) -> httpx.Response:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": delivery, "X-Hub-Signature-256": f"sha256={signature}"}
    return client.post(hook, content=body, headers={"Content-Type": "application/json", **headers, **changed})


def test_a_signed_push_runs_the_set_with_its_payload_once(service: Service, api: httpx.Client, hook: str) -> None:
    with service.client(None) as github:
        first = deliver(github, hook, push("c0ffee"), "d-1")
        assert first.status_code == 202, first.text
        again = deliver(github, hook, push("c0ffee"), "d-1")
        assert (again.status_code, again.json()["repeated"]) == (200, True)
        assert again.json()["runs"] == first.json()["runs"]
        items = len(service.items())
        others = (push("b0", branch="dev"), push("b1", path="docs/x.md"), push("b2", deleted=True))
        for number, body in enumerate(others, start=2):
            ignored = deliver(github, hook, body, f"d-{number}")
            assert (ignored.status_code, ignored.json()["runs"]) == (200, [])
        ping = deliver(github, hook, b'{"zen": "Keep it simple."}', "d-9", **{"X-GitHub-Event": "ping"})
        assert ping.json()["ignored"] == "no rule is for ping"
    assert len(service.items()) == items
    done = ended(api, first.json()["runs"][0])
    assert (done["status"], done["accepted"]["source"]) == ("committed", "webhook:deploy")
    assert service.qo.files["pushes.txt"] == "main c0ffee\n"
    started = service.qo("audit", "show", "--run", done["run_id"], "--json").exits(0).json["entries"][0]
    assert (started["actor"], started["details"]["trust"]) == ("webhook:deploy", "untrusted")
    document = api.get(f"{service.address}/api/v1/runs/{done['run_id']}").json()
    assert document["ui_url"]


BAD_DELIVERIES: dict[str, Any] = {
    "a wrong signature": ({"X-Hub-Signature-256": "sha256=" + "0" * 64}, push("1"), 401, "bad-signature"),
    "no signature": ({"X-Hub-Signature-256": ""}, push("1"), 401, "unsigned"),
    "another body than was signed": ({}, None, 401, "bad-signature"),
    "the same body under another id": ({"X-GitHub-Delivery": "d-replayed"}, push("c0ffee"), 409, "replayed"),
    "what is no JSON": ({}, b"\xff\xfe", 422, "unreadable"),
    "30 MB": ({}, b" " * 30 * MIB, 413, "too-large"),
}


@pytest.mark.parametrize("case", BAD_DELIVERIES)
def test_a_bad_delivery_is_refused_put_on_record_and_nothing_runs(service: Service, hook: str, case: str) -> None:
    changed, body, status, kind = BAD_DELIVERIES[case]
    before, items = len(service.refusals()), len(service.items())
    with service.client(None) as attacker:
        if body is None:
            changed = {"X-Hub-Signature-256": "sha256=" + hmac.new(b"s3cret", push("2"), hashlib.sha256).hexdigest()}
            body = push("3")
        if kind == "replayed":
            deliver(attacker, hook, body, "d-1")
            items = len(service.items())
        problem(deliver(attacker, hook, body, f"d-{case}", **changed), status, kind)
    refused = service.refusals()
    assert len(refused) == before + 1
    assert refused[-1]["details"]["source"] == "webhook:deploy"
    assert refused[-1]["details"]["reason"] == kind
    assert len(service.items()) == items


def test_secrets_may_be_in_a_block_of_prefect(prefect_server: str) -> None:
    from quantum_orchestrator.blocks.webhook_secret import WebhookSecret

    WebhookSecret(secrets=["old", "new"]).save("deploy", _sync=True)  # type: ignore[call-arg]
    assert Secrets({}).of(Webhook("w", Provider.GITHUB, ["block:deploy"], [])) == ["old", "new"]
    with pytest.raises(ServerError, match="no webhook secret block 'missing'"):
        Secrets({}).of(Webhook("w", Provider.GITHUB, ["block:missing"], []))


def test_an_unknown_webhook_is_unknown(service: Service) -> None:
    with service.client(None) as stranger:
        problem(stranger.post("/webhooks/none", content=b"{}"), 404, "unknown-webhook")

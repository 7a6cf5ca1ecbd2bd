"""Deliveries that are sent, sent again, and acknowledged by a service that is killed: each is one run with one end.

The service is the real one, in a process of its own; its runs are light ones, without Prefect (`light_service.py` says
what that leaves out), as they are to be counted by the thousand. A run appends its delivery to a file, so that one that
ran twice, or not at all, shows there too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands import eventually
from effort import ordinarily

from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.deployments.inbox import Inbox, State
from quantum_orchestrator.deployments.tokens import Scope, Tokens
from quantum_orchestrator.deployments.webhooks import Provider, Rule, Webhook, Webhooks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECRET = "s3cret"
DELIVERIES = ordinarily(60, nightly=5_000)
KILL_AFTER = ordinarily(25, nightly=0)
"""So many acknowledgements; by the clock instead, if 0."""
KILL_SECONDS = 5.0
COUNTING = {
    "version": 1,
    "name": "count",
    "inputs": {"payload": {"type": "object"}},
    "instructions": [
        {"id": "count", "op": "file.append", "with": {"path": "counts.txt", "content": "${{ inputs.payload.n }}\n"}}
    ],
}


class LightService:
    """A service that can be killed and started again at the same address."""

    def __init__(self, state: Path, root: Path) -> None:
        self._state = state
        self._root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{self._port}/api/v1"
        self.kills = 0
        self._process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "tests/deployments/light_service.py"), str(self._port), str(self._root)]
        paths = os.pathsep.join(str(ROOT / each) for each in ("tests", "tests/deployments"))
        environment = {**os.environ, "QO_HOME": str(self._state), "PYTHONPATH": paths, "HOOK_SECRET": SECRET}
        self._process = subprocess.Popen(command, env=environment)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.kills += 1

    def end(self) -> None:
        self._process.terminate()
        assert self._process.wait(30) in (0, -signal.SIGTERM)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "qo"))
    return home()


@pytest.fixture
def service(state: Path, tmp_path: Path) -> Iterator[LightService]:
    root, file = tmp_path / "work", tmp_path / "count.json"
    root.mkdir()
    file.write_text(json.dumps(COUNTING))
    rule = Rule(str(file), str(root), events=["push"])
    Webhooks(state).add(Webhook("count", Provider.GITHUB, ["env:HOOK_SECRET"], [rule]))
    running = LightService(state, root)
    yield running
    running.end()


def deliver(client: httpx.Client, number: int) -> list[str]:
    """As a sender does it: again and again until it is acknowledged. The runs that it is told of."""
    body = json.dumps({"n": number}).encode()
    signature = f"sha256={hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}"
    headers = {"X-GitHub-Event": "push", "X-GitHub-Delivery": f"d-{number}", "X-Hub-Signature-256": signature}
    for _ in range(600):
        try:
            answer = client.post("/webhooks/count", content=body, headers=headers)
        except httpx.HTTPError:
            time.sleep(0.1)  # it was killed
            continue
        assert answer.status_code in (200, 202), answer.text
        return list(answer.json()["runs"])
    raise AssertionError("nobody answers")


@pytest.mark.timeout(3600)
def test_each_delivery_has_one_run_and_one_end_though_it_comes_again_and_the_service_is_killed(
    service: LightService, state: Path, tmp_path: Path
) -> None:
    chance, acknowledged, killed_at = random.Random(1), dict[int, list[str]](), time.monotonic()
    with httpx.Client(base_url=service.address, timeout=30) as client:
        for number in range(DELIVERIES):
            acknowledged[number] = deliver(client, number)
            if chance.random() < 0.2:  # it comes again, at once or later
                again = chance.choice([number, chance.randrange(number + 1)])
                assert deliver(client, again) == acknowledged[again]
            due = number % KILL_AFTER == KILL_AFTER - 1 if KILL_AFTER else time.monotonic() - killed_at > KILL_SECONDS
            if due:
                service.kill()
                service.start()
                killed_at = time.monotonic()
    assert service.kills >= 2
    with Inbox(state) as inbox:
        eventually(lambda: not inbox.workspaces(), lambda: inbox.items(5), within=ordinarily(60, nightly=600))
        items = inbox.items()
    assert {run for runs in acknowledged.values() for run in runs} == {item.run_id for item in items}
    assert len(items) == DELIVERIES
    assert {(item.state, item.status) for item in items} == {(State.ENDED, "committed")}
    journal = Journal(workspace_home(tmp_path / "work"))
    assert sorted(run.id for run in journal.runs()) == sorted(item.run_id for item in items)
    journal.close()
    counted = [int(line) for line in (tmp_path / "work" / "counts.txt").read_text().splitlines()]
    assert sorted(counted) == list(range(DELIVERIES))


# The whole OpenAPI document.


@pytest.mark.timeout(1200)
def test_nothing_that_the_document_admits_or_forbids_makes_it_fail_or_answer_what_it_does_not_say(
    service: LightService, state: Path, tmp_path: Path
) -> None:
    """schemathesis sends it what the document describes, and what it does not."""
    token = Tokens(state).create("schemathesis", [*Scope])
    with httpx.Client(base_url=service.address) as client:
        eventually(lambda: _answers(client))
    command: list[Any] = [
        *(Path(sys.executable).with_name("schemathesis"), "run", f"{service.address}/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--max-examples", ordinarily(2, nightly=200)),
        *("--phases", ordinarily("fuzzing", nightly="examples,coverage,fuzzing,stateful")),
        # That a body is right says the document; whether the set in it is, only the judge can say.
        *("--exclude-checks", "positive_data_acceptance"),
        *("--seed", 1, "--generation-deterministic", "--no-color", "--request-timeout", 30, "--workers", 2),
    ]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False

"""A running `qo api`, a real process, and clients of it with tokens."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from commands import PATIENCE, Qo, Running, eventually

SET = {
    "version": 1,
    "name": "greet",
    "inputs": {"who": {"type": "string", "default": "world"}},
    "instructions": [
        {"id": "greet", "op": "file.write", "with": {"path": "greeting.txt", "content": "Hello, ${{ inputs.who }}!\n"}}
    ],
}
SCOPES = {"all": ("run", "read", "approve"), "reader": ("read",), "runner": ("run",), "approver": ("approve",)}


class Service:
    """One `qo api` for one workspace, and a token for each of SCOPES."""

    def __init__(self, qo: Qo, name: str, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.qo = qo
        self._options = options
        self._environment = environment
        self.names = {kind: f"{name}-{kind}" for kind in SCOPES}
        self.tokens = {
            kind: qo("token", "create", self.names[kind], *(f"--scope={scope}" for scope in scopes))
            .exits(0)
            .out.strip()
            for kind, scopes in SCOPES.items()
        }
        self.process: Running
        self.start()

    def _token(self, name: str, *scopes: str) -> str:
        return self.qo("token", "create", name, *(f"--scope={scope}" for scope in scopes)).exits(0).out.strip()

    def start(self) -> None:
        self.process = self.qo.begins("api", "--port", "0", *self._options, environment=self._environment)
        eventually(lambda: self.process.out, lambda: self.process.err)
        found = re.match(r"http://127\.0\.0\.1:\d+", self.process.out)
        assert found, self.process.out
        self.address = found[0]

    def client(self, token: str | None = "all", **fields: Any) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {self.tokens.get(token, token)}"}
        return httpx.Client(base_url=f"{self.address}/api/v1", headers=headers, timeout=PATIENCE, **fields)

    def refusals(self) -> list[dict[str, Any]]:
        """What the audit has of refused requests."""
        entries = self.qo("audit", "show", "--limit", "0", "--json").exits(0).json["entries"]
        return [each for each in entries if each["event"] == "refused"]

    def items(self) -> list[dict[str, Any]]:
        found = self.qo("inbox", "list", "--workspace", ".", "--limit", "0", "--json").exits(0)
        return list(found.json["items"])


def ended(client: httpx.Client, run_id: str) -> dict[str, Any]:
    """A run's document, once nothing more happens to it."""
    deadline = time.monotonic() + 60
    while True:
        document = client.get(f"/runs/{run_id}").raise_for_status().json()
        latest = document["latest"] or document["accepted"]
        if latest is None or latest["ended_at"] is not None:
            return dict(document)
        assert time.monotonic() < deadline, document
        time.sleep(0.1)


def events(client: httpx.Client, run_id: str) -> Iterator[tuple[str, Any]]:
    """Server-sent events, until the stream ends."""
    with client.stream("GET", f"/runs/{run_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in response.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """A refusal as it must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["type"].rpartition(":")[2] == kind
    assert found["status"] == status
    return found

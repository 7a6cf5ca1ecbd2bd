"""Whoever is told of a run's end, by a real HTTP server: signed, tried again, and only where the policy allows it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import PolicyRefused, UsageError
from quantum_orchestrator.blocks.policy import Given, Policy
from quantum_orchestrator.flows.callbacks import PAUSES, Callback, deliver, key_of, refuse

HERE = Policy().given([Given("http.hosts", ("127.0.0.1",))])
KEY = b"0123456789abcdef01234567"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
DOCUMENT = {
    "run_id": "20260102-030405-1a2b3c",
    "set": "greet",
    "status": "committed",
    "workspace": "/srv",
    "steps": [{"id": "a", "op": "echo", "status": "succeeded", "outputs": {"message": "private"}}],
}


class Receiver:
    """A server that answers with these codes in turn, the last one from then on, and keeps what it got."""

    def __init__(self) -> None:
        self.codes = [204]
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                code = receiver.codes.pop(0) if len(receiver.codes) > 1 else receiver.codes[0]
                self.send_response(code)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_it_is_told_once_signed_and_without_outputs(receiver: Receiver) -> None:
    assert deliver(Callback(receiver.url), DOCUMENT, HERE, SECRET) == ""
    ((headers, body),) = receiver.got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    told = json.loads(body)
    assert told["type"] == "run.committed"
    assert told["data"]["run_id"] == DOCUMENT["run_id"]
    assert told["data"]["steps"] == [{"id": "a", "op": "echo", "status": "succeeded"}]
    assert b"private" not in body


def test_it_is_told_again_until_it_is_heard_under_the_same_id(receiver: Receiver) -> None:
    receiver.codes = [500, 503, 204]
    paused: list[float] = []
    assert deliver(Callback(receiver.url), DOCUMENT, HERE, "", paused.append) == ""
    assert paused == [0.0, *PAUSES[:2]]
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {"20260102-030405-1a2b3c.committed"}
    assert "webhook-signature" not in receiver.got[0][0]


def test_who_never_hears_it_is_given_up(receiver: Receiver) -> None:
    receiver.codes = [500]
    assert "answered 500" in deliver(Callback(receiver.url), DOCUMENT, HERE, "", lambda _: None)
    assert len(receiver.got) == 1 + len(PAUSES)


def test_nobody_is_told_where_the_policy_forbids_it(receiver: Receiver) -> None:
    assert "private network" in deliver(Callback(receiver.url), DOCUMENT, Policy(), "", lambda _: None)
    with pytest.raises(PolicyRefused):
        refuse(Callback("https://example.org/"), Policy().given([Given("http.deny", ("example.org",))]))
    assert receiver.got == []


@pytest.mark.parametrize("url", ["ftp://example.org/", "example.org", "http://"])
def test_what_is_no_address_is_refused_before_anything_runs(url: str) -> None:
    with pytest.raises(UsageError, match="--callback"):
        refuse(Callback(url), Policy())


@pytest.mark.parametrize("secret", ["whsec_%%%", "whsec_"])
def test_a_secret_that_holds_no_key_is_named(secret: str) -> None:
    with pytest.raises(UsageError):
        key_of(secret)

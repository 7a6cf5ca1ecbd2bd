"""A local server that speaks the Messages protocol, well and in every wrong way: what a paid model is to the tests.

Only the model is a double: the client is the real `anthropic` package, over real sockets. What it answers is scripted:
one `Say` a request, in order; the last one is said again. `FAULTS` are the ways in which servers and models go wrong,
by name; the table fault × operation (`tests/tasks/test_llm_faults.py`) drives every operation through all of them.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from quantum_orchestrator.blocks.model import ANTHROPIC, ModelSettings, Prices

PRICES = Prices(3.0, 15.0)
TOKENS_IN, TOKENS_OUT = 120, 40


@dataclass(frozen=True)
class Say:
    """One answer. `payload` is the input of the tool that was asked for; without it, `text` is said."""

    text: str = ""
    payload: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stop: str | None = "end_turn"
    body: bytes | None = None
    """Sent as it is, in the place of a message."""
    cut: str = ""
    """Where the stream is cut off: `text`, `tool`, `start`, or `stop` (before the message's end)."""
    seconds: float = 0.0
    """Before anything is said; or with `drips`, between the parts of it."""
    drips: bool = False
    raw_input: str | None = None
    """The tool's input as it is sent, in the place of the payload's JSON."""
    event: Mapping[str, Any] | None = None
    """An event that comes after the message has begun, and ends it."""
    tool: str | None = None
    usage: Mapping[str, Any] | None = None


class MessagesServer:
    """A server at `url`; `asked` are the requests that it got, as JSON."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._script: list[Say] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.answer: Callable[[dict[str, Any]], Say] | None = None
        """Says what to say to a request, in the place of the script."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = server.hear(body, {name.lower(): value for name, value in self.headers.items()})
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever asked waits no more
                    server.respond(self, body, said)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), name="messages")
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def says(self, *several: Say) -> MessagesServer:
        """Begin anew: answer so, one after the other, and forget what was asked."""
        with self._lock:
            self._script, self.asked, self.headers, self.answer = list(several), [], [], None
        return self

    def hear(self, body: dict[str, Any], headers: dict[str, str]) -> Say:
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            if self.answer is not None:
                return self.answer(body)
            return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def settings(self, **changes: Any) -> ModelSettings:
        """Settings under which this server is asked."""
        usual = ModelSettings(
            ANTHROPIC, "a-model", self.url, api_key="sk-test-key-0123456789", prices=PRICES, timeout=20
        )
        return replace(usual, **changes)

    @property
    def environment(self) -> dict[str, str]:
        """The same for processes."""
        return {
            "QO_MODEL": "a-model",
            "QO_MODEL_PRICES": "3,15",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "sk-test-key-0123456789",
        }

    def close(self) -> None:
        self._closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    # What goes over the wire.

    def respond(self, http: BaseHTTPRequestHandler, asked: Mapping[str, Any], said: Say) -> None:
        if said.seconds and not said.drips:
            self._closing.wait(said.seconds)
        if said.body is not None or said.status != 200:
            error = {"type": "error", "error": {"type": "api_error", "message": f"status {said.status}"}}
            kind = "application/json" if said.body is None else said.headers.get("content-type", "text/html")
            self._send(http, said, said.body if said.body is not None else json.dumps(error).encode(), kind)
        elif asked.get("stream"):
            http.send_response(200)
            http.send_header("content-type", "text/event-stream")
            http.end_headers()
            for event in events(asked, said):
                if said.drips:
                    self._closing.wait(said.seconds)
                http.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                http.wfile.flush()
        else:
            self._send(http, said, json.dumps(message(asked, said)).encode(), "application/json")

    @staticmethod
    def _send(http: BaseHTTPRequestHandler, said: Say, body: bytes, kind: str) -> None:
        http.send_response(said.status)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **said.headers}.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(body)


def _tool(asked: Mapping[str, Any], said: Say) -> str:
    tools = asked.get("tools") or [{"name": "answer"}]
    return said.tool or str(tools[0]["name"])


def message(asked: Mapping[str, Any], said: Say) -> dict[str, Any]:
    """The whole answer, not streamed."""
    content: list[dict[str, Any]] = [{"type": "text", "text": said.text}] if said.text else []
    if said.payload is not None:
        content.append({"type": "tool_use", "id": "toolu_1", "name": _tool(asked, said), "input": said.payload})
    stop = "tool_use" if said.payload is not None and said.stop == "end_turn" else said.stop
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": asked["model"],
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": _usage(said),
    }


def _usage(said: Say) -> Mapping[str, Any]:
    return {"input_tokens": TOKENS_IN, "output_tokens": TOKENS_OUT} if said.usage is None else said.usage


def events(asked: Mapping[str, Any], said: Say) -> Iterator[dict[str, Any]]:
    """The same as a stream, as far as it gets."""
    whole = message(asked, said)
    yield {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
    if said.event is not None:
        yield dict(said.event)
        return
    if said.cut == "start":
        return
    for index, block in enumerate(whole["content"]):
        is_tool = block["type"] == "tool_use"
        yield {"type": "content_block_start", "index": index, "content_block": _begun(block)}
        text = block.get("text") or said.raw_input or json.dumps(block.get("input"))
        half = len(text) // 2
        for number, piece in enumerate((text[:half], text[half:])):
            if number and said.cut == ("tool" if is_tool else "text"):
                return
            delta = (
                {"type": "input_json_delta", "partial_json": piece}
                if is_tool
                else {"type": "text_delta", "text": piece}
            )
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    if said.cut == "stop":
        return
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
        "usage": _usage(said),
    }
    yield {"type": "message_stop"}


def _begun(block: Mapping[str, Any]) -> dict[str, Any]:
    return {**block, "input": {}} if block["type"] == "tool_use" else {**block, "text": ""}


# How they go wrong.


@dataclass(frozen=True)
class Fault:
    """One way to go wrong. `says` makes of a right answer what is said; `heals` is whether it is said right at last."""

    name: str
    says: Callable[[Say], Sequence[Say]]
    heals: bool = False
    streaming: bool = True
    endless: bool = False

    @property
    def patience(self) -> float:
        """Seconds that a question may take in a test: little only where nothing else ends it."""
        return 0.7 if self.endless else 20.0


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
HTML = b"<!doctype html><html><body><h1>Welcome to nginx!</h1></body></html>\n"
AT_ONCE = {"retry-after": "0"}

EVENTS = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}


def _always(*said: Say) -> Callable[[Say], Sequence[Say]]:
    return lambda _right: said


def _but(**changes: Any) -> Callable[[Say], Sequence[Say]]:
    """What is right, but for this."""
    return lambda right: [replace(right, **changes)]


def _tool_but(**changes: Any) -> Callable[[Say], Sequence[Say]]:
    """The same, in a tool call, asked for or not."""
    return lambda right: [replace(right, payload=right.payload or {"a": 1}, **changes)]


def _first(status: int) -> Callable[[Say], Sequence[Say]]:
    return lambda right: [Say(status=status, headers=AT_ONCE), right]


FAULTS = (
    Fault("429 with retry-after, then right", _first(429), heals=True),
    Fault("529, then right", _first(529), heals=True),
    Fault("529 for good", _always(Say(status=529, headers=AT_ONCE))),
    Fault("429 with an absurd retry-after", _always(Say(status=429, headers={"retry-after": "86400"}))),
    Fault("500 for good", _always(Say(status=500, headers=AT_ONCE))),
    Fault("401", _always(Say(status=401))),
    Fault("a stream cut off in the text", _always(Say("Half of a sente", cut="text"))),
    Fault("a stream cut off in the tool call", _tool_but(cut="tool")),
    Fault("a stream cut off before its end", _but(cut="stop")),
    Fault("a stream that only begins", _but(cut="start")),
    Fault("an error event in the stream", _but(event=OVERLOADED)),
    Fault("an empty stream", _always(Say(body=b"", headers=EVENTS))),
    Fault(
        "malformed JSON in the stream", _always(Say(body=b'event: message_start\ndata: {"type"\n\n', headers=EVENTS))
    ),
    Fault("malformed JSON", _always(Say(body=b'{"type": "mess', headers=JSON)), streaming=False),
    Fault("a page of HTML, streamed", _always(Say(body=HTML))),
    Fault("a page of HTML", _always(Say(body=HTML)), streaming=False),
    Fault("JSON that is no message", _always(Say(body=b'{"ok": true}', headers=JSON)), streaming=False),
    Fault("a message without a stop reason", _always(Say("Half", stop=None)), streaming=False),
    Fault("a tool call that is no JSON", _tool_but(raw_input='{"edits": [')),
    Fault("a refusal", _always(Say("I will not do that.", stop="refusal"))),
    Fault("an answer that is cut off for its length", _always(Say("And so on, and", stop="max_tokens"))),
    Fault("an answer of the wrong shape", _but(payload={"nothing": "of what was asked for"}, text="")),
    Fault("another tool than the one asked for", _tool_but(tool="run_shell")),
    Fault("an empty answer", _always(Say(""))),
    Fault("a server that is slow", _but(seconds=60), endless=True),
    Fault("a server that drips", _but(seconds=0.4, drips=True), endless=True),
)
"""Each ends in an error of our tree, with nothing changed; those that heal end well."""


@contextmanager
def messages_server() -> Iterator[MessagesServer]:
    """A server, gone afterwards."""
    server = MessagesServer()
    try:
        yield server
    finally:
        server.close()


def wait_until_asked(server: MessagesServer, times: int, seconds: float = 20) -> None:
    """Until it has been asked so often."""
    deadline = time.monotonic() + seconds
    while len(server.asked) < times:
        assert time.monotonic() < deadline, f"asked {len(server.asked)} times"
        time.sleep(0.01)

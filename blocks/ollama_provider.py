"""Ollama's own protocol (`POST /api/generate`), which older local servers speak instead of the Messages protocol.

One request, not streamed, to the address that a step names or that is usual: no redirects, no proxies, no
credentials. A reply is taken only when the server says that it is whole. Where a shape is asked for, it goes along as
`format`, and is judged like any other (`blocks/model.py`), as servers that do not know it pass it over.

The request runs in a thread of its own, which is left behind when the time is over or the run is cancelled.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from quantum_orchestrator.blocks.errors import BadAnswer, Interrupted, ModelError, ModelRefused, ModelUnavailable
from quantum_orchestrator.blocks.model import DEFAULT_OLLAMA, CancelTokenLike, ModelSettings, Question, Reply, Usage

LARGEST_ANSWER = 8 * 1024 * 1024
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
PATH = "/api/generate"


class OllamaProvider:
    """See model.Provider."""

    def prepare(self) -> None:
        """See model.Provider: there is nothing to prepare."""

    def reply(self, question: Question, settings: ModelSettings, *, seconds: float, cancel: CancelTokenLike) -> Reply:
        """See model.Provider."""
        if not settings.model:
            raise ModelError("no model is named", hint="name it: `model`")
        attempt = _Try(question, settings, seconds)
        cancel.on_cancel(attempt.done.set)
        attempt.start()
        attempt.done.wait(seconds)
        if cancel.cancelled:
            raise Interrupted
        if attempt.error is not None:
            raise attempt.error
        if attempt.reply is None:
            raise ModelUnavailable(f"{attempt.where} did not answer within {seconds:g} s", billed=True)
        return attempt.reply


class _Try(threading.Thread):
    """One request, and what comes of it."""

    def __init__(self, question: Question, settings: ModelSettings, seconds: float) -> None:
        super().__init__(name="ollama", daemon=True)
        self.where = (settings.base_url or DEFAULT_OLLAMA).rstrip("/")
        self.done = threading.Event()
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self._body = json.dumps(_request(question, settings)).encode()
        self._seconds = seconds

    def run(self) -> None:
        """Keep what comes of it, whichever it is."""
        try:
            self.reply = _reply(*self._exchanged(), self.where)
        except (OSError, http.client.HTTPException) as error:
            self.error = ModelUnavailable(f"{self.where} cannot be reached: {error}", hint="is the server running?")
        except Exception as error:  # raised again on the operation's thread
            self.error = error
        self.done.set()

    def _exchanged(self) -> tuple[int, bytes]:
        parts = urlsplit(self.where)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ModelError(f"{self.where} is no address of a server", hint="write it as http://localhost:11434")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=self._seconds + 1)
        try:
            path = parts.path.removesuffix("/api") + PATH
            connection.request("POST", path, self._body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read(LARGEST_ANSWER + 1)
        finally:
            connection.close()


def _request(question: Question, settings: ModelSettings) -> dict[str, Any]:
    request: dict[str, Any] = {"model": settings.model, "prompt": _prompt(question), "stream": False}
    if question.system:
        request["system"] = question.system
    if question.tool is not None:
        request["format"] = dict(question.tool.schema)
    options = dict(settings.options)
    if question.max_tokens is not None:
        options.setdefault("num_predict", question.max_tokens)
    if options:
        request["options"] = options
    return request


def _prompt(question: Question) -> str:
    """The conversation as one text: of several turns, each says whose it is."""
    if len(question.messages) == 1:
        return question.messages[0].text
    return "\n\n".join(f"{each.role}: {each.text}" for each in question.messages)


def _reply(status: int, body: bytes, where: str) -> Reply:
    if len(body) > LARGEST_ANSWER:
        raise BadAnswer(f"{where} answered with more than {LARGEST_ANSWER // 2**20} MiB")
    if status != http.client.OK:
        said = body[:300].decode(errors="replace")
        if status in TRANSIENT:
            raise ModelUnavailable(f"{where} answered {status}: {said}")
        raise ModelRefused(f"{where} answered {status}: {said}", hint="check the model's name and the address")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise BadAnswer(f"{where} answered with what is no JSON: {body[:100].decode(errors='replace')!r}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("response"), str):
        raise BadAnswer(f"{where} answered without a `response`")
    stop = "end_turn" if answer.get("done", True) else ""
    if answer.get("done_reason") == "length":
        stop = "max_tokens"
    return Reply(answer["response"], stop, str(answer.get("model", "")), _usage(answer))


def _usage(answer: Mapping[str, Any]) -> Usage | None:
    read, written = answer.get("prompt_eval_count"), answer.get("eval_count")
    return Usage(read, written) if isinstance(read, int) and isinstance(written, int) else None

"""The Messages protocol, through the `anthropic` package: Anthropic's own service, and every server that speaks it.

The client believes more than it should: a stream that is cut off is a shorter text to it, a tool call that lost its end
has fewer keys, a page of HTML is a message without fields (`tests/messages_server.py` does all of that). So this module
puts streams together itself and takes a reply only when each of its parts, and the whole, has come to its end. What the
package raises, and what escapes from it, becomes an error of our tree here and nowhere else.

Each try runs in a thread of its own, which is left behind when the time is over or the run is cancelled: a look-up of
a name, or a server that sends a byte now and then, cannot be interrupted from outside. The package's own tries are off:
whoever asks counts them (`blocks/model_session.py`).

Importing `anthropic` takes two seconds of processor time: it is imported in the call.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.errors import BadAnswer, Interrupted, ModelError, ModelRefused, ModelUnavailable
from quantum_orchestrator.blocks.model import (
    CONFIGURE,
    CancelTokenLike,
    JsonObject,
    ModelSettings,
    Question,
    Reply,
    Usage,
)

if TYPE_CHECKING:
    from anthropic import Anthropic, APIStatusError

LARGEST_ANSWER = 8 * 1024 * 1024
"""Characters; more than any model's longest answer."""
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
UNBILLED = frozenset({401, 403, 404, 429, 503, 529})
"""Answers of servers that have not let a model work."""
WAITING_FOR_BYTES = 60.0
"""Seconds without a byte: the server pings more often than that."""
NOT_STRICT = frozenset(
    (
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"),
        *("pattern", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "format", "if", "not"),
    )
)
"""What the service's strict tools do not take in a schema: such a tool is asked for without, and judged by us alone."""


class AnthropicProvider:
    """See model.Provider."""

    def prepare(self) -> None:
        """See model.Provider."""
        import anthropic  # noqa: F401

        _certificates()

    def reply(self, question: Question, settings: ModelSettings, *, seconds: float, cancel: CancelTokenLike) -> Reply:
        """See model.Provider."""
        if not settings.model:
            raise ModelError("no model is named", hint=CONFIGURE)
        if not settings.secrets and settings.base_url is None:
            raise ModelError("there are no credentials for the model's service", hint=CONFIGURE)
        attempt = _Try(question, settings, seconds)
        attempt.start()
        cancel.on_cancel(attempt.done.set)
        attempt.done.wait(seconds)
        attempt.abandoned = True
        if cancel.cancelled:
            raise Interrupted
        return attempt.result()


class _Try(threading.Thread):
    """One request and what comes of it, on a thread of its own."""

    def __init__(self, question: Question, settings: ModelSettings, seconds: float) -> None:
        super().__init__(name="model", daemon=True)
        self.question, self.settings, self.seconds = question, settings, seconds
        self.deadline = time.monotonic() + seconds
        self.done = threading.Event()
        """Nobody needs to wait any more: it has ended, or the run is cancelled."""
        self.abandoned = False
        self._reply: Reply | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Keep what comes of it, whichever it is, for `result`."""
        try:
            self._reply = self._sent()
        except BaseException as error:  # raised again by `result`, on the operation's thread
            self._error = error
        self.done.set()

    def result(self) -> Reply:
        """The reply. Raises an error of our tree."""
        if self._error is not None:
            raise _as_ours(self._error, self.settings) from self._error
        if self._reply is None:
            raise ModelUnavailable(
                f"the model did not answer within {self.seconds:g} s", hint="raise the time limit", billed=True
            )
        return self._reply

    def _sent(self) -> Reply:
        with _client(self.settings, self.seconds) as client:
            arguments = _arguments(self.question, self.settings)
            if not self.settings.streaming:
                return reply_of_message(_plain(client.messages.create(**arguments)))
            gathered = Gathered()
            with client.messages.create(**arguments, stream=True) as events:
                for event in events:
                    gathered.take(_plain(event))
                    if self.abandoned or time.monotonic() > self.deadline:
                        raise ModelUnavailable(f"the answer took longer than {self.seconds:g} s", billed=True)
            return gathered.reply()


def _client(settings: ModelSettings, seconds: float) -> Anthropic:
    import anthropic
    import httpx2

    timeout = httpx2.Timeout(min(seconds, WAITING_FOR_BYTES) if settings.streaming else seconds)
    key = settings.api_key or (None if settings.auth_token else "none")  # local servers ask for none
    return anthropic.Anthropic(
        api_key=None if settings.auth_token else key,
        auth_token=settings.auth_token or None,
        base_url=settings.base_url,
        timeout=timeout,
        max_retries=0,
        http_client=httpx2.Client(
            timeout=timeout, follow_redirects=False, trust_env=settings.uses_proxies, verify=_certificates()
        ),
    )


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: that takes longer than all else here."""
    import httpx2

    return httpx2.create_ssl_context()


def _arguments(question: Question, settings: ModelSettings) -> dict[str, Any]:
    """The request. The system text and the tool come first and are the same for all questions of an operation, so that
    a server which caches finds them."""
    arguments: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": question.max_tokens or settings.max_tokens,
        "messages": [{"role": each.role, "content": each.text} for each in question.messages],
    }
    if question.system:
        block: dict[str, Any] = {"type": "text", "text": question.system}
        if settings.knows_everything:
            block["cache_control"] = {"type": "ephemeral"}
        arguments["system"] = [block]
    if question.tool is not None:
        tool: dict[str, Any] = {
            "name": question.tool.name,
            "description": question.tool.description,
            "input_schema": dict(question.tool.schema),
        }
        if settings.knows_everything and _may_be_strict(question.tool.schema):
            tool["strict"] = True
        arguments["tools"] = [tool]
        arguments["tool_choice"] = {"type": "tool", "name": question.tool.name}
    return arguments


def _may_be_strict(schema: Any) -> bool:
    """Whether the service can hold a model to it: objects with no other keys, and nothing that it does not know."""
    if isinstance(schema, list):
        return all(map(_may_be_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    if NOT_STRICT & schema.keys():
        return False
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        return False
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    return all(map(_may_be_strict, [*inner, *(schema[each] for each in ("items", "anyOf", "allOf") if each in schema)]))


# What comes back.


def _plain(found: Any) -> Any:
    """A part of the package's as JSON values. It may be anything: what is sent is not checked there."""
    if hasattr(found, "to_dict"):
        return found.to_dict()
    return found


class Gathered:
    """A streamed reply, put together from its events: whole, or an error."""

    def __init__(self) -> None:
        self._message: JsonObject | None = None
        self._open: dict[int, dict[str, Any]] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] = {}
        self._stop: str | None = None
        self._ended = False
        self._size = 0

    def take(self, event: Any) -> None:
        """Take the next event in. Raises BadAnswer for one that cannot be there."""
        if not isinstance(event, Mapping):
            raise BadAnswer("the model's server sent an event that is none")
        try:
            self._take(event)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadAnswer(f"the model's server sent an event {event.get('type')!r} of the wrong shape") from error
        if self._size > LARGEST_ANSWER:
            raise BadAnswer("the answer is longer than any model's")

    def _take(self, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._message = event["message"]
                self._usage |= _counts(event["message"].get("usage"))
            case "content_block_start":
                self._open[event["index"]] = {**event["content_block"], "pieces": []}
            case "content_block_delta":
                piece = event["delta"].get("text") or event["delta"].get("partial_json") or ""
                self._size += len(piece)
                self._open[event["index"]]["pieces"].append(piece)
            case "content_block_stop":
                self._blocks[event["index"]] = self._open.pop(event["index"])
            case "message_delta":
                self._stop = event["delta"].get("stop_reason")
                self._usage |= _counts(event.get("usage"))
            case "message_stop":
                self._ended = True

    def reply(self) -> Reply:
        """All of it. Raises ModelUnavailable if something is missing: the connection broke off."""
        if self._message is None:
            raise BadAnswer("the model's server sent no message", hint="is its address right? It is to end before /v1")
        if not self._ended or self._open or not self._stop:
            raise ModelUnavailable("the answer was cut off on its way", hint="try again", billed=True)
        content = [_whole(self._blocks[index]) for index in sorted(self._blocks)]
        return reply_of_message({**self._message, "content": content, "stop_reason": self._stop, "usage": self._usage})


def _whole(block: Mapping[str, Any]) -> dict[str, Any]:
    joined = "".join(block["pieces"])
    if block.get("type") == "tool_use":
        return {**block, "input": _parsed(joined) if joined else block.get("input") or {}}
    return {**block, "text": (block.get("text") or "") + joined}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadAnswer("the answer's tool call is no JSON", said=text) from error


def _counts(usage: Any) -> dict[str, Any]:
    return {name: value for name, value in usage.items() if value is not None} if isinstance(usage, Mapping) else {}


def reply_of_message(message: Any) -> Reply:
    """A message of the protocol as a reply. Raises BadAnswer for what is none, whatever it is."""
    where = "is its address right, and does it speak the Messages protocol?"
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        raise BadAnswer("the model's server sent something that is no message", hint=where)
    content, stop = message.get("content"), message.get("stop_reason")
    if not isinstance(content, list) or not all(isinstance(each, Mapping) for each in content):
        raise BadAnswer("the model's server sent a message without content", hint=where)
    texts = [each["text"] for each in content if each.get("type") == "text" and isinstance(each.get("text"), str)]
    calls = tuple((str(each.get("name")), each.get("input")) for each in content if each.get("type") == "tool_use")
    if not isinstance(stop, str):
        raise ModelUnavailable("the answer was cut off on its way", hint="try again", billed=True)
    return Reply("".join(texts), stop, str(message.get("model") or ""), _usage(message.get("usage")), calls)


def _usage(usage: Any) -> Usage | None:
    """None where the server does not say: then what was reserved counts."""
    if not isinstance(usage, Mapping):
        return None
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    counts = [usage.get(name) or 0 for name in names]
    if not all(isinstance(each, int) and each >= 0 for each in counts) or not usage.get("output_tokens"):
        return None
    return Usage(*counts)


# What goes wrong.


def _as_ours(error: BaseException, settings: ModelSettings) -> BaseException:
    """Any error of the package's, or out of it, as one of our tree. Texts of servers are shortened."""
    import anthropic
    import httpx2

    if isinstance(error, ModelError) or not isinstance(error, Exception):
        return error
    if isinstance(error, anthropic.APIStatusError):
        return _of_status(error)
    if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
        return ModelUnavailable("the model's server did not answer in time", billed=True)
    if isinstance(error, anthropic.APIConnectionError):
        place = settings.base_url or "the model's service"
        unsent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
        return ModelUnavailable(
            f"{place} cannot be reached: {error.__cause__ or error}",
            hint="is the server running, and its address right?",
            billed=not unsent,
        )
    if isinstance(error, httpx2.HTTPError | httpx2.StreamError | OSError):
        return ModelUnavailable(f"the connection to the model broke off: {error}", billed=True)
    if isinstance(
        error, anthropic.AnthropicError | ValueError | AssertionError | TypeError | AttributeError | KeyError
    ):
        said = f"{type(error).__name__}: {error}"[:300]
        return BadAnswer(f"the model's server sent what the protocol does not know ({said})")
    return error


def _of_status(error: APIStatusError) -> ModelError:
    said = (error.api_message or error.message or "").strip()[:300]
    status = error.status_code
    if status == 200:  # an event `error` in a stream that had begun well
        if error.type in ("overloaded_error", "rate_limit_error", "api_error", "timeout_error"):
            return ModelUnavailable(
                f"the model's server broke off: {said}", retry_after=_retry_after(error), billed=True
            )
        return BadAnswer(f"the model's server broke off: {said}")
    what = f"the model's server answered {status}{': ' if said else ''}{said}"
    if status in TRANSIENT:
        return ModelUnavailable(what, retry_after=_retry_after(error), billed=status not in UNBILLED)
    hints = {
        401: "are the credentials right?",
        403: "may these credentials use the model?",
        404: "is the model's name right, and the server's address?",
        400: "the server does not take the question as it is",
        413: "the question is too long: name fewer files",
    }
    return ModelRefused(what, hint=hints.get(status, ""))


def _retry_after(error: APIStatusError) -> float | None:
    """The seconds that the server asks to wait for. A date is not heeded: clocks differ."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None

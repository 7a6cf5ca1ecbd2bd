"""The contract between operations and language models: a question goes out, a judged answer comes back, or an error.

An operation makes a `Question` and gets an `Answer`; who answers is a `Provider`, which `ModelSettings` choose and
never the operation. What a provider brings is a `Reply`, and nobody uses one before `answer_of` has judged it: a
reply that was cut off, refused, of the wrong shape or not asked for is an error of the tree (`blocks/errors.py`), never
a shorter answer. An answer is data: nothing in it is ever a command, a path or an address that is followed unjudged.

Adding a provider: fulfil `Provider` and name it in `provider_of`. The offline provider asks nobody: it has a question's
own `rules` answer, where an operation can do something without a model.

Pure, but for reading the environment when it is asked to. Knows neither journal nor budgets
(`blocks/model_session.py`), neither Prefect (`blocks/model_block.py`) nor any client library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from quantum_orchestrator.blocks.errors import BadAnswer, InvalidInput, ModelError, ModelRefused, OfflineCannot

OFFLINE = "offline"
ANTHROPIC = "anthropic"
OLLAMA = "ollama"
DEFAULT_OLLAMA = "http://localhost:11434"
"""Where Ollama listens unless it is told otherwise."""
OVERHEAD_TOKENS = 1_000
"""What a server may add to a question of its own accord, for tools for instance."""
MODEL, BLOCK, PRICES = "QO_MODEL", "QO_MODEL_BLOCK", "QO_MODEL_PRICES"
"""Variables: the model's name, a Model block's, and `input,output` prices of a million tokens."""
CONFIGURE = f"set {MODEL} (and ANTHROPIC_API_KEY or ANTHROPIC_BASE_URL), or name a Model block of Prefect's"

JsonObject = Mapping[str, Any]
Rules = Callable[[], str | JsonObject]
"""Answers a question without a model: a text, or a payload for its tool. Raises OfflineCannot, saying why not."""


# Questions.


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """The shape that an answer must have: `schema` is a JSON Schema (draft 2020-12) of an object."""

    name: str
    description: str
    schema: JsonObject


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. Without a `tool` the answer is text; with one, its payload meets the tool's schema."""

    system: str
    messages: tuple[Message, ...]
    tool: Tool | None = None
    max_tokens: int | None = None
    """Of the answer; the settings' own if it is not given."""
    rules: Rules | None = field(default=None, compare=False, repr=False)
    """How the offline provider answers; None where nothing can be done without a model."""

    @classmethod
    def of(
        cls,
        text: str,
        *,
        system: str = "",
        tool: Tool | None = None,
        max_tokens: int | None = None,
        rules: Rules | None = None,
    ) -> Question:
        """A question of one message."""
        return cls(system, (Message("user", text),), tool, max_tokens, rules)

    def followed_by(self, said: str, wrong: str) -> Question:
        """The same, with what was answered and what is wrong with it."""
        turns = (Message("assistant", said or "(nothing)"), Message("user", wrong))
        return replace(self, messages=(*self.messages, *turns))

    def changed(self, change: Callable[[str], str]) -> Question:
        """With every text that is sent changed; the shape of the answer stays."""
        messages = tuple(Message(each.role, change(each.text)) for each in self.messages)
        return replace(self, system=change(self.system), messages=messages)

    def most_input_tokens(self) -> int:
        """No fewer than it can take: no tokenizer makes more than one token of a byte."""
        texts = [self.system, *(each.text for each in self.messages)]
        if self.tool is not None:
            texts.append(json.dumps([self.tool.name, self.tool.description, self.tool.schema]))
        return sum(len(each.encode(errors="surrogateescape")) for each in texts) + OVERHEAD_TOKENS

    def digest(self, settings: ModelSettings) -> str:
        """The same for the same question to the same model."""
        tool = None if self.tool is None else [self.tool.name, self.tool.description, self.tool.schema]
        turns = [[each.role, each.text] for each in self.messages]
        to = [settings.provider, settings.model, settings.base_url, *([settings.options] if settings.options else [])]
        asked = [*to, self.system, turns, tool, self.max_tokens]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


# Answers.


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that a reply took, as its server counts them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def all_input_tokens(self) -> int:
        """Read from a cache or not."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """What a provider brings: not yet judged. `stop` is why it ended; `calls` are the tools it used, by name."""

    text: str
    stop: str
    model: str
    usage: Usage | None
    calls: tuple[tuple[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "text": self.text,
            "stop": self.stop,
            "model": self.model,
            "calls": [list(each) for each in self.calls],
        }

    @classmethod
    def of_json(cls, value: JsonObject) -> Reply:
        """The inverse of `as_json`; what it took was counted when it came."""
        calls = tuple((str(name), payload) for name, payload in value["calls"])
        return cls(str(value["text"]), str(value["stop"]), str(value["model"]), None, calls)

    @property
    def said(self) -> str:
        """All of it as text."""
        return "\n".join([self.text, *(json.dumps(payload, ensure_ascii=False) for _, payload in self.calls)]).strip()


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that is what was asked for. `money` is what it cost, None where prices are not known."""

    text: str
    payload: JsonObject | None
    provider: str
    model: str
    usage: Usage
    money: float | None = 0.0
    replayed: bool = False
    """It was paid for before, and is from the journal."""

    @property
    def said(self) -> str:
        """All of it as text."""
        return self.text if self.payload is None else json.dumps(self.payload, ensure_ascii=False)


_ENDED = ("end_turn", "stop_sequence", "tool_use")


def answer_of(question: Question, reply: Reply, provider: str) -> Answer:
    """The reply, if it is what was asked for. Raises ModelRefused or BadAnswer."""
    if reply.stop == "refusal":
        raise ModelRefused("the model refused to answer", hint="ask for something else, or another model")
    if reply.stop == "max_tokens":
        raise BadAnswer(
            "the answer was cut off, as it had as many tokens as it may have",
            hint="raise `max_tokens`, or ask for less at once",
            said=reply.said,
        )
    if reply.stop not in _ENDED:
        why = {"model_context_window_exceeded": "question and answer are too long for the model"}
        raise BadAnswer(f"the answer did not come to its end: {why.get(reply.stop, reply.stop or 'it was cut off')}")
    if question.tool is None and reply.calls:
        raise BadAnswer(f"the answer uses {reply.calls[0][0]} where a text was asked for", said=reply.said)
    payload = None if question.tool is None else _payload(question.tool, reply)
    if payload is None and not reply.text.strip():
        raise BadAnswer("the answer is empty")
    return Answer(reply.text, payload, provider, reply.model, reply.usage or Usage())


def _payload(tool: Tool, reply: Reply) -> JsonObject:
    calls = [payload for name, payload in reply.calls if name == tool.name]
    if len(reply.calls) > 1 or (reply.calls and not calls):
        named = ", ".join(name for name, _ in reply.calls)
        raise BadAnswer(f"the answer uses {named} where {tool.name} was asked for, once", said=reply.said)
    payload = calls[0] if calls else _json_in(reply.text)
    if not isinstance(payload, dict):
        raise BadAnswer(f"the answer does not use {tool.name}, and is no JSON object either", said=reply.said)
    wrong = list(schema_problems(tool.schema, payload))
    if wrong:
        raise BadAnswer(f"the answer is not of the shape that was asked for: {'; '.join(wrong)}", said=reply.said)
    return payload


_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)


def _json_in(text: str) -> Any:
    """The JSON that a text is as a whole, in a fence or not: some servers' models know no tools."""
    fenced = _FENCED.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except ValueError:
        return None


MOST_PROBLEMS = 5


def schema_problems(schema: JsonObject, value: Any) -> Iterator[str]:
    """What is wrong with a value, the first few; nothing if it meets the schema."""
    from jsonschema import Draft202012Validator

    for number, error in enumerate(Draft202012Validator(schema).iter_errors(value)):
        if number == MOST_PROBLEMS:
            yield "and more"
            return
        yield f"{error.json_path}: {error.message[:300]}"


# Settings.


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost. Reading from a cache and writing to it cost no more than is said here."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None

    def of(self, usage: Usage) -> float:
        """What a reply has cost."""
        read = self.input if self.cache_read is None else self.cache_read
        write = 1.25 * self.input if self.cache_write is None else self.cache_write
        in_parts = (
            (usage.input_tokens, self.input),
            (usage.output_tokens, self.output),
            (usage.cache_read_tokens, read),
            (usage.cache_write_tokens, write),
        )
        return sum(tokens * price for tokens, price in in_parts) / 1_000_000

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """What so many can cost at most, however they are counted."""
        dearest = max(self.input, 1.25 * self.input if self.cache_write is None else self.cache_write)
        return (input_tokens * dearest + output_tokens * self.output) / 1_000_000


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Who answers, and how they are asked. Times are seconds."""

    provider: str = OFFLINE
    model: str = ""
    base_url: str | None = None
    api_key: str = field(default="", repr=False)
    auth_token: str = field(default="", repr=False)
    prices: Prices | None = None
    max_tokens: int = 8_192
    timeout: float = 300.0
    """For one question, with all tries and the waiting between them."""
    tries: int = 4
    longest_wait: float = 30.0
    """Between two tries, whatever the server asks for."""
    streaming: bool = True
    hosted: bool | None = None
    """Whether the server knows strict tools and prompt caching; None: if it is the provider's own."""
    uses_proxies: bool = True
    options: JsonObject = field(default_factory=dict)
    """What Ollama's own protocol calls so."""

    @property
    def knows_everything(self) -> bool:
        """Whether to ask for what only the provider's own server is known to do."""
        return self.base_url is None if self.hosted is None else self.hosted

    @property
    def secrets(self) -> list[str]:
        """What must not be shown."""
        return [each for each in (self.api_key, self.auth_token) if each]

    def most(self, question: Question) -> tuple[int, int, float | None]:
        """Tokens in and out, and money, that a question can take at most."""
        tokens = question.most_input_tokens(), question.max_tokens or self.max_tokens
        return *tokens, None if self.prices is None else self.prices.most(*tokens)


NO_MODEL = ModelSettings()


def settings_from_environment(environment: Mapping[str, str] | None = None) -> ModelSettings:
    """What the environment says: the offline provider, unless QO_MODEL names a model. Raises InvalidInput."""
    given = os.environ if environment is None else environment
    model = given.get(MODEL, "")
    if model in ("", OFFLINE):
        return NO_MODEL
    return ModelSettings(
        ANTHROPIC,
        model,
        given.get("ANTHROPIC_BASE_URL") or None,
        given.get("ANTHROPIC_API_KEY", ""),
        given.get("ANTHROPIC_AUTH_TOKEN", ""),
        prices=_prices(given.get(PRICES, "")),
    )


def _prices(text: str) -> Prices | None:
    if not text.strip():
        return None
    try:
        given, wanted = (float(each) for each in text.split(","))
    except ValueError as error:
        hint = "write what a million tokens cost, of questions and of answers: 3,15"
        raise InvalidInput(f"{PRICES} is {text!r}", hint=hint) from error
    return Prices(given, wanted)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a step says of who is to answer; what it leaves out is as the machine is configured."""

    provider: str | None = None
    """`offline`, or the name of a Model block."""
    model: str | None = None
    base_url: str | None = None
    protocol: Literal["messages", "ollama"] = "messages"
    options: JsonObject = field(default_factory=dict)

    def of(self, settings: ModelSettings, given_secrets: Mapping[str, str]) -> ModelSettings:
        """The settings with what the step says. An address that a set names never gets the machine's credentials, only
        secrets that the step itself was given."""
        key, token = (given_secrets.get(f"ANTHROPIC_{each}", "") for each in ("API_KEY", "AUTH_TOKEN"))
        if self.protocol == OLLAMA:
            settings = ModelSettings(OLLAMA, "", self.base_url, timeout=settings.timeout, options=self.options)
        elif self.base_url is not None:
            settings = replace(
                settings,
                provider=ANTHROPIC,
                base_url=self.base_url,
                api_key="",
                auth_token="",
                hosted=False,
                uses_proxies=False,
            )
        if key or token:
            settings = replace(settings, api_key=key, auth_token=token)
        return settings if self.model is None else replace(settings, model=self.model)


# Providers.


class CancelTokenLike(Protocol):
    """What `tasks/operation.py` calls CancelToken."""

    @property
    def cancelled(self) -> bool:
        """Whether the end was asked for."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call this at cancellation (at once, if that was before)."""

    def wait(self, seconds: float) -> None:
        """Sleep. Raises Interrupted as soon as the end is asked for."""


class Provider(Protocol):
    """Who answers questions."""

    def prepare(self) -> None:
        """What takes long the first time, on this machine: it is none of the time that a question may take."""

    def reply(self, question: Question, settings: ModelSettings, *, seconds: float, cancel: CancelTokenLike) -> Reply:
        """One try, of so many seconds at most. Thread-safe.

        Raises ModelUnavailable for what may be otherwise the next time, ModelRefused, BadAnswer for what is no reply
        at all, and Interrupted when cancelled.
        """


def provider_of(settings: ModelSettings) -> Provider:
    """Who answers under these settings. Raises InvalidInput for one that nobody knows."""
    if settings.provider == ANTHROPIC:
        from quantum_orchestrator.blocks.anthropic_provider import AnthropicProvider

        return AnthropicProvider()
    if settings.provider == OLLAMA:
        from quantum_orchestrator.blocks.ollama_provider import OllamaProvider

        return OllamaProvider()
    hint = f"known: {ANTHROPIC}, {OLLAMA}, {OFFLINE}"
    raise InvalidInput(f"there is no provider {settings.provider!r}", hint=hint)


def offline_answer(question: Question) -> Answer:
    """What the question's own rules answer, judged like any other. Raises OfflineCannot where there are none."""
    if question.rules is None:
        raise OfflineCannot("this takes a language model, and none is configured", hint=CONFIGURE)
    found = question.rules()
    calls: Sequence[tuple[str, Any]] = ()
    if not isinstance(found, str):
        if question.tool is None:
            raise ModelError("the offline rules gave an object where a text was asked for")
        calls = [(question.tool.name, json.loads(json.dumps(found)))]
    text = found if isinstance(found, str) else ""
    return answer_of(question, Reply(text, "end_turn", "rules", Usage(), tuple(calls)), OFFLINE)

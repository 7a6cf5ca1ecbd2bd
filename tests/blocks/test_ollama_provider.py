"""Ollama's own protocol, over a real socket to a server that speaks it, well and wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import BadAnswer, Interrupted, ModelError, ModelRefused, ModelUnavailable
from quantum_orchestrator.blocks.model import OLLAMA, ModelSettings, Question, Tool, answer_of
from quantum_orchestrator.blocks.ollama_provider import OllamaProvider
from quantum_orchestrator.tasks.operation import CancelToken
from tests.ollama_server import RIGHT, Ollama


@pytest.fixture(scope="module")
def running() -> Iterator[Ollama]:
    made = Ollama()
    yield made
    made.close()


@pytest.fixture
def server(running: Ollama) -> Ollama:
    running.status, running.body, running.asked = 200, json.dumps(RIGHT).encode(), []
    running.answers.set()
    return running


def test_it_asks_for_one_whole_answer_with_the_options_that_are_given(server: Ollama) -> None:
    reply = server.reply(options={"temperature": 0.2})
    assert (reply.text, reply.model, reply.usage.input_tokens, reply.usage.output_tokens) == ("Hello.", "llama", 7, 2)
    request = {"model": "llama", "prompt": "Say hello.", "stream": False, "system": "Be short."}
    assert server.asked == [("/api/generate", {**request, "options": {"temperature": 0.2}})]


@pytest.mark.parametrize("path", ["/", "/api", "/api/"])
def test_the_address_may_be_that_of_the_server_or_of_its_api(server: Ollama, path: str) -> None:
    server.reply(path=path)
    assert server.asked[0][0] == "/api/generate"


def test_a_shape_goes_along_and_its_answer_is_judged(server: Ollama) -> None:
    tool = Tool("answer", "Answer.", {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    question = Question.of("?", tool=tool)
    server.body = json.dumps({**RIGHT, "response": '{"a": 1}'}).encode()
    assert answer_of(question, server.reply(question), OLLAMA).payload == {"a": 1}
    assert server.asked[0][1]["format"] == tool.schema
    server.body = json.dumps({**RIGHT, "response": '{"a": "x"}'}).encode()
    with pytest.raises(BadAnswer):
        answer_of(question, server.reply(question), OLLAMA)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (503, b"busy", ModelUnavailable),
        (404, b'{"error": "model not found"}', ModelRefused),
        (200, b"<html>", BadAnswer),
        (200, b"[]", BadAnswer),
        (200, b'{"done": true}', BadAnswer),
    ],
)
def test_what_is_no_answer_is_an_error(server: Ollama, status: int, body: bytes, error: type[ModelError]) -> None:
    server.status, server.body = status, body
    with pytest.raises(error):
        server.reply()


@pytest.mark.parametrize("ending", [{"done": False}, {"done_reason": "length"}])
def test_an_answer_that_is_not_whole_is_not_taken(server: Ollama, ending: dict[str, Any]) -> None:
    server.body = json.dumps({**RIGHT, **ending}).encode()
    with pytest.raises(BadAnswer):
        answer_of(Question.of("?"), server.reply(), OLLAMA)


def test_a_server_that_is_not_there_or_does_not_answer_is_unavailable(server: Ollama) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        OllamaProvider().reply(
            Question.of("?"), ModelSettings(OLLAMA, "llama", "http://127.0.0.1:1"), seconds=5, cancel=CancelToken()
        )
    server.answers.clear()
    with pytest.raises(ModelUnavailable, match="did not answer within"):
        server.reply(seconds=0.1)


def test_a_cancelled_run_does_not_wait_for_it(server: Ollama) -> None:
    server.answers.clear()
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Interrupted):
        OllamaProvider().reply(Question.of("?"), ModelSettings(OLLAMA, "llama", server.url), seconds=20, cancel=cancel)


def test_what_cannot_be_asked_is_said_at_once() -> None:
    for settings in (ModelSettings(OLLAMA, ""), ModelSettings(OLLAMA, "llama", "ftp://x")):
        with pytest.raises(ModelError):
            OllamaProvider().reply(Question.of("?"), settings, seconds=5, cancel=CancelToken())

"""A language model that says what a test tells it to, behind the real contract: ledger, budgets and exchanges are real.

Only what a server would say is made up here, as a model costs money and never says the same twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.model import CancelTokenLike, ModelSettings, Provider, Question, Reply, Usage
from quantum_orchestrator.blocks.model_session import Ledger, Models
from quantum_orchestrator.flows import attempts
from quantum_orchestrator.tasks.operation import CancelToken

Payload = Mapping[str, Any]


class Replayed:
    """Says one payload after the other, the last one again and again; keeps what it was asked."""

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self.payloads = list(payloads)
        self.asked: list[Question] = []

    def prepare(self) -> None:
        """See model.Provider: there is nothing to prepare."""

    def reply(self, question: Question, settings: ModelSettings, *, seconds: float, cancel: CancelTokenLike) -> Reply:
        """See model.Provider."""
        payload = self.payloads[min(len(self.asked), len(self.payloads) - 1)]
        self.asked.append(question)
        name = question.tool.name if question.tool else ""
        return Reply("", "tool_use", "double-1", Usage(10, 5), ((name, payload),))


class Constant:
    """Says the same of each tool whenever it is asked for it, in any process; of none, a text."""

    def __init__(self, text: str, payloads: Mapping[str, Payload]) -> None:
        self.text = text
        self.payloads = payloads

    def prepare(self) -> None:
        """See model.Provider."""

    def reply(self, question: Question, settings: ModelSettings, *, seconds: float, cancel: CancelTokenLike) -> Reply:
        """See model.Provider."""
        if question.tool is None:
            return Reply(self.text, "end_turn", "double-1", Usage(10, 5))
        name = question.tool.name
        return Reply("", "tool_use", "double-1", Usage(10, 5), ((name, self.payloads[name]),))


DOUBLE = ModelSettings("double", "a-model")


@contextlib.contextmanager
def runs_asking(model: Provider) -> Iterator[None]:
    """Runs of this process ask this one, whatever they are configured for, unless a step wants none."""
    with mock.patch.object(attempts, "Ledger", partial(Ledger, provider=lambda _settings: model)):
        yield


def models_saying(model: Replayed, state: Path) -> tuple[Models, Journal]:
    """What an operation asks through, and the journal that has to be closed."""
    state.mkdir(exist_ok=True)
    journal = Journal(state)
    ledger = Ledger(
        "r1",
        journal.exchanges,
        settings=lambda _block: ModelSettings("double", "a-model"),
        provider=lambda _settings: model,
    )
    return Models(ledger, "step", CancelToken()), journal


def offline_models(state: Path) -> tuple[Models, Journal]:
    """The same where no model is configured."""
    state.mkdir(exist_ok=True)
    journal = Journal(state)
    return Models(
        Ledger("r1", journal.exchanges, settings=lambda _block: ModelSettings()), "step", CancelToken()
    ), journal

"""How a run asks language models: within its budgets, on record, and never twice for the same.

`Models` is what one attempt at one step asks through (`context.models`); all of a run's share a `Ledger`. Each try at
a server is put on record before it is sent, with the most that it can take; that is where budgets are checked, in the
journal's own transaction, so that steps which ask at once cannot break one together: where only what others have
reserved stands in the way, a step waits for them. An answer is durable before anybody sees it; in a later process the
same question in the same step gets it from the journal.

What leaves for a model is masked as everything else that leaves: secrets of the run never do. Knows neither operations
nor Prefect, and no provider in particular.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from quantum_orchestrator.blocks.budget import Budget, broken_by, seconds_left
from quantum_orchestrator.blocks.errors import BadAnswer, BudgetExceeded, ModelUnavailable
from quantum_orchestrator.blocks.exchanges import Exchange, Exchanges, ExchangeState, spent_in
from quantum_orchestrator.blocks.model import (
    OFFLINE,
    Answer,
    CancelTokenLike,
    Choice,
    ModelSettings,
    Provider,
    Question,
    Reply,
    answer_of,
    offline_answer,
    provider_of,
    settings_from_environment,
)
from quantum_orchestrator.blocks.redaction import Redactor
from quantum_orchestrator.blocks.spent import Spent

T = TypeVar("T")

ROUNDS = 3
"""How often a question is asked whose answer cannot be used, with what is wrong with it."""
LONGEST_SAID = 20_000
"""Characters of an answer that go back with what is wrong with it."""
FIRST_WAIT = 0.5
"""Seconds before a second try where the server does not say; each further one takes twice as long."""
OTHERS_SECONDS = 0.05
"""How often a step looks whether what others have reserved has become free."""


def configured(_block: str | None) -> ModelSettings:
    """Who answers where no Prefect is at hand: as the environment says. A block's name needs `RunSettings.models`."""
    return settings_from_environment()


NO_CHOICE = Choice()


@dataclass(frozen=True, slots=True)
class Scope:
    """A budget, whose it is in words, and which steps' exchanges count: those whose id begins so."""

    words: str
    prefix: str
    budget: Budget


class Ledger:
    """What one run asks and has asked. Any number of threads may use one object at once."""

    def __init__(
        self,
        run_id: str,
        exchanges: Exchanges,
        *,
        settings: Callable[[str | None], ModelSettings] = configured,
        redactor: Redactor | None = None,
        provider: Callable[[ModelSettings], Provider] = provider_of,
    ) -> None:
        """`settings` are those of a Model block by its name, or the usual ones."""
        self.run_id = run_id
        self.exchanges = exchanges
        self.redactor = redactor or Redactor()
        self.provider = provider
        self._settings = settings
        self._known: dict[str | None, ModelSettings] = {}
        self.at_work: set[tuple[str, int]] = set()
        """Exchanges of this process that have not ended."""

    def settings(self, choice: Choice, secrets: Mapping[str, str]) -> ModelSettings:
        """Who answers a step that chooses so, and was given these secrets."""
        if choice.provider == OFFLINE:
            return ModelSettings()
        name = choice.provider
        if name not in self._known:
            self._known[name] = self._settings(name)
        settings = choice.of(self._known[name], secrets)
        self.redactor.add(settings.secrets)
        return settings


class _Occupied(Exception):
    """Only what other steps have reserved stands in the way."""


@dataclass(slots=True)
class Models:
    """What one attempt at a step asks through. Not for several threads at once."""

    ledger: Ledger
    step_id: str
    cancel: CancelTokenLike
    scopes: Sequence[Scope] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    log: Callable[[str], None] = lambda _line: None
    choice: Choice = NO_CHOICE
    _asked: Counter[str] = field(default_factory=Counter)

    def using(self, choice: Choice, budget: Budget | None = None) -> Models:
        """The same, asking as a step's parameters say."""
        own = [Scope("the step's budget", self.step_id, budget)] if budget is not None else []
        return replace(self, choice=choice, scopes=[*self.scopes, *own])

    @property
    def is_offline(self) -> bool:
        """Whether rules answer, as no model is configured or the step wants none."""
        return self.ledger.settings(self.choice, self.secrets).provider == OFFLINE

    def ask(self, question: Question) -> Answer:
        """The answer. Raises an error of the tree below ModelError, Interrupted when cancelled.

        What this step has been answered before, in an attempt that was cut short, it is not asked again.
        """
        settings = self.ledger.settings(self.choice, self.secrets)
        if settings.provider == OFFLINE:
            return offline_answer(question)
        question = question.changed(self.ledger.redactor.text)
        digest = question.digest(settings)
        place = self._asked[digest]
        self._asked[digest] += 1
        known = self.ledger.exchanges.answers(self.ledger.run_id, self.step_id, digest)[place:]
        if known and known[0].answer is not None:
            self.log("this was answered before the run was cut short, and is not asked again")
            found, reply = known[0].spent, Reply.of_json(known[0].answer)
            return replace(answer_of(question, reply, settings.provider), money=found.money, replayed=True)
        return self._asked_for(question, settings, digest)

    def converse(self, question: Question, accept: Callable[[Answer], T], *, rounds: int = ROUNDS) -> T:
        """What `accept` makes of the answer. Where that, or the answer's shape, is a BadAnswer, the model is told what
        is wrong and asked again, so many times in all; the last error is raised."""
        for number in itertools.count(1):
            said = ""
            try:
                answer = self.ask(question)
                said = answer.said
                return accept(answer)
            except BadAnswer as wrong:
                said = said or wrong.said
                if number >= rounds or not said or self.is_offline:
                    raise
                self.log(f"round {number}: {wrong.message}")
                question = question.followed_by(
                    said[:LONGEST_SAID], f"This cannot be used: {wrong.message}\nAnswer again, in the same form."
                )
        raise AssertionError

    def _asked_for(self, question: Question, settings: ModelSettings, digest: str) -> Answer:
        """Ask, again after what may pass, until the time that one question may take is over."""
        provider = self.ledger.provider(settings)
        provider.prepare()
        patience = settings.timeout if self.timeout is None else min(settings.timeout, self.timeout)
        deadline = time.monotonic() + patience
        for number in itertools.count(1):
            try:
                return self._try(provider, question, settings, digest, deadline)
            except ModelUnavailable as problem:
                usual = FIRST_WAIT * 2 ** (number - 1)
                wait = min(usual if problem.retry_after is None else problem.retry_after, settings.longest_wait)
                if number >= settings.tries or time.monotonic() + wait >= deadline:
                    raise
                self.log(f"{problem.message}; try {number + 1} of {settings.tries} in {wait:g} s")
                self.cancel.wait(wait)
        raise AssertionError

    def _try(
        self, provider: Provider, question: Question, settings: ModelSettings, digest: str, deadline: float
    ) -> Answer:
        ledger = self.ledger
        number, reserved = self._reserved(question, settings, digest, deadline)
        began, state, spent = time.monotonic(), ExchangeState.LOST, None
        answer, reply = None, None
        try:
            came = provider.reply(question, settings, seconds=reserved.seconds, cancel=self.cancel)
            masked = Reply.of_json(ledger.redactor.value(came.as_json()))
            reply = replace(masked, usage=came.usage)
            state, answer = ExchangeState.ANSWERED, reply.as_json()
        except ModelUnavailable as problem:
            state = ExchangeState.LOST if problem.billed else ExchangeState.FAILED
            raise
        finally:
            spent = _spent(state, reply, settings, reserved, time.monotonic() - began)
            ledger.exchanges.end(ledger.run_id, self.step_id, number, state, spent, answer)
            ledger.at_work.discard((self.step_id, number))
        return replace(answer_of(question, reply, settings.provider), money=spent.money)

    def _reserved(self, question: Question, settings: ModelSettings, digest: str, deadline: float) -> tuple[int, Spent]:
        """Put on record that a try begins; its number, and the most that it may take. Waits for what others have
        reserved. Raises BudgetExceeded."""
        most: list[Spent] = []

        def reserve(known: Sequence[Exchange]) -> Spent:
            most[:] = [self._most(known, question, settings, deadline - time.monotonic())]
            return most[0]

        while True:
            self.cancel.wait(0)
            try:
                number = self.ledger.exchanges.ask(self.ledger.run_id, self.step_id, digest, reserve)
            except _Occupied:
                if time.monotonic() >= deadline:
                    raise ModelUnavailable("other steps hold what is left of the budget") from None
                self.cancel.wait(OTHERS_SECONDS)
            else:
                self.ledger.at_work.add((self.step_id, number))
                return number, most[0]

    def _most(self, known: Sequence[Exchange], question: Question, settings: ModelSettings, seconds: float) -> Spent:
        """What the try may take at most, if every budget has room for it."""
        counted = [(scope, [each for each in known if _counts(scope, each.step)]) for scope in self.scopes]
        left = [seconds_left(scope.budget, spent_in(found)) for scope, found in counted]
        seconds = min([seconds, *(each for each in left if each is not None)])
        tokens_in, tokens_out, money = settings.most(question)
        more = Spent(1, 1, tokens_in, tokens_out, money, max(seconds, 0.001))
        for scope, found in counted:
            broken = broken_by(scope.budget, spent_in(found), more)
            if broken is None:
                continue
            ended = [each for each in found if (each.step, each.number) not in self.ledger.at_work]
            if broken_by(scope.budget, spent_in(ended), replace(more, seconds=0.001)) is None:
                raise _Occupied
            raise BudgetExceeded(
                f"{scope.words} of {broken}", hint="nothing was asked; raise the budget, or ask for less"
            )
        return more


def _counts(scope: Scope, step_id: str) -> bool:
    return (
        step_id.startswith(scope.prefix)
        if scope.prefix.endswith("/") or not scope.prefix
        else (step_id == scope.prefix)
    )


def _spent(
    state: ExchangeState, reply: Reply | None, settings: ModelSettings, reserved: Spent, seconds: float
) -> Spent:
    """What a try has taken; what nobody says counts as it was reserved."""
    if state is ExchangeState.FAILED:
        return Spent(0, 1, seconds=seconds)
    if reply is None or reply.usage is None:
        return replace(reserved, seconds=seconds)
    usage = reply.usage
    money = None if settings.prices is None else settings.prices.of(usage)
    return Spent(1, 1, usage.all_input_tokens, usage.output_tokens, money, seconds)

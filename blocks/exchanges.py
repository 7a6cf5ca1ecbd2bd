"""Exchanges with language models, on record: an answer that was paid for once is never paid for twice.

One row for each try at a model's server, in the journal's database:

    asking    written, durably, before anything is sent, with the most that it may take
    answered  with the answer and what it took; durable before the answer is used
    lost      it may have been billed, and its answer did not arrive: what was reserved counts as spent
    failed    it was certainly not billed

Whoever asks the same in the same step again, in another process after a crash, gets the answer that is here. An answer
is *used* once the attempt that got it has failed with it: then asking again is what a retry is for. A row whose process
died stays `asking`, and counts as if it had taken all that it could: a budget holds over any crash.

Rows end in a checksum, as all of the journal's do, so that no damaged answer is believed. Knows neither models nor
operations, and of a question only its digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quantum_orchestrator.blocks.database import AMONG, EXCHANGES, Database, Row, Transaction
from quantum_orchestrator.blocks.spent import Spent


class ExchangeState(StrEnum):
    """How far an exchange has come."""

    ASKING = "asking"
    ANSWERED = "answered"
    LOST = "lost"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One row of `exchanges`. `number` counts within the step."""

    step: str
    number: int
    request: str
    """The digest of what was asked, of whom."""
    state: ExchangeState
    used: bool
    spent: Spent
    answer: Mapping[str, Any] | None = None


class Exchanges:
    """The exchanges of all runs in one workspace. Any number of threads may use one object at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, run_id: str, step_id: str, request: str, reserve: Callable[[Sequence[Exchange]], Spent]) -> int:
        """Put on record, durably, that a model is about to be asked; the exchange's number.

        `reserve` gets all exchanges of the run so far, those of other threads too, and says what this one may take at
        most; what it raises is raised, and nothing is on record.
        """

        def work(transaction: Transaction) -> int:
            known = [_exchange(row) for row in transaction.select(EXCHANGES, "run = ?", run_id)]
            most = reserve(known)
            number = 1 + max((each.number for each in known if each.step == step_id), default=0)
            row = (run_id, step_id, number, request, ExchangeState.ASKING.value, 0, *_columns(most), None)
            transaction.put(EXCHANGES, row)
            return number

        return self._database.write(work)

    def end(
        self,
        run_id: str,
        step_id: str,
        number: int,
        state: ExchangeState,
        spent: Spent | None,
        answer: Mapping[str, Any] | None = None,
    ) -> None:
        """Put on record, durably, what has become of an exchange. Without `spent`, what was reserved counts."""
        changes: dict[str, Any] = {"state": state.value}
        if spent is not None:
            names = ("input_tokens", "output_tokens", "money", "seconds")
            changes |= dict(zip(names, _columns(spent), strict=True))
        if answer is not None:
            changes["answer"] = json.dumps(answer)
        where = "run = ? AND step = ? AND number = ?"
        self._database.write(lambda each: each.change(EXCHANGES, changes, where, run_id, step_id, number))

    def answers(self, run_id: str, step_id: str, request: str) -> list[Exchange]:
        """The answers to this question that the step has got and not used, the oldest first."""
        where = "run = ? AND step = ? AND request = ? AND state = 'answered' AND used = 0 ORDER BY number"
        return [_exchange(row) for row in self._database.select(EXCHANGES, where, run_id, step_id, request)]

    def use_up(self, run_id: str, step_ids: Iterable[str]) -> None:
        """An attempt at these steps has failed with the answers that it got: the next one asks anew."""
        chosen = json.dumps(list(step_ids))
        where = f"run = ? AND used = 0 AND step {AMONG}"
        if self._database.read(f"SELECT 1 FROM exchanges WHERE {where} LIMIT 1", run_id, chosen):  # noqa: S608 - our own
            self._database.write(lambda each: each.change(EXCHANGES, {"used": 1}, where, run_id, chosen))

    def of(self, run_id: str) -> list[Exchange]:
        """All exchanges of a run."""
        rows = self._database.select(EXCHANGES, "run = ? ORDER BY step, number", run_id)
        return [_exchange(row) for row in rows]


def spent_in(exchanges: Iterable[Exchange]) -> Spent:
    """What they have taken together, or may have."""
    return Spent.sum_of(each.spent for each in exchanges)


def _columns(spent: Spent) -> tuple[int, int, float | None, float]:
    return spent.input_tokens, spent.output_tokens, spent.money, spent.seconds


def _exchange(row: Row) -> Exchange:
    _, step, number, request, state, used, input_tokens, output_tokens, money, seconds, answer = row
    found = ExchangeState(state)
    calls = int(found is not ExchangeState.FAILED)
    spent = Spent(calls, 1, input_tokens, output_tokens, money, seconds)
    return Exchange(step, number, request, found, bool(used), spent, json.loads(answer) if answer else None)

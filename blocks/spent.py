"""What questions to language models have taken: numbers that add up.

The journal keeps them, and any Python must be able to execute the journal's modules: the standard library alone is
needed here. What may be spent is in `blocks/budget.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """What questions have taken, or may take at most. `money` is None where prices are not known."""

    calls: int = 0
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float | None = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Of questions and answers."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Spent) -> Spent:
        money = None if self.money is None or other.money is None else self.money + other.money
        return Spent(
            self.calls + other.calls,
            self.attempts + other.attempts,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            money,
            self.seconds + other.seconds,
        )

    @classmethod
    def sum_of(cls, several: Iterable[Spent]) -> Spent:
        """All of them together."""
        total = cls()
        for each in several:
            total += each
        return total

    def as_json(self) -> dict[str, int | float | None]:
        """For a run's document."""
        return {
            "calls": self.calls,
            "attempts": self.attempts,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "money": None if self.money is None else round(self.money, 6),
            "seconds": round(self.seconds, 3),
        }

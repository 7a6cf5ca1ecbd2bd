"""Budgets of what language models may be asked: calls, tokens, money, attempts and time.

A budget is checked before each try at a model's server, with the most that the try can take: what is refused has cost
nothing, and what is admitted cannot break it. Pure arithmetic: what was spent is in the journal
(`blocks/exchanges.py`), who asks is `blocks/model_session.py`'s matter.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from quantum_orchestrator.blocks.durations import Duration
from quantum_orchestrator.blocks.spent import Spent

_Count = Annotated[int, Field(ge=0)]


class Budget(BaseModel):
    """The most that questions to language models may take; what is left out is not limited here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    calls: _Count | None = Field(default=None, description="How many questions may be answered")
    tokens: _Count | None = Field(default=None, description="Tokens of all questions and answers together")
    money: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="What they may cost, in the currency of the model's prices; these must be known"
    )
    attempts: _Count | None = Field(
        default=None, description="How often a model's server may be asked, those tries included that fail"
    )
    time: Duration | None = Field(default=None, description='Time spent waiting for answers: seconds, or "10m"')


def broken_by(budget: Budget, spent: Spent, more: Spent) -> str | None:
    """Which limit so much more could break, in words; None if there is room for it."""
    after = spent + more
    counted = (
        ("calls", budget.calls, spent.calls, after.calls),
        ("attempts", budget.attempts, spent.attempts, after.attempts),
        ("tokens", budget.tokens, spent.tokens, after.tokens),
        ("seconds", budget.time, spent.seconds, after.seconds),
    )
    for name, limit, before, then in counted:
        if limit is not None and then > limit:
            return f"{limit:g} {name}: {before:g} are spent, and this may take {then - before:g} more"
    if budget.money is None:
        return None
    if more.money is None:
        return f"{budget.money:g} in money: what the model costs is not known"
    if spent.money is None:
        return f"{budget.money:g} in money: what earlier answers have cost is not known"
    if spent.money + more.money > budget.money:
        return f"{budget.money:g} in money: {spent.money:.4f} is spent, and this may cost {more.money:.4f} more"
    return None


def seconds_left(budget: Budget, spent: Spent) -> float | None:
    """The time that is left of a budget; None if it has no limit."""
    return None if budget.time is None else budget.time - spent.seconds

"""What a plan promised against what its run did: path by path, and whether that could have been known.

A path is as predicted when it went from the predicted state to the predicted state. Everything else is told with the
steps that touched it; where one of them was deferred in the plan, the plan had said that only the run could tell, and
the difference does not count. Pure: it sees two lists and a record of who changed what.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quantum_orchestrator.blocks.diff_json import changes_json
from quantum_orchestrator.blocks.tree import Change
from quantum_orchestrator.flows.books import owners

Side = Mapping[str, str] | None
"""One side of a change as the public JSON has it."""


class Outcome(StrEnum):
    """What became of a path. The values are those of the public JSON."""

    AS_PREDICTED = "as_predicted"
    DIFFERENT = "different"
    NOT_PREDICTED = "not_predicted"
    DID_NOT_HAPPEN = "did_not_happen"


@dataclass(frozen=True, slots=True)
class Compared:
    """One path. `how` says what differs, `steps` which steps have touched it, `deferred` whether one of them was
    deferred in the plan."""

    path: str
    outcome: Outcome
    how: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    deferred: bool = False

    @property
    def is_fine(self) -> bool:
        """Whether it is as the plan said, or the plan had said that it could not tell."""
        return self.outcome is Outcome.AS_PREDICTED or self.deferred

    def as_json(self) -> dict[str, Any]:
        """The path as the public JSON gives it."""
        return {
            "path": self.path,
            "outcome": self.outcome.value,
            "how": list(self.how),
            "steps": list(self.steps),
            "deferred": self.deferred,
        }


def compare(
    predicted: Mapping[str, Any], actual: Iterable[Change], touched: Mapping[str, Iterable[str]]
) -> list[Compared]:
    """Every path that the plan or the run has, in order.

    `predicted` is what `plan_file.predicted_json` gives; `touched` are the steps that changed each path.
    """
    promised = {change["path"]: change for change in predicted["changes"]}
    done = {change["path"]: change for change in changes_json(actual)}
    deferred = set(predicted["deferred"])
    compared = []
    for path in sorted(promised.keys() | done.keys()):
        steps = tuple(dict.fromkeys(touched.get(path, ())))
        outcome, how = _outcome(promised.get(path), done.get(path))
        compared.append(
            Compared(path, outcome, how, steps, any(not deferred.isdisjoint(owners(step)) for step in steps))
        )
    return compared


def _outcome(promised: Mapping[str, Any] | None, done: Mapping[str, Any] | None) -> tuple[Outcome, tuple[str, ...]]:
    if promised is None:
        return Outcome.NOT_PREDICTED, ()
    if done is None:
        return Outcome.DID_NOT_HAPPEN, ()
    how = _differences(promised["after"], done["after"])
    if promised["before"] != done["before"]:
        how = (*how, "it was not as the plan saw it")
    return (Outcome.DIFFERENT, how) if how else (Outcome.AS_PREDICTED, ())


def _differences(promised: Side, done: Side) -> tuple[str, ...]:
    if promised == done:
        return ()
    if promised is None or done is None:
        return ("is there" if done is not None else "is gone",)
    if promised["kind"] != done["kind"]:
        return (f"is a {done['kind']}, not a {promised['kind']}",)
    names = {"sha256": "content", "target": "target"}
    how = [f"another {name}" for key, name in names.items() if promised[key] != done[key]]
    if promised["mode"] != done["mode"]:
        how.append(f"mode {done['mode']}, not {promised['mode']}")
    return tuple(how)

"""What the policy says of each step of a set: for `qo policy test`, and for whoever is about to plan or run it.

The judge has said what it could of the document; here inputs have their values, and lists are steps. What only a run
can tell (the changes of a script) is judged when it is known, by the same `flows/guard.py`. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.flows.document import Trust
from quantum_orchestrator.flows.faults import Fault, InvalidSet
from quantum_orchestrator.flows.guard import Finding, Guards
from quantum_orchestrator.flows.plan import Graph, Step, partial_parameters, values_of
from quantum_orchestrator.tasks import registry

if TYPE_CHECKING:  # `qo validate` needs no dry run
    from quantum_orchestrator.flows.prediction import Prediction

CALL = "call"


class Decision(StrEnum):
    """What the policy says of a step."""

    ALLOWED = "allowed"
    NEEDS_APPROVAL = "needs_approval"
    REFUSED = "refused"


@dataclass(slots=True)
class Verdict:
    """The decision about one step. `reasons` are what is refused or asked for, each with the setting that decides."""

    id: str
    op: str
    trust: Trust
    decision: Decision = Decision.ALLOWED
    reasons: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """As `qo policy test --json` prints it."""
        return {
            "id": self.id,
            "op": self.op,
            "trust": self.trust.value,
            "decision": self.decision.value,
            "reasons": [{"message": message, "decided_by": by} for message, by in self.reasons],
            "note": self.note,
        }


def refuse(graph: Graph, policy: Policy, file: str) -> None:
    """Raises InvalidSet with all that the policy refuses of the steps, as far as it is known before they run."""
    guards = Guards(policy)
    faults = [
        Fault(file, 0, 0, "", f"step {step.id}: {finding.error.message}", finding.error.hint)
        for step in graph.steps
        for finding in _findings(step, guards)
    ]
    if faults:
        raise InvalidSet(faults, by_policy=True)


def verdicts(graph: Graph, policy: Policy, prediction: Prediction | None = None) -> list[Verdict]:
    """The verdict on every step, in their order; with a dry run, also on what each would change."""
    guards = Guards(policy)
    predicted = {} if prediction is None else {each.id: each for each in prediction.steps}
    found = []
    for step in graph.steps:
        trust = step.scope.document.trust
        verdict = Verdict(step.id, step.instruction.op, trust)
        verdict.reasons = [(each.error.message, each.error.hint) for each in _findings(step, guards)]
        foreseen = predicted.get(step.id)
        if verdict.reasons:
            verdict.decision = Decision.REFUSED
        elif foreseen is not None and foreseen.refused:
            verdict.decision, verdict.reasons = Decision.REFUSED, [(foreseen.reason, foreseen.refused)]
        elif foreseen is not None and foreseen.approval:
            verdict.decision, verdict.reasons = Decision.NEEDS_APPROVAL, [(foreseen.approval, "")]
        if foreseen is not None and foreseen.status == "deferred" and not guards.of(trust).idle:
            verdict.note = "what it changes is judged when it is known"
        found.append(verdict)
    return found


def _findings(step: Step, guards: Guards) -> Iterator[Finding]:
    guard = guards.of(step.scope.document.trust)
    if guard.idle or step.instruction.op == CALL:
        return
    operation = registry.get(step.instruction.op)
    yield from guard.findings(operation, partial_parameters(operation, step.instruction, values_of(step)))


def counts(found: list[Verdict]) -> Mapping[str, int]:
    """How many steps have which decision."""
    return {each.value: sum(verdict.decision is each for verdict in found) for each in Decision}

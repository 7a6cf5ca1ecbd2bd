"""Which budgets hold for a step that asks a language model: the machine's, the set's, and those of the sets around it.

Each counts what all steps below it have taken: the whole run's for the set itself and the machine, those of one call
for a called set. Pure: documents in, budgets out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quantum_orchestrator.blocks.budget import Budget
from quantum_orchestrator.blocks.model_session import Scope
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.flows.document import ErrorHandler, Instruction, InstructionSet
from quantum_orchestrator.flows.references import CALL


def scopes_of(step_id: str, document: InstructionSet, policy: Policy) -> list[Scope]:
    """Every budget that a question of this step counts for, of the whole run's first."""
    most = Budget(
        calls=policy.limits_model_calls or None,
        tokens=policy.limits_model_tokens or None,
        money=float(policy.limits_model_cost) or None,
    )
    return [Scope("the machine's limit ([limits] in policy.toml)", "", most), *_of_sets(step_id, document)]


def _of_sets(step_id: str, document: InstructionSet) -> Iterator[Scope]:
    if document.budget is not None:
        yield Scope(f"the budget of {document.name!r}", "", document.budget)
    instructions: Iterable[Instruction] = document.instructions
    prefix, found = "", None
    for part in step_id.split("/")[:-1]:
        prefix += f"{part}/"
        if part == "on_error" and found is not None and isinstance(found.on_error, ErrorHandler):
            instructions = found.on_error.run
            continue
        found = next((each for each in instructions if each.id == part.partition("[")[0]), None)
        if found is None:
            return
        if found.op == CALL:
            called = InstructionSet.model_validate(found.parameters["set"])
            instructions = called.instructions
            if called.budget is not None:
                yield Scope(f"the budget of {called.name!r}", prefix, called.budget)

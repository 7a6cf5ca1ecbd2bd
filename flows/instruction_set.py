"""Instruction sets: from what users write to a model that is ready to run.

Loading judges a whole document before anything runs and reports every fault at once, each with its place. What leaves
this module is valid: the sets that it calls are read in and stand in it (`with.set`), and `trust` is what it deserves,
not what it claims. The model is in `flows/document.py`, the judgement in `flows/judge.py`.
"""

from __future__ import annotations

from pathlib import Path

from quantum_orchestrator.blocks.durations import Duration
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.flows import expressions, judge, reading
from quantum_orchestrator.flows.document import (
    ErrorHandler,
    Instruction,
    InstructionSet,
    OnFailure,
    Order,
    RollbackTo,
    Trust,
)
from quantum_orchestrator.flows.faults import Fault, FaultJson, InvalidSet
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.references import CALL

STDIN = "<stdin>"


def load(
    document: bytes,
    *,
    file: str = STDIN,
    folder: Path | None = None,
    trust: Trust = Trust.TRUSTED,
    policy: Policy | None = None,
) -> InstructionSet:
    """The instruction set in a document. Raises InvalidSet with every fault, and with all that the policy refuses.

    `file` is what faults name. `folder` is where the files are that the set calls: the folder of the set itself, None
    when it came without one. `trust` is the most that the source deserves; a document may claim less, never more.
    """
    raw, faults = reading.parse(document, file)
    path = folder / Path(file).name if folder is not None and file != STDIN else None
    return judge.judge(raw, faults, folder, trust, path, policy)


def load_object(
    value: object,
    *,
    file: str = "<object>",
    folder: Path | None = None,
    trust: Trust = Trust.TRUSTED,
    policy: Policy | None = None,
) -> InstructionSet:
    """The same for a document that was parsed elsewhere; its faults have pointers, and no lines."""
    raw, faults = reading.plain_object(value, file)
    return judge.judge(raw, faults, folder, trust, None, policy)


def called_set(instruction: Instruction) -> InstructionSet:
    """The set that a `call` of a loaded set runs."""
    return InstructionSet.model_validate(instruction.parameters["set"])


def dependencies(instruction: Instruction) -> frozenset[str]:
    """The ids that an instruction of a loaded set waits for: its `needs`, and the steps that its expressions name.

    What the instructions in it (`on_error`, `undo`) refer to counts too, but not those instructions themselves.
    """
    if names_nothing(instruction):
        return frozenset(instruction.needs)
    parameters = instruction.parameters
    if instruction.op == CALL:
        parameters = {"inputs": parameters.get("inputs", {})}  # the called set's expressions name its own steps
    own = expressions.references([parameters, instruction.when, instruction.for_each]).steps
    return own.union(instruction.needs, _inner_dependencies(instruction))


def names_nothing(instruction: Instruction) -> bool:
    """Whether it is plain to see that the instruction refers to no step but those that it needs."""
    return (
        instruction.when is None
        and instruction.for_each is None
        and instruction.undo is None
        and isinstance(instruction.on_error, str)
        and (getattr(instruction, "literal", None) is not None or expressions.is_literal(instruction.parameters))
    )


def _inner_dependencies(instruction: Instruction) -> frozenset[str]:
    inner = list(instruction.on_error.run) if isinstance(instruction.on_error, ErrorHandler) else []
    found: frozenset[str] = frozenset()
    for group in (inner, [instruction.undo] if instruction.undo else []):
        named = frozenset[str]().union(*(dependencies(each) for each in group))
        found |= named - {each.id for each in group}
    return found - {instruction.id}


__all__ = [
    "STDIN",
    "Duration",
    "ErrorHandler",
    "Fault",
    "FaultJson",
    "Instruction",
    "InstructionSet",
    "InvalidSet",
    "OnFailure",
    "Order",
    "RollbackTo",
    "Trust",
    "called_set",
    "dependencies",
    "load",
    "load_object",
    "names_nothing",
    "resolve_inputs",
]

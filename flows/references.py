"""Judges the expressions of instructions: their spelling, and whether all that they name is there.

An expression may name the steps of its list and of those around it, the set's inputs and env, the outputs that an
operation says it has, and `item` inside of a list. Whatever is not there is told with the nearest thing that is.
Evaluates nothing, and knows nothing of called sets: their expressions are their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantum_orchestrator.flows import expressions
from quantum_orchestrator.flows.expressions import STEP_FIELDS, Expression, ExpressionError, Names
from quantum_orchestrator.flows.faults import Faults, child_pointer, described, shown
from quantum_orchestrator.flows.reading import Raw
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import AnyOperation

CALL = "call"
EVALUATED = ("with", "when", "for_each")
"""The keys of an instruction whose expressions are evaluated. `reads` and `writes` must be known before."""


@dataclass(frozen=True, slots=True)
class Visible:
    """What instructions of one list may refer to."""

    steps: Mapping[str, Raw]
    inputs: frozenset[str]
    env: frozenset[str]
    secrets: frozenset[str]
    item: bool = False


class References:
    """Judges what instructions refer to; `operations` are those that are known by now, by name."""

    def __init__(self, faults: Faults, operations: Mapping[str, AnyOperation | None]) -> None:
        self._faults = faults
        self._operations = operations

    def judge(self, raw: Raw, pointer: str, visible: Visible) -> set[str]:
        """Judge an instruction's expressions. Gives the ids of the steps that they refer to."""
        found: set[str] = set()
        for key, value in evaluated(raw):
            place = f"{pointer}/{key}"
            item = visible.item or (raw.get("for_each") is not None and key != "for_each")
            for inner, text in _texts_at(value, place):
                found |= self._text(text, inner, replace(visible, item=item))
            if key != "with" and isinstance(value, str):
                self._must_be_lone(value, place)
        return found

    def _must_be_lone(self, text: str, pointer: str) -> None:
        parts = [part for _, part in expressions.find(text)]
        looks_lone = text.startswith("${{") and text.endswith("}}")  # if not, its shape is a fault already
        if looks_lone and len(parts) > 1 and not any(isinstance(each, ExpressionError) for each in parts):
            message = f"expected one expression and nothing around it, found {described(text)}"
            self._faults.add(pointer, message, hint="join conditions inside of it: ${{ a and b }}")

    def _text(self, text: str, pointer: str, visible: Visible) -> set[str]:
        found: set[str] = set()
        for offset, part in expressions.find(text):
            if isinstance(part, ExpressionError):
                self._faults.add(pointer, part.message, hint=part.hint, offset=offset)
            elif isinstance(part, Expression):
                found |= part.names.steps
                for message, hint in self._misnamed(part.names, visible):
                    self._faults.add(pointer, message, hint=hint, offset=offset)
        return found

    def _misnamed(self, names: Names, visible: Visible) -> Iterator[tuple[str, str]]:
        """What an expression refers to and is not there, with the nearest thing that is."""
        near = self._faults.nearest
        for name in sorted(each for each in names.steps if each not in visible.steps):
            yield f"there is no step {shown(name)}", near(name, visible.steps)
        for name in sorted(names.inputs - visible.inputs):
            yield f"input {shown(name)} is not declared", near(name, visible.inputs) or "declare it in `inputs`"
        for name in sorted(names.env - visible.env):
            hint = near(name, visible.env) or "declare it in the set's `env`: the caller's environment is not read"
            yield f"env {shown(name)} is not declared", hint
        if names.item and not visible.item:
            yield "item is known only in a step with for_each", "give the step a for_each"
        for _, name in sorted(names.fields):
            if name not in STEP_FIELDS:
                yield f"a step has no {shown(name)}", near(name, STEP_FIELDS) or f"it has {', '.join(STEP_FIELDS)}"
        for step, name in sorted(names.outputs):
            yield from self._no_such_output(step, name, visible)

    def _no_such_output(self, step: str, name: str, visible: Visible) -> Iterator[tuple[str, str]]:
        raw = visible.steps.get(step, {})
        operation = self._operations.get(str(raw.get("op"))) or operation_named(raw.get("op"))
        if operation is None or operation.outputs.model_config.get("extra") == "allow":
            return
        label = f"steps.{step}.outputs"
        if raw.get("for_each") is not None:
            yield f"{label} is a list, because the step has for_each", f"as in {label}[0].{name}"
            return
        fields = operation.outputs.model_fields
        known = sorted(info.serialization_alias or info.alias or key for key, info in fields.items())
        if name not in known:
            has = f"it has: {', '.join(known)}" if known else "it has none"
            yield f"{label} has no {shown(name)}; {has}", self._faults.nearest(name, known)


def operation_named(name: object) -> AnyOperation | None:
    """The operation of this name; None where there is none."""
    try:
        return registry.get(name) if isinstance(name, str) else None
    except registry.UnknownOperation:
        return None


def evaluated(raw: Raw) -> Iterator[tuple[str, Any]]:
    """The values of an instruction whose expressions are its own: those of a set in it are that set's."""
    for key in EVALUATED:
        if key in raw:
            value = raw[key]
            if key == "with" and raw.get("op") == CALL and isinstance(value, dict):
                value = {name: each for name, each in value.items() if name == "inputs"}
            yield key, value


def _texts_at(value: object, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if "${{" in value:
            yield pointer, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts_at(each, child_pointer(pointer, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts_at(each, f"{pointer}/{index}")


def steps_named_in(raw: object) -> set[str]:
    """The steps that an instruction in another one refers to, faulty expressions passed over."""
    if not isinstance(raw, dict):
        return set()
    found: set[str] = set()
    for _, value in evaluated(raw):
        for text in expressions.texts(value):
            for _, part in expressions.find(text):
                if isinstance(part, Expression):
                    found |= part.names.steps
    handler, undo = raw.get("on_error"), raw.get("undo")
    inner = handler.get("run") if isinstance(handler, dict) else None
    nested = [*(inner if isinstance(inner, list) else ()), undo]
    for each in nested:
        found |= steps_named_in(each)
    return found - {str(each.get("id")) for each in nested if isinstance(each, dict)}

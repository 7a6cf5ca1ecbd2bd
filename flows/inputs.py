"""A set's inputs: what they may be, and the values that a run is given for them.

Each input is a JSON Schema with an optional default; one without a default has to be given. Schemas come from documents
that may have been written by anyone, so nothing in one is ever looked up elsewhere: references are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from quantum_orchestrator.flows import wording
from quantum_orchestrator.flows.document import InstructionSet
from quantum_orchestrator.flows.faults import Fault, InvalidSet, nearest, pointer_of, shown
from quantum_orchestrator.flows.wording import TYPES, Problem

FILE = "inputs"
"""What faults in given values name as their file."""

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef", "$id", "$schema", "$vocabulary")
_SLOW = ("pattern", "patternProperties")
_DATA = ("default", "const", "enum", "examples")


def declaration_problems(schema: Mapping[str, Any], *, untrusted: bool = False) -> list[Problem]:
    """What is wrong with the declaration of one input."""
    return list(_refused(schema, untrusted)) or _schema_problems(schema) or _default_problems(schema)


def _refused(schema: Any, untrusted: bool, parts: wording.Parts = ()) -> Iterator[Problem]:
    """Keywords that reach out of the schema, or that whoever wrote them could use to keep us busy for ever."""
    items = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in items:
        if key in _REFERENCES and isinstance(value, str):
            hint = "an input's schema stands on its own: write it out in place"
            yield Problem((*parts, key), f"{key!r} is not allowed in an input", hint, at_key=True)
        elif untrusted and key in _SLOW:
            hint = "a pattern may take for ever to match; use enum, minLength, maxLength"
            yield Problem((*parts, key), f"{key!r} is not allowed in an untrusted set", hint, at_key=True)
        elif key not in _DATA:
            yield from _refused(value, untrusted, (*parts, key))


def _schema_problems(schema: Mapping[str, Any]) -> list[Problem]:
    from jsonschema import Draft202012Validator

    judge = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return wording.explain(judge.iter_errors(schema), nearest)


def _default_problems(schema: Mapping[str, Any]) -> list[Problem]:
    if "default" not in schema:
        return []
    found = value_problems(schema, schema["default"])
    return [Problem(("default", *each.parts), each.message, each.hint, each.at_key) for each in found]


def value_problems(schema: Mapping[str, Any], value: object) -> list[Problem]:
    """What is wrong with a value. Formats (`date`, `email`, …) count."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    checker = Draft202012Validator.FORMAT_CHECKER
    judge = Draft202012Validator(dict(schema), registry=Registry(), format_checker=checker)
    return wording.explain(judge.iter_errors(value), nearest)


def given_problems(
    declared: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any], unknown: frozenset[str] = frozenset()
) -> list[Problem]:
    """What is wrong with the values given for inputs. Those in `unknown` are given, but not known yet."""
    problems = []
    for name in given:
        if name not in declared:
            hint = nearest(name, declared) or _known(declared)
            problems.append(Problem((name,), f"unknown input {shown(name)}", hint, at_key=True))
    for name, schema in declared.items():
        if name in given and name not in unknown:
            found = value_problems(schema, given[name])
            problems += [Problem((name, *each.parts), each.message, each.hint, each.at_key) for each in found]
        elif name not in given and "default" not in schema:
            about = schema.get("description")
            hint = f"it is: {about}" if isinstance(about, str) else f"it is {_type_in_words(schema)}"
            problems.append(Problem((), f"input {name!r} is missing", hint))
    return problems


def _known(declared: Mapping[str, object]) -> str:
    return f"known are {', '.join(declared)}" if declared else "the set has no inputs"


def _type_in_words(schema: Mapping[str, Any]) -> str:
    return " or ".join(TYPES.get(each, "any value") for each in _types(schema)) or "any value"


def _types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else list(types)


def resolve_inputs(document: InstructionSet, given: Mapping[str, Any], *, texts: bool = False) -> dict[str, Any]:
    """The value of every input: what is given, or its default.

    With `texts` the values are what a command line has (`--input count=3`) and are read as the input's type. Raises
    InvalidSet with every fault: unknown names, missing values, values that the input's schema refuses.
    """
    values = _values(document, given, texts=texts)
    _refuse(given_problems(document.inputs, values))
    defaults = {name: schema["default"] for name, schema in document.inputs.items() if "default" in schema}
    return {**defaults, **values}


def some_inputs(document: InstructionSet, given: Mapping[str, Any], *, texts: bool = False) -> dict[str, Any]:
    """The values that are given; whoever runs the set gives the others. Raises as `resolve_inputs` does."""
    values = _values(document, given, texts=texts)
    optional = {name: {"default": None, **schema} for name, schema in document.inputs.items()}
    _refuse(given_problems(optional, values))
    return values


def _values(document: InstructionSet, given: Mapping[str, Any], *, texts: bool) -> dict[str, Any]:
    values = dict(given)
    for name, text in given.items():
        if texts and name in document.inputs and isinstance(text, str):
            values[name] = read_value(document.inputs[name], text)
    return values


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InvalidSet(Fault(FILE, 0, 0, pointer_of(each.parts), each.message, each.hint) for each in problems)


def read_value(schema: Mapping[str, Any], text: str) -> Any:
    """The text as a value of the input's type; as it is where no other type takes it (validation then says why)."""
    types = _types(schema)
    literals = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if text in literals or (not types and not literals):
        return text
    for name in types or ["null", "boolean", "number", "array", "object"]:
        if name != "string":
            value = _as_json(text)
            if _has_type(value, name):
                return value
    return text


def _as_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text  # a text, to be judged as one


def _has_type(value: object, name: str) -> bool:
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    kinds: dict[str, type | tuple[type, ...]] = {
        "integer": int,
        "number": (int, float),
        "array": list,
        "object": dict,
        "string": str,
    }
    return isinstance(value, kinds.get(name, ()))

"""JSON Schema errors in the words of someone who wants to help.

`jsonschema` says that 3 is not valid under any of the given schemas; this module says that a text or a list was
expected and the number 3 found, which key is unknown and what it was probably meant to be. It knows schemas and
values, not files or lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.durations import DURATION_PATTERN
from quantum_orchestrator.flows import document
from quantum_orchestrator.flows.faults import described, shown

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from pydantic import ValidationError as ModelError

Parts = tuple[str | int, ...]
Nearest = Callable[[str, Iterable[str]], str]

TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
PATTERNS = {
    document.ID_PATTERN: "may have only a-z, 0-9, '_' and '-'",
    document.NAME_PATTERN: "must be readable: not blank, no '/', no control characters",
    document.VARIABLE_PATTERN: "may have only letters, digits and '_', and begins with no digit",
    document.INPUT_PATTERN: "may have only letters, digits, '_' and '-', and begins with a letter or '_'",
    DURATION_PATTERN: 'is no duration; write seconds as a number, or a text such as "250ms", "90s", "1h30m"',
    document.LONE_EXPRESSION_PATTERN: "is no expression; write ${{ … }} around it",
}
ELSEWHERE = {
    "sandbox": "`[sandbox]` in policy.toml says how far scripts are confined; leave it out",
}
"""Keys of the format for what is not a set's to say."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at the place that `parts` lead to."""

    parts: Parts
    message: str
    hint: str = ""
    at_key: bool = False


def explain(errors: Iterable[ValidationError], near: Nearest) -> list[Problem]:
    """The problems that these errors are about, each once. `near` finds the nearest right name."""
    found: dict[Problem, None] = {}
    settled: set[Parts] = set()  # one thing said about a number or a text is enough
    for error in errors:
        parts = tuple(error.path)
        if parts in settled:
            continue
        if not isinstance(error.instance, dict | list):
            settled.add(parts)
        for problem in _explain(error, (), near):
            found[problem] = None
    return list(found)


def _explain(error: ValidationError, base: Parts, near: Nearest) -> Iterator[Problem]:
    parts = (*base, *error.relative_path)
    keyword = str(error.validator)
    match keyword:
        case "required":
            yield from _missing(error, parts)
        case "additionalProperties" | "unevaluatedProperties":
            yield from _unknown_keys(error, parts, near)
        case "anyOf" | "oneOf":
            yield from _alternatives(error, parts, near)
        case "propertyNames":
            inner = next(iter(error.context or ()), None)
            message = _message(inner, near)[0] if inner else "is no name that is allowed here"
            yield Problem((*parts, str(error.instance)), f"the name {message}", at_key=True)
        case "enum" | "const" | "type" | "pattern" | "minimum" | _:
            message, hint = _message(error, near)
            yield Problem(parts, message, hint)


def _missing(error: ValidationError, parts: Parts) -> Iterator[Problem]:
    for name in _texts(error.validator_value):
        if isinstance(error.instance, dict) and name not in error.instance:
            what = _text(_schema(error).get("properties", {}).get(name, {}).get("description")).partition("\n")[0]
            yield Problem(parts, f"{name!r} is missing", hint=f"{name}: {what}" if what else "")


def _unknown_keys(error: ValidationError, parts: Parts, near: Nearest) -> Iterator[Problem]:
    known = list(_schema(error).get("properties", {}))
    patterns = list(_schema(error).get("patternProperties", {}))
    instance: Any = error.instance
    for key in instance if isinstance(instance, dict) else ():
        if key in known or any(re.search(pattern, key) for pattern in patterns):
            continue
        message = f"{shown(key)} {PATTERNS[patterns[0]]}" if patterns and patterns[0] in PATTERNS else ""
        hint = ELSEWHERE.get(key) or near(key, known) or (f"known are {', '.join(known)}" if known else "")
        yield Problem((*parts, key), message or f"unknown key {shown(key)}", "" if message else hint, at_key=True)


def _alternatives(error: ValidationError, parts: Parts, near: Nearest) -> Iterator[Problem]:
    """Of several schemas none fits (or too many): the one that was meant, or what all of them expect."""
    branches = [each for each in _branches(error) if not _is_expression(each)]
    required = [_texts(each[0].validator_value) for each in branches if each[0].validator == "required"]
    if not branches or (isinstance(error.instance, dict) and required and len(required) == len(branches)):
        names = sorted({name for names in required for name in names} or _required_in(error))
        exactly = "takes only one of" if not branches else "needs one of"
        yield Problem(parts, f"{exactly} {', '.join(map(repr, names))}")
        return
    meant = [each for each in branches if not any(_is_about_kind(one) for one in each)]
    if meant:
        for inner in meant[0]:
            yield from _explain(inner, parts, near)
        return
    expected = list(dict.fromkeys(_expected(one) for each in branches for one in each[:1]))
    expected = [each for each in expected if each != TYPES["null"]] or expected  # the same as leaving it out
    values = [str(one.validator_value) for each in branches for one in each if one.validator == "const"]
    values += [name for each in branches for one in each if one.validator == "enum" for name in _texts(_value(one))]
    hint = near(error.instance, values) if isinstance(error.instance, str) else ""
    yield Problem(parts, f"expected {_either(expected)}, found {described(error.instance)}", hint)


def _branches(error: ValidationError) -> list[list[ValidationError]]:
    branches: dict[int | str, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    return list(branches.values())


def _is_expression(branch: Sequence[ValidationError]) -> bool:
    """Whether this is the alternative that admits an expression: it is allowed everywhere and explains nothing."""
    return any(_schema(each).get("pattern") == document.EXPRESSION_PATTERN for each in branch)


def _is_about_kind(error: ValidationError) -> bool:
    return not error.relative_path and error.validator in ("type", "const", "enum")


def _required_in(error: ValidationError) -> set[str]:
    schemas: Any = error.validator_value
    return {name for each in schemas or () for name in _texts(each.get("required", ()))}


def _message(error: ValidationError, near: Nearest) -> tuple[str, str]:
    """What is expected and what was found; and a hint."""
    value: Any = _value(error)
    instance: Any = error.instance
    found = described(instance)
    match str(error.validator):
        case "type" | "const" | "enum":
            names = _texts(value) if isinstance(value, list) else [_text(value)]
            hint = near(error.instance, names) if isinstance(error.instance, str) else ""
            return f"expected {_expected(error)}, found {found}", hint
        case "pattern":
            return f"{found} {PATTERNS.get(_text(value), f'does not match {value}')}", ""
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            words = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than"}
            return f"expected {words.get(str(error.validator), 'less than')} {value}, found {found}", ""
        case "minLength" | "maxLength":
            return f"expected {_limit(error)} {_number(value, 'character')}, found {len(instance)}", ""
        case "minItems" | "maxItems" | "minProperties" | "maxProperties":
            return f"expected {_limit(error)} {_number(value, 'item')}, found {len(instance)}", ""
        case "uniqueItems":
            return "an item is there twice", ""
        case "multipleOf":
            return f"expected a multiple of {value}, found {found}", ""
        case "format":
            return f"{found} is no {value}", ""
        case _:
            return f"{found} is not allowed here: {error.message[:200]}", ""


def _limit(error: ValidationError) -> str:
    return "at least" if str(error.validator).startswith("min") else "at most"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _expected(error: ValidationError) -> str:
    value: Any = _value(error)
    if error.validator == "type":
        if _schema(error).get("pattern") == document.LONE_EXPRESSION_PATTERN:
            return "an expression"
        return _either([TYPES.get(str(each), str(each)) for each in (value if isinstance(value, list) else [value])])
    if error.validator in ("const", "enum"):
        values = value if error.validator == "enum" else [value]
        return _either([repr(each) if isinstance(each, str) else described(each) for each in values])
    return f"a value with another {error.validator}"


def _either(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _schema(error: ValidationError) -> dict[str, Any]:
    return error.schema if isinstance(error.schema, dict) else {}


def _value(error: ValidationError) -> object:
    return error.validator_value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list | tuple) else []


# Pydantic's errors: for what a model checks and its schema cannot say.

_MODEL_WORDS = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected an object",
}


def explain_model(error: ModelError, value: object) -> list[Problem]:
    """The problems that Pydantic found in `value`, with the names that the document uses."""
    found: dict[Problem, None] = {}
    for each in error.errors(include_url=False, include_input=False):
        parts = _existing(each["loc"], value)
        at = _at(parts, value)
        raised = each.get("ctx", {}).get("error")
        expected = _MODEL_WORDS.get(each["type"])
        message = f"{expected}, found {described(at)}" if expected else str(raised or each["msg"])
        found[Problem(parts, message)] = None
    return list(found)


def _existing(location: Iterable[str | int], value: object) -> Parts:
    """The part of a location that is in the value: Pydantic also names the alternatives of unions in it."""
    parts: list[str | int] = []
    for part in location:
        is_key = isinstance(value, dict) and part in value
        is_place = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_key or is_place:
            parts.append(part)
            value = _at((part,), value)
    return tuple(parts)


def _at(parts: Parts, value: Any) -> object:
    for part in parts:
        value = value[part]
    return value

"""Sets one value in a JSON text, and holds what the setters of the three formats share.

The places come from `blocks/json_text.py`. Nothing but the value's characters changes; a new member is written with the
gap and the colon of the one before it. See `structured.py` for the rules.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

from quantum_orchestrator.blocks import json_text
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.json_text import JsonSyntaxError, JsonText

DEEPEST = 200
END = "-"

JsonValue = Any
"""What json.loads gives: whoever looks into it has to ask for its type anyway."""


def same(left: JsonValue, right: JsonValue) -> bool:
    """Equal as JSON: `1`, `1.0` and `true` are three values, and the order of an object's names means nothing."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right or left != left)


def place_in_array(pointer: str, token: str, length: int) -> int:
    """An array's index, or its length for the place after its last item. Raises OperationError beyond."""
    if token == END:
        return length
    if not re.fullmatch("0|[1-9][0-9]{0,17}", token, re.ASCII):
        raise OperationError(f"{pointer!r}: an array's items have numbers, not {token!r}")
    if int(token) > length:
        raise OperationError(f"{pointer!r}: the array has {length} items", hint="`-` adds one at its end")
    return int(token)


def assigned(document: JsonValue, names: list[str], value: JsonValue) -> JsonValue:
    """A copy of plain data with `value` at the end of the names. The parents are known to be there."""
    if not names:
        return value
    document = copy.deepcopy(document)
    target = document
    for name in names[:-1]:
        target = target[int(name)] if isinstance(target, list) else target[name]
    if isinstance(target, list):
        place = place_in_array(names[-1], names[-1], len(target))
        target[place : place + 1] = [value]
    else:
        target[names[-1]] = value
    return document


def joined(names: Iterable[str]) -> str:
    """Names as a JSON pointer."""
    return "".join(f"/{json_text.escape(name)}" for name in names)


def missing(pointer: str, known: Iterable[str], name: str) -> OperationError:
    """The error for a part of a pointer that is not there and not the last."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "only the last name of a pointer may be new"
    return OperationError(f"there is nothing at {pointer!r}", hint=hint)


def not_kept(reason: str) -> OperationError:
    """The error for a place where the layout could not be kept."""
    return OperationError(f"the value cannot be set without touching more: {reason}", hint="use file.edit for this one")


def newline_of(text: str) -> str:
    """How the text's lines end."""
    return "\r\n" if "\r\n" in text else "\n"


def set_json(text: str, pointer: str, value: JsonValue) -> str:
    """The JSON text with `value` at `pointer`. Raises OperationError."""
    try:
        scanned = json_text.scan(text, max_depth=DEEPEST)
    except JsonSyntaxError as error:
        raise OperationError(f"line {error.line}, column {error.column}: {error.message}", hint=error.hint) from error
    _refuse_duplicates(scanned, pointer)
    changed = _replaced(scanned, pointer, value)
    if changed is None:
        changed = _added(scanned, pointer, value)
    if not same(json.loads(changed), assigned(json.loads(text), json_text.tokens(pointer), value)):
        raise not_kept("the text that results has another value")
    return changed


def _refuse_duplicates(scanned: JsonText, pointer: str) -> None:
    for duplicate, first, second in scanned.duplicates:
        if f"{pointer}/".startswith(f"{duplicate}/"):
            lines = (scanned.line_column(first)[0], scanned.line_column(second)[0])
            raise OperationError(f"{duplicate!r} stands there twice, on lines {lines[0]} and {lines[1]}")


def _replaced(scanned: JsonText, pointer: str, value: JsonValue) -> str | None:
    """The text with the value replaced; None when there is no value yet."""
    try:
        start, end = scanned.span(pointer)
    except KeyError:
        return None
    text = scanned.text
    old = text[start:end]
    if same(json.loads(old), value):
        return text
    inline = old[0] in "[{" and "\n" not in old and len(old) > 2
    return text[:start] + _dumped(text, value, _margin(text, start), inline=inline) + text[end:]


def _dumped(text: str, value: JsonValue, margin: str, *, inline: bool) -> str:
    """A value as JSON in the manner of `text`: on one line, or indented below a line with this margin."""
    unit = _indentation(text)
    if inline or not unit or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=unit)
    return dumped.replace("\n", newline_of(text) + margin)


def _margin(text: str, offset: int) -> str:
    """The blanks that the line of `offset` begins with."""
    line = text[text.rfind("\n", 0, offset) + 1 : offset]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _indentation(text: str) -> str:
    """What one level is indented by: the least margin that there is; nothing for a text on one line."""
    margins = {match[1] for match in re.finditer(r"\n([ \t]+)(?=[^ \t\r\n])", text)}
    return min(margins, key=len, default="  " if "\n" in text.strip() else "")


def _added(scanned: JsonText, pointer: str, value: JsonValue) -> str:
    parent, _, token = pointer.rpartition("/")
    try:
        start, end = scanned.span(parent)
    except KeyError:
        raise _missing_parent(scanned, parent) from None
    text, members = scanned.text, scanned.children(parent)
    if text[start] not in "[{":
        raise OperationError(f"{parent!r} is neither an object nor an array: nothing can be added to it")
    key = ""
    if text[start] == "[":
        place_in_array(pointer, token, len(members))
    else:
        key = json.dumps(json_text.tokens(pointer)[-1], ensure_ascii=False)
    if members:
        return _after_last(scanned, f"{parent}/{json_text.escape(members[-1][0])}", key, value)
    return text[:start] + _only_member(text, start, key, value) + text[end:]


def _missing_parent(scanned: JsonText, pointer: str) -> OperationError:
    """The error for a parent that is not there: names the outermost part that is missing."""
    names = json_text.tokens(pointer)
    part = names[:1]
    while joined(part) in scanned.values:
        part = names[: len(part) + 1]
    return missing(joined(part), [name for name, _ in _members(scanned, joined(part[:-1]))], part[-1])


def _members(scanned: JsonText, pointer: str) -> list[tuple[str, json_text.Span]]:
    return scanned.children(pointer) if scanned.text[scanned.span(pointer)[0]] in "[{" else []


def _only_member(text: str, start: int, key: str, value: JsonValue) -> str:
    opener, closer = ("{", "}") if key else ("[", "]")
    margin, unit, newline = _margin(text, start), _indentation(text), newline_of(text)
    member = (f"{key}: " if key else "") + _dumped(text, value, margin + unit, inline=not unit)
    if not unit:
        return opener + member + closer
    return f"{opener}{newline}{margin}{unit}{member}{newline}{margin}{closer}"


def _after_last(scanned: JsonText, last: str, key: str, value: JsonValue) -> str:
    """A new member after the last one, with the gap before it and the colon that the last one has."""
    text = scanned.text
    start, end = scanned.span(last)
    first, colon = start, ""
    if key:
        first, key_end = scanned.key_span(last)
        colon = text[key_end:start]
    blank_from = len(text[:first].rstrip(" \t\r\n"))
    gap = text[blank_from:first]
    if text[blank_from - 1] in "{[" and "\n" not in gap:  # the only one so far: no comma shows what follows one
        gap = "" if colon == ":" else " "
    added = "," + gap + key + colon + _dumped(text, value, _margin(text, first), inline="\n" not in gap)
    return text[:end] + added + text[end:]

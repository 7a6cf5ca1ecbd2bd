"""Sets one value in a TOML text.

tomlkit keeps a document's layout but tells no positions. So it is asked to set a marker that the text does not hold;
where the marker comes out is the value's place, and if anything else came out differently, it is refused. See
`structured.py` for the rules.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import tomlkit
from tomlkit.container import OutOfOrderTableProxy
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Table

from quantum_orchestrator.blocks import json_text
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.structured_json import (
    JsonValue,
    assigned,
    joined,
    missing,
    newline_of,
    not_kept,
    place_in_array,
    same,
)


def set_toml(text: str, pointer: str, value: JsonValue) -> str:
    """The TOML text with `value` at `pointer`. Raises OperationError."""
    names = json_text.tokens(pointer)
    document = _loaded(text)
    there, old = _judge(document, names, value)
    if there and same(old, value):
        return text
    try:
        changed = _spliced(text, names, value, there=there)
        kept = same(tomllib.loads(changed), assigned(document, names, value))
    except (TOMLKitError, tomllib.TOMLDecodeError) as error:
        raise not_kept(str(error)) from error
    if not kept:
        raise not_kept("the text that results has another value")
    return changed


def _loaded(text: str) -> JsonValue:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OperationError(f"not TOML: {error}") from error
    except RecursionError as error:
        raise OperationError("not TOML that can be read: it is nested too deeply") from error


def _judge(document: JsonValue, names: list[str], value: JsonValue) -> tuple[bool, JsonValue]:
    """Whether something is at the end of the names, and what. Refuses what has no place or no form in TOML."""
    if not names:
        raise OperationError("a whole TOML document cannot be set", hint="set its values one by one, or use file.write")
    if _has_null(value):
        raise OperationError("TOML has no null", hint="take the value out with file.edit")
    for length, name in enumerate(names, start=1):
        here = joined(names[:length])
        if isinstance(document, list):
            place = place_in_array(here, name, len(document))
            known, there = [], place < len(document)
            document = document[place] if there else None
        elif isinstance(document, dict):
            known, there = list(document), name in document
            document = document.get(name)
        else:
            raise OperationError(f"{here!r}: its parent is neither a table nor an array")
        if not there and length < len(names):
            raise missing(here, known, name)
    return there, document


def _has_null(value: JsonValue) -> bool:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if each is None:
            return True
        waiting.extend(each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
    return False


def _spliced(text: str, names: list[str], value: JsonValue, *, there: bool) -> str:
    document = tomlkit.parse(text)
    parent: Any = document  # tomlkit's containers share no useful type
    for name in names[:-1]:
        parent = parent[int(name)] if isinstance(parent, list) else parent[name]
    if there:
        place: int | str = int(names[-1]) if isinstance(parent, list) else names[-1]
        _refuse_table(parent[place], names)
        marker = _marker(text)
        parent[place] = marker
        return _replaced(text, tomlkit.dumps(document), f'"{marker}"', _rendered(value))
    if isinstance(parent, AoT):
        if not isinstance(value, dict):
            raise OperationError(f"{joined(names)!r}: the array's items are tables, so the value is an object")
        parent.append(tomlkit.item(value))
        return _inserted(text, tomlkit.dumps(document))
    marker = _marker(text)
    if isinstance(parent, list):
        parent.append(marker)
    else:
        parent[names[-1]] = marker
    return _inserted(text, tomlkit.dumps(document)).replace(f'"{marker}"', _rendered(value))


def _refuse_table(item: object, names: list[str]) -> None:
    """A table with a header, or made by dotted keys, is spread over lines that are not one value."""
    if isinstance(item, Table | AoT | OutOfOrderTableProxy):
        raise OperationError(
            f"{joined(names)!r} is a table with lines of its own, not one value", hint="set what is in it one by one"
        )


def _marker(text: str) -> str:
    number = 0
    while f"value-to-be-{number}" in text:
        number += 1
    return f"value-to-be-{number}"


def _replaced(text: str, marked: str, marker: str, value: str) -> str:
    head, _, tail = marked.partition(marker)
    if not (text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)):
        raise not_kept("its place is not clear")
    return head + value + tail


def _inserted(text: str, longer: str) -> str:
    """`longer`, if it is the text with one piece inserted; blanks that were lost at its end are put back."""
    head = _common(text, longer)
    tail = _common(text[head:][::-1], longer[head:][::-1])
    lost = text[head : len(text) - tail]
    if lost.strip():
        raise not_kept("its neighbours would be laid out anew")
    piece = re.sub(r"(?<!\r)\n", newline_of(text), longer[head : len(longer) - tail])
    return text[:head] + piece + lost + text[len(text) - tail :]


def _common(left: str, right: str) -> int:
    """How many characters both begin with."""
    shorter = min(len(left), len(right))
    return next((at for at in range(shorter) if left[at] != right[at]), shorter)


def _rendered(value: JsonValue) -> str:
    if isinstance(value, dict):
        members = ", ".join(f"{tomlkit.key(name).as_string()} = {_rendered(each)}" for name, each in value.items())
        return f"{{ {members} }}" if members else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_rendered, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value, allow_nan=False)
    return tomlkit.string(value).as_string()

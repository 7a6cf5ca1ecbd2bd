"""From bytes to JSON values: everything that can be wrong with a document before it is looked at as a set.

The standard decoder does the work at the speed of C; only when it refuses something is the text scanned for the place.
It takes more than JSON (NaN, duplicate keys, numbers without end, half characters), so that is refused here.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.json_text import JsonSyntaxError, line_column, scan
from quantum_orchestrator.flows.faults import Fault, Faults, InvalidSet, shown

LARGEST = 16 * 1024 * 1024
DEEPEST = 64
Raw = dict[str, Any]
_LARGEST_WHOLE = 2**63
_CONTAINERS = frozenset({dict, list})
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(document: bytes, file: str) -> tuple[Raw, Faults]:
    """The object that a document is, and the faults that do not keep it from being judged further.

    Raises InvalidSet where nothing more can be said: not UTF-8, not JSON, too large, too deep.
    """
    if len(document) > LARGEST:
        raise _only(file, 1, 1, f"the document has {len(document)} bytes; {LARGEST} are allowed (16 MiB)")
    return _parse_text(_decoded(document, file), file)


def plain_object(value: object, file: str) -> tuple[Raw, Faults]:
    """A copy of an object that was parsed elsewhere, as JSON has it. Raises InvalidSet as `parse` does."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _only(file, 0, 0, f"the document is not JSON: {reason}") from error
    try:
        parsed, faults = _parse_text(text, file)
    except InvalidSet as error:  # lines of a text that nobody has written would mislead
        raise InvalidSet(Fault(file, 0, 0, each.pointer, each.message, each.hint) for each in error.faults) from error
    if faults:
        raise InvalidSet(Fault(file, 0, 0, each.pointer, each.message, each.hint) for each in faults.placed())
    return parsed, Faults(file, None, parsed)


def read_file(path: Path) -> bytes:
    """A file's bytes, no more than can be judged. Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(LARGEST + 1)


def _only(file: str, line: int, column: int, message: str, hint: str = "") -> InvalidSet:
    return InvalidSet([Fault(file, line, column, "", message, hint)])


def _decoded(document: bytes, file: str) -> str:
    if document.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _only(file, 1, 1, "the document is UTF-16", "save it as UTF-8")
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = document[: error.start].decode("utf-8-sig", errors="replace")
        line, column = line_column(before, len(before))
        byte = document[error.start]
        raise _only(file, line, column, f"byte 0x{byte:02x} is not UTF-8", "save the document as UTF-8") from error
    if not text.strip(" \t\r\n"):
        raise _only(file, 1, 1, "the document is empty", "an instruction set is a JSON object; `qo init` writes one")
    return text


class _Notes:
    """What the decoder lets pass and JSON or we do not."""

    def __init__(self) -> None:
        self.duplicates = False
        self.numbers: set[str] = set()

    def members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            self.duplicates = True
        return members

    def constant(self, name: str) -> float:
        self.numbers.add(name)
        return 0.0

    def real(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self.numbers.add(text)
            return 0.0
        return value

    def whole(self, text: str) -> int:
        if len(text) > 20 or abs(int(text)) > _LARGEST_WHOLE:
            self.numbers.add(text)
            return 0
        return int(text)


def _parse_text(text: str, file: str) -> tuple[Raw, Faults]:
    notes = _Notes()
    try:
        value = json.loads(
            text,
            object_pairs_hook=notes.members,
            parse_constant=notes.constant,
            parse_float=notes.real,
            parse_int=notes.whole,
        )
    except json.JSONDecodeError as error:
        _explain_syntax(text, file)
        raise _only(file, error.lineno, error.colno, f"not JSON: {error.msg}") from error
    except RecursionError:
        _explain_syntax(text, file)
        raise _only(file, 1, 1, f"the document is nested deeper than {DEEPEST}", "flatten it") from None
    suspicious = notes.duplicates or notes.numbers or _ESCAPED_SURROGATE.search(text) or _is_too_deep(value)
    if suspicious:
        _explain_syntax(text, file)
    faults = Faults(file, text, value)
    if notes.duplicates or notes.numbers:
        _note_places(text, notes, faults)
    if not isinstance(value, dict):
        faults.add("", "an instruction set is a JSON object", hint="it begins with { and has `name`, `instructions`")
        raise InvalidSet(faults.placed())
    return value, faults


def _explain_syntax(text: str, file: str) -> None:
    """Raise InvalidSet where the text stops being JSON, or goes too deep."""
    try:
        scan(text, max_depth=DEEPEST)
    except JsonSyntaxError as error:
        line, column = line_column(text, error.offset)
        raise _only(file, line, column, error.message, error.hint) from error


def _is_too_deep(value: Any) -> bool:
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(DEEPEST):
        level = [
            child
            for each in level
            for child in (each.values() if type(each) is dict else each)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return False
    return True


def _note_places(text: str, notes: _Notes, faults: Faults) -> None:
    scanned = scan(text)
    for pointer, first, _ in scanned.duplicates:
        line, _column = scanned.line_column(first)
        key = pointer.rpartition("/")[2].replace("~1", "/").replace("~0", "~")
        faults.add(pointer, f"key {shown(key)} is there twice", hint=f"the first one is in line {line}", at_key=True)
    if notes.numbers:
        for pointer, (start, end) in scanned.values.items():
            if text[start:end] in notes.numbers:
                message = f"number {text[start:end][:40]} is too large"
                faults.add(pointer, message, hint="whole numbers stay below 2^63, others are finite")

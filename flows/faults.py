"""What is wrong with a document: each fault with its place, all of them together.

A fault is found at a JSON pointer. Lines and columns are worked out only when there is something to report, by
scanning the text again (`blocks/json_text.py`); a document that never was a text has pointers alone. This module
does not know what makes a document right.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from quantum_orchestrator.blocks.errors import InvalidInput, PolicyRefused
from quantum_orchestrator.blocks.json_text import JsonText, escape, line_column, scan

MOST_FAULTS = 1_000
"""More are not listed: nobody reads them, and a document from a network could make millions."""
MOST_COMPARISONS = 200_000
LONGEST_SHOWN = 60


class FaultJson(TypedDict):
    """A fault as the command line and the API print it."""

    file: str
    line: int
    column: int
    pointer: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. Lines and columns count from 1; 0 where there is no text to point into."""

    file: str
    line: int
    column: int
    pointer: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        where = f"{place} {self.pointer}" if self.pointer else place
        return f"{where}: {self.message}" + (f"; {self.hint}" if self.hint else "")

    def as_json(self) -> FaultJson:
        """The fault as plain data."""
        return FaultJson(
            file=self.file,
            line=self.line,
            column=self.column,
            pointer=self.pointer,
            message=self.message,
            hint=self.hint,
        )


class InvalidSet(InvalidInput):
    """A document that cannot be run. `faults` has every reason, in the order of the document."""

    def __init__(self, faults: Iterable[Fault], *, by_policy: bool = False) -> None:
        """`by_policy`: the policy refuses some of it."""
        self.faults = list(faults)
        self.by_policy = by_policy
        super().__init__("\n".join(map(str, self.faults)))

    def as_json(self) -> list[FaultJson]:
        """The faults as plain data: the `errors` of the public JSON."""
        return [fault.as_json() for fault in self.faults]


@dataclass(frozen=True, slots=True)
class _Found:
    pointer: str
    message: str
    hint: str
    at_key: bool
    offset: int | None  # in the text that stands at the pointer


class Faults:
    """Collects the faults of one document, and finds their places at the end.

    `text` is what the pointers point into; None for a document that came as an object.
    """

    def __init__(self, file: str, text: str | None, document: object) -> None:
        self.file = file
        self._text = text
        self._document = document
        self._found: dict[_Found, None] = {}  # a set that keeps its order
        self._others: list[Fault] = []  # of called files, their places known
        self._comparisons = 0
        self.refused = False
        """Whether the policy has refused any of it."""

    def add(
        self, pointer: str, message: str, *, hint: str = "", at_key: bool = False, offset: int | None = None
    ) -> None:
        """Note a fault of the value at `pointer`.

        With `at_key` it is shown where the value's key stands, with `offset` at that character of the text there.
        """
        if not self.full:
            self._found[_Found(pointer, message, hint, at_key, offset)] = None

    def refuse(self, pointer: str, error: PolicyRefused) -> None:
        """Note something that the policy refuses."""
        self.refused = True
        self.add(pointer, error.message, hint=error.hint)

    def add_all(self, faults: Iterable[Fault]) -> None:
        """Note faults of another file."""
        self._others.extend(faults)

    @property
    def full(self) -> bool:
        """Whether there are so many that more would not be listed."""
        return len(self._found) >= MOST_FAULTS

    def __bool__(self) -> bool:
        return bool(self._found or self._others)

    def nearest(self, name: str, candidates: Iterable[str]) -> str:
        """A hint that names the candidate most like `name`, if any is."""
        names = list(candidates)
        self._comparisons += len(names)
        return nearest(name, names) if self._comparisons <= MOST_COMPARISONS else ""

    def placed(self) -> list[Fault]:
        """Every fault with its place, in the order of the document; those of called files after them."""
        places = _Places(self._text, self._document, many=len(self._found) > 20)
        ranked = sorted(((places.rank(each), each) for each in self._found), key=lambda pair: pair[0])
        faults = [
            Fault(self.file, *places.line_column(rank), each.pointer, each.message, each.hint) for rank, each in ranked
        ]
        if self.full:
            last = faults[-1]
            more = f"there are {MOST_FAULTS} faults or more; the others are not listed"
            faults.append(Fault(self.file, last.line, last.column, "", more, "mend these first"))
        return faults + self._others


class _Places:
    """Where in a document the faults stand: by text where there is one, else by the order of its values."""

    def __init__(self, text: str | None, document: object, *, many: bool) -> None:
        self.text = text
        self.scanned: JsonText | None = scan(text) if text is not None else None
        self.many = many
        self.order: Mapping[str, int] = {} if text is not None else _order(document)

    def rank(self, found: _Found) -> int:
        if self.scanned is None:
            return self.order.get(found.pointer, 0)
        if found.at_key:
            return self._span(found.pointer, key=True)[0]
        start, end = self._span(found.pointer, key=False)
        if found.offset is None:
            return start
        return start + _raw_offset(self.scanned.text[start:end], found.offset)

    def _span(self, pointer: str, *, key: bool) -> tuple[int, int]:
        """The place of a value or its key; of the nearest one around it where a later duplicate has replaced it."""
        assert self.scanned is not None
        try:
            if self.many:
                return (self.scanned.keys if key else self.scanned.values)[pointer]
            return self.scanned.key_span(pointer) if key else self.scanned.span(pointer)
        except KeyError:
            return self._span(pointer.rpartition("/")[0], key=False) if pointer else (0, 0)

    def line_column(self, rank: int) -> tuple[int, int]:
        return line_column(self.text, rank) if self.text is not None else (0, 0)


def _order(document: object) -> dict[str, int]:
    """The pointer of every value, with its place in document order."""
    order: dict[str, int] = {}
    waiting: list[tuple[str, object]] = [("", document)]
    while waiting:
        pointer, value = waiting.pop()
        order[pointer] = len(order)
        children: Iterable[tuple[object, object]] = ()
        if isinstance(value, dict):
            children = value.items()
        elif isinstance(value, list):
            children = enumerate(value)
        waiting.extend(reversed([(child_pointer(pointer, str(name)), child) for name, child in children]))
    return order


_CHARACTER = re.compile(r"\\u[dD][89abAB]\w{2}\\u[dD][c-fC-F]\w{2}|\\u\w{4}|\\.|.", re.DOTALL)


def _raw_offset(token: str, offset: int) -> int:
    """Where in a JSON string, quotes and escapes included, the character stands that is at `offset` when decoded."""
    position = 1
    for _ in range(offset):
        match = _CHARACTER.match(token, position)
        if match is None:
            break
        position = match.end()
    return position


def child_pointer(pointer: str, name: str | int) -> str:
    """The pointer of what is at `name` in the value at `pointer`."""
    return f"{pointer}/{escape(str(name))}"


def pointer_of(parts: Iterable[str | int]) -> str:
    """The pointer that leads through these keys and indices."""
    return "".join(f"/{escape(str(part))}" for part in parts)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A hint that names the candidate most like `name`; empty when none is like it."""
    near = difflib.get_close_matches(name[:LONGEST_SHOWN], list(candidates), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def shown(text: str) -> str:
    """A text in quotes, cut to a readable length."""
    return repr(text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…")


def described(value: object) -> str:
    """A JSON value as a message names it: its kind, and what it is where that is short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"number {json.dumps(value)[:LONGEST_SHOWN]}"
        case str():
            return f"text {shown(value)}"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a {type(value).__name__}"

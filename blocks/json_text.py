"""JSON with positions: where in a text each value and each key stands, and where exactly a text stops being JSON.

The standard decoder gives values without places, and its messages are those of a parser. This scanner gives places
without values: it is called when an error has to be shown at its line, or when one value in a file is to be replaced
and nothing else. It accepts exactly RFC 8259, refuses lone surrogates (they could not be written back as UTF-8), and
records duplicate keys instead of refusing them. It never recurses, and what it keeps grows with the text alone:
positions lie in flat arrays in document order, and pointers (RFC 6901) are resolved against those when asked for.

It knows nothing of instruction sets, files or limits.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from quantum_orchestrator.blocks.errors import InvalidInput

Span = tuple[int, int]
"""Character offsets of the first character and of the one after the last."""

DUPLICATES_KEPT = 100

_BLANK = re.compile(r"[ \t\n\r]*+")
_PLAIN = r'[^"\\\x00-\x1f\ud800-\udfff]*+'
_STRING = re.compile(rf'"{_PLAIN}(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}){_PLAIN})*+"')
_STRING_SO_FAR = re.compile(rf'"{_PLAIN}(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}){_PLAIN})*+')
_SURROGATES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: fine
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of one
    r"|\\."
)
_SCALAR = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)(?![\w.+-])")
_WORD = re.compile(r"[\w.+-]+")
_NUMBER_LIKE = re.compile(r"[+-]?\.?[0-9]")
_SPELLINGS = {"True": "true", "False": "false", "None": "null", "undefined": "null", "nil": "null"}
_CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class JsonSyntaxError(InvalidInput):
    """The text is not JSON. `offset` counts characters from 0, `line` and `column` from 1."""

    def __init__(self, message: str, offset: int, *, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset = offset
        self.line = line
        self.column = column


def line_column(text: str, offset: int) -> tuple[int, int]:
    """The line and the column of an offset, both from 1; columns count characters, `\\n` ends a line."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def escape(name: str) -> str:
    """A name as one token of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def tokens(pointer: str) -> list[str]:
    """The names in a JSON pointer (RFC 6901). Raises ValueError for what is none."""
    if pointer and not pointer.startswith("/"):
        raise ValueError(f"{pointer!r} is no JSON pointer: it is empty or begins with '/'")
    if re.search("~(?![01])", pointer):
        raise ValueError(f"{pointer!r} is no JSON pointer: '~' is written '~0', and '/' in a name '~1'")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def scan(text: str, *, max_depth: int | None = None) -> JsonText:
    """Find every value and key. Raises JsonSyntaxError at the first fault, or where nesting exceeds `max_depth`."""
    return _Scanner(text, max_depth).scan()


@dataclass(frozen=True)
class JsonText:
    """A JSON text with the places of its values. Of duplicate keys the last one counts, as in every decoder."""

    text: str
    duplicates: list[tuple[str, int, int]] = field(default_factory=list)
    """Pointer, offset of the first key, offset of a later one; the first 100."""
    max_depth: int = 0
    """How deep arrays and objects are nested: 0 for a lone scalar, 1 for `[]`."""

    # One item for each value, in document order: a value's descendants follow it directly.
    _starts: array[int] = field(default_factory=lambda: array("q"))
    _ends: array[int] = field(default_factory=lambda: array("q"))
    _nexts: array[int] = field(default_factory=lambda: array("q"))  # the first value that is no descendant
    _key_starts: array[int] = field(default_factory=lambda: array("q"))  # -1: no member of an object
    _key_ends: array[int] = field(default_factory=lambda: array("q"))

    def span(self, pointer: str) -> Span:
        """Where the value at `pointer` stands. Raises KeyError when there is none."""
        value = self._find(pointer)
        return self._starts[value], self._ends[value]

    def key_span(self, pointer: str) -> Span:
        """Where the key of the value at `pointer` stands, quotes included. Raises KeyError when it has none."""
        value = self._find(pointer)
        if self._key_starts[value] < 0:
            raise KeyError(pointer)
        return self._key_starts[value], self._key_ends[value]

    def children(self, pointer: str) -> list[tuple[str, Span]]:
        """The names (or indices) and places of what is directly in an array or object, in document order."""
        found = self._children(self._find(pointer))
        return [(name, (self._starts[each], self._ends[each])) for name, each in found]

    def line_column(self, offset: int) -> tuple[int, int]:
        """The line and the column of an offset, both from 1; columns count characters."""
        return line_column(self.text, offset)

    @cached_property
    def values(self) -> dict[str, Span]:
        """The place of every value by its pointer."""
        return {pointer: (self._starts[each], self._ends[each]) for pointer, each in self._every()}

    @cached_property
    def keys(self) -> dict[str, Span]:
        """The place of every key by the pointer of its value."""
        return {
            pointer: (self._key_starts[each], self._key_ends[each])
            for pointer, each in self._every()
            if self._key_starts[each] >= 0
        }

    def _every(self) -> Iterator[tuple[str, int]]:
        waiting = [("", 0)]
        while waiting:
            pointer, value = waiting.pop()
            yield pointer, value
            waiting.extend((f"{pointer}/{escape(name)}", child) for name, child in reversed(self._children(value)))

    def _children(self, value: int) -> list[tuple[str, int]]:
        if self.text[self._starts[value]] == "[":
            return [(str(index), child) for index, child in enumerate(self._members(value))]
        return list({self._name(child): child for child in self._members(value)}.items())

    def _members(self, value: int) -> Iterator[int]:
        member = value + 1
        while member < self._nexts[value]:
            yield member
            member = self._nexts[member]

    def _name(self, value: int) -> str:
        name = json.loads(self.text[self._key_starts[value] : self._key_ends[value]])
        assert isinstance(name, str)
        return name

    def _find(self, pointer: str) -> int:
        value = 0
        for token in tokens(pointer):
            found = self._item(value, token) if self.text[self._starts[value]] == "[" else self._member(value, token)
            if found is None:
                raise KeyError(pointer)
            value = found
        return value

    def _item(self, value: int, token: str) -> int | None:
        if not re.fullmatch("0|[1-9][0-9]{0,17}", token, re.ASCII):
            return None
        return next(islice(self._members(value), int(token), None), None)

    def _member(self, value: int, token: str) -> int | None:
        found = None
        for member in self._members(value):
            if self._name(member) == token:
                found = member
        return found


@dataclass(slots=True)
class _Open:
    """An array or object whose end is not reached yet."""

    value: int
    closer: str
    members: int = 0
    name: str = ""
    keys: dict[str, int] = field(default_factory=dict)

    @property
    def token(self) -> str:
        return escape(self.name) if self.closer == "}" else str(self.members - 1)


class _Scanner:
    def __init__(self, text: str, max_depth: int | None) -> None:
        self.text = text
        self.limit = max_depth
        self.deepest = 0
        self.open: list[_Open] = []
        self.found = JsonText(text)

    def scan(self) -> JsonText:
        """Scan the whole text."""
        if self.text.startswith("\ufeff"):
            raise self.fault("a byte order mark is not JSON", 0, hint="save the text as UTF-8 without one")
        position = self.value(self.blank(0))
        while self.open:
            position = self.go_on(self.open[-1], self.blank(position))
        position = self.blank(position)
        if position < len(self.text):
            raise self.unexpected("the end of the text after the value", position)
        object.__setattr__(self.found, "max_depth", self.deepest)
        return self.found

    def blank(self, position: int) -> int:
        match = _BLANK.match(self.text, position)
        assert match is not None
        return match.end()

    def go_on(self, inside: _Open, position: int) -> int:
        """Scan the next member of an array or object, or its end."""
        if self.text.startswith(inside.closer, position):
            return self.close(inside, position + 1)
        if inside.members:
            position = self.comma(inside, position)
        inside.members += 1
        return self.member(inside, position) if inside.closer == "}" else self.value(position)

    def comma(self, inside: _Open, position: int) -> int:
        if not self.text.startswith(",", position):
            raise self.unexpected(f"',' or '{inside.closer}'", position)
        after = self.blank(position + 1)
        if self.text.startswith(inside.closer, after):
            raise self.fault(f"trailing comma before '{inside.closer}'", position, hint="remove the comma")
        return after

    def member(self, inside: _Open, position: int) -> int:
        if not self.text.startswith('"', position):
            expected = "a key in double quotes" if inside.members > 1 else "a key in double quotes or '}'"
            raise self.unexpected(expected, position)
        end = self.string(position)
        inside.name = str(json.loads(self.text[position:end]))
        first = inside.keys.setdefault(inside.name, position)
        if first != position and len(self.found.duplicates) < DUPLICATES_KEPT:
            self.found.duplicates.append((self.pointer(), first, position))
        colon = self.blank(end)
        if not self.text.startswith(":", colon):
            raise self.unexpected("':' after the key", colon)
        return self.value(self.blank(colon + 1), (position, end))

    def value(self, position: int, key: Span = (-1, -1)) -> int:
        """Scan a scalar, or the first character of an array or object."""
        character = self.text[position : position + 1]
        if character == "{" or character == "[":
            value = self.add(position, -1, key)
            self.open.append(_Open(value, "}" if character == "{" else "]"))
            self.deepest = max(self.deepest, len(self.open))
            if self.limit is not None and len(self.open) > self.limit:
                raise self.fault(f"nested deeper than {self.limit}", position, hint="flatten the document")
            return position + 1
        end = self.string(position) if character == '"' else self.scalar(position)
        self.add(position, end, key)
        return end

    def add(self, start: int, end: int, key: Span) -> int:
        found = self.found
        value = len(found._starts)  # noqa: SLF001  (its own builder)
        items = (start, end, value + 1, *key)
        arrays = (found._starts, found._ends, found._nexts, found._key_starts, found._key_ends)  # noqa: SLF001
        for each, item in zip(arrays, items, strict=True):
            each.append(item)
        return value

    def close(self, inside: _Open, end: int) -> int:
        self.found._ends[inside.value] = end  # noqa: SLF001
        self.found._nexts[inside.value] = len(self.found._starts)  # noqa: SLF001
        self.open.pop()
        return end

    def scalar(self, position: int) -> int:
        match = _SCALAR.match(self.text, position)
        if match is None:
            raise self.no_value(position)
        return match.end()

    def string(self, position: int) -> int:
        match = _STRING.match(self.text, position)
        if match is None:
            raise self.bad_string(position)
        if "\\u" in match.group():
            self.refuse_lone_surrogates(match)
        return match.end()

    def pointer(self) -> str:
        """The pointer of the value that is being scanned."""
        return "".join(f"/{inside.token}" for inside in self.open)

    # Faults, each said in the terms of who wrote the text.

    def fault(self, message: str, offset: int, *, hint: str = "") -> JsonSyntaxError:
        line, column = line_column(self.text, offset)
        return JsonSyntaxError(message, offset, line=line, column=column, hint=hint)

    def unexpected(self, expected: str, offset: int) -> JsonSyntaxError:
        rest = self.text[offset : offset + 40]
        if rest.startswith(("//", "/*", "#")):
            return self.fault("comments are not JSON", offset, hint="remove the comment")
        hint = "write \" instead of '" if rest.startswith("'") else ""
        word = _WORD.match(rest)
        found = repr(word.group() if word else rest[0]) if rest else "the end of the text"
        return self.fault(f"expected {expected}, found {found}", offset, hint=hint)

    def no_value(self, offset: int) -> JsonSyntaxError:
        match = _WORD.match(self.text, offset, offset + 40)
        word = match.group() if match else ""
        if word.lstrip("+-") in ("NaN", "Infinity"):
            return self.fault(f"{word} is not JSON", offset, hint="JSON numbers are finite; use null or a string")
        if word in _SPELLINGS:
            return self.fault(f"{word} is not JSON", offset, hint=f"did you mean {_SPELLINGS[word]}?")
        if _NUMBER_LIKE.match(word):
            return self.fault(f"{word} is not a JSON number", offset, hint="as in 0, -12, 0.5 or 1e9")
        return self.unexpected("a value", offset)

    def bad_string(self, start: int) -> JsonSyntaxError:
        match = _STRING_SO_FAR.match(self.text, start)
        assert match is not None
        offset = match.end()
        character = self.text[offset : offset + 1]
        if character == "\\":
            shown = self.text[offset : offset + 2]
            return self.fault(f"{shown} is no JSON escape", offset, hint="a backslash itself is written \\\\")
        if not character:
            return self.fault("the string that begins here has no end", start, hint='close it with "')
        code = f"U+{ord(character):04X}"
        if character < " ":
            written = _CONTROLS.get(character, f"\\u{ord(character):04x}")
            return self.fault(f"control character {code} in a string", offset, hint=f"write it as {written}")
        return self.fault(f"lone surrogate {code}", offset, hint="characters above U+FFFF need both halves")

    def refuse_lone_surrogates(self, string: re.Match[str]) -> None:
        for match in _SURROGATES.finditer(self.text, *string.span()):
            if match.group(1):
                raise self.fault(
                    f"lone surrogate {match.group(1)}", match.start(), hint="characters above U+FFFF need both halves"
                )

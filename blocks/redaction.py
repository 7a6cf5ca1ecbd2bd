"""Secrets must not be seen: masks their values, and the forms that they usually take, in what is shown or stored.

The forms are the value itself, its lines, as a JSON string, URL-encoded, and base64, also where it is in the middle of
something longer, as a password is in `Authorization: Basic`. A value that a program turns into anything else is beyond
this module: a step should be given no more secrets than it needs.

It knows values and texts alone; where values come from and what is shown is the engine's business.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 3
"""Characters. Shorter values are in every text, and masking them would only show where they are."""
SHORTEST_PART = 8
"""Characters of a line of a secret, and of base64 text whose ends depend on what is around it."""


class Redactor:
    """Masks the values that it has been told."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, values: Iterable[str]) -> None:
        """Mask these too."""
        forms = {form for value in values for form in _forms(value)}
        if not forms <= self._forms:
            self._forms |= forms
            longest_first = sorted(self._forms, key=lambda form: (-len(form), form))
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def text(self, text: str) -> str:
        """The text with every form of every value masked."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def value(self, value: Any) -> Any:
        """A JSON value with all texts in it masked, names too."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.value(inner) for name, inner in value.items()}
        if isinstance(value, Sequence):
            return [self.value(inner) for inner in value]
        return value


def _forms(value: str) -> Iterator[str]:
    stripped = value.strip()
    if len(stripped) < SHORTEST:
        return
    for whole in {value, stripped}:
        yield whole
        yield json.dumps(whole)[1:-1]
        yield json.dumps(whole, ensure_ascii=False)[1:-1]
        raw = whole.encode(errors="surrogateescape")
        for encoded in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
            yield encoded
            yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), encoded)
        yield from _in_base64(raw)
    lines = [line.strip() for line in stripped.splitlines()]
    yield from (line for line in lines if len(line) >= SHORTEST_PART)  # outputs are shown line by line


def _in_base64(value: bytes) -> Iterator[str]:
    """The value in base64, and the characters that are the same wherever in a longer text it is."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(value).decode()
        for before in range(3):
            encoded = encode(bytes(before) + value).decode().rstrip("=")
            start, end = -(-before * 8 // 6), (before + len(value)) * 8 // 6
            if end - start >= SHORTEST_PART:
                yield encoded[start:end]

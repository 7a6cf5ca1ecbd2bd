"""Exact find and replace in a file's bytes, and errors that say why a text was not found.

A find must occur once: with none or several the edit would be a guess. Bytes are compared, so that nothing is decoded
and encoded again on the way, whatever the file's encoding or line ends. This module knows no files and no operations.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from itertools import islice

from quantum_orchestrator.blocks.errors import OperationError

LONGEST_SHOWN = 100
LINES_COMPARED = 20_000
PLACES_SHOWN = 10


def replace_all(path: str, content: bytes, edits: Sequence[tuple[str, str]]) -> bytes:
    """Apply `(find, replace)` pairs in order, each to what the ones before left.

    Raises OperationError, naming `path`, when a find does not occur exactly once.
    """
    for number, (find, replacement) in enumerate(edits, start=1):
        content = _replace_once(f"{path}: edit {number} of {len(edits)}", content, find.encode(), replacement.encode())
    return content


def shown(line: bytes) -> str:
    """A line for a message: as text, in quotes, cut when long."""
    text = line.removesuffix(b"\n").decode(errors="replace")
    return repr(text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…")


def line_of(content: bytes, offset: int) -> int:
    """The line, from 1, that holds a byte offset."""
    return content.count(b"\n", 0, offset) + 1


def listed(numbers: Sequence[int], total: int) -> str:
    """The first of `total` line numbers as words: `line 3`, `lines 3, 7 and 12`, `lines 1, 2, … (40 in all)`."""
    if total == 1:
        return f"line {numbers[0]}"
    words = [str(number) for number in numbers[:PLACES_SHOWN]]
    if total > len(words):
        return f"lines {', '.join(words)}, … ({total} in all)"
    return f"lines {', '.join(words[:-1])} and {words[-1]}"


def _replace_once(what: str, content: bytes, find: bytes, replacement: bytes) -> bytes:
    places = list(occurrences(content, find))
    if len(places) == 1:
        return content[: places[0]] + replacement + content[places[0] + len(find) :]
    if places:
        lines = listed([line_of(content, place) for place in places[:PLACES_SHOWN]], len(places))
        raise OperationError(
            f"{what}: the text to find occurs {len(places)} times, at {lines}; it must occur once",
            hint="take in more of the lines around the one that is meant",
        )
    raise OperationError(f"{what}: the text to find does not occur: {shown(find)}", hint=why_not(content, find))


def occurrences(content: bytes, find: bytes) -> Iterator[int]:
    """Offsets, also of occurrences that overlap: `aa` is in `aaa` twice, and which one is meant is unknown."""
    place = content.find(find)
    while place >= 0:
        yield place
        place = content.find(find, place + 1)


def why_not(content: bytes, find: bytes) -> str:
    """Why a text does not occur, as far as that can be seen: where it stops matching, or what is most like it."""
    if b"\r\n" in content and b"\r" not in find and find.replace(b"\n", b"\r\n") in content:
        return "the file's lines end in \\r\\n: write the text to find with \\r\\n"
    if b"\r\n" in find and find.replace(b"\r\n", b"\n") in content:
        return "the file's lines end in \\n: write the text to find without \\r"
    return _first_difference(content, find) or _nearest_lines(content, find)


def _first_difference(content: bytes, find: bytes) -> str:
    """Where a text of several lines stops matching, if its first line is there."""
    wanted, lines = find.split(b"\n"), content.split(b"\n")
    if len(wanted) < 2:
        return ""
    starts = [at for at, line in enumerate(lines) if line.endswith(wanted[0])] if wanted[0].strip() else []
    matches = [(_matching(lines, at, wanted), at) for at in starts[:PLACES_SHOWN]]
    if not matches:
        return ""
    count, at = max(matches, key=lambda each: (each[0], -each[1]))
    found = shown(lines[at + count]) if at + count < len(lines) else "the end of the file"
    return f"line {at + 1} matches, but line {at + count + 1} is {found} where {shown(wanted[count])} was looked for"


def _matching(lines: Sequence[bytes], start: int, wanted: Sequence[bytes]) -> int:
    """How many lines of `wanted`, the first of which matches, are there from `start` on; never all of them."""
    count = 1
    while count < len(wanted) - 1 and start + count < len(lines) and lines[start + count] == wanted[count]:
        count += 1
    return count


def _nearest_lines(content: bytes, find: bytes) -> str:
    sought = next((line.strip() for line in find.split(b"\n") if line.strip()), b"").decode(errors="replace")
    numbers: dict[str, int] = {}
    for number, line in enumerate(islice(content.split(b"\n"), LINES_COMPARED), start=1):
        numbers.setdefault(line.strip().decode(errors="replace")[:500], number)
    near = difflib.get_close_matches(sought[:500], numbers, n=3, cutoff=0.5)
    if not near:
        return "no line of the file is like it: read the file again"
    return "nearest: " + "; ".join(f"line {numbers[line]}: {shown(line.encode())}" for line in near)

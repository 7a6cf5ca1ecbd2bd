"""Edits as language models write them: search and replace, over several files, all of them or none.

Models copy text nearly, not exactly: they drop trailing blanks, or lose the indentation around a block. So a search is
looked for as it stands; then line by line without the blanks at the ends of lines; then with one and the same
indentation taken off or put before every line, which the replacement then gets as well. Whichever of these is the
first to find it must find it once: a search that occurs twice is refused, and never tried in a looser way.

An empty search means that the replacement is the whole file: for a new file, or one of SHORT lines at most. With the
digest of the file that the author has seen, an edit of any other version is refused.

What is refused says why in words that a model can act on: the nearest lines, with their numbers. Pure: this module
knows neither files nor models, and nobody's words are trusted here more than anybody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from quantum_orchestrator.blocks.errors import BadAnswer
from quantum_orchestrator.blocks.tree import digest
from quantum_orchestrator.tasks.text_edit import LINES_COMPARED, line_of, listed, occurrences, why_not

SHORT = 200
"""Lines of a file that may be replaced as a whole. A model that writes out more leaves some of it out."""
SHORTEST_DIGEST = 8
"""Hexadecimal digits of a digest that tell one version of a file from another."""
AROUND = 2
"""Lines that are shown before and after the nearest ones."""
MOST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Edit:
    """One place in one file. `sha256` is the beginning of the digest of the file that its author saw, if given."""

    path: str
    search: str
    replace: str
    sha256: str = ""


class EditsRefused(BadAnswer):
    """Edits that cannot be made; nothing was changed. `faults` has every reason, one for each edit that is at fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults), hint="nothing was changed")


class _Fault(Exception):
    """What is wrong with one edit."""


def apply_edits(edits: Sequence[Edit], content_of: Callable[[str], bytes | None]) -> dict[str, bytes]:
    """What the edited files become, by path; those that stay as they are left out.

    `content_of` gives a file's bytes before the edits, None where there is no file. Edits of one file are made in
    order, each on what those before it left. Raises EditsRefused with all that is wrong.
    """
    before: dict[str, bytes | None] = {}
    after: dict[str, bytes | None] = {}
    faults = [] if edits else ["there are no edits"]
    for number, edit in enumerate(edits, start=1):
        if edit.path not in before:
            before[edit.path] = after[edit.path] = content_of(edit.path)
        try:
            after[edit.path] = _edited(edit, before[edit.path], after[edit.path])
        except _Fault as fault:
            faults.append(f"{edit.path}: edit {number} of {len(edits)}: {fault}")
    if faults:
        raise EditsRefused(faults)
    changed = {path: content for path, content in after.items() if content is not None and content != before[path]}
    if not changed:
        raise EditsRefused(["the edits change nothing: every file stays as it is"])
    return changed


def _edited(edit: Edit, original: bytes | None, content: bytes | None) -> bytes:
    try:
        search, replacement = edit.search.encode(), edit.replace.encode()
    except UnicodeEncodeError as error:
        raise _Fault("its text is not Unicode") from error
    _check_version(edit.sha256, original)
    if not search:
        return _whole(content, replacement)
    if content is None:
        raise _Fault("there is no such file; to make it, leave the search empty and give its whole content")
    return _replaced(content, search, replacement)


def _check_version(sha256: str, original: bytes | None) -> None:
    """Raises _Fault unless the file is the one that the edit was written for."""
    if not sha256:
        return
    if original is None:
        raise _Fault("it is an edit of a file that is not there")
    if len(sha256) < SHORTEST_DIGEST or not digest(original).startswith(sha256.lower()):
        raise _Fault("it was written for another version of the file than the one that is there: read the file again")


def _whole(content: bytes | None, replacement: bytes) -> bytes:
    lines = (content or b"").count(b"\n")
    if lines > SHORT:
        raise _Fault(
            f"the search is empty, which would replace the whole file, and it has {lines} lines (at most {SHORT}): "
            "search for the lines that change"
        )
    return replacement


def _replaced(content: bytes, search: bytes, replacement: bytes) -> bytes:
    places = list(occurrences(content, search))
    if len(places) == 1:
        end = places[0] + len(search)
        return content[: places[0]] + _with_line_ends_of(content, replacement) + content[end:]
    if places:
        raise _ambiguous([line_of(content, place) for place in places])
    for find in (_without_trailing_blanks, _with_other_indentation):
        found = list(find(_Lines.of(content), _Lines.of(search), _Lines.of(replacement)))
        if len(found) == 1:
            return _spliced(content, *found[0])
        if found:
            raise _ambiguous([start + 1 for start, _, _ in found])
    raise _Fault(f"the text to search for is not in the file; {_nearest(content, search)}")


def _ambiguous(lines: Sequence[int]) -> _Fault:
    return _Fault(
        f"the text to search for occurs {len(lines)} times, at {listed(lines, len(lines))}; it must occur once: "
        "take in more of the lines around the one that is meant"
    )


def _with_line_ends_of(content: bytes, replacement: bytes) -> bytes:
    """Models write `\\n`, whatever the file has."""
    if b"\r\n" in content and b"\r" not in replacement and content.count(b"\n") == content.count(b"\r\n"):
        return replacement.replace(b"\n", b"\r\n")
    return replacement


# Line by line.


class _Lines(list[bytes]):
    """A text's lines, without their ends."""

    @classmethod
    def of(cls, text: bytes) -> _Lines:
        lines = text.split(b"\n")
        return cls(lines[:-1] if lines[-1] == b"" else lines)


_Window = tuple[int, int, list[bytes]]
"""Lines that are replaced (first, and the one after the last, counted from 0), and by which."""


def _without_trailing_blanks(lines: _Lines, search: _Lines, replacement: _Lines) -> Iterator[_Window]:
    wanted = [line.rstrip() for line in search]
    if not any(wanted):
        return
    for start in _starts(lines, wanted, bytes.rstrip):
        yield start, start + len(wanted), list(replacement)


def _with_other_indentation(lines: _Lines, search: _Lines, replacement: _Lines) -> Iterator[_Window]:
    wanted = [line.strip() for line in search]
    if not any(wanted):
        return
    for start in _starts(lines, wanted, bytes.strip):
        shift = _shift(search, lines[start : start + len(wanted)])
        shifted = None if shift is None else shift.of(replacement)
        if shifted is not None:
            yield start, start + len(wanted), shifted


def _starts(lines: Sequence[bytes], wanted: Sequence[bytes], trimmed: Callable[[bytes], bytes]) -> Iterator[int]:
    """Where the wanted lines are, all compared as `trimmed` makes them."""
    own = [trimmed(line) for line in lines]
    for start in range(len(own) - len(wanted) + 1):
        if own[start] == wanted[0] and own[start : start + len(wanted)] == list(wanted):
            yield start


@dataclass(frozen=True, slots=True)
class _Shift:
    """Indentation to take off every line, and to put before it; one of them is empty."""

    off: bytes
    before: bytes

    def of(self, lines: Iterable[bytes]) -> list[bytes] | None:
        """The lines, moved; None where one has not what is to be taken off."""
        moved = []
        for line in lines:
            if line.strip() and not line.startswith(self.off):
                return None
            moved.append(self.before + line[len(self.off) :] if line.strip() else line)
        return moved


def _shift(search: Sequence[bytes], found: Sequence[bytes]) -> _Shift | None:
    """What all lines of the search must be moved by to be the lines that were found; None unless it is one thing."""
    shifts = {
        _shift_of(_indentation(one), _indentation(other))
        for one, other in zip(search, found, strict=True)
        if one.strip()
    }
    return next(iter(shifts)) if len(shifts) == 1 else None


def _shift_of(search: bytes, found: bytes) -> _Shift | None:
    if found.endswith(search):
        return _Shift(b"", found[: len(found) - len(search)])
    if search.endswith(found):
        return _Shift(search[: len(search) - len(found)], b"")
    return None  # tabs in one, blanks in the other


def _indentation(line: bytes) -> bytes:
    return line[: len(line) - len(line.lstrip())]


def _spliced(content: bytes, start: int, end: int, replacement: Sequence[bytes]) -> bytes:
    """The content with these lines in the place of those; they end as the ones before did."""
    lines = content.split(b"\n")
    carriage = b"\r" if lines[start].endswith(b"\r") else b""
    new = [line.rstrip(b"\r") + carriage for line in replacement]
    if end == len(lines) and new:  # the last line of the file has no end, and keeps it so
        new[-1] = new[-1].removesuffix(b"\r")
    return b"\n".join([*lines[:start], *new, *lines[end:]])


# The other way round.


def edits_between(path: str, before: bytes, after: bytes) -> list[Edit]:
    """The edit that makes one content the other: the lines that differ, with as many around as make them unique."""
    if before == after:
        return []
    old, new = before.decode().splitlines(keepends=True), after.decode().splitlines(keepends=True)
    first = next(
        (at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new))
    )
    shorter = min(len(old), len(new)) - first
    same_end = next((count for count in range(shorter) if old[-1 - count] != new[-1 - count]), shorter)
    while True:
        end, new_end = len(old) - same_end, len(new) - same_end
        search = "".join(old[first:end])
        if (search and len(list(occurrences(before, search.encode()))) == 1) or (first == 0 and same_end == 0):
            return [Edit(path, search, "".join(new[first:new_end]))]
        first, same_end = max(0, first - 1), max(0, same_end - 1)


# What is most like it.


def _nearest(content: bytes, search: bytes) -> str:
    """The lines that are most like the search, with their numbers; else what can be said of its first line."""
    lines = _Lines.of(content)[:LINES_COMPARED]
    wanted = [line.strip() for line in _Lines.of(search)]
    while wanted and not wanted[0]:
        del wanted[0]
    places: dict[bytes, list[int]] = {}
    for at, line in enumerate(lines):
        places.setdefault(line.strip(), []).append(at)
    votes: dict[int, int] = {}
    for offset, line in enumerate(wanted):
        for at in places.get(line, ())[:MOST_SHOWN] if line else ():
            votes[at - offset] = votes.get(at - offset, 0) + 1
    if not votes:
        return why_not(content, search)
    start = max(votes, key=lambda each: (votes[each], -each))
    return "the nearest lines are:\n" + numbered(content, start + 1 - AROUND, start + len(wanted) + AROUND)


def numbered(content: bytes, first: int, last: int) -> str:
    """The lines from `first` to `last`, counted from 1, each after its number; not more than MOST_SHOWN."""
    lines = _Lines.of(content)
    first, last = max(1, first), min(len(lines), last, first + MOST_SHOWN - 1)
    return "\n".join(f"{number:5}: {lines[number - 1].decode(errors='replace')}" for number in range(first, last + 1))

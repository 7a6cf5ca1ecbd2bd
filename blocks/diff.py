"""Changes to a workspace shown as a git patch, as counts, and in colour.

The invariant: `git apply` of the patch, in a folder that holds the files as they were, makes them what they became
(contents, executable bit, symbolic links), and `git apply -R` takes them back. What git does not keep stands in
comment lines that begin with `# ` and that git ignores: folders, permission bits other than the executable one, and
whatever lies in a repository's own `.git`. Renames are shown as a deletion and a creation.

Contents are looked up by digest, and only for files whose content differs. Additions and deletions are written
without comparing anything, so that a patch of ten thousand new files costs little more than reading them.

This module knows neither the disk nor git; the format is that of `git diff --full-index --binary --no-renames`.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantum_orchestrator.blocks.tree import Change, Entry, Kind

if TYPE_CHECKING:
    from rich.text import Text

ContentOf = Callable[[str], bytes]
Opcode = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]

LINK_MODE = 0o120000
NO_BLOB = "0" * 40
NO_NEWLINE = "\\ No newline at end of file\n"
COMPARISONS = 5_000_000
"""More candidate pairs of equal lines than this, and the differing region is shown as replaced whole."""


@dataclass(frozen=True, slots=True)
class DiffCounts:
    """How much changed. Links and binary files count as files without lines; folders do not count."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0


@dataclass(frozen=True, slots=True)
class _Blob:
    """One side of a change as git sees it."""

    mode: int
    content: bytes

    @property
    def name(self) -> str:
        header = b"blob %d\0" % len(self.content)
        return hashlib.sha1(header + self.content, usedforsecurity=False).hexdigest()

    @property
    def is_link(self) -> bool:
        return self.mode == LINK_MODE

    @property
    def is_text(self) -> bool:
        if b"\0" in self.content:
            return False
        try:
            self.content.decode()
        except UnicodeDecodeError:
            return False
        return True

    @property
    def lines(self) -> list[str]:
        # Git knows one line ending; str.splitlines() knows ten.
        return list(io.StringIO(self.content.decode(), newline="\n"))

    @property
    def line_count(self) -> int:
        return self.content.count(b"\n") + (not self.content.endswith(b"\n") if self.content else 0)


def render(changes: Sequence[Change], content_of: ContentOf, *, context: int = 3) -> str:
    """The changes as a git patch, with `context` unchanged lines around each hunk.

    `content_of` gives a file's bytes by their SHA-256. Without a change that git can express the result has comment
    lines at most, which `git apply` refuses as empty. Without context, git needs `--unidiff-zero`, and cannot always
    tell which of several equal lines is meant. Encode the result as UTF-8.
    """
    return "".join(part for change in changes for part in _change(change, content_of, context))


def statistics(changes: Sequence[Change], content_of: ContentOf) -> DiffCounts:
    """How many files changed, and how many lines came and went, as `git diff --shortstat` would count them."""
    files = insertions = deletions = 0
    for change in changes:
        if not _is_shown(change):
            continue
        files += 1
        for before, after in _stanzas(change, content_of):
            added, removed = _line_counts(before, after)
            insertions += added
            deletions += removed
    return DiffCounts(files, insertions, deletions)


def styled(patch: str) -> Text:
    """The patch in colours for a terminal. Characters that could steer the terminal, or hide text, are made visible."""
    from rich.text import Text

    text = Text()
    in_hunk = False
    for line in io.StringIO(patch, newline="\n"):
        in_hunk = line.startswith("@@ ") or (in_hunk and not line.startswith(("diff --git ", "# ")))
        text.append(line.translate(_VISIBLE), style=_style(line, in_hunk))
    return text


_HEADERS = ("diff --git ", "--- ", "+++ ", "old mode ", "new mode ", "new file ", "deleted file ", "index ")
_HUNK_STYLES = {"@": "cyan", "+": "green", "-": "red", "\\": "dim"}
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
    | {ord(mark): f"\\u{ord(mark):04x}" for mark in _BIDIRECTIONAL}
)


def _style(line: str, in_hunk: bool) -> str:
    if in_hunk:
        return _HUNK_STYLES.get(line[0], "")
    return "bold" if line.startswith(_HEADERS) else "dim"


# What a change consists of.


def _is_shown(change: Change) -> bool:
    """Whether git's patch can tell anything of it."""
    sides = (change.before, change.after)
    has_file = any(side is not None and side.kind in (Kind.FILE, Kind.LINK) for side in sides)
    return has_file and change.before != change.after and not _is_repository(change.path)


def _is_repository(path: str) -> bool:
    """Git refuses patches of its own files, in any letter case."""
    return ".git" in path.casefold().split("/")


def _change(change: Change, content_of: ContentOf, context: int) -> Iterator[str]:
    yield from _comments(change)
    if _is_shown(change):
        for before, after in _stanzas(change, content_of):
            yield from _stanza(change.path, before, after, context)


def _stanzas(change: Change, content_of: ContentOf) -> Iterator[tuple[_Blob | None, _Blob | None]]:
    """The pairs of blobs that make up a change: one, or two where a file became a link or a link a file."""
    before, after = change.before, change.after
    if before and after and before.kind is after.kind and before.sha256 == after.sha256 and not before.target:
        if _git_mode(before) != _git_mode(after):  # the content is the same: nobody needs it
            yield _Blob(_git_mode(before), b""), _Blob(_git_mode(after), b"")
        return
    old, new = _blob(before, content_of), _blob(after, content_of)
    if old and new and old.is_link != new.is_link:
        yield old, None
        yield None, new
    elif old != new:
        yield old, new


def _blob(entry: Entry | None, content_of: ContentOf) -> _Blob | None:
    if entry is None or entry.kind not in (Kind.FILE, Kind.LINK):
        return None
    content = os.fsencode(entry.target) if entry.kind is Kind.LINK else content_of(entry.sha256)
    return _Blob(_git_mode(entry), content)


def _git_mode(entry: Entry) -> int:
    if entry.kind is Kind.LINK:
        return LINK_MODE
    return 0o100755 if entry.mode & 0o100 else 0o100644


# What git does not keep.


def _comments(change: Change) -> Iterator[str]:
    path, before, after = _quoted(change.path), change.before, change.after
    if _is_repository(change.path):
        yield f"# {_verb(before, after)} {path}, which is git's own\n"
        return
    for entry, verb in ((before, "deleted"), (after, "new")):
        other = after if entry is before else before
        if entry and entry.kind in (Kind.FOLDER, Kind.SPECIAL) and (other is None or other.kind is not entry.kind):
            yield f"# {verb} {_noun(entry)} {path}\n"
    if after and after.kind in (Kind.FILE, Kind.FOLDER):
        yield from _mode_comment(path, before if before and before.kind is after.kind else None, after)


def _verb(before: Entry | None, after: Entry | None) -> str:
    return "new" if before is None else "deleted" if after is None else "changed"


def _noun(entry: Entry) -> str:
    return "folder" if entry.kind is Kind.FOLDER else "special file"


def _mode_comment(path: str, before: Entry | None, after: Entry) -> Iterator[str]:
    """Permission bits, where a patch that knows 0644 and 0755 alone would leave others."""
    told = {0o755} if after.kind is Kind.FOLDER else {0o644, 0o755}
    if before is None and after.mode not in told:
        yield f"# mode {after.mode:04o} of {path}\n"
    elif before is not None and before.mode != after.mode and not {before.mode, after.mode} <= told:
        yield f"# mode {before.mode:04o} -> {after.mode:04o} of {path}\n"


# One stanza of a patch.


def _stanza(path: str, before: _Blob | None, after: _Blob | None, context: int) -> Iterator[str]:
    old_name, new_name = _quoted(f"a/{path}"), _quoted(f"b/{path}")
    yield f"diff --git {old_name} {new_name}\n"
    yield from _header(before, after)
    old_content, new_content = before.content if before else b"", after.content if after else b""
    if old_content == new_content:
        return
    if not _both_text(before, after):
        yield f"GIT binary patch\n{_literal(new_content)}\n{_literal(old_content)}\n"
        return
    yield f"--- {_header_name(old_name) if before else '/dev/null'}\n"
    yield f"+++ {_header_name(new_name) if after else '/dev/null'}\n"
    yield from _hunks(before, after, context)


def _header(before: _Blob | None, after: _Blob | None) -> Iterator[str]:
    if before is None and after is not None:
        yield f"new file mode {after.mode:o}\nindex {NO_BLOB}..{after.name}\n"
    elif after is None and before is not None:
        yield f"deleted file mode {before.mode:o}\nindex {before.name}..{NO_BLOB}\n"
    elif before is not None and after is not None:
        if before.mode != after.mode:
            yield f"old mode {before.mode:o}\nnew mode {after.mode:o}\n"
        if before.content != after.content:
            mode = f" {after.mode:o}" if before.mode == after.mode else ""
            yield f"index {before.name}..{after.name}{mode}\n"


def _both_text(before: _Blob | None, after: _Blob | None) -> bool:
    return all(blob is None or blob.is_text for blob in (before, after))


def _hunks(before: _Blob | None, after: _Blob | None, context: int) -> Iterator[str]:
    if before is None and after is not None:
        yield f"@@ -0,0 +{_range(0, after.line_count)} @@\n{_prefixed('+', after)}"
    elif after is None and before is not None:
        yield f"@@ -{_range(0, before.line_count)} +0,0 @@\n{_prefixed('-', before)}"
    elif before is not None and after is not None:
        old, new = before.lines, after.lines
        for group in _Opcodes(old, new).get_grouped_opcodes(context):
            yield _hunk(group, old, new)


def _prefixed(sign: str, blob: _Blob) -> str:
    """All lines with their sign, in one replacement: what makes thousands of new files cheap."""
    text = blob.content.decode()
    ended = text.endswith("\n")
    body = (text[:-1] if ended else text).replace("\n", f"\n{sign}")
    return f"{sign}{body}\n" + ("" if ended else NO_NEWLINE)


def _hunk(group: Sequence[tuple[str, int, int, int, int]], old: list[str], new: list[str]) -> str:
    first, last = group[0], group[-1]
    parts = [f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n"]
    for tag, old_from, old_to, new_from, new_to in group:
        if tag == "equal":
            parts += [_line(" ", line) for line in old[old_from:old_to]]
        else:
            parts += [_line("-", line) for line in old[old_from:old_to]]
            parts += [_line("+", line) for line in new[new_from:new_to]]
    return "".join(parts)


def _line(sign: str, line: str) -> str:
    return f"{sign}{line}" if line.endswith("\n") else f"{sign}{line}\n{NO_NEWLINE}"


def _range(start: int, stop: int) -> str:
    """Lines from `start` (counted from 0) to before `stop`, as hunk headers say it."""
    length = stop - start
    if length == 1:
        return f"{start + 1}"
    return f"{start + 1 if length else start},{length}"


def _literal(content: bytes) -> str:
    """`content` in git's binary form: deflated, 52 bytes a line, each line led by its length as a letter."""
    packed = zlib.compress(content)
    rows = [packed[start : start + 52] for start in range(0, len(packed), 52)]
    encoded = (_length_letter(len(row)) + base64.b85encode(row, pad=True).decode() for row in rows)
    return f"literal {len(content)}\n" + "".join(f"{row}\n" for row in encoded)


def _length_letter(length: int) -> str:
    return chr(ord("A") + length - 1) if length <= 26 else chr(ord("a") + length - 27)


_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def _quoted(path: str) -> str:
    """A path as git prints it: in quotes and with octal escapes when it holds anything but plain ASCII."""
    if path.isascii() and path.isprintable() and '"' not in path and "\\" not in path:
        return path
    escaped = (_ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in os.fsencode(path))
    return f'"{"".join(escaped)}"'


def _header_name(quoted: str) -> str:
    """Git ends a name that holds a space with a tab, which keeps it apart from a time stamp."""
    return f"{quoted}\t" if " " in quoted else quoted


# Comparing lines.


class _Opcodes(difflib.SequenceMatcher[str]):
    """difflib on the region that differs. Equal lines at both ends, usually most of a file, are set aside first."""

    def __init__(self, old: list[str], new: list[str]) -> None:
        shorter = min(len(old), len(new))
        head = next((at for at in range(shorter) if old[at] != new[at]), shorter)
        tail = next((at for at in range(shorter - head) if old[-1 - at] != new[-1 - at]), shorter - head)
        self.head, self.tail = head, tail
        self.old, self.new = old[head : len(old) - tail], new[head : len(new) - tail]
        super().__init__(None, self.old, self.new)

    def get_opcodes(self) -> list[Opcode]:
        """The edits that lead from old to new, in positions of the whole texts."""
        head, old_end, new_end = self.head, self.head + len(self.old), self.head + len(self.new)
        opcodes: list[Opcode] = [("equal", 0, head, 0, head)] if head else []
        opcodes += [(tag, a + head, b + head, c + head, d + head) for tag, a, b, c, d in self._middle()]
        if self.tail:
            opcodes.append(("equal", old_end, old_end + self.tail, new_end, new_end + self.tail))
        return opcodes

    def _middle(self) -> list[Opcode]:
        if _pairs(self.old, self.new) <= COMPARISONS:
            return super().get_opcodes()
        return [("replace", 0, len(self.old), 0, len(self.new))]


def _pairs(old: Sequence[str], new: Sequence[str]) -> int:
    """How many pairs of equal lines difflib would look at, which is what its time grows with.

    It leaves out lines that make up more than 1 % of a text of 200 lines or more.
    """
    counts = Counter(new)
    most = len(new) // 100 + 1 if len(new) >= 200 else len(new)
    return sum(counts[line] for line in old if counts[line] <= most)


def _line_counts(before: _Blob | None, after: _Blob | None) -> tuple[int, int]:
    """Lines added and removed."""
    if any(blob is not None and (blob.is_link or not blob.is_text) for blob in (before, after)):
        return 0, 0
    if before is None or after is None:
        return (after.line_count if after else 0), (before.line_count if before else 0)
    added = removed = 0
    for tag, old_from, old_to, new_from, new_to in _Opcodes(before.lines, after.lines).get_opcodes():
        if tag != "equal":
            removed += old_to - old_from
            added += new_to - new_from
    return added, removed

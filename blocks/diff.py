"""Changes to a workspace shown as a git patch, as counts, and in colour.

The invariant: `git apply` of the patch, in a folder that holds the files as they were, makes them what they became
(contents, names, executable bit, symbolic links), and `git apply -R` takes them back. What git does not keep stands in
comment lines that begin with `# ` and that git ignores: folders that hold nothing, permission bits other than the
executable one, and, at the end, what happened to a repository's own refs and files.

Contents are looked up by digest, and only for files whose content differs. Additions and deletions are written
without comparing anything but what may be a rename, so that a patch of ten thousand new files costs little more than
reading them.

This module knows neither the disk nor git; the format is that of `git diff --full-index --binary --find-renames`.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantum_orchestrator.blocks.ref_changes import HEAD, UNKNOWN, GitChanges, RefChange, git_changes
from quantum_orchestrator.blocks.renames import Rename, find_renames, is_gits_own
from quantum_orchestrator.blocks.tree import ROOT, Change, Entry, Kind, folders_above

if TYPE_CHECKING:
    from rich.text import Text

ContentOf = Callable[[str], bytes]
Opcode = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]

LINK_MODE = 0o120000
NO_BLOB = "0" * 40
NO_NEWLINE = "\\ No newline at end of file\n"
GITS_KINDS = (Kind.FILE, Kind.LINK)
COMPARISONS = 5_000_000
"""More candidate pairs of equal lines than this, and the differing region is shown as replaced whole."""


MOST_REFS_TOLD = 20
"""Of one repository; `git clone` may bring thousands."""
MOST_FILES_TOLD = 10
MOST_SUBJECT = 72
"""Characters of a commit's subject."""


@dataclass(frozen=True, slots=True)
class DiffCounts:
    """How much changed, as git counts it: a renamed file is one, links and binary files have no lines, folders do not
    count. Unlike in git, a file counts whose permissions alone have changed, whichever."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0


@dataclass(frozen=True, slots=True)
class FileCounts:
    """How much of one file changed. `source` is its name before, if that was another; `sizes` are bytes before and
    after, for contents that differ and are not both text; `before` and `after` are what was there."""

    path: str
    insertions: int = 0
    deletions: int = 0
    source: str | None = None
    sizes: tuple[int, int] | None = None
    before: Entry | None = None
    after: Entry | None = None


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


def render(
    changes: Sequence[Change],
    content_of: ContentOf,
    *,
    context: int = 3,
    renames: Sequence[Rename] | None = None,
    git: GitChanges | None = None,
    limit: float = math.inf,
) -> str:
    """The changes as a git patch, with `context` unchanged lines around each hunk.

    `content_of` gives a file's bytes by their SHA-256; `renames` and `git` are found here unless they are given.
    Without a change that git can express the result has comment lines at most, which `git apply` refuses as empty.
    Without context, git needs `--unidiff-zero`, and cannot always tell which of several equal lines is meant. Encode
    the result as UTF-8. The first file that takes it to more than `limit` characters is the last one that is shown.
    """
    hollow = _hollow_folders(changes)
    parts: list[str] = []
    length = 0
    for change, pairs in _paired(changes, find_renames(changes, content_of) if renames is None else renames):
        if length > limit:
            parts.append("# not all is shown\n")
            break
        shown = [f"# {line}\n" for line in (*_folder_remarks(change, hollow), *_mode_remarks(change))]
        for pair in pairs:
            shown += [part for stanza in pair.stanzas(content_of) for part in _stanza(pair, *stanza, context)]
        length += sum(map(len, shown))
        parts += shown
    parts += (f"# {line}\n" for line in _git_remarks(git_changes(changes, content_of) if git is None else git))
    return "".join(parts)


def statistics(
    changes: Sequence[Change], content_of: ContentOf, *, renames: Sequence[Rename] | None = None
) -> DiffCounts:
    """How many files changed, and how many lines came and went, as `git diff --shortstat` would count them."""
    return summed(file_counts(changes, content_of, renames=renames))


def summed(counts: Sequence[FileCounts]) -> DiffCounts:
    """The counts of several files together."""
    return DiffCounts(len(counts), sum(each.insertions for each in counts), sum(each.deletions for each in counts))


def file_counts(
    changes: Sequence[Change], content_of: ContentOf, *, renames: Sequence[Rename] | None = None
) -> list[FileCounts]:
    """The same for each file, in the order of the patch."""
    found = find_renames(changes, content_of) if renames is None else renames
    return [_counted(pair, content_of) for _, pairs in _paired(changes, found) for pair in pairs]


def remarks(changes: Sequence[Change], git: GitChanges) -> list[str]:
    """What neither a patch nor counts can tell: folders that hold nothing, special files, git's refs."""
    hollow = _hollow_folders(changes)
    return [*(line for change in changes for line in _folder_remarks(change, hollow)), *_git_remarks(git)]


def styled(patch: str) -> Text:
    """The patch in colours for a terminal. Characters that could steer the terminal, or hide text, are made visible."""
    from rich.text import Text

    text = Text()
    in_hunk = False
    for line in io.StringIO(patch, newline="\n"):
        in_hunk = line.startswith("@@ ") or (in_hunk and not line.startswith(("diff --git ", "# ")))
        text.append(line.translate(_VISIBLE), style=_style(line, in_hunk))
    return text


_HEADERS = (
    *("diff --git ", "--- ", "+++ ", "old mode ", "new mode ", "new file ", "deleted file ", "index "),
    *("similarity index ", "rename from ", "rename to "),
)
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


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two versions of one file, either of which may be absent. Only a rename has two names, and a similarity."""

    old_path: str
    path: str
    before: Entry | None
    after: Entry | None
    similarity: int | None = None

    def stanzas(self, content_of: ContentOf) -> Iterator[tuple[_Blob | None, _Blob | None]]:
        """The pairs of blobs to show: one, or two where a file became a link or a link a file; none where only
        permissions changed that git does not keep."""
        before, after = self.before, self.after
        if before and after and _identity(before) == _identity(after):  # nobody needs the content
            if self.similarity is not None or _git_mode(before) != _git_mode(after):
                yield _Blob(_git_mode(before), b""), _Blob(_git_mode(after), b"")
            return
        old, new = _blob(before, content_of), _blob(after, content_of)
        if old and new and old.is_link != new.is_link:
            yield old, None
            yield None, new
        else:
            yield old, new


def _paired(changes: Sequence[Change], renames: Sequence[Rename]) -> Iterator[tuple[Change, list[_Pair]]]:
    """Each change with what git's patch tells of it: nothing, or one pair; a rename at the place of its new name."""
    wanted = {rename.source for rename in renames}
    sources = {change.path: change.before for change in changes if change.path in wanted}
    by_destination = {rename.destination: rename for rename in renames}
    for change in changes:
        rename = by_destination.get(change.path)
        if rename is not None:
            before = sources[rename.source]
            yield change, [_Pair(rename.source, change.path, before, change.after, rename.similarity)]
        elif change.path not in sources and _is_shown(change):
            yield change, [_Pair(change.path, change.path, change.before, change.after)]
        else:
            yield change, []


def _is_shown(change: Change) -> bool:
    """Whether a file or a link has changed in any way."""
    before, after = change.before, change.after
    has_file = (before is not None and before.kind in GITS_KINDS) or (after is not None and after.kind in GITS_KINDS)
    return has_file and before != after and not is_gits_own(change.path)


def _identity(entry: Entry) -> tuple[Kind, str, str]:
    """What a content is equal to another by."""
    return entry.kind, entry.sha256, entry.target


def _blob(entry: Entry | None, content_of: ContentOf) -> _Blob | None:
    if entry is None or entry.kind not in GITS_KINDS:
        return None
    content = os.fsencode(entry.target) if entry.kind is Kind.LINK else content_of(entry.sha256)
    return _Blob(_git_mode(entry), content)


def _git_mode(entry: Entry) -> int:
    if entry.kind is Kind.LINK:
        return LINK_MODE
    return 0o100755 if entry.mode & 0o100 else 0o100644


# What git does not keep.


def _hollow_folders(changes: Sequence[Change]) -> set[str]:
    """The folders that came or went with nothing in them. Those with files in them are made by making the files."""
    full_before = folders_above(change.path for change in changes if change.before is not None)
    full_after = folders_above(change.path for change in changes if change.after is not None)
    return {
        change.path
        for change in changes
        if (_is_folder(change.before) and change.path not in full_before)
        or (_is_folder(change.after) and change.path not in full_after)
    }


def _is_folder(entry: Entry | None) -> bool:
    return entry is not None and entry.kind is Kind.FOLDER


def _folder_remarks(change: Change, hollow: set[str]) -> Iterator[str]:
    if is_gits_own(change.path):
        return
    before, after = change.before, change.after
    for entry, other, verb in ((before, after, "removed"), (after, before, "made")):
        if entry is None or (other is not None and other.kind is entry.kind):
            continue
        if entry.kind is Kind.SPECIAL or (entry.kind is Kind.FOLDER and change.path in hollow):
            yield f"{_noun(entry)} {verb}: {quoted(change.path)}"


def _noun(entry: Entry) -> str:
    return "folder" if entry.kind is Kind.FOLDER else "special file"


def _mode_remarks(change: Change) -> Iterator[str]:
    """Permission bits, where a patch that knows 0644 and 0755 alone would leave others."""
    before, after = change.before, change.after
    if after is None or after.kind not in (Kind.FILE, Kind.FOLDER) or is_gits_own(change.path):
        return
    told = {0o755} if after.kind is Kind.FOLDER else {0o644, 0o755}
    if before is None or before.kind is not after.kind:
        if after.mode not in told:
            yield f"mode {after.mode:04o} of {quoted(change.path)}"
    elif before.mode != after.mode and not {before.mode, after.mode} <= told:
        yield f"mode {before.mode:04o} -> {after.mode:04o} of {quoted(change.path)}"


def _git_remarks(git: GitChanges) -> Iterator[str]:
    for path in git.removed:
        yield f"git: repository removed: {quoted(path)}"
    for path in git.made:
        head = next((ref.after for ref in git.refs if ref.repository == path and ref.name == HEAD), None)
        yield f"git: repository made: {quoted(path)}{f' (HEAD at {_ref_value(head)})' if head else ''}"
    for repository in dict.fromkeys(ref.repository for ref in git.refs):
        told = [ref for ref in git.refs if ref.repository == repository and _is_told(ref, git)]
        where = "" if repository == ROOT else f"{quoted(repository)}: "
        yield from (f"git: {where}{_ref_remark(ref)}" for ref in told[:MOST_REFS_TOLD])
        if len(told) > MOST_REFS_TOLD:
            yield f"git: {where}and {len(told) - MOST_REFS_TOLD} more refs"
    if git.files:
        named, more = ", ".join(map(quoted, git.files[:MOST_FILES_TOLD])), len(git.files) - MOST_FILES_TOLD
        yield f"git: changed: {named}{f' and {more} more' if more > 0 else ''}"


def _is_told(ref: RefChange, git: GitChanges) -> bool:
    """Of a repository that was made, what it has of its own."""
    return ref.repository not in git.made or not (ref.name == HEAD or ref.name.startswith("refs/remotes/"))


def _ref_remark(ref: RefChange) -> str:
    name = quoted(ref.name)
    if ref.after is None:
        return f"{name} deleted, was {_ref_value(ref.before or UNKNOWN)}"
    subject = "".join(each if each.isprintable() else "\ufffd" for each in ref.subject[:MOST_SUBJECT])
    told = f'  "{subject}{"…" if len(ref.subject) > MOST_SUBJECT else ""}"' if subject else ""
    if ref.before is None:
        return f"{name} made at {_ref_value(ref.after)}{told}"
    return f"{name} {_ref_value(ref.before)} → {_ref_value(ref.after)}{told}"


def _ref_value(value: str) -> str:
    """An id as git abbreviates it, or the name of another ref."""
    return value[:7] if len(value) in (40, 64) and not set(value) - set("0123456789abcdef") else quoted(value)


# One stanza of a patch.


def _stanza(pair: _Pair, before: _Blob | None, after: _Blob | None, context: int) -> Iterator[str]:
    old_name, new_name = quoted(f"a/{pair.old_path}"), quoted(f"b/{pair.path}")
    yield f"diff --git {old_name} {new_name}\n"
    yield from _header(before, after, pair)
    old_content, new_content = before.content if before else b"", after.content if after else b""
    if old_content == new_content:
        return
    if not _both_text(before, after):
        yield f"GIT binary patch\n{_literal(new_content)}\n{_literal(old_content)}\n"
        return
    yield f"--- {_header_name(old_name) if before else '/dev/null'}\n"
    yield f"+++ {_header_name(new_name) if after else '/dev/null'}\n"
    yield from _hunks(before, after, context)


def _header(before: _Blob | None, after: _Blob | None, pair: _Pair) -> Iterator[str]:
    if before is None and after is not None:
        yield f"new file mode {after.mode:o}\nindex {NO_BLOB}..{after.name}\n"
    elif after is None and before is not None:
        yield f"deleted file mode {before.mode:o}\nindex {before.name}..{NO_BLOB}\n"
    elif before is not None and after is not None:
        if before.mode != after.mode:
            yield f"old mode {before.mode:o}\nnew mode {after.mode:o}\n"
        if pair.similarity is not None:
            yield f"similarity index {pair.similarity}%\n"
            yield f"rename from {quoted(pair.old_path)}\nrename to {quoted(pair.path)}\n"
        if before.content != after.content:
            mode = f" {after.mode:o}" if before.mode == after.mode else ""
            yield f"index {before.name}..{after.name}{mode}\n"


def _both_text(before: _Blob | None, after: _Blob | None) -> bool:
    return (before is None or before.is_text) and (after is None or after.is_text)


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


def quoted(path: str) -> str:
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


def _counted(pair: _Pair, content_of: ContentOf) -> FileCounts:
    added = removed = 0
    sizes = None
    for before, after in pair.stanzas(content_of):
        more, less = _line_counts(before, after)
        added, removed = added + more, removed + less
        if not _both_text(before, after):
            sizes = (len(before.content) if before else 0, len(after.content) if after else 0)
    source = None if pair.similarity is None else pair.old_path
    return FileCounts(pair.path, added, removed, source, sizes, pair.before, pair.after)


def _line_counts(before: _Blob | None, after: _Blob | None) -> tuple[int, int]:
    """Lines added and removed."""
    if not _both_text(before, after) or (before and before.is_link) or (after and after.is_link):
        return 0, 0
    if before is None or after is None:
        return (after.line_count if after else 0), (before.line_count if before else 0)
    added = removed = 0
    for tag, old_from, old_to, new_from, new_to in _Opcodes(before.lines, after.lines).get_opcodes():
        if tag != "equal":
            removed += old_to - old_from
            added += new_to - new_from
    return added, removed

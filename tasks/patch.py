"""Unified diffs: read, and applied to contents without fuzz.

Both what `diff -u` and what `git diff` print is read, with git's headers for modes, renames, copies, new and deleted
files, and its binary parts. Reading is strict: a hunk has exactly the lines that its header announces, and nothing
that looks like a change is passed over as a comment.

A hunk is applied where it says, if its old lines are there exactly; else, if they are in one other place only, there.
As in git, a hunk at the first line must fit the file's beginning, and one without context after its changes must
fit the file's end, so that a patch without context cannot land somewhere by chance. Lines end in `\\n`; a `\\r` before
it belongs to the line.

This module knows no workspace: names come out as they are written, to be judged by whoever uses them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks import git_binary
from quantum_orchestrator.tasks.git_binary import BadBinary, Binary
from quantum_orchestrator.tasks.text_edit import listed, shown

NOTHING = "/dev/null"
SHORTEST_ID = 40

_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_INDEX = re.compile(r"([0-9a-f]+)\.\.([0-9a-f]+)(?: [0-7]{6})?")
_ESCAPE = re.compile(rb'\\([abtnvfr"\\]|[0-3][0-7]{2})')
_ESCAPES = dict(zip(b'abtnvfr"\\', b'\a\b\t\n\v\f\r"\\', strict=True))
_EXECUTABLE = {"100644": False, "100664": False, "100600": False, "100755": True, "100775": True, "100700": True}


class BadPatch(OperationError):
    """The text is not a patch, or not one that can be applied safely."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines that are replaced by others, with the context around them in both."""

    number: int
    patch_line: int
    start: int
    """The line, from 1, that the old lines begin at; where there are none, the line they come after."""
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]
    trailing: int
    """Lines of context after the last change."""


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What happens to one file."""

    old: str | None
    """The path before; None for a new file."""
    new: str | None
    """The path after; None for a deleted file."""
    patch_line: int
    is_copy: bool = False
    executable: bool | None = None
    """The executable bit after, where the patch speaks of it."""
    hunks: tuple[Hunk, ...] = ()
    binary: Binary | None = None
    ids: tuple[str, str] | None = None
    """Git's object ids of the contents before and after."""

    @property
    def path(self) -> str:
        """The name to speak of it by."""
        return self.new or self.old or ""

    @property
    def frees(self) -> str | None:
        """The path at which nothing is left."""
        return self.old if self.old != self.new and not self.is_copy else None

    def apply(self, before: bytes) -> bytes:
        """The content after. Raises OperationError, with the file, the hunk and the line, where it does not fit."""
        if self.binary is not None:
            after = _apply_binary(self, self.binary, before)
        else:
            after = apply_hunks(self.old or self.path, before, self.hunks)
        if self.new is None and after:
            left = shown(_split(after)[0])
            raise OperationError(
                f"{self.path}: the patch deletes the file, but does not know all that is in it: {left} would be left",
                hint="make the patch against the file as it is now",
            )
        return after


@lru_cache(maxsize=8)
def parse(text: str) -> tuple[FilePatch, ...]:
    """Read a patch. Raises BadPatch with the line in the patch."""
    return tuple(_Reader(text.encode()).read())


# Applying.


def apply_hunks(path: str, before: bytes, hunks: Sequence[Hunk]) -> bytes:
    """The content with all hunks applied. Raises OperationError for the first that does not fit."""
    lines = _split(before)
    pieces: list[bytes] = []
    done = drift = 0
    for hunk in hunks:
        place = _place(path, lines, hunk, done, drift)
        pieces += lines[done:place]
        pieces += hunk.new
        done, drift = place + len(hunk.old), place - _stated(hunk)
    return b"".join([*pieces, *lines[done:]])


def _split(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


def _stated(hunk: Hunk) -> int:
    return hunk.start - 1 if hunk.old else hunk.start


def _place(path: str, lines: list[bytes], hunk: Hunk, done: int, drift: int) -> int:
    """The index of the line that the hunk begins at: where it says (moved as the hunk before was), or the only one."""
    stated = _stated(hunk) + drift
    if _fits(lines, hunk, stated, done):
        return stated
    others = [at for at in range(done, len(lines)) if _fits(lines, hunk, at, done)] if hunk.old else []
    if len(others) == 1:
        return others[0]
    raise _misfit(path, lines, hunk, stated, others)


def _fits(lines: list[bytes], hunk: Hunk, at: int, done: int) -> bool:
    end = at + len(hunk.old)
    if at < done or end > len(lines) or (hunk.start <= 1 and at != 0) or (not hunk.trailing and end != len(lines)):
        return False
    return not hunk.old or (lines[at] == hunk.old[0] and tuple(lines[at:end]) == hunk.old)


def _misfit(path: str, lines: list[bytes], hunk: Hunk, stated: int, others: list[int]) -> OperationError:
    what = f"{path}: hunk {hunk.number} (line {hunk.patch_line} of the patch) does not apply"
    if others:
        places = listed([at + 1 for at in others], len(others))
        hint = "correct the line number in its header, or give it more lines of context"
        return OperationError(f"{what}: its lines are not at line {stated + 1}, but at {places}", hint=hint)
    for offset, expected in enumerate(hunk.old):
        at = stated + offset
        found = lines[at] if 0 <= at < len(lines) else None
        if found != expected:
            return OperationError(f"{what}: {_difference(at + 1, found, expected)}", hint=_hint(found, expected))
    edge = "beginning" if hunk.start <= 1 and stated != 0 else f"end, and the file has {len(lines)} lines"
    message = f"without context on that side it must fit the file's {edge}"
    return OperationError(f"{what}: {message}", hint="make the patch with lines of context, as `diff -U3` does")


def _difference(number: int, found: bytes | None, expected: bytes) -> str:
    there = "there is no such line" if found is None else f"it is {shown(found)}"
    return f"line {number} should be {shown(expected)}, and {there}"


def _hint(found: bytes | None, expected: bytes) -> str:
    ends = {line.rstrip(b"\r\n"): line for line in (found or b"", expected)}
    if found is not None and len(ends) == 1:
        if (b"\r" in found) != (b"\r" in expected):
            return "they differ in the line end: \\r\\n on one side, \\n on the other"
        return "they differ in the newline at the end of the file (`\\ No newline at end of file`)"
    return "make the patch against the file as it is now"


def _apply_binary(patch: FilePatch, binary: Binary, before: bytes) -> bytes:
    if patch.ids is None or min(map(len, patch.ids)) < SHORTEST_ID:
        raise BadPatch(
            f"{patch.path}: a binary patch needs the full object ids in its index line",
            hint="make it with `git diff --binary` or `git diff --full-index --binary`",
        )
    old_id, new_id = patch.ids
    if patch.old is not None and git_binary.object_id(before, old_id) != old_id:
        raise OperationError(f"{patch.path}: is not the file that the binary patch was made for ({old_id})")
    try:
        after = binary.apply(before)
    except BadBinary as error:
        raise BadPatch(f"{patch.path}: the binary patch does not apply: {error}") from error
    if patch.new is not None and git_binary.object_id(after, new_id) != new_id:
        raise BadPatch(f"{patch.path}: the binary patch does not make the content that it announces ({new_id})")
    return after


# Reading.


@dataclass(slots=True)
class _Headers:
    """What the lines before the first hunk say of a file, until it is known to be consistent."""

    line: int
    git: bool = False
    named: tuple[str, str] | None = None  # on the line `diff --git`
    old_line: str | None = None  # after `---`
    new_line: str | None = None  # after `+++`
    renamed: dict[str, str] = field(default_factory=dict)  # "rename from" and the like
    modes: dict[str, str] = field(default_factory=dict)  # "new file mode" and the like
    ids: tuple[str, str] | None = None


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.lines = _split(content)
        self.at = 0

    def read(self) -> list[FilePatch]:
        """Read the whole text."""
        patches = []
        while self.at < len(self.lines):
            if self.lines[self.at].startswith(b"diff --git "):
                patches.append(self.git_file())
            elif self.is_file_header():
                patches.append(self.body(self.names(_Headers(self.at + 1))))
            else:
                self.skip(after_hunk=False)
        if not patches:
            raise BadPatch("patch: there is no change in it", hint="it is a unified diff: ---, +++, then @@ and lines")
        return patches

    # Lines.

    def line(self) -> bytes:
        return self.lines[self.at] if self.at < len(self.lines) else b""

    def is_file_header(self) -> bool:
        following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else b""
        return self.line().startswith(b"--- ") and following.startswith(b"+++ ")

    def bad(self, message: str, *, line: int | None = None, hint: str = "") -> BadPatch:
        return BadPatch(f"patch: line {line or self.at + 1}: {message}", hint=hint)

    def skip(self, *, after_hunk: bool) -> None:
        """Pass over a line that is neither header nor change; refuse one that somebody meant as a change."""
        line = self.line()
        if line.startswith(b"@@ -"):
            raise self.bad("a hunk without a file", hint="put the lines `--- a/PATH` and `+++ b/PATH` before it")
        if line.startswith((b"diff --cc ", b"diff --combined ", b"@@@ ")):
            raise self.bad("a combined diff of a merge", hint="make the patch against one parent")
        if after_hunk and line[:1] in (b"+", b"-", b" ") and line.rstrip() != b"--":  # a mail's signature
            hint = "count its lines: the header is `@@ -OLD,LINES +NEW,LINES @@`"
            raise self.bad("the hunk before has more lines than its header announces", hint=hint)
        self.at += 1

    # The headers of one file.

    def git_file(self) -> FilePatch:
        headers = _Headers(self.at + 1, git=True, named=_git_names(_text(self.line()[len(b"diff --git ") :])))
        self.at += 1
        while self.at < len(self.lines) and self.extended(headers):
            self.at += 1
        if self.is_file_header():
            self.names(headers)
        return self.body(headers)

    def extended(self, headers: _Headers) -> bool:
        """Take in one of git's extended headers; False at the first line that is none."""
        line = _text(self.line())
        for name in ("old mode", "new mode", "new file mode", "deleted file mode"):
            if line.startswith(f"{name} "):
                headers.modes[name] = self.mode(line.removeprefix(name).strip())
                return True
        for name in ("rename from", "rename to", "copy from", "copy to"):
            if line.startswith(f"{name} "):
                headers.renamed[name] = self.unquoted(line.removeprefix(f"{name} "))
                return True
        if line.startswith("index "):
            match = _INDEX.fullmatch(line.removeprefix("index ").strip())
            headers.ids = (match[1], match[2]) if match else None
            return True
        return line.startswith(("similarity index ", "dissimilarity index "))

    def mode(self, mode: str) -> str:
        if mode not in _EXECUTABLE:
            nouns = {"120000": "a symbolic link", "160000": "a submodule", "040000": "a folder"}
            what = nouns.get(mode, "no file mode that git knows")
            raise self.bad(f"mode {mode} is {what}; patches are applied to files alone")
        return mode

    def names(self, headers: _Headers) -> _Headers:
        headers.old_line, headers.new_line = self.header_name(0), self.header_name(1)
        self.at += 2
        if not self.line().startswith(b"@@ "):
            raise self.bad("a hunk is expected here, as in `@@ -1,3 +1,4 @@`")
        return headers

    def header_name(self, offset: int) -> str:
        name = _text(self.lines[self.at + offset][4:])
        if name.startswith('"'):
            return self.unquoted(name)
        before, tab, _ = name.partition("\t")  # which git puts behind a name with spaces
        return self.unquoted(before if tab else before.rstrip())

    def unquoted(self, name: str) -> str:
        try:
            return _unquote(name)
        except ValueError as error:
            raise self.bad(f"the name {name} cannot be read: {error}") from error

    # What follows the headers.

    def body(self, headers: _Headers) -> FilePatch:
        patch = self.file_patch(headers)
        line = self.line()
        if line.startswith(b"GIT binary patch"):
            return replace(patch, binary=self.binary())
        if line.startswith(b"Binary files "):
            raise self.bad("a binary file's changes are left out here", hint="make the patch with `git diff --binary`")
        return replace(patch, hunks=self.hunks(patch))

    def binary(self) -> Binary:
        self.at += 1
        try:
            forward, self.at = git_binary.read(self.lines, self.at)
            if git_binary.has_more(self.lines, self.at):
                _, self.at = git_binary.read(self.lines, self.at)
        except BadBinary as error:
            raise self.bad(f"the binary patch cannot be read: {error}") from error
        return forward

    def file_patch(self, headers: _Headers) -> FilePatch:
        old, new = self.paths(headers)
        mode = headers.modes.get("new file mode") or headers.modes.get("new mode")
        executable = None if mode is None else _EXECUTABLE[mode]
        is_copy = "copy from" in headers.renamed
        return FilePatch(old, new, headers.line, is_copy, executable, ids=headers.ids)

    def paths(self, headers: _Headers) -> tuple[str | None, str | None]:
        """The paths before and after, from whichever headers there are; they must agree."""
        lines = None
        if headers.old_line is not None and headers.new_line is not None:
            lines = _without_prefixes(headers.old_line, headers.new_line)
        old, new = self.renamed(headers) or lines or self.git_paths(headers)
        if lines not in (None, (old, new)):
            raise self.bad("the names after --- and +++ are not those of the rename", line=headers.line)
        if old is None and new is None:
            raise self.bad("both sides are /dev/null", line=headers.line)
        if old != new and old and new and not headers.renamed:
            message = f"the file is {old!r} before and {new!r} after"
            raise self.bad(message, line=headers.line, hint="a renamed file needs the lines `rename from`, `rename to`")
        if ("new file mode" in headers.modes and old) or ("deleted file mode" in headers.modes and new):
            raise self.bad("a file that is new or deleted has /dev/null on the other side", line=headers.line)
        return old, new

    def renamed(self, headers: _Headers) -> tuple[str, str] | None:
        if not headers.renamed:
            return None
        for verb in ("rename", "copy"):
            if headers.renamed.keys() == {f"{verb} from", f"{verb} to"}:
                return headers.renamed[f"{verb} from"], headers.renamed[f"{verb} to"]
        raise self.bad("a rename or copy has one line `from` and one `to`", line=headers.line)

    def git_paths(self, headers: _Headers) -> tuple[str | None, str | None]:
        """The paths where nothing but the line `diff --git` names them: a change of mode, an empty or a binary file."""
        named = _without_prefixes(*headers.named) if headers.named else (None, None)
        if named[0] is None or named[0] != named[1]:
            raise self.bad("the names on this line cannot be told apart", line=headers.line)
        if not headers.modes and not self.line().startswith((b"GIT binary patch", b"Binary files ")):
            raise self.bad("nothing changes in this file", line=headers.line, hint="complete the patch or take it out")
        old = None if "new file mode" in headers.modes else named[0]
        return old, None if "deleted file mode" in headers.modes else named[1]

    # Hunks.

    def hunks(self, patch: FilePatch) -> tuple[Hunk, ...]:
        hunks: list[Hunk] = []
        just_read = False
        while self.at < len(self.lines):
            line = self.line()
            if line.startswith(b"@@ "):
                hunks.append(self.hunk(len(hunks) + 1))
                just_read = True
            elif line.startswith(b"diff --git ") or self.is_file_header():
                break
            else:
                self.skip(after_hunk=just_read)
                just_read = just_read and not line.strip()
        self.judge(patch, hunks)
        return tuple(hunks)

    def judge(self, patch: FilePatch, hunks: list[Hunk]) -> None:
        for first, second in itertools.pairwise(hunks):
            if second.start < first.start + len(first.old):
                raise self.bad("hunks are in the order of the file and do not overlap", line=second.patch_line)
        for hunk in hunks:
            if (patch.old is None and hunk.old) or (patch.new is None and hunk.new):
                raise self.bad("a new file has no old lines, a deleted one no new lines", line=hunk.patch_line)

    def hunk(self, number: int) -> Hunk:
        header, start_line = _HUNK.match(self.line()), self.at + 1
        if header is None:
            raise self.bad("a hunk's header is `@@ -OLD,LINES +NEW,LINES @@`")
        old_count, new_count = (int(header[group] or 1) for group in (2, 4))
        old: list[bytes] = []
        new: list[bytes] = []
        trailing = 0
        self.at += 1
        while len(old) < old_count or len(new) < new_count:
            sign, line = self.hunk_line()
            if not sign:
                break
            trailing = trailing + 1 if sign == b" " else 0
            old += [line] * (sign != b"+")
            new += [line] * (sign != b"-")
            self.at += 1
            self.newline_marker(sign, old, new)
        announced, found = (old_count, new_count), (len(old), len(new))
        if announced != found:
            message = "hunk {} announces {} old and {} new lines, and has {} and {}".format(number, *announced, *found)
            hint = "context lines begin with a blank, and count on both sides"
            raise self.bad(message, line=start_line, hint=hint)
        return Hunk(number, start_line, int(header[1]), tuple(old), tuple(new), trailing)

    def hunk_line(self) -> tuple[bytes, bytes]:
        """The sign and the rest of a hunk's line; no sign for a line that is none."""
        line = self.line()
        if line in (b"\n", b"\r\n"):  # a context line whose lone blank an editor took off
            return b" ", line
        if line[:1] not in (b" ", b"+", b"-"):
            return b"", b""
        return line[:1], line[1:] if line.endswith(b"\n") else line[1:] + b"\n"

    def newline_marker(self, sign: bytes, old: list[bytes], new: list[bytes]) -> None:
        """`\\ No newline at end of file` speaks of the line before it."""
        if not self.line().startswith(b"\\ "):
            return
        for side in ([old] if sign != b"+" else []) + ([new] if sign != b"-" else []):
            side[-1] = side[-1].removesuffix(b"\n")
        self.at += 1


def _text(line: bytes) -> str:
    return line.decode().rstrip("\r\n")


def _unquote(name: str) -> str:
    """A name, freed of git's quotes and escapes. Raises ValueError."""
    if not name.startswith('"'):
        return name
    end = re.fullmatch(r'"((?:[^"\\]|\\.)*)".*', name)
    if end is None:
        raise ValueError("its quotes do not close")
    raw = end[1].encode()
    if b"\\" in _ESCAPE.sub(b"", raw):
        raise ValueError("it holds an unknown escape")
    return _ESCAPE.sub(lambda match: bytes([_ESCAPES.get(match[1][0]) or int(match[1], 8)]), raw).decode()


def _git_names(rest: str) -> tuple[str, str] | None:
    """The two names on a line `diff --git`, where they are quoted or alike but for a prefix."""
    if '"' in rest:
        parts = re.fullmatch(r'("(?:[^"\\]|\\.)*"|\S+) ("(?:[^"\\]|\\.)*"|\S+)', rest)
        if parts is None:
            return None
        try:
            return _unquote(parts[1]), _unquote(parts[2])
        except ValueError:
            return None  # the reader says that the names cannot be told apart
    half = len(rest) // 2
    left, right = rest[:half], rest[half + 1 :]
    return (left, right) if rest[half : half + 1] == " " else None


def _without_prefixes(old: str, new: str) -> tuple[str | None, str | None]:
    """Take `a/` and `b/` off where both sides have them (a side that is /dev/null has none); else take them as written.

    Written so, `--- src/x.py` and `+++ src/x.py` work, and so does a file in a folder that is called `a`.
    """
    prefixed = (old == NOTHING or old.startswith("a/")) and (new == NOTHING or new.startswith("b/"))
    strip = 2 if prefixed else 0
    return (None if old == NOTHING else old[strip:]), (None if new == NOTHING else new[strip:])

"""What happened to git's refs, read from the changes of files in `.git`: branches, tags, HEAD, repositories that came.

A ref is a file below `.git/refs`, or a line of `.git/packed-refs`, which the file beats. A repository is named by the
folder that holds its `.git`, `.` for the workspace. The invariant: nothing here raises for want of a content. A side
whose file can neither be found by its digest nor read where it lies is UNKNOWN, and the rest is told all the same.

This module starts no git and knows no disk: whoever calls it gives the contents, and says what lies there now.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.tree import ROOT, Change, Entry, Kind, digest, join

ContentOf = Callable[[str], bytes]
ReadNow = Callable[[str], bytes | None]
"""A file's bytes as they were once the changes had been made, by path; None if it was not there or cannot be read."""

GIT = ".git"
HEAD = "HEAD"
UNKNOWN = "unknown"

_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_OBJECT_BYTES = 64 * 1024
"""Enough of a commit for its subject."""
_BOOKKEEPING = re.compile(
    r"(?:HEAD|(?:ORIG|FETCH|MERGE|REVERT|CHERRY_PICK)_HEAD|AUTO_MERGE|MERGE_MODE|COMMIT_EDITMSG|MERGE_MSG|packed-refs"
    r"|(?:refs|logs|objects|branches)(?:/.*)?|.*\.lock)",
    re.DOTALL,
)
"""What is told as a change of refs, or follows from one."""


@dataclass(frozen=True, slots=True)
class RefChange:
    """One ref before and after: a full object id, the name of another ref, UNKNOWN, or None where there was none.

    `subject` is the first line of the message that `after` has, if it can be read.
    """

    repository: str
    name: str
    before: str | None
    after: str | None
    subject: str = ""


@dataclass(slots=True)
class GitChanges:
    """What happened in repositories. `files` are paths of others of git's own files: its index, configuration, hooks.

    Of a repository that was made all refs are told and no files; of one that was removed, nothing else.
    """

    refs: list[RefChange] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def _nothing(_path: str) -> None:
    return None


def git_changes(changes: Iterable[Change], content_of: ContentOf, read_now: ReadNow = _nothing) -> GitChanges:
    """What the changes below `.git` mean; the others are passed over.

    `content_of` gives a file's bytes by their SHA-256, and may raise KeyError or an error of the product.
    """
    found = GitChanges()
    repositories: dict[str, dict[str, Change]] = {}
    for change in changes:
        parts = change.path.split("/")
        if GIT in parts:
            at = parts.index(GIT)
            repositories.setdefault("/".join(parts[:at]) or ROOT, {})["/".join(parts[at + 1 :])] = change
    for repository, files in sorted(repositories.items()):
        _Repository(repository, files, content_of, read_now).tell(found)
    return found


class _Repository:
    """The changes of one repository, by path below its `.git`."""

    def __init__(self, path: str, files: Mapping[str, Change], content_of: ContentOf, read_now: ReadNow) -> None:
        self._path = path
        self._files = files
        self._content_of = content_of
        self._read_now = read_now

    def tell(self, found: GitChanges) -> None:
        """Add to what was found."""
        own = self._files.get("")
        was, came = (_is_folder(own.before), _is_folder(own.after)) if own else (True, True)
        if was and not came:
            found.removed.append(self._path)
            return
        if came and not was:
            found.made.append(self._path)
        else:
            others = [name for name in self._files if name and not _BOOKKEEPING.fullmatch(name)]
            found.files += [self._in_git(name) for name in sorted(others) if self._is_file(name)]
        found.refs += self._refs()

    def _is_file(self, name: str) -> bool:
        change = self._files[name]
        return not all(side is None or side.kind is Kind.FOLDER for side in (change.before, change.after))

    def _in_git(self, name: str) -> str:
        return join(join(self._path, GIT), name)

    def _refs(self) -> Iterator[RefChange]:
        loose = {name: self._sides(name) for name in self._files if _is_ref(name)}
        packed_before, packed_after = self._packed(loose)
        for name in sorted(loose.keys() | packed_before.keys() | packed_after.keys()):
            before, after = loose.get(name, (None, None))
            before = packed_before.get(name) if before is None else before
            after = packed_after.get(name) if after is None else after
            if before == after and before != UNKNOWN:
                continue
            if name not in loose and self._read_now(self._in_git(name)) is not None:
                continue  # a file of that name, which has not changed, beats the line
            yield RefChange(self._path, name, before, after, self._subject(after))

    def _sides(self, name: str) -> tuple[str | None, str | None]:
        """What the ref's own file held; a folder of refs is none."""
        change = self._files[name]
        return self._value(name, change.before), self._value(name, change.after)

    def _value(self, name: str, entry: Entry | None) -> str | None:
        if entry is None or entry.kind not in (Kind.FILE, Kind.LINK):
            return None
        if entry.kind is Kind.LINK:  # as git wrote HEAD once
            return entry.target
        content = self._content(name, entry)
        return UNKNOWN if content is None else _value_of(content)

    def _packed(self, loose: Mapping[str, tuple[str | None, str | None]]) -> tuple[dict[str, str], dict[str, str]]:
        """The refs of `packed-refs` before and after; of an unchanged one only if a file may replace some of them."""
        change = self._files.get("packed-refs")
        if change is not None:
            return self._packed_side(change.before, loose), self._packed_side(change.after, loose)
        if not any(before is None or after is None for before, after in loose.values()):
            return {}, {}
        same = _packed_of(self._read_now(self._in_git("packed-refs")) or b"")
        return same, same

    def _packed_side(self, entry: Entry | None, loose: Iterable[str]) -> dict[str, str]:
        if entry is None or entry.kind is not Kind.FILE:
            return {}
        content = self._content("packed-refs", entry)
        if content is None:
            return dict.fromkeys((each for each in loose if each != HEAD), UNKNOWN)
        return _packed_of(content)

    def _content(self, name: str, entry: Entry) -> bytes | None:
        with suppress(QuantumError, KeyError):
            return self._content_of(entry.sha256)
        now = self._read_now(self._in_git(name))
        return now if now is not None and digest(now) == entry.sha256 else None

    def _subject(self, value: str | None) -> str:
        if value is None or not _ID.fullmatch(value):
            return ""
        packed = self._read_now(self._in_git(f"objects/{value[:2]}/{value[2:]}"))
        return "" if packed is None else _subject_of(packed)


def _is_folder(entry: Entry | None) -> bool:
    return entry is not None and entry.kind is Kind.FOLDER


def _is_ref(name: str) -> bool:
    return (name == HEAD or name.startswith("refs/")) and not name.endswith(".lock")


def _value_of(content: bytes) -> str:
    text = content.decode(errors="replace").strip()
    if text.startswith("ref:"):
        return text.removeprefix("ref:").strip()
    return text if _ID.fullmatch(text) else UNKNOWN


def _packed_of(content: bytes) -> dict[str, str]:
    """git-pack-refs(1): an id and a name a line; `#` begins the header, `^` what a tag stands for."""
    pairs = (line.partition(" ") for line in content.decode(errors="surrogateescape").split("\n"))
    return {name: value for value, _, name in pairs if _ID.fullmatch(value) and name}


def _subject_of(packed: bytes) -> str:
    """The first line of a commit's or a tag's message, from its own file below `objects`; empty for what is neither."""
    try:
        raw = zlib.decompressobj().decompress(packed, _OBJECT_BYTES)
    except zlib.error:
        return ""
    header, _, message = raw.partition(b"\n\n")
    if not header.startswith((b"commit ", b"tag ")):
        return ""
    return message.lstrip(b"\n").partition(b"\n")[0].decode(errors="replace").strip()

"""Judges how a path is spelt, before anything looks at the disk.

Every path in an instruction set is relative to the workspace, with `/` between its names. This module refuses each
spelling that some file system, shell or git would read as something else: a way out of the workspace, a second name of
`.git`, a name that another machine cannot hold. What is left means one thing everywhere, so that the rest of the
product compares paths as plain text. Nothing is ever repaired: a path is taken as it is written, or refused with
one message that says which rule it breaks.

Invariant: a path that `check_path` returns is the very text it was given, and joined to any folder it names something
below that folder, so long as no symbolic link is on the way. Links and special files are what is *there*, not spelling:
`blocks/confined.py` refuses those. This module knows neither the disk nor who asks.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.tree import ROOT

LONGEST_NAME = 255
"""Bytes in one name: NAME_MAX of every common file system."""
LONGEST_PATH = 4095
"""Bytes in a path: PATH_MAX of Linux without the NUL that ends it."""
LONGEST_SHOWN = 120
"""Characters of a path that a message repeats."""


class Complaint(NamedTuple):
    """Why a spelling is refused, and what to write instead."""

    what: str
    hint: str = ""


Rule = Callable[[str], Complaint | None]


def check_path(path: str, *, folder: bool = False) -> str:
    """`path` itself, if its spelling is that of a file or folder in the workspace.

    With `folder`, the workspace itself, `.`, is fine too. Raises PathRefused naming the path and the rule.
    """
    if (len(path) <= LONGEST_NAME and _PLAIN.fullmatch(path)) or (folder and path == ROOT):
        return path
    complaint = _judge(path)
    if complaint:
        raise PathRefused(f"{shown(path)}: {complaint.what}", hint=complaint.hint)
    return path


# What no rule below refuses, told at a glance: of 100,000 paths nearly all are such.
_PLAIN = re.compile(
    r"(?i:(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:[./]|\Z))[a-z0-9_-](?:[a-z0-9_.-]*[a-z0-9_-])?(?:/(?!\Z)|\Z))+",
    re.ASCII,
)


@lru_cache(maxsize=16_384)
def _judge(path: str) -> Complaint | None:
    """What is wrong with a spelling. Every floor asks again, for the same path many times in a run."""
    return _first(_PATH_RULES, path) or next(filter(None, map(_judge_name, path.split("/"))), None)


def fold(path: str) -> str:
    """A key that is equal for paths that a file system without letter case, or one that normalises, cannot hold apart.

    Canonical caseless matching (Unicode 16, section 3.13.5, D145), given in NFC.
    """
    if path.isascii():
        return path.lower()
    decomposed = unicodedata.normalize("NFD", path).casefold()
    return unicodedata.normalize("NFC", decomposed)


def shown(path: str) -> str:
    """`path` as messages show it: quoted, what cannot be seen escaped, and cut when it is very long."""
    return repr(path) if len(path) <= LONGEST_SHOWN else f"{path[:LONGEST_SHOWN]!r}…"


def _first(rules: tuple[Rule, ...], text: str) -> Complaint | None:
    for rule in rules:
        complaint = rule(text)
        if complaint is not None:
            return complaint
    return None


def _judge_name(name: str) -> Complaint | None:
    return _first(_NAME_RULES, name)


def _pattern(expression: str, what: str, hint: str = "") -> Rule:
    """The rule that refuses every text in which `expression` is found."""
    find = re.compile(expression).search
    complaint = Complaint(what, hint)
    return lambda text: complaint if find(text) else None


# Rules about the whole path.


def _is_the_workspace(path: str) -> Complaint | None:
    return Complaint("is the workspace itself, and a path in it is needed") if path == ROOT else None


def _leads_up(path: str) -> Complaint | None:
    if ".." not in path or ".." not in path.split("/"):
        return None
    inside = os.path.normpath(path)
    if inside == ".." or inside.startswith("../"):
        return Complaint("'..' leads out of the workspace", "every path is relative to the workspace and stays in it")
    return Complaint("'..' is refused, even where it stays in the workspace", f"write {inside!r}")


def _has_a_dot_part(path: str) -> Complaint | None:
    names = path.split("/")
    if ROOT not in names:
        return None
    plain = "/".join(name for name in names if name != ROOT)
    return Complaint("'.' as a part of a path means nothing", f"write {plain!r}" if plain else "")


def _is_not_composed(path: str) -> Complaint | None:
    if path.isascii() or unicodedata.is_normalized("NFC", path):
        return None
    composed = unicodedata.normalize("NFC", path)
    hint = f"it is {path!a}; in NFC it is {composed!a}"
    return Complaint("is not in Unicode's composed form (NFC), so that it looks like another path but is not it", hint)


def _is_too_long(path: str) -> Complaint | None:
    size = len(path.encode())
    return Complaint(f"has {size} bytes, and a path has at most {LONGEST_PATH}") if size > LONGEST_PATH else None


_RELATIVE = "write it relative to the workspace, with '/' between the names"
_PRINTABLE = "take it out; such characters make a path look like another one"

_PATH_RULES: tuple[Rule, ...] = (
    _pattern(r"\A\Z", "is empty", "name a file or folder in the workspace"),
    _is_the_workspace,
    _pattern("\x00", "contains a NUL character"),
    _pattern("[\ud800-\udfff]", "contains half a character (a lone surrogate)", "write it in UTF-8"),
    _pattern("[\x01-\x1f\x7f-\x9f\u2028\u2029]", "contains a control character", _PRINTABLE),
    _pattern(
        "[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", "contains a character that turns the text around", _PRINTABLE
    ),
    _pattern(r"\A[A-Za-z][A-Za-z0-9+.-]*://", "is a URL, and a path is needed", _RELATIVE),
    _pattern(r"\A(\\\\|//)", "is a network path", _RELATIVE),
    _pattern(r"\A[A-Za-z]:", "begins with a drive letter", _RELATIVE),
    _pattern(r"\\", "contains a backslash", "write '/' between the names"),
    _pattern(r"\A/", "is an absolute path", _RELATIVE),
    _pattern(r"\A~", "begins with '~', which means a home folder", _RELATIVE),
    _leads_up,
    _pattern(r"/\Z", "ends in '/'", "leave the last '/' out"),
    _pattern(r"//", "has an empty name between two '/'", "write one '/'"),
    _has_a_dot_part,
    _is_not_composed,
    _is_too_long,
)


# Rules about each name in it. The names of git come first: `.git.` is refused for what it means, not for its dot.

# What file systems and people do not see: format characters are found by category, these by number.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
# `.git` and `.gitmodules` themselves, and the short names that NTFS gives them (`path.c` of git, is_ntfs_dotgit).
_GIT_NAMES = re.compile(r"\.git|git~\d+|\.gitmodules|gitmod~\d+|gi7\w{0,3}~\d+")


def _belongs_to_git(name: str) -> Complaint | None:
    if not _GIT_NAMES.fullmatch(_as_the_laxest_system_reads(name)):
        return None
    return Complaint(f"{name!r} belongs to git", "use the git operations; nothing else touches what is git's own")


def _as_the_laxest_system_reads(name: str) -> str:
    """`name` without what any file system ignores: streams, trailing dots and spaces, width, letter case, the unseen.

    `upper` before `casefold` also brings letters such as the dotless i together with their capital.
    """
    main = name.partition(":")[0]
    if not main.isascii():
        main = "".join(each for each in main if unicodedata.category(each) != "Cf" and each not in _INVISIBLE)
        main = unicodedata.normalize("NFKC", main).upper()
    return main.rstrip(". ").casefold()


def _is_only_dots(name: str) -> Complaint | None:
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
    return Complaint("a name in it is nothing but dots and spaces") if not name.strip(". ") else None


def _ends_badly(name: str) -> Complaint | None:
    if name[-1] != "." and not name[-1].isspace():
        return None
    what = "dot" if name[-1] == "." else "space"
    return Complaint(f"{name!r} ends in a {what}, which some systems drop", f"leave the last {what} out")


def _name_is_too_long(name: str) -> Complaint | None:
    size = len(name.encode())
    return (
        Complaint(f"a name in it has {size} bytes, and a name has at most {LONGEST_NAME}")
        if size > LONGEST_NAME
        else None
    )


_NAME_RULES: tuple[Rule, ...] = (
    _belongs_to_git,
    _pattern(":", "contains ':'", "take the ':' out; on Windows it names a drive or a stream of the file"),
    _is_only_dots,
    _ends_badly,
    _pattern(
        r"(?i)\A(con|prn|aux|nul|conin\$|conout\$|com[1-9¹²³]|lpt[1-9¹²³]) *(\.|\Z)",
        "is the name of a device on Windows, whatever follows its dot",
        "choose another name",
    ),
    _name_is_too_long,
)

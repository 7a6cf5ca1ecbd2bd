"""Globs of names and of paths, compiled once: which of many patterns something matches.

Paths follow the rules that people know from `.gitignore`: a pattern without a slash holds at any depth, one with a
slash from the workspace's root (`**/x/y` at any depth again), and what is below a folder that matches, matches too.
`*`, `?` and `[abc]` stay within a name, `**` as a name of its own crosses folders. Names (operations, hosts, programs)
have no folders: `*` takes everything in them. This module decides nothing and knows no policy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from quantum_orchestrator.blocks.paths import fold

Finder = Callable[[str], str | None]
"""The first pattern that matches, or None."""


@lru_cache(maxsize=256)
def name_finder(patterns: tuple[str, ...], *, any_case: bool = False) -> Finder:
    """For names; with `any_case`, letter case says nothing."""
    return _finder([(each, _translated(each, crosses=True)) for each in patterns], str.casefold if any_case else None)


@lru_cache(maxsize=256)
def path_finder(patterns: tuple[str, ...], *, any_case: bool) -> Finder:
    """For paths; with `any_case`, as a file system reads them that knows neither letter case nor Unicode's forms."""
    return _finder([(each, _path_pattern(each)) for each in patterns], fold if any_case else None)


def _finder(pairs: Iterable[tuple[str, str]], folded: Callable[[str], str] | None) -> Finder:
    compiled = [(each, re.compile(folded(pattern) if folded else pattern, re.DOTALL)) for each, pattern in pairs]
    if not compiled:
        return lambda _name: None
    # One look for all: most names match none.
    any_of = re.compile("|".join(f"(?:{pattern.pattern})" for _, pattern in compiled), re.DOTALL)

    def find(name: str) -> str | None:
        name = folded(name) if folded else name
        if any_of.fullmatch(name) is None:
            return None
        return next(each for each, pattern in compiled if pattern.fullmatch(name))

    return find


def _path_pattern(glob: str) -> str:
    anchored = glob.removeprefix("/").rstrip("/")
    names = anchored.split("/")
    begin = "" if len(names) > 1 or glob.startswith("/") else "(?:.*/)?"
    parts = []
    for number, name in enumerate(names):
        last = number == len(names) - 1
        if name == "**":
            parts.append(".*" if last else "(?:.*/)?")
        else:
            parts.append(_translated(name, crosses=False) + ("" if last else "/"))
    return f"{begin}{''.join(parts)}(?:/.*)?"


def _translated(glob: str, *, crosses: bool) -> str:
    """One name's pattern. It is folded as a text later, so no escape in it may have a meaning in one case only."""
    anything, one = (".*", ".") if crosses else ("[^/]*", "[^/]")
    found, place = [], 0
    while place < len(glob):
        character = glob[place]
        end = glob.find("]", place + 2) if character == "[" else -1
        if end > 0:
            inside = glob[place + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            negated = "^" if crosses else "^/"
            found.append(f"[{negated + inside[1:] if inside.startswith('!') else inside}]")
            place = end
        else:
            found.append(anything if character == "*" else one if character == "?" else re.escape(character))
        place += 1
    return "".join(found)

"""Reads `policy.toml` and judges it: every name that does not exist and every wrong value, with its line.

A name that does not exist is an error, never ignored, as a misspelt restriction would allow what it was written to
forbid. Under `[untrusted]` the same tables may stand again, for sets that are not trusted; there a setting that would
allow more than the one for everybody has no effect, as policies only ever narrow each other. The Prefect block's values
are judged here as well. What the settings mean is `blocks/policy.py`'s matter.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from quantum_orchestrator.blocks.errors import InvalidInput
from quantum_orchestrator.blocks.globs import name_finder, path_finder
from quantum_orchestrator.blocks.policy import (
    GIT_PROTOCOLS,
    GRANTS,
    HIGHEST_LEVEL,
    MOST,
    SETTINGS,
    UNTRUSTED_LEVEL,
    Given,
    Kind,
    Setting,
)

UNTRUSTED = "untrusted"
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_.\s\"'-]+?)\s*\]\s*(?:#.*)?")
_BLOCK_NAME = re.compile(r"[a-z0-9-]*")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")


def read(path: Path) -> list[Given]:
    """The settings that a file gives; none where it is not there. Raises InvalidInput with everything that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}", hint="it must be a file in TOML") from error
    return _Reader(str(path), _lines(text)).read(document)


def from_block(values: Mapping[str, Any], name: str, kind: str = "Policy block") -> list[Given]:
    """The settings that a Prefect block gives, by the names of its fields. Raises InvalidInput."""
    fields = {each.field: each for each in (*SETTINGS, *GRANTS) if not each.own}
    document: dict[str, Any] = {}
    for field, value in values.items():
        inner = field not in fields and field.startswith(f"{UNTRUSTED}_")
        setting = fields[field.removeprefix(f"{UNTRUSTED}_") if inner else field]
        table = document.setdefault(UNTRUSTED, {}) if inner else document
        table.setdefault(setting.table, {})[setting.key] = value
    return _Reader(f"{kind} {name!r}", {}).read(document)


def _lines(text: str) -> dict[str, int]:
    """The line of each table and key, as far as they stand at the beginning of one."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = ".".join(part.strip().strip("\"'") for part in header[1].split("."))
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return found


class _Reader:
    """Judges one document, and notes all that is wrong with it."""

    def __init__(self, file: str, lines: Mapping[str, int]) -> None:
        self._file = file
        self._lines = lines
        self._faults: list[tuple[str, str]] = []

    def read(self, document: Mapping[str, Any]) -> list[Given]:
        """See the function."""
        found = list(self._tables(document, ""))
        if self._faults:
            if len(self._faults) == 1:
                message, hint = self._faults[0]
                raise InvalidInput(message, hint=hint)
            raise InvalidInput("\n".join(f"{message}; {hint}" if hint else message for message, hint in self._faults))
        return found

    def _tables(self, document: Mapping[str, Any], inside: str) -> Iterator[Given]:
        tables: dict[str, list[Setting]] = {}
        for each in SETTINGS:
            if not (inside and each.own):
                tables.setdefault(each.table, []).append(each)
        names = [*tables, *([each.key for each in GRANTS] if inside else [UNTRUSTED])]
        for table, content in document.items():
            place = f"{inside}{table}"
            if table not in names:
                self._unknown("table" if isinstance(content, dict) else "setting", f"[{place}]", place, table, names)
            elif inside and table not in tables:
                yield from self._setting(next(each for each in GRANTS if each.key == table), content, "")
            elif not isinstance(content, dict):
                self._wrong(place, f"[{place}]", "a table", content)
            elif table == UNTRUSTED:
                yield from self._tables(content, f"{UNTRUSTED}.")
            else:
                yield from self._table(tables[table], content, inside)

    def _table(self, settings: list[Setting], content: Mapping[str, Any], inside: str) -> Iterator[Given]:
        known = {each.key: each for each in settings}
        for key, value in content.items():
            place = f"{inside}{settings[0].table}"
            if key in known:
                yield from self._setting(known[key], value, inside)
            else:
                self._unknown("setting", f"{key!r} in [{place}]", f"{place}.{key}", key, known)

    def _setting(self, setting: Setting, value: object, inside: str) -> Iterator[Given]:
        name = f"{inside}{setting.name}"
        label = f"[{inside}{setting.table}] {setting.key}"
        if setting.kind is Kind.PROTOCOLS and _is_list_of_texts(value):
            for protocol in value:
                if protocol not in GIT_PROTOCOLS:
                    self._unknown("protocol", f"{protocol!r} in {label}", name, protocol, GIT_PROTOCOLS)
                    return
        expected = _expected(setting, value, untrusted=bool(inside))
        if expected:
            self._wrong(name, label, expected, value)
            return
        yield Given(name, tuple(value) if isinstance(value, list) else value, f"{label} in {self._at(name)}")

    def _at(self, name: str) -> str:
        line = self._lines.get(name)
        return f"{self._file}:{line}" if line else self._file

    def _unknown(self, kind: str, shown: str, name: str, key: str, known: Iterable[str]) -> None:
        names = list(known)
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        self._faults.append((f"{self._at(name)}: unknown {kind} {shown}", hint))

    def _wrong(self, name: str, label: str, expected: str, found: object) -> None:
        self._faults.append((f"{self._at(name)}: {label} must be {expected}, and is {found!r}", ""))


def _expected(setting: Setting, value: object, *, untrusted: bool) -> str:
    """What the setting must be, if it is not that."""
    lowest = UNTRUSTED_LEVEL if untrusted else 0
    match setting.kind:
        case Kind.LEVEL:
            return "" if _is_number(value, lowest, HIGHEST_LEVEL) else f"a level from {lowest} to {HIGHEST_LEVEL}"
        case Kind.NUMBER | Kind.LIMIT:
            return "" if _is_number(value, 0, MOST) else f"a whole number from 0 to {MOST}"
        case Kind.BLOCK:
            return "" if isinstance(value, str) and _BLOCK_NAME.fullmatch(value) else "the name of a block: a-z, 0-9, -"
        case Kind.FLAG | Kind.GRANT:
            return "" if isinstance(value, bool) else "true or false"
    if not _is_list_of_texts(value):
        return "a list of texts that are not empty"
    if setting.kind is Kind.FOLDERS:
        return "" if all(map(_is_folder_name, value)) else "names of folders, without '/' and not '.git'"
    return _no_globs(value) if setting.kind in (Kind.ALLOW, Kind.DENY, Kind.ASK) else ""


def _is_folder_name(name: str) -> bool:
    return not any(each in name for each in "/\0\n") and name not in (".", "..", ".git")


def _no_globs(patterns: Iterable[str]) -> str:
    try:
        path_finder(tuple(patterns), any_case=True), name_finder(tuple(patterns))
    except re.error as error:
        return f"globs ({error})"
    return ""


def _is_number(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_list_of_texts(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(each, str) and each for each in value)

"""What a machine's owner allows: the settings of `policy.toml`. Every other module only reads them.

    [git]       protocols = ["https", "ssh"]      # "file" for repositories on this machine
    [http]      hosts = []                        # loopback and other private hosts that http.request may reach
    [snapshot]  exclude = ["__pycache__", ...]    # names of folders that no snapshot and no diff looks into
    [sandbox]   require = 0                       # scripts below this level are refused
    [journal]   keep_days = 90                    # for how long a run that has ended can be undone,
                keep_runs = 500                   # for how many of them,
                max_size_mb = 2048                # and how much all that may take (MiB), which goes before the others

What is left out keeps its default; a name that does not exist is an error, never ignored, as a misspelt restriction
would allow what it was written to forbid. This module does not know where the file lies: the caller does.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from quantum_orchestrator.blocks.errors import InvalidInput

GIT_PROTOCOLS = ("https", "ssh", "http", "git", "file")
"""Protocols that may be allowed. Others are helper programs that a URL names (`ext::sh -c …`), and never are."""
HIGHEST_LEVEL = 4
MOST = 10**9
"""Enough to mean "without a limit"; more overflows clocks and columns."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings, each with the table and key it is read from: `git_protocols` is `protocols` in `[git]`."""

    git_protocols: tuple[str, ...] = ("https", "ssh")
    http_hosts: tuple[str, ...] = ()
    snapshot_exclude: tuple[str, ...] = (
        "__pycache__",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".venv",
        "node_modules",
    )
    sandbox_require: int = 0
    journal_keep_days: int = 90
    journal_keep_runs: int = 500
    journal_max_size_mb: int = 2048

    @classmethod
    def load(cls, path: Path | None) -> Policy:
        """Read a file; the defaults without one (`None`, or nothing there).

        Raises InvalidInput when it cannot be read, is not TOML, or holds a wrong name or value.
        """
        if path is None:
            return cls()
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidInput(f"{path}: cannot be read: {error}", hint="it must be a file in TOML") from error
        return _Reader(path).policy(document)


class _Reader:
    """Judges one document."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def policy(self, document: Mapping[str, object]) -> Policy:
        keys: dict[str, list[str]] = {}
        for field in fields(Policy):
            table, _, key = field.name.partition("_")
            keys.setdefault(table, []).append(key)
        values: dict[str, object] = {}
        for table, content in document.items():
            self._check_name("table", f"[{table}]", table, keys)
            if not isinstance(content, dict):
                raise self._wrong(f"[{table}]", "a table", content)
            for key, value in content.items():
                self._check_name("setting", f"{key!r} in [{table}]", key, keys[table])
                values[f"{table}_{key}"] = value
        return self._checked(values)

    def _checked(self, values: Mapping[str, object]) -> Policy:
        default = Policy()
        return Policy(
            git_protocols=self._protocols(values.get("git_protocols", default.git_protocols)),
            http_hosts=self._names("[http] hosts", values.get("http_hosts", default.http_hosts)),
            snapshot_exclude=self._folders(values.get("snapshot_exclude", default.snapshot_exclude)),
            sandbox_require=self._level(values.get("sandbox_require", default.sandbox_require)),
            journal_keep_days=self._number("keep_days", values.get("journal_keep_days", default.journal_keep_days)),
            journal_keep_runs=self._number("keep_runs", values.get("journal_keep_runs", default.journal_keep_runs)),
            journal_max_size_mb=self._number(
                "max_size_mb", values.get("journal_max_size_mb", default.journal_max_size_mb)
            ),
        )

    def _protocols(self, value: object) -> tuple[str, ...]:
        protocols = self._names("[git] protocols", value)
        for protocol in protocols:
            self._check_name("protocol", f"{protocol!r} in [git] protocols", protocol, GIT_PROTOCOLS)
        return protocols

    def _folders(self, value: object) -> tuple[str, ...]:
        names = self._names("[snapshot] exclude", value)
        for name in names:
            if "/" in name or "\0" in name or "\n" in name or name in (".", "..", ".git"):
                raise self._wrong("[snapshot] exclude", "names of folders, without '/' and not '.git'", name)
        return names

    def _level(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= HIGHEST_LEVEL:
            raise self._wrong("[sandbox] require", f"a level from 0 to {HIGHEST_LEVEL}", value)
        return value

    def _number(self, key: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise self._wrong(f"[journal] {key}", f"a whole number from 0 to {MOST}", value)
        return value

    def _names(self, place: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
            raise self._wrong(place, "a list of texts that are not empty", value)
        return tuple(value)

    def _check_name(self, kind: str, place: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise InvalidInput(f"{self._path}: unknown {kind} {place}", hint=hint)

    def _wrong(self, place: str, expected: str, found: object) -> InvalidInput:
        return InvalidInput(f"{self._path}: {place} must be {expected}, and is {found!r}")

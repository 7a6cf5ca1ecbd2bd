"""Bearer tokens of the REST API: 256 random bits, shown once; kept is only their SHA-256, with a name and scopes.

A token's name is who acted, in the audit. As the bits are random, a plain hash of them tells nobody anything, and
finding a token by its hash takes the same time whatever was sent. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.door_files import DoorFile

FILE = "tokens.json"
PREFIX = "qo_"
"""By which those who look for leaked secrets find one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Scope(StrEnum):
    """What a token is good for."""

    RUN = "run"
    READ = "read"
    APPROVE = "approve"


@dataclass(frozen=True, slots=True)
class Token:
    """One token, without its secret. `created_at` is seconds since the epoch."""

    name: str
    scopes: frozenset[Scope]
    created_at: float


class Tokens:
    """Those of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._file = DoorFile(folder / FILE)

    def create(self, name: str, scopes: Sequence[Scope]) -> str:
        """Make one; its secret, which nobody can tell again. Raises UsageError for a name that is taken or is none."""
        if _NAME.fullmatch(name) is None:
            raise UsageError(f"{name!r} is no name for a token", hint="use letters, digits, '-', '_', '.' and '@'")
        if not scopes:
            raise UsageError("a token without a scope is good for nothing", hint="--scope run, read or approve")
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._file.changing() as known:
            if any(each["name"] == name for each in known.values()):
                raise UsageError(f"there is a token {name!r} already", hint=f"`qo token revoke {name}` ends it")
            chosen = sorted({each.value for each in scopes})
            known[_digest(secret)] = {"name": name, "scopes": chosen, "created_at": time.time()}
        return secret

    def revoke(self, name: str) -> None:
        """From now on it is unknown. Raises UsageError if it is already."""
        with self._file.changing() as known:
            found = [digest for digest, each in known.items() if each["name"] == name]
            if not found:
                raise UsageError(f"there is no token {name!r}", hint="`qo token list` lists them")
            for digest in found:
                del known[digest]

    def every(self) -> list[Token]:
        """All, by name."""
        return sorted((_token(each) for each in self._file.read().values()), key=lambda token: token.name)

    def find(self, secret: str) -> Token | None:
        """The token with this secret."""
        found = self._file.read().get(_digest(secret))
        return None if found is None else _token(found)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _token(kept: dict[str, object]) -> Token:
    scopes = kept["scopes"]
    assert isinstance(scopes, list)
    return Token(str(kept["name"]), frozenset(Scope(each) for each in scopes), float(str(kept["created_at"])))

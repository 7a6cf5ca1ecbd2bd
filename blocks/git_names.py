"""Judges the names that are handed to git: branches, tags, revisions, remotes, refspecs and URLs. By spelling alone.

Git reads some texts as more than a name: `--upload-pack=…` is an option, `@{-1}` whatever was checked out before,
`:/text` a search, `ext::sh -c …` a program to run. An instruction means what it says, the same on every machine, so
these are refused before git sees them. What is left may not exist, which is git's to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from quantum_orchestrator.blocks.errors import OperationError, PolicyRefused

_UNFIT_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_UNFIT_IN_REVISION = re.compile(r"[\x00-\x20\x7f:?*\[\\]|@\{|\^\{/|//")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HELPER = re.compile(r"([A-Za-z0-9][A-Za-z0-9+.-]*)::")
_SCP_LIKE = re.compile(r"(?:[^/@:]+@)?[^/:@]+:")
_CREDENTIALS = re.compile(r"\b(https?|git|ftps?)://[^/\s]*@|\b([a-z+]+://[^/\s:]*):[^/\s]*@", re.IGNORECASE)


def check_new_name(name: str, kind: str) -> str:
    """`name` itself, if a branch or a tag (`kind`) may be called so: git-check-ref-format(1), and no option.

    Raises OperationError.
    """
    _refuse_option(name, kind)
    if name in ("@", "HEAD") or name.startswith(("refs/", "/")) or name.endswith(("/", ".")):
        _refuse(name, kind, "git gives it another meaning")
    if _UNFIT_IN_REF.search(name):
        _refuse(name, kind, "it must not hold spaces, control characters, '..', '//', '@{' nor any of ~^:?*[\\")
    if any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        _refuse(name, kind, "no part of it may start with '.' or end with '.lock'")
    return name


def check_revision(revision: str, *, ranges: bool = False) -> str:
    """`revision` itself, if it names one commit: a branch, a tag, an object id, also with `~2` or `^`.

    With `ranges`, `a..b` and `a...b` are fine too. Raises OperationError.
    """
    _refuse_option(revision, "revision")
    if _UNFIT_IN_REVISION.search(revision):
        _refuse(
            revision, "revision", "searches, paths in commits and what depends on earlier commands ('@{…}') are not"
        )
    if ".." in revision and not ranges:
        _refuse(revision, "revision", "one commit is meant, not a range")
    return revision


def check_refspec(refspec: str) -> str:
    """`refspec` itself: `name`, `source:destination`, with `+` before it to force. Raises OperationError."""
    _refuse_option(refspec, "refspec")
    source, _, destination = refspec.removeprefix("+").partition(":")
    if not source and not destination:
        _refuse(refspec, "refspec", "it names nothing")
    for side in filter(None, (source, destination)):
        _refuse_option(side, "refspec")
        if _UNFIT_IN_REF.search(side.replace("*", "x", 1)):
            _refuse(refspec, "refspec", "each side must be the name of a ref")
    return refspec


def check_remote(remote: str) -> str:
    """`remote` itself: a configured remote's name, or a URL. Raises OperationError."""
    _refuse_option(remote, "remote")
    if _CONTROL.search(remote):
        _refuse(remote, "remote", "it holds control characters")
    return remote


def check_url(url: str, protocols: Iterable[str]) -> str:
    """`url` itself, if its protocol is one of those. Raises PolicyRefused, or OperationError for what is no URL."""
    check_remote(url)
    protocol = protocol_of(url)
    if protocol not in protocols:
        raise protocol_refused(protocol)
    return url


def protocol_of(url: str) -> str:
    """The protocol that git takes a URL to have: `git@host:path` is ssh, a path is file. See git-fetch(1), GIT URLS."""
    if found := _HELPER.match(url) or _SCHEME.match(url):
        return found[1].lower()
    return "ssh" if _SCP_LIKE.match(url) else "file"


def protocol_refused(protocol: str) -> PolicyRefused:
    """The error for a protocol that the policy does not name."""
    return PolicyRefused(
        f"git may not use the protocol {protocol!r}",
        hint="add it to `protocols` under [git] in policy.toml, if it is one of https, ssh, http, git, file",
    )


def without_credentials(text: str) -> str:
    """`text` with the user and password in its URLs replaced; for messages, logs and outputs."""
    return _CREDENTIALS.sub(lambda found: f"{found[1]}://***@" if found[1] else f"{found[2]}:***@", text)


def _refuse_option(name: str, kind: str) -> None:
    if not name:
        raise OperationError(f"a {kind} must not be empty")
    if name.startswith("-"):
        _refuse(name, kind, "it starts with '-', as options do")


def _refuse(name: str, kind: str, why: str) -> NoReturn:
    raise OperationError(
        f"{without_credentials(name)!r} cannot be used as a {kind}: {why}",
        hint="use a plain name, or an object id as `git log` shows it",
    )

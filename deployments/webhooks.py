"""Webhooks: whether a delivery is genuine, what it tells of, and which sets it is for. All of it is pure but the files.

A delivery is verified over the bytes as they came, in constant time, before anything in it is looked at:

    github    X-Hub-Signature-256: sha256=HEX        the id is not signed: the same body under another id is a replay
    gitea     X-Gitea-Signature: HEX (Forgejo, too)  likewise
    gitlab    X-Gitlab-Token: the secret itself      nothing is signed
    standard  webhook-id, -timestamp, -signature     signs id, time and body; the time may be off by 300 s

(https://www.standardwebhooks.com; the others as their manuals have it.) Any of several active secrets may be the right
one. What a webhook is mapped to are rules: event, branch, path globs, an expression; each that matches runs its set
with the payload as the input `payload`. Knows neither HTTP servers nor the inbox.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from quantum_orchestrator.blocks.errors import InvalidInput, UsageError
from quantum_orchestrator.blocks.globs import name_finder, path_finder
from quantum_orchestrator.deployments.door_files import DoorFile

FILE = "webhooks.json"
TOLERANCE_SECONDS = 300
LONGEST_ID = 255
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_FORM = "application/x-www-form-urlencoded"


class Provider(StrEnum):
    """Whose form deliveries have."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"
    STANDARD = "standard"


class NotGenuine(InvalidInput):
    """A delivery that its sender has not signed, or that is too old. `kind` of the refusal is `reason`."""

    def __init__(self, message: str, reason: str = "bad-signature") -> None:
        super().__init__(message, hint="nothing in it was looked at")
        self.reason = reason


class Unreadable(InvalidInput):
    """A genuine delivery whose body is not what its form says."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a set is run for; what is empty says nothing. `when` is an expression over `inputs`: payload, event, branch,
    paths, delivery."""

    set: str
    workspace: str
    events: Sequence[str] = ()
    branches: Sequence[str] = ()
    paths: Sequence[str] = ()
    when: str = ""


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook. `secrets` are names: `env:VARIABLE` or `block:NAME`."""

    name: str
    provider: Provider
    secrets: Sequence[str]
    rules: Sequence[Rule] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A genuine delivery. `branch` is empty where it is about none, `paths` is None where nobody can tell them."""

    id: str
    event: str
    payload: Mapping[str, Any]
    branch: str = ""
    paths: Sequence[str] | None = None
    signed_id: bool = False
    """Whether nobody but the sender can have chosen the id."""

    def inputs(self) -> dict[str, Any]:
        """What sets and expressions may know of it."""
        about = {"event": self.event, "branch": self.branch, "paths": list(self.paths or ()), "delivery": self.id}
        return {"payload": dict(self.payload), **about}


# Genuine or not.

Headers = Mapping[str, str]
"""By names in small letters."""
Signed = Callable[[str], bool]


def verify(provider: Provider, headers: Headers, body: bytes, secrets: Sequence[str], now: float | None = None) -> None:
    """Raises NotGenuine unless one of the secrets has signed exactly this."""
    matches = _SIGNATURES[provider](headers, body, time.time() if now is None else now)
    found = [matches(secret) for secret in secrets if secret]  # every one, so that time tells nothing of their order
    if not any(found):
        raise NotGenuine("the signature is wrong")


def _of_github(headers: Headers, body: bytes, _now: float) -> Signed:
    given = _header(headers, "x-hub-signature-256")
    return lambda secret: _equal(given, f"sha256={_hmac(secret.encode(), body).hex()}")


def _of_gitea(headers: Headers, body: bytes, _now: float) -> Signed:
    given = _header(headers, "x-gitea-signature", "x-forgejo-signature")
    return lambda secret: _equal(given, _hmac(secret.encode(), body).hex())


def _of_gitlab(headers: Headers, _body: bytes, _now: float) -> Signed:
    given = _header(headers, "x-gitlab-token")
    return lambda secret: _equal(given, secret)


def _of_standard(headers: Headers, body: bytes, now: float) -> Signed:
    name, stamp = _header(headers, "webhook-id", "svix-id"), _header(headers, "webhook-timestamp", "svix-timestamp")
    given = [each.partition(",")[2] for each in _header(headers, "webhook-signature", "svix-signature").split(" ")]
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12:
        raise NotGenuine("the time stamp is no number of seconds", "bad-timestamp")
    if abs(now - int(stamp)) > TOLERANCE_SECONDS:
        raise NotGenuine(f"the time stamp is off by more than {TOLERANCE_SECONDS} s", "stale")
    content = f"{name}.{stamp}.".encode() + body

    def matches(secret: str) -> bool:
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            return False
        wanted = base64.b64encode(_hmac(key, content)).decode()
        return sum(_equal(each, wanted) for each in given) > 0  # every one is looked at, as above

    return matches


_SIGNATURES: Mapping[Provider, Callable[[Headers, bytes, float], Signed]] = {
    Provider.GITHUB: _of_github,
    Provider.GITLAB: _of_gitlab,
    Provider.GITEA: _of_gitea,
    Provider.STANDARD: _of_standard,
}


def _header(headers: Headers, *names: str) -> str:
    found = next((headers[name] for name in names if headers.get(name)), "")
    if not found:
        raise NotGenuine(f"the header {names[0]} is missing", "unsigned")
    return found


def _hmac(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode("utf-8", "surrogateescape"))


def signed(provider: Provider, secret: str, body: bytes, *, event: str, delivery: str, now: float) -> dict[str, str]:
    """The headers that a sender would send: for tests, and `qo webhooks test`."""
    digest = _hmac(secret.encode(), body).hex()
    match provider:
        case Provider.GITHUB:
            return {
                "X-Hub-Signature-256": f"sha256={digest}",
                "X-GitHub-Event": event,
                "X-GitHub-Delivery": delivery,
            }
        case Provider.GITEA:
            return {"X-Gitea-Signature": digest, "X-Gitea-Event": event, "X-Gitea-Delivery": delivery}
        case Provider.GITLAB:
            return {"X-Gitlab-Token": secret, "X-Gitlab-Event": event, "Idempotency-Key": delivery}
        case Provider.STANDARD:
            stamp = str(int(now))
            key = base64.b64decode(secret.removeprefix("whsec_"))
            signature = base64.b64encode(_hmac(key, f"{delivery}.{stamp}.".encode() + body)).decode()
            names = ("webhook-id", "webhook-timestamp", "webhook-signature")
            return dict(zip(names, (delivery, stamp, f"v1,{signature}"), strict=True))


# What it tells of.


def read(provider: Provider, headers: Headers, body: bytes) -> Delivery:
    """What a genuine delivery tells of. Raises Unreadable."""
    payload = _payload(headers, body)
    event = _event(provider, headers, payload)
    return Delivery(
        id=_id(provider, headers, body),
        event=event,
        payload=payload,
        branch=_branch(payload),
        paths=_paths(payload),
        signed_id=provider is Provider.STANDARD,
    )


def _payload(headers: Headers, body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8")
        if headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
            text = parse_qs(text, strict_parsing=True)["payload"][0]
        payload = json.loads(text)
    except (ValueError, KeyError, RecursionError) as error:
        raise Unreadable("the payload is not JSON", hint="have it sent as application/json") from error
    if not isinstance(payload, dict):
        raise Unreadable("the payload is no JSON object")
    return payload


def _event(provider: Provider, headers: Headers, payload: Mapping[str, Any]) -> str:
    match provider:
        case Provider.GITHUB:
            return headers.get("x-github-event", "")
        case Provider.GITEA:
            return headers.get("x-gitea-event", "") or headers.get("x-forgejo-event", "")
        case Provider.GITLAB:
            return str(payload.get("object_kind") or headers.get("x-gitlab-event", ""))
        case Provider.STANDARD:
            return str(payload.get("type", ""))


_IDS = {
    Provider.GITHUB: ("x-github-delivery",),
    Provider.GITEA: ("x-gitea-delivery", "x-forgejo-delivery"),
    Provider.GITLAB: ("idempotency-key", "x-gitlab-event-uuid"),
    Provider.STANDARD: ("webhook-id", "svix-id"),
}


def _id(provider: Provider, headers: Headers, body: bytes) -> str:
    """The same when it is sent again."""
    given = next((headers[name] for name in _IDS[provider] if headers.get(name)), "")
    if len(given) > LONGEST_ID:
        raise Unreadable(f"the delivery's id has more than {LONGEST_ID} characters")
    return given or f"sha256:{hashlib.sha256(body).hexdigest()}"


def _branch(payload: Mapping[str, Any]) -> str:
    """The branch that was pushed, or that a request is to be merged into."""
    ref = payload.get("ref")
    if isinstance(ref, str):
        return ref.removeprefix("refs/heads/")
    for holder, *way in (("pull_request", "base", "ref"), ("object_attributes", "target_branch")):
        found: Any = payload.get(holder)
        for key in way:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return found
    return ""


def _paths(payload: Mapping[str, Any]) -> list[str] | None:
    """The paths that the commits of a push touch; None where not all of them are told."""
    commits = payload.get("commits")
    if not isinstance(commits, list) or not all(isinstance(each, dict) for each in commits):
        return None
    total = payload.get("total_commits_count", payload.get("total_commits", len(commits)))
    if total != len(commits):
        return None
    lists = [each.get(kind) for each in commits for kind in ("added", "modified", "removed")]
    return sorted({path for listed in lists if isinstance(listed, list) for path in listed if isinstance(path, str)})


# Which sets it is for.


def matching(webhook: Webhook, delivery: Delivery) -> Iterator[Rule]:
    """The rules that a delivery meets. One that asks for paths is met where nobody can tell them: nothing is missed."""
    for rule in webhook.rules:
        if rule.events and not name_finder(tuple(rule.events))(delivery.event):
            continue
        if rule.branches and not name_finder(tuple(rule.branches))(delivery.branch):
            continue
        if rule.paths and delivery.paths is not None:
            finder = path_finder(tuple(rule.paths), any_case=False)
            if not any(finder(path) for path in delivery.paths):
                continue
        if not rule.when or _holds(rule.when, delivery):
            yield rule


def _holds(expression: str, delivery: Delivery) -> bool:
    from quantum_orchestrator.flows import expressions
    from quantum_orchestrator.tasks.operation import Unknown

    text = expression if expression.startswith("${{") else f"${{{{ {expression} }}}}"
    try:
        return bool(expressions.evaluate(text, expressions.Scope(inputs=delivery.inputs())))
    except (expressions.ExpressionError, Unknown):
        return False  # it asks for something that this payload does not have


def check_expression(expression: str) -> None:
    """Raises UsageError for one that can never be evaluated."""
    from quantum_orchestrator.flows import expressions

    text = expression if expression.startswith("${{") else f"${{{{ {expression} }}}}"
    try:
        expressions.references(text)
    except expressions.ExpressionError as error:
        raise UsageError(f"--when {expression}: {error.message}", hint="for example: inputs.payload.forced") from error


# The webhooks of a state folder.


class Webhooks:
    """Those of one state folder, by name."""

    def __init__(self, folder: Path) -> None:
        self._file = DoorFile(folder / FILE)

    def find(self, name: str) -> Webhook | None:
        """The webhook of this name."""
        found = self._file.read().get(name)
        return None if found is None else _webhook(name, found)

    def every(self) -> list[Webhook]:
        """All, by name."""
        return [_webhook(name, found) for name, found in sorted(self._file.read().items())]

    def add(self, webhook: Webhook) -> None:
        """Add one, or its rules and secrets to the one of its name. Raises UsageError."""
        if _NAME.fullmatch(webhook.name) is None:
            raise UsageError(f"{webhook.name!r} is no name for a webhook", hint="use small letters, digits and '-'")
        with self._file.changing() as known:
            kept = known.setdefault(webhook.name, {"provider": webhook.provider.value, "secrets": [], "rules": []})
            if kept["provider"] != webhook.provider:
                raise UsageError(
                    f"the webhook {webhook.name!r} is {kept['provider']}'s", hint="give another one another name"
                )
            kept["secrets"] += [each for each in webhook.secrets if each not in kept["secrets"]]
            kept["rules"] += [asdict(rule) for rule in webhook.rules if asdict(rule) not in kept["rules"]]
            if not kept["secrets"]:
                raise UsageError("a webhook needs a secret", hint="--secret-env VARIABLE or --secret-block BLOCK")

    def remove(self, name: str) -> None:
        """Raises UsageError if there is none."""
        with self._file.changing() as known:
            if known.pop(name, None) is None:
                raise UsageError(f"there is no webhook {name!r}", hint="`qo webhooks list` lists them")


def _webhook(name: str, kept: Mapping[str, Any]) -> Webhook:
    rules = [Rule(**each) for each in kept["rules"]]
    return Webhook(name, Provider(kept["provider"]), list(kept["secrets"]), rules)


@dataclass(slots=True)
class Secrets:
    """Looks secrets up by their names, and remembers those of blocks for a minute."""

    environment: Mapping[str, str]
    seconds: float = 60.0
    _blocks: dict[str, tuple[float, list[str]]] = field(default_factory=dict)

    def of(self, webhook: Webhook) -> list[str]:
        """Every active secret. Raises UsageError where there is none, ServerError where a block is not."""
        found: list[str] = []
        for each in webhook.secrets:
            kind, _, name = each.partition(":")
            found += self._block(name) if kind == "block" else [self.environment.get(name, "")]
        active = [each for each in found if each]
        if not active:
            names = ", ".join(each.partition(":")[2] for each in webhook.secrets)
            raise UsageError(f"the webhook {webhook.name!r} has no secret: {names} is empty here")
        return active

    def _block(self, name: str) -> list[str]:
        from quantum_orchestrator.blocks.webhook_secret import secrets_of

        at, known = self._blocks.get(name, (-self.seconds, []))
        if time.monotonic() - at >= self.seconds:
            known = secrets_of(name)
            self._blocks[name] = (time.monotonic(), known)
        return known

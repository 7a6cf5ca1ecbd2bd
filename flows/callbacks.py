"""Tells another machine how a run has ended: one signed request, tried again while it may help.

It is made as the operation `http.request` makes its own: to no host that the policy does not allow, to an address that
was judged, without redirects to other hosts. The signature is that of Standard Webhooks (`webhook-id`,
`webhook-timestamp`, `webhook-signature: v1,…`, HMAC-SHA256 over these and the body), so that whoever receives it can
tell a repeated, a stale and a forged one. What is told is how the run and its steps stand; no outputs, as those may be
private. A callback that cannot be delivered changes nothing about the run. This module knows neither Prefect nor the
journal.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantum_orchestrator.blocks.errors import InvalidInput, PolicyRefused, QuantumError, UsageError
from quantum_orchestrator.blocks.policy import Policy

PAUSES = (1.0, 3.0, 9.0)
"""Seconds between tries: there is one more of those."""
SECONDS = 10.0
"""What one try may take."""
SECRET_PREFIX = "whsec_"  # noqa: S105 - how they begin


@dataclass(frozen=True, slots=True)
class Callback:
    """Where to, and the name of the secret that it is signed with; without one it is not signed."""

    url: str
    secret: str = ""


def key_of(secret: str) -> bytes:
    """The key in a secret, `whsec_` and base64. Raises UsageError for anything else."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("the callback's secret is not `whsec_` and base64", hint="see Standard Webhooks") from error
    if not key:
        raise UsageError("the callback's secret is empty")
    return key


def refuse(callback: Callback, policy: Policy) -> None:
    """Raises PolicyRefused, or UsageError for what is no address, before a run begins in vain."""
    import httpx

    try:
        url = httpx.URL(callback.url)
    except httpx.InvalidURL as error:
        raise UsageError(f"--callback {callback.url}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"--callback {callback.url}: is not an http or https address")
    for refusal in policy.refusals("http", url.host.rstrip(".")):
        raise refusal


def message_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a run: `type` is `run.` and its status."""
    told = ("run_id", "set", "status", "workspace", "error", "diff", "duration_s", "ui_url")
    steps = [{name: step[name] for name in ("id", "op", "status")} for step in document["steps"]]
    data = {**{name: document.get(name) for name in told}, "steps": steps}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"type": f"run.{document['status']}", "timestamp": now, "data": data}


def headers_of(message_id: str, body: str, secret: str, *, at: int) -> dict[str, str]:
    """The headers of one try; `at` is when, in seconds since the epoch."""
    headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(at)}
    if secret:
        signed = hmac.digest(key_of(secret), f"{message_id}.{at}.{body}".encode(), hashlib.sha256)
        headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
    return headers


def deliver(
    callback: Callback,
    document: Mapping[str, Any],
    policy: Policy,
    secret: str,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Tell of a run, signed with `secret` if there is one. Empty when it was heard; else why not, at last."""
    from quantum_orchestrator.tasks.http import RequestParameters, send

    body = json.dumps(message_of(document), ensure_ascii=False, default=str)
    message_id = f"{document['run_id']}.{document['status']}"
    why = ""
    for pause in (0.0, *PAUSES):
        sleep(pause)
        try:
            refuse(callback, policy)
            headers = headers_of(message_id, body, secret, at=int(time.time()))
            send(
                RequestParameters(method="POST", url=callback.url, headers=headers, body=body, timeout=SECONDS),
                policy.http_hosts,
            )
        except (InvalidInput, PolicyRefused) as error:
            return error.message  # it stays so
        except QuantumError as error:
            why = error.message
        else:
            return ""
    return why

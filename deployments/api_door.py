"""What the routes of the API share: who may ask, what is counted, what goes on record, and how something is accepted.

A refused request is in the audit before it is answered, where it asked for anything to happen: who (a token's name, or
an address), for what, and why not. An attacker cannot fill the disk with that: so many a second are put on record, and
the next one says how many were not.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from quantum_orchestrator.blocks.audit import Audit, Event
from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.deployments.api_limits import Buckets, Limits
from quantum_orchestrator.deployments.api_problems import Refused
from quantum_orchestrator.deployments.api_runs import GOING_ON, Accepting, Runs
from quantum_orchestrator.deployments.dispatcher import Dispatcher
from quantum_orchestrator.deployments.inbox import Accepted, Arrival, Inbox, Once
from quantum_orchestrator.deployments.tokens import Scope, Token, Tokens
from quantum_orchestrator.deployments.webhooks import Secrets, Webhooks

RECORDED_A_SECOND = 5.0
UNRECORDED = (404, 429, 503)
"""Refusals that nobody need hear of later: nothing was there, or it may be tried again."""
WAIT_STEP_SECONDS = 0.1


@dataclass(slots=True)
class Door:
    """One API at work on one workspace; its webhooks may be for others."""

    root: Path
    state: Path
    limits: Limits
    inbox: Inbox
    dispatcher: Dispatcher
    tokens: Tokens = field(init=False)
    webhooks: Webhooks = field(init=False)
    secrets: Secrets = field(init=False)
    runs: Runs = field(init=False)
    accepting: Accepting = field(default_factory=Accepting)
    meters: Meters = field(init=False)
    _buckets: Buckets = field(init=False)
    _records: Buckets = field(init=False)
    _unrecorded: int = 0
    _recording: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.state)
        self.webhooks = Webhooks(self.state)
        self.secrets = Secrets(os.environ)
        self.runs = Runs(self.root, self.inbox)
        self.meters = Meters(self.inbox)
        self._buckets = Buckets(self.limits.rate)
        self._records = Buckets(RECORDED_A_SECOND)

    # Who may ask.

    def count(self, who: str) -> None:
        """Raises Refused where somebody asks too often."""
        seconds = self._buckets.wait(who)
        if seconds:
            raise Refused(
                429,
                "too-many-requests",
                f"more than {self.limits.rate:g} requests a second",
                hint="wait as long as Retry-After says",
                headers={"Retry-After": str(int(seconds) + 1)},
            )

    def admit(self, request: Request, scopes: Sequence[Scope]) -> Token:
        """The token that asks. Raises Refused unless it is known and has one of the scopes."""
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        headers = {"WWW-Authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not secret.strip():
            hint = "`qo token create NAME --scope …` makes one; send it as Authorization: Bearer TOKEN"
            raise Refused(401, "no-token", "a token is needed", hint=hint, headers=headers)
        token = self.tokens.find(secret.strip())
        if token is None:
            raise Refused(401, "unknown-token", "the token is not known, or was revoked", headers=headers)
        request.state.actor = token.name
        self.count(f"token:{token.name}")
        if token.scopes.isdisjoint(scopes):
            wanted = " or ".join(each.value for each in scopes)
            has = ", ".join(sorted(each.value for each in token.scopes))
            raise Refused(403, "wrong-scope", f"the token needs the scope {wanted}, and has {has}")
        return token

    # Accepting.

    async def accept(self, arrivals: Sequence[Arrival], once: Once | None = None) -> Accepted:
        """Accept durably; the dispatcher hears of it."""
        accepted = await asyncio.wrap_future(self.inbox.accepting(arrivals, once))
        if not accepted.repeated:
            self.dispatcher.wake()
        return accepted

    async def ended(self, run_id: str, seconds: float) -> dict[str, Any] | None:
        """A run's document, if it comes to an end within so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            document = await asyncio.to_thread(self.runs.document, run_id)
            latest = document["latest"] or document["accepted"]
            settled = latest is None or latest["ended_at"] is not None
            if settled and document["status"] not in GOING_ON:
                return document
            await asyncio.sleep(WAIT_STEP_SECONDS)
        return None

    # What goes on record.

    def note_refusal(self, request: Request, refused: Refused) -> None:
        """Put a refusal in the audit, if it is worth it."""
        self.meters.refusals.labels(refused.kind).inc()
        if request.method == "GET" or refused.status in UNRECORDED:
            return
        with self._recording:
            if self._records.wait("all"):
                self._unrecorded += 1
                return
            unrecorded, self._unrecorded = self._unrecorded, 0
        details: dict[str, Any] = {
            "source": getattr(request.state, "source", "api"),
            "address": address_of(request),
            "path": request.url.path[:200],
            "status": refused.status,
            "reason": refused.kind,
            "detail": refused.detail[:500],
        }
        if unrecorded:
            details["unrecorded"] = unrecorded
        actor = getattr(request.state, "actor", "") or address_of(request)
        try:
            Audit(self.state).record(Event.REFUSED, actor=actor, run="", workspace=str(self.root), **details)
        except QuantumError:
            self.meters.unrecorded.inc()  # it is refused all the same


def address_of(request: Request) -> str:
    """Whose connection it is."""
    return request.client.host if request.client is not None else "unknown"


def digest_of(*parts: bytes) -> str:
    """Of what a request says, to tell it from another one under the same key."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


class Meters:
    """What `/metrics` tells, for Prometheus."""

    def __init__(self, inbox: Inbox) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "qo_http_requests", "Requests that were answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "qo_http_request_seconds", "How long answers took", ["method", "route"], registry=self.registry
        )
        self.refusals = Counter("qo_refusals", "Requests that were refused", ["reason"], registry=self.registry)
        self.unrecorded = Counter(
            "qo_refusals_unrecorded", "Refusals that the audit could not take", registry=self.registry
        )
        self._inbox = inbox
        self.registry.register(self)

    def collect(self) -> list[GaugeMetricFamily]:
        """How many items there are, when somebody looks."""
        items = GaugeMetricFamily("qo_items", "What doors have accepted", labels=["source", "status"])
        for (source, status), count in sorted(self._inbox.counts().items()):
            items.add_metric([source, status], count)
        return [items]

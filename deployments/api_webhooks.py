"""`POST /api/v1/webhooks/NAME`: verified, then read, then stored, and only then acknowledged.

The delivery's id and the items that it becomes are kept in one transaction, so that a delivery that is sent again finds
the runs of the first time, and a sender who was not answered may send again for as long as it likes. The set is kept as
it was when the delivery came. Verification and rules are `webhooks`' matter.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.deployments.api_door import Door
from quantum_orchestrator.deployments.api_models import DeliveryAnswer
from quantum_orchestrator.deployments.api_problems import Refused
from quantum_orchestrator.deployments.api_routes import PREFIX, Ours, count, problems
from quantum_orchestrator.deployments.inbox import Arrival, Once
from quantum_orchestrator.deployments.webhooks import (
    Delivery,
    NotGenuine,
    Provider,
    Rule,
    Webhook,
    matching,
    read,
    verify,
)

router = APIRouter(prefix=PREFIX, dependencies=[Depends(count)])


@router.post(
    "/webhooks/{name}",
    summary="Take in a delivery",
    status_code=202,
    response_model=DeliveryAnswer,
    responses={
        200: {"model": DeliveryAnswer, "description": "Nothing is to be done, or it came before"},
        **problems(401, 404, 408, 409, 413, 422),
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "security": [],
    },
)
async def webhook(name: str, request: Request, door: Ours) -> JSONResponse:
    """Signed as GitHub, GitLab, Gitea or Standard Webhooks do it; `qo webhooks add` makes one. Needs no token."""
    request.state.source = f"webhook:{name[:64]}"
    known = door.webhooks.find(name)
    if known is None:
        raise Refused(404, "unknown-webhook", f"there is no webhook {name[:64]!r}")
    body = await request.body()
    delivery = await _genuine(door, known, request.headers, body)
    return await _take(door, known, delivery, body)


async def _genuine(door: Door, webhook: Webhook, headers: Mapping[str, str], body: bytes) -> Delivery:
    """What was delivered. Raises Refused unless its sender has signed it, Unreadable."""
    secrets = await asyncio.to_thread(door.secrets.of, webhook)
    try:
        verify(webhook.provider, headers, body, secrets)
    except NotGenuine as error:
        raise Refused(401, error.reason, error.message, hint=error.hint) from error
    return read(webhook.provider, headers, body)


async def _take(door: Door, webhook: Webhook, delivery: Delivery, body: bytes) -> JSONResponse:
    rules = list(matching(webhook, delivery))
    arrivals = [_arrival(webhook, rule, delivery) for rule in rules]
    digest = hashlib.sha256(body).hexdigest()
    unseen = [digest] if webhook.provider in (Provider.GITHUB, Provider.GITEA) else []
    once = Once(f"webhook:{webhook.name}", delivery.id, digest, unseen)
    accepted = await door.accept(arrivals, once)
    answer: dict[str, Any] = {"delivery": delivery.id, "runs": list(accepted.run_ids)}
    if accepted.repeated:
        return JSONResponse({**answer, "repeated": True})
    if not arrivals:
        return JSONResponse({**answer, "ignored": f"no rule is for {delivery.event or 'it'} {delivery.branch}".strip()})
    return JSONResponse(answer, 202)


def _arrival(webhook: Webhook, rule: Rule, delivery: Delivery) -> Arrival:
    """The run of one rule's set. Raises StateError where that cannot be read: the sender tries again."""
    file = Path(rule.set)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"the webhook's set {file.name} cannot be read", hint="`qo webhooks list` names it") from error
    return Arrival(
        source=f"webhook:{webhook.name}",
        actor=f"webhook:{webhook.name}",
        workspace=Path(rule.workspace),
        document=text,
        file=str(file),
        folder=file.parent,
        inputs=inputs_for(text, delivery),
    )


def inputs_for(text: str, delivery: Delivery) -> dict[str, Any]:
    """Of what is known of a delivery, what the set has inputs for; `payload` always."""
    try:
        declared = json.loads(text).get("inputs", {})
    except (ValueError, AttributeError):
        declared = {}  # it is judged when it is carried out
    return {name: value for name, value in delivery.inputs().items() if name == "payload" or name in declared}

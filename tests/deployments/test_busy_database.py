"""A server whose database is busy tries again by itself."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from quantum_orchestrator.deployments import busy_database
from quantum_orchestrator.deployments.busy_database import Message, Receive, Send


class Busy:
    """Refuses so many requests, then answers with the body it was sent.

    Like Starlette, it raises what it has answered for.
    """

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.asked += 1
        request = await receive()
        refused = self.asked <= self.refusals
        await send({"type": "http.response.start", "status": 503 if refused else 201, "headers": []})
        await send({"type": "http.response.body", "body": b"busy" if refused else request["body"]})
        if refused:
            raise RuntimeError("database is locked")


def ask(application: Busy) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(busy_database.patient(application), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/flow_runs/", content=b"a flow run")

    return asyncio.run(asked())


@pytest.mark.parametrize("refusals", [0, 1, 3])
def test_the_client_hears_only_of_the_answer(refusals: int) -> None:
    application = Busy(refusals)
    answer = ask(application)
    assert (answer.status_code, answer.content) == (201, b"a flow run")
    assert application.asked == refusals + 1


def test_one_that_stays_busy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy_database, "PAUSES", (0.0, 0.0))
    application = Busy(9)
    assert ask(application).status_code == 503
    assert application.asked == 3

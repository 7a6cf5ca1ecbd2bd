"""Has our Prefect server try again what its database was too busy for, instead of telling the client to.

A transaction of Prefect's begins by reading; if another one writes before it does, SQLite refuses its write at once,
however long it is told to wait, and Prefect answers 503. Its client then waits two seconds, and four, and gives up:
with ten runs at once some would not even begin. Such a transaction has changed nothing, so the request is simply made
again, within milliseconds. A wrapper around the ASGI application; it knows nothing of Prefect but the 503.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PAUSES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
"""Seconds before each further try; whoever is refused even then may come back."""


def patient(application: Application) -> Application:
    """The same application, whose answers are only 503 when it stays so."""

    async def answer(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        request = await _whole(receive)
        for pause in PAUSES:
            attempt = _Attempt(request, receive, send)
            try:
                await application({**scope}, attempt.receive, attempt.send)
            except Exception:
                if not attempt.refused:  # Starlette raises what it has answered for once more, for logs
                    raise
            if not attempt.refused:
                return
            await asyncio.sleep(pause)
        await application(scope, _Attempt(request, receive, send).receive, send)

    return answer


async def _whole(receive: Receive) -> list[Message]:
    """The messages of a request, its body in one or several."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body"):
        messages.append(await receive())
    return messages


class _Attempt:
    """One try: the request again, and the answer, held back if it is a refusal."""

    def __init__(self, request: list[Message], receive: Receive, send: Send) -> None:
        self.refused = False
        self._request = iter(request)
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """The request's messages, then whatever comes: that the client has gone."""
        return next(self._request, None) or await self._receive()

    async def send(self, message: Message) -> None:
        """Pass on what is no refusal."""
        if message["type"] == "http.response.start":
            self.refused = message["status"] == HTTPStatus.SERVICE_UNAVAILABLE
        if not self.refused:
            await self._send(message)

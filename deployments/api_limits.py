"""What the API takes of anybody: so many bytes, within so many seconds, so many requests a second.

An ASGI middleware and the buckets that it counts with. Bodies are limited as they are read, after whoever asks is
known: `TooLarge` and `TooSlow` are raised where the endpoint reads, and a body that says that it is too large is not
read for long. Knows neither tokens nor runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MOST_BUCKETS = 10_000
DRAINED_BYTES = 64 * 1024**2
DRAIN_SECONDS = 5.0


class TooLarge(Exception):
    """The body has more bytes than are taken."""


class TooSlow(Exception):
    """The body has not come within the time that it has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is taken. `rate` is requests a second, of each token and of each address; 0 is no limit."""

    body_bytes: int = 1024**2
    body_seconds: float = 10.0
    rate: float = 50.0


class Buckets:
    """Token buckets by name, each full at first: as many at once as come in two seconds."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._full = max(2 * rate, 1.0)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str) -> float:
        """Take one; or how many seconds to wait for the next."""
        if self._rate <= 0:
            return 0.0
        now = time.monotonic()
        level, since = self._levels.pop(name, (self._full, now))
        level = min(self._full, level + (now - since) * self._rate)
        taken = level >= 1
        self._levels[name] = (level - 1 if taken else level, now)
        if len(self._levels) > MOST_BUCKETS:
            self._levels.popitem(last=False)  # the one that was asked for longest ago is full by now
        return 0.0 if taken else (1 - level) / self._rate


class LimitedBodies:
    """Counts and times what endpoints read."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reading = _Reading(receive, self._limits, _declared(scope))
        sending = _Sending(send, reading)
        await self._app(scope, reading, sending)


def _declared(scope: MutableMapping[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


class _Reading:
    """What the endpoint receives."""

    def __init__(self, receive: Receive, limits: Limits, declared: int) -> None:
        self._receive = receive
        self._limits = limits
        self._declared = declared
        self._deadline: float | None = None
        self.received = 0
        self.ended = False
        self.refused = False

    async def __call__(self) -> Message:
        if self.ended:
            return await self._receive()  # only for the end of the connection, which may take long
        if self._declared > self._limits.body_bytes:
            self.refused = True
            raise TooLarge
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._limits.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow from None
        self._count(message)
        if self.received > self._limits.body_bytes:
            self.refused = True
            raise TooLarge
        return message

    def _count(self, message: Message) -> None:
        self.received += len(message.get("body", b""))
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)

    async def drain(self) -> None:
        """Take some of what is still coming: a connection that is closed meanwhile is reset, and the answer lost."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.ended and self.received < DRAINED_BYTES:
                    self._count(await self._receive())
        except TimeoutError:
            return


class _Sending:
    """What the endpoint sends; the end of a refusal only once the rest of the body was taken."""

    def __init__(self, send: Send, reading: _Reading) -> None:
        self._send = send
        self._reading = reading

    async def __call__(self, message: Message) -> None:
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not (last and self._reading.refused):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._reading.drain()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

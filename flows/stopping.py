"""Ending what runs: the whole run when it is interrupted, or one call when its time is over.

A `Stop` covers some work. Operations that are at work are asked through their tokens and end in their own time, undone;
whatever only waits (for a further attempt, for a person, for Prefect) is cancelled at once. Work that begins after the
stop does not begin. A stop inside another ends with it, and not the other way round.

It knows neither steps nor Prefect. `stop` may be called in a signal handler and in any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from quantum_orchestrator.blocks.errors import Interrupted
from quantum_orchestrator.tasks.operation import CancelToken

Result = TypeVar("Result")
_WAITING: ContextVar[asyncio.Task[Any] | None] = ContextVar("waiting", default=None)
"""The task of the innermost `wait`: runners may start others in it, which inherit this."""


class Stop:
    """Whether some work is to end, and what must be told."""

    def __init__(self, outer: Stop | None = None) -> None:
        self._outer = outer
        self._asked = False
        self._inner: set[Stop] = set()
        self._tokens: set[CancelToken] = set()
        self._waiting: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}

    @property
    def stopped(self) -> bool:
        """Whether the end was asked for, here or around."""
        return self._asked or (self._outer is not None and self._outer.stopped)

    def stop(self) -> None:
        """Ask for the end of all of it."""
        self._asked = True
        for inner in list(self._inner):
            inner.stop()
        for token in list(self._tokens):
            token.cancel()
        for task, loop in list(self._waiting.items()):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the task with it
                loop.call_soon_threadsafe(self._wake, task)

    def check(self) -> None:
        """Raises Interrupted if it is stopped."""
        if self.stopped:
            raise Interrupted

    @contextlib.contextmanager
    def inside(self) -> Iterator[Stop]:
        """A stop for a part of the work."""
        inner = Stop(self)
        self._inner.add(inner)
        try:
            yield inner
        finally:
            self._inner.discard(inner)

    @contextlib.contextmanager
    def working(self, token: CancelToken) -> Iterator[None]:
        """While an operation is at work, it is asked by its token, and the `wait` around it goes on."""
        waiting = _WAITING.get()
        loop = None if waiting is None else self._waiting.pop(waiting, None)
        self._tokens.add(token)
        if self.stopped:
            token.cancel()
        try:
            yield
        finally:
            self._tokens.discard(token)
            if waiting is not None and loop is not None:
                self._waiting[waiting] = loop

    async def wait(self, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """What the work gives. Raises Interrupted as soon as the end is asked for, unless an operation is at work."""
        self.check()
        task = asyncio.create_task(_remembered(start))
        self._waiting[task] = asyncio.get_running_loop()
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self.stopped and not (current is not None and current.cancelling()):
                raise Interrupted from None
            raise
        finally:
            self._waiting.pop(task, None)

    def _wake(self, task: asyncio.Task[Any]) -> None:
        if task in self._waiting:  # not if an operation has begun, or all is over
            task.cancel()


async def _remembered(start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    _WAITING.set(asyncio.current_task())
    return await start()


async def in_a_thread_left_behind(ask: Callable[[], Result]) -> Result:
    """What a function gives that waits for a person: when nobody waits for it any more, the process can end all the
    same."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()

    def settle(settle_it: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if answer.done() else settle_it())

    def work() -> None:
        try:
            found = ask()
        except BaseException as problem:  # raised again where it is waited for
            raised = problem
            settle(lambda: answer.set_exception(raised))
        else:
            settle(lambda: answer.set_result(found))

    threading.Thread(target=work, name="ask", daemon=True).start()
    return await answer

"""One instruction as a Prefect task: named, retried, timed out, cached and drawn by Prefect, in Prefect's way.

The task's function is asynchronous and runs in the flow's own loop; the operation itself runs in a thread of the
engine. Retries, their delays and the time-out are Prefect's. Results are JSON that carries no classes: no pickle is
ever read. The cache key is ours (run, step, parameters): Prefect's default would mix up equal inputs of two steps.

What is undone is shown as tasks as well, but by no means done by Prefect: `undo_in_task` sees to it that the work is
done once whatever becomes of the task run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.serializers import JSONSerializer
from prefect.states import Cancelled, Completed

from quantum_orchestrator.blocks.errors import Interrupted

Attempt = Callable[[], Awaitable[Mapping[str, Any]]]
T = TypeVar("T")
_log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""For so long does a process that has died hold a global concurrency limit; Prefect's least."""
SHOWN_PATHS = 1_000
"""So many paths are in the result of what was undone; Prefect reads and sends results as a whole."""


def encode_failure(value: Any) -> Any:
    """Prefect also stores what a failed task raised: its name and text are enough."""
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value)}
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")


RESULTS = JSONSerializer(object_encoder=f"{__name__}.{encode_failure.__name__}", object_decoder=None)
"""No decoder: reading a result never makes anything but JSON values."""


@dataclass
class StepKey(CachePolicy):
    """The cache key is the text that the task was made with."""

    key: str = ""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **_keywords: Any,
    ) -> str | None:
        """See CachePolicy."""
        return self.key


def cache_key(run_id: str, step_id: str, parameters: Mapping[str, Any]) -> str:
    """The key of a step's result: the same in every process that works on the run."""
    identity = json.dumps([run_id, step_id, parameters], sort_keys=True, default=repr)
    return f"qo-{hashlib.sha256(identity.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What an instruction says of its task. Times are seconds."""

    operation: str
    step_id: str
    key: str
    description: str = ""
    retries: int = 0
    retry_delays: float | Sequence[float] = 0.0
    timeout: float | None = None
    tags: Sequence[str] = ()
    reuse: str = ""
    """Why it need not run: the attempt only gives outputs that are known, and the task run is Cached."""


class Ended(PrefectFuture[None]):
    """A task run that has ended, as something to wait for: it draws an edge, and order is all that it says.

    Prefect would take a state as well, but looks into it, and knows the values in results by their address: a text that
    two results share (a key of both) would draw an edge that is not there.
    """

    def __init__(self, state: State[Any]) -> None:
        if state.state_details.task_run_id is None:
            raise ValueError("the state is not a task run's")
        self._id = state.state_details.task_run_id

    @property
    def task_run_id(self) -> UUID:
        """Which task run."""
        return self._id

    @property
    def state(self) -> State[Any]:
        """It has ended; how is the engine's business, and its outputs go through the engine."""
        return Completed(data="ended")  # without data, Prefect would look for a stored result

    def wait(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""

    def add_done_callback(self, fn: Callable[[PrefectFuture[None]], None]) -> None:
        """Called at once."""
        fn(self)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> None:
        """Nothing to pass on."""


def done_before(outputs: Mapping[str, Any], why: str) -> State[Any]:
    """The state of a task that did not have to run, and why."""
    return Completed(name="Cached", message=why, data=outputs)


async def run_task(options: TaskOptions, attempt: Attempt, after: Sequence[Ended]) -> State[Any]:
    """Run one step as a task run of the flow run that this is called in; `after` draws the edges to it.

    The state is final; its exception is what the last attempt raised. An interrupted step's state is Cancelled.
    """

    async def step() -> Any:
        try:
            outputs = await attempt()
        except Interrupted as ended:
            return Cancelled(message=str(ended) or "the run was interrupted")
        if options.reuse:  # Prefect has lost its result, or has it in another place: the journal decides
            return done_before(outputs, options.reuse)
        return outputs

    delays = options.retry_delays if isinstance(options.retry_delays, int | float) else list(options.retry_delays)
    task: Task[[], Any] = Task(
        step,
        name=options.operation,
        description=options.description or None,
        tags=options.tags or None,
        task_run_name=lambda: options.step_id,
        retries=options.retries,
        retry_delay_seconds=delays,
        timeout_seconds=options.timeout,
        persist_result=True,
        result_serializer=RESULTS,
        cache_policy=StepKey(key=options.key),
        refresh_cache=not options.reuse,
    )
    running = task(return_state=True, wait_for=list(after))
    return await cast("Awaitable[State[Any]]", running)  # the task is asynchronous


async def global_limit(name: str) -> int | None:
    """How much of this all runs together may take; None where no global concurrency limit of this name is on."""
    async with get_client() as client:
        try:
            found = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None
    return found.limit if found.active else None


@contextlib.asynccontextmanager
async def within_limits(wanted: Mapping[str, int]) -> AsyncIterator[None]:
    """Hold so much of each of these global concurrency limits, as soon as all of it can be had.

    Prefect releases what a process that died has held, when its lease is over.
    """
    from prefect.concurrency.asyncio import concurrency  # hardly a set names one

    async with contextlib.AsyncExitStack() as held:
        for name in sorted(wanted):  # all in one order, so that nobody waits for one who waits for him
            await held.enter_async_context(concurrency(name, wanted[name], lease_duration=LEASE_SECONDS))
        yield


class Once(Generic[T]):
    """Work that is done once, however many ask for it and whatever becomes of those who wait."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._at_work: asyncio.Future[T] | None = None
        self.begun = asyncio.Event()

    async def __call__(self) -> T:
        """What the work gives; raises what it raises."""
        if self._at_work is None:
            self._at_work = asyncio.ensure_future(self._work())
            self.begun.set()
        return await asyncio.shield(self._at_work)


async def done_and_shown(once: Once[T], show: Callable[[], Coroutine[Any, Any, object]], patience: float) -> T:
    """Do the work inside of what shows it, or without it: what goes wrong with the showing is logged, and no obstacle.

    `show` is to call `once`. It has `patience` seconds to come to that, and as many to end after the work has.
    """
    showing = asyncio.create_task(show())
    begun = asyncio.create_task(once.begun.wait())
    try:
        await asyncio.wait([showing, begun], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        return await once()
    except asyncio.CancelledError:
        patience = 0.0  # whoever ends it does not wait for it to be told
        raise
    finally:
        await asyncio.wait([showing], timeout=patience)
        begun.cancel()
        showing.cancel()
        problem, _ = await asyncio.gather(showing, begun, return_exceptions=True)
        if isinstance(problem, BaseException):
            _log.warning("this was undone, and Prefect does not show it: %s: %s", type(problem).__name__, problem)


async def undo_in_task(
    name: str, once: Once[Sequence[str]], tell: Callable[[Sequence[str]], Awaitable[None]] | None = None
) -> State[Any]:
    """Show some undoing as a task run of this name; its log, its result and its state say what was put back.

    `tell` is called in the task run as well, so that an artifact becomes the task run's.
    """

    async def undo() -> State[Any]:
        restored = await once()
        words = restored_in_words(restored)
        get_run_logger().info(words)
        if tell is not None:
            await tell(restored)
        return Completed(message=words, data={"count": len(restored), "restored": list(restored[:SHOWN_PATHS])})

    task: Task[[], Any] = Task(
        undo,
        name=name.rpartition("/")[2],
        task_run_name=lambda: name,
        retries=0,
        persist_result=True,
        result_serializer=RESULTS,
        cache_policy=NO_CACHE,
    )
    return await cast("Awaitable[State[Any]]", task(return_state=True))  # the task is asynchronous


def restored_in_words(restored: Sequence[str], shown: int = 20) -> str:
    """What was put back, in a line."""
    if not restored:
        return "nothing to put back"
    paths = "1 path" if len(restored) == 1 else f"{len(restored)} paths"
    more = f" and {len(restored) - shown} more" if len(restored) > shown else ""
    return f"put back {paths}: {', '.join(restored[:shown])}{more}"

"""That what is undone is undone once, whatever becomes of the task run that shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from quantum_orchestrator.tasks.prefect_task import Once

    Show = Callable[[Once[int]], Awaitable[object]]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
"""Nothing here asks the server; but Prefect, once imported, keeps to the one that was configured then."""


class Work:
    """Something that must be done exactly once."""

    def __init__(self, seconds: float = 0.0, problem: Exception | None = None) -> None:
        self.done = 0
        self._seconds = seconds
        self._problem = problem

    async def __call__(self) -> int:
        await asyncio.sleep(self._seconds)
        self.done += 1
        if self._problem is not None:
            raise self._problem
        return self.done


def shown(work: Work, show: Show, patience: float = 0.2) -> int:
    from quantum_orchestrator.tasks.prefect_task import Once, done_and_shown

    async def all_of_it() -> int:
        once = Once(work)

        async def showing() -> object:
            return await show(once)

        return await done_and_shown(once, showing, patience)

    return asyncio.run(all_of_it())


async def by_itself(once: Once[int]) -> object:
    return await once()


async def twice(once: Once[int]) -> object:
    return await once() + await once()


async def fails_before(_once: Once[int]) -> object:
    raise RuntimeError("refused")


async def fails_after(once: Once[int]) -> object:
    await once()
    raise RuntimeError("gone")


async def is_ended_by_a_signal(_once: Once[int]) -> object:
    class Suspended(BaseException):
        """As Prefect's signals, which are no Exceptions."""

    raise Suspended


async def hangs_before(once: Once[int]) -> object:
    await asyncio.sleep(60)
    return await once()


async def hangs_after(once: Once[int]) -> object:
    await once()
    return await asyncio.sleep(60)


async def never_comes_to_it(_once: Once[int]) -> object:
    return None


FAILING = (fails_before, fails_after, is_ended_by_a_signal)
SHOWS = (by_itself, twice, *FAILING, hangs_before, hangs_after, never_comes_to_it)
every_show = pytest.mark.parametrize("show", SHOWS, ids=lambda show: show.__name__)


@every_show
def test_it_is_done_once(show: Show) -> None:
    work, began = Work(), time.monotonic()
    assert shown(work, show) == 1
    assert work.done == 1
    assert time.monotonic() - began < 5


@every_show
def test_what_it_raises_is_raised(show: Show) -> None:
    work = Work(problem=ValueError("a conflict"))
    with pytest.raises(ValueError, match="a conflict"):
        shown(work, show)
    assert work.done == 1


def test_work_that_takes_longer_than_the_showing_may_is_waited_for() -> None:
    assert shown(Work(seconds=0.5), by_itself, patience=0.1) == 1


@pytest.mark.parametrize("show", FAILING, ids=lambda show: show.__name__)
def test_that_it_is_not_shown_is_logged(show: Show, caplog: pytest.LogCaptureFixture) -> None:
    shown(Work(), show)
    assert "Prefect does not show it" in caplog.text


def test_what_was_put_back_is_said_in_a_line() -> None:
    from quantum_orchestrator.tasks.prefect_task import restored_in_words

    assert restored_in_words([]) == "nothing to put back"
    assert restored_in_words(["a"]) == "put back 1 path: a"
    assert restored_in_words(["a", "b", "c"], shown=2) == "put back 3 paths: a, b and 1 more"

"""What Prefect is told beside the tasks holds a run up as little as can be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_engine import Bench, write

from quantum_orchestrator.flows.engine import Run
from quantum_orchestrator.flows.results import StepResult, StepStatus
from quantum_orchestrator.flows.telling import Telling, pages


class SlowServer(Telling):
    """A double of what tells a server: this one answers only when it is let, and what it was told is noted."""

    def __init__(self) -> None:
        super().__init__("r1", "set", ())
        self.answers = asyncio.Event()
        self.heard: list[str] = []

    async def page(self, kind: str, markdown: str) -> None:
        await self.answers.wait()
        self.heard.append(kind)

    async def progress(self, percent: float) -> None:
        self.heard.append(f"{percent:g} %")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    for name in ("workspace", "state"):
        (tmp_path / name).mkdir()
    bench = Bench(tmp_path / "workspace", tmp_path / "state")
    bench.run(write("a", "x"))
    yield bench.last
    bench.workspace.close()
    bench.journal.close()


def test_a_run_does_not_wait_for_its_pages_before_it_has_ended(run: Run) -> None:
    async def go() -> list[str]:
        server = SlowServer()
        async with pages(run, server) as executed:
            await asyncio.sleep(0)
            executed.set()
            server.heard.append("has run")
            server.answers.set()
        return server.heard

    assert sorted(asyncio.run(go())[1:]) == ["100 %", "plan"]
    assert asyncio.run(go())[0] == "has run"


def test_the_pages_are_told_when_the_run_ends_in_an_error_too(run: Run) -> None:
    async def go(server: SlowServer) -> None:
        server.answers.set()
        async with pages(run, server):
            raise ZeroDivisionError

    server = SlowServer()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(go(server))
    assert sorted(server.heard) == ["100 %", "plan"]


def test_the_bar_is_moved_while_the_threads_of_steps_put_down_results(run: Run) -> None:
    class Looked(StepResult):
        """One that another ends beside while it is looked at, as a thread may at any moment."""

        @property  # type: ignore[override]
        def status(self) -> StepStatus:
            results[f"s{len(results)}"] = StepResult("s", "file.write", StepStatus.SUCCEEDED)
            return StepStatus.SUCCEEDED

        @status.setter
        def status(self, _value: StepStatus) -> None:
            pass

    async def go() -> list[str]:
        server = SlowServer()
        server.answers.set()
        async with pages(run, server) as executed:
            executed.set()
        return server.heard

    results = run.books.results
    results["a"] = Looked("a", "file.write", StepStatus.SUCCEEDED)
    assert "100 %" in asyncio.run(go())

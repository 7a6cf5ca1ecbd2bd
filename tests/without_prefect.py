"""A run as it is, but that Prefect is told nothing of it: for tests of what a run does, not of how it is shown.

`qo run`, the locks, `conduct` with its journal, log and audit, the engine and the way out are the product's own. Left
out are the flow run that is around a run, the task runs that are around its steps, and what both send to the server:
four fifths of what a small run costs. Each kind of run has tests that leave out nothing: those that are not marked
`alone`, and those marked `whole` where all others of the module are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from plain_runner import PlainRunner

from quantum_orchestrator.blocks.errors import QuantumError, TimedOut
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.engine import Attempt
from quantum_orchestrator.flows.plan import Step

alone = pytest.mark.without_prefect
whole = pytest.mark.without_prefect(False)


def is_whole(test: pytest.Item) -> bool:
    """Whether its runs are told to Prefect."""
    marker = test.get_closest_marker("without_prefect")
    return marker is None or marker.args == (False,)


class Runner(PlainRunner):
    """Calls the attempt, again after a failure, and ends it at its time-out: as a Prefect task does."""

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        for _ in range(step.instruction.retries):
            with contextlib.suppress(QuantumError):
                return await _in_time(step, attempt)
        return await _in_time(step, attempt)


async def _in_time(step: Step, attempt: Attempt) -> Outputs:
    limit = step.instruction.timeout
    try:
        return await asyncio.wait_for(attempt(), limit)
    except TimeoutError:
        raise TimedOut(f"took longer than {limit:g} s; all that it had started was ended") from None


@contextlib.contextmanager
def without_prefect() -> Iterator[None]:
    """Runs in this process are not told to Prefect; so is what is undone later."""
    from quantum_orchestrator.deployments import rollback_in_prefect
    from quantum_orchestrator.flows import orchestrate
    from quantum_orchestrator.flows.telling import Telling

    flow_run = SimpleNamespace(id=uuid4(), deployment_id=None)

    @contextlib.asynccontextmanager
    async def none_is_made(*_: object) -> AsyncIterator[Any]:
        yield flow_run

    async def conducted(record: Any, request: Any, opened: Any, _flow_run: object) -> dict[str, Any]:
        with orchestrate.Signals() as signals:
            telling = Telling(record.id, record.set_name, request.observers)
            document, _ = await orchestrate.conduct(record, request, opened, signals, telling)
        opened.journal.update(record.id, durable=False, told_crashed=1)
        return document

    async def nobody_listens(_telling: Telling, _words: object) -> None:
        return None

    async def undone(_record: object, unwind: Any, *, to: str | None = None) -> Any:
        return await unwind(None)

    with (
        mock.patch.multiple(
            orchestrate,
            new_flow_run=none_is_made,
            flow_run_again=none_is_made,
            current_flow_run=lambda: flow_run,
            _in_flow_run=conducted,
            PrefectRunner=lambda _run_id, _telling: Runner(),
            get_run_logger=lambda: logging.getLogger("without_prefect"),
        ),
        mock.patch.object(Telling, "tell", nobody_listens),
        mock.patch.object(rollback_in_prefect, "show", undone),
    ):
        yield

"""A runner in Prefect's place, for tests of what the engine does with a run."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.engine import Attempt
from quantum_orchestrator.flows.plan import Step


class PlainRunner:
    """Calls the attempt, again after a failure where the step says so."""

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        for _ in range(step.instruction.retries):
            with contextlib.suppress(QuantumError):
                return await attempt()
        return await attempt()

    async def run_batch(
        self,
        steps: Sequence[Any],
        attempt: Callable[[], Awaitable[Mapping[str, Outputs]]],
        after: Sequence[str],
        *,
        reuse: Callable[[], str],
    ) -> None:
        await attempt()

    async def undo(self, name: str, work: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
        return await work()

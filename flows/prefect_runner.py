"""Carries out the steps of a run as Prefect tasks, and shows as tasks what is undone; see `run_settings.StepRunner`.

Knows what an instruction says of its task, and which task runs it comes after. The journal decides what runs: a step
that it holds as done comes here as well, so that its task run says Cached.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from prefect.artifacts import acreate_table_artifact

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, TimedOut
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.books import owners
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.run_settings import Attempt
from quantum_orchestrator.flows.telling import Telling
from quantum_orchestrator.flows.undoing import ROLLBACK
from quantum_orchestrator.tasks.prefect_task import (
    Ended,
    Once,
    TaskOptions,
    cache_key,
    done_and_shown,
    done_before,
    global_limit,
    run_task,
    undo_in_task,
    within_limits,
)

BATCH = "batch"
MOST_LISTED = 100
"""Members of a batch in its table: the server keeps it, and the page shows it, as a whole."""
SHOWING_SECONDS = 10.0
"""Prefect needs some milliseconds to begin a task run; what is undone does not wait for longer than this, nor does the
end of a run for Prefect to hear of it."""


class PrefectRunner:
    """Runs steps as Prefect tasks; see run_settings.StepRunner."""

    def __init__(self, run_id: str, telling: Telling) -> None:
        self._run_id = run_id
        self._telling = telling
        self._runs: dict[str, Ended] = {}
        self._inside: dict[str, dict[str, Ended]] = {}
        """For a step that became several: their task runs, by step."""
        self._global: dict[str, Once[int | None]] = {}

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        """See run_settings.StepRunner."""
        instruction = step.instruction
        options = TaskOptions(
            operation=instruction.op,
            step_id=step.id,
            key=cache_key(self._run_id, step.id, instruction.parameters),
            description=instruction.description,
            retries=instruction.retries,
            retry_delays=instruction.retry_delay,
            timeout=instruction.timeout,
            tags=instruction.tags,
            reuse=reuse,
        )
        edges = self._edges(after)
        async with contextlib.nullcontext() if reuse else await self._limits(step):
            state = await run_task(options, attempt if reuse else partial(self._shown, step, attempt), edges)
        self._note(step.id, Ended(state))
        if state.is_cancelled():
            raise Interrupted
        result = await state.aresult(raise_on_failure=False)
        if isinstance(result, TimeoutError):
            limit = "its time-out" if instruction.timeout is None else f"{instruction.timeout:g} s"
            raise TimedOut(f"took longer than {limit}; all that it had started was ended")
        if isinstance(result, BaseException):
            raise result
        outputs: Outputs = result
        return outputs

    async def _shown(self, step: Step, attempt: Attempt) -> Outputs:
        """Attempt it, and show in the task run what it says of code, whether it succeeds or fails by that."""
        try:
            outputs = await attempt()
        except OperationError as error:
            await self._telling.judged(step.instruction.op, step.id, error.details)
            raise
        await self._telling.judged(step.instruction.op, step.id, outputs)
        return outputs

    async def _limits(self, step: Step) -> AbstractAsyncContextManager[None]:
        """What holds Prefect's global concurrency limits that are called as the step's resources are.

        A step that asks for more than a limit has it to itself.
        """
        wanted: dict[str, int] = {}
        for name, amount in step.instruction.resources.items():
            known = self._global.setdefault(name, Once(partial(global_limit, name)))
            limit = await known()
            if limit == 0:
                raise OperationError(
                    f"Prefect's global concurrency limit {name!r} is 0",
                    hint=f"`prefect global-concurrency-limit update {name} --limit 1`, or disable it",
                )
            if limit is not None:
                wanted[name] = min(math.ceil(amount), limit)
        return within_limits({name: amount for name, amount in wanted.items() if amount})

    async def run_batch(
        self,
        steps: Sequence[Step],
        attempt: Callable[[], Awaitable[Mapping[str, Outputs]]],
        after: Sequence[str],
        *,
        reuse: Callable[[], str],
    ) -> None:
        """See run_settings.StepRunner. A table lists the members; their outputs are in the journal alone."""

        ended: set[str] = set()

        async def listed() -> Any:
            ended.update(await attempt())
            await self._telling.tell(partial(_list_members, steps, ended, self._run_id))
            result = {"run": self._run_id, "steps": len(steps), "succeeded": len(ended)}
            why = reuse()
            return done_before(result, why) if why else result

        name = f"{steps[0].id} and {len(steps) - 1} more"
        options = TaskOptions(BATCH, name, cache_key(self._run_id, BATCH, {"steps": [step.id for step in steps]}))
        state = await run_task(options, listed, self._edges(after))
        shown = Ended(state)
        for step in steps:
            if step.id in ended or step.id not in self._runs:  # it may have been given back, and had a run of its own
                self._note(step.id, shown)
        if state.is_cancelled():
            raise Interrupted
        result = await state.aresult(raise_on_failure=False)
        if isinstance(result, BaseException):
            raise result

    async def undo(self, name: str, work: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
        """See run_settings.StepRunner. Prefect may refuse the task run, or be gone: the work is done all the same."""
        once = Once(work)
        if self._telling.lost:
            return await once()
        tell = self._telling.restored if name == ROLLBACK else None
        return await done_and_shown(once, lambda: undo_in_task(name, once, tell), SHOWING_SECONDS)

    def _note(self, step_id: str, ended: Ended) -> None:
        self._runs[step_id] = ended
        for owner in owners(step_id):
            if owner != step_id:
                self._inside.setdefault(owner, {})[step_id] = ended

    def _edges(self, after: Sequence[str]) -> list[Ended]:
        """The task runs of these steps, or of those that they became, each once; a step that was skipped has none."""
        return list(dict.fromkeys(ended for each in after for ended in self._ended(each)))

    def _ended(self, step_id: str) -> Iterable[Ended]:
        return [self._runs[step_id]] if step_id in self._runs else self._inside.get(step_id, {}).values()


async def _list_members(steps: Sequence[Step], ended: Collection[str], run_id: str) -> None:
    """A table of the members of a batch; of many, of those that have not ended first."""
    shown = sorted(steps, key=lambda step: step.id in ended)[:MOST_LISTED]
    rows = [{"step": each.id, "operation": each.instruction.op, "ended": each.id in ended} for each in shown]
    more = "" if len(shown) == len(steps) else f", of which {len(shown)} are listed; `qo show {run_id}` lists all"
    await acreate_table_artifact(rows, description=f"{len(steps)} steps{more}")

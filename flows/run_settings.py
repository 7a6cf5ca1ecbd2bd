"""What a run is told by whoever begins it: its settings, and what carries out its steps.

Knows nothing of how a run goes on; `flows/engine.py` does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quantum_orchestrator.blocks.model import ModelSettings
from quantum_orchestrator.blocks.model_session import configured
from quantum_orchestrator.flows.attempts import Outputs
from quantum_orchestrator.flows.batching import BATCH_FROM
from quantum_orchestrator.flows.document import OnFailure, RollbackTo
from quantum_orchestrator.flows.plan import Step
from quantum_orchestrator.flows.reusing import Wishes
from quantum_orchestrator.flows.schedule import Seconds

Attempt = Callable[[], Awaitable[Outputs]]


class StepRunner(Protocol):
    """Carries out one step by calling `attempt`, more than once where the instruction's `retries` says so."""

    async def run(self, step: Step, attempt: Attempt, after: Sequence[str], *, reuse: str) -> Outputs:
        """The outputs of the attempt that succeeded.

        `after` are the steps that this one waited for. `reuse` says why the step need not run: the attempt only gives
        outputs that are known, and a result that was stored for it may be taken; where it is empty, none must be, as
        the effects may have been undone.
        Raises what the last attempt raised, TimedOut when the instruction's `timeout` ended it, and Interrupted.
        """

    async def run_batch(
        self,
        steps: Sequence[Step],
        attempt: Callable[[], Awaitable[Mapping[str, Outputs]]],
        after: Sequence[str],
        *,
        reuse: Callable[[], str],
    ) -> None:
        """The same for several at once: one attempt, which gives the outputs of those that have succeeded, by id.

        `reuse` tells after the attempt why none of them had to run; nothing if one had to.
        """

    async def undo(self, name: str, work: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
        """Do the work, exactly once and whatever else fails, and show it under this name; the paths put back.

        Raises what the work raised.
        """


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What the caller chooses for one run."""

    parallel: int
    on_failure: OnFailure | RollbackTo
    start_at: str | None = None
    """A step from which on everything runs again, whatever an earlier process has done."""
    approve: bool = False
    """Every approval is given in advance."""
    actor: str = "unknown"
    ask: Callable[[str, str], bool | None] | None = None
    """Asks a person at a terminal: step id and message to yes, no, or None for no answer."""
    decided: Callable[[str, bool], None] = lambda _subject, _approved: None
    """Hears of what is about to be approved or rejected: a step, or `step@digest` for a content."""
    secrets: Callable[[Sequence[str]], Mapping[str, str]] = lambda _names: {}
    """Values of secrets by name."""
    models: Callable[[str | None], ModelSettings] = configured
    """Who answers questions to language models, by the name of a Model block or of none."""
    reuse: Wishes = field(default_factory=Wishes)
    batch_from: int = BATCH_FROM
    """How many steps a set has to have for cheap ones to be done together."""
    duration_of: Callable[[Step], Seconds] = lambda _step: 1.0
    """About how long a step takes."""
    adapts: bool = False
    """`parallel` is where it begins; how many run at once then follows how busy the machine is."""

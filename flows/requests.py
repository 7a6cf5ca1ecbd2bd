"""What somebody wants run, and the record that a run begins with.

Both are the same whether Prefect is needed for the run or not, so this knows nothing of it, and does nothing but read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from quantum_orchestrator.blocks.audit import current_actor
from quantum_orchestrator.blocks.journal import RunRecord
from quantum_orchestrator.blocks.levels import Level, level_for
from quantum_orchestrator.blocks.policy import Given, Policy
from quantum_orchestrator.flows.attempts import Observer
from quantum_orchestrator.flows.callbacks import Callback
from quantum_orchestrator.flows.document import InstructionSet, OnFailure, Trust
from quantum_orchestrator.flows.plan import Graph
from quantum_orchestrator.flows.results import RunStatus
from quantum_orchestrator.flows.reusing import Wishes


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What somebody wants run: a valid set, its resolved inputs, where, and how."""

    document: InstructionSet
    inputs: Mapping[str, Any]
    root: Path
    parallel: int | None = None
    on_failure: OnFailure | None = None
    approve: bool = False
    wait: bool = True
    actor: str = field(default_factory=current_actor)
    run_id: str | None = None
    """The id of the run that begins, where it was fixed before."""
    source: str = ""
    """Where the set comes from, for the audit: a file, `<stdin>`, a deployment."""
    ask: Callable[[str, str], bool | None] | None = None
    on_wait: Callable[[str], None] = lambda _holder: None
    observers: Sequence[Observer] = field(default_factory=tuple)
    start_at: str | None = None
    """A step from which on everything runs again, of a run that is gone on with."""
    reuse: Wishes | None = None
    """Nothing: as the run was begun."""
    predicted: Mapping[str, Any] | None = None
    """What the plan that is run says will change; see `plan_file.predicted_json`."""
    graph: Graph | None = None
    """The document's with these inputs, if it has been built."""
    callback: Callback | None = None
    """Whom to tell how it has ended, now and whenever somebody goes on with it."""
    narrowed_by: Sequence[Given] = ()
    """What holds for this run beside the machine's policy, now and whenever somebody goes on with it."""


def new_run_id() -> str:
    """A readable id that sorts by time: `20260102-030405-1a2b3c`."""
    return time.strftime("%Y%m%d-%H%M%S") + "-" + uuid4().hex[:6]


def new_record(request: RunRequest) -> RunRecord:
    """A run that has yet to begin."""
    return RunRecord(
        id=request.run_id or new_run_id(),
        set_name=request.document.name,
        status=RunStatus.RUNNING.value,
        document=request.document.model_dump(by_alias=True, mode="json", exclude_unset=True),
        inputs=dict(request.inputs),
        options={
            "parallel": request.parallel,
            "on_failure": request.on_failure,
            "actor": request.actor,
            "source": request.source,
            "reuse": None if request.reuse is None else asdict(request.reuse),
            **({"callback": asdict(request.callback)} if request.callback else {}),
            **({"narrowed_by": [asdict(each) for each in request.narrowed_by]} if request.narrowed_by else {}),
        },
        started_at=time.time(),
        pid=os.getpid(),
        predicted=request.predicted,
    )


def policy_for(trust: Trust, policy: Policy) -> Policy:
    """What holds for a set of this trust."""
    return policy.for_untrusted() if trust is Trust.UNTRUSTED else policy


def sandbox_level(record: RunRecord, trust: Trust, policy: Policy) -> int:
    """The lowest level that any script of the run has run at, or will. The sets that it calls are trusted no more."""
    chosen = policy_for(trust, policy)
    earlier: int = record.options.get("sandbox", Level.OVERLAY)  # what went before a resume
    return min(int(level_for(chosen.sandbox_require, chosen.sandbox_prefer)), earlier)


def narrowing(record: RunRecord) -> list[Given]:
    """What the run was begun under beside the machine's policy."""
    return [
        Given(each["name"], tuple(each["value"]) if isinstance(each["value"], list) else each["value"], each["where"])
        for each in record.options.get("narrowed_by", ())
    ]

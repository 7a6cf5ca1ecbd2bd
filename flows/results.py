"""What has become of a run's steps so far, as expressions see it and as reports give it.

Shared by the dry run and the real one, so that `steps.x.outputs.y` means the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.journal import StepRecord
from quantum_orchestrator.tasks.operation import Unknown


class StepStatus(StrEnum):
    """How a step ended. `deferred` is a plan's word, `pending` and `running` are a live run's."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REUSED = "reused"
    FAILED = "failed"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled_back"
    AWAITING_APPROVAL = "awaiting_approval"
    DEFERRED = "deferred"


DONE = (StepStatus.SUCCEEDED, StepStatus.REUSED)
"""A step that has come to what it was to come to, by running or without."""


class RunStatus(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    KEPT = "kept"
    PAUSED = "paused"
    NEEDS_ATTENTION = "needs_attention"
    AWAITING_APPROVAL = "awaiting_approval"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class RunValues:
    """Statuses and outputs by step id."""

    def __init__(self, groups: Mapping[str, list[str]]) -> None:
        self.groups: dict[str, list[str]] = dict(groups)
        self._results: dict[str, dict[str, Any]] = {}
        self._unknown: set[str] = set()

    def set(self, step_id: str, status: StepStatus, outputs: Mapping[str, Any]) -> None:
        """Record a step's end."""
        said = StepStatus.SUCCEEDED if status is StepStatus.REUSED else status  # as if it had run
        self._results[step_id] = {"status": said.value, "outputs": dict(outputs)}

    def set_unknown(self, step_id: str) -> None:
        """Record that only a run can tell how the step ends."""
        self._unknown.add(step_id)

    def result(self, step_id: str) -> dict[str, Any]:
        """`{"status", "outputs"}` of a step or of a group. Raises Unknown where it has not ended."""
        if step_id in self._unknown:
            raise Unknown(step_id)
        if step_id in self.groups:
            return self._of_group(step_id)
        if step_id not in self._results:
            raise Unknown(step_id)
        return self._results[step_id]

    def _of_group(self, step_id: str) -> dict[str, Any]:
        """A list of outputs for `for_each`, outputs by inner id for `call`."""
        members = {member: self.result(member) for member in self.groups[step_id]}
        statuses = {result["status"] for result in members.values()}
        worst = next((each for each in ("failed", "skipped") if each in statuses), "succeeded")
        if all(member.startswith(f"{step_id}[") for member in members):
            return {"status": worst, "outputs": [result["outputs"] for result in members.values()]}
        start = len(step_id) + 1
        return {"status": worst, "outputs": {member[start:]: result["outputs"] for member, result in members.items()}}

    def knows(self, step_id: str) -> bool:
        """Whether there is anything to say of the step, or of what it became."""
        return step_id in self._results or step_id in self._unknown or step_id in self.groups

    def view(self, prefixes: Sequence[str]) -> Mapping[str, Any]:
        """The `steps` of a set's expressions: ids without the prefix, looked for under each in turn."""
        return _View(self, prefixes)


class _View(Mapping[str, Any]):
    def __init__(self, values: RunValues, prefixes: Sequence[str]) -> None:
        self._values = values
        self._prefixes = prefixes

    def __getitem__(self, key: str) -> Any:
        for prefix in self._prefixes:
            if self._values.knows(prefix + key):
                return self._values.result(prefix + key)
        raise Unknown(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str)

    def __iter__(self) -> Iterator[str]:
        raise Unknown

    def __len__(self) -> int:
        raise Unknown


@dataclass(slots=True)
class StepResult:
    """How a step stands, as reports give it. `duration_s` is seconds, all attempts and delays together."""

    id: str
    op: str
    status: StepStatus
    attempts: int = 0
    duration_s: float = 0.0
    outputs: Mapping[str, Any] | None = None
    error: QuantumError | None = None
    reason: str | None = None
    """Why it was reused, or was not although that was asked for."""

    @classmethod
    def of(cls, record: StepRecord) -> StepResult:
        """From the journal."""
        error = None
        if record.error is not None:
            error = RecordedError(record.error)
        status = StepStatus(record.status)
        reason = REUSED_BEFORE if status is StepStatus.REUSED else None
        return cls(record.id, record.op, status, record.attempts, record.duration, record.outputs, error, reason)

    @classmethod
    def reused(cls, step_id: str, op: str, outputs: Mapping[str, Any] | None, reason: str) -> StepResult:
        """Of a step that need not run."""
        return cls(step_id, op, StepStatus.REUSED, outputs=outputs, reason=reason)

    @property
    def said(self) -> str:
        """What is told with its end."""
        if self.error is not None:
            return self.error.message
        return (self.reason or "") if self.status is StepStatus.REUSED else ""

    def record(self) -> StepRecord:
        """For the journal."""
        return StepRecord(
            self.id,
            self.op,
            self.status.value,
            self.attempts,
            self.duration_s,
            self.outputs,
            None if self.error is None else _detailed(self.error),
        )

    def as_json(self) -> dict[str, Any]:
        """For reports; `reason` only where reuse is asked for."""
        reason = {} if self.reason is None else {"reason": self.reason}
        return {
            "id": self.id,
            "op": self.op,
            "status": self.status.value,
            "attempts": self.attempts,
            "duration_s": round(self.duration_s, 4),
            "outputs": None if self.outputs is None else dict(self.outputs),
            "error": None if self.error is None else _detailed(self.error),
            **reason,
        }


REUSED_BEFORE = "inputs unchanged when the run came to it"
"""What is left to be said of a step's reuse when another process goes on with the run."""


class RecordedError(QuantumError):
    """An error of an earlier process, read back from the journal."""

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        super().__init__(recorded["message"], hint=recorded["hint"], details=recorded.get("details"))
        self._kind: str = recorded["type"]

    @property
    def kind(self) -> str:
        """The name that it had."""
        return self._kind


def error_json(error: QuantumError) -> dict[str, str]:
    """An error as the public JSON gives it."""
    return {"type": error.kind, "message": error.message, "hint": error.hint}


def _detailed(error: QuantumError) -> dict[str, Any]:
    """The same of a step, with `details` where there are any."""
    details = {"details": dict(error.details)} if error.details else {}
    return {**error_json(error), **details}


class EventKind(StrEnum):
    """What a run tells whoever watches it."""

    RUN_STARTED = "run_started"
    STEP_STARTED = "step_started"
    STEP_RETRIED = "step_retried"
    STEP_FINISHED = "step_finished"
    LOG = "log"
    AWAITING_APPROVAL = "awaiting_approval"
    ROLLING_BACK = "rolling_back"
    SERVER_LOST = "server_lost"
    RUN_FINISHED = "run_finished"


TO_CHECKPOINT = "to checkpoint "
"""Begins the message of a ROLLING_BACK that goes no further than that."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One thing that happened in a run; `duration_s` is seconds.

    `result` is the step's own, of a STEP_FINISHED: its outputs stay, its status may become another later.
    """

    kind: EventKind
    step: str = ""
    op: str = ""
    message: str = ""
    status: StepStatus | None = None
    duration_s: float = 0.0
    result: StepResult | None = None

    @classmethod
    def finished(cls, result: StepResult) -> RunEvent:
        """A step has ended."""
        kind = EventKind.STEP_FINISHED
        return cls(kind, result.id, result.op, result.said, result.status, result.duration_s, result)

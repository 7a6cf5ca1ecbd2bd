"""A quality gate that a Prefect server holds, for all sets that name it: what code must come up to.

The conditions of a step beside it hold as well, so that a step can be stricter than the block and never laxer. What
the conditions mean is `tasks/quality_score.py`'s matter. Knows Prefect, and so is imported only where a gate is named.
"""

from __future__ import annotations

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError


class QualityGate(Block):
    """What Python code must come up to."""

    _block_type_name = "Quantum Orchestrator Quality Gate"
    _block_type_slug = "quantum-orchestrator-quality-gate"
    _description = "Conditions of quality.gate: a least score, no fall of the score, rules that must not be broken."

    min_score: float | None = Field(None, ge=0, le=100, title="Least score", description="Of all files in sum, 0-100.")
    min_file_score: float | None = Field(
        None, ge=0, le=100, title="Least score of a file", description="Of each file on its own, 0-100."
    )
    no_worse: bool = Field(True, title="No worse than before", description="Whether the score may not fall.")
    tolerance: float = Field(0.0, ge=0, le=100, title="Tolerance", description="By so many points it may fall.")
    forbid: list[str] = Field(
        default=[], title="Forbidden rules", description="Beginnings of rules' names, such as F821 or S, or complexity."
    )


def gate_named(name: str) -> QualityGate:
    """The server's gate of this name. Raises OperationError where there is none."""
    try:
        block: QualityGate = QualityGate.load(name, _sync=True)  # type: ignore[call-arg, assignment]
    except (ValueError, ObjectNotFound) as error:
        raise OperationError(
            f"the Prefect server has no quality gate {name!r}",
            hint="make it in Prefect's UI, after `prefect block register -m quantum_orchestrator.blocks.quality`",
        ) from error
    return block

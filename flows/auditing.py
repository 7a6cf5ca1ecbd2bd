"""What the audit says of runs: begun, gone on with, decided on, ended, undone; by whom, from where, of which set.

A run that cannot be put on record does not begin; that one has ended is put on record as well as it goes, as its
effects stand by then. Knows no Prefect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.audit import Audit, Event
from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.blocks.journal import RunRecord


class RunAudit:
    """The entries of one run."""

    def __init__(self, run: RunRecord, root: Path) -> None:
        self._run = run
        self._root = root
        self._audit = Audit(home())

    def begun(self, actor: str, source: str) -> None:
        """It is about to begin. `source` is a file, `<stdin>`, or what else it came by."""
        options = {name: value for name, value in self._run.options.items() if name == "on_failure" and value}
        self._record(
            Event.RUN_STARTED,
            actor,
            set=self._run.set_name,
            sha256=digest_of(self._run.document),
            trust=self._run.document.get("trust", "trusted"),
            source=source,
            sandbox_level=self._run.options.get("sandbox", 1),
            **options,
        )

    def resumed(self, actor: str, was: str) -> None:
        """It is about to go on; `was` is its status until now."""
        self._record(Event.RUN_RESUMED, actor, was=was)

    def decided(self, subject: str, approved: bool, *, actor: str) -> None:
        """Somebody is about to decide on `subject`: a step's id, with `@` and the digest of what it would change."""
        self._record(Event.APPROVED if approved else Event.REJECTED, actor, subject=subject)

    def ended(self, actor: str, status: str, error: Mapping[str, Any] | None = None) -> str:
        """It has ended. What stood in the way of saying so; empty if nothing did."""
        try:
            self._record(Event.RUN_ENDED, actor, status=status, **({"error": error["type"]} if error else {}))
        except QuantumError as problem:
            return problem.message
        return ""

    def rolled_back(self, actor: str, to: str | None) -> None:
        """Somebody is about to undo it, to a checkpoint or altogether."""
        self._record(Event.ROLLED_BACK, actor, was=self._run.status, **({"to": to} if to is not None else {}))

    def _record(self, event: Event, actor: str, **details: Any) -> None:
        self._audit.record(event, actor=actor, run=self._run.id, workspace=str(self._root), **details)


def digest_of(document: Mapping[str, Any]) -> str:
    """Of a set as it is kept: the same for every spelling of the same document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""Runs of one instruction that asks a model: the real engine, journal and client, in a workspace of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.exchanges import spent_in
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.model import ModelSettings
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.spent import Spent
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.engine import Outcome, Run, RunSettings
from quantum_orchestrator.flows.instruction_set import load
from tests.plain_runner import PlainRunner


class LlmRun:
    """A workspace, its journal, and runs in it that ask under these settings."""

    def __init__(
        self,
        folder: Path,
        settings: ModelSettings,
        *,
        files: Mapping[str, str] | None = None,
        budget: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        approve: bool = False,
    ) -> None:
        self.root = folder / "workspace"
        self.root.mkdir(parents=True, exist_ok=True)
        self.settings, self.budget, self.policy, self.approve = settings, budget, policy or Policy(), approve
        for path, content in (files or {}).items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(content)
        (folder / "state").mkdir(exist_ok=True)
        self.folder = folder
        self.results: dict[str, Any] = {}

    def step(self, op: str, parameters: Mapping[str, Any], **fields: Any) -> Outcome:
        """Run one instruction."""
        return self.run({"id": "step", "op": op, "with": dict(parameters), **fields})

    def run(self, *instructions: Mapping[str, Any], run_id: str = "r1", **fields: Any) -> Outcome:
        """Run a set; one that was begun under this id goes on."""
        return asyncio.run(self._run(list(instructions), run_id, fields))

    async def _run(self, instructions: list[Any], run_id: str, fields: Mapping[str, Any]) -> Outcome:
        raw = {"name": "asking", **({"budget": self.budget} if self.budget else {}), **fields}
        document = load(json.dumps({**raw, "instructions": instructions}).encode(), policy=self.policy)
        journal = Journal(self.folder / "state")
        workspace = Workspace(self.root, journal, self.policy.snapshot_exclude)
        try:
            record = journal.run(run_id)
            if record is None:
                whole = document.model_dump(by_alias=True, mode="json", exclude_unset=True)
                record = RunRecord(run_id, "asking", "running", whole, {}, {}, time.time())
                journal.begin(record)
            settings = RunSettings(
                parallel=2, on_failure=document.on_failure, models=lambda _block: self.settings, approve=self.approve
            )
            run = Run(record, document, workspace, settings, policy=self.policy, runner=PlainRunner())
            outcome = await run.execute()
            self.results = dict(run.books.results)
        finally:
            workspace.close()
            journal.close()
        return outcome

    def outputs(self, step: str = "step") -> Mapping[str, Any]:
        """What a step gave."""
        found: Mapping[str, Any] = self.results[step].outputs or {}
        return found

    def spent(self, run_id: str = "r1") -> Spent:
        """What a run's questions have taken, as the journal has it."""
        journal = Journal(self.folder / "state")
        try:
            return spent_in(journal.exchanges.of(run_id))
        finally:
            journal.close()

    def state(self) -> dict[str, bytes]:
        """The workspace's files."""
        return {
            str(each.relative_to(self.root)): each.read_bytes()
            for each in sorted(self.root.rglob("*"))
            if each.is_file()
        }

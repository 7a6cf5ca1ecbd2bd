"""The older actions that ask a model, run: over a real socket to a server that speaks Ollama's own protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.model import ModelSettings
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.document import InstructionSet, OnFailure
from quantum_orchestrator.flows.engine import Outcome, Run, RunSettings
from quantum_orchestrator.flows.results import RunStatus
from quantum_orchestrator.flows.wizardpro_actions import read_block, translate
from tests.ollama_server import Ollama
from tests.plain_runner import PlainRunner


@pytest.fixture
def server() -> Iterator[Ollama]:
    made = Ollama()
    yield made
    made.close()


def run(folder: Path, *actions: dict[str, Any], trust: str = "trusted") -> tuple[Outcome, dict[str, Any]]:
    """Run a block on a machine for which no model is configured: how it ended, and its steps' outputs."""
    (folder / "work").mkdir()
    (folder / "state").mkdir()
    document = translate(read_block({"step_id": "block", "actions": list(actions)}), {})
    journal = Journal(folder / "state")
    workspace = Workspace(folder / "work", journal, ())
    try:
        record = RunRecord("r1", "block", "running", document, {}, {}, time.time())
        journal.begin(record)
        settings = RunSettings(parallel=1, on_failure=OnFailure.ROLLBACK, models=lambda _block: ModelSettings())
        loaded = InstructionSet.model_validate({**document, "trust": trust})
        made = Run(record, loaded, workspace, settings, policy=Policy(), runner=PlainRunner())
        outcome = asyncio.run(made.execute())
        return outcome, {name: result.outputs or {} for name, result in made.books.results.items()}
    finally:
        workspace.close()
        journal.close()


def question(server: Ollama, **fields: Any) -> dict[str, Any]:
    return {"type": "CALL_LOCAL_LLM", "prompt": "Hi", "model": "llama", "api_endpoint_base": server.url, **fields}


def test_a_server_of_this_machine_answers_a_trusted_block(server: Ollama, tmp_path: Path) -> None:
    outcome, outputs = run(tmp_path, question(server, options={"seed": 1}), question(server, output_path="out/a.md"))
    assert outcome.status is RunStatus.COMMITTED
    assert (outputs["1-generate"]["text"], outputs["1-generate"]["provider"]) == ("Hello.", "ollama")
    assert (tmp_path / "work/out/a.md").read_text() == "Hello.\n"
    path, asked = server.asked[0]
    assert (path, asked["model"], asked["prompt"], asked["stream"]) == ("/api/generate", "llama", "Hi", False)
    assert asked["options"] == {"seed": 1}


def test_a_block_that_is_not_trusted_asks_no_server_that_nobody_has_named(server: Ollama, tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, question(server), trust="untrusted")
    assert outcome.status is RunStatus.ROLLED_BACK
    assert server.asked == []


def test_without_a_server_and_without_a_model_it_says_so(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, {"type": "CALL_LOCAL_LLM", "prompt": "Hi"})
    assert outcome.status is RunStatus.ROLLED_BACK
    assert "this takes a language model, and none is configured" in str(outcome.error)


def test_a_failure_is_diagnosed_without_a_model(tmp_path: Path) -> None:
    outcome, outputs = run(tmp_path, {"type": "DIAGNOSE_ERROR", "failed_command": "x", "stderr": "ValueError: no"})
    assert outcome.status is RunStatus.COMMITTED
    assert outputs["1-diagnose"]["cause"] == "ValueError: no"

"""`on_error: {"llm": …}`: a step that fails is diagnosed, repaired and tried again, or fails as it would, explained.

And what a run makes of operations that a model has a say in: files that tools execute wait for a person.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.model import ModelSettings
from quantum_orchestrator.blocks.model_session import Ledger
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.document import OnFailure
from quantum_orchestrator.flows.engine import Outcome, Run, RunSettings
from quantum_orchestrator.flows.instruction_set import InvalidSet, load
from quantum_orchestrator.flows.plan import build
from quantum_orchestrator.flows.results import RunStatus, StepStatus
from tests.model_double import Payload, Replayed
from tests.plain_runner import PlainRunner

FAULTY = "def area(width, height):\n    return widht * height\n\n\nassert area(2, 3) == 6\n"
RIGHT = FAULTY.replace("widht", "width")
SCRIPT = {"id": "check", "op": "script.run", "with": {"argv": ["python", "area.py"]}}


class Bench:
    """A workspace on disk in which sets run with a model that says what it is told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "workspace"
        self.root.mkdir()
        (folder / "state").mkdir()
        self.journal = Journal(folder / "state")
        self.workspace = Workspace(self.root, self.journal, ())
        self.model = Replayed([])
        self.results: dict[str, Any] = {}
        self.settings = ModelSettings()
        double = partial(Ledger, provider=lambda _settings: self.model)
        monkeypatch.setattr("quantum_orchestrator.flows.attempts.Ledger", double)

    def says(self, *payloads: Payload) -> None:
        self.model.payloads = list(payloads)
        self.settings = ModelSettings("double", "a-model")

    def run(self, *instructions: Mapping[str, Any], run_id: str = "r1") -> Outcome:
        document = load(json.dumps({"name": "help", "instructions": instructions}).encode(), file="help.json")
        record = self.journal.run(run_id) or RunRecord(run_id, "help", "running", {}, {}, {}, time.time())
        if self.journal.run(run_id) is None:
            self.journal.begin(record)
        settings = RunSettings(
            parallel=2, on_failure=OnFailure.ROLLBACK, approve=True, models=lambda _block: self.settings
        )
        run = Run(record, document, self.workspace, settings, policy=Policy(), runner=PlainRunner())
        outcome = asyncio.run(run.execute())
        self.results = run.books.results
        return outcome

    @property
    def files(self) -> dict[str, str]:
        return {each.name: each.read_text() for each in self.root.iterdir() if each.is_file()}

    def close(self) -> None:
        self.workspace.close()
        self.journal.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    (made.root / "area.py").write_text(FAULTY)
    yield made
    made.close()


def helped(**given: Any) -> dict[str, Any]:
    return {**SCRIPT, "on_error": {"llm": {"paths": ["area.py"], **given}}}


def answer(search: str, replacement: str) -> Payload:
    edits = [{"path": "area.py", "search": search, "replace": replacement}]
    return {"diagnosis": "The name is misspelt.", "edits": edits}


REPAIR, HARMLESS = answer("widht", "width"), answer("def area", "# Wrong still.\ndef area")


def test_a_failing_step_is_repaired_and_has_the_outputs_of_the_second_try(bench: Bench) -> None:
    bench.says(REPAIR)
    after = {"id": "told", "op": "echo", "with": {"message": "it ended with ${{ steps.check.outputs.exit_code }}"}}
    assert bench.run(helped(), after).status is RunStatus.COMMITTED
    assert bench.files == {"area.py": RIGHT}
    assert bench.results["check"].status is StepStatus.SUCCEEDED
    assert bench.results["told"].outputs == {"message": "it ended with 0"}
    assert "NameError: name 'widht' is not defined" in bench.model.asked[0].messages[0].text


def test_a_repair_that_does_not_help_is_followed_by_another_one(bench: Bench) -> None:
    bench.says(HARMLESS, REPAIR)
    assert bench.run(helped(attempts=2)).status is RunStatus.COMMITTED
    assert bench.files == {"area.py": RIGHT.replace("def area", "# Wrong still.\ndef area")}


def test_what_does_not_help_is_undone_and_the_error_has_the_diagnosis(bench: Bench) -> None:
    bench.says(HARMLESS)
    outcome = bench.run(helped(attempts=2))
    assert (outcome.status, outcome.failed_step) == (RunStatus.ROLLED_BACK, "check")
    assert bench.files == {"area.py": FAULTY}
    assert outcome.error is not None
    assert outcome.error.message.startswith("'python' exited with 1")
    assert "The name is misspelt." in outcome.error.message
    assert len(bench.model.asked) == 2


def test_what_was_tried_is_undone_also_where_effects_are_kept(bench: Bench) -> None:
    bench.says(HARMLESS)
    failing = helped(attempts=1)
    failing["on_error"]["llm"]["instruction"] = "Literally ${{ nothing }}: $${{ it is a text }}".replace("${{ n", "n")
    first = {"id": "first", "op": "file.write", "with": {"path": "first.txt", "content": "1"}}
    document = {"name": "help", "on_failure": "keep", "instructions": [first, {**failing, "needs": ["first"]}]}
    loaded = load(json.dumps(document).encode(), file="help.json")
    record = RunRecord("r2", "help", "running", {}, {}, {}, time.time())
    bench.journal.begin(record)
    settings = RunSettings(parallel=1, on_failure=loaded.on_failure, models=lambda _block: bench.settings)
    run = Run(record, loaded, bench.workspace, settings, policy=Policy(), runner=PlainRunner())
    assert asyncio.run(run.execute()).status is RunStatus.KEPT
    assert bench.files == {"area.py": FAULTY, "first.txt": "1"}


def test_without_a_model_rules_help_or_the_error_says_that_they_cannot(bench: Bench) -> None:
    assert bench.run(helped()).status is RunStatus.COMMITTED
    assert bench.files == {"area.py": RIGHT}
    (bench.root / "area.py").write_text(RIGHT.replace("6", "7"))
    outcome = bench.run(helped(), run_id="r2")
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "no rule repairs this, and there is no model to ask\ndiagnosis: area.py:5: AssertionError" in str(
        outcome.error
    )


def test_an_operation_that_can_be_predicted_may_be_helped_as_well(bench: Bench) -> None:
    copied = {"id": "copy", "op": "file.copy", "with": {"source": "area.py", "destination": "copy.py"}}
    assert bench.run({**copied, "on_error": {"llm": {"paths": ["area.py"]}}}).status is RunStatus.COMMITTED
    assert bench.files == {"area.py": FAULTY, "copy.py": FAULTY}


def test_the_plan_knows_what_a_repair_may_write() -> None:
    document = {"name": "help", "instructions": [helped(paths=["src"], attempts=3)]}
    graph = build(load(json.dumps({**document}).encode(), file="help.json"), {})
    assert "src" in {access.path for access in graph.effects["check"].writes}
    writing = {"id": "w", "op": "file.read", "with": {"path": "a"}, "on_error": {"llm": {"paths": ["src"]}}}
    graph = build(load(json.dumps({"name": "help", "instructions": [writing]}).encode(), file="help.json"), {})
    assert [access.path for access in graph.effects["w"].writes] == ["src"]


@pytest.mark.parametrize(
    ("handler", "pointer"),
    [
        ({"llm": {}}, "/instructions/0/on_error/llm"),
        ({"llm": {"paths": ["../x"]}}, "/instructions/0/on_error/llm/paths/0"),
        ({"llm": {"paths": ["x"], "attempts": 9}}, "/instructions/0/on_error/llm/attempts"),
        ({"llm": {"paths": ["x"], "patience": 9}}, "/instructions/0/on_error/llm/patience"),
        (
            {"llm": {"paths": ["x"]}, "run": [{"id": "x", "op": "echo", "with": {"message": "x"}}]},
            "/instructions/0/on_error",
        ),
        ({}, "/instructions/0/on_error"),
    ],
)
def test_a_wrong_handler_is_refused_with_its_place(handler: Mapping[str, Any], pointer: str) -> None:
    document = {"name": "help", "instructions": [{**SCRIPT, "on_error": handler}]}
    with pytest.raises(InvalidSet) as refused:
        load(json.dumps(document).encode(), file="help.json")
    assert {fault.pointer for fault in refused.value.faults} == {pointer}


# What a model has written, and tools would execute.


def test_a_file_that_tools_execute_waits_for_a_person_though_all_is_approved_in_advance(bench: Bench) -> None:
    hostile = {"path": "conftest.py", "search": "", "replace": "import os\n"}
    bench.says({"diagnosis": "?", "edits": [*REPAIR["edits"], hostile]})
    fix = {"id": "fix", "op": "llm.fix", "with": {"argv": ["python", "area.py"], "paths": ["."]}}
    outcome = bench.run(fix)
    assert outcome.status is RunStatus.AWAITING_APPROVAL
    assert bench.files == {"area.py": FAULTY}
    assert "conftest.py is new" in bench.results["fix"].outputs["message"]

"""`llm.diagnose`: what a failure said, as a structure, with a model or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks.llm_diagnose import Diagnose, DiagnoseOutputs, DiagnoseParameters
from quantum_orchestrator.tasks.operation import Context
from tests.model_double import Replayed, models_saying, offline_models

FAILURE = """\
Traceback (most recent call last):
  File "/work/app/area.py", line 2, in area
NameError: name 'widht' is not defined
FAILED tests/test_area.py::test_area
"""
AREA = b"def area(width, height):\n    return widht * height\n"


def diagnose(tmp_path: Path, model: Replayed | None, **given: Any) -> DiagnoseOutputs:
    base = MemoryTree()
    overlay = Overlay(base)
    overlay.write("app/area.py", AREA)
    base.apply(overlay.changes(), overlay.content_of)
    models, journal = offline_models(tmp_path) if model is None else models_saying(model, tmp_path)
    try:
        context = Context(Overlay(base), step_id="step", models=models, root=Path("/work"))
        return Diagnose().run(DiagnoseParameters.model_validate({"failure": FAILURE, **given}), context)
    finally:
        journal.close()


def test_without_a_model_cause_place_and_tests_are_read_and_a_rule_says_why(tmp_path: Path) -> None:
    outputs = diagnose(tmp_path, None)
    assert (outputs.cause, outputs.path, outputs.line) == ("NameError: name 'widht' is not defined", "app/area.py", 2)
    assert outputs.tests == ["tests/test_area.py::test_area"]
    assert outputs.explanation == "app/area.py:2: 'widht' is not known here: 'width' is meant"
    assert outputs.provider == "offline"


def test_what_no_rule_knows_is_said_so(tmp_path: Path) -> None:
    outputs = diagnose(tmp_path, None, failure="make: *** [all] Error 2\n")
    assert (outputs.cause, outputs.path, outputs.advice) == ("make: *** [all] Error 2", None, "")
    assert outputs.explanation == "no rule knows the reason"


def test_a_model_is_shown_the_output_and_the_file_and_its_reason_is_told(tmp_path: Path) -> None:
    model = Replayed([{"explanation": "A slip.", "advice": "Write width."}])
    outputs = diagnose(tmp_path, model, command="python area.py", about="It worked yesterday.")
    assert (outputs.explanation, outputs.advice, outputs.line) == ("A slip.", "Write width.", 2)
    (question,) = model.asked
    text = question.messages[0].text
    for part in ("python area.py", "It worked yesterday.", FAILURE.strip(), AREA.decode()):
        assert part in text


@pytest.mark.parametrize("name", ["../x.py", "/etc/passwd", "C:\\x.py", "app"])
def test_only_files_of_the_workspace_are_places(tmp_path: Path, name: str) -> None:
    outputs = diagnose(tmp_path, None, failure=f'File "{name}", line 3, in x\nValueError: no\n')
    assert outputs.path is None

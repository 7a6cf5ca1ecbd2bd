"""Quality in whole runs: a gate that is not passed undoes the run, by its own conditions or by those of a block."""

from __future__ import annotations

import json
import subprocess
import sys

import prefect_api as prefect
import pytest
from commands import Qo

pytestmark = pytest.mark.slow

GOOD = '"""About."""\n' + "".join(f"V{n} = {n}\n" for n in range(30))
WORSEN = {"id": "worsen", "op": "file.append", "with": {"path": "a.py", "content": "print(undefined)\n"}}


def gate(**parameters: object) -> dict[str, object]:
    return {"id": "gate", "op": "quality.gate", "with": parameters}


def test_what_makes_the_code_worse_is_undone(qo: Qo) -> None:
    (qo.work / "a.py").write_text(GOOD)
    said = qo("run", qo.set(WORSEN, gate()), "--json").exits(1)
    said.says("the score has fallen from 100")
    step = said.json["steps"][1]
    assert step["error"]["details"]["findings"][0]["rule"] == "F821"
    assert said.json["error"].keys() == {"type", "message", "hint"}
    assert (qo.work / "a.py").read_text() == GOOD


def test_findings_are_shown_and_written_for_others(qo: Qo) -> None:
    (qo.work / "a.py").write_text(GOOD)
    (qo.work / "test_a.py").write_text("import a\n\n\ndef test_a():\n    assert a.V1 == 1\n")
    test = {"id": "test", "op": "quality.test", "writes": [], "with": {"argv": ["python", "-m", "pytest", "-q"]}}
    said = qo("run", qo.set(WORSEN, gate(), {**test, "needs": []}), "--json", "--sarif", "f.sarif", "--junit", "t.xml")
    said.exits(1)
    (results,) = [run["results"] for run in json.loads((qo.work / "f.sarif").read_text())["runs"]]
    assert [each["ruleId"] for each in results] == ["F821"]
    found = prefect.artifacts(said.json["flow_run_id"])
    assert json.loads(found["test-gate-findings"]["data"])[0]["rule"] == "F821"
    assert "# Score 9" in found["test-gate-score"]["data"]
    assert "F821" in found["test-gate-score"]["data"]


def test_a_plan_says_that_the_gate_will_not_be_passed(qo: Qo) -> None:
    (qo.work / "a.py").write_text(GOOD)
    qo("plan", qo.set(WORSEN, gate())).says("the score has fallen from 100")


def test_a_block_has_conditions_of_its_own(qo: Qo) -> None:
    from quantum_orchestrator.blocks.quality import QualityGate

    QualityGate(min_file_score=99).save("strict", overwrite=True, _sync=True)  # type: ignore[call-arg]
    (qo.work / "a.py").write_text(GOOD + "print(undefined)\n")
    qo("run", qo.set(gate())).exits(0)
    qo("run", qo.set(gate(gate="strict"))).exits(1).says("below 99: a.py")
    qo("run", qo.set(gate(gate="missing"))).exits(1).says("no quality gate 'missing'").says("prefect block register -m")


def test_the_block_can_be_registered(prefect_server: str) -> None:
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "quantum_orchestrator.blocks.quality"]
    assert "Quality Gate" in subprocess.run(command, check=True, capture_output=True, text=True).stdout

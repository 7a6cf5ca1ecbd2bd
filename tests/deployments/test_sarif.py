"""SARIF of a run: what the published schema asks for, and what code hosts read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.junit import junit_xml
from quantum_orchestrator.deployments.sarif import sarif_log, write_sarif

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
ESSENTIALS = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "properties": {
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name"],
                                "properties": {
                                    "name": TEXT,
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {"required": ["id"], "properties": {"id": TEXT}},
                                    },
                                },
                            }
                        },
                    },
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {
                        "type": "array",
                        "items": {
                            "required": ["message"],
                            "properties": {
                                "ruleId": TEXT,
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": {"required": ["text"], "properties": {"text": TEXT}},
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "required": ["physicalLocation"],
                                        "properties": {
                                            "physicalLocation": {
                                                "required": ["artifactLocation"],
                                                "properties": {
                                                    "artifactLocation": {"required": ["uri"]},
                                                    "region": {
                                                        "properties": {"startLine": COUNT, "startColumn": COUNT}
                                                    },
                                                },
                                            }
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What the schema of the standard asks of the parts that are used here (sarif-schema-2.1.0.json)."""


def step(name: str, op: str, *, outputs: Any = None, details: Any = None) -> dict[str, Any]:
    status = "succeeded" if details is None else "failed"
    error = None if details is None else {"type": "OperationError", "message": "m", "hint": "", "details": details}
    return {"id": name, "op": op, "status": status, "duration_s": 0.1, "outputs": outputs, "error": error}


LINT = {"path": "src/a b.py", "line": 3, "column": 1, "rule": "F401", "message": "unused", "fixable": True}
DEBT = {"path": "b.py", "line": 7, "rule": "F821", "message": "undefined", "minutes": 30, "points": 2.5}
TESTS = {
    "findings": None,
    "cases": [
        {"test": "m.test_a", "outcome": "passed", "seconds": 0.5, "message": ""},
        {"test": "m.test_b", "outcome": "failed", "seconds": 0.25, "message": "assert 1 == 2"},
        {"test": "m.test_c", "outcome": "skipped", "seconds": 0, "message": "later"},
    ],
}
REPORT = {
    "set": "check",
    "run_id": "r1",
    "status": "rolled_back",
    "duration_s": 1.0,
    "error": {"type": "OperationError", "message": "m", "hint": ""},
    "steps": [
        step("lint", "quality.lint", outputs={"findings": [LINT]}),
        step("gate", "quality.gate", details={"findings": [DEBT], "unscorable": [{"path": "c.py", "message": "?"}]}),
        step("write", "file.write", outputs={"sha256": "0"}),
        step("test", "quality.test", details=TESTS),
    ],
}


def test_the_log_is_what_the_standard_asks_for() -> None:
    Draft7Validator.check_schema(ESSENTIALS)
    Draft7Validator(ESSENTIALS).validate(sarif_log(REPORT))


def test_every_step_that_judged_is_a_run_of_its_tool() -> None:
    runs = sarif_log(REPORT)["runs"]
    assert [run["tool"]["driver"]["name"] for run in runs] == ["quality.lint", "quality.gate"]
    (lint,) = runs[0]["results"]
    assert lint["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "src/a%20b.py", "uriBaseId": "WORKSPACE"},
        "region": {"startLine": 3, "startColumn": 1},
    }
    assert [(each["ruleId"], each["level"]) for each in runs[1]["results"]] == [
        ("F821", "error"),
        ("unscorable", "error"),
    ]
    for run in runs:
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert all(rules[each["ruleIndex"]] == each["ruleId"] for each in run["results"])


def test_the_file_is_written_or_the_reason_told(tmp_path: Path) -> None:
    write_sarif(str(tmp_path / "r.sarif"), REPORT)
    assert json.loads((tmp_path / "r.sarif").read_text()) == sarif_log(REPORT)
    with pytest.raises(UsageError, match="cannot be written there"):
        write_sarif(str(tmp_path / "no/r.sarif"), REPORT)


def test_junit_names_every_test_of_a_step_that_ran_them() -> None:
    from xml.etree import ElementTree

    suites = ElementTree.fromstring(junit_xml(REPORT)).findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["check", "check.test"]
    assert {name: suites[1].get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    bad = suites[1].findall("testcase")[1]
    assert (bad.get("classname"), bad.get("name"), bad.get("time")) == ("m", "test_b", "0.25")
    failure = bad.find("failure")
    assert failure is not None
    assert failure.get("message") == "assert 1 == 2"

"""A run's findings as SARIF 2.1.0, which code hosts show beside the lines that they are of.

One SARIF run for each step that judged code, with its tool, its rules and its findings; also for a step that failed by
them, whose error has them in its details. Pure but for the file that is written; knows neither journal nor Prefect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quantum_orchestrator.blocks.errors import UsageError

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
ROOT = "WORKSPACE"
"""What all paths are relative to, by SARIF's way of naming it."""
_ERRORS = ("F821", "PLE", "invalid-syntax", "E9", "unscorable")
_NOTES = ("D1", "ANN")

Finding = Mapping[str, Any]


def write_sarif(file: str, report: Mapping[str, Any]) -> None:
    """Write a run's findings as SARIF. Raises UsageError where that cannot be written."""
    try:
        Path(file).write_text(json.dumps(sarif_log(report), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: the SARIF report cannot be written there: {error.strerror or error}") from error


def sarif_log(report: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a run, as `qo run --json` prints it, as a SARIF log."""
    runs = [_run(step, said) for step in report["steps"] if (said := findings_of(step)) is not None]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": runs}


def findings_of(step: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a step that judged code says, whether it succeeded or failed by that; None for any other."""
    said = step.get("outputs") or (step.get("error") or {}).get("details") or {}
    judges = step["op"].startswith(("quality.", "llm.analyze")) and isinstance(said.get("findings"), list)
    return said if judges else None


def _run(step: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    broken = [{**each, "rule": "unscorable"} for each in said.get("unscorable", ())]
    findings = [*said["findings"], *broken]
    rules = sorted({_rule(each) for each in findings})
    places = {rule: number for number, rule in enumerate(rules)}
    driver: dict[str, Any] = {
        "name": step["op"],
        "informationUri": "https://github.com/astral-sh/ruff",
        "rules": [{"id": rule} for rule in rules],
    }
    if tools := said.get("tools"):
        driver["properties"] = {"tools": tools}
    return {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"{step['id']}/"},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {ROOT: {"description": {"text": "The root of the workspace."}}},
        "results": [_result(each, places) for each in findings],
    }


def _rule(finding: Finding) -> str:
    return str(finding.get("rule") or finding.get("source") or "finding")


def _result(finding: Finding, places: Mapping[str, int]) -> dict[str, Any]:
    region = {"startLine": max(1, int(finding.get("line") or 1))}
    if finding.get("column"):
        region["startColumn"] = int(finding["column"])
    result = {
        "ruleId": _rule(finding),
        "ruleIndex": places[_rule(finding)],
        "level": _level(finding),
        "message": {"text": str(finding.get("message") or _rule(finding))},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(str(finding["path"])), "uriBaseId": ROOT},
                    "region": region,
                }
            }
        ],
    }
    about = {name: finding[name] for name in ("minutes", "points", "fixable", "confidence") if name in finding}
    return {**result, "properties": about} if about else result


def _level(finding: Finding) -> str:
    rule, severity = _rule(finding), finding.get("severity")
    if severity is not None:
        return {"error": "error", "warning": "warning"}.get(severity, "note")
    if rule.startswith(_ERRORS):
        return "error"
    return "note" if rule.startswith(_NOTES) else "warning"

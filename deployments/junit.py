"""A run as JUnit XML, which CI systems show as tests: one test case a step.

The tests that a `quality.test` has run follow, as a suite of their own.

A step that failed is a failure, one that was skipped is skipped, and so is one that was undone because another failed:
its effects are not there. What ended the run beside its steps is an error of the suite's own test case. Pure but for
the file that is written; knows neither the journal nor Prefect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from quantum_orchestrator.blocks.errors import UsageError

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(file: str, report: Mapping[str, Any]) -> None:
    """Write a run's document as JUnit XML. Raises UsageError where that cannot be written."""
    try:
        Path(file).write_bytes(junit_xml(report))
    except OSError as error:
        raise UsageError(f"{file}: the JUnit report cannot be written there: {error.strerror or error}") from error


def junit_xml(report: Mapping[str, Any]) -> bytes:
    """The document of a run, as `qo run --json` prints it, in XML."""
    cases = [_case(report["set"], step) for step in report["steps"]]
    messages = [step["error"]["message"] for step in report["steps"] if step["error"]]
    if report["error"] and report["error"]["message"] not in messages:
        cases.append(_of_the_run(report))
    suite = ET.Element("testsuite", name=_text(report["set"]), time=str(report["duration_s"]))
    suite.set("tests", str(len(cases)))
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(kind) is not None for case in cases)))
    properties = ET.SubElement(suite, "properties")
    for name in ("run_id", "status", "ui_url"):
        ET.SubElement(properties, "property", name=name, value=_text(report.get(name) or ""))
    suite.extend(cases)
    root = ET.Element("testsuites")
    root.append(suite)
    root.extend(_of_tests(report["set"], step, tests) for step in report["steps"] if (tests := _tests_of(step)))
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _case(of: str, step: Mapping[str, Any]) -> ET.Element:
    case = ET.Element(
        "testcase", classname=_text(f"{of}.{step['op']}"), name=_text(step["id"]), time=str(step.get("duration_s", 0))
    )
    status, error = step["status"], step.get("error")
    if status == "failed":
        failure = ET.SubElement(case, "failure", message=_text((error or {}).get("message", "failed")))
        failure.set("type", _text((error or {}).get("type", "OperationError")))
        failure.text = _text((error or {}).get("hint", ""))
    elif status not in ("succeeded", "reused"):
        ET.SubElement(case, "skipped", message=_text(step.get("reason") or status.replace("_", " ")))
    return case


def _tests_of(step: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The tests that a step has run."""
    said = step.get("outputs") or (step.get("error") or {}).get("details") or {}
    return said.get("cases") or () if step["op"] == "quality.test" else ()


def _of_tests(of: str, step: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> ET.Element:
    """The tests of a step, as a suite of their own."""
    suite = ET.Element("testsuite", name=_text(f"{of}.{step['id']}"), tests=str(len(tests)))
    for attribute, outcome in (("failures", "failed"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(each["outcome"] == outcome for each in tests)))
    suite.set("time", f"{sum(each['seconds'] for each in tests):.3f}")
    for each in tests:
        classname, _, name = each["test"].rpartition(".")
        case = ET.SubElement(suite, "testcase", classname=_text(classname), name=_text(name))
        case.set("time", str(each["seconds"]))
        if each["outcome"] != "passed":
            kind = "failure" if each["outcome"] == "failed" else each["outcome"]
            ended = ET.SubElement(case, kind, message=_text(each["message"].partition("\n")[0]))
            ended.text = _text(each["message"])
    return suite


def _of_the_run(report: Mapping[str, Any]) -> ET.Element:
    case = ET.Element("testcase", classname=_text(report["set"]), name="run", time=str(report["duration_s"]))
    error = ET.SubElement(case, "error", message=_text(report["error"]["message"]))
    error.set("type", _text(report["error"]["type"]))
    return case


def _text(text: str) -> str:
    """Without what XML 1.0 has no way to say."""
    return _NOT_IN_XML.sub("\ufffd", text)

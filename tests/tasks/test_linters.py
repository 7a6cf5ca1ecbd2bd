"""Linters and formatters of other languages: any program whose findings can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks import quality
from quantum_orchestrator.tasks.linters import Found, findings_in
from tests.tasks.in_memory import project, run


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("src/a.c:3:7: warning: unused x [-Wunused]", ("src/a.c", 3, 7, "-Wunused", "unused x [-Wunused]")),
        ("./run.sh:2:1: error: Quote this. [SC2086]", ("run.sh", 2, 1, "SC2086", "Quote this. [SC2086]")),
        ("/work/a.py:5: E501 too long", ("a.py", 5, 1, "E501", "E501 too long")),
        ("a.go:10:2: undefined: x", ("a.go", 10, 2, "finding", "undefined: x")),
    ],
)
def test_lines_of_compilers_are_read(line: str, found: tuple[str, int, int, str, str]) -> None:
    assert findings_in(f"checking\n{line}\n{line}\n1 error\n", "/work") == [Found(*found)]


def test_sarif_is_read() -> None:
    place = {"artifactLocation": {"uri": "file:///work/a%20b.js"}, "region": {"startLine": 4, "startColumn": 2}}
    result = {"ruleId": "no-var", "message": {"text": "Use let."}, "locations": [{"physicalLocation": place}]}
    log = {"version": "2.1.0", "runs": [{"results": [result, {"message": {"text": "of all"}}]}, {}]}
    assert findings_in(json.dumps(log), "/work") == [
        Found("a b.js", 4, 2, "no-var", "Use let."),
        Found("", 1, 1, "finding", "of all"),
    ]


LINTER = ["sh", "-c", "echo run.sh:2:1: error: Quote this. [SC2086]; exit 1"]


def test_findings_of_another_linter_fail_the_step_or_are_allowed(tmp_path: Path) -> None:
    context = project(tmp_path, {"run.sh": "echo $x\n"})
    with pytest.raises(OperationError, match=r"1 finding: run\.sh:2:1: SC2086 Quote this") as failed:
        run("quality.lint", context, argv=LINTER)
    assert failed.value.details["findings"][0]["rule"] == "SC2086"
    outputs = run("quality.lint", context, argv=LINTER, allow_findings=True)
    assert [(each.path, each.rule, each.fixable) for each in outputs.findings] == [("run.sh", "SC2086", False)]


def test_a_linter_that_fails_without_findings_is_an_error(tmp_path: Path) -> None:
    context = project(tmp_path, {})
    with pytest.raises(OperationError, match="exit code 2: no such option"):
        run("quality.lint", context, argv=["sh", "-c", "echo no such option >&2; exit 2"], allow_findings=True)
    assert run("quality.lint", context, argv=["true"]).findings == []


def test_another_formatter_formats_in_the_workspace(tmp_path: Path) -> None:
    context = project(tmp_path, {"a.txt": "b\na\n"})
    run("quality.format", context, argv=["sort", "-o", "a.txt", "a.txt"], paths=["a.txt"])
    assert (tmp_path / "a.txt").read_text() == "a\nb\n"
    with pytest.raises(OperationError, match="exit code 1"):
        run("quality.format", context, argv=["false"])


def test_what_other_programs_do_is_not_planned() -> None:
    format_effects = quality.Format().effects(quality.FormatParameters(argv=["gofmt"], paths=["src"]))
    lint_effects = quality.Lint().effects(quality.LintParameters(argv=["eslint"], fix=True, paths=["src"]))
    for effects in (format_effects, lint_effects):
        assert not effects.predictable
        assert [access.path for access in effects.writes] == ["src"]
    assert quality.Lint().reach(quality.LintParameters(argv=["eslint", "."])).programs == ("eslint",)

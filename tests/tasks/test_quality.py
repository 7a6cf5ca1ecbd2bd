"""Formatting and linting, by the real tools, and what the family has in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError
from quantum_orchestrator.tasks import quality, registry
from quantum_orchestrator.tasks.operation import Access
from tests.tasks.in_memory import run, text, workspace

UGLY, PRETTY = "x = {  'a':1 }\n", 'x = {"a": 1}\n'


@pytest.mark.parametrize("name", ["quality.format", "quality.lint", "quality.score", "quality.test"])
def test_every_field_is_described_and_every_example_works_in_an_empty_workspace(name: str, tmp_path: Path) -> None:
    chosen = registry.get(name)
    assert chosen.summary.endswith(".")
    for model in (chosen.parameters, chosen.outputs):
        assert all(field.description for field in model.model_fields.values())
    chosen.effects(chosen.parameters.model_validate(chosen.example))
    run(name, workspace({}, root=tmp_path), **chosen.example)


@pytest.mark.parametrize("name", ["quality.format", "quality.lint", "quality.score"])
@pytest.mark.parametrize("path", ["missing.py", "missing"])
def test_a_path_where_nothing_is_fails(name: str, path: str) -> None:
    with pytest.raises(OperationError, match=f"{path}: no such file"):
        run(name, workspace({"a.py": PRETTY}), paths=["a.py", path])


@pytest.mark.parametrize("name", ["quality.format", "quality.lint", "quality.score"])
@pytest.mark.parametrize("path", ["../a.py", "/etc", ".git", ""])
def test_a_path_out_of_the_workspace_is_refused(name: str, path: str) -> None:
    with pytest.raises(ValidationError, match=r"workspace|git"):
        run(name, workspace({"a.py": PRETTY}), paths=[path])


def test_an_absent_ruff_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("ruff")

    monkeypatch.setattr("ruff.find_ruff_bin", nowhere)
    with pytest.raises(OperationError, match="ruff is not installed"):
        run("quality.format", workspace({"a.py": UGLY}))


def test_a_cancelled_run_ends_the_tool() -> None:
    context = workspace({"a.py": UGLY})
    context.cancel.cancel()
    with pytest.raises(Interrupted):
        run("quality.format", context)


# quality.format


def test_format_formats_files_and_folders_and_nothing_else() -> None:
    context = workspace({"a.py": UGLY, "pkg/b.py": UGLY, "pkg/c.pyi": PRETTY, "other/d.py": UGLY, "pkg/e.txt": UGLY})
    outputs = run("quality.format", context, paths=["a.py", "pkg"])
    assert outputs.changed == ["a.py", "pkg/b.py"]
    assert outputs.unchanged == 1
    assert [change.path for change in context.files.changes()] == ["a.py", "pkg/b.py"]
    assert text(context, "pkg/b.py") == PRETTY


def test_format_keeps_the_mode_of_a_file() -> None:
    context = workspace({"a.py": UGLY})
    context.files.chmod("a.py", 0o755)
    run("quality.format", context)
    assert [change.after.mode for change in context.files.changes() if change.after] == [0o755]


def test_format_that_only_checks_names_the_files_and_changes_nothing() -> None:
    context = workspace({"a.py": UGLY, "b.py": PRETTY})
    with pytest.raises(OperationError, match=r"1 file is not formatted: a\.py"):
        run("quality.format", context, check=True)
    assert run("quality.format", context, paths=["b.py"], check=True).unchanged == 1
    assert context.files.changes() == []


def test_format_of_broken_files_names_the_places_and_changes_nothing() -> None:
    context = workspace({"a.py": UGLY, "pkg/bad.py": "x = 1\ndef f(:\n"})
    with pytest.raises(OperationError, match=r"^pkg/bad\.py:2:7: "):
        run("quality.format", context)
    assert context.files.changes() == []


def test_format_of_a_file_that_is_not_utf8_fails() -> None:
    with pytest.raises(OperationError, match=r"latin\.py.*UTF-8"):
        run("quality.format", workspace({"latin.py": b"x = '\xff'\n"}))


@pytest.mark.parametrize(
    "configuration",
    [
        {"pyproject.toml": "[tool.ruff.format]\nquote-style = 'single'\n"},
        {"ruff.toml": "[format]\nquote-style = 'single'\n"},
        {"pkg/.ruff.toml": "[format]\nquote-style = 'single'\n"},
        {"pkg/ruff.toml": "extend = '../base/ruff.toml'\n", "base/ruff.toml": "[format]\nquote-style = 'single'\n"},
    ],
)
def test_format_heeds_the_configuration_of_the_project(configuration: dict[str, str | bytes]) -> None:
    context = workspace({"pkg/a.py": UGLY, **configuration})
    paths = ["pkg", "base"] if "base/ruff.toml" in configuration else ["pkg"]
    run("quality.format", context, paths=paths)
    assert text(context, "pkg/a.py") == "x = {'a': 1}\n"


def test_format_heeds_ignore_files_and_leaves_built_things_alone() -> None:
    files: dict[str, str | bytes] = {"generated/a.py": UGLY, ".gitignore": "generated/\n", "build/b.py": UGLY}
    context = workspace({**files, ".venv/lib/c.py": UGLY, "sub/node_modules/d.py": UGLY, "e.py": UGLY})
    assert run("quality.format", context).changed == ["e.py"]


@pytest.mark.parametrize("base", ["../../ruff.toml", "/etc/ruff.toml", "~/ruff.toml"])
def test_configuration_from_outside_of_the_workspace_is_refused(base: str) -> None:
    with pytest.raises(OperationError, match="outside of the workspace"):
        run("quality.format", workspace({"pkg/a.py": UGLY, "pkg/ruff.toml": f"extend = '{base}'\n"}))


def test_format_reads_no_configuration_that_it_has_not_declared() -> None:
    files: dict[str, str | bytes] = {"pkg/a.py": UGLY, "ruff.toml": "extend = 'cfg/base.toml'\n", "cfg/base.toml": ""}
    with pytest.raises(OperationError, match=r"cfg/base\.toml.*does not read"):
        run("quality.format", workspace(files), paths=["pkg"])
    assert run("quality.format", workspace(files), paths=["."]).changed == ["pkg/a.py"]


def test_invalid_configuration_is_an_error_that_names_the_file() -> None:
    with pytest.raises(OperationError, match=r"Failed to parse pyproject\.toml"):
        run("quality.format", workspace({"a.py": UGLY, "pyproject.toml": "[tool.ruff\n"}))


def test_what_is_configured_around_the_scratch_folder_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = "[format]\nquote-style = 'single'\n"
    (tmp_path / "ruff.toml").write_text(single)
    (tmp_path / ".gitignore").write_text("*.py\n")
    (tmp_path / "home/ruff").mkdir(parents=True)
    (tmp_path / "home/ruff/ruff.toml").write_text(single)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUFF_CONFIG", str(tmp_path / "ruff.toml"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for project in ({}, {"pyproject.toml": "[project]\nname = 'x'\n"}):
        context = workspace({"a.py": UGLY, **project})
        run("quality.format", context)
        assert text(context, "a.py") == PRETTY
    assert list((tmp_path / "tmp").iterdir()) == []


def test_format_declares_the_files_and_the_configuration_above_them() -> None:
    effects = quality.Format().effects(quality.FormatParameters(paths=["src/pkg"]))
    assert effects.predictable
    assert effects.writes == (Access("src/pkg", subtree=True),)
    assert {Access("pyproject.toml"), Access("src/ruff.toml"), Access("src/pkg", subtree=True)} <= set(effects.reads)
    assert quality.Format().effects(quality.FormatParameters(paths=["a"], check=True)).writes == ()


# quality.lint

UNUSED = "import os\n\nx = 1\n"


def test_lint_fails_with_the_findings_and_their_places() -> None:
    context = workspace({"pkg/a.py": UNUSED, "b.py": "print(y)\n"})
    with pytest.raises(OperationError, match=r"2 findings: b\.py:1:7: F821 .*, pkg/a\.py:1:8: F401 ") as failed:
        run("quality.lint", context)
    assert "allow_findings" in failed.value.hint


def test_lint_names_the_first_findings_and_counts_the_rest() -> None:
    with pytest.raises(OperationError, match=r"9 findings: .*, and 4 more$"):
        run("quality.lint", workspace({"a.py": "".join(f"print(y{n})\n" for n in range(9))}))


def test_lint_reports_findings_that_are_allowed() -> None:
    context = workspace({"a.py": UNUSED})
    outputs = run("quality.lint", context, allow_findings=True)
    assert [finding.model_dump(exclude={"message"}) for finding in outputs.findings] == [
        {"path": "a.py", "line": 1, "column": 8, "rule": "F401", "fixable": True}
    ]
    assert (outputs.fixed, outputs.changed, context.files.changes()) == (0, [], [])


def test_lint_fixes_what_is_safe_and_reports_what_remains() -> None:
    context = workspace({"a.py": UNUSED, "b.py": "def f():\n    y = g()\n    return None\n"})
    outputs = run("quality.lint", context, fix=True, select=["F"], allow_findings=True)
    assert (outputs.fixed, outputs.changed) == (1, ["a.py"])
    assert [finding.rule for finding in outputs.findings] == ["F841", "F821"]
    assert not any(finding.fixable for finding in outputs.findings), "removing `y = g()` might change what it does"
    assert text(context, "a.py") == "\nx = 1\n"


def test_lint_whose_remaining_findings_fail_it_changes_nothing() -> None:
    context = workspace({"a.py": "import os\nprint(y)\n"})
    with pytest.raises(OperationError, match="1 finding: "):
        run("quality.lint", context, fix=True, select=["F"])
    assert context.files.changes() == []


def test_lint_takes_rules_to_select_and_to_ignore() -> None:
    context = workspace({"a.py": UNUSED})
    assert run("quality.lint", context, ignore=["F401"], select=["F"]).findings == []
    assert run("quality.lint", context, select=["F8"]).findings == []
    with pytest.raises(OperationError, match="NOSUCH1"):
        run("quality.lint", context, select=["NOSUCH1"])
    with pytest.raises(ValidationError):
        run("quality.lint", context, select=["F --fix"])


def test_lint_changes_nothing_though_the_project_asks_for_fixes() -> None:
    context = workspace({"a.py": UNUSED, "ruff.toml": "fix = true\nfix-only = true\nunsafe-fixes = true\n"})
    assert len(run("quality.lint", context, allow_findings=True).findings) == 1
    assert context.files.changes() == []


def test_lint_reports_broken_syntax_as_a_finding() -> None:
    with pytest.raises(OperationError, match=r"bad\.py:1:7: invalid-syntax"):
        run("quality.lint", workspace({"bad.py": "def f(:\n"}))


def test_lint_knows_the_packages_that_are_not_linted() -> None:
    imports = "import os\n\nimport requests\n\nimport ours\n\nprint(os, requests, ours)\n"
    files: dict[str, str | bytes] = {"tests/test_a.py": imports, "src/ours/__init__.py": "", "tests/__init__.py": ""}
    assert run("quality.lint", workspace(files), paths=["tests/test_a.py"], select=["I", "INP"]).findings == []


def test_lint_reads_everything_and_writes_only_to_fix() -> None:
    lint = quality.Lint()
    assert lint.effects(quality.LintParameters(paths=["a"])).writes == ()
    assert lint.effects(quality.LintParameters(paths=["a"], fix=True)).writes == (Access("a", subtree=True),)

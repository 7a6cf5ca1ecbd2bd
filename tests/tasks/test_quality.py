"""Formatting, linting, scoring and testing, by the real tools."""

from __future__ import annotations

import os
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError
from quantum_orchestrator.blocks.tree import Entry, Kind, MemoryTree, Overlay, ancestors, file_entry
from quantum_orchestrator.tasks import quality, registry
from quantum_orchestrator.tasks.operation import Access, Context

UGLY, PRETTY = "x = {  'a':1 }\n", 'x = {"a": 1}\n'


def workspace(files: dict[str, str | bytes], **given: Any) -> Context:
    """A workspace in memory."""
    tree = MemoryTree()
    for path, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        for folder in ancestors(path):
            tree.entries[folder] = Entry(Kind.FOLDER, 0o755)
        tree.entries[path] = file_entry(data, 0o644)
        tree.contents[tree.entries[path].sha256] = data
    return Context(files=Overlay(tree), **given)


def run(name: str, context: Context, **parameters: Any) -> Any:
    chosen = registry.get(name)
    return chosen.run(chosen.parameters.model_validate(parameters), context)


def text(context: Context, path: str) -> str:
    return context.files.read(path).decode()


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


# quality.score


def test_clean_code_scores_100() -> None:
    outputs = run("quality.score", workspace({"a.py": 'def f(a):\n    """Say."""\n    # so\n\n    return a\n'}))
    assert (outputs.score, outputs.lines, outputs.debt_minutes, outputs.findings) == (100.0, 2, 0, [])
    assert set(outputs.tools) == {"ruff", "radon", "rules"}


def test_the_score_is_the_debt_ratio_on_the_published_curve() -> None:
    # 20 lines cost 600 minutes; an undefined name costs 30: a ratio of 5 %.
    code = "print(undefined)\n" + "".join(f"v{n} = {n}\n" for n in range(19))
    outputs = run("quality.score", workspace({"a.py": code}))
    assert (outputs.lines, outputs.debt_minutes, outputs.score) == (20, 30, 90.0)
    (finding,) = outputs.findings
    assert (finding.path, finding.line, finding.rule, finding.minutes) == ("a.py", 1, "F821", 30)


@pytest.mark.parametrize(
    ("ratio", "score"),
    [(0, 100), (0.025, 95), (0.05, 90), (0.1, 80), (0.15, 70), (0.2, 60), (0.5, 30), (0.75, 15), (1, 0), (7, 0)],
)
def test_the_curve_has_the_published_points(ratio: float, score: float) -> None:
    assert quality.score_for(ratio * 30 * 1000, 1000) == pytest.approx(score)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**4))
def test_more_debt_never_scores_higher(one: int, other: int, lines: int) -> None:
    less, more = sorted((one, other))
    assert 100 >= quality.score_for(less, lines) >= quality.score_for(more, lines) >= 0


def function(branches: int) -> str:
    return "def f(x):\n" + "".join(f"    if x == {n}:\n        x += 1\n" for n in range(branches)) + "    return x\n"


def test_complexity_costs_above_ten_and_grows() -> None:
    assert run("quality.score", workspace({"a.py": function(9)})).findings == []
    outputs = run("quality.score", workspace({"a.py": function(19)}))
    (finding,) = outputs.findings
    assert (finding.rule, finding.line, finding.minutes) == ("complexity", 1, 60)
    assert "20" in finding.message


def test_complexity_is_found_in_methods_of_inner_classes_too() -> None:
    inner = textwrap.indent(function(11), "        ")
    outputs = run("quality.score", workspace({"a.py": f"class A:\n    class B:\n{inner}"}))
    assert [(finding.rule, finding.line) for finding in outputs.findings] == [("complexity", 3)]


def test_splitting_code_into_many_good_files_does_not_lower_the_score() -> None:
    many = run("quality.score", workspace({f"m{n}.py": function(3) for n in range(50)}))
    assert many.score == 100.0


@pytest.mark.parametrize(
    "hiding",
    [
        {"ruff.toml": "lint.select = []\nexclude = ['*.py']\n"},
        {"pyproject.toml": "[tool.ruff]\nextend-exclude = ['a.py']\n"},
        {".gitignore": "a.py\n"},
        {"a.py": "# ruff: noqa\nimport os  # noqa\n"},
        {"a.py": "# ruff: disable[F401]\nimport os\n"},
    ],
)
def test_a_project_cannot_hide_its_debt(hiding: dict[str, str | bytes]) -> None:
    outputs = run("quality.score", workspace({"a.py": "import os\n", **hiding}))
    assert [finding.rule for finding in outputs.findings] == ["F401"]


def test_comments_and_docstrings_do_not_dilute_debt() -> None:
    padded = '"""One.\n\nTwo.\n"""\n\n# three\nimport os\n'
    assert (
        run("quality.score", workspace({"a.py": padded})).score
        == run("quality.score", workspace({"a.py": "import os\n"})).score
    )


def test_a_broken_file_is_unscorable_and_not_good() -> None:
    files: dict[str, str | bytes] = {"bad.py": "def f(:\n", "latin.py": b"x = '\xff'\n", "good.py": "x = 1\n"}
    outputs = run("quality.score", workspace({**files, "nul.py": "x = 1\0\n", "n.ipynb": "{}"}))
    assert [each.path for each in outputs.unscorable] == ["bad.py", "latin.py", "n.ipynb", "nul.py"]
    assert (outputs.score, outputs.lines) == (100.0, 1)
    with pytest.raises(OperationError, match=r"cannot be scored: bad\.py: line 1: "):
        run("quality.score", workspace({"bad.py": "def f(:\n", "good.py": "x = 1\n"}), min=1)


def test_where_nothing_can_be_scored_there_is_no_score() -> None:
    assert run("quality.score", workspace({"bad.py": "def f(:\n"})).score is None
    with pytest.raises(OperationError, match="no Python file"):
        run("quality.score", workspace({}), min=0)


def test_a_score_below_the_minimum_fails_with_what_costs_most() -> None:
    context = workspace({"a.py": "import os\nprint(undefined)\n"})
    with pytest.raises(OperationError, match=r"score \d+\.?\d* is below 80; what costs most: a\.py:2: F821 .*F401"):
        run("quality.score", context, min=80)
    assert run("quality.score", context, min=0).debt_minutes == 31


def test_every_rule_of_the_score_exists() -> None:
    # An unknown one would make ruff fail, or warn of being renamed.
    lines: list[str] = []
    run("quality.score", workspace({"a.py": "x = 1\n"}, log=lines.append))
    assert lines == []


def test_minutes_go_by_the_longest_prefix() -> None:
    assert [quality.minutes_for(rule) for rule in ("F401", "F632", "BLE001", "B904", "UP001")] == [1, 5, 10, 10, 0]


# quality.test


def project(root: Path, files: dict[str, str]) -> Context:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return workspace(dict(files), root=root)


def test_tests_are_counted_and_leave_nothing_behind(tmp_path: Path) -> None:
    code = "import pytest\nfrom m import f\ndef test_a(): assert f() == 1\n@pytest.mark.skip\ndef test_b(): pass\n"
    context = project(tmp_path, {"m.py": "def f():\n    return 1\n", "test_m.py": code})
    outputs = run("quality.test", context)
    counts = (outputs.passed, outputs.failed, outputs.errors, outputs.skipped)
    assert (*counts, outputs.exit_code, outputs.failures) == (1, 0, 0, 1, 0, [])
    assert sorted(os.listdir(tmp_path)) == ["m.py", "test_m.py"]


def test_failing_tests_are_named(tmp_path: Path) -> None:
    code = "def test_good(): pass\ndef test_bad(): assert 1 == 2\ndef test_worse(nothing): pass\n"
    lines: list[str] = []
    context = project(tmp_path, {"sub/test_m.py": code})
    context.log = lines.append
    with pytest.raises(
        OperationError, match=r"2 of 3 tests failed: .*test_m\.test_bad, .*test_m\.test_worse"
    ) as failed:
        run("quality.test", context, argv=["python", "-m", "pytest", "-q", "test_m.py"], cwd="sub")
    assert "assert 1 == 2" in failed.value.hint
    assert any("test_bad" in line for line in lines)


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="1 of 1 tests failed: test_m"):
        run("quality.test", project(tmp_path, {"test_m.py": "import nothing_of_this_name\n"}))


def test_no_test_at_all_is_a_failure_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no test was collected"):
        run("quality.test", project(tmp_path, {"m.py": ""}))


def test_a_wrong_option_is_told(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"exit code 4: (.|\n)*--nonsense"):
        run("quality.test", project(tmp_path, {}), argv=["python", "-m", "pytest", "--nonsense"])


def test_another_program_passes_and_fails_by_its_exit_code(tmp_path: Path) -> None:
    context = project(tmp_path, {})
    outputs = run("quality.test", context, argv=["python", "-c", "print('fine')"])
    assert (outputs.exit_code, outputs.passed, outputs.failures) == (0, None, [])
    with pytest.raises(OperationError, match="exit code 3: broken"):
        run("quality.test", context, argv=["python", "-c", "print('broken'); raise SystemExit(3)"])


def test_the_sets_environment_reaches_the_tests(tmp_path: Path) -> None:
    context = project(tmp_path, {})
    context.env = {"GREETING": "hello"}
    run("quality.test", context, argv=["python", "-c", "import os; assert os.environ['GREETING'] == 'hello'"])


def test_cancelling_ends_the_tests(tmp_path: Path) -> None:
    context = project(tmp_path, {})
    threading.Timer(0.3, context.cancel.cancel).start()
    with pytest.raises(Interrupted):
        run("quality.test", context, argv=["python", "-c", "import time; time.sleep(60)"])


@pytest.mark.parametrize(("cwd", "error"), [("missing", "no such folder"), ("link", "link")])
def test_the_folder_to_run_in_is_one_of_the_workspace(tmp_path: Path, cwd: str, error: str) -> None:
    context = project(tmp_path, {})
    context.files.link("link", "/")
    with pytest.raises(OperationError, match=error):
        run("quality.test", context, cwd=cwd)


@pytest.mark.parametrize(
    ("argv", "with_options"),
    [
        (["pytest"], ["pytest", "OPTIONS"]),
        (["/venv/bin/pytest", "-x"], ["/venv/bin/pytest", "OPTIONS", "-x"]),
        (["python", "-m", "pytest", "--", "a"], ["python", "-m", "pytest", "OPTIONS", "--", "a"]),
        (["uv", "run", "pytest"], ["uv", "run", "pytest", "OPTIONS"]),
        (["make", "pytest"], ["make", "pytest"]),
        (["sh", "-c", "pytest"], ["sh", "-c", "pytest"]),
    ],
)
def test_a_report_is_asked_for_where_pytest_is_run(argv: list[str], with_options: list[str]) -> None:
    options = ["-p", "no:cacheprovider", "--junitxml=/tmp/report.xml"]
    expected = [each for word in with_options for each in (options if word == "OPTIONS" else [word])]
    assert quality.with_report(argv, Path("/tmp/report.xml")) == expected


def test_tests_may_touch_anything_and_are_not_planned(tmp_path: Path) -> None:
    effects = quality.RunTests().effects(quality.RunTestsParameters())
    assert not effects.predictable
    assert effects.reads == effects.writes == (Access(".", subtree=True),)

"""The score of technical debt, and the gate that judges it, by the real tools."""

from __future__ import annotations

import ast
import subprocess
import sysconfig
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.tasks import debt, quality_score
from quantum_orchestrator.tasks.operation import Access, Context
from quantum_orchestrator.tasks.scratch import ruff_program
from tests.effort import ordinarily
from tests.tasks.in_memory import project, run, tree_of, workspace

ABOUT = '"""About."""\n'
CLEAN = ABOUT + 'def f(a: int) -> int:\n    """Say."""\n'
STDLIB = Path(sysconfig.get_path("stdlib"))


def score(code: str) -> Any:
    return run("quality.score", workspace({"a.py": code}))


def test_clean_code_scores_100() -> None:
    outputs = run("quality.score", workspace({"a.py": f"{CLEAN}\n    # so\n\n    return a\n"}))
    assert (outputs.score, outputs.lines, outputs.debt_minutes, outputs.findings) == (100.0, 2, 0, [])
    assert set(outputs.tools) == {"complexipy", "radon", "ruff", "rules"}


def test_the_score_is_the_debt_ratio_on_the_published_curve() -> None:
    # 20 lines cost 600 minutes; an undefined name costs 30: a ratio of 5 %.
    code = ABOUT + "print(undefined)\n" + "".join(f"v{n} = {n}\n" for n in range(19))
    outputs = run("quality.score", workspace({"a.py": code}))
    assert (outputs.lines, outputs.debt_minutes, outputs.score) == (20, 30, 90.0)
    (finding,) = outputs.findings
    assert (finding.path, finding.line, finding.rule, finding.minutes) == ("a.py", 2, "F821", 30)


@pytest.mark.parametrize(
    ("ratio", "score"),
    [(0, 100), (0.025, 95), (0.05, 90), (0.1, 80), (0.15, 70), (0.2, 60), (0.5, 30), (0.75, 15), (1, 0), (7, 0)],
)
def test_the_curve_has_the_published_points(ratio: float, score: float) -> None:
    assert debt.score_for(ratio * 30 * 1000, 1000) == pytest.approx(score)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**4))
def test_more_debt_never_scores_higher(one: int, other: int, lines: int) -> None:
    less, more = sorted((one, other))
    assert 100 >= debt.score_for(less, lines) >= debt.score_for(more, lines) >= 0


def function(branches: int) -> str:
    return (
        ABOUT
        + 'def f(x: int) -> int:\n    """Say."""\n'
        + "".join(f"    if x == {n}:\n        x += 1\n" for n in range(branches))
        + "    return x\n"
    )


def test_complexity_costs_above_ten_and_grows() -> None:
    assert run("quality.score", workspace({"a.py": function(9)})).findings == []
    outputs = run("quality.score", workspace({"a.py": function(19)}))
    finding = outputs.findings[0]
    assert (finding.rule, finding.line, finding.minutes) == ("complexity", 2, 60)
    assert "20" in finding.message


def test_complexity_is_found_in_methods_of_inner_classes_too() -> None:
    inner = textwrap.indent(function(11).removeprefix(ABOUT), "        ")
    outputs = score(f"class A:\n    class B:\n{inner}")
    assert [(each.rule, each.line) for each in outputs.findings if each.minutes > 10] == [("complexity", 3)]


def test_splitting_code_into_many_good_files_does_not_lower_the_score() -> None:
    many = run("quality.score", workspace({f"m{n}.py": function(3) for n in range(50)}))
    assert many.score == 100.0


@pytest.mark.parametrize(
    "hiding",
    [
        {"ruff.toml": "lint.select = []\nexclude = ['*.py']\n"},
        {"pyproject.toml": "[tool.ruff]\nextend-exclude = ['a.py']\n"},
        {".gitignore": "a.py\n"},
        {"a.py": ABOUT + "# ruff: noqa\nimport os  # noqa\n"},
        {"a.py": ABOUT + "# ruff: disable[F401]\nimport os\n"},
    ],
)
def test_a_project_cannot_hide_its_debt(hiding: dict[str, str | bytes]) -> None:
    outputs = run("quality.score", workspace({"a.py": ABOUT + "import os\n", **hiding}))
    assert [finding.rule for finding in outputs.findings] == ["F401"]


def test_comments_and_docstrings_do_not_dilute_debt() -> None:
    padded = '"""One.\n\nTwo.\n"""\n\n# three\nimport os\n'
    assert (
        run("quality.score", workspace({"a.py": padded})).score
        == run("quality.score", workspace({"a.py": ABOUT + "import os\n"})).score
    )


def test_a_broken_file_is_unscorable_and_not_good() -> None:
    files: dict[str, str | bytes] = {"bad.py": "def f(:\n", "latin.py": b"x = '\xff'\n", "good.py": ABOUT + "x = 1\n"}
    outputs = run("quality.score", workspace({**files, "nul.py": "x = 1\0\n", "n.ipynb": "{}"}))
    assert [each.path for each in outputs.unscorable] == ["bad.py", "latin.py", "n.ipynb", "nul.py"]
    assert (outputs.score, outputs.lines) == (100.0, 1)
    with pytest.raises(OperationError, match=r"cannot be scored: bad\.py: line 1: "):
        run("quality.score", workspace({"bad.py": "def f(:\n", "good.py": ABOUT + "x = 1\n"}), min=1)


def test_where_nothing_can_be_scored_there_is_no_score() -> None:
    assert run("quality.score", workspace({"bad.py": "def f(:\n"})).score is None
    with pytest.raises(OperationError, match="no Python file"):
        run("quality.score", workspace({}), min=0)


def test_a_score_below_the_minimum_fails_with_what_costs_most() -> None:
    context = workspace({"a.py": ABOUT + "import os\nprint(undefined)\n"})
    with pytest.raises(OperationError, match=r"score \d+\.?\d* is below 80; what costs most: a\.py:3: F821 .*F401"):
        run("quality.score", context, min=80)
    assert run("quality.score", context, min=0).debt_minutes == 31


def test_every_rule_of_the_score_exists() -> None:
    # An unknown one would make ruff fail, or warn of being renamed.
    lines: list[str] = []
    run("quality.score", workspace({"a.py": "x = 1\n"}, log=lines.append))
    assert lines == []


def test_minutes_go_by_the_longest_prefix() -> None:
    assert [debt.minutes_for(rule) for rule in ("F401", "F632", "BLE001", "B904", "UP001", "D103")] == [
        1,
        5,
        10,
        10,
        0,
        3,
    ]


# Each smell costs something, and is named.

PADDING = "".join(f"V{n} = {n}\n" for n in range(40))
LONG = "".join(f"    x = g(x, {n})\n" for n in range(10))
NESTED = "".join(f"{'    ' * n}if x > {n}:\n" for n in range(1, 7)) + f"{'    ' * 7}x += 1\n"
SMELLS = {
    "an unused import": ("import os\n", "F401"),
    "an undefined name": ("print(undefined)\n", "F821"),
    "a bare except": ("try:\n    g = 1\nexcept:\n    g = 2\n", "E722"),
    "a mutable default": ('def f(a: list[int] = []) -> None:\n    """Say."""\n    a.append(1)\n', "B006"),
    "eval": ('def f(a: str) -> object:\n    """Say."""\n    return eval(a)\n', "S307"),
    "too many parameters": (
        f'def f({", ".join(f"a{n}: int" for n in range(9))}) -> None:\n    """Say."""\n',
        "PLR0913",
    ),
    "a missing docstring": ("def f(a: int) -> int:\n    return a\n", "D103"),
    "a missing type of a parameter": ('def f(a) -> int:\n    """Say."""\n    return 1\n', "ANN001"),
    "a missing type of a result": ('def f(a: int):\n    """Say."""\n    return a\n', "ANN201"),
    "cyclomatic complexity": (function(11).removeprefix(ABOUT), "complexity"),
    "cognitive complexity": (
        f'def f(x: int) -> int:\n    """Say."""\n{NESTED}    return x\n',
        "cognitive-complexity",
    ),
    "duplication": (
        "".join(f'def f{n}(x: int, g: T) -> int:\n    """Say."""\n{LONG}    return x\n\n\n' for n in range(2)),
        "duplication",
    ),
}


@pytest.mark.parametrize("smell", SMELLS)
def test_the_score_falls_for_each_smell_and_names_it(smell: str) -> None:
    code, rule = SMELLS[smell]
    outputs = score(f"{ABOUT}T = object\n{PADDING}{code}")
    assert outputs.score < 100
    assert rule in {finding.rule for finding in outputs.findings}
    assert sum(finding.minutes for finding in outputs.findings) == outputs.debt_minutes
    assert sum(finding.points for finding in outputs.findings) == pytest.approx(100 - outputs.score, abs=0.05)


def test_a_missing_module_docstring_costs_something() -> None:
    assert [(each.rule, each.line) for each in score(PADDING).findings] == [("D100", 1)]


def test_a_copy_names_its_original_and_counts_its_lines() -> None:
    code, _ = SMELLS["duplication"]
    (finding,) = (each for each in score(f"{ABOUT}T = object\n{code}").findings if each.rule == "duplication")
    assert (finding.line, finding.minutes) == (20, 21)
    assert finding.message == "11 lines that stand at a.py:5 as well"


def test_what_is_copied_from_another_file_is_found_and_what_repeats_itself_is_not_found_twice() -> None:
    body = "".join(f"V{n} = {n}\n" for n in range(12))
    found = run("quality.score", workspace({"a.py": ABOUT + body, "b/c.py": ABOUT + "X = 1\n" + body})).findings
    assert [(each.path, each.line, each.rule) for each in found] == [("b/c.py", 3, "duplication")]
    assert score(ABOUT + "print()\n" * 15).findings == []
    assert [each.line for each in score(ABOUT + "print()\n" * 20).findings] == [12]


def test_imports_that_every_module_needs_are_no_copies() -> None:
    imports = "".join(f"import m{n}\n" for n in range(20)) + f"print({', '.join(f'm{n}' for n in range(20))})\n"
    assert run("quality.score", workspace({"a.py": ABOUT + imports, "b.py": ABOUT + imports})).findings == []


def test_tests_need_neither_docstrings_nor_types() -> None:
    assert (
        run("quality.score", workspace({"tests/test_a.py": "def test_a(tmp_path):\n    assert tmp_path\n"})).score
        == 100
    )


def test_an_empty_module_owes_nothing() -> None:
    assert score("").score == 100


def test_each_file_has_a_score_of_its_own_the_worst_first() -> None:
    files: dict[str, str | bytes] = {"a.py": ABOUT + PADDING, "b.py": ABOUT + "print(undefined)\n"}
    outputs = run("quality.score", workspace(files))
    assert [(each.path, each.score, each.lines, each.debt_minutes) for each in outputs.files] == [
        ("b.py", 0.0, 1, 30),
        ("a.py", 100.0, 40, 0),
    ]


def test_an_earlier_score_is_compared_with_file_by_file() -> None:
    before = score(ABOUT + PADDING + "print(undefined)\n")
    code: dict[str, str | bytes] = {"a.py": ABOUT + PADDING, "new.py": ABOUT}
    now = run("quality.score", workspace(code), baseline=before.model_dump(mode="json"))
    assert (now.baseline, now.delta) == (before.score, round(100 - before.score, 2))
    assert {each.path: each.delta for each in now.files} == {"a.py": now.delta, "new.py": None}


def test_a_score_of_other_rules_is_not_compared_with() -> None:
    earlier = {"score": 90.0, "tools": {"ruff": "0.0.1", "rules": "1"}}
    with pytest.raises(
        OperationError, match=r"other tools or rules \(complexipy none, radon none, ruff 0\.0\.1, rules 1\)"
    ):
        run("quality.score", workspace({"a.py": ABOUT}), baseline=earlier)


# Layout makes no difference.

MODULES = (
    "textwrap",
    "bisect",
    "heapq",
    "shlex",
    "csv",
    "string",
    "calendar",
    "fnmatch",
    "cmd",
    "code",
    "queue",
    "copy",
)
WIDTHS = ("line-length = 60", "line-length = 200", "indent-width = 2", "format.quote-style = 'single'")


@pytest.mark.parametrize("width", ordinarily(WIDTHS[:2], nightly=WIDTHS))
def test_reformatting_does_not_change_the_score(width: str, tmp_path: Path) -> None:
    files = {f"{name}.py": (STDLIB / f"{name}.py").read_text() for name in MODULES}
    before = run("quality.score", workspace(dict(files)))
    project(tmp_path, files)
    options = ["--isolated", "--no-cache", "--config", width, "--config", "format.skip-magic-trailing-comma = true"]
    subprocess.run([ruff_program(), "format", "-q", *options, "."], cwd=tmp_path, check=True)
    reformatted = {name: (tmp_path / name).read_text() for name in files}
    assert all(reformatted[name] != files[name] for name in files)
    after = run("quality.score", workspace(dict(reformatted)))
    assert before.debt_minutes > 0
    for field in ("score", "lines", "debt_minutes"):
        assert {each.path: getattr(each, field) for each in after.files} == {
            each.path: getattr(each, field) for each in before.files
        }


def test_source_lines_are_those_of_the_syntax_tree() -> None:
    from quantum_orchestrator.tasks.syntax import source_lines, without_docstrings

    for name in MODULES:
        tree = ast.parse((STDLIB / f"{name}.py").read_bytes())
        written = ast.unparse(without_docstrings(tree)).splitlines()
        assert source_lines(tree) == sum(bool(line.strip()) for line in written), name


# quality.gate

GOOD = ABOUT + PADDING
OTHER = ABOUT + PADDING.replace("V", "W")
WORSE = GOOD + "print(undefined)\n"


def after(before: dict[str, str], now: dict[str, str]) -> Context:
    """A workspace that a run has changed."""
    return workspace(dict(now), before_run=lambda _paths: tree_of(dict(before)))


def test_a_gate_passes_what_is_no_worse() -> None:
    outputs = run("quality.gate", after({"a.py": WORSE}, {"a.py": GOOD, "b.py": OTHER}))
    assert outputs.passed
    assert (outputs.score, outputs.delta) == (100.0, round(100 - outputs.baseline, 2))
    assert [each.path for each in outputs.files] == ["a.py", "b.py"]


@pytest.mark.parametrize(
    ("before", "now", "failure"),
    [
        (
            {"a.py": GOOD},
            {"a.py": WORSE},
            r"the score has fallen from 100 to 9\d\.\d+; worse than before: a\.py \(100 to",
        ),
        ({"a.py": GOOD}, {"a.py": GOOD, "b.py": OTHER + "print(y)\n"}, r"worse than before: b\.py \(new, 9"),
        (
            {"a.py": WORSE, "b.py": OTHER},
            {"a.py": GOOD, "b.py": OTHER + "print(y)\n"},
            r"passed: worse than before: b",
        ),
        ({"a.py": GOOD}, {"a.py": "def f(:\n"}, r"cannot be scored: a\.py: line 1"),
    ],
)
def test_a_gate_fails_what_is_worse(before: dict[str, str], now: dict[str, str], failure: str) -> None:
    with pytest.raises(OperationError, match=failure) as failed:
        run("quality.gate", after(before, now))
    assert failed.value.details["passed"] is False


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"a.py": WORSE}, {"a.py": ABOUT + "print(undefined)\n"}),  # good code is gone, no debt has come
        ({"old.py": WORSE, "a.py": GOOD}, {"new.py": WORSE, "a.py": GOOD}),  # moved
        ({"a.py": "def f(:\n", "b.py": GOOD}, {"a.py": "def f(:\n", "b.py": GOOD}),  # broken before
        ({}, {"a.py": WORSE}),  # nothing to compare with
    ],
)
def test_a_gate_does_not_take_for_worse_what_is_not(before: dict[str, str], now: dict[str, str]) -> None:
    assert run("quality.gate", after(before, now)).passed


def test_a_gate_names_the_new_findings_only() -> None:
    context = after({"a.py": WORSE}, {"a.py": "import os\n" + WORSE})
    with pytest.raises(OperationError) as failed:
        run("quality.gate", context)
    assert {each["rule"] for each in failed.value.details["findings"]} >= {"F401"}
    assert "F821" not in failed.value.hint
    assert "F401" in failed.value.hint


@pytest.mark.parametrize(
    ("condition", "failure"),
    [
        ({"min": 99.9}, r"score 9\d\.\d+ is below 99\.9"),
        ({"min_file": 99}, r"below 99: a\.py \("),
        ({"forbid": ["F8"]}, r"forbidden: a\.py:42: F821"),
    ],
)
def test_a_gate_has_absolute_conditions(condition: dict[str, Any], failure: str) -> None:
    context = after({"a.py": WORSE}, {"a.py": WORSE})
    assert run("quality.gate", context).passed
    with pytest.raises(OperationError, match=failure):
        run("quality.gate", context, **condition)


def test_a_gate_tolerates_what_it_is_told_to() -> None:
    assert run("quality.gate", after({"a.py": GOOD}, {"a.py": WORSE}), tolerance=10).passed


def test_a_gate_without_comparison_needs_no_run() -> None:
    outputs = run("quality.gate", workspace({"a.py": WORSE}), against=None, min=50)
    assert (outputs.passed, outputs.baseline, len(outputs.findings)) == (True, None, 1)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_a_gate_compares_with_a_commit(tmp_path: Path) -> None:
    context = project(tmp_path, {"src/a.py": GOOD, "other.py": WORSE})
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "Good")
    context.repository = Repository(tmp_path, Policy())
    assert run("quality.gate", context, paths=["src"], against="main").delta == 0
    context.files.write("src/a.py", WORSE.encode())
    with pytest.raises(OperationError, match="has fallen from 100"):
        run("quality.gate", context, paths=["src"], against="HEAD")
    with pytest.raises(OperationError, match="no commit 'nowhere'"):
        run("quality.gate", context, against="nowhere")


def test_a_gate_that_only_a_run_can_judge_is_not_planned() -> None:
    def effects(**parameters: Any) -> Any:
        return quality_score.Gate().effects(quality_score.GateParameters(**parameters))

    assert effects().predictable
    assert not effects(gate="strict").predictable
    assert not effects(against="main").predictable
    assert Access(".git", subtree=True) in effects(against="main").reads
    assert effects(against="main").writes == ()

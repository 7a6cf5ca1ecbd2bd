"""Running tests, by the real pytest."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.errors import Interrupted, OperationError
from quantum_orchestrator.tasks import quality_tests as quality
from quantum_orchestrator.tasks.operation import Access, Context
from tests.tasks.in_memory import project, run, tree_of


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


# Affected tests.

PACKAGE = {
    "shop/__init__.py": "",
    "shop/money.py": "def cents(euros):\n    return 100 * euros\n",
    "shop/prices.py": "from shop.money import cents\n\n\ndef price():\n    return cents(2)\n",
    "shop/names.py": "NAME = 'shop'\n",
    "tests/test_a_names.py": "from shop.names import NAME\ndef test_name(): assert NAME == 'shop'\n",
    "tests/test_prices.py": "from shop import prices\ndef test_price(): assert prices.price() == 200\n",
}
PYTEST = ["python", "-m", "pytest", "-q"]


def changed(root: Path, **contents: str) -> Context:
    """The package after a run has changed some of it."""
    changes = {name.replace("__", "/") + ".py": text for name, text in contents.items()}
    context = project(root, {**PACKAGE, **changes})
    context.env = {"PYTHONPATH": str(root)}
    context.before_run = lambda _paths: tree_of(dict(PACKAGE))
    return context


def test_affected_tests_run_first(tmp_path: Path) -> None:
    context = changed(tmp_path, shop__money="def cents(euros):\n    return euros * 100\n")
    outputs = run("quality.test", context, argv=PYTEST, affected="first")
    assert outputs.affected == ["tests/test_prices.py"]
    assert [case.test for case in outputs.cases] == ["tests.test_prices.test_price", "tests.test_a_names.test_name"]
    assert {case.outcome for case in outputs.cases} == {"passed"}


def test_affected_tests_can_run_alone(tmp_path: Path) -> None:
    context = changed(tmp_path, shop__money="def cents(euros):\n    return euros\n")
    with pytest.raises(OperationError, match=r"1 of 1 tests failed: tests\.test_prices\.test_price") as failed:
        run("quality.test", context, argv=PYTEST, affected="only")
    assert failed.value.details["cases"][0]["outcome"] == "failed"


def test_where_nothing_is_affected_no_test_has_to_run(tmp_path: Path) -> None:
    outputs = run("quality.test", changed(tmp_path), argv=PYTEST, affected="only")
    assert (outputs.passed, outputs.affected) == (0, [])


def test_a_changed_conftest_affects_its_folder(tmp_path: Path) -> None:
    outputs = run("quality.test", changed(tmp_path, tests__conftest="import os\n"), argv=PYTEST, affected="first")
    assert outputs.affected == ["tests/test_a_names.py", "tests/test_prices.py"]


def test_what_is_no_pytest_cannot_run_affected_tests_first(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="pytest alone"):
        run("quality.test", changed(tmp_path), argv=["python", "-c", ""], affected="first")

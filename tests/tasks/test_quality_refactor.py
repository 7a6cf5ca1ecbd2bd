"""Refactoring that is kept only when the tests pass and the score does not fall."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.codemods import annotate_none
from tests.effort import ordinarily
from tests.tasks.in_memory import project, run

CODE = '"""About."""\nimport os\nimport sys\n\n\ndef greet():\n    """Say."""\n    print("hello")\n'
GREETED = ["python", "-c", "import app; app.greet()"]


def refactor(root: Path, code: str, test: list[str], **parameters: Any) -> tuple[Any, str]:
    context = project(root, {"app.py": code})
    outputs = run("quality.refactor", context, paths=["app.py"], test=test, **parameters)
    return outputs, (root / "app.py").read_text()


def test_what_passes_the_tests_is_kept(tmp_path: Path) -> None:
    outputs, code = refactor(tmp_path, CODE, GREETED)
    assert code == '"""About."""\n\n\ndef greet() -> None:\n    """Say."""\n    print("hello")\n'
    assert [(each.name, each.kept) for each in outputs.refactorings] == [("ruff", True), ("annotate-none", True)]
    assert (outputs.changed, outputs.score) == (["app.py"], 100.0)
    assert outputs.baseline < outputs.score
    assert [path.name for path in tmp_path.iterdir()] == ["app.py"]


def test_what_fails_the_tests_is_not_kept_and_the_rest_is(tmp_path: Path) -> None:
    needs_sys = ["python", "-c", "import app; app.greet(); app.sys"]
    outputs, code = refactor(tmp_path, CODE, needs_sys)
    assert "import sys" in code
    assert "-> None" in code
    ruff, annotate = outputs.refactorings
    assert (ruff.kept, annotate.kept) == (False, True)
    assert "AttributeError" in ruff.reason


def test_where_nothing_can_be_kept_the_tree_is_untouched(tmp_path: Path) -> None:
    same = ["python", "-c", f"assert open('app.py').read() == {CODE!r}"]
    outputs, code = refactor(tmp_path, CODE, same)
    assert code == CODE
    assert (outputs.changed, outputs.score) == ([], outputs.baseline)


def test_what_would_lower_the_score_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = lambda source: source + b"print(undefined)\n"  # noqa: E731
    monkeypatch.setitem(
        __import__("quantum_orchestrator.tasks.codemods", fromlist=["CODEMODS"]).CODEMODS, "annotate-none", worse
    )
    outputs, code = refactor(tmp_path, CODE, ["true"], refactorings=["annotate-none"])
    assert code == CODE
    assert "the score would fall from" in outputs.refactorings[0].reason


def test_tests_that_fail_already_fail_the_step(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="before anything is changed: exit code 1"):
        refactor(tmp_path, CODE, ["false"])
    assert (tmp_path / "app.py").read_text() == CODE


@pytest.mark.parametrize(
    ("code", "is_annotated"),
    [
        ("def f():\n    pass\n", True),
        ("def f(): g()\n", True),
        ("async def f():\n    return\n", True),
        ("def f():\n    def g():\n        return 1\n    g()\n", True),
        ("def f():\n    return 1\n", False),
        ("def f():\n    yield\n", False),
        ("def f():\n    raise NotImplementedError\n", False),
        ("def f():\n    ...\n", False),
        ("@abstractmethod\ndef f():\n    pass\n", False),
        ("def f() -> int:\n    pass\n", False),
    ],
)
def test_none_is_said_of_what_gives_nothing(code: str, is_annotated: bool) -> None:
    assert (b"def f() -> None:" in annotate_none(code.encode())) is is_annotated


MODULES = (
    *("bisect", "textwrap", "fnmatch", "shlex", "heapq", "colorsys", "keyword", "graphlib", "queue", "sched"),
    *("string", "calendar", "copy", "csv", "configparser", "difflib", "html", "json", "reprlib", "statistics"),
)


@pytest.mark.parametrize("name", ordinarily(MODULES[:2], nightly=MODULES))
def test_modules_of_the_standard_library_keep_their_tests_green(name: str, tmp_path: Path) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    source = stdlib / name if (stdlib / name).is_dir() else stdlib / f"{name}.py"
    top = source.name
    if source.is_dir():
        shutil.copytree(source, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, tmp_path / top)
    files = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.py")}
    context = project(tmp_path, files)
    # The copy of the module is the one that is imported, and the standard library's own tests judge it.
    judge = (
        f"import sys; sys.path.insert(0, '.'); sys.modules.pop({name!r}, None); import {name}; "
        f"assert not {name}.__file__.startswith({str(stdlib)!r}), {name}.__file__; "
        f"import unittest; unittest.main('test.test_{name}', argv=['x', '-q'])"
    )
    test = [sys.executable, "-c", judge]
    outputs = run("quality.refactor", context, paths=[top], test=test)
    kept = {path for each in outputs.refactorings if each.kept for path in each.changed}
    assert kept == set(outputs.changed)
    assert all((tmp_path / path).read_text() != files[path] for path in kept)
    assert outputs.score >= outputs.baseline
    if name in ("bisect", "textwrap"):
        assert kept

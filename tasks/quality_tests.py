"""`quality.test`: run the tests of a project, and say which of them failed.

Any program may be the one that runs tests; pytest's are counted and named, by its JUnit report, and those that a change
affects can be run first, or alone. What a change affects is read off the import graph (`ruff analyze graph`), which
follows imports that are written down; one that is made at run time it does not see.

This module starts processes through `blocks/sandbox.py` alone. What the tests leave is not trusted.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.sandbox import Completed, Processes
from quantum_orchestrator.blocks.tree import ROOT, Kind, not_a_folder
from quantum_orchestrator.tasks.affected import BEFORE_RUN, affected_tests
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.scratch import listed

PYTEST_NAMES = ("pytest", "py.test")
RUNNERS = ("-m", "run")
"""Words after which pytest is a program: `python -m pytest`, `uv run pytest`."""
NO_TESTS = 5  # pytest's exit code when it has collected none
LONGEST_MESSAGE = 2000
MOST_CASES = 10_000
PLUGIN = "qo_affected"
"""The name of the module that has pytest run some tests first."""


class RunTestsParameters(Parameters):
    """How to run the tests."""

    argv: list[str] = Field(
        ["python", "-m", "pytest"],
        min_length=1,
        description="The program and its arguments. With pytest, tests are counted and failures named.",
    )
    cwd: FolderPath = Field(ROOT, description="The folder to run in.")
    affected: Literal["first", "only"] | None = Field(
        None,
        description="With pytest, run the tests first (or those alone) whose modules the change reaches by imports. "
        "Where it reaches none, `only` runs none, and succeeds.",
    )
    since: str = Field(
        BEFORE_RUN,
        min_length=1,
        description="Since when there is a change: `run` is the workspace as it was before this run, anything else a "
        "revision of the git repository.",
    )


class FailedTest(Outputs):
    """One test that failed."""

    test: str = Field(description="The test's name, with its module and class.")
    message: str = Field(description="Why it failed.")


class TestCase(Outputs):
    """One test."""

    __test__: ClassVar[bool] = False  # pytest, too, would take it for a test by its name

    test: str = Field(description="The test's name, with its module and class.")
    outcome: Literal["passed", "failed", "error", "skipped"] = Field(description="How it ended.")
    seconds: float = Field(description="How long it took.")
    message: str = Field("", description="Why it failed, or was skipped.")


class RunTestsOutputs(Outputs):
    """What the tests came to. Counts are null when the program is not pytest."""

    exit_code: int = Field(description="The program's exit code.")
    passed: int | None = Field(description="Tests that passed.")
    failed: int | None = Field(description="Tests that failed.")
    errors: int | None = Field(description="Tests that could not be run to their end.")
    skipped: int | None = Field(description="Tests that were skipped, or are expected to fail.")
    duration: float = Field(description="Seconds that it took.")
    failures: list[FailedTest] = Field(description="The tests that failed or had errors.")
    cases: list[TestCase] = Field([], description="Every test, up to 10,000 of them, in the order that they ran in.")
    affected: list[str] | None = Field(
        None, description="The test modules that the change reaches; null where that was not asked for."
    )


@operation("quality.test")
class RunTests(Operation[RunTestsParameters, RunTestsOutputs]):
    """Run the tests, and fail with the names of those that fail.

    Pytest leaves nothing behind: no caches, no compiled files. Everything that the tests themselves change in the
    workspace is an effect of the step.
    """

    cacheable = True
    example: ClassVar[Mapping[str, Any]] = {"argv": ["python", "-c", "assert 1 + 1 == 2"]}

    def effects(self, parameters: RunTestsParameters) -> Effects:
        """Anything: the step's own `reads` and `writes` narrow it."""
        return Effects(reads=(EVERYTHING,), writes=(EVERYTHING,), predictable=False)

    def reach(self, parameters: RunTestsParameters) -> Reach:
        """The program."""
        return Reach(programs=(parameters.argv[0],))

    def run(self, parameters: RunTestsParameters, context: Context) -> RunTestsOutputs:
        """Run them. Raises OperationError if a test fails, if none is found, or if the program fails."""
        cwd = parameters.cwd
        if context.files.kind(cwd) is not Kind.FOLDER:
            raise not_a_folder(cwd, context.files.kind(cwd))
        affected = _affected(parameters, context)
        with tempfile.TemporaryDirectory(prefix="qo-quality-") as folder:
            report = Path(folder) / "junit.xml"
            environment = {**context.env, "PYTHONDONTWRITEBYTECODE": "1"}
            argv = with_report(parameters.argv, report)
            if affected is not None:
                argv = with_affected(
                    argv, environment, Path(folder), context, affected, only=parameters.affected == "only"
                )
            done = (context.processes or Processes()).run(
                argv,
                cwd=context.folder / cwd,
                env=environment,
                timeout=context.timeout,
                cancel=context.cancel,
                on_line=context.log,
                folders=(report.parent,),
            )
            cases = _cases(report)
        outputs = _test_outputs(done, cases, affected)
        if done.exit_code == NO_TESTS and parameters.affected == "only" and not affected and cases == []:
            context.log("no test is affected by the change")
        elif done.exit_code:
            raise _tests_failed(done, cases, outputs)
        return outputs


def _affected(parameters: RunTestsParameters, context: Context) -> list[str] | None:
    """The test modules that the change reaches, if that is asked for."""
    if parameters.affected is None:
        return None
    if _place_of_pytest(parameters.argv) is None:
        raise OperationError("`affected` works with pytest alone", hint="take it out, or run pytest by `argv`")
    found = affected_tests(context, parameters.since)
    context.log(
        f"{len(found)} test modules are affected by the change: {listed(found)}" if found else "none is affected"
    )
    return found


def _place_of_pytest(argv: Sequence[str]) -> int | None:
    for at, word in enumerate(argv):
        if PurePosixPath(word).name in PYTEST_NAMES and (at == 0 or argv[at - 1] in RUNNERS):
            return at
    return None


def with_report(argv: Sequence[str], report: Path) -> list[str]:
    """The command line, which for pytest also asks for a report, and for no cache."""
    at = _place_of_pytest(argv)
    if at is None:
        return list(argv)
    return [*argv[: at + 1], "-p", "no:cacheprovider", f"--junitxml={report}", *argv[at + 1 :]]


_PLUGIN_TEXT = """\
import pytest

AFFECTED = {affected!r}
ONLY = {only!r}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    chosen = [item for item in items if str(item.path) in AFFECTED]
    others = [item for item in items if str(item.path) not in AFFECTED]
    if ONLY and others:
        config.hook.pytest_deselected(items=others)
    items[:] = chosen if ONLY else chosen + others
"""


def with_affected(
    argv: Sequence[str],
    environment: dict[str, str],
    folder: Path,
    context: Context,
    affected: Iterable[str],
    *,
    only: bool,
) -> list[str]:
    """The command line with a plugin of pytest's, put into `folder`, that sorts the tests; so do the variables."""
    places = sorted(str((context.folder / path).resolve()) for path in affected)
    (folder / f"{PLUGIN}.py").write_text(_PLUGIN_TEXT.format(affected=places, only=only))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH", "")]))
    at = _place_of_pytest(argv)
    assert at is not None
    return [*argv[: at + 1], "-p", PLUGIN, *argv[at + 1 :]]


def _cases(report: Path) -> list[ElementTree.Element] | None:
    """The tests in a JUnit report; None if there is no report.

    The tests wrote it, or whatever else they wanted to be there: what is no plain file is no report. Entities that
    expand without end are refused by expat itself.
    """
    try:
        descriptor = os.open(report, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperationError(f"the tests left a report that cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OperationError("the tests left a report that is no plain file")
        try:
            return list(ElementTree.parse(file).getroot().iter("testcase"))  # noqa: S314
        except ElementTree.ParseError as error:
            raise OperationError(f"the tests left a report that is no XML: {error}") from error


def _test_outputs(
    done: Completed, cases: Sequence[ElementTree.Element] | None, affected: list[str] | None
) -> RunTestsOutputs:
    def count(outcome: str) -> int | None:
        return None if cases is None else sum(_outcome(case) == outcome for case in cases)

    return RunTestsOutputs(
        exit_code=done.exit_code,
        passed=count("passed"),
        failed=count("failure"),
        errors=count("error"),
        skipped=count("skipped"),
        duration=round(done.duration, 3),
        failures=_failures(cases or ()),
        cases=[_case(each) for each in (cases or ())[:MOST_CASES]],
        affected=affected,
    )


def _case(case: ElementTree.Element) -> TestCase:
    outcome = _outcome(case)
    try:
        seconds = float(case.get("time", "0"))
    except ValueError:
        seconds = 0.0
    return TestCase.model_validate(
        {
            "test": _name(case),
            "outcome": "failed" if outcome == "failure" else outcome,
            "seconds": seconds,
            "message": _message(case.find(outcome)),
        }
    )


def _name(case: ElementTree.Element) -> str:
    return ".".join(part for part in (case.get("classname"), case.get("name")) if part)


def _message(cause: ElementTree.Element | None) -> str:
    if cause is None:
        return ""
    return f"{cause.get('message', '')}\n{cause.text or ''}".strip()[:LONGEST_MESSAGE]


def _outcome(case: ElementTree.Element) -> str:
    return next((name for name in ("failure", "error", "skipped") if case.find(name) is not None), "passed")


def _failures(cases: Iterable[ElementTree.Element]) -> list[FailedTest]:
    failed = [each for each in cases if _outcome(each) in ("failure", "error")]
    return [FailedTest(test=_name(each), message=_message(each.find(_outcome(each)))) for each in failed]


def _tests_failed(
    done: Completed, cases: Sequence[ElementTree.Element] | None, outputs: RunTestsOutputs
) -> OperationError:
    details = outputs.model_dump(mode="json")
    failures = outputs.failures
    if failures and cases:
        names = listed([failure.test for failure in failures])
        first = f"{failures[0].test}: {failures[0].message}"
        return OperationError(f"{len(failures)} of {len(cases)} tests failed: {names}", hint=first, details=details)
    if cases is not None and done.exit_code == NO_TESTS:
        return OperationError("no test was collected", hint="check `cwd` and the paths in `argv`")
    tail = (done.stdout + done.stderr).decode(errors="replace").strip()[-LONGEST_MESSAGE:]
    return OperationError(
        f"the tests ended with exit code {done.exit_code}: {tail or 'they said nothing'}", details=details
    )

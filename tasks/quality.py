"""Operations that judge Python code: formatting, linting, a score for technical debt, and tests.

Formatting, linting and scoring are predictable: ruff runs on a copy of the files (`tasks/scratch.py`), and what it
changed there is written to the overlay, so that a plan and a run give the same, here and elsewhere. The score reads no
configuration at all: a project cannot configure its debt away. Only `quality.test` acts on the workspace itself.

This module knows the tools' rules and reports, and starts processes through `blocks/sandbox.py` alone.
"""

from __future__ import annotations

import ast
import itertools
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from xml.etree import ElementTree

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.sandbox import Completed, Processes
from quantum_orchestrator.blocks.tree import ROOT, Kind, not_a_folder
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Access,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.scratch import (
    RuffFinding,
    RuffLocation,
    Scratch,
    configuration_above,
    listed,
    scratch_folder,
)

if TYPE_CHECKING:
    from radon.visitors import Class, Function

Paths = Annotated[
    list[FolderPath],
    Field(
        min_length=1,
        description="Files, and folders with everything below them; `.` is the workspace. Folders that hold caches, "
        "environments and builds are left out, unless named here.",
    ),
]


def _subtrees(paths: Iterable[str]) -> tuple[Access, ...]:
    return tuple(Access(path, subtree=True) for path in paths)


# quality.format


class FormatParameters(Parameters):
    """What to format."""

    paths: Paths = Field([ROOT])
    check: bool = Field(False, description="Change nothing, and fail if something would change.")


class FormatOutputs(Outputs):
    """What formatting did."""

    changed: list[str] = Field(description="The files that were not formatted before, by path.")
    unchanged: int = Field(description="How many Python files were left as they are.")


@operation("quality.format")
class Format(Operation[FormatParameters, FormatOutputs]):
    """Format Python files with ruff, under the project's configuration.

    All or nothing: a file with a syntax error fails the step, and no other is changed.
    """

    cacheable = True
    relies_on = ("ruff",)
    example_files: ClassVar[Mapping[str, str]] = {"app.py": "print( 'Hello' )\n"}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["."]}

    def effects(self, parameters: FormatParameters) -> Effects:
        """The files and folders, and the configuration above them."""
        subtrees = _subtrees(parameters.paths)
        above = dict.fromkeys(place for path in parameters.paths for place in configuration_above(path))
        return Effects(reads=(*subtrees, *map(Access, above)), writes=() if parameters.check else subtrees)

    def run(self, parameters: FormatParameters, context: Context) -> FormatOutputs:
        """Format. Raises OperationError for syntax errors, and with `check` for files that are not formatted."""
        with scratch_folder(context) as scratch:
            scratch.add_python(parameters.paths)
            scratch.add_configuration(parameters.paths, self.effects(parameters).reads)
            if scratch.originals:
                scratch.ruff("format", paths=parameters.paths)
            changed = scratch.changed()
        if parameters.check and changed:
            count = "1 file is" if len(changed) == 1 else f"{len(changed)} files are"
            raise OperationError(
                f"{count} not formatted: {listed(list(changed))}", hint="quality.format without `check` formats them"
            )
        for path, content in changed.items():
            context.files.write(path, content)
        return FormatOutputs(changed=list(changed), unchanged=len(scratch.originals) - len(changed))


# quality.lint

Rule = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]


class LintParameters(Parameters):
    """What to lint, and by which rules."""

    paths: Paths = Field([ROOT])
    fix: bool = Field(False, description="Apply the fixes that keep the meaning of the code (ruff's safe fixes).")
    select: list[Rule] | None = Field(None, description="Rules, such as `F401` or `B`, instead of the project's.")
    ignore: list[Rule] = Field([], description="Rules to leave out, on top of those that the project leaves out.")
    allow_findings: bool = Field(False, description="Only report findings, instead of failing on them.")


class LintFinding(Outputs):
    """One thing that a rule objects to."""

    path: str = Field(description="The file.")
    line: int = Field(description="Line, counted from 1.")
    column: int = Field(description="Column, counted from 1.")
    rule: str = Field(description="The rule's name, such as `F401`.")
    message: str = Field(description="What is wrong.")
    fixable: bool = Field(description="Whether `fix` repairs it.")

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.rule} {self.message}"


class LintOutputs(Outputs):
    """What linting found."""

    findings: list[LintFinding] = Field(description="What remains, by path and place.")
    fixed: int = Field(description="How many findings fixing has removed.")
    changed: list[str] = Field(description="The files that fixing changed.")


@operation("quality.lint")
class Lint(Operation[LintParameters, LintOutputs]):
    """Check Python files with ruff, under the project's configuration, and fix what can safely be fixed."""

    cacheable = True
    relies_on = ("ruff",)
    example_files: ClassVar[Mapping[str, str]] = {"app.py": 'import os\n\nprint("Hello")\n'}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["."], "fix": True}

    def effects(self, parameters: LintParameters) -> Effects:
        """Reads everything: which modules the workspace has decides how imports in one of them are judged."""
        return Effects(reads=(EVERYTHING,), writes=_subtrees(parameters.paths) if parameters.fix else ())

    def run(self, parameters: LintParameters, context: Context) -> LintOutputs:
        """Lint. Raises OperationError that lists the first findings, unless they are allowed."""
        with scratch_folder(context) as scratch:
            scratch.add_python(parameters.paths)
            scratch.add_configuration(parameters.paths, self.effects(parameters).reads)
            scratch.add_names()
            found, remaining = self._check(scratch, parameters) if scratch.originals else ([], [])
            changed = scratch.changed()
        findings = sorted((_finding(each) for each in remaining), key=lambda each: (each.path, each.line, each.column))
        if findings and not parameters.allow_findings:
            count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
            raise OperationError(
                f"{count}: {listed(findings)}",
                hint="correct them, let `fix` do it where it can, or report them only, with `allow_findings`",
            )
        for path, content in changed.items():
            context.files.write(path, content)
        return LintOutputs(findings=findings, fixed=max(0, len(found) - len(remaining)), changed=list(changed))

    def _check(self, scratch: Scratch, parameters: LintParameters) -> tuple[list[RuffFinding], list[RuffFinding]]:
        """The findings before and after fixing."""
        # Said explicitly, as the project's configuration may say otherwise.
        options = ["--no-unsafe-fixes", "--no-fix-only"]
        options += [f"--select={','.join(parameters.select)}"] if parameters.select is not None else []
        options += [f"--ignore={','.join(parameters.ignore)}"] if parameters.ignore else []
        found = scratch.check(*options, "--no-fix", paths=parameters.paths)
        if not (parameters.fix and found):
            return found, found
        return found, scratch.check(*options, "--fix", paths=parameters.paths)


def _finding(found: RuffFinding) -> LintFinding:
    location = found["location"] or RuffLocation(row=1, column=1)
    return LintFinding(
        path=found["filename"],
        line=location["row"],
        column=location["column"],
        rule=found["code"] or "invalid-syntax",
        message=found["message"],
        fixable=found["fix"] is not None and found["fix"]["applicability"] == "safe",
    )


# quality.score

RULE_SET = "1"
"""The version of everything in this section that a score depends on: raise it with any change."""
MINUTES = {
    "B": 10,  # likely bugs and design problems
    "BLE": 10,  # every exception caught
    "C4": 2,  # comprehensions written the long way
    "E7": 2,  # statements that mislead
    "E722": 10,  # a bare except
    "F": 5,  # names and formats that cannot be right
    "F401": 1,  # unused imports
    "F541": 1,  # f-strings without a placeholder
    "F821": 30,  # undefined names
    "F841": 2,  # unused variables
    "PERF": 5,  # slower than need be
    "PIE": 2,  # needless constructs
    "PLE": 20,  # errors
    "PLR0913": 15,  # too many parameters
    "PLR0915": 20,  # too many statements in a function
    "PLW": 5,  # suspicious code
    "RET": 2,  # returns that mislead
    "S102": 20,  # exec
    "S113": 10,  # a request without a time limit
    "S3": 20,  # unsafe calls: pickle, weak hashes, eval
    "S5": 20,  # unsafe protocols and loaders
    "S602": 20,  # a shell that runs built text
    "S605": 20,
    "S608": 20,  # SQL that is built from text
    "S7": 20,  # templates that do not escape
    "SIM": 3,  # longer than need be
    "T100": 5,  # a debugger left behind
}
"""What repairing a finding costs, in minutes, by the longest prefix of its rule. These are the rules that count."""
UNCOUNTED = ("S311",)  # pseudo-random numbers are mostly used for what they are good for
COMPLEXITY = "complexity"
"""The rule name of cyclomatic complexity above COMPLEXITY_LIMIT, measured by radon."""
COMPLEXITY_LIMIT = 10
COMPLEXITY_BASE, COMPLEXITY_STEP = 10, 5  # minutes for exceeding the limit, and for each point above it
MINUTES_PER_LINE = 30
CURVE = ((0.0, 100.0), (0.05, 90.0), (0.1, 80.0), (0.2, 60.0), (0.5, 30.0), (1.0, 0.0))
"""Debt ratio to score; between the points in a straight line, beyond the last one 0."""


def minutes_for(rule: str) -> int:
    """What repairing a finding of this rule costs."""
    prefix = max((prefix for prefix in MINUTES if rule.startswith(prefix)), key=len, default="")
    return MINUTES.get(prefix, 0)


def complexity_minutes(complexity: int) -> int:
    """What simplifying a function of this cyclomatic complexity costs."""
    above = complexity - COMPLEXITY_LIMIT
    return COMPLEXITY_BASE + COMPLEXITY_STEP * above if above > 0 else 0


def score_for(debt_minutes: float, lines: int) -> float:
    """The score, 0 to 100 in hundredths, of this debt in this many source lines."""
    ratio = debt_minutes / (MINUTES_PER_LINE * lines) if lines else float(debt_minutes > 0)
    for (low, high_score), (high, low_score) in itertools.pairwise(CURVE):
        if ratio <= high:
            return round(high_score - (high_score - low_score) * (ratio - low) / (high - low), 2)
    return 0.0


class ScoreParameters(Parameters):
    """What to score."""

    paths: Paths = Field([ROOT])
    min: float | None = Field(None, ge=0, le=100, description="Fail below this score, or if a file cannot be scored.")


class ScoreFinding(Outputs):
    """One thing that costs points."""

    path: str = Field(description="The file.")
    line: int = Field(description="Line, counted from 1.")
    rule: str = Field(description="Ruff's name of the rule, or `complexity`.")
    minutes: int = Field(description="What repairing it is taken to cost.")
    message: str = Field(description="What is wrong.")

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule} {self.message} ({self.minutes} min)"


class Unscorable(Outputs):
    """A file that cannot be judged."""

    path: str = Field(description="The file.")
    message: str = Field(description="Why.")

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ScoreOutputs(Outputs):
    """The score, and what it is made of."""

    score: float | None = Field(description="0 to 100, of the files that can be judged; null if there is none.")
    lines: int = Field(description="Source lines: without blank lines, comments and docstrings.")
    debt_minutes: int = Field(description="The sum over the findings.")
    findings: list[ScoreFinding] = Field(description="Everything that costs points, the most expensive first.")
    unscorable: list[Unscorable] = Field(description="Files that are broken, or not for this Python.")
    tools: dict[str, str] = Field(description="Versions of the tools and of the rule set: scores compare within them.")


@operation("quality.score")
class Score(Operation[ScoreParameters, ScoreOutputs]):
    """Score Python files from 0 to 100 by technical debt: what repairing costs against what the code cost.

    The debt ratio is the minutes of all findings over 30 minutes a source line. No configuration and no comment of
    the project counts: the same code has the same score everywhere.
    """

    pure = True
    relies_on = ("radon", "ruff")
    example_files: ClassVar[Mapping[str, str]] = {"app.py": "def double(number):\n    return 2 * number\n"}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["."]}

    def effects(self, parameters: ScoreParameters) -> Effects:
        """Reads the files and folders."""
        return Effects(reads=_subtrees(parameters.paths))

    def run(self, parameters: ScoreParameters, context: Context) -> ScoreOutputs:
        """Score. Raises OperationError with the most expensive findings if the score is below `min`."""
        with scratch_folder(context) as scratch:
            scratch.add_python(parameters.paths)
            found = _counted(scratch, parameters.paths) if scratch.originals else []
        modules = [_Module(path, content) for path, content in sorted(scratch.originals.items())]
        outputs = _scored(modules, found)
        if parameters.min is not None:
            _require(parameters.min, outputs)
        return outputs


def _counted(scratch: Scratch, paths: Iterable[str]) -> list[RuffFinding]:
    """What ruff finds by the rules that count, heeding nothing that the files say about themselves."""
    options = ("--isolated", "--ignore-noqa", "--no-respect-gitignore", "--config", "exclude = []", "--no-preview")
    rules = (f"--select={','.join(MINUTES)}", f"--ignore={','.join(UNCOUNTED)}", "--target-version", "py314")
    return scratch.check(*options, *rules, paths=paths)


class _Module:
    """A Python file as the score sees it."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.content = content

    @cached_property
    def fault(self) -> str:
        """Why it cannot be judged; empty if it can."""
        if self.path.endswith(".ipynb"):
            return "notebooks are not scored"
        try:
            self.tree  # noqa: B018 - parsing is the question
        except SyntaxError as error:
            return f"line {error.lineno or 1}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return str(error) or "too deeply nested"
        return ""

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.content)

    @property
    def lines(self) -> int:
        docstrings = {line for node in ast.walk(self.tree) for line in _docstring_lines(node)}
        text = self.content.splitlines()
        return sum(
            1
            for number, line in enumerate(text, 1)
            if number not in docstrings and line.strip() and not line.lstrip().startswith(b"#")
        )

    def complex_functions(self) -> Iterator[ScoreFinding]:
        from radon.complexity import cc_visit_ast

        for function in _functions(cc_visit_ast(self.tree)):
            minutes = complexity_minutes(function.complexity)
            if minutes:
                message = f"{function.fullname} has a cyclomatic complexity of {function.complexity}"
                yield ScoreFinding(
                    path=self.path, line=function.lineno, rule=COMPLEXITY, minutes=minutes, message=message
                )


def _docstring_lines(node: ast.AST) -> Iterable[int]:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    if ast.get_docstring(node, clean=False) is None:
        return ()
    docstring = node.body[0]
    return range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1)


def _functions(blocks: Iterable[Function | Class]) -> Iterator[Function]:
    """Every function and method; radon counts what is nested in one with it, and lists no methods of inner classes."""
    from radon.visitors import Class

    for block in blocks:
        if not isinstance(block, Class):
            yield block
            continue
        for inner in block.inner_classes:
            yield from _functions([*inner.methods, inner])


def _scored(modules: Sequence[_Module], found: Iterable[RuffFinding]) -> ScoreOutputs:
    faults = {module.path: module.fault for module in modules if module.fault}
    findings: list[ScoreFinding] = []
    for each in map(_finding, found):
        minutes = minutes_for(each.rule)
        if minutes:
            findings.append(
                ScoreFinding(path=each.path, line=each.line, rule=each.rule, minutes=minutes, message=each.message)
            )
        else:  # no rule, but an error in reading the file
            faults.setdefault(each.path, f"line {each.line}: {each.message}")
    sound = [module for module in modules if module.path not in faults]
    findings = [each for each in findings if each.path not in faults]
    findings += [finding for module in sound for finding in module.complex_functions()]
    findings.sort(key=lambda each: (-each.minutes, each.path, each.line, each.rule))
    debt, lines = sum(each.minutes for each in findings), sum(module.lines for module in sound)
    return ScoreOutputs(
        score=score_for(debt, lines) if sound else None,
        lines=lines,
        debt_minutes=debt,
        findings=findings,
        unscorable=[Unscorable(path=path, message=faults[path]) for path in sorted(faults)],
        tools={"ruff": version("ruff"), "radon": version("radon"), "rules": RULE_SET},
    )


def _require(least: float, outputs: ScoreOutputs) -> None:
    if outputs.unscorable:
        raise OperationError(f"cannot be scored: {listed(outputs.unscorable)}", hint="correct these files first")
    if outputs.score is None:
        raise OperationError("there is no Python file to score", hint="check `paths`")
    if outputs.score < least:
        raise OperationError(
            f"score {outputs.score:g} is below {least:g}; what costs most: {listed(outputs.findings)}",
            hint="repair these first",
        )


# quality.test

PYTEST_NAMES = ("pytest", "py.test")
RUNNERS = ("-m", "run")
"""Words after which pytest is a program: `python -m pytest`, `uv run pytest`."""
NO_TESTS = 5  # pytest's exit code when it has collected none
LONGEST_MESSAGE = 2000


class RunTestsParameters(Parameters):
    """How to run the tests."""

    argv: list[str] = Field(
        ["python", "-m", "pytest"],
        min_length=1,
        description="The program and its arguments. With pytest, tests are counted and failures named.",
    )
    cwd: FolderPath = Field(ROOT, description="The folder to run in.")


class FailedTest(Outputs):
    """One test that failed."""

    test: str = Field(description="The test's name, with its module and class.")
    message: str = Field(description="Why it failed.")


class RunTestsOutputs(Outputs):
    """What the tests came to. Counts are null when the program is not pytest."""

    exit_code: int = Field(description="The program's exit code.")
    passed: int | None = Field(description="Tests that passed.")
    failed: int | None = Field(description="Tests that failed.")
    errors: int | None = Field(description="Tests that could not be run to their end.")
    skipped: int | None = Field(description="Tests that were skipped, or are expected to fail.")
    duration: float = Field(description="Seconds that it took.")
    failures: list[FailedTest] = Field(description="The tests that failed or had errors.")


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
        with tempfile.TemporaryDirectory(prefix="qo-quality-") as folder:
            report = Path(folder) / "junit.xml"
            done = (context.processes or Processes()).run(
                with_report(parameters.argv, report),
                cwd=context.folder / cwd,
                env={**context.env, "PYTHONDONTWRITEBYTECODE": "1"},
                timeout=context.timeout,
                cancel=context.cancel,
                on_line=context.log,
                folders=(report.parent,),
            )
            cases = _cases(report)
        if done.exit_code:
            raise _tests_failed(done, cases)
        return _test_outputs(done, cases)


def with_report(argv: Sequence[str], report: Path) -> list[str]:
    """The command line, which for pytest also asks for a report, and for no cache."""
    for at, word in enumerate(argv):
        if PurePosixPath(word).name in PYTEST_NAMES and (at == 0 or argv[at - 1] in RUNNERS):
            return [*argv[: at + 1], "-p", "no:cacheprovider", f"--junitxml={report}", *argv[at + 1 :]]
    return list(argv)


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


def _test_outputs(done: Completed, cases: Sequence[ElementTree.Element] | None) -> RunTestsOutputs:
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
    )


def _outcome(case: ElementTree.Element) -> str:
    return next((name for name in ("failure", "error", "skipped") if case.find(name) is not None), "passed")


def _failures(cases: Iterable[ElementTree.Element]) -> list[FailedTest]:
    failures = []
    for case in cases:
        cause = case.find(_outcome(case))
        if cause is not None and cause.tag != "skipped":
            name = ".".join(part for part in (case.get("classname"), case.get("name")) if part)
            message = f"{cause.get('message', '')}\n{cause.text or ''}".strip()
            failures.append(FailedTest(test=name, message=message[:LONGEST_MESSAGE]))
    return failures


def _tests_failed(done: Completed, cases: Sequence[ElementTree.Element] | None) -> OperationError:
    failures = _failures(cases or ())
    if failures and cases:
        names = listed([failure.test for failure in failures])
        first = f"{failures[0].test}: {failures[0].message}"
        return OperationError(f"{len(failures)} of {len(cases)} tests failed: {names}", hint=first)
    if cases is not None and done.exit_code == NO_TESTS:
        return OperationError("no test was collected", hint="check `cwd` and the paths in `argv`")
    tail = (done.stdout + done.stderr).decode(errors="replace").strip()[-LONGEST_MESSAGE:]
    return OperationError(f"the tests ended with exit code {done.exit_code}: {tail or 'they said nothing'}")

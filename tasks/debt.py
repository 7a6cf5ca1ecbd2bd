"""Technical debt in Python code: what counts, what it costs, and the score that comes of it.

Debt is the sum, over all findings, of the minutes that repairing each is taken to cost. The score maps its ratio to
what writing the code is taken to cost (30 minutes a source line) onto 0 to 100. Everything here depends on what the
code says and on nothing else: not on how it is laid out (source lines are counted on the syntax tree, and no rule that
looks at layout counts), not on configuration, not on comments. Every point that is lost names its finding.

This module knows syntax trees and the reports of the tools; it knows no workspace and starts nothing.
"""

from __future__ import annotations

import ast
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pydantic import Field

from quantum_orchestrator.tasks.clones import Block, block_of, clones
from quantum_orchestrator.tasks.operation import Outputs
from quantum_orchestrator.tasks.scratch import Measures, RuffFinding, RuffLocation
from quantum_orchestrator.tasks.syntax import source_lines

if TYPE_CHECKING:
    from radon.visitors import Class, Function

RULE_SET = "2"
"""The version of everything in this module that a score depends on: raise it with any change."""
MINUTES = {
    "ANN001": 1,  # a parameter without a type
    "ANN002": 1,
    "ANN003": 1,
    "ANN201": 1,  # a result without a type
    "ANN202": 1,
    "ANN204": 1,
    "ANN205": 1,
    "ANN206": 1,
    "B": 10,  # likely bugs and design problems
    "BLE": 10,  # every exception caught
    "C4": 2,  # comprehensions written the long way
    "D100": 3,  # a public module, class, method or function without a docstring
    "D101": 3,
    "D102": 3,
    "D103": 3,
    "D106": 3,
    "E711": 2,  # comparisons that mislead
    "E712": 2,
    "E713": 2,
    "E714": 2,
    "E721": 2,
    "E722": 10,  # a bare except
    "E731": 2,  # names that mislead
    "E741": 2,
    "E742": 2,
    "E743": 2,
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
"""What repairing a finding of ruff's costs, in minutes, by the longest prefix of its rule. No other rule counts."""
UNCOUNTED = ("S311",)  # pseudo-random numbers are mostly used for what they are good for
RUFF_OPTIONS = (
    *("--isolated", "--ignore-noqa", "--no-respect-gitignore", "--config", "exclude = []", "--no-preview"),
    # The widest line there is: two rules ask whether the shorter way would fit into one.
    *("--config", "line-length = 320", "--target-version", "py314"),
    *(f"--select={','.join(MINUTES)}", f"--ignore={','.join(UNCOUNTED)}"),
)
"""How ruff is asked, heeding nothing that the project or its files say about themselves."""
NOT_IN_TESTS = ("ANN", "D1")
"""What test modules need not have: nobody calls them, and a test's name says what it is for."""

COMPLEXITY, COMPLEXITY_LIMIT = "complexity", 10
"""The rule of cyclomatic complexity, measured by radon: each point is a way through the function to be tested."""
COMPLEXITY_BASE, COMPLEXITY_STEP = 10, 5  # minutes for exceeding the limit, and for each point above it
COGNITIVE, COGNITIVE_LIMIT = "cognitive-complexity", 15
"""The rule of cognitive complexity, measured by complexipy: what there is to be kept in mind while reading."""
COGNITIVE_BASE, COGNITIVE_STEP = 5, 1
DUPLICATION = "duplication"
"""The rule of statements that stand elsewhere as well, word for word."""
DUPLICATION_BASE, DUPLICATION_STEP = 10, 1  # minutes for a copy, and for each line of it

MINUTES_PER_LINE = 30
CURVE = ((0.0, 100.0), (0.05, 90.0), (0.1, 80.0), (0.2, 60.0), (0.5, 30.0), (1.0, 0.0))
"""Debt ratio to score; between the points in a straight line, beyond the last one 0."""


def minutes_for(rule: str) -> int:
    """What repairing a finding of this rule of ruff's costs."""
    prefix = max((prefix for prefix in MINUTES if rule.startswith(prefix)), key=len, default="")
    return MINUTES.get(prefix, 0)


def minutes_above(value: int, limit: int, base: int, step: int) -> int:
    """What bringing a measure down to its limit costs."""
    return base + step * (value - limit) if value > limit else 0


def ratio_of(minutes: float, lines: int) -> float:
    """Debt beside what writing so many source lines is taken to cost."""
    return minutes / (MINUTES_PER_LINE * lines) if lines else float(minutes > 0)


def score_for(minutes: float, lines: int) -> float:
    """The score, 0 to 100 in hundredths, of so many minutes of debt in so many source lines."""
    ratio = ratio_of(minutes, lines)
    for (low, high_score), (high, low_score) in itertools.pairwise(CURVE):
        if ratio <= high:
            return round(high_score - (high_score - low_score) * (ratio - low) / (high - low), 2)
    return 0.0


def tools() -> dict[str, str]:
    """What a score is stamped with: scores of different tools or rule sets cannot be compared."""
    return {**{name: version(name) for name in ("complexipy", "radon", "ruff")}, "rules": RULE_SET}


class ScoreFinding(Outputs):
    """One thing that costs points."""

    path: str = Field(description="The file.")
    line: int = Field(description="Line, counted from 1.")
    rule: str = Field(description="Ruff's name of the rule, or `complexity`, `cognitive-complexity` or `duplication`.")
    minutes: int = Field(description="What repairing it is taken to cost.")
    message: str = Field(description="What is wrong.")
    points: float = Field(0.0, description="Its share of the points that the score has lost.")

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule} {self.message} ({self.minutes} min)"


class Unscorable(Outputs):
    """A file that cannot be judged."""

    path: str = Field(description="The file.")
    message: str = Field(description="Why.")

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(slots=True)
class Account:
    """The debt of one file: what it has to be repaired, in how many source lines."""

    lines: int = 0
    findings: list[ScoreFinding] = field(default_factory=list)

    @property
    def minutes(self) -> int:
        """The sum over the findings."""
        return sum(each.minutes for each in self.findings)

    @property
    def score(self) -> float:
        """This file's own."""
        return score_for(self.minutes, self.lines)


@dataclass(slots=True)
class Debt:
    """The debt of several files. Files that cannot be judged have a fault, and no account: they are not good."""

    accounts: dict[str, Account] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        """Source lines of all that can be judged."""
        return sum(each.lines for each in self.accounts.values())

    @property
    def minutes(self) -> int:
        """The sum over the files."""
        return sum(each.minutes for each in self.accounts.values())

    @property
    def score(self) -> float | None:
        """The score in sum; None where nothing can be judged."""
        return score_for(self.minutes, self.lines) if self.accounts else None

    @property
    def findings(self) -> list[ScoreFinding]:
        """Everything that costs points, the most expensive first, each with its share of what is lost."""
        lost, minutes = 100.0 - (self.score or 0.0), self.minutes
        found = (each for account in self.accounts.values() for each in account.findings)
        shared = [each.model_copy(update={"points": round(lost * each.minutes / minutes, 2)}) for each in found]
        return sorted(shared, key=lambda each: (-each.minutes, each.path, each.line, each.rule, each.message))

    @property
    def unscorable(self) -> list[Unscorable]:
        """The files that cannot be judged, by path."""
        return [Unscorable(path=path, message=self.faults[path]) for path in sorted(self.faults)]


def debt_of(sources: Mapping[str, bytes], reported: Iterable[RuffFinding], cognitive: Mapping[str, Measures]) -> Debt:
    """The debt of these files; `reported` is what ruff says of them, asked with RUFF_OPTIONS."""
    modules = {path: _Module(path, content, cognitive[path]) for path, content in sorted(sources.items())}
    faults = {path: module.fault for path, module in modules.items() if module.fault}
    found: defaultdict[str, list[ScoreFinding]] = defaultdict(list)
    for each in reported:
        if minutes := minutes_for(each["code"] or ""):
            found[each["filename"]].append(_as_finding(each, minutes))
        else:  # no rule, but an error in reading the file
            line = (each["location"] or RuffLocation(row=1, column=1))["row"]
            faults.setdefault(each["filename"], f"line {line}: {each['message']}")
    sound = {path: module for path, module in modules.items() if path not in faults}
    for copy in clones([module.block for module in sound.values()]):
        minutes = DUPLICATION_BASE + DUPLICATION_STEP * copy.lines
        message = f"{copy.lines} lines that stand at {copy.first_path}:{copy.first_line} as well"
        finding = ScoreFinding(path=copy.path, line=copy.line, rule=DUPLICATION, minutes=minutes, message=message)
        found[copy.path].append(finding)
    accounts = {path: module.account(found[path]) for path, module in sound.items()}
    return Debt(accounts, faults)


def _as_finding(reported: RuffFinding, minutes: int) -> ScoreFinding:
    line = (reported["location"] or RuffLocation(row=1, column=1))["row"]
    rule, message = reported["code"] or "", reported["message"]
    return ScoreFinding(path=reported["filename"], line=line, rule=rule, minutes=minutes, message=message)


def is_test(path: str) -> bool:
    """Whether a file holds tests, going by its name as pytest does."""
    name = PurePosixPath(path).name
    return name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"


class _Module:
    """A Python file as the score sees it."""

    def __init__(self, path: str, content: bytes, cognitive: Measures) -> None:
        self.path = path
        self.content = content
        self._complexities = cognitive

    @cached_property
    def fault(self) -> str:
        """Why it cannot be judged; empty if it can."""
        if self.path.endswith(".ipynb"):
            return "notebooks are not scored"
        try:
            self._measured, self.block  # noqa: B018 - whether it can be measured is the question
        except SyntaxError as error:
            return f"line {error.lineno or 1}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return str(error) or "too deeply nested"
        return ""

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.content)

    @cached_property
    def block(self) -> Block:
        """The module as it is compared with others."""
        return block_of(self.path, self.tree)

    @cached_property
    def _measured(self) -> list[ScoreFinding]:
        return [*self._cyclomatic(), *self._cognitive()]

    def account(self, found: Sequence[ScoreFinding]) -> Account:
        """The file's debt, of what others have found in it and of what is measured here."""
        lines = source_lines(self.tree)
        counted = [each for each in found if self._counts(each.rule, lines)]
        return Account(lines, [*counted, *self._measured])

    def _counts(self, rule: str, lines: int) -> bool:
        if rule.startswith("D1") and (self.path.endswith(".pyi") or not lines):
            return False  # a stub describes what has its docstrings elsewhere, an empty module nothing
        return not (is_test(self.path) and rule.startswith(NOT_IN_TESTS))

    def _cyclomatic(self) -> Iterator[ScoreFinding]:
        from radon.complexity import cc_visit_ast

        for function in _functions(cc_visit_ast(self.tree)):
            minutes = minutes_above(function.complexity, COMPLEXITY_LIMIT, COMPLEXITY_BASE, COMPLEXITY_STEP)
            message = f"{function.fullname} has a cyclomatic complexity of {function.complexity}"
            yield from self._of_function(function.lineno, COMPLEXITY, minutes, message)

    def _cognitive(self) -> Iterator[ScoreFinding]:
        if isinstance(self._complexities, str):
            raise ValueError(f"complexipy cannot read it: {self._complexities}")
        for each in self._complexities:
            minutes = minutes_above(each["complexity"], COGNITIVE_LIMIT, COGNITIVE_BASE, COGNITIVE_STEP)
            message = f"{each['name']} has a cognitive complexity of {each['complexity']}"
            yield from self._of_function(each["line"], COGNITIVE, minutes, message)

    def _of_function(self, line: int, rule: str, minutes: int, message: str) -> Iterator[ScoreFinding]:
        if minutes:
            yield ScoreFinding(path=self.path, line=line, rule=rule, minutes=minutes, message=message)


def _functions(blocks: Iterable[Function | Class]) -> Iterator[Function]:
    """Every function and method; radon counts what is nested in one with it, and lists no methods of inner classes."""
    from radon.visitors import Class

    for block in blocks:
        if not isinstance(block, Class):
            yield block
            continue
        for inner in block.inner_classes:
            yield from _functions([*inner.methods, inner])

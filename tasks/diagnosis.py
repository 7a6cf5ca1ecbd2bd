"""A diagnosis: what failed, where in the workspace, and what a rule or a model takes to be the reason.

What a failing command has said is read (`tasks/failures.py`) with the workspace at hand: a name in it counts as a place
only if there is such a file. This module looks at files and changes none, and knows neither models nor operations.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.tree import ROOT, Kind
from quantum_orchestrator.tasks.failures import Failure, failed_tests, failures_in
from quantum_orchestrator.tasks.operation import Context, Outputs

LONGEST_CAUSE = 500


class Diagnosis(Outputs):
    """Why something failed, as far as that can be told."""

    cause: str = Field(description="What was said of it.")
    path: str | None = Field(None, description="The file of the workspace in which it went wrong, if that is known.")
    line: int | None = Field(None, description="The line in it, counted from 1.")
    explanation: str = Field("", description="What a model, or a rule, takes to be the reason.")
    tests: list[str] = Field([], description="The tests that failed, as pytest names them.")

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}: " if self.path else ""
        return f"{where}{self.cause}" + (f" ({self.explanation})" if self.explanation else "")


def failures_of(context: Context, cwd: str, output: str) -> list[Failure]:
    """The failures that the output of a command, which ran in `cwd`, tells of."""
    return failures_in(output, lambda name: _path_of(context, cwd, name))


def diagnosed(failures: Sequence[Failure], output: str) -> Diagnosis:
    """The first of the failures, or the last line of the output where there are none."""
    tests = failed_tests(output)
    if not failures:
        return Diagnosis(cause=_last_line(output), tests=tests)
    first, place = failures[0], failures[0].place
    said = f"{first.kind}: {first.message}" if first.kind and first.message else first.kind or first.message
    path, line = (place.path, place.line) if place else (None, None)
    return Diagnosis(cause=said, path=path, line=line, tests=tests)


def _path_of(context: Context, cwd: str, name: str) -> str | None:
    """The path in the workspace that a name in an output means."""
    relative = name.removeprefix(f"{context.root}/") if context.root is not None else name
    for path in (relative, relative if cwd == ROOT else f"{cwd}/{relative}"):
        try:
            if context.files.kind(path.removeprefix("./")) is Kind.FILE:
                return path.removeprefix("./")
        except OperationError:
            continue  # no path of a workspace, or one that leads through a link
    return None


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:LONGEST_CAUSE] if lines else "it said nothing"

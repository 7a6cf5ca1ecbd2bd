"""`quality.format` and `quality.lint`; the rest of the family is in `tasks/quality_*.py`.

By themselves both are predictable: ruff runs on a copy of the files (`tasks/scratch.py`), and what it changed there is
written to the overlay, so that a plan and a run give the same, here and elsewhere. With another program (`argv`), for
another language, they act on the workspace itself, and only a run can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.sandbox import Completed, Processes
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.tasks import quality_refactor as quality_refactor
from quantum_orchestrator.tasks import quality_score as quality_score  # declares the rest of the family
from quantum_orchestrator.tasks import quality_tests as quality_tests
from quantum_orchestrator.tasks.linters import findings_in
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Access,
    Context,
    Effects,
    Operation,
    Outputs,
    Parameters,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.scratch import (
    Paths,
    RuffFinding,
    RuffLocation,
    Scratch,
    configuration_above,
    listed,
    scratch_folder,
    subtrees,
)

LONGEST_SAID = 2000
Argv = Annotated[list[str], Field(min_length=1)] | None


def _by_program(argv: Sequence[str], context: Context) -> Completed:
    """Run a program of the user's in the workspace."""
    return (context.processes or Processes()).run(
        argv,
        cwd=context.folder,
        env=context.env,
        timeout=context.timeout,
        cancel=context.cancel,
        on_line=context.log,
    )


def _program_failed(argv: Sequence[str], done: Completed) -> OperationError:
    said = (done.stdout + done.stderr).decode(errors="replace").strip()[-LONGEST_SAID:]
    return OperationError(f"{argv[0]} ended with exit code {done.exit_code}: {said or 'it said nothing'}")


# quality.format


class FormatParameters(Parameters):
    """What to format."""

    paths: Paths = Field([ROOT])
    check: bool = Field(False, description="Change nothing, and fail if something would change.")
    argv: Argv = Field(
        None,
        description="Instead of ruff: another program and its arguments, for any language, which formats in the "
        "workspace; only `paths` are expected to change. With `check` it must fail by itself.",
    )


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
        files = subtrees(parameters.paths)
        if parameters.argv is not None:
            return Effects(reads=(EVERYTHING,), writes=() if parameters.check else files, predictable=False)
        above = dict.fromkeys(place for path in parameters.paths for place in configuration_above(path))
        return Effects(reads=(*files, *map(Access, above)), writes=() if parameters.check else files)

    def reach(self, parameters: FormatParameters) -> Reach:
        """Another program than ruff."""
        return Reach(programs=(parameters.argv[0],)) if parameters.argv else Reach()

    def run(self, parameters: FormatParameters, context: Context) -> FormatOutputs:
        """Format. Raises OperationError for syntax errors, and with `check` for files that are not formatted."""
        if parameters.argv is not None:
            done = _by_program(parameters.argv, context)
            if done.exit_code:
                raise _program_failed(parameters.argv, done)
            return FormatOutputs(changed=[], unchanged=0)
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
    argv: Argv = Field(
        None,
        description="Instead of ruff: another linter and its arguments, for any language. It prints SARIF, or lines "
        "such as `path:line:column: message`. With `fix`, it may change `paths`.",
    )


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
        writes = subtrees(parameters.paths) if parameters.fix else ()
        return Effects(reads=(EVERYTHING,), writes=writes, predictable=parameters.argv is None)

    def reach(self, parameters: LintParameters) -> Reach:
        """Another program than ruff."""
        return Reach(programs=(parameters.argv[0],)) if parameters.argv else Reach()

    def run(self, parameters: LintParameters, context: Context) -> LintOutputs:
        """Lint. Raises OperationError that lists the first findings, unless they are allowed."""
        if parameters.argv is not None:
            findings = _found_by(parameters.argv, context)
            _refuse(findings, parameters)
            return LintOutputs(findings=findings, fixed=0, changed=[])
        with scratch_folder(context) as scratch:
            scratch.add_python(parameters.paths)
            scratch.add_configuration(parameters.paths, self.effects(parameters).reads)
            scratch.add_names()
            found, remaining = self._check(scratch, parameters) if scratch.originals else ([], [])
            changed = scratch.changed()
        findings = sorted((_finding(each) for each in remaining), key=lambda each: (each.path, each.line, each.column))
        _refuse(findings, parameters)
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


def _refuse(findings: Sequence[LintFinding], parameters: LintParameters) -> None:
    if findings and not parameters.allow_findings:
        count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
        raise OperationError(
            f"{count}: {listed(findings)}",
            hint="correct them, let `fix` do it where it can, or report them only, with `allow_findings`",
            details={"findings": [each.model_dump(mode="json") for each in findings]},
        )


def _found_by(argv: Sequence[str], context: Context) -> list[LintFinding]:
    """What another linter has found. Raises OperationError if it fails without having found anything."""
    done = _by_program(argv, context)
    printed = [stream.decode(errors="replace") for stream in (done.stdout, done.stderr)]
    found = [each for text in printed for each in findings_in(text, str(context.folder))]
    if done.exit_code and not found:
        raise _program_failed(argv, done)
    return [
        LintFinding(
            path=each.path, line=each.line, column=each.column, rule=each.rule, message=each.message, fixable=False
        )
        for each in found
    ]


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

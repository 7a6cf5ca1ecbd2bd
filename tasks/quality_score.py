"""`quality.score` and `quality.gate`: how much technical debt Python code has, and whether that is good enough.

The score is what `tasks/debt.py` says; here it is had for the files of a workspace, compared with what was before, and
judged. A gate that is not passed fails its step, so that the run is rolled back. The scores of two states are had by
the same tools and rules, always: what an earlier run has measured with others is not compared.

This module writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.tree import ROOT, Tree
from quantum_orchestrator.tasks.debt import RUFF_OPTIONS, Debt, ScoreFinding, Unscorable, debt_of, tools
from quantum_orchestrator.tasks.git_common import GIT_FOLDER
from quantum_orchestrator.tasks.operation import Context, Effects, Operation, Outputs, Parameters, operation
from quantum_orchestrator.tasks.revisions import tree_at
from quantum_orchestrator.tasks.scratch import PYTHON_SUFFIXES, Paths, listed, scratch_folder, subtrees

# quality.score


class FileBaseline(BaseModel):
    """What one file had before."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: str = Field(description="The file.")
    score: float = Field(description="Its score.")


class Baseline(BaseModel):
    """An earlier score."""

    model_config = ConfigDict(frozen=True, strict=True)

    score: float | None = Field(description="The score in sum.")
    files: list[FileBaseline] = Field([], description="The files' own.")
    tools: dict[str, str] = Field({}, description="What it was had by.")


class ScoreParameters(Parameters):
    """What to score."""

    paths: Paths = Field([ROOT])
    min: float | None = Field(None, ge=0, le=100, description="Fail below this score, or if a file cannot be scored.")
    baseline: Baseline | None = Field(
        None, description="The outputs of an earlier `quality.score`, to be compared with."
    )


class FileScore(Outputs):
    """One file."""

    path: str = Field(description="The file.")
    score: float = Field(description="Its own score, 0 to 100.")
    lines: int = Field(description="Its source lines.")
    debt_minutes: int = Field(description="The sum over its findings.")
    baseline: float | None = Field(None, description="Its score before; null if it was not there.")
    delta: float | None = Field(None, description="By how much its score has risen.")


class ScoreOutputs(Outputs):
    """The score, and what it is made of."""

    score: float | None = Field(description="0 to 100, of the files that can be judged; null if there is none.")
    lines: int = Field(
        description="Source lines: statements, decorators, `else` and the like, however they are laid out; no blank "
        "lines, comments and docstrings."
    )
    debt_minutes: int = Field(description="The sum over the findings.")
    baseline: float | None = Field(None, description="The score before.")
    delta: float | None = Field(None, description="By how much the score has risen.")
    files: list[FileScore] = Field(description="Each file on its own, the worst first.")
    findings: list[ScoreFinding] = Field(description="Everything that costs points, the most expensive first.")
    unscorable: list[Unscorable] = Field(description="Files that are broken, or not for this Python.")
    tools: dict[str, str] = Field(description="Versions of the tools, and of the rules and costs.")


@operation("quality.score")
class Score(Operation[ScoreParameters, ScoreOutputs]):
    """Score Python files by technical debt, from 0 to 100.

    Debt is what repairing the findings is taken to cost: what ruff finds, functions that are too complex (radon's
    cyclomatic complexity, complexipy's cognitive complexity), code that stands in several places, public names without
    docstrings, parameters and results without types. It is set against 30 minutes a source line: a ratio of 0 % scores
    100, 5 % 90, 10 % 80, 20 % 60, 50 % 30, and 100 % 0. A broken file cannot be scored, and is not good. Layout,
    comments, configuration and `noqa` make no difference. docs/quality.md has a worked example.
    """

    pure = True
    relies_on = ("complexipy", "radon", "ruff")
    example_files: ClassVar[Mapping[str, str]] = {"app.py": "def double(number):\n    return 2 * number\n"}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["."]}

    def effects(self, parameters: ScoreParameters) -> Effects:
        """Reads the files and folders."""
        return Effects(reads=subtrees(parameters.paths))

    def run(self, parameters: ScoreParameters, context: Context) -> ScoreOutputs:
        """Score. Raises OperationError with the most expensive findings if the score is below `min`."""
        outputs = score_outputs(measured(context, parameters.paths), parameters.baseline)
        if parameters.min is not None:
            _require(parameters.min, outputs)
        return outputs


def measured(context: Context, paths: Iterable[str], tree: Tree | None = None) -> Debt:
    """The debt at and below `paths`, in the workspace or in another tree."""
    chosen = list(paths)
    with scratch_folder(context, tree) as scratch:
        scratch.add_python(chosen)
        found = scratch.check(*RUFF_OPTIONS, paths=chosen) if scratch.originals else []
        cognitive = scratch.cognitive()
    return debt_of(scratch.originals, found, cognitive)


def score_outputs(debt: Debt, baseline: Baseline | None = None) -> ScoreOutputs:
    """The debt in full, compared with an earlier one. Raises OperationError for one that cannot be compared."""
    _require_same_tools(baseline)
    before = {each.path: each.score for each in baseline.files} if baseline else {}
    earlier, score = baseline.score if baseline else None, debt.score
    files = [_file_score(path, debt, before.get(path)) for path in debt.accounts]
    return ScoreOutputs(
        score=score,
        lines=debt.lines,
        debt_minutes=debt.minutes,
        baseline=earlier,
        delta=_delta(score, earlier),
        files=sorted(files, key=lambda each: (each.score, each.path)),
        findings=debt.findings,
        unscorable=debt.unscorable,
        tools=tools(),
    )


def _file_score(path: str, debt: Debt, before: float | None) -> FileScore:
    account = debt.accounts[path]
    return FileScore(
        path=path,
        score=account.score,
        lines=account.lines,
        debt_minutes=account.minutes,
        baseline=before,
        delta=_delta(account.score, before),
    )


def _delta(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else round(now - before, 2)


def _require_same_tools(baseline: Baseline | None) -> None:
    if baseline is None or not baseline.tools or baseline.tools == (now := tools()):
        return
    other = [f"{name} {baseline.tools.get(name, 'none')}" for name in now if baseline.tools.get(name) != now[name]]
    raise OperationError(
        f"the baseline was had by other tools or rules ({', '.join(other)}), and cannot be compared",
        hint="score the earlier state again, or use quality.gate, which does",
    )


def _require(least: float, outputs: ScoreOutputs) -> None:
    details = outputs.model_dump(mode="json")
    if outputs.unscorable:
        raise OperationError(
            f"cannot be scored: {listed(outputs.unscorable)}", hint="correct these files first", details=details
        )
    if outputs.score is None:
        raise OperationError("there is no Python file to score", hint="check `paths`")
    if outputs.score < least:
        raise OperationError(
            f"score {outputs.score:g} is below {least:g}; what costs most: {listed(outputs.findings)}",
            hint="repair these first",
            details=details,
        )


# quality.gate

BEFORE_RUN = "run"
Prefix = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]


class GateParameters(Parameters):
    """What the code must come up to. All conditions must hold."""

    paths: Paths = Field([ROOT])
    gate: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9-]*$", description="A QualityGate block's name: its conditions hold as well."
    )
    min: float | None = Field(None, ge=0, le=100, description="The least score in sum.")
    min_file: float | None = Field(None, ge=0, le=100, description="The least score of each file.")
    against: str | None = Field(
        BEFORE_RUN,
        min_length=1,
        description="What the change must make no worse: `run` is the workspace as it was before this run, anything "
        "else a revision of the git repository, such as `main` or `HEAD~1`; null asks for no comparison.",
    )
    tolerance: float = Field(0.0, ge=0, le=100, description="By so many points a score may fall.")
    forbid: list[Prefix] = Field(
        [], description="Rules of which there must be no finding, by name or its beginning, such as `F821` or `S`."
    )


class GateOutputs(Outputs):
    """Why the gate is passed, or is not."""

    passed: bool = Field(description="Whether every condition holds; a gate that is not passed fails its step.")
    failures: list[str] = Field(description="The conditions that do not hold, and why.")
    score: float | None = Field(description="The score in sum; null where there is no Python file.")
    baseline: float | None = Field(description="The score before; null where nothing is compared, or was there.")
    delta: float | None = Field(description="By how much it has risen.")
    files: list[FileScore] = Field(description="The files whose score is another than before, the worst first.")
    findings: list[ScoreFinding] = Field(
        description="Findings that were not there before; all, if nothing is compared."
    )
    unscorable: list[Unscorable] = Field(description="Files that are broken, or not for this Python.")
    tools: dict[str, str] = Field(description="Versions of the tools, and of the rules and costs.")


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What a step and its block ask for together."""

    min: float | None
    min_file: float | None
    tolerance: float
    forbid: tuple[str, ...]
    no_worse: bool


@dataclass(slots=True)
class _Change:
    """A state, and the one before it."""

    now: Debt
    before: Debt | None
    moved: Mapping[str, str] = field(default_factory=dict)
    """Files that were elsewhere before, word for word: where."""

    def score_before(self, path: str) -> float | None:
        """A file's; None if there was none, or it could not be judged."""
        account = self.before.accounts.get(self.moved.get(path, path)) if self.before else None
        return account.score if account else None

    @property
    def changed(self) -> list[FileScore]:
        """The files whose score is another."""
        files = [_file_score(path, self.now, self.score_before(path)) for path in self.now.accounts]
        return sorted((each for each in files if each.delta != 0), key=lambda each: (each.score, each.path))

    @property
    def new_findings(self) -> list[ScoreFinding]:
        """What was not found before; where it stands in its file says nothing."""
        known = Counter((each.path, each.rule, each.message) for each in (self.before.findings if self.before else ()))
        new = []
        for each in self.now.findings:
            key = (self.moved.get(each.path, each.path), each.rule, each.message)
            if known[key]:
                known[key] -= 1
            else:
                new.append(each)
        return new


@operation("quality.gate")
class Gate(Operation[GateParameters, GateOutputs]):
    """Fail, and so have the run rolled back, unless Python code is good enough, and no worse than before.

    By itself it asks for one thing: that the run has made the code no worse. A file, or all files together, are worse
    if there is more debt than before and a lower score; a new file is worse if its score is below what the score was
    in sum; a file that cannot be scored is worse, unless it could not before. Scores are those of `quality.score`.
    """

    relies_on = ("complexipy", "radon", "ruff")
    example_files: ClassVar[Mapping[str, str]] = {"app.py": "def double(number):\n    return 2 * number\n"}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["."], "min": 50, "forbid": ["F821"]}

    def effects(self, parameters: GateParameters) -> Effects:
        """Reads the files and folders, and the repository to compare with; a block's conditions only a run can know."""
        in_git = parameters.against not in (None, BEFORE_RUN)
        reads = (*subtrees(parameters.paths), *((GIT_FOLDER,) if in_git else ()))
        return Effects(reads=reads, predictable=parameters.gate is None and not in_git)

    def run(self, parameters: GateParameters, context: Context) -> GateOutputs:
        """Judge. Raises OperationError with every condition that does not hold."""
        conditions = _conditions(parameters)
        change = (
            _change(parameters, context) if conditions.no_worse else _Change(measured(context, parameters.paths), None)
        )
        failures = [*_failures(conditions, change)]
        now, before = change.now, change.before
        outputs = GateOutputs(
            passed=not failures,
            failures=failures,
            score=now.score,
            baseline=before.score if before else None,
            delta=_delta(now.score, before.score if before else None),
            files=change.changed,
            findings=change.new_findings,
            unscorable=now.unscorable,
            tools=tools(),
        )
        if failures:
            raise OperationError(
                f"the quality gate is not passed: {'; '.join(failures)}",
                hint=_hint(outputs),
                details=outputs.model_dump(mode="json"),
            )
        return outputs


def _conditions(parameters: GateParameters) -> _Conditions:
    """The step's own and its block's: the stricter of each."""
    own = _Conditions(
        parameters.min, parameters.min_file, parameters.tolerance, (*parameters.forbid,), parameters.against is not None
    )
    if parameters.gate is None:
        return own
    from quantum_orchestrator.blocks.quality import gate_named

    block = gate_named(parameters.gate)
    return _Conditions(
        max((each for each in (own.min, block.min_score) if each is not None), default=None),
        max((each for each in (own.min_file, block.min_file_score) if each is not None), default=None),
        # The step's tolerance is none unless it is given, and then the block's own is the limit.
        min(own.tolerance, block.tolerance) if "tolerance" in parameters.model_fields_set else block.tolerance,
        (*own.forbid, *block.forbid),
        own.no_worse or block.no_worse,
    )


def _change(parameters: GateParameters, context: Context) -> _Change:
    """The workspace beside what it is compared with. Both are measured now, by the same tools."""
    paths, against = parameters.paths, parameters.against or BEFORE_RUN
    if against != BEFORE_RUN:
        earlier: Tree = tree_at(context, against, paths, lambda path: path in paths or path.endswith(PYTHON_SUFFIXES))
    elif context.before_run is not None:
        earlier = context.before_run(paths)
    else:
        raise OperationError("there is no run whose beginning could be compared with", hint="give a git revision")
    now = measured(context, paths)
    before = measured(context, [path for path in paths if earlier.kind(path) is not None], earlier)
    return _Change(now, before, _moved(now, before, context.files, earlier))


def _moved(now: Debt, before: Debt, tree: Tree, earlier: Tree) -> dict[str, str]:
    gone = {_digest(earlier, path): path for path in before.accounts.keys() - now.accounts.keys()}
    new = {path: _digest(tree, path) for path in now.accounts.keys() - before.accounts.keys()} if gone else {}
    return {path: gone[digest] for path, digest in new.items() if digest in gone}


def _digest(tree: Tree, path: str) -> str:
    entry = tree.entry(path)
    return entry.sha256 if entry else ""


def _failures(conditions: _Conditions, change: _Change) -> Iterator[str]:
    """Every condition that does not hold, in words."""
    now = change.now
    if conditions.min is not None:
        if now.faults:
            yield f"cannot be scored: {listed(now.unscorable)}"
        elif now.score is not None and now.score < conditions.min:
            yield f"score {now.score:g} is below {conditions.min:g}"
    if conditions.min_file is not None:
        low = [f"{path} ({each.score:g})" for path, each in now.accounts.items() if each.score < conditions.min_file]
        if low:
            yield f"below {conditions.min_file:g}: {listed(low)}"
    forbidden = [each for each in now.findings if conditions.forbid and each.rule.startswith(conditions.forbid)]
    if forbidden:
        yield f"forbidden: {listed(forbidden)}"
    if conditions.no_worse and change.before is not None:
        yield from _worse(conditions, change, change.before)


def _worse(conditions: _Conditions, change: _Change, before: Debt) -> Iterator[str]:
    now, tolerance = change.now, conditions.tolerance
    broken = [each for each in now.unscorable if each.path not in before.faults]
    if broken and conditions.min is None:
        yield f"cannot be scored: {listed(broken)}"
    if _is_worse(now.score, now.minutes, before.score, before.minutes, tolerance):
        yield f"the score has fallen from {before.score:g} to {now.score:g}"
    worse = []
    for path, account in now.accounts.items():
        earlier = before.accounts.get(change.moved.get(path, path))
        known = earlier.score if earlier else before.score if path not in before.faults else None
        if _is_worse(account.score, account.minutes, known, earlier.minutes if earlier else 0, tolerance):
            worse.append(f"{path} ({known:g} to {account.score:g})" if earlier else f"{path} (new, {account.score:g})")
    if worse:
        yield f"worse than before: {listed(worse)}"


def _is_worse(
    score: float | None, minutes: int, score_before: float | None, minutes_before: int, tolerance: float
) -> bool:
    """Where good code is deleted, the rest has a lower score and no more debt: that is not worse."""
    fell = score is not None and score_before is not None and score < score_before - tolerance
    return fell and minutes > minutes_before


def _hint(outputs: GateOutputs) -> str:
    if not outputs.findings:
        return "`qo show` has the scores"
    return f"what is new and costs most: {listed(outputs.findings)}"

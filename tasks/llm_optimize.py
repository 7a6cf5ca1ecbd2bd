"""`llm.optimize`: what could be faster, and only what is measured to be so is changed.

A model, or rules where there is none, suggest changes with their reasons. A change is written when the tests pass with
it, on a copy of the workspace, and the given benchmark is faster beyond noise: it runs with and without the change in
turns, and the medians must differ by what was asked for, in so many pairs that chance would seldom do it (a sign test).
Otherwise nothing is changed, and the suggestions are told all the same. This module knows no model, only that one can
be asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any, ClassVar

from pydantic import Field

from quantum_orchestrator.blocks.errors import BadAnswer, OfflineCannot, OperationError
from quantum_orchestrator.blocks.model import CONFIGURE, Answer, Question, Tool
from quantum_orchestrator.blocks.model_session import Models
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.tasks.editing import (
    EDITS_SCHEMA,
    RULES,
    Editing,
    Writable,
    edits_as_json,
    edits_in,
    may_write,
    scratch_with,
    told_of,
    write,
)
from quantum_orchestrator.tasks.model_common import ModelOutputs, ModelParameters, models_of
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Access,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.parsing import syntax_fault
from quantum_orchestrator.tasks.trial import Tried, most_of, try_out

CHANCE = 0.05
"""How likely so many pairs may be by chance, at most, for a difference to count."""
SLOW_CODE = "PERF,C4,FURB,SIM118"
"""The rules of ruff's that the offline provider suggests by."""
MOST_OUTPUT = 4_000
Argv = Annotated[list[str], Field(min_length=1)]


class OptimizeParameters(ModelParameters):
    """What is to be faster, and what must stay right."""

    benchmark: Argv = Field(description="The command that is to take less time: a program and its arguments.")
    test: Argv = Field(description="The command that must pass with every change.")
    paths: Writable
    context: list[FolderPath] = Field([], description="Files and folders that the model reads as well.")
    cwd: FolderPath = Field(ROOT, description="The folder that both commands run in.")
    instruction: str = Field("", description="What else the model should know.")
    repetitions: int = Field(7, ge=5, le=50, description="How often the benchmark runs with a change, and without it.")
    gain: float = Field(0.05, ge=0, lt=1, description="The share of the time that a change must save at least.")
    attempts: Annotated[int, Field(ge=1, le=10)] = Field(2, description="How many answers are tried.")


class Suggestion(Outputs):
    """Something that could be faster."""

    path: str = Field(description="The file.")
    line: int = Field(description="The line in it, counted from 1.")
    what: str = Field(description="What to change.")
    evidence: str = Field(description="Why that would be faster: a rule, a measurement, the complexity.")


class OptimizeOutputs(ModelOutputs):
    """What was suggested, and what came of it."""

    suggestions: list[Suggestion] = Field(description="What could be faster, and why.")
    applied: bool = Field(description="Whether files were changed: the tests pass, and it is faster beyond noise.")
    changed: list[str] = Field(description="The files that were written, by path.")
    before: float | None = Field(None, description="The benchmark's median before the change that was measured last.")
    after: float | None = Field(None, description="Its median with the change. Seconds, as are those before.")
    faster: int = Field(0, description="In how many pairs of runs the one with the change was faster.")
    pairs: int = Field(0, description="How many pairs were run.")
    reason: str = Field(description="Why the change was kept, or was not.")


TOOL = Tool(
    "optimize",
    "Suggest what could be faster, and change files so that it is.",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["suggestions", "edits"],
        "properties": {
            "suggestions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["path", "line", "what", "evidence"],
                    "properties": {
                        "path": {"type": "string", "description": "The file."},
                        "line": {"type": "integer", "description": "The line, counted from 1."},
                        "what": {"type": "string", "description": "What to change."},
                        "evidence": {"type": "string", "description": "Why that is faster."},
                    },
                },
            },
            "edits": EDITS_SCHEMA,
        },
    },
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Times of the same command without and with a change, pair by pair. Seconds."""

    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def faster(self) -> int:
        """In how many pairs the change was faster."""
        return sum(new < old for old, new in zip(self.before, self.after, strict=True))

    def is_gain(self, least: float) -> bool:
        """Whether the change saves this share of the time, and that is hardly chance."""
        pairs = len(self.before)
        chance = sum(math.comb(pairs, count) for count in range(self.faster, pairs + 1)) / 2**pairs
        return chance <= CHANCE and median(self.after) <= median(self.before) * (1 - least)

    def __str__(self) -> str:
        times = f"{median(self.before):.3f} s before, {median(self.after):.3f} s after"
        return f"{times}, faster in {self.faster} of {len(self.before)} pairs"


@operation("llm.optimize")
class Optimize(Operation[OptimizeParameters, OptimizeOutputs]):
    """Suggest what could be faster, and change it where the tests pass and a benchmark is faster beyond noise.

    Tests and benchmark run on copies of the workspace. The benchmark runs with and without the change in turns; the
    change is kept if it saves `gain` of the median time, in so many pairs that chance would do it once in twenty times
    at most. Otherwise nothing is written. Without a model, ruff's rules on slow code suggest.
    """

    relies_on = ("ruff",)
    example_files: ClassVar[Mapping[str, str]] = {
        "squares.py": "def squares(numbers):\n    return list([number * number for number in numbers])\n"
    }
    example: ClassVar[Mapping[str, Any]] = {
        "benchmark": ["python", "-c", "from squares import squares; squares(range(1000))"],
        "test": ["python", "-c", "from squares import squares; assert squares([3]) == [9]"],
        "paths": ["squares.py"],
        "repetitions": 5,
        "attempts": 1,
    }

    def effects(self, parameters: OptimizeParameters) -> Effects:
        """Reads everything, as the commands may; writes `paths`."""
        writes = tuple(Access(path, subtree=True) for path in parameters.paths)
        return Effects(reads=(EVERYTHING,), writes=writes, predictable=False, asks_model=True)

    def reach(self, parameters: OptimizeParameters) -> Reach:
        """Both programs; whoever answers."""
        found = parameters.reach()
        programs = (parameters.benchmark[0], parameters.test[0])
        return Reach(programs=programs, hosts=found.hosts, network=found.network)

    def run(self, parameters: OptimizeParameters, context: Context) -> OptimizeOutputs:
        """Optimize. Raises OperationError where the tests or the benchmark fail as things are, and ModelError."""
        editing = Editing(context, tuple(parameters.paths), (EVERYTHING,))
        return _Optimization(parameters, context, editing, models_of(parameters, context)).made()


@dataclass(frozen=True, slots=True)
class _Command:
    """What a trial runs."""

    argv: list[str] | None
    cwd: str
    shell: str | None = None


@dataclass(slots=True)
class _Optimization:
    """One optimization on its way."""

    parameters: OptimizeParameters
    context: Context
    editing: Editing
    models: Models
    answers: list[Answer] = field(default_factory=list)
    suggestions: list[Suggestion] = field(default_factory=list)
    compared: Comparison | None = None

    def made(self) -> OptimizeOutputs:
        """See the operation."""
        self._require(self.parameters.test, "the tests")
        self._require(self.parameters.benchmark, "the benchmark")
        question, reason = self._question(), ""
        unusable: BadAnswer | None = None
        for _ in range(self.parameters.attempts):
            said = ""
            try:
                answer = self.models.ask(question)
                said = answer.said
                self._take(answer)
                if not (answer.payload or {})["edits"]:
                    return self._told({}, reason or "nothing is to be changed, by what was answered")
                contents = self.editing.checked(edits_in(answer.payload))
            except BadAnswer as wrong:
                unusable, said = wrong, said or wrong.said
                reason = f"the answer cannot be used: {wrong.message}"
            else:
                reason, is_better = self._judged(contents)
                if is_better:
                    return self._told(contents, reason)
            if self.models.is_offline:
                break
            question = question.followed_by(said, f"Nothing of that was kept.\n{reason}\nTry again.")
        if unusable is not None and not self.suggestions:
            raise unusable
        return self._told({}, reason)

    def _require(self, argv: list[str], what: str) -> None:
        tried = self._tried(argv, {})
        if not tried.passed:
            said = most_of(tried.output.strip(), MOST_OUTPUT)
            raise OperationError(
                f"{what} failed before anything was changed, with exit code {tried.exit_code}: {said}",
                hint="nothing can be measured then; llm.fix can help",
            )

    def _tried(self, argv: list[str], contents: Mapping[str, bytes]) -> Tried:
        return try_out(self.context, _Command(argv, self.parameters.cwd), contents)

    def _judged(self, contents: Mapping[str, bytes]) -> tuple[str, bool]:
        """Whether the change is kept, and why."""
        tested = self._tried(self.parameters.test, contents)
        if not tested.passed:
            return f"the tests fail with it:\n{most_of(tested.output.strip(), MOST_OUTPUT)}", False
        before: list[float] = []
        after: list[float] = []
        for number in range(self.parameters.repetitions):
            pair: list[tuple[list[float], Mapping[str, bytes]]] = [(before, {}), (after, contents)]
            for times, given in pair if number % 2 else reversed(pair):  # whichever is first has no advantage
                tried = self._tried(self.parameters.benchmark, given)
                if not tried.passed:
                    return f"the benchmark fails with it:\n{most_of(tried.output.strip(), MOST_OUTPUT)}", False
                times.append(tried.seconds)
        self.compared = Comparison(tuple(before), tuple(after))
        if self.compared.is_gain(self.parameters.gain):
            return f"it is faster beyond noise: {self.compared}", True
        return f"it is not faster beyond noise: {self.compared}", False

    def _take(self, answer: Answer) -> None:
        self.answers.append(answer)
        given = (answer.payload or {})["suggestions"]
        self.suggestions = [Suggestion.model_validate(each) for each in given]

    def _told(self, contents: Mapping[str, bytes], reason: str) -> OptimizeOutputs:
        self.context.log(reason)
        compared = self.compared
        return OptimizeOutputs(
            suggestions=self.suggestions,
            applied=bool(contents),
            changed=write(self.context, contents),
            before=None if compared is None else round(median(compared.before), 4),
            after=None if compared is None else round(median(compared.after), 4),
            faster=0 if compared is None else compared.faster,
            pairs=0 if compared is None else len(compared.before),
            reason=reason,
            **told_of(self.answers),
        )

    def _question(self) -> Question:
        parts = [
            f"Make this faster: {' '.join(self.parameters.benchmark)}",
            f"This must go on to pass: {' '.join(self.parameters.test)}",
            self.parameters.instruction,
            may_write(self.parameters.paths),
            self.editing.shown([*self.parameters.paths, *self.parameters.context]),
        ]
        text = "\n\n".join(filter(None, parts))
        most = self.parameters.max_tokens
        return Question.of(text, system=RULES, tool=TOOL, max_tokens=most, rules=self._by_rule)

    def _by_rule(self) -> Mapping[str, Any]:
        """The offline provider's answer: what ruff knows to be slow, and how it would write it."""
        sound = {path: content for path, content in self._python() if not syntax_fault(path, content)}
        if not sound:
            raise OfflineCannot(
                "without a model only Python can be made faster, and there is none that can be parsed", hint=CONFIGURE
            )
        options = ("--select", SLOW_CODE, "--preview")
        with scratch_with(self.editing, sound) as scratch:
            found = scratch.check(*options, "--no-fix", paths=sorted(sound))
            scratch.check(*options, "--fix", "--unsafe-fixes", paths=sorted(sound))
            edits = edits_as_json(self.editing, scratch.changed())
        suggestions = [
            {
                "path": each["filename"],
                "line": (each["location"] or {"row": 1})["row"],
                "what": each["message"],
                "evidence": f"ruff's rule {each['code']}",
            }
            for each in found
        ]
        return {"suggestions": suggestions, "edits": edits}

    def _python(self) -> Sequence[tuple[str, bytes]]:
        paths = [path for top in self.parameters.paths for path in self.editing.files(top) if path.endswith(".py")]
        return [(path, content) for path in paths if (content := self.editing.content_of(path)) is not None]

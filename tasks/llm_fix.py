"""`llm.fix`: what makes a command fail is diagnosed and repaired, by a language model or by rules.

The command runs on copies of the workspace (`tasks/trial.py`), each with one proposal. Only what makes it pass is
written, within the declared `paths`; until then the workspace is as it was, byte for byte. A proposal that does not
help goes back with what the command said, a limited number of times, and the next one builds on the best so far. The
diagnosis is in the outputs, and in the error where nothing helps.

Without a model, rules propose (`tasks/repairs.py`), through the same gate. This module knows no model, only that one
can be asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from quantum_orchestrator.blocks.errors import BadAnswer, ModelError, OfflineCannot, OperationError
from quantum_orchestrator.blocks.model import CONFIGURE, Answer, Question, Tool
from quantum_orchestrator.blocks.model_session import Models
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.tasks.diagnosis import Diagnosis, diagnosed, failures_of
from quantum_orchestrator.tasks.editing import (
    EDITS_SCHEMA,
    RULES,
    Editing,
    Writable,
    edits_as_json,
    edits_in,
    may_write,
    ruff_fixes,
    told_of,
    write,
)
from quantum_orchestrator.tasks.failures import Failure
from quantum_orchestrator.tasks.model_common import ModelOutputs, ModelParameters, models_of
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Access,
    Context,
    Effects,
    FolderPath,
    Operation,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.repairs import Proposal, proposals
from quantum_orchestrator.tasks.trial import most_of, try_out

MOST_OUTPUT = 12_000
"""Characters of a command's output that a model is shown."""
ERROR_WEIGHT = 1_000
"""A test that could not be run counts for so many that failed: what hides tests must not look like progress."""

_COUNTS = re.compile(r"\b(\d+) (failed|errors?)\b")
_SUMMARY = re.compile(r"^=*\s*(\d+ \w+(?:, \d+ \w+)*) in [\d.]+s", re.MULTILINE)


class FixParameters(ModelParameters):
    """What fails, and what may be changed to repair it."""

    argv: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="The command that fails and is to pass: a program and its arguments."
    )
    shell: str | None = Field(default=None, description="Instead of `argv`: a text for sh -c.")
    failure: str | None = Field(
        default=None, description="Instead of a command: what a failure said. Edits are made, and nothing is run."
    )
    cwd: FolderPath = Field(ROOT, description="The folder to run the command in.")
    paths: Writable
    context: list[FolderPath] = Field([], description="Files and folders that the model reads as well.")
    instruction: str = Field("", description="What else the model should know.")
    attempts: Annotated[int, Field(ge=1, le=10)] = Field(
        3, description="How many answers are looked at before the step fails."
    )
    accept: Literal["passing", "better"] = Field(
        "passing",
        description="passing: what does not make the command pass is not kept. better: if nothing does, what leaves "
        "the fewest tests failing is kept, where those are fewer than before, as pytest counts.",
    )

    @model_validator(mode="after")
    def _one_thing_that_fails(self) -> Self:
        if sum(each is not None for each in (self.argv, self.shell, self.failure)) != 1:
            raise ValueError("give one of 'argv', 'shell' and 'failure'")
        return self


class FixOutputs(ModelOutputs):
    """What was repaired."""

    passed: bool | None = Field(description="Whether the command passes now; null where there is none to run.")
    changed: list[str] = Field(description="The files that were written, by path.")
    attempts: int = Field(description="How many answers it took; 0 if the command passed as it was.")
    diagnosis: Diagnosis | None = Field(description="Why it failed; null if it did not.")


TOOL = Tool(
    "repair_files",
    "Say why the command fails, and change files so that it passes.",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["diagnosis", "edits"],
        "properties": {
            "diagnosis": {"type": "string", "description": "Why it fails, in a sentence or two."},
            "edits": EDITS_SCHEMA,
        },
    },
)


@operation("llm.fix")
class Fix(Operation[FixParameters, FixOutputs]):
    """Repair what makes a command fail: diagnose, edit, run it again, until it passes or the attempts are used up.

    The command runs on copies of the workspace. What makes it pass is written, within `paths`; otherwise nothing is,
    and the error has the diagnosis. What the command itself writes is not kept. Without a model, the offline provider
    tries what rules can repair: names that are nearly right, imports and colons that are missing, ruff's fixes.
    """

    relies_on = ("ruff",)
    example_files: ClassVar[Mapping[str, str]] = {
        "area.py": "def area(width, height):\n    return widht * height\n\n\nassert area(2, 3) == 6\n"
    }
    example: ClassVar[Mapping[str, Any]] = {"argv": ["python", "area.py"], "paths": ["area.py"]}

    def effects(self, parameters: FixParameters) -> Effects:
        """Reads everything, as the command may; writes `paths`."""
        writes = tuple(Access(path, subtree=True) for path in parameters.paths)
        return Effects(reads=(EVERYTHING,), writes=writes, predictable=False, asks_model=True)

    def reach(self, parameters: FixParameters) -> Reach:
        """The program; the network, unless rules answer."""
        programs: tuple[str, ...] = ()
        if parameters.argv is not None:
            programs = (parameters.argv[0],)
        elif parameters.shell is not None:
            programs = ("sh",)
        return replace(parameters.reach(), programs=programs)

    def run(self, parameters: FixParameters, context: Context) -> FixOutputs:
        """Repair. Raises OperationError with the diagnosis when nothing that was tried has helped."""
        editing = Editing(context, tuple(parameters.paths), (EVERYTHING,))
        repair = _Repair(parameters, context, editing, models_of(parameters, context))
        try:
            return repair.made_without_a_command() if parameters.failure is not None else repair.made()
        except ModelError as error:
            repair.explain(error)
            raise


@dataclass(frozen=True, slots=True)
class _State:
    """Some contents over the workspace's, and how the command fails with them."""

    contents: Mapping[str, bytes]
    output: str
    failing: int | None
    """How much fails, as pytest's summary counts; None where there is no such summary."""

    def is_better_than(self, other: _State) -> bool:
        return self.failing is not None and other.failing is not None and self.failing < other.failing


@dataclass(slots=True)
class _Repair:
    """One repair on its way."""

    parameters: FixParameters
    context: Context
    editing: Editing
    models: Models
    diagnosis: Diagnosis | None = None
    asked: int = 0
    answers: list[Answer] = field(default_factory=list)
    question: Question = field(default_factory=lambda: Question.of(""))
    """What is asked next."""
    last: str = ""
    """What became of the last answer."""

    def made(self) -> FixOutputs:
        """The repair of what makes the command fail."""
        before = self._tried({})
        if before is None:
            return self._kept({}, passed=True)
        best = before
        self._begin(before)
        while self.asked < self.parameters.attempts:
            try:
                contents = self._proposed(best)
            except ModelError:
                if self._is_to_be_kept(best, before):
                    break
                raise
            if contents is None:
                continue
            state = self._tried(contents)
            if state is None:
                return self._kept(contents, passed=True)
            self.last = f"the command still fails: {self._diagnosed(state.output)}"
            if state.is_better_than(best):
                best = state
                self._begin(best)
            else:
                self._again(self.answers[-1].said, f"{self.last}\n{_shown_output(state.output)}")
        if self._is_to_be_kept(best, before):
            return self._kept(best.contents, passed=False)
        raise self._unrepaired()

    def _is_to_be_kept(self, best: _State, before: _State) -> bool:
        return self.parameters.accept == "better" and best.is_better_than(before)

    def made_without_a_command(self) -> FixOutputs:
        """The repair of a failure that somebody else saw, and will see to again."""
        state = _State({}, self.parameters.failure or "", None)
        self._begin(state)
        while self.asked < self.parameters.attempts:
            contents = self._proposed(state)
            if contents is not None:
                return self._kept(contents, passed=None)
        raise self._unrepaired()

    def _tried(self, contents: Mapping[str, bytes]) -> _State | None:
        """How the command fails with these contents; None if it passes."""
        tried = try_out(self.context, self.parameters, contents)
        if tried.passed:
            return None
        said = tried.output.strip() or "it said nothing"
        return _State(contents, f"exit code {tried.exit_code}\n{said}", _failing(said))

    def _kept(self, contents: Mapping[str, bytes], *, passed: bool | None) -> FixOutputs:
        return FixOutputs(
            passed=passed,
            changed=write(self.context, contents),
            attempts=self.asked,
            diagnosis=self.diagnosis,
            **told_of(self.answers),
        )

    # Questions and answers.

    def _begin(self, state: _State) -> None:
        """Ask how to go on from these contents."""
        if self.diagnosis is None:
            self.diagnosis = self._diagnosed(state.output)
        editing = self.editing.with_drafts(state.contents)
        named = [place.path for failure in self.failures(state.output) for place in reversed(failure.places)]
        parts = [
            f"This fails: {self._command}",
            self.parameters.instruction,
            _shown_output(state.output),
            may_write(self.parameters.paths),
            editing.shown([*self.parameters.paths, *self.parameters.context], first=named),
        ]
        text = "\n\n".join(filter(None, parts))
        most = self.parameters.max_tokens
        self.question = Question.of(text, system=RULES, tool=TOOL, max_tokens=most, rules=_Rules(self, state))

    @property
    def _command(self) -> str:
        if self.parameters.argv is not None:
            return " ".join(self.parameters.argv)
        return self.parameters.shell or "a step of a run"

    def _proposed(self, state: _State) -> dict[str, bytes] | None:
        """What files become by the next answer; None if it cannot be used. Raises ModelError where there is none."""
        self.asked += 1
        said = ""
        try:
            answer = self.models.ask(self.question)
            said = answer.said
            self.answers.append(answer)
            self._take_explanation(answer)
            changed = self.editing.with_drafts(state.contents).checked(edits_in(answer.payload))
        except BadAnswer as wrong:
            self.last = f"the answer cannot be used: {wrong.message}"
            self._again(said or wrong.said, self.last)
            return None
        return {**state.contents, **changed}

    def _take_explanation(self, answer: Answer) -> None:
        explanation = str((answer.payload or {}).get("diagnosis", ""))
        if self.diagnosis is not None and explanation:
            self.diagnosis = self.diagnosis.model_copy(update={"explanation": explanation})

    def _again(self, said: str, why: str) -> None:
        self.context.log(f"answer {self.asked}: {self.last}")
        self.question = self.question.followed_by(
            said, f"That did not help; nothing of it was kept.\n{why}\nTry again."
        )

    # What failed.

    def failures(self, output: str) -> list[Failure]:
        """What the output tells of."""
        return failures_of(self.context, self.parameters.cwd, output)

    def _diagnosed(self, output: str) -> Diagnosis:
        return diagnosed(self.failures(output), output)

    def _unrepaired(self) -> OperationError:
        tried = "one answer was" if self.asked == 1 else f"{self.asked} answers were"
        error = OperationError(
            f"not repaired, though {tried} tried; with the last {self.last}",
            hint="nothing was changed; read the diagnosis, or allow more `attempts`",
        )
        self.explain(error)
        return error

    def explain(self, error: OperationError) -> None:
        """Put what is known of the failure into an error."""
        if self.diagnosis is not None:
            error.message += f"\ndiagnosis: {self.diagnosis}"
            error.args = (error.message,)


def _shown_output(output: str) -> str:
    return f"<output>\n{most_of(output, MOST_OUTPUT)}\n</output>"


def _failing(output: str) -> int | None:
    """How much fails, as the last of pytest's summaries counts."""
    summaries = _SUMMARY.findall(output)
    if not summaries:
        return None
    counts = ((int(count), kind) for count, kind in _COUNTS.findall(summaries[-1]))
    return sum(count * (1 if kind == "failed" else ERROR_WEIGHT) for count, kind in counts)


# Without a model.


class _Rules:
    """The offline provider's answers where a repair has come so far: each call gives the next proposal."""

    def __init__(self, repair: _Repair, state: _State) -> None:
        self._repair = repair
        self._editing = repair.editing.with_drafts(state.contents)
        self._failures = repair.failures(state.output)
        self._proposals = self._all()

    def __call__(self) -> Mapping[str, Any]:
        """A payload of TOOL's. Raises OfflineCannot when nothing is left to propose."""
        for proposal in self._proposals:
            edits = edits_as_json(self._editing, proposal.contents)
            if edits:
                return {"diagnosis": proposal.why, "edits": edits}
        raise OfflineCannot(
            "no rule repairs this, and there is no model to ask", hint=f"read the diagnosis, or {CONFIGURE}"
        )

    def _all(self) -> Iterator[Proposal]:
        for proposal in proposals(self._failures, self._editing.content_of):
            if self._editing.may_write(proposal.contents):
                yield proposal
        yield from self._by_ruff()

    def _by_ruff(self) -> Iterator[Proposal]:
        named = dict.fromkeys(place.path for failure in self._failures for place in reversed(failure.places))
        paths = [path for path in named if path.endswith(".py") and self._editing.may_write([path])]
        if not paths:
            return
        for unsafe in (False, True):
            contents = ruff_fixes(self._editing, paths, unsafe=unsafe)
            if contents:
                yield Proposal(
                    f"ruff has {'unsafe ' if unsafe else ''}fixes for {', '.join(sorted(contents))}", contents
                )

"""`llm.edit`: a language model changes files as an instruction in words says.

A model's answer is data. What it may change is declared (`paths`), how is exact (`tasks/editing.py`), and one that
cannot be taken as it is goes back with the reasons, a limited number of times. Until one can be taken, the workspace is
as it was, byte for byte. This module knows no model, only that one can be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from quantum_orchestrator.blocks.errors import BadAnswer, OfflineCannot
from quantum_orchestrator.blocks.model import CONFIGURE, Answer, Question, Tool
from quantum_orchestrator.tasks.editing import (
    EDITS_SCHEMA,
    RULES,
    Editing,
    Writable,
    edits_in,
    may_write,
    told_of,
    write,
)
from quantum_orchestrator.tasks.model_common import ModelOutputs, ModelParameters, models_of
from quantum_orchestrator.tasks.operation import Access, Context, Effects, FolderPath, Operation, Reach, operation
from quantum_orchestrator.tasks.scratch import configuration_above


class EditParameters(ModelParameters):
    """What to change, and where."""

    instruction: str = Field(min_length=1, description="What to change, in words.")
    paths: Writable
    context: list[FolderPath] = Field([], description="Files and folders that the model reads as well.")
    attempts: Annotated[int, Field(ge=1, le=10)] = Field(
        3, description="How many answers are looked at before the step fails."
    )


class EditOutputs(ModelOutputs):
    """What was changed."""

    changed: list[str] = Field(description="The files that were written, by path.")
    summary: str = Field(description="What was done, in the model's words.")
    attempts: int = Field(description="How many answers it took.")


TOOL = Tool(
    "edit_files",
    "Change files of the workspace.",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["summary", "edits"],
        "properties": {
            "summary": {"type": "string", "description": "What the edits do, in a sentence or two."},
            "edits": EDITS_SCHEMA,
        },
    },
)


@operation("llm.edit")
class EditFiles(Operation[EditParameters, EditOutputs]):
    """Have a language model change files, by exact search and replace: all of its edits are made, or none.

    An edit whose text is not found exactly once, that is not in `paths`, or that leaves a file which cannot be parsed,
    goes back to the model with the reason. Files that were formatted stay so. The offline provider follows no
    instruction in words, and says so.
    """

    relies_on = ("ruff",)
    example_files: ClassVar[Mapping[str, str]] = {"greet.py": 'def greet():\n    print("Helo")\n'}
    example: ClassVar[Mapping[str, Any]] = {"instruction": "Correct the spelling.", "paths": ["greet.py"]}

    def effects(self, parameters: EditParameters) -> Effects:
        """Reads what the model is shown, and the configuration of the formatter; writes `paths`."""
        shown = (Access(path, subtree=True) for path in (*parameters.paths, *parameters.context))
        above = dict.fromkeys(place for path in parameters.paths for place in configuration_above(path))
        writes = tuple(Access(path, subtree=True) for path in parameters.paths)
        return Effects(reads=(*shown, *map(Access, above)), writes=writes, predictable=False, asks_model=True)

    def reach(self, parameters: EditParameters) -> Reach:
        """The network, unless rules answer."""
        return parameters.reach()

    def run(self, parameters: EditParameters, context: Context) -> EditOutputs:
        """Edit. Raises BadAnswer with what is wrong with the last answer when none could be taken."""
        editing = Editing(context, tuple(parameters.paths), self.effects(parameters).reads)
        answers: list[Answer] = []

        def taken(answer: Answer) -> dict[str, bytes]:
            answers.append(answer)
            return editing.checked(edits_in(answer.payload))

        models = models_of(parameters, context)
        try:
            contents = models.converse(_question(parameters, editing), taken, rounds=parameters.attempts)
        except BadAnswer as error:
            raise _none_taken(parameters.attempts, error) from error
        return EditOutputs(
            changed=write(context, contents),
            summary=str((answers[-1].payload or {})["summary"]),
            attempts=len(answers),
            **told_of(answers),
        )


def _question(parameters: EditParameters, editing: Editing) -> Question:
    files = editing.shown(_all_of(parameters))
    text = f"{parameters.instruction}\n\n{may_write(parameters.paths)}\n\n{files}"
    return Question.of(text, system=RULES, tool=TOOL, max_tokens=parameters.max_tokens, rules=_follow_no_words)


def _all_of(parameters: EditParameters) -> Sequence[str]:
    return [*parameters.paths, *parameters.context]


def _follow_no_words() -> Mapping[str, Any]:
    """The offline provider's part."""
    raise OfflineCannot(
        "without a model no instruction in words can be followed",
        hint=f"{CONFIGURE}; llm.fix and quality.lint with `fix` can do without one",
    )


def _none_taken(answers: int, last: BadAnswer) -> BadAnswer:
    which = "the model's answer cannot" if answers == 1 else f"none of the model's {answers} answers can"
    return BadAnswer(
        f"{which} be used; {last.message}",
        hint="nothing was changed; say more exactly what to change, or allow more `attempts`",
        said=last.said,
    )

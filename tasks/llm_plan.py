"""`llm.plan`: a goal in words becomes an instruction set, which is judged, and not run.

What a model writes down is nobody's who is trusted: the set says `"trust": "untrusted"`, whatever the model says of it,
and goes through the same judgement as one that came over a network. It is an output, and a file if the step names one;
`qo plan FILE` shows what it would do, and somebody has to say `qo run FILE`. There is no other way from here to a run.

The judgement is the engine's (`context.judge_set`), as this floor knows no instruction sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from quantum_orchestrator.blocks.errors import BadAnswer, OperationError
from quantum_orchestrator.blocks.model import Answer, Question, Tool
from quantum_orchestrator.blocks.tree import digest
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.expected import ExpectedDigest, expect
from quantum_orchestrator.tasks.model_common import (
    SYSTEM,
    ModelOutputs,
    ModelParameters,
    models_of,
    outputs_of,
    shown_files,
)
from quantum_orchestrator.tasks.operation import Access, Context, Effects, FilePath, Operation, Reach, operation

TOOL = Tool(
    "write_set",
    "Give the instruction set.",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["set"],
        "properties": {"set": {"type": "object", "description": "The whole document."}},
    },
)
FORM = """\
You write instruction sets: JSON documents {"version": 1, "name": NAME, "description": TEXT, "instructions": [...]}.
Each instruction is {"id": lower-case-name, "op": OPERATION, "with": {its parameters}, "needs": [ids]}; `needs` only
where one must wait for what its paths do not tell. A text may hold ${{ steps.ID.outputs.NAME }}. Paths are relative to
the workspace, never with `..`. Use what is made for the purpose (file.edit, quality.format), and script.run only where
nothing else will do. The operations, each with an example of its `with`:
"""
NOT_FOR_PLANS = ("llm.plan", "approval")


class PlanParameters(ModelParameters):
    """What is wanted."""

    goal: str = Field(description="What is to be reached, in words.", min_length=1)
    files: list[FilePath] = Field([], description="Files whose contents go along.")
    path: FilePath | None = Field(None, description="A file to write the set to, for `qo plan` and `qo run`.")
    fallback: dict[str, Any] | None = Field(
        None, description="The set to take where no model is configured; judged like any other."
    )
    expect_sha256: ExpectedDigest = None


class PlanOutputs(ModelOutputs):
    """The set, which has not been run."""

    # Named apart because a Pydantic model knows `set` as a type.
    document: dict[str, Any] = Field(description="The instruction set: valid, and not trusted.")
    steps: list[str] = Field(description="Its instructions in short: id and operation.")
    sha256: str | None = Field(None, description="SHA-256 of the file that was written.")


@operation("llm.plan")
class Plan(Operation[PlanParameters, PlanOutputs]):
    """Have a language model write an instruction set for a goal. It is judged, and not run.

    The set is marked as untrusted. `qo plan FILE` shows what it would do; only somebody who says `qo run FILE` runs it.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "goal": "Begin a changelog.",
        "path": "changelog.plan.json",
        "fallback": {
            "version": 1,
            "name": "changelog",
            "instructions": [
                {"id": "begin", "op": "file.write", "with": {"path": "CHANGELOG.md", "content": "# Changelog\n"}}
            ],
        },
    }

    def effects(self, parameters: PlanParameters) -> Effects:
        """Reads the files that go along, writes the one that it names; nothing of what the set says."""
        reads = tuple(Access(path) for path in parameters.files)
        written = () if parameters.path is None else (Access(str(parameters.path)),)
        return Effects(reads=(*reads, *written), writes=written, predictable=False, asks_model=True)

    def reach(self, parameters: PlanParameters) -> Reach:
        """Whoever answers."""
        return parameters.reach()

    def run(self, parameters: PlanParameters, context: Context) -> PlanOutputs:
        """Ask, and judge. Raises ModelError."""
        models = models_of(parameters, context)
        if parameters.path is not None:
            expect(context.files, parameters.path, parameters.expect_sha256)
        given = parameters.fallback
        question = Question.of(
            "\n\n".join([*shown_files(context.files, parameters.files), f"The goal: {parameters.goal}"]),
            system=f"{SYSTEM}\n\n{FORM}{operations_in_short()}",
            tool=TOOL,
            max_tokens=parameters.max_tokens,
            rules=None if given is None else lambda: {"set": given},
        )
        answer, document = models.converse(question, lambda answer: _judged(answer, context))
        content = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
        if parameters.path is not None:
            context.files.write(parameters.path, content)
        return PlanOutputs(
            document=document,
            steps=[f"{each['id']}: {each['op']}" for each in document["instructions"]],
            sha256=None if parameters.path is None else digest(content),
            **outputs_of(answer),
        )


def _judged(answer: Answer, context: Context) -> tuple[Answer, dict[str, Any]]:
    """The set, untrusted and valid. Raises BadAnswer with every fault."""
    document = {**(answer.payload or {})["set"], "trust": "untrusted"}
    if context.judge_set is None:
        raise OperationError("there is nobody here who could judge an instruction set")
    faults = context.judge_set(document)
    if faults:
        raise BadAnswer("the set is not valid:\n" + "\n".join(faults[:20]))
    return answer, document


def operations_in_short() -> str:
    """Each operation in a line: what it does, and an example of its parameters."""
    lines = [
        f"{name}: {each.summary} {json.dumps(dict(each.example), ensure_ascii=False)}"
        for name, each in registry.every().items()
        if name not in NOT_FOR_PLANS
    ]
    return "\n".join(lines)

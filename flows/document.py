"""Version 1 of the document that users write, as a model.

The model is the one place that names the document's keys, their types and what they mean: the published JSON Schema
(`flows/schema.py`), the form that Prefect shows, and the reference pages are made from it. What the model cannot see
(references, cycles, paths, operations' parameters) is judged in `flows/judge.py`; this module knows no operation and
reads no file. Import these names from `quantum_orchestrator.flows.instruction_set`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from quantum_orchestrator.blocks.budget import Budget
from quantum_orchestrator.blocks.durations import Duration

ID_PATTERN = r"^[a-z0-9_-]+$"
_UNFIT = r"/%&<>\u0000-\u001F\u007F-\u009F\u200E\u200F\u2028-\u202E\u2066-\u2069"
NAME_PATTERN = rf"^ *[^{_UNFIT}\s][^{_UNFIT}]*$"
"""Something to read, without what Prefect refuses in a name (/ % & < >), control characters, or characters that turn
the direction of writing."""
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""What the environment of a process takes as a name."""
INPUT_PATTERN = r"^[A-Za-z_][A-Za-z0-9_-]*$"
EXPRESSION_PATTERN = r"(^|[^$])\$\{\{"
"""A text that holds an expression. `$${{` is a literal `${{`."""
LONE_EXPRESSION_PATTERN = r"^\$\{\{[\s\S]*\}\}$"

_NO_LIST: list[Any] = []
_NO_MAP: dict[str, Any] = {}


def _empty_list() -> list[Any]:
    return _NO_LIST


def _empty_map() -> dict[str, Any]:
    return _NO_MAP


def _defaulting_to(empty: list[Any] | dict[str, Any], description: str) -> Any:
    """A field that is empty unless it is given: one object serves all, as models are never changed (a default of
    Pydantic's would be copied for each of 100,000 instructions)."""
    factory: Any = _empty_list if isinstance(empty, list) else _empty_map
    return Field(default_factory=factory, description=description, json_schema_extra={"default": empty})


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected 1, found {str(value).lower()}")  # True == 1 in Python, not in JSON
    return value


Id = Annotated[str, Field(pattern=ID_PATTERN, max_length=100)]
Variable = Annotated[str, Field(pattern=VARIABLE_PATTERN)]
InputName = Annotated[str, Field(pattern=INPUT_PATTERN)]
Glob = Annotated[str, Field(min_length=1, json_schema_extra={"format": "workspace-glob"})]
WholeExpression = Annotated[str, Field(pattern=LONE_EXPRESSION_PATTERN)]
Amount = Annotated[float, Field(gt=0)]


class Order(StrEnum):
    """Which edges a set's graph has."""

    INFERRED = "inferred"
    SEQUENTIAL = "sequential"
    EXPLICIT = "explicit"


class OnFailure(StrEnum):
    """What becomes of a run's effects when an instruction fails."""

    ROLLBACK = "rollback"
    KEEP = "keep"
    PAUSE = "pause"


CHECKPOINT = "checkpoint"
"""The operation that `rollback_to` refers to."""


class RollbackTo(BaseModel):
    """`on_failure: {"rollback_to": NAME}`: what came before a checkpoint stays; without one passed, nothing does."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rollback_to: str = Field(min_length=1, description="The name of a checkpoint of the set")


class Trust(StrEnum):
    """Where a set comes from, as far as safety goes."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"


class ModelHelp(BaseModel):
    """`on_error: {"llm": {...}}`: what a language model may do about a failure before the step is tried again."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    paths: list[Annotated[str, Field(min_length=1, json_schema_extra={"format": "workspace-folder"})]] = Field(
        min_length=1, description="Files, and folders with everything below them, that the model may change"
    )
    instruction: str = Field(default="", description="What else the model should know")
    attempts: int = Field(default=2, ge=1, le=5, description="How often the step is repaired and tried again")
    provider: str | None = Field(default=None, description="Who answers: the name of a Model block, or `offline`")
    model: str | None = Field(default=None, description="The model's name, in the place of the configured one")
    base_url: str | None = Field(default=None, description="The address of a server that speaks the Messages protocol")
    budget: Budget | None = Field(default=None, description="The most that the questions of one repair may take")


class ErrorHandler(BaseModel):
    """What handles a failure: instructions (`run`), which have handled it when they succeed, or a language model
    (`llm`), which repairs files so that the step succeeds when it is tried again."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra={"minProperties": 1})

    run: list[Instruction] = Field(default_factory=list, description="Instructions that handle the failure, in order")
    llm: ModelHelp | None = Field(
        default=None, description="Diagnose, repair and try again; the diagnosis is in the error if that does not help"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if not self.model_fields_set or (self.llm is not None and self.run):
            raise ValueError("give one of 'run' and 'llm'")
        return self


class Instruction(BaseModel):
    """One instruction of a set."""

    __slots__ = ("literal",)
    """The parameters, built, of an instruction whose `with` holds no expression; see `flows/schema.py`. It is unset
    until somebody has built them, and no part of the document."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    id: Id = Field(description="Names the step in references, logs and results; unique in its list")
    op: str = Field(description="The operation, for example file.write; `qo ops` lists them")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        alias="with",
        description="The operation's parameters; a value may be an expression, ${{ inputs.x }}",
    )
    needs: list[str] = _defaulting_to([], "Ids of instructions that must have succeeded before")
    when: WholeExpression | bool | None = Field(
        default=None, description="The step is skipped unless this expression is true: ${{ inputs.release }}"
    )
    for_each: list[Any] | WholeExpression | None = Field(
        default=None, description="Run once for each item of this list, or of the list that an expression gives"
    )
    retries: int = Field(default=0, ge=0, description="Further attempts after a failure; each failed one is undone")
    retry_delay: Duration | list[Duration] = Field(
        default=0.0, description="Time before a further attempt; a list gives one for each, the last one repeats"
    )
    timeout: Duration | None = Field(default=None, description='Time that one attempt may take: seconds, or "5m"')
    reads: list[Glob] | None = Field(
        default=None, description="Globs of what a script or a test reads; without them it may read everything"
    )
    writes: list[Glob] | None = Field(
        default=None, description="Globs of what a script or a test writes; [] for nothing"
    )
    cache: bool | None = Field(
        default=None,
        description="Whether the step is skipped, with the outputs of an earlier run, while what it reads and what it "
        "left are unchanged; beats the set's `cache`",
    )
    resources: dict[str, Amount] = _defaulting_to(
        {},
        "What it uses while it runs: cpu (processors), memory (GiB), or a name of yours (of 1)",
    )
    on_error: Literal["fail", "continue"] | ErrorHandler = Field(
        default="fail",
        description='What a failure leads to: "fail", "continue", {"run": [instructions]} or {"llm": {"paths": [...]}}',
    )
    undo: Instruction | None = Field(
        default=None, description="An instruction that makes up for an effect outside the workspace"
    )
    secrets: list[Variable] = _defaulting_to([], "Secrets of the set that this step gets, in its environment only")
    description: str = Field(default="", description="For people: what the step is for")
    tags: list[str] = _defaulting_to([], "Tags of the step's task run")


class InstructionSet(BaseModel):
    """A set of instructions that takes effect on a workspace all or nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Annotated[Literal[1], BeforeValidator(_no_truth_value)] = Field(
        default=1, description="The version of this format"
    )
    name: str = Field(
        min_length=1, max_length=100, pattern=NAME_PATTERN, description="What the set is called: 1 to 100 characters"
    )
    description: str = Field(default="", description="For people: what the set is for")
    workspace: str | None = Field(
        default=None,
        description="The folder to work on, relative to where `qo` runs, made when absent; default: there",
        json_schema_extra={"format": "workspace-folder"},
    )
    inputs: dict[InputName, dict[str, Any]] = Field(
        default={},
        description="The inputs that a run may be given: a JSON Schema each, with an optional default",
        json_schema_extra={"additionalProperties": False},
    )
    env: dict[Variable, str] = Field(
        default={},
        description="Environment variables for the processes that steps start",
        json_schema_extra={"additionalProperties": False},
    )
    secrets: list[Variable] = Field(default=[], description="Names of the secrets that steps may ask for")
    on_failure: Annotated[OnFailure, Field(strict=False)] | RollbackTo = Field(
        default=OnFailure.ROLLBACK,
        description="What becomes of the effects when an instruction fails: all undone, kept, kept until `qo resume`, "
        'or undone to a checkpoint: {"rollback_to": NAME}',
    )
    cache: bool | None = Field(
        default=None,
        description="Whether steps are skipped while what they read and what they left are unchanged, where an "
        "operation allows it; also for the sets that this one calls",
    )
    order: Annotated[Order, Field(strict=False)] = Field(
        default=Order.INFERRED, description="inferred: parallel where effects allow; sequential; explicit: `needs` only"
    )
    parallel: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="How many instructions may run at once; auto follows how busy the machine is"
    )
    batch: Literal["auto", "off"] = Field(
        default="auto",
        description="Whether many cheap instructions may share a task run of Prefect's, as they do in large sets; "
        "off: each has its own",
    )
    timeout: Duration | None = Field(default=None, description='Time that the whole run may take: seconds, or "1h"')
    budget: Budget | None = Field(
        default=None, description="What the set's questions to language models may take in sum; more is refused"
    )
    trust: Annotated[Trust, Field(strict=False)] = Field(
        default=Trust.TRUSTED, description="untrusted: for sets that came over a network or from a model"
    )
    tags: list[str] = Field(default=[], description="Tags of the flow run")
    instructions: list[Instruction] = Field(description="What to do; the outcome is as if one by one, in this order")

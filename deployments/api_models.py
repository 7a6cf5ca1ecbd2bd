"""The requests and answers of the API as models: what a body may hold, and what the OpenAPI document says of both.

Answers are given as the command line gives them; their models name what can be relied on, and let more pass. A body is
read by `read_body`, strictly: JSON as RFC 8259 has it, no name that is not known, every fault with its place.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantum_orchestrator.blocks.json_text import scan
from quantum_orchestrator.deployments.api_problems import Refused, invalid_body
from quantum_orchestrator.flows.faults import InvalidSet, nearest
from quantum_orchestrator.flows.reading import parse

EXAMPLE_SET: dict[str, Any] = {
    "version": 1,
    "name": "greet",
    "inputs": {"who": {"type": "string", "default": "world"}},
    "instructions": [
        {"id": "greet", "op": "file.write", "with": {"path": "greeting.txt", "content": "Hello, ${{ inputs.who }}!\n"}}
    ],
}
EXAMPLE_RUN = "20260102-030405-1a2b3c"
FAR_TOO_MANY = 1_024


class Body(BaseModel):
    """What a request may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SetBody(Body):
    """A set to be judged."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"set": EXAMPLE_SET, "inputs": {"who": "Ada"}}]})

    set: dict[str, Any] = Field(description="The instruction set, as in a file")
    inputs: dict[str, Any] = Field({}, description="Values for the set's inputs, by their names")


class PlanBody(SetBody):
    """A set to be planned."""

    explain: bool = Field(False, description="Say why each step waits for another")


class RunBody(SetBody):
    """A set to be run."""

    parallel: Annotated[int, Field(ge=1, le=FAR_TOO_MANY)] | None = Field(
        None, description="How many steps may run at once"
    )
    on_failure: Literal["rollback", "keep", "pause"] | None = Field(
        None, description="What becomes of the effects when a step fails; beats the set's"
    )


class DecisionBody(Body):
    """What is decided."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"step": "sign-off"}, {}]})

    step: str | None = Field(None, description="The step; needed only if several wait")


class ResumeBody(Body):
    """How to go on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"from": "tests"}]}, populate_by_name=True)

    start_at: str | None = Field(
        None, alias="from", description="Undo this step and all that comes after it, and run them again"
    )


class RollbackBody(Body):
    """How to undo."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"check": True}, {"force_conflicts": "keep"}]})

    to: str | None = Field(None, description="Undo only what came after the checkpoint of this name")
    check: bool = Field(False, description="Only say what would be put back")
    force_conflicts: Literal["keep", "overwrite"] | None = Field(
        None, description="What becomes of files that somebody else has changed since"
    )


class Nothing(Body):
    """No choice is to be made."""


class Answer(BaseModel):
    """What an answer holds at least."""

    model_config = ConfigDict(extra="allow")


class AcceptedAnswer(Answer):
    """What was accepted is on disk, and is carried out once."""

    run_id: str = Field(examples=[EXAMPLE_RUN])
    status: str = Field(examples=["queued"])


class RunAnswer(Answer):
    """A run, as `qo run --json` has it; while it waits to begin, without steps."""

    run_id: str = Field(examples=[EXAMPLE_RUN])
    set: str
    status: str = Field(
        description="queued, running, awaiting_approval, paused, committed, rolled_back, kept, cancelled,"
        " needs_attention or interrupted; refused or failed where no run has begun"
    )
    steps: list[dict[str, Any]]
    diff: dict[str, int]
    error: dict[str, Any] | None
    accepted: dict[str, Any] | None = Field(description="What the inbox knows of it, if it came by a door")


class RunsAnswer(Answer):
    """The newest runs."""

    workspace: str
    runs: list[dict[str, Any]]


class ValidAnswer(Answer):
    """A set that is right."""

    status: str = Field(examples=["valid"])
    set: str
    instructions: int
    inputs: list[str]
    trust: str = Field(examples=["untrusted"])


class PlanAnswer(Answer):
    """What a run would do, as `qo plan --json` has it."""

    changes: list[dict[str, Any]]
    deferred: list[Any]


class DiffAnswer(Answer):
    """What a run has changed, as `qo diff --json` has it."""

    run_id: str
    diff: dict[str, int]
    patch: str


class OperationsAnswer(Answer):
    """The operations, each with the schemas of its parameters and outputs."""

    operations: list[dict[str, Any]]


class HealthAnswer(Answer):
    """Whether the service can accept."""

    status: str = Field(examples=["ok"])
    version: str
    waiting: int = Field(description="Items that have not ended")


class DeliveryAnswer(Answer):
    """What became of a delivery."""

    runs: list[str] = Field(examples=[[EXAMPLE_RUN]])
    ignored: str = Field("", description="Why nothing is run, if so")


class Problem(Answer):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:quantum-orchestrator:problem:invalid-set"])
    title: str
    status: int
    detail: str
    hint: str
    errors: list[dict[str, Any]] | None = Field(
        None, description="Every fault: file, line, column, pointer, message, hint"
    )


# Reading bodies.

Model = TypeVar("Model", bound=Body)


def read_body(raw: bytes, model: type[Model]) -> Model:
    """A body, which may be empty where nothing must be said. Raises Refused, InvalidSet."""
    if not raw.strip():
        value: dict[str, Any] = {}
    else:
        try:
            value, faults = parse(raw, "body")
        except InvalidSet as error:
            raise _not_json(error) from error
        if faults:
            raise _not_json(InvalidSet(faults.placed()))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _not_wanted(error, model) from error


def _not_json(error: InvalidSet) -> Refused:
    errors = [dict(each) for each in error.as_json()]
    return Refused(400, "invalid-json", str(error.faults[0]), errors=errors)


def _not_wanted(error: ValidationError, model: type[Body]) -> Refused:
    known = [field.alias or name for name, field in model.model_fields.items()]
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [*first["loc"]]
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        return invalid_body(f"unknown key {name!r}", nearest(name, known), parts=where)
    if first["type"] == "missing":
        return invalid_body(f"{first['loc'][-1]!r} is missing", "the OpenAPI document shows an example")
    return invalid_body(first["msg"], parts=where)


def set_in(raw: bytes) -> str:
    """The text of the set in a body that `read_body` has read, at its line and column: before it are blanks alone."""
    text = raw.decode("utf-8-sig")
    start, end = scan(text).span("/set")
    return re.sub(r"[^\n]", " ", text[:start]) + text[start:end]

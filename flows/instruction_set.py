"""Instruction sets: the document that users write, as a model.

The document is version 1 of the format. Loading judges a whole document before anything runs and reports every fault
at once, each with its place; what leaves this module is valid, with called files read in.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Duration = Annotated[float, Field(ge=0)]
"""Seconds. In a document also a text such as "5m", "1h30m", "250ms"."""


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


class Trust(StrEnum):
    """Where a set comes from, as far as safety goes."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"


class ErrorHandler(BaseModel):
    """`on_error: {"run": [...]}`: instructions that handle a failure; when they succeed, it is handled."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: list[Instruction]


class Instruction(BaseModel):
    """One instruction of a set."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    id: str
    op: str
    parameters: dict[str, Any] = Field(default_factory=dict, alias="with")
    needs: list[str] = []
    when: str | bool | None = None
    for_each: list[Any] | str | None = None
    retries: int = 0
    retry_delay: Duration | list[Duration] = 0
    timeout: Duration | None = None
    reads: list[str] | None = None
    writes: list[str] | None = None
    resources: dict[str, float] = {}
    on_error: Literal["fail", "continue"] | ErrorHandler = "fail"
    undo: Instruction | None = None
    secrets: list[str] = []
    description: str = ""
    tags: list[str] = []


class InstructionSet(BaseModel):
    """A whole document."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    name: str
    description: str = ""
    workspace: str | None = None
    inputs: dict[str, dict[str, Any]] = {}
    env: dict[str, str] = {}
    secrets: list[str] = []
    on_failure: OnFailure = OnFailure.ROLLBACK
    order: Order = Order.INFERRED
    parallel: int | Literal["auto"] = "auto"
    timeout: Duration | None = None
    trust: Trust = Trust.TRUSTED
    tags: list[str] = []
    instructions: list[Instruction]

"""Operations that steer a run: saying, checking, asking, waiting, naming a place to go back to, calling a set.

What `approval`, `checkpoint` and `call` mean is the engine's: it asks before it runs the first, makes the run durable
at the second, and puts the called set's instructions in the place of the third. This module knows neither flows nor
what waits for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, JsonValue, model_validator

from quantum_orchestrator.blocks.errors import OperationError, TimedOut
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Context,
    Effects,
    Operation,
    Outputs,
    Parameters,
    operation,
)

NOTHING = Effects()


class EchoParameters(Parameters):
    """What to say."""

    message: str = Field(description="Text to put into the run's log and the outputs.")


class EchoOutputs(Outputs):
    """What was said."""

    message: str = Field(description="The message, as given.")


@operation("echo")
class Echo(Operation[EchoParameters, EchoOutputs]):
    """Say something in the run's log."""

    example: ClassVar[Mapping[str, Any]] = {"message": "Hello"}

    def effects(self, parameters: EchoParameters) -> Effects:
        """Nothing."""
        return NOTHING

    def run(self, parameters: EchoParameters, context: Context) -> EchoOutputs:
        """Log the message."""
        context.log(parameters.message)
        return EchoOutputs(message=parameters.message)


class AssertParameters(Parameters):
    """What must hold."""

    that: bool = Field(
        description="Must be true; usually an expression such as `${{ steps.test.outputs.passed > 0 }}`."
    )
    message: str = Field("", description="What to say when it does not hold.")


class NoOutputs(Outputs):
    """Nothing to tell."""


@operation("assert")
class Assert(Operation[AssertParameters, NoOutputs]):
    """Fail unless a condition holds."""

    example: ClassVar[Mapping[str, Any]] = {"that": True, "message": "the world is in order"}

    def effects(self, parameters: AssertParameters) -> Effects:
        """Nothing."""
        return NOTHING

    def run(self, parameters: AssertParameters, context: Context) -> NoOutputs:
        """Raises OperationError with the message if the condition is false."""
        if not parameters.that:
            raise OperationError(parameters.message or "the condition does not hold", hint="see this step's `that`")
        return NoOutputs()


class ApprovalParameters(Parameters):
    """What a person is asked."""

    message: str = Field(description="What the person who approves should know before deciding.")


class ApprovalOutputs(Outputs):
    """What the person answered."""

    approved: bool = Field(description="True: a run that is not approved does not get here.")


@operation("approval")
class Approval(Operation[ApprovalParameters, ApprovalOutputs]):
    """Wait until a person approves.

    The run stops here, durably, until `qo approve`. Everything before it has been done by then, and nothing after it.
    """

    example: ClassVar[Mapping[str, Any]] = {"message": "Go on?"}

    def effects(self, parameters: ApprovalParameters) -> Effects:
        """Nothing, and nothing passes it in either direction."""
        return Effects(barrier=True)

    def run(self, parameters: ApprovalParameters, context: Context) -> ApprovalOutputs:
        """Say so: the engine runs this only once the approval is there."""
        return ApprovalOutputs(approved=True)


class CheckpointParameters(Parameters):
    """How the place is called."""

    name: str = Field(description="The place's name, for `qo rollback RUN --to NAME`.", min_length=1, max_length=100)


class CheckpointOutputs(Outputs):
    """The place that was passed."""

    name: str = Field(description="The name, as given.")


@operation("checkpoint")
class Checkpoint(Operation[CheckpointParameters, CheckpointOutputs]):
    """Name a place in the run to which it can be rolled back.

    What comes before it has been done by then, and is safe from a power cut; nothing after it has begun. `qo rollback
    RUN --to NAME` undoes what came after; so does a failure, with `"on_failure": {"rollback_to": NAME}`.
    """

    example: ClassVar[Mapping[str, Any]] = {"name": "generated"}

    def effects(self, parameters: CheckpointParameters) -> Effects:
        """Nothing, and nothing passes it in either direction."""
        return Effects(barrier=True)

    def run(self, parameters: CheckpointParameters, context: Context) -> CheckpointOutputs:
        """Give the name: the engine makes what came before durable."""
        return CheckpointOutputs(name=parameters.name)


class WaitParameters(Parameters):
    """How long to wait."""

    seconds: float = Field(description="Seconds to wait.", ge=0, allow_inf_nan=False)


@operation("wait")
class Wait(Operation[WaitParameters, NoOutputs]):
    """Wait some seconds before anything that follows. A plan does not wait."""

    example: ClassVar[Mapping[str, Any]] = {"seconds": 0.01}

    def effects(self, parameters: WaitParameters) -> Effects:
        """Nothing, and nothing passes it. Not predictable: otherwise planning would wait."""
        return Effects(predictable=False, barrier=True)

    def run(self, parameters: WaitParameters, context: Context) -> NoOutputs:
        """Wait. Raises Interrupted as soon as the run is cancelled, TimedOut if the step's timeout is shorter."""
        if context.timeout is not None and context.timeout < parameters.seconds:
            context.cancel.wait(context.timeout)
            raise TimedOut(f"waited {context.timeout:g} s of {parameters.seconds:g} s", hint="raise the step's timeout")
        context.cancel.wait(parameters.seconds)
        return NoOutputs()


class CallParameters(Parameters):
    """Which set to call, and with what."""

    set: dict[str, JsonValue] | None = Field(None, description="An instruction set, written in place.")
    file: str | None = Field(None, description="A file that holds an instruction set, relative to the calling set's.")
    inputs: dict[str, JsonValue] = Field({}, description="Values for the called set's inputs.")

    @model_validator(mode="after")
    def _one_set(self) -> CallParameters:
        if (self.set is None) == (self.file is None):
            raise ValueError("give either `set` or `file`")
        return self


class CallOutputs(Outputs):
    """The outputs of the called set's steps, each under the step's id."""

    model_config = ConfigDict(extra="allow", frozen=True)


@operation("call")
class Call(Operation[CallParameters, CallOutputs]):
    """Run another instruction set as a part of this one, in the same transaction.

    Its steps are named `<id of the call>/<id in the called set>`.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "set": {
            "version": 1,
            "name": "greeting",
            "instructions": [{"id": "hello", "op": "echo", "with": {"message": "Hello"}}],
        }
    }

    def effects(self, parameters: CallParameters) -> Effects:
        """Whatever the called set does: anything, until its instructions stand in the call's place."""
        return Effects(reads=(EVERYTHING,), writes=(EVERYTHING,), predictable=False, barrier=True)

    def run(self, parameters: CallParameters, context: Context) -> CallOutputs:
        """Raises OperationError: a call has no effect of its own, only its instructions have."""
        raise OperationError(
            "a call can only run as a part of an instruction set, where its instructions take its place",
            hint="put the call into a set, or run the called set itself",
        )

"""Blocks that a deployment's runs name instead of values: a workspace, and how its scripts are confined.

`quantum-orchestrator-workspace/NAME` stands where a path would, and brings along what holds there: a sandbox block and
a policy block, which narrow the machine's own policy and can never widen it. Knows Prefect, and so is imported only
where a run is about to begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, Field, create_model

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.policy import SETTINGS, Given
from quantum_orchestrator.blocks.policy_block import PolicyBlock, field_of
from quantum_orchestrator.blocks.policy_file import from_block

_FIELDS: dict[str, Any] = {
    each.field: field_of(each)
    for each in SETTINGS
    if each.name.partition(".")[0] in ("sandbox", "limits") and not each.own
}

if TYPE_CHECKING:
    _Fields = BaseModel
else:
    _Fields = create_model("_Fields", **_FIELDS)


class SandboxBlock(Block, _Fields):
    """How scripts are confined: the sandbox level that they need, and their limits."""

    _block_type_name = "Quantum Orchestrator Sandbox"
    _block_type_slug = "quantum-orchestrator-sandbox"

    def given(self, name: str) -> list[Given]:
        """Its settings; `name` is the block's. Raises InvalidInput for a value that means nothing."""
        values = {field: getattr(self, field) for field in _FIELDS}
        return from_block({field: value for field, value in values.items() if value is not None}, name, "Sandbox block")


class WorkspaceBlock(Block):
    """A folder to work on, on the machines of the workers, and what holds for runs in it."""

    _block_type_name = "Quantum Orchestrator Workspace"
    _block_type_slug = "quantum-orchestrator-workspace"

    path: str = Field(title="Folder", description="Where it is, as an absolute path", pattern="^/")
    sandbox: SandboxBlock | None = Field(None, title="Sandbox", description="How scripts are confined there")
    policy: PolicyBlock | None = Field(None, title="Policy", description="What runs may do there, at most")

    def given(self, name: str) -> list[Given]:
        """What holds there, beside the machine's policy."""
        own = self.sandbox.given(name) if self.sandbox else []
        return [*own, *(self.policy.given(name) if self.policy else [])]


async def workspace_of(name: str) -> tuple[str, list[Given]]:
    """The folder of a block, and what holds in it. Raises UsageError where there is no such block."""
    try:
        block: WorkspaceBlock = await WorkspaceBlock.aload(name)
    except (ValueError, ObjectNotFound) as error:
        raise UsageError(
            f"the Prefect server has no workspace block {name!r}",
            hint="make it in Prefect's UI, after `prefect block register -m quantum_orchestrator.blocks`",
        ) from error
    return block.path, block.given(name)

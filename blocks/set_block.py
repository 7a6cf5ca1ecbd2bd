"""An instruction set that a Prefect server holds for a deployment: a block whose name is the set's digest.

Parameters would be the wrong place for it: Prefect copies those to every flow run that a schedule makes ahead, refuses
more than 512 KiB, and whoever starts a run may give others. Invariant: what `stored` gives is what `store` was given
under that digest, or an error. The block knows no instruction sets; it holds a text. Knows Prefect, and so is imported
only where a deployment is made or run.
"""

from __future__ import annotations

import hashlib

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from quantum_orchestrator.blocks.errors import NeedsAttention


class InstructionSetBlock(Block):
    """The instruction set of a deployment. Its name is the sha256 of the document, so it cannot be edited."""

    _block_type_name = "Quantum Orchestrator Instruction Set"
    _block_type_slug = "quantum-orchestrator-set"

    set_name: str = Field(title="Set", description="What the set is called")
    document: str = Field(title="Document", description="The whole set, as JSON")


def digest_of_text(text: str) -> str:
    """What the block is called."""
    return hashlib.sha256(text.encode()).hexdigest()


def store(set_name: str, document: str) -> str:
    """Keep a document on the server; its digest. One that is there already stays as it is."""
    name = digest_of_text(document)
    block = InstructionSetBlock(set_name=set_name, document=document)
    block.save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]
    return name


async def stored(digest: str) -> str:
    """The document with this digest. Raises NeedsAttention where it is gone, or is another one by now."""
    try:
        block: InstructionSetBlock = await InstructionSetBlock.aload(digest)
    except (ValueError, ObjectNotFound) as error:
        raise NeedsAttention(
            f"the Prefect server has no block 'quantum-orchestrator-set/{digest}', which holds the deployment's set",
            hint="`qo deploy` the set again",
        ) from error
    if digest_of_text(block.document) != digest:
        raise NeedsAttention(
            f"the block 'quantum-orchestrator-set/{digest}' was changed since the set was deployed",
            hint="`qo deploy` the set again",
        )
    return block.document

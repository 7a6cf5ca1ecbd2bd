"""What a file must be before a step changes it: the SHA-256 that the set's author saw.

Every operation that writes files takes one, so that nobody's work is written over unseen. Knows an overlay, and no
operation.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.tree import Kind, Overlay

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""SHA-256 in lower-case hex."""
ExpectedDigest = Annotated[
    Digest | None, Field(description="SHA-256 that the file must have before; the step fails if it is another")
]


def expect(files: Overlay, path: str, expected: str | None) -> None:
    """Raises OperationError, with both digests, unless `path` is a file with the expected one (None: anything is)."""
    if expected is None:
        return
    entry = files.entry(path) if files.kind(path) is Kind.FILE else None
    if entry is None or entry.sha256 != expected:
        found = entry.sha256 if entry else "no file"
        raise OperationError(
            f"{path}: is not what was expected: expected sha256 {expected}, found {found}",
            hint="read the file again and decide on what it is now",
        )

"""What went wrong as data: one JSON document for every error, the same at every door.

The command line prints it with `--json`, the MCP server answers with it. Invariant: whatever was raised becomes an
error of our own tree (`blocks/errors.py`), with what to do next, and never a traceback. It knows no door.
"""

from __future__ import annotations

import errno
from typing import Any

from quantum_orchestrator.blocks.errors import InvalidInput, QuantumError

_SPACE_AND_PERMISSIONS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def as_known(error: Exception) -> QuantumError:
    """The error itself if it was raised on purpose, else what can be said of it."""
    if isinstance(error, QuantumError):
        return error
    if isinstance(error, OSError) and error.errno in _SPACE_AND_PERMISSIONS:
        where = f"{error.filename}: " if error.filename else ""
        known = QuantumError(
            f"{where}{error.strerror}", hint="check the space left and the permissions there; `qo doctor` says more"
        )
        known.exit_code = 4
        return known
    name = type(error).__name__
    return QuantumError(
        f"this is a defect: {name}: {error}" if str(error) else f"this is a defect: {name}", hint="-v shows where"
    )


def error_json(error: QuantumError) -> dict[str, Any]:
    """What --json prints instead of a result: `status` is invalid, with all faults and their places, or error."""
    if not isinstance(error, InvalidInput):
        return {"status": "error", "error": {"type": error.kind, "message": error.message, "hint": error.hint}}
    faults = getattr(error, "as_json", None)
    plain = {"file": "", "line": 0, "column": 0, "pointer": "", "message": error.message, "hint": error.hint}
    return {"status": "invalid", "errors": faults() if faults else [plain]}

"""What a run may touch, and how each touch is made safe.

The Prefect blocks among it are registered by `prefect block register -m quantum_orchestrator.blocks`. They are found
here by their names, and imported only when somebody asks for one: importing Prefect takes two seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

PREFECT_BLOCKS = {
    "InstructionSetBlock": "set_block",
    "ModelBlock": "model_block",
    "PolicyBlock": "policy_block",
    "QualityGate": "quality",
    "SandboxBlock": "workspace_block",
    "WebhookSecret": "webhook_secret",
    "WorkspaceBlock": "workspace_block",
}
"""Name -> the module that has it."""

if not TYPE_CHECKING:  # for type checkers the modules say what they have

    def __getattr__(name: str) -> object:
        if name not in PREFECT_BLOCKS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{PREFECT_BLOCKS[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *PREFECT_BLOCKS})

"""What all `git.*` operations share: what they touch, and how they come to the workspace's repository."""

from __future__ import annotations

from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Commands, Repository
from quantum_orchestrator.tasks.operation import EVERYTHING, Access, Context, Effects

GIT_FOLDER = Access(".git", subtree=True)
"""The repository itself, as one thing that is read or written."""

READS_ALL = Effects(reads=(EVERYTHING,), predictable=False)
WRITES_GIT = Effects(reads=(GIT_FOLDER,), writes=(GIT_FOLDER,), predictable=False, keeps_objects=True)
WRITES_ALL = Effects(reads=(EVERYTHING,), writes=(EVERYTHING,), predictable=False, keeps_objects=True)

PLAIN_DIFF = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=dirty")
"""Options of git diff that no configuration changes."""


def repository_of(context: Context) -> Repository:
    """The workspace's repository, there or not. Raises OperationError when planning."""
    return context.repository or Repository(context.folder, context.policy or Policy())


def commands_of(context: Context, *, files: bool = False) -> Commands:
    """Commands on it, within the instruction's time. Raises OperationError where there is none."""
    return repository_of(context).commands(timeout=context.timeout, cancel=context.cancel, files=files)

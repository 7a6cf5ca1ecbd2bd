"""Operations run one at a time, without an engine: in a workspace in memory, or on a disk for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.tree import Entry, Kind, MemoryTree, Overlay, ancestors, file_entry
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import Context


def tree_of(files: dict[str, str | bytes]) -> MemoryTree:
    """Files in memory."""
    tree = MemoryTree()
    for path, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        for folder in ancestors(path):
            tree.entries[folder] = Entry(Kind.FOLDER, 0o755)
        tree.entries[path] = file_entry(data, 0o644)
        tree.contents[tree.entries[path].sha256] = data
    return tree


def workspace(files: dict[str, str | bytes], **given: Any) -> Context:
    """A workspace in memory."""
    return Context(files=Overlay(tree_of(files)), **given)


def run(name: str, context: Context, **parameters: Any) -> Any:
    chosen = registry.get(name)
    return chosen.run(chosen.parameters.model_validate(parameters), context)


def text(context: Context, path: str) -> str:
    return context.files.read(path).decode()


def project(root: Path, files: dict[str, str]) -> Context:
    """A workspace in a folder."""
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return workspace(dict(files), root=root)

"""Trials: a command is run on a copy of the workspace with some files changed, and the workspace itself stays as it is.

Each trial has a fresh copy, so that none sees what an earlier one has left. What the command changes goes with the
copy. Environments and packages that were installed (`LINKED`) are not copied but linked to; caches and builds are left
out, as they are everywhere (`tasks/scratch.py`).

What is run is as safe as the sandbox makes it, and no safer: the copy protects the workspace, not the machine. This
module knows no operation, and nothing of what is tried.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.sandbox import Completed, Processes
from quantum_orchestrator.blocks.tree import ROOT, Kind, Tree, join, not_a_folder
from quantum_orchestrator.tasks.operation import Context
from quantum_orchestrator.tasks.scratch import EXCLUDED

LINKED = frozenset((".venv", "venv", "node_modules"))
"""Folders that a command may need, and that are too big to be copied."""
MOST_FILES = 20_000
MOST_BYTES = 512 * 1024 * 1024


class Command(Protocol):
    """What is run."""

    @property
    def argv(self) -> list[str] | None:
        """The program and its arguments, or None if `shell` has it."""

    @property
    def shell(self) -> str | None:
        """A text for sh -c."""

    @property
    def cwd(self) -> str:
        """The folder to run in, in the workspace."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How a trial ended. In the outputs, the copy's place is left out: its paths are those of the workspace."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the command succeeded."""
        return self.exit_code == 0

    @property
    def output(self) -> str:
        """Both of its outputs."""
        return "\n".join(filter(None, (self.stdout, self.stderr)))


def try_out(context: Context, command: Command, contents: Mapping[str, bytes], timeout: float | None = None) -> Tried:
    """Run a command on a fresh copy in which files have these contents.

    Raises TimedOut, Interrupted, and OperationError where the workspace is too big to be copied or `cwd` is no folder.
    """
    with tempfile.TemporaryDirectory(prefix="qo-trial-") as folder:
        root = Path(folder).resolve() / "workspace"
        root.mkdir()
        _Copy(context.files, root, context.root).fill()
        for path, content in contents.items():
            _write(context.files, root, path, content)
        return run_in(context, command, root, timeout)


def run_in(context: Context, command: Command, root: Path, timeout: float | None = None) -> Tried:
    """Run a command in a copy that is there."""
    if context.files.kind(command.cwd) is not Kind.FOLDER:
        raise not_a_folder(command.cwd, context.files.kind(command.cwd))
    done = (context.processes or Processes()).run(
        command.argv or ["sh", "-c", command.shell or ""],
        cwd=root / command.cwd,
        env={**context.env, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=timeout if timeout is not None else context.timeout,
        cancel=context.cancel,
        folders=(root.parent,),
    )
    return _tried(done, root)


def _tried(done: Completed, root: Path) -> Tried:
    def text(output: bytes) -> str:
        return output.decode(errors="replace").replace(f"{root}/", "")

    return Tried(done.exit_code, text(done.stdout), text(done.stderr), done.duration)


class _Copy:
    """Fills a folder with what a tree has."""

    def __init__(self, tree: Tree, root: Path, original: Path | None) -> None:
        self._tree = tree
        self._root = root
        self._original = original
        self._files = self._bytes = 0
        self._links: list[tuple[Path, str]] = []

    def fill(self) -> None:
        self._folder(ROOT)
        for place, target in self._links:  # last, so that nothing is written through one
            place.symlink_to(target)

    def _folder(self, folder: str) -> None:
        for name in self._tree.names(folder):
            path = join(folder, name)
            kind = self._tree.kind(path)
            if name in LINKED and kind is Kind.FOLDER:
                if self._original is not None:
                    self._links.append((self._root / path, str(self._original / path)))
            elif kind is Kind.FOLDER and name not in EXCLUDED:
                (self._root / path).mkdir()
                self._folder(path)
            elif kind is Kind.LINK:
                entry = self._tree.entry(path)
                self._links.append((self._root / path, entry.target if entry else ""))
            elif kind is Kind.FILE:
                self._file(path)

    def _file(self, path: str) -> None:
        content = self._tree.read(path)
        self._files, self._bytes = self._files + 1, self._bytes + len(content)
        if self._files > MOST_FILES or self._bytes > MOST_BYTES:
            raise OperationError(
                f"the workspace is too big to try anything on a copy of it (over {MOST_FILES} files or "
                f"{MOST_BYTES // 2**20} MiB)",
                hint="run the set on the part of it that matters, as a workspace of its own",
            )
        _write(self._tree, self._root, path, content)


def _write(tree: Tree, root: Path, path: str, content: bytes) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    entry = tree.entry(path)
    if entry is not None and entry.mode & 0o111:
        place.chmod(0o755)


def most_of(text: str, length: int) -> str:
    """A long output's beginning and end: what went wrong stands at one of them."""
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"

"""A patch of several files, applied to an overlay: all of it or nothing.

As in git, each part is judged against the files as they were before the patch, but for a file that an earlier part of
the same patch has changed: a renamed or copied file is taken as it was at first, so that two files can change places.
Folders that become empty stay. Paths are judged here, when the patch is read: it is the only door they come in by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.blocks.tree import Overlay, not_a_file
from quantum_orchestrator.tasks import patch as unified
from quantum_orchestrator.tasks.patch import FilePatch


@lru_cache(maxsize=8)
def parse(text: str) -> tuple[FilePatch, ...]:
    """Read a patch and judge its paths. Raises BadPatch or PathRefused, with the line in the patch."""
    patches = unified.parse(text)
    for patch in patches:
        for path in (patch.old, patch.new):
            try:
                check_path(patch.path if path is None else path)
            except PathRefused as error:
                raise PathRefused(f"patch: line {patch.patch_line}: {error.message}", hint=error.hint) from error
    return patches


def apply(files: Overlay, patches: tuple[FilePatch, ...]) -> list[str]:
    """Apply the parts; returns the paths of what was written, deleted or moved away, sorted."""
    after = _Results(files, {path for patch in patches if (path := patch.frees) is not None})
    for patch in patches:
        after.take(patch)
    after.commit()
    return sorted(after.files)


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    mode: int


class _Results:
    """What becomes of each path; None for a path at which nothing is left."""

    def __init__(self, before: Overlay, freed: set[str]) -> None:
        self.before = before
        self.freed = freed
        self.files: dict[str, _File | None] = {}

    def take(self, patch: FilePatch) -> None:
        """Work out one part."""
        file = _File(b"", 0o666 & ~self.before.umask) if patch.old is None else self.current(patch, patch.old)
        if patch.new is not None and patch.new != patch.old:
            self.refuse_existing(patch.new)
        result = _File(patch.apply(file.content), _mode(file.mode, patch, self.before.umask))
        if patch.frees is not None and (patch.new is None or patch.frees not in self.files):
            self.files[patch.frees] = None
        if patch.new is not None:
            self.files[patch.new] = result

    def current(self, patch: FilePatch, path: str) -> _File:
        """The file that a part starts from."""
        if path in self.files and patch.new in (None, patch.old):
            found = self.files[path]
            if found is None:
                raise OperationError(f"{path}: an earlier part of the patch has taken it away")
            return found
        kind = self.before.kind(path)
        entry = self.before.entry(path) if kind else None
        if entry is None:
            hint = "a patch that makes a file has /dev/null as the name before: --- /dev/null"
            raise OperationError(not_a_file(path, None).message, hint=hint)
        return _File(self.before.read(path), entry.mode)

    def refuse_existing(self, path: str) -> None:
        """A file is only made where nothing is, or where the patch takes away what is there."""
        is_there = self.files[path] is not None if path in self.files else self.before.kind(path) is not None
        if is_there and (path in self.files or path not in self.freed):
            raise OperationError(
                f"{path}: already exists, and the patch makes it",
                hint="make the patch against the files as they are now",
            )

    def commit(self) -> None:
        """Change the overlay: what goes first, so that a folder can take a file's place."""
        for path in sorted(self.files):
            if self.before.kind(path) is not None and self.files[path] is None:
                self.before.delete(path)
        for path, file in sorted(self.files.items()):
            if file is not None:
                self.before.write(path, file.content, file.mode)


def _mode(mode: int, patch: FilePatch, umask: int) -> int:
    """Git keeps the executable bit alone: it is set for all who may read, and the other bits stay."""
    if patch.executable is None:
        return mode
    return mode | ((mode & 0o444) >> 2 & ~umask) if patch.executable else mode & ~0o111

"""Files as a commit of the workspace's repository has them, in memory: for comparing what is there with what was.

Only reads, through the hardened git of `blocks/repository.py`. Links and submodules are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from quantum_orchestrator.blocks.repository import Commands
from quantum_orchestrator.blocks.tree import Entry, Kind, MemoryTree, ancestors, file_entry, is_within
from quantum_orchestrator.tasks.git_common import commands_of
from quantum_orchestrator.tasks.operation import Context

_MODES = {"100644": 0o644, "100755": 0o755}


def tree_at(context: Context, revision: str, paths: Sequence[str], wanted: Callable[[str], bool]) -> MemoryTree:
    """The wanted files at and below `paths`, as they are in a commit. Raises OperationError if there is none."""
    commands = commands_of(context)
    commit = commands.resolve(revision)
    found = [
        each for each in _listed(commands, commit) if wanted(each[0]) and any(is_within(each[0], p) for p in paths)
    ]
    tree = MemoryTree()
    contents = _contents(commands, [name for _, _, name in found])
    for (path, mode, _), content in zip(found, contents, strict=True):
        for folder in ancestors(path):
            tree.entries[folder] = Entry(Kind.FOLDER, 0o755)
        tree.entries[path] = file_entry(content, mode)
        tree.contents[tree.entries[path].sha256] = content
    return tree


def _listed(commands: Commands, commit: str) -> Iterator[tuple[str, int, str]]:
    """Path, mode and object of every regular file."""
    for each in commands.run("ls-tree", "-r", "-z", "--full-tree", commit, reads=True).fields:
        about, _, path = each.partition("\t")
        mode, _, name = about.split(" ")
        if mode in _MODES:
            yield path, _MODES[mode], name


def _contents(commands: Commands, names: Sequence[str]) -> Iterator[bytes]:
    """The contents of these objects, in their order."""
    if not names:
        return
    asked = "".join(f"{name}\n" for name in names)
    answer = commands.run("cat-file", "--batch", stdin=os.fsencode(asked), reads=True).stdout
    place = 0
    for _ in names:  # "<object> blob <size>\n<content>\n"
        end = answer.index(b"\n", place)
        size = int(answer[place:end].rsplit(b" ", 1)[1])
        yield answer[end + 1 : end + 1 + size]
        place = end + 1 + size + 1

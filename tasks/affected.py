"""What a change reaches: the modules that were changed, and those that import them, directly or through others.

The graph is ruff's (`ruff analyze graph`), of all Python files of the workspace, copied as they are now. A changed
`conftest.py` reaches every module in its folder and below. This module only reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.tree import ROOT, Kind, Tree, is_within, parent
from quantum_orchestrator.tasks.debt import is_test
from quantum_orchestrator.tasks.operation import Context
from quantum_orchestrator.tasks.revisions import tree_at
from quantum_orchestrator.tasks.scratch import PYTHON_SUFFIXES, python_files, scratch_folder

BEFORE_RUN = "run"
"""The name of the state that a run has found."""
_OPTIONS = ("--isolated", "--config", "exclude = []", "--config", 'src = [".", "src", "lib"]')


def affected_tests(context: Context, since: str) -> list[str]:
    """The test modules that the change since then reaches, by path."""
    changed = changed_files(context, since)
    return [path for path in affected(context, changed) if is_test(path) and not path.endswith("conftest.py")]


def affected(context: Context, changed: Iterable[str]) -> list[str]:
    """The Python files that changes of these reach, themselves included, as far as they are there."""
    importers = importers_of(context)
    reached: set[str] = set()
    waiting = list(changed)
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += importers.get(path, ())
            waiting += _configured_by(path, importers)
    return sorted(reached & importers.keys())


def _configured_by(path: str, files: Iterable[str]) -> list[str]:
    if PurePosixPath(path).name != "conftest.py":
        return []
    return [each for each in files if is_within(each, parent(path))]


def importers_of(context: Context) -> Mapping[str, list[str]]:
    """For every Python file of the workspace, those that import it."""
    with scratch_folder(context) as scratch:
        scratch.add_python([ROOT])
        if not scratch.originals:
            return {}
        graph = scratch.graph(*_OPTIONS)
    importers: defaultdict[str, list[str]] = defaultdict(list, {path: [] for path in scratch.originals})
    for path, imported in graph.items():
        for each in imported:
            importers[each].append(path)
    return importers


def changed_files(context: Context, since: str) -> list[str]:
    """The Python files that are not what they were, that came and that went."""
    earlier = _earlier(context, since)
    before, now = _digests(earlier), _digests(context.files)
    return sorted(path for path in before | now if before.get(path) != now.get(path))


def _earlier(context: Context, since: str) -> Tree:
    if since != BEFORE_RUN:
        return tree_at(context, since, [ROOT], lambda path: path.endswith(PYTHON_SUFFIXES))
    if context.before_run is None:
        raise OperationError("there is no run whose beginning could be compared with", hint="give a git revision")
    return context.before_run([ROOT])


def _digests(tree: Tree) -> dict[str, str]:
    found: Sequence[str] = list(python_files(tree, ROOT)) if tree.kind(ROOT) is Kind.FOLDER else []
    entries = {path: tree.entry(path) for path in found}
    return {path: entry.sha256 for path, entry in entries.items() if entry is not None}

"""Which steps need not run, because what they rest on and what they left are as they were; and why the others do.

A step is *reused* when an earlier, committed run of the set in this workspace remembers the step of this id, and

- it is the same step: operation and version of what implements it, parameters after expressions, and for one that
  starts programs the set's `env`, the names of its secrets (never their values) and its `reads` and `writes`;
- everything that it reads is as it was before it ran, down to contents and modes;
- everything that it may write is as it was after it had run: nothing is missing, changed or added.

Then running it would do nothing, and its outputs are the remembered ones. That is only so for operations that are
`cacheable` (`tasks/operation.py`): run once more on what they have left, they leave the same. So what a step may write
counts as its output even where it reads it too. What acts outside of the workspace is never reused, nor is a step of
which nobody knows what it touches.

A step is judged when its turn comes, as steps before it in the same run may have changed what it reads. Pure: a tree
to look at is given, and nothing is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.reuse_store import Remembered, State
from quantum_orchestrator.blocks.tree import ROOT, Entry, Kind, Tree, is_within, join
from quantum_orchestrator.flows.books import owners
from quantum_orchestrator.flows.document import Instruction, InstructionSet
from quantum_orchestrator.flows.plan import WILDCARDS, Graph, Step, access_of_glob
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.file_trees import glob_parts, matches
from quantum_orchestrator.tasks.operation import EVERYTHING, Access, AnyOperation, Effects, Parameters

GIT = ".git"
Excluded = Callable[[str], bool]
"""Whether a path is a cache, of which captures and this take no notice."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a step is reused, and why or why not. `outputs` are those of the run that is remembered."""

    reused: bool
    reason: str
    outputs: Mapping[str, Any] | None = None
    identity: Mapping[str, str] | None = None
    reads: State | None = None
    """What it reads, as it is before it runs. None: it cannot be remembered."""


# Who is asked about.


def is_asked_for(step: Step, document: InstructionSet) -> bool:
    """Whether a step's results are to be reused: it says so, or its set does, or the set that calls that, or the
    operation itself. A step that says no is left alone."""
    asked = step.instruction.cache
    if asked is None:
        asked = step.scope.document.cache
    if asked is None:
        asked = document.cache
    return registry.get(step.instruction.op).pure if asked is None else asked


def may_be_asked_for(document: InstructionSet, graph: Graph) -> bool:
    """Whether it could be of any step of the run: what is worth opening a store for."""
    if document.cache:
        return True
    return any(
        step.deferred_expansion
        or step.scope.document.cache
        or step.instruction.cache
        or (step.instruction.cache is None and registry.get(step.instruction.op).pure)
        for step in graph.steps
    )


def refusal(operation: AnyOperation, instruction: Instruction, effects: Effects) -> str:
    """Why no result of this step can be reused, whatever is remembered; empty if one can."""
    if not (operation.cacheable or operation.pure):
        return f"{operation.name} is never reused"
    if effects.irreversible or effects.barrier or instruction.undo is not None:
        return "it acts outside of the workspace"
    if not effects.predictable and (EVERYTHING in effects.reads or EVERYTHING in effects.writes):
        return "it does not say what it reads and writes"
    return ""


def dependents(graph: Graph, names: Iterable[str]) -> set[str]:
    """The steps of these ids, or inside of one, or around one, and all that come after one of them by any edge."""
    wanted = set(names)
    around = {owner for name in wanted for owner in owners(name)}
    waiting = [step.id for step in graph.steps if step.id in around or not wanted.isdisjoint(owners(step.id))]
    found = set(waiting)
    while waiting:
        for after in graph.successors[waiting.pop()] - found:
            found.add(after)
            waiting.append(after)
    return found


def unknown_ids(document: InstructionSet, names: Iterable[str]) -> list[str]:
    """Those of the ids that no step of the set can have."""
    known = {instruction.id for instruction in document.instructions}
    return [name for name in names if known.isdisjoint(owners(name))]


# What a step is, reads and leaves.


def identity_of(
    step: Step, operation: AnyOperation, parameters: Parameters, effects: Effects, env: Mapping[str, str]
) -> dict[str, str]:
    """What makes it the same step in another run, as digests; the keys are what is said to have changed."""
    identity = {
        "implementation": f"{operation.name}, {registry.version(operation.name)}",
        "parameters": _digest(parameters.model_dump_json()),
    }
    if not effects.predictable:
        around = [sorted(env.items()), sorted(step.instruction.secrets)]
        identity["environment"] = _digest(json.dumps(around))
        identity["reads and writes"] = _digest(json.dumps([step.instruction.reads, step.instruction.writes]))
    return identity


def reads_of(tree: Tree, step: Step, effects: Effects, excluded: Excluded) -> dict[str, Entry | None]:
    """What the step reads, as it is now, but for what it may write."""
    found = _look(tree, effects.reads, _globs(step, effects, "reads"), excluded if not effects.predictable else None)
    own = _globs(step, effects, "writes")
    written = [access.path for access in effects.writes]
    if own is not None:
        return {path: entry for path, entry in found.items() if not _is_meant(path, own)}
    if not written:
        return found
    return {path: entry for path, entry in found.items() if not any(is_within(path, each) for each in written)}


def leaves_of(tree: Tree, step: Step, effects: Effects, excluded: Excluded) -> dict[str, Entry | None]:
    """What is at every path that the step may write."""
    found = _look(tree, effects.writes, _globs(step, effects, "writes"), excluded if not effects.predictable else None)
    found.update((path, tree.entry(path)) for path in effects.makes)
    return found


def _globs(step: Step, effects: Effects, key: str) -> tuple[str, ...] | None:
    """The step's own globs, where they say what it touches."""
    globs: Sequence[str] | None = getattr(step.instruction, key)
    return None if effects.predictable or globs is None else tuple(globs)


def _look(
    tree: Tree, accesses: Iterable[Access], globs: tuple[str, ...] | None, excluded: Excluded | None
) -> dict[str, Entry | None]:
    found: dict[str, Entry | None] = {}
    for access in accesses if globs is None else map(access_of_glob, globs):
        if access.path != ROOT:
            found[access.path] = tree.entry(access.path)
        if access.subtree:
            found.update((path, tree.entry(path)) for path in _below(tree, access.path, excluded))
    return found if globs is None else {path: entry for path, entry in found.items() if _is_meant(path, globs)}


def _below(tree: Tree, top: str, excluded: Excluded | None) -> Iterator[str]:
    """Every path below a folder; none if it is no folder. The repository in the workspace itself is nobody's input."""
    waiting = [top] if tree.kind(top) is Kind.FOLDER else []
    while waiting:
        folder = waiting.pop()
        for name in tree.names(folder):
            path = join(folder, name)
            if path == GIT or (excluded is not None and (name == GIT or excluded(path))):
                continue
            yield path
            if tree.kind(path) is Kind.FOLDER:
                waiting.append(path)


def _is_meant(path: str, globs: tuple[str, ...]) -> bool:
    """Whether a path, or a folder above it, is what one of the globs names."""
    return any(_is_named(path, glob) for glob in globs)


def _is_named(path: str, glob: str) -> bool:
    if not WILDCARDS & set(glob):
        return is_within(path, glob)
    parts = _parts(glob)
    while path != ROOT:
        if matches(parts, path):
            return True
        path = path.rpartition("/")[0] or ROOT
    return False


_parts = lru_cache(maxsize=256)(glob_parts)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


# Judging.


def judge(
    remembered: Remembered | None,
    identity: Mapping[str, str],
    reads: State,
    leaves: Callable[[], State],
    *,
    forced: bool,
) -> Verdict:
    """Whether the step is reused. `leaves` is what is there now of what it may write; asked for only if it matters."""

    def not_reused(reason: str) -> Verdict:
        return Verdict(False, reason, identity=identity, reads=reads)

    if forced:
        return not_reused("forced")
    if remembered is None:
        return not_reused("no committed run is remembered")
    if changed := [what for what in {**remembered.identity, **identity} if not _same(what, remembered, identity)]:
        return not_reused(f"{changed[0]} changed")
    if path := _first_difference(remembered.reads, reads):
        return not_reused(path)
    try:
        now = leaves()
    except OperationError as problem:
        return not_reused(problem.message)
    if path := _first_difference(remembered.leaves, now):
        return not_reused(path)
    reason = f"inputs unchanged since run {remembered.run_id}"
    return Verdict(True, reason, outputs=remembered.outputs, identity=identity, reads=reads)


def _same(what: str, remembered: Remembered, identity: Mapping[str, str]) -> bool:
    return remembered.identity.get(what) == identity.get(what)


def _first_difference(before: State, now: State) -> str:
    """What differs first, by path, in words; empty if nothing does."""
    if before == now:
        return ""
    path = min(path for path in {*before, *now} if before.get(path) != now.get(path))
    if now.get(path) is None:
        return f"{path} is gone"
    return f"{path} changed" if before.get(path) is not None else f"{path} is new"

"""Reuse in one run: asks for what is remembered, has it judged, and remembers what a committed run has done.

Between `flows/reuse.py`, which decides, and the store that keeps. Remembering is the last thing that a run does, after
its COMMIT: a run that was rolled back, kept or cut short has never been, as far as this goes. Whatever is wrong with
the store costs a step's reuse and nothing else. Works in whichever thread it is called in; knows no Prefect.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.reuse_store import Remembered, ReuseStore, State, decode, encode
from quantum_orchestrator.blocks.stamped_tree import StampedTree
from quantum_orchestrator.blocks.tree import Entry, Kind, Tree
from quantum_orchestrator.flows import reuse
from quantum_orchestrator.flows.attempts import EXPECTED
from quantum_orchestrator.flows.books import Books, owners
from quantum_orchestrator.flows.document import InstructionSet
from quantum_orchestrator.flows.expressions import Scope
from quantum_orchestrator.flows.plan import Graph, Step, narrowed, resolved_parameters
from quantum_orchestrator.flows.results import StepResult, StepStatus
from quantum_orchestrator.flows.reuse import Verdict
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import Effects

_UNDECODABLE = (ValueError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller of a run says of reuse."""

    enabled: bool = True
    force: Sequence[str] = ()
    """Ids of steps that run in any case, with all that depend on them."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A step that has run, as it is to be remembered."""

    identity: Mapping[str, str]
    reads: State
    leaves: State


class Memory:
    """What earlier runs of one set have left to be reused; `tree` is the workspace, seen with their stamps."""

    def __init__(self, document: InstructionSet, folder: Path, tree: StampedTree, excluded: reuse.Excluded) -> None:
        self.tree = tree
        self.store = ReuseStore(folder)
        self._document = document
        self._excluded = excluded
        self._rows: dict[str, str] | None = None

    def verdict(self, step: Step, scope: Scope, tree: Tree, *, forced: bool = False) -> Verdict | None:
        """Whether the step is reused, if what it touches is as in `tree`; None where it is not asked for, or the step
        fails before it comes to that."""
        if not reuse.is_asked_for(step, self._document):
            return None
        try:
            return self._verdict(step, scope, tree, forced)
        except EXPECTED:
            return None  # it will say so itself

    def _verdict(self, step: Step, scope: Scope, tree: Tree, forced: bool) -> Verdict:
        operation = registry.get(step.instruction.op)
        parameters = resolved_parameters(step, scope)
        effects = narrowed(operation.effects(parameters), step)
        if why := reuse.refusal(operation, step.instruction, effects):
            return Verdict(False, why)
        env = {**self._document.env, **step.scope.document.env}
        identity = reuse.identity_of(step, operation, parameters, effects, env)
        remembered = self._remembered(step.id)
        try:
            reads = reuse.reads_of(tree, step, effects, self._excluded)
        except (OperationError, PathRefused) as problem:
            return Verdict(False, problem.message)
        return reuse.judge(remembered, identity, reads, lambda: self.leaves(step, effects, tree), forced=forced)

    def leaves(self, step: Step, effects: Effects, tree: Tree) -> dict[str, Entry | None]:
        """What is there of what the step may write."""
        return reuse.leaves_of(tree, step, effects, self._excluded)

    def _remembered(self, step_id: str) -> Remembered | None:
        if self._rows is None:
            self._rows = self.store.load(self._document.name)
        row = self._rows.get(step_id)
        if row is None:
            return None
        try:
            remembered = decode(row)
        except _UNDECODABLE:
            return None
        for path, stamp in remembered.stamps.items():
            entry = remembered.leaves.get(path) or remembered.reads.get(path)
            if entry is not None:
                self.tree.learn(path, stamp, entry.sha256)
        return remembered


class Reusing:
    """Reuse in one run."""

    def __init__(self, run_id: str, graph: Graph, memory: Memory, wishes: Wishes) -> None:
        self._run_id = run_id
        self._memory = memory
        self._forced = reuse.dependents(graph, wishes.force) | set(wishes.force) if wishes.force else set()
        self._done: dict[str, _Done] = {}
        self.tree = memory.tree

    def verdict(self, step: Step, scope: Scope, tree: Tree | None = None) -> Verdict | None:
        """See Memory; without a tree, the workspace as it is."""
        forced = not self._forced.isdisjoint(owners(step.id)) if self._forced else False
        return self._memory.verdict(step, scope, tree or self.tree, forced=forced)

    def all_of(self, steps: Sequence[Step], books: Books) -> list[StepResult]:
        """The results of all these steps, in linear order, if every one of them is reused; none otherwise.

        While all are, none has changed what the next one touches: judged now, each is judged as in its turn.
        """
        found: list[StepResult] = []
        for step in steps:
            plain = not step.deferred_expansion and step.instruction.when is None
            verdict = self.verdict(step, books.scope(step)) if plain else None
            if verdict is None or not verdict.reused:
                for result in found:
                    del books.results[result.id]
                return []
            found.append(StepResult.reused(step.id, step.instruction.op, verdict.outputs, verdict.reason))
            books.set(found[-1])  # those after it may refer to it
        return found

    def has_run(self, step: Step, scope: Scope, verdict: Verdict, tree: Tree | None = None) -> None:
        """The step was not reused, and has run: note what it has left."""
        if verdict.identity is None or verdict.reads is None:
            return
        operation = registry.get(step.instruction.op)
        effects = narrowed(operation.effects(resolved_parameters(step, scope)), step)
        try:
            leaves = self._memory.leaves(step, effects, tree or self.tree)
        except (OperationError, PathRefused):
            self._done.pop(step.id, None)  # what cannot be looked at cannot be remembered
        else:
            self._done[step.id] = _Done(verdict.identity, verdict.reads, leaves)

    def remember(self, set_name: str, results: Mapping[str, StepResult]) -> str:
        """After the run's COMMIT: keep what its steps have come to. What went wrong with that, or nothing."""
        rows = {}
        for step_id, done in self._done.items():
            result = results.get(step_id)
            if result is not None and result.status is StepStatus.SUCCEEDED:
                row = self._row(done, result)
                if row is not None:
                    rows[step_id] = row
        used = [step_id for step_id, result in results.items() if result.status is StepStatus.REUSED]
        if not rows and not used:
            return ""
        try:
            self._memory.store.save(set_name, rows, used)
        except (sqlite3.Error, OSError) as problem:
            return f"nothing of this run can be reused: {self._memory.store.path}: {problem}"
        return ""

    def _row(self, done: _Done, result: StepResult) -> str | None:
        stamps = {**self._stamps(done.reads), **self._stamps(done.leaves)}
        outputs = dict(result.outputs or {})
        return encode(Remembered(self._run_id, done.identity, done.reads, done.leaves, outputs, stamps))

    def _stamps(self, state: State) -> dict[str, str]:
        """Those of the files that are as the step has left them; looked at once, now that the run is over."""
        found: dict[str, str] = {}
        for path, entry in state.items():
            if entry is None or entry.kind is not Kind.FILE:
                continue
            try:
                now = self.tree.entry(path)
            except (OperationError, PathRefused):
                continue  # it cannot be looked at now: without a stamp, its content is compared the next time
            stamp = self.tree.stamp(path, entry.sha256)
            if stamp and now is not None and now.sha256 == entry.sha256:
                found[path] = stamp
        return found

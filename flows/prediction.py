"""The dry run: a plan's steps, one by one in linear order, on an overlay in memory.

A predictable step runs the very code that a run would. What cannot be known before running (a script's effects, a
commit's id, whatever refers to one) is *deferred*: the step is shown with what it may touch, and later steps that
touch the same are deferred too. Where nothing is deferred, a run ends in exactly this prediction.

Nothing here writes; the disk is seen only through the tree that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantum_orchestrator.blocks.errors import OperationError, PolicyRefused, QuantumError
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.tree import ROOT, Change, Overlay, Tree, ancestors, folders_above
from quantum_orchestrator.flows import expressions
from quantum_orchestrator.flows.document import CHECKPOINT, ErrorHandler, OnFailure, RollbackTo
from quantum_orchestrator.flows.guard import ApprovalNeeded, Guards, contents_of
from quantum_orchestrator.flows.plan import (
    Expansion,
    Graph,
    Step,
    connect,
    effects_of,
    expand_step,
    handler_steps,
    is_literal,
    resolved_parameters,
    values_of,
)
from quantum_orchestrator.flows.results import RunValues, StepStatus
from quantum_orchestrator.flows.reuse import Verdict
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import CancelToken, Context, Effects, Unknown

Judge = Callable[[Step, expressions.Scope, Tree], Verdict | None]


@dataclass(frozen=True, slots=True)
class PredictedStep:
    """What the dry run says of one step. `reason` says why it is deferred, skipped or failed."""

    id: str
    op: str
    status: StepStatus
    changes: tuple[Change, ...] = ()
    may_write: tuple[str, ...] = ()
    reason: str = ""
    refused: str = ""
    """The setting that refuses it, if that is why it fails."""
    approval: str = ""
    """What somebody must approve before it, if the policy says so."""


@dataclass(slots=True)
class Prediction:
    """The whole dry run. `changes` are in sum, without what is deferred."""

    steps: list[PredictedStep] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    failure: PredictedStep | None = None
    contents: Overlay | None = None
    checkpoints: dict[str, list[Change]] = field(default_factory=dict)
    """The changes up to each checkpoint, by its name."""

    verdicts: dict[str, str] = field(default_factory=dict)
    """By step, why it is reused, or would not be although that is asked for."""

    @property
    def deferred(self) -> list[PredictedStep]:
        """The steps that only a run can tell."""
        return [step for step in self.steps if step.status is StepStatus.DEFERRED]

    def changes_left(self, on_failure: OnFailure | RollbackTo) -> list[Change]:
        """What differs in the end: where a step fails, no more than is left of what came before."""
        if self.failure is None:
            return self.changes
        if isinstance(on_failure, RollbackTo):
            return self.checkpoints.get(on_failure.rollback_to, [])
        return [] if on_failure is OnFailure.ROLLBACK else self.changes


CALL = "call"


class _StepFailed(Exception):
    def __init__(self, step: PredictedStep) -> None:
        super().__init__(step.reason)
        self.step = step


def predict(
    graph: Graph,
    tree: Tree,
    *,
    policy: Policy | None = None,
    run: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
    to_the_end: bool = False,
) -> Prediction:
    """Run the graph's steps on an overlay over `tree`, which is only read.

    `judge` says of a step whether it is reused, if that is asked for, where the tree is as it is when its turn comes.
    With `to_the_end`, a step that fails does not end it: whoever asks wants to know something of every step.
    """
    return _DryRun(graph, tree, policy or Policy(), run, judge, to_the_end=to_the_end).predict()


class _DryRun:
    def __init__(
        self,
        graph: Graph,
        tree: Tree,
        policy: Policy,
        run: Mapping[str, Any] | None,
        judge: Judge | None,
        *,
        to_the_end: bool,
    ) -> None:
        self._judge = judge
        self._to_the_end = to_the_end
        self._graph = graph
        self._never_cancelled = CancelToken()
        self._base = tree
        self._total = Overlay(tree)
        self._guards = Guards(policy)
        self._run = run
        self._unknown: set[str] = set()  # paths that a deferred step may have changed
        self._above_unknown: set[str] = set()
        self._values = RunValues(graph.groups)
        self._prediction = Prediction(contents=self._total)

    def predict(self) -> Prediction:
        """See the function."""
        try:
            self._run_steps(self._graph)
        except _StepFailed as failed:
            self._prediction.failure = failed.step
        self._prediction.changes = self._total.changes()
        return self._prediction

    def _run_steps(self, graph: Graph) -> None:
        for step in graph.steps:
            predicted = self._one(step, graph.effects)
            self._prediction.steps.append(predicted)
            if predicted.status is StepStatus.FAILED:
                self._handle(step, predicted)

    def _handle(self, step: Step, predicted: PredictedStep) -> None:
        handler = step.instruction.on_error
        if handler == "fail" and not self._to_the_end:
            raise _StepFailed(predicted)
        if isinstance(handler, ErrorHandler):
            self._run_inner(handler_steps(step, handler))

    def _run_inner(self, expansion: Expansion) -> None:
        self._values.groups.update(expansion.groups)
        self._run_steps(connect(expansion))

    def _one(self, step: Step, planned: Mapping[str, Effects]) -> PredictedStep:
        scope = values_of(step, self._values.view(step.scope.prefixes), self._run)
        try:
            if not is_wanted(step, scope):
                return self._finish(step, StepStatus.SKIPPED, reason="its `when` is false")
            if step.deferred_expansion:
                return self._expanded(step)
            effects = planned[step.id] if is_literal(step) else effects_of(step, scope)
            touched = next(self._touches_unknown(effects), None)
            verdict = None if self._judge is None or touched is not None else self._judge(step, scope, self._total)
            if verdict is not None:
                self._prediction.verdicts[step.id] = verdict.reason
                if verdict.reused:
                    return self._finish(step, StepStatus.REUSED, outputs=verdict.outputs, reason=verdict.reason)
            if not effects.predictable:
                return self._acts_by_itself(step, scope, effects)
            if touched is not None:
                return self._deferred(step, effects, f"{touched} depends on a deferred step")
            return self._ran(step, scope)
        except Unknown:
            return self._deferred(step, planned[step.id], "it refers to a deferred step")
        except QuantumError as error:
            failed = self._finish(step, StepStatus.FAILED, reason=error.message)
            return replace(failed, refused=error.hint) if isinstance(error, PolicyRefused) else failed

    def _expanded(self, step: Step) -> PredictedStep:
        expansion = expand_step(step, self._values.view(step.scope.prefixes), self._run or {})
        self._values.groups.update(expansion.groups)
        graph = connect(expansion)
        if step.is_list:  # its rounds stand for themselves
            self._run_steps(graph)
            return self._finish(step, StepStatus.SUCCEEDED)
        outer, first = self._total, len(self._prediction.steps)
        self._total = Overlay(outer)
        try:
            self._run_steps(graph)
            outer.apply(self._total.changes(), self._total.content_of)
        except _StepFailed as failed:
            undone = self._prediction.steps[first:]
            self._prediction.steps[first:] = [_taken_back(each) for each in undone]
            return self._finish(step, StepStatus.FAILED, reason=f"{failed.step.id}: {failed.step.reason}")
        finally:
            self._total = outer
        return self._finish(step, StepStatus.SUCCEEDED)

    def _ran(self, step: Step, scope: expressions.Scope) -> PredictedStep:
        layer, guard = Overlay(self._total), self._guards.of(step.scope.document.trust)
        context = Context(
            layer,
            step_id=step.id,
            set_name=step.scope.document.name,
            policy=guard.policy,
            cancel=self._never_cancelled,
            before_run=lambda _paths: self._base,
        )
        operation, parameters = registry.get(step.instruction.op), resolved_parameters(step, scope)
        approval = _asked(lambda: guard.check(step.id, operation, parameters, _nobody_has_decided))
        outputs = operation.run(parameters, context)
        changes = layer.changes()
        if not guard.idle:
            contents = contents_of(changes, self._total, layer)
            approval += _asked(lambda: guard.check_changes(step.id, changes, contents, _nobody_has_decided))
        self._total.apply(changes, layer.content_of)
        if step.instruction.op == CHECKPOINT:
            self._prediction.checkpoints[outputs.model_dump()["name"]] = self._total.changes()
        finished = self._finish(step, StepStatus.SUCCEEDED, tuple(changes), outputs.model_dump(mode="json"))
        return replace(finished, approval=approval) if approval else finished

    def _acts_by_itself(self, step: Step, scope: expressions.Scope, effects: Effects) -> PredictedStep:
        guard = self._guards.of(step.scope.document.trust)
        if guard.idle or step.instruction.op == CALL:
            return self._deferred(step, effects, "")
        operation = registry.get(step.instruction.op)
        try:
            parameters = resolved_parameters(step, scope)
        except Unknown:
            return self._deferred(step, effects, "it refers to a deferred step")
        approval = _asked(lambda: guard.check(step.id, operation, parameters, _nobody_has_decided))
        return replace(self._deferred(step, effects, ""), approval=approval)

    def _deferred(self, step: Step, effects: Effects, reason: str) -> PredictedStep:
        written = tuple(dict.fromkeys([*(access.path for access in effects.writes), *effects.makes]))
        self._unknown.update(written)
        self._above_unknown |= {*folders_above(written), *([ROOT] if written else [])}
        self._values.set_unknown(step.id)
        return PredictedStep(step.id, step.instruction.op, StepStatus.DEFERRED, may_write=written, reason=reason)

    def _finish(
        self,
        step: Step,
        status: StepStatus,
        changes: tuple[Change, ...] = (),
        outputs: Mapping[str, Any] | None = None,
        reason: str = "",
    ) -> PredictedStep:
        self._values.set(step.id, status, outputs or {})
        return PredictedStep(step.id, step.instruction.op, status, changes, reason=reason)

    def _touches_unknown(self, effects: Effects) -> Iterator[str]:
        if not self._unknown:
            return
        for path in [*(access.path for access in (*effects.reads, *effects.writes)), *effects.makes]:
            if path in self._above_unknown or not self._unknown.isdisjoint((ROOT, *ancestors(path), path)):
                yield path


def _nobody_has_decided(_subject: str) -> None:
    return None


def _asked(check: Callable[[], None]) -> str:
    """What the check asks an approval for. Raises PolicyRefused."""
    try:
        check()
    except ApprovalNeeded as needed:
        return needed.message
    return ""


def _taken_back(step: PredictedStep) -> PredictedStep:
    """A step of a call that fails as a whole, and is undone with it."""
    if step.status is StepStatus.FAILED:
        return step
    return PredictedStep(step.id, step.op, StepStatus.SKIPPED, reason="the call that it is in fails, and is undone")


def is_wanted(step: Step, scope: expressions.Scope) -> bool:
    """Whether the step's `when` holds. Raises OperationError where it is no boolean."""
    condition = step.instruction.when
    if condition is None or step.is_list:
        return True
    value = expressions.evaluate(condition, scope)
    if not isinstance(value, bool):
        raise OperationError(
            f"{step.id}: `when` gave {value!r}, and true or false is needed",
            hint="compare it with something, as in ${{ inputs.level == 'high' }}",
        )
    return value

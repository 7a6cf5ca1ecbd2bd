"""The dry run as the command line gives it: a set, its inputs and a folder in; what would happen out.

Reads the workspace and writes nothing. It puts together what `flows/plan.py`, `flows/prediction.py` and
`flows/plan_file.py` decide, and says it in words and as JSON. It must not import Prefect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks import diff, machine
from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.diff_json import changes_json as changes_json
from quantum_orchestrator.blocks.diff_json import counts_json, renames_json
from quantum_orchestrator.blocks.disk_tree import DiskTree, Look, current_umask
from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import home, policy_path, refuse_overlap, workspace_home
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.profile import Profile
from quantum_orchestrator.blocks.renames import Rename, find_renames
from quantum_orchestrator.blocks.snapshot import Exclusions
from quantum_orchestrator.blocks.stamped_tree import StampedTree
from quantum_orchestrator.blocks.tree import ROOT, Change, Kind, MemoryTree, Tree
from quantum_orchestrator.deployments.cli_options import Source, build_graph
from quantum_orchestrator.deployments.display import mark
from quantum_orchestrator.deployments.screen import aligned, changed_files, human_time, plural
from quantum_orchestrator.flows import expressions
from quantum_orchestrator.flows.estimates import Estimates, Forecast, forecast, places_of
from quantum_orchestrator.flows.expressions import ExpressionError
from quantum_orchestrator.flows.instruction_set import InstructionSet
from quantum_orchestrator.flows.plan import Edge, Graph, Step, values_of
from quantum_orchestrator.flows.plan_file import PlanFile, RecordingTree, predicted_json
from quantum_orchestrator.flows.prediction import PredictedStep, Prediction, predict
from quantum_orchestrator.flows.results import StepStatus
from quantum_orchestrator.flows.reuse import may_be_asked_for
from quantum_orchestrator.flows.reusing import Memory, Reusing, Wishes
from quantum_orchestrator.tasks.operation import Unknown

MOST_EDGES_NAMED = 5
MOST_DETAIL = 60
MOST_STEPS_NAMED = 10
WORTH_TELLING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """A set's graph and what its dry run found in one folder."""

    document: InstructionSet
    inputs: Mapping[str, Any]
    root: Path
    graph: Graph
    prediction: Prediction
    file: PlanFile
    renames: Sequence[Rename] = ()
    patch: str = ""
    counts: diff.DiffCounts = field(default_factory=diff.DiffCounts)

    @property
    def changes(self) -> list[Change]:
        """What would differ in the end: nothing when the run would fail and be rolled back."""
        return self.prediction.changes_left(self.document.on_failure)

    @property
    def has_changes(self) -> bool:
        """Whether a run would change anything, as far as that can be known: a deferred step may."""
        return bool(self.changes) or any(step.may_write for step in self.prediction.deferred)


@contextlib.contextmanager
def tree_of(root: Path) -> Iterator[Tree]:
    """The folder as a tree that is looked at once; an empty one where there is none yet.

    Raises PathRefused at the end if a folder that was looked into has been moved away meanwhile.
    """
    if not root.exists():
        yield MemoryTree(current_umask())
        return
    try:
        folder = ConfinedFolder.open(root)
    except OSError as error:
        raise UsageError(f"the workspace {root} cannot be read: {error.strerror or error}") from error
    with folder, folder.keeping_open() as held:
        yield Look(held, current_umask())
        held.check()


def make_plan(source: Source, inputs: Mapping[str, Any], root: Path, wishes: Wishes | None = None) -> Plan:
    """Plan a set. Raises InvalidInput where its steps have no order, or the policy refuses one of them.

    `wishes` are what a run would be told of reuse.
    """
    refuse_overlap(root)
    document, graph = source.document, build_graph(source, inputs)
    with tree_of(root) as tree:
        policy = Policy.load(policy_path())
        seen, reusing = _with_memory(document, graph, root, tree, policy, wishes or Wishes())
        recording = RecordingTree(seen)
        prediction = predict(graph, recording, policy=policy, judge=None if reusing is None else reusing.verdict)
        content_of = _Contents(prediction, tree)
        plan = Plan(
            document,
            inputs,
            root,
            graph,
            prediction,
            PlanFile(document, inputs, str(root), recording.seen, predicted_json(document, prediction)),
        )
        renames = find_renames(plan.changes, content_of)
        patch = diff.render(plan.changes, content_of, renames=renames)
        counts = diff.statistics(plan.changes, content_of, renames=renames)
    return replace(plan, renames=renames, patch=patch, counts=counts)


def _with_memory(
    document: InstructionSet, graph: Graph, root: Path, tree: Tree, policy: Policy, wishes: Wishes
) -> tuple[Tree, Reusing | None]:
    """The tree, and what earlier runs there have left to be reused, if any step may ask for it."""
    if not isinstance(tree, DiskTree) or not wishes.enabled or not may_be_asked_for(document, graph):
        return tree, None
    stamped = StampedTree(tree.folder, tree.umask)
    memory = Memory(document, workspace_home(root), stamped, Exclusions(policy.snapshot_exclude))
    return stamped, Reusing("", graph, memory, wishes)


def expected(plan: Plan) -> Forecast | None:
    """About how long a run takes, by what earlier ones took; None where that is not known."""
    estimates = Estimates(Profile(home()).load(plan.document.name))
    places = places_of(plan.document, machine.processors())
    return forecast(plan.graph, estimates, parallel=places, capacity=machine.capacity())


class _Contents:
    """Contents by digest: new ones from the overlay, old ones from where they lie."""

    def __init__(self, prediction: Prediction, tree: Tree) -> None:
        self._overlay = prediction.contents
        self._tree = tree
        self._places = {
            change.before.sha256: change.path
            for change in prediction.changes
            if change.before is not None and change.before.kind is Kind.FILE
        }

    def __call__(self, sha256: str) -> bytes:
        if sha256 in self._places:
            return self._tree.read(self._places[sha256])
        assert self._overlay is not None
        return self._overlay.content_of(sha256)


# In words.


def step_list(plan: Plan) -> list[str]:
    """The steps in the order that they would have one by one, and what is said of each."""
    count = plural(len(plan.graph.steps), "step")
    deferred = len(plan.prediction.deferred)
    known = f", {deferred} of them known only when run" if deferred else ""
    lines = [f"{plan.document.name}: {count} in {plan.root}{known}"]
    told = details(plan.graph)
    rows = [
        [f"{mark(step.status)} {step.id}", f"{step.op} {told.get(step.id, '')}".rstrip(), _said(step) + _asks(step)]
        for step in plan.prediction.steps
    ]
    rows += [[f"· {step_id}", op, "not reached"] for step_id, op in _not_reached(plan)]
    return [*lines, *(aligned(rows, "  ") if rows else [])]


def _not_reached(plan: Plan) -> Iterator[tuple[str, str]]:
    looked_at = {step.id for step in plan.prediction.steps}
    for step in plan.graph.steps:
        if step.id not in looked_at:
            yield step.id, step.instruction.op


def _said(step: PredictedStep) -> str:
    if step.status is StepStatus.DEFERRED:
        why = f" ({step.reason})" if step.reason else ""
        return f"deferred{why}: may change {_paths(step.may_write)}"
    if step.status is StepStatus.FAILED:
        return f"would fail: {step.reason.splitlines()[0] if step.reason else 'no reason given'}"
    if step.status is StepStatus.SKIPPED:
        return f"skipped: {step.reason}"
    if step.status is StepStatus.REUSED:
        return f"reused: {step.reason}"
    return f"changes {_paths(tuple(change.path for change in step.changes))}" if step.changes else "changes nothing"


def _asks(step: PredictedStep) -> str:
    return f"; needs an approval: {step.approval}" if step.approval else ""


def _paths(paths: tuple[str, ...]) -> str:
    if not paths:
        return "nothing"
    if ROOT in paths:
        return "anything"
    named = paths[:MOST_EDGES_NAMED]
    return ", ".join(named) + (f" and {len(paths) - len(named)} more" if len(paths) > len(named) else "")


def explanation(edge: Edge) -> str:
    """Why one step waits for another."""
    where = f" ({'the whole workspace' if edge.path == ROOT else edge.path})" if edge.path else ""
    return f"{edge.after} waits for {edge.before}: {edge.reason}{where}"


def reuse_explained(plan: Plan) -> list[str]:
    """Why each step that asks for reuse is not reused; that the others are is in the list of steps."""
    reused = {step.id for step in plan.prediction.steps if step.status is StepStatus.REUSED}
    return [f"{name} runs: {why}" for name, why in plan.prediction.verdicts.items() if name not in reused]


def time_explained(plan: Plan) -> list[str]:
    """About how long a run takes and why, in a line; none where that is not known or nobody would notice."""
    known = expected(plan)
    if known is None or known.seconds < WORTH_TELLING_SECONDS:
        return []
    path = list(known.critical_path)
    if len(path) > MOST_STEPS_NAMED:
        path = [*path[: MOST_STEPS_NAMED - 1], "…", path[-1]]
    return [f"about {human_time(known.seconds)}; critical path {' → '.join(path)}"]


def totals(plan: Plan) -> str:
    """The plan in one line."""
    deferred = plan.prediction.deferred
    more = f", and whatever {plural(len(deferred), 'deferred step')} may change" if deferred else ""
    return changed_files(counts_json(plan.counts)) + more


_TELLING = ("path", "destination", "argv", "shell", "name", "ref", "message", "paths", "url")
_TELL_NOTHING = ("assert", "echo")


def details(graph: Graph) -> dict[str, str]:
    """For each step, in a few words, what it is about: the path, the command, the message."""
    found = {}
    for step in graph.steps:
        told = "" if step.instruction.op in _TELL_NOTHING else next(filter(None, _known_texts(step)), "")
        if told:
            first = told.partition("\n")[0]
            found[step.id] = first if len(first) <= MOST_DETAIL else first[: MOST_DETAIL - 1] + "…"
    return found


def _known_texts(step: Step) -> Iterator[str]:
    """What tells the step from others, the most telling first, as far as its values are known before the run."""
    given = step.instruction.parameters
    for name in _TELLING:
        if name not in given:
            continue
        try:
            value = expressions.evaluate(given[name], values_of(step))
            if value:
                yield " ".join(map(expressions.as_text, value if isinstance(value, list) else [value]))
        except (Unknown, ExpressionError):
            continue  # the run will know, or tell what is wrong with it


# As JSON.


def plan_json(plan: Plan, *, explain: bool = False) -> dict[str, Any]:
    """The document of `qo plan --json`."""
    failure = plan.prediction.failure
    document: dict[str, Any] = {
        "set": plan.document.name,
        "status": "planned" if failure is None else "would_fail",
        "workspace": str(plan.root),
        "digest": plan.file.digest,
        "changes": changes_json(plan.changes),
        "renames": renames_json(plan.renames),
        "diff": counts_json(plan.counts),
        "deferred": [_deferred_json(step) for step in plan.prediction.deferred],
        "steps": [_step_json(plan, step) for step in plan.prediction.steps],
        "failure": None if failure is None else {"id": failure.id, "op": failure.op, "message": failure.reason},
    }
    if explain:
        document["edges"] = [
            {"before": edge.before, "after": edge.after, "reason": edge.reason.value, "path": edge.path}
            for edge in plan.graph.edges
        ]
        known = expected(plan)
        document["estimate"] = known and {"seconds": known.seconds, "critical_path": list(known.critical_path)}
        document["reuse"] = dict(plan.prediction.verdicts)
    return document


def _deferred_json(step: PredictedStep) -> dict[str, Any]:
    return {"id": step.id, "op": step.op, "may_write": list(step.may_write), "reason": step.reason}


def _step_json(plan: Plan, step: PredictedStep) -> dict[str, Any]:
    before = plan.graph.predecessors.get(step.id, set())
    return {
        "id": step.id,
        "op": step.op,
        "status": step.status.value,
        "waits_for": sorted(before, key=plan.graph.position.__getitem__),
        "paths": [change.path for change in step.changes],
        "may_write": list(step.may_write),
        "reason": step.reason,
        "approval": step.approval,
    }

"""Whatever runs in parallel, the tree ends as if the steps had run one by one.

Random sets of file operations over few names, so that they collide, in folders of several modes and among links; most
of them hold steps that fail, which go on. Steps wait for others, refer to what others gave, are skipped, are rounds of
a list and parts of called sets. The parallel run is simulated over a tree in memory: ready steps start in a random
order, each sees the tree of the moment it starts, and its effects arrive at a random later moment.

Whether the rules of the plan are all needed is tested too: without any one of them, some set comes out differently.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from effort import ordinarily
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from without_prefect import without_prefect

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, MemoryTree, Overlay, walk
from quantum_orchestrator.blocks.workspace import DiskTree
from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.hazards import Hazards
from quantum_orchestrator.flows.instruction_set import InstructionSet, load
from quantum_orchestrator.flows.plan import Graph, Reason, Step
from quantum_orchestrator.flows.prediction import is_wanted, predict
from quantum_orchestrator.flows.results import RunValues, StepStatus
from quantum_orchestrator.flows.schedule import ReadyQueue
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import Context, Effects, Unknown

NAMES = ("a", "b", "c")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
texts = st.sampled_from(["", "one\n", "two\n", "one\ntwo\n"])


def operation(op: str, **parameters: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"op": st.just(op), "with": st.fixed_dictionaries(parameters)})


booleans = st.booleans()
edits = st.lists(
    st.fixed_dictionaries({"find": st.sampled_from(["one", "two"]), "replace": texts}), min_size=1, max_size=2
)
instructions = st.one_of(
    operation("file.write", path=paths, content=texts),
    operation("file.write", path=paths, content=texts),
    operation("file.append", path=paths, content=texts),
    operation("file.edit", path=paths, edits=edits),
    operation("file.delete", path=paths, recursive=booleans, missing_ok=booleans),
    operation("file.move", source=paths, destination=paths, overwrite=booleans),
    operation("file.copy", source=paths, destination=paths, overwrite=booleans),
    operation("file.mkdir", path=paths),
    operation("file.chmod", path=paths, mode=st.sampled_from(["0644", "0755", "0700"])),
    operation("file.read", path=paths),
    operation("file.list", path=paths),
    operation(
        "file.set", path=paths.map("{}.json".format), pointer=st.sampled_from(["", "/k"]), value=st.integers(0, 9)
    ),
    st.builds(lambda path, text: {"op": "file.patch", "with": {"patch": patch_of(path, text)}}, paths, texts),
)


def patch_of(path: str, text: str) -> str:
    """Makes the file, or adds a line to `one`."""
    if not text:
        return f"--- a/{path}\n+++ b/{path}\n@@ -1 +1,2 @@\n one\n+more\n"
    lines = text.splitlines()
    added = "".join(f"+{line}\n" for line in lines)
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n{added}"


@st.composite
def documents(draw: st.DrawFn, *, largest: int = 8) -> InstructionSet:
    numbered: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, largest))):
        one = {**draw(instructions), "id": f"s{number}", "on_error": "continue"}
        numbered.append(woven(draw, one, [each["id"] for each in numbered]))
    if draw(st.booleans()):
        numbered = draw(st.permutations(numbered))
    return load(json.dumps({"name": "random", "instructions": numbered}).encode())


def woven(draw: st.DrawFn, one: dict[str, Any], earlier: list[str]) -> dict[str, Any]:
    """The instruction as it is, or in one of the ways in which steps depend on others or become several."""
    way = draw(st.sampled_from(["plain", "plain", "plain", "needs", "when", "for_each", "call", "refers"]))
    if way == "for_each":
        return {**in_rounds(one), "for_each": draw(st.lists(st.sampled_from(NAMES), max_size=3))}
    if way == "call":
        return {"id": one["id"], "op": "call", "with": {"set": {"name": "inner", "instructions": [one]}}}
    if not earlier:
        return one
    other = draw(st.sampled_from(earlier))
    if way == "needs":
        return {**one, "needs": [other]}
    if way == "when":
        return {**one, "when": f"${{{{ steps.{other}.status == '{draw(st.sampled_from(['failed', 'succeeded']))}' }}}}"}
    if way == "refers" and one["op"] == "file.write":
        return {**one, "with": {**one["with"], "content": f"${{{{ steps.{other}.status }}}}"}}
    return one


def in_rounds(one: dict[str, Any]) -> dict[str, Any]:
    """Its path is below the item of each round."""
    inner = {name: f"${{{{ item }}}}/{value}" if name == "path" else value for name, value in one["with"].items()}
    return {**one, "with": inner}


modes = st.sampled_from([0o755, 0o755, 0o700, 0o2775, 0o555])


@st.composite
def trees(draw: st.DrawFn) -> MemoryTree:
    tree = MemoryTree()
    overlay = Overlay(tree)
    for path in draw(st.lists(paths, max_size=5)):
        try:
            add(draw, overlay, path)
        except QuantumError:
            continue  # something else is there already
    tree.apply(overlay.changes(), overlay.content_of)
    return tree


def add(draw: st.DrawFn, overlay: Overlay, path: str) -> None:
    what = draw(st.sampled_from(["file", "file", "file", "json", "folder", "link"]))
    if what == "folder":
        overlay.mkdir(path, draw(modes))
    elif what == "link":
        overlay.link(path, draw(paths))
    elif what == "json":
        overlay.write(f"{path}.json", b'{"k": 1}\n')
    else:
        overlay.write(path, draw(texts).encode(), draw(st.sampled_from([None, 0o600, 0o755])))


def copy_of(tree: MemoryTree) -> MemoryTree:
    copied = MemoryTree(tree.umask)
    copied.entries, copied.contents = dict(tree.entries), dict(tree.contents)
    return copied


def one_by_one(graph: Graph, tree: MemoryTree) -> dict[str, Entry]:
    prediction = predict(graph, tree)
    assert prediction.contents is not None
    result = copy_of(tree)
    result.apply(prediction.changes, prediction.contents.content_of)
    return result.entries


class Simulation:
    """Steps run over a tree in memory; the engine's part is played here, as plainly as can be."""

    def __init__(self, graph: Graph, tree: MemoryTree) -> None:
        self.graph, self.tree = graph, tree
        self.values = RunValues(graph.groups)

    def begin(self, step: Step) -> tuple[Overlay, StepStatus]:
        layer = Overlay(self.tree)
        scope = plan.values_of(step, self.values.view(step.scope.prefixes))
        try:
            if not is_wanted(step, scope):
                return layer, StepStatus.SKIPPED
            if step.deferred_expansion:
                return self.expanded(step)
            registry.get(step.instruction.op).run(plan.resolved_parameters(step, scope), Context(layer))
        except (QuantumError, Unknown):
            return Overlay(self.tree), StepStatus.FAILED
        return layer, StepStatus.SUCCEEDED

    def expanded(self, step: Step) -> tuple[Overlay, StepStatus]:
        """One by one on a layer of its own: what is parallel here is the step with others."""
        inner = plan.expand_step(step, self.values.view(step.scope.prefixes), {})
        self.values.groups.update(inner.groups)
        layer = Overlay(self.tree)
        for each in plan.connect(inner).steps:
            part = Simulation(self.graph, layer)  # type: ignore[arg-type]
            part.values = self.values
            done, status = part.begin(each)
            layer.apply(done.changes(), done.content_of)
            self.values.set(each.id, status, {})
        return layer, StepStatus.SUCCEEDED


def arrive(tree: MemoryTree, changes: list[Change], layer: Overlay) -> None:
    """As the workspace applies changes: a folder that another step has made meanwhile is made already."""
    made = [c for c in changes if c.before is None and c.after is not None and c.after.kind is Kind.FOLDER]
    tree.apply([c for c in changes if c not in made or c.path not in tree.entries], layer.content_of)


def in_parallel(graph: Graph, tree: MemoryTree, chance: random.Random) -> dict[str, Entry]:
    queue = ReadyQueue(graph, parallel=4, duration_of=lambda _step: chance.random())
    result = copy_of(tree)
    simulation = Simulation(graph, result)
    under_way: list[tuple[Step, Overlay, list[Change], StepStatus]] = []
    while True:
        for step in queue.take():
            layer, status = simulation.begin(step)
            under_way.append((step, layer, layer.changes(), status))
        if not under_way:
            return result.entries
        step, layer, changes, status = under_way.pop(chance.randrange(len(under_way)))
        arrive(result, changes, layer)
        simulation.values.set(step.id, status, {})
        queue.finish(step.id)


@settings(max_examples=ordinarily(200, nightly=2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents(), trees(), st.randoms(use_true_random=False))
@pytest.mark.slow
def test_a_parallel_run_leaves_the_tree_of_a_run_one_by_one(
    document: InstructionSet, tree: MemoryTree, chance: random.Random
) -> None:
    graph = plan.build(document, {})
    assert in_parallel(graph, tree, chance) == one_by_one(graph, tree)


# Every rule is needed.


class Breakable(Hazards):
    """The plan's hazards without one rule."""

    without = ""

    def _wait(self, step_id: str, before: str | None, reason: Reason, path: str) -> None:
        if reason != self.without:
            super()._wait(step_id, before, reason, path)

    def _wait_to_make(self, step_id: str, path: str) -> None:
        if self.without != "makes":
            super()._wait_to_make(step_id, path)

    def _way(self, path: str) -> Any:
        above, here = super()._way(path)
        return ([] if self.without == "above" else above), (None if self.without == "below" else here)

    def _record(self, step_id: str, effects: Effects) -> None:
        super()._record(step_id, replace(effects, makes=()) if self.without == "makers" else effects)


def write(path: str, **fields: object) -> dict[str, object]:
    return {"op": "file.write", "with": {"path": path, "content": "new\n"}, **fields}


def copy_to(destination: str, **fields: object) -> dict[str, object]:
    return {"op": "file.copy", "with": {"source": "b", "destination": destination}, **fields}


def mkdir(path: str) -> dict[str, object]:
    return {"op": "file.mkdir", "with": {"path": path}}


NEEDED: dict[str, list[dict[str, object]]] = {
    Reason.READ_WRITE: [write("x"), copy_to("c", needs=["s0"]), write("b")],
    Reason.WRITE_READ: [write("x"), write("b", needs=["s0"]), copy_to("c")],
    Reason.WRITE_WRITE: [mkdir("a"), write("a")],
    "makes": [write("a"), write("a"), write("a"), mkdir("a/a")],
    "makers": [mkdir("a"), write("a")],
    "above": [write("a"), write("a/a")],
    "below": [write("a/a"), write("a")],
}
"""For each rule a set that comes out differently without it. There is a file `b`, and every step goes on."""


@pytest.mark.parametrize("rule", NEEDED)
def test_without_any_one_rule_some_set_comes_out_differently(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [{**step, "id": f"s{number}", "on_error": "continue"} for number, step in enumerate(NEEDED[rule])]
    document = load(json.dumps({"name": "needed", "instructions": steps}).encode())
    tree = MemoryTree()
    overlay = Overlay(tree)
    overlay.write("b", b"old\n")
    tree.apply(overlay.changes(), overlay.content_of)

    def differ(graph: Graph) -> bool:
        expected = one_by_one(graph, tree)
        return any(in_parallel(graph, tree, random.Random(seed)) != expected for seed in range(100))

    assert not differ(plan.build(document, {}))
    monkeypatch.setattr(Breakable, "without", rule)
    monkeypatch.setattr(plan, "Hazards", Breakable)
    assert differ(plan.build(document, {}))


def entries_on_disk(root: Path) -> dict[str, Entry]:
    with ConfinedFolder.open(root) as folder:
        tree = DiskTree(folder)
        found = {path: tree.entry(path) for path in walk(tree)}
    return {path: entry for path, entry in found.items() if entry is not None}


def fill(root: Path, tree: MemoryTree) -> None:
    for path in sorted(tree.entries):
        entry = tree.entries[path]
        if entry.kind is Kind.FOLDER:
            (root / path).mkdir()
        elif entry.kind is Kind.LINK:
            (root / path).symlink_to(entry.target)
        else:
            (root / path).write_bytes(tree.contents[entry.sha256])
            (root / path).chmod(entry.mode)
    for path in sorted(tree.entries, reverse=True):
        if tree.entries[path].kind is Kind.FOLDER:
            (root / path).chmod(tree.entries[path].mode)


def a_real_run_leaves_what_is_predicted(document: InstructionSet, tree: MemoryTree, root: Path) -> None:
    """Over real folders and the journal; byte for byte, modes included."""
    from quantum_orchestrator.flows.orchestrate import run_set
    from quantum_orchestrator.flows.requests import RunRequest

    fill(root, tree)
    predicted = one_by_one(plan.build(document, {}), tree)
    outcome = asyncio.run(run_set(RunRequest(document, {}, root, parallel=4)))
    assert outcome["status"] == "committed"
    assert entries_on_disk(root) == predicted


@settings(max_examples=ordinarily(12, nightly=200), deadline=None, suppress_health_check=list(HealthCheck))
@given(document=documents(largest=6), tree=trees())
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_real_run_leaves_what_the_plan_predicts(
    document: InstructionSet, tree: MemoryTree, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with without_prefect():
        a_real_run_leaves_what_is_predicted(document, tree, tmp_path_factory.mktemp("workspace"))


@settings(max_examples=ordinarily(2, nightly=50), deadline=None, suppress_health_check=list(HealthCheck))
@given(document=documents(largest=6), tree=trees())
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("prefect_server")
def test_so_does_one_whose_steps_are_tasks_of_prefect(
    document: InstructionSet, tree: MemoryTree, tmp_path_factory: pytest.TempPathFactory
) -> None:
    a_real_run_leaves_what_is_predicted(document, tree, tmp_path_factory.mktemp("workspace"))

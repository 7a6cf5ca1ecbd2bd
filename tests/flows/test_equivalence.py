"""Whatever runs in parallel, the tree ends as if the steps had run one by one.

Random sets of file operations over few names, so that they collide; most of them hold steps that fail, which go on. The
parallel run is simulated over a tree in memory: ready steps start in a random order, each sees the tree of the moment
it starts, and its effects arrive at a random later moment.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, MemoryTree, Overlay, walk
from quantum_orchestrator.blocks.workspace import DiskTree
from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.instruction_set import InstructionSet, load
from quantum_orchestrator.flows.plan import Graph, Step
from quantum_orchestrator.flows.prediction import predict
from quantum_orchestrator.flows.schedule import ReadyQueue
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import Context

NAMES = ("a", "b", "c")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
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
)


@st.composite
def documents(draw: st.DrawFn, *, largest: int = 8) -> InstructionSet:
    drawn = draw(st.lists(instructions, min_size=1, max_size=largest))
    numbered = [{**each, "id": f"s{number}", "on_error": "continue"} for number, each in enumerate(drawn)]
    return load(json.dumps({"name": "random", "instructions": numbered}).encode())


@st.composite
def trees(draw: st.DrawFn) -> MemoryTree:
    tree = MemoryTree()
    overlay = Overlay(tree)
    for path in draw(st.lists(paths, max_size=5)):
        try:
            overlay.write(path, draw(texts).encode())
        except QuantumError:
            continue  # a folder is there already
    tree.apply(overlay.changes(), overlay.content_of)
    return tree


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


def effect_of(step: Step, tree: MemoryTree) -> Overlay | None:
    layer = Overlay(tree)
    try:
        parameters = plan.resolved_parameters(step, plan.values_of(step))
        registry.get(step.instruction.op).run(parameters, Context(layer))
    except QuantumError:
        return None
    return layer


def arrive(tree: MemoryTree, changes: list[Change], layer: Overlay) -> None:
    """As the workspace applies changes: a folder that another step has made meanwhile is made already."""
    made = [c for c in changes if c.before is None and c.after is not None and c.after.kind is Kind.FOLDER]
    tree.apply([c for c in changes if c not in made or tree.kind(c.path) is None], layer.content_of)


def in_parallel(graph: Graph, tree: MemoryTree, chance: random.Random) -> dict[str, Entry]:
    queue = ReadyQueue(graph, parallel=4, duration_of=lambda _step: chance.random())
    result = copy_of(tree)
    under_way: list[tuple[Step, Overlay | None, list[Change]]] = []
    while True:
        for step in queue.take():
            layer = effect_of(step, result)
            under_way.append((step, layer, layer.changes() if layer else []))
        if not under_way:
            return result.entries
        step, layer, changes = under_way.pop(chance.randrange(len(under_way)))
        if layer is not None:
            arrive(result, changes, layer)
        queue.finish(step.id)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents(), trees(), st.randoms(use_true_random=False))
@pytest.mark.slow
def test_a_parallel_run_leaves_the_tree_of_a_run_one_by_one(
    document: InstructionSet, tree: MemoryTree, chance: random.Random
) -> None:
    graph = plan.build(document, {})
    assert in_parallel(graph, tree, chance) == one_by_one(graph, tree)


def entries_on_disk(root: Path) -> dict[str, Entry]:
    with ConfinedFolder.open(root) as folder:
        tree = DiskTree(folder)
        found = {path: tree.entry(path) for path in walk(tree)}
    return {path: entry for path, entry in found.items() if entry is not None}


def fill(root: Path, tree: MemoryTree) -> None:
    for path in sorted(tree.entries):
        entry = tree.entries[path]
        if entry.kind is Kind.FOLDER:
            (root / path).mkdir(mode=entry.mode)
        else:
            (root / path).write_bytes(tree.contents[entry.sha256])
            (root / path).chmod(entry.mode)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=documents(largest=6), tree=trees())
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_real_run_leaves_what_the_plan_predicts(
    document: InstructionSet, tree: MemoryTree, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Over real folders, the journal and Prefect; byte for byte, modes included."""
    from quantum_orchestrator.flows.orchestrate import RunRequest, run_set

    root = tmp_path_factory.mktemp("workspace")
    fill(root, tree)
    predicted = one_by_one(plan.build(document, {}), tree)
    outcome = asyncio.run(run_set(RunRequest(document, {}, root, parallel=4)))
    assert outcome["status"] == "committed"
    assert entries_on_disk(root) == predicted

"""The order between steps: expansion, linear order and hazards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import InvalidInput
from quantum_orchestrator.flows import plan
from quantum_orchestrator.flows.instruction_set import load
from quantum_orchestrator.flows.plan import Graph, Reason, access_of_glob


def graph_of(*instructions: Mapping[str, Any], given: Mapping[str, Any] | None = None, **fields: Any) -> Graph:
    document = {"name": "test", "instructions": list(instructions), **fields}
    return plan.build(load(json.dumps(document).encode()), given or {})


def step(step_id: str, op: str, /, **parameters: Any) -> dict[str, Any]:
    return {"id": step_id, "op": op, "with": parameters}


def write(step_id: str, path: str, **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "file.write", "with": {"path": path, "content": step_id}, **fields}


def read(step_id: str, path: str) -> dict[str, Any]:
    return step(step_id, "file.read", path=path)


def echo(step_id: str, message: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "echo", "with": {"message": message}, **fields}


def edges(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.before, edge.after) for edge in graph.edges}


def reasons(graph: Graph) -> set[tuple[str, str, Reason, str]]:
    return {(edge.before, edge.after, edge.reason, edge.path) for edge in graph.edges}


def test_writers_of_different_files_are_independent() -> None:
    assert edges(graph_of(write("a", "x/1"), write("b", "x/2"))) == set()


def test_a_reader_waits_for_the_writer_before_it() -> None:
    assert reasons(graph_of(write("a", "x"), read("b", "x"))) == {("a", "b", Reason.WRITE_READ, "x")}


def test_a_writer_waits_for_the_readers_before_it() -> None:
    graph = graph_of(read("a", "x"), read("b", "x"), write("c", "x"))
    assert reasons(graph) == {("a", "c", Reason.READ_WRITE, "x"), ("b", "c", Reason.READ_WRITE, "x")}


def test_writers_of_one_file_keep_their_order() -> None:
    assert ("a", "b", Reason.WRITE_WRITE, "x") in reasons(graph_of(write("a", "x"), write("b", "x")))


def test_a_write_supersedes_what_came_before_it() -> None:
    graph = graph_of(write("a", "x"), write("b", "x"), read("c", "x"))
    assert ("a", "c") not in edges(graph)


def test_a_folder_is_touched_through_what_is_in_it() -> None:
    graph = graph_of(write("a", "src/x"), step("b", "file.delete", path="src", recursive=True), write("c", "src/y"))
    assert edges(graph) >= {("a", "b"), ("b", "c")}


def test_making_the_same_folder_commutes() -> None:
    graph = graph_of(step("a", "file.mkdir", path="src"), write("b", "src/x"), step("c", "file.mkdir", path="src"))
    assert edges(graph) == set()


def test_changing_a_folders_mode_waits_for_the_files_that_make_it() -> None:
    graph = graph_of(write("a", "src/x"), step("b", "file.chmod", path="src", mode="0700"), write("c", "src/y"))
    assert edges(graph) >= {("a", "b"), ("b", "c")}


def test_listing_waits_for_the_files_below_and_not_for_those_beside() -> None:
    graph = graph_of(write("a", "src/x"), write("b", "doc/x"), step("c", "file.list", path="src"))
    assert edges(graph) == {("a", "c")}


def test_a_script_that_says_nothing_touches_everything() -> None:
    graph = graph_of(write("a", "x"), step("b", "script.run", argv=["true"]), write("c", "y"))
    assert edges(graph) == {("a", "b"), ("b", "c")}


def test_a_script_touches_only_what_it_says() -> None:
    script = {**step("b", "script.run", argv=["true"]), "reads": ["src/**/*.py"], "writes": ["out/*.txt"]}
    graph = graph_of(write("a", "src/x.py"), write("a2", "doc/x"), script, write("c", "out/y"), write("d", "other"))
    assert edges(graph) == {("a", "b"), ("b", "c")}


@pytest.mark.parametrize(
    ("glob", "path"),
    [("**", "."), ("src/**/*.py", "src"), ("src/x.py", "src/x.py"), ("*.txt", "."), ("a/b?/c", "a"), ("a[0-9]", ".")],
)
def test_a_glob_covers_the_folder_before_its_first_wildcard(glob: str, path: str) -> None:
    assert access_of_glob(glob).path == path


def test_a_reference_is_a_dependency() -> None:
    graph = graph_of(echo("a"), echo("b", "${{ steps.a.outputs.message }}"))
    assert reasons(graph) == {("a", "b", Reason.REFERENCE, "")}


def test_needs_may_point_forwards_and_changes_the_order() -> None:
    graph = graph_of(echo("a", needs=["b"]), echo("b"))
    assert [each.id for each in graph.steps] == ["b", "a"]


def test_a_ring_is_printed() -> None:
    with pytest.raises(InvalidInput, match=r"a → .*b → .*|b → .*a → .*"):
        graph_of(echo("a", needs=["b"]), echo("b", needs=["a"]))


def test_a_barrier_lets_nothing_past() -> None:
    graph = graph_of(write("a", "x"), step("b", "approval", message="go on?"), write("c", "y"), write("d", "z"))
    assert edges(graph) == {("a", "b"), ("b", "c"), ("b", "d")}


def test_what_cannot_be_undone_comes_last() -> None:
    graph = graph_of(step("push", "git.push"), write("a", "x"), write("b", "y"))
    assert [each.id for each in graph.steps] == ["a", "b", "push"]
    assert edges(graph) >= {("a", "push"), ("b", "push")}


def test_what_has_an_undo_keeps_its_place() -> None:
    push = {**step("push", "git.push"), "undo": echo("sorry")}
    assert [each.id for each in graph_of(push, write("a", "x")).steps] == ["push", "a"]


def test_what_refers_to_something_irreversible_comes_after_it() -> None:
    fetch = step("call", "http.request", method="POST", url="https://example.org/")
    graph = graph_of(fetch, echo("after", "${{ steps.call.outputs.body }}"), write("a", "x"))
    assert [each.id for each in graph.steps] == ["a", "call", "after"]


def test_a_sequential_set_is_a_chain() -> None:
    assert edges(graph_of(echo("a"), echo("b"), echo("c"), order="sequential")) == {("a", "b"), ("b", "c")}


def test_an_explicit_set_has_the_edges_that_it_names() -> None:
    graph = graph_of(write("a", "x"), read("b", "x"), echo("c", needs=["a"]), order="explicit")
    assert edges(graph) == {("a", "c")}


def test_an_explicit_set_may_not_leave_two_writers_unordered() -> None:
    with pytest.raises(InvalidInput, match="'a' and 'b' both write x"):
        graph_of(write("a", "x"), write("b", "x"), order="explicit")
    graph_of(write("a", "x"), write("b", "x", needs=["a"]), order="explicit")


def test_for_each_over_a_list_becomes_numbered_steps() -> None:
    graph = graph_of({**step("w", "file.write", path="${{ item }}", content=""), "for_each": ["x", "y"]})
    assert [each.id for each in graph.steps] == ["w[0]", "w[1]"]
    assert edges(graph) == set()


def test_for_each_over_an_input_is_known_before_the_run() -> None:
    rounds = {**step("w", "file.write", path="${{ item }}", content=""), "for_each": "${{ inputs.files }}"}
    graph = graph_of(rounds, given={"files": ["x", "y", "z"]}, inputs={"files": {"type": "array"}})
    assert len(graph.steps) == 3


def test_for_each_over_outputs_waits_for_the_run() -> None:
    rounds = {**step("w", "file.write", path="${{ item }}", content=""), "for_each": "${{ steps.l.outputs.paths }}"}
    graph = graph_of(step("l", "file.list"), rounds, read("r", "elsewhere"))
    assert [each.id for each in graph.steps if each.deferred_expansion] == ["w"]
    assert ("w", "r") in edges(graph)  # it may write anything


def test_a_called_sets_steps_are_named_after_the_call_and_ordered_with_the_rest() -> None:
    called = {"name": "inner", "instructions": [write("one", "x"), read("two", "y")]}
    graph = graph_of(write("before", "y"), step("c", "call", set=called), read("after", "x"))
    assert [each.id for each in graph.steps] == ["before", "c/one", "c/two", "after"]
    assert edges(graph) == {("before", "c/two"), ("c/one", "after")}


def test_what_a_call_needs_each_of_its_steps_needs() -> None:
    called = {"name": "inner", "instructions": [echo("one"), echo("two")]}
    graph = graph_of(echo("a"), {**step("c", "call", set=called), "needs": ["a"]}, echo("b", needs=["c"]))
    assert edges(graph) == {("a", "c/one"), ("a", "c/two"), ("c/one", "b"), ("c/two", "b")}


def test_a_call_that_may_be_skipped_stays_one_step_until_it_runs() -> None:
    called = {"name": "inner", "instructions": [write("one", "x")]}
    graph = graph_of({**step("c", "call", set=called), "when": "${{ 1 == 2 }}"}, read("r", "x"), read("q", "z"))
    assert [each.id for each in graph.steps] == ["c", "r", "q"]
    assert edges(graph) == {("c", "r")}


def test_an_error_handlers_effects_count() -> None:
    risky = {**read("a", "x"), "on_error": {"run": [write("repair", "y")]}}
    assert edges(graph_of(risky, read("b", "y"))) == {("a", "b")}

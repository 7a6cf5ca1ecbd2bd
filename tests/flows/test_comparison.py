"""A plan against what its run did, where a whole run would be much ado; `qo diff --against` has the rest."""

from __future__ import annotations

import pytest

from quantum_orchestrator.blocks.tree import Change, Entry, Kind, MemoryTree, file_entry
from quantum_orchestrator.flows.comparison import Outcome, compare
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import build
from quantum_orchestrator.flows.plan_file import predicted_json
from quantum_orchestrator.flows.prediction import predict

NOTHING = {"changes": [], "deferred": []}


def test_a_step_that_touched_a_path_twice_is_named_once() -> None:
    (found,) = compare(NOTHING, [Change("a", None, file_entry(b"", 0o644))], {"a": ["one", "two", "one"]})
    assert (found.outcome, found.steps) == (Outcome.NOT_PREDICTED, ("one", "two"))


def test_what_was_to_go_and_stayed_is_there() -> None:
    before = {"kind": "file", "mode": "0644", "sha256": file_entry(b"", 0o644).sha256, "target": ""}
    predicted = {"changes": [{"path": "a", "before": before, "after": None}], "deferred": []}
    (found,) = compare(predicted, [Change("a", file_entry(b"", 0o644), file_entry(b"", 0o600))], {})
    assert (found.outcome, found.how) == (Outcome.DIFFERENT, ("is there",))


def test_another_target_of_a_link_is_a_difference() -> None:
    link = {"kind": "link", "mode": "0777", "sha256": "", "target": "here"}
    predicted = {"changes": [{"path": "a", "before": None, "after": link}], "deferred": []}
    (found,) = compare(predicted, [Change("a", None, Entry(Kind.LINK, 0o777, target="there"))], {})
    assert found.how == ("another target",)


@pytest.mark.parametrize(("on_failure", "promised"), [("rollback", []), ("keep", ["a"])])
def test_a_plan_that_fails_promises_what_a_run_would_leave(on_failure: str, promised: list[str]) -> None:
    write = {"id": "write", "op": "file.write", "with": {"path": "a", "content": "a"}}
    gone = {"id": "gone", "op": "file.delete", "with": {"path": "b"}, "needs": ["write"]}
    document = load_object({"name": "test", "on_failure": on_failure, "instructions": [write, gone]}, file="set.json")
    predicted = predicted_json(document, predict(build(document, {}), MemoryTree()))
    assert [change["path"] for change in predicted["changes"]] == promised

"""`llm.fix` on seeded faults: right answers end green, all others leave the tree untouched."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import OfflineCannot, OperationError
from quantum_orchestrator.blocks.sandbox import Processes
from quantum_orchestrator.blocks.tree import Change, Kind, MemoryTree, Overlay, digest
from quantum_orchestrator.tasks.llm_fix import Fix, FixOutputs, FixParameters
from quantum_orchestrator.tasks.model_edits import edits_between
from quantum_orchestrator.tasks.operation import Context
from tests.effort import ordinarily
from tests.model_double import Payload, Replayed, models_saying, offline_models
from tests.tasks.seeded_faults import BY_RULE, COMMAND, FAULTS, ONE_OF_EACH_KIND, PACKAGES, Fault

of_faults = pytest.mark.parametrize("fault", ordinarily(ONE_OF_EACH_KIND, nightly=FAULTS), ids=str)
of_some_faults = pytest.mark.parametrize("fault", ordinarily(ONE_OF_EACH_KIND[-2:], nightly=FAULTS), ids=str)

PROCESSES = Processes()
"""One for all tests, so that all that they start has one supervisor."""


class Bench:
    """A workspace in memory, and one repair in it."""

    def __init__(self, files: Mapping[str, bytes], state: Path) -> None:
        self.tree = MemoryTree()
        overlay = Overlay(self.tree)
        for path, content in files.items():
            overlay.write(path, content)
        self.tree.apply(overlay.changes(), overlay.content_of)
        self.files = Overlay(self.tree)
        self.logged: list[str] = []
        self.model = Replayed([])
        self._state = state
        self._stack = ExitStack()

    def fix(self, *payloads: Payload, **parameters: Any) -> FixOutputs:
        """Repair; offline without payloads."""
        self.model = Replayed(payloads)
        models, journal = models_saying(self.model, self._state) if payloads else offline_models(self._state)
        self._stack.callback(journal.close)
        given = FixParameters.model_validate({"argv": COMMAND, "paths": ["."], **parameters})
        context = Context(self.files, step_id="step", models=models, log=self.logged.append, processes=PROCESSES)
        return Fix().run(given, context)

    @property
    def changed(self) -> dict[str, bytes]:
        """What the repair would write."""
        return {each.path: self.content(each) for each in self.files.changes()}

    def content(self, change: Change) -> bytes:
        assert change.after is not None
        return self.files.content_of(change.after.sha256) if change.after.kind is Kind.FILE else b""

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module", autouse=True)
def _processes() -> Iterator[None]:
    yield
    PROCESSES.close()


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[Callable[[Mapping[str, bytes]], Bench]]:
    with ExitStack() as stack:

        def made(files: Mapping[str, bytes]) -> Bench:
            bench = Bench(files, tmp_path / "state")
            stack.callback(bench.close)
            return bench

        yield made


BenchOf = Callable[[Mapping[str, bytes]], Bench]


def payload(path: str, *edits: tuple[str, str], sha256: str = "") -> Payload:
    version = {"sha256": sha256} if sha256 else {}
    found = [{"path": path, "search": search, "replace": replacement, **version} for search, replacement in edits]
    return {"diagnosis": "It is written wrongly.", "edits": found}


def edit_of(fault: Fault) -> tuple[str, str]:
    """The right edit."""
    (edit,) = edits_between(fault.module, fault.files[fault.module], repaired(fault)[fault.module])
    return edit.search, edit.replace


def right(fault: Fault) -> Payload:
    return payload(fault.module, edit_of(fault))


def repaired(fault: Fault) -> dict[str, bytes]:
    return {fault.module: PACKAGES[fault.package][0].encode()}


# Answers that are right.


@of_faults
def test_a_right_answer_ends_green(fault: Fault, bench_of: BenchOf) -> None:
    bench = bench_of(fault.files)
    outputs = bench.fix(right(fault))
    assert (outputs.passed, outputs.attempts, outputs.changed) == (True, 1, [fault.module])
    assert bench.changed == repaired(fault)
    assert outputs.diagnosis is not None
    assert outputs.diagnosis.explanation == "It is written wrongly."


# Answers that are almost right.


def ambiguous(fault: Fault) -> Payload:
    return payload(fault.module, ("return", "return"), edit_of(fault))


def indented(fault: Fault) -> Payload:
    """The lines of the search are each moved by another width, so that there is no one thing that could be meant."""
    search, replacement = edit_of(fault)
    lines = ["def absent():", *search.splitlines()]
    moved = "\n".join(f"{' ' * number}{line}" for number, line in enumerate(lines))
    return payload(fault.module, (moved, replacement))


def stale(fault: Fault) -> Payload:
    return payload(fault.module, edit_of(fault), sha256=digest(b"an older version"))


ALMOST = (ambiguous, indented, stale)
EACH = [(fault, almost) for fault in FAULTS for almost in ALMOST]
SOME = list(zip(ONE_OF_EACH_KIND, itertools.cycle(ALMOST), strict=False))[: len(ALMOST)]


@pytest.mark.parametrize(
    ("fault", "almost"), ordinarily(SOME, nightly=EACH), ids=lambda each: getattr(each, "__name__", str(each))
)
def test_an_answer_that_is_almost_right_is_refused_and_told_so_and_the_right_one_taken(
    fault: Fault, almost: Callable[[Fault], Payload], bench_of: BenchOf
) -> None:
    bench = bench_of(fault.files)
    outputs = bench.fix(almost(fault), right(fault))
    assert (outputs.passed, outputs.attempts) == (True, 2)
    assert bench.changed == repaired(fault)
    assert "the answer cannot be used" in bench.model.asked[1].messages[-1].text


# Answers that are wrong.


def wrong(fault: Fault) -> Payload:
    """An edit that can be made, and repairs nothing."""
    search, _ = edit_of(fault)
    return payload(fault.module, (search, search + "# It is as it should be.\n"))


@of_some_faults
def test_wrong_answers_leave_the_tree_untouched_and_the_error_has_the_diagnosis(
    fault: Fault, bench_of: BenchOf
) -> None:
    bench = bench_of(fault.files)
    with pytest.raises(OperationError, match=r"(?s)not repaired.*diagnosis: ") as caught:
        bench.fix(stale(fault), wrong(fault), attempts=2)
    assert bench.changed == {}
    assert "It is written wrongly." in caught.value.message


# Without a model.


@pytest.mark.parametrize("fault", ordinarily(ONE_OF_EACH_KIND[:5], nightly=FAULTS), ids=str)
def test_without_a_model_rules_repair_what_they_can_and_say_what_they_cannot(fault: Fault, bench_of: BenchOf) -> None:
    bench = bench_of(fault.files)
    if fault.kind in BY_RULE:
        outputs = bench.fix()
        assert outputs.passed
        assert outputs.provider == "offline"
        assert bench.changed.keys() == {fault.module}
    else:
        with pytest.raises(OperationError, match=r"(?s)diagnosis: .*\w+\.py:\d+: ") as caught:
            bench.fix()
        assert isinstance(caught.value, OfflineCannot) or "not repaired" in caught.value.message
        assert bench.changed == {}

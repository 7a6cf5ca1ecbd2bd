"""The table fault × operation: all ways in which a server or a model goes wrong, through all operations that ask one.

Whatever happens, a run ends in one of two ways: all of what the operation is for, or nothing and an error of our tree;
no budget is broken. A new operation joins by one entry in `CASES`. The outcomes are written down in `docs/models.md`,
and this test says where that page is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.flows.results import RunStatus
from quantum_orchestrator.tasks import registry
from tests.llm_runs import LlmRun
from tests.messages_server import FAULTS, Fault, MessagesServer, Say, messages_server

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by tests/tasks/test_llm_faults.py -->", "<!-- end -->"
NOT_HERE = frozenset[str]()
"""Operations whose outcomes are another test's matter; none, as long as this is complete."""


@dataclass(frozen=True)
class Case:
    """An operation that asks a model, what it is given, and what a model answers that does its work."""

    parameters: Mapping[str, Any]
    right: Say
    files: Mapping[str, str] = field(default_factory=dict)
    changes: bool = True
    """Whether it changes files when it has succeeded."""


EDITS = [{"path": "greeting.txt", "search": "Helo, world.", "replace": "Hello, world."}]
FINDING = {"path": "app.py", "line": 2, "severity": "error", "confidence": 0.9, "message": "It divides by zero."}
BEGIN_IT = {"id": "begin", "op": "file.write", "with": {"path": "CHANGELOG.md", "content": "# Changelog"}}
CHANGELOG = {"version": 1, "name": "changelog", "instructions": [BEGIN_IT]}
CASES: Mapping[str, Case] = {
    "llm.generate": Case({"prompt": "Write a greeting.", "path": "greeting.txt"}, Say("Hello, world.\n")),
    "llm.generate by schema": Case(
        {
            "prompt": "Name a port.",
            "path": "port.json",
            "schema": {
                "type": "object",
                "properties": {"port": {"type": "integer"}},
                "required": ["port"],
                "additionalProperties": False,
            },
        },
        Say(payload={"port": 8080}),
    ),
    "llm.edit": Case(
        {"instruction": "Correct the spelling.", "paths": ["greeting.txt"]},
        Say(payload={"summary": "Spelt right.", "edits": EDITS}),
        {"greeting.txt": "Helo, world.\n"},
    ),
    "llm.fix": Case(
        {"shell": "grep -q Hello greeting.txt", "paths": ["greeting.txt"]},
        Say(payload={"diagnosis": "A letter is missing.", "edits": EDITS}),
        {"greeting.txt": "Helo, world.\n"},
    ),
    "llm.analyze": Case(
        {"changed": ["app.py"]},
        Say(payload={"summary": "One thing.", "findings": [FINDING], "likely_to_break": []}),
        {"app.py": "def half(number):\n    return number / 0\n"},
        changes=False,
    ),
    "llm.plan": Case({"goal": "Begin a changelog.", "path": "plan.json"}, Say(payload={"set": CHANGELOG})),
    "llm.document": Case(
        {"paths": ["app.py"]},
        Say(payload={"docstrings": [{"name": "double", "text": "Twice the number."}]}),
        {"app.py": '"""Numbers."""\n\n\ndef double(number: int) -> int:\n    return 2 * number\n'},
    ),
    "llm.diagnose": Case(
        {"failure": "make: *** [all] Error 2"},
        Say(payload={"explanation": "A target cannot be made.", "advice": "Read what came before."}),
        changes=False,
    ),
    "llm.optimize": Case(
        {"benchmark": ["true"], "test": ["true"], "paths": ["greeting.txt"], "attempts": 1},
        Say(payload={"suggestions": [], "edits": []}),
        {"greeting.txt": "Helo, world.\n"},
        changes=False,
    ),
}
"""By the operation's name, with what is special about it behind a blank."""


@pytest.fixture(scope="module")
def server() -> Iterator[MessagesServer]:
    with messages_server() as running:
        yield running


def outcome(server: MessagesServer, case: str, fault: Fault, folder: Path) -> str:
    """What a run with this fault came to, in a few words."""
    given = CASES[case]
    settings = server.says(*fault.says(given.right)).settings(
        streaming=fault.streaming, timeout=fault.patience, tries=2
    )
    run = LlmRun(folder, settings, files=given.files, budget={"calls": 6, "attempts": 8, "tokens": 400_000})
    before = run.state()
    ended = run.step(case.partition(" ")[0], given.parameters)
    models = run.spent()
    assert models.calls <= 6
    assert models.attempts <= 8
    assert models.tokens <= 400_000
    assert len(server.asked) <= models.attempts
    if ended.status is RunStatus.COMMITTED:
        assert (run.state() != before) is given.changes
        return "done"
    assert run.state() == before, "a half-applied answer"
    assert ended.error is not None
    return ended.error.kind


@pytest.mark.parametrize("fault", FAULTS, ids=[each.name for each in FAULTS])
@pytest.mark.parametrize("case", CASES)
def test_a_fault_leaves_all_or_nothing(server: MessagesServer, tmp_path: Path, case: str, fault: Fault) -> None:
    found = outcome(server, case, fault, tmp_path)
    assert found == recorded()[fault.name][case], f"{PAGE.name} says otherwise of {fault.name!r}"
    if fault.heals:
        assert found == "done"


@pytest.mark.parametrize("case", CASES)
def test_a_right_answer_does_the_work(server: MessagesServer, tmp_path: Path, case: str) -> None:
    run = LlmRun(tmp_path, server.says(CASES[case].right).settings(), files=CASES[case].files)
    assert run.step(case.partition(" ")[0], CASES[case].parameters).status is RunStatus.COMMITTED


def test_every_operation_that_asks_a_model_is_in_the_table() -> None:
    asking = {name for name in registry.every() if name.startswith("llm.")}
    assert asking - {case.partition(" ")[0] for case in CASES} == NOT_HERE


def recorded() -> dict[str, dict[str, str]]:
    """The outcomes as the page has them, by fault and case."""
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    first, _, *rows = [[each.strip(" `") for each in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    return {row[0]: dict(zip(first[1:], row[1:], strict=True)) for row in rows}


def written(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """The table of the page."""
    lines = [
        f"| the server or the model | {' | '.join(f'`{case}`' for case in CASES)} |",
        "| --- " * (len(CASES) + 1) + "|",
    ]
    lines += [f"| {fault} | {' | '.join(of[case] for case in CASES)} |" for fault, of in outcomes.items()]
    return "\n".join(lines)


def main() -> None:
    """Write the outcomes down: `./run python -m tests.tasks.test_llm_faults`, of these cases if some are named."""
    import sys
    import tempfile

    chosen, known = sys.argv[1:] or list(CASES), recorded()

    with messages_server() as running, tempfile.TemporaryDirectory() as folder:
        found = {
            fault.name: {
                case: outcome(running, case, fault, Path(folder, f"{number}-{place}"))
                if case in chosen
                else known[fault.name][case]
                for place, case in enumerate(CASES)
            }
            for number, fault in enumerate(FAULTS)
        }
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{written(found)}\n\n{END}{after}")


if __name__ == "__main__":
    main()

"""The pages in `docs/` are those that the code makes, and what they say can be relied on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.deployments import reference
from quantum_orchestrator.deployments.cli import COMMANDS, PARENTS
from quantum_orchestrator.tasks import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages()


def test_the_committed_pages_are_up_to_date(pages: dict[str, str]) -> None:
    stale = [name for name, text in pages.items() if (ROOT / "docs" / name).read_text() != text]
    assert stale == [], "run: ./run python -m quantum_orchestrator.deployments.reference"


def test_nothing_else_is_taken_for_a_made_page(pages: dict[str, str]) -> None:
    made = {path.name for path in (ROOT / "docs").iterdir() if reference.MADE in path.read_text()}
    assert made == {name for name in pages if name.endswith(".md")}


def test_every_operation_and_every_command_has_its_place(pages: dict[str, str]) -> None:
    headings = re.findall(r"^### (.+)$", pages["operations.md"], re.MULTILINE)
    assert sorted(headings) == list(registry.every())
    commands = re.findall(r"^## qo (.+)$", pages["command-line.md"], re.MULTILINE)
    assert [name for name in commands if name not in PARENTS] == list(COMMANDS)
    assert set(PARENTS) < set(commands)


def test_links_within_a_page_lead_somewhere(pages: dict[str, str]) -> None:
    for text in pages.values():
        headings = {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_examples_in_the_pages_are_what_the_schema_admits(pages: dict[str, str]) -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(pages["instruction-set.schema.json"])
    judge = Draft202012Validator(schema)
    instructions = re.findall(r"^```json\n(.+?)^```", pages["operations.md"], re.MULTILINE | re.DOTALL)
    assert len(instructions) >= len(registry.every()) / 2
    judge.validate({"name": "page", "instructions": [json.loads(each) for each in instructions]})
    (whole,) = re.findall(r"^```json\n(.+?)^```", pages["instruction-set.md"], re.MULTILINE | re.DOTALL)
    judge.validate(json.loads(whole))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "items": {"type": "integer"}}, "list of whole number"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"enum": ["a", 1]}, '`"a"` or `1`'),
        ({"$ref": "#/$defs/Edit"}, "`Edit`"),
        ({"$ref": "#/$defs/Order"}, '`"up"`'),
        ({"type": "string", "format": "workspace-path"}, "path"),
        ({}, "any JSON value"),
    ],
)
def test_types_are_told_in_words(schema: dict[str, Any], words: str) -> None:
    assert reference.type_words(schema, {"Edit": {"type": "object"}, "Order": {"const": "up"}}) == words


def test_making_them_neither_needs_prefect_nor_prints_anything_but_their_names(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['pages']\n"
        "runpy.run_module('quantum_orchestrator.deployments.reference', run_name='__main__')\n"
        "assert 'prefect' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"pages/{path.name}" for path in sorted((tmp_path / "pages").iterdir())]
    assert (tmp_path / "pages/operations.md").read_text() == (ROOT / "docs/operations.md").read_text()

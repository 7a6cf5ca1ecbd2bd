"""What the pages for readers show is what the product prints, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{each.name}" for each in ROOT.glob("docs/*.md")),
]


def shown(command: str) -> list[str]:
    """The lines that the page shows under a command, up to the next one."""
    (block,) = re.findall(rf"^\$ {re.escape(command)}\n(.+?)(?=^```|^\$|^…)", README, re.MULTILINE | re.DOTALL)
    return str(block).strip().splitlines()


def printed(*arguments: str) -> str:
    command = [sys.executable, "-m", "quantum_orchestrator.deployments.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_mistakes_it_shows_are_told_in_these_words() -> None:
    assert printed("validate", "examples/invalid.json").splitlines() == shown("./run qo validate examples/invalid.json")


def test_the_plan_it_shows_is_what_is_printed(tmp_path: Path) -> None:
    title, *lines = shown("./run qo plan examples/approval.json --workspace build/demo")
    first, *rest = printed("plan", "examples/approval.json", "--workspace", str(tmp_path / "demo")).splitlines()
    assert first.partition(" in ")[0] == title.partition(" in ")[0]
    assert rest[: len(lines)] == lines


def test_the_tour_it_shows_has_the_steps_of_the_file() -> None:
    steps = [line.split()[1:3] for line in shown("./run qo run examples/tour.json") if line.startswith("✓")]
    planned = printed("plan", "examples/tour.json", "--workspace", "build/no-such-folder")
    assert sorted(steps) == sorted(line.split()[2:4] for line in planned.splitlines() if re.match(r"#   [✓?] ", line))


def test_the_exit_codes_are_those_of_the_reference() -> None:
    codes = re.findall(r"^\| (\d+) \|", README, re.MULTILINE)
    assert codes == re.findall(r"^\| (\d+) \|", (ROOT / "docs/command-line.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []

"""What CONTRIBUTING.md shows works: its operation, brought by another package, is listed, planned and judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
SET = {
    "name": "names",
    "instructions": [
        {"id": "write", "op": "file.write", "with": {"path": "names.txt", "content": "b\na\n"}},
        {"id": "sort", "op": "lines.sort", "with": {"path": "names.txt"}},
    ],
}


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with what an installer makes of a package that has the page's module and entry point."""
    name, _, module = block("toml").splitlines()[1].partition(" = ")
    module = json.loads(module)
    (tmp_path / f"{module}.py").write_text(block("python"))
    metadata = tmp_path / "lines-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[quantum_orchestrator.operations]\n{name} = {module}\n")
    return tmp_path


def qo(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quantum_orchestrator.deployments.cli", *arguments],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )


def test_the_operation_is_listed_with_its_parameters(installed: Path) -> None:
    listed = qo(installed, "ops", "lines.sort")
    assert "Sort the lines of a text file." in listed.stdout
    assert "The text file to sort" in listed.stdout


def test_it_is_planned_to_the_byte(installed: Path) -> None:
    (installed / "set.json").write_text(json.dumps(SET))
    planned = qo(installed, "plan", "set.json", "--workspace", "work")
    assert "+a\n+b\n" in planned.stdout, planned.stderr


def test_its_parameters_are_judged(installed: Path) -> None:
    wrong = {**SET, "instructions": [{"id": "sort", "op": "lines.sort", "with": {"path": "../names.txt", "down": 1}}]}
    (installed / "set.json").write_text(json.dumps(wrong))
    judged = qo(installed, "validate", "set.json")
    assert judged.returncode == 3
    assert "/instructions/0/with/path" in judged.stderr
    assert "down" in judged.stderr


def test_the_layout_it_tells_is_the_one_that_is_checked() -> None:
    floors = re.findall(r"^    (\w+)/   ", PAGE, re.MULTILINE)
    configuration = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    layers = re.search(r"^layers = \[(.*?)^\]", configuration, re.MULTILINE | re.DOTALL)
    assert layers is not None
    assert [f"quantum_orchestrator.{floor}" for floor in floors] == re.findall(r'"(quantum[\w.]+)"', layers[1])

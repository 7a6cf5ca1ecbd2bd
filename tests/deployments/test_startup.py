"""Commands that only look start at once: none of them imports what takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord, StepRecord
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Workspace

SET = """{
  "name": "look",
  "instructions": [
    {"id": "note", "op": "file.write", "with": {"path": "new.txt", "content": "${{ 1 + 1 }}\\n"}},
    {"id": "build", "op": "script.run", "with": {"argv": ["true"]}},
    {"id": "stage", "op": "git.add", "with": {"paths": ["new.txt"]}}
  ]
}"""
HEAVY = ("anthropic", "complexipy", "fastapi", "libcst", "prefect", "sqlalchemy", "uvicorn")
LOOK = """
import sys
from quantum_orchestrator.deployments.cli import main

sys.argv[0] = "qo"
try:
    main()
except SystemExit as ending:
    print(ending.code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
BY_ITS_ENTRY = """from quantum_orchestrator.deployments import qo
from quantum_orchestrator.deployments.qo import main
qo.leave = sys.exit"""
START = LOOK.replace("from quantum_orchestrator.deployments.cli import main", BY_ITS_ENTRY)
"""The same by the entry point, which ends the process without an exception."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which one run was committed, with the file `look.json`."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "look.json").write_text(SET)
    journal = Journal(workspace_home(root))
    workspace = Workspace(root, journal)
    journal.begin(RunRecord("r1", "look", "running", {"name": "look", "instructions": []}, {}, {}, time.time()))
    overlay = Overlay(workspace.tree)
    overlay.write("note.txt", b"hello\n")
    workspace.apply("r1", "note", overlay.changes(), overlay.content_of)
    journal.record_step("r1", StepRecord("note", "file.write", "succeeded"), done=True)
    journal.update("r1", status="committed", ended_at=time.time())
    workspace.close()
    journal.close()
    return root


@pytest.mark.parametrize(
    "command",
    [
        ("--version",),
        ("--help",),
        ("validate", "look.json"),
        ("plan", "look.json"),
        ("plan", "look.json", "--json"),
        ("graph", "look.json"),
        ("ops",),
        ("ops", "quality.score"),
        ("schema",),
        ("status",),
        ("history",),
        ("show",),
        ("diff",),
        ("logs",),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_what_only_looks_imports_nothing_heavy(command: tuple[str, ...], workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *command],
        cwd=workspace,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    code, *loaded = done.stderr.splitlines()[-1].split()
    assert code == "0" or command == ("doctor",), done.stderr
    assert "quantum_orchestrator" in loaded
    assert set(loaded) & set(HEAVY) == set()


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        (("--version",), {"cyclopts", "pydantic", "rich"}),
        (("validate", "look.json"), {"jsonschema", "rich", "sqlite3", "yaml"}),
    ],
)
def test_nothing_is_imported_that_the_command_has_no_use_for(
    command: tuple[str, ...], unneeded: set[str], workspace: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, *command],
        cwd=workspace,
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    ending, *loaded = done.stderr.splitlines()[-1].split()
    assert ending == "0"
    assert set(loaded) & unneeded == set()

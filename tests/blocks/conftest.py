"""A journaled workspace for the tests that give it a folder, by a fixture `root`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.workspace import Workspace


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    """The workspace at `root`, its state in `state` beside it."""
    journal = Journal(root.parent / "state")
    made = Workspace(root, journal)
    yield made
    made.close()
    journal.close()

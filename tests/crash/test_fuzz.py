"""A damaged journal is noticed, or does no harm; and what notices it is needed.

`./run python -m tests.crash.fuzz` takes many more cases than these.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from quantum_orchestrator.blocks import database
from quantum_orchestrator.blocks.database import Mark, SequenceFile
from tests.crash.fuzz import Laboratory, examine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Some journals of real runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QO_HOME", "set by the laboratory")
        patch.setattr("quantum_orchestrator.blocks.contents.INLINE_BYTES", 0)  # and back, at the end
        yield Laboratory(tmp_path_factory.mktemp("laboratory"))


def test_no_damage_is_believed(laboratory: Laboratory) -> None:
    number = 120
    found = examine(laboratory, 1, range(number))
    assert found["violations"] == []
    assert found["verdicts"]["right"] > number / 12
    assert found["verdicts"]["refused"] > number / 12


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_no_more_damage_is_believed(user: Path) -> None:
    number = 2000
    command = [sys.executable, "-m", "tests.crash.fuzz", "--number", str(number), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    assert found["violations"] == []
    assert found["right"] > number / 12
    assert found["refused"] > number / 12


def test_control_without_row_sums_damage_is_believed(laboratory: Laboratory) -> None:
    numbers = range(40)
    assert examine(laboratory, 1, numbers, "rows")["violations"] == []
    with mock.patch.object(database, "is_right", return_value=True):
        assert examine(laboratory, 1, numbers, "rows")["violations"]


def test_control_without_the_sequence_file_a_lost_end_is_not_missed(laboratory: Laboratory) -> None:
    numbers = range(30)
    assert examine(laboratory, 1, numbers, "journal.db-wal")["violations"] == []
    with mock.patch.object(SequenceFile, "read", return_value=Mark()):
        assert examine(laboratory, 1, numbers, "journal.db-wal")["violations"]

"""Nothing is half done, whenever a run is killed, whatever the disk says, and when the power goes.

The sweep takes every fifth point here; `./run python -m tests.crash` takes all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
def test_runs_killed_at_every_fifth_point_end_as_before_or_as_after(user: Path) -> None:
    command = [sys.executable, "-m", "tests.crash", "--every", "5", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    assert found["violations"] == []
    assert found["cases"] >= 700

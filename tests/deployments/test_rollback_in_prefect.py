"""A rollback where no Prefect server can show it; `end_to_end/test_recovery_in_prefect.py` has a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys
from quantum_orchestrator.blocks.journal import RunRecord
from quantum_orchestrator.deployments.rollback_in_prefect import show

async def unwind(runner):
    print(runner, end=" ")

flow_run_id = sys.argv[1] or None
asyncio.run(show(RunRecord("r", "a set", "committed", {}, {}, {}, 0.0, flow_run_id=flow_run_id), unwind))
print("prefect" in sys.modules)
"""
FLOW_RUN = "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize("api", ["", "http://127.0.0.1:9/api", "no address"])
@pytest.mark.parametrize("flow_run_id", ["", FLOW_RUN])
def test_is_done_without_prefect(tmp_path: Path, flow_run_id: str, api: str) -> None:
    environment = {**os.environ, "QO_HOME": str(tmp_path / "qo"), "PREFECT_API_URL": api}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, flow_run_id], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout.split(), done.stderr) == (["None", "False"], "")
    assert not (tmp_path / "qo" / "server").exists(), "none is started for it"

"""What `prefect.yaml` deploys is run by an ordinary Prefect worker, with the set as a parameter.

The worker runs twice: at first a run is cancelled in the UI, one is killed and one pauses; then Retry and Resume in the
UI have it take the latter two up again, to their end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import prefect_api as prefect
import pytest
from commands import eventually

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
APPEND = {"id": "append", "op": "file.append", "with": {"path": "log.txt", "content": "${{ inputs.word }}\n"}}


def then(shell: str, **fields: object) -> dict[str, object]:
    """A set that appends a line, and then runs a script."""
    script = {"id": "then", "op": "script.run", "with": {"shell": shell}, "needs": ["append"]}
    inputs = {"word": {"type": "string"}}
    return {"name": "deployed", "inputs": inputs, **fields, "instructions": [APPEND, script]}


KILLED = then("touch ../killed-began; until test -e ../go; do sleep 0.05; done; echo done > then.txt")
CANCELLED = then("touch ../cancelled-began; sleep 60")
PAUSED = then("test -e ../go && echo done > then.txt", on_failure="pause")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", "--no-prompt", *arguments]


def run(*arguments: str) -> None:
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@contextmanager
def worker() -> Iterator[None]:
    """A worker that runs what is due, and ends with the last of it."""
    arguments = command("worker", "start", "--pool", "local", "--run-once")
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0, said
        finally:
            process.kill()


def journaled(root: Path) -> list[RunRecord]:
    with closing(Journal(workspace_home(root))) as journal:
        return journal.runs()


class Ordered:
    """A flow run of the deployment, in a workspace of its own."""

    def __init__(self, deployment: str, root: Path, document: dict[str, Any]) -> None:
        self.root = root
        parameters = {"instruction_set": document, "inputs": {"word": "once"}, "workspace": str(root)}
        self.id = prefect.post(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]

    @property
    def state(self) -> str:
        return str(prefect.flow_run(self.id)["state_name"])


def test_a_worker_runs_sets_and_takes_them_up_again(prefect_server: str, tmp_path: Path) -> None:
    prefect.work_pool("local")
    run("deploy", "--all")
    deployment = prefect.get("/deployments/name/orchestrate/any-set")
    assert {"instruction_set", "inputs", "workspace"} <= set(deployment["parameter_openapi_schema"]["properties"])

    killed = Ordered(deployment["id"], tmp_path / "killed", KILLED)
    paused = Ordered(deployment["id"], tmp_path / "paused", PAUSED)
    cancelled = Ordered(deployment["id"], tmp_path / "cancelled", CANCELLED)
    with worker():
        eventually((tmp_path / "killed-began").exists, within=60)  # three new interpreters at once
        os.kill(journaled(killed.root)[0].pid, signal.SIGKILL)
        eventually((tmp_path / "cancelled-began").exists)
        cancel = {"state": {"type": "CANCELLING"}}
        prefect.post(f"/flow_runs/{cancelled.id}/set_state", cancel)
    assert [each.state for each in (killed, paused, cancelled)] == ["Crashed", "Paused", "Cancelled"]
    assert journaled(cancelled.root)[0].status == "cancelled"
    assert list(cancelled.root.iterdir()) == []

    (tmp_path / "go").touch()
    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}  # as the UI says it
    prefect.post(f"/flow_runs/{killed.id}/set_state", retry)
    prefect.post(f"/flow_runs/{paused.id}/resume", {})
    with worker():
        pass
    for again, before in ((killed, "Crashed"), (paused, "Failed")):
        assert again.state == "Completed"
        assert prefect.states(again.id, 4) == {"append": ["Completed", "Cached"], "then": [before, "Completed"]}
        assert (again.root / "log.txt").read_text() == "once\n"
        assert (again.root / "then.txt").read_text() == "done\n"
        assert [(each.status, each.flow_run_id) for each in journaled(again.root)] == [("committed", again.id)]

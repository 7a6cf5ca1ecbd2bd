"""What `prefect.yaml` deploys is run by an ordinary Prefect worker, with the set as a parameter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
SET = {
    "name": "deployed",
    "inputs": {"who": {"type": "string"}},
    "instructions": [
        {"id": "hello", "op": "file.write", "with": {"path": "hello.txt", "content": "Hello, ${{ inputs.who }}\n"}}
    ],
}


def prefect(*arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_worker_runs_a_set_that_is_given_to_the_deployment(prefect_server: str, tmp_path: Path) -> None:
    def post(path: str, body: dict[str, Any]) -> Any:
        return httpx.post(f"{prefect_server}{path}", json=body).raise_for_status().json()

    post("/work_pools/", {"name": "local", "type": "process"})
    prefect("deploy", "--all")
    deployment = httpx.get(f"{prefect_server}/deployments/name/orchestrate/any-set").raise_for_status().json()
    assert {"instruction_set", "inputs", "workspace"} <= set(deployment["parameter_openapi_schema"]["properties"])

    parameters = {"instruction_set": SET, "inputs": {"who": "worker"}, "workspace": str(tmp_path / "site")}
    flow_run = post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    prefect("worker", "start", "--pool", "local", "--run-once")

    state = httpx.get(f"{prefect_server}/flow_runs/{flow_run['id']}").raise_for_status().json()["state"]
    assert state["type"] == "COMPLETED", state["message"]
    assert (tmp_path / "site/hello.txt").read_text() == "Hello, worker\n"

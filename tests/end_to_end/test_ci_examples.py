"""The CI examples: their own shell steps, in the order in which the services run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_service")]


def github(job: str) -> tuple[dict[str, str], list[str]]:
    """A job's environment, and its shell steps: without the installation, and what speaks to GitHub."""
    document = YAML(typ="safe").load(CI / "github-actions.yml")
    steps = [step["run"] for step in document["jobs"][job]["steps"] if "run" in step]
    return document["env"], [step for step in steps if not step.startswith(("pip ", "gh "))]


def gitlab(job: str) -> tuple[dict[str, str], list[str]]:
    document = YAML(typ="safe").load(CI / "gitlab-ci.yml")
    return document["variables"], document[job]["script"]


@pytest.mark.parametrize("service", [github, gitlab])
def test_the_steps_judge_plan_and_run(service: object, tmp_path: Path) -> None:
    shutil.copytree(CI, tmp_path / "examples" / "ci")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qo").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m quantum_orchestrator.deployments.qo "$@"\n'
    )
    (tmp_path / "bin" / "qo").chmod(0o755)
    for job in ("plan", "run"):
        variables, steps = service(job)  # type: ignore[operator]
        environment = {**os.environ, **variables, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        for step in steps:
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    comment = (tmp_path / "comment.md").read_text()
    assert "````diff" in comment
    assert "+++ b/RELEASE.md" in comment
    subprocess.run(["git", "apply", "--check", "qo.diff"], cwd=tmp_path, check=True)
    assert (tmp_path / "build/release/RELEASE.md").read_text() == "# 1.4\n\n- Faster start\n"
    suite = ET.parse(tmp_path / "qo-junit.xml").getroot()[0]
    assert [case.get("name") for case in suite.iter("testcase")] == ["notes", "code", "lint"]
    (run,) = json.loads((tmp_path / "qo.sarif").read_text())["runs"]
    assert [found["ruleId"] for found in run["results"]] == ["F401"]

"""What a script may use, and what becomes of one that takes more: the right error and exit code, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Qo, script

from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.blocks.levels import Level, why_not

pytestmark = pytest.mark.slow

POLICY = """
[limits]
processes = 20
cpu_seconds = 1
memory_mb = 500
file_mb = 1
output_mb = 1
written_mb = 4
[sandbox]
prefer = {level}
"""
FORKS = "import os, time; [os.fork() or time.sleep(30) for _ in range(60)]; time.sleep(30)"
STEPS = {
    "output": "head -c 2000000 /dev/zero",
    "time": "echo x > time; sleep 60",
    "cpu": "echo x > cpu; while :; do :; done",
    "memory": "echo x > memory; python3 -c 'bytearray(900 << 20)' 2> said; tail -n 1 said >&2; exit 1",
    "processes": f"echo x > processes; python3 -c '{FORKS}'",
    "written": "for each in 1 2 3 4 5 6 7 8; do head -c 900000 /dev/zero > written-$each; done",
    "file": "echo x > file; exec head -c 2000000 /dev/zero > large",
}


@pytest.fixture(params=[Level.LIMITS, Level.OVERLAY], ids=lambda level: level.name.lower())
def level(request: pytest.FixtureRequest, user: Path) -> Iterator[Level]:
    if why_not(request.param):
        pytest.skip(f"proven for the other level alone: {why_not(request.param)}")
    place = home() / "policy.toml"
    place.write_text(POLICY.format(level=int(request.param)))
    yield request.param
    place.unlink()


def said(document: dict[str, Any], step: str) -> str:
    error = next(each for each in document["steps"] if each["id"] == step)["error"]
    return f"{error['type']}: {error['message']} ({error['hint']})"


def test_a_limit_that_is_reached_fails_the_step_and_leaves_nothing_of_it(qo: Qo, level: Level) -> None:
    steps = [script(text, step=name, on_error="continue") for name, text in STEPS.items()]
    steps[1]["timeout"] = 1
    steps[-1]["on_error"] = "fail"
    document = qo("run", qo.set(*steps, order="sequential"), "--json").exits(1).json
    assert (document["status"], document["sandbox_level"]) == ("rolled_back", level)
    assert document["steps"][0]["outputs"]["truncated"] is True
    assert len(document["steps"][0]["outputs"]["stdout"]) == 2**20
    assert said(document, "time").startswith("TimedOut: took longer than 1 s; all that it had started was ended")
    assert "it took more than 1 s of processor time: `cpu_seconds` under [limits]" in said(document, "cpu")
    assert "MemoryError" in said(document, "memory")
    too_many = ("started more than 20 processes; all of them were ended", "BlockingIOError")
    assert any(each in said(document, "processes") for each in too_many)
    assert "it wrote a file of more than 1 MiB: `file_mb` under [limits]" in said(document, "file")
    if level is Level.OVERLAY:
        assert "wrote more than 4 MiB; all of its processes were ended (`written_mb`" in said(document, "written")
    assert qo.files == {}

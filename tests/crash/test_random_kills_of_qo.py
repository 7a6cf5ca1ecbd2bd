"""The same random sets through `qo` itself, with Prefect: killed at a random moment, then resumed or rolled back."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Qo, eventually
from effort import ordinarily

from tests.crash.cases import observe, run_set
from tests.crash.mixed import mixed_set, start
from tests.crash.scenarios import Scenario

pytestmark = pytest.mark.slow

LENGTH = 20
SEEDS = (1000, 1001, 1002, 1003, 1005, 1006)
"""Of sets that succeed: every fifth does not."""
SECONDS = 1.5
"""About what such a run takes, once it has begun."""


def left_undisturbed(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """What the engine alone, without Prefect and without a kill, makes of the start."""
    root = folder / "undisturbed"
    root.mkdir()
    start(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QO_HOME", str(folder / "state"))
        assert run_set(root, scenario) == "committed"
    return observe(root)


@pytest.mark.parametrize("seed", ordinarily(SEEDS[:3], nightly=SEEDS))
def test_a_killed_run_is_seen_at_once_and_ends_as_before_or_as_after(qo: Qo, tmp_path: Path, seed: int) -> None:
    scenario = mixed_set(seed, LENGTH)
    start(qo.work)
    before, after = observe(qo.work), left_undisturbed(scenario, tmp_path)
    dice = random.Random(seed)
    running = qo.begins("run", qo.set(*scenario.instructions, order="inferred", parallel=4)).until("running 'test'")
    time.sleep(dice.uniform(0.1, SECONDS))
    running.signal(signal.SIGKILL).ended()
    found = qo("status", "--json").json["status"]  # at the first look
    assert found in ("interrupted", "committed", "idle")
    if found == "interrupted":
        qo("resume" if seed % 2 else "rollback").exits(0)
    status = qo("status", "--json").json["status"]
    assert observe(qo.work) == (after if status == "committed" else before)
    assert status == "committed" or not (found == "interrupted" and seed % 2)
    eventually(lambda: not living_in(qo.work))


def living_in(folder: Path) -> list[str]:
    """The processes whose current folder is this one, or in whose command line it stands."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if (process / "cwd").readlink() == folder or f"{folder}\0".encode() in (
                    process / "cmdline"
                ).read_bytes():
                    found.append(process.name)
            except OSError:
                continue  # ended meanwhile, or another user's
    return found

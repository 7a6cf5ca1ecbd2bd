"""A policy that the Prefect server holds: it narrows what machines allow that name it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import prefect_api as prefect
import pytest
from commands import NOTE, SHIP, Qo

pytestmark = pytest.mark.slow


@pytest.fixture
def policy(prefect_server: str) -> Iterator[Path]:
    """The machine's file, to be written."""
    path = Path(os.environ["QO_HOME"]) / "policy.toml"
    yield path
    path.unlink(missing_ok=True)


def save(name: str, **fields: object) -> None:
    from quantum_orchestrator.blocks.policy_block import PolicyBlock

    PolicyBlock(**fields).save(name, overwrite=True, _sync=True)  # type: ignore[call-arg]


def test_what_it_denies_is_refused_where_the_machine_names_it(qo: Qo, policy: Path) -> None:
    save("team", paths_deny=["shipped.txt"])
    qo("run", qo.set(NOTE, SHIP)).exits(0)
    qo("rollback", str(qo("status", "--json").json["run_id"])).exits(0)
    policy.write_text('[prefect]\npolicy = "team"\n')
    said = qo("run", qo.set(NOTE, SHIP)).exits(1)
    said.says("the policy refuses path 'shipped.txt'").says("[paths] deny in Policy block 'team' names 'shipped.txt'")
    assert qo.files == {}


def test_it_allows_nothing_that_the_machine_does_not(qo: Qo, policy: Path) -> None:
    save("generous", paths_allow=["**"], operations_allow=["*"])
    policy.write_text('[paths]\ndeny = ["note.txt"]\n[prefect]\npolicy = "generous"\n')
    qo("run", qo.set(NOTE)).exits(3).says("policy.toml:2 names 'note.txt'")


def test_without_it_nothing_runs(qo: Qo, policy: Path) -> None:
    policy.write_text('[prefect]\npolicy = "missing"\n')
    said = qo("run", qo.set(NOTE)).exits(1)
    said.says("the Prefect server has no policy block 'missing'").says("prefect block register -m")
    assert qo.files == {}


def test_a_value_that_means_nothing_is_named(qo: Qo, policy: Path) -> None:
    save("wrong", sandbox_require=9)
    policy.write_text('[prefect]\npolicy = "wrong"\n')
    qo("run", qo.set(NOTE)).exits(3).says("Policy block 'wrong': [sandbox] require must be a level from 0 to")


def test_blocks_are_registered_as_prefect_registers_them(prefect_server: str) -> None:
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "quantum_orchestrator.blocks"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Successfully registered" in said
    for kind in ("model", "policy", "quality-gate", "sandbox", "workspace"):
        assert prefect.get(f"/block_types/slug/quantum-orchestrator-{kind}")

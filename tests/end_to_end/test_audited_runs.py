"""What the audit has of real runs: who did what, in order, and nothing that is not on record."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from commands import GONE, NOTE, SHIP, SIGN, Qo
from without_prefect import alone

from quantum_orchestrator.blocks.audit import Audit
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.flows.instruction_set import load

pytestmark = pytest.mark.slow


def events(qo: Qo) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = qo("audit", "show", "--run", run_id_of(qo), "--json").exits(0).json["entries"]
    return entries


def run_id_of(qo: Qo) -> str:
    return str(qo("status", "--json").json["run_id"])


def test_a_run_its_approval_and_its_way_back_are_on_record(qo: Qo) -> None:
    file = qo.set(NOTE, SIGN, {**SHIP, "needs": ["sign"]})
    qo("run", file).exits(5)
    qo("approve").exits(0)
    qo("rollback", run_id_of(qo)).exits(0)
    found = events(qo)
    assert [each["event"] for each in found] == [
        *("run_started", "run_ended", "approved", "run_resumed", "run_ended", "rolled_back", "run_ended")
    ]
    started, waited, approved, resumed, committed, back, undone = (each["details"] for each in found)
    assert (started["set"], started["trust"], started["source"]) == ("test", "trusted", str(qo.work / file))
    assert len(started["sha256"]) == 64
    assert (waited["status"], approved["subject"], resumed["was"]) == ("awaiting_approval", "sign", "awaiting_approval")
    assert (committed["status"], back["was"], undone["status"]) == ("committed", "committed", "rolled_back")
    assert all("@" in each["actor"] and each["workspace"] == str(qo.work) for each in found)
    said = qo("audit", "verify").exits(0)
    head = said.out.rpartition(" ")[2].strip()
    qo("audit", "verify", "--head", head).exits(0)
    qo("audit", "show", "--run", run_id_of(qo)).exits(0).prints("rolled back").prints("subject sign")


@alone
def test_a_failure_and_an_approval_in_advance_are_on_record(qo: Qo) -> None:
    qo("run", qo.set(NOTE, SIGN, {**GONE, "needs": ["sign"]}), "--yes").exits(1)
    found = events(qo)
    assert [each["event"] for each in found] == ["run_started", "approved", "run_ended"]
    assert found[-1]["details"] == {"status": "rolled_back", "error": "OperationError"}


@pytest.mark.usefixtures("prefect_server")
def test_where_nothing_can_be_put_on_record_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantum_orchestrator.flows.orchestrate import open_journal, run_set
    from quantum_orchestrator.flows.requests import RunRequest

    def refuse(*_: object, **__: object) -> None:
        raise StateError("the audit cannot be written: No space left on device")

    monkeypatch.setattr(Audit, "record", refuse)
    document = load(json.dumps({"name": "test", "instructions": [NOTE]}).encode())
    with pytest.raises(StateError, match="the audit cannot be written"):
        asyncio.run(run_set(RunRequest(document, {}, tmp_path)))
    assert list(tmp_path.iterdir()) == []
    with contextlib.closing(open_journal(tmp_path)) as journal:
        assert journal.runs() == []

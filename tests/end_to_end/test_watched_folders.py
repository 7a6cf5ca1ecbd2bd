"""`qo watch` with real runs: what is dropped runs once, also when the watcher is killed; Prefect hears of files."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import prefect_api as prefect
import pytest
from commands import eventually
from service_client import CLIENT

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_service")]

OLDER = {
    "step_id": "older",
    "actions": [{"type": "CREATE_OR_REPLACE_FILE", "path": "older.txt", "content": "older\n"}],
}


def made(name: str, *instructions: object) -> dict[str, object]:
    return {"name": name, "instructions": list(instructions)}


def appends(word: str) -> dict[str, object]:
    return {"id": "append", "op": "file.append", "with": {"path": "log.txt", "content": f"{word}\n"}}


class Place:
    """A watched folder and a workspace."""

    def __init__(self, root: Path) -> None:
        self.drop, self.work, self.err = root / "drop", root / "work", root / "err"
        self.drop.mkdir()
        self.work.mkdir()
        self.err.touch()

    @contextlib.contextmanager
    def watched(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [*CLIENT, "watch", str(self.drop), "--workspace", str(self.work), "--settle", "0.1"]
        begun = self.err.read_text().count("watching")
        with self.err.open("ab") as told, subprocess.Popen(command, stdout=told, stderr=told) as process:
            try:
                eventually(lambda: self.err.read_text().count("watching") > begun, self.err.read_text)
                yield process
            finally:
                process.terminate()

    def put(self, name: str, value: object) -> None:
        draft = self.drop / f"{name}.part"
        draft.write_text(value if isinstance(value, str) else json.dumps(value))
        draft.rename(self.drop / name)

    def comes_to(self, where: str, name: str) -> None:
        eventually((self.drop / where / name).exists, self.err.read_text)

    @property
    def runs(self) -> list[Any]:
        with closing(Journal(workspace_home(self.work))) as journal:
            return journal.runs()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_dropped_runs_and_goes_where_it_belongs(place: Place) -> None:
    with place.watched() as process:
        place.put("good.json", made("good", appends("good")))
        place.put("older.json", OLDER)
        place.put("fails.json", made("fails", appends("never"), {"id": "no", "op": "assert", "with": {"that": False}}))
        place.put("data.csv", "1,2\n")
        place.comes_to("done", "good.json")
        place.comes_to("done", "older.json")
        place.comes_to("quarantine", "fails.json")
        resource = f"quantum-orchestrator.file.{place.drop}/data.csv"
        wanted = {"filter": {"any_resource": {"id": [resource]}}}
        eventually(lambda: prefect.post("/events/filter", wanted)["events"], place.err.read_text)
    (event,) = prefect.post("/events/filter", wanted)["events"]
    assert (event["event"], event["payload"]["name"]) == ("quantum-orchestrator.file.created", "data.csv")
    assert process.returncode == 0
    assert (place.work / "log.txt").read_text() == "good\n"
    assert (place.work / "older.txt").read_text() == "older\n"
    reason = json.loads((place.drop / "quarantine/fails.json.reason.json").read_text())
    assert reason["status"] == "rolled_back"
    assert sorted(run.status for run in place.runs) == ["committed", "committed", "rolled_back"]
    assert {run.document["trust"] for run in place.runs} == {"untrusted"}


def test_a_watcher_that_is_killed_in_a_run_is_taken_over_from_without_a_second_run(place: Place) -> None:
    slow = {"id": "slow", "op": "wait", "with": {"seconds": 4}, "needs": ["append"]}
    with place.watched() as process:
        place.put("slow.json", made("slow", appends("once"), slow))
        eventually((place.work / "log.txt").exists, place.err.read_text)
        process.send_signal(signal.SIGKILL)
    with place.watched():
        place.comes_to("done", "slow.json")
    assert (place.work / "log.txt").read_text() == "once\n"
    assert [run.status for run in place.runs] == ["committed"]

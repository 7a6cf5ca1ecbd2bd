"""Several `qo` at once: in one workspace one after another, in different ones side by side, and readers meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import LONG, LOUD, NOTE, QO, SHIP, Qo, eventually, script, tree
from prefect_api import get, post
from without_prefect import alone

GATE = script("until test -e ../go; do sleep 0.05; done", step="gate", needs=["note"])
INNER = " ".join(QO)


@alone
class TestOneWorkspace:
    def test_the_second_says_that_it_waits_and_then_runs(self, qo: Qo) -> None:
        first = qo.begins("run", qo.set(NOTE, GATE)).until("✓ note")
        second = qo.begins("run", qo.set(LOUD), "--json").until("waiting for another run in this workspace (process ")
        third = qo.begins("run", qo.set(SHIP)).until(f"(process {first.pid})")
        (qo.folder / "go").touch()
        first.ended().exits(0)
        second.ended().says(f"(process {first.pid})").exits(0)
        third.ended().exits(0)
        assert qo.files == {"note.txt": "hello\nHELLO\n", "shipped.txt": "yes\n"}
        assert {run["status"] for run in qo("history", "--json").json["runs"]} == {"committed"}

    def test_no_wait_refuses_and_changes_nothing(self, qo: Qo) -> None:
        first = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        before = tree(qo.work)
        said = qo("run", qo.set(SHIP), "--no-wait").exits(4)
        said.says(f"error: another run (process {first.pid}) holds this workspace\nhint: ").says("leave out --no-wait")
        assert qo("run", qo.set(SHIP), "--no-wait", "--json").exits(4).json["error"]["type"] == "WorkspaceBusy"
        qo("rollback").exits(4).says("holds this workspace")
        assert tree(qo.work) == before

    def test_other_names_of_the_workspace_are_the_same_one(self, qo: Qo) -> None:
        (qo.folder / "link").symlink_to(qo.work)
        qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        for name in ("../link", "../work/.", str(qo.work)):
            qo("run", qo.set(SHIP), "--no-wait", "--workspace", name).exits(4).says("holds this workspace")

    def test_readers_are_not_held_up(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        state = qo("status", "--json").exits(0).json
        assert (state["status"], state["pid"], state["steps_ended"]) == ("running", running.pid, 1)
        qo("status").exits(0).prints("is running\n").prints("steps ended: 1\n")
        assert qo("history", "--json").exits(0).json["runs"][0]["status"] == "running"
        qo("show").exits(0).prints("  ✓ note  file.write")
        qo("diff").exits(0).prints("+++ b/note.txt\n").prints("\n+hello\n")
        qo("logs").exits(0).prints("step_finished succeeded note\n")
        qo("plan", qo.set(LOUD)).exits(0).prints("\n+HELLO\n")
        running.ctrl_c().ended().exits(130)


class TestAGlobalConcurrencyLimit:
    """Prefect's, called as a resource is that steps of several runs ask for."""

    @pytest.fixture
    def limit(self, qo: Qo) -> str:
        name = f"licence-{qo.folder.name}"
        post("/v2/concurrency_limits/", {"name": name, "limit": 1, "active": True})
        return name

    def test_two_runs_in_two_workspaces_never_do_at_once_what_it_allows_one_of(self, qo: Qo, limit: str) -> None:
        held, go = qo.folder / "held", qo.folder / "go"
        first = script(f"mkdir {held}; until test -e {go}; do sleep 0.05; done; rmdir {held}", writes=[])
        second = script(f"mkdir {held} && rmdir {held}", writes=[])
        began = qo.begins("run", qo.set({**first, "resources": {limit: 1}}))
        eventually(held.exists, lambda: began.err)
        other = str(qo.folder / "other")
        waits = qo.begins("run", qo.set({**second, "resources": {limit: 3}}), "--workspace", other)
        eventually(lambda: "step_started" in qo("logs", "--workspace", other).out, lambda: waits.err)
        time.sleep(0.3)
        go.touch()
        began.ended().exits(0)
        waits.ended().exits(0)
        assert get(f"/v2/concurrency_limits/{limit}")["active_slots"] == 0

    def test_one_of_nothing_fails_the_step_and_says_what_to_do(self, qo: Qo, limit: str) -> None:
        post("/v2/concurrency_limits/", {"name": f"{limit}-0", "limit": 0, "active": True})
        said = qo("run", qo.set({**SHIP, "resources": {f"{limit}-0": 1}})).exits(1)
        said.says("global concurrency limit").says("hint: `prefect global-concurrency-limit update")


@alone
class TestAScriptThatStartsARun:
    @pytest.fixture
    def inner(self, qo: Qo) -> str:
        file = qo.folder / "inner.json"
        file.write_text(json.dumps({"name": "inner", "instructions": [SHIP]}))
        return f"{INNER} run {file}"

    @pytest.mark.parametrize("where", ["", "--workspace .", "--workspace ../work"])
    def test_in_its_own_workspace_is_refused_instead_of_waiting_for_itself(
        self, qo: Qo, inner: str, where: str
    ) -> None:
        said = qo("run", qo.set(NOTE, script(f"{inner} {where}"))).exits(1)
        said.says("exited with 3").says("error: a script of this run cannot start another run in the same workspace")
        said.says('hint: use "call"')
        assert tree(qo.work) == {}


@pytest.fixture
def fresh(tmp_path: Path, put_database: Callable[[Path], None]) -> Iterator[dict[str, str]]:
    """The environment of a user with nothing running."""
    put_database(tmp_path / "fresh")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**kept, "QO_HOME": str(tmp_path / "fresh")}
    yield environment
    done = subprocess.run([*QO, "down"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "stopped the local Prefect server\n"


@pytest.mark.slow
def test_runs_that_begin_at_once_on_a_machine_with_nothing_running_start_one_server(
    fresh: dict[str, str], tmp_path: Path
) -> None:
    """Two, as each is a new interpreter with Prefect; that of ten one starts it is tested where it is started."""
    file = tmp_path / "set.json"
    file.write_text(json.dumps({"name": "two", "instructions": [NOTE]}))
    places = [tmp_path / f"work-{number}" for number in range(2)]
    runs = [
        subprocess.Popen(
            [*QO, "run", str(file), "--workspace", str(place), "--json"],
            env=fresh,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    ends = [(*run.communicate(timeout=100), run.returncode) for run in runs]
    assert [code for _, _, code in ends] == [0] * 2, [err for _, err, _ in ends]
    documents = [json.loads(out) for out, _, _ in ends]
    assert {document["status"] for document in documents} == {"committed"}
    assert {(place / "note.txt").read_text() for place in places} == {"hello\n"}
    assert any("starting the local Prefect server (once; about 10 s)\n" in err for _, err, _ in ends)
    assert len({document["ui_url"].partition("/runs/")[0] for document in documents}) == 1
    assert len(servers_of(fresh["QO_HOME"])) == 1
    up = subprocess.run([*QO, "up", "--json"], env=fresh, capture_output=True, text=True, check=True)
    assert documents[0]["ui_url"].startswith(json.loads(up.stdout)["ui_url"])


def servers_of(home: str) -> list[str]:
    """The processes that are servers of this state folder."""
    wanted = [os.fsencode(sys.executable), b"-P", b"-m", b"quantum_orchestrator.deployments.server"]
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").exists():
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[:4] == wanted and words[4].startswith(os.fsencode(home)):
                found.append(entry.name)
    return found

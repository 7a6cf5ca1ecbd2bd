"""What a command does about a run that has died: it tells Prefect, and is not held up by it.

The servers here are made up, as they must do what a Prefect server does not: hang, refuse, and say what they were
asked. That the real one shows the flow run as crashed is tested in `end_to_end/test_recovery_in_prefect.py`.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx  # noqa: F401 - here, as telling may take a second, and importing it takes half of that
import pytest

from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.deployments.crashed import mark_crashed

FLOW_RUN = "00000000-0000-0000-0000-000000000001"
TASK_RUN = "00000000-0000-0000-0000-000000000002"


class Api:
    """Answers as a Prefect server does for one flow run, and remembers what was asked."""

    def __init__(self, state: str = "RUNNING", status: int = 200) -> None:
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"state_type": state} if state else [], {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer([{"id": TASK_RUN}] if self.path.endswith("/filter") else {}, body)

            def _answer(self, content: object, body: dict[str, Any]) -> None:
                api.asked.append((self.path.removeprefix("/api"), body, self.headers["Authorization"]))
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/api"

    @property
    def set_states(self) -> dict[str, str]:
        return {path: body["state"]["type"] for path, body, _ in self.asked if path.endswith("/set_state")}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        self._server.shutdown()
        thread.join()
        self._server.server_close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "state").mkdir()
    with closing(Journal(tmp_path / "state")) as opened:
        yield opened


@contextmanager
def configured(monkeypatch: pytest.MonkeyPatch, api: Api) -> Iterator[None]:
    monkeypatch.setenv("PREFECT_API_URL", api.url)
    with api.at_work():
        yield


def begin(journal: Journal, status: str = "running", flow_run_id: str | None = FLOW_RUN) -> None:
    journal.begin(RunRecord("r1", "a set", "running", {}, {}, {}, time.time()))
    journal.update("r1", status=status, flow_run_id=flow_run_id)


def told(journal: Journal) -> bool:
    run = journal.run("r1")
    assert run is not None
    return run.told_crashed


def test_the_flow_run_and_its_unended_task_runs_crash_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin(journal)
    api = Api()
    with configured(monkeypatch, api):
        mark_crashed(journal, tmp_path)
        asked = len(api.asked)
        mark_crashed(journal, tmp_path)
    assert api.set_states == {
        f"/flow_runs/{FLOW_RUN}/set_state": "CRASHED",
        f"/task_runs/{TASK_RUN}/set_state": "CRASHED",
    }
    assert told(journal)
    assert len(api.asked) == asked


@pytest.mark.parametrize(
    ("status", "state"),
    [("committed", "COMPLETED"), ("cancelled", "CANCELLED"), ("rolled_back", "FAILED"), ("needs_attention", "FAILED")],
)
def test_a_process_that_died_after_its_runs_end_is_spoken_for(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, state: str
) -> None:
    begin(journal, status)
    api = Api()
    with configured(monkeypatch, api):
        mark_crashed(journal, tmp_path)
    assert api.set_states[f"/flow_runs/{FLOW_RUN}/set_state"] == state


@pytest.mark.parametrize("state", ["CRASHED", "COMPLETED", "PAUSED", "SCHEDULED"])
def test_what_prefect_does_not_hold_for_running_is_left_so(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str
) -> None:
    begin(journal)
    api = Api(state)
    with configured(monkeypatch, api):
        mark_crashed(journal, tmp_path)
    assert api.set_states == {}
    assert told(journal)


@pytest.mark.parametrize("status", ["paused", "awaiting_approval"])
def test_of_a_run_that_waits_nothing_is_told(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str
) -> None:
    begin(journal, status)
    api = Api()
    with configured(monkeypatch, api):
        mark_crashed(journal, tmp_path)
    assert api.asked == []


def test_of_a_run_that_is_at_work_nothing_is_told(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin(journal)
    api = Api()
    journal.lock.acquire()
    try:
        with configured(monkeypatch, api), closing(Journal(tmp_path / "state")) as other:
            mark_crashed(other, tmp_path)
    finally:
        journal.lock.release()
    assert api.asked == []
    assert not told(journal)


@pytest.mark.parametrize(
    ("setting", "value", "header"),
    [
        ("PREFECT_API_KEY", "pnu_1", "Bearer pnu_1"),
        ("PREFECT_API_AUTH_STRING", "ada:secret", "Basic YWRhOnNlY3JldA=="),
    ],
)
def test_it_shows_who_asks_as_prefect_does(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: str, header: str
) -> None:
    begin(journal)
    monkeypatch.setenv(setting, value)
    api = Api()
    with configured(monkeypatch, api):
        mark_crashed(journal, tmp_path)
    assert {authorization for _, _, authorization in api.asked} == {header}


@pytest.mark.parametrize(("status", "is_told"), [(404, True), (401, False), (500, False)])
def test_that_nobody_knows_the_flow_run_is_final_and_other_problems_are_not(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, is_told: bool
) -> None:
    begin(journal)
    with configured(monkeypatch, Api(status=status)):
        mark_crashed(journal, tmp_path)
    assert told(journal) is is_told


def test_what_is_no_prefect_server_is_left_alone(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin(journal)
    api = Api(state="")
    with configured(monkeypatch, api):
        mark_crashed(journal, tmp_path)
    assert not told(journal)


def test_a_proxy_that_cannot_be_used_is_no_obstacle(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin(journal)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with configured(monkeypatch, Api()):
        mark_crashed(journal, tmp_path)
    assert not told(journal)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "no address"])
def test_where_nobody_answers_nothing_is_said(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str
) -> None:
    begin(journal)
    monkeypatch.setenv("PREFECT_API_URL", url)
    mark_crashed(journal, tmp_path)
    assert not told(journal)


def test_a_server_that_hangs_holds_up_for_a_second_at_most(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin(journal)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/api")
        began = time.monotonic()
        mark_crashed(journal, tmp_path)
        assert time.monotonic() - began < 2
    assert not told(journal)


@pytest.mark.parametrize("begun", [False, True])
def test_it_imports_no_prefect_and_without_need_no_http_client(tmp_path: Path, begun: bool) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with closing(Journal(folder)) as made:
        if begun:
            begin(made)
    program = f"""
import sys
from pathlib import Path
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.deployments.crashed import mark_crashed
mark_crashed(Journal(Path({str(folder)!r})), Path())
print("prefect" in sys.modules, "httpx" in sys.modules)
"""
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert said.stdout.split() == ["False", str(begun)]

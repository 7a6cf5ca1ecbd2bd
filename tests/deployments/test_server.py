"""Our own Prefect server: one, found again, replaced when it is gone, and never in the way of the user's own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.errors import ServerError, UsageError
from quantum_orchestrator.deployments import prefect_settings, server
from quantum_orchestrator.deployments.process_identity import boot_id, start_ticks, stat_fields

ENSURE = """
import sys
from pathlib import Path
from quantum_orchestrator.deployments import server
connection = server.ensure(Path(sys.argv[1]))
state = server.state(Path(sys.argv[1]))
print(state.pid, connection.own, connection.api_url, connection.ui_url, 'prefect' in sys.modules)
"""


@pytest.fixture(scope="module", autouse=True)
def user_without_prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user who never configured Prefect, and has a secret in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("PREFECT")]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("user")))
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.setenv("DEPLOY_TOKEN", "do not pass on")
        patch.setenv("PREFECT_SERVER_UI_ENABLED", "false")
        yield


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A state folder, and what ten processes said that asked for its server at the same time."""
    home = tmp_path_factory.mktemp("state")
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask_for_server(home), range(10)))
    yield home, answers
    server.stop(home)


@pytest.fixture
def home(started: tuple[Path, list[str]]) -> Path:
    return started[0]


def ask_for_server(home: Path, **environment: str) -> str:
    asked = subprocess.run(
        [sys.executable, "-c", ENSURE, str(home)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout + asked.stderr


def pid_of(home: Path) -> int:
    server.ensure(home)
    pid = server.state(home).pid
    assert pid is not None
    return pid


def gone(pid: int) -> bool:
    fields = stat_fields(pid)
    return not fields or fields[0] == "Z"


def record(home: Path, process: subprocess.Popen[bytes], **changes: object) -> None:
    """Put `process` on record as the server of `home`."""
    folder = home / "server"
    folder.mkdir(exist_ok=True)
    ticks = start_ticks(process.pid)
    assert ticks is not None
    api = "http://127.0.0.1:9/api"
    found = server._Record(process.pid, ticks, boot_id(), 9, api, server.prefect_version(), "2026-01-01T00:00:00+00:00")
    (folder / "server.json").write_text(json.dumps(dataclasses.asdict(found) | changes))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that has started another."""
    with subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True) as process:
        while len(server._session(process.pid)) < 3:
            time.sleep(0.01)
        yield process
        for pid in server._session(process.pid):
            os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- one server


def test_ten_processes_at_once_start_one_server(started: tuple[Path, list[str]]) -> None:
    home, answers = started
    state = server.state(home)
    url = state.api_url or ""
    assert set(answers) == {f"{state.pid} True {url} {url.removesuffix('/api')} False\n"}
    assert state.healthy
    assert state.database_bytes > 0


def test_the_next_run_reuses_it_at_once(home: Path) -> None:
    pid = server.state(home).pid
    begun = time.monotonic()
    connection = server.ensure(home)
    assert time.monotonic() - begun < 1
    assert server.state(home).pid == pid
    assert connection == server.find(home) == server.begin(home).connection


def test_it_works_and_its_ui_is_served(home: Path) -> None:
    connection = server.ensure(home)
    flow = urllib.request.Request(
        f"{connection.api_url}/flows/", json.dumps({"name": "x"}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(flow) as answer:
        assert answer.status == 201
    page = urllib.request.Request(connection.flow_run_url("0-0") or "", headers={"Accept": "text/html"})
    with urllib.request.urlopen(page) as answer:
        assert b"<script" in answer.read()


def test_other_web_pages_may_not_use_it(home: Path) -> None:
    connection = server.ensure(home)
    asked = urllib.request.Request(f"{connection.api_url}/health", headers={"Origin": "http://evil.example"})
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_it_inherits_neither_secrets_nor_prefect_settings(home: Path) -> None:
    pid = server.state(home).pid
    environment = Path(f"/proc/{pid}/environ").read_text()
    assert "DEPLOY_TOKEN" not in environment
    assert "PREFECT_SERVER_UI_ENABLED" not in environment
    assert "RECORDER_BATCH_SIZE=100" in environment
    assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in environment


def test_its_files_are_private(home: Path) -> None:
    folder = home / "server"
    for file in (folder, folder / "prefect", folder / "prefect/prefect.db", folder / "encryption.key"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_finding_it_imports_no_prefect(home: Path) -> None:
    code = "import sys; from pathlib import Path; from quantum_orchestrator.deployments import server, doctor"
    code += "; server.find(Path(sys.argv[1])); server.state(Path(sys.argv[1])); doctor.doctor(Path(sys.argv[1]))"
    code += "; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(home)], check=False).returncode == 0


# ---------------------------------------------------------------- the user's own


def test_a_configured_api_is_used_and_nothing_is_started(home: Path, tmp_path: Path) -> None:
    url = server.ensure(home).api_url
    answer = ask_for_server(tmp_path, PREFECT_API_URL=url, PREFECT_UI_URL="http://ui.example")
    assert answer == f"None False {url} http://ui.example True\n"
    assert list(tmp_path.iterdir()) == []


def test_a_configured_api_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    answer = ask_for_server(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "ServerError: the Prefect API that is configured, http://127.0.0.1:9/api, does not answer" in answer
    assert list(tmp_path.iterdir()) == []


def test_any_http_answer_counts_as_reachable(home: Path) -> None:
    root = (server.ensure(home).ui_url or "") + "/no/such/place"
    assert server.unreachable(root) is None
    assert "Connection refused" in (server.unreachable("http://127.0.0.1:9/api") or "")
    assert "http" in (server.unreachable("file:///etc/passwd") or "")


SETTINGS = """
import json, os, sys, tempfile
from pathlib import Path
from prefect.settings import Settings
from quantum_orchestrator.deployments import prefect_settings
for files, environment in json.load(sys.stdin):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, text in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text)
        environment = {k: v.replace("HERE", folder) for k, v in environment.items()}
        os.environ.update(environment)
        theirs = Settings()
        ours = prefect_settings.configured_api_url()
        same = ours == (theirs.api.url or None) and (not ours or prefect_settings.ui_address(ours) == theirs.ui_url)
        print(same, ours, theirs.api.url, theirs.ui_url)
        for name in environment:
            del os.environ[name]
        os.chdir("/")
"""
PROFILES = """
active = "a"
[profiles.a]
PREFECT_API_URL = "http://a/api"
[profiles.b]
PREFECT_API_URL = "https://api.prefect.cloud/api/accounts/1/workspaces/2"
[profiles.c]
"""
ANYWHERE: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {}),
    ({}, {"PREFECT_API_URL": "http://env/api"}),
    ({}, {"prefect_api_url": "http://lower/api"}),
    ({".env": "PREFECT_API_URL=http://dotenv/api\n"}, {}),
    ({".env": "prefect_api_url='http://dotenv/api'\n"}, {"PREFECT_API_URL": "http://env/api"}),
    ({"prefect.toml": '[api]\nurl = "http://toml/api"\n'}, {}),
    ({"pyproject.toml": '[tool.prefect.api]\nurl = "http://project/api"\n'}, {}),
    ({"pyproject.toml": '[project]\nname = "x"\n[project.urls]\nurl = "http://no"\n'}, {}),
    ({"p/profiles.toml": PROFILES}, {"PREFECT_HOME": "HERE/p"}),
    ({"p.toml": PROFILES}, {"PREFECT_PROFILES_PATH": "HERE/p.toml", "PREFECT_PROFILE": "b"}),
    ({"p.toml": PROFILES}, {"PREFECT_PROFILES_PATH": "HERE/p.toml", "PREFECT_PROFILE": "c"}),
    ({"p.toml": PROFILES}, {"PREFECT_PROFILES_PATH": "HERE/p.toml", "PREFECT_PROFILE": "missing"}),
    ({"p.toml": PROFILES, ".env": "PREFECT_PROFILES_PATH=p.toml\n"}, {}),
    ({"p.toml": PROFILES, "prefect.toml": 'profiles_path = "p.toml"\n'}, {}),
    ({"p.toml": PROFILES, "prefect.toml": 'profiles_path = "p.toml"\n[api]\nurl = "http://toml/api"\n'}, {}),
    ({"p.toml": PROFILES}, {"PREFECT_PROFILES_PATH": "HERE/p.toml", "PREFECT_UI_URL": "http://ui"}),
    ({"p.toml": PROFILES}, {"PREFECT_PROFILES_PATH": "HERE/p.toml", "PREFECT_API_URL": ""}),
]


def test_the_configured_api_is_read_as_prefect_reads_it() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", SETTINGS], input=json.dumps(ANYWHERE), capture_output=True, text=True, check=True
    )
    lines = asked.stdout.splitlines()
    assert len(lines) == len(ANYWHERE)
    assert [line for line in lines if not line.startswith("True ")] == []
    assert len(set(lines)) > 8, "most of them name an API"


def test_a_settings_file_that_prefect_cannot_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prefect.toml").write_text("[api\n")
    with pytest.raises(UsageError, match=r"prefect\.toml is no TOML"):
        prefect_settings.configured_api_url()


# ---------------------------------------------------------------- the environment of runs


def test_runs_on_our_server_leave_the_users_prefect_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path))
    own = server.Connection("http://127.0.0.1:9/api", "http://127.0.0.1:9", own=True)
    environment = server.client_environment(own)
    assert environment["PREFECT_API_URL"] == own.api_url
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect-client")
    assert "PREFECT_PROFILES_PATH" not in environment


def test_the_users_profile_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect/profiles.toml").write_text("")
    environment = server.client_environment(server.Connection("http://x/api", "http://x", own=True))
    assert environment["PREFECT_PROFILES_PATH"] == str(tmp_path / ".prefect/profiles.toml")


def test_runs_on_the_users_server_only_have_a_quieter_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL", "INFO")
    environment = server.client_environment(server.Connection("http://x/api", "http://x", own=False))
    assert environment == {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}


def test_no_answer_is_not_health() -> None:
    with socket.create_server((server.HOST, 0)) as silent:
        assert server.answers(silent.getsockname()[1], timeout=0.1) is False


# ---------------------------------------------------------------- one that is gone, or not ours


def test_a_killed_one_is_started_anew_at_the_same_port_and_inherits_no_open_file(home: Path) -> None:
    before = server.ensure(home)
    killed = pid_of(home)
    os.kill(killed, signal.SIGKILL)
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    told: list[str] = []
    assert server.ensure(home, progress=told.append) == before
    assert pid_of(home) != killed
    assert any("starting the Prefect server" in line for line in told)
    os.close(writing)
    os.set_blocking(reading, False)  # BlockingIOError: a reader of the pipe would wait for the server to end
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_one_of_another_prefect_version_is_replaced(home: Path) -> None:
    old = pid_of(home)
    file = home / "server/server.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prefect_version": "3.7.0"}))
    assert pid_of(home) != old
    assert gone(old)


def test_stopping_ends_it_and_frees_its_port(home: Path) -> None:
    pid, port = pid_of(home), server.port(home)
    assert server.stop(home) is True
    assert gone(pid)
    with socket.socket() as probe:
        assert probe.connect_ex((server.HOST, port)) != 0
    assert server.stop(home) is False
    assert server.find(home) is None
    assert not server.state(home).running


def test_stopping_ends_what_it_started_too(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    # A stand-in: the real server starts processes only when an automation does.
    record(tmp_path, sleeper)
    family = server._session(sleeper.pid)
    assert len(family) == 3
    assert server.stop(tmp_path) is True
    deadline = time.monotonic() + 5
    while not all(gone(pid) for pid in family):
        assert time.monotonic() < deadline


def test_one_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT", 0.3)
    stubborn = [
        sys.executable,
        "-c",
        "import signal as s; s.signal(s.SIGTERM, s.SIG_IGN); print(flush=True); s.pause()",
    ]
    with subprocess.Popen(stubborn, start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        record(tmp_path, process)
        assert server.stop(tmp_path) is True
        assert gone(process.pid)


@pytest.mark.parametrize("changes", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_a_recycled_pid_is_left_alone(
    changes: dict[str, object], tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    record(tmp_path, sleeper, **changes)
    assert server.find(tmp_path) is None
    assert server.stop(tmp_path) is False
    assert sleeper.poll() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', "\0", '{"pid": "x", "start_ticks": [], "port": null}'])
def test_a_spoilt_record_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server/server.json").write_text(text)
    assert server.find(tmp_path) is None
    assert server.stop(tmp_path) is False


def test_a_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    database = tmp_path / "server/prefect/prefect.db"
    database.parent.mkdir(parents=True)
    database.write_text("no database at all, but a text that is long enough to be read as one. " * 20)
    with pytest.raises(ServerError, match="file is not a database") as failed:
        server.ensure(tmp_path)
    assert "Traceback" not in failed.value.message
    assert str(tmp_path / "server/server.log") in failed.value.hint
    assert server.find(tmp_path) is None


def test_a_lost_encryption_key_is_told_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server/encryption.key").write_text("short\n")
    with pytest.raises(server.StateError, match="no encryption key"):
        server.ensure(tmp_path)
    assert (tmp_path / "server/encryption.key").read_text() == "short\n"

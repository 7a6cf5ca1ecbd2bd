"""The Prefect server that runs report to: the one the user configured, else one of our own.

An API URL that the user configured for Prefect is used as it is. Otherwise one detached server is started under
`$QO_HOME/server/` and reused by every run of this user, also after the process that started it is gone:

    server.json      which process it is: pid, its start time and boot (a pid alone may be recycled), port, version
    server.log       its output, new with each start; the one before is server.log.1
    lock             held while deciding whether to start one and while stopping it, not while it becomes ready
    encryption.key   what it encrypts Secret blocks with, 0600, apart from the database
    prefect/, ui/    its PREFECT_HOME with the SQLite database, and the unpacked pages of the UI

Invariants: at most one server of ours a state folder; no process is signalled unless its pid, start time and boot are
those on record. The starter opens the listening socket and hands it down, so that no port is lost in between and an
early request waits in the queue instead of being refused. Importing this module starts nothing and does not import
Prefect (two seconds); only the process that becomes the server, and `Pending.wait` for a configured URL, do.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import ServerError, StateError
from quantum_orchestrator.blocks.home import home as state_folder
from quantum_orchestrator.blocks.home import private_folder
from quantum_orchestrator.deployments.prefect_settings import configured_api_url, profiles_path, ui_address
from quantum_orchestrator.deployments.process_identity import boot_id, start_ticks, stat_fields

HOST = "127.0.0.1"
START_TIMEOUT = 120.0  # seconds; a first start takes about 12 on a busy machine, most of it database migrations
STOP_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL
_SOCKET = 3  # the descriptor that the server finds its listening socket at

Progress = Callable[[str], None]


def _silent(_message: str) -> None:
    """Progress for callers that show none."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A Prefect API, where its UI is (None: unknown), and whether the server is one that qo started."""

    api_url: str
    ui_url: str | None
    own: bool

    def flow_run_url(self, flow_run_id: str) -> str | None:
        """The page of a flow run in the UI."""
        return f"{self.ui_url.rstrip('/')}/runs/flow-run/{flow_run_id}" if self.ui_url else None


@dataclass(frozen=True, slots=True)
class ServerState:
    """What `qo doctor` tells of our own server; without a running one only the paths and the database size."""

    running: bool
    healthy: bool
    pid: int | None
    api_url: str | None
    version: str | None
    uptime: float | None  # seconds
    log: Path
    database_bytes: int


@dataclass(frozen=True, slots=True)
class _Record:
    """server.json: enough to know the process again, and to start the next one on the same port."""

    pid: int
    start_ticks: int  # field 22 of /proc/PID/stat
    boot_id: str
    port: int
    api_url: str
    prefect_version: str
    started_at: str  # ISO 8601, UTC

    @property
    def connection(self) -> Connection:
        return Connection(self.api_url, f"http://{HOST}:{self.port}", own=True)


# ---------------------------------------------------------------- what callers use


def find(home: Path) -> Connection | None:
    """The API a run would use, if it is there without starting anything. Does not import Prefect, does not ask it."""
    if url := configured_api_url():
        return Connection(url, ui_address(url), own=_is_own(home, url))
    record = _running(home / "server")
    return record.connection if record else None


def answering(home: Path) -> Connection | None:
    """The same if it answers at this moment, for what Prefect may show and need not."""
    known = find(home)
    return known if known is not None and unreachable(known.api_url, timeout=1.0) is None else None


def begin(home: Path) -> Pending:
    """Start our server if one is surely needed, without waiting for it; import Prefect meanwhile, then `wait()`."""
    if configured_api_url():
        return Pending(home / "server", None, started=False)  # Prefect itself decides what is configured: in wait()
    return Pending(home / "server", *_running_or_started(home / "server"))


def ensure(home: Path, *, progress: Progress = _silent) -> Connection:
    """A server that answers: the configured one, or ours, started if needed; ServerError when there is none."""
    return begin(home).wait(progress)


class Pending:
    """A server that may still be starting."""

    def __init__(self, folder: Path, record: _Record | None, started: bool) -> None:
        self._folder = folder
        self._record = record
        self._started = started

    @property
    def connection(self) -> Connection | None:
        """Where our server will answer, known before it does; None while it is open whether the user has another."""
        return self._record.connection if self._record else None

    def wait(self, progress: Progress = _silent) -> Connection:
        """The connection, once it answers; ServerError with the last lines of the log if it does not."""
        if self._record is None:
            if chosen := _chosen_in_prefect(self._folder.parent):
                return chosen
            self._record, self._started = _running_or_started(self._folder)
        for _ in range(3):
            if _await_health(self._folder, self._record, progress):
                return self._record.connection
            if self._started:
                break
            # One that was there already went away while we waited: `qo down`, or a failed start of another process.
            self._record, self._started = _running_or_started(self._folder)
        raise _start_failure(self._folder, "ended before it was ready")


def stop(home: Path) -> bool:
    """End our server and whatever it started, and wait until they are gone; False if none was running."""
    folder = home / "server"
    if not folder.is_dir():
        return False
    with _lock(folder):
        record = _running(folder)
        if record is None:
            return False
        _end(record)
        return True


def state(home: Path) -> ServerState:
    """How our own server is, without starting it."""
    folder = home / "server"
    record = _running(folder)
    database = (folder / "prefect" / name for name in ("prefect.db", "prefect.db-wal"))
    return ServerState(
        running=record is not None,
        healthy=record is not None and answers(record.port),
        pid=record.pid if record else None,
        api_url=record.api_url if record else None,
        version=record.prefect_version if record else None,
        uptime=(datetime.now(UTC) - datetime.fromisoformat(record.started_at)).total_seconds() if record else None,
        log=folder / "server.log",
        database_bytes=sum(file.stat().st_size for file in database if file.exists()),
    )


def port(home: Path) -> int | None:
    """The port of our server, or the one it had and will try to have again."""
    record = _read(home / "server")
    return record.port if record else None


def client_environment(connection: Connection) -> dict[str, str]:
    """The settings for os.environ, before Prefect is imported, of a process whose runs report to `connection`.

    With the user's own server only the console is quietened (qo prints the run itself), and only where they have not
    set that themselves. With ours, Prefect's files go below the state folder instead of ~/.prefect; the user's
    profile is still read from where it is.
    """
    quiet = {f"PREFECT_LOGGING_HANDLERS_{name}_LEVEL": "CRITICAL" for name in ("CONSOLE", "DEBUG")}
    if not connection.own:
        return {name: value for name, value in quiet.items() if name not in os.environ}
    profiles = profiles_path()
    return {
        **quiet,
        **_NO_TELEMETRY,
        **_SAME_MACHINE,
        "PREFECT_API_URL": connection.api_url,
        "PREFECT_UI_URL": connection.ui_url or "",
        "PREFECT_HOME": str(private_folder(state_folder() / "prefect-client")),
        **({"PREFECT_PROFILES_PATH": str(profiles)} if profiles.exists() else {}),
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        # A server on this machine that does not answer has died: Prefect would wait half a minute, for every word.
        "PREFECT_API_REQUEST_TIMEOUT": "20",
        "PREFECT_CLIENT_MAX_RETRIES": os.environ.get("PREFECT_CLIENT_MAX_RETRIES", "2"),
        "PREFECT_API_SSL_CERT_FILE": os.environ.get("PREFECT_API_SSL_CERT_FILE") or _certificate(),
        # Not pickle: reading a pickled result executes what is in it.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    }


def _certificate() -> str:
    """A file with one of the usual certificates. Ours is an http:// address, and Prefect reads all of them for it.

    It does so six times a run, 25 ms each.
    """
    file = private_folder(state_folder() / "prefect-client") / "certificate.pem"
    if not file.exists():
        import certifi

        end = "-----END CERTIFICATE-----\n"
        draft = file.with_name(f".certificate.{os.getpid()}")
        draft.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
        draft.replace(file)
    return str(file)


def prefect_version() -> str:
    """The installed Prefect's version, without importing it."""
    from importlib.metadata import version

    return version("prefect")


# ---------------------------------------------------------------- the configured server


def _chosen_in_prefect(home: Path) -> Connection | None:
    """What Prefect's own settings name; ServerError if that does not answer."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:
        return None
    if _is_own(home, settings.api.url):
        record = _running(home / "server")
        return record.connection if record else None
    if problem := unreachable(settings.api.url):
        raise ServerError(
            f"the Prefect API that is configured, {settings.api.url}, does not answer: {problem}",
            hint="start it, or see `prefect config view`; without PREFECT_API_URL, qo uses a server of its own",
        )
    return Connection(settings.api.url, settings.ui_url, own=False)


def unreachable(api_url: str, *, timeout: float = 10.0) -> str | None:
    """Why nothing answers at `api_url`, or None. Any HTTP answer will do: keys and certificates are for Prefect."""
    import ssl
    import urllib.error
    import urllib.request

    if not api_url.startswith(("http://", "https://")):
        return "it is not an http:// or https:// address"
    try:
        urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout).close()  # noqa: S310 - checked above
    except urllib.error.HTTPError as answer:
        answer.close()
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def _is_own(home: Path, url: str) -> bool:
    # What client_environment() sets reads as configured in this process and in those that it starts.
    record = _read(home / "server")
    return record is not None and record.api_url == url


# ---------------------------------------------------------------- server.json and the process it names


def _read(folder: Path) -> _Record | None:
    """The last server that was started, alive or not; None if none is on record in a form that can be read."""
    try:
        found = json.loads((folder / "server.json").read_bytes())
        record = _Record(**{name: found[name] for name in _Record.__slots__})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # as good as no server: the next start writes a new one
    typed = all(isinstance(getattr(record, name), int) for name in ("pid", "start_ticks", "port"))
    return record if typed and record.pid > 1 else None


def _write(folder: Path, record: _Record) -> None:
    draft = folder / "server.json.new"
    draft.write_text(json.dumps(asdict(record), indent=2) + "\n")
    draft.chmod(0o600)
    draft.replace(folder / "server.json")


def _running(folder: Path) -> _Record | None:
    record = _read(folder)
    return record if record and _alive(record) else None


def _alive(record: _Record) -> bool:
    return record.boot_id == boot_id() and start_ticks(record.pid) == record.start_ticks


# ---------------------------------------------------------------- starting


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel frees it when that ends, however it ends."""
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _running_or_started(folder: Path) -> tuple[_Record, bool]:
    """The server, and whether this call started it. It may not be ready: no lock is held while it becomes so."""
    private_folder(folder)
    with _lock(folder):
        record = _read(folder)
        if record and _alive(record):
            if record.prefect_version == prefect_version():
                return record, False
            _end(record)
        return _start(folder, record.port if record else 0), True


def _start(folder: Path, port: int) -> _Record:
    log = folder / "server.log"
    try:
        if log.exists():
            log.replace(folder / "server.log.1")
        with _listener(port) as listener:
            port = listener.getsockname()[1]
            pid = _spawn(folder, listener.fileno(), log, server_environment(folder, port))
    except OSError as error:
        raise ServerError(
            f"the Prefect server cannot be started: {error}", hint=f"look at the folder {folder}"
        ) from error
    ticks = start_ticks(pid)
    if ticks is None:
        raise _start_failure(folder, "ended at once")
    url = f"http://{HOST}:{port}/api"
    record = _Record(pid, ticks, boot_id(), port, url, prefect_version(), datetime.now(UTC).isoformat())
    _write(folder, record)
    return record


def _listener(port: int) -> socket.socket:
    """A listening socket at the port of last time, so that links to the UI last, or at any if that one is taken."""
    try:
        return socket.create_server((HOST, port), backlog=1024)
    except OSError:
        if port == 0:
            raise
        return socket.create_server((HOST, 0), backlog=1024)


def _spawn(folder: Path, listener: int, log: Path, environment: Mapping[str, str]) -> int:
    """Start the server's process in a session of its own, with nothing of ours but the socket; its pid."""
    module = "quantum_orchestrator.deployments.server"
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", module, str(folder)],  # -P: the current folder is no place to import from
        environment,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, listener, _SOCKET),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=ignored,
    )


def _await_health(folder: Path, record: _Record, progress: Progress) -> bool:
    """Whether the server answers, waiting while it starts; False if it ended instead.

    One request, made at once: it waits in the listening queue and is answered the moment that the server is ready.
    """
    begun, told = time.monotonic(), 1.0
    client = http.client.HTTPConnection(HOST, record.port, timeout=START_TIMEOUT)
    try:
        client.request("GET", "/api/health")
        while not select.select([client.sock], [], [], 0.25)[0]:
            waited = time.monotonic() - begun
            if not _alive(record):
                return False
            if waited > START_TIMEOUT:
                raise _start_failure(folder, f"does not answer after {START_TIMEOUT:.0f} s")
            if waited > told:
                progress(_waiting(folder, waited))
                told = waited + 5.0
        if client.getresponse().status == http.HTTPStatus.OK:
            return True
    except (OSError, http.client.HTTPException):
        if _gone(record, within=STOP_TIMEOUT):  # it was on its way out: the socket closes before the process ends
            return False
    finally:
        client.close()
    raise _start_failure(folder, f"at {record.api_url} runs, but is not healthy")


def _waiting(folder: Path, waited: float) -> str:
    first = "" if (folder / "prefect" / "memo_store.toml").exists() else "; the first start prepares its database"
    return f"starting the Prefect server ({waited:.0f} s{first})"


def _start_failure(folder: Path, what: str) -> ServerError:
    log = folder / "server.log"
    lines = last_lines(log)
    said = "".join(f"\n  {line}" for line in lines) or " (and wrote nothing to its log)"
    return ServerError(f"the Prefect server {what}{said}", hint=f"the whole log is {log}; `qo doctor` checks the rest")


def last_lines(log: Path, count: int = 8) -> list[str]:
    """The last lines of a log that say something to a user: without the frames of a traceback."""
    try:
        text = log.read_text(errors="replace")[-20_000:]
    except FileNotFoundError:
        return []
    told = (line.rstrip() for line in text.splitlines())
    return [line for line in told if line and not line[0].isspace() and not _is_frame(line)][-count:]


def _is_frame(line: str) -> bool:
    joints = ("Traceback (most recent", "The above exception was", "During handling of", "(Background on this error")
    return any(joint in line for joint in joints)


# ---------------------------------------------------------------- ending


def _end(record: _Record) -> None:
    """End the process on record, then what is left of its session; each only while its start time is as it was."""
    family = {pid: ticks for pid in _session(record.pid) if (ticks := start_ticks(pid)) is not None}
    os.kill(record.pid, signal.SIGTERM)
    if not _gone(record, within=STOP_TIMEOUT):
        os.kill(record.pid, signal.SIGKILL)
    for pid, ticks in family.items():
        if pid != record.pid and start_ticks(pid) == ticks:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
                os.kill(pid, signal.SIGKILL)
    if not _gone(record, within=STOP_TIMEOUT):
        raise ServerError(
            f"the Prefect server (pid {record.pid}) does not end", hint=f"see `ps -o stat,wchan -p {record.pid}`"
        )


def _session(leader: int) -> list[int]:
    """The processes of a session: field 6 of /proc/PID/stat."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if (fields := stat_fields(pid)) and int(fields[3]) == leader]


def _gone(record: _Record, within: float) -> bool:
    """Whether the process has ended, waiting `within` seconds for it."""
    deadline = time.monotonic() + within
    while _alive(record):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def answers(port: int, *, timeout: float = 3.0) -> bool:
    """Whether our server says at this moment that it is healthy."""
    client = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        client.request("GET", "/api/health")
        return client.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


# ---------------------------------------------------------------- the server's own process

_NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
}
# What a client asks a server of another version, or one that wants tokens: ours is neither. It saves 5 requests.
_SAME_MACHINE = {
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
}
# Prefect records task runs and events one by one unless told otherwise: 34 instead of 9 ms of processor time a task.
_BATCHES = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
}
# The server outlives the command that started it, so it takes over what a process needs to work, and no secrets.
_INHERITED = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
}


def server_environment(folder: Path, port: int) -> dict[str, str]:
    """The whole environment of our server: none of the caller's Prefect settings, and none of its secrets."""
    kept = {name: value for name, value in os.environ.items() if name.upper() in _INHERITED or name.startswith("LC_")}
    if imported_from := [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]:  # noqa: PTH100
        kept["PYTHONPATH"] = os.pathsep.join(imported_from)  # the server changes its folder
    origins = ",".join(f"http://{name}:{port}" for name in (HOST, "localhost"))
    return {
        **kept,
        **_NO_TELEMETRY,
        **_BATCHES,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        # Prefect allows every origin: any page open in the user's browser could start runs.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_ENCRYPTION_KEY": _encryption_key(folder),
        # Prefect unpacks the UI into its own installation, which may be read-only.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _encryption_key(folder: Path) -> str:
    """The Fernet key that Secret blocks are encrypted with: made once, kept out of the database that it protects."""
    file = folder / "encryption.key"
    if not file.exists():
        draft = folder / "encryption.key.new"
        draft.unlink(missing_ok=True)
        with open(draft, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as new:
            new.write(base64.urlsafe_b64encode(os.urandom(32)) + b"\n")
            os.fsync(new.fileno())
        draft.rename(file)
    key = file.read_text(errors="replace").strip()
    if len(key) != 44:  # 32 bytes in base64
        raise StateError(
            f"{file} holds no encryption key",
            hint="restore it from a backup; without it the Secret blocks of this server cannot be read. To give them "
            "up, delete it",
        )
    return key


def _let_schedules_insert_runs() -> None:
    """Prefect inserts scheduled runs in bulk, each with its state, which is no column: from SQLAlchemy 2.1 on, that is
    an error and no schedule ever fires; before, it was ignored. (With 2.0, runs at once block each other for a minute.)
    """
    from prefect.server.database.orm_models import FlowRun
    from sqlalchemy import inspect

    state: Any = inspect(FlowRun).all_orm_descriptors["state"]
    state.bulk_dml_setter = lambda *_: None


def _serve(folder: Path) -> None:
    """Become the server: what the detached process runs."""
    # Whoever reads a pipe that the starter had open waits until the last copy of it is closed: keep none.
    os.closerange(_SOCKET + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)  # Prefect reads .env, prefect.toml and pyproject.toml of the current folder: not the caller's
    os.umask(0o077)
    import gc

    gc.disable()  # the imports only make objects that stay: collecting among them costs 7 % of the start
    import uvicorn
    from prefect.server.api.server import create_app

    from quantum_orchestrator.deployments.busy_database import patient

    _let_schedules_insert_runs()
    app = patient(create_app())
    gc.freeze()
    gc.enable()
    # log_config: Prefect has set the loggers up. Keep-alive longer than the client's 5 s, so that a connection is
    # never closed here just as the client uses it again.
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=30))
    server.run(sockets=[socket.socket(fileno=_SOCKET)])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

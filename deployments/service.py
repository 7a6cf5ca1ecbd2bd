"""The warm service: a process that has imported everything a run needs, and forks for each command.

One a user, state folder and installation, in `$QO_HOME/service/KEY/` (0700), which holds

    service.json   which process it is: see `process_identity`
    service.log    its output, new with each start
    socket         0600, there from the moment that it can serve
    lock           held while deciding whether to start one, and while ending it

It has one thread, no event loop and no connection but its socket, and waits for nobody: each connection is served in a
fork (see `service_command`), which tells it by a datagram whom it keeps. It owns nothing that a run needs: it may end,
or die, at any moment, and whatever is at work goes on. So it ends when it has been idle for QO_SERVICE_IDLE_MINUTES,
when its folder or socket is gone, when code that it has loaded has changed, and when it is asked to (`qo down`).

Invariant: no process is signalled unless its pid, start time and boot are those on record. Importing this module starts
nothing and does not import Prefect.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.home import home, private_folder
from quantum_orchestrator.deployments import prefect_settings, server
from quantum_orchestrator.deployments.loaded_code import LoadedCode
from quantum_orchestrator.deployments.process_identity import Identity
from quantum_orchestrator.deployments.service_client import connected, folder_of, message, peer
from quantum_orchestrator.deployments.service_command import Counter, keep

IDLE_MINUTES = 180.0
START_SECONDS = 60.0
STOP_SECONDS = 5.0
LOOK_SECONDS = 5.0
"""How often it looks whether its folder is still there."""
_INHERITED = {
    *(
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "XDG_STATE_HOME",
        "QO_HOME",
    ),
    "QO_SERVICE_IDLE_MINUTES",
}
_INHERITED_KINDS = ("LC_", "PYTHON", "LD_", "MALLOC_", "GLIBC_", "GIT_PYTHON_", "OPENSSL_")


@dataclass(frozen=True, slots=True)
class State:
    """What `qo doctor`, `qo up` and `qo down` tell of a service."""

    pid: int
    answers: bool
    since: float
    """Seconds since the epoch."""
    at_work: tuple[dict[str, Any], ...]
    log: Path
    memory_bytes: int


# ---------------------------------------------------------------- what callers use


def start() -> Path:
    """Start the service of this installation unless it runs, without waiting for it; its folder."""
    folder = _own_folder()
    with _lock(folder):
        if _recorded(folder) is None:
            _start(folder)
    return folder


def ensure() -> State:
    """A service that answers, started if needed. Raises QuantumError if it does not come up."""
    folder = start()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        state = _state(folder)
        if state is None:
            break
        if state.answers:
            return state
        time.sleep(0.05)
    raise QuantumError(
        f"the warm service does not come up{_last_words(folder)}",
        hint=f"the whole log is {folder / 'service.log'}; runs go on without it, and QO_SERVICE=off has none started",
    )


def states(state_folder: Path) -> list[State]:
    """The services that run on a state folder, of this and of other installations."""
    found = (_state(folder) for folder in _folders(state_folder))
    return [state for state in found if state is not None]


def stop(state_folder: Path) -> list[State]:
    """End them; how they were. What is at work goes on."""
    ended = []
    for folder in _folders(state_folder):
        with _lock(folder):
            state, process = _state(folder), _recorded(folder)
            if state is None or process is None:
                continue
            _end(process)
            ended.append(state)
    return ended


def _own_folder() -> Path:
    return private_folder(private_folder(home() / "service") / Path(folder_of(os.environ)).name)


def _folders(state_folder: Path) -> list[Path]:
    return sorted(each.parent for each in (state_folder / "service").glob("*/service.json"))


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / "service.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""


# ---------------------------------------------------------------- the process on record


def _recorded(folder: Path) -> Identity | None:
    """The service of a folder, if it lives."""
    try:
        found = json.loads((folder / "service.json").read_bytes())
        process = Identity(int(found["pid"]), int(found["start_ticks"]), str(found["boot_id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # as good as none: the next start writes a new one
    return process if process.pid > 1 and process.alive() else None


def _state(folder: Path) -> State | None:
    process = _recorded(folder)
    if process is None:
        return None
    at_work = _asked(folder, process.pid)
    return State(
        pid=process.pid,
        answers=at_work is not None,
        since=(folder / "service.json").stat().st_mtime,
        at_work=tuple(at_work or ()),
        log=folder / "service.log",
        memory_bytes=_memory(process.pid),
    )


def _asked(folder: Path, pid: int) -> list[dict[str, Any]] | None:
    """What is at work; None if it does not answer."""
    try:
        with connected(str(folder)) as connection, connection.makefile("rb") as answers:
            if peer(connection) != (pid, os.geteuid()):
                return None
            connection.sendall(message({"do": "state"}))
            found = json.loads(answers.readline())["at_work"]
    except (OSError, ValueError, KeyError):
        return None
    return list(found)


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel frees it when that ends, however it ends."""
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _start(folder: Path) -> None:
    """Start it in a session of its own, with nothing of ours."""
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "quantum_orchestrator.deployments.service", str(folder)],
        _environment(folder),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(folder / "service.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=ignored,
    )
    process = Identity.of(pid)
    if process is not None:
        draft = folder / "service.json.new"
        draft.write_text(json.dumps(asdict(process)) + "\n")
        draft.replace(folder / "service.json")


def _environment(folder: Path) -> dict[str, str]:
    """None of the caller's secrets; Prefect's settings as most runs have them, who then need not read them again."""
    known = server.find(home())
    settings = {
        "PREFECT_HOME": str(private_folder(home() / "prefect-client")),
        "PREFECT_PROFILES_PATH": str(folder / "no-profiles.toml"),
    }
    if known is not None and known.own:
        settings = server.client_environment(known)
    inherited = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_KINDS)
    }
    return {**inherited, **settings}


def _end(process: Identity) -> None:
    """Raises QuantumError if it does not end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(process.pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if not process.alive():
                return
            time.sleep(0.01)
    raise QuantumError(
        f"the warm service (pid {process.pid}) does not end", hint=f"see `ps -o stat,wchan -p {process.pid}`"
    )


# ---------------------------------------------------------------- the service's own process


class _Service:
    """Accepts, forks and reaps."""

    def __init__(self, folder: Path, code: LoadedCode) -> None:
        self._folder = folder
        self._code = code
        self._kept: dict[int, dict[str, Any]] = {}
        self._idle_seconds = 60 * float(os.environ.get("QO_SERVICE_IDLE_MINUTES") or IDLE_MINUTES)
        self._busy_at = time.monotonic()
        self._ended, tell_ended = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(tell_ended, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._told, self._tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.setblocking(False)
        self._listener = _listening(folder)
        self._place = (folder / "socket").stat().st_ino

    def serve(self) -> str:
        """Until there is a reason to end, which it gives."""
        poller = select.poll()
        for source in (self._ended, self._told, self._listener):
            poller.register(source, select.POLLIN)
        limit = min(LOOK_SECONDS, self._idle_seconds) * 1000
        while True:
            ready = {descriptor for descriptor, _ in poller.poll(limit)}
            if self._ended in ready:
                os.read(self._ended, 4096)
            if why := self._hear():
                return why
            self._reap()
            if why := self._over():
                return why
            if self._listener.fileno() in ready:
                self._accept()

    def close(self) -> None:
        """Take the socket away, unless another service has put its own there."""
        with contextlib.suppress(OSError):
            if (self._folder / "socket").stat().st_ino == self._place:
                (self._folder / "socket").unlink()

    def _over(self) -> str:
        try:
            if (self._folder / "socket").stat().st_ino != self._place:
                return "another service has taken its place"
        except OSError:
            return "its folder is gone"
        idle = not self._kept and time.monotonic() - self._busy_at > self._idle_seconds
        return "idle" if idle else ""

    def _hear(self) -> str:
        """What keepers say: whom they keep, or that this must end."""
        while True:
            try:
                said = json.loads(self._told.recv(65536))
            except BlockingIOError:
                return ""
            if "end" in said:
                return str(said["end"])
            if said["keeper"] in self._kept:
                self._kept[said["keeper"]] = said

    def _reap(self) -> None:
        while self._kept:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._kept.pop(pid, None)
            self._busy_at = time.monotonic()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again, or there is no descriptor left: the client waits or runs by itself
        with connection:
            try:
                pid = os.fork()
            except OSError as problem:
                print(f"cannot fork: {problem}", file=sys.stderr, flush=True)  # noqa: T201 - its log
                return
            if pid == 0:
                self._keep(connection)
            self._kept[pid] = {}
            self._busy_at = time.monotonic()

    def _keep(self, connection: socket.socket) -> NoReturn:
        """What a fork does."""
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(self._ended)
            self._listener.close()
            connection.setblocking(True)
            keep(connection, Counter(self._code.changed, [each for each in self._kept.values() if each], self._say))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(code)

    def _say(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the service has ended meanwhile
            self._tell.send(json.dumps(what).encode())


def _listening(folder: Path) -> socket.socket:
    """The socket, at its place from the moment that it listens."""
    draft = folder / "socket.new"
    draft.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.chdir(folder)  # its name is short: a socket's path may have 107 bytes
    listener.bind(draft.name)
    draft.chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    draft.replace(folder / "socket")
    return listener


_NEEDED_LATER = (
    *("anyio._backends._asyncio", "anyio.streams.tls", "encodings.idna", "encodings.utf_8_sig", "graphviz"),
    *("prefect.task_engine", "prefect.concurrency._asyncio", "prefect.concurrency._events", "prefect._internal.states"),
    *("prefect.concurrency.asyncio", "prefect.concurrency.services", "prefect.utilities.visualization"),
    *("websockets.asyncio.client", "rich.live", "git", "certifi", "quantum_orchestrator.blocks.policy_file"),
    *(f"quantum_orchestrator.flows.{name}" for name in ("orchestrate", "plan_file", "verdicts")),
    *(f"quantum_orchestrator.deployments.{name}" for name in ("crashed", "display", "planning", "rollback_in_prefect")),
)
"""What commands import only when they need it."""


def load_everything() -> None:
    """Import what any command needs, for a process that forks commands."""
    from quantum_orchestrator.deployments import cli
    from quantum_orchestrator.tasks import registry

    prefect_settings.read_again()
    for name in cli.COMMANDS:
        cli.command(name)
    registry.every()
    for name in _NEEDED_LATER:
        importlib.import_module(name)
    _complete_models()


def _complete_models() -> None:
    """Prefect's models are put together when they are first used, which would be in every fork again."""
    from pydantic import BaseModel

    waiting = BaseModel.__subclasses__()
    while waiting:
        model = waiting.pop()
        waiting += model.__subclasses__()
        if not model.__pydantic_complete__:
            model.model_rebuild(raise_errors=False)


def _serve(folder: Path) -> NoReturn:
    """Become the service: what the detached process runs."""
    began = time.time()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.umask(0o077)
    gc.disable()  # the imports only make objects that stay
    load_everything()
    threads = os.listdir("/proc/self/task")  # noqa: PTH208
    if len(threads) != 1:
        sys.exit(f"an import has started {len(threads) - 1} threads: nothing can be forked here")
    service = _Service(folder, LoadedCode(began))
    gc.collect()
    gc.freeze()  # what is shared with the forks stays shared
    gc.enable()
    ended: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: _leave(service, "asked to"))
    ended.append(service.serve())
    _leave(service, ended[0])


def _leave(service: _Service, why: str) -> NoReturn:
    service.close()
    print(f"ended: {why}", flush=True)  # noqa: T201 - its log
    os._exit(0)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

"""What `qo doctor` looks at: each thing that runs depend on, whether it is well, and what to do if it is not.

It changes nothing but the state folder, which it makes as a run would, starts no server and does not import Prefect.
A check never raises: what goes wrong while looking is its finding.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.home import private_folder
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.sandbox import Level, Processes
from quantum_orchestrator.deployments import server
from quantum_orchestrator.deployments.prefect_settings import configured_api_url

_ENOUGH_BYTES = 500 * 1024**2  # the server's database and UI take about 25 MB, before-images what a run touches
_OLDEST_GIT = (2, 25)
_OPENAT2 = 437  # the number of the system call, the same on every architecture
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "fuse.sshfs", "fuse.s3fs"}
_LOCK_HINT = "install what requirements.lock names: ./run does"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `hint` says what to do and is empty when all is well."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def doctor(home: Path) -> list[Check]:
    """Every check, in the order in which one failing explains the next."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("Python", _python),
        ("git", _git),
        ("openat2", _openat2),
        ("state folder", lambda: _state_folder(home)),
        ("file system", lambda: _file_system(home)),
        ("disk space", lambda: _disk_space(home)),
        ("sandbox", lambda: _sandbox(home)),
        ("Prefect", _prefect),
        ("fastapi", _fastapi),
        ("ruff", _ruff),
        ("Prefect API", _api),
        ("server", lambda: _server(home)),
        ("port", lambda: _port(home)),
    ]
    return [_found(name, check) for name, check in checks]


def _found(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except QuantumError as error:
        return Check(name, ok=False, detail=error.message, hint=error.hint)
    except PackageNotFoundError as error:
        return Check(name, ok=False, detail=f"{error.name} is not installed", hint=_LOCK_HINT)
    except OSError as error:
        return Check(name, ok=False, detail=str(error), hint="see that the file or program named can be used")


def _judged(name: str, ok: bool, detail: str, hint: str) -> Check:
    return Check(name, ok, detail, "" if ok else hint)


# ---------------------------------------------------------------- programs and the machine


def _python() -> Check:
    detail = f"{sys.version.split()[0]} at {sys.executable}"
    return _judged("Python", sys.version_info >= (3, 11), detail, "install Python 3.11 or newer")


def _git() -> Check:
    if not shutil.which("git"):
        return Check("git", ok=False, detail="not found on the PATH", hint="install git")
    from git import Git  # imported here: importing it without a git program raises

    found = Git().version_info
    detail = f"{'.'.join(map(str, found))} at {shutil.which('git')}"
    return _judged("git", found >= _OLDEST_GIT, detail, f"install git {'.'.join(map(str, _OLDEST_GIT))} or newer")


def _ruff() -> Check:
    place = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    return _judged("ruff", place is not None, f"{version('ruff')} at {place or 'no place on the PATH'}", _LOCK_HINT)


def _openat2() -> Check:
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, 0)
    descriptor = libc.syscall(_OPENAT2, -100, b"/", how, len(how))  # -100: AT_FDCWD
    if descriptor < 0:
        reason = os.strerror(ctypes.get_errno())
        # Not a fault: paths are then resolved folder by folder, as safely and a little slower.
        return Check("openat2", ok=True, detail=f"not available ({reason}): paths are resolved folder by folder")
    os.close(descriptor)
    return Check("openat2", ok=True, detail="available")


# ---------------------------------------------------------------- the state folder


def _state_folder(home: Path) -> Check:
    mode = private_folder(home).stat().st_mode
    shared = bool(mode & 0o022)
    detail = f"{home} (mode {mode & 0o7777:04o}{', others may write to it' if shared else ''})"
    return _judged("state folder", not shared, detail, f"chmod 700 {home}")


def _file_system(home: Path) -> Check:
    kind, mount = _mount(home.resolve())
    return _judged(
        "file system",
        kind not in _REMOTE,
        f"{kind} at {mount}",
        "set QO_HOME to a folder on a local disk: SQLite and file locks are not safe over a network",
    )


def _mount(path: Path) -> tuple[str, str]:
    """The type and place of the file system that `path` is on, from /proc/self/mountinfo (see proc(5))."""
    kind, mount = "unknown", "/"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        place = fields[4].encode().decode("unicode_escape")  # a blank is written \040
        if path.is_relative_to(place) and len(place) >= len(mount):
            kind, mount = fields[fields.index("-") + 1], place  # a later mount at the same place hides the earlier
    return kind, mount


def _disk_space(home: Path) -> Check:
    free = shutil.disk_usage(home).free
    return _judged("disk space", free >= _ENOUGH_BYTES, f"{free / 1024**3:.1f} GiB free at {home}", "make room there")


def _sandbox(home: Path) -> Check:
    level, needed = Processes().level, Policy.load(home / "policy.toml").sandbox_require
    reach = ": scripts can reach whatever this user can" if level < Level.LANDLOCK else ""
    detail = f"level {level:d} ({level.name}){reach}"
    if level >= needed:
        return Check("sandbox", ok=True, detail=detail)
    hint = f"[sandbox] require = {needed} in {home / 'policy.toml'} asks for more than there is here"
    return Check("sandbox", ok=False, detail=f"{detail}; every script is refused", hint=hint)


# ---------------------------------------------------------------- Prefect


def _prefect() -> Check:
    found = version("prefect")
    return _judged("Prefect", found.startswith("3.8."), found, f"Prefect 3.8 is needed; {_LOCK_HINT}")


def _fastapi() -> Check:
    found = version("fastapi")
    numbers = tuple(int(part) for part in found.split(".")[:2])
    return _judged("fastapi", numbers < (0, 151), found, f"Prefect 3.8 needs one below 0.151; {_LOCK_HINT}")


def _api() -> Check:
    url = configured_api_url()
    if not url:
        return Check("Prefect API", ok=True, detail="none configured: qo uses a server of its own")
    problem = server.unreachable(url, timeout=5.0)
    hint = "start it, or see `prefect config view`; without PREFECT_API_URL, qo uses a server of its own"
    return _judged("Prefect API", problem is None, f"{url}: {problem or 'answers'}", hint)


def _server(home: Path) -> Check:
    state = server.state(home)
    size = f"database {state.database_bytes / 1024**2:.1f} MB, log {state.log}"
    if not state.running:
        return Check("server", ok=True, detail=f"not running; {size}")
    detail = f"{state.api_url}, pid {state.pid}, Prefect {state.version}, up {state.uptime or 0:.0f} s, {size}"
    if state.healthy:
        return Check("server", ok=True, detail=detail)
    said = "".join(f"\n  {line}" for line in server.last_lines(state.log, 3))
    return Check("server", ok=False, detail=f"does not answer: {detail}{said}", hint="qo down, then qo up")


def _port(home: Path) -> Check:
    port, running = server.port(home), server.state(home).running
    if port is None:
        return Check("port", ok=True, detail="none yet: the first start takes a free one")
    if running:
        return Check("port", ok=True, detail=f"{port}, taken by our server")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.HOST, port))
        except OSError:
            return Check("port", ok=True, detail=f"{port} is taken by another program: the next start takes another")
    return Check("port", ok=True, detail=f"{port} is free for the next start")

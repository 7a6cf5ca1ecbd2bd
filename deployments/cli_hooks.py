"""Commands about git hooks that run instruction sets.

Where the files are is `deployments/git_hooks.py`'s matter, what a hook does `deployments/hook_runs.py`'s.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk, existing_root, load_source
from quantum_orchestrator.deployments.screen import aligned

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.repository import Repository

HookName = Annotated[str, Parameter(help="The hook, such as pre-commit, commit-msg, pre-push or post-merge.")]
OfRepository = Annotated[str | None, Parameter(name="--workspace", help="The repository; without it the current one.")]


def install(
    hook: HookName,
    file: Annotated[str, Parameter(help="The instruction set that it runs.")],
    /,
    *,
    workspace: OfRepository = None,
    talk: Talk = TALK,
) -> int:
    """Have git run an instruction set in a hook.

    A hook that is there already stays, and runs first. core.hooksPath counts. A set
    that fails stops git; in pre-commit, staged files that it has changed are
    staged again. What git tells the hook is given to those of these inputs that
    the set declares: hook, args, paths (staged), refs (of pre-push: local_ref,
    local_oid, remote_ref, remote_oid), stdin, message. In prepare-commit-msg and
    commit-msg, what a step called `message` says (an echo) becomes the message.
    A set that changes after it was installed runs as untrusted.
    """
    from quantum_orchestrator.deployments.git_hooks import Hook, hooks_folder
    from quantum_orchestrator.deployments.git_hooks import install as put
    from quantum_orchestrator.deployments.hook_runs import document_digest

    _check(hook)
    repository = _repository(workspace)
    path = Path(file).resolve()
    named = str(path.relative_to(repository.root)) if path.is_relative_to(repository.root) else str(path)
    folder = hooks_folder(repository)
    digest = document_digest(load_source(file).document)
    chained = put(folder, repository.root, Hook(hook, named, digest))
    first = ", after the hook that was there" if chained else ""
    talk.screen.result(f"{folder / hook}: runs {named}{first}")
    return 0


def uninstall(hook: HookName, /, *, workspace: OfRepository = None, talk: Talk = TALK) -> int:
    """Take a hook away, and put back the one that was there before."""
    from quantum_orchestrator.deployments.git_hooks import hooks_folder
    from quantum_orchestrator.deployments.git_hooks import uninstall as take

    _check(hook)
    folder = hooks_folder(_repository(workspace))
    back = take(folder, hook)
    talk.screen.result(f"{folder / hook}: " + ("the one that was there before is back" if back else "taken away"))
    return 0


def list_(*, workspace: OfRepository = None, json_: Json = False, talk: Talk = TALK) -> int:
    """List the hooks that run instruction sets."""
    from quantum_orchestrator.deployments.git_hooks import ASIDE, hooks_folder, installed

    folder = hooks_folder(_repository(workspace))
    found = list(installed(folder))
    chained = {each.name: os.path.lexists(folder / (each.name + ASIDE)) for each in found}
    if json_:
        hooks = [{**asdict(each), "chained": chained[each.name]} for each in found]
        talk.screen.document({"folder": str(folder), "hooks": hooks})
    elif not found:
        talk.screen.note(f"{folder}: no hook runs an instruction set")
    else:
        rows = [[each.name, each.set, "after the one before it" if chained[each.name] else ""] for each in found]
        talk.screen.result("\n".join(aligned([["HOOK", "SET", ""], *rows])))
    return 0


def run(
    hook: HookName,
    /,
    *arguments: Annotated[str, Parameter(help="What git gives to the hook.")],
    set_: Annotated[str, Parameter(name="--set", help="The instruction set.")],
    sha256: Annotated[
        str | None,
        Parameter(name="--sha256", help="The set's digest when it was installed; another runs as untrusted."),
    ] = None,
    talk: Talk = TALK,
) -> int:
    """Do what an installed hook does; for hook managers, such as pre-commit.

    The current folder must be the repository's. A set without --sha256 is
    untrusted, unless `trusted` under [doors] in policy.toml names hooks.
    """
    from quantum_orchestrator.deployments.hook_runs import Called, run_hook

    _check(hook)
    return run_hook(talk.screen, Called.now(hook, arguments), set_, sha256)


def _check(hook: str) -> None:
    import difflib

    from quantum_orchestrator.deployments.git_hooks import HOOKS

    if hook not in HOOKS:
        near = difflib.get_close_matches(hook, HOOKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(HOOKS)}"
        raise UsageError(f"there is no hook {hook!r} that runs in a workspace", hint=hint)


def _repository(workspace: str | None) -> Repository:
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.blocks.repository import Repository

    return Repository(existing_root(workspace), Policy())

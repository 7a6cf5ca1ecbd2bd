"""The `git.*` operations that speak to other repositories: fetch, push and clone.

The policy says by which protocols. `git.push` is seen by others and cannot be undone: it waits until everything else
has succeeded. Credentials in URLs never reach a message or an output.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.git_names import (
    check_new_name,
    check_refspec,
    check_remote,
    check_url,
    without_credentials,
)
from quantum_orchestrator.blocks.paths import check_path, shown
from quantum_orchestrator.blocks.repository import Answer, Commands, Repository
from quantum_orchestrator.tasks.git_common import GIT_FOLDER, WRITES_GIT, commands_of, repository_of
from quantum_orchestrator.tasks.operation import (
    Access,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    operation,
)


class RemoteParameters(Parameters):
    """Which remote, and what of it."""

    remote: str = Field(default="origin", description="A remote's name, or a URL.")
    refspec: str | None = Field(default=None, description="NAME or SOURCE:DESTINATION; + before it forces.")


class FetchOutputs(Outputs):
    """What has come."""

    updated: list[str] = Field(description="The full names of the refs that were made, moved or removed.")


@operation("git.fetch")
class Fetch(Operation[RemoteParameters, FetchOutputs]):
    """Bring the commits and branches of a remote into the repository; no branch of its own and no file changes."""

    example: ClassVar[Mapping[str, Any]] = {"remote": "origin"}

    def effects(self, parameters: RemoteParameters) -> Effects:
        """Writes the repository."""
        return WRITES_GIT

    def run(self, parameters: RemoteParameters, context: Context) -> FetchOutputs:
        """Raises OperationError when the remote cannot be reached, PolicyRefused for its protocol."""
        remote, refspecs = _checked(parameters)
        commands = commands_of(context)
        before = _refs(commands)
        options = ("--quiet", "--no-recurse-submodules", "--no-auto-maintenance", "--upload-pack=git-upload-pack")
        commands.run("fetch", *options, "--", remote, *refspecs, remote=True)
        after = _refs(commands)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        return FetchOutputs(updated=sorted(changed))


class PushOutputs(Outputs):
    """What was taken there."""

    remote: str = Field(description="The remote.")
    updated: list[str] = Field(description="The full names of the refs that the remote has made, moved or removed.")


@operation("git.push")
class Push(Operation[RemoteParameters, PushOutputs]):
    """Take commits to a remote: the current branch, or what `refspec` says. It cannot be undone."""

    example: ClassVar[Mapping[str, Any]] = {"remote": "origin", "refspec": "main"}

    def effects(self, parameters: RemoteParameters) -> Effects:
        """Writes the repository (what it knows of the remote), and acts outside of the workspace."""
        return Effects(reads=(GIT_FOLDER,), writes=(GIT_FOLDER,), predictable=False, irreversible=True)

    def run(self, parameters: RemoteParameters, context: Context) -> PushOutputs:
        """Raises OperationError when the remote cannot be reached or rejects it, PolicyRefused for its protocol."""
        remote, refspecs = _checked(parameters)
        commands = commands_of(context)
        if not refspecs:
            if commands.branch() is None:
                raise OperationError("no branch is checked out to push", hint="say what to push in `refspec`")
            refspecs = ["HEAD"]
        options = ("--porcelain", "--no-verify", "--no-signed", "--no-recurse-submodules", "--no-follow-tags")
        program = "--receive-pack=git-receive-pack"
        answer = commands.run("push", *options, program, "--", remote, *refspecs, remote=True)
        return PushOutputs(remote=without_credentials(remote), updated=_pushed(answer))


def _checked(parameters: RemoteParameters) -> tuple[str, list[str]]:
    refspecs = [] if parameters.refspec is None else [check_refspec(parameters.refspec)]
    return check_remote(parameters.remote), refspecs


def _refs(commands: Commands) -> dict[str, str]:
    lines = commands.run("for-each-ref", "--format=%(refname) %(objectname)", reads=True).text.splitlines()
    return {name: commit for name, _, commit in (line.partition(" ") for line in lines)}


def _pushed(answer: Answer) -> list[str]:
    """Format: git-push(1), OUTPUT, --porcelain: a flag (= is no change), the refs, a summary, with tabs between."""
    rows = [line.split("\t") for line in answer.text.splitlines()]
    return [row[1].rpartition(":")[2] for row in rows if len(row) == 3 and row[0] != "="]


class CloneParameters(Parameters):
    """What to clone, and where to."""

    url: str = Field(description="The repository's URL; its protocol must be in the policy.")
    path: FolderPath = Field(description="The folder to make; an empty one will do.")
    depth: int | None = Field(default=None, ge=1, description="Only so many of the newest commits.")
    branch: str | None = Field(default=None, description="The branch or tag to check out; by default the remote's own.")


class CloneOutputs(Outputs):
    """The clone."""

    path: str = Field(description="Its folder.")
    branch: str | None = Field(description="The branch that is checked out.")
    commit: str | None = Field(description="The commit that is checked out; null if there is none.")


@operation("git.clone")
class Clone(Operation[CloneParameters, CloneOutputs]):
    """Clone a repository into a folder of the workspace. Submodules are left out."""

    example: ClassVar[Mapping[str, Any]] = {"url": "https://example.org/library.git", "path": "library", "depth": 1}

    def effects(self, parameters: CloneParameters) -> Effects:
        """Writes the folder."""
        return Effects(writes=(Access(parameters.path, subtree=True),), predictable=False)

    def run(self, parameters: CloneParameters, context: Context) -> CloneOutputs:
        """Raises PolicyRefused for the protocol, OperationError when it fails or something is at `path`."""
        repository = repository_of(context)
        url = check_url(parameters.url, repository.policy.git_protocols)
        path = check_path(parameters.path, folder=True)
        _require_free(repository, path)
        options = ["--quiet", "--template=", "--no-local", "--no-recurse-submodules", "--upload-pack=git-upload-pack"]
        if parameters.depth is not None:
            options += [f"--depth={parameters.depth}", "--single-branch"]
        if parameters.branch is not None:
            options.append(f"--branch={check_new_name(parameters.branch, 'branch')}")
        commands = repository.commands_without(timeout=context.timeout, cancel=context.cancel)
        commands.run("clone", *options, "--", url, path, remote=True)
        made = Repository(repository.root / path, repository.policy).commands(timeout=context.timeout)
        return CloneOutputs(path=path, branch=made.branch(), commit=made.find("HEAD"))


def _require_free(repository: Repository, path: str) -> None:
    with ConfinedFolder.open(repository.root) as workspace:
        found = workspace.lstat(path)  # raises PathRefused for a link on the way
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            raise PathRefused(f"{shown(path)}: is not a folder", hint="clone to a path where nothing is")
        if workspace.names(path):
            raise OperationError(f"{shown(path)}: is not empty", hint="clone to a path where nothing is")

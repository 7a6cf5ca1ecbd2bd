"""The `git.*` operations that speak to other repositories: fetch, push and clone.

The policy says by which protocols. `git.push` is seen by others and cannot be undone: it waits until everything else
has succeeded. Credentials in URLs never reach a message or an output.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

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
from quantum_orchestrator.blocks.repository import Commands, Repository
from quantum_orchestrator.tasks.git_common import GIT_FOLDER, WRITES_GIT, commands_of, repository_of
from quantum_orchestrator.tasks.operation import (
    Access,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    Reach,
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

    def reach(self, parameters: RemoteParameters) -> Reach:
        """Another repository."""
        return Reach(network=True)

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
    """Take commits to a remote: the current branch, or what `refspec` says.

    It cannot be undone, so that it waits until everything else has succeeded. After a crash it looks first whether it
    had got through. Forcing (`+`) overwrites what is there at that moment, and nothing that comes meanwhile.
    """

    example: ClassVar[Mapping[str, Any]] = {"remote": "origin", "refspec": "main"}

    def effects(self, parameters: RemoteParameters) -> Effects:
        """Writes the repository (what it knows of the remote), and acts outside of the workspace."""
        return Effects(
            reads=(GIT_FOLDER,), writes=(GIT_FOLDER,), predictable=False, keeps_objects=True, irreversible=True
        )

    def reach(self, parameters: RemoteParameters) -> Reach:
        """Another repository."""
        return Reach(network=True)

    def run(self, parameters: RemoteParameters, context: Context) -> PushOutputs:
        """Raises OperationError when the remote cannot be reached or rejects it, PolicyRefused for its protocol."""
        remote, refspecs = _checked(parameters)
        commands = commands_of(context)
        if not refspecs:
            if commands.branch() is None:
                raise OperationError("no branch is checked out to push", hint="say what to push in `refspec`")
            refspecs = ["HEAD"]
        forced = any(each.startswith("+") for each in refspecs)
        leases: list[str] = []
        if forced or context.in_doubt:
            planned = _push(commands, remote, refspecs, "--dry-run")
            if context.in_doubt and all(row.flag == "=" for row in planned):  # it had got through
                rows = _push(commands, remote, refspecs)  # nothing changes there, but what is known here of it
                return PushOutputs(remote=without_credentials(remote), updated=[row.there for row in rows])
            leases = _leases(commands, remote, planned, in_doubt=context.in_doubt)
        if leases:
            refspecs = [each.removeprefix("+") for each in refspecs]  # which would beat the lease
        rows = _push(commands, remote, refspecs, *leases)
        refused = [row for row in rows if row.flag == "!"]
        if refused:
            if len(refused) == len(rows):
                context.not_sent()
            raise _rejected(remote, refused)
        return PushOutputs(remote=without_credentials(remote), updated=[row.there for row in rows if row.flag != "="])


def _checked(parameters: RemoteParameters) -> tuple[str, list[str]]:
    refspecs = [] if parameters.refspec is None else [check_refspec(parameters.refspec)]
    return check_remote(parameters.remote), refspecs


def _refs(commands: Commands) -> dict[str, str]:
    lines = commands.run("for-each-ref", "--format=%(refname) %(objectname)", reads=True).text.splitlines()
    return {name: commit for name, _, commit in (line.partition(" ") for line in lines)}


class _Row(NamedTuple):
    """One ref of a push. Format: git-push(1), OUTPUT, --porcelain.

    `flag` is = for no change, + for forced, ! for rejected.
    """

    flag: str
    there: str
    summary: str


def _push(commands: Commands, remote: str, refspecs: Sequence[str], *more: str) -> list[_Row]:
    options = ["--porcelain", "--no-verify", "--no-signed", "--no-recurse-submodules", "--no-follow-tags", *more]
    if any("*" in each for each in refspecs):
        options.append("--atomic")
    program = "--receive-pack=git-receive-pack"
    answer = commands.run("push", *options, program, "--", remote, *refspecs, accept=(0, 1), remote=True)
    fields = [line.split("\t") for line in answer.text.splitlines()]
    rows = [_Row(row[0], row[1].rpartition(":")[2], row[2]) for row in fields if len(row) == 3]
    if answer.exit_code != 0 and not any(row.flag == "!" for row in rows):
        raise OperationError(
            f"git push: {answer.stderr.strip()}", hint="see that the remote is there and can be written"
        )
    return rows


def _rejected(remote: str, rows: Sequence[_Row]) -> OperationError:
    reasons = "; ".join(f"{row.there}: {row.summary}" for row in rows)
    return OperationError(
        f"git push: {without_credentials(remote)} did not take {reasons}",
        hint="fetch and merge what is there first" if "fetch first" in reasons or "non-fast" in reasons else "",
    )


def _leases(commands: Commands, remote: str, planned: Sequence[_Row], *, in_doubt: bool) -> list[str]:
    """Options by which a ref is overwritten only while it is as it was just now.

    Raises OperationError if it may be somebody's answer to an earlier try of this very push.
    """
    forced = [row.there for row in planned if row.flag == "+"]
    if not forced:
        return []
    if in_doubt:
        raise OperationError(
            f"an earlier try of this push may have got through, and {', '.join(forced)} has another commit there now",
            hint="look at what is there, and force it by hand if it is not somebody's work",
        )
    lines = commands.run("ls-remote", "--", remote, *forced, remote=True).text.splitlines()
    there = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
    return [f"--force-with-lease={name}:{there.get(name, '')}" for name in forced]


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

    def reach(self, parameters: CloneParameters) -> Reach:
        """Another repository."""
        return Reach(network=True)

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

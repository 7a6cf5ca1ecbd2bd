"""The `git.*` operations on the workspace's own repository; those that speak to others are in `tasks/git_remotes.py`.

Each says what it means in git's terms and hands that to `blocks/repository.py`, which sees to it that nothing planted
in a repository runs. None can be predicted, as only git knows what it will do. What an operation changes in `.git` and
in the files is undone by the engine when a run fails; `merge` and `revert` also clean up themselves, so that a conflict
leaves nothing behind even when its failure is continued.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError, QuantumError
from quantum_orchestrator.blocks.git_names import check_new_name, check_revision
from quantum_orchestrator.blocks.paths import check_path, shown
from quantum_orchestrator.blocks.repository import Commands, Person
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.tasks import git_remotes as git_remotes  # declares the rest of the family
from quantum_orchestrator.tasks.git_common import (
    GIT_FOLDER,
    PLAIN_DIFF,
    READS_ALL,
    WRITES_ALL,
    WRITES_GIT,
    commands_of,
    repository_of,
)
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Access,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    operation,
)

_AUTHOR = re.compile(r"([^<>\x00-\x1f]*[^<>\s\x00-\x1f]) *<([^<>\s\x00-\x1f]+)>")


class Author(Parameters):
    """Who writes a commit."""

    name: str = Field(
        min_length=1, pattern=r"^[^<>\x00-\x1f]*[^<>\s\x00-\x1f][^<>\x00-\x1f]*$", description="The name."
    )
    email: str = Field(min_length=1, pattern=r"^[^<>\s\x00-\x1f]+$", description="The mail address.")


class Authored(Parameters):
    """Base of parameters of what makes a commit or an annotated tag."""

    author: Author | str | None = Field(
        default=None,
        description='Who writes it: {"name", "email"} or "Name <mail>"; by default the configured user. '
        "Where none is configured, the author commits, too.",
    )

    def person(self) -> Person | None:
        """The author that is given. Raises OperationError for a text that is none."""
        if self.author is None:
            return None
        if isinstance(self.author, Author):
            return Person(self.author.name, self.author.email)
        parts = _AUTHOR.fullmatch(self.author.strip())
        if parts is None:
            raise OperationError(f"{self.author!r} is no author", hint='write it as "Name <mail@example.org>"')
        return Person(parts[1], parts[2])


class Nothing(Parameters):
    """No parameters."""


class CommitOutputs(Outputs):
    """A commit."""

    commit: str = Field(description="Its full object id.")


def _refuse_unfinished(commands: Commands, verb: str) -> None:
    """Cleaning up after a conflict would throw away what a person has begun."""
    if what := commands.in_the_middle_of():
        raise OperationError(
            f"cannot {verb}: the repository is in the middle of {what}", hint=f"finish or abort {what} first"
        )


# Looking.


class StatusOutputs(Outputs):
    """What differs between the last commit, the index and the files."""

    branch: str | None = Field(description="The current branch; null if none is checked out.")
    head: str | None = Field(description="The last commit's object id; null if there is none yet.")
    clean: bool = Field(description="Whether all of the lists are empty.")
    staged: list[str] = Field(description="Paths whose change is in the index.")
    changed: list[str] = Field(description="Paths that differ from the index.")
    untracked: list[str] = Field(description="Paths that git does not know and does not ignore.")
    conflicted: list[str] = Field(default=[], description="Paths of an unfinished merge.")


@operation("git.status")
class Status(Operation[Nothing, StatusOutputs]):
    """Say on which branch the repository is and which files differ."""

    def effects(self, parameters: Nothing) -> Effects:
        """Reads everything."""
        return READS_ALL

    def run(self, parameters: Nothing, context: Context) -> StatusOutputs:
        """Raises OperationError without a repository."""
        options = ("--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames")
        answer = commands_of(context, files=True).run("status", *options, "--ignore-submodules=dirty", reads=True)
        return _parse_status(answer.fields)


def _parse_status(entries: Sequence[str]) -> StatusOutputs:
    """Format: git-status(1), Porcelain Format Version 2, without renames."""
    head: dict[str, str] = {}
    staged, changed, untracked, conflicted = [], [], [], []
    for entry in entries:
        kind, _, rest = entry.partition(" ")
        if kind == "#":
            name, _, value = rest.partition(" ")
            head[name] = value
        elif kind == "?":
            untracked.append(rest)
        elif kind == "u":
            conflicted.append(rest.split(" ", 9)[9])
        elif kind == "1":
            states, path = rest[:2], rest.split(" ", 7)[7]
            if states[0] != ".":
                staged.append(path)
            if states[1] != ".":
                changed.append(path)
    branch, commit = head["branch.head"], head["branch.oid"]
    return StatusOutputs(
        branch=None if branch == "(detached)" else branch,
        head=None if commit == "(initial)" else commit,
        clean=not (staged or changed or untracked or conflicted),
        staged=staged,
        changed=changed,
        untracked=untracked,
        conflicted=conflicted,
    )


class DiffParameters(Parameters):
    """What to compare."""

    ref: str | None = Field(
        default=None, description="A revision to compare with, or a range a..b; by default the index."
    )
    staged: bool = Field(default=False, description="Compare the index, not the files, with `ref` (the last commit).")
    paths: list[FolderPath] = Field(default=[], description="Only these files and folders.")


class DiffOutputs(Outputs):
    """What differs."""

    text: str = Field(description="A unified diff; bytes that are not UTF-8 become U+FFFD.")
    files: list[str] = Field(description="Paths that differ.")


@operation("git.diff")
class Diff(Operation[DiffParameters, DiffOutputs]):
    """Compare the files, the index and commits."""

    example: ClassVar[Mapping[str, Any]] = {"ref": "HEAD", "paths": ["README.md"]}

    def effects(self, parameters: DiffParameters) -> Effects:
        """Reads everything."""
        return READS_ALL

    def run(self, parameters: DiffParameters, context: Context) -> DiffOutputs:
        """Raises OperationError for a revision that does not exist."""
        commands = commands_of(context, files=True)
        paths = [check_path(path, folder=True) for path in parameters.paths]
        asked = [*PLAIN_DIFF, *(["--cached"] if parameters.staged else [])]
        if parameters.ref is not None:
            asked.append(_existing(commands, parameters.ref))
        files = commands.run("diff", "--name-only", "-z", *asked, "--", *paths, reads=True)
        text = commands.run("diff", "--src-prefix=a/", "--dst-prefix=b/", *asked, "--", *paths, reads=True)
        return DiffOutputs(text=text.stdout.decode(errors="replace"), files=files.fields)


def _existing(commands: Commands, revision: str) -> str:
    """A revision or range, when both ends of it exist; a missing end is HEAD, as git has it."""
    check_revision(revision, ranges=True)
    ends = re.split(r"\.{2,3}", revision)
    if len(ends) > 2:
        raise OperationError(f"{revision!r} is no range", hint="write it as a..b or a...b")
    for end in filter(None, ends):
        commands.resolve(end)
    return revision


class LogParameters(Parameters):
    """Which commits."""

    max_count: int = Field(default=20, ge=1, description="At most so many, the newest.")
    ref: str = Field(default="HEAD", description="Where to start: a revision, or a range a..b.")


class LoggedCommit(Outputs):
    """One commit."""

    commit: str = Field(description="Its full object id.")
    author: str = Field(description='"Name <mail>".')
    date: str = Field(description="When it was written, in ISO 8601 with the zone.")
    subject: str = Field(description="The first line of its message.")


class LogOutputs(Outputs):
    """Commits."""

    commits: list[LoggedCommit] = Field(description="The newest first; empty in a new repository.")


@operation("git.log")
class Log(Operation[LogParameters, LogOutputs]):
    """List commits."""

    example: ClassVar[Mapping[str, Any]] = {"max_count": 5}

    def effects(self, parameters: LogParameters) -> Effects:
        """Reads the repository."""
        return Effects(reads=(GIT_FOLDER,), predictable=False)

    def run(self, parameters: LogParameters, context: Context) -> LogOutputs:
        """Raises OperationError for a revision that does not exist."""
        commands = commands_of(context)
        if parameters.ref == "HEAD" and commands.find("HEAD") is None:
            return LogOutputs(commits=[])
        revision = _existing(commands, parameters.ref)
        form = "--format=%H%x1f%an <%ae>%x1f%aI%x1f%s"
        options = ("-z", "--no-color", "--no-mailmap", "--no-show-signature", f"--max-count={parameters.max_count}")
        answer = commands.run("log", *options, form, "--end-of-options", revision, "--", reads=True)
        entries = answer.stdout.decode(errors="replace").split("\0")
        return LogOutputs(commits=[_parse_commit(entry) for entry in entries if entry])


def _parse_commit(entry: str) -> LoggedCommit:
    commit, author, date, subject = entry.split("\x1f", 3)
    return LoggedCommit(commit=commit, author=author, date=date, subject=subject)


# Committing.


class InitParameters(Parameters):
    """How to begin."""

    branch: str | None = Field(
        default=None, description="The first branch's name; by default as configured in init.defaultBranch, else main."
    )


class InitOutputs(Outputs):
    """The repository."""

    branch: str | None = Field(description="The current branch.")
    created: bool = Field(description="False if there was a repository already; nothing is changed then.")


@operation("git.init")
class Init(Operation[InitParameters, InitOutputs]):
    """Make the workspace a repository, unless it is one."""

    example: ClassVar[Mapping[str, Any]] = {"branch": "main"}

    def effects(self, parameters: InitParameters) -> Effects:
        """Writes the repository."""
        return WRITES_GIT

    def run(self, parameters: InitParameters, context: Context) -> InitOutputs:
        """Raises OperationError for a branch name that git does not take."""
        repository = repository_of(context)
        branch = parameters.branch or repository.users_settings.get("init.defaultbranch") or "main"
        check_new_name(branch, "branch")
        if repository.exists():
            return InitOutputs(branch=commands_of(context).branch(), created=False)
        commands = repository.commands_without(timeout=context.timeout, cancel=context.cancel)
        commands.run("init", "--quiet", "--template=", f"--initial-branch={branch}")
        return InitOutputs(branch=branch, created=True)


class AddParameters(Parameters):
    """What to stage."""

    paths: list[FolderPath] = Field(
        min_length=1, description="Files and folders with everything in them, taken literally; deleted ones, too."
    )
    missing: Literal["fail", "skip"] = Field(
        default="fail", description="What becomes of paths that do not exist: `skip` logs a warning."
    )


class AddOutputs(Outputs):
    """What is staged now."""

    staged: list[str] = Field(description="Every path whose change is in the index.")
    skipped: list[str] = Field(default=[], description="The paths that do not exist.")


@operation("git.add")
class Add(Operation[AddParameters, AddOutputs]):
    """Put the state of files into the index: new, changed and deleted ones."""

    example_files: ClassVar[Mapping[str, str]] = {"notes.txt": "First note\n"}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["notes.txt"]}

    def effects(self, parameters: AddParameters) -> Effects:
        """Reads its paths, writes the repository."""
        paths = tuple(Access(path, subtree=True) for path in parameters.paths)
        return Effects(reads=(*paths, GIT_FOLDER), writes=(GIT_FOLDER,), predictable=False, keeps_objects=True)

    def run(self, parameters: AddParameters, context: Context) -> AddOutputs:
        """Raises OperationError for paths that neither exist nor are tracked, and for ignored ones."""
        paths = [check_path(path, folder=True) for path in parameters.paths]
        commands = commands_of(context, files=True)
        missing = [path for path in paths if not _is_known(commands, path)]
        if missing:
            _report_missing(missing, parameters, context)
        found = [path for path in paths if path not in missing]
        listed = b"".join(os.fsencode(path) + b"\0" for path in found)
        commands.run("add", "--all", "--pathspec-from-file=-", "--pathspec-file-nul", stdin=listed)
        return AddOutputs(staged=_staged(commands), skipped=missing)


def _is_known(commands: Commands, path: str) -> bool:
    """Whether there is something for git at a path: on disk, or in the index, as a deleted file is."""
    if os.path.lexists(commands.repository.root / path):
        return True
    return bool(commands.run("ls-files", "-z", "--", path, reads=True).stdout)


def _report_missing(missing: list[str], parameters: AddParameters, context: Context) -> None:
    names = ", ".join(map(shown, missing))
    if parameters.missing == "fail":
        raise OperationError(
            f"no such files: {names}", hint='check the spelling, or give "missing": "skip" to go on without them'
        )
    if len(missing) == len(parameters.paths):
        raise OperationError(f"none of the paths exists: {names}", hint="check the spelling")
    context.log(f"warning: git.add skips what does not exist: {names}")


def _staged(commands: Commands) -> list[str]:
    return commands.run("diff", "--cached", "--name-only", "-z", *PLAIN_DIFF, reads=True).fields


class CommitParameters(Authored):
    """What to commit, and how."""

    message: str = Field(description="The commit message.")
    all: bool = Field(default=False, description="Stage every change first, new files and deletions, too.")
    allow_empty: bool = Field(default=False, description="Make a commit even if nothing has changed.")
    if_empty: Literal["fail", "skip"] = Field(
        default="fail", description="What an unchanged index means: a failure, or success without a commit."
    )


class MadeCommitOutputs(Outputs):
    """The commit."""

    commit: str | None = Field(description="Its full object id; null if there was nothing to commit.")
    branch: str | None = Field(description="The branch it is on.")


@operation("git.commit")
class Commit(Operation[CommitParameters, MadeCommitOutputs]):
    """Commit what is in the index. No hook runs, and nothing is signed."""

    example_files: ClassVar[Mapping[str, str]] = {"notes.txt": "First note\n"}
    example: ClassVar[Mapping[str, Any]] = {"message": "Add the first note", "all": True}

    def effects(self, parameters: CommitParameters) -> Effects:
        """Writes the repository; reads everything with `all`."""
        reads = EVERYTHING if parameters.all else GIT_FOLDER
        return Effects(reads=(reads,), writes=(GIT_FOLDER,), predictable=False, keeps_objects=True)

    def run(self, parameters: CommitParameters, context: Context) -> MadeCommitOutputs:
        """Raises OperationError when nothing has changed, without an identity, or with an unfinished conflict."""
        author = parameters.person()
        if not parameters.message.strip():
            raise OperationError("the commit message is empty", hint="say what the commit does in `message`")
        commands = commands_of(context, files=True)
        commands.require_identity(author)
        if parameters.all:
            commands.run("add", "--all", "--", ROOT)
        if not parameters.allow_empty and not _has_something(commands):
            return self._empty(parameters, commands, context)
        options = ("--quiet", "--no-verify", "--no-gpg-sign", "--cleanup=whitespace", "--no-status", "--allow-empty")
        commands.run("commit", *options, "--file=-", stdin=parameters.message.encode(errors="replace"), author=author)
        return MadeCommitOutputs(commit=commands.resolve("HEAD"), branch=commands.branch())

    def _empty(self, parameters: CommitParameters, commands: Commands, context: Context) -> MadeCommitOutputs:
        if parameters.if_empty == "fail":
            hint = "stage something with git.add, or give `all`, `allow_empty` or `if_empty`"
            raise OperationError("nothing to commit: the index equals the last commit", hint=hint)
        context.log("nothing to commit")
        return MadeCommitOutputs(commit=None, branch=commands.branch())


def _has_something(commands: Commands) -> bool:
    differs = commands.run("diff", "--cached", "--quiet", *PLAIN_DIFF, accept=(0, 1), reads=True).exit_code == 1
    return differs or commands.in_the_middle_of() is not None


class TagParameters(Authored):
    """The tag."""

    name: str = Field(description="Its name.")
    message: str | None = Field(
        default=None, description="With one, the tag is annotated: it has an author and a date."
    )
    ref: str = Field(default="HEAD", description="The revision to tag.")


@operation("git.tag")
class Tag(Operation[TagParameters, CommitOutputs]):
    """Tag a commit."""

    example: ClassVar[Mapping[str, Any]] = {"name": "v1.0", "message": "The first release"}

    def effects(self, parameters: TagParameters) -> Effects:
        """Writes the repository."""
        return WRITES_GIT

    def run(self, parameters: TagParameters, context: Context) -> CommitOutputs:
        """Raises OperationError if there is such a tag, and for a revision that does not exist."""
        name, author = check_new_name(parameters.name, "tag"), parameters.person()
        commands = commands_of(context)
        commit = commands.resolve(parameters.ref)
        if parameters.message is None:
            commands.run("tag", "--no-sign", "--", name, commit)
        else:
            commands.require_identity(author)
            message = parameters.message.encode(errors="replace")
            commands.run("tag", "--annotate", "--no-sign", "--file=-", "--", name, commit, stdin=message, author=author)
        return CommitOutputs(commit=commit)


# Branches.


class BranchParameters(Parameters):
    """The branch."""

    name: str = Field(description="Its name.")
    checkout: bool = Field(default=False, description="Switch to it.")
    start: str | None = Field(default=None, description="The revision it starts from; by default the last commit.")
    exist_ok: bool = Field(default=False, description="A branch of that name is taken as it is, not an error.")


class BranchOutputs(Outputs):
    """The branch."""

    branch: str = Field(description="Its name.")
    commit: str | None = Field(description="The object id it points to; null in a repository without commits.")
    created: bool = Field(description="False if it was there.")


@operation("git.branch")
class Branch(Operation[BranchParameters, BranchOutputs]):
    """Make a branch, and switch to it if that is asked for."""

    example: ClassVar[Mapping[str, Any]] = {"name": "topic", "checkout": True}

    def effects(self, parameters: BranchParameters) -> Effects:
        """Writes the repository, and the files when it switches to something else than the last commit."""
        if parameters.checkout and (parameters.start is not None or parameters.exist_ok):
            return WRITES_ALL
        return WRITES_GIT

    def run(self, parameters: BranchParameters, context: Context) -> BranchOutputs:
        """Raises OperationError if there is such a branch, or no such revision."""
        name = check_new_name(parameters.name, "branch")
        commands = commands_of(context, files=parameters.checkout)
        start = None if parameters.start is None else commands.resolve(parameters.start)
        exists = commands.has_branch(name) or (commands.branch() == name)
        if exists and not parameters.exist_ok:
            raise OperationError(
                f"there is a branch {name!r} already", hint='choose another name, or give "exist_ok": true'
            )
        if not exists:
            self._make(commands, name, start, parameters.checkout)
        elif parameters.checkout and commands.branch() != name:
            commands.run("checkout", "--quiet", name, "--")
        return BranchOutputs(branch=name, commit=commands.find(f"refs/heads/{name}"), created=not exists)

    def _make(self, commands: Commands, name: str, start: str | None, checkout: bool) -> None:
        if not checkout:
            commands.run("branch", "--no-track", "--", name, start or commands.resolve("HEAD"))
        elif start:
            commands.run("checkout", "--quiet", "--no-track", "-b", name, start, "--")
        else:  # files and index stay as they are, which is also right before the first commit
            head = commands.find("HEAD")
            if head is not None:
                commands.run("branch", "--no-track", "--", name, head)
            commands.run("symbolic-ref", "-m", f"branch: moving to {name}", "HEAD", f"refs/heads/{name}")


class CheckoutParameters(Parameters):
    """What to switch to."""

    ref: str = Field(description="A branch, a tag or another revision; a branch of a remote is made a local one.")


class CheckoutOutputs(Outputs):
    """Where the repository is now."""

    branch: str | None = Field(description="The current branch; null when `ref` is no branch.")
    commit: str = Field(description="The current commit's object id.")


@operation("git.checkout")
class Checkout(Operation[CheckoutParameters, CheckoutOutputs]):
    """Switch the files to a branch or a revision. Changes that would be lost are an error."""

    example: ClassVar[Mapping[str, Any]] = {"ref": "feature"}

    def effects(self, parameters: CheckoutParameters) -> Effects:
        """Everything."""
        return WRITES_ALL

    def run(self, parameters: CheckoutParameters, context: Context) -> CheckoutOutputs:
        """Raises OperationError for an unknown revision, and when local changes are in the way."""
        ref = check_revision(parameters.ref)
        commands = commands_of(context, files=True)
        if commands.branch() != ref or commands.find("HEAD") is not None:
            commands.run("checkout", "--quiet", "--guess", ref, "--")
        return CheckoutOutputs(branch=commands.branch(), commit=commands.resolve("HEAD"))


class MergeParameters(Authored):
    """What to merge."""

    ref: str = Field(description="The branch or revision to merge into the current branch.")
    message: str | None = Field(default=None, description='The commit message; by default "Merge branch …".')
    no_ff: bool = Field(default=False, description="Make a merge commit even where moving the branch is enough.")


class MergeOutputs(CommitOutputs):
    """The result."""

    result: Literal["merged", "fast-forward", "up-to-date"] = Field(description="What was done.")


@operation("git.merge")
class Merge(Operation[MergeParameters, MergeOutputs]):
    """Merge a branch into the current one. With conflicts it fails, and leaves nothing behind."""

    example: ClassVar[Mapping[str, Any]] = {"ref": "feature", "no_ff": True}

    def effects(self, parameters: MergeParameters) -> Effects:
        """Everything."""
        return WRITES_ALL

    def run(self, parameters: MergeParameters, context: Context) -> MergeOutputs:
        """Raises OperationError naming the files in conflict."""
        author = parameters.person()
        commands = commands_of(context, files=True)
        theirs, ours = commands.resolve(parameters.ref), commands.find("HEAD")
        _refuse_unfinished(commands, "merge")
        options = ["--quiet", "--no-edit", "--no-verify", "--no-gpg-sign", "--no-stat", "--no-squash", "--commit"]
        options += ["--no-autostash", "--strategy=ort", "--no-ff" if parameters.no_ff else "--ff"]
        if parameters.message is not None:
            options += ["-m", _passable(parameters.message)]
        _or_clean_up(commands, "merge", (*options, "--", parameters.ref), author)
        commit = commands.resolve("HEAD")
        result: Literal["merged", "fast-forward", "up-to-date"] = "merged"
        if commit == ours:
            result = "up-to-date"
        elif commit == theirs:
            result = "fast-forward"
        return MergeOutputs(commit=commit, result=result)


class RevertParameters(Authored):
    """What to take back."""

    commit: str = Field(description="The commit whose changes are taken back.")
    mainline: int | None = Field(default=None, ge=1, description="For a merge commit: which parent stays, from 1.")


@operation("git.revert")
class Revert(Operation[RevertParameters, CommitOutputs]):
    """Make a commit that takes an earlier one back. With conflicts it fails, and leaves nothing behind."""

    example: ClassVar[Mapping[str, Any]] = {"commit": "HEAD"}

    def effects(self, parameters: RevertParameters) -> Effects:
        """Everything."""
        return WRITES_ALL

    def run(self, parameters: RevertParameters, context: Context) -> CommitOutputs:
        """Raises OperationError naming the files in conflict."""
        author = parameters.person()
        commands = commands_of(context, files=True)
        commit = commands.resolve(parameters.commit)
        commands.require_identity(author)
        _refuse_unfinished(commands, "revert")
        mainline = [] if parameters.mainline is None else [f"--mainline={parameters.mainline}"]
        options = ("--no-edit", "--no-gpg-sign", "--strategy=ort", *mainline)
        _or_clean_up(commands, "revert", (*options, "--end-of-options", commit), author)
        return CommitOutputs(commit=commands.resolve("HEAD"))


def _passable(message: str) -> str:
    if "\0" in message:
        raise OperationError("the commit message holds a NUL character")
    return message.encode(errors="replace").decode()


def _or_clean_up(commands: Commands, verb: str, arguments: Sequence[str], author: Person | None) -> None:
    """Run a merge or a revert; whatever ends it early, nothing of it stays."""
    try:
        commands.run(verb, *arguments, author=author)
    except QuantumError as error:
        unmerged = commands.run("diff", "--name-only", "--diff-filter=U", "-z", *PLAIN_DIFF, reads=True).fields
        if commands.in_the_middle_of():
            commands.run(verb, "--abort")
        (commands.repository.folder / "AUTO_MERGE").unlink(missing_ok=True)  # git forgets it when it refuses to start
        if unmerged:
            raise OperationError(
                f"the {verb} has conflicts in {', '.join(map(shown, unmerged))}; nothing was changed",
                hint="bring the two sides closer in an earlier step, or settle it by hand",
            ) from error
        raise

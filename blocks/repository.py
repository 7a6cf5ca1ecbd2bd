"""Git in a workspace, hardened: the one way in which the product uses git. It runs through GitPython.

A repository is data that somebody else may have written, and git runs programs that a repository names: hooks,
fsmonitor, filters, merge drivers, external diffs, gpg, ssh, credential helpers. Here none of them runs:

- git gets a scrubbed environment (no GIT_* of the caller) and neither system nor global configuration, apart from the
  user's name, mail address and `init.defaultBranch`;
- settings that name programs are overridden, the ones with free names (`filter.NAME.clean`) after listing them, in the
  repository and in repositories embedded in it;
- only the policy's protocols are spoken, and none at all by commands that have no business with another repository;
- the repository is `.git` in the workspace itself, a real folder, named outright: none above it is found, and neither
  `core.worktree` nor a redirecting file leads elsewhere. As it is named and disarmed, git's ownership check
  (`safe.directory`) is not needed, and does not stop a user whose workspace belongs to somebody else.

What that costs: large-file storage (a filter) is not applied, and commits are not signed.

Folders that the policy excludes from snapshots are ignored as if `.gitignore` named them. Needs git 2.34 or newer.
This module does not know which commands there are; `tasks/git.py` does. Names are judged in `blocks/git_names.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, TimedOut
from quantum_orchestrator.blocks.git_names import check_revision, protocol_refused, without_credentials
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.sandbox import INHERITED, CancelTokenLike

OLDEST_GIT = (2, 34)

# What git, ssh and the https transport need of the caller's environment to reach another machine.
_PROXIES = tuple(each for low in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for each in (low, low.upper()))
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE")
_PASSED_ON = frozenset((*INHERITED, "LD_LIBRARY_PATH", "SSH_AUTH_SOCK", *_PROXIES, *_CERTIFICATES))
_USERS_CONFIGURATION = frozenset(("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"))

_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "GIT_PROXY_COMMAND": "",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_EDITOR": ":",
    "GIT_SEQUENCE_EDITOR": ":",
    "GIT_MERGE_AUTOEDIT": "no",
    "GIT_PAGER": "cat",
}

_SETTINGS = {
    # What would run a program.
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "diff.autoRefreshIndex": "false",  # looking must not write
    "core.sshCommand": "ssh -oBatchMode=yes",
    "core.askPass": "",
    "core.alternateRefsCommand": "true",
    "core.pager": "cat",
    "core.editor": ":",
    "diff.external": "",
    "credential.helper": "",
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "tag.forceSignAnnotated": "false",
    "push.gpgSign": "false",
    "gpg.program": "false",
    "log.showSignature": "false",
    "merge.verifySignatures": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "push.recurseSubmodules": "no",
    "diff.ignoreSubmodules": "dirty",
    # What would read or write elsewhere.
    "core.attributesFile": os.devnull,
    "init.templateDir": "",
    "protocol.allow": "never",
    "safe.bareRepository": "explicit",
    # What would make the same command mean something else.
    "user.useConfigOnly": "true",
    "rerere.enabled": "false",
    "merge.autoStash": "false",
    "push.followTags": "false",
    "commit.verbose": "false",
    "core.quotePath": "false",
    "color.ui": "false",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
}

# Settings with a free part in their name, and what each is set to. A merge driver becomes git's own three-way merge.
_NAMED_SETTINGS = (
    (re.compile(r"filter\..*\.(clean|smudge|process)", re.DOTALL), ""),
    (re.compile(r"filter\..*\.required", re.DOTALL), "false"),
    (re.compile(r"merge\..*\.driver", re.DOTALL), "git merge-file --marker-size=%L %A %O %B"),
    (re.compile(r"credential\..*\.helper", re.DOTALL), ""),
    (re.compile(r"gpg\..*\.(program|defaultkeycommand)", re.DOTALL), "false"),
    (re.compile(r"branch\..*\.mergeoptions", re.DOTALL), ""),
    (re.compile(r"remote\..*\.uploadpack", re.DOTALL), "git-upload-pack"),
    (re.compile(r"remote\..*\.receivepack", re.DOTALL), "git-receive-pack"),
)

_MIDDLE_OF = {
    "MERGE_HEAD": "a merge",
    "REVERT_HEAD": "a revert",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}
_POLL = 0.1  # seconds: how soon a cancellation is noticed
_GRACE = 2.0  # seconds that git gets to remove its lock files
_LONGEST_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class Person:
    """Who writes a commit."""

    name: str
    mail: str


class Answer(NamedTuple):
    """What a git command said."""

    exit_code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Standard output without the newline at its end."""
        return self.stdout.decode(errors="replace").removesuffix("\n")

    @property
    def fields(self) -> list[str]:
        """Standard output of a command that ends each item with a NUL."""
        return os.fsdecode(self.stdout).split("\0")[:-1]


class Repository:
    """The repository of one workspace, whether or not there is one yet. Safe to use from several threads.

    `lock` is a descriptor that each git command inherits: the workspace's lock, so that nobody else can begin there
    while a command is at work whose engine has died (see `blocks/lock.py`).
    """

    def __init__(self, root: Path, policy: Policy, *, lock: int | None = None) -> None:
        self.root = root.absolute()
        self.policy = policy
        self.lock = () if lock is None else (lock,)

    @property
    def folder(self) -> Path:
        """Where git keeps everything."""
        return self.root / ".git"

    def exists(self) -> bool:
        """Whether the workspace is a repository. Raises OperationError if `.git` is something that cannot be used."""
        if not os.path.lexists(self.folder):
            return False
        if self.folder.is_symlink() or not self.folder.is_dir() or (self.folder / "commondir").exists():
            raise OperationError(
                "the repository lies outside of the workspace: .git is not its folder but leads to it",
                hint="linked worktrees and submodules could not be undone; use the main folder, or a clone",
            )
        return True

    def commands(
        self, *, timeout: float | None = None, cancel: CancelTokenLike | None = None, files: bool = False
    ) -> Commands:
        """Commands on the repository, which may take `timeout` seconds together.

        `files` prepares for those that look at or change the workspace's files. Raises OperationError without a
        repository.
        """
        if not self.exists():
            raise OperationError("there is no git repository here", hint="make one with git.init, or use git.clone")
        commands = Commands(self, _deadline(timeout), cancel, ("--git-dir", str(self.folder), "--work-tree", "."))
        commands.disarm(self.root, embedded=files)
        return commands

    def commands_without(self, *, timeout: float | None = None, cancel: CancelTokenLike | None = None) -> Commands:
        """Commands for where there is no repository yet: init and clone."""
        return Commands(self, _deadline(timeout), cancel, ())

    @cached_property
    def users_settings(self) -> Mapping[str, str]:
        """`user.name`, `user.email`, `init.defaultbranch` and `core.hookspath` of the caller, as configured for this
        folder."""
        wanted = r"^(user\.(name|email)|init\.defaultbranch|core\.hookspath)$"
        environment = {name: os.environ[name] for name in _USERS_CONFIGURATION if name in os.environ}
        answer = _execute(
            ("-C", str(self.root), "--git-dir", str(self.folder), "config", "--includes", "-z", "--get-regexp", wanted),
            environment,
            inherited=self.lock,
        )
        # 1: nothing is set. Anything else is a file that git cannot read, and says which.
        if answer.exit_code > 1:
            raise _failure("config", answer)
        return {key: value for key, _, value in (each.partition("\n") for each in answer.fields)}

    @property
    def hooks_folder(self) -> Path:
        """Where git looks for hooks here: git-config(1), core.hooksPath. No hook runs by this module."""
        chosen = self.users_settings.get("core.hookspath", "")
        return self.root / Path(chosen).expanduser() if chosen else self.folder / "hooks"

    @property
    def identity(self) -> Person | None:
        """The configured user, if name and mail address both are."""
        name, mail = (self.users_settings.get(key, "").strip() for key in ("user.name", "user.email"))
        return Person(name, mail) if name and mail else None


@dataclass
class Commands:
    """Git commands that belong together: one time limit, one list of disarmed settings."""

    repository: Repository
    deadline: float | None
    cancel: CancelTokenLike | None
    place: tuple[str, ...]
    disarmed: dict[str, str] = field(default_factory=dict)

    def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        accept: Iterable[int] = (0,),
        remote: bool = False,
        reads: bool = False,
        author: Person | None = None,
        index: Path | None = None,
    ) -> Answer:
        """Run `git ARGUMENTS`.

        `remote` lets it speak the policy's protocols, `reads` keeps it from refreshing the index, `author` writes the
        commit (and commits it, without an identity), `index` is another index than the repository's. Raises
        OperationError unless it ends with a code in `accept`.
        """
        environment = {
            **_ENVIRONMENT,
            **self._protocols(remote),
            **self._people(author),
            "GIT_CEILING_DIRECTORIES": str(self.repository.root.parent),
            "GIT_OPTIONAL_LOCKS": "0" if reads else "1",
            **({} if index is None else {"GIT_INDEX_FILE": str(index)}),
        }
        with _ignored_names(self.repository.policy.snapshot_exclude) as ignored:
            environment |= _as_environment(
                {**_SETTINGS, **self.disarmed, "core.excludesFile": f"/proc/self/fd/{ignored}"}
            )
            command = ("-C", str(self.repository.root), *self.place, "--no-pager", *arguments)
            inherited = (ignored, *self.repository.lock)
            answer = _execute(command, environment, stdin, self.deadline, self.cancel, inherited)
        if answer.exit_code not in accept:
            raise _failure(arguments[0], answer)
        return answer

    def resolve(self, revision: str) -> str:
        """The full object id of the commit that a revision names. Raises OperationError."""
        found = self.find(check_revision(revision))
        if found is None:
            raise OperationError(
                f"there is no commit {revision!r} in this repository",
                hint="check the spelling; fetch it first if it is on a remote; a new repository has no commit yet",
            )
        return found

    def find(self, revision: str) -> str | None:
        """The same; None if there is none."""
        wanted = f"{revision}^{{commit}}"
        answer = self.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", wanted, accept=(0, 1, 128), reads=True
        )
        return answer.text if answer.exit_code == 0 else None

    def branch(self) -> str | None:
        """The current branch; None when none is checked out."""
        answer = self.run("symbolic-ref", "--quiet", "--short", "HEAD", accept=(0, 1), reads=True)
        return answer.text or None

    def has_branch(self, name: str) -> bool:
        """Whether a local branch is called so."""
        return self.find(f"refs/heads/{name}") is not None

    def in_the_middle_of(self) -> str | None:
        """What a person has begun here and not finished."""
        folder = self.repository.folder
        return next((what for name, what in _MIDDLE_OF.items() if os.path.lexists(folder / name)), None)

    def require_identity(self, author: Person | None) -> None:
        """Raises OperationError when nobody is known who could write a commit."""
        if author is None and self.repository.identity is None:
            raise no_identity()

    def disarm(self, folder: Path, *, embedded: bool) -> None:
        """Override the settings with free names of the repository in `folder`, and of those embedded in it.

        Git looks into an embedded repository, with its own configuration, to see whether its files have changed.
        """
        place = self.place if folder == self.repository.root else ()
        lock = self.repository.lock
        options = ("-C", str(folder), *place)
        settings = {**_SETTINGS, "safe.directory": "*"}
        environment = {
            **_ENVIRONMENT,
            **_as_environment(settings),
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
            "GIT_OPTIONAL_LOCKS": "0",
        }
        listed = _execute(
            (*options, "config", "--list", "--includes", "--name-only", "-z"), environment, inherited=lock
        )
        if listed.exit_code != 0:
            raise _failure("config", listed)
        found = ((key, pattern, value) for key in listed.fields for pattern, value in _NAMED_SETTINGS)
        self.disarmed.update((key, value) for key, pattern, value in found if pattern.fullmatch(key))
        if embedded:
            entries = _execute((*options, "ls-files", "--stage", "-z"), environment, inherited=lock)
            for entry in entries.fields:
                inner = folder / entry.partition("\t")[2]
                if entry.startswith("160000 ") and os.path.lexists(inner / ".git"):
                    self.disarm(inner, embedded=True)

    def _protocols(self, remote: bool) -> dict[str, str]:
        allowed = self.repository.policy.git_protocols if remote else ()
        # The variable beats `protocol.NAME.allow` in the repository. An empty one would count as unset somewhere.
        return {"GIT_ALLOW_PROTOCOL": ":".join(allowed) or "none"} | ({} if remote else {"GIT_NO_LAZY_FETCH": "1"})

    def _people(self, author: Person | None) -> dict[str, str]:
        people = {"AUTHOR": author or self.repository.identity, "COMMITTER": self.repository.identity or author}
        named = {role: person for role, person in people.items() if person is not None}
        return {f"GIT_{role}_NAME": person.name for role, person in named.items()} | {
            f"GIT_{role}_EMAIL": person.mail for role, person in named.items()
        }


def no_identity() -> OperationError:
    """The error for a commit that nobody is known to write."""
    return OperationError(
        "git does not know who commits: user.name and user.email are not configured",
        hint='give `author` ("Name <mail@example.org>"), or run git config --global user.name and user.email',
    )


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _as_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as git reads them from its environment, above every file; unlike `-c`, for keys of any spelling."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


@contextmanager
def _ignored_names(names: Iterable[str]) -> Iterator[int]:
    """A file in memory, in the form of `.gitignore`, that names the folders which the policy excludes."""
    descriptor = os.memfd_create("ignored", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, "".join(f"{_escaped(name)}/\n" for name in names).encode())
        yield descriptor
    finally:
        os.close(descriptor)


def _escaped(name: str) -> str:
    return re.sub(r"([\\*?\[\]!# ])", r"\\\1", name)


@cache
def _git_program() -> str:
    """Where git is. GitPython looks for it when it is imported, which is why that waits until here."""
    program = shutil.which("git")
    if program is None:
        raise OperationError("program 'git' not found on PATH", hint="install git")
    import git

    found = git.Git().version_info
    if found < OLDEST_GIT:
        raise OperationError(
            f"git {'.'.join(map(str, found))} is too old", hint=f"install {'.'.join(map(str, OLDEST_GIT))} or newer"
        )
    return program


def _execute(
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    stdin: bytes = b"",
    deadline: float | None = None,
    cancel: CancelTokenLike | None = None,
    inherited: tuple[int, ...] = (),
) -> Answer:
    """Start git through GitPython and attend to it until its end."""
    program = _git_program()
    from git import Git

    # GitPython adds to this process's environment and cannot leave anything out; env(1) can.
    unwanted = [name for name in os.environ if name not in _PASSED_ON and name not in environment]
    scrub = ["env", *(part for name in unwanted for part in ("-u", name))]
    wrapper = Git("/").execute(
        [*scrub, program, *arguments],
        istream=subprocess.PIPE,
        as_process=True,
        env=dict(environment),
        start_new_session=True,
        pass_fds=inherited,
    )
    process: subprocess.Popen[bytes] | None = wrapper.proc
    assert process is not None
    stdout, stderr = _attend(process, stdin, deadline, cancel)
    return Answer(process.returncode, stdout, without_credentials(stderr.decode(errors="replace")))


def _attend(
    process: subprocess.Popen[bytes], stdin: bytes, deadline: float | None, cancel: CancelTokenLike | None
) -> tuple[bytes, bytes]:
    feed: bytes | None = stdin
    try:
        while True:
            if cancel is not None and cancel.cancelled:
                raise Interrupted
            if deadline is not None and time.monotonic() >= deadline:
                raise TimedOut("git took longer than the instruction's `timeout`", hint="raise the `timeout`")
            left = _POLL if deadline is None else min(_POLL, max(0.0, deadline - time.monotonic()))
            with suppress(subprocess.TimeoutExpired):
                return process.communicate(feed, timeout=left)
            feed = None  # communicate() keeps what it has not written yet
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """End git with what it started (ssh, transports): politely first, so that it removes its lock files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE)
            return


_REFUSED_PROTOCOL = re.compile(r"transport '([^']*)' not allowed")
_HINTS = (
    ("index.lock", "another git is at work in this repository, or ended in the middle; then remove .git/index.lock"),
    ("dubious ownership", "that repository belongs to another user; take a clone of your own"),
    ("not a git repository", "what is in .git is no repository; move it away and use git.init"),
    ("could not read Username", "give the credentials by ssh, or by a URL with a token"),
    ("Permission denied (publickey", "load the key into an ssh agent"),
    ("Host key verification failed", "connect once with ssh, to confirm the host's key"),
    ("non-fast-forward", "fetch and merge what is there first"),
    ("would be overwritten", "commit these files first"),
)
_NOBODY = re.compile(r"identity unknown|auto-detection is disabled|empty ident name")


def _failure(command: str, answer: Answer) -> OperationError:
    """What git said, as an error of the product."""
    said = "\n".join(line for line in answer.stderr.strip().splitlines() if not line.startswith("hint:"))
    if refused := _REFUSED_PROTOCOL.search(said):
        return protocol_refused(refused[1])
    if _NOBODY.search(said):
        return no_identity()
    hint = next((hint for text, hint in _HINTS if text in said), "")
    said = said[-_LONGEST_MESSAGE:] or answer.text[-_LONGEST_MESSAGE:] or f"ended with {answer.exit_code}"
    return OperationError(f"git {command}: {said}", hint=hint)

"""What a git hook does: run a set on the repository, with what git tells the hook as inputs.

The set is trusted as far as it is the one that was installed; one that has changed since (a pull can do that) runs as
untrusted, unless the policy trusts `hooks`. A run that fails is rolled back, and its exit code stops git. After one
that succeeds in `pre-commit`, the staged files that it has changed are staged again, in the index that git is about
to commit. Invariant: what was not staged by the user is never staged: where a file that the run has changed had
unstaged changes as well, the run is undone and git is stopped. Git's variables (`GIT_DIR`, `GIT_INDEX_FILE`, …) reach
neither the run nor any git command but those on the index.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import NeedsAttention, UsageError
from quantum_orchestrator.blocks.home import RUN_ROOT, policy_path, workspace_home
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.deployments.child_commands import begin
from quantum_orchestrator.deployments.cli_options import load_source
from quantum_orchestrator.deployments.git_hooks import WITH_INPUT
from quantum_orchestrator.deployments.screen import Screen, plural
from quantum_orchestrator.flows.auditing import digest_of
from quantum_orchestrator.flows.instruction_set import InstructionSet

DOOR = "hooks"
ABOUT_STAGED = ("pre-commit", "pre-merge-commit", "prepare-commit-msg", "commit-msg")
RESTAGES = ("pre-commit", "pre-merge-commit")
WITH_MESSAGE = ("prepare-commit-msg", "commit-msg")
MESSAGE_STEP = "message"
"""The step whose message becomes the commit's."""
_GITS_OWN = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"),
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_NAMESPACE"),
    *("GIT_GRAFT_FILE", "GIT_SHALLOW_FILE", "GIT_QUARANTINE_PATH", "GIT_REFLOG_ACTION", "GIT_EXEC_PATH"),
    *("GIT_INTERNAL_SUPER_PREFIX", "GIT_IMPLICIT_WORK_TREE", "GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE"),
)
"""Variables that would lead a git command elsewhere: git-rev-parse(1), --local-env-vars."""


def document_digest(document: InstructionSet) -> str:
    """What a set, with the sets that it calls, is known by."""
    return digest_of(document.model_dump(by_alias=True, mode="json", exclude_unset=True))


@dataclass(slots=True)
class Called:
    """A hook as git has called it. The current folder is the repository's."""

    hook: str
    arguments: Sequence[str]
    root: Path = field(default_factory=Path.cwd)
    index: Path | None = None
    given: str = ""
    staged: Sequence[str] = ()
    unstaged: frozenset[str] = frozenset()

    @classmethod
    def now(cls, hook: str, arguments: Sequence[str]) -> Called:
        """From this process's environment, which is git's no more afterwards."""
        called = cls(hook, arguments, given=sys.stdin.read() if hook in WITH_INPUT else "")
        if chosen := os.environ.get("GIT_INDEX_FILE"):
            called.index = called.root / chosen
        for name in _GITS_OWN:
            os.environ.pop(name, None)
        if hook in ABOUT_STAGED:
            called.staged = called.listed("--cached", "--diff-filter=d")
            called.unstaged = frozenset(called.listed())
        return called

    def listed(self, *options: str) -> list[str]:
        """The paths that `git diff` names."""
        commands = Repository(self.root, Policy()).commands(files=True)
        arguments = ("diff", "--name-only", "--no-renames", "-z", *options)
        return commands.run(*arguments, reads=True, index=self.index).fields

    @property
    def message_file(self) -> Path | None:
        """Where the message of the commit is."""
        return self.root / self.arguments[0] if self.hook in WITH_MESSAGE and self.arguments else None

    def inputs(self, document: InstructionSet) -> dict[str, Any]:
        """Those of the hook's inputs that the set declares."""
        known: dict[str, Any] = {
            "hook": self.hook,
            "args": list(self.arguments),
            "paths": list(self.staged),
            "refs": [_ref(line) for line in self.given.splitlines()] if self.hook == "pre-push" else [],
            "stdin": self.given,
            "message": self.message_file.read_text("utf-8", "replace") if self.message_file is not None else "",
        }
        return {name: value for name, value in known.items() if name in document.inputs}


def _ref(line: str) -> dict[str, str]:
    """A line of pre-push: githooks(5)."""
    names = ("local_ref", "local_oid", "remote_ref", "remote_oid")
    return dict(zip(names, line.split(" "), strict=False))


def run_hook(screen: Screen, called: Called, file: str, sha256: str | None) -> int:
    """Run the hook's set; the exit code, by which git goes on or not."""
    if os.environ.get(RUN_ROOT) == str(called.root.resolve()):
        screen.note(f"{called.hook}: within a run in this workspace; its hooks run no other")
        return 0
    document = load_source(file).document
    trusted = document_digest(document) == sha256 or Policy.load(policy_path()).trusts(DOOR)
    if not trusted:
        why = "was not installed by `qo hooks install`" if sha256 is None else "has changed since it was installed"
        screen.warn(f"{called.hook}: {file} {why}, and runs as untrusted")
    arguments = ["run", file, "--workspace", str(called.root), "--json", "--source", f"git hook {called.hook}: {file}"]
    options = ["--inputs-file", "-", *([] if trusted else ["--untrusted"]), *(["-q"] if screen.quiet else [])]
    command = begin([*arguments, *options], given=json.dumps(called.inputs(document)).encode(), shows=True)
    code, report = command.wait(), command.document
    if code != 0:
        screen.problem(
            f"{called.hook}: the set {document.name!r} has not succeeded: {report['status']}", _advice(report)
        )
        return code or 1
    if called.hook in RESTAGES:
        _stage_again(screen, called, report["run_id"])
    _write_message(called, report)
    return 0


def _advice(report: Mapping[str, Any]) -> str:
    if report["status"] == "rolled_back":
        return "nothing was changed; the steps above say what is wrong"
    return f"`qo show {report['run_id']}` says more" if "run_id" in report else ""


def _stage_again(screen: Screen, called: Called, run_id: str) -> None:
    """Stage what the run has changed of the staged files. Raises NeedsAttention, the run undone, where it cannot."""
    from quantum_orchestrator.flows.report import net_changes

    with contextlib.closing(Journal(workspace_home(called.root))) as journal:
        changed = {change.path for change in net_changes(journal, run_id)}
    again = [path for path in called.staged if path in changed]
    if not again:
        return
    commands = Repository(called.root, Policy()).commands(files=True)
    attributes = commands.run("check-attr", "-z", "filter", "--", *again, reads=True, index=called.index).fields
    filtered = {path for path, value in zip(attributes[::3], attributes[2::3], strict=True) if value != "unspecified"}
    for paths, why in (
        (called.unstaged.intersection(again), "has changes that are not staged, so the rest cannot be staged alone"),
        (filtered, "goes through a filter, which only you can run"),
    ):
        if paths:
            begin(["rollback", run_id, "--workspace", str(called.root)]).wait()
            raise NeedsAttention(
                f"{', '.join(sorted(paths))}: the set changes it, and it {why}; the run was undone",
                hint="stage all of it, or stash the rest, and commit again",
            )
    commands.run("add", "--", *again, index=called.index)
    screen.note(f"{called.hook}: staged again what the set has changed: {plural(len(again), 'file')}")


def _write_message(called: Called, report: Mapping[str, Any]) -> None:
    file = called.message_file
    outputs = next((step["outputs"] for step in report["steps"] if step["id"] == MESSAGE_STEP), None)
    text = (outputs or {}).get("message")
    if file is None or not isinstance(text, str):
        return
    try:
        file.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: the message cannot be written: {error.strerror}") from error

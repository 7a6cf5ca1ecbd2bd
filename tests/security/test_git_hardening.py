"""Nothing that is planted in a repository runs, whichever operation meets it.

Every plant is a program that leaves a mark and otherwise does what git expects of it. A control shows that plain git,
in the same repository, does run them: a plant that nothing would run proves nothing.
"""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import OperationError, PolicyRefused
from quantum_orchestrator.blocks.policy import GIT_PROTOCOLS, Policy
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks.operation import Context
from quantum_orchestrator.tasks.registry import every, get

PERMISSIVE = Policy(git_protocols=GIT_PROTOCOLS)
HOOKS = (
    *("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "pre-merge-commit", "post-merge"),
    *("post-checkout", "post-rewrite", "post-index-change", "reference-transaction", "pre-push", "pre-auto-gc"),
)


@dataclass
class Hostile:
    """A workspace that somebody hostile has prepared, and the marks of what ran."""

    workspace: Path
    marks: Path
    plants: Path
    home: Path

    def plant(self, name: str, then: str = "exit 0") -> str:
        file = self.plants / name
        file.write_text(f"#!/bin/sh\n: > '{self.marks}/{name}'\n{then}\n")
        file.chmod(0o755)
        return str(file)

    def configure(self, file: Path, settings: Mapping[str, str]) -> None:
        with file.open("a") as config:
            for key, value in settings.items():
                section, _, rest = key.partition(".")
                free_part, _, name = rest.rpartition(".")
                head = f'[{section} "{free_part}"]' if free_part else f"[{section}]"
                config.write(f'{head}\n\t{name} = "{value}"\n')

    def ran(self) -> set[str]:
        return set(os.listdir(self.marks))


def plain(folder: Path, *arguments: str) -> None:
    """Git before anything is planted."""
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, message: str) -> None:
    plain(folder, "add", ".")
    plain(folder, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", message)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two branches that both changed `a`, an embedded repository, and nothing planted."""
    folder = tmp_path_factory.mktemp("history")
    plain(folder, "-c", "init.defaultBranch=main", "init", "-q")
    (folder / "a").write_text("1\n2\n3\n4\n5\n6\n7\n")
    embedded = folder / "embedded"
    embedded.mkdir()
    plain(embedded, "init", "-q")
    (embedded / "e").write_text("e\n")
    (embedded / ".gitattributes").write_text("* filter=inner\n")
    commit(embedded, "Inner")
    (folder / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    commit(folder, "First")
    plain(folder, "checkout", "-q", "-b", "other")
    (folder / "a").write_text("1\n2\n3\n4\n5\n6\nseven\n")
    commit(folder, "Theirs")
    plain(folder, "checkout", "-q", "main")
    (folder / "a").write_text("one\n2\n3\n4\n5\n6\n7\n")
    commit(folder, "Ours")
    plain(folder, "clone", "-q", "--bare", ".", ".git/upstream.git")
    return folder


@pytest.fixture
def hostile(tmp_path: Path, history: Path, monkeypatch: pytest.MonkeyPatch, asking_server: int) -> Hostile:
    made = Hostile(*(tmp_path / name for name in ("workspace", "marks", "plants", "home")))
    shutil.copytree(history, made.workspace, symlinks=True)
    for folder in (made.marks, made.plants, made.home):
        folder.mkdir()
    for name in [each for each in os.environ if each.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    plant_in_configuration(made, asking_server)
    plant_hooks(made)
    plant_in_embedded(made)
    plant_in_home(made)
    (made.workspace / "a").write_text("changed\n2\n3\n4\n5\n6\n7\n")
    (made.workspace / "embedded" / "e").write_text("changed\n")
    (made.workspace / "new").write_text("new\n")
    return made


def plant_in_configuration(made: Hostile, port: int) -> None:
    settings = {
        "core.fsmonitor": made.plant("fsmonitor", "exit 1"),
        "core.sshCommand": made.plant("ssh", "exit 1"),
        "core.pager": made.plant("pager", "cat"),
        "pager.log": made.plant("pager-log", "cat"),
        "pager.status": made.plant("pager-status", "cat"),
        "core.editor": made.plant("editor"),
        "sequence.editor": made.plant("sequence-editor"),
        "core.askPass": made.plant("askpass", "echo x"),
        "core.alternateRefsCommand": made.plant("alternate-refs"),
        "core.gitProxy": made.plant("git-proxy", "exit 1"),
        "diff.external": made.plant("external-diff"),
        "diff.evil.command": made.plant("diff-command"),
        "filter.evil.clean": made.plant("clean", "cat"),
        "filter.evil.smudge": made.plant("smudge", "cat"),
        "filter.evil.required": "true",
        "merge.evil.driver": made.plant("merge-driver") + " %A",
        "gpg.program": made.plant("gpg", "exit 1"),
        "gpg.ssh.program": made.plant("gpg-ssh", "exit 1"),
        "commit.gpgSign": "true",
        "tag.gpgSign": "true",
        "credential.helper": made.plant("credential", "echo username=x; echo password=x"),
        f"credential.http://127.0.0.1:{port}.helper": made.plant("credential-url"),
        "alias.status": "!" + made.plant("alias-status"),
        "alias.commit": "!" + made.plant("alias-commit"),
        "protocol.ext.allow": "always",
        "protocol.file.allow": "always",
        f"url.ext::{made.plant('insteadof')} .insteadOf": "https://rewritten.example.org/",
        "remote.origin.url": str(made.workspace / ".git" / "upstream.git"),
        "remote.origin.uploadpack": made.plant("upload-pack", "exit 1"),
        "remote.origin.receivepack": made.plant("receive-pack", "exit 1"),
        "remote.secure.url": "ssh://git@host.invalid/x.git",
        "remote.helper.url": "https://rewritten.example.org/x.git",
        "remote.foreign.url": "https://example.org/x.git",
        "remote.foreign.vcs": "ext",
        "remote.asking.url": f"http://127.0.0.1:{port}/x.git",
        "branch.main.mergeOptions": "--edit",
        "interactive.diffFilter": made.plant("diff-filter", "cat"),
        "trailer.x.command": made.plant("trailer"),
        "include.path": "included",
        "init.templateDir": str(made.plants),
    }
    made.configure(made.workspace / ".git" / "config", settings)
    included = {
        "filter.evil.process": made.plant("process", "exit 1"),
        "filter.with = and\tspaces.clean": made.plant("odd-clean", "cat"),
        "diff.evil.textconv": made.plant("textconv", 'cat "$1"'),
    }
    made.configure(made.workspace / ".git" / "included", included)


def plant_hooks(made: Hostile) -> None:
    for place in (made.workspace / ".git" / "hooks", made.workspace / ".git" / "more-hooks"):
        place.mkdir(exist_ok=True)
        for hook in HOOKS:
            shutil.copy2(made.plant(f"hook-{hook}"), place / hook)


def plant_in_embedded(made: Hostile) -> None:
    settings = {
        "filter.inner.clean": made.plant("inner-clean", "cat"),
        "core.fsmonitor": made.plant("inner-fsmonitor", "exit 1"),
    }
    made.configure(made.workspace / "embedded" / ".git" / "config", settings)


def plant_in_home(made: Hostile) -> None:
    template = made.home / "template" / "hooks"
    template.mkdir(parents=True)
    shutil.copy2(made.plant("template-hook"), template / "post-checkout")
    settings = {
        "user.name": "Victim",
        "user.email": "victim@example.org",
        "init.templateDir": str(template.parent),
        "filter.evil.smudge": made.plant("home-smudge", "cat"),
        "uploadpack.packObjectsHook": made.plant("pack-objects", 'exec "$@"'),
    }
    made.configure(made.home / ".gitconfig", settings)


@pytest.fixture(scope="module")
def asking_server() -> Iterator[int]:
    """Answers every request with: who are you?"""

    class Asking(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asking) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def planted_variables(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hostile caller could have in the environment."""
    for name in ("GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_SSH", "GIT_EDITOR", "GIT_PAGER", "GIT_ASKPASS", "PAGER"):
        monkeypatch.setenv(name, hostile.plant(f"variable-{name}", "exit 1"))
    monkeypatch.setenv("GIT_PROXY_COMMAND", hostile.plant("variable-proxy", "exit 1"))
    monkeypatch.setenv("SSH_ASKPASS", hostile.plant("variable-ssh-askpass", "exit 1"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", hostile.plant("variable-fsmonitor", "exit 1"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.hooksPath'='{hostile.workspace}/.git/more-hooks'")
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(hostile.home / "template"))


def do(hostile: Hostile, name: str, parameters: Mapping[str, Any]) -> Any:
    repository = Repository(hostile.workspace, PERMISSIVE)
    operation = get(f"git.{name}")
    context = Context(Overlay(MemoryTree()), root=hostile.workspace, policy=PERMISSIVE, repository=repository)
    return operation.run(operation.parameters(**parameters), context)


WORKING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("init", {}),
    ("status", {}),
    ("diff", {}),
    ("diff", {"staged": True}),
    ("diff", {"ref": "HEAD~1..HEAD"}),
    ("log", {}),
    ("add", {"paths": ["."]}),
    ("add", {"paths": ["new", "a"]}),
    ("commit", {"message": "x", "all": True}),
    ("branch", {"name": "topic", "checkout": True}),
    ("tag", {"name": "v1", "message": "x"}),
    ("fetch", {}),
    ("push", {"refspec": "main:pushed"}),
    ("clone", {"url": ".git/upstream.git", "path": "copy"}),
)
ON_CLEAN_FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("branch", {"name": "topic", "start": "other", "checkout": True}),
    ("checkout", {"ref": "other"}),
    ("merge", {"ref": "other"}),
    ("revert", {"commit": "HEAD"}),
)
FAILING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fetch", {"remote": "secure"}),
    ("push", {"remote": "secure"}),
    ("fetch", {"remote": "asking"}),
    ("push", {"remote": "asking"}),
    ("fetch", {"remote": "helper"}),
    ("fetch", {"remote": "foreign"}),
    ("fetch", {"remote": "git://127.0.0.1:9/x"}),
    ("clone", {"url": "git://127.0.0.1:9/x", "path": "copy"}),
)


def identify(value: object) -> str:
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return "-".join(map(str, parts))


def clean_files(hostile: Hostile) -> None:
    """Undo the local changes without git, which would run the plants."""
    (hostile.workspace / "a").write_text("one\n2\n3\n4\n5\n6\n7\n")
    (hostile.workspace / "new").unlink()


@pytest.mark.parametrize(("name", "parameters"), WORKING, ids=identify)
@pytest.mark.usefixtures("planted_variables")
def test_nothing_planted_runs(hostile: Hostile, name: str, parameters: dict[str, Any]) -> None:
    do(hostile, name, parameters)
    assert hostile.ran() == set()


@pytest.mark.parametrize(("name", "parameters"), ON_CLEAN_FILES, ids=identify)
@pytest.mark.usefixtures("planted_variables")
def test_nothing_planted_runs_when_files_are_switched(hostile: Hostile, name: str, parameters: dict[str, Any]) -> None:
    clean_files(hostile)
    do(hostile, name, parameters)
    assert hostile.ran() == set()


@pytest.mark.parametrize(("name", "parameters"), FAILING, ids=identify)
@pytest.mark.usefixtures("planted_variables")
def test_nothing_planted_runs_on_the_way_to_a_remote(hostile: Hostile, name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(OperationError):
        do(hostile, name, parameters)
    assert hostile.ran() == set()


def test_every_operation_is_tried() -> None:
    tried = {f"git.{name}" for name, _ in WORKING + ON_CLEAN_FILES}
    assert tried == {name for name in every() if name.startswith("git.")}


CONTROLS: tuple[tuple[tuple[str, ...], bool, set[str]], ...] = (
    (("status",), False, {"fsmonitor", "inner-clean", "inner-fsmonitor"}),
    (("add", "."), False, {"process", "inner-clean"}),
    (("diff",), False, {"diff-command"}),
    (("diff", "--no-ext-diff"), False, {"textconv"}),
    (
        ("-c", "commit.gpgSign=false", "commit", "-m", "x", "--allow-empty"),
        True,
        {"hook-pre-commit", "hook-commit-msg"},
    ),
    (("commit", "-m", "x", "--allow-empty"), True, {"gpg"}),
    (("checkout", "other"), True, {"hook-post-checkout", "smudge"}),
    (("merge", "-m", "x", "other"), True, {"merge-driver"}),
    (("tag", "-a", "-m", "x", "v1"), False, {"gpg"}),
    (("fetch", "origin"), False, {"upload-pack"}),
    (("push", "origin", "main"), False, {"receive-pack"}),
    (("fetch", "secure"), False, {"ssh"}),
    (("fetch", "asking"), False, {"credential", "credential-url"}),
    (("fetch", "helper"), False, {"insteadof"}),
    (("fetch", "git://127.0.0.1:9/x"), False, {"git-proxy"}),
    (("clone", "-c", "protocol.file.allow=always", ".git/upstream.git", "copy"), False, {"template-hook"}),
)


@pytest.mark.parametrize(("arguments", "on_clean_files", "expected"), CONTROLS, ids=identify)
def test_plain_git_does_run_them(
    hostile: Hostile, arguments: tuple[str, ...], on_clean_files: bool, expected: set[str]
) -> None:
    if on_clean_files:
        clean_files(hostile)
    if "process" not in expected:  # the plant speaks no filter protocol, at which plain git gives up
        plain(hostile.workspace, "config", "--file", ".git/included", "--unset", "filter.evil.process")
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    subprocess.run(["git", *arguments], cwd=hostile.workspace, env=environment, check=False, capture_output=True)
    assert expected <= hostile.ran()


# What the operations do in spite of it.


def test_a_commit_holds_the_file_as_it_is_and_is_not_signed(hostile: Hostile) -> None:
    do(hostile, "commit", {"message": "x", "all": True})
    shown = subprocess.run(
        ["git", "--no-pager", "-c", "core.fsmonitor=false", "cat-file", "-p", "HEAD:a"],
        cwd=hostile.workspace,
        check=True,
        capture_output=True,
    )
    assert shown.stdout == (hostile.workspace / "a").read_bytes()
    entry = subprocess.run(["git", "cat-file", "-p", "HEAD"], cwd=hostile.workspace, check=True, capture_output=True)
    assert b"gpgsig" not in entry.stdout
    assert b"committer Victim <victim@example.org>" in entry.stdout


def test_a_merge_driver_is_replaced_by_an_ordinary_merge(hostile: Hostile) -> None:
    clean_files(hostile)
    assert do(hostile, "merge", {"ref": "other"}).result == "merged"
    assert (hostile.workspace / "a").read_text() == "one\n2\n3\n4\n5\n6\nseven\n"


def test_a_clone_has_no_hooks(hostile: Hostile) -> None:
    do(hostile, "clone", {"url": ".git/upstream.git", "path": "copy"})
    assert not (hostile.workspace / "copy" / ".git" / "hooks").exists()


def test_a_repository_cannot_allow_itself_a_protocol(hostile: Hostile) -> None:
    repository = Repository(hostile.workspace, Policy())
    operation = get("git.fetch")
    context = Context(Overlay(MemoryTree()), root=hostile.workspace, repository=repository)
    for remote in ("origin", "helper", f"ext::{hostile.plant('ext')} x"):
        with pytest.raises(PolicyRefused, match="protocol"):
            operation.run(operation.parameters(remote=remote), context)
    assert hostile.ran() == set()


def test_a_bare_repository_in_the_workspace_is_not_taken_for_one(hostile: Hostile) -> None:
    for name in ("HEAD", "objects", "refs", "config"):
        (hostile.workspace / ".git" / name).rename(hostile.workspace / name)
    shutil.rmtree(hostile.workspace / ".git")
    with pytest.raises(OperationError, match="no git repository here"):
        do(hostile, "status", {})
    assert hostile.ran() == set()

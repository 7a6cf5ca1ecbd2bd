"""Git hooks that run instruction sets: real repositories, real `git commit`, real runs."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from service_client import CLIENT

from quantum_orchestrator.blocks.audit import Audit
from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_service")]

PATHS = {"type": "array", "default": []}
TIDY = {
    "name": "tidy",
    "inputs": {"paths": PATHS},
    "instructions": [
        {
            "id": "strip",
            "for_each": "${{ inputs.paths }}",
            "op": "script.run",
            "with": {"argv": ["sed", "-i", "s/ *$//", "${{ item }}"]},
        },
        {
            "id": "check",
            "for_each": "${{ inputs.paths }}",
            "needs": ["strip"],
            "op": "script.run",
            "with": {"shell": "! grep -n FIXME '${{ item }}'"},
        },
    ],
}


class Repo:
    """A repository with a file `a.txt` in its first commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "-q", "-b", "main")
        self.write("a.txt", "a\n")
        self.git("add", "a.txt")
        self.git("commit", "-q", "-m", "first")

    def write(self, name: str, content: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def git(self, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def qo(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run([*CLIENT, *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def installs(self, hook: str, document: object) -> Path:
        """The set's file, beside the repository."""
        path = self.root.parent / f"{hook}.json"
        path.write_text(json.dumps(document))
        self.qo("hooks", "install", hook, str(path))
        return path

    def committed(self, name: str) -> str:
        return self.git("show", f"HEAD:{name}")

    @property
    def commits(self) -> int:
        return len(self.git("rev-list", "HEAD").split())

    @property
    def runs(self) -> list[Any]:
        with closing(Journal(workspace_home(self.root))) as journal:
            return journal.runs()


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


@pytest.mark.parametrize("how", [(), ("-a",)], ids=["as staged", "-a"])
def test_a_commit_is_fixed_and_what_was_fixed_is_in_it(repo: Repo, how: tuple[str, ...]) -> None:
    repo.installs("pre-commit", TIDY)
    repo.write("a.txt", "trailing   \n")
    repo.write("other.txt", "not staged   \n")
    if not how:
        repo.git("add", "a.txt")
    said = repo.git("commit", *how, "-m", "second")
    assert "staged again what the set has changed: 1 file" in said
    assert repo.committed("a.txt") == "trailing\n"
    assert repo.git("status", "--porcelain") == "?? other.txt\n"
    assert repo.runs[0].status == "committed"
    entry = next(each for each in Audit(home()).entries() if each.run == repo.runs[0].id)
    assert (entry.details["source"][:19], entry.details["trust"]) == ("git hook pre-commit", "trusted")


def test_a_set_that_fails_stops_the_commit_and_leaves_everything_as_it_was(repo: Repo) -> None:
    repo.installs("pre-commit", TIDY)
    repo.write("a.txt", "FIXME   \n")
    repo.git("add", "a.txt")
    before = repo.git("diff", "--cached")
    said = repo.git("commit", "-m", "second", fails=True)
    assert "nothing was changed" in said
    assert (repo.root / "a.txt").read_text() == "FIXME   \n"
    assert (repo.git("diff", "--cached"), repo.commits) == (before, 1)


def test_changes_that_are_not_staged_stay_so(repo: Repo) -> None:
    repo.installs("pre-commit", TIDY)
    repo.write("a.txt", "staged   \n")
    repo.git("add", "a.txt")
    repo.write("a.txt", "staged   \nmine   \n")
    said = repo.git("commit", "-m", "second", fails=True)
    assert "a.txt: the set changes it, and it has changes that are not staged" in said
    assert (repo.root / "a.txt").read_text() == "staged   \nmine   \n"
    assert repo.git("show", ":a.txt") == "staged   \n"
    assert repo.runs[0].status == "rolled_back"


def test_a_hook_that_was_there_runs_first_and_is_back_afterwards(repo: Repo) -> None:
    path = repo.write(".git/hooks/pre-commit", "#!/bin/sh\necho earlier $# >> ../log\ntest ! -e ../veto\n")
    path.chmod(0o755)
    before = path.read_text()
    repo.installs("pre-commit", TIDY)
    assert json.loads(repo.qo("hooks", "list", "--json"))["hooks"][0]["chained"] is True
    repo.git("commit", "--allow-empty", "-m", "second")
    (repo.root.parent / "veto").touch()
    repo.git("commit", "--allow-empty", "-m", "third", fails=True)
    assert (repo.root.parent / "log").read_text() == "earlier 0\nearlier 0\n"
    assert len(repo.runs) == 1
    assert "is back" in repo.qo("hooks", "uninstall", "pre-commit")
    assert path.read_text() == before
    assert sorted(each.name for each in path.parent.glob("pre-commit*")) == ["pre-commit", "pre-commit.sample"]
    repo.qo("hooks", "uninstall", "pre-commit", code=3)


def test_the_configured_folder_of_hooks_counts_and_other_repositories_are_left_alone(
    repo: Repo, tmp_path: Path
) -> None:
    hooks = tmp_path / "shared hooks"
    repo.git("config", "core.hooksPath", str(hooks))
    repo.installs("pre-commit", {"name": "no", "instructions": [{"id": "no", "op": "assert", "with": {"that": False}}]})
    assert (hooks / "pre-commit").exists()
    assert not (repo.root / ".git/hooks/pre-commit").exists()
    repo.git("commit", "--allow-empty", "-m", "second", fails=True)
    other = Repo(tmp_path / "other")
    other.git("config", "core.hooksPath", str(hooks))
    other.git("commit", "--allow-empty", "-m", "second")


def test_a_message_is_judged_and_completed(repo: Repo) -> None:
    message = {"id": "message", "op": "echo", "with": {"message": "PROJ-1: ${{ inputs.message }}"}}
    text = {"type": "string"}
    repo.installs("commit-msg", {"name": "ticket", "inputs": {"message": text}, "instructions": [message]})
    repo.git("commit", "--allow-empty", "-m", "Add it")
    assert repo.git("log", "-1", "--format=%B").strip() == "PROJ-1: Add it"


def test_what_is_pushed_is_told(repo: Repo, tmp_path: Path) -> None:
    check = {
        "id": "check",
        "op": "assert",
        "with": {"that": "${{ inputs.refs[0].remote_ref != 'refs/heads/main' and inputs.args[0] == 'origin' }}"},
    }
    refs = {"refs": {"type": "array"}, "args": {"type": "array"}}
    repo.installs("pre-push", {"name": "push", "inputs": refs, "instructions": [check]})
    repo.git("init", "-q", "--bare", str(tmp_path / "origin.git"))
    repo.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    repo.git("push", "-q", "origin", "HEAD:refs/heads/main", fails=True)
    repo.git("push", "-q", "origin", "HEAD:refs/heads/topic")
    assert repo.git("ls-remote", "origin").split()[1:] == ["refs/heads/topic"]


def test_what_was_merged_starts_a_run(repo: Repo) -> None:
    repo.git("checkout", "-q", "-b", "topic")
    repo.git("commit", "-q", "--allow-empty", "-m", "topic")
    repo.git("checkout", "-q", "main")
    note = {"id": "note", "op": "file.write", "with": {"path": "merged.txt", "content": "${{ inputs.hook }}\n"}}
    repo.installs("post-merge", {"name": "merged", "inputs": {"hook": {"type": "string"}}, "instructions": [note]})
    repo.git("merge", "-q", "topic")
    assert (repo.root / "merged.txt").read_text() == "post-merge\n"


def test_a_set_that_has_changed_since_is_not_trusted(repo: Repo) -> None:
    path = repo.installs("pre-commit", TIDY)
    path.write_text(json.dumps({**TIDY, "description": "pulled"}))
    said = repo.git("commit", "--allow-empty", "-m", "second")
    assert "has changed since it was installed, and runs as untrusted" in said
    assert repo.runs[0].document["trust"] == "untrusted"


def test_nothing_of_the_repository_is_imported_by_a_hook(repo: Repo) -> None:
    repo.installs("pre-commit", TIDY)
    repo.write("json.py", "raise SystemExit('planted')\n")
    repo.git("commit", "--allow-empty", "-m", "second")


def test_a_hook_manager_runs_it_without_installing(repo: Repo) -> None:
    (repo.root.parent / "tidy.json").write_text(json.dumps(TIDY))
    repo.write("a.txt", "trailing   \n")
    repo.git("add", "a.txt")
    said = repo.qo("hooks", "run", "pre-commit", "--set", "../tidy.json")
    assert "was not installed by `qo hooks install`, and runs as untrusted" in said
    assert repo.git("show", ":a.txt") == "trailing\n"


def test_only_hooks_that_run_in_a_workspace_can_be_installed(repo: Repo, tmp_path: Path) -> None:
    assert "did you mean 'pre-commit'" in repo.qo("hooks", "install", "pre-comit", "x.json", code=3)
    assert "is no git repository" in repo.qo("hooks", "list", "--workspace", str(tmp_path), code=3)


def test_the_pre_commit_frameworks_hooks_are_commands_that_there_are(repo: Repo) -> None:
    import shlex

    from ruamel.yaml import YAML

    hooks = YAML(typ="safe").load(Path(__file__).parents[2] / ".pre-commit-hooks.yaml")
    entries = {hook["id"]: shlex.split(hook["entry"]) for hook in hooks}
    repo.write("good.json", json.dumps(TIDY))
    repo.write("bad.json", "{")
    assert entries["qo-validate"][0] == entries["qo-run"][0] == "qo"
    repo.qo(*entries["qo-validate"][1:], "good.json")
    assert "bad.json:1:" in repo.qo(*entries["qo-validate"][1:], "good.json", "bad.json", code=3)
    repo.qo(*entries["qo-run"][1:], "--set", "good.json")
    assert os.path.lexists(repo.root / "good.json")

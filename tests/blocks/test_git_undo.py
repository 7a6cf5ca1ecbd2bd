"""Undoing a run in a repository that has been used since: exactly its effects go, and what others did stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shell import sh

from quantum_orchestrator.blocks import git_undo
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.git_index import UnreadableIndex, read_index
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Conflicts, Workspace

RUN = "r1"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two commits, a branch `side`, and nothing that is not committed."""
    root = tmp_path_factory.mktemp("template")
    sh(root, "git init -qb main .; echo a > a; echo b > b; git add .; git commit -qm first; git branch side")
    sh(root, "echo more >> a; git commit -qam second; git checkout -q side; echo s > s; git add s; git commit -qm side")
    sh(root, "git checkout -q main")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    sh(tmp_path, f"cp -a {template} workspace")
    return tmp_path / "workspace"


def state(root: Path) -> dict[str, Any]:
    """What git says of a repository, and the files."""
    return {
        "refs": sh(root, "git for-each-ref; cat .git/HEAD"),
        "index": sh(root, "git ls-files --stage; git status --porcelain"),
        "stash": sh(root, "git stash list"),
        "check": sh(root, "git fsck --strict --no-dangling --no-progress"),
        "files": {
            str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes())
            for path in sorted(root.rglob("*"))
            if path.is_file() and ".git" not in path.parts
        },
    }


def run(workspace: Workspace, *scripts: str) -> None:
    """A run whose steps are these scripts."""
    for number, text in enumerate(scripts):
        workspace.capture(RUN, f"s{number}", ["."])
        sh(workspace.root, text)
        workspace.finish(RUN, f"s{number}")


@pytest.fixture
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("git was started")

    monkeypatch.setattr(Repository, "commands", refuse)


COMMIT = "echo run > a; echo n > n; git add .; git commit -qm run"

RUNS = {
    "commits": (COMMIT,),
    "commits twice": (COMMIT, "echo again > n; git commit -qam again"),
    "makes a branch and commits on it": ("git checkout -qb feature", COMMIT),
    "makes nested branches and a tag": ("git branch x/y; git branch x/z; git tag -a -m t v1; git tag v2",),
    "amends": ("echo run > a; git commit -qa --amend -m amended",),
    "stages": ("echo run > a; echo n > n; git add .",),
    "removes a file": ("git rm -q b; git commit -qm removed",),
    "removes a branch": ("git branch -qD side",),
    "merges": ("git merge -q --no-edit side",),
    "resets": ("git reset -q --hard HEAD~1",),
    "packs refs and commits": ("git pack-refs --all", COMMIT),
}

SINCE = {
    "nothing": "true",
    "looked": "sleep 0.02; touch a b; git status > status; rm status",
    "edited another file": "echo theirs > new",
    "staged another file": "echo theirs > new; git add new",
    "staged some of another file": "echo theirs > new; git add new; echo more >> new",
    "made a branch": "git branch theirs side",
    "tagged": "git tag theirs side",
    "packed refs": "git pack-refs --all",
    "collected garbage": "git gc -q",
    "collected all garbage": "git reflog expire --expire=now --all; git gc -q",
    "fetched": "git fetch -q . side",
    "configured": "git config user.name Somebody",
    "stashed": "echo theirs >> b; git stash -q",
}


@pytest.mark.parametrize("since", SINCE)
@pytest.mark.parametrize("what", ["commits", "makes a branch and commits on it"])
def test_what_a_run_did_goes_and_what_somebody_did_elsewhere_stays(
    workspace: Workspace, root: Path, what: str, since: str
) -> None:
    check_undone(workspace, root, what, since)


@pytest.mark.parametrize("since", ["staged another file", "packed refs"])
@pytest.mark.parametrize("what", [each for each in RUNS if each != "commits"])
def test_whatever_a_run_did_in_git_goes(workspace: Workspace, root: Path, what: str, since: str) -> None:
    check_undone(workspace, root, what, since)


def check_undone(workspace: Workspace, root: Path, what: str, since: str) -> None:
    """The state afterwards is as if there had been what somebody did alone."""
    alone = root.parent / "alone"
    sh(root.parent, "cp -a workspace alone")
    sh(alone, SINCE[since])
    run(workspace, *RUNS[what])
    sh(root, SINCE[since])
    assert workspace.undo(RUN).conflicts == []
    found, wanted = state(root), state(alone)
    if since == "stashed":  # a stash names the commit that was current, which is another one
        found["refs"], wanted["refs"] = (re.sub(".*refs/stash\n", "", each["refs"]) for each in (found, wanted))
        found["stash"] = wanted["stash"] = ""
    assert found == wanted
    assert workspace.journal.effects(RUN) == []
    assert workspace.undo(RUN).changes == []


def test_without_other_changes_no_git_is_started(workspace: Workspace, root: Path, no_git: None) -> None:
    before = state(root)
    run(workspace, COMMIT)
    sh(root, "touch b; git status")
    assert workspace.undo(RUN).repositories == []
    assert state(root) == before


def test_a_branch_that_has_moved_since_is_a_conflict_and_nothing_in_git_is_touched(
    workspace: Workspace, root: Path
) -> None:
    run(workspace, COMMIT, "git branch made")
    sh(root, "echo theirs > theirs; git add theirs; git commit -qm 'Their work'")
    told = "git for-each-ref; git ls-files --stage; git reflog; git fsck --strict --no-dangling --no-progress"
    before = sh(root, told)
    undo = workspace.plan_undo(RUN)
    assert undo.conflicts[0] == ".git/refs/heads/main"
    assert "commit: Their work" in undo.reasons[".git/refs/heads/main"]
    assert ".git/COMMIT_EDITMSG" not in undo.conflicts
    assert ".git/logs/HEAD" not in undo.conflicts
    workspace.undo(RUN)
    assert sh(root, told) == before
    assert any(each.change.path == ".git/refs/heads/main" for each in workspace.journal.effects(RUN))


def test_a_commit_on_another_branch_is_no_conflict(workspace: Workspace, root: Path) -> None:
    before = sh(root, "git rev-parse main")
    run(workspace, COMMIT)
    sh(root, "git checkout -q side; echo theirs > theirs; git add theirs; git commit -qm theirs")
    theirs = sh(root, "git rev-parse side")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git rev-parse main side") == before + theirs
    assert sh(root, "git status --porcelain --branch") == "## side\n"
    assert "commit: theirs" in sh(root, "git reflog")
    assert not (root / "n").exists()
    assert (root / "theirs").read_text() == "theirs\n"
    sh(root, "git fsck --strict --no-dangling --no-progress; git checkout -q main")
    assert sh(root, "git status --porcelain") == ""


def test_a_branch_built_on_what_the_run_committed_is_a_conflict(workspace: Workspace, root: Path) -> None:
    run(workspace, COMMIT)
    sh(root, "git checkout -qb theirs; echo theirs > theirs; git add theirs; git commit -qm theirs")
    undo = workspace.plan_undo(RUN)
    assert undo.conflicts == [".git/index"]
    assert undo.reasons[".git/index"] == "staged or committed since: a, n"


def test_an_entry_staged_since_is_a_conflict(workspace: Workspace, root: Path) -> None:
    run(workspace, "echo run > a; git add a", "echo run > b; git add b")
    sh(root, "echo theirs > a; git add a; echo run > a")
    undo = workspace.plan_undo(RUN)
    assert undo.conflicts == [".git/index"]
    assert undo.reasons[".git/index"] == "staged or committed since: a"


def test_while_another_git_is_at_work_nothing_is_touched(workspace: Workspace, root: Path) -> None:
    run(workspace, COMMIT)
    sh(root, "echo theirs > theirs; git add theirs; touch .git/index.lock")
    assert workspace.undo(RUN).conflicts == [".git/index.lock"]
    assert sh(root, "git log -1 --format=%s") == "run\n"


def test_a_lock_that_the_runs_own_git_left_goes(workspace: Workspace, root: Path) -> None:
    before = sh(root, "git rev-parse main")
    workspace.capture(RUN, "s", [".git"])
    sh(root, "git commit -q --allow-empty -m run; echo n > n; git add n; touch .git/index.lock")
    workspace.finish(RUN, "s")
    sh(root, "git pack-refs --all; rm n")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git rev-parse main; git status --porcelain") == before
    assert not (root / ".git" / "index.lock").exists()


def test_a_head_that_has_moved_since_is_a_conflict(workspace: Workspace, root: Path) -> None:
    run(workspace, "git checkout -qb feature")
    sh(root, "git checkout -qb theirs")
    undo = workspace.undo(RUN)
    assert undo.conflicts == [".git/HEAD"]
    assert undo.reasons[".git/HEAD"] == "now ref: refs/heads/theirs"
    assert "feature" in sh(root, "git branch")


def test_a_branch_that_somebody_is_on_now_does_not_go(workspace: Workspace, root: Path) -> None:
    run(workspace, "git branch feature")
    sh(root, "git checkout -q feature")
    assert workspace.undo(RUN).conflicts == [".git/HEAD"]
    assert sh(root, "git symbolic-ref HEAD") == "refs/heads/feature\n"
    sh(root, "git checkout -q main")
    assert workspace.undo(RUN).conflicts == []
    assert "feature" not in sh(root, "git branch")


def test_the_first_commit_of_a_repository_goes(workspace: Workspace, root: Path) -> None:
    sh(root, "rm -rf .git; git init -qb main .; rm s || true")
    run(workspace, "git add .; git commit -qm first")
    sh(root, "echo theirs > theirs; git add theirs")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git for-each-ref") == ""
    assert sh(root, "git status --porcelain") == "A  theirs\n?? a\n?? b\n"


def test_a_repository_that_the_run_made_and_that_was_used_since_is_one_conflict(
    workspace: Workspace, root: Path
) -> None:
    sh(root, "rm -rf .git")
    run(workspace, "git init -qb main .; git add .; git commit -qm first")
    sh(root, "echo theirs > theirs; git add theirs; git commit -qm theirs")
    assert workspace.undo(RUN).conflicts == [".git"]
    assert sh(root, "git log --format=%s") == "theirs\nfirst\n"
    undo = workspace.undo(RUN, conflicts=Conflicts.OVERWRITE)
    assert not (root / ".git").exists()
    assert sh(undo.aside[".git"].parent, "git --git-dir .git log --format=%s main") == "theirs\nfirst\n"


def test_what_is_kept_stays_and_the_run_has_no_open_effects(workspace: Workspace, root: Path) -> None:
    run(workspace, COMMIT, "git branch made")
    sh(root, "echo theirs > theirs; git add theirs; git commit -qm theirs")
    theirs = sh(root, "git rev-parse main")
    assert ".git/refs/heads/main" in workspace.undo(RUN, conflicts=Conflicts.KEEP).conflicts
    assert sh(root, "git rev-parse main") == theirs
    assert "made" not in sh(root, "git branch")
    assert workspace.journal.effects(RUN) == []


def test_what_is_overwritten_is_put_aside(workspace: Workspace, root: Path) -> None:
    before = sh(root, "git rev-parse main")
    run(workspace, COMMIT)
    sh(root, "echo theirs > theirs; git add theirs; git commit -qm theirs")
    theirs = sh(root, "git rev-parse main")
    undo = workspace.undo(RUN, conflicts=Conflicts.OVERWRITE)
    assert undo.aside[".git/refs/heads/main"].read_text() == theirs
    assert sh(root, "git rev-parse main") == before
    assert sh(root, "git status --porcelain") == "A  theirs\n"
    assert workspace.journal.effects(RUN) == []


def test_a_ref_that_moves_at_the_last_moment_is_not_overwritten(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(workspace, COMMIT)
    sh(root, "git pack-refs --all")
    real = git_undo.carry_out

    def late(*arguments: Any) -> None:
        sh(root, "git update-ref refs/heads/main side")
        real(*arguments)

    monkeypatch.setattr(git_undo, "carry_out", late)
    with pytest.raises(OperationError, match="refs/heads/main"):
        workspace.undo(RUN)
    assert sh(root, "git rev-parse main") == sh(root, "git rev-parse side")
    assert (root / "a").read_text() == "run\n"


@pytest.mark.parametrize("after", ["refs", "index", "files"])
def test_an_undo_cut_short_is_repeated(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    sh(root.parent, "cp -a workspace alone")
    sh(root.parent / "alone", "git pack-refs --all")
    run(workspace, "git branch feature", COMMIT)
    sh(root, "git pack-refs --all")
    with monkeypatch.context() as patch:
        if after == "refs":
            patch.setattr(git_undo, "_index_lines", break_off)
        elif after == "index":
            patch.setattr(Workspace, "_remove_leftovers", break_off)
        else:
            patch.setattr(Workspace, "_put_back_logs", break_off)
        with pytest.raises(InterruptedError):
            workspace.undo(RUN)
    assert workspace.undo(RUN).conflicts == []
    assert state(root) == state(root.parent / "alone")
    for log in ("logs/HEAD", "logs/refs/heads/main"):
        assert (root / ".git" / log).read_text() == (root.parent / "alone" / ".git" / log).read_text()


def break_off(*_: object) -> None:
    raise InterruptedError


def test_a_nested_repository_is_undone_alike(workspace: Workspace, root: Path) -> None:
    sh(root, "mkdir sub; cd sub; git init -qb main .; echo x > x; git add .; git commit -qm first")
    before = sh(root / "sub", "git rev-parse main")
    run(workspace, "cd sub; echo run > x; git commit -qam run")
    sh(root / "sub", "git pack-refs --all; echo y > y; git add y")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root / "sub", "git rev-parse main") == before
    assert sh(root / "sub", "git status --porcelain") == "A  y\n"


def test_an_index_with_ids_of_sha256_is_put_back(workspace: Workspace, root: Path) -> None:
    sh(root, "rm -rf .git; git init -qb main --object-format=sha256 .; git add .; git commit -qm first")
    run(workspace, COMMIT)
    sh(root, "echo theirs > theirs; git add theirs")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git status --porcelain") == "A  theirs\n"


@pytest.mark.parametrize("version", [2, 3, 4])
def test_an_index_is_read_as_git_reads_it(root: Path, version: int) -> None:
    sh(root, "mkdir -p d/e; echo 1 > d/e/long-name; ln -s a link; echo x > 'caf\u00e9'; chmod +x b; git add .")
    sh(root, f"git update-index --index-version {version}; echo later > later; git add -N later")
    listed = [line.partition("\t") for line in sh(root, "git ls-files --stage -z").split("\0")[:-1]]
    wanted = {path: facts.split() for facts, _, path in listed}
    found = read_index((root / ".git" / "index").read_bytes())
    assert {path: [f"{each.mode:06o}", each.id, str(each.stage)] for path, (each,) in found.items()} == wanted


def test_an_index_in_conflict_is_read_with_its_stages(root: Path) -> None:
    sh(root, "git checkout -q side; echo theirs > a; git commit -qam a; git checkout -q main; git merge side || true")
    assert [each.stage for each in read_index((root / ".git" / "index").read_bytes())["a"]] == [1, 2, 3]


@pytest.mark.parametrize("damage", [lambda index: b"", lambda index: index[:100], lambda index: b"X" + index[1:]])
def test_a_damaged_index_is_told(root: Path, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnreadableIndex):
        read_index(damage((root / ".git" / "index").read_bytes()))


def test_a_file_written_by_an_operation_and_committed_by_another_is_undone(workspace: Workspace, root: Path) -> None:
    overlay = Overlay(workspace.tree)
    overlay.write("n", b"written")
    workspace.apply(RUN, "write", overlay.changes(), overlay.content_of)
    workspace.capture(RUN, "commit", [".git"])
    sh(root, "git add n; git commit -qm run")
    workspace.finish(RUN, "commit")
    sh(root, "git gc -q; echo theirs > theirs; git add theirs")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git log --format=%s") == "second\nfirst\n"
    assert sh(root, "git status --porcelain") == "A  theirs\n"


def test_a_branch_that_somebody_is_on_now_stays_if_that_is_kept(workspace: Workspace, root: Path) -> None:
    run(workspace, "git branch feature")
    sh(root, "git checkout -q feature")
    workspace.undo(RUN, conflicts=Conflicts.KEEP)
    assert sh(root, "git rev-parse feature") == sh(root, "git rev-parse main")
    assert sh(root, "git status --porcelain") == ""


def test_tables_of_refs_stay_whole_where_their_list_is_kept(workspace: Workspace, root: Path) -> None:
    tables = root / ".git/reftable"
    tables.mkdir()
    (tables / "tables.list").write_text("1.ref\n")
    (tables / "1.ref").write_text("one")
    run(workspace, "cd .git/reftable; echo two > 2.ref; echo 2.ref >> tables.list")
    sh(tables, "echo three > 3.ref; echo 3.ref >> tables.list")
    workspace.undo(RUN, conflicts=Conflicts.KEEP)
    assert all((tables / name).exists() for name in (tables / "tables.list").read_text().split())


def test_a_packed_ref_may_have_any_character_in_its_name(workspace: Workspace, root: Path) -> None:
    run(workspace, "git branch made")
    sh(root, "git branch 'made\u2028too' side; git pack-refs --all; git update-ref -d refs/heads/made")
    assert workspace.undo(RUN).conflicts == []
    assert "made\u2028too" in sh(root, "git for-each-ref")


def test_a_ref_that_a_run_has_moved_and_packed_goes_back(workspace: Workspace, root: Path) -> None:
    sh(root, "git pack-refs --all")
    before = sh(root, "git for-each-ref")
    run(workspace, f"{COMMIT}; git branch made; git pack-refs --all")
    sh(root, "echo theirs > theirs; git add theirs")
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git for-each-ref") == before


def test_a_ref_that_was_only_packed_again_stays_where_it_is(workspace: Workspace, root: Path) -> None:
    before = sh(root, "git for-each-ref")
    run(workspace, "echo n > n; git add n; git pack-refs --all --no-prune")
    sh(root, "echo theirs > theirs; git add theirs; git branch -qf side main")
    theirs = sh(root, "git for-each-ref")
    assert theirs != before
    assert workspace.undo(RUN).conflicts == []
    assert sh(root, "git for-each-ref") == theirs

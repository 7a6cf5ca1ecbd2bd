"""The `git.*` operations, on real repositories. A second, plain git looks at what they have done."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PathRefused, PolicyRefused, TimedOut
from quantum_orchestrator.blocks.git_names import protocol_of, without_credentials
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks.operation import EVERYTHING, UNKNOWN, CancelToken, Context, Unknown
from quantum_orchestrator.tasks.registry import every, get

FILE_TOO = Policy(git_protocols=("https", "ssh", "file"))
FAMILY = tuple(name.partition(".")[2] for name in every() if name.startswith("git."))
AUTHOR = "Ada Lovelace <ada@example.org>"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a name, and nothing of the machine's own configuration."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".gitconfig").write_text("[user]\n name = Grace Hopper\n email = grace@example.org\n")
    for name in [each for each in os.environ if each.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


def plain(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def do(folder: Path, name: str, context: dict[str, Any] | None = None, /, **parameters: Any) -> Any:
    policy = (context or {}).get("policy", Policy())
    given = Context(Overlay(MemoryTree()), root=folder, policy=policy, repository=Repository(folder, policy))
    for key, value in (context or {}).items():
        setattr(given, key, value)
    operation = get(f"git.{name}")
    return operation.run(operation.parameters(**parameters), given)


def effects(name: str, /, **parameters: Any) -> Any:
    operation = get(f"git.{name}")
    return operation.effects(operation.parameters.model_construct(**{**defaults(operation), **parameters}))


def defaults(operation: Any) -> dict[str, Any]:
    fields = operation.parameters.model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()}


def write(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        (folder / name).write_text(content)


@pytest.fixture(scope="module")
def first_commit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    plain(folder, "init", "-q", "--template=")
    write(folder, a="one\n")
    plain(folder, "add", "a")
    plain(folder, *("-c", "user.name=x", "-c", "user.email=x@example.org"), "commit", "-q", "-m", "First")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, first_commit: Path) -> Path:
    """A repository with one commit: the file `a`."""
    return shutil.copytree(first_commit, tmp_path / "workspace")


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file and link outside of .git, and what git says of itself."""
    files: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if ".git" not in path.relative_to(folder).parts and not path.is_dir():
            files[str(path.relative_to(folder))] = path.read_bytes()
    files["HEAD"] = plain(folder, "rev-parse", "HEAD")
    files["status"] = plain(folder, "status", "--porcelain=v2", "--branch")
    files["state"] = str(sorted(name for name in os.listdir(folder / ".git") if name.isupper() and "ORIG" not in name))
    return files


# git.init


def test_init_makes_a_repository_on_main(tmp_path: Path) -> None:
    outputs = do(tmp_path, "init")
    assert (outputs.branch, outputs.created) == ("main", True)
    assert plain(tmp_path, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert not (tmp_path / ".git" / "hooks").exists()


def test_init_honours_the_configured_branch_and_the_parameter(tmp_path: Path, home: Path) -> None:
    with (home / ".gitconfig").open("a") as file:
        file.write("[init]\n defaultBranch = trunk\n")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert do(tmp_path / "one", "init").branch == "trunk"
    assert do(tmp_path / "two", "init", branch="other").branch == "other"


def test_init_leaves_an_existing_repository_alone(workspace: Path) -> None:
    before = snapshot(workspace)
    outputs = do(workspace, "init", branch="other")
    assert (outputs.branch, outputs.created) == ("main", False)
    assert snapshot(workspace) == before


def test_init_inside_of_another_repository_makes_one_of_its_own(workspace: Path) -> None:
    inner = workspace / "inner"
    inner.mkdir()
    assert do(inner, "init").created
    assert (inner / ".git").is_dir()


# Which repository


@pytest.mark.parametrize("name", ["status", "diff", "log", "fetch", "push"])
def test_a_repository_above_the_workspace_is_not_used(workspace: Path, name: str) -> None:
    inner = workspace / "inner"
    inner.mkdir()
    with pytest.raises(OperationError, match="no git repository here") as caught:
        do(inner, name)
    assert "git.init" in caught.value.hint


def test_a_linked_worktree_is_refused(workspace: Path, tmp_path: Path) -> None:
    plain(workspace, "worktree", "add", "-q", "../linked")
    with pytest.raises(OperationError, match="lies outside of the workspace"):
        do(tmp_path / "linked", "status")


def test_a_git_folder_that_is_a_link_is_refused(workspace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / ".git").symlink_to(workspace / ".git")
    with pytest.raises(OperationError, match="lies outside of the workspace"):
        do(other, "status")


def test_a_git_folder_that_is_no_repository_says_so(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(OperationError, match="git"):
        do(tmp_path, "status")


def test_a_work_tree_that_is_configured_elsewhere_is_not_used(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    plain(workspace, "config", "core.worktree", str(tmp_path / "elsewhere"))
    assert do(workspace, "status").clean


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_workspace_of_somebody_else_can_be_used(workspace: Path) -> None:
    for path in [workspace, *workspace.rglob("*")]:
        os.chown(path, 65534, 65534)
    control = subprocess.run(["git", "status"], cwd=workspace, capture_output=True, text=True, check=False)
    assert "dubious ownership" in control.stderr
    write(workspace, a="two\n")
    assert do(workspace, "status").changed == ["a"]
    assert do(workspace, "commit", message="Second", all=True).commit


# git.status


def test_status_tells_staged_changed_and_untracked_apart(workspace: Path) -> None:
    write(workspace, b="b\n", c="c\n")
    plain(workspace, "add", "b")
    write(workspace, a="two\n", b="changed\n")
    outputs = do(workspace, "status")
    assert (outputs.branch, outputs.head) == ("main", plain(workspace, "rev-parse", "HEAD"))
    assert (outputs.staged, outputs.changed, outputs.untracked) == (["b"], ["a", "b"], ["c"])
    assert not outputs.clean


def test_status_of_a_clean_repository(workspace: Path) -> None:
    assert do(workspace, "status").clean


def test_status_before_the_first_commit(tmp_path: Path) -> None:
    do(tmp_path, "init")
    outputs = do(tmp_path, "status")
    assert (outputs.branch, outputs.head, outputs.clean) == ("main", None, True)


def test_status_without_a_branch(workspace: Path) -> None:
    plain(workspace, "checkout", "-q", "--detach")
    assert do(workspace, "status").branch is None


def test_status_gives_names_as_they_are(workspace: Path) -> None:
    names = ["sp ace", "ümlaut", 'quo"te', "-dash", "*"]
    for name in names:
        (workspace / name).touch()
    assert sorted(do(workspace, "status").untracked) == sorted(names)


def test_status_names_conflicted_files(workspace: Path) -> None:
    make_conflict(workspace)
    subprocess.run(["git", "merge", "-q", "other"], cwd=workspace, check=False, capture_output=True)
    assert do(workspace, "status").conflicted == ["a"]


def test_status_passes_over_caches_as_if_they_were_ignored(workspace: Path) -> None:
    (workspace / "pkg" / "__pycache__").mkdir(parents=True)
    (workspace / "pkg" / "__pycache__" / "x.pyc").touch()
    (workspace / "__pycache__x").touch()
    assert do(workspace, "status").untracked == ["__pycache__x"]
    assert do(workspace, "status", {"policy": Policy(snapshot_exclude=())}).untracked != ["__pycache__x"]


def test_status_leaves_the_index_alone(workspace: Path) -> None:
    time.sleep(0.01)
    (workspace / "a").touch()
    before = (workspace / ".git" / "index").read_bytes()
    do(workspace, "status")
    assert (workspace / ".git" / "index").read_bytes() == before


# git.diff


def test_diff_compares_files_with_the_index(workspace: Path) -> None:
    write(workspace, a="two\n")
    outputs = do(workspace, "diff")
    assert outputs.files == ["a"]
    assert "--- a/a\n+++ b/a\n@@ -1 +1 @@\n-one\n+two\n" in outputs.text


def test_diff_compares_the_index_or_a_revision_or_some_paths(workspace: Path) -> None:
    write(workspace, a="two\n", b="b\n")
    plain(workspace, "add", "b")
    assert do(workspace, "diff", staged=True).files == ["b"]
    assert do(workspace, "diff", ref="HEAD").files == ["a", "b"]
    assert do(workspace, "diff", ref="HEAD", paths=["b"]).files == ["b"]
    plain(workspace, "commit", "-q", "-a", "-m", "Second")
    assert do(workspace, "diff", ref="HEAD~1..HEAD").files == ["a", "b"]
    assert do(workspace, "diff").text == ""


def test_diff_does_not_depend_on_configuration(workspace: Path) -> None:
    for key, value in {"diff.noprefix": "true", "color.ui": "always", "diff.mnemonicPrefix": "true"}.items():
        plain(workspace, "config", key, value)
    write(workspace, a="two\n")
    assert "--- a/a\n+++ b/a\n" in do(workspace, "diff").text


@pytest.mark.parametrize("ref", ["none", "none..HEAD", "HEAD..none"])
def test_diff_with_an_unknown_revision_is_an_error(workspace: Path, ref: str) -> None:
    with pytest.raises(OperationError, match="no commit 'none'"):
        do(workspace, "diff", ref=ref)


# git.log


def test_log_lists_the_newest_commits_first(workspace: Path) -> None:
    write(workspace, a="two\n")
    plain(workspace, "commit", "-q", "-a", "-m", "Second\n\nBody")
    commits = do(workspace, "log").commits
    assert [each.subject for each in commits] == ["Second", "First"]
    assert commits[0].author == "Grace Hopper <grace@example.org>"
    assert commits[0].commit == plain(workspace, "rev-parse", "HEAD")
    assert commits[0].date == plain(workspace, "log", "-1", "--format=%aI")


def test_log_takes_a_count_a_revision_and_a_range(workspace: Path) -> None:
    plain(workspace, "commit", "-q", "--allow-empty", "-m", "Second")
    assert [each.subject for each in do(workspace, "log", max_count=1).commits] == ["Second"]
    assert [each.subject for each in do(workspace, "log", ref="HEAD~1").commits] == ["First"]
    assert [each.subject for each in do(workspace, "log", ref="HEAD~1..").commits] == ["Second"]


def test_log_of_a_new_repository_is_empty(tmp_path: Path) -> None:
    do(tmp_path, "init")
    assert do(tmp_path, "log").commits == []


# git.add


def test_add_stages_new_changed_and_deleted_files(workspace: Path) -> None:
    write(workspace, b="b\n")
    (workspace / "a").unlink()
    assert do(workspace, "add", paths=["."]).staged == ["a", "b"]
    assert plain(workspace, "status", "--porcelain") == "D  a\nA  b"


def test_add_takes_its_paths_literally(workspace: Path) -> None:
    write(workspace, **{"*": "star\n", "b": "b\n", "-n": "dash\n", ":x": "colon\n"})
    assert do(workspace, "add", paths=["*", "-n"]).staged == ["*", "-n"]


def test_add_of_a_deleted_file_by_name(workspace: Path) -> None:
    (workspace / "a").unlink()
    assert do(workspace, "add", paths=["a"]).staged == ["a"]


def test_add_names_the_paths_that_do_not_exist_and_stages_nothing(workspace: Path) -> None:
    write(workspace, b="b\n")
    with pytest.raises(OperationError, match="no such files: 'c', 'd'"):
        do(workspace, "add", paths=["b", "c", "d"])
    assert do(workspace, "status").staged == []


def test_add_can_skip_them_with_a_warning(workspace: Path) -> None:
    write(workspace, b="b\n")
    lines: list[str] = []
    outputs = do(workspace, "add", {"log": lines.append}, paths=["b", "c"], missing="skip")
    assert (outputs.staged, outputs.skipped) == (["b"], ["c"])
    assert "'c'" in lines[0]


def test_add_with_nothing_left_is_an_error_all_the_same(workspace: Path) -> None:
    with pytest.raises(OperationError, match="none of the paths exists"):
        do(workspace, "add", paths=["c"], missing="skip")


def test_add_of_an_ignored_file_is_an_error(workspace: Path) -> None:
    write(workspace, **{".gitignore": "b\n", "b": "b\n"})
    with pytest.raises(OperationError, match="ignored"):
        do(workspace, "add", paths=["b"])
    assert do(workspace, "add", paths=["."]).staged == [".gitignore"]


def test_add_passes_over_caches(workspace: Path) -> None:
    (workspace / "node_modules").mkdir()
    write(workspace / "node_modules", x="x")
    write(workspace, b="b\n")
    assert do(workspace, "add", paths=["."]).staged == ["b"]


# git.commit


def test_commit_gives_the_full_object_id(workspace: Path) -> None:
    write(workspace, b="b\n")
    plain(workspace, "add", "b")
    outputs = do(workspace, "commit", message="Second\n\n# not a comment\n")
    assert outputs.commit == plain(workspace, "rev-parse", "HEAD")
    assert len(outputs.commit) == 40
    assert outputs.branch == "main"
    assert plain(workspace, "log", "-1", "--format=%B|%an|%ce") == (
        "Second\n\n# not a comment\n|Grace Hopper|grace@example.org"
    )


def test_commit_takes_what_is_staged_alone(workspace: Path) -> None:
    write(workspace, a="two\n", b="b\n")
    plain(workspace, "add", "b")
    do(workspace, "commit", message="Second")
    assert plain(workspace, "show", "--name-only", "--format=") == "b"


def test_commit_with_all_takes_new_changed_and_deleted_files_and_no_caches(workspace: Path) -> None:
    write(workspace, b="b\n", c="c\n", **{".gitignore": "c\n"})
    (workspace / "__pycache__").mkdir()
    write(workspace / "__pycache__", x="x")
    (workspace / "a").unlink()
    do(workspace, "commit", message="Second", all=True)
    assert plain(workspace, "show", "--name-only", "--format=").split() == [".gitignore", "a", "b"]


def test_the_first_commit(tmp_path: Path) -> None:
    do(tmp_path, "init")
    write(tmp_path, a="a")
    outputs = do(tmp_path, "commit", message="First", all=True)
    assert plain(tmp_path, "rev-list", "--all") == outputs.commit


def test_nothing_to_commit_is_an_error(workspace: Path) -> None:
    with pytest.raises(OperationError, match="nothing to commit") as caught:
        do(workspace, "commit", message="Second", all=True)
    assert "allow_empty" in caught.value.hint


def test_nothing_to_commit_can_be_success(workspace: Path) -> None:
    head = plain(workspace, "rev-parse", "HEAD")
    assert do(workspace, "commit", message="Second", if_empty="skip").commit is None
    assert plain(workspace, "rev-parse", "HEAD") == head


def test_an_empty_commit_when_it_is_allowed(workspace: Path) -> None:
    head = plain(workspace, "rev-parse", "HEAD")
    do(workspace, "commit", message="Second", allow_empty=True)
    assert plain(workspace, "rev-parse", "HEAD~1") == head


@pytest.mark.parametrize("message", ["", "  \n"])
def test_a_commit_without_a_message_is_refused(workspace: Path, message: str) -> None:
    with pytest.raises(OperationError, match="message is empty"):
        do(workspace, "commit", message=message, allow_empty=True)


@pytest.mark.parametrize("author", [AUTHOR, {"name": "Ada Lovelace", "email": "ada@example.org"}])
def test_an_author_is_the_author_and_the_user_commits(workspace: Path, author: Any) -> None:
    operation = get("git.commit")
    parameters = operation.parameters.model_validate({"message": "x", "allow_empty": True, "author": author})
    operation.run(parameters, Context(Overlay(MemoryTree()), root=workspace))
    assert plain(workspace, "log", "-1", "--format=%an <%ae> %cn") == f"{AUTHOR} Grace Hopper"


def test_without_an_identity_a_commit_is_refused_with_what_to_do(workspace: Path, home: Path) -> None:
    (home / ".gitconfig").unlink()
    write(workspace, a="two\n")
    with pytest.raises(OperationError, match=r"user\.name and user\.email are not configured") as caught:
        do(workspace, "commit", message="Second", all=True)
    assert "`author`" in caught.value.hint
    assert do(workspace, "status").staged == []


def test_without_an_identity_the_author_also_commits(workspace: Path, home: Path) -> None:
    (home / ".gitconfig").unlink()
    do(workspace, "commit", message="Second", allow_empty=True, author=AUTHOR)
    assert plain(workspace, "log", "-1", "--format=%an <%ae>|%cn <%ce>") == f"{AUTHOR}|{AUTHOR}"


def test_an_identity_of_the_repository_itself_counts(workspace: Path, home: Path) -> None:
    (home / ".gitconfig").unlink()
    plain(workspace, "config", "user.name", "Local")
    plain(workspace, "config", "user.email", "local@example.org")
    do(workspace, "commit", message="Second", allow_empty=True)
    assert plain(workspace, "log", "-1", "--format=%cn") == "Local"


def test_variables_of_the_caller_do_not_change_a_commit(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Mallory")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    do(workspace, "commit", message="Second", allow_empty=True)
    monkeypatch.undo()
    assert "Mallory" not in plain(workspace, "log", "-1", "--format=%an")
    assert not plain(workspace, "log", "-1", "--format=%aI").startswith("2001")


@pytest.mark.parametrize("author", ["Ada", "<ada@example.org>", "Ada <>", "Ada <a@b> c", "A\nB <a@b>"])
def test_a_text_that_is_no_author_is_refused(workspace: Path, author: str) -> None:
    with pytest.raises(OperationError, match="is no author"):
        do(workspace, "commit", message="x", allow_empty=True, author=author)


def test_a_locked_index_is_an_error_with_what_to_do(workspace: Path) -> None:
    (workspace / ".git" / "index.lock").touch()
    write(workspace, b="b\n")
    with pytest.raises(OperationError, match=r"index\.lock") as caught:
        do(workspace, "add", paths=["b"])
    assert "another git" in caught.value.hint


# git.branch, git.checkout


def test_branch_makes_a_branch_without_switching(workspace: Path) -> None:
    outputs = do(workspace, "branch", name="topic/x")
    assert (outputs.branch, outputs.created) == ("topic/x", True)
    assert outputs.commit == plain(workspace, "rev-parse", "topic/x") == plain(workspace, "rev-parse", "main")
    assert plain(workspace, "branch", "--show-current") == "main"


def test_branch_with_checkout_keeps_files_and_index_as_they_are(workspace: Path) -> None:
    write(workspace, a="two\n", b="b\n")
    plain(workspace, "add", "b")
    do(workspace, "branch", name="topic", checkout=True)
    assert plain(workspace, "branch", "--show-current") == "topic"
    assert plain(workspace, "status", "--porcelain") == "M a\nA  b"  # strip() took the space of " M"


def test_branch_with_a_start_switches_the_files(workspace: Path) -> None:
    write(workspace, a="two\n")
    plain(workspace, "commit", "-q", "-a", "-m", "Second")
    outputs = do(workspace, "branch", name="old", start="HEAD~1", checkout=True)
    assert outputs.commit == plain(workspace, "rev-parse", "main~1")
    assert (workspace / "a").read_text() == "one\n"


def test_branch_before_the_first_commit(tmp_path: Path) -> None:
    do(tmp_path, "init")
    outputs = do(tmp_path, "branch", name="topic", checkout=True)
    assert (outputs.commit, outputs.created) == (None, True)
    assert plain(tmp_path, "symbolic-ref", "HEAD") == "refs/heads/topic"
    with pytest.raises(OperationError, match="no commit"):
        do(tmp_path, "branch", name="other")


def test_a_branch_that_exists_is_an_error_unless_that_is_fine(workspace: Path) -> None:
    plain(workspace, "branch", "topic")
    with pytest.raises(OperationError, match="a branch 'topic' already"):
        do(workspace, "branch", name="topic")
    assert not do(workspace, "branch", name="topic", exist_ok=True).created
    do(workspace, "branch", name="topic", exist_ok=True, checkout=True)
    assert plain(workspace, "branch", "--show-current") == "topic"


def test_checkout_switches_branch_and_files(workspace: Path) -> None:
    plain(workspace, "branch", "old")
    write(workspace, a="two\n")
    plain(workspace, "commit", "-q", "-a", "-m", "Second")
    outputs = do(workspace, "checkout", ref="old")
    assert (outputs.branch, outputs.commit) == ("old", plain(workspace, "rev-parse", "old"))
    assert (workspace / "a").read_text() == "one\n"


def test_checkout_of_a_commit_leaves_every_branch(workspace: Path) -> None:
    head = plain(workspace, "rev-parse", "HEAD")
    outputs = do(workspace, "checkout", ref=head)
    assert (outputs.branch, outputs.commit) == (None, head)


def test_checkout_does_not_lose_changes(workspace: Path) -> None:
    plain(workspace, "branch", "old")
    write(workspace, a="two\n")
    plain(workspace, "commit", "-q", "-a", "-m", "Second")
    write(workspace, a="three\n")
    with pytest.raises(OperationError, match="would be overwritten") as caught:
        do(workspace, "checkout", ref="old")
    assert "commit" in caught.value.hint
    assert (workspace / "a").read_text() == "three\n"


def test_checkout_of_a_file_name_does_not_restore_the_file(workspace: Path) -> None:
    write(workspace, a="two\n")
    with pytest.raises(OperationError):
        do(workspace, "checkout", ref="a")
    assert (workspace / "a").read_text() == "two\n"


# git.tag


def test_tag_is_light_or_annotated(workspace: Path) -> None:
    head = plain(workspace, "rev-parse", "HEAD")
    assert do(workspace, "tag", name="v1").commit == head
    do(workspace, "tag", name="v2", message="Release\n")
    assert plain(workspace, "cat-file", "-t", "v1") == "commit"
    assert plain(workspace, "cat-file", "-t", "v2") == "tag"
    assert plain(workspace, "tag", "-l", "--format=%(contents:subject)|%(taggername)", "v2") == "Release|Grace Hopper"


def test_a_tag_that_exists_is_an_error(workspace: Path) -> None:
    do(workspace, "tag", name="v1")
    with pytest.raises(OperationError, match="already exists"):
        do(workspace, "tag", name="v1")


# git.merge, git.revert


def make_conflict(folder: Path) -> None:
    plain(folder, "checkout", "-q", "-b", "other")
    write(folder, a="theirs\n", new="new\n")
    plain(folder, "add", ".")
    plain(folder, "commit", "-q", "-m", "Theirs")
    plain(folder, "checkout", "-q", "main")
    write(folder, a="ours\n")
    plain(folder, "commit", "-q", "-a", "-m", "Ours")


def diverge(folder: Path) -> None:
    plain(folder, "checkout", "-q", "-b", "other")
    write(folder, b="b\n")
    plain(folder, "add", "b")
    plain(folder, "commit", "-q", "-m", "Theirs")
    plain(folder, "checkout", "-q", "main")


def test_merge_moves_the_branch_where_that_is_enough(workspace: Path, home: Path) -> None:
    diverge(workspace)
    (home / ".gitconfig").unlink()
    outputs = do(workspace, "merge", ref="other")
    assert (outputs.result, outputs.commit) == ("fast-forward", plain(workspace, "rev-parse", "other"))
    assert do(workspace, "merge", ref="other").result == "up-to-date"


def test_merge_makes_a_commit_of_two_parents(workspace: Path) -> None:
    diverge(workspace)
    outputs = do(workspace, "merge", ref="other", no_ff=True, message="Bring other in", author=AUTHOR)
    assert outputs.result == "merged"
    assert len(plain(workspace, "log", "-1", "--format=%P").split()) == 2
    assert plain(workspace, "log", "-1", "--format=%s|%an <%ae>") == f"Bring other in|{AUTHOR}"
    assert (workspace / "b").exists()


def test_merge_names_the_branch_in_its_message(workspace: Path) -> None:
    diverge(workspace)
    do(workspace, "merge", ref="other", no_ff=True)
    assert plain(workspace, "log", "-1", "--format=%s") == "Merge branch 'other'"


def test_a_merge_with_conflicts_leaves_nothing_behind(workspace: Path) -> None:
    make_conflict(workspace)
    write(workspace, untracked="kept\n")
    before = snapshot(workspace)
    with pytest.raises(OperationError, match="conflicts in 'a'"):
        do(workspace, "merge", ref="other")
    assert snapshot(workspace) == before


def test_a_merge_that_nobody_can_commit_leaves_nothing_behind(workspace: Path, home: Path) -> None:
    diverge(workspace)
    before = snapshot(workspace)
    (home / ".gitconfig").unlink()
    with pytest.raises(OperationError, match="git does not know who commits"):
        do(workspace, "merge", ref="other", no_ff=True)
    assert snapshot(workspace) == before


def test_a_merge_over_local_changes_is_refused_and_keeps_them(workspace: Path) -> None:
    make_conflict(workspace)
    write(workspace, a="local\n")
    before = snapshot(workspace)
    with pytest.raises(OperationError, match="would be overwritten"):
        do(workspace, "merge", ref="other")
    assert snapshot(workspace) == before


@pytest.mark.parametrize(("name", "parameters"), [("merge", {"ref": "other"}), ("revert", {"commit": "HEAD"})])
def test_what_a_person_has_begun_is_not_thrown_away(workspace: Path, name: str, parameters: dict[str, str]) -> None:
    make_conflict(workspace)
    subprocess.run(["git", "merge", "-q", "other"], cwd=workspace, check=False, capture_output=True)
    write(workspace, a="half settled\n")
    with pytest.raises(OperationError, match="in the middle of a merge"):
        do(workspace, name, **parameters)
    assert (workspace / "a").read_text() == "half settled\n"
    assert (workspace / ".git" / "MERGE_HEAD").exists()


def test_a_settled_merge_can_be_committed(workspace: Path) -> None:
    make_conflict(workspace)
    subprocess.run(["git", "merge", "-q", "other"], cwd=workspace, check=False, capture_output=True)
    write(workspace, a="settled\n")
    do(workspace, "commit", message="Settled", all=True)
    assert len(plain(workspace, "log", "-1", "--format=%P").split()) == 2


def test_revert_takes_a_commit_back(workspace: Path) -> None:
    write(workspace, a="two\n")
    plain(workspace, "commit", "-q", "-a", "-m", "Second")
    outputs = do(workspace, "revert", commit="HEAD")
    assert outputs.commit == plain(workspace, "rev-parse", "HEAD")
    assert (workspace / "a").read_text() == "one\n"
    assert plain(workspace, "log", "-1", "--format=%s") == 'Revert "Second"'


def test_a_revert_with_conflicts_leaves_nothing_behind(workspace: Path) -> None:
    for content in ("two\n", "three\n"):
        write(workspace, a=content)
        plain(workspace, "commit", "-q", "-a", "-m", content.strip())
    before = snapshot(workspace)
    with pytest.raises(OperationError, match="conflicts in 'a'"):
        do(workspace, "revert", commit="HEAD~1")
    assert snapshot(workspace) == before


def test_a_revert_of_a_merge_needs_to_know_which_side_stays(workspace: Path) -> None:
    diverge(workspace)
    do(workspace, "merge", ref="other", no_ff=True)
    before = snapshot(workspace)
    with pytest.raises(OperationError, match="is a merge"):
        do(workspace, "revert", commit="HEAD")
    assert snapshot(workspace) == before
    do(workspace, "revert", commit="HEAD", mainline=1)
    assert not (workspace / "b").exists()


# git.clone, git.fetch, git.push


@pytest.fixture
def remote(workspace: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "remote.git"
    plain(tmp_path, "clone", "-q", "--bare", str(workspace), str(folder))
    plain(workspace, "remote", "add", "origin", str(folder))
    return folder


def test_clone_makes_a_folder_in_the_workspace(tmp_path: Path, remote: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    outputs = do(target, "clone", {"policy": FILE_TOO}, url=str(remote), path="vendor/copy")
    assert (outputs.path, outputs.branch) == ("vendor/copy", "main")
    assert outputs.commit == plain(remote, "rev-parse", "main")
    assert (target / "vendor" / "copy" / "a").read_text() == "one\n"


def test_clone_takes_a_depth_and_a_branch(tmp_path: Path, workspace: Path, remote: Path) -> None:
    plain(workspace, "checkout", "-q", "-b", "topic")
    plain(workspace, "commit", "-q", "--allow-empty", "-m", "Second")
    plain(workspace, "push", "-q", "origin", "topic")
    outputs = do(tmp_path, "clone", {"policy": FILE_TOO}, url=remote.as_uri(), path="copy", depth=1, branch="topic")
    assert outputs.branch == "topic"
    assert plain(tmp_path / "copy", "rev-list", "--count", "HEAD") == "1"


def test_clone_into_an_empty_workspace_itself(tmp_path: Path, remote: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    do(target, "clone", {"policy": FILE_TOO}, url=str(remote), path=".")
    assert do(target, "status").clean


def test_clone_does_not_overwrite_anything(tmp_path: Path, workspace: Path, remote: Path) -> None:
    before = snapshot(workspace)
    with pytest.raises(OperationError, match="not empty"):
        do(workspace, "clone", {"policy": FILE_TOO}, url=str(remote), path=".")
    with pytest.raises(PathRefused, match="not a folder"):
        do(workspace, "clone", {"policy": FILE_TOO}, url=str(remote), path="a")
    assert snapshot(workspace) == before


def test_clone_does_not_follow_a_link_out_of_the_workspace(tmp_path: Path, workspace: Path, remote: Path) -> None:
    (workspace / "link").symlink_to(tmp_path)
    with pytest.raises(PathRefused, match="link"):
        do(workspace, "clone", {"policy": FILE_TOO}, url=str(remote), path="link/copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("url", ["{remote}", "file://{remote}", "ext::sh -c 'touch ran'", "git://localhost/x", "../r"])
def test_a_protocol_that_the_policy_does_not_name_is_refused(tmp_path: Path, remote: Path, url: str) -> None:
    with pytest.raises(PolicyRefused, match="protocol") as caught:
        do(tmp_path, "clone", url=url.format(remote=remote), path="copy")
    assert "policy.toml" in caught.value.hint
    assert not (tmp_path / "copy").exists()


def test_a_failed_clone_names_no_password(tmp_path: Path) -> None:
    with pytest.raises(OperationError) as caught:
        do(tmp_path, "clone", url="https://user:pa55word@127.0.0.1:9/x.git", path="copy")
    assert "pa55word" not in caught.value.message
    assert not (tmp_path / "copy").exists()


def test_fetch_brings_branches_and_changes_no_file(workspace: Path, remote: Path, tmp_path: Path) -> None:
    plain(tmp_path, "clone", "-q", str(remote), "peer")
    plain(tmp_path / "peer", "commit", "-q", "--allow-empty", "-m", "Theirs")
    plain(tmp_path / "peer", "push", "-q", "origin", "HEAD:topic")
    outputs = do(workspace, "fetch", {"policy": FILE_TOO})
    assert outputs.updated == ["refs/remotes/origin/main", "refs/remotes/origin/topic"]
    assert do(workspace, "fetch", {"policy": FILE_TOO}).updated == []
    outputs = do(workspace, "fetch", {"policy": FILE_TOO}, refspec="topic:mine")
    assert outputs.updated == ["refs/heads/mine"]
    assert do(workspace, "checkout", ref="topic").branch == "topic"


def test_push_takes_the_current_branch(workspace: Path, remote: Path) -> None:
    do(workspace, "branch", name="topic", checkout=True)
    do(workspace, "commit", message="Second", allow_empty=True)
    outputs = do(workspace, "push", {"policy": FILE_TOO})
    assert (outputs.remote, outputs.updated) == ("origin", ["refs/heads/topic"])
    assert plain(remote, "rev-parse", "topic") == plain(workspace, "rev-parse", "topic")
    assert do(workspace, "push", {"policy": FILE_TOO}).updated == []


def test_push_that_is_rejected_says_why(workspace: Path, remote: Path) -> None:
    do(workspace, "commit", message="Second", allow_empty=True)
    do(workspace, "push", {"policy": FILE_TOO})
    plain(workspace, "reset", "-q", "--hard", "HEAD~1")
    do(workspace, "commit", message="Other", allow_empty=True)
    with pytest.raises(OperationError, match="git push"):
        do(workspace, "push", {"policy": FILE_TOO})
    do(workspace, "push", {"policy": FILE_TOO}, refspec="+main:main")
    assert plain(remote, "rev-parse", "main") == plain(workspace, "rev-parse", "main")


def test_push_without_a_branch_asks_for_a_refspec(workspace: Path, remote: Path) -> None:
    plain(workspace, "checkout", "-q", "--detach")
    with pytest.raises(OperationError, match="no branch is checked out"):
        do(workspace, "push", {"policy": FILE_TOO})


@pytest.mark.parametrize("name", ["fetch", "push"])
def test_a_remote_by_a_forbidden_protocol_is_refused(workspace: Path, remote: Path, name: str) -> None:
    with pytest.raises(PolicyRefused, match="protocol 'file'"):
        do(workspace, name)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Accepts connections and never says anything."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_time_out_ends_git_and_its_transport(tmp_path: Path, silent_server: int) -> None:
    started = time.monotonic()
    with pytest.raises(TimedOut, match="timeout"):
        do(tmp_path, "clone", {"timeout": 0.5}, url=f"https://127.0.0.1:{silent_server}/x.git", path="copy")
    assert time.monotonic() - started < 5
    assert not (tmp_path / "copy").exists()
    assert not running(str(silent_server))


def test_a_cancellation_ends_git(tmp_path: Path, silent_server: int) -> None:
    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    with pytest.raises(Interrupted):
        do(tmp_path, "clone", {"cancel": token}, url=f"https://127.0.0.1:{silent_server}/x.git", path="copy")
    assert not running(str(silent_server))


def running(text: str) -> Sequence[str]:
    lines = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "git" in line and f":{text}/" in line:
            lines.append(line)
    return lines


# Names


@pytest.mark.parametrize(
    "name", ["-d", "--force", "@{-1}", "@", "HEAD", "a..b", "a b", "a:b", "a~1", "x.lock", ".a", ""]
)
def test_a_name_that_git_would_read_otherwise_is_refused(workspace: Path, name: str) -> None:
    before = snapshot(workspace)
    for operation in ("branch", "tag"):
        with pytest.raises(OperationError, match=r"cannot be used as a|must not be empty"):
            do(workspace, operation, name=name)
    assert snapshot(workspace) == before


@pytest.mark.parametrize("ref", ["-", "--orphan=x", "@{-1}", "main@{1}", ":/First", "HEAD:a", "HEAD^{/x}", "a b", ""])
def test_a_revision_that_git_would_read_otherwise_is_refused(workspace: Path, ref: str) -> None:
    calls = {"checkout": "ref", "merge": "ref", "revert": "commit", "log": "ref", "diff": "ref"}
    for operation, parameter in calls.items():
        with pytest.raises(OperationError, match=r"cannot be used as a|must not be empty"):
            do(workspace, operation, **{parameter: ref})


@pytest.mark.parametrize("text", ["--upload-pack=touch ran", "-v", ""])
def test_a_remote_or_a_refspec_that_is_an_option_is_refused(workspace: Path, text: str) -> None:
    for operation in ("fetch", "push"):
        for parameter in ("remote", "refspec"):
            with pytest.raises(OperationError, match=r"cannot be used as a|must not be empty"):
                do(workspace, operation, **{parameter: text})


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("https://example.org/x", "https"),
        ("git@example.org:x/y.git", "ssh"),
        ("example.org:x", "ssh"),
        ("SSH://example.org/x", "ssh"),
        ("/srv/x.git", "file"),
        ("./a:b", "file"),
        ("../x", "file"),
        ("ext::sh -c x", "ext"),
        ("ext::https://example.org", "ext"),
    ],
)
def test_the_protocol_of_a_url(url: str, protocol: str) -> None:
    assert protocol_of(url) == protocol


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fatal: 'https://me:secret@x.org/y' failed", "fatal: 'https://***@x.org/y' failed"),
        ("https://ghp_token@x.org/y", "https://***@x.org/y"),
        ("https://me:p@ss@x.org/y", "https://***@x.org/y"),
        ("ssh://git@x.org/y", "ssh://git@x.org/y"),
        ("ssh://git:secret@x.org/y", "ssh://git:***@x.org/y"),
        ("https://x.org/a@b", "https://x.org/a@b"),
    ],
)
def test_credentials_are_taken_out_of_texts(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


# Effects


def test_the_family_is_complete() -> None:
    looking, committing = {"status", "diff", "log"}, {"init", "add", "commit", "tag", "merge", "revert"}
    assert set(FAMILY) == looking | committing | {"branch", "checkout", "fetch", "push", "clone"}


def test_what_each_touches() -> None:
    reading = {"status": (".",), "diff": (".",), "log": (".git",)}
    for name, paths in reading.items():
        assert tuple(access.path for access in effects(name).reads) == paths
        assert effects(name).writes == ()
    for name in ("init", "tag", "fetch", "push", "commit", "branch"):
        assert [access.path for access in effects(name).writes] == [".git"], name
    for name in ("checkout", "merge", "revert"):
        assert effects(name).reads == effects(name).writes == (EVERYTHING,)


def test_none_can_be_predicted_and_only_push_cannot_be_undone() -> None:
    found = {name: effects(name, paths=["x"], path="x") for name in FAMILY}
    assert not any(each.predictable for each in found.values())
    assert [name for name, each in found.items() if each.irreversible] == ["push"]


def test_effects_follow_the_parameters() -> None:
    assert effects("commit", all=True).reads == (EVERYTHING,)
    assert effects("branch", checkout=True).writes[0].path == ".git"
    assert effects("branch", checkout=True, start="x").writes == (EVERYTHING,)
    assert [access.path for access in effects("add", paths=["a", "b/c"]).reads] == ["a", "b/c", ".git"]
    assert [access.path for access in effects("clone", path="v").writes] == ["v"]
    with pytest.raises(Unknown):
        effects("commit", all=UNKNOWN)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("add", {"paths": []}),
        ("add", {"paths": ["../x"]}),
        ("add", {"paths": [".git/config"]}),
        ("commit", {}),
        ("commit", {"message": "x", "author": {"name": "a<b", "email": "c"}}),
        ("log", {"max_count": 0}),
        ("clone", {"url": "https://x.org/y", "path": "/abs"}),
        ("status", {"x": 1}),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        get(f"git.{name}").parameters(**parameters)

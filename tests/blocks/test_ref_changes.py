"""What git did to refs, read from its files alone, compared with what real git says of them."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.diff import MOST_REFS_TOLD, remarks, render
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.ref_changes import UNKNOWN, GitChanges, RefChange, git_changes
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, digest, file_entry

ONE, TWO = "1" * 40, "2" * 40


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one commit on main."""
    root = tmp_path / "work"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "commit", "-q", "--allow-empty", "-m", "Begin")
    return root


Files = dict[str, bytes | None]


def look(root: Path) -> Files:
    """Every file by its path, and every folder as None, without git's objects."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if ".git/objects" not in path.as_posix()
    }


def entry(files: Files, path: str) -> Entry | None:
    if path not in files:
        return None
    content = files[path]
    return Entry(Kind.FOLDER, 0o755) if content is None else file_entry(content, 0o644)


def since(root: Path, before: Files) -> GitChanges:
    """What has happened to the repositories since a look at them."""
    after = look(root)
    paths = sorted(before.keys() | after.keys())
    changes = [Change(path, entry(before, path), entry(after, path)) for path in paths]
    known = {digest(content): content for files in (before, after) for content in files.values() if content is not None}

    def read_now(path: str) -> bytes | None:
        return (root / path).read_bytes() if (root / path).is_file() else None

    return git_changes([each for each in changes if each.before != each.after], known.__getitem__, read_now)


def test_a_commit_moves_its_branch_and_has_a_subject(root: Path) -> None:
    before, old = look(root), git(root, "rev-parse", "HEAD")
    git(root, "commit", "-q", "--allow-empty", "-m", "Go on\n\nAt length.")
    new = git(root, "rev-parse", "HEAD")
    assert since(root, before).refs == [RefChange(".", "refs/heads/main", old, new, "Go on")]
    assert remarks([], since(root, before)) == [f'git: refs/heads/main {old[:7]} → {new[:7]}  "Go on"']


def test_a_branch_that_is_made_and_checked_out(root: Path) -> None:
    before, commit = look(root), git(root, "rev-parse", "HEAD")
    git(root, "checkout", "-q", "-b", "topic/one")
    assert since(root, before).refs == [
        RefChange(".", "HEAD", "refs/heads/main", "refs/heads/topic/one"),
        RefChange(".", "refs/heads/topic/one", None, commit, "Begin"),
    ]
    assert remarks([], since(root, before)) == [
        "git: HEAD refs/heads/main → refs/heads/topic/one",
        f'git: refs/heads/topic/one made at {commit[:7]}  "Begin"',
    ]


def test_a_head_that_is_detached(root: Path) -> None:
    before, commit = look(root), git(root, "rev-parse", "HEAD")
    git(root, "checkout", "-q", "--detach")
    assert since(root, before).refs == [RefChange(".", "HEAD", "refs/heads/main", commit, "Begin")]


def test_a_tag_has_the_subject_of_its_own_message(root: Path) -> None:
    before = look(root)
    git(root, "tag", "-a", "v1", "-m", "The first")
    tag = git(root, "rev-parse", "v1")
    assert since(root, before).refs == [RefChange(".", "refs/tags/v1", None, tag, "The first")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_branch_that_is_deleted(root: Path, packed: bool) -> None:
    git(root, "branch", "old")
    if packed:
        git(root, "pack-refs", "--all")
    before, commit = look(root), git(root, "rev-parse", "HEAD")
    git(root, "branch", "-D", "old")
    assert since(root, before).refs == [RefChange(".", "refs/heads/old", commit, None)]
    assert remarks([], since(root, before)) == [f"git: refs/heads/old deleted, was {commit[:7]}"]


@pytest.mark.parametrize("options", [("--all",), ("--all", "--no-prune")], ids=" ".join)
def test_packing_refs_changes_none(root: Path, options: tuple[str, ...]) -> None:
    git(root, "tag", "-a", "v1", "-m", "The first")
    before = look(root)
    git(root, "pack-refs", *options)
    assert look(root) != before
    assert since(root, before).refs == []


def test_a_ref_that_was_packed_before_and_unpacked_since(root: Path) -> None:
    git(root, "pack-refs", "--all")
    before, old = look(root), git(root, "rev-parse", "HEAD")
    git(root, "commit", "-q", "--allow-empty", "-m", "Go on")
    assert since(root, before).refs == [RefChange(".", "refs/heads/main", old, git(root, "rev-parse", "HEAD"), "Go on")]


def test_a_repository_that_is_made(root: Path) -> None:
    before = look(root)
    (root / "inner").mkdir()
    git(root / "inner", "init", "-q", "-b", "trunk")
    git(root / "inner", "commit", "-q", "--allow-empty", "-m", "Inside")
    found, commit = since(root, before), git(root / "inner", "rev-parse", "HEAD")
    assert found.made == ["inner"]
    assert found.files == []
    assert found.refs == [
        RefChange("inner", "HEAD", None, "refs/heads/trunk"),
        RefChange("inner", "refs/heads/trunk", None, commit, "Inside"),
    ]
    assert remarks([], found) == [
        "git: repository made: inner (HEAD at refs/heads/trunk)",
        f'git: inner: refs/heads/trunk made at {commit[:7]}  "Inside"',
    ]


def test_a_clone_is_told_without_the_branches_of_its_origin(root: Path, tmp_path: Path) -> None:
    work = tmp_path / "other"
    work.mkdir()
    git(work, "clone", "-q", str(root), "vendor/lib")
    found = since(work, {})
    assert found.made == ["vendor/lib"]
    assert "refs/remotes/origin/main" in [ref.name for ref in found.refs]
    commit = git(root, "rev-parse", "HEAD")[:7]
    told = remarks([], found)
    assert told[0] == "git: repository made: vendor/lib (HEAD at refs/heads/main)"
    assert [line for line in told[1:] if "refs/remotes" in line] == []
    assert told[1].startswith(f"git: vendor/lib: refs/heads/main made at {commit}")


def test_a_repository_that_is_removed_is_told_and_nothing_of_it(root: Path) -> None:
    before = look(root)
    (root / ".git").rename(root.parent / "away")
    found = since(root, before)
    assert (found.removed, found.refs, found.files) == (["."], [], [])
    assert remarks([], found) == ["git: repository removed: ."]


def test_settings_hooks_and_the_index_are_told_and_not_gits_bookkeeping(root: Path) -> None:
    before = look(root)
    git(root, "config", "alias.x", "!sh")
    (root / ".git/hooks").mkdir(exist_ok=True)
    (root / ".git/hooks/pre-commit").write_text("#!/bin/sh\n")
    (root / ".git/empty").mkdir()
    (root / "file").write_text("x")
    git(root, "add", "file")
    git(root, "commit", "-q", "-m", "Go on")
    found = since(root, before)
    assert found.files == [".git/config", ".git/hooks/pre-commit", ".git/index"]
    assert remarks([], found)[-1] == "git: changed: .git/config, .git/hooks/pre-commit, .git/index"


def changed(path: str, before: bytes | None, after: bytes | None) -> Change:
    sides = [None if content is None else file_entry(content, 0o644) for content in (before, after)]
    return Change(path, *sides)


def absent(_sha256: str) -> bytes:
    raise StateError("it is not in the journal")


def test_a_content_that_is_nowhere_leaves_its_side_unknown() -> None:
    changes = [changed(".git/refs/heads/main", ONE.encode(), TWO.encode()), changed(".git/packed-refs", b"", b"#")]
    found = git_changes(changes, absent)
    assert found.refs == [RefChange(".", "refs/heads/main", UNKNOWN, UNKNOWN)]
    assert "# git: refs/heads/main unknown → unknown\n" in render(changes, absent)


def test_a_content_is_read_where_it_lies_if_it_is_still_that_one() -> None:
    changes = [changed(".git/refs/heads/main", None, TWO.encode())]
    (ref,) = git_changes(changes, absent, {".git/refs/heads/main": TWO.encode()}.get).refs
    assert ref == RefChange(".", "refs/heads/main", None, TWO)
    (ref,) = git_changes(changes, absent, {".git/refs/heads/main": ONE.encode()}.get).refs
    assert ref.after == UNKNOWN


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"not an id\n", b"1" * 39])
def test_what_is_no_ref_is_unknown(content: bytes) -> None:
    changes = [changed(".git/refs/heads/main", None, content)]
    assert git_changes(changes, {digest(content): content}.__getitem__).refs[0].after == UNKNOWN


@pytest.mark.parametrize("stored", [b"", b"no zlib", zlib.compress(b"blob 8\0one\n\ntwo")])
def test_what_is_no_commit_has_no_subject(stored: bytes) -> None:
    content = ONE.encode()
    changes, now = [changed(".git/refs/heads/main", None, content)], {f".git/objects/11/{ONE[2:]}": stored}
    (ref,) = git_changes(changes, {digest(content): content}.__getitem__, now.get).refs
    assert (ref.after, ref.subject) == (ONE, "")


def test_a_folder_whose_name_only_ends_like_a_repositorys_is_none() -> None:
    link = Entry(Kind.LINK, 0o777, target="refs/heads/main")
    changes = [Change("lib.git/HEAD", None, link), Change("lib.git/.git/HEAD", None, link)]
    assert [ref.repository for ref in git_changes(changes, {}.__getitem__).refs] == ["lib.git"]


def test_an_old_head_may_be_a_link() -> None:
    changes = [Change(".git/HEAD", None, Entry(Kind.LINK, 0o777, target="refs/heads/main"))]
    assert git_changes(changes, {}.__getitem__).refs == [RefChange(".", "HEAD", None, "refs/heads/main")]


def test_no_name_or_subject_can_forge_a_line() -> None:
    ref = RefChange("in\nner", "refs/heads/x\ndiff --git a/a b/a", ONE, "evil\nref", "a\nb\x1b[2J" + "c" * 100)
    (line,) = remarks([], GitChanges(refs=[ref]))
    assert line.isprintable()
    assert line.startswith('git: "in\\nner": "refs/heads/x\\ndiff --git a/a b/a" 1111111 → "evil\\nref"  "a�b�[2Jccc')
    assert line.endswith('c…"')
    assert line.count("c") == 72 - len("a?b?[2J")


def test_more_refs_than_anybody_reads_are_counted() -> None:
    refs = [RefChange(".", f"refs/tags/{number}", None, ONE) for number in range(MOST_REFS_TOLD + 3)]
    lines = remarks([], GitChanges(refs=refs, files=[f".git/x{number}" for number in range(12)]))
    assert lines[MOST_REFS_TOLD:-1] == ["git: and 3 more refs"]
    assert lines[-1].endswith(".git/x9 and 2 more")


def test_what_happened_to_refs_ends_the_patch() -> None:
    head = changed(".git/HEAD", b"ref: refs/heads/main\n", b"ref: refs/heads/topic\n")
    changes = [head, changed("z", None, b"text")]
    known = {digest(text): text for text in (b"ref: refs/heads/main\n", b"ref: refs/heads/topic\n", b"text")}
    patch = render(changes, known.__getitem__)
    assert patch.endswith("+text\n\\ No newline at end of file\n# git: HEAD refs/heads/main → refs/heads/topic\n")

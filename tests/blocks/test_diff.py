"""Patches that git itself accepts, both ways, and counts that agree with git's."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from effort import ordinarily
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantum_orchestrator.blocks.diff import DiffCounts, file_counts, render, statistics, styled
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, MemoryTree, Overlay, digest, file_entry

# A tree of the tests: a path with its content and whether it is executable, or with a link's target.
File = tuple[bytes, bool] | str
Files = dict[str, File]


def entry(file: File) -> Entry:
    if isinstance(file, str):
        return Entry(Kind.LINK, 0o777, target=file)
    content, executable = file
    return file_entry(content, 0o755 if executable else 0o644)


def changes_between(before: Files, after: Files) -> list[Change]:
    return [
        Change(path, entry(before[path]) if path in before else None, entry(after[path]) if path in after else None)
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


def contents(*trees: Files) -> dict[str, bytes]:
    return {digest(file[0]): file[0] for tree in trees for file in tree.values() if not isinstance(file, str)}


def patch_between(before: Files, after: Files, context: int = 3) -> str:
    return render(changes_between(before, after), contents(before, after).__getitem__, context=context)


def counts_between(before: Files, after: Files) -> DiffCounts:
    return statistics(changes_between(before, after), contents(before, after).__getitem__)


def lay_out(folder: Path, files: Files) -> None:
    for path, file in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file, str):
            place.symlink_to(file)
        else:
            place.write_bytes(file[0])
            place.chmod(0o755 if file[1] else 0o644)


def found(folder: Path) -> Files:
    files: Files = {}
    for place in folder.rglob("*"):
        path = place.relative_to(folder).as_posix()
        if place.is_symlink():
            files[path] = os.readlink(place)
        elif place.is_file():
            files[path] = (place.read_bytes(), bool(place.stat().st_mode & 0o100))
    return files


def git(folder: Path, *arguments: str, stdin: str = "") -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    environment |= {"GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_CONFIG_GLOBAL": "/dev/null"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, input=os.fsencode(stdin), env=environment, capture_output=True
    )
    assert done.returncode in (0, 1), done.stderr.decode() + stdin
    assert done.returncode == 0 or arguments[0] == "diff", done.stderr.decode() + stdin
    return os.fsdecode(done.stdout)


def assert_git_applies_both_ways(folder: Path, before: Files, after: Files, context: int = 3) -> None:
    patch = patch_between(before, after, context)
    lay_out(folder, before)
    git(folder, "apply", "--whitespace=nowarn", "-", stdin=patch)
    assert found(folder) == after
    git(folder, "apply", "-R", "--whitespace=nowarn", "-", stdin=patch)
    assert found(folder) == before


names = st.sampled_from(["a", "b", "c d", 'q"uote', "ü", "tab\there", "x.py"])
paths = st.one_of(names, st.tuples(names, names).map("/".join), st.tuples(names, names, names).map("/".join))
lines = st.sampled_from(["", "one", "two", "three", "-- sql", "++ c", "@@ -1 +1 @@", "\r", "ein Wörtchen", "\\", "# x"])
texts = st.tuples(st.lists(lines, max_size=14), st.booleans()).map(
    lambda drawn: ("\n".join(drawn[0]) + ("\n" if drawn[1] else "")).encode()
)
binaries = st.one_of(st.binary(max_size=200), st.just(bytes(range(256)) * 3))
# No link leads back into the tree: where one becomes a folder, git looks through it for what is in the folder.
links = st.sampled_from(["nowhere", "ö w", "../elsewhere"])
files = st.one_of(st.tuples(texts, st.booleans()), st.tuples(binaries, st.booleans()), links)


def without_clashes(tree: Files) -> Files:
    """No path is both a file and a folder of another."""
    return {path: file for path, file in tree.items() if not any(other.startswith(path + "/") for other in tree)}


trees = st.dictionaries(paths, files, max_size=6).map(without_clashes)


@settings(max_examples=ordinarily(40, nightly=250), deadline=None, suppress_health_check=list(HealthCheck))
@given(before=trees, after=trees, context=st.sampled_from([1, 3]))
def test_git_applies_any_patch_and_takes_it_back(before: Files, after: Files, context: int) -> None:
    if patch_between(before, after) == "":
        assert before == after
        return
    with tempfile.TemporaryDirectory() as folder:
        assert_git_applies_both_ways(Path(folder), before, after, context)


ten_lines = [b"%s line %d\n" % (word, number) for word in (b"red", b"green") for number in range(10)]
# Few contents, some of them alike: most of what goes and comes is a rename.
alike = st.sampled_from(
    [b"".join(ten_lines[:10]), b"".join(ten_lines[1:9]), b"".join(ten_lines[5:15]), b"\0\1" * 40, b""]
)
moving_trees = st.dictionaries(paths, st.tuples(alike, st.booleans()) | links, max_size=6).map(without_clashes)


@settings(max_examples=ordinarily(25, nightly=150), deadline=None, suppress_health_check=list(HealthCheck))
@given(before=moving_trees, after=moving_trees)
def test_git_applies_any_renames_and_takes_them_back(before: Files, after: Files) -> None:
    if before != after:
        with tempfile.TemporaryDirectory() as folder:
            assert_git_applies_both_ways(Path(folder), before, after)


@settings(max_examples=ordinarily(25, nightly=100), deadline=None, suppress_health_check=list(HealthCheck))
@given(before=texts, after=texts, context=st.sampled_from([1, 3]))
def test_git_applies_any_edit_of_a_text(before: bytes, after: bytes, context: int) -> None:
    if before != after:
        with tempfile.TemporaryDirectory() as folder:
            assert_git_applies_both_ways(Path(folder), {"f": (before, False)}, {"f": (after, False)}, context)


def test_hunks_without_context_are_numbered_as_git_does(tmp_path: Path) -> None:
    before, after = b"1\n2\n3\n4\n5\n", b"0\n1\n2\nnew\n3\n5\n"
    git(tmp_path, "init", "-q")
    trees = [staged(tmp_path, {"f": (content, False)}) for content in (before, after)]
    ours = patch_between({"f": (before, False)}, {"f": (after, False)}, context=0)
    theirs = git(tmp_path, "diff", "--unified=0", *trees)
    headers = [line for line in ours.splitlines() if line.startswith("@@")]
    # Git adds the line above each hunk, for readers.
    assert headers == ["@@".join(line.split("@@")[:2]) + "@@" for line in theirs.splitlines() if line.startswith("@@")]


def test_binary_files_of_all_lengths_survive(tmp_path: Path) -> None:
    # Bytes that do not compress: so the last line of git's encoding has every length, from 1 to 52.
    noise = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(8))
    after: Files = {f"f{length}": (b"\0" + noise[:length], False) for length in range(120)}
    assert_git_applies_both_ways(tmp_path, {}, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"d": (b"file\n", False)}, {"d/x": (b"in a folder\n", False)}, id="file to folder"),
        pytest.param({"d/x": (b"in a folder\n", False)}, {"d": (b"file\n", False)}, id="folder to file"),
        pytest.param({"d": "target"}, {"d/x": (b"in a folder\n", True)}, id="link to folder"),
        pytest.param({"d/x": (b"in a folder\n", True)}, {"d": "target"}, id="folder to link"),
        pytest.param({"d": "target"}, {"d": (b"file", True)}, id="link to file"),
        pytest.param({"d": "target"}, {"d": "elsewhere"}, id="link to link"),
        pytest.param({"d": (b"text\n", False)}, {"d": (b"\0binary", False)}, id="text to binary"),
        pytest.param({"d": (b"text\n", False)}, {"d": (b"text\n", True)}, id="mode alone"),
        pytest.param({"d": (b"", True)}, {"d": (b"", False), "empty b/empty": (b"", False)}, id="empty files"),
        pytest.param({"d": (b"caf\xe9\n", False)}, {"d": (b"caf\xc3\xa9\n", False)}, id="other encodings are binary"),
    ],
)
def test_a_path_may_change_its_kind(tmp_path: Path, before: Files, after: Files) -> None:
    assert_git_applies_both_ways(tmp_path, before, after)


TEXT = b"".join(b"line %d\n" % number for number in range(20))
EDITED = TEXT.replace(b"line 3\n", b"line three\n")


@pytest.mark.parametrize(
    ("before", "after", "header"),
    [
        pytest.param(
            {"a": (TEXT, False)},
            {"b": (TEXT, False)},
            "similarity index 100%\nrename from a\nrename to b\n",
            id="equal",
        ),
        pytest.param(
            {"a": (TEXT, False)},
            {"d/b": (EDITED, True)},
            "old mode 100644\nnew mode 100755\nsimilarity index 92%\nrename from a\nrename to d/b\nindex ",
            id="edited, executable, in a folder",
        ),
        pytest.param(
            {"a b": (TEXT, False)},
            {'tab\t"ü': (EDITED, False)},
            'rename from a b\nrename to "tab\\t\\"\\303\\274"\n',
            id="odd names",
        ),
        pytest.param(
            {"caf\udce9": (TEXT, False)}, {"line\nbreak": (TEXT, False)}, 'rename to "line\\nbreak"\n', id="no text"
        ),
        pytest.param(
            {"line\nbreak": (TEXT, False)}, {"a": (TEXT, False)}, 'rename from "line\\nbreak"\n', id="two lines"
        ),
        pytest.param(
            {"a": (b"\0" + TEXT, False)},
            {"b": (b"\0" + EDITED, False)},
            "rename from a\nrename to b\nindex ",
            id="binary",
        ),
        pytest.param({"d": (TEXT, False)}, {"d/d": (TEXT, False)}, "rename to d/d\n", id="into a folder of its name"),
        pytest.param({"d/d": (TEXT, False)}, {"d": (TEXT, False)}, "rename from d/d\n", id="out of it"),
    ],
)
def test_a_file_that_went_and_came_is_a_rename(tmp_path: Path, before: Files, after: Files, header: str) -> None:
    assert header in patch_between(before, after)
    assert_git_applies_both_ways(tmp_path, before, after)
    assert counts_between(before, after).files == 1


def test_a_rename_is_one_file_with_the_lines_that_differ() -> None:
    before: Files = {"a": (TEXT, False), "photo": (b"\0" * 12, False)}
    after: Files = {"b": (EDITED, False), "photo": (b"\0" * 40, False)}
    changes, known = changes_between(before, after), contents(before, after)
    renamed, photo = file_counts(changes, known.__getitem__)
    assert (renamed.path, renamed.source, renamed.insertions, renamed.deletions) == ("b", "a", 1, 1)
    assert (photo.source, photo.sizes, photo.insertions) == (None, (12, 40), 0)
    assert statistics(changes, known.__getitem__) == DiffCounts(files=2, insertions=1, deletions=1)


def test_a_file_counts_whose_permissions_alone_have_changed() -> None:
    changes = [Change("f", file_entry(b"", 0o644), file_entry(b"", 0o600))]
    assert render(changes, {}.__getitem__) == "# mode 0644 -> 0600 of f\n"
    assert statistics(changes, {}.__getitem__) == DiffCounts(files=1)


def test_the_new_name_keeps_permissions_that_git_does_not() -> None:
    changes = [Change("a", file_entry(TEXT, 0o600), None), Change("b", None, file_entry(TEXT, 0o600))]
    assert render(changes, {}.__getitem__).startswith("# mode 0600 of b\ndiff --git a/a b/b\n")


def test_names_that_are_not_text_survive(tmp_path: Path) -> None:
    assert_git_applies_both_ways(tmp_path, {}, {"caf\udce9": (b"x\n", False), "line\nbreak": (b"y\n", False)})


def staged(folder: Path, files: Files) -> str:
    """The id of the git tree that holds these files and no others."""
    git(folder, "rm", "-rfq", "--ignore-unmatch", ".")
    lay_out(folder, files)
    git(folder, "add", "--all")
    return git(folder, "write-tree").strip()


def test_the_patch_is_what_git_prints(tmp_path: Path) -> None:
    before: Files = {f"f{n}": (b"".join(b"%d\n" % line for line in range(30)), False) for n in range(3)}
    before |= {"gone": (b"no newline", True), "link": "here", "empty": (b"", False), "old/name": (TEXT, False)}
    after = dict(before) | {"f0": (b"0\n" + before["f0"][0][2:].replace(b"15\n", b"fifteen\n"), True)}  # type: ignore[union-attr]
    after |= {
        "f1": (b"start\n" + before["f1"][0] + b"end", False),
        "sp ace/ü": (b"one\n", False),
        "new": (EDITED, True),
    }  # type: ignore[operator]
    del after["gone"], after["old/name"]
    after["link"] = "there"
    git(tmp_path, "init", "-q")
    trees = [staged(tmp_path, files) for files in (before, after)]
    against = ["--full-index", "--find-renames", *trees]
    assert patch_between(before, after) == git(tmp_path, "diff", "--binary", *against)
    counts = git(tmp_path, "diff", "--shortstat", *against, "--", ":!link")
    ours = counts_between(before, after)
    assert f" {ours.insertions} insertions(+), {ours.deletions} deletions(-)" in counts


def test_folders_and_modes_beyond_executable_are_comments_that_git_ignores(tmp_path: Path) -> None:
    base = MemoryTree()
    base.entries = {"old": Entry(Kind.FOLDER, 0o755), "kept": file_entry(b"same\n", 0o644)}
    base.contents = {digest(b"same\n"): b"same\n"}
    overlay = Overlay(base)
    overlay.mkdir("new", 0o700)
    overlay.delete("old")
    overlay.chmod("kept", 0o600)
    overlay.write("private", b"x\n", 0o600)
    patch = render(overlay.changes(), overlay.content_of)
    comments = [line for line in patch.splitlines() if line.startswith("# ")]
    assert comments == [
        "# mode 0644 -> 0600 of kept",
        "# folder made: new",
        "# mode 0700 of new",
        "# folder removed: old",
        "# mode 0600 of private",
    ]
    lay_out(tmp_path, {"kept": (b"same\n", False)})
    git(tmp_path, "apply", "-", stdin=patch)
    assert found(tmp_path) == {"kept": (b"same\n", False), "private": (b"x\n", False)}


def test_only_folders_that_hold_nothing_are_told(tmp_path: Path) -> None:
    changes = [
        Change("bare", None, Entry(Kind.FOLDER, 0o755)),
        Change("bare/inner", None, Entry(Kind.FOLDER, 0o755)),
        Change("full", None, Entry(Kind.FOLDER, 0o755)),
        Change("full/file", None, file_entry(b"x\n", 0o644)),
        Change("left", Entry(Kind.FOLDER, 0o755), None),
        Change("left/file", file_entry(b"", 0o644), None),
    ]
    patch = render(changes, {digest(b"x\n"): b"x\n", digest(b""): b""}.__getitem__)
    assert [line for line in patch.splitlines() if line.startswith("# ")] == ["# folder made: bare/inner"]
    lay_out(tmp_path, {"left/file": (b"", False)})
    git(tmp_path, "apply", "-", stdin=patch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_file_in_the_place_of_a_folder_is_told_with_it() -> None:
    was_folder = Change("d", Entry(Kind.FOLDER, 0o755), file_entry(b"", 0o644))
    became_folder = Change("e", file_entry(b"", 0o644), Entry(Kind.FOLDER, 0o755))
    patch = render([was_folder, became_folder], {digest(b""): b""}.__getitem__)
    assert "# folder removed: d\n" in patch
    assert "# folder made: e\n" in patch


def test_comments_may_stand_between_hunks_of_different_files(tmp_path: Path) -> None:
    changes = [
        Change("a", file_entry(b"1\n", 0o644), file_entry(b"2\n", 0o644)),
        Change("b", None, Entry(Kind.FOLDER, 0o755)),
        Change("c", file_entry(b"\0", 0o644), file_entry(b"\1\0", 0o644)),
        Change("d", None, Entry(Kind.FOLDER, 0o755)),
        Change("e", file_entry(b"", 0o644), None),
        Change("f", Entry(Kind.FOLDER, 0o755), None),
    ]
    known = {digest(content): content for content in (b"1\n", b"2\n", b"\0", b"\1\0", b"")}
    lay_out(tmp_path, {"a": (b"1\n", False), "c": (b"\0", False), "e": (b"", False)})
    git(tmp_path, "apply", "-", stdin=render(changes, known.__getitem__))
    assert found(tmp_path) == {"a": (b"2\n", False), "c": (b"\1\0", False)}


def test_a_repositorys_own_files_are_told_and_not_patched() -> None:
    changes = [Change(".git/hooks/pre-commit", None, file_entry(b"#!/bin/sh\n", 0o755))]
    assert render(changes, {}.__getitem__) == "# git: changed: .git/hooks/pre-commit\n"
    assert statistics(changes, {}.__getitem__) == DiffCounts()


def test_counts_are_of_files_and_of_lines_of_text() -> None:
    before: Files = {"text": (b"a\nb\nc\n", False), "gone": (b"1\n2", False), "binary": (b"\0\n", False)}
    after: Files = {"text": (b"a\nB\nc\nd\n", False), "binary": (b"\0\n\n", False), "link": "text"}
    assert counts_between(before, after) == DiffCounts(files=4, insertions=2, deletions=3)


def test_folders_are_not_files_in_the_counts() -> None:
    assert statistics([Change("f", None, Entry(Kind.FOLDER, 0o755))], {}.__getitem__) == DiffCounts()


def test_contents_are_asked_for_only_where_they_differ() -> None:
    same = digest(b"unread")
    change = Change("f", Entry(Kind.FILE, 0o644, same, 6), Entry(Kind.FILE, 0o755, same, 6))
    assert "new mode 100755" in render([change], {}.__getitem__)
    assert statistics([change], {}.__getitem__) == DiffCounts(files=1)


def test_nothing_changed_is_an_empty_patch() -> None:
    assert render([], {}.__getitem__) == ""


def test_of_a_long_patch_the_beginning_can_be_had_with_what_happened_to_git() -> None:
    contents = {digest(content): content for content in (b"%d\n" % number for number in range(10))}
    changes = [Change(f"f{place}", None, file_entry(content, 0o644)) for place, content in enumerate(contents.values())]
    changes.append(Change(".git/description", None, file_entry(b"", 0o644)))
    asked: list[str] = []

    def content_of(sha256: str) -> bytes:
        asked.append(sha256)
        return contents[sha256]

    whole = render(changes[:2], contents.__getitem__)
    limited = render(changes, content_of, limit=len(whole) - 1)
    assert limited == f"{whole}# not all is shown\n# git: changed: .git/description\n"
    assert len(asked) == 2, "the contents of files that are not shown are not read"


def test_ten_thousand_new_files_take_no_comparison() -> None:
    content = b"".join(b"line %d\n" % number for number in range(20))
    changes = [Change(f"d/{number}", None, file_entry(content, 0o644)) for number in range(10_000)]
    started = time.process_time()
    patch = render(changes, lambda _digest: content)
    assert statistics(changes, lambda _digest: content) == DiffCounts(10_000, 200_000, 0)
    assert patch.count("diff --git") == 10_000
    assert time.process_time() - started < 10, "an order of magnitude above what it takes"


def test_a_file_of_repeated_lines_ends_in_reasonable_time(tmp_path: Path) -> None:
    # difflib alone would look at some 40 million pairs of equal lines, many times over.
    old = b"".join(b"%d\n" % (number % 150) for number in range(80_000))
    new = b"".join(b"%d\n" % (number % 149) for number in range(80_000))
    started = time.process_time()
    assert_git_applies_both_ways(tmp_path, {"data": (old, False)}, {"data": (new, False)})
    assert time.process_time() - started < 10


def test_a_small_edit_of_a_large_file_is_a_small_patch() -> None:
    lines = [b"row %d\n" % (number % 50) for number in range(50_000)]
    edited = [*lines[:25_000], b"inserted\n", *lines[25_000:]]
    patch = patch_between({"f": (b"".join(lines), False)}, {"f": (b"".join(edited), False)})
    assert patch.count("\n") == 4 + 1 + 7
    assert "@@ -24998,6 +24998,7 @@" in patch


def test_colours_follow_the_patch_and_not_its_content() -> None:
    patch = patch_between({"f": (b"-- note\nkeep\n", False)}, {"f": (b"keep\n++ more\n", False)})
    text = styled("# folder made: d\n" + patch)
    styles = {text.plain[span.start : span.end].rstrip("\n"): str(span.style) for span in text.spans}
    assert styles["# folder made: d"] == "dim"
    assert styles["--- a/f"] == "bold"
    assert styles["--- note"] == "red"
    assert styles["+++ more"] == "green"
    assert text.plain == "# folder made: d\n" + patch


def test_content_cannot_steer_the_terminal() -> None:
    patch = patch_between({}, {"f": ("\x1b[2Jgone \u202e txt.exe\r\x9b\n".encode(), False)})
    shown = styled(patch).plain
    assert "+␛[2Jgone \\u202e txt.exe␍\\x9b\n" in shown

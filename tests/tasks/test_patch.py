"""file.patch: unified diffs are applied exactly, or not at all. Real `git apply` is the measure."""

from __future__ import annotations

import base64
import difflib
import io
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quantum_orchestrator.blocks import diff
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.tree import Kind, MemoryTree, Overlay, digest
from quantum_orchestrator.tasks import patch_files
from quantum_orchestrator.tasks.files import FilePatch, PatchParameters
from quantum_orchestrator.tasks.operation import Access, Context

NO_NEWLINE = "\\ No newline at end of file\n"
GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
NUMBERS = "".join(f"line {number}\n" for number in range(1, 31))


def overlay(files: dict[str, str | bytes], modes: dict[str, int] | None = None) -> Overlay:
    tree = MemoryTree()
    first = Overlay(tree)
    for path, content in files.items():
        first.write(path, content.encode() if isinstance(content, str) else content, (modes or {}).get(path))
    tree.apply(first.changes(), first.content_of)
    return Overlay(tree)


def applied(files: dict[str, str | bytes], patch: str) -> dict[str, bytes]:
    """The files after file.patch."""
    after = overlay(files)
    FilePatch().run(PatchParameters(patch=patch), Context(after))
    return contents(after)


def contents(files: Overlay, folder: str = ".") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in files.names(folder):
        path = name if folder == "." else f"{folder}/{name}"
        if files.kind(path) is Kind.FILE:
            found[path] = files.read(path)
        else:
            found |= contents(files, path)
    return found


def unified(before: str, after: str, path: str = "f.txt", context: int = 3) -> str:
    """A patch made by difflib, with the marker for a last line without a newline that difflib leaves out."""
    old, new = io.StringIO(before, newline="\n").readlines(), io.StringIO(after, newline="\n").readlines()
    lines = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", n=context)
    return "".join(line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}" for line in lines)


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", *arguments], cwd=folder, input=stdin, capture_output=True, env=GIT_ENVIRONMENT, check=False, timeout=30
    )


def git_accepts(folder: Path, before: str, patch: str) -> bool:
    (folder / "f.txt").write_bytes(before.encode())
    return git(folder, "apply", "--check", "-", stdin=patch.encode()).returncode == 0


def refusal(files: dict[str, str | bytes], patch: str) -> OperationError:
    after = overlay(files)
    with pytest.raises(OperationError) as caught:
        patch_files.apply(after, patch_files.parse(patch))
    assert after.changes() == []
    return caught.value


texts = st.lists(st.sampled_from(["a", "b", "c", "", "\té", "-- x", "++ y", "a\r"]), max_size=12).flatmap(
    lambda lines: st.sampled_from(["\n".join(lines), "\n".join(lines) + "\n"])
)


# Applying what diff makes.


@given(texts, texts)
def test_a_diff_of_two_texts_applied_to_the_first_gives_the_second(before: str, after: str) -> None:
    patch = unified(before, after)
    if patch:
        assert applied({"f.txt": before}, patch) == {"f.txt": after.encode()}


@given(st.binary(max_size=60), st.binary(max_size=60), texts, texts)
def test_our_own_printed_diffs_apply(old: bytes, new: bytes, before: str, after: str) -> None:
    first = overlay({"bytes": old, "text é": before, "gone": before})
    base, changed = first.base, Overlay(first.base)
    changed.write("bytes", new)
    changed.write("text é", after.encode())
    changed.delete("gone")
    changed.write("made", new)
    known = {digest(each): each for each in (old, new, before.encode(), after.encode())}
    patch = diff.render(changed.changes(), known.__getitem__)
    result = Overlay(base)
    patch_files.apply(result, patch_files.parse(patch))
    assert contents(result) == contents(changed)


def test_a_hunk_that_moved_is_applied_where_its_lines_are_alone() -> None:
    after = NUMBERS.replace("line 20\n", "LINE\n")
    assert applied({"f.txt": "new\nnew\n" + NUMBERS}, unified(NUMBERS, after)) == {
        "f.txt": ("new\nnew\n" + after).encode()
    }


def test_a_later_hunk_is_sought_where_the_one_before_it_was_moved_to() -> None:
    block = "x\ny\nz\nold\nx\ny\nz\n"
    before = NUMBERS + block + block
    after = NUMBERS.replace("line 9\n", "LINE\n") + block + block.replace("old", "new")
    shifted = applied({"f.txt": "first\n" + before}, unified(before, after, context=2))
    assert shifted == {"f.txt": ("first\n" + after).encode()}


def test_a_hunk_that_fits_in_two_other_places_is_refused() -> None:
    block = "x\ny\nz\nold\nx\ny\nz\n"
    patch = unified(block + NUMBERS, block.replace("old", "new") + NUMBERS).replace("@@ -1,7 +1,7", "@@ -3,7 +3,7")
    error = refusal({"f.txt": block + block + NUMBERS}, patch)
    assert "hunk 1 (line 3 of the patch) does not apply: its lines are not at line 3, but at lines 1 and 8" in str(
        error
    )


def test_lines_that_end_in_carriage_returns_are_kept() -> None:
    patch = "--- a/f.txt\r\n+++ b/f.txt\r\n@@ -1,2 +1,2 @@\r\n one\r\n-two\r\n+zwei\r\n"
    assert applied({"f.txt": "one\r\ntwo\r\n"}, patch) == {"f.txt": b"one\r\nzwei\r\n"}


def test_a_patch_may_lack_its_last_newline_and_the_blank_of_an_empty_context_line() -> None:
    patch = "--- a/f.txt\n+++ b/f.txt\n@@ -1,3 +1,3 @@\n one\n\n-two\n+zwei"
    assert applied({"f.txt": "one\n\ntwo\n"}, patch) == {"f.txt": b"one\n\nzwei\n"}


def test_names_without_prefixes_are_taken_as_written() -> None:
    patch = "--- {0}\n+++ {0}\n@@ -1 +1 @@\n-x\n+y\n"
    for path in ("src/f", "a/f", "b/f"):
        assert applied({path: "x\n"}, patch.format(path)) == {path: b"y\n"}


def test_a_time_stamp_after_the_name_and_quotes_around_it_are_understood() -> None:
    patch = '--- "a/t\\303\\244 \\"x\\""\t2024-01-01\n+++ "b/t\\303\\244 \\"x\\""\n@@ -1 +1 @@\n-x\n+y\n'
    with pytest.raises(PathRefused, match="line 1"):
        patch_files.parse(patch.replace('\\"x', "\\\\x"))
    assert [each.path for each in patch_files.parse(patch)] == ['tä "x"']


def test_a_series_of_mails_is_applied_one_after_the_other(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "f.txt").write_text(NUMBERS)
    git(tmp_path, "add", "f.txt")
    git(tmp_path, "commit", "-qm", "one")
    for old, new in (("line 3\n", "three\n"), ("three\n", "THREE\nand more\n")):
        (tmp_path / "f.txt").write_text((tmp_path / "f.txt").read_text().replace(old, new))
        git(tmp_path, "commit", "-qam", f"Make it\n\n--- not a header\n {new}")
    patch = git(tmp_path, "format-patch", "--stdout", "HEAD~2").stdout.decode()
    assert applied({"f.txt": NUMBERS}, patch) == {"f.txt": (tmp_path / "f.txt").read_bytes()}


def test_what_git_says_of_whole_files_is_honoured(tmp_path: Path) -> None:
    before: dict[str, str | bytes] = {
        "edited.txt": NUMBERS,
        "copied from.txt": NUMBERS.replace("line", "copy"),
        "moved.txt": NUMBERS.replace("line", "move"),
        "swap one": NUMBERS.replace("line", "the first"),
        "swap two": NUMBERS.replace("line", "another one"),
        "gone.txt": "gone\n",
        "empty": "",
        "image.bin": bytes(range(256)) * 40,
        "tool": "#!/bin/sh\n",
    }
    git(tmp_path, "init", "-q")
    for path, content in before.items():
        (tmp_path / path).write_bytes(content.encode() if isinstance(content, str) else content)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "before")
    change_everything(tmp_path)
    git(tmp_path, "add", "-A")
    patch = git(tmp_path, "diff", "--cached", "--binary", "-B", "-M", "-C", "--find-copies-harder").stdout.decode()
    for header in ("copy from", "rename from swap", "new mode 100755", "deleted file mode", "delta ", "literal "):
        assert header in patch
    after = overlay(before)
    patch_files.apply(after, patch_files.parse(patch))
    listed = [path for path in git(tmp_path, "ls-files", "-z").stdout.decode().split("\0") if path]
    assert contents(after) == {path: (tmp_path / path).read_bytes() for path in listed}
    tool = after.entry("tool")
    assert tool is not None
    assert tool.mode == 0o755


def change_everything(folder: Path) -> None:
    def edit(path: str, old: str, new: str) -> None:
        (folder / path).write_text((folder / path).read_text().replace(old, new))

    edit("edited.txt", "line 4\n", "")
    (folder / "copy é.txt").write_text((folder / "copied from.txt").read_text().replace("copy 7\n", "COPY\n"))
    (folder / "deep").mkdir()
    (folder / "moved.txt").rename(folder / "deep" / "moved.txt")
    edit("deep/moved.txt", "move 9\n", "MOVED\n")
    one, two = folder / "swap one", folder / "swap two"
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)
    (folder / "gone.txt").unlink()
    (folder / "empty").unlink()
    (folder / "made empty").touch()
    (folder / "image.bin").write_bytes(bytes(range(256)) * 30 + b"\0more" + bytes(range(256)) * 10)
    (folder / "new.bin").write_bytes(b"\0\1\2" * 9)
    (folder / "tool").chmod(0o755)


# Refusing.


def mangled(patch: str, seed: int) -> str:
    """The patch with one of its hunk lines changed."""
    chance = random.Random(seed)
    lines = patch.splitlines(keepends=True)
    at = chance.randrange(3, len(lines))
    kind = chance.choice(["change", "drop", "double", "context to added", "move the header"])
    if kind == "change" and lines[at][0] in " -":
        lines[at] = lines[at][0] + "mangled " + lines[at][1:]
    elif kind == "drop":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "context to added" and lines[at][0] == " ":
        lines[at] = "+" + lines[at][1:]
    else:
        lines[2] = lines[2].replace("@@ -", "@@ -1", 1)
    return "".join(lines)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts, texts, st.integers(0, 2**32), st.sampled_from([0, 1, 3]))
def test_what_git_refuses_is_refused(tmp_path: Path, before: str, after: str, seed: int, context: int) -> None:
    patch = unified(before, after, context=context)
    if not patch:
        return
    patch = mangled(patch, seed)
    try:
        applied({"f.txt": before}, patch)
    except (OperationError, ValidationError):
        return
    assert git_accepts(tmp_path, before, patch)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts, texts, st.sampled_from([1, 3]))
def test_what_diff_makes_is_accepted_by_git_and_by_us(tmp_path: Path, before: str, after: str, context: int) -> None:
    patch = unified(before, after, context=context)
    if patch and before and after:
        assert git_accepts(tmp_path, before, patch)
        assert applied({"f.txt": before}, patch) == {"f.txt": after.encode()}


def test_a_line_that_differs_is_named_with_file_hunk_and_line() -> None:
    patch = unified(NUMBERS, NUMBERS.replace("line 20\n", "LINE\n"))
    error = refusal({"f.txt": NUMBERS.replace("line 19\n", "line XIX\n")}, patch)
    assert str(error) == (
        "f.txt: hunk 1 (line 3 of the patch) does not apply: line 19 should be 'line 19', and it is 'line XIX'"
    )
    assert "as it is now" in error.hint


def test_a_difference_in_line_ends_is_said_to_be_one() -> None:
    patch = unified("a\nb\n", "a\nc\n")
    assert "\\r\\n" in refusal({"f.txt": "a\r\nb\r\n"}, patch).hint
    assert "end of the file" in refusal({"f.txt": "a\nb"}, patch).hint


def test_one_bad_hunk_leaves_every_file_alone() -> None:
    patch = unified("a\n", "b\n", "one") + unified("a\n", "b\n", "two")
    assert refusal({"one": "a\n", "two": "c\n"}, patch).message.startswith("two: hunk 1 (line 8 of the patch)")


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("", "there is no change in it"),
        ("hello\n", "there is no change in it"),
        ("@@ -1 +1 @@\n-a\n+b\n", "line 1: a hunk without a file"),
        ("--- a/f\n+++ b/f\n", "line 3: a hunk is expected here"),
        ("--- a/f\n+++ b/f\n@@ -1 +x @@\n-a\n", "line 3: a hunk's header is"),
        ("--- a/f\n+++ b/f\n@@ -1,2 +1 @@\n-a\n", "hunk 1 announces 2 old and 1 new lines, and has 1 and 0"),
        ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n-b\n+c\n", "hunk 1 announces 1 old and 1 new lines, and has 2 and 1"),
        ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+c\n+d\n", "line 6: the hunk before has more lines"),
        ("--- a/f\n+++ b/g\n@@ -1 +1 @@\n-a\n+b\n", "line 1: the file is 'f' before and 'g' after"),
        ("--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n", "both sides are /dev/null"),
        ("--- /dev/null\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n", "a new file has no old lines"),
        ("--- a/f\n+++ b/f\n@@ -5 +5 @@\n-a\n+b\n@@ -2 +2 @@\n-a\n+b\n", "line 6: hunks are in the order"),
        ("diff --git a/f b/f\nnew file mode 120000\n", "line 2: mode 120000 is a symbolic link"),
        ("diff --git a/f b/f\nnew mode 160000\n", "line 2: mode 160000 is a submodule"),
        ("diff --git a/f b/f\nindex 1..2\nBinary files a/f and b/f differ\n", "line 3: a binary file's changes"),
        ("diff --git a/f b/f\nindex 1..2\n", "line 1: nothing changes in this file"),
        ("diff --git a/f b/f\nrename from f\n", "line 1: a rename or copy has one line"),
        ("diff --git a/f b/f\nGIT binary patch\nliteral 9\nKcmZ\n\n", "the binary patch cannot be read"),
        ("diff --cc f\n@@@ -1 -1 +1 @@@\n", "line 1: a combined diff of a merge"),
    ],
)
def test_what_is_no_patch_is_refused_with_its_line(patch: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PatchParameters(patch=patch)
    assert message in str(caught.value)


@pytest.mark.parametrize("path", ["../x", "/etc/x", ".git/config", "a/../../x", "x\\y"])
@pytest.mark.parametrize("side", ["{0} {1}", "/dev/null {1}", "{0} /dev/null"])
def test_paths_in_a_patch_are_judged_too(path: str, side: str) -> None:
    quoted = path.replace("\\", "\\\\")
    old, new = side.format(f'"a/{quoted}"', f'"b/{quoted}"').split(" ")
    hunk = "@@ -0,0 +1 @@\n+b\n" if old == "/dev/null" else "@@ -1 +0,0 @@\n-a\n"
    with pytest.raises(ValidationError, match="line 1: "):
        PatchParameters(patch=f"--- {old}\n+++ {new}\n{hunk}")


def test_renames_are_judged_too() -> None:
    with pytest.raises(ValidationError, match="out of"):
        PatchParameters(patch="diff --git a/f b/f\nrename from f\nrename to ../f\n")


def test_a_new_file_must_not_be_there_and_an_old_one_must() -> None:
    assert (
        "already exists" in refusal({"f.txt": ""}, unified("", "x\n").replace("--- a/f.txt", "--- /dev/null")).message
    )
    error = refusal({}, unified("", "x\n"))
    assert (error.message, "/dev/null" in error.hint) == ("f.txt: no such file", True)


def test_a_deleted_file_must_hold_what_the_patch_deletes() -> None:
    patch = unified("a\n", "").replace("+++ b/f.txt", "+++ /dev/null")
    assert applied({"f.txt": "a\n", "g": ""}, patch) == {"g": b""}
    assert "does not apply" in refusal({"f.txt": "a\nb\n"}, patch).message
    empty = "diff --git a/f.txt b/f.txt\ndeleted file mode 100644\n"
    assert "would be left" in refusal({"f.txt": "a\n"}, empty).message


def test_a_hunk_without_context_must_fit_the_end_as_in_git(tmp_path: Path) -> None:
    patch = unified(NUMBERS, NUMBERS.replace("line 9\n", "LINE\n"), context=0)
    assert "must fit the file's end, and the file has 30 lines" in refusal({"f.txt": NUMBERS}, patch).message
    assert not git_accepts(tmp_path, NUMBERS, patch)


def test_a_hunk_for_the_first_line_must_fit_the_beginning_as_in_git(tmp_path: Path) -> None:
    patch = unified(NUMBERS, "new\n" + NUMBERS)
    moved = "moved\n" + NUMBERS
    assert "line 1 should be 'line 1', and it is 'moved'" in refusal({"f.txt": moved}, patch).message
    assert not git_accepts(tmp_path, moved, patch)


def test_a_binary_patch_applies_to_the_very_file_it_was_made_for() -> None:
    changed = overlay({"f.bin": b"\0old"})
    changed.write("f.bin", b"\0new")
    patch = diff.render(changed.changes(), {digest(each): each for each in (b"\0old", b"\0new")}.__getitem__)
    assert applied({"f.bin": b"\0old"}, patch) == {"f.bin": b"\0new"}
    assert "not the file" in refusal({"f.bin": b"\0other"}, patch).message
    index = next(line for line in patch.splitlines() if line.startswith("index "))
    short = patch.replace(index, "index 1234567..89abcde")
    assert "full object ids" in refusal({"f.bin": b"\0old"}, short).message


def test_a_binary_part_cannot_inflate_beyond_what_it_announces() -> None:
    import zlib

    packed = zlib.compress(bytes(1_000))
    row = chr(ord("A") + len(packed) - 1) + base64.b85encode(packed, pad=True).decode()
    patch = f"diff --git a/f b/f\nGIT binary patch\nliteral 3\n{row}\n\n"
    with pytest.raises(ValidationError, match="does not inflate to the 3 bytes"):
        PatchParameters(patch=patch)


# What it touches.


def test_its_effects_are_the_files_it_names() -> None:
    patch = (
        unified("a\n", "b\n", "edited")
        + "--- /dev/null\n+++ b/made\n@@ -0,0 +1 @@\n+x\n"
        + "--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
        + "diff --git a/from b/to\nrename from from\nrename to to\n"
        + "diff --git a/kept b/copy\ncopy from kept\ncopy to copy\n"
    )
    effects = FilePatch().effects(PatchParameters(patch=patch))
    assert effects.reads == tuple(map(Access, ("edited", "from", "gone", "kept")))
    assert effects.writes == tuple(map(Access, ("copy", "edited", "from", "gone", "made", "to")))
    before: dict[str, str | bytes] = {"edited": "a\n", "gone": "x\n", "from": "f", "kept": "k"}
    after = overlay(before)
    outputs = FilePatch().run(PatchParameters(patch=patch), Context(after))
    assert outputs.paths == [access.path for access in effects.writes]
    assert contents(after) == {"edited": b"b\n", "made": b"x\n", "to": b"f", "kept": b"k", "copy": b"k"}


def test_a_mode_change_touches_the_executable_bit_alone() -> None:
    after = overlay({"f": "x"}, {"f": 0o640})
    patch_files.apply(after, patch_files.parse("diff --git a/f b/f\nold mode 100644\nnew mode 100755\n"))
    entry = after.entry("f")
    assert entry is not None
    assert entry.mode == 0o750


def test_the_expected_digests_are_of_the_files_before() -> None:
    patch = unified("a\n", "b\n", "one")
    files: dict[str, str | bytes] = {"one": "a\n", "two": "a\n"}
    both = patch + unified("a\n", "b\n", "two")
    good, bad = digest(b"a\n"), digest(b"b\n")
    FilePatch().run(PatchParameters(patch=patch, expect_sha256=good), Context(overlay(files)))
    FilePatch().run(PatchParameters(patch=both, expect_sha256={"one": good, "two": good}), Context(overlay(files)))
    with pytest.raises(OperationError, match=f"two: .*expected sha256 {bad}, found {good}"):
        FilePatch().run(PatchParameters(patch=both, expect_sha256={"one": good, "two": bad}), Context(overlay(files)))
    with pytest.raises(OperationError, match="several files"):
        FilePatch().run(PatchParameters(patch=both, expect_sha256=good), Context(overlay(files)))

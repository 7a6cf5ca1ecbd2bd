"""How a path may be spelt, and what is said of one that may not. Hostile spellings: tests/security."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks import paths
from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.paths import LONGEST_NAME, LONGEST_PATH, check_path, fold, shown

ORDINARY = [
    "a",
    "src/app/main.py",
    ".gitignore",
    ".gitattributes",
    ".github/workflows/ci.yml",
    "docs/.git-blame-ignore-revs",
    "git/hooks",
    "..hidden",
    "a..b",
    "notes~",
    "src/~notes",
    "with space/and more.txt",
    " leading",
    "naïve/日本語/Ελλάδα.txt",
    "👩‍👩‍👧/می‌خواهم.txt",  # a joiner in an emoji and a non-joiner in Persian are part of the word
    "console.py",
    "auxiliary/nullable/com10",
]


NAMES = ["a", "C", "on", "1", ".", "-", "_", "/", "~", ":", " ", "con", "NUL", "git", ".git", "com1", "é", "\n", "\\"]


@given(st.lists(st.sampled_from(NAMES), max_size=7).map("".join))
def test_what_is_taken_at_a_glance_no_rule_refuses(path: str) -> None:
    if paths._PLAIN.fullmatch(path):
        assert paths._judge(path) is None


@pytest.mark.parametrize("path", ORDINARY)
def test_an_ordinary_path_is_returned_as_it_is(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["$HOME/x", "${HOME}", "%2e%2e/x", "%HOME%", "*", "a?[b]", "-rf", "--help", "{a,b}", "`id`", "a;b|c&d", "'\""],
)
def test_what_only_a_shell_or_a_browser_would_expand_is_taken_literally(path: str) -> None:
    assert check_path(path) == path


def test_the_workspace_itself_is_a_folder_but_not_a_file() -> None:
    assert check_path(".", folder=True) == "."
    with pytest.raises(PathRefused, match="is the workspace itself"):
        check_path(".")


def test_a_folder_is_judged_like_a_file_otherwise() -> None:
    with pytest.raises(PathRefused, match="leads out"):
        check_path("..", folder=True)


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("../x", "'../x': '..' leads out of the workspace", "stays in it"),
        ("a/../b", "'a/../b': '..' is refused, even where it stays in the workspace", "write 'b'"),
        ("./a", "'./a': '.' as a part of a path means nothing", "write 'a'"),
        ("a/", "'a/': ends in '/'", "leave the last '/' out"),
        ("/etc/passwd", "'/etc/passwd': is an absolute path", "relative to the workspace"),
        ("a/.GIT/config", "'a/.GIT/config': '.GIT' belongs to git", "git operations"),
        ("src/nul.txt", "'src/nul.txt': is the name of a device on Windows, whatever follows its dot", "another name"),
        ("a ", "'a ': 'a ' ends in a space, which some systems drop", "leave the last space out"),
        ("cafe\u0301", "not in Unicode's composed form", r"in NFC it is 'caf\xe9'"),
        ("https://x/y", "is a URL", "relative"),
    ],
)
def test_a_refusal_says_which_rule_and_what_to_write_instead(path: str, message: str, hint: str) -> None:
    with pytest.raises(PathRefused) as refused:
        check_path(path)
    assert message in refused.value.message
    assert hint in refused.value.hint


def test_the_longest_name_and_path_are_accepted_and_one_byte_more_is_not() -> None:
    name = "é" * (LONGEST_NAME // 2) + "x"  # counted in bytes, as file systems do
    assert check_path(name) == name
    with pytest.raises(PathRefused, match="256 bytes"):
        check_path(name + "x")
    path = "/".join(["x" * 255] * 16)
    assert len(path) == LONGEST_PATH
    assert check_path(path) == path
    with pytest.raises(PathRefused, match="4096 bytes"):
        check_path("/".join(["x" * 255] * 15 + ["x" * 254, "y"])[:4096])


def test_what_cannot_be_seen_is_escaped_in_a_message_and_what_is_endless_is_cut() -> None:
    assert shown("a\u202eb\x1b[2J") == r"'a\u202eb\x1b[2J'"
    assert len(shown("x" * 5000)) < 130


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("README", "readme"),
        ("Straße", "STRASSE"),
        ("café", "cafe\u0301"),
        ("CAFÉ", "cafe\u0301"),
        ("Ω", "\u2126"),  # the Ohm sign
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
def test_paths_that_some_disk_cannot_hold_apart_fold_alike(one: str, other: str) -> None:
    assert fold(one) == fold(other)


def test_different_paths_fold_differently() -> None:
    assert len({fold(path) for path in ("a", "b", "a/b", "ä", "a_", "ab")}) == 6


@given(st.text())
def test_folding_is_stable_and_composed(path: str) -> None:
    folded = fold(path)
    assert fold(folded) == folded
    assert unicodedata.is_normalized("NFC", folded)


@given(st.text(alphabet=st.sampled_from("ab./\\~: \u2024\uff0e\u200d\u0301gitGIT"), max_size=12))
def test_an_accepted_path_names_something_below_the_workspace(path: str) -> None:
    try:
        check_path(path)
    except PathRefused:
        return
    joined = os.path.normpath(os.path.join("/srv/space", path))
    assert joined == f"/srv/space/{path}"
    assert fold(joined) != "/srv/space"

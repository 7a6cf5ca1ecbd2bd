"""Which names and paths a pattern means."""

from __future__ import annotations

import pytest

from quantum_orchestrator.blocks.globs import name_finder, path_finder


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("Makefile", ["Makefile", "a/Makefile", "a/b/Makefile", "Makefile/x"], ["Makefiles", "a/Makefile.txt"]),
        ("/Makefile", ["Makefile"], ["a/Makefile"]),
        ("docs/*", ["docs/a", "docs/a/b"], ["docs", "a/docs/a"]),
        ("docs/**", ["docs/a", "docs/a/b"], ["docs", "docsx/a"]),
        ("docs", ["docs", "docs/a", "x/docs/a"], ["docsx"]),
        ("**/.github/workflows/**", [".github/workflows/a.yml", "x/.github/workflows/a"], [".github/x", ".github"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/zz"]),
        ("*.p[yh]", ["a.py", "x/a.ph"], ["a.pz", "py"]),
        ("[!a]x", ["bx"], ["ax", "/x"]),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("a[b", ["a[b"], ["ab"]),
        ("a+b(c).d", ["a+b(c).d"], ["aab(c).d", "a+b(c)xd"]),
    ],
)
def test_paths(pattern: str, matching: list[str], other: list[str]) -> None:
    find = path_finder((pattern,), any_case=False)
    assert {path: find(path) for path in matching} == dict.fromkeys(matching, pattern)
    assert {path: find(path) for path in other} == dict.fromkeys(other)


def test_in_any_case_a_path_is_read_as_the_laxest_file_system_does() -> None:
    find = path_finder(("Makefile", "É/x"), any_case=True)
    assert [find(path) for path in ("MAKEFILE", "a/makeFile", "e\u0301/X")] == ["Makefile", "Makefile", "É/x"]
    assert path_finder(("Makefile",), any_case=False)("makefile") is None


def test_names_have_no_folders() -> None:
    find = name_finder(("git.*", "file.write"))
    assert [find(name) for name in ("git.push", "file.write", "file.writes", "echo")] == [
        "git.*",
        "file.write",
        None,
        None,
    ]
    assert name_finder(("*.Example.org",), any_case=True)("API.example.ORG") == "*.Example.org"
    assert name_finder(("*",))("/usr/bin/x") == "*"


def test_of_several_patterns_the_first_is_told() -> None:
    assert path_finder(("b", "a*", "ab"), any_case=False)("ab") == "a*"
    assert path_finder((), any_case=False)("ab") is None

"""Overlays over a tree: what they show, what they say has changed, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.errors import OperationError, PathRefused, QuantumError
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, MemoryTree, Overlay, digest, file_entry, walk


def tree_of(**files: str) -> MemoryTree:
    tree = MemoryTree()
    overlay = Overlay(tree)
    for path, content in files.items():
        overlay.write(path.replace("__", "/"), content.encode())
    tree.apply(overlay.changes(), overlay.content_of)
    return tree


def test_changes_are_what_differs_from_the_base() -> None:
    overlay = Overlay(tree_of(same="1", other="1"))
    overlay.write("same", b"2")
    overlay.write("same", b"1")
    overlay.write("other", b"2")
    overlay.write("new/file", b"3")
    assert overlay.changes() == [
        Change("new", None, Entry(Kind.FOLDER, 0o755)),
        Change("new/file", None, file_entry(b"3", 0o644)),
        Change("other", file_entry(b"1", 0o644), file_entry(b"2", 0o644)),
    ]


def test_a_folder_made_again_does_not_show_what_was_in_it() -> None:
    overlay = Overlay(tree_of(d__x="1", d__e__y="2"))
    overlay.delete("d")
    overlay.mkdir("d")
    assert list(walk(overlay)) == ["d"]
    assert [change.path for change in overlay.changes()] == ["d/e", "d/e/y", "d/x"]


def test_a_file_in_the_place_of_a_full_folder() -> None:
    overlay = Overlay(tree_of(d__x="1"))
    overlay.delete("d")
    overlay.write("d", b"now a file")
    kinds = {
        change.path: (change.before and change.before.kind, change.after and change.after.kind)
        for change in overlay.changes()
    }
    assert kinds == {"d": (Kind.FOLDER, Kind.FILE), "d/x": (Kind.FILE, None)}


def test_deleting_a_folder_that_holds_a_fifo_changes_nothing() -> None:
    tree = tree_of(d__a="1", d__z="2")
    tree.entries["d/m"] = Entry(Kind.SPECIAL, 0o644)
    overlay = Overlay(tree)
    with pytest.raises(OperationError, match="d/m: is not a regular file"):
        overlay.delete("d")
    assert overlay.changes() == []


def test_walking_and_deleting_are_not_limited_by_pythons_stack(small_stack: None) -> None:
    tree, path = MemoryTree(), "d"
    for _ in range(300):
        tree.entries[path] = Entry(Kind.FOLDER, 0o755)
        path += "/d"
    tree.names = lambda folder: ["d"] if folder == "." or f"{folder}/d" in tree.entries else []  # type: ignore[method-assign]
    assert sum(1 for _ in walk(tree)) == 300
    overlay = Overlay(tree)
    overlay.delete("d")
    assert len(overlay.changes()) == 300


def test_what_was_read_must_still_be_there_when_it_is_changed() -> None:
    tree = tree_of(x="mine")
    overlay = Overlay(tree)
    content = overlay.read("x")
    tree.entries["x"] = file_entry(b"theirs", 0o644)
    tree.contents[digest(b"theirs")] = b"theirs"
    with pytest.raises(OperationError, match="x: somebody else changed it"):
        overlay.write("x", content + b"more")


names = st.sampled_from(["a", "b", "a/a", "a/b", "b/a", "a/a/a"])
moves = st.lists(st.tuples(st.sampled_from(["write", "mkdir", "delete", "chmod"]), names, st.sampled_from(["1", "2"])))


@given(moves, moves)
def test_applying_an_overlays_changes_gives_the_tree_that_it_shows(
    before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]
) -> None:
    tree = MemoryTree()
    for steps in (before, after):
        overlay = Overlay(tree)
        for what, path, content in steps:
            try:
                perform(overlay, what, path, content)
            except QuantumError:
                continue
        shown = {path: overlay.entry(path) for path in walk(overlay)}
        tree.apply(overlay.changes(), overlay.content_of)
        assert tree.entries == shown


def perform(overlay: Overlay, what: str, path: str, content: str) -> None:
    if what == "write":
        overlay.write(path, content.encode())
    elif what == "chmod":
        overlay.chmod(path, 0o700)
    else:
        getattr(overlay, what)(path)


# What is below something that is no folder: a disk refuses it, and so do these.


def test_a_path_below_a_link_or_a_file_is_refused_as_on_a_disk() -> None:
    tree = MemoryTree()
    tree.entries = {"link": Entry(Kind.LINK, 0o777, target="folder"), "file": file_entry(b"", 0o644)}
    for each in (tree, Overlay(tree)):
        with pytest.raises(PathRefused, match="'link' is a symbolic link"):
            each.kind("link/x")
        with pytest.raises(PathRefused, match="'file' is not a folder"):
            each.entry("file/x/y")


def test_nothing_shows_through_a_folder_that_takes_the_place_of_a_link() -> None:
    tree = MemoryTree()
    tree.entries = {"link": Entry(Kind.LINK, 0o777, target="folder")}
    overlay = Overlay(tree)
    overlay.delete("link")
    assert overlay.kind("link/x") is None
    overlay.write("link/x", b"new")
    assert overlay.names("link") == ["x"]
    assert [(change.path, change.before is None) for change in overlay.changes()] == [("link", False), ("link/x", True)]


def test_a_link_of_the_overlays_own_is_not_followed() -> None:
    overlay = Overlay(MemoryTree())
    overlay.link("link", "elsewhere")
    with pytest.raises(PathRefused, match="'link' is a symbolic link"):
        overlay.kind("link/x")

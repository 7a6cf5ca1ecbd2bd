"""Which file that came is one that went: by git's rule, each once, and never at any cost."""

from __future__ import annotations

import time

import pytest

from quantum_orchestrator.blocks import renames
from quantum_orchestrator.blocks.renames import Rename, find_renames
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, digest, file_entry


def numbered(*numbers: int) -> bytes:
    """Ten bytes a line."""
    return b"".join(b"line %4d\n" % number for number in numbers)


def found(gone: dict[str, bytes], come: dict[str, bytes]) -> list[Rename]:
    changes = [Change(path, file_entry(content, 0o644), None) for path, content in gone.items()]
    changes += [Change(path, None, file_entry(content, 0o644)) for path, content in come.items()]
    known = {digest(content): content for content in (*gone.values(), *come.values())}
    return find_renames(sorted(changes, key=lambda each: each.path), known.__getitem__)


def test_equal_contents_are_found_without_reading_them() -> None:
    entry = file_entry(b"never read", 0o644)
    assert find_renames([Change("a", entry, None), Change("b", None, entry)], {}.__getitem__) == [Rename("a", "b", 100)]


def test_of_equal_contents_those_that_keep_their_name_belong_together() -> None:
    gone = {"a/x": b"same", "a/y": b"same", "a/z": b"same"}
    come = {"b/other": b"same", "b/x": b"same"}
    assert found(gone, come) == [Rename("a/y", "b/other", 100), Rename("a/x", "b/x", 100)]


@pytest.mark.parametrize(("kept", "similarity"), [(9, 90), (5, 50), (4, None), (0, None)])
def test_half_of_the_lines_are_enough(kept: int, similarity: int | None) -> None:
    after = numbered(*range(kept), *range(1000, 1010 - kept))
    expected = [] if similarity is None else [Rename("a", "b", similarity)]
    assert found({"a": numbered(*range(10))}, {"b": after}) == expected


def test_a_file_that_only_grew_is_measured_by_its_size_now() -> None:
    assert found({"a": numbered(*range(10))}, {"b": numbered(*range(16))}) == [Rename("a", "b", 62)]
    assert found({"a": numbered(*range(10))}, {"b": numbered(*range(20))}) == [Rename("a", "b", 50)]
    assert found({"a": numbered(*range(10))}, {"b": numbered(*range(21))}) == []


def test_other_contents_are_never_a_hundred_per_cent() -> None:
    assert found({"a": numbered(1, 2, 3)}, {"b": numbered(3, 2, 1)}) == [Rename("a", "b", 99)]


def test_the_most_similar_come_first_and_each_is_used_once() -> None:
    gone = {"a": numbered(*range(10)), "b": numbered(*range(8), 50, 51)}
    come = {"x": numbered(*range(9), 60), "y": numbered(*range(8), 50, 61), "z": numbered(*range(7), 70, 71, 72)}
    assert found(gone, come) == [Rename("a", "x", 90), Rename("b", "y", 90)]


def test_one_that_has_a_better_partner_is_left_to_it() -> None:
    gone = {"a": numbered(*range(10))}
    come = {"x": numbered(*range(6), 60, 61, 62, 63), "y": numbered(*range(9), 61)}
    assert found(gone, come) == [Rename("a", "y", 90)]


def test_one_that_is_like_two_that_went_is_the_more_similar_one() -> None:
    gone = {"a": numbered(*range(8), 50, 51), "b": numbered(*range(9), 60)}
    assert found(gone, {"x": numbered(*range(10))}) == [Rename("b", "x", 90)]


def test_of_two_that_are_equally_similar_the_one_with_the_same_name_is_meant() -> None:
    gone = {"a/one": numbered(*range(9), 50), "a/two": numbered(*range(9), 51)}
    assert found(gone, {"b/two": numbered(*range(10))}) == [Rename("a/two", "b/two", 90)]


def test_long_lines_are_compared_in_pieces() -> None:
    line = b"".join(b"%064d" % number for number in range(10))
    assert found({"a": line}, {"b": line + b"more"}) == [Rename("a", "b", 99)]


def test_empty_files_are_renamed_and_similar_to_nothing() -> None:
    assert found({"a": b""}, {"b": b""}) == [Rename("a", "b", 100)]
    assert found({"a": b""}, {"b": b"x"}) == []


def test_links_folders_and_gits_own_files_are_no_renames() -> None:
    link, folder, file = Entry(Kind.LINK, 0o777, target="t"), Entry(Kind.FOLDER, 0o755), file_entry(b"x", 0o644)
    for entry in (link, folder):
        assert find_renames([Change("a", entry, None), Change("b", None, entry)], {}.__getitem__) == []
    assert find_renames([Change("a", file, None), Change(".git/b", None, file)], {}.__getitem__) == []
    assert find_renames([Change("a", file, link), Change("b", None, file)], {}.__getitem__) == []


def test_a_file_that_gave_way_to_a_folder_may_have_moved_into_it() -> None:
    file = file_entry(b"x", 0o644)
    changes = [Change("a", file, Entry(Kind.FOLDER, 0o755)), Change("a/b", None, file)]
    assert find_renames(changes, {}.__getitem__) == [Rename("a", "a/b", 100)]


def test_beyond_a_number_of_files_only_equal_ones_are_found() -> None:
    half = renames.CANDIDATES // 2
    gone = {f"a/{number}": numbered(number, *range(2000, 2009)) for number in range(half + 1)}
    come = {f"b/{number}": numbered(number + 5000, *range(2000, 2009)) for number in range(half + 1)}
    assert found(gone, come | {"moved": gone["a/7"]}) == [Rename("a/7", "moved", 100)]


@pytest.mark.parametrize("bound", ["BYTES", "COMPARISONS"])
def test_beyond_a_cost_only_equal_ones_are_found(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    gone, come = {"a": numbered(*range(10)), "c": b"same"}, {"b": numbered(*range(9)), "d": b"same"}
    assert len(found(gone, come)) == 2
    monkeypatch.setattr(renames, bound, 8)
    assert found(gone, come) == [Rename("c", "d", 100)]


def test_ten_thousand_moved_files_take_no_comparison() -> None:
    entries = [file_entry(b"%d" % number, 0o644) for number in range(10_000)]
    changes = [Change(f"a/{number}", entry, None) for number, entry in enumerate(entries)]
    changes += [Change(f"b/{number}", None, entry) for number, entry in enumerate(entries)]
    started = time.process_time()
    assert len(find_renames(changes, {}.__getitem__)) == 10_000
    assert time.process_time() - started < 5


def test_the_most_that_is_compared_ends_in_reasonable_time() -> None:
    half = renames.CANDIDATES // 2
    gone = {f"a/{number}": numbered(number, *range(2000, 2019)) for number in range(half)}
    come = {f"b/{number}": numbered(number, 9000, *range(2000, 2018)) for number in range(half)}
    started = time.process_time()
    pairs = found(gone, come)
    assert len(pairs) == half
    assert all(each.source[1:] == each.destination[1:] and each.similarity == 95 for each in pairs)
    assert time.process_time() - started < 15

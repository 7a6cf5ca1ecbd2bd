"""Edits as models write them: taken when there is one thing that they can mean, refused with a reason otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.tree import digest
from quantum_orchestrator.tasks.model_edits import SHORT, Edit, EditsRefused, apply_edits, edits_between

SHOP = b"""\
def total(prices):
    result = 0
    for price in prices:
        result += price   
    return result


def mean(prices):
    if not prices:
        return 0
    return total(prices) / len(prices)
"""  # noqa: W291 - the blanks at the end of a line are what is tested


def applied(*edits: Edit, files: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    known = {"shop.py": SHOP} if files is None else files
    return apply_edits(edits, known.get)


def one(search: str, replace: str, content: bytes = SHOP) -> str:
    return applied(Edit("shop.py", search, replace), files={"shop.py": content})["shop.py"].decode()


def refusal(*edits: Edit, files: Mapping[str, bytes] | None = None) -> str:
    with pytest.raises(EditsRefused) as refused:
        applied(*edits, files=files)
    return refused.value.message


# What is taken.


def test_a_text_that_is_there_once_is_replaced_exactly() -> None:
    assert one("result = 0", "result = 1") == SHOP.decode().replace("result = 0", "result = 1")


def test_blanks_at_the_ends_of_lines_do_not_matter_where_the_text_is_not_there_exactly() -> None:
    after = one("        result += price\n    return result\n", "        result += price\n    return result + 1\n")
    assert "        result += price\n    return result + 1\n\n\ndef mean" in after


def test_a_search_without_its_indentation_is_found_and_the_replacement_is_indented() -> None:
    after = one("if not prices:\n    return 0\n", "if not prices:\n    return 0.0\n\nprices = list(prices)\n")
    assert "    if not prices:\n        return 0.0\n\n    prices = list(prices)\n    return total" in after


def test_a_search_with_too_much_indentation_is_found_and_the_replacement_is_moved_back() -> None:
    after = one("        if not prices:\n            return 0\n", "        if prices == []:\n            return 1\n")
    assert "    if prices == []:\n        return 1\n    return total" in after


def test_an_empty_replacement_takes_whole_lines_out() -> None:
    assert one("if not prices:\n    return 0", "") == SHOP.decode().replace(
        "    if not prices:\n        return 0\n", ""
    )


def test_lines_end_as_those_of_the_file_do() -> None:
    windows = SHOP.replace(b"\n", b"\r\n")
    loose = one("if not prices:\n    return 0\n", "if not prices:\n    return 1\n", windows)
    exact = one("result = 0", "result = 0\n    count = 0", windows)
    for after in (loose, exact):
        assert after.count("\n") == after.count("\r\n")


def test_the_last_line_keeps_having_no_end() -> None:
    assert one("b  ", "c\nd", b"a\nb") == "a\nc\nd"


def test_edits_of_one_file_build_on_each_other() -> None:
    after = applied(Edit("shop.py", "result = 0", "summed = 0"), Edit("shop.py", "summed = 0", "summed = 2"))
    assert b"summed = 2" in after["shop.py"]


def test_an_empty_search_makes_a_new_file_or_a_short_one_anew() -> None:
    after = applied(Edit("new.py", "", "x = 1\n"), Edit("shop.py", "", "y = 2\n"))
    assert after == {"new.py": b"x = 1\n", "shop.py": b"y = 2\n"}


def test_the_digest_of_the_file_that_was_shown_may_be_given() -> None:
    assert applied(Edit("shop.py", "result = 0", "result = 1", digest(SHOP)[:12]))


# What is refused.


def test_a_text_that_occurs_twice_is_refused_with_its_lines() -> None:
    said = refusal(Edit("shop.py", "(prices):", "(values):"))
    assert said == (
        "shop.py: edit 1 of 1: the text to search for occurs 2 times, at lines 1 and 8; it must occur once: "
        "take in more of the lines around the one that is meant"
    )


def test_what_is_ambiguous_in_one_way_is_not_tried_in_a_looser_one() -> None:
    content = b"x = 1 \nif a:\n    x = 1\nif b:\n    x = 1\n"
    said = refusal(Edit("a.py", "x = 1\n", "x = 2\n"), files={"a.py": content})
    assert "occurs 2 times, at lines 3 and 5" in said


def test_what_is_ambiguous_but_for_its_indentation_is_refused() -> None:
    content = b"if a:\n    x = [\n        1]\nif b:\n        x = [\n            1]\n"
    said = refusal(Edit("a.py", "x = [\n    1]", "x = [\n    2]"), files={"a.py": content})
    assert "occurs 2 times, at lines 2 and 5" in said


def test_indentation_that_is_not_the_same_for_all_lines_is_not_made_up_for() -> None:
    said = refusal(Edit("shop.py", "if not prices:\nreturn 0\n", "return 0\n"))
    assert "is not in the file" in said


def test_a_stale_text_is_refused_with_the_nearest_lines_and_their_numbers() -> None:
    said = refusal(Edit("shop.py", "def mean(prices):\n    return sum(prices) / len(prices)\n", "pass"))
    assert "the nearest lines are:\n    6: \n    7: \n    8: def mean(prices):\n    9:     if not prices:" in said


def test_a_text_of_which_no_line_is_there_is_refused_with_what_is_most_like_it() -> None:
    assert "nearest: line 8: 'def mean(prices):'" in refusal(Edit("shop.py", "def means(price):", "pass"))


def test_all_edits_are_made_or_none_and_every_reason_is_told() -> None:
    said = refusal(
        Edit("shop.py", "result = 0", "result = 1"), Edit("shop.py", "absent", "x"), Edit("none.py", "a", "b")
    )
    assert "shop.py: edit 2 of 3: the text to search for is not in the file" in said
    assert "none.py: edit 3 of 3: there is no such file" in said
    assert "edit 1" not in said


def test_an_edit_of_another_version_of_the_file_is_refused() -> None:
    assert "another version" in refusal(Edit("shop.py", "result = 0", "result = 1", digest(b"older")[:12]))
    assert "not there" in refusal(Edit("gone.py", "", "x", digest(b"older")))


def test_a_digest_too_short_to_tell_anything_is_refused() -> None:
    assert "another version" in refusal(Edit("shop.py", "result = 0", "result = 1", digest(SHOP)[:2]))


def test_a_long_file_is_not_replaced_as_a_whole() -> None:
    said = refusal(Edit("long.py", "", "x\n"), files={"long.py": b"x\n" * (SHORT + 1)})
    assert f"it has {SHORT + 1} lines" in said


def test_edits_that_change_nothing_are_refused() -> None:
    assert "change nothing" in refusal(Edit("shop.py", "result = 0", "result = 0"))
    assert "no edits" in refusal()


def test_half_of_a_surrogate_pair_is_refused() -> None:
    assert "not Unicode" in refusal(Edit("shop.py", "result = 0", "\ud800"))


# The other way round.

contents = st.lists(st.sampled_from(["a", "b", "  a", "", "a b"]), max_size=8).map(
    lambda each: "\n".join(each).encode()
)


@given(contents, contents)
def test_the_edit_between_two_contents_makes_one_the_other(before: bytes, after: bytes) -> None:
    edits = edits_between("p", before, after)
    assert (apply_edits(edits, {"p": before}.get)["p"] if edits else before) == after

"""Positions in JSON texts, and what is said of texts that are not JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.json_text import JsonSyntaxError, escape, scan, tokens

DOCUMENT = """{
  "name": "tour",
  "steps": [
    {"id": "a", "with/slash~": 1},
    [2.5, null]
  ]
}
"""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('ab/~"\\\né'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab/~"', max_size=3), inner, max_size=4),
    max_leaves=20,
)


def piece(text: str, span: tuple[int, int]) -> str:
    return text[slice(*span)]


def test_every_value_and_key_is_found_by_its_pointer() -> None:
    scanned = scan(DOCUMENT)
    assert piece(DOCUMENT, scanned.span("/name")) == '"tour"'
    assert piece(DOCUMENT, scanned.key_span("/steps/0/with~1slash~0")) == '"with/slash~"'
    assert {pointer: piece(DOCUMENT, span) for pointer, span in scanned.values.items() if "/steps/" in pointer} == {
        "/steps/0": '{"id": "a", "with/slash~": 1}',
        "/steps/0/id": '"a"',
        "/steps/0/with~1slash~0": "1",
        "/steps/1": "[2.5, null]",
        "/steps/1/0": "2.5",
        "/steps/1/1": "null",
    }
    assert set(scanned.keys) == {"/name", "/steps", "/steps/0/id", "/steps/0/with~1slash~0"}
    assert scanned.max_depth == 3


def test_lines_and_columns_are_counted_from_one_in_characters() -> None:
    text = '{\r\n "é": 1}'
    scanned = scan(text)
    assert scanned.line_column(0) == (1, 1)
    assert scanned.line_column(scanned.span("/é")[0]) == (2, 7)


@pytest.mark.parametrize("pointer", ["/nothing", "/steps/2", "/steps/00", "/steps/-", "/name/0", "/steps/x"])
def test_a_pointer_to_nothing_is_a_key_error(pointer: str) -> None:
    with pytest.raises(KeyError):
        scan(DOCUMENT).span(pointer)


def test_an_item_of_an_array_has_no_key() -> None:
    with pytest.raises(KeyError):
        scan(DOCUMENT).key_span("/steps/1")


def test_duplicate_keys_are_recorded_with_both_places_and_the_last_one_counts() -> None:
    text = '{"a": {"x": 1, "b": 2, "x": 3}, "a": 4}'
    scanned = scan(text)
    assert scanned.duplicates == [("/a/x", 7, 23), ("/a", 1, 32)]
    assert piece(text, scanned.span("/a")) == "4"
    assert "/a/x" not in scanned.values


def test_keys_are_the_same_however_they_are_escaped() -> None:
    assert [pointer for pointer, _, _ in scan(r'{"a": 1, "\u0061": 2}').duplicates] == ["/a"]


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("", 0, "expected a value, found the end of the text"),
        ("{", 1, "expected a key in double quotes or '}', found the end of the text"),
        ("[1, 2", 5, "expected ',' or ']', found the end of the text"),
        ("[1 2]", 3, "expected ',' or ']', found '2'"),
        ('{"a" 1}', 5, "expected ':' after the key, found '1'"),
        ('{"a": 1 "b": 2}', 8, "expected ',' or '}', found '\"'"),
        ("[1] x", 4, "expected the end of the text after the value, found 'x'"),
        ("[1,]", 2, "trailing comma before ']'"),
        ('{"a": 1, }', 7, "trailing comma before '}'"),
        ("{'a': 1}", 1, "expected a key in double quotes or '}', found \"'\""),
        ("{a: 1}", 1, "expected a key in double quotes or '}', found 'a'"),
        ("['a']", 1, 'expected a value, found "\'"'),
        ("[1, // one\n2]", 4, "comments are not JSON"),
        ("[1 /* one */]", 3, "comments are not JSON"),
        ("# no\n1", 0, "comments are not JSON"),
        ("[NaN]", 1, "NaN is not JSON"),
        ("[-Infinity]", 1, "-Infinity is not JSON"),
        ("True", 0, "True is not JSON"),
        ("[01]", 1, "01 is not a JSON number"),
        ("[.5]", 1, ".5 is not a JSON number"),
        ("[+1]", 1, "+1 is not a JSON number"),
        ('"a\nb"', 2, "control character U+000A in a string"),
        ('"a\\qb"', 2, "\\q is no JSON escape"),
        ('"a\\u12"', 2, "\\u is no JSON escape"),
        ('["abc', 1, "the string that begins here has no end"),
        ('"x\\ud800"', 2, "lone surrogate \\ud800"),
        ('"\\udc00\\ud800"', 1, "lone surrogate \\udc00"),
        ('"\ud800"', 1, "lone surrogate U+D800"),
        ("\ufeff{}", 0, "a byte order mark is not JSON"),
    ],
)
def test_what_is_not_json_is_said_with_its_place(text: str, offset: int, message: str) -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        scan(text)
    assert (caught.value.offset, caught.value.message) == (offset, message)


def test_a_fault_knows_its_line_and_column() -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        scan('{\n  "a": 1,\n  "b": tru\n}')
    assert (caught.value.line, caught.value.column) == (3, 8)


def test_a_surrogate_pair_and_an_escaped_backslash_are_fine() -> None:
    assert scan('"\\ud83d\\ude00 \\\\ud800"').span("") == (0, 22)


def test_nesting_is_limited_where_it_is_asked_for_and_never_recursive() -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        scan("[" * 100_000, max_depth=64)
    assert (caught.value.offset, caught.value.message) == (64, "nested deeper than 64")
    assert scan("[" * 50_000 + "]" * 50_000).max_depth == 50_000


def test_a_pointer_token_with_a_bad_escape_is_refused() -> None:
    assert tokens("/a~1b/~0") == ["a/b", "~"]
    for bad in ("a", "/~", "/~2"):
        with pytest.raises(ValueError, match="JSON pointer"):
            tokens(bad)


def everything(value: object, pointer: str = "") -> dict[str, object]:
    found = {pointer: value}
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in members:
        found |= everything(each, f"{pointer}/{escape(str(name))}")
    return found


@given(json_values, st.sampled_from([None, 1, "\t"]))
def test_the_text_at_every_span_is_the_value_at_its_pointer(value: object, indent: int | str | None) -> None:
    text = json.dumps(value, indent=indent)
    spans = scan(text).values
    assert {pointer: json.loads(piece(text, span)) for pointer, span in spans.items()} == everything(value)


@given(st.text('{}[]",:0123456789.eE+-\\u/truefalsn \nabcd"', max_size=30))
def test_it_accepts_exactly_what_the_standard_decoder_accepts(text: str) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        value = json.loads(text, parse_constant=refuse)
        accepted = json.dumps(value, ensure_ascii=False).encode() is not None
    except ValueError:
        accepted = False
    try:
        scan(text)
    except JsonSyntaxError:
        assert not accepted
    else:
        assert accepted

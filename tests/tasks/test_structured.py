"""file.set's three formats: only the value's own characters change."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.structured import Format, format_of, set_value

JSON = """{
    "name" : "tour",
    "ports": [80, 443],
    "nested": {
        "a": 1,
        "empty": {}
    }
}
"""
TOML = """# head
title = "x" # the title
[server]
ports = [
  80, # web
  443,
]
inline = { x = 1, y = "z" }
dotted.key = 3

[[jobs]]
name = "a"
[[jobs]]
name = "b"
"""
YAML_TEXT = """# head
name: tour  # a comment
list:
  - x
  -   y: 2
      z: 3
  # below the list

flow: {p: 1, q: [1, 2]}
quoted: 'it''s'
double: "d"
literal: |
  # not a comment
  text

empty:
# before the anchor
base: &base
  shared: 1
copy: *base
last: end
"""


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("pointer", "value", "old", "new"),
    [
        ("/name", "trip", '"tour"', '"trip"'),
        ("/name", None, '"tour"', "null"),
        ("/name", 'é\n"', '"tour"', '"é\\n\\""'),
        ("/ports/1", 8443, "443", "8443"),
        ("/ports/-", 22, "443]", "443, 22]"),
        ("/ports/2", 22, "443]", "443, 22]"),
        ("/ports", [1], "[80, 443]", "[1]"),
        ("/nested/b", True, '"empty": {}', '"empty": {},\n        "b": true'),
        ("/nested/empty/k", 1, "{}", '{\n            "k": 1\n        }'),
        ("/more", {"k": [1]}, "    }\n}", '    },\n    "more": {\n        "k": [\n            1\n        ]\n    }\n}'),
        ("/nested/a", {"k": 1}, '"a": 1', '"a": {\n            "k": 1\n        }'),
    ],
)
def test_json_changes_in_one_place(pointer: str, value: Any, old: str, new: str) -> None:
    assert set_value(JSON, Format.JSON, pointer, value) == replaced(JSON, old, new)


@pytest.mark.parametrize(
    ("text", "pointer", "value", "after"),
    [
        ('{"a":1,"b":2}', "/c", 3, '{"a":1,"b":2,"c":3}'),
        ('{"a":1}', "/c", 3, '{"a":1,"c":3}'),
        ('{"a": 1}', "/c", {"d": 4}, '{"a": 1, "c": {"d": 4}}'),
        ("{}", "/c", 3, '{"c": 3}'),
        ("{ }\n", "/c~1d", 3, '{"c/d": 3}\n'),
        ("[]", "/-", 3, "[3]"),
        ("[1]", "", {"x": 1}, '{"x": 1}'),
        ('{\r\n  "a": 1\r\n}\r\n', "/b", 2, '{\r\n  "a": 1,\r\n  "b": 2\r\n}\r\n'),
        ('\ufeff{"a": 1}', "/a", 2, '\ufeff{"a": 2}'),
        ('{\n\t"a": []\n}', "/a/0", {"b": 1}, '{\n\t"a": [\n\t\t{\n\t\t\t"b": 1\n\t\t}\n\t]\n}'),
    ],
)
def test_json_is_added_to_in_the_manner_of_the_neighbours(text: str, pointer: str, value: Any, after: str) -> None:
    assert set_value(text, Format.JSON, pointer, value) == after


@pytest.mark.parametrize(
    ("form", "text", "pointer", "value"),
    [
        (Format.JSON, '{"a": 1e2, "b": "\\u0041"}', "/a", 100.0),
        (Format.JSON, '{"a": 1e2, "b": "\\u0041"}', "/b", "A"),
        (Format.JSON, '{"a":{"x":1,"y":2}}', "/a", {"y": 2, "x": 1}),
        (Format.TOML, "a = 0x10\n", "/a", 16),
        (Format.YAML, "a: ~\n", "/a", None),
        (Format.YAML, "a: 'x'\n", "/a", "x"),
    ],
)
def test_a_value_that_is_set_already_changes_nothing(form: Format, text: str, pointer: str, value: Any) -> None:
    assert set_value(text, form, pointer, value) == text


def test_equal_numbers_of_another_type_are_another_value() -> None:
    assert set_value('{"a": 1}', Format.JSON, "/a", True) == '{"a": true}'
    assert set_value('{"a": 1}', Format.JSON, "/a", 1.0) == '{"a": 1.0}'


@pytest.mark.parametrize(
    ("form", "text", "pointer", "message", "hint"),
    [
        (Format.JSON, JSON, "/nestd/a", "nothing at '/nestd'", "did you mean 'nested'?"),
        (Format.JSON, JSON, "/ports/3", "the array has 2 items", "`-` adds one"),
        (Format.JSON, JSON, "/ports/x", "items have numbers", ""),
        (Format.JSON, JSON, "/ports/-/a", "nothing at '/ports/-'", ""),
        (Format.JSON, JSON, "/name/a", "neither an object nor an array", ""),
        (Format.JSON, JSON, "/name/a/b", "nothing at '/name/a'", ""),
        (Format.JSON, '{"a": 1,\n"a": 2}', "/a", "stands there twice, on lines 1 and 2", ""),
        (Format.JSON, "{\n // no\n}", "/a", "line 2, column 2: comments are not JSON", "remove the comment"),
        (Format.TOML, TOML, "/servr/ports", "nothing at '/servr'", "did you mean 'server'?"),
        (Format.TOML, TOML, "/title", "TOML has no null", "file.edit"),
        (Format.TOML, TOML, "/server", "a table with lines of its own", "one by one"),
        (Format.TOML, TOML, "/server/dotted", "a table with lines of its own", "one by one"),
        (Format.TOML, TOML, "/jobs/0", "a table with lines of its own", "one by one"),
        (Format.TOML, TOML, "/title/x", "neither a table nor an array", ""),
        (Format.TOML, "a = \n", "/a", "not TOML", ""),
        (Format.TOML, TOML, "", "a whole TOML document", ""),
        (Format.YAML, YAML_TEXT, "/base/shared", "anchor &base", "file.edit"),
        (Format.YAML, YAML_TEXT, "/copy", "anchor &base", "file.edit"),
        (Format.YAML, YAML_TEXT, "/nam/x", "nothing at '/nam'", "did you mean 'name'?"),
        (Format.YAML, YAML_TEXT, "/name/x", "neither a mapping nor a sequence", ""),
        (Format.YAML, YAML_TEXT, "/list/4", "the array has 2 items", ""),
        (Format.YAML, "a: 1\na: 2\n", "/a", "stands there 2 times", ""),
        (Format.YAML, "a: 1\n---\na: 2\n", "/a", "not a YAML document", ""),
        (Format.YAML, "a: [1\n", "/a", "not a YAML document", ""),
        (Format.YAML, "# nothing\n", "/a", "the YAML document is empty", ""),
    ],
)
def test_what_cannot_be_set_is_refused_with_the_reason(
    form: Format, text: str, pointer: str, message: str, hint: str
) -> None:
    with pytest.raises(OperationError) as caught:
        set_value(text, form, pointer, None if "null" in message else {"new": 1} if "table" in message else 7)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("pointer", "value", "old", "new"),
    [
        ("/title", "y", '"x" #', '"y" #'),
        ("/title", [1, {"k": "v w"}], '"x"', '[1, { k = "v w" }]'),
        ("/server/ports/0", 8080, "80,", "8080,"),
        ("/server/ports/-", 22, "  443,\n", "  443,\n  22,\n"),
        ("/server/inline/y", 1.5, '"z"', "1.5"),
        ("/server/inline/new", False, '"z" }', '"z", new = false }'),
        ("/server/dotted/key", 4, "key = 3", "key = 4"),
        ("/server/new key", "n", "key = 3\n", 'key = 3\n"new key" = "n"\n'),
        ("/jobs/1/name", "c", '"b"', '"c"'),
        ("/jobs/0/more", {"k": 1}, 'name = "a"\n', 'name = "a"\nmore = { k = 1 }\n'),
        ("/jobs/-", {"name": "c"}, 'name = "b"\n', 'name = "b"\n[[jobs]]\nname = "c"\n'),
        ("/first", 1, "the title\n", "the title\nfirst = 1\n\n"),
    ],
)
def test_toml_changes_in_one_place(pointer: str, value: Any, old: str, new: str) -> None:
    assert set_value(TOML, Format.TOML, pointer, value) == replaced(TOML, old, new)


def test_toml_keeps_its_line_ends() -> None:
    assert set_value("a = 1\r\n", Format.TOML, "/b", 2) == "a = 1\r\nb = 2\r\n"


@pytest.mark.parametrize(
    ("pointer", "value", "old", "new"),
    [
        ("/name", "trip", "tour", "trip"),
        ("/name", "true", "tour", '"true"'),
        ("/name", "yes", "tour", '"yes"'),
        ("/name", "2001-01-01", "tour", '"2001-01-01"'),
        ("/name", "a: b #c", "tour", '"a: b #c"'),
        ("/name", {"k": [1, "x"]}, "tour", '{"k": [1, "x"]}'),
        ("/list/0", 1, "- x", "- 1"),
        ("/list/1/z", None, "z: 3", "z: null"),
        ("/list/1/new", "m", "z: 3\n", "z: 3\n      new: m\n"),
        ("/list/-", {"k": 1, "l": [2]}, "z: 3\n", "z: 3\n  - k: 1\n    l:\n      - 2\n"),
        ("/list", ["q"], "- x\n  -   y: 2\n      z: 3", "- q"),
        ("/list", 5, "list:\n  - x\n  -   y: 2\n      z: 3", "list: 5"),
        ("/flow/p", True, "p: 1", "p: true"),
        ("/flow/q/-", 3, "[1, 2]", "[1, 2, 3]"),
        ("/flow/r", "a, b", "[1, 2]}", '[1, 2], r: "a, b"}'),
        ("/quoted", "don't", "'it''s'", "'don''t'"),
        ("/double", "e", '"d"', '"e"'),
        ("/literal", "one\n\n  two\n", "|\n  # not a comment\n  text", "|\n  one\n\n    two"),
        ("/literal", 3, "|\n  # not a comment\n  text", "3"),
        ("/empty", 0, "empty:", "empty: 0"),
        ("/empty", {"k": 1}, "empty:", 'empty: {"k": 1}'),
        ("/new", {"k": 1}, "last: end\n", "last: end\nnew:\n  k: 1\n"),
        ("/new key: ", [], "last: end\n", 'last: end\n"new key: ": []\n'),
    ],
)
def test_yaml_changes_in_one_place(pointer: str, value: Any, old: str, new: str) -> None:
    assert set_value(YAML_TEXT, Format.YAML, pointer, value) == replaced(YAML_TEXT, old, new)


@pytest.mark.parametrize(
    ("text", "pointer", "value", "after"),
    [
        ("a: 1", "/b", 2, "a: 1\nb: 2"),
        ("a: 1\r\nb:\r\n  - 1\r\n", "/b/-", 2, "a: 1\r\nb:\r\n  - 1\r\n  - 2\r\n"),
        ("a:\n- 1\n- 2\nb: 3\n", "/a", {"k": 1}, 'a: {"k": 1}\nb: 3\n'),
        ("a:\n- 1\nb: 3\n", "/a/-", 2, "a:\n- 1\n- 2\nb: 3\n"),
        ("a: {}\n", "/a/b", 1, "a: {b: 1}\n"),
        ("a: !mine {b: 1}\nc: 2\n", "/c", 3, "a: !mine {b: 1}\nc: 3\n"),
        ("x: &a 1\ny: *a\n", "/z", 3, "x: &a 1\ny: *a\nz: 3\n"),
        ("1: one\n", "/1", "uno", "1: uno\n"),
        ("a: |\n  t\n", "/b", 1, "a: |\n  t\nb: 1\n"),
        ("a: x\n", "/a", "\x85\u2028😀", 'a: "\\u0085\\u2028😀"\n'),
        ("- a\n-\n", "/1", "b", "- a\n- b\n"),
        ("%YAML 1.2\n---\na: 1\n...\n", "/b", 2, "%YAML 1.2\n---\na: 1\nb: 2\n...\n"),
    ],
)
def test_yaml_of_every_layout_is_set(text: str, pointer: str, value: Any, after: str) -> None:
    assert set_value(text, Format.YAML, pointer, value) == after


def test_the_format_is_taken_from_the_name() -> None:
    assert [format_of(each) for each in ("a.json", "b/c.TOML", "d.yml", "e.yaml")] == ["json", "toml", "yaml", "yaml"]
    with pytest.raises(OperationError, match="does not say whether"):
        format_of("Pipfile")


plain = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=8,
)


@given(values, st.sampled_from([["k"], ["deep", 0, "x"], ["deep", 1], ["new"]]))
def test_any_value_is_read_back_from_json_and_yaml(value: Any, names: list[Any]) -> None:
    pointer = "".join(f"/{name}" for name in names)
    for form, text in ((Format.JSON, '{"k": 1, "deep": [{"x": 2}]}'), (Format.YAML, "k: 1\ndeep:\n  - x: 2\n")):
        after = set_value(text, form, pointer, value)
        found = json.loads(after) if form is Format.JSON else YAML(typ="safe", pure=True).load(after)
        for name in names:
            found = found[name]
        assert found == value


@given(values, st.sampled_from(["/k", "/new"]))
def test_any_value_is_read_back_from_toml(value: Any, pointer: str) -> None:
    after = set_value("k = 1 # one\n\n[t]\nx = 1\n", Format.TOML, pointer, value)
    assert tomllib.loads(after)[pointer[1:]] == value
    assert after.endswith("\n\n[t]\nx = 1\n")

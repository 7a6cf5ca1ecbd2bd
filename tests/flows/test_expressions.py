"""Expressions: what they give, what they refer to, and what they cannot do."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from effort import ordinarily
from hypothesis import given, settings
from hypothesis import strategies as st

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.flows.expressions import (
    LARGEST_VALUE,
    ExpressionError,
    Scope,
    as_text,
    evaluate,
    find,
    holds_expression,
    is_lone,
    references,
)
from quantum_orchestrator.tasks.operation import UNKNOWN, Unknown

SCOPE = Scope(
    inputs={
        "name": "api",
        "n": 3,
        "half": 0.5,
        "yes": True,
        "none": None,
        "list": [1, "b", {"k": "v"}],
        "map": {"a": 1},
    },
    env={"LANG": "C"},
    steps={
        "build": {"status": "succeeded", "outputs": {"a": 1, "b": "two", "items": [3]}},
        "my-step": {"status": "failed", "outputs": {"path": "p"}},
        "2nd": {"status": "skipped", "outputs": {}},
    },
    run={"id": "r1"},
    item={"file": "src/x.tar.gz"},
)


def value(text: str, scope: Scope = SCOPE) -> Any:
    return evaluate(text, scope)


def the_error(text: str, scope: Scope = SCOPE) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, scope)
    assert isinstance(caught.value, OperationError)
    return caught.value


# What expressions give.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${{ inputs.n }}", 3),
        ("${{inputs.n}}", 3),
        ("${{ inputs.half }}", 0.5),
        ("${{ inputs.yes }}", True),
        ("${{ inputs.none }}", None),
        ("${{ inputs.list }}", [1, "b", {"k": "v"}]),
        ("${{ inputs['name'] }}", "api"),
        ('${{ inputs["list"][2].k }}', "v"),
        ("${{ inputs.list[1] }}", "b"),
        ("${{ inputs.list.0 }}", 1),
        ("${{ inputs.list[-1].k }}", "v"),
        ("${{ inputs.list[:2] }}", [1, "b"]),
        ("${{ env.LANG }}", "C"),
        ("${{ run.id }}", "r1"),
        ("${{ item.file }}", "src/x.tar.gz"),
        ("${{ steps.build.status }}", "succeeded"),
        ("${{ steps.build.outputs.b }}", "two"),
        ("${{ steps.build.outputs.items }}", [3]),
        ("${{ steps.my-step.outputs.path }}", "p"),
        ("${{ steps['my-step'].outputs.path ~ '!' }}", "p!"),
        ("${{ steps.my-step.outputs.path ~ steps.2nd.status }}", "pskipped"),
        ("${{ 'steps.my-step.x' }}", "steps.my-step.x"),
    ],
)
def test_a_lone_expression_keeps_the_type_of_its_value(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x${{ inputs.n }}", "x3"),
        (" ${{ inputs.n }}", " 3"),
        ("${{ inputs.n }}${{ inputs.n }}", "33"),
        ("${{ inputs.yes }} ${{ inputs.none }} ${{ inputs.half }}", "true null 0.5"),
        ("v: ${{ inputs.map }} ${{ inputs.list }}", 'v: {"a":1} [1,"b",{"k":"v"}]'),
        ("${{ 'é' }}!", "é!"),
    ],
)
def test_with_text_around_it_becomes_text_in_the_spelling_of_json(text: str, expected: str) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$${{ inputs.n }}", "${{ inputs.n }}"),
        ("$${{ a }} ${{ inputs.n }}", "${{ a }} 3"),
        ("$$${{ a", "$${{ a"),
        ("$ {{ a }} $}}", "$ {{ a }} $}}"),
        ("{{ a }}", "{{ a }}"),
        ("{% raw %}", "{% raw %}"),
    ],
)
def test_what_is_no_expression_is_literal(text: str, expected: str) -> None:
    assert value(text) == expected


def test_lists_and_objects_are_evaluated_at_any_depth_but_for_keys() -> None:
    raw = {"a": ["${{ inputs.n }}", {"b": "x${{ inputs.n }}"}], "${{ inputs.n }}": 1, "c": None}
    assert value(raw) == {"a": [3, {"b": "x3"}], "${{ inputs.n }}": 1, "c": None}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{'a': {'b': 1}}", {"a": {"b": 1}}),
        ("{'a': {'b': {}}}", {"a": {"b": {}}}),
        ("'}}'", "}}"),
        ('"it\'s }} {"', "it's }} {"),
        ("(1, 2)", [1, 2]),
        ("1 + 2 * 3", 7),
        ("7 // 2 - 1 % 3", 2),
        ("inputs.n > 2 and not inputs.none", True),
        ("'b' in inputs.list", True),
        ("'yes' if inputs.yes else 'no'", "yes"),
        ("inputs.list is iterable", True),
        ("inputs.missing is defined", False),
        ("inputs.missing | default('d')", "d"),
        ("inputs.missing.deeper | default('d')", "d"),
        ("steps.build.outputs.nothing | default([])", []),
        ("'a' ~ 1 ~ true ~ none", "a1truenull"),
        ("inputs.list | map('string') | join('-')", '1-b-{"k":"v"}'),
        ("[{'a': {'b': 2}}] | map(attribute='a.b') | list", [2]),
        ("[3, 1, 2] | sort | reverse | list", [3, 2, 1]),
        ("[1, 2, 3] | select('odd') | list", [1, 3]),
        ("['a', 'b'] | select('in', ['b']) | list", ["b"]),
        ("[1, 2, 2] | unique | sum", 3),
        ("inputs.map | items", [["a", 1]]),
        ("inputs.map | tojson", '{"a":1}'),
        ("'[1, {\"a\": null}]' | fromjson", [1, {"a": None}]),
        ("'a,b' | split(',')", ["a", "b"]),
        ("'a\\nb\\n' | splitlines", ["a", "b"]),
        ("item.file | basename", "x.tar.gz"),
        ("item.file | dirname", "src"),
        ("item.file | stem", "x.tar"),
        ("'x' | dirname", "."),
        ("'.env' | stem", ".env"),
        ("item.file | startswith('src/')", True),
        ("item.file | endswith('.py')", False),
        ("'aXbX' | replace('X', '-', 1)", "a-bX"),
        ("range(3)", [0, 1, 2]),
        ("[range(2), range(1, 6, 2)] | map('sum') | list", [1, 9]),
        ("inputs.name | upper | length", 3),
        ("'3' | int + 1", 4),
    ],
)
def test_the_language_is_jinjas(source: str, expected: object) -> None:
    assert value("${{ " + source + " }}") == expected


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [("x", "x"), (True, "true"), (None, "null"), (3, "3"), (1.0, "1.0"), ([1, {"a": "é"}], '[1,{"a":"é"}]')],
)
def test_as_text_is_the_spelling_of_json(given_value: object, expected: str) -> None:
    assert as_text(given_value) == expected


# What goes wrong.


def test_a_missing_output_is_named_with_those_there_are() -> None:
    for text in (
        "${{ steps.build.outputs.foo }}",
        "${{ steps.build.outputs.foo ~ '' }}",
        "${{ [steps.build.outputs.foo] }}",
    ):
        error = the_error(text)
        assert error.message == "steps.build.outputs has no 'foo'; it has: a, b, items"
        assert error.expression == text[4:-3]
        assert error.expression in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${{ inputs.nope }}", "inputs has no 'nope'; it has: half,"),
        ("${{ inputs.n.x }}", "inputs.n is 3 and has no 'x'"),
        ("${{ inputs.none.x }}", "inputs.none is null and has no 'x'"),
        ("${{ inputs.name.x }}", "inputs.name is a text and has no 'x'"),
        ("${{ inputs.list[9] }}", "inputs.list has no place 9: it is a list of length 3"),
        ("${{ inputs.list.k }}", "inputs.list is a list and has no 'k'"),
        ("${{ steps.2nd.outputs.x }}", "steps.2nd.outputs has no 'x'; it is empty"),
        ("${{ steps.none.outputs }}", "steps has no 'none'; it has: 2nd, build, my-step"),
        ("${{ 1 + 'a' }}", "unsupported operand"),
        ("${{ 1 / 0 }}", "division by zero"),
        ("${{ 1e308 * 10 }}", "not finite"),
        ("${{ (-8) ** 0.5 }}", "no JSON value"),
        ("${{ {1: 2} }}", "cannot be a key"),
        ("${{ '{' | fromjson }}", "Expecting property name"),
        ("${{ 'NaN' | fromjson }}", "NaN is not JSON"),
        ("${{ inputs.list | sort }}", "not supported between"),
        ("${{ 3 | split }}", "no attribute"),
    ],
)
def test_what_cannot_be_evaluated_says_why(text: str, message: str) -> None:
    assert message in the_error(text).message


@pytest.mark.parametrize(
    "source",
    [
        "",
        "1 +",
        "inputs.n inputs.n",
        "'x",
        "x = 1",
        "{% if 1 %}",
        "inputs.",
        "|upper",
        "[1, 2",
        "import os",
        "lambda: 1",
        "f'x'",
        "inputs.n; 1",
    ],
)
def test_bad_syntax_is_refused(source: str) -> None:
    the_error("${{ " + source + " }}")


def test_an_expression_without_an_end_is_refused_where_it_begins() -> None:
    assert the_error("ab ${{ inputs.n").offset == 3
    assert the_error("ab ${{ 1 }} ${{ '}}").offset == 12


def test_item_is_missing_outside_of_for_each() -> None:
    assert "for_each" in the_error("${{ item }}", Scope()).message
    assert "for_each" in the_error("${{ item is defined }}", Scope()).message


# What is not known yet.


class NothingYet(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise Unknown(key)

    def __iter__(self) -> Iterator[str]:
        raise Unknown

    def __len__(self) -> int:
        raise Unknown


@pytest.mark.parametrize(
    "source",
    [
        "steps.x.outputs.y",
        "steps.x.outputs.y | default('d')",
        "steps.x.outputs.y is defined",
        "[1, 2] | map('join', steps.x.outputs.y) | list",
        "'a' ~ steps['x'].status",
        "run.id",
        "item.a",
        "item",
        "item ~ ''",
        "[item]",
    ],
)
def test_what_only_a_run_can_know_is_unknown(source: str) -> None:
    scope = Scope(steps=NothingYet(), run=NothingYet(), item=UNKNOWN)
    for text in ("${{ " + source + " }}", "x${{ " + source + " }}"):
        with pytest.raises(Unknown):
            evaluate(text, scope)


def test_what_is_not_needed_may_be_unknown() -> None:
    assert evaluate("${{ 1 if true else steps.x.status }}", Scope(steps=NothingYet())) == 1


# What they refer to.


def test_references_are_found_at_any_depth_without_evaluating() -> None:
    names = references(
        {
            "a": ["${{ steps.one.outputs.x }}", {"b": "t ${{ steps['two'].status ~ inputs.i }}"}],
            "c": "${{ env.E if item.f else steps.my-step.outputs['out'] }}",
            "d": "$${{ steps.literal.status }}",
            "e": "${{ inputs.list | map('join', steps.arg.status) }}",
            "f": "${{ inputs['key'][steps.index.outputs.n] }}",
            "g": 3,
        }
    )
    assert names.steps == {"one", "two", "my-step", "arg", "index"}
    assert names.inputs == {"i", "list", "key"}
    assert names.env == {"E"}
    assert names.item
    assert names.outputs == {("one", "x"), ("my-step", "out"), ("index", "n")}
    assert names.fields >= {("two", "status"), ("one", "outputs")}


def test_a_value_without_expressions_refers_to_nothing() -> None:
    assert references(["a", {"b": None}, 3]) == references("")


@pytest.mark.parametrize("source", ["steps", "steps[inputs.n].status", "steps | length", "steps[0]", "steps[item]"])
def test_a_step_is_named_literally(source: str) -> None:
    with pytest.raises(ExpressionError, match="id of a step"):
        references("${{ " + source + " }}")


def test_lone_expressions_are_told_from_texts() -> None:
    assert is_lone("${{ 1 }}")
    assert not is_lone(" ${{ 1 }}")
    assert not is_lone("${{ 1 }} and ${{ 2 }}")
    assert not is_lone("$${{ 1 }}")
    assert holds_expression("a ${{ b }}")
    assert not holds_expression("a $${{ b }}")


def test_every_part_of_a_text_has_its_offset() -> None:
    found = [(offset, type(part).__name__) for offset, part in find("ab${{ 1 }}$${{${{ ! }}c")]
    assert found == [(0, "str"), (2, "Expression"), (10, "str"), (14, "ExpressionError"), (22, "str")]


# What they cannot do.


@pytest.mark.parametrize(
    "source",
    [
        "''.__class__",
        "''['__class__']",
        "inputs.__class__",
        "inputs.list.append",
        "inputs.map.keys",
        "inputs.map.keys()",
        "inputs.name.upper()",
        "inputs.name.format(1)",
        "'{0.__class__}' | format(1)",
        "inputs.name | attr('__class__')",
        "[inputs] | map(attribute='__class__') | list",
        "[''] | map('attr', '__class__') | list",
        "[''] | map(attribute='__class__.__mro__') | first",
        "inputs | dictsort(false, '__class__') | map('upper') | map('nope') | list",
        "range.__self__",
        "range(1).__class__",
        "cycler.__init__.__globals__",
        "self",
        "self.__init__",
        "joiner()",
        "namespace()",
        "lipsum()",
        "dict()",
        "open('/etc/passwd')",
        "__import__('os')",
        "config",
        "context",
        "environment",
        "_pick",
        "inputs | random",
        "'x' | pprint",
        "'x' | safe",
        "range(*[1])",
        "range(**{})",
        "1 if range else 2",
        "inputs.name.encode.__self__",
    ],
)
def test_nothing_leads_out_of_the_values(source: str) -> None:
    the_error("${{ " + source + " }}")


def test_a_key_named_like_a_method_is_a_key() -> None:
    scope = Scope(inputs={"x": {"items": 1, "keys": 2, "__class__": 3}})
    assert evaluate("${{ [inputs.x.items, inputs.x.keys, inputs.x['__class__']] }}", scope) == [1, 2, 3]


@pytest.mark.parametrize(
    "source",
    [
        "range(10 ** 9)",
        "range(10001)",
        "'a' * 10 ** 9",
        "10 ** 9 * 'a'",
        "[0] * 10 ** 9",
        "10 ** 10 ** 10 ** 10 ** 10",
        "9 ** (9 ** 9)",
        "(2 ** 4000) * (2 ** 4000)",
        "'%999999999d' % 1",
        "('a' * 1000000) ~ ('a' * 1000000)",
        "('a' * 1000000) + ('a' * 1000000)",
        "'aaaa' * 200000 | replace('a', 'b' * 1000)",
        "'' | replace('', 'b' * 1000) | replace('', 'b' * 1000000)",
        "range(10000) | join('x' * 1000)",
        "range(1000) | map('replace', '', 'b' * 1000000) | list | length",
        "range(10000) | select('in', range(10000) | map('string') | list) | list",
        "'a' * 1000000 | list | map('join', ['b' * 1000000]) | list",
        "'1' | tojson(indent=10 ** 9)",
        "'x' | center(10 ** 9)",
        "'x' | indent(10 ** 9)",
        "[1] | batch(10 ** 9, 'x') | list",
        "(" * 100 + "1" + ")" * 100 + " + 1" * 60,
        "[" * 100 + "]" * 100,
        "-" * 3000 + "1",
        "1 " + "+ 1 " * 500,
        "inputs" + ".a" * 500,
        "1" + " " * 5000,
        "'[' * 100000 | fromjson",
        "('[' * 100000) | fromjson",
        "'9' * 5000 | int | string | fromjson + 1 ~ ('9' * 5000 | fromjson)",
    ],
)
def test_nothing_takes_much_time_or_memory(source: str) -> None:
    start = time.process_time()
    tracemalloc.start()
    try:
        the_error("${{ " + source.rstrip() + ("x" if source.endswith(" " * 10) else "") + " }}")
        assert tracemalloc.get_traced_memory()[1] < 200 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 5


def test_many_expressions_in_one_value_share_a_bound() -> None:
    with pytest.raises(ExpressionError, match="64 MiB"):
        evaluate(["${{ 'a' * 1000000 }}"] * 100, Scope())


def test_a_plain_reference_hands_on_a_value_of_any_size() -> None:
    large = "x" * (LARGEST_VALUE * 2)
    scope = Scope(steps={"a": {"outputs": {"stdout": large}}})
    assert evaluate("${{ steps.a.outputs.stdout }}", scope) == large
    assert evaluate("${{ steps.a.outputs.stdout | length }}", scope) == len(large)
    with pytest.raises(ExpressionError, match="characters"):
        evaluate("${{ steps.a.outputs.stdout | upper }}", scope)


def test_a_value_that_is_handed_on_is_not_changed() -> None:
    inputs = {"list": [3, 1, 2]}
    assert evaluate("${{ inputs.list | sort }}", Scope(inputs=inputs)) == [1, 2, 3]
    assert inputs == {"list": [3, 1, 2]}


def test_threads_evaluate_side_by_side() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: evaluate("${{ inputs.n * 2 ~ '' }}", Scope(inputs={"n": n})), range(200)))
    assert found == [str(n * 2) for n in range(200)]


def test_plain_references_cost_less_than_what_must_be_computed() -> None:
    scope = Scope(steps={f"s{n}": {"outputs": {"x": n}} for n in range(4_000)})
    plain = [f"${{{{ steps.s{n}.outputs.x }}}}" for n in range(4_000)]
    computed = [f"${{{{ steps.s{n}.outputs.x + 0 }}}}" for n in range(400)]
    start = time.thread_time()
    assert evaluate(plain, scope) == list(range(4_000))
    middle = time.thread_time()
    assert evaluate(computed, scope) == list(range(400))
    assert (middle - start) / 4_000 < (time.thread_time() - middle) / 400


FRAGMENTS = """
    ${{ }} $${{ inputs.n steps.build.outputs steps item ' " { } [ ] ( ) . | , : ~ + - * ** / // % < == and or not in
    is if else 1 2.5 'a' none true range upper default join map list [0] __class__ # {# {% %} \\
"""
fragments = st.sampled_from(FRAGMENTS.split())


@settings(max_examples=ordinarily(150, nightly=400), deadline=None)
@given(st.lists(fragments | st.text(max_size=3), max_size=14).map(" ".join))
def test_any_text_is_evaluated_or_refused(text: str) -> None:
    for candidate in (text, "${{ " + text + " }}"):
        try:
            names = references(candidate)
            found = evaluate(candidate, SCOPE)
        except ExpressionError:
            continue
        json.dumps(found, allow_nan=False)
        assert names.steps <= {"build"}

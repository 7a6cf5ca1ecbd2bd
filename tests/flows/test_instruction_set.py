"""Loading instruction sets: every fault at once, each at its place, and nothing but InvalidSet for anything."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from effort import ordinarily
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantum_orchestrator.blocks.levels import Level, why_not
from quantum_orchestrator.flows import judge, schema
from quantum_orchestrator.flows.instruction_set import (
    ErrorHandler,
    Fault,
    InstructionSet,
    InvalidSet,
    OnFailure,
    Trust,
    called_set,
    dependencies,
    load,
    load_object,
    resolve_inputs,
)

Raw = dict[str, Any]


def a_step(**keys: Any) -> Raw:
    return {"id": "a", "op": "echo", "with": {"message": "hello"}, **keys}


def a_write(name: str, path: str, **keys: Any) -> Raw:
    return {"id": name, "op": "file.write", "with": {"path": path, "content": ""}, **keys}


def a_set(*steps: object, **keys: Any) -> Raw:
    return {"name": "a set", "instructions": list(steps), **keys}


def load_raw(raw: object, **options: Any) -> InstructionSet:
    return load(json.dumps(raw, indent=1).encode(), **options)


def faults_of(document: object, **options: Any) -> list[Fault]:
    content = document if isinstance(document, bytes) else json.dumps(document, indent=1).encode()
    with pytest.raises(InvalidSet) as caught:
        load(content, file="tour.json", **options)
    assert caught.value.exit_code == 3
    return caught.value.faults


def the_fault(document: object, **options: Any) -> Fault:
    faults = faults_of(document, **options)
    assert len(faults) == 1, list(map(str, faults))
    return faults[0]


# What is loaded.


def test_a_small_set_is_loaded_with_its_defaults() -> None:
    loaded = load_raw(a_set(a_step()))
    assert loaded.name == "a set"
    assert loaded.on_failure is OnFailure.ROLLBACK
    assert loaded.instructions[0].parameters == {"message": "hello"}
    assert loaded.instructions[0].retries == 0


def test_a_set_without_instructions_does_nothing_and_is_fine() -> None:
    assert load_raw(a_set()).instructions == []


def test_every_key_of_the_format_is_taken() -> None:
    handler = {"run": [a_step(id="clean")]}
    step = a_step(
        needs=["z"],
        when="${{ inputs.really }}",
        for_each=["x", "y"],
        retries=2,
        retry_delay=[1, "5s"],
        timeout="5m",
        reads=["src/**"],
        writes=[],
        resources={"cpu": 1, "licence": 0.5},
        on_error=handler,
        undo=a_step(id="back"),
        secrets=["TOKEN"],
        description="a step",
        tags=["t"],
    )
    loaded = load_raw(
        a_set(
            a_step(id="z"),
            step,
            version=1,
            description="all of it",
            workspace="build/tour",
            inputs={"really": {"type": "boolean", "default": True}},
            env={"LANG": "C"},
            secrets=["TOKEN"],
            on_failure="keep",
            order="sequential",
            parallel=4,
            timeout="1h30m",
            trust="trusted",
            tags=["a"],
            **{"$schema": "schema.json"},
        )
    )
    instruction = loaded.instructions[1]
    assert loaded.timeout == 5400
    assert instruction.retry_delay == [1, 5]
    assert isinstance(instruction.on_error, ErrorHandler)
    assert instruction.undo is not None
    assert instruction.undo.id == "back"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(3, 3), (0.5, 0.5), ("250ms", 0.25), ("5m", 300), ("1h30m", 5400), ("90s", 90), ("1d", 86400), ("1.5h", 5400)],
)
def test_durations_are_seconds_or_texts(written: object, seconds: float) -> None:
    assert load_raw(a_set(a_step(timeout=written))).instructions[0].timeout == seconds


@pytest.mark.parametrize("written", ["5 minutes", "", "m5", "1m1h", "-1s", -1, True, [], "1e3s", "400d", 10**9, "٣s"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    assert the_fault(a_set(a_step(timeout=written))).pointer == "/instructions/0/timeout"


def test_a_byte_order_mark_is_tolerated() -> None:
    assert load(b"\xef\xbb\xbf" + json.dumps(a_set(a_step())).encode()).name == "a set"


def test_a_loaded_set_can_be_written_and_loaded_again() -> None:
    loaded = load_raw(a_set(a_step(timeout="5m", on_error={"run": [a_step(id="x")]}), on_failure="keep"))
    assert load_object(loaded.model_dump(mode="json", by_alias=True)) == loaded
    assert load_object(loaded.model_dump(mode="json", by_alias=True, exclude_defaults=True)) == loaded


# What is no document.


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (b"", (1, 1), "the document is empty"),
        (b" \n\t", (1, 1), "the document is empty"),
        (b'{\n "name": "\xff"}', (2, 11), "byte 0xff is not UTF-8"),
        ('{"name": "x"}'.encode("utf-16"), (1, 1), "UTF-16"),
        (b'{"name": "x",}', (1, 13), "trailing comma"),
        (b"hello", (1, 1), "expected a value"),
        (b"[1]", (1, 1), "is a JSON object"),
        (b'"text"', (1, 1), "is a JSON object"),
        (b'{"name": "x",\n "parallel": NaN}', (2, 14), "NaN is not JSON"),
        (b'{"name": "x", "parallel": -Infinity}', (1, 27), "Infinity is not JSON"),
        (b'{"name": "\\ud800", "instructions": []}', (1, 11), "surrogate"),
        (b"[" * 10_000, (1, 65), "deeper than 64"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, (1, 321), "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, (1, 321), "deeper than 64"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(content: bytes, place: tuple[int, int], message: str) -> None:
    fault = the_fault(content)
    assert (fault.line, fault.column) == place
    assert message in str(fault)


def test_a_document_over_16_mib_is_refused() -> None:
    assert "16 MiB" in str(the_fault(b" " * (16 * 1024 * 1024 + 1)))


def test_sixty_four_levels_are_fine() -> None:
    value: object = 1
    for _ in range(64 - 5):  # the set, its instructions, the step, `with`, and `inputs` are around it
        value = [value]
    declared = {"x": {}}
    called = {"set": a_set(inputs=declared), "inputs": {"x": value}}
    assert load_raw(a_set({"id": "a", "op": "call", "with": called}))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "9223372036854775809"])
def test_numbers_without_bounds_are_refused(number: str) -> None:
    fault = the_fault(f'{{"name": "x", "instructions": [],\n "timeout": {number}}}'.encode())
    assert (fault.line, fault.column, fault.pointer) == (2, 13, "/timeout")
    assert "too large" in fault.message


def test_duplicate_keys_are_faults_at_the_second_one_beside_all_others() -> None:
    faults = faults_of(b'{"name": "x",\n "name": "y",\n "instructions": 3}')
    assert [(each.line, each.column, each.pointer) for each in faults] == [(2, 2, "/name"), (3, 18, "/instructions")]
    assert faults[0].message == "key 'name' is there twice"
    assert faults[0].hint == "the first one is in line 1"


def test_a_duplicate_within_what_a_later_duplicate_replaces_has_a_place() -> None:
    content = b'{"name": "x", "instructions": [],\n "env": {"A": "1",\n  "A": "2"}, "env": {}}'
    assert [each.line for each in faults_of(content)] == [3, 3]


# How faults are shown.


def test_a_fault_reads_as_the_design_says() -> None:
    content = b"""{
  "name": "tour",
  "instructions": [
    {"id": "a", "op": "echo", "with": {"message": "x"}},
    {"id": "b", "op": "file.wirte"}
  ]
}"""
    with pytest.raises(InvalidSet) as caught:
        load(content, file="tour.json")
    assert str(caught.value) == (
        "tour.json:5:23 /instructions/1/op: unknown operation 'file.wirte'; did you mean 'file.write'?"
    )
    assert caught.value.as_json() == [
        {
            "file": "tour.json",
            "line": 5,
            "column": 23,
            "pointer": "/instructions/1/op",
            "message": "unknown operation 'file.wirte'",
            "hint": "did you mean 'file.write'?",
        }
    ]


def test_every_fault_is_reported_at_once_in_the_order_of_the_document() -> None:
    faults = faults_of(
        a_set(
            a_write("one", "../x"),
            a_step(id="two", retries="3", needs=["three", "won"]),
            a_step(id="two", op="ecko"),
            a_step(id="four", **{"with": {"message": "${{ inputs.nam }} ${{ steps.one.outputs.sha }} ${{ 1 + }}"}}),
            paralel=3,
            inputs={"name": {"type": "string"}},
        )
    )
    assert [each.pointer for each in faults] == [
        "/instructions/0/with/path",
        "/instructions/1/retries",
        "/instructions/1/needs/0",
        "/instructions/1/needs/1",
        "/instructions/2/id",
        "/instructions/2/op",
        "/instructions/3/with/message",
        "/instructions/3/with/message",
        "/instructions/3/with/message",
        "/paralel",
    ]
    assert faults == sorted(faults, key=lambda each: (each.line, each.column))


def test_an_object_has_faults_with_pointers_and_without_lines() -> None:
    with pytest.raises(InvalidSet) as caught:
        load_object(a_set(a_step(retries="3"), a_step(op="ecko"), paralel=3))
    pointers = ["/instructions/0/retries", "/instructions/1/id", "/instructions/1/op", "/paralel"]
    assert [each.pointer for each in caught.value.faults] == pointers
    assert {(each.line, each.column) for each in caught.value.faults} == {(0, 0)}
    assert str(caught.value).startswith("<object> /instructions/0/retries: expected a whole number, found text '3'")


@pytest.mark.parametrize("value", [object(), {"name": {1, 2}}, float("nan"), a_set(timeout=float("inf")), [], None, 3])
def test_an_object_that_is_no_set_is_refused(value: object) -> None:
    with pytest.raises(InvalidSet):
        load_object(value)


def test_an_object_that_contains_itself_or_is_too_deep_is_refused() -> None:
    circle: Raw = a_set()
    circle["env"] = circle
    deep: Raw = {}
    for _ in range(5_000):
        deep = {"x": deep}
    for value in (circle, deep):
        with pytest.raises(InvalidSet):
            load_object(value)


def test_an_object_is_copied_and_left_alone() -> None:
    raw = a_set({"id": "a", "op": "call", "with": {"set": a_set(a_step())}})
    before = copy.deepcopy(raw)
    load_object(raw, trust=Trust.UNTRUSTED)
    assert raw == before


def test_of_very_many_faults_the_first_thousand_are_listed() -> None:
    faults = faults_of(a_set(*(a_step(id=f"s{n}", op="nothing.there") for n in range(3_000))))
    assert len(faults) == 1_001
    assert "1000 faults or more" in faults[-1].message


def test_a_huge_value_is_cut_in_messages() -> None:
    assert len(str(the_fault(a_set(a_step(on_error="x" * 100_000))))) < 300


# Shape.


@pytest.mark.parametrize(
    ("keys", "pointer", "message"),
    [
        ({"version": 2}, "/version", "expected number 1, found number 2"),
        ({"version": True}, "/version", "expected number 1, found true"),
        ({"name": ""}, "/name", "expected at least 1 character, found 0"),
        ({"name": "x" * 101}, "/name", "expected at most 100 characters, found 101"),
        ({"name": "a/b"}, "/name", "must be readable: not blank, no '/', no control characters"),
        ({"name": "  "}, "/name", "must be readable"),
        ({"name": "a\nb"}, "/name", "must be readable"),
        ({"name": "ab\n"}, "/name", ""),
        ({"name": "a\u202eb"}, "/name", "must be readable"),
        ({"name": 3}, "/name", "expected text, found number 3"),
        (
            {"on_failure": "rolback"},
            "/on_failure",
            "expected 'rollback', 'keep' or 'pause' or an object",
        ),
        ({"parallel": 0}, "/parallel", "expected at least 1, found number 0"),
        ({"parallel": "two"}, "/parallel", "expected a whole number or 'auto', found text 'two'"),
        ({"parallel": 1.5}, "/parallel", "expected a whole number or 'auto', found number 1.5"),
        ({"tags": "x"}, "/tags", "expected a list, found text 'x'"),
        ({"env": {"A": 1}}, "/env/A", "expected text, found number 1"),
        ({"env": {"A B": ""}}, "/env/A B", "'A B' may have only letters, digits and '_', and begins with no digit"),
        ({"env": {"A": "${{ inputs.x }}"}}, "/env/A", "expressions are not evaluated here"),
        ({"env": {"A": "x\0y"}}, "/env/A", "NUL"),
        ({"secrets": ["a-b"]}, "/secrets/0", "may have only letters"),
        ({"inputs": {"1": {}}}, "/inputs/1", "may have only letters"),
        ({"inputs": {"x": 3}}, "/inputs/x", "expected an object, found number 3"),
        ({"workspace": "../up"}, "/workspace", "'..' leads out of the workspace"),
        ({"workspace": "/tmp"}, "/workspace", "absolute"),
        ({"instructions": {}}, "/instructions", "expected a list, found an object"),
        ({"instructions": [3]}, "/instructions/0", "expected an object, found number 3"),
        ({"sandbox": 3}, "/sandbox", "unknown key 'sandbox'"),
        ({"descripton": ""}, "/descripton", "unknown key 'descripton'"),
        ({"$schema": 3}, "/$schema", "expected text, found number 3"),
    ],
)
def test_a_wrong_set_is_refused(keys: Raw, pointer: str, message: str) -> None:
    fault = the_fault(a_set(**keys))
    assert fault.pointer == pointer
    assert message in fault.message


@pytest.mark.parametrize(
    ("keys", "pointer", "message"),
    [
        ({"id": "A b"}, "/id", "text 'A b' may have only a-z, 0-9, '_' and '-'"),
        ({"id": 3}, "/id", "expected text, found number 3"),
        ({"op": 3}, "/op", "expected text, found number 3"),
        ({"with": 3}, "/with", "expected an object, found number 3"),
        ({"with": {}}, "/with", "'message' is missing"),
        ({"with": {"message": 3}}, "/with/message", "expected text, found number 3"),
        ({"with": {"message": "", "mesage": ""}}, "/with/mesage", "unknown key 'mesage'"),
        ({"needs": "b"}, "/needs", "expected a list, found text 'b'"),
        ({"needs": [3]}, "/needs/0", "expected text, found number 3"),
        ({"when": "inputs.x"}, "/when", "is no expression; write ${{ … }} around it"),
        ({"when": 1}, "/when", "expected an expression or true or false, found number 1"),
        ({"when": "${{ 1 }} and ${{ 2 }}"}, "/when", "expected one expression and nothing around it"),
        ({"for_each": 3}, "/for_each", "expected a list or an expression, found number 3"),
        ({"for_each": "x"}, "/for_each", "is no expression"),
        ({"for_each": "${{ [1] }} "}, "/for_each", "is no expression"),
        ({"retries": -1}, "/retries", "expected at least 0, found number -1"),
        ({"retries": 1.5}, "/retries", "expected a whole number, found number 1.5"),
        ({"retry_delay": ["1s", "soon"]}, "/retry_delay/1", "text 'soon' is no duration"),
        ({"resources": {"cpu": 0}}, "/resources/cpu", "expected more than 0, found number 0"),
        ({"on_error": "ignore"}, "/on_error", "expected 'fail' or 'continue' or an object, found text 'ignore'"),
        ({"on_error": {"run": [], "runs": []}}, "/on_error/runs", "unknown key 'runs'"),
        ({"on_error": {"run": {}}}, "/on_error/run", "expected a list, found an object"),
        ({"undo": []}, "/undo", "expected an object, found a list"),
        ({"reads": ["/etc/**"]}, "/reads/0", "absolute"),
        ({"writes": ["../**"]}, "/writes/0", "'..' leads out"),
        ({"writes": ["${{ inputs.x }}"]}, "/writes/0", "expressions are not evaluated here"),
        ({"writes": [""]}, "/writes/0", "expected at least 1 character, found 0"),
        ({"secrets": ["TOKEN"]}, "/secrets/0", "secret 'TOKEN' is not declared"),
        ({"cache": "yes"}, "/cache", "true or false"),
        ({"opp": "echo"}, "/opp", "unknown key 'opp'"),
        ({"op": "ecko"}, "/op", "unknown operation 'ecko'"),
    ],
)
def test_a_wrong_instruction_is_refused(keys: Raw, pointer: str, message: str) -> None:
    fault = the_fault(a_set(a_step(**keys)))
    assert fault.pointer == f"/instructions/0{pointer}"
    assert message in fault.message


@pytest.mark.parametrize("missing", ["id", "op", "with"])
def test_a_missing_key_is_named_at_the_instruction(missing: str) -> None:
    step = a_step()
    del step[missing]
    fault = the_fault(a_set(step))
    assert fault.pointer == "/instructions/0"
    assert "is missing" in fault.message


@pytest.mark.parametrize("missing", ["name", "instructions"])
def test_a_set_needs_a_name_and_instructions(missing: str) -> None:
    raw = a_set()
    del raw[missing]
    assert the_fault(raw).message == f"{missing!r} is missing"


@pytest.mark.parametrize(
    ("op", "hint"),
    [
        ("file.wirte", "did you mean 'file.write'?"),
        ("llm.genrate", "did you mean 'llm.generate'?"),
        ("zzzzzzzzz", "`qo ops` lists the operations"),
    ],
)
def test_an_unknown_operation_comes_with_a_hint(op: str, hint: str) -> None:
    assert the_fault(a_set({"id": "a", "op": op})).hint == hint


def test_keys_for_what_is_not_a_sets_to_say_are_refused_with_a_hint() -> None:
    assert "`[sandbox]` in policy.toml" in the_fault(a_set(sandbox=1)).hint


def test_what_cannot_be_reused_says_so() -> None:
    assert the_fault(a_set(a_step(cache=True))).message == "echo is never reused"


# Ids, needs, cycles.


def test_an_id_is_there_once() -> None:
    fault = the_fault(a_set(a_step(), a_step()))
    assert fault.pointer == "/instructions/1/id"
    assert fault.hint == "the first one is /instructions/0"


def test_needs_name_steps_of_the_same_list() -> None:
    fault = the_fault(a_set(a_step(id="build"), a_step(needs=["biuld"])))
    assert (fault.pointer, fault.hint) == ("/instructions/1/needs/0", "did you mean 'build'?")


def test_a_later_step_may_be_needed() -> None:
    assert load_raw(a_set(a_step(needs=["b"]), a_step(id="b")))


def test_a_cycle_of_needs_and_references_is_printed() -> None:
    fault = the_fault(
        a_set(
            a_step(id="one", needs=["three"]),
            a_step(id="two", **{"with": {"message": "${{ steps.one.status }}"}}),
            a_step(id="three", when="${{ steps.two.status == 'succeeded' }}"),
        )
    )
    assert fault.pointer == "/instructions/0"
    assert "one → three → two → one" in fault.message


def test_a_step_that_waits_for_itself_is_a_cycle() -> None:
    assert "a → a waits for itself" in the_fault(a_set(a_step(needs=["a"]))).message


def test_every_cycle_is_reported() -> None:
    steps = [a_step(id=a, needs=[b]) for a, b in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"))]
    assert [each.pointer for each in faults_of(a_set(*steps))] == ["/instructions/0", "/instructions/2"]


def test_a_reference_in_an_error_handler_is_a_dependency() -> None:
    handler = {"run": [a_step(id="x", **{"with": {"message": "${{ steps.b.status }} ${{ steps.x.status }}"}})]}
    assert "a → b → a" in faults_of(a_set(a_step(on_error=handler), a_step(id="b", needs=["a"])))[0].message


def test_ten_thousand_steps_in_a_chain_are_fine() -> None:
    steps = [a_step(id=f"s{n}", needs=[f"s{n - 1}"] if n else []) for n in range(10_000)]
    assert len(load_raw(a_set(*steps)).instructions) == 10_000


def test_dependencies_are_needs_and_references_also_of_inner_instructions() -> None:
    says = lambda name, text: a_step(id=name, **{"with": {"message": text}})  # noqa: E731
    loaded = load_raw(
        a_set(
            *(a_step(id=name) for name in ("n", "p", "w", "f", "h", "u")),
            a_step(
                id="it",
                needs=["n"],
                when="${{ steps.w.status }}",
                for_each="${{ [steps.f.status] }}",
                on_error={"run": [says("own", "${{ steps.h.status }}"), says("b", "${{ steps.own.status }}")]},
                undo=says("back", "${{ steps.u.status }} ${{ steps.it.status }}"),
                **{"with": {"message": "${{ steps.p.status }}"}},
            ),
        )
    )
    assert dependencies(loaded.instructions[-1]) == {"n", "p", "w", "f", "h", "u"}


# Paths.


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", ".git/config", "a//b", "C:\\x", "", ".", "a/", "x\0"])
def test_paths_are_judged_by_their_spelling(path: str) -> None:
    fault = the_fault(a_set(a_write("a", path)))
    assert fault.pointer == "/instructions/0/with/path"


def test_a_path_with_an_expression_is_judged_when_it_is_known() -> None:
    step = a_write("a", "${{ inputs.x }}/y")
    assert load_raw(a_set(step, inputs={"x": {"type": "string", "default": ".."}}))


def test_a_folder_may_be_the_workspace_itself() -> None:
    assert load_raw(a_set({"id": "a", "op": "file.list", "with": {"path": "."}}))


@pytest.mark.parametrize(
    ("one", "other"),
    [("README.md", "Readme.md"), ("src/a", "Src/b"), ("straße", "STRASSE"), ("ﬁle", "file")],
)
def test_paths_that_some_systems_cannot_hold_apart_are_refused(one: str, other: str) -> None:
    fault = the_fault(a_set(a_write("a", one), a_write("b", other)))
    assert fault.pointer == "/instructions/1/with/path"
    assert "differ only in letter case or Unicode form" in fault.message
    assert "/instructions/0/with/path" in fault.hint


def test_paths_collide_also_with_those_of_called_sets_and_handlers() -> None:
    called = {"id": "c", "op": "call", "with": {"set": a_set(a_write("x", "A"))}}
    assert the_fault(a_set(a_write("a", "a"), called)).pointer == "/instructions/1/with/set/instructions/0/with/path"
    handled = a_step(id="c", on_error={"run": [a_write("x", "A")]})
    assert the_fault(a_set(a_write("a", "a"), handled)).pointer == "/instructions/1/on_error/run/0/with/path"


# Expressions.


def message_step(text: str, **keys: Any) -> Raw:
    return a_step(id="m", **{"with": {"message": text}}, **keys)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("${{ steps.bulid.status }}", "there is no step 'bulid'", "did you mean 'build'?"),
        ("${{ steps['bulid'].status }}", "there is no step 'bulid'", "did you mean 'build'?"),
        ("${{ steps.build.output }}", "a step has no 'output'", "did you mean 'outputs'?"),
        (
            "${{ steps.build.outputs.sha }}",
            "steps.build.outputs has no 'sha'; it has: bytes, sha256",
            "did you mean 'sha256'?",
        ),
        ("${{ steps.many.outputs.sha256 }}", "steps.many.outputs is a list", "as in steps.many.outputs[0].sha256"),
        ("${{ inputs.nmae }}", "input 'nmae' is not declared", "did you mean 'name'?"),
        ("${{ env.HOME }}", "env 'HOME' is not declared", "declare it in the set's `env`"),
        ("${{ item }}", "item is known only in a step with for_each", "give the step a for_each"),
        ("${{ secrets.TOKEN }}", "secrets are never expressions", "name them in the step's `secrets`"),
        ("${{ inptus.name }}", "unknown name 'inptus'", "did you mean 'inputs'?"),
        ("${{ inputs.name | uper }}", "unknown filter 'uper'", "did you mean 'upper'?"),
        ("${{ 1 + }}", "bad expression: unexpected end", "in ${{ 1 + }}"),
        ("${{ inputs.name", "the expression that begins here has no end", "close it with }}"),
        ("${{ }}", "the expression is empty", ""),
    ],
)
def test_a_wrong_expression_is_refused(text: str, message: str, hint: str) -> None:
    steps = (a_write("build", "x"), a_write("many", "y", for_each=[1]), message_step(text))
    fault = the_fault(a_set(*steps, inputs={"name": {"type": "string"}}))
    assert fault.pointer == "/instructions/2/with/message"
    assert message in fault.message
    assert hint in fault.hint


def test_a_fault_in_an_expression_stands_where_the_expression_begins() -> None:
    content = rb"""{"name": "x", "instructions": [{"id": "a", "op": "echo", "with":
  {"message": "\n\u00e9 \ud83d\ude00 ${{ 1 }} ${{ oops }}"}}]}"""
    fault = the_fault(content)
    assert (fault.line, fault.column) == (2, content.split(b"\n")[1].index(b"${{ oops") + 1)


def test_item_is_known_where_for_each_is() -> None:
    says_item = message_step("${{ item }}")
    assert load_raw(a_set(message_step("${{ item }}", for_each=[1], on_error={"run": [says_item]}, undo=says_item)))
    fault = the_fault(a_set(message_step("", for_each="${{ [item] }}")))
    assert fault.pointer == "/instructions/0/for_each"


def test_an_expression_may_stand_where_a_number_is_expected() -> None:
    assert load_raw(a_set({"id": "w", "op": "wait", "with": {"seconds": "${{ 1 + 1 }}"}}))
    assert the_fault(a_set({"id": "w", "op": "wait", "with": {"seconds": "1"}})).message == (
        "expected a number, found text '1'"
    )


def test_an_escaped_expression_is_plain_text() -> None:
    assert load_raw(a_set(message_step("$${{ whatever }}")))


# Inputs.


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "strin"}, "/type"),
        ({"type": "integer", "default": "x"}, "/default"),
        ({"minimum": "x"}, "/minimum"),
        ({"pattern": "("}, "/pattern"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "/$ref"),
        ({"$ref": "#"}, "/$ref"),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, "/properties/a/$dynamicRef"),
        ({"type": "object", "default": {"a": 1}, "properties": {"a": {"type": "string"}}}, "/default/a"),
    ],
)
def test_an_input_is_a_json_schema_that_stands_on_its_own(schema: Raw, pointer: str) -> None:
    assert the_fault(a_set(inputs={"x": schema})).pointer == f"/inputs/x{pointer}"


def test_data_in_an_input_may_look_like_a_reference() -> None:
    assert load_raw(a_set(inputs={"x": {"type": "object", "default": {"$ref": "#/x"}}}))


def inputs_of(**inputs: Raw) -> InstructionSet:
    return load_raw(a_set(inputs=inputs))


def test_inputs_have_defaults() -> None:
    document = inputs_of(a={"type": "string", "default": "x"}, b={"type": "integer"})
    assert resolve_inputs(document, {"b": 3}) == {"a": "x", "b": 3}
    assert resolve_inputs(document, {"b": 3, "a": "y"}) == {"a": "y", "b": 3}


def test_every_fault_in_given_inputs_is_reported() -> None:
    document = inputs_of(name={"type": "string"}, count={"type": "integer", "description": "how many"})
    with pytest.raises(InvalidSet) as caught:
        resolve_inputs(document, {"nmae": "x", "count": "3"})
    assert [str(each) for each in caught.value.faults] == [
        "inputs /nmae: unknown input 'nmae'; did you mean 'name'?",
        "inputs: input 'name' is missing; it is text",
        "inputs /count: expected a whole number, found text '3'",
    ]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "integer"}, "3", 3),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "boolean"}, "true", True),
        ({"type": "array"}, '["a"]', ["a"]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": ["integer", "string"]}, "3", 3),
        ({"type": ["integer", "string"]}, "x", "x"),
        ({"type": ["integer", "null"]}, "null", None),
        ({"enum": [1, 2]}, "2", 2),
        ({"enum": ["1", 2]}, "1", "1"),
        ({}, "3", "3"),
    ],
)
def test_texts_of_a_command_line_become_the_inputs_type(schema: Raw, text: str, value: object) -> None:
    found = resolve_inputs(inputs_of(x=schema), {"x": text}, texts=True)
    assert found == {"x": value}
    assert type(found["x"]) is type(value)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer"}, "three"),
        ({"type": "integer"}, "1.5"),
        ({"type": "boolean"}, "yes"),
        ({"type": "array"}, "[1"),
        ({"type": "array"}, "[" * 100_000),
        ({"type": "number"}, "NaN"),
        ({"type": "string", "enum": ["a"]}, "b"),
        ({"type": "string", "format": "date"}, "tomorrow"),
    ],
)
def test_a_text_that_does_not_fit_the_input_is_refused(schema: Raw, text: str) -> None:
    with pytest.raises(InvalidSet):
        resolve_inputs(inputs_of(x=schema), {"x": text}, texts=True)


# Calls.


def a_call(**parameters: Any) -> Raw:
    return {"id": "c", "op": "call", "with": parameters}


def write(folder: Path, name: str, raw: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(raw))
    return path


def test_a_called_set_is_judged_like_any_other() -> None:
    faults = faults_of(a_set(a_call(set=a_set(a_step(op="ecko"), extra=1))))
    assert [each.pointer for each in faults] == [
        "/instructions/0/with/set/instructions/0/op",
        "/instructions/0/with/set/extra",
    ]


def test_expressions_of_a_called_set_mean_its_own_steps_and_inputs() -> None:
    inner = a_set(a_step(), message_step("${{ steps.a.status }} ${{ inputs.x }}"), inputs={"x": {"default": 1}})
    loaded = load_raw(a_set(a_call(set=inner)))
    assert dependencies(loaded.instructions[0]) == frozenset()
    assert the_fault(a_set(a_step(id="outer"), a_call(set=a_set(message_step("${{ steps.outer.status }}"))))).pointer


def test_a_called_file_is_read_in(tmp_path: Path) -> None:
    write(tmp_path, "lib/inner.json", a_set(a_call(file="deeper.json"), name="inner"))
    write(tmp_path, "lib/deeper.json", a_set(a_step(), name="deeper", **{"$schema": "x"}))
    loaded = load_raw(a_set(a_call(file="lib/inner.json")), folder=tmp_path)
    inner = called_set(loaded.instructions[0])
    assert inner.name == "inner"
    assert "file" not in loaded.instructions[0].parameters
    assert called_set(inner.instructions[0]).name == "deeper"
    again = load_object(loaded.model_dump(mode="json", by_alias=True))
    assert again == loaded  # it needs the files no more


def test_faults_in_a_called_file_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "inner.json", a_set(a_step(op="ecko")))
    fault = the_fault(a_set(a_call(file="inner.json")), folder=tmp_path)
    assert (fault.file, fault.pointer, fault.line) == (str(path), "/instructions/0/op", 1)
    path.write_text("{")
    assert the_fault(a_set(a_call(file="inner.json")), folder=tmp_path).file == str(path)


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "nothing.json", "${{ inputs.x }}", "link.json", "folder"])
def test_a_file_that_cannot_be_called_is_refused(tmp_path: Path, name: str) -> None:
    sets = tmp_path / "sets"
    write(sets, "folder/x.json", a_set())
    write(tmp_path, "x.json", a_set())
    (sets / "link.json").symlink_to(tmp_path / "x.json")
    raw = a_set(a_call(file=name), inputs={"x": {"default": "x"}})
    assert the_fault(raw, folder=sets).pointer == "/instructions/0/with/file"


def test_a_set_without_a_folder_calls_no_files() -> None:
    assert "has no files beside it" in the_fault(a_set(a_call(file="x.json"))).message


def test_sets_that_call_each_other_are_refused_with_the_chain(tmp_path: Path) -> None:
    first = write(tmp_path, "one.json", a_set(a_call(file="two.json")))
    write(tmp_path, "two.json", a_set(a_call(file="one.json")))
    with pytest.raises(InvalidSet) as caught:
        load(first.read_bytes(), file=str(first), folder=tmp_path)
    assert "sets call each other: one.json → two.json → one.json" in str(caught.value)


def test_calls_that_multiply_are_bounded(tmp_path: Path) -> None:
    for n in range(12):
        calls = [{**a_call(file=f"{n + 1}.json"), "id": f"c{k}"} for k in range(2)]
        write(tmp_path, f"{n}.json", a_set(*calls))
    write(tmp_path, "12.json", a_set())
    assert "more than 1000 times" in faults_of(a_set(a_call(file="0.json")), folder=tmp_path)[0].message


@pytest.mark.parametrize(
    ("given", "pointer", "message"),
    [
        ({}, "/inputs", "input 'n' is missing"),
        ({"n": "x"}, "/inputs/n", "expected a whole number"),
        ({"n": 1, "m": 2}, "/inputs/m", "unknown input 'm'"),
    ],
)
def test_the_inputs_of_a_call_are_checked(given: Raw, pointer: str, message: str) -> None:
    called = a_set(inputs={"n": {"type": "integer"}})
    fault = the_fault(a_set(a_call(set=called, inputs=given)))
    assert fault.pointer == f"/instructions/0/with{pointer}"
    assert message in fault.message


def test_an_input_of_a_call_may_be_an_expression() -> None:
    called = a_set(inputs={"n": {"type": "integer"}})
    loaded = load_raw(a_set(a_step(), a_call(set=called, inputs={"n": "${{ steps.a.outputs.message | length }}"})))
    assert dependencies(loaded.instructions[1]) == {"a"}


@pytest.mark.parametrize("parameters", [{}, {"set": {}, "file": "x"}])
def test_a_call_names_exactly_one_set(parameters: Raw, tmp_path: Path) -> None:
    assert any("`set` or `file`" in each.message for each in faults_of(a_set(a_call(**parameters)), folder=tmp_path))


# Trust.


@pytest.mark.parametrize(
    "step",
    [
        {"id": "a", "op": "script.run", "with": {"argv": ["true"]}},
        {"id": "a", "op": "quality.test", "with": {"argv": ["true"]}},
    ],
)
@pytest.mark.parametrize("around", [lambda step: a_set(step), lambda step: a_set(a_call(set=a_set(step)))])
@pytest.mark.usefixtures("no_namespaces")
def test_an_untrusted_set_starts_no_programs_where_level_3_does_not_work(
    step: Raw, around: Callable[[Raw], Raw]
) -> None:
    assert load_raw(around(step))
    for raw, options in (({**around(step), "trust": "untrusted"}, {}), (around(step), {"trust": Trust.UNTRUSTED})):
        fault = the_fault(raw, **options)
        assert fault.pointer.endswith("/instructions/0/op")
        assert "sandbox level 3" in fault.message
        assert "no namespaces" in fault.hint


@pytest.mark.skipif(bool(why_not(Level.BUBBLEWRAP)), reason=why_not(Level.BUBBLEWRAP))
def test_an_untrusted_set_starts_programs_where_level_3_works() -> None:
    step = {"id": "a", "op": "script.run", "with": {"argv": ["true"]}}
    assert load_raw(a_set(step), trust=Trust.UNTRUSTED).trust is Trust.UNTRUSTED


def test_a_document_cannot_claim_more_trust_than_its_source_has(tmp_path: Path) -> None:
    write(tmp_path, "x.json", a_set(trust="trusted"))
    raw = a_set(a_call(set=a_set(trust="trusted")), {**a_call(file="x.json"), "id": "d"}, trust="trusted")
    loaded = load_raw(raw, trust=Trust.UNTRUSTED, folder=tmp_path)
    assert loaded.trust is Trust.UNTRUSTED
    assert {called_set(each).trust for each in loaded.instructions} == {Trust.UNTRUSTED}


def test_an_untrusted_set_gets_no_secrets() -> None:
    raw = a_set(a_step(secrets=["TOKEN"]), secrets=["TOKEN"])
    assert load_raw(raw)
    assert [each.pointer for each in faults_of(raw, trust=Trust.UNTRUSTED)] == ["/secrets/0"]


def test_an_untrusted_set_brings_no_patterns() -> None:
    raw = a_set(inputs={"x": {"type": "string", "pattern": "(a+)+$"}})
    assert load_raw(raw)
    assert the_fault(raw, trust=Trust.UNTRUSTED).pointer == "/inputs/x/pattern"


# Anything at all.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=ordinarily(60, nightly=200), deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), json_values.map(lambda value: json.dumps(value).encode()), st.text().map(str.encode)
    )
)
def test_any_bytes_are_loaded_or_refused_as_invalid(content: bytes) -> None:
    with pytest.raises(InvalidSet) as caught:
        load(content)
    assert all(each.line >= 1 and each.column >= 1 and each.message for each in caught.value.faults)


VALID = a_set(
    a_write("one", "src/one.txt", retries=1, retry_delay=["1s", 2], timeout="5m", reads=["src/**"]),
    a_step(id="two", needs=["one"], when="${{ steps.one.status == 'succeeded' }}", for_each=[1, "${{ inputs.n }}"]),
    a_step(id="three", on_error={"run": [a_step(id="x"), a_write("y", "b")]}, undo=a_step(id="z"), secrets=["S"]),
    {"id": "four", "op": "file.edit", "with": {"path": "a", "edits": [{"find": "${{ env.A }}", "replace": "b"}]}},
    a_call(set=a_set(message_step("${{ inputs.k }}"), inputs={"k": {"type": "integer"}}), inputs={"k": 3}),
    {"id": "six", "op": "script.run", "with": {"argv": ["true"], "env": {"A": "b"}}, "resources": {"cpu": 1}},
    version=1,
    inputs={"n": {"type": "integer", "default": 3, "description": "n"}},
    env={"A": "b"},
    secrets=["S"],
    workspace="build",
    parallel=2,
)


def nodes_of(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(node for key, child in children for node in nodes_of(child, (*path, key)))]


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def exists(value: Any, pointer: str) -> bool:
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return False
    return True


def faults_if_any(raw: object) -> list[Fault]:
    try:
        load_raw(raw)
    except InvalidSet as invalid:
        return invalid.faults or pytest.fail("refused without a reason")
    return []


texts = st.sampled_from(["a", "${{ ", "${{ steps.one.outputs.sha256 }}", "${{ 1 }}", "two", "../x", "", "A/b", "echo"])
replacements = json_values | texts


@settings(max_examples=ordinarily(40, nightly=250), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_mutated_set_is_loaded_or_refused_with_faults_that_point_into_it(data: st.DataObject) -> None:
    raw: Any = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(nodes_of(raw)[1:] or [()]))
        if not path:
            break
        parent, key = at(raw, path[:-1]), path[-1]
        kind = data.draw(st.sampled_from(["delete", "replace", "insert"]))
        if kind == "delete":
            del parent[key]
        elif kind == "replace" or isinstance(parent, dict):
            name = key if kind == "replace" else data.draw(st.text(max_size=5) | st.sampled_from(["id", "set", "op"]))
            parent[name] = data.draw(replacements)
        else:
            parent.insert(int(key), data.draw(replacements))
    for fault in faults_if_any(raw):
        assert fault.line >= 1
        assert fault.column >= 1
        assert fault.message
        assert exists(raw, fault.pointer) or exists(raw, fault.pointer.rpartition("/")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.socket.connect", lambda *_: pytest.fail("nothing is ever looked up over a network"))
        try:
            load_object(raw, trust=Trust.UNTRUSTED)
        except InvalidSet:
            return


def test_the_set_that_is_mutated_is_valid() -> None:
    assert load_raw(VALID)


# Start-up.


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from quantum_orchestrator.flows.instruction_set import load\n"
        'load(b\'{"name": "x", "instructions": [{"id": "a", "op": "file.write", "with": {"path": "${{ run.id }}",'
        ' "content": ""}}]}\')\n'
        "heavy = {'prefect', 'anthropic', 'jsonschema', 'jinja2', 'httpx', 'git'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is skipped because nothing can be found there.


WITHS: list[Raw] = [
    {"path": "a.txt", "content": "x"},
    {"path": "A.txt", "content": "x"},
    {"path": "sub/é.txt", "content": "x"},
    {"path": "../up", "content": "x"},
    {"path": "a.txt", "content": 3},
    {"path": "a.txt", "content": "${{ steps.s1.status }}"},
    {"path": "${{ inputs.none }}", "content": "$${{ x"},
    {"path": "a.txt", "content": "x", "mode": "0644"},
    {"path": "a.txt"},
    {},
]
KEYS: list[Raw] = [
    {"needs": ["s0"]},
    {"needs": ["s1", "gone"]},
    {"when": "${{ steps.s2.status == 'failed' }}"},
    {"for_each": ["x", "${{ item }}"]},
    {"on_error": {"run": [a_write("h", "handled.txt", needs=["gone"])]}},
    {"on_error": "continue"},
    {"undo": a_write("u", "${{ steps.gone.status }}")},
    {"secrets": ["NONE"]},
    {"reads": ["${{ x }}", "../y"]},
    {"retries": -1},
    {"timeout": "5 m"},
    {"tags": ["t"], "description": "d"},
    {"unknown": 1},
]


def outcome_of(document: Raw) -> object:
    try:
        return load_raw(document)
    except InvalidSet as invalid:
        return invalid.as_json()


def test_no_fault_is_overlooked_where_judging_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Random(6)
    documents = []
    for _ in range(150):
        withs = [*WITHS[:1] * 20, *WITHS]
        steps = [{"id": f"s{n}", "op": "file.write", "with": chosen.choice(withs)} for n in range(3)]
        for each in chosen.sample(steps, chosen.choice([0, 1, 2])):
            each |= chosen.choice(KEYS)
        for each in chosen.sample(steps, chosen.choice([0, 0, 1])):
            each |= chosen.choice([{"op": "file.wirte"}, {"op": "echo"}, {"with": {"message": "hi"}, "op": "echo"}])
        documents.append(a_set(*steps))
    short = [outcome_of(each) for each in documents]
    assert 10 < sum(isinstance(each, InstructionSet) for each in short) < 140
    monkeypatch.setattr(judge, "SIMPLE", frozenset())
    monkeypatch.setattr(schema, "_reads_alike", lambda _value: False)
    assert [outcome_of(each) for each in documents] == short

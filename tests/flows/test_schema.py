"""The published JSON Schema: valid, complete, and of one mind with the loader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field, ValidationError, model_validator

from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.flows.instruction_set import InstructionSet, InvalidSet, load
from quantum_orchestrator.flows.schema import OperationSchema, _reads_alike, build_parameters, document_schema
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import (
    Context,
    Effects,
    FilePath,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    declared,
    operation,
)

Raw = dict[str, Any]


class Part(Parameters):
    """A part of the sample's parameters."""

    path: FilePath = Field(description="where")
    count: int = Field(1, ge=1, description="how many")


class SampleParameters(Parameters):
    """What the sample takes."""

    text: str = Field(description="a text")
    number: float | None = Field(None, description="a number")
    kind: Literal["red", "blue"] = Field("red", description="a choice")
    mode: Annotated[str, Field(pattern="^0[0-7]{3}$")] = Field("0644", description="a mode")
    parts: tuple[Part, ...] = Field((), description="parts")
    folders: dict[str, FolderPath] = Field({}, description="folders")
    codes: int | list[int] = Field(0, description="codes")
    other: str | None = Field(None, description="instead of text")

    @model_validator(mode="after")
    def _either(self) -> SampleParameters:
        if self.text and self.other:
            raise ValueError("text and other exclude each other")
        return self


class SampleOutputs(Outputs):
    """What the sample gives."""

    size: int


class Sample(Operation[SampleParameters, SampleOutputs]):
    """An operation with every kind of parameter."""

    example: ClassVar[Raw] = {"text": "x"}

    def effects(self, parameters: SampleParameters) -> Effects:
        return Effects()

    def run(self, parameters: SampleParameters, context: Context) -> SampleOutputs:
        return SampleOutputs(size=1)


@pytest.fixture(autouse=True)
def sample() -> Iterator[Sample]:
    operation("sample.all")(Sample)
    yield Sample()
    del declared["sample.all"]
    registry.get.cache_clear()


@cache
def published() -> Draft202012Validator:
    return Draft202012Validator(document_schema())


def schema_accepts(raw: object) -> bool:
    return published().is_valid(raw)


def loader_accepts(raw: object) -> bool:
    try:
        load(json.dumps(raw).encode())
    except InvalidSet:
        return False
    return True


def a_set(*steps: object, **keys: Any) -> Raw:
    return {"name": "a set", "instructions": list(steps), **keys}


def step(**keys: Any) -> Raw:
    return {"id": "a", "op": "echo", "with": {"message": "x"}, **keys}


def sample_step(**parameters: Any) -> Raw:
    return {"id": "a", "op": "sample.all", "with": {"text": "x", **parameters}}


GOOD = [
    a_set(),
    a_set(step(), version=1),
    a_set(step(timeout="5m", retry_delay=["1s", 2], retries=3, when="${{ 1 }}", for_each=[1])),
    a_set(step(timeout=None, when=True, for_each="${{ [1] }}", reads=None, writes=[])),
    a_set(step(on_error="continue", undo=step(id="b"), resources={"cpu": 0.5}, tags=["x"])),
    a_set(step(on_error={"run": [step()]}), secrets=["A"], env={"A": "b"}, parallel="auto", order="explicit"),
    a_set(parallel=3, trust="untrusted", on_failure="pause", timeout=1.5, workspace="x/y", inputs={"a": {}}),
    a_set(**{"$schema": "schema.json"}),
    a_set({"id": "a", "op": "git.status"}),
    a_set(sample_step()),
    a_set(sample_step(number=3, kind="blue", mode="0755", parts=[{"path": "x", "count": 2}], codes=[1, 2])),
    a_set(sample_step(number="${{ 1 }}", kind="${{ 'red' }}", mode="0${{ 644 }}", codes="${{ 1 }}")),
    a_set(sample_step(parts="${{ [] }}", folders={"a": ".", "b": "${{ 'c' }}"})),
    a_set(sample_step(parts=["${{ {} }}", {"path": "${{ 'x' }}", "count": "${{ 1 }}"}], codes=[1, "${{ 2 }}"])),
]
BAD = [
    [],
    "text",
    {},
    {"name": "x"},
    {"instructions": []},
    a_set(version=2),
    a_set(version=True),
    a_set(name=""),
    a_set(name="a/b"),
    a_set(name="x" * 101),
    a_set(unknown=1),
    a_set(sandbox=1),
    a_set(parallel=0),
    a_set(parallel="two"),
    a_set(timeout="soon"),
    a_set(timeout=-1),
    a_set(order="random"),
    a_set(trust="full"),
    a_set(env={"A": 1}),
    a_set(env={"A B": "x"}),
    a_set(secrets=["a b"]),
    a_set(inputs={"a b": {}}),
    a_set(inputs={"a": 1}),
    a_set(3),
    a_set({}),
    a_set({"op": "echo", "with": {"message": "x"}}),
    a_set({"id": "a", "with": {"message": "x"}}),
    a_set({"id": "a", "op": "echo"}),
    a_set(step(id="A")),
    a_set(step(op="ecko")),
    a_set(step(unknown=1)),
    a_set(step(retries=-1)),
    a_set(step(retries="1")),
    a_set(step(when="x")),
    a_set(step(for_each=3)),
    a_set(step(needs="a")),
    a_set(step(writes=[""])),
    a_set(step(resources={"cpu": 0})),
    a_set(step(on_error="ignore")),
    a_set(step(on_error={"run": [step(id="A")]})),
    a_set(step(undo=step(id="A"))),
    a_set(step(undo=step(op="ecko"))),
    a_set(sample_step(unknown=1)),
    a_set(sample_step(text=3)),
    a_set(sample_step(number="3")),
    a_set(sample_step(number="$${{ 3 }}")),
    a_set(sample_step(kind="green")),
    a_set(sample_step(mode="644")),
    a_set(sample_step(codes=["x"])),
    a_set(sample_step(parts=[{"count": 1}])),
    a_set(sample_step(parts=[{"path": "x", "count": 0}])),
    a_set(sample_step(folders={"a": 1})),
]


def test_the_published_schema_is_a_valid_schema() -> None:
    schema = document_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    json.dumps(schema)


def test_schema_and_loader_accept_the_same_documents() -> None:
    assert [raw for raw in GOOD if not schema_accepts(raw)] == []
    assert [raw for raw in GOOD if not loader_accepts(raw)] == []


def test_schema_and_loader_refuse_the_same_documents() -> None:
    assert [raw for raw in BAD if schema_accepts(raw)] == []
    assert [raw for raw in BAD if loader_accepts(raw)] == []


def test_the_example_of_every_operation_is_accepted() -> None:
    examples = {name: dict(each.example) for name, each in registry.every().items() if each.example}
    assert examples
    for name, example in examples.items():
        raw = a_set({"id": "a", "op": name, "with": example})
        assert schema_accepts(raw), name
        assert loader_accepts(raw), name


def test_every_operation_is_there_with_descriptions_everywhere() -> None:
    definitions = document_schema()["$defs"]
    assert definitions["Instruction"]["properties"]["op"]["enum"] == list(registry.every())
    for name in registry.every():
        assert definitions[name]["description"], name
        for field, schema in definitions[name].get("properties", {}).items():
            assert schema.get("description"), f"{name} {field}"


def test_every_key_of_the_document_has_a_description() -> None:
    schema = document_schema()
    for properties in (schema["properties"], schema["$defs"]["Instruction"]["properties"]):
        assert [name for name, each in properties.items() if not each.get("description")] == []


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    schema = document_schema()

    def references(value: object) -> Iterator[str]:
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from references(each)
        if isinstance(value, dict) and isinstance(value.get("$ref"), str):
            yield value["$ref"]

    assert {each.removeprefix("#/$defs/") for each in references(schema)} <= schema["$defs"].keys()


def test_a_parameter_of_any_text_needs_no_alternative_for_expressions(sample: Sample) -> None:
    properties = OperationSchema(sample).definitions["sample.all"]["properties"]
    assert properties["text"]["type"] == "string"
    assert {"$ref": "#/$defs/Expression"} in properties["number"]["anyOf"]
    assert {"$ref": "#/$defs/Expression"} in properties["kind"]["anyOf"]


def problems(sample: Sample, **parameters: Any) -> list[str]:
    found = OperationSchema(sample).problems({"text": "x", **parameters})
    return [f"{'/'.join(map(str, each.parts))}: {each.message}" for each in found]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"number": "3"}, "number: expected a number, found text '3'"),
        ({"kind": "rde"}, "kind: expected 'red' or 'blue', found text 'rde'"),
        ({"codes": "x"}, "codes: expected a whole number or a list, found text 'x'"),
        ({"codes": ["x"]}, "codes/0: expected a whole number, found text 'x'"),
        ({"parts": [{"path": "x", "count": 0}]}, "parts/0/count: expected at least 1, found number 0"),
        ({"parts": [3]}, "parts/0: expected an object, found number 3"),
        ({"other": "y"}, ": text and other exclude each other"),
    ],
)
def test_wrong_parameters_are_explained_in_words(sample: Sample, parameters: Raw, expected: str) -> None:
    assert problems(sample, **parameters) == [expected]


def test_a_rule_between_parameters_waits_where_an_expression_stands(sample: Sample) -> None:
    assert problems(sample, other="${{ inputs.x }}") == []


def test_the_places_of_paths_are_found_at_any_depth(sample: Sample) -> None:
    values = {"parts": [{"path": "a"}, {"path": "b"}], "folders": {"x": "."}, "text": "c"}
    found = list(OperationSchema(sample).paths.find(values))
    assert found == [
        (("parts", 0, "path"), "a", "workspace-path"),
        (("parts", 1, "path"), "b", "workspace-path"),
        (("folders", "x"), ".", "workspace-folder"),
    ]


def test_parameters_are_built_from_evaluated_values(sample: Sample) -> None:
    built = build_parameters(sample, {"text": 3, "parts": [{"path": "a"}], "kind": "blue"})
    assert isinstance(built, SampleParameters)
    assert built.text == "3"  # what an expression gave for a text becomes text
    assert built.parts[0].path == "a"


def test_parameters_that_turn_out_wrong_are_refused_in_words(sample: Sample) -> None:
    with pytest.raises(OperationError, match=r"sample.all: number: expected a number, found text 'x'"):
        build_parameters(sample, {"text": "x", "number": "x"})
    with pytest.raises(PathRefused):
        build_parameters(sample, {"text": "x", "folders": {"a": "../up"}})


SCALARS = [None, True, False, 0, 1, -1, 2**70, 1.0, 0.5, "", "x", "a/b", "../x", "0644", "é", "1", "true", "if-missing"]


@pytest.mark.parametrize("name", sorted(registry.every()))
def test_what_a_model_takes_as_it_is_it_takes_as_json_and_makes_the_same_of_it(name: str) -> None:
    model, example = registry.get(name).parameters, dict(registry.get(name).example)
    names = [info.alias or field for field, info in model.model_fields.items()]
    taken = 0
    for values in ({**example, each: value} for each in names for value in SCALARS):
        try:
            as_it_is = model.model_validate(values)
        except ValidationError:
            continue
        as_json = model.model_validate_json(json.dumps(values))
        assert as_it_is == as_json
        assert as_it_is.model_fields_set == as_json.model_fields_set
        assert repr(as_it_is) == repr(as_json)
        taken += 1
    assert taken or not names or not all(map(_reads_alike, example.values()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", ["x"], {"x": 1}])
def test_what_json_spells_otherwise_or_not_at_all_is_read_as_json(value: object) -> None:
    assert not _reads_alike(value)


def test_the_models_schema_can_describe_a_parameter_of_a_flow() -> None:
    schema = InstructionSet.model_json_schema()
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(a_set(step(undo=step())))
    assert not Draft202012Validator(schema).is_valid(a_set(step(), parallel=0))

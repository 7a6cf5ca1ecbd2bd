"""The parameters of a set's deployment, as Prefect's server judges what a run is given."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from quantum_orchestrator.flows.deployment_form import divided, entry_of, names_in, offered, parameters_for, schema_of
from quantum_orchestrator.flows.instruction_set import InstructionSet, load_object


def a_set(**inputs: dict[str, Any]) -> InstructionSet:
    return load_object(
        {"name": "form", "inputs": inputs, "instructions": [{"id": "a", "op": "echo", "with": {"message": "m"}}]}
    )


SET = a_set(word={"type": "string", "description": "What to write"}, count={"type": "integer", "default": 3})


def accepts(parameters: dict[str, Any], document: InstructionSet = SET) -> bool:
    return Draft202012Validator(schema_of(document)).is_valid(parameters)


def test_each_input_is_a_field_with_what_the_set_says_of_it() -> None:
    properties = schema_of(SET)["properties"]
    assert properties["word"] == {"title": "word", "type": "string", "description": "What to write", "position": 0}
    assert properties["count"] == {"title": "count", "type": "integer", "default": 3, "position": 1}
    assert list(properties) == ["word", "count", "inputs", "workspace", "parallel", "on_failure"]


@pytest.mark.parametrize(
    ("parameters", "fine"),
    [
        ({"word": "a"}, True),
        ({"inputs": {"word": "a", "count": 1}, "workspace": "/srv"}, True),
        ({}, False),
        ({"count": 1}, False),
        ({"word": 1}, False),
        ({"word": "a", "count": "many"}, False),
        ({"word": "a", "instruction_set": {}}, False),
        ({"inputs": {"word": "a", "other": 1}}, False),
        ({"inputs": {}}, True),
        ({"word": "a", "on_failure": "explode"}, False),
    ],
)
def test_what_a_run_may_be_given_is_judged_before_there_is_one(parameters: dict[str, Any], fine: bool) -> None:
    assert accepts(parameters) is fine


def test_an_input_that_is_called_as_a_parameter_of_the_run_is_given_among_the_inputs() -> None:
    document = a_set(workspace={"type": "integer"})
    assert schema_of(document)["properties"]["workspace"]["type"] == "string"
    assert accepts({"inputs": {"workspace": 1}}, document)
    assert not accepts({"workspace": "/srv"}, document)
    assert parameters_for({"workspace": 1, "word": "a"}) == {"word": "a", "inputs": {"workspace": 1}}


def test_so_is_one_whose_name_python_has_no_parameter_of() -> None:
    document = a_set(**{"class": {"type": "integer"}, "dry-run": {"type": "boolean"}, "plain": {"type": "integer"}})
    assert offered(document) == ["plain"]
    assert accepts({"inputs": {"class": 1, "dry-run": True}}, document)
    assert not accepts({"plain": 1}, document)


@pytest.mark.parametrize("names", [[], ["word"], ["word", "count"]])
def test_the_entry_point_holds_the_names_of_the_parameters(names: list[str]) -> None:
    assert names_in(entry_of(names)) == names


@pytest.mark.parametrize("entry", ["deployed_set", "__path__", "deployed_set(a b)", "deployed_set(inputs)", "x(a)"])
def test_other_names_are_none(entry: str) -> None:
    assert names_in(entry) is None


def test_inputs_beat_the_form_and_empty_fields_are_not_given() -> None:
    parameters = {"word": "a", "count": None, "inputs": {"word": "b"}, "workspace": "/srv", "parallel": None}
    assert divided(parameters) == ({"workspace": "/srv"}, {"word": "b"})

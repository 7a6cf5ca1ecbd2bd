"""`llm.generate`: a text, a file, or a value by schema, written by a language model.

An answer is data. What is generated goes to an output or to the one file that the step names, and only when it is what
was asked for. Contents of files that go along are marked as such: words in
them are not instructions, and whatever a model makes of them all the same cannot leave the step's own paths.

Without a model, the `fallback` that the set gives is taken, or it is said that there is none. This module knows neither
providers nor budgets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field, JsonValue, field_validator, model_validator

from quantum_orchestrator.blocks.errors import BadAnswer
from quantum_orchestrator.blocks.model import Answer, Question, Tool, schema_problems
from quantum_orchestrator.blocks.tree import Overlay, digest
from quantum_orchestrator.tasks.expected import ExpectedDigest, expect
from quantum_orchestrator.tasks.model_common import (
    SYSTEM,
    ModelOutputs,
    ModelParameters,
    models_of,
    outputs_of,
    shown_files,
)
from quantum_orchestrator.tasks.operation import Access, Context, Effects, FilePath, Operation, Reach, operation
from quantum_orchestrator.tasks.parsing import syntax_fault

ONLY_CONTENT = "Answer with the content of the file {path} and nothing else: no explanation, no fence around it."
VALUE = "value"


# llm.generate


class GenerateParameters(ModelParameters):
    """What to write."""

    prompt: str = Field(description="What is wanted, in words.", min_length=1)
    system: str = Field("", description="What holds for every answer: a role, a style, a language.")
    files: list[FilePath] = Field([], description="Files whose contents go along.")
    path: FilePath | None = Field(None, description="A file to write the answer to; without it, it is an output alone.")
    # Named apart because a Pydantic model has a method `schema`.
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON Schema (draft 2020-12): the answer is a value that meets it."
    )
    fallback: JsonValue = Field(
        None, description="What to take where no model is configured: a text, or with `schema` a value that meets it."
    )
    expect_sha256: ExpectedDigest = None

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            from jsonschema import Draft202012Validator, SchemaError

            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"is no JSON Schema: {error.message}") from error
        return schema

    @model_validator(mode="after")
    def _fallback_fits(self) -> GenerateParameters:
        if not self.has_fallback:
            return self
        if self.json_schema is None and not isinstance(self.fallback, str):
            raise ValueError("`fallback` must be a text where there is no `schema`")
        if self.json_schema is not None and (wrong := list(schema_problems(self.json_schema, self.fallback))):
            raise ValueError(f"`fallback` does not meet `schema`: {wrong[0]}")
        return self

    @property
    def has_fallback(self) -> bool:
        """Whether one was given; null is a value as well."""
        return "fallback" in self.model_fields_set


class GenerateOutputs(ModelOutputs):
    """What was written."""

    text: str = Field(description="The answer, as it was written to `path`.")
    value: JsonValue = Field(None, description="With `schema`: the answer's value.")
    sha256: str | None = Field(None, description="SHA-256 of the file that was written.")


@operation("llm.generate")
class Generate(Operation[GenerateParameters, GenerateOutputs]):
    """Have a language model write a text, a file, or a value by a JSON Schema.

    A file is written only if what reads such files can read it (Python, JSON, TOML, YAML); the model is told what is
    wrong, and asked at most three times. Where no model is configured, `fallback` is taken.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "prompt": "A haiku about the tides.",
        "path": "haiku.txt",
        "fallback": "The tide has gone out.\nWhat it wrote upon the sand\nnobody has read.\n",
    }

    def effects(self, parameters: GenerateParameters) -> Effects:
        """Reads the files that go along, writes the one that it names."""
        reads = tuple(Access(path) for path in parameters.files)
        written = () if parameters.path is None else (Access(str(parameters.path)),)
        return Effects(reads=(*reads, *written), writes=written, predictable=False, asks_model=True)

    def reach(self, parameters: GenerateParameters) -> Reach:
        """Whoever answers."""
        return parameters.reach()

    def run(self, parameters: GenerateParameters, context: Context) -> GenerateOutputs:
        """Ask, and write. Raises ModelError."""
        models = models_of(parameters, context)
        expect_path = parameters.path
        if expect_path is not None:
            expect(context.files, expect_path, parameters.expect_sha256)
        question = _question(parameters, context.files)
        answer, text, value = models.converse(question, lambda answer: _accepted(parameters, answer))
        sha256 = None
        if expect_path is not None:
            context.files.write(expect_path, text.encode())
            sha256 = digest(text.encode())
        return GenerateOutputs(text=text, value=value, sha256=sha256, **outputs_of(answer))


def _question(parameters: GenerateParameters, files: Overlay) -> Question:
    parts = [*shown_files(files, parameters.files), parameters.prompt]
    if parameters.path is not None and parameters.json_schema is None:
        parts.append(ONLY_CONTENT.format(path=parameters.path))
    rules: Callable[[], Any] | None = None
    if parameters.has_fallback:
        rules = lambda: parameters.fallback if parameters.json_schema is None else _wrapped(parameters)  # noqa: E731
    return Question.of(
        "\n\n".join(parts),
        system=f"{SYSTEM}\n\n{parameters.system}".strip(),
        tool=None if parameters.json_schema is None else _tool(parameters.json_schema),
        max_tokens=parameters.max_tokens,
        rules=rules,
    )


def _wrapped(parameters: GenerateParameters) -> Any:
    assert parameters.json_schema is not None
    return parameters.fallback if _is_object(parameters.json_schema) else {VALUE: parameters.fallback}


def _is_object(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "object"


def _tool(schema: Mapping[str, Any]) -> Tool:
    """A tool whose payload is the value, or holds it: it must be an object."""
    about = "Give the answer in the form that is asked for."
    if _is_object(schema):
        return Tool("answer", about, schema)
    inner = {key: value for key, value in schema.items() if key not in ("$schema", "$id", "$defs")}
    whole = {"type": "object", "properties": {VALUE: inner}, "required": [VALUE], "additionalProperties": False}
    return Tool("answer", about, {**whole, "$defs": schema["$defs"]} if "$defs" in schema else whole)


def _accepted(parameters: GenerateParameters, answer: Answer) -> tuple[Answer, str, Any]:
    """The answer with its text and value. Raises BadAnswer for a file that could not be read as what it is."""
    if parameters.json_schema is None:
        text, value = answer.text, None
        if parameters.path is not None:
            text = _content(parameters.path, text)
    else:
        payload = answer.payload or {}
        value = payload if _is_object(parameters.json_schema) else payload[VALUE]
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    fault = "" if parameters.path is None else syntax_fault(parameters.path, text.encode())
    if fault:
        raise BadAnswer(f"{parameters.path} could not be read: {fault}")
    return answer, text, value


_FENCE = re.compile(r"\A\s*```[^\n`]*\n(.*?)\n?```\s*\Z", re.DOTALL)


def _content(path: str, text: str) -> str:
    """What is in the fence, if the whole answer is one, with a line's end at its end."""
    fenced = None if path.endswith((".md", ".markdown")) else _FENCE.match(text)
    content = fenced[1] if fenced else text
    return content if content.endswith("\n") else f"{content}\n"

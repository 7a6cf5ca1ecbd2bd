"""The JSON Schema of instruction sets: what `qo schema` publishes, and the same in parts for judging documents.

It is made from the models in `flows/document.py` and from the parameters of the operations that are installed, so that
an editor completes against it, descriptions included. The loader judges with its parts, one validator an operation:
the whole would try every operation at every instruction. Where a parameter is no plain text, an expression may stand
in its place. This module compares values with schemas; what needs more than the value itself is `flows/judge.py`'s.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.flows import document, wording
from quantum_orchestrator.flows.document import Instruction, InstructionSet
from quantum_orchestrator.flows.expressions import as_text, holds_expression, is_literal, texts
from quantum_orchestrator.flows.faults import nearest
from quantum_orchestrator.flows.wording import Nearest, Parts, Problem
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import AnyOperation, Parameters

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
IDENTITY = "urn:quantum-orchestrator:instruction-set:1"
EXPRESSION: Schema = {"$ref": "#/$defs/Expression"}
EXPRESSION_DEFINITION: Schema = {
    "type": "string",
    "pattern": document.EXPRESSION_PATTERN,
    "description": "A text with an expression, ${{ … }}; alone it keeps the type of its value",
}
SCHEMA_KEY: Schema = {"type": "string", "description": "Where this schema is, for editors"}

_MAPS = ("properties", "patternProperties", "$defs", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
_ABOUT = ("description", "default", "examples", "title", "deprecated")


# The published schema.


def document_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a whole document, with every operation that is installed."""
    schema = _model_schema(InstructionSet)
    definitions: Schema = schema.pop("$defs")
    operations = registry.every()
    definitions["Instruction"] = _dispatching(definitions["Instruction"], operations)
    definitions["Expression"] = EXPRESSION_DEFINITION
    for operation in operations.values():
        definitions |= schema_of(operation).definitions
    schema["properties"] = {"$schema": SCHEMA_KEY, **schema["properties"]}
    return {"$schema": DIALECT, "$id": IDENTITY, "title": "Instruction set", **schema, "$defs": definitions}


def _dispatching(instruction: Schema, operations: Mapping[str, AnyOperation]) -> Schema:
    op = {**instruction["properties"]["op"], "enum": list(operations)}
    cases = [_case(operation) for operation in operations.values()]
    return {**instruction, "properties": {**instruction["properties"], "op": op}, "allOf": cases}


def _case(operation: AnyOperation) -> Schema:
    required = ["with"] if operation.parameters.model_json_schema().get("required") else []
    return {
        "if": {"properties": {"op": {"const": operation.name}}, "required": ["op"]},
        "then": {"properties": {"with": {"$ref": f"#/$defs/{operation.name}"}}, "required": required},
    }


def _model_schema(model: type[BaseModel]) -> Schema:
    return _untitled(model.model_json_schema(by_alias=True))


def _untitled(schema: Schema) -> Schema:
    return {key: value for key, value in _mapped(schema, _untitled).items() if key != "title"}


def _mapped(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """The schema with each schema directly in it changed."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, dict) else value

    result = dict(schema)
    for key, value in schema.items():
        if key in _MAPS:
            result[key] = {name: changed(each) for name, each in value.items()}
        elif key in _LISTS:
            result[key] = [changed(each) for each in value]
        elif key in _SINGLES:
            result[key] = changed(value)
    return result


# Expressions in the place of parameters.


def _open_inside(schema: Schema) -> Schema:
    """The schema with expressions admitted in the place of what is in the value, not of the value itself."""
    result = dict(schema)
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            result[key] = {name: _open(each) for name, each in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = _open(value)
        elif key == "prefixItems":
            result[key] = [_open(each) for each in value]
        elif key in ("anyOf", "oneOf", "allOf"):
            result[key] = [_open_inside(each) for each in value]
        elif key == "$defs":
            result[key] = {name: _open_inside(each) for name, each in value.items()}
    return result


def _open(schema: Schema) -> Schema:
    """The schema with an expression admitted in the value's place."""
    inner = _open_inside(schema)
    if _takes_any_text(inner):
        return inner
    if "anyOf" in inner:
        return {**inner, "anyOf": [*inner["anyOf"], EXPRESSION]}
    about = {key: inner.pop(key) for key in _ABOUT if key in inner}
    return {**about, "anyOf": [inner, EXPRESSION]}


def _takes_any_text(schema: Schema) -> bool:
    if "anyOf" in schema:
        return any(_takes_any_text(each) for each in schema["anyOf"])
    if any(key in schema for key in ("$ref", "pattern", "enum", "const", "minLength", "maxLength", "oneOf", "allOf")):
        return False
    return bool(schema.get("type", "string") == "string")


def _renamed(schema: Schema, prefix: str) -> Schema:
    """The schema with its definitions under names that no other operation has."""
    result = _mapped(schema, lambda inner: _renamed(inner, prefix))
    reference = result.get("$ref", "")
    if reference.startswith("#/$defs/") and result != EXPRESSION:
        result["$ref"] = f"#/$defs/{prefix}.{reference.removeprefix('#/$defs/')}"
    return result


# Judging parameters.

PathFormat = Literal["workspace-path", "workspace-folder", "workspace-glob"]
_SURROGATE = re.compile("[\ud800-\udfff]")
_PATH_FORMATS = ("workspace-path", "workspace-folder", "workspace-glob")


@dataclass(frozen=True)
class PathPlaces:
    """Where in parameters paths stand: a tree of only those branches that lead to one."""

    format: PathFormat | None = None
    named: Mapping[str, PathPlaces] | None = None
    each: PathPlaces | None = None

    @cached_property
    def _plain(self) -> tuple[tuple[str, PathFormat], ...] | None:
        """The names with paths, where nothing but a text can stand under them: most operations have only such."""
        named = (self.named or {}).items()
        if self.format or self.each or any(places.named or places.each for _, places in named):
            return None
        return tuple((name, places.format) for name, places in named if places.format)

    def find(self, value: object, parts: Parts = ()) -> Iterable[tuple[Parts, str, PathFormat]]:
        """Every path in a value, with where it stands and what kind of path it is."""
        if self._plain is None or not isinstance(value, dict):
            return self._find(value, parts)
        return [((*parts, name), value[name], kind) for name, kind in self._plain if isinstance(value.get(name), str)]

    def _find(self, value: object, parts: Parts) -> Iterator[tuple[Parts, str, PathFormat]]:
        if self.format and isinstance(value, str):
            yield parts, value, self.format
        if self.named and isinstance(value, dict):
            for name, places in self.named.items():
                if name in value:
                    yield from places._find(value[name], (*parts, name))  # noqa: SLF001
        if self.each and isinstance(value, list | dict):
            for key, item in enumerate(value) if isinstance(value, list) else value.items():
                yield from self.each._find(item, (*parts, key))  # noqa: SLF001

    def __bool__(self) -> bool:
        return bool(self.format or self.named or self.each)

    def __or__(self, other: PathPlaces) -> PathPlaces:
        named = {**(self.named or {}), **(other.named or {})}
        return PathPlaces(self.format or other.format, named or None, self.each or other.each)


def _path_places(schema: Schema, definitions: Schema, seen: frozenset[str] = frozenset()) -> PathPlaces:
    reference = schema.get("$ref", "").removeprefix("#/$defs/")
    found = PathPlaces(schema["format"]) if schema.get("format") in _PATH_FORMATS else PathPlaces()
    if reference and reference not in seen:
        found |= _path_places(definitions[reference], definitions, seen | {reference})
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        found |= _path_places(alternative, definitions, seen)
    named = {name: _path_places(each, definitions, seen) for name, each in schema.get("properties", {}).items()}
    found |= PathPlaces(named={name: places for name, places in named.items() if places} or None)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            each = _path_places(schema[key], definitions, seen)
            found |= PathPlaces(each=each if each else None)
    return found


def _reads_alike(value: object) -> bool:
    """Whether a strict model makes the same of a value as it is and of its JSON: a scalar that JSON can spell."""
    if isinstance(value, str):
        return value.isascii() or not _SURROGATE.search(value)
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


class OperationSchema:
    """One operation's parameters, judged quickly when they are right and in words when they are not."""

    def __init__(self, operation: AnyOperation) -> None:
        self.operation = operation
        self.model = operation.parameters
        own = _model_schema(self.model)
        self.paths = _path_places(own, own.get("$defs", {}))

    @cached_property
    def definitions(self) -> Schema:
        """What the published schema has for it: `file.edit`, and `file.edit.Edit` for a model within."""
        name = self.operation.name
        schema = _renamed(_open_inside(_model_schema(self.model)), name)
        inner = {f"{name}.{each}": definition for each, definition in schema.pop("$defs", {}).items()}
        return {name: {**schema, "description": self.operation.summary}, **inner}

    @cached_property
    def _validator(self) -> Draft202012Validator:
        definitions = {**self.definitions, "Expression": EXPRESSION_DEFINITION}
        return validator({"$ref": f"#/$defs/{self.operation.name}", "$defs": definitions})

    def judge(self, values: dict[str, Any], near: Nearest = nearest) -> tuple[Parameters | None, list[Problem]]:
        """The parameters as a document has them, expressions not evaluated; where they are wrong, why.

        Expressions are admitted: None with no problems is for parameters that only a run can build. Paths are judged
        by their model only.
        """
        try:
            return self.validated(values), []
        except ValidationError as error:
            found = wording.explain(self._validator.iter_errors(values), near)
            return None, found + self._further(error, values, found)

    def problems(self, values: dict[str, Any], near: Nearest = nearest) -> list[Problem]:
        """What is wrong with the parameters as a document has them, expressions included; paths are not judged."""
        return self.judge(values, near)[1]

    def validated(self, values: dict[str, Any]) -> Parameters:
        """The parameters, as the model reads JSON. Raises ValidationError.

        Where all values are plain, the model reads them as they are: what it takes so, it takes as JSON as well, and
        makes the same of it (tests/flows/test_schema.py); only then their texts need no copies.
        """
        if all(map(_reads_alike, values.values())):
            try:
                return self.model.model_validate(values)
            except ValidationError:
                pass  # it may be right as JSON: a text for a choice, a number for an enumeration
        return self.model.model_validate_json(json.dumps(values))

    def _further(self, error: ValidationError, values: Mapping[str, Any], found: list[Problem]) -> list[Problem]:
        """What the model finds and the schema does not say. Where an expression stands, only a run can tell."""
        return [
            problem
            for problem in wording.explain_model(error, values)
            if not _has_expression(_at(problem.parts, values))
            and not any(each.parts[: len(problem.parts)] == problem.parts for each in found)
        ]

    def build(self, values: Mapping[str, Any]) -> Parameters:
        """The parameters of a run, from values whose expressions are evaluated.

        What an expression gave for a text becomes text. Raises OperationError with every problem, and PathRefused.
        """
        values = dict(values)
        for _, path, kind in self.paths.find(values):
            check_path(path, folder=kind != "workspace-path")
        try:
            return self._validated(values)
        except ValidationError as error:
            raise self._refused(error, values) from error

    def _validated(self, values: dict[str, Any]) -> Parameters:
        try:
            return self.validated(values)
        except ValidationError as error:
            texts = [each["loc"] for each in error.errors(include_url=False) if each["type"] == "string_type"]
            if not texts:
                raise
            for location in texts:
                values = _replaced(values, location, as_text)
            return self.model.model_validate_json(json.dumps(values))

    def _refused(self, error: ValidationError, values: Mapping[str, Any]) -> OperationError:
        problems = wording.explain(self._validator.iter_errors(values), nearest)
        lines = [
            f"{'.'.join(map(str, each.parts)) or 'with'}: {each.message}"
            for each in problems + self._further(error, values, problems)
        ]
        name = self.operation.name
        return OperationError(f"{name}: {'; '.join(lines) or str(error)}", hint=f"`qo ops {name}` shows its parameters")


def _replaced(value: Any, location: tuple[str | int, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of the value with what is at the location changed; the value itself where there is no such place."""
    if not location:
        return change(value)
    first, rest = location[0], location[1:]
    if isinstance(value, dict) and first in value:
        return {**value, first: _replaced(value[first], rest, change)}
    if isinstance(value, list) and isinstance(first, int) and first < len(value):
        return [*value[:first], _replaced(value[first], rest, change), *value[first + 1 :]]
    return value


def _has_expression(value: object) -> bool:
    return any(map(holds_expression, texts(value)))


def _at(parts: Parts, value: Any) -> object:
    for part in parts:
        value = value[part]
    return value


@cache
def _schema_of(operation: type[AnyOperation]) -> OperationSchema:
    return OperationSchema(operation())


def schema_of(operation: AnyOperation) -> OperationSchema:
    """The schema of an operation; made once."""
    return _schema_of(type(operation))


def build_parameters(operation: AnyOperation, values: Mapping[str, Any]) -> Parameters:
    """See OperationSchema.build."""
    return schema_of(operation).build(values)


# Parameters without expressions are built once, and kept with their instruction: judging, planning and running need
# the same ones.


def literal_parameters(instruction: Instruction) -> Parameters | None:
    """The parameters of an instruction that needs no evaluation; None where an expression stands in them.

    Raises as OperationSchema.build does.
    """
    known: Parameters | None = getattr(instruction, "literal", None)
    if known is not None or not is_literal(instruction.parameters):
        return known
    built = build_parameters(registry.get(instruction.op), instruction.parameters)
    keep_literal(instruction, built)
    return built


def keep_literal(instruction: Instruction, built: Parameters) -> None:
    """These are its parameters, and they hold no expression."""
    object.__setattr__(instruction, "literal", built)


# Judging what is around the parameters.


@cache
def set_validator() -> Draft202012Validator:
    """Judges a document but for its instructions."""
    schema = _model_schema(InstructionSet)
    properties = {"$schema": SCHEMA_KEY, **schema["properties"], "instructions": {"type": "array"}}
    return validator({**schema, "properties": properties})


@cache
def instruction_validator() -> Draft202012Validator:
    """Judges an instruction but for its parameters and the instructions in it."""
    schema = _model_schema(Instruction)
    definitions = schema["$defs"]
    own = dict(definitions["Instruction"]) if "$ref" in schema else schema
    handler = definitions["ErrorHandler"]
    definitions["ErrorHandler"] = {**handler, "properties": {**handler["properties"], "run": {"type": "array"}}}
    undo = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    return validator({**own, "properties": {**own["properties"], "undo": undo}, "$defs": definitions})


def validator(schema: Schema) -> Draft202012Validator:
    """A validator that never looks anything up over a network. Importing jsonschema takes 80 ms: only on faults."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(schema, registry=Registry())


def path_problem(path: str, kind: PathFormat) -> tuple[str, str] | None:
    """Why a path is refused by its spelling, and what to do; None if it is fine."""
    try:
        check_path(path, folder=kind != "workspace-path")
    except PathRefused as error:
        return error.message, error.hint
    return None

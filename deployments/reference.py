"""The reference pages in `docs/`, made from what they describe: `python -m quantum_orchestrator.deployments.reference`.

Operations are described by their models, the document by its JSON Schema, commands by their own help. Nothing is said
here that the code could say; a test compares the committed pages with what this makes, so that they are never behind.
This module starts nothing and must not import Prefect.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.durations import DURATION_PATTERN
from quantum_orchestrator.flows.document import LONE_EXPRESSION_PATTERN
from quantum_orchestrator.tasks.operation import AnyOperation

Schema = Mapping[str, Any]
FOLDER = "docs"
MADE = (
    "<!-- Made by `python -m quantum_orchestrator.deployments.reference`. Change what it describes, not this page. -->"
)
FAMILIES = {
    "file": "Files",
    "script": "Scripts",
    "git": "Git",
    "quality": "Quality of Python code",
    "http": "HTTP",
    "": "Control",
}
"""Titles of the families, in the order of the page; operations with no family in their name steer the run."""


def main() -> None:
    """Write the pages to the folder that is named, or to `docs`."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")


def pages() -> dict[str, str]:
    """The text of every page by its file name."""
    from quantum_orchestrator.deployments import api_reference
    from quantum_orchestrator.flows.schema import document_schema
    from quantum_orchestrator.tasks import registry

    schema = document_schema()
    return {
        "api.md": _joined(api_reference.page()),
        "command-line.md": _joined(_command_line()),
        "instruction-set.md": _joined(_instruction_set(schema)),
        "instruction-set.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "operations.md": _joined(_operations(registry.every())),
    }


def _joined(blocks: Iterable[str]) -> str:
    return "\n\n".join(blocks) + "\n"


# Values and tables.


def type_words(schema: Schema, definitions: Schema) -> str:
    """What a JSON Schema admits, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_words(each, definitions) for each in schema["anyOf"]))
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        target = definitions.get(name, {})
        return _label(name) if target.get("type") == "object" else type_words(target, definitions)
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")]))
    return _plain_type(schema, definitions)


def _plain_type(schema: Schema, definitions: Schema) -> str:
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or {}
        return f"list of {type_words(items, definitions)}" if items else "list"
    if kind == "string":
        return _text_type(schema)
    names = {None: "any JSON value", "integer": "whole number", "boolean": "true or false"}
    return names.get(kind, str(kind))


def _text_type(schema: Schema) -> str:
    patterns = {DURATION_PATTERN: "duration", LONE_EXPRESSION_PATTERN: "expression"}
    formats = {"workspace-path": "path", "workspace-folder": "path", "workspace-glob": "glob"}
    return patterns.get(schema.get("pattern", "")) or formats.get(schema.get("format", ""), "text")


def _label(name: str) -> str:
    return f"`{name.rpartition('.')[2]}`"


def _fields(model: Schema, definitions: Schema) -> str:
    """A table of a model's fields."""
    required = model.get("required", ())
    rows = []
    for name, field in model.get("properties", {}).items():
        default = "required" if name in required else _default(field)
        rows.append([f"`{name}`", without_null(type_words(field, definitions)), default, _text(field)])
    return table(["name", "type", "default", "meaning"], rows)


def _outputs(model: Schema, definitions: Schema) -> str:
    """A table of what a step gives."""
    fields = model.get("properties", {}).items()
    rows = [[f"`{name}`", type_words(field, definitions), _text(field)] for name, field in fields]
    return table(["name", "type", "meaning"], rows)


def without_null(words: str) -> str:
    """The same without the null that only says that a field may be left out."""
    return words.replace(" or null", "")


def _default(field: Schema) -> str:
    default = field.get("default")
    return "" if default in (None, "", [], {}) else f"`{json.dumps(default, ensure_ascii=False)}`"


def _text(field: Schema) -> str:
    return " ".join(str(field.get("description", "")).split()).removesuffix(".")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def _code(value: object) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"


# Operations.


def _operations(operations: Mapping[str, AnyOperation]) -> Iterator[str]:
    yield "# Operations"
    yield MADE
    yield (
        "`qo ops` lists them, `qo ops NAME` shows one. Wherever a parameter is no plain text, an expression "
        "(`${{ … }}`) may stand in its place. Paths are relative to the workspace. `qo plan` foretells to the byte "
        "what file operations, `quality.format` and `quality.lint` do. What scripts, tests, git and requests do is "
        "known only when they run; a plan marks them as deferred."
    )
    families = dict.fromkeys([*FAMILIES, *map(_family, operations)])
    grouped = {family: [each for each in operations.values() if _family(each.name) == family] for family in families}
    yield _contents(grouped)
    for family, members in grouped.items():
        if members:
            yield f"## {_title(family)}"
            for operation in members:
                yield from _operation(operation)


def _contents(grouped: Mapping[str, list[AnyOperation]]) -> str:
    lines = []
    for family, members in grouped.items():
        links = " ".join(f"[`{each.name}`](#{each.name.replace('.', '')})" for each in members)
        lines += [f"- {_title(family)}: {links}"] if members else []
    return "\n".join(lines)


def _family(name: str) -> str:
    return name.rpartition(".")[0]


def _title(family: str) -> str:
    return FAMILIES.get(family, family)


def _operation(operation: AnyOperation) -> Iterator[str]:
    parameters = operation.parameters.model_json_schema()
    outputs = operation.outputs.model_json_schema(mode="serialization")
    yield f"### {operation.name}"
    about = (type(operation).__doc__ or "").strip().splitlines()
    yield "\n".join(line.strip() for line in about)
    if operation.pure:
        yield "It is pure: its result is reused unless `cache` is false."
    elif operation.cacheable:
        yield "Its result can be reused: `cache`."
    yield from _model("Parameters (`with`)", parameters, _fields)
    yield from _model("Outputs", outputs, _outputs)
    if operation.example:
        yield _code({"id": "step", "op": operation.name, "with": dict(operation.example)})


def _model(title: str, model: Schema, table: Callable[[Schema, Schema], str]) -> Iterator[str]:
    """A model and the models in it, each in a table."""
    if not model.get("properties"):
        yield f"{title}: {_text(model) if model.get('additionalProperties') is True else 'none'}."
        return
    definitions = model.get("$defs", {})
    yield f"{title}:"
    yield table(model, definitions)
    for name, inner in definitions.items():
        if inner.get("properties"):
            yield f"{_label(name)}:"
            yield table(inner, definitions)


# The document.

MEANING = """\
The outcome of a run equals running its instructions one by one, in this order, whatever ran in parallel. Each operation
says what it reads and writes once its parameters are known; two steps that touch the same path, one of them writing,
keep their order, as do a step and those that it refers to or `needs`. A script may touch everything unless `reads` and
`writes` narrow it. When a step fails, what all of them did is undone, unless `on_failure` says otherwise; effects that
cannot be undone wait until everything else has succeeded."""

REUSE = """\
With `cache`, for the set or for one instruction, a step is skipped, and has the outputs that it had, if it is what it
was in the last committed run of the set in this workspace (operation and version, parameters after expressions; for
scripts the set's `env`, the names of its secrets, `reads` and `writes` as well), what it reads is unchanged, and so
is what it left. It has status `reused` then, and a `reason`; a step that runs says what has changed. In expressions
it counts as `succeeded`. The [operations](operations.md) say which of them can be reused; a script or test can if it
declares both `reads` and `writes`, and what else it depends on (the programs that it calls, the clock) is your
promise. What acts outside of the workspace never is. `qo run --no-cache` reuses nothing; `--force ID` runs a step,
and whatever depends on it; `qo plan --explain` says what would be reused."""

FAULTS = """\
A document is judged as a whole before anything runs: every fault is told at once, with file, line and column, the JSON
pointer and the nearest right name. Refused are unknown keys, duplicate keys and ids, `NaN` and `Infinity`, more than 64
levels, more than 16 MiB, references to steps that do not exist, cycles, and paths that leave the workspace."""


def _instruction_set(schema: Schema) -> Iterator[str]:
    definitions = schema["$defs"]
    yield "# Instruction sets"
    yield MADE
    yield (
        "An instruction set is a JSON document in UTF-8. Its JSON Schema (draft 2020-12) is "
        "[instruction-set.schema.json](instruction-set.schema.json), and what `qo schema` prints; name it under "
        "`$schema`, and editors complete and check what you write."
    )
    yield _starter()
    yield MEANING
    yield REUSE
    yield FAULTS
    yield "## The set"
    yield _fields(schema, definitions)
    yield "## An instruction"
    yield _fields(_with_operations_elsewhere(definitions["Instruction"]), definitions)
    yield "`ErrorHandler`:"
    yield _fields(definitions["ErrorHandler"], definitions)
    yield "A duration is a number of seconds, or a text such as `250ms`, `90s` or `1h30m`."
    yield from _expressions()


def _with_operations_elsewhere(instruction: Schema) -> Schema:
    """The names of all operations would fill the page; they have one of their own."""
    about = "The operation: one of [operations.md](operations.md), which are what `qo ops` lists"
    fields = instruction["properties"]
    return {**instruction, "properties": {**fields, "op": {"type": "string", "description": about}}}


def _starter() -> str:
    from quantum_orchestrator.deployments.cli_sets import starter

    return _code(starter("hello"))


def _expressions() -> Iterator[str]:
    from quantum_orchestrator.flows.expressions import FUNCTIONS
    from quantum_orchestrator.flows.jinja import FILTERS, TESTS

    yield "## Expressions"
    yield (
        "`${{ … }}` holds an expression in Jinja2's language. Alone in a value it keeps its type; with text around it "
        "the value becomes text. `$${{` writes a literal `${{`. A reference to a step makes it a dependency."
    )
    rows = [
        ["`inputs.NAME`", "an input of the set"],
        ["`env.NAME`", "a variable of the set's `env`"],
        ["`steps.ID.outputs.NAME`", "what a step gave; under `for_each` `outputs` is the list of them"],
        ["`steps.ID.status`", "how a step ended: `succeeded`, `failed`, `skipped`"],
        ["`item`", "the item at hand, under `for_each`"],
        ["`run.id`, `run.name`, `run.started_at`", "the run: its id, the set's name, seconds since 1970"],
    ]
    yield table(["value", "meaning"], rows)
    for title, names in (("Filters", FILTERS), ("Tests", TESTS), ("Functions", FUNCTIONS)):
        yield f"{title}: {', '.join(f'`{name}`' for name in names)}."


# The command line.


STREAM = """\
With `--json-stream`, `run`, `resume`, `approve` and `reject` print JSON Lines: an object a line, as soon as something
happens. Each has `event` and `time` (ISO 8601, UTC), and `run_id` once the run has begun. The last line of a stream is
`run_finished`; one that ends without it belongs to a process that was killed. Outputs are those of the run's document,
with secrets masked. A step that is skipped or reused need not have started; one that had ended before a run was resumed
is in the last line only, and so is what a rollback has made of steps. Pass over events and keys that you do not know:
there will be more. A reader that goes away, as `head -1` does, does not end the run; the exit code is then 141."""
STREAM_EVENTS = [
    ["`waiting`", "`message`", "another run is at work in the workspace"],
    ["`run_started`", "`set`, `workspace`, `steps` (how many), `ui_url`", "or goes on"],
    ["`step_started`", "`step`, `op`", ""],
    ["`step_retried`", "`step`, `op`, `message`", "it has failed, and is tried again"],
    ["`log`", "`step`, `op`, `message`", "a line that a step says; without a step, the run"],
    [
        "`step_finished`",
        "`step`, `op`, `status`, `attempts`, `duration_s`, `outputs`, `error` (`type`, `message`, `hint`), `reason`",
        "`status` is `succeeded`, `reused`, `skipped` or `failed`; `reason` is there where reuse was asked for",
    ],
    ["`awaiting_approval`", "`step`, `op`, `message`", "the run ends, and waits for `qo approve` or `qo reject`"],
    ["`rolling_back`", "`message`", "why, or to which checkpoint"],
    ["`server_lost`", "`message`", "the Prefect server no longer answers; the run goes on"],
    ["`run_finished`", "`status`, `run`", "`run` is what `--json` prints, for invalid sets and other errors, too"],
]


def _command_line() -> Iterator[str]:
    from quantum_orchestrator.deployments.cli import COMMANDS, app, command

    for name in COMMANDS:
        command(name)  # imports it: what the help shows comes from the function
    text = app.generate_docs(heading_level=1).strip().replace("\n### qo ", "\n## qo ")
    overview, *sections = text.split("\n## qo ")
    yield _overview(overview)
    for section in sections:
        name = section.partition("\n")[0]
        yield f"## qo {section.strip()}"
        if name not in COMMANDS:  # it has only others within it
            continue
        yield "Examples:"
        yield "```console\n" + "\n".join(f"$ {example}" for example in COMMANDS[name][2]) + "\n```"
        if name == "run":
            yield "### Events"
            yield STREAM
            yield table(["event", "says", "meaning"], STREAM_EVENTS)


def _overview(text: str) -> str:
    """Without the list of contents, as the groups list the same commands again."""
    head, _, rest = text.partition("\n## Table of Contents")
    groups = rest[rest.index("\n**") :].strip()
    title, _, about = head.partition("\n")
    codes = [
        ["0", "done; a plan with changes, too"],
        ["1", "failed, and rolled back (or kept, where that was asked for)"],
        ["2", "the plan has changes, with `--detailed-exitcode`"],
        ["3", "invalid input: nothing has run"],
        ["4", "somebody must look at it"],
        ["5", "awaiting approval"],
        ["130", "interrupted, and rolled back"],
    ]
    return "\n\n".join([title, MADE, about.strip(), groups, table(["exit code", "meaning"], codes)])


if __name__ == "__main__":
    main()

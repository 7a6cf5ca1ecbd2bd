"""Commands about instruction sets: nothing of them runs, and no server is needed.

`validate`, `plan`, `graph`, `ops`, `schema` and `init` read the set, the workspace and the operations that are
installed. They must not import Prefect. What `qo plan` prints is accepted by `git apply`: whatever is no patch stands
in lines that begin with `# `.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_options import (
    TALK,
    File,
    InputPairs,
    InputsFile,
    Json,
    Source,
    Talk,
    Untrusted,
    WorkspaceOption,
    build_graph,
    load_source,
    resolved_inputs,
    workspace_root,
)
from quantum_orchestrator.deployments.screen import Screen, aligned, plural

if TYPE_CHECKING:
    from quantum_orchestrator.deployments.planning import Plan
    from quantum_orchestrator.flows.reusing import Wishes
    from quantum_orchestrator.tasks.operation import AnyOperation

GraphFormat = Literal["mermaid", "dot"]


def validate(
    file: File,
    /,
    *more: Annotated[str, Parameter(help="Further sets, without inputs.")],
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    untrusted: Untrusted = False,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Say whether an instruction set is right.

    Every fault at once, each with its place. Nothing runs, and nothing is
    looked at but the set and the sets that it calls. Given inputs are judged
    too.
    """
    from quantum_orchestrator.flows.instruction_set import InvalidSet

    if more and (input or inputs_file):
        raise UsageError("inputs are given to one set: --input and --inputs-file go with one FILE")
    judged, faults = [], []
    for each in (file, *more):
        try:
            judged.append(_judged(each, input, inputs_file, untrusted=untrusted))
        except InvalidSet as error:
            faults.append(error)
    if faults:
        every = [fault for error in faults for fault in error.faults]
        raise InvalidSet(every, by_policy=any(error.by_policy for error in faults))
    if json_:
        sets = [_valid_json(source) for source in judged]
        talk.screen.document(sets[0] if not more else {"status": "valid", "sets": sets})
        return 0
    for source in judged:
        count = plural(len(source.document.instructions), "instruction")
        talk.screen.result(f"{source.file}: valid: {source.document.name!r}, {count}", "green")
    return 0


def _judged(file: str, pairs: Sequence[str], inputs_file: str | None, *, untrusted: bool) -> Source:
    source = load_source(file, untrusted=untrusted)
    document = source.document
    if pairs or inputs_file or all("default" in schema for schema in document.inputs.values()):
        build_graph(source, resolved_inputs(document, pairs, inputs_file))  # the order of an explicit set
    return source


def _valid_json(source: Source) -> dict[str, Any]:
    document = source.document
    inputs = sorted(document.inputs)
    return {"status": "valid", "set": document.name, "instructions": len(document.instructions), "inputs": inputs}


def plan(
    file: File,
    /,
    *,
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    workspace: WorkspaceOption = None,
    graph: Annotated[
        GraphFormat | None, Parameter(name="--graph", help="Print the graph of steps as well, in '# ' lines.")
    ] = None,
    explain: Annotated[
        bool,
        Parameter(help="Say why each step waits for another, why one is not reused, and how long a run may take."),
    ] = False,
    output: Annotated[
        str | None, Parameter(name=("--output", "-o"), help="Write a plan file, for `qo run --plan`.")
    ] = None,
    detailed_exitcode: Annotated[
        bool, Parameter(name="--detailed-exitcode", help="Exit with 2 when there are changes.")
    ] = False,
    untrusted: Untrusted = False,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Show what a run would change, as a patch.

    The steps run in memory, each on what those before it left. What only a run
    can tell (a script's effects) is marked as deferred, with what it may
    change. `git apply` accepts what is printed.
    """
    source = load_source(file, untrusted=untrusted)
    inputs = resolved_inputs(source.document, input, inputs_file)
    root = workspace_root(workspace, source.document)
    return show_plan(
        talk.screen,
        source,
        inputs,
        root,
        graph=graph,
        explain=explain,
        output=output,
        detailed_exitcode=detailed_exitcode,
        as_json=json_,
    )


def show_plan(
    screen: Screen,
    source: Source,
    inputs: Mapping[str, Any],
    root: Path,
    *,
    graph: GraphFormat | None = None,
    explain: bool = False,
    output: str | None = None,
    detailed_exitcode: bool = False,
    as_json: bool = False,
    wishes: Wishes | None = None,
) -> int:
    """Plan, and print it; the exit code."""
    from quantum_orchestrator.deployments import planning

    made = planning.make_plan(source, inputs, root, wishes)
    if as_json:
        screen.document(planning.plan_json(made, explain=explain))
    else:
        _print_plan(screen, made, graph, explain)
    failure = made.prediction.failure
    if failure is not None:
        screen.problem(f"step {failure.id} ({failure.op}) would fail: {failure.reason}", "a run would end there")
        return 1
    if output is not None:
        _write_plan_file(screen, made, output)
    return 2 if detailed_exitcode and made.has_changes else 0


def _print_plan(screen: Screen, plan: Plan, graph: GraphFormat | None, explain: bool) -> None:
    from quantum_orchestrator.deployments import planning
    from quantum_orchestrator.flows.report import GRAPH_FORMATS

    if not screen.quiet:
        lines = planning.step_list(plan)
        if explain:
            lines += [planning.explanation(edge) for edge in plan.graph.edges]
            lines += [*planning.reuse_explained(plan), *planning.time_explained(plan)]
        if graph is not None:
            lines += GRAPH_FORMATS[graph](plan.graph).splitlines()
        screen.comment(lines)
    screen.patch(plan.patch)
    if not screen.quiet:
        screen.comment([planning.totals(plan)])


def _write_plan_file(screen: Screen, plan: Plan, output: str) -> None:
    try:
        Path(output).write_text(plan.file.dump(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output}: the plan cannot be written there: {error.strerror or error}") from error
    screen.note(f"{output}: written; `qo run --plan {output}` runs exactly this")


def graph(
    file: File,
    /,
    *,
    format_: Annotated[
        GraphFormat, Parameter(name="--format", help="The language: mermaid (default) or dot.")
    ] = "mermaid",
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    explain: Annotated[bool, Parameter(help="Say why each step waits for another, instead of drawing.")] = False,
    talk: Talk = TALK,
) -> int:
    """Print the graph of a set's steps."""
    from quantum_orchestrator.deployments.planning import explanation
    from quantum_orchestrator.flows.plan import build
    from quantum_orchestrator.flows.report import GRAPH_FORMATS

    document = load_source(file).document
    built = build(document, resolved_inputs(document, input, inputs_file))
    if explain:
        talk.screen.result("\n".join(map(explanation, built.edges)) or "no step waits for another")
    else:
        talk.screen.result(GRAPH_FORMATS[format_](built).rstrip())
    return 0


# Operations.


def ops(
    name: Annotated[str | None, Parameter(help="An operation, such as file.edit, or a family, such as file.")] = None,
    /,
    *,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """List the operations, or show one of them."""
    from quantum_orchestrator.tasks import registry

    screen = talk.screen
    listed = registry.every() if name is None else _family(name)
    if not listed:
        operation = registry.get(str(name))
        screen.document(operation_json(operation)) if json_ else screen.result("\n".join(_described(operation)))
    elif json_:
        screen.document({"operations": [operation_json(each) for each in listed.values()]})
    else:
        screen.result("\n".join(_families(listed)))
    return 0


def _family(name: str) -> dict[str, AnyOperation]:
    """The operations of a family; none if this is no family's name."""
    from quantum_orchestrator.tasks import registry

    if "." in name:
        return {}
    return {each: operation for each, operation in registry.every().items() if each.startswith(f"{name}.")}


def _families(operations: Mapping[str, AnyOperation]) -> list[str]:
    rows = aligned([[f"  {name}", operation.summary] for name, operation in operations.items()])
    sections: dict[str, list[str]] = {}
    for name, row in zip(operations, rows, strict=True):
        family = name.partition(".")[0] if "." in name else "control"
        sections.setdefault(family, []).append(row)
    lines = [line for family, section in sections.items() for line in (family, *section, "")]
    return [*lines, "`qo ops NAME` shows one with its parameters"]


def operation_json(operation: AnyOperation) -> dict[str, Any]:
    """An operation with the JSON Schemas of its parameters and outputs."""
    return {
        "name": operation.name,
        "summary": operation.summary,
        "parameters": operation.parameters.model_json_schema(),
        "outputs": operation.outputs.model_json_schema(mode="serialization"),
        "example": dict(operation.example),
    }


def _described(operation: AnyOperation) -> list[str]:
    schemas = operation_json(operation)
    about = (type(operation).__doc__ or "").strip().splitlines()
    lines = [operation.name, *(f"  {line.strip()}".rstrip() for line in about), "", "parameters"]
    lines += _model(schemas["parameters"])
    lines += ["", "outputs", *_model(schemas["outputs"], defaults=False)]
    example = {"id": "step", "op": operation.name, "with": schemas["example"]}
    return [*lines, "", "example", f"  {json.dumps(example, ensure_ascii=False)}"]


def _model(schema: Mapping[str, Any], *, defaults: bool = True) -> list[str]:
    """A model's fields, and those of the models in it."""
    definitions = schema.get("$defs", {})
    lines = _fields(schema, definitions, defaults=defaults) or ["  none"]
    for name, inner in definitions.items():
        if "properties" in inner:  # the others, such as choices, are written out where they are used
            lines += [f"  {name}:", *(f"  {line}" for line in _fields(inner, definitions, defaults=defaults))]
    return lines


def _fields(schema: Mapping[str, Any], definitions: Mapping[str, Any], *, defaults: bool) -> list[str]:
    from quantum_orchestrator.deployments.reference import type_words, without_null

    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        notes = without_null(type_words(field, definitions)).replace("`", "")
        if defaults and name in required:
            notes += ", required"
        elif defaults and field.get("default") is not None:
            notes += f", default {json.dumps(field['default'], ensure_ascii=False)}"
        rows.append([name, notes, " ".join(field.get("description", "").split())])
    return aligned(rows, "  ") if rows else []


def schema(*, talk: Talk = TALK) -> int:
    """Print the JSON Schema of instruction sets (draft 2020-12)."""
    from quantum_orchestrator.flows.schema import document_schema

    talk.screen.document(document_schema())
    return 0


# A first set.


def init(
    name: Annotated[str, Parameter(help="What the set is called; the file is NAME.json.")] = "hello",
    /,
    *,
    talk: Talk = TALK,
) -> int:
    """Write a small instruction set to begin with.

    The file is NAME.json, in the current folder. It runs as it stands. An existing file is never overwritten.
    """
    title = name.removesuffix(".json")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}", title):
        raise UsageError(f"{name!r}: is no name for a set", hint="use letters, digits, '-', '_' and '.'")
    path = Path(f"{title}.json")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(starter(title), indent=2, ensure_ascii=False) + "\n")
    except FileExistsError as error:
        raise UsageError(f"{path}: is there already, and was left as it is", hint="choose another name") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    talk.screen.result(f"{path}: written; `qo plan {path}` shows what it would do, `qo run {path}` does it")
    return 0


def starter(name: str) -> dict[str, Any]:
    """The set that `qo init` writes."""
    return {
        "version": 1,
        "name": name,
        "description": "A first instruction set: two files, and a check of what is in them",
        "inputs": {"who": {"type": "string", "default": "world", "description": "whom to greet"}},
        "instructions": [
            {
                "id": "greet",
                "op": "file.write",
                "with": {"path": "greeting.txt", "content": "Hello, ${{ inputs.who }}!\n"},
            },
            {
                "id": "copy",
                "op": "file.copy",
                "with": {"source": "greeting.txt", "destination": "copy/greeting.txt", "overwrite": True},
            },
            {"id": "read", "op": "file.read", "with": {"path": "copy/greeting.txt"}},
            {
                "id": "check",
                "op": "assert",
                "with": {
                    "that": "${{ inputs.who in steps.read.outputs.content }}",
                    "message": "the copy does not greet the right one",
                },
            },
        ],
    }

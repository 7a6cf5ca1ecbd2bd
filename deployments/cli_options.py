"""What commands have in common: the options of every command, and how FILE, inputs and the workspace are found.

A set is read and judged here, before anything else happens. This module starts nothing and imports neither Prefect
nor, at its top, what judges sets: `qo status` needs none of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import policy_path, refuse_overlap, refuse_own_run
from quantum_orchestrator.deployments.screen import Screen

if TYPE_CHECKING:
    from quantum_orchestrator.flows.instruction_set import InstructionSet
    from quantum_orchestrator.flows.plan import Graph

STDIN = "<stdin>"
"""What `-` is called from the command line's first look on."""

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document on standard output.")]
JsonLines = Annotated[
    bool, Parameter(name="--json-stream", help="Print events as JSON Lines; the last one has the document of --json.")
]
Follow = Annotated[bool, Parameter(name="--follow", help="Also show what each step gives, as soon as it has ended.")]
File = Annotated[str, Parameter(help="The instruction set, a JSON file; - is standard input.")]
InputPairs = Annotated[
    tuple[str, ...],
    Parameter(name="--input", help="A value for one of the set's inputs, NAME=VALUE. May be repeated."),
]
InputsFile = Annotated[
    str | None, Parameter(name="--inputs-file", help="A JSON object of values for inputs; --input beats it.")
]
WorkspaceOption = Annotated[
    str | None,
    Parameter(name="--workspace", help="The folder to work on; without it the set's own, or the current folder."),
]
WorkspaceOfRuns = Annotated[
    str | None, Parameter(name="--workspace", help="The folder whose runs are meant; without it the current one.")
]
Untrusted = Annotated[
    bool, Parameter(name="--untrusted", help="Treat the set as one that is not trusted, whatever it says.")
]
RunId = Annotated[str | None, Parameter(help="A run's id, or the beginning of it.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Talk:
    """The options that every command has."""

    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), help="Say nothing but the result.")] = False
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), help="Say more; show where errors come from.")] = False
    no_color: Annotated[bool, Parameter(name="--no-color", help="No colours (NO_COLOR does the same).")] = False

    @property
    def screen(self) -> Screen:
        """Where the command writes."""
        return Screen(quiet=self.quiet, verbose=self.verbose, color=not self.no_color)


TALK = Talk()


# FILE.


def read_source(file: str) -> bytes:
    """The bytes of FILE or of standard input. Raises UsageError when they cannot be read."""
    try:
        return sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such file", hint="check the path; - reads standard input") from error
    except IsADirectoryError as error:
        raise UsageError(f"{file}: is a folder", hint="name the instruction set in it") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{file}: cannot be read: {reason}") from error


@dataclass(frozen=True, slots=True)
class Source:
    """A set as it was given: where from, and what it is. `folder` is where the files that it calls are."""

    file: str
    document: InstructionSet


def load_source(file: str, text: bytes | None = None, *, untrusted: bool = False) -> Source:
    """Read and judge FILE. Raises InvalidSet with every fault, and with all that the policy refuses."""
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.instruction_set import Trust, load

    content = read_source(file) if text is None else text
    folder = Path.cwd() if file == STDIN else Path(file).absolute().parent
    trust = Trust.UNTRUSTED if untrusted else Trust.TRUSTED
    return Source(file, load(content, file=file, folder=folder, trust=trust, policy=Policy.load(policy_path())))


def build_graph(source: Source, inputs: Mapping[str, Any]) -> Graph:
    """The graph of a set. Raises InvalidInput where its steps have no order, or the policy refuses one of them."""
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.plan import build
    from quantum_orchestrator.flows.verdicts import refuse

    graph = build(source.document, inputs)
    refuse(graph, Policy.load(policy_path()), source.file)
    return graph


# Inputs.


def given_inputs(pairs: Sequence[str], inputs_file: str | None) -> dict[str, Any]:
    """What --inputs-file and --input say, the values of --input as texts."""
    given = dict(_from_file(inputs_file)) if inputs_file else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--input {pair}: is not NAME=VALUE", hint="for example --input service=api")
        given[name] = value
    return given


def _from_file(file: str) -> Mapping[str, Any]:
    try:
        value = json.loads(read_source(file))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is not JSON: {error}", hint="it must hold one JSON object") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file}: must hold one JSON object, of values by the names of inputs")
    return value


def resolved_inputs(document: InstructionSet, pairs: Sequence[str], inputs_file: str | None) -> dict[str, Any]:
    """The value of every input of the set. Raises InvalidSet with everything that is wrong with them."""
    from quantum_orchestrator.flows.instruction_set import resolve_inputs

    return resolve_inputs(document, given_inputs(pairs, inputs_file), texts=True)


# The workspace.


def workspace_root(chosen: str | None, document: InstructionSet | None = None) -> Path:
    """The absolute path of the workspace, there or not."""
    named = chosen or (document.workspace if document is not None else None) or "."
    try:
        root = Path(named).resolve()
        if root.exists() and not root.is_dir():
            raise UsageError(f"the workspace {root} is no folder", hint="name a folder with --workspace")
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"the workspace {named!r} cannot be used: {error}") from error
    return root


def existing_root(chosen: str | None) -> Path:
    """The workspace that a command about runs means. Raises UsageError if it is not there."""
    root = workspace_root(chosen)
    if not root.exists():
        raise UsageError(f"there is no folder {root}", hint="name the workspace with --workspace")
    return root


def made_root(root: Path) -> Path:
    """The workspace, made when it is absent, to run in. Raises UsageError when it cannot be made, written or run in."""
    refuse_own_run(root)
    refuse_overlap(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the workspace {root} cannot be made: {error.strerror or error}") from error
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(
            f"the workspace {root} cannot be written", hint="check its permissions, or name another with --workspace"
        )
    return root

"""The parameters of a deployment that runs one set: the set's inputs, by their own names, and how the run is to be.

From this schema Prefect makes the form in its UI, and judges what a run is given before there is a run. An input that
is called as one of the run's own parameters, or as no parameter of Python's can be, is given in the object `inputs`, in
which all of them may be. This module is pure: it knows neither Prefect nor where deployments are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any

from quantum_orchestrator.flows.document import InstructionSet, OnFailure

FLOW_NAME = "orchestrate"
"""The flow that deployments belong to, whichever set they run."""
WORKSPACE_BLOCK = "quantum-orchestrator-workspace/"
"""Before the name of a block that stands for a folder."""
RUN_PARAMETERS: dict[str, dict[str, Any]] = {
    "inputs": {"type": "object", "description": "Values of inputs as one object; they beat those given one by one"},
    "workspace": {
        "type": "string",
        "description": f"The folder to work on, on the machine that the run is on; or {WORKSPACE_BLOCK}NAME, a block",
    },
    "parallel": {"type": "integer", "minimum": 1, "description": "How many steps may run at once"},
    "on_failure": {
        "type": "string",
        "enum": [each.value for each in OnFailure],
        "description": "What becomes of the effects when a step fails; beats the set's",
    },
}
"""What every such deployment takes beside the set's inputs."""


def offered(document: InstructionSet) -> list[str]:
    """The inputs that are parameters by their own names, in the set's order."""
    return [name for name in document.inputs if _fits(name)]


def _fits(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name) and name not in RUN_PARAMETERS


def schema_of(document: InstructionSet) -> dict[str, Any]:
    """The JSON Schema of a deployment's parameters. Whether `inputs` has all that are required, the run itself sees."""
    own = {name: dict(document.inputs[name]) for name in offered(document)}
    inside = {"properties": {name: dict(schema) for name, schema in document.inputs.items()}}
    about = {**RUN_PARAMETERS, "inputs": {**RUN_PARAMETERS["inputs"], **inside, "additionalProperties": False}}
    properties = {
        name: {"title": name, **schema, "position": place}
        for place, (name, schema) in enumerate({**own, **about}.items())
    }
    schema: dict[str, Any] = {"title": "Parameters", "type": "object", "properties": properties}
    required = [name for name, each in document.inputs.items() if "default" not in each]
    if required:
        # No list of schemas: Prefect takes every "required" away to judge a deployment's own values, but not in lists.
        outside = [name for name in required if _fits(name)]
        missing = outside if outside == required else [*outside, "inputs"]
        schema |= {"if": {"required": ["inputs"]}, "then": {}, "else": {"required": missing}}
    return {**schema, "additionalProperties": False}


def parameters_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of inputs as parameters of the deployment."""
    inside = {name: value for name, value in given.items() if not _fits(name)}
    own = {name: value for name, value in given.items() if _fits(name)}
    return {**own, "inputs": inside} if inside else own


ENTRY = "deployed_set"


def entry_of(names: Sequence[str]) -> str:
    """What the flow is called that has these parameters beside the run's: `deployed_set(word,count)`."""
    return f"{ENTRY}({','.join(names)})"


def names_in(entry: str) -> list[str] | None:
    """The same backwards; None for what is no such name."""
    inside = entry.removeprefix(f"{ENTRY}(").removesuffix(")")
    if entry != f"{ENTRY}({inside})":
        return None
    names = inside.split(",") if inside else []
    return names if all(map(_fits, names)) else None


def divided(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's own parameters, and the values of inputs. A field of the form that was left empty is not given."""
    own = {name: value for name, value in parameters.items() if name in RUN_PARAMETERS and value is not None}
    form = {name: value for name, value in parameters.items() if name not in RUN_PARAMETERS and value is not None}
    return own, {**form, **(own.pop("inputs", None) or {})}

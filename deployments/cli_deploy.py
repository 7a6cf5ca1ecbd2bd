"""Commands about deployments: `deploy`, and what there is of them. The set is judged before a server is needed.

Prefect is imported in the functions that need it, never at the top.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_options import (
    TALK,
    File,
    InputPairs,
    InputsFile,
    Json,
    Talk,
    Untrusted,
    WorkspaceOption,
    given_inputs,
    load_source,
    workspace_root,
)
from quantum_orchestrator.deployments.schedules import NO_TIMES, LimitOption, OverlapOption, When
from quantum_orchestrator.deployments.screen import Screen, aligned

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

    from quantum_orchestrator.deployments.deploying import Deployable
    from quantum_orchestrator.flows.instruction_set import InstructionSet

Name = Annotated[str, Parameter(help="A deployment's name, as NAME or orchestrate/NAME.")]


def deploy(
    file: File,
    /,
    *,
    pool: Annotated[
        str | None, Parameter(help="The work pool that runs it; without one, Prefect's default, or that of `qo serve`.")
    ] = None,
    workspace: WorkspaceOption = None,
    name: Annotated[str | None, Parameter(help="What the deployment is called; without it, as the set.")] = None,
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    when: When = NO_TIMES,
    overlap: OverlapOption = None,
    limit: LimitOption = None,
    tag: Annotated[tuple[str, ...], Parameter(help="A tag beside the set's own. May be repeated.")] = (),
    job_variable: Annotated[
        tuple[str, ...],
        Parameter(
            help="A variable of the work pool's jobs, NAME=VALUE (env.NAME for the environment). May be repeated."
        ),
    ] = (),
    untrusted: Untrusted = False,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Make a Prefect deployment of an instruction set, or renew it.

    It is called after the set, and its parameters are the set's inputs: a form
    in the UI. The set itself is kept by the server as it is now, the files that
    it calls included, so that workers need nothing but this package. Schedules
    that the deployment has already stay.
    """
    screen = talk.screen
    source = load_source(file, untrusted=untrusted)
    called = _fit_name(name or source.document.name)
    place = _place(workspace, source.document)
    inputs = _some_inputs(source.document, given_inputs(input, inputs_file))
    variables = _job_variables(job_variable)
    from quantum_orchestrator.deployments import schedules
    from quantum_orchestrator.deployments.deploying import OWN_SCHEDULE, Deployable
    from quantum_orchestrator.deployments.deploying import deploy as make
    from quantum_orchestrator.deployments.prefect_objects import asking

    with asking(screen) as client:
        wanted = Deployable(
            source.document,
            called,
            place,
            inputs,
            pool=pool or _default_pool(),
            tags=tag,
            job_variables=variables,
            concurrency=schedules.concurrency(overlap, limit),
            schedule=schedules.created(when, slug=OWN_SCHEDULE, parameters={}) if when.given else None,
        )
        made, new = make(client, wanted)
    _tell(screen, made, wanted, new=new, as_json=json_)
    return 0


def _fit_name(name: str) -> str:
    """Raises UsageError for what Prefect takes for no name."""
    from quantum_orchestrator.flows.document import NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"--name {name}: a deployment's name has no / % & < > and no control characters")
    return name


def _place(workspace: str | None, document: InstructionSet) -> str:
    """The workspace as the deployment names it: an absolute path, or a block."""
    from quantum_orchestrator.flows.deployment_form import WORKSPACE_BLOCK

    if workspace is not None and workspace.startswith(WORKSPACE_BLOCK):
        return workspace
    return str(workspace_root(workspace, document))


def _some_inputs(document: InstructionSet, given: dict[str, Any]) -> dict[str, Any]:
    from quantum_orchestrator.flows.inputs import some_inputs

    return some_inputs(document, given, texts=True)


def _default_pool() -> str:
    """The one that Prefect's settings name, or the local one."""
    from prefect.settings import get_current_settings

    from quantum_orchestrator.deployments.deploying import LOCAL_POOL

    return get_current_settings().deployments.default_work_pool_name or LOCAL_POOL


def _job_variables(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`env.NAME=VALUE` goes into the environment; other values are JSON where they can be."""
    variables: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--job-variable {pair}: is not NAME=VALUE", hint="for example env.TZ=UTC")
        if name.startswith("env."):
            variables.setdefault("env", {})[name.removeprefix("env.")] = value
        else:
            variables[name] = _as_json(value)
    return variables


def _as_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _tell(screen: Screen, made: DeploymentResponse, wanted: Deployable, *, new: bool, as_json: bool) -> None:
    from quantum_orchestrator.deployments.deploying import LOCAL_POOL
    from quantum_orchestrator.flows.deployment_form import FLOW_NAME

    if as_json:
        screen.document({**summary(made), "created": new})
        return
    full = f"{FLOW_NAME}/{made.name}"
    screen.result(f"{'deployed' if new else 'renewed'} {full}, set sha256 {(made.version or '')[:12]}")
    needed = [each for each, schema in wanted.document.inputs.items() if "default" not in schema]
    missing = "".join(f" --param {each}=…" for each in needed if each not in wanted.inputs)
    screen.result(f"  run it: prefect deployment run '{full}'{missing}")
    local = made.work_pool_name == LOCAL_POOL
    worker = "qo serve" if local else f"prefect worker start --pool {made.work_pool_name}"
    screen.result(f"  what takes its runs up: {worker}")


def summary(deployment: DeploymentResponse) -> dict[str, Any]:
    """A deployment, for programs."""
    from prefect.utilities.urls import url_for

    from quantum_orchestrator.deployments import schedules
    from quantum_orchestrator.flows.deployment_form import FLOW_NAME, RUN_PARAMETERS

    properties = (
        deployment.parameter_openapi_schema.get("properties", {}) if deployment.parameter_openapi_schema else {}
    )
    limit = deployment.global_concurrency_limit
    options = deployment.concurrency_options
    return {
        "deployment": f"{FLOW_NAME}/{deployment.name}",
        "id": str(deployment.id),
        "sha256": deployment.version,
        "pool": deployment.work_pool_name,
        "workspace": deployment.parameters.get("workspace"),
        "inputs": [name for name in properties if name not in RUN_PARAMETERS],
        "tags": deployment.tags,
        "limit": None if limit is None else limit.limit,
        "overlap": None if options is None else options.collision_strategy.value,
        "schedules": [schedules.as_json(each) for each in deployment.schedules],
        "ui_url": url_for("deployment", obj_id=deployment.id),
    }


def list_(*, json_: Json = False, talk: Talk = TALK) -> int:
    """List the deployments of instruction sets."""
    from quantum_orchestrator.deployments import schedules
    from quantum_orchestrator.deployments.prefect_objects import asking, ours

    screen = talk.screen
    with asking(screen) as client:
        found = ours(client)
        documents = [summary(each) for each in found]
    if json_:
        screen.document({"deployments": documents})
    elif not found:
        screen.note("no deployments; `qo deploy FILE` makes one")
    else:
        rows = [["NAME", "POOL", "WORKSPACE", "SCHEDULES"]]
        for each in found:
            times = "; ".join(schedules.in_words(one.schedule) for one in each.schedules if one.active)
            workspace = str(each.parameters.get("workspace") or "")
            rows.append([each.name, each.work_pool_name or "", workspace, times])
        screen.result("\n".join(aligned(rows)))
    return 0


def remove(name: Name, /, *, json_: Json = False, talk: Talk = TALK) -> int:
    """Remove a deployment, with its schedules. Its flow runs and their journals stay."""
    from quantum_orchestrator.deployments import deploying
    from quantum_orchestrator.deployments.prefect_objects import asking, full_name, named

    screen = talk.screen
    with asking(screen) as client:
        deploying.remove(client, named(client, name))
    if json_:
        screen.document({"deployment": full_name(name), "removed": True})
    else:
        screen.result(f"removed {full_name(name)}")
    return 0

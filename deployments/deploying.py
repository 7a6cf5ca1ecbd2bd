"""Makes Prefect deployments of instruction sets, one a set: what `qo deploy` does once the set is judged.

A deployment holds no code and fetches none: its entry point is a flow of the installed package, the set lies in a block
of the server (`blocks/set_block.py`), and the deployment's `version` is its digest. Made again, a deployment is renewed
in its place, with its id, its history and its schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.prefect_objects import TAG, find, ours
from quantum_orchestrator.flows.deployment_form import FLOW_NAME, entry_of, offered, parameters_for, schema_of
from quantum_orchestrator.flows.instruction_set import InstructionSet

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.responses import DeploymentResponse

MODULE = "quantum_orchestrator.flows.deployed"
OWN_SCHEDULE = "deploy"
"""The name of the schedule that `qo deploy` itself gives."""
LOCAL_POOL = "quantum-orchestrator"
"""The work pool of deployments for which no other is named: `qo serve` runs what is in it."""
BLOCK_TYPE = "quantum-orchestrator-set"


@dataclass(frozen=True, slots=True)
class Deployable:
    """A judged set, and how it is to be deployed. `workspace` is on the machine of the worker."""

    document: InstructionSet
    name: str
    workspace: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    pool: str = LOCAL_POOL
    tags: Sequence[str] = ()
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    concurrency: Mapping[str, Any] = field(default_factory=dict)
    schedule: DeploymentScheduleCreate | None = None


def deploy(client: SyncPrefectClient, wanted: Deployable) -> tuple[DeploymentResponse, bool]:
    """Make the deployment or renew it; and whether it is new. Raises UsageError where its work pool is not there."""
    from quantum_orchestrator.blocks.set_block import store

    require_pool(client, wanted.pool)
    document = wanted.document.model_dump_json(by_alias=True, exclude_unset=True)
    digest = store(wanted.document.name, document)
    before = find(client, wanted.name)
    if before is None:
        flow_id = client.create_flow_from_name(FLOW_NAME)
        schedules = [wanted.schedule] if wanted.schedule else []
        deployment_id = client.create_deployment(flow_id, wanted.name, schedules=schedules, **_fields(wanted, digest))
        return client.read_deployment(deployment_id), True
    _renew(client, before, wanted, digest)
    forget(client, before.version, besides=digest)
    return client.read_deployment(before.id), False


def require_pool(client: SyncPrefectClient, pool: str) -> None:
    """Raises UsageError where there is no such work pool. The local one is made."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(pool)
    except ObjectNotFound as error:
        if pool == LOCAL_POOL:
            client.create_work_pool(WorkPoolCreate(name=LOCAL_POOL, type="process"))
            return
        raise UsageError(
            f"there is no work pool {pool!r}", hint=f"`prefect work-pool create {pool} --type process` makes one"
        ) from error


def _fields(wanted: Deployable, digest: str) -> dict[str, Any]:
    return {
        "version": digest,
        "description": wanted.document.description or f"Runs the instruction set {wanted.document.name!r}.",
        "tags": list(dict.fromkeys([TAG, *wanted.document.tags, *wanted.tags])),
        "parameters": {"workspace": wanted.workspace, **parameters_for(wanted.inputs)},
        "parameter_openapi_schema": schema_of(wanted.document),
        "enforce_parameter_schema": True,
        "entrypoint": f"{MODULE}.{entry_of(offered(wanted.document))}",
        "path": None,
        "job_variables": dict(wanted.job_variables),
        "work_pool_name": wanted.pool,
        **wanted.concurrency,
    }


def _renew(client: SyncPrefectClient, before: DeploymentResponse, wanted: Deployable, digest: str) -> None:
    from prefect.client.schemas.actions import DeploymentUpdate

    client.update_deployment(before.id, DeploymentUpdate(**_fields(wanted, digest)))
    if wanted.schedule is None:
        return
    for each in before.schedules:
        if each.slug == wanted.schedule.slug:
            client.delete_deployment_schedule(before.id, each.id)
    client.create_deployment_schedules(before.id, [wanted.schedule])


def remove(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """Take a deployment away; its flow runs stay."""
    client.delete_deployment(deployment.id)
    forget(client, deployment.version)


def forget(client: SyncPrefectClient, digest: str | None, *, besides: str = "") -> None:
    """Take away the block with a set that no deployment names any more."""
    from prefect.exceptions import ObjectNotFound

    if not digest or digest == besides or any(each.version == digest for each in ours(client)):
        return
    try:
        block = client.read_block_document_by_name(digest, BLOCK_TYPE)
        client.delete_block_document(block.id)
    except ObjectNotFound:
        return  # it is none of ours

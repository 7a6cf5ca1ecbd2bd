"""Asking the Prefect server about deployments, and what becomes of its refusals.

`asking` gives Prefect's own client, connected as runs are: to the API that the user configured, or to the local server,
which is started if need be. Whatever the server refuses is an error in the server's words. Importing this imports no
Prefect; calling it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.errors import QuantumError, ServerError, UsageError
from quantum_orchestrator.deployments.screen import Screen
from quantum_orchestrator.flows.deployment_form import FLOW_NAME

if TYPE_CHECKING:
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

TAG = "quantum-orchestrator"
"""What every deployment of ours is tagged with."""


@contextmanager
def asking(screen: Screen) -> Iterator[SyncPrefectClient]:
    """Prefect's client. Raises ServerError where nobody answers, and UsageError for what the server refuses."""
    from quantum_orchestrator.deployments.cli_runs import connect

    connect(screen)
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.HTTPStatusError as answer:
        raise _refusal(answer) from answer
    except httpx.HTTPError as problem:
        said = str(problem) or type(problem).__name__
        raise ServerError(f"the Prefect server does not answer: {said}", hint="`qo doctor` says how it is") from problem


def _refusal(answer: httpx.HTTPStatusError) -> QuantumError:
    response = answer.response
    try:
        body: Any = response.json()
        said = body.get("detail") or body.get("exception_detail") or body
    except (ValueError, AttributeError):
        said = response.text
    if isinstance(said, list):
        said = "; ".join(str(each.get("msg", each)) if isinstance(each, dict) else str(each) for each in said)
    message = f"the Prefect server answers {response.status_code}: {said}"
    if 400 <= response.status_code < 500 and response.status_code not in (401, 403, 408, 429):
        return UsageError(message)
    return ServerError(message, hint="`qo doctor` says how the server is")


def full_name(name: str) -> str:
    """A deployment as Prefect names it: `FLOW/NAME`, where the flow is ours unless another is named."""
    return name if "/" in name else f"{FLOW_NAME}/{name}"


def find(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    """The deployment of this name, if there is one."""
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(full_name(name))
    except ObjectNotFound:
        return None


def named(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    """The deployment of this name. Raises UsageError with the nearest one."""
    found = find(client, name)
    if found is not None:
        return found
    known = [each.name for each in ours(client)]
    near = difflib.get_close_matches(name.rpartition("/")[2], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`qo deployment list` shows those there are; `qo deploy` makes one"
    raise UsageError(f"there is no deployment {full_name(name)!r}", hint=hint)


def ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """All deployments with our tag, by their names."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    chosen = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found: list[DeploymentResponse] = []
    while page := client.read_deployments(deployment_filter=chosen, offset=len(found)):
        found += page
    return sorted(found, key=lambda each: each.name)

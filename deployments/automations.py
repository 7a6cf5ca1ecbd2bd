"""Ready-made automations of Prefect's: files that start deployments, and notices of what needs somebody.

A file that is created, changed or deleted is an event that whoever watches a folder emits, called
`quantum-orchestrator.file.created` and so on, about the resource `quantum-orchestrator.file.<absolute path>`; its
payload has `path`, `folder`, `name` and `sha256`. Here are the automations that wait for such events, each with a name
by which it is found again: added twice, it is one. Prefect's server carries them out, and its UI shows and edits them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.prefect_objects import TAG
from quantum_orchestrator.flows.deployment_form import parameters_for

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.actions import ActionTypes
    from prefect.events.schemas.automations import Automation, AutomationCore

FILE_EVENT = "quantum-orchestrator.file"
"""Before `.created`, and before `.<absolute path>` in the name of the resource."""
MARK = "quantum-orchestrator: "
"""How the names of our automations begin."""
Happening = Literal["created", "changed", "deleted"]
Trouble = Literal["failed", "awaiting-approval"]
STATES: dict[Trouble, Sequence[str]] = {
    "failed": ("Failed", "Crashed", "TimedOut"),
    "awaiting-approval": ("AwaitingApproval",),
}
SUBJECT = "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}"
BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}\n"


def on_files(
    deployment: DeploymentResponse, glob: str, happenings: Sequence[Happening], given_as: str
) -> AutomationCore:
    """Run a deployment for each file that matches, with its path as an input. Raises UsageError if there is none."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    declared = (deployment.parameter_openapi_schema or {}).get("properties", {})
    inputs = declared.get("inputs", {}).get("properties", {})
    if given_as not in inputs:
        known = f"it has {', '.join(inputs)}" if inputs else "it has none"
        raise UsageError(
            f"the set of {deployment.name!r} has no input {given_as!r} to take a path", hint=f"--as NAME; {known}"
        )
    place = absolute(glob)
    return AutomationCore(
        name=f"{MARK}{deployment.name} on {', '.join(happenings)} {place}",
        description=f"Runs the deployment {deployment.name!r} for each file that is {' or '.join(happenings)}.",
        trigger=EventTrigger(
            expect={f"{FILE_EVENT}.{each}" for each in happenings},
            match={"prefect.resource.id": f"{FILE_EVENT}.{place}"},
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment.id,
                parameters=parameters_for({given_as: "{{ event.payload.path }}"}),
            )
        ],
    )


def absolute(glob: str) -> str:
    """A glob from the root of the file system on; `*` stands for folders in between, too, as Prefect has it."""
    return os.path.normpath(Path.cwd() / glob)


def notices(
    client: SyncPrefectClient, deployment: DeploymentResponse | None, block: str, troubles: Sequence[Trouble]
) -> AutomationCore:
    """Tell somebody when runs need them, by a block of Prefect's. Without a deployment, of all of ours."""
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    about = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    if deployment is not None:
        about = {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{deployment.id}"}
    whose = "every deployment" if deployment is None else deployment.name
    return AutomationCore(
        name=f"{MARK}{whose} {', '.join(troubles)} to {block.replace('/', ' ')}",
        description=f"Tells of runs of {whose} that are {' or '.join(troubles)}.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for each in troubles for state in STATES[each]},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=about,
        ),
        actions=[_telling(client, block)],
    )


def _telling(client: SyncPrefectClient, block: str) -> ActionTypes:
    from prefect.events.actions import CallWebhook, SendNotification
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    try:
        found = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as error:
        raise UsageError(
            f"the Prefect server has no block {block!r}",
            hint="name a notification block or a webhook block as TYPE/NAME: slack-webhook/alerts, webhook/pager",
        ) from error
    if kind == "webhook":
        return CallWebhook(block_document_id=found.id, payload=f"{SUBJECT}\n{BODY}")
    return SendNotification(block_document_id=found.id, subject=SUBJECT, body=BODY)


def put(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Add an automation in the place of those of its name; its id."""
    before = client.read_automations_by_name(wanted.name)
    made = client.create_automation(wanted)
    for each in before:
        client.delete_automation(each.id)
    return str(made)


def ours(client: SyncPrefectClient) -> list[Automation]:
    """All automations that were made here, by their names."""
    found: list[Automation] = []
    while page := client.read_automations(limit=200, offset=len(found)):
        found += page
    return sorted((each for each in found if each.name.startswith(MARK)), key=lambda each: each.name)


def as_json(automation: Automation) -> dict[str, Any]:
    """An automation, for programs."""
    return {
        "id": str(automation.id),
        "name": automation.name.removeprefix(MARK),
        "enabled": automation.enabled,
        "events": sorted(getattr(automation.trigger, "expect", ())),
        "actions": [each.type for each in automation.actions],
    }

"""Commands about automations: what starts a deployment when a file appears, and who is told when a run fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.automations import Happening, Trouble
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk
from quantum_orchestrator.deployments.screen import aligned

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation


def add(
    deployment: Annotated[
        str | None, Parameter(help="The deployment; without one, --notify is about all of instruction sets.")
    ] = None,
    /,
    *,
    on_file: Annotated[
        str | None,
        Parameter(
            help="Run the deployment for each file that matches this glob; * stands for folders in between, too."
        ),
    ] = None,
    event: Annotated[
        tuple[Happening, ...], Parameter(help="What happens to the file. (created) May be repeated.")
    ] = (),
    as_: Annotated[str, Parameter(name="--as", help="The input that takes the file's path. (path)")] = "path",
    notify: Annotated[
        str | None, Parameter(help="Tell of runs by this block: slack-webhook/alerts, webhook/pager, …")
    ] = None,
    of: Annotated[tuple[Trouble, ...], Parameter(help="Which runs to tell of. (failed) May be repeated.")] = (),
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Have Prefect run a deployment for files, or tell somebody of runs.

    Files are seen by `qo watch`, which tells Prefect of them. Added again, an
    automation is renewed.
    """
    if (on_file is None) == (notify is None):
        raise UsageError(
            "needs one of --on-file GLOB and --notify BLOCK", hint="`qo automation add --help` shows examples"
        )
    from quantum_orchestrator.deployments import automations
    from quantum_orchestrator.deployments.prefect_objects import asking, named

    with asking(talk.screen) as client:
        found = None if deployment is None else named(client, deployment)
        if on_file is not None:
            if found is None:
                raise UsageError("--on-file needs the DEPLOYMENT that is to run")
            wanted = automations.on_files(found, on_file, event or ("created",), as_)
        else:
            wanted = automations.notices(client, found, str(notify), of or ("failed",))
        made = automations.put(client, wanted)
    shown = wanted.name.removeprefix(automations.MARK)
    if json_:
        talk.screen.document({"id": made, "name": shown})
    else:
        talk.screen.result(f"added {shown}")
    return 0


def list_(*, json_: Json = False, talk: Talk = TALK) -> int:
    """List the automations that `qo automation add` has made."""
    from quantum_orchestrator.deployments import automations
    from quantum_orchestrator.deployments.prefect_objects import asking

    with asking(talk.screen) as client:
        found = [automations.as_json(each) for each in automations.ours(client)]
    if json_:
        talk.screen.document({"automations": found})
    elif found:
        rows = [[each["name"], "on" if each["enabled"] else "off", ", ".join(each["actions"])] for each in found]
        talk.screen.result("\n".join(aligned([["AUTOMATION", "", "DOES"], *rows])))
    else:
        talk.screen.note("no automations; `qo automation add` makes one")
    return 0


def remove(
    name: Annotated[str, Parameter(help="Its name, or the beginning of it or of its id.")],
    /,
    *,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Remove an automation."""
    from quantum_orchestrator.deployments import automations
    from quantum_orchestrator.deployments.prefect_objects import asking

    with asking(talk.screen) as client:
        one = _one(client, name)
        client.delete_automation(one.id)
    shown = one.name.removeprefix(automations.MARK)
    if json_:
        talk.screen.document({"id": str(one.id), "name": shown, "removed": True})
    else:
        talk.screen.result(f"removed {shown}")
    return 0


def _one(client: SyncPrefectClient, name: str) -> Automation:
    from quantum_orchestrator.deployments import automations

    every = automations.ours(client)
    found = [
        each
        for each in every
        if each.name.removeprefix(automations.MARK).startswith(name) or str(each.id).startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    which = "no automation" if not found else f"{len(found)} automations"
    raise UsageError(f"{which} by the name {name!r}", hint="`qo automation list` shows their names")

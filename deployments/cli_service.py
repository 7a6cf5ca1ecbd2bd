"""Commands about this machine: the local Prefect server, the warm service, and whether everything is in order.

`doctor` changes nothing, starts nothing, and must not import Prefect.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk, WorkspaceOfRuns, workspace_root


def up(*, json_: Json = False, talk: Talk = TALK) -> int:
    """Start the local Prefect server and the warm service; runs do this by themselves.

    No server is started if another Prefect API is configured, no service with
    QO_SERVICE=off. The service has imported what runs need: they begin at once.
    """
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import server, service
    from quantum_orchestrator.deployments.service_client import wanted

    screen, state = talk.screen, home()
    if server.find(state) is None:
        screen.note("starting the local Prefect server (once; about 10 s)")
    pending = server.begin(state)
    if wanted(os.environ):
        service.start()  # it loads while the server does
    connection = pending.wait(screen.note)
    warm = service.ensure() if wanted(os.environ) else None
    if json_:
        screen.document({**asdict(connection), "service": None if warm is None else {"pid": warm.pid}})
        return 0
    whose = "the local Prefect server" if connection.own else "the configured Prefect API"
    screen.result(f"{whose} answers at {connection.api_url}")
    if connection.ui_url:
        screen.result(connection.ui_url)
    screen.result("no warm service: QO_SERVICE is off" if warm is None else f"the warm service runs (pid {warm.pid})")
    return 0


def down(*, json_: Json = False, talk: Talk = TALK) -> int:
    """Stop the local Prefect server and the warm service.

    Journals are kept, and runs that are at work go on to their end; the next
    run starts both again.
    """
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import server, service

    screen, state = talk.screen, home()
    ended = service.stop(state)
    at_work = [each for one in ended for each in one.at_work]
    stopped = server.stop(state)
    if json_:
        screen.document({"stopped": stopped, "service": {"stopped": bool(ended), "at_work": at_work}})
        return 0
    screen.result("stopped the local Prefect server" if stopped else "no local Prefect server is running")
    if ended:
        screen.result("stopped the warm service")
    for each in at_work:
        screen.warn(f"still at work, and goes on to its end: {each['command']} (process {each['pid']})")
    return 0


def doctor(
    *,
    workspace: WorkspaceOfRuns = None,
    all_workspaces: Annotated[bool, Parameter(help="Read the journals of all workspaces.")] = False,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Check everything that runs depend on.

    Programs, the state folder, Prefect, the server, unfinished runs, and this
    workspace's journal. Exit code 4 if something is wrong.
    """
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments.doctor import Check
    from quantum_orchestrator.deployments.doctor import doctor as checks

    screen, root = talk.screen, workspace_root(workspace)
    try:
        found = checks(home(), root, every_workspace=all_workspaces, progress=screen.note)
    except QuantumError as error:
        found = [Check("state folder", ok=False, detail=error.message, hint=error.hint)]
    healthy = all(check.ok for check in found)
    if json_:
        screen.document({"ok": healthy, "checks": [asdict(check) for check in found]})
    else:
        for check in found:
            screen.result(f"{'✓' if check.ok else '✗'} {check.name}: {check.detail}", "" if check.ok else "red")
            if check.hint:
                screen.result(f"  hint: {check.hint}")
    return 0 if healthy else 4


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell that the script is for.")],
    /,
    *,
    install: Annotated[bool, Parameter(help="Put the script where the shell finds it.")] = False,
    talk: Talk = TALK,
) -> int:
    """Make the shell complete commands and options."""
    from quantum_orchestrator.deployments.cli import app

    if install:
        talk.screen.result(f"{app.install_completion(shell=shell)}: written; it counts in new shells")
    else:
        sys.stdout.write(app.generate_completion(shell=shell))
    return 0

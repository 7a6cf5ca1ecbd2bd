"""Commands about this machine: the local Prefect server, and whether everything is in order.

`doctor` changes nothing, starts nothing, and must not import Prefect.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk, WorkspaceOfRuns, workspace_root


def up(*, json_: Json = False, talk: Talk = TALK) -> int:
    """Start the local Prefect server; runs do this by themselves.

    Nothing is started if another Prefect API is configured.
    """
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import server

    screen, state = talk.screen, home()
    if server.find(state) is None:
        screen.note("starting the local Prefect server (once; about 10 s)")
    connection = server.ensure(state, progress=screen.note)
    if json_:
        screen.document(asdict(connection))
        return 0
    whose = "the local Prefect server" if connection.own else "the configured Prefect API"
    screen.result(f"{whose} answers at {connection.api_url}")
    if connection.ui_url:
        screen.result(connection.ui_url)
    return 0


def down(*, json_: Json = False, talk: Talk = TALK) -> int:
    """Stop the local Prefect server.

    Runs and their journals are kept; the next run starts it again.
    """
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import server

    stopped = server.stop(home())
    if json_:
        talk.screen.document({"stopped": stopped})
    else:
        talk.screen.result("stopped the local Prefect server" if stopped else "no local Prefect server is running")
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

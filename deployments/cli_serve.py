"""`qo serve`: what runs deployments on this machine, and the other doors along with it.

Which processes are kept at work, and how they end, is the matter of `deployments/serving.py`.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import Annotated

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_options import TALK, Talk


def serve(
    *,
    pool: Annotated[str | None, Parameter(help="The work pool whose runs are taken up. (quantum-orchestrator)")] = None,
    limit: Annotated[
        int | None, Parameter(help="How many runs may be at work at once; without it, any number.")
    ] = None,
    with_: Annotated[
        tuple[str, ...],
        Parameter(name="--with", help="Another command of `qo` to keep at work beside it. May be repeated."),
    ] = (),
    talk: Talk = TALK,
) -> int:
    """Run what is deployed, on this machine, until Ctrl-C.

    A worker of Prefect's takes up the runs of deployments that `qo deploy` made
    without --pool. With --with, other doors are kept at work as well. What ends
    is started again. Schedules go on while nothing is served: their runs are
    late, and are taken up the next time.
    """
    doors = [shlex.split(each) for each in with_]
    for words in doors:
        _require_command(words)
    from quantum_orchestrator.deployments import serving
    from quantum_orchestrator.deployments.cli_runs import connect
    from quantum_orchestrator.deployments.deploying import LOCAL_POOL

    screen = talk.screen
    connect(screen)
    every = [serving.worker(pool or LOCAL_POOL, limit), *map(serving.qo_door, doors)]
    screen.note(f"serving {', '.join(each.name for each in every)}; Ctrl-C ends it")
    asyncio.run(serving.serve(every, screen.note))
    return 0


def _require_command(words: list[str]) -> None:
    """Raises UsageError for what is no command that could be kept at work."""
    from quantum_orchestrator.deployments.cli import COMMANDS

    names = {each.partition(" ")[0] for each in COMMANDS} - {"serve"}
    if not words or words[0] not in names:
        raise UsageError(
            f"--with {shlex.join(words)!r}: is no command of `qo`", hint="for example --with 'watch in --workspace .'"
        )

"""Shows a rollback in Prefect, in the run's own flow run, where a server is known and answers.

None is started for it, and none is needed: what is to be undone is undone in any case. Prefect is imported only when
there is a server to show it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from quantum_orchestrator.blocks.home import home

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import RunRecord
    from quantum_orchestrator.blocks.workspace import Undo
    from quantum_orchestrator.flows.recover import Unwind


async def show(record: RunRecord, unwind: Unwind, *, to: str | None = None) -> Undo:
    """Unwind a run (see `recover.Shower`), or what came after its checkpoint `to`."""
    from quantum_orchestrator.deployments import prefect_settings, server

    known = server.answering(home()) if record.flow_run_id else None
    if known is None:
        return await unwind(None)
    os.environ.update(server.client_environment(known))
    prefect_settings.read_again()
    from quantum_orchestrator.flows.flow_runs import rollback_in_flow_run

    return await rollback_in_flow_run(record, unwind, to=to)

"""`qo api` with a light carrier: every run is the engine's and the journal's own, but none is shown in Prefect.

For what counts deliveries by the thousand. It is killed in the middle of runs, as they happen in its own process. The
arguments are the port and the workspace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from pathlib import Path

from plain_runner import PlainRunner

from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.deployments.api_door import Door
from quantum_orchestrator.deployments.api_limits import Limits
from quantum_orchestrator.deployments.cli_api import serve
from quantum_orchestrator.deployments.cli_inbox import judged
from quantum_orchestrator.deployments.dispatcher import Dispatcher
from quantum_orchestrator.deployments.inbox import Inbox, Item, Kind
from quantum_orchestrator.flows.document import OnFailure
from quantum_orchestrator.flows.engine import Run, RunSettings
from quantum_orchestrator.flows.inputs import resolve_inputs


def carry(item: Item) -> str:
    """Begin the item's run, or go on with it."""
    if item.kind is not Kind.RUN:
        return "this carrier only begins runs"
    with contextlib.closing(Journal(workspace_home(item.workspace))) as journal:
        journal.lock.acquire()
        try:
            _execute(item, journal)
        finally:
            journal.lock.release()
    return ""


def _execute(item: Item, journal: Journal) -> None:
    record = journal.run(item.run_id)
    if record is None:
        document = judged(item.source, item.document.encode(), file=item.file, folder=item.folder)
        inputs = resolve_inputs(document, item.inputs)
        raw = document.model_dump(by_alias=True, mode="json", exclude_unset=True)
        record = RunRecord(item.run_id, document.name, "running", raw, inputs, {}, time.time())
        journal.begin(record)
    elif record.status != "running":
        return
    document = judged(item.source, item.document.encode(), file=item.file, folder=item.folder)
    workspace = Workspace(item.workspace, journal)
    settings = RunSettings(parallel=1, on_failure=OnFailure.ROLLBACK)
    try:
        asyncio.run(Run(record, document, workspace, settings, policy=Policy(), runner=PlainRunner()).execute())
    finally:
        workspace.close()


def main() -> None:
    port, root = int(sys.argv[1]), Path(sys.argv[2])
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    with Inbox(home()) as inbox:
        serve(Door(root, home(), Limits(rate=0), inbox, Dispatcher(inbox, carry)), listener)


if __name__ == "__main__":
    main()

"""Tells Prefect how a run stands whose process could not do so itself: it died, or the server was gone.

Prefect shows such a flow run as Running for ever. Every command that speaks of a workspace calls `mark_crashed` first:
one that finds nothing to tell pays two small queries for it, and one that does at most a second. The journal is not
changed but for the note that Prefect knows. Neither this module nor what it calls imports Prefect.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.errors import QuantumError, StateError
from quantum_orchestrator.blocks.home import home

if TYPE_CHECKING:
    import httpx

    from quantum_orchestrator.blocks.journal import Journal, RunRecord

LIMIT_SECONDS = 1.0
"""In all, also where a name server or a proxy takes its time."""
_UNENDED = ["RUNNING", "PENDING", "CANCELLING"]
_ENDS = {
    "running": ("CRASHED", "Crashed"),
    "committed": ("COMPLETED", "Completed"),
    "cancelled": ("CANCELLED", "Cancelled"),
    "rolled_back": ("FAILED", "Failed"),
    "kept": ("FAILED", "Failed"),
    "needs_attention": ("FAILED", "Failed"),
}
"""What a flow run that nobody works on any more is to say; a run that waits has told so itself, or is gone on with."""


def mark_crashed(journal: Journal, root: Path) -> None:
    """Tell the Prefect API that is configured, or ours if it runs, of a run that died; nothing if nobody answers."""
    run = journal.unfinished() or next(iter(journal.runs(1)), None)
    if run is None or run.told_crashed or not run.flow_run_id or run.status not in _ENDS or journal.lock.is_held():
        return
    told = threading.Event()
    teller = threading.Thread(target=_tell, args=(journal, run, root, told), name="tell Prefect", daemon=True)
    teller.start()  # as no time limit of a request covers all that may take long in one
    teller.join(LIMIT_SECONDS)
    if told.is_set():
        with contextlib.suppress(StateError):  # then it is told again; the command says what is wrong
            journal.update(run.id, durable=False, told_crashed=1)


def _tell(journal: Journal, run: RunRecord, root: Path, told: threading.Event) -> None:
    """A problem with the server is not the command's: the next one tries again, and `qo doctor` says what it is."""
    import httpx

    from quantum_orchestrator.deployments import prefect_settings, server

    try:
        known = server.find(home())
        if known is None:
            return
        headers = {} if known.own else prefect_settings.authorization()
        with httpx.Client(base_url=known.api_url, headers=headers, timeout=LIMIT_SECONDS) as api:
            _tell_of(api, journal, run, root)
    except httpx.HTTPStatusError as answer:
        if answer.response.status_code != httpx.codes.NOT_FOUND:  # another server, or one whose database is new
            return
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, QuantumError, OSError):  # ImportError: for a SOCKS proxy
        return
    except (LookupError, ValueError, TypeError):  # what answers is no Prefect server
        return
    told.set()


def _tell_of(api: httpx.Client, journal: Journal, run: RunRecord, root: Path) -> None:
    flow_run = api.get(f"/flow_runs/{run.flow_run_id}").raise_for_status().json()
    kind = flow_run["state_type"]
    if kind not in _UNENDED or journal.lock.is_held():  # somebody has begun to go on with it
        return
    message = f"run {run.id} is {run.status.replace('_', ' ')}, which its process could not say"
    if run.status == "running":
        at = f"{run.id} --workspace {shlex.quote(str(root))}"
        message = f"the process of run {run.id} died; `qo resume {at}` goes on with it, `qo rollback {at}` undoes it"
    force = kind == "CANCELLING"  # from there, Prefect's rules lead to Cancelled alone
    _set_state(api, f"/flow_runs/{run.flow_run_id}", *_ENDS[run.status], message, force=force)
    chosen = {
        "flow_runs": {"id": {"any_": [run.flow_run_id]}},
        "task_runs": {"state": {"type": {"any_": [*_UNENDED, "SCHEDULED", "PAUSED"]}}},
    }
    for task_run in api.post("/task_runs/filter", json=chosen).raise_for_status().json():
        _set_state(api, f"/task_runs/{task_run['id']}", "CRASHED", "Crashed", "its process died", force=True)


def _set_state(api: httpx.Client, what: str, kind: str, name: str, message: str, *, force: bool) -> None:
    state: dict[str, Any] = {"type": kind, "name": name, "message": message}
    api.post(f"{what}/set_state", json={"state": state, "force": force}).raise_for_status()

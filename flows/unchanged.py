"""A run in which nothing has to be done, as every step is reused: it needs no engine, no server and no Prefect.

`cache` of the set asks for that. The journal, the log and the audit have the run as any other, and what it says is the
same; but it has no flow run, as nothing flowed. Invariant: it is here to its end or not at all, and nothing in the
workspace is written. As soon as one step has to run, all is left to Prefect. Steps are judged as in a run
(`flows/reusing.py`), while the workspace is held.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from quantum_orchestrator.blocks.errors import WorkspaceBusy
from quantum_orchestrator.blocks.home import policy_path, refuse_own_run, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.stamped_tree import StampedTree
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.auditing import RunAudit
from quantum_orchestrator.flows.books import Books
from quantum_orchestrator.flows.keeping import keep_within
from quantum_orchestrator.flows.requests import RunRequest, new_record, sandbox_level
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus, StepResult
from quantum_orchestrator.flows.reusing import Memory, Reusing, Wishes
from quantum_orchestrator.flows.run_log import LogFile


def run_unchanged(request: RunRequest) -> dict[str, Any] | None:
    """The run's document, if nothing has to be done; None if something has to, or somebody else holds the workspace."""
    wishes = request.reuse
    if not request.document.cache or wishes is None or not wishes.enabled:
        return None
    refuse_own_run(request.root)
    policy = Policy.load(policy_path())
    if policy.prefect_policy:
        return None  # which only the server knows
    with closing(Journal(workspace_home(request.root))) as journal:
        try:
            journal.lock.acquire()
        except WorkspaceBusy:
            return None
        try:
            begun = request.run_id is not None and journal.run(request.run_id) is not None  # which is refused
            return None if begun or journal.unfinished() else _run(request, wishes, policy, journal)
        finally:
            journal.lock.release()


def _run(request: RunRequest, wishes: Wishes, policy: Policy, journal: Journal) -> dict[str, Any] | None:
    workspace = Workspace(request.root, journal, policy.snapshot_exclude)
    try:
        record = new_record(request)
        books = Books(record, request.document, journal, request.graph)
        tree = StampedTree(workspace.folder, workspace.tree.umask)
        memory = Memory(request.document, journal.folder, tree, workspace.is_excluded)
        reusing = Reusing(record.id, books.graph, memory, wishes)
        found = reusing.all_of(books.graph.steps, books)
        if not found:
            return None
        level = sandbox_level(record, request.document.trust, policy)
        record = replace(record, options={**record.options, "sandbox": level})
        document, unsaid = _recorded(record, request, journal, found)
        problems = [unsaid, reusing.remember(request.document.name, books.results)]
    finally:
        workspace.close()
    kept = keep_within(journal, policy, run_id=record.id)
    problems += [kept.problem] if kept is not None else []
    _tell(record.id, request, journal, found, filter(None, problems))
    return document


def _recorded(
    record: RunRecord, request: RunRequest, journal: Journal, found: Sequence[StepResult]
) -> tuple[dict[str, Any], str]:
    """Put the run on record as one that has ended. Its document, and why the audit has not heard of the end."""
    audit = RunAudit(record, request.root)
    audit.begun(request.actor, request.source)
    record = replace(record, status=RunStatus.COMMITTED.value, ended_at=time.time())
    document = report.run_document(record, RunStatus.COMMITTED, found, journal, None)
    journal.begin(replace(record, report=document))
    journal.record_steps(record.id, [result.record() for result in found], durable=False)
    return document, audit.ended(request.actor, RunStatus.COMMITTED)


def _tell(
    run_id: str, request: RunRequest, journal: Journal, found: Sequence[StepResult], problems: Iterable[str]
) -> None:
    """The log and everybody who watches hear what they would of any other run."""
    events = [
        RunEvent(EventKind.RUN_STARTED, op=run_id),
        *map(RunEvent.finished, found),
        *(RunEvent(EventKind.LOG, message=problem) for problem in problems),
        RunEvent(EventKind.RUN_FINISHED, message="committed; nothing had to be done"),
    ]
    LogFile(journal.log_path(run_id)).many(events)
    for observer in request.observers:
        for event in events:
            observer(event)

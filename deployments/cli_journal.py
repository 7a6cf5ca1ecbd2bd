"""Commands that tell what has happened in a workspace: they read its journal, and change nothing.

`status`, `history`, `show` and `logs` work without a server, while a run is at work and after it has died; so
they must not import Prefect. Whether a run lives is asked of the workspace's lock, never of its record alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import StateError, UsageError
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.deployments.cli_options import TALK, Json, RunId, Talk, WorkspaceOfRuns, existing_root
from quantum_orchestrator.deployments.screen import aligned, human_time

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import Journal, RunRecord

FOLLOW_SECONDS = 0.2
NO_FILES = {"files": 0, "insertions": 0, "deletions": 0}


@contextlib.contextmanager
def journal_of(root: Path) -> Iterator[Journal]:
    """A workspace's journal, for reading. Prefect is told of a run that has died and could not say so itself."""
    from quantum_orchestrator.blocks.home import workspace_home
    from quantum_orchestrator.blocks.journal import Journal
    from quantum_orchestrator.deployments.crashed import mark_crashed

    journal = Journal(workspace_home(root))
    try:
        mark_crashed(journal, root)
        yield journal
    finally:
        journal.close()


def run_named(journal: Journal, root: Path, run_id: str | None) -> RunRecord:
    """The run that a command means: by id or its beginning, else the newest.

    Raises UsageError if there is none, with the workspace that has it as the hint, if one has.
    """
    if run_id is None:
        newest = journal.runs(1)
        if newest:
            return newest[0]
        raise UsageError(f"no run in {root} yet", hint="name the workspace of the run with --workspace")
    if not run_id:
        raise UsageError("the run's id is empty", hint="leave it out, or name a run")
    found = journal.run(run_id)
    if found is not None:
        return found
    lists_them = f"`qo history{workspace_option(root)}` lists them"
    if any(each.id.startswith(run_id) for each in journal.runs()):
        raise UsageError(f"{run_id!r} is the beginning of several runs", hint=lists_them)
    elsewhere = _workspace_with(run_id)
    hint = f"it is in another one: --workspace {elsewhere}" if elsewhere else lists_them
    raise UsageError(f"no run {run_id!r} in {root}", hint=hint)


def _workspace_with(run_id: str) -> str | None:
    """Another workspace of this user that has such a run; one whose journal cannot be read is left out."""
    from quantum_orchestrator.blocks.home import home

    for name in sorted(home().glob("workspaces/*/path")):
        if (name.parent / "journal.db").exists() and _has_run(name.parent, run_id):
            return os.fsdecode(name.read_bytes()).rstrip("\n")
    return None


def _has_run(folder: Path, run_id: str) -> bool:
    from quantum_orchestrator.blocks.journal import Journal

    try:
        with contextlib.closing(Journal(folder)) as journal:
            return journal.run(run_id) is not None
    except (StateError, ValueError):
        return False  # only a hint is lost; commands about that workspace tell of the damage


def standing(journal: Journal, run: RunRecord) -> str:
    """How a run stands: its recorded status, or `interrupted` for one whose process has died."""
    if run.status == "running" and not journal.lock.is_held():
        return "interrupted"
    return run.status


def next_commands(run_id: str, status: str, steps: list[str], root: Path) -> list[str]:
    """What a person can do about a run, in words that work from the current folder."""
    where = workspace_option(root)
    return [f"{command}{where}" for command in _ways_on(run_id, status, steps)]


def _ways_on(run_id: str, status: str, steps: list[str]) -> list[str]:
    match status:
        case "running":
            return [f"qo logs {run_id} -f", f"qo cancel {run_id}"]
        case "awaiting_approval":
            step = f" {steps[0]}" if steps else ""
            return [f"qo approve {run_id}{step}", f"qo reject {run_id}{step}"]
        case "interrupted" | "paused":
            return [f"qo resume {run_id}", f"qo rollback {run_id}"]
        case "needs_attention":
            keep = f"qo rollback {run_id} --force-conflicts keep"
            return [f"qo diff {run_id}", f"qo rollback {run_id}", keep]
        case "kept":
            return [f"qo diff {run_id}", f"qo resume {run_id}", f"qo rollback {run_id}"]
        case "committed":
            return [f"qo diff {run_id}", f"qo rollback {run_id}"]
    return [f"qo show {run_id}"]


def waiting_steps(journal: Journal, run_id: str) -> list[str]:
    """The steps of a run that wait for an approval."""
    return sorted(step.id for step in journal.steps(run_id).values() if step.status == "awaiting_approval")


def subject_of(journal: Journal, run_id: str, step_id: str) -> str:
    """What an approval of this step is recorded under: the step itself, or the content that it waits with."""
    record = journal.steps(run_id).get(step_id)
    outputs = record.outputs if record is not None and record.status == "awaiting_approval" else None
    return str((outputs or {}).get("approval", step_id))


def waits_with(journal: Journal, run_id: str) -> dict[str, dict[str, Any]]:
    """The steps that wait for the approval of a content, each with that: `message`, `files` and `patch`."""
    waiting = (step for step in journal.steps(run_id).values() if step.status == "awaiting_approval" and step.outputs)
    return {step.id: dict(step.outputs or {}) for step in waiting}


# status and history.


def status(*, workspace: WorkspaceOfRuns = None, json_: Json = False, talk: Talk = TALK) -> int:
    """Say what runs in the workspace, what waits, or what ran last."""
    root = existing_root(workspace)
    with journal_of(root) as journal:
        state = workspace_state(journal, root)
    if json_:
        talk.screen.document(state)
    else:
        talk.screen.result("\n".join(_state_lines(state)))
    return 0


def workspace_state(journal: Journal, root: Path) -> dict[str, Any]:
    """What runs there, what waits, or what ran last: the document of `qo status --json`."""
    run = journal.unfinished() or next(iter(journal.runs(1)), None)
    if run is None:
        return {"workspace": str(root), "status": "idle", "run_id": None, "next": []}
    how = standing(journal, run)
    waiting = waiting_steps(journal, run.id) if how == "awaiting_approval" else []
    ended = sum(step.status in ("succeeded", "failed", "skipped") for step in journal.steps(run.id).values())
    return {
        "workspace": str(root),
        "status": how,
        "run_id": run.id,
        "set": run.set_name,
        "pid": run.pid if how == "running" else None,
        "started_at": moment(run.started_at),
        "ended_at": None if run.ended_at is None else moment(run.ended_at),
        "steps_ended": ended,
        "waiting_for": waiting,
        "approvals": waits_with(journal, run.id) if waiting else {},
        "ui_url": run.ui_url,
        "error": None if run.error is None else dict(run.error),
        "next": next_commands(run.id, how, waiting, root),
    }


def _state_lines(state: dict[str, Any]) -> list[str]:
    if state["run_id"] is None:
        return [f"{state['workspace']}: no run yet"]
    how = state["status"].replace("_", " ")
    what = f"{state['workspace']}: run {state['run_id']} of {state['set']!r} "
    lines = [what + (f"is {how}" if state["status"] in ("running", "paused", "awaiting_approval") else f"{how}")]
    if state["status"] == "running":
        lines.append(f"  process {state['pid']}, since {state['started_at']}, steps ended: {state['steps_ended']}")
    if state["waiting_for"]:
        lines.append(f"  waits for the approval of: {', '.join(state['waiting_for'])}")
        lines += [f"  {step}: {about['message']}" for step, about in state["approvals"].items()]
    if state["error"]:
        lines.append(f"  error: {state['error']['message']}")
    return [*lines, *(f"  next: {command}" for command in state["next"])]


def moment(seconds: float) -> str:
    """A point in time, as people write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def history(
    *,
    limit: Annotated[int, Parameter(help="How many runs, the newest first; 0 for all. (20)")] = 20,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """List the runs of the workspace, the newest first."""
    root = existing_root(workspace)
    if limit < 0:
        raise UsageError(f"--limit {limit}: must be 0 or more")
    with journal_of(root) as journal:
        runs = [summary(journal, run) for run in journal.runs(limit or -1)]
    if json_:
        talk.screen.document({"workspace": str(root), "runs": runs})
    elif not runs:
        talk.screen.note(f"no run in {root} yet")
    else:
        rows = [["RUN", "SET", "STATUS", "STARTED", "TOOK", "FILES"], *(_row(run) for run in runs)]
        talk.screen.result("\n".join(aligned(rows)))
    return 0


def summary(journal: Journal, run: RunRecord) -> dict[str, Any]:
    """A run in a list of runs."""
    report = run.report or {}
    return {
        "run_id": run.id,
        "set": run.set_name,
        "status": standing(journal, run),
        "started_at": moment(run.started_at),
        "duration_s": None if run.ended_at is None else round(run.ended_at - run.started_at, 3),
        "diff": report.get("diff", NO_FILES),
        "ui_url": run.ui_url,
    }


def _row(run: dict[str, Any]) -> list[str]:
    took = "" if run["duration_s"] is None else human_time(run["duration_s"])
    name = run["set"] if len(run["set"]) <= 40 else run["set"][:39] + "…"
    return [
        run["run_id"],
        name,
        run["status"].replace("_", " "),
        run["started_at"],
        took,
        str(run["diff"]["files"]),
    ]


# One run.


def show(
    run_id: RunId = None,
    /,
    *,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Show how every step of a run ended.

    Without RUN, the newest.
    """
    root = existing_root(workspace)
    with journal_of(root) as journal:
        run = run_named(journal, root, run_id)
        document = run_report(journal, run)
    if json_:
        talk.screen.document(document)
    else:
        _show(talk, document)
    return 0


def _show(talk: Talk, document: dict[str, Any]) -> None:
    from quantum_orchestrator.blocks.levels import named_level
    from quantum_orchestrator.deployments.display import error_lines, run_lines, step_lines

    first, *rest = run_lines(document)
    talk.screen.result(*first)
    if "sandbox_level" in document:  # a run of an earlier version has left none
        talk.screen.result(f"scripts at sandbox level {named_level(document['sandbox_level'])}", "dim")
    lines = step_lines(document["steps"])
    messages = [step["error"]["message"] for step in document["steps"] if step["error"]]
    if document["error"] and document["error"]["message"] not in messages:
        lines += error_lines(document["error"])
    if lines:
        talk.screen.result("\n".join(lines))
    for line in rest:
        talk.screen.result(*line)


def run_report(journal: Journal, run: RunRecord) -> dict[str, Any]:
    """The run's document: the one that it left, or what the journal knows of it so far."""
    how = standing(journal, run)
    if run.report is not None and run.report["status"] == how:
        return dict(run.report)
    from quantum_orchestrator.flows import report
    from quantum_orchestrator.flows.instruction_set import InstructionSet
    from quantum_orchestrator.flows.plan import expand
    from quantum_orchestrator.flows.results import RunStatus, StepResult, StepStatus

    document = InstructionSet.model_validate(run.document)
    known = {step.id: StepResult.of(step) for step in journal.steps(run.id).values()}
    steps = [
        known.pop(step.id) if step.id in known else StepResult(step.id, step.instruction.op, StepStatus.PENDING)
        for step in expand(document, run.inputs).steps
    ]
    return report.run_document(run, RunStatus(how), [*steps, *known.values()], journal, run.error)


# logs.


def logs(
    run_id: RunId = None,
    /,
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="Go on until the run ends.")] = False,
    workspace: WorkspaceOfRuns = None,
    talk: Talk = TALK,
) -> int:
    """Print the log of a run, one line an event.

    Without RUN, the newest.
    """
    root = existing_root(workspace)
    with journal_of(root) as journal:
        run = run_named(journal, root, run_id)
        for line in _log_lines(journal, run, follow=follow):
            talk.screen.result(line)
            if follow:
                talk.screen.flush()
    return 0


def _log_lines(journal: Journal, run: RunRecord, *, follow: bool) -> Iterator[str]:
    path = journal.log_path(run.id)
    with path.open(encoding="utf-8", errors="replace") if path.exists() else io.StringIO() as file:
        yield from _whole_lines(file)
        while follow and _is_at_work(journal, run.id):
            time.sleep(FOLLOW_SECONDS)
            yield from _whole_lines(file)
        yield from _whole_lines(file)


def _is_at_work(journal: Journal, run_id: str) -> bool:
    now = journal.run(run_id)
    return now is not None and standing(journal, now) == "running"


def _whole_lines(file: TextIO) -> Iterator[str]:
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(start)  # the rest of the line is still to come
            return
        yield line.rstrip("\n")

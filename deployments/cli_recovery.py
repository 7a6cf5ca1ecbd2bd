"""Commands that go back and go on: `resume` and `rollback`, of runs that wait, have died or have ended.

What they do is `flows/recover.py`'s and `flows/orchestrate.py`'s matter; here is what people type and read. A rollback
needs no server; where one answers, it shows there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.deployments.cli_journal import journal_of, run_named, standing
from quantum_orchestrator.deployments.cli_options import (
    TALK,
    Follow,
    Json,
    JsonLines,
    RunId,
    Talk,
    WorkspaceOfRuns,
    existing_root,
    made_root,
)
from quantum_orchestrator.deployments.cli_runs import Conductor, Options, Parallel, ShowDiff, refuse_mixtures
from quantum_orchestrator.deployments.screen import Screen, plural

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import Journal, RunRecord
    from quantum_orchestrator.blocks.ref_changes import RefChange
    from quantum_orchestrator.flows.recover import RolledBack

MOST_NAMED = 10
RESUMABLE = ("interrupted", "paused", "awaiting_approval", "kept", "rolled_back", "cancelled")


def resume(
    run_id: RunId = None,
    /,
    *,
    from_: Annotated[
        str | None, Parameter(name="--from", help="Undo this step and all that comes after it, and run them again.")
    ] = None,
    workspace: WorkspaceOfRuns = None,
    parallel: Parallel = None,
    diff: ShowDiff = False,
    follow: Follow = False,
    json_: Json = False,
    json_stream: JsonLines = False,
    talk: Talk = TALK,
) -> int:
    """Go on with a run that was paused or has died.

    Without RUN, the unfinished run of this workspace. Steps that had ended are
    not run again, unless --from says so. A RUN that was kept goes on from the
    step that failed; one that was rolled back runs again from its start.
    """
    refuse_mixtures(json_stream, {"--json": json_, "--diff": diff})
    root = existing_root(workspace)
    with journal_of(root) as journal:
        record = _resumable(journal, root, run_id)
        if from_ is not None:
            check_step(record, root, from_)
    options = Options(parallel, diff=diff, json=json_, json_stream=json_stream, follow=follow, start_at=from_)
    conduct = Conductor(talk.screen, made_root(root), options)
    return conduct.finish(conduct.go_on(record))


def _resumable(journal: Journal, root: Path, run_id: str | None) -> RunRecord:
    """The run to go on with. Raises UsageError for one that has ended, or is at work."""
    from quantum_orchestrator.flows.recover import find_unfinished

    record = find_unfinished(journal) if run_id is None else run_named(journal, root, run_id)
    how = standing(journal, record)
    at = f"{record.id}{workspace_option(root)}"
    if how == "running":
        raise UsageError(f"run {record.id} is at work (process {record.pid})", hint=f"`qo logs {at} -f` follows it")
    if how == "needs_attention":
        raise UsageError(
            f"run {record.id} needs attention: what it left must be settled first",
            hint=f"`qo diff {at}` shows it; `qo rollback {at}` undoes it",
        )
    if how not in RESUMABLE:
        raise UsageError(f"run {record.id} is {how.replace('_', ' ')}: there is nothing to go on with")
    return record


def check_step(record: RunRecord, root: Path, step_id: str) -> None:
    """Raises UsageError unless the run has this step, or one that it is inside of."""
    from quantum_orchestrator.flows.books import owners
    from quantum_orchestrator.flows.instruction_set import InstructionSet
    from quantum_orchestrator.flows.plan import expand

    known = {step.id for step in expand(InstructionSet.model_validate(record.document), record.inputs).steps}
    if known.isdisjoint(owners(step_id)):
        raise UsageError(
            f"run {record.id} has no step {step_id!r}",
            hint=f"`qo show {record.id}{workspace_option(root)}` lists its steps",
        )


def rollback(
    run_id: RunId = None,
    /,
    *,
    to: Annotated[str | None, Parameter(help="Undo only what came after the checkpoint of this name.")] = None,
    check: Annotated[bool, Parameter(help="Only show what would be put back.")] = False,
    force_conflicts: Annotated[
        Literal["keep", "overwrite"] | None,
        Parameter(
            help="For files that somebody else has changed since. keep: they stay as they are; overwrite: what was "
            "there before the run is restored, and the present version put aside."
        ),
    ] = None,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Undo a run.

    The unfinished one of this workspace, or RUN, committed or not. Refused,
    with nothing changed, where somebody else has changed its files since:
    --force-conflicts settles that.
    """
    from quantum_orchestrator.blocks.workspace import Conflicts
    from quantum_orchestrator.deployments.rollback_in_prefect import show
    from quantum_orchestrator.flows.recover import Choice
    from quantum_orchestrator.flows.recover import rollback as undo

    root = existing_root(workspace)
    with journal_of(root) as journal:
        known = run_id if run_id is None else run_named(journal, root, run_id).id
    choice = Choice(to, Conflicts(force_conflicts or "report"))
    undone = undo(root, known, check=check, choice=choice, show=partial(show, to=to), with_patch=check or json_)
    if json_:
        talk.screen.document(rollback_json(undone, check=check))
    elif check:
        what = f"rolling back run {undone.run_id} would change {plural(len(undone.changes), 'path')}"
        stays = [f"{path} stays as it is" for path in undone.kept]
        talk.screen.comment([what, *(f"git: {_moved(each)}" for each in undone.refs), *stays])
        talk.screen.patch(undone.patch)
    else:
        _say_rolled_back(talk.screen, undone, to, root)
    return 0


def rollback_json(undone: RolledBack, *, check: bool) -> dict[str, Any]:
    """What a rollback did, or with `check` would do."""
    from quantum_orchestrator.deployments.planning import changes_json

    return {
        "run_id": undone.run_id,
        "status": "planned" if check else undone.status,
        "changes": changes_json(undone.changes),
        "refs": [
            {"repository": each.repository, "name": each.name, "before": each.before, "after": each.after}
            for each in undone.refs
        ],
        "kept": list(undone.kept),
        "aside": {path: str(place) for path, place in undone.aside.items()},
        "outside": list(undone.outside),
        "patch": undone.patch,
    }


def _moved(ref: RefChange) -> str:
    """A ref's way back in a few words."""
    name = ref.name if ref.repository == "." else f"{ref.repository}: {ref.name}"
    return f"{name} {_short(ref.before)} → {_short(ref.after)}"


def _short(value: str | None) -> str:
    return "(none)" if value is None else value if "/" in value else value[:10]


def _say_rolled_back(screen: Screen, undone: RolledBack, to: str | None, root: Path) -> None:
    where = "" if to is None else f" to checkpoint {to!r}"
    screen.result(f"rolled back{where}: run {undone.run_id}, {plural(len(undone.changes), 'path')} put back")
    for each in undone.refs:
        screen.result(f"  git: {_moved(each)}")
    for path in undone.kept:
        screen.warn(f"{path}: changed by somebody else since, and left as it is")
    for path, place in list(undone.aside.items())[:MOST_NAMED]:
        screen.warn(f"{path}: what was there until now is in {place}")
    if len(undone.aside) > MOST_NAMED:
        screen.warn(f"… and {len(undone.aside) - MOST_NAMED} more paths beside it")
    for step in undone.outside:
        screen.warn(f"step {step} has acted outside of the workspace, and that stands")
    if to is not None:
        screen.note(f"`qo resume {undone.run_id}{workspace_option(root)}` goes on from there")

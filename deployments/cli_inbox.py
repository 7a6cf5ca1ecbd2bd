"""The inbox of the doors on the command line: what they have accepted, and the carrying out of one of it.

`run` is what the dispatcher starts; it may be started again at any time, by anybody. It judges the set with the trust
that its source deserves, and begins the run of the id that was fixed at the door, or goes on with it if it has died.
`list` must not import Prefect.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import (
    InvalidInput,
    NeedsAttention,
    QuantumError,
    ServerError,
    StateError,
    UsageError,
)
from quantum_orchestrator.blocks.home import home, policy_path
from quantum_orchestrator.deployments.cli_journal import moment
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk, WorkspaceOfRuns, existing_root, made_root
from quantum_orchestrator.deployments.inbox import Inbox, Item, Kind, State
from quantum_orchestrator.deployments.screen import Screen, aligned

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import RunRecord
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.instruction_set import InstructionSet, Trust

AGAIN_SECONDS = 5.0
"""After a reason that may pass: the server does not answer, the workspace must be settled."""


def list_(
    *,
    limit: Annotated[int, Parameter(help="How many, the newest first; 0 for all. (20)")] = 20,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """List what the API, webhooks and watched folders have accepted, the newest first.

    Without --workspace, that of every workspace.
    """
    if limit < 0:
        raise UsageError(f"--limit {limit}: must be 0 or more")
    root = None if workspace is None else existing_root(workspace)
    with Inbox(home()) as inbox:
        items = [item_json(item) for item in inbox.items(limit or -1, root)]
    if json_:
        talk.screen.document({"items": items})
    elif not items:
        talk.screen.note("nothing was accepted yet")
    else:
        head = ["ITEM", "RUN", "WHAT", "SOURCE", "ACTOR", "STATUS", "ACCEPTED", "NOTE"]
        names = ("number", "run_id", "kind", "source", "actor", "status", "accepted_at", "note")
        talk.screen.result("\n".join(aligned([head, *([str(each[name]) for name in names] for each in items)])))
    return 0


def item_json(item: Item) -> dict[str, Any]:
    """An item as people and programs see it."""
    return {
        "number": item.number,
        "run_id": item.run_id,
        "kind": item.kind.value,
        "source": item.source,
        "actor": item.actor,
        "workspace": str(item.workspace),
        "status": item.status if item.state is State.ENDED else item.state.value,
        "accepted_at": moment(item.accepted_at),
        "ended_at": None if item.ended_at is None else moment(item.ended_at),
        "attempts": item.attempts,
        "note": item.note,
        "error": item.error,
    }


# Carrying out.


def run(
    number: Annotated[int, Parameter(help="The item, as `qo inbox list` numbers it.")], /, *, talk: Talk = TALK
) -> int:
    """Carry out what was accepted, unless that was done: the services do so by themselves.

    An item has one run. If that has died, this goes on with it.
    """
    from quantum_orchestrator.blocks.audit import acting_as

    with Inbox(home()) as inbox:
        item = inbox.item(number)
        if item is None:
            raise UsageError(f"there is no item {number}", hint="`qo inbox list` lists them")
        if item.state is State.ENDED:
            talk.screen.note(f"item {number} has ended: {item.status}")
            return 0
        try:
            with acting_as(item.actor):
                return _carry_out(inbox, item, talk.screen)
        except (QuantumError, OSError) as problem:
            _note(inbox, item, problem)
            raise


def _note(inbox: Inbox, item: Item, problem: QuantumError | OSError) -> None:
    """What is known of an item that could not be carried out. Of one whose run has begun, the journal knows more."""
    from quantum_orchestrator.deployments.dispatcher import run_of

    if item.kind is not Kind.ROLLBACK:
        with run_of(item) as (record, _):
            if record is not None and item.kind is Kind.RUN:
                return
    if isinstance(problem, OSError) or (
        isinstance(problem, NeedsAttention | ServerError | StateError) and item.kind is not Kind.ROLLBACK
    ):
        inbox.postpone(item.number, str(problem), AGAIN_SECONDS)
        return
    faults = getattr(problem, "as_json", None)
    error = {"type": problem.kind, "message": problem.message, "hint": problem.hint}
    status = "refused" if isinstance(problem, InvalidInput) else "failed"
    inbox.end(item.number, status, {**error, "errors": faults()} if faults else error)


def _carry_out(inbox: Inbox, item: Item, screen: Screen) -> int:
    from quantum_orchestrator.deployments.dispatcher import run_of

    with run_of(item) as (record, standing):
        found = record
    if item.kind is Kind.ROLLBACK:
        return _roll_back(inbox, item, found)
    if item.kind is Kind.RUN and found is None:
        return _begin(item, screen)
    if found is None:
        raise UsageError(f"no run {item.run_id!r} in {item.workspace}", hint="`qo history` lists them")
    unchanged = item.kind is Kind.RESUME and [found.status, found.ended_at] == item.options.get("was")
    if standing in ("running", "interrupted") or unchanged:
        return _go_on(item, found, screen)
    return 0  # it has come to an end, which the dispatcher notes


def trust_of(source: str, policy: Policy) -> Trust:
    """What a source deserves: nothing that comes from a network or a folder is trusted, unless the policy says so."""
    from quantum_orchestrator.flows.instruction_set import Trust

    return Trust.TRUSTED if policy.trusts(source) else Trust.UNTRUSTED


def judged(source: str, text: bytes, *, file: str, folder: Path | None) -> InstructionSet:
    """The set that has come from a source. Raises InvalidSet with every fault, and with all that the policy refuses."""
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.instruction_set import load

    policy = Policy.load(policy_path())
    return load(text, file=file, folder=folder, trust=trust_of(source, policy), policy=policy)


def _begin(item: Item, screen: Screen) -> int:
    from quantum_orchestrator.deployments.cli_options import Source, build_graph
    from quantum_orchestrator.deployments.cli_runs import Conductor, older_block
    from quantum_orchestrator.flows.instruction_set import resolve_inputs

    block = older_block(item.document.encode(), item.file)
    if block is not None:
        return _begin_older(item, block, screen)
    document = judged(item.source, item.document.encode(), file=item.file, folder=item.folder)
    inputs = resolve_inputs(document, item.inputs)
    graph = build_graph(Source(item.file, document), inputs)
    conduct = Conductor(screen, made_root(item.workspace), _options(item), source=item.source, run_id=item.run_id)
    return conduct.start(document, inputs, graph)


def _begin_older(item: Item, block: Mapping[str, Any], screen: Screen) -> int:
    """Run a block in the older format. Raises UsageError with what it says where no run of it has begun."""
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.deployments.cli_runs import Given, run_accepted_block
    from quantum_orchestrator.deployments.dispatcher import run_of
    from quantum_orchestrator.flows.instruction_set import Trust

    untrusted = trust_of(item.source, Policy.load(policy_path())) is Trust.UNTRUSTED
    given = Given(item.file, (), None, None, untrusted=untrusted, check=False, source=item.source)
    reply = run_accepted_block(screen, block, given, item.workspace, _options(item))
    with run_of(item) as (run, _):
        if run is None:
            raise UsageError(str(reply.get("status_message", "the block has not run")))
    return 0


def _options(item: Item) -> Any:
    from quantum_orchestrator.deployments.cli_runs import Options

    chosen = item.options
    return Options(
        parallel=chosen.get("parallel"),
        on_failure=chosen.get("on_failure"),
        start_at=chosen.get("from"),
        run_id=item.run_id if item.kind is Kind.RUN else None,
        json=True,
    )


def _go_on(item: Item, record: RunRecord, screen: Screen) -> int:
    from quantum_orchestrator.deployments.cli_runs import Conductor

    conduct = Conductor(screen, made_root(item.workspace), _options(item), source=item.source)
    return conduct.finish(conduct.go_on(record, partial(_decide, item, record)))


def _decide(item: Item, record: RunRecord) -> None:
    """What somebody has decided, if that is what the item is about; once, however often this is tried."""
    from quantum_orchestrator.deployments.cli_journal import journal_of
    from quantum_orchestrator.flows.auditing import RunAudit

    chosen = item.options.get("decide")
    if chosen is None:
        return
    with journal_of(item.workspace) as journal:
        if chosen["subject"] in journal.decisions(record.id):
            return
        RunAudit(record, item.workspace).decided(chosen["subject"], chosen["approved"], actor=item.actor)
        journal.decide(record.id, chosen["subject"], approved=chosen["approved"], actor=item.actor)


def _roll_back(inbox: Inbox, item: Item, record: RunRecord | None) -> int:
    from quantum_orchestrator.blocks.workspace import Conflicts
    from quantum_orchestrator.deployments.cli_recovery import rollback_json
    from quantum_orchestrator.deployments.rollback_in_prefect import show
    from quantum_orchestrator.flows.recover import UNDONE, Choice
    from quantum_orchestrator.flows.recover import rollback as undo

    to = item.options.get("to")
    if record is not None and record.status in UNDONE and item.attempts > 1:  # by whoever died before it said so
        inbox.end(item.number, record.status)
        return 0
    choice = Choice(to, Conflicts(item.options.get("force_conflicts") or "report"))
    undone = undo(item.workspace, item.run_id, check=False, choice=choice, show=partial(show, to=to), with_patch=False)
    result = rollback_json(undone, check=False)
    inbox.end(item.number, undone.status, result=result)
    return 0

"""What the API says and does about runs, without a word of HTTP: with the journal and judges of the command line.

A run is known by its item from the moment that it was accepted, and by the journal from the moment that it has begun;
where both know it, the journal is right. What changes a run (approve, resume, rollback) becomes an item of the inbox;
`cancel` leaves its mark in the journal, as `qo cancel` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import policy_path, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.deployments.cli_inbox import item_json, judged
from quantum_orchestrator.deployments.cli_journal import (
    NO_FILES,
    moment,
    run_report,
    standing,
    subject_of,
    summary,
    waiting_steps,
    waits_with,
)
from quantum_orchestrator.deployments.cli_recovery import RESUMABLE, check_step
from quantum_orchestrator.deployments.inbox import Arrival, Inbox, Item, Kind, Once, State

SOURCE = "api"
UNBEGUN = (State.QUEUED.value, State.STARTED.value)
GOING_ON = (*UNBEGUN, "running")
"""Of these, more is to come."""
MOST_REMEMBERED = 1_000
"""Digests of sets that were right."""


class UnknownRun(UsageError):
    """There is no run of this id here."""


class Conflict(UsageError):
    """The run does not stand so that this could be done."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was decided to be accepted, for a run that is known."""

    arrival: Arrival
    once: Once | None = None


class Runs:
    """The runs of one workspace."""

    def __init__(self, root: Path, inbox: Inbox) -> None:
        self.root = root
        self._inbox = inbox

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal]:
        """The workspace's journal, for a moment."""
        with contextlib.closing(Journal(workspace_home(self.root))) as journal:
            yield journal

    # Looking.

    def listed(self, limit: int) -> dict[str, Any]:
        """The newest runs, those that wait to begin before them."""
        with self.journal() as journal:
            begun = [summary(journal, run) for run in journal.runs(limit)]
            known = {each["run_id"] for each in begun}
            waiting = [
                _unbegun(each)
                for each in self._inbox.waiting(self.root)
                if each.kind is Kind.RUN and each.run_id not in known and journal.run(each.run_id) is None
            ]
        return {"workspace": str(self.root), "runs": [*waiting, *begun][:limit]}

    def document(self, run_id: str) -> dict[str, Any]:
        """How a run stands, with its steps. Raises UnknownRun."""
        item = self._item(run_id)
        with self.journal() as journal:
            record = journal.run(run_id)
            if record is not None:
                found = run_report(journal, record)
                if found["status"] == "awaiting_approval":
                    found["waiting_for"] = waiting_steps(journal, run_id)
                    found["approvals"] = waits_with(journal, run_id)
            elif item is None or item.kind is not Kind.RUN:
                raise unknown(run_id)
            else:
                found = {**_unbegun(item), "steps": [], "error": item.error}
        latest = self._inbox.last_of_run(run_id)
        return {**found, "accepted": None if item is None else item_json(item), "latest": _latest(latest, item)}

    def diff(self, run_id: str, step: str | None) -> dict[str, Any]:
        """What a run has changed, or one of its steps. Raises UnknownRun, Conflict, UsageError."""
        from quantum_orchestrator.deployments.cli_diff import diff_json, has_step
        from quantum_orchestrator.flows.run_diff import of_run, require_known

        with self.journal() as journal:
            record = self._record(journal, run_id)
            require_known(record)
            if step is not None and not has_step(journal, record, step):
                raise UnknownRun(f"run {run_id} has no step {step!r}", hint="GET /runs/ID lists its steps")
            how = standing(journal, record)
            about = {"run_id": run_id, "set": record.set_name, "status": how, "step": step}
            return {**about, **diff_json(of_run(journal, run_id, step))}

    def report(self, run_id: str) -> str:
        """A run as a page in Markdown."""
        from quantum_orchestrator.deployments.api_report import page

        return page(self.document(run_id))

    def progress(self, run_id: str, seen: dict[str, str]) -> tuple[str, list[dict[str, Any]]]:
        """How a run stands, and the steps that have become something else than what `seen` says of them."""
        from quantum_orchestrator.flows.results import StepResult

        with self.journal() as journal:
            record = journal.run(run_id)
            if record is None:
                return self._unbegun_status(run_id), []
            steps = []
            how = standing(journal, record)  # first, so that no step is missed at the end
            for step in journal.steps(run_id).values():
                if seen.get(step.id) != step.status:
                    seen[step.id] = step.status
                    steps.append(StepResult.of(step).as_json())
        return how, steps

    def _unbegun_status(self, run_id: str) -> str:
        item = self._item(run_id)
        if item is None or item.kind is not Kind.RUN:
            raise unknown(run_id)
        return item.status if item.state is State.ENDED else State.QUEUED.value

    def _item(self, run_id: str) -> Item | None:
        item = self._inbox.of_run(run_id)
        return item if item is not None and item.workspace == self.root else None

    def _record(self, journal: Journal, run_id: str) -> RunRecord:
        """The run in the journal. Raises UnknownRun, or Conflict for one that has not begun."""
        record = journal.run(run_id)
        if record is not None:
            return record
        if self._item(run_id) is None:
            raise unknown(run_id)
        raise Conflict(f"run {run_id} has not begun", hint="GET /runs/ID/events says when it does")

    # Deciding what is to be accepted.

    def decision(self, run_id: str, step: str | None, *, approved: bool, actor: str) -> Wanted:
        """Somebody's decision about what a run waits for. Raises UnknownRun, Conflict."""
        with self.journal() as journal:
            record = self._record(journal, run_id)
            if standing(journal, record) != "awaiting_approval":
                raise Conflict(f"run {run_id} is {_words(journal, record)}: nothing waits for an approval")
            waiting = waiting_steps(journal, run_id)
            if step is None and len(waiting) > 1:
                raise Conflict(f"several steps wait: {', '.join(waiting)}", hint='name one: {"step": "…"}')
            chosen = step or (waiting[0] if waiting else "")
            if chosen not in waiting:
                raise Conflict(f"step {chosen!r} does not wait for an approval", hint=f"waiting: {', '.join(waiting)}")
            subject = subject_of(journal, run_id, chosen)
            if subject in journal.decisions(run_id):
                raise Conflict(f"step {chosen!r} of run {run_id} was decided already")
        options = {"was": [record.status, record.ended_at], "decide": {"subject": subject, "approved": approved}}
        arrival = Arrival(SOURCE, actor, self.root, Kind.RESUME, options=options, run_id=run_id)
        return Wanted(arrival, Once(f"decision:{run_id}", f"{subject}:{record.ended_at}"))

    def resumption(self, run_id: str, start_at: str | None, actor: str) -> Arrival:
        """To go on with a run. Raises UnknownRun, Conflict."""
        with self.journal() as journal:
            record = self._record(journal, run_id)
            self._refuse_busy(run_id)
            how = standing(journal, record)
            if how not in RESUMABLE:
                raise Conflict(f"run {run_id} is {how.replace('_', ' ')}: there is nothing to go on with")
            if start_at is not None:
                check_step(record, self.root, start_at)
        options = {"was": [record.status, record.ended_at], "from": start_at}
        return Arrival(SOURCE, actor, self.root, Kind.RESUME, options=options, run_id=run_id)

    def undoing(self, run_id: str, choice: Mapping[str, Any], actor: str) -> Arrival:
        """To undo a run. Raises UnknownRun, Conflict."""
        with self.journal() as journal:
            record = self._record(journal, run_id)
            self._refuse_busy(run_id)
            how = standing(journal, record)
            if how in ("running", "rolled_back", "cancelled"):
                raise Conflict(f"run {run_id} is {how.replace('_', ' ')}: there is nothing to undo")
        return Arrival(SOURCE, actor, self.root, Kind.ROLLBACK, options=dict(choice), run_id=run_id)

    def _refuse_busy(self, run_id: str) -> None:
        latest = self._inbox.last_of_run(run_id)
        if latest is not None and latest.state is not State.ENDED:
            raise Conflict(f"run {run_id}: its {latest.kind.value} is {latest.state.value} and has not ended")

    def undoing_shown(self, run_id: str, choice: Mapping[str, Any]) -> dict[str, Any]:
        """What an undoing would change; nothing is changed."""
        from quantum_orchestrator.blocks.workspace import Conflicts
        from quantum_orchestrator.deployments.cli_recovery import rollback_json
        from quantum_orchestrator.flows.recover import Choice, rollback

        with self.journal() as journal:
            self._record(journal, run_id)
        chosen = Choice(choice.get("to"), Conflicts(choice.get("force_conflicts") or "report"))
        undone = rollback(self.root, run_id, check=True, choice=chosen, with_patch=True)
        return rollback_json(undone, check=True)

    def cancel(self, run_id: str) -> str:
        """Ask for the end of a run; how it stands now. Raises UnknownRun, Conflict."""
        if self._item(run_id) is not None and self._inbox.withdraw(run_id):
            return "cancelled"
        with self.journal() as journal:
            record = self._record(journal, run_id)
            if standing(journal, record) != "running":
                raise Conflict(f"run {run_id} is {_words(journal, record)}: nothing is at work")
            journal.update(run_id, cancel_requested=1)
        return "cancelling"


def unknown(run_id: str) -> UnknownRun:
    """There is no run of this id here."""
    return UnknownRun(f"no run {run_id!r} in this workspace", hint="GET /runs lists them")


def _words(journal: Journal, record: RunRecord) -> str:
    return standing(journal, record).replace("_", " ")


def _unbegun(item: Item) -> dict[str, Any]:
    """A run that only the inbox knows, in the form of those that the journal knows."""
    return {
        "run_id": item.run_id,
        "set": "",
        "status": item.status if item.state is State.ENDED else State.QUEUED.value,
        "started_at": moment(item.accepted_at),
        "duration_s": None,
        "diff": dict(NO_FILES),
        "ui_url": None,
        "note": item.note,
    }


def _latest(latest: Item | None, first: Item | None) -> dict[str, Any] | None:
    """The newest item about a run, if that is not the one that it began as."""
    if latest is None or (first is not None and latest.number == first.number):
        return None
    return item_json(latest) | {"result": latest.result}


# Sets.


def read_set(text: str, inputs: Mapping[str, Any], source: str = SOURCE) -> dict[str, Any]:
    """Judge a set and its inputs, as `qo validate` does. Raises InvalidSet."""
    from quantum_orchestrator.deployments.cli_options import Source, build_graph
    from quantum_orchestrator.flows.instruction_set import resolve_inputs

    document = judged(source, text.encode(), file="set", folder=None)
    if inputs or all("default" in schema for schema in document.inputs.values()):
        build_graph(Source("set", document), resolve_inputs(document, inputs))
    return {
        "status": "valid",
        "set": document.name,
        "instructions": len(document.instructions),
        "inputs": sorted(document.inputs),
        "trust": document.trust.value,
    }


class Accepting:
    """Judges sets that are to run. One that was right is right again, with the same inputs under the same policy: a
    program that sends the same set a hundred times a second is not judged a hundred times."""

    def __init__(self) -> None:
        self._right: OrderedDict[str, None] = OrderedDict()

    def knows(self, text: str, inputs: Mapping[str, Any]) -> bool:
        """Whether this was judged before, and is right. Costs no more than a digest."""
        key = self._key(text, inputs)
        known = key in self._right
        if known:
            self._right.move_to_end(key)
        return known

    def judge(self, text: str, inputs: Mapping[str, Any]) -> None:
        """Raises InvalidSet with all that is wrong."""
        from quantum_orchestrator.deployments.cli_options import Source, build_graph
        from quantum_orchestrator.flows.instruction_set import resolve_inputs

        key = self._key(text, inputs)  # before, as the policy may be changed meanwhile
        document = judged(SOURCE, text.encode(), file="set", folder=None)
        build_graph(Source("set", document), resolve_inputs(document, inputs))
        self._right[key] = None
        while len(self._right) > MOST_REMEMBERED:
            self._right.popitem(last=False)

    def _key(self, text: str, inputs: Mapping[str, Any]) -> str:
        try:
            about = policy_path().stat()
            policy = f"{about.st_ino} {about.st_mtime_ns} {about.st_size}"
        except OSError:
            policy = ""  # there is none; or it cannot be read, which the judge says
        parts = json.dumps([policy, text, inputs], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()


def planned(text: str, inputs: Mapping[str, Any], root: Path, *, explain: bool) -> dict[str, Any]:
    """The dry run, as `qo plan --json` has it. Raises InvalidSet, QuantumError."""
    from quantum_orchestrator.deployments import planning
    from quantum_orchestrator.deployments.cli_options import Source
    from quantum_orchestrator.flows.instruction_set import resolve_inputs

    document = judged(SOURCE, text.encode(), file="set", folder=None)
    made = planning.make_plan(Source("set", document), resolve_inputs(document, inputs), root)
    return planning.plan_json(made, explain=explain)

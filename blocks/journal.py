"""The journal: what every run did to one workspace, written down before it is done, so that it can be undone.

One SQLite database per workspace, outside of it (`blocks/database.py`: an acknowledged row survives a power cut, a
damaged one is not believed), and beside it the large contents (`blocks/contents.py`). The format:

    runs       one row a run: the document, its inputs, how it stands
    steps      one row a step of a run: how it ended, what it gave
    effects    one row a path that a step changes: before and after, in the order of writing. A row is an INTENT, and
               done once its step's own row says that the step has succeeded; it is durable before the path is touched,
               together with the content that it replaces
    captures   one row for a step that acts by itself (a script, git): everything it may change, as it was before
    exchanges  one row a try at a language model: what was asked, what it answered (`blocks/exchanges.py`)
    outbox     one row a step that sends something which cannot be taken back: under which key, how far it has come
    contents   by SHA-256: the contents that effects and captures name

Invariant: whatever a run has changed can be put back from here alone, until `prune` gives that up for a run that has
ended. A row's `before` was read from the workspace, never computed. Undoing marks rows `undone`, so that it can be
interrupted and repeated.

This module knows neither operations nor Prefect, and never touches the workspace; `blocks/workspace.py` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.contents import Contents
from quantum_orchestrator.blocks.database import (
    AMONG,
    APPROVALS,
    CAPTURES,
    EFFECTS,
    EXCHANGES,
    IS_UNFINISHED,
    LAST_EFFECT,
    OUTBOX,
    REMOVED,
    RUNS,
    STEPS,
    UNFINISHED,
    UNFINISHED_STATUSES,
    Database,
    Row,
    Transaction,
)
from quantum_orchestrator.blocks.errors import StateError, UsageError
from quantum_orchestrator.blocks.exchanges import Exchanges
from quantum_orchestrator.blocks.lock import Lock
from quantum_orchestrator.blocks.tree import Change, Entry, Kind

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class EffectState(StrEnum):
    """How far an effect has come."""

    INTENT = "intent"  # or done, if the step's row says so
    FOUND = "found"  # after the death of whoever let a script run: its work, or somebody's since, nobody knows
    DONE = "done"  # as older versions wrote it: no more than an INTENT
    KEPT = "kept"  # a folder whose maker is undone, and which something else was in at that time
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of `effects`."""

    number: int
    step: str
    change: Change
    state: EffectState


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One row of `runs`. `started_at` and `ended_at` are seconds since the epoch."""

    id: str
    set_name: str
    status: str
    document: Mapping[str, Any]
    inputs: Mapping[str, Any]
    options: Mapping[str, Any]
    started_at: float
    ended_at: float | None = None
    pid: int = 0
    flow_run_id: str | None = None
    ui_url: str | None = None
    report: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    boot_id: str | None = None
    """Of the system's start under which it was begun: after another one, nothing of it can still be running."""
    told_crashed: bool = False
    """Whether Prefect knows that its engine has died."""
    predicted: Any = None
    """What the plan said that it would change."""
    pruned: bool = False
    """Whether its before-images were removed: it can neither be undone nor shown in detail."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One row of `steps`. `duration` is seconds; `error` is `{"type", "message", "hint"}`."""

    id: str
    op: str
    status: str
    attempts: int = 0
    duration: float = 0.0
    outputs: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


class SendingState(StrEnum):
    """How far something that cannot be taken back has come."""

    TRYING = "trying"
    DOUBTFUL = "doubtful"  # trying once more, and an earlier try may have got through: whatever becomes of this one
    SENT = "sent"
    DROPPED = "dropped"  # the last try is known not to have got through
    TAKEN_BACK = "taken_back"  # by the step's `undo` instruction: another try is about something new


@dataclass(frozen=True, slots=True)
class Sending:
    """One row of `outbox`, as it was before the try that asks. `key` is the same for every try; `in_doubt` says that
    an earlier one may have reached the other side."""

    step: str
    key: str
    state: SendingState
    in_doubt: bool


def boot_id() -> str:
    """What the system gives itself anew at each start."""
    return BOOT_ID.read_text().strip()


_from_json = json.JSONDecoder().decode
_KINDS = {kind.value: kind for kind in Kind}


def encode_entry(entry: Entry | None) -> str | None:
    """An entry as JSON; absence as None."""
    if entry is None:
        return None
    if not entry.target:  # most entries: the same as below, in a tenth of the time
        return f'["{entry.kind.value}", {entry.mode}, "{entry.sha256}", {entry.size}, ""]'
    return json.dumps([entry.kind.value, entry.mode, entry.sha256, entry.size, entry.target])


def decode_entry(text: str | None) -> Entry | None:
    """The inverse of `encode_entry`."""
    if text is None:
        return None
    kind, mode, sha256, size, target = _from_json(text)
    return Entry(_KINDS[kind], mode, sha256, size, target)


def _encode_path(path: str) -> str | bytes:
    """A path as a column holds it: text, or bytes where a name is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _decode_path(column: str | bytes) -> str:
    """The inverse of `_encode_path`."""
    return os.fsdecode(column)


def _decode_change(path: str | bytes, before: str | None, after: str | None) -> Change:
    return Change(_decode_path(path), decode_entry(before), decode_entry(after))


class Journal:
    """One workspace's journal. Any number of threads may use one object at once."""

    def __init__(self, folder: Path) -> None:
        """Open the journal in `folder` (the workspace's state folder), made if it is not there. Raises StateError."""
        self.folder = folder
        self.lock = Lock(folder / "lock")
        try:
            (folder / "contents").mkdir(mode=0o700, exist_ok=True)
            (folder / "logs").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(f"{folder}: the journal cannot be read: {error}", hint=_FOLDER_HINT) from error
        self._database = Database(folder)
        self._contents = Contents(self._database, folder / "contents")
        self.exchanges = Exchanges(self._database)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _rows(self, query: str, *values: Any) -> list[Row]:
        return self._database.read(query, *values)

    @contextlib.contextmanager
    def _decoding(self, what: str) -> Iterator[None]:
        """What is not as this module writes it is damage."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._database.damaged(f"{what}: {error}") from error

    # Runs.

    def begin(self, run: RunRecord) -> None:
        """Record that a run starts, in this process and since this start of the system."""

        def work(transaction: Transaction) -> None:
            number = transaction.execute("SELECT coalesce(max(number), 0) + 1 FROM runs").fetchone()[0]
            row = (
                *(number, run.id, run.set_name, run.status),
                *(json.dumps(each) for each in (run.document, run.inputs, run.options)),
                *(run.started_at, run.ended_at, os.getpid(), run.flow_run_id, run.ui_url),
                *(_dumped(run.report), _dumped(run.error), 0),
                *(boot_id(), int(run.told_crashed), _dumped(run.predicted), int(run.pruned)),
            )
            transaction.insert(RUNS, [row])
            transaction.counts[UNFINISHED] += run.status in UNFINISHED_STATUSES

        self._database.write(work)

    def update(self, run_id: str, *, durable: bool = True, **fields: Any) -> None:
        """Set columns of a run: status, ended_at, pid, boot_id, flow_run_id, ui_url, report, error, predicted,
        told_crashed, cancel_requested."""
        encoded = {name: _dumped(value) if name in _JSON else value for name, value in fields.items()}

        def work(transaction: Transaction) -> None:
            for row in transaction.change(RUNS, encoded, "id = ?", run_id):
                was = row[_STATUS]
                now = encoded.get("status", was)
                transaction.counts[UNFINISHED] += (now in UNFINISHED_STATUSES) - (was in UNFINISHED_STATUSES)

        self._database.write(work, durable=durable)

    def runs(self, limit: int = -1) -> list[RunRecord]:
        """The newest runs first."""
        return [self._run(row) for row in self._database.select(RUNS, "1 ORDER BY number DESC LIMIT ?", limit)]

    def run(self, run_id: str) -> RunRecord | None:
        """A run by its id, or by the beginning of it if that names one alone."""
        rows = self._database.select(RUNS, "id = ?", run_id)
        if not rows:
            rows = self._database.select(RUNS, "substr(id, 1, ?) = ? LIMIT 2", len(run_id), run_id)
        return self._run(rows[0]) if len(rows) == 1 else None

    def run_of_flow_run(self, flow_run_id: str) -> RunRecord | None:
        """The run that a flow run of Prefect's is the face of."""
        rows = self._database.select(RUNS, "flow_run_id = ? ORDER BY number DESC LIMIT 1", flow_run_id)
        return self._run(rows[0]) if rows else None

    def unfinished(self) -> RunRecord | None:
        """The run whose effects are neither committed nor undone, if there is one; at most one can be."""
        counts = self._rows(f"SELECT unfinished, (SELECT count(*) FROM runs WHERE {IS_UNFINISHED}) FROM ledger")  # noqa: S608
        if any(wanted != found for wanted, found in counts):
            raise self._database.damaged("it does not have the unfinished runs that it should have")
        rows = self._database.select(RUNS, f"{IS_UNFINISHED} ORDER BY number DESC LIMIT 1")
        return self._run(rows[0]) if rows else None

    def cancel_requested(self, run_id: str) -> bool:
        """Whether somebody asked for the run's end."""
        return any(row[0] for row in self._rows("SELECT cancel_requested FROM runs WHERE id = ?", run_id))

    def _run(self, row: Row) -> RunRecord:
        values = dict(zip(RUNS.columns, row, strict=True))
        with self._decoding(f"run {values['id']}"):
            for name in _JSON:
                values[name] = _loaded(values[name])
            values["told_crashed"], values["pruned"] = bool(values["told_crashed"]), bool(values["pruned"])
            del values["number"], values["cancel_requested"]
            return RunRecord(**values)

    # Steps.

    def record_step(self, run_id: str, step: StepRecord, *, done: bool = False, durable: bool = True) -> None:
        """Record how a step stands; with `done`, its intents become done, and what it sends sent, with it.

        Without `durable` that survives `kill -9`, but is safe from a power cut only with the next durable record: a
        step that would then be undone and run once more is well served by it.
        """
        self.record_steps(run_id, [step], done=done, durable=durable)

    def record_steps(
        self, run_id: str, steps: Sequence[StepRecord], *, done: bool = False, durable: bool = True
    ) -> None:
        """The same for several at once: all of them, or none."""
        rows = [
            (
                *(run_id, step.id, step.op, step.status, step.attempts, step.duration),
                *(_dumped(step.outputs), _dumped(step.error)),
            )
            for step in steps
        ]

        def work(transaction: Transaction) -> None:
            transaction.put_all(STEPS, rows)
            if done:
                _mark_done(transaction, run_id, [step.id for step in steps])

        self._database.write(work, durable=durable)

    def set_step_status(self, run_id: str, step_ids: str | Iterable[str], status: str) -> None:
        """Change how steps stand, and nothing else of them."""
        changed = json.dumps([step_ids] if isinstance(step_ids, str) else list(step_ids))

        def work(transaction: Transaction) -> None:
            transaction.change(STEPS, {"status": status}, f"run = ? AND id {AMONG}", run_id, changed)

        self._database.write(work)

    def steps(self, run_id: str) -> dict[str, StepRecord]:
        """The steps of a run, by id."""
        rows = self._database.select(STEPS, "run = ?", run_id)
        with self._decoding(f"the steps of run {run_id}"):
            return {row[1]: StepRecord(*row[1:6], *map(_loaded, row[6:])) for row in rows}

    # Effects.

    def intend(
        self,
        run_id: str,
        step_id: str,
        changes: Sequence[Change],
        content_of: Callable[[str], bytes | None],
        state: EffectState = EffectState.INTENT,
    ) -> None:
        """Make INTENTs durable, with the contents before and after that are not stored yet.

        `content_of` gives a content by its digest, or None if it is stored already. Large ones are written first.
        """
        self.intend_all(run_id, [(step_id, changes)], content_of, state)

    def intend_all(
        self,
        run_id: str,
        changes_of: Sequence[tuple[str, Sequence[Change]]],
        content_of: Callable[[str], bytes | None],
        state: EffectState = EffectState.INTENT,
    ) -> None:
        """The same for several steps at once, in their order: all of them, or none."""
        digests = {each for _, changes in changes_of for each in _digests(changes)}
        found = ((sha256, content_of(sha256)) for sha256 in sorted(digests))
        contents = self._contents.rows({sha256: content for sha256, content in found if content is not None})
        rows = [
            (run_id, step_id, _encode_path(each.path), *map(encode_entry, (each.before, each.after)), state.value)
            for step_id, changes in changes_of
            for each in changes
        ]

        def work(transaction: Transaction) -> None:
            self._contents.store(transaction, contents)
            last = transaction.last_effect()
            transaction.insert(EFFECTS, [(number, *row) for number, row in enumerate(rows, last + 1)])
            transaction.newest = last + len(rows)

        self._database.write(work, noted=False)

    def effects(self, run_id: str, step_ids: str | Iterable[str] | None = None) -> list[Effect]:
        """The effects of a run (or of some of its steps) that stand, in the order of writing.

        Raises UsageError if they were removed.
        """
        if step_ids is None:
            rows = self._database.select(EFFECTS, "run = ? ORDER BY number", run_id)
        else:
            chosen = [step_ids] if isinstance(step_ids, str) else step_ids
            found = (self._database.select(EFFECTS, "run = ? AND step = ?", run_id, step_id) for step_id in chosen)
            rows = sorted((row for several in found for row in several), key=lambda row: int(row[0]))
        if not rows:
            self._refuse_pruned(run_id)
        with self._decoding(f"the effects of run {run_id}"):
            return [
                Effect(number, step, _decode_change(*columns), EffectState(state))
                for number, _, step, *columns, state in rows
                if state != EffectState.UNDONE
            ]

    def _refuse_pruned(self, run_id: str) -> None:
        if any(pruned for (pruned,) in self._rows("SELECT pruned FROM runs WHERE id = ?", run_id)):
            raise UsageError(
                f"run {run_id}: its before-images were removed by gc",
                hint="it can be neither undone nor shown in detail; its report stays",
            )

    def mark_undone(self, effects: Iterable[Effect], kept: Iterable[Effect] = ()) -> None:
        """Record that these effects have been put back, but for those that are kept."""
        states = [(EffectState.UNDONE, list(effects)), (EffectState.KEPT, list(kept))]

        def work(transaction: Transaction) -> None:
            for state, several in states:
                numbers = json.dumps([effect.number for effect in several])
                transaction.change(EFFECTS, {"state": state.value}, f"number {AMONG}", numbers)

        self._database.write(work)

    # Captures.

    def capture(
        self,
        run_id: str,
        step_id: str,
        areas: Sequence[str],
        manifest: Mapping[str, Entry],
        contents: Mapping[str, bytes],
        digests: Mapping[str, tuple[str, str]],
    ) -> None:
        """Make durable what a step that acts by itself may change: all of `manifest`, as it is before the step."""
        encoded = json.dumps({path: encode_entry(entry) for path, entry in manifest.items()})
        rows = self._contents.rows(contents)
        known = [(_encode_path(path), *each) for path, each in digests.items()]

        def work(transaction: Transaction) -> None:
            self._contents.store(transaction, rows)
            transaction.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", known)
            transaction.put(CAPTURES, (run_id, step_id, json.dumps(list(areas)), encoded))

        self._database.write(work)

    def captured(self, run_id: str) -> dict[str, tuple[list[str], dict[str, Entry]]]:
        """The captures of steps that have not ended: areas and manifest by step."""
        rows = self._database.select(CAPTURES, "run = ?", run_id)
        with self._decoding(f"the captures of run {run_id}"):
            return {step: (json.loads(areas), _decode_manifest(manifest)) for _, step, areas, manifest in rows}

    def steps_captured(self, run_id: str) -> list[str]:
        """The steps that have a capture and have not ended."""
        return sorted(row[1] for row in self._database.select(CAPTURES, "run = ?", run_id))

    def drop_capture(self, run_id: str, step_id: str) -> None:
        """Forget a capture whose step has been undone."""
        self._database.write(lambda each: each.delete(CAPTURES, "run = ? AND step = ?", run_id, step_id))

    def known_digests(self) -> dict[str, tuple[str, str]]:
        """For files hashed before, whose contents are stored: stamp (inode, size, times) and digest, by path."""
        rows = self._rows("SELECT path, stamp, sha256 FROM digests JOIN contents USING (sha256)")
        with self._decoding("the digests"):
            return {_decode_path(path): (stamp, sha256) for path, stamp, sha256 in rows}

    # Contents.

    def has_content(self, sha256: str) -> bool:
        """Whether a content is stored."""
        return self._contents.has(sha256)

    def contents_missing(self, digests: Iterable[str]) -> set[str]:
        """Those of these contents that are not stored."""
        return self._contents.missing(digests)

    def content(self, sha256: str) -> bytes:
        """A stored content. Raises StateError if it is missing or not what its digest says."""
        return self._contents.read(sha256)

    def reader(self, digests: Iterable[str]) -> Callable[[str], bytes]:
        """`content` for whoever wants about these, about in this order: in a fraction of the time."""
        return self._contents.reader(digests)

    def check_contents(self, digests: Iterable[str]) -> None:
        """Raises StateError if one of these contents is missing or not what its digest says."""
        self._contents.check(digests)

    # The outbox.

    def begin_sending(self, run_id: str, step_id: str, key: str) -> Sending:
        """Record, durably, that a step is about to send something that cannot be taken back.

        The answer says how an earlier try stands. What is sent already stays so.
        """

        def work(transaction: Transaction) -> Sending:
            rows = transaction.select(OUTBOX, "run = ? AND step = ?", run_id, step_id)
            if rows:
                earlier = _sending(rows[0])
                if earlier.state is SendingState.TAKEN_BACK:
                    earlier = Sending(step_id, key, SendingState.TRYING, in_doubt=False)
                if earlier.state is not SendingState.SENT:
                    now = SendingState.DOUBTFUL if earlier.in_doubt else SendingState.TRYING
                    transaction.put(OUTBOX, (run_id, step_id, earlier.key, now.value))
                return earlier
            transaction.put(OUTBOX, (run_id, step_id, key, SendingState.TRYING.value))
            return Sending(step_id, key, SendingState.TRYING, in_doubt=False)

        return self._database.write(work)

    def drop_sending(self, run_id: str, step_id: str) -> None:
        """Record that the try is known not to have got through. What an earlier one has sent stays so, and so does
        the doubt about one of which nothing is known."""
        self._change_sending(run_id, step_id, SendingState.DROPPED, " AND state = 'trying'")

    def take_back_sending(self, run_id: str, step_id: str) -> None:
        """Record that the step's `undo` instruction has taken it back."""
        self._change_sending(run_id, step_id, SendingState.TAKEN_BACK, "")

    def _change_sending(self, run_id: str, step_id: str, state: SendingState, only: str) -> None:
        where = f"run = ? AND step = ?{only}"
        self._database.write(lambda each: each.change(OUTBOX, {"state": state.value}, where, run_id, step_id))

    def sendings(self, run_id: str) -> list[Sending]:
        """What a run's steps have sent, or may have, and nothing has taken back."""
        rows = self._database.select(OUTBOX, f"run = ? AND state IN ({_UNSETTLED}, 'sent')", run_id)
        with self._decoding(f"the outbox of run {run_id}"):
            return [_sending(row) for row in rows]

    # Approvals.

    def decide(self, run_id: str, step_id: str, *, approved: bool, actor: str) -> bool:
        """Record an approval or a rejection; False if there was one before."""

        def work(transaction: Transaction) -> bool:
            if transaction.select(APPROVALS, "run = ? AND step = ?", run_id, step_id):
                return False
            transaction.insert(APPROVALS, [(run_id, step_id, int(approved), actor, time.time())])
            return True

        return self._database.write(work)

    def decisions(self, run_id: str) -> dict[str, bool]:
        """Approved or not, by step."""
        return {row[1]: bool(row[2]) for row in self._database.select(APPROVALS, "run = ?", run_id)}

    def forget_decisions(self, run_id: str, step_ids: Iterable[str]) -> None:
        """Steps that are to run again need a new approval. (That of a content is recorded under `step@digest`.)"""
        known = set(step_ids)
        chosen = [each for each in self.decisions(run_id) if each.partition("@")[0] in known]
        if chosen:
            where = f"run = ? AND step {AMONG}"
            self._database.write(lambda each: each.delete(APPROVALS, where, run_id, json.dumps(chosen)))

    def log_path(self, run_id: str) -> Path:
        """The run's log, one line an event."""
        return self.folder / "logs" / f"{run_id}.log"

    # Whether it can be trusted.

    def require_sound(self) -> None:
        """Raises StateError if a recovery cannot trust the database: its structure, the number of its rows, and every
        row of the runs that have not come to an end. (Contents prove themselves: `check_contents`.)"""
        self._database.require_sound()
        for row in self._database.select(RUNS, IS_UNFINISHED):
            run = self._run(row)
            self.steps(run.id), self.effects(run.id), self.captured(run.id), self.sendings(run.id)
            self.decisions(run.id)

    def verify(self) -> list[str]:
        """Every damage that can be found: the database's, each row's, and each content's. Takes as long as reading
        all of it."""
        found = self._database.problems()
        try:
            found += self._contents.problems(self._wanted())
        except StateError as error:
            found.append(error.message)
        return list(dict.fromkeys(found))

    def _wanted(self, *, after: bool = False) -> set[str]:
        """The contents that effects and captures name: those before, and with `after` also those after."""
        wanted: set[str] = set()
        with self._decoding("effects and captures"):
            for row in self._database.select(EFFECTS, "1"):
                change = _decode_change(*row[3:6])
                wanted |= _digests([change if after else Change(change.path, change.before, None)])
            for row in self._database.select(CAPTURES, "1"):
                wanted |= {entry.sha256 for entry in _decode_manifest(row[3]).values() if entry.kind is Kind.FILE}
        return wanted

    # Growing no further.

    def size(self) -> int:
        """The bytes that the journal takes, with its contents and logs."""
        total = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # SQLite's own files come and go
                status = path.lstat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return total

    def prune(self, run_ids: Iterable[str]) -> None:
        """Forget what finished runs changed: they cannot be undone any more. Raises UsageError for one that is not
        finished. The contents go with the next `sweep`."""
        chosen = list(run_ids)

        def work(transaction: Transaction) -> None:
            for run_id in chosen:
                for row in transaction.change(RUNS, {"pruned": 1}, "id = ?", run_id):
                    if row[_STATUS] in UNFINISHED_STATUSES:
                        raise UsageError(f"run {run_id} is not finished", hint="undo it, or go on with it, first")
                transaction.counts[LAST_EFFECT] = transaction.last_effect()
                transaction.counts[REMOVED] += transaction.delete(EFFECTS, "run = ?", run_id)
                transaction.delete(CAPTURES, "run = ?", run_id)
                transaction.delete(EXCHANGES, "run = ?", run_id)

        self._database.write(work)

    def sweep(self) -> int:
        """Remove contents that no run needs any more, and what killed processes left; the bytes freed. Under the
        workspace's lock only. Raises StateError, with nothing removed, if the journal is damaged."""
        self.require_sound()
        return self._contents.sweep(self._wanted(after=True))


_FOLDER_HINT = "see that the folder can be used, and that there is space left"
_STATUS = RUNS.place("status")
_UNSETTLED = "'trying', 'doubtful'"
_JSON = ("document", "inputs", "options", "report", "error", "predicted")


def _dumped(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _loaded(text: str | None) -> Any:
    return json.loads(text) if text else None


def _decode_manifest(text: str) -> dict[str, Entry]:
    return {path: entry for path, encoded in json.loads(text).items() if (entry := decode_entry(encoded))}


def _digests(changes: Iterable[Change]) -> set[str]:
    entries = (entry for change in changes for entry in (change.before, change.after))
    return {entry.sha256 for entry in entries if entry is not None and entry.kind is Kind.FILE}


def _sending(row: Row) -> Sending:
    state = SendingState(row[3])
    return Sending(row[1], row[2], state, in_doubt=state is not SendingState.DROPPED)


def _mark_done(transaction: Transaction, run_id: str, step_ids: Sequence[str]) -> None:
    of_steps, chosen = f"run = ? AND step {AMONG}", json.dumps(list(step_ids))
    if transaction.counts[CAPTURES.name]:
        transaction.delete(CAPTURES, of_steps, run_id, chosen)
    if transaction.counts[OUTBOX.name]:
        sent = {"state": SendingState.SENT.value}
        transaction.change(OUTBOX, sent, f"{of_steps} AND state IN ({_UNSETTLED})", run_id, chosen)

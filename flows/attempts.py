"""One attempt of one step: its parameters resolved, its operation run, its effects journaled or undone.

Works in whichever thread it is called in; a run's steps may be attempted at once. A failed attempt leaves nothing, or
says that it could not be undone (`stuck`): then nothing may go on from what it left. Secrets are known here, and what
leaves for the journal, Prefect or a terminal is masked.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from quantum_orchestrator.blocks.errors import (
    BudgetExceeded,
    ModelUnavailable,
    NeedsAttention,
    OperationError,
    PolicyRefused,
    QuantumError,
)
from quantum_orchestrator.blocks.home import RUN_ROOT, workspace_option
from quantum_orchestrator.blocks.levels import Level
from quantum_orchestrator.blocks.model import ModelSettings
from quantum_orchestrator.blocks.model_session import Ledger, Models, configured
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.redaction import Redactor
from quantum_orchestrator.blocks.repository import Repository
from quantum_orchestrator.blocks.sandbox import Processes
from quantum_orchestrator.blocks.tree import Change, Kind, Overlay, is_within, printable
from quantum_orchestrator.blocks.workspace import GIT, Undo, Workspace
from quantum_orchestrator.flows.budgets import scopes_of
from quantum_orchestrator.flows.document import ErrorHandler, Instruction, InstructionSet, Trust
from quantum_orchestrator.flows.expressions import Scope
from quantum_orchestrator.flows.faults import InvalidSet
from quantum_orchestrator.flows.guard import ApprovalNeeded, Decided, Guards, contents_of
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.plan import Step, effects_of, resolved_parameters
from quantum_orchestrator.flows.results import EventKind, RunEvent
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import CancelToken, Context, Effects, Unknown

Observer = Callable[[RunEvent], None]
Outputs = Mapping[str, Any]
Act = Callable[[], dict[str, Any]]


@runtime_checkable
class ObserverOfMany(Protocol):
    """An observer that would rather hear of several events at once."""

    def __call__(self, event: RunEvent) -> None:
        """One thing has happened."""

    def many(self, events: Sequence[RunEvent]) -> None:
        """Several have, in this order."""


MOST_NAMED = 10
EXPECTED = (QuantumError, Unknown)
"""What fails a step without being a defect of its operation."""
ASKED_IN_VAIN = (ModelUnavailable, BudgetExceeded)
"""What fails a step for want of a further answer: those that it has got are good for its next attempt."""


class Attempts:
    """Makes the attempts of one run's steps."""

    def __init__(
        self,
        run_id: str,
        document: InstructionSet,
        workspace: Workspace,
        policy: Policy,
        *,
        observe: Observer,
        scope_of: Callable[[Step], Scope],
        secrets: Callable[[Sequence[str]], Mapping[str, str]],
        models: Callable[[str | None], ModelSettings] = configured,
        decided: Decided = lambda _subject: None,
    ) -> None:
        """`secrets` gives values by name, `models` who answers questions by the name of a Model block, `scope_of` what
        a step's expressions may refer to now, `decided` what has been approved or rejected."""
        self._run_id = run_id
        self._document = document
        self._workspace = workspace
        self.guards = Guards(policy)
        self.decided = decided
        self._observe = observe
        self._scope_of = scope_of
        self._load = secrets
        self._secrets: dict[str, str] = {}
        self._processes: dict[tuple[int, Trust, bool], Processes] = {}
        self._root = str(workspace.root.resolve())
        self.redactor = Redactor()
        self._ledger = Ledger(run_id, workspace.journal.exchanges, settings=models, redactor=self.redactor)
        self.stuck: dict[str, NeedsAttention] = {}
        """Steps whose failed attempt could not be undone, and why."""

    def make(self, step: Step, token: CancelToken) -> Outputs:
        """The step's outputs; its effects are journaled and done. Raises what failed it, undone."""
        try:
            return self._perform(step, token)
        except BaseException as problem:
            if isinstance(problem, Exception) and not isinstance(problem, ASKED_IN_VAIN):
                self._workspace.journal.exchanges.use_up(self._run_id, [step.id])
            self.undo([step.id], problem)  # a failed try leaves nothing, also if it is tried again
            error = self.explained(problem) if isinstance(problem, Exception) else problem
            if error is problem:
                raise
            raise error from error.__cause__

    def close(self) -> None:
        """No other attempt will be made."""
        for processes in self._processes.values():
            processes.close()

    def explained(self, problem: Exception) -> Exception:
        """The problem itself, as it may be shown; for a defect of an operation, an error that says so."""
        if isinstance(problem, QuantumError):
            return self.clean(problem)
        if isinstance(problem, EXPECTED):
            return problem
        error = OperationError(f"{type(problem).__name__}: {problem}", hint="-v shows where")
        error.__cause__ = problem
        return self.clean(error)

    def undo(self, step_ids: Sequence[str], problem: BaseException) -> None:
        """Undo what tries have left. Raises NeedsAttention where it cannot be: nothing may go on from that."""
        try:
            undo = self._workspace.undo(self._run_id, step_ids)
            stuck: NeedsAttention | None = None
            if undo.conflicts:
                stuck = conflict_error(self._run_id, undo, self._workspace.root)
        except (QuantumError, OSError) as error:
            stuck = NeedsAttention(
                f"it failed ({problem}), and what it had done could not be undone: {error}",
                hint=f"mend that, then `qo rollback {self._run_id}{workspace_option(self._workspace.root)}`",
            )
        if stuck is not None:
            self.stuck.update(dict.fromkeys(step_ids, stuck))
            self.clean(stuck)
            raise stuck from (None if self._secrets else problem)

    def clean(self, error: QuantumError) -> QuantumError:
        """The error itself, as it may be shown and stored."""
        error.message, error.hint = self.redactor.text(error.message), self.redactor.text(error.hint)
        error.details = self.redactor.value(error.details)
        error.args = (error.message,)
        if self._secrets:  # what led to it may say them as well
            error.__cause__ = error.__context__ = None
            error.__suppress_context__ = True
        return error

    def _perform(self, step: Step, token: CancelToken) -> Outputs:
        scope = self._scope_of(step)
        effects = effects_of(step, scope)
        operation = registry.get(step.instruction.op)
        parameters = resolved_parameters(step, scope)
        own = (
            effects if effects.predictable else operation.effects(parameters)
        )  # without those of what handles its failure
        context = self._context(step, effects, token, asks_model=own.asks_model)
        guard = self.guards.of(step.scope.document.trust)
        guard.check(step.id, operation, parameters, self.decided)
        if effects.irreversible:
            self._announce(step, context)
        if own.predictable or own.asks_model:
            outputs = operation.run(parameters, context)
            changes = context.files.changes()
            if own.asks_model:
                refuse_undeclared(changes, own)
                guard = self.guards.of(Trust.UNTRUSTED)
            if not guard.idle:
                contents = contents_of(changes, self._workspace.tree, context.files)
                self.check_changes(step, changes, contents, by_model=own.asks_model)
            self._workspace.apply(self._run_id, step.id, changes, context.files.content_of)
            dumped: dict[str, Any] = self.redactor.value(outputs.model_dump(mode="json"))
            return dumped

        def act() -> dict[str, Any]:
            outputs: dict[str, Any] = operation.run(parameters, context).model_dump(mode="json")
            return outputs

        done = self._watched(step, effects, context, act, runs_programs=bool(operation.reach(parameters).programs))
        masked: dict[str, Any] = self.redactor.value(done)
        return masked

    def check_changes(
        self, step: Step, changes: Sequence[Change], content_of: Callable[[str], bytes], *, by_model: bool = False
    ) -> None:
        """Raises PolicyRefused or ApprovalNeeded where the changes must not stay, or not yet; see flows/guard.py.

        What a model has written is judged as that of a set which is not trusted, whoever has asked it.
        """
        guard = self.guards.of(Trust.UNTRUSTED if by_model else step.scope.document.trust)
        try:
            guard.check_changes(step.id, changes, content_of, self.decided)
        except ApprovalNeeded as needed:
            needed.in_advance = not by_model
            needed.patch, needed.message = self.redactor.text(needed.patch), self.redactor.text(needed.message)
            raise

    def _announce(self, step: Step, context: Context) -> None:
        """Record durably, after all that the run has done so far, that something outside may change from now on."""
        journal = self._workspace.journal
        self._workspace.sync()
        sending = journal.begin_sending(self._run_id, step.id, f"{self._run_id}/{step.id}/{uuid4().hex[:8]}")
        context.idempotency_key, context.in_doubt = sending.key, sending.in_doubt
        context.not_sent = partial(journal.drop_sending, self._run_id, step.id)
        if sending.in_doubt:
            context.log(f"an earlier try may have got through; this one has the same key, {sending.key}")

    def _watched(self, step: Step, effects: Effects, context: Context, act: Act, *, runs_programs: bool) -> Outputs:
        """Run an operation that acts by itself between a capture and its difference."""
        areas = [*(access.path for access in effects.writes), *effects.makes]
        if not areas:
            return act()
        guard = self.guards.of(step.scope.document.trust)
        if runs_programs and context.processes is not None and context.processes.level >= Level.OVERLAY:
            return self._apart(step, areas, context, context.processes, act)
        self._workspace.capture(self._run_id, step.id, areas, keeps_objects=effects.keeps_objects)
        if guard.untrusted and context.processes is not None:
            context.processes = context.processes.protecting(self._workspace.excluded_before(step.id))
        outputs = act()
        changes = self._workspace.finish(self._run_id, step.id)
        if runs_programs and guard.untrusted:
            touched = self._workspace.excluded_touched(self._run_id, step.id)
            if not guard.policy.lenient:
                self._workspace.remove_new_caches(self._run_id, step.id)
            guard.check_unseen(changes, touched)
        self.check_changes(step, changes, self._workspace.journal.content)
        touched = [printable(path) for path in self._workspace.excluded_touched(self._run_id, step.id)]
        if touched:  # those changes are not undone
            self._say(step, f"not captured, as snapshots exclude it: {', '.join(touched)}")
        return _completed(outputs, changes, touched)

    def _apart(self, step: Step, areas: Sequence[str], context: Context, processes: Processes, act: Act) -> Outputs:
        """Run an operation whose programs write to a layer; what they wrote is judged, and only then done."""
        with self._workspace.apart() as layer:
            context.processes = processes.onto(layer)
            outputs = act()
            proposal = self._workspace.proposed(layer)
            self.guards.of(step.scope.document.trust).check_proposed(areas, proposal.changes)
            content_of = contents_of(proposal.changes, self._workspace.tree, proposal)
            self.check_changes(step, proposal.changes, content_of)
            self._workspace.apply(self._run_id, step.id, proposal.changes, proposal.content_of)
        caches, special = ([printable(each) for each in paths] for paths in (proposal.caches, proposal.special))
        if caches:
            self._say(step, f"not kept, as snapshots exclude it: {', '.join(sorted(caches))}")
        if special:
            self._say(step, f"not kept, as its programs have ended: {', '.join(sorted(special))}")
        return _completed(outputs, proposal.changes, sorted(caches))

    def _say(self, step: Step, message: str) -> None:
        self._observe(RunEvent(EventKind.LOG, step.id, step.instruction.op, message))

    def _context(self, step: Step, effects: Effects, token: CancelToken, *, asks_model: bool = False) -> Context:
        document, instruction = step.scope.document, step.instruction
        guard = self.guards.of(document.trust)
        policy = guard.policy
        for problem in filter(None, map(policy.secret_refusal, instruction.secrets)):
            raise problem
        secrets = self._secrets_of(instruction.secrets)
        lock = self._workspace.journal.lock.descriptor  # what they start holds it until its end, also if this dies
        return Context(
            files=Overlay(self._workspace.tree),
            step_id=step.id,
            set_name=document.name,
            run_id=self._run_id,
            env={**self._document.env, **document.env, **secrets, **guard.env, RUN_ROOT: self._root},
            cancel=token,
            log=lambda line: self._observe(RunEvent(EventKind.LOG, step.id, instruction.op, line)),
            before_run=partial(self._workspace.before_run, self._run_id),
            trusted=document.trust is Trust.TRUSTED,
            root=self._workspace.root,
            models=self._models(step, secrets, token) if asks_model else None,
            judge_set=partial(faults_of, policy=self.guards.policy) if asks_model else None,
            policy=policy,
            processes=self._processes_of(step, effects, lock, asks_model=asks_model),
            repository=Repository(self._workspace.root, policy, lock=lock),
        )

    def _models(self, step: Step, secrets: Mapping[str, str], token: CancelToken) -> Models:
        op = step.instruction.op
        return Models(
            self._ledger,
            step.id,
            token,
            scopes_of(step.id, self._document, self.guards.of(step.scope.document.trust).policy),
            secrets,
            step.instruction.timeout,
            log=lambda line: self._observe(RunEvent(EventKind.LOG, step.id, op, line)),
        )

    def _processes_of(self, step: Step, effects: Effects, lock: int | None, *, asks_model: bool) -> Processes:
        """What runs a model's code is confined as what a set runs that is not trusted; it changes copies alone."""
        trust = step.scope.document.trust
        if not asks_model:
            return self._processes_for(trust, effects, lock)
        runs_it = bool(
            registry.get(step.instruction.op).reach(resolved_parameters(step, self._scope_of(step))).programs
        )
        return self._processes_for(Trust.UNTRUSTED if runs_it else trust, Effects(predictable=not runs_it), lock)

    def _processes_for(self, trust: Trust, effects: Effects, lock: int | None) -> Processes:
        """What starts the programs of a step, which may change the workspace or is known not to."""
        guard, may_change = self.guards.of(trust), bool(effects.writes or effects.makes)
        kind = (guard.needed_level(effects), trust, may_change)
        if kind not in self._processes:
            root = self._workspace.root
            made = Processes(
                require=kind[0],
                prefer=guard.policy.sandbox_prefer,
                lock=lock,
                tied=may_change,
                limits=guard.limits,
                root=root,
            )
            self._processes.setdefault(kind, made)  # steps begin in several threads
        return self._processes[kind]

    def _secrets_of(self, names: Collection[str]) -> dict[str, str]:
        missing = [name for name in names if name not in self._secrets]
        if missing:
            found = self._load(missing)
            self.redactor.add(found.values())
            self._secrets.update(found)
        return {name: self._secrets[name] for name in names if name in self._secrets}

    def load_secrets(self, steps: Iterable[Step]) -> None:
        """Know what to mask before anything runs: a step may read what one that got them wrote before a resume."""
        for name in sorted({name for step in steps for name in _secrets_named(step.instruction)}):
            try:
                self._secrets_of([name])
            except QuantumError as error:
                self._observe(RunEvent(EventKind.LOG, message=f"secret {name}: {error.message}"))  # its step will fail


def _completed(outputs: dict[str, Any], changes: Sequence[Change], excluded: list[str]) -> dict[str, Any]:
    """With what a script cannot know of itself."""
    if "excluded" in outputs:
        outputs["excluded"] = excluded
    if "changed" in outputs and not outputs["changed"]:
        outputs["changed"] = [printable(each.path) for each in changes if GIT not in each.path.split("/")]
    return outputs


def _secrets_named(instruction: Instruction) -> Iterator[str]:
    """The secrets that an instruction, or one inside of it, asks for."""
    yield from instruction.secrets
    inner: Iterable[Instruction] = instruction.on_error.run if isinstance(instruction.on_error, ErrorHandler) else ()
    for each in (*inner, *([instruction.undo] if instruction.undo else [])):
        yield from _secrets_named(each)


def faults_of(document: Mapping[str, Any], policy: Policy) -> list[str]:
    """Every fault of a set that came from a model, with its place."""
    try:
        load_object(document, trust=Trust.UNTRUSTED, policy=policy)
    except InvalidSet as invalid:
        return [
            f"{each.pointer or '/'}: {each.message}{f' ({each.hint})' if each.hint else ''}" for each in invalid.faults
        ]
    return []


def refuse_undeclared(changes: Sequence[Change], effects: Effects) -> None:
    """Raises PolicyRefused for a change of a path that the effects do not name."""
    for each in changes:
        declared = any(is_within(each.path, access.path) for access in effects.writes)
        way = any(is_within(path, each.path) for path in (*effects.makes, *(access.path for access in effects.writes)))
        if not declared and not (way and each.after is not None and each.after.kind is Kind.FOLDER):
            raise PolicyRefused(
                f"{printable(each.path)}: a model may not have this step change it",
                hint="the step's parameters say what it may write",
            )


class Conflicted(NeedsAttention):
    """Somebody else changed paths that were to be put back."""

    def __init__(self, message: str, *, hint: str, paths: Sequence[str]) -> None:
        super().__init__(message, hint=hint)
        self.paths = list(paths)

    @property
    def kind(self) -> str:
        """The public name, of which there is one for all that a person must look at."""
        return NeedsAttention.__name__


def conflict_error(run_id: str, undo: Undo, root: Path, *, to: str | None = None) -> Conflicted:
    """The error that names them, and says how to settle it; `to` is the checkpoint that was to be gone back to."""
    named = [f"{printable(path)}{_because(undo.reasons.get(path))}" for path in undo.conflicts[:MOST_NAMED]]
    more = f" and {len(undo.conflicts) - MOST_NAMED} more" if len(undo.conflicts) > MOST_NAMED else ""
    back = "" if to is None else f" --to {shlex.quote(to)}"
    settle = f"`qo rollback {run_id}{back}{workspace_option(root)} --force-conflicts"
    return Conflicted(
        f"changed by somebody else meanwhile, and left as they are: {', '.join(named)}{more}",
        hint=f"{settle} keep` leaves them so and undoes the rest; {settle} overwrite` puts them aside and undoes all",
        paths=undo.conflicts,
    )


def _because(reason: str | None) -> str:
    return f" ({printable(reason)})" if reason else ""

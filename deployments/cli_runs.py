"""Commands that make something happen in a workspace: `run`, and what is done about runs that wait or have ended.

A set is judged, its inputs resolved and its graph built before any server is needed; while the server starts, Prefect
is imported. So a mistake costs milliseconds, and a first run no more than the slower of the two. Prefect is imported
in the functions that need it, never at the top: `cancel` and `rollback` work without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, validators

from quantum_orchestrator.blocks.errors import NeedsAttention, QuantumError, UsageError
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.deployments.cli_journal import journal_of, run_named, standing, subject_of, waiting_steps
from quantum_orchestrator.deployments.cli_options import (
    STDIN,
    TALK,
    Follow,
    InputPairs,
    InputsFile,
    Json,
    JsonLines,
    RunId,
    Source,
    Talk,
    Untrusted,
    WorkspaceOfRuns,
    WorkspaceOption,
    build_graph,
    existing_root,
    given_inputs,
    load_source,
    made_root,
    read_source,
    resolved_inputs,
    workspace_root,
)
from quantum_orchestrator.deployments.junit import write_junit
from quantum_orchestrator.deployments.sarif import write_sarif
from quantum_orchestrator.deployments.screen import Screen, plural

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import Journal, RunRecord
    from quantum_orchestrator.deployments.display import Progress
    from quantum_orchestrator.deployments.json_stream import JsonStream
    from quantum_orchestrator.flows.attempts import Observer
    from quantum_orchestrator.flows.callbacks import Callback
    from quantum_orchestrator.flows.instruction_set import InstructionSet, OnFailure
    from quantum_orchestrator.flows.plan import Graph
    from quantum_orchestrator.flows.plan_file import PlanFile
    from quantum_orchestrator.flows.requests import RunRequest
    from quantum_orchestrator.flows.results import RunEvent
    from quantum_orchestrator.flows.reusing import Wishes

Failure = Literal["rollback", "keep", "pause"]
EXIT_CODES = {"committed": 0, "paused": 4, "needs_attention": 4, "awaiting_approval": 5, "cancelled": 130}
"""Any other end is a failure: 1."""
CANCEL_SECONDS = 0.1

Parallel = Annotated[int | None, Parameter(validator=validators.Number(gte=1), help="How many steps may run at once.")]
NoWait = Annotated[bool, Parameter(name="--no-wait", help="Do not wait for another run in the same workspace: exit 4.")]
Yes = Annotated[bool, Parameter(name=("--yes", "-y"), help="Give every approval in advance; not for untrusted sets.")]
Check = Annotated[bool, Parameter(help="Only show what would change, as `qo plan` does; --no-cache and --force count.")]
ShowDiff = Annotated[bool, Parameter(name="--diff", help="Print what the run has changed, as a git patch.")]


def run(
    file: Annotated[str | None, Parameter(help="The instruction set, a JSON file; - is standard input.")] = None,
    /,
    *,
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    workspace: WorkspaceOption = None,
    parallel: Parallel = None,
    on_failure: Annotated[
        Failure | None, Parameter(help="What becomes of the effects when a step fails; beats the set's.")
    ] = None,
    check: Check = False,
    diff: ShowDiff = False,
    yes: Yes = False,
    untrusted: Untrusted = False,
    no_wait: NoWait = False,
    no_cache: Annotated[bool, Parameter(name="--no-cache", help="Reuse nothing, whatever `cache` says.")] = False,
    force: Annotated[
        tuple[str, ...],
        Parameter(name="--force", help="Run this step, and whatever depends on it, although it could be reused."),
    ] = (),
    plan: Annotated[
        str | None, Parameter(help="Run a plan file of `qo plan -o`, if the workspace is still as it was.")
    ] = None,
    junit: Annotated[
        str | None, Parameter(name="--junit", help="Write the run's end to this file as JUnit XML, a test case a step.")
    ] = None,
    sarif: Annotated[
        str | None, Parameter(name="--sarif", help="Write what quality steps have found to this file, as SARIF 2.1.0.")
    ] = None,
    source: Annotated[str | None, Parameter(help="What the audit is told of where the set comes from.")] = None,
    as_: Annotated[str | None, Parameter(name="--as", show=False, help="The file whose content - is.")] = None,
    run_id: Annotated[str | None, Parameter(name="--run-id", show=False, help="The id of the run.")] = None,
    callback: Annotated[str | None, Parameter(help="Tell this address how the run has ended.")] = None,
    callback_secret: Annotated[
        str | None, Parameter(help="Sign that with this secret of Prefect's, as Standard Webhooks do.")
    ] = None,
    follow: Follow = False,
    json_: Json = False,
    json_stream: JsonLines = False,
    talk: Talk = TALK,
) -> int:
    """Run an instruction set: all of its effects, or none.

    Steps run in parallel where they do not touch the same; the outcome is as
    if they had run one by one. When one fails, what the others did is undone.
    Exit codes: 0 done, 1 failed and rolled back, 3 invalid, 4 somebody must
    look at it, 5 awaiting approval, 130 interrupted.
    """
    refuse_mixtures(json_stream, {"--json": json_, "--diff": diff, "--check": check})
    if (file is None) == (plan is None):
        raise UsageError("needs either FILE or --plan PLAN", hint="`qo run --help` shows examples")
    given = Given(
        file or plan or "", input, inputs_file, workspace, untrusted=untrusted, check=check, name=as_, source=source
    )
    options = Options(
        parallel,
        on_failure,
        diff,
        yes,
        not no_wait,
        json_,
        json_stream,
        follow,
        no_cache=no_cache,
        force=force,
        junit=junit,
        sarif=sarif,
        run_id=run_id,
    )
    if callback is not None:
        options = replace(options, callback=_callback(callback, callback_secret or ""))
    talk.screen.note(f"{given.file}: checking")
    talk.screen.flush()
    return _run_file(talk.screen, given, options) if plan is None else _run_plan(talk.screen, given, options)


def _callback(url: str, secret: str) -> Callback:
    """Raises UsageError, or PolicyRefused, where nobody could be told."""
    from quantum_orchestrator.blocks.home import policy_path
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.callbacks import Callback, refuse

    callback = Callback(url, secret)
    refuse(callback, Policy.load(policy_path()))
    return callback


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line names to be run, with what and where; with `check` it is only shown."""

    file: str
    inputs: Sequence[str]
    inputs_file: str | None
    workspace: str | None
    untrusted: bool
    check: bool
    name: str | None = None
    """What the file is called, where it comes by standard input."""
    source: str | None = None

    @property
    def place(self) -> str:
        """Where it comes from, for the audit, so that it can be found from anywhere."""
        named = self.name or self.file
        return self.source or (named if named == STDIN else str(Path(named).absolute()))


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose for a run."""

    parallel: int | None = None
    on_failure: Failure | None = None
    diff: bool = False
    yes: bool = False
    wait: bool = True
    json: bool = False
    json_stream: bool = False
    follow: bool = False
    start_at: str | None = None
    no_cache: bool = False
    force: tuple[str, ...] = ()
    callback: Callback | None = None
    junit: str | None = None
    sarif: str | None = None
    run_id: str | None = None

    @property
    def wishes(self) -> Wishes:
        """What is to be reused."""
        from quantum_orchestrator.flows.reusing import Wishes

        return Wishes(enabled=not self.no_cache, force=self.force)

    def require_steps(self, document: InstructionSet) -> None:
        """Raises UsageError if a step that is to be run in any case is none of the set's."""
        if not self.force:
            return
        from quantum_orchestrator.flows.reuse import unknown_ids

        for name in unknown_ids(document, self.force):
            near = difflib.get_close_matches(name, [each.id for each in document.instructions], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`qo graph` shows the set's steps"
            raise UsageError(f"--force {name}: the set has no such step", hint=hint)

    @property
    def policy(self) -> OnFailure | None:
        """What becomes of the effects of a failed run; None leaves it to the set."""
        from quantum_orchestrator.flows.instruction_set import OnFailure

        return None if self.on_failure is None else OnFailure(self.on_failure)


def refuse_mixtures(json_stream: bool, others: Mapping[str, bool]) -> None:
    """Raises UsageError where something else is to be printed between the lines of --json-stream, or in their place."""
    for name, wanted in others.items():
        if json_stream and wanted:
            raise UsageError(
                f"--json-stream and {name} exclude each other",
                hint="the last line of --json-stream has the run's document; `qo diff RUN` shows the changes",
            )


# Instruction sets and plans.


def _run_file(screen: Screen, given: Given, options: Options) -> int:
    text = read_source(given.file)
    old = older_block(text, given.file)
    if old is not None:
        refuse_mixtures(options.json_stream, {"an instruction block in the older format": True})
        values = given_inputs(given.inputs, given.inputs_file)
        return _run_older(screen, old, given, values, workspace_root(given.workspace), options)
    source = load_source(given.name or given.file, text, untrusted=given.untrusted)
    inputs = resolved_inputs(source.document, given.inputs, given.inputs_file)
    root = workspace_root(given.workspace, source.document)
    options.require_steps(source.document)
    if given.check:
        from quantum_orchestrator.deployments.cli_sets import show_plan

        return show_plan(screen, source, inputs, root, as_json=options.json, wishes=options.wishes)
    graph = build_graph(source, inputs)
    conduct = Conductor(screen, made_root(root), options, source=given.place, run_id=options.run_id)
    return conduct.start(source.document, inputs, graph)


def _run_plan(screen: Screen, given: Given, options: Options) -> int:
    from quantum_orchestrator.deployments.planning import tree_of
    from quantum_orchestrator.flows.plan_file import parse

    if given.inputs or given.inputs_file or given.check or given.untrusted:
        raise UsageError("a plan holds its inputs: --plan goes without --input, --inputs-file, --check and --untrusted")
    plan = given.file
    made = parse(read_source(plan), plan)
    root = workspace_root(given.workspace or made.workspace)
    with tree_of(root) as tree:
        made.check(tree)  # before a server is started for nothing
    options.require_steps(made.document)
    graph = build_graph(Source(plan, made.document), made.inputs)
    at_once = replace(options, wait=False)  # whoever is waited for would change what the plan rests on
    conduct = Conductor(screen, made_root(root), at_once, source=given.place, run_id=options.run_id)
    return conduct.start(made.document, made.inputs, graph, made)


class Conductor:
    """Takes one run, new or begun before, to its end, and says what became of it."""

    def __init__(
        self, screen: Screen, root: Path, options: Options, *, source: str = "", run_id: str | None = None
    ) -> None:
        """`source` is where the set comes from; a run that is gone on with has told it before. `run_id` is the id of
        a run that is to begin, if it was fixed before."""
        self.screen = screen
        self.root = root
        self.options = options
        self.source = source
        self.run_id = run_id
        self.may_ask = source != STDIN and sys.stdin.isatty() and sys.stderr.isatty()
        self.progress: Progress | None = None
        self.stream: JsonStream | None = None

    def start(
        self, document: InstructionSet, inputs: Mapping[str, Any], graph: Graph, plan: PlanFile | None = None
    ) -> int:
        """Run a set; the exit code."""
        from quantum_orchestrator.deployments.planning import tree_of
        from quantum_orchestrator.flows.instruction_set import Trust

        if self.options.yes and document.trust is Trust.UNTRUSTED:
            self.screen.warn("the set is untrusted: its approvals are not given in advance")
        may_be_over = document.cache and plan is None and self.options.callback is None
        if may_be_over and (report := self._unchanged(document, inputs, graph)) is not None:
            return self.finish(report)
        connect(self.screen)
        from quantum_orchestrator.flows.orchestrate import run_set

        with journal_of(self.root):
            pass  # Prefect is told of a run that has died here, before another one begins
        if plan is not None:
            with tree_of(self.root) as tree:
                plan.check(tree)
        self.screen.note(f"running {document.name!r} in {self.root}: {plural(len(graph.steps), 'step')}")
        with self._streaming(document, graph), self._display(graph) as progress:
            request = self._request(document, inputs, graph, progress)
            predicted = None if plan is None else plan.predicted
            report = asyncio.run(
                run_set(
                    replace(request, predicted=predicted, reuse=self.options.wishes, callback=self.options.callback)
                )
            )
        return self.finish(report)

    def _unchanged(self, document: InstructionSet, inputs: Mapping[str, Any], graph: Graph) -> dict[str, Any] | None:
        """The document of the run, if it is over already, as nothing has to be done."""
        from quantum_orchestrator.flows.requests import RunRequest
        from quantum_orchestrator.flows.unchanged import run_unchanged

        told: list[RunEvent] = []
        wishes = self.options.wishes
        request = RunRequest(
            document,
            inputs,
            self.root,
            run_id=self.run_id,
            source=self.source,
            reuse=wishes,
            graph=graph,
            observers=[told.append],
        )
        report = run_unchanged(request)
        if report is not None:
            self.screen.note(
                f"nothing to do for {document.name!r} in {self.root}: {plural(len(report['steps']), 'step')}"
            )
            with self._streaming(document, graph), self._display(graph) as progress:
                for event in told:
                    for observe in self._observers(progress):
                        observe(event)
        return report

    def _observers(self, progress: Progress) -> list[Observer]:
        return [progress.observe, *([self.stream.observe] if self.stream else [])]

    def go_on(self, record: RunRecord, before: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Go on with a run that waited or died; its document. `before` is called when nothing can fail any more."""
        connect(self.screen)
        from quantum_orchestrator.flows.orchestrate import carry_on, restored
        from quantum_orchestrator.flows.plan import build

        document, inputs = restored(record)
        graph = build(document, inputs)
        before()
        self.screen.note(f"going on with run {record.id} of {record.set_name!r} in {self.root}")
        with self._streaming(document, graph), self._display(graph) as progress:
            request = self._request(document, inputs, graph, progress)
            return asyncio.run(carry_on(request, record.id, chosen_as=record.status))

    def _display(self, graph: Graph) -> Progress:
        from quantum_orchestrator.deployments.display import follow
        from quantum_orchestrator.deployments.planning import details

        self.progress = follow(self.screen, len(graph.steps), details(graph), outputs=self.options.follow)
        return self.progress

    def _streaming(self, document: InstructionSet, graph: Graph) -> contextlib.AbstractContextManager[None]:
        if not self.options.json_stream:
            return contextlib.nullcontext()
        from quantum_orchestrator.deployments.json_stream import JsonStream

        about = {"set": document.name, "workspace": str(self.root), "steps": len(graph.steps)}
        self.stream = JsonStream(about)
        return self.stream.writing()

    def _request(
        self, document: InstructionSet, inputs: Mapping[str, Any], graph: Graph, progress: Progress
    ) -> RunRequest:
        from quantum_orchestrator.flows.requests import RunRequest

        return RunRequest(
            document,
            inputs,
            self.root,
            parallel=self.options.parallel,
            on_failure=self.options.policy,
            approve=self.options.yes,
            wait=self.options.wait,
            run_id=self.run_id,
            start_at=self.options.start_at,
            source=self.source,
            ask=progress.ask if self.may_ask else None,
            on_wait=partial(self._wait_for, progress),
            observers=self._observers(progress),
            graph=graph,
        )

    def _wait_for(self, progress: Progress, holder: object) -> None:
        progress.say(f"waiting for another run in this workspace (process {holder})")
        if self.stream is not None:
            self.stream.wait_for(holder)

    def finish(self, report: dict[str, Any], exit_code: int | None = None) -> int:
        """Print a run's end; the exit code."""
        from quantum_orchestrator.deployments.display import run_lines

        code = EXIT_CODES.get(report["status"], 1) if exit_code is None else exit_code
        if self.options.junit is not None:
            write_junit(self.options.junit, report)
        if self.options.sarif is not None:
            write_sarif(self.options.sarif, report)
        if self.stream is not None:
            self._say_what_is_next(report)  # first, as nobody may read the stream any more
            self.stream.finish(report)
            return _parting(code, self.progress)
        if self.options.json:
            self.screen.document(report)
        else:
            for line in run_lines(report):
                self.screen.result(*line)
        if self.options.diff and not self.options.json:
            self._print_diff(report["run_id"])
        self._say_what_is_next(report)
        return _parting(code, self.progress)

    def _print_diff(self, run_id: str) -> None:
        from quantum_orchestrator.flows.report import render_diff

        with journal_of(self.root) as journal:
            self.screen.patch(render_diff(journal, run_id))

    def _say_what_is_next(self, report: Mapping[str, Any]) -> None:
        error, run_id, status = report["error"], report["run_id"], report["status"]
        at = f"{run_id}{workspace_option(self.root)}"
        if error:
            failed = next((step["id"] for step in report["steps"] if step["error"] == error), None)
            where = f"step {failed}: " if failed else ""
            self.screen.problem(f"{where}{error['message']}", error["hint"])
        if status == "awaiting_approval":
            with journal_of(self.root) as journal:
                steps = waiting_steps(journal, run_id)
            self.screen.warn(f"waiting for the approval of {', '.join(steps)}: `qo approve {at}` or `qo reject {at}`")
        elif status == "paused":
            self.screen.warn(f"paused: `qo resume {at}` goes on, `qo rollback {at}` undoes it")


def _parting(code: int, progress: Progress | None) -> int:
    """The exit code; or the end of the process, where Prefect would try for seconds for every event it has left."""
    if progress is None or not progress.view.server_lost:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def connect(screen: Screen) -> None:
    """See that a Prefect server answers, and import Prefect, both at once."""
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import prefect_settings, server

    state = home()
    known = server.find(state)
    if known is None:
        screen.note("starting the local Prefect server (once; about 10 s)")
    pending = server.begin(state)
    expected = pending.connection or known
    if expected is not None:
        os.environ.update(server.client_environment(expected))
    prefect_settings.read_again()
    importlib.import_module("quantum_orchestrator.flows.orchestrate")
    pending.wait(screen.note)
    logging.raiseExceptions = False  # a log that Prefect cannot send: `qo` says itself that the server is lost


# The older format.


def older_block(text: bytes, file: str) -> Mapping[str, Any] | None:
    """The block, if that is what the text is; None for anything else."""
    if file == STDIN and not text.strip():
        return {}
    if b'"actions"' not in text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None  # judged as a set, which says where it is broken
    from quantum_orchestrator.flows.wizardpro import looks_old

    return value if looks_old(value) else None


def _run_older(
    screen: Screen, block: Mapping[str, Any], given: Given, values: Mapping[str, Any], root: Path, options: Options
) -> int:
    """Run a block in the older format: one line of JSON on standard output, whatever happens."""
    from quantum_orchestrator.flows import wizardpro

    if not block:
        screen.result(wizardpro.reply_line(wizardpro.reply_for_problem(wizardpro.NO_INPUT)))
        return 0
    try:
        root = made_root(root)
        connect(screen)
    except QuantumError as error:
        screen.error(error)
        screen.result(wizardpro.reply_line(wizardpro.reply_for_problem(error.message)))
        return 1
    progress = _progress_of_block(screen, block, options)
    reply, code = asyncio.run(_block_run(progress, block, given, values, root, options))
    screen.result(wizardpro.reply_line(reply))
    return _parting(code, progress)


def run_accepted_block(
    screen: Screen, block: Mapping[str, Any], given: Given, root: Path, options: Options
) -> dict[str, Any]:
    """The same for a block that a door has accepted: its reply."""
    root = made_root(root)
    connect(screen)
    progress = _progress_of_block(screen, block, options)
    reply, _ = asyncio.run(_block_run(progress, block, given, {}, root, options))
    return reply


def _progress_of_block(screen: Screen, block: Mapping[str, Any], options: Options) -> Progress:
    from quantum_orchestrator.deployments.display import Progress, RunView

    return Progress(screen, RunView(len(block.get("actions") or ()), outputs=options.follow))


def _block_run(
    progress: Progress,
    block: Mapping[str, Any],
    given: Given,
    values: Mapping[str, Any],
    root: Path,
    options: Options,
) -> Coroutine[Any, Any, tuple[dict[str, Any], int]]:
    from quantum_orchestrator.flows.instruction_set import Trust
    from quantum_orchestrator.flows.wizardpro import run_block

    may_ask = given.file != STDIN and sys.stdin.isatty() and sys.stderr.isatty()
    return run_block(
        block,
        root=root,
        given={name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()},
        ask=_ask_for_text if may_ask else None,
        on_failure=options.policy,
        observers=[progress.observe],
        approve=options.yes and not given.untrusted,
        trust=Trust.UNTRUSTED if given.untrusted else Trust.TRUSTED,
        source=given.source or f"{given.place}, a block in the older format",
        run_id=options.run_id,
    )


def _ask_for_text(prompt: str) -> str:
    sys.stderr.write(f"{prompt}: ")
    sys.stderr.flush()
    return sys.stdin.readline().rstrip("\n")


# Approvals.


def approve(
    run_id: RunId = None,
    step: Annotated[str | None, Parameter(help="The step; needed only if several wait.")] = None,
    /,
    *,
    workspace: WorkspaceOfRuns = None,
    diff: ShowDiff = False,
    follow: Follow = False,
    json_: Json = False,
    json_stream: JsonLines = False,
    talk: Talk = TALK,
) -> int:
    """Approve what a run waits for, and go on with it to its end.

    Without RUN, the run of this workspace that waits.
    """
    refuse_mixtures(json_stream, {"--json": json_, "--diff": diff})
    options = Options(diff=diff, json=json_, json_stream=json_stream, follow=follow)
    conduct, report = _decide(talk.screen, run_id, step, workspace, options, approved=True)
    return conduct.finish(report)


def reject(
    run_id: RunId = None,
    step: Annotated[str | None, Parameter(help="The step; needed only if several wait.")] = None,
    /,
    *,
    workspace: WorkspaceOfRuns = None,
    follow: Follow = False,
    json_: Json = False,
    json_stream: JsonLines = False,
    talk: Talk = TALK,
) -> int:
    """Reject what a run waits for: it is rolled back.

    Exit code 0 if everything was undone, as asked.
    """
    refuse_mixtures(json_stream, {"--json": json_})
    options = Options(json=json_, json_stream=json_stream, follow=follow)
    conduct, report = _decide(talk.screen, run_id, step, workspace, options, approved=False)
    return conduct.finish(report, 0 if report["status"] == "rolled_back" else None)


def _decide(
    screen: Screen, run_id: str | None, step: str | None, workspace: str | None, options: Options, *, approved: bool
) -> tuple[Conductor, dict[str, Any]]:
    from quantum_orchestrator.blocks.audit import current_actor
    from quantum_orchestrator.flows.auditing import RunAudit

    root = existing_root(workspace)
    with journal_of(root) as journal:
        record = _waiting_run(journal, root, run_id)
        step = _waiting_step(journal, root, record, step)
        subject = subject_of(journal, record.id, step)

        def decide() -> None:
            actor = current_actor()
            RunAudit(record, root).decided(subject, approved, actor=actor)
            if not journal.decide(record.id, subject, approved=approved, actor=actor):
                raise _decided_already(root, record.id, step)

        conduct = Conductor(screen, made_root(root), options)
        return conduct, conduct.go_on(record, decide)


def _decided_already(root: Path, run_id: str, step: str) -> UsageError:
    return UsageError(
        f"step {step!r} of run {run_id} was decided already",
        hint=f"`qo resume {run_id}{workspace_option(root)}` goes on if it stands still",
    )


def _waiting_run(journal: Journal, root: Path, run_id: str | None) -> RunRecord:
    waiting = journal.unfinished()
    record = waiting if run_id is None and waiting is not None else run_named(journal, root, run_id)
    if record.status != "awaiting_approval":
        how = standing(journal, record).replace("_", " ")
        was = ", and was decided already" if journal.decisions(record.id) else ""
        raise UsageError(
            f"run {record.id} is {how}{was}: nothing waits for an approval",
            hint=f"`qo status{workspace_option(root)}` says more",
        )
    return record


def _waiting_step(journal: Journal, root: Path, record: RunRecord, step: str | None) -> str:
    """The step to decide. Raises UsageError unless it waits and nobody has decided it."""
    waiting = waiting_steps(journal, record.id)
    if step is None:
        if len(waiting) > 1:
            raise UsageError(
                f"several steps wait: {', '.join(waiting)}",
                hint=f"name one: qo approve {record.id} STEP{workspace_option(root)}",
            )
        step = waiting[0] if waiting else ""
    if step not in waiting:
        raise UsageError(
            f"step {step!r} of run {record.id} does not wait for an approval", hint=f"waiting: {', '.join(waiting)}"
        )
    if subject_of(journal, record.id, step) in journal.decisions(record.id):
        raise _decided_already(root, record.id, step)
    return step


# Ending, going on, undoing.


def cancel(
    run_id: RunId = None,
    /,
    *,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """End the run that is at work, and wait until it is undone."""
    root = existing_root(workspace)
    with journal_of(root) as journal:
        record = run_named(journal, root, run_id)
        how = standing(journal, record)
        if how != "running":
            raise UsageError(
                f"run {record.id} is {how.replace('_', ' ')}: nothing is at work",
                hint=f"`qo rollback {record.id}{workspace_option(root)}` undoes what it did",
            )
        journal.update(record.id, cancel_requested=1)
        talk.screen.note(f"asked run {record.id} (process {record.pid}) to end")
        ended = _await_end(journal, root, record)
    if json_:
        talk.screen.document({"run_id": ended.id, "set": ended.set_name, "status": ended.status})
    else:
        talk.screen.result(f"run {ended.id} is {ended.status.replace('_', ' ')}")
    return 0 if ended.status in ("cancelled", "rolled_back") else EXIT_CODES.get(ended.status, 1)


def _await_end(journal: Journal, root: Path, record: RunRecord) -> RunRecord:
    """The run once it has ended. Raises NeedsAttention if its process died over it."""
    while True:
        now = journal.run(record.id) or record
        how = standing(journal, now)
        if how == "interrupted":
            now = journal.run(record.id) or record  # it may have ended between the two looks
            if now.status == "running":
                raise NeedsAttention(
                    f"the process of run {record.id} has died",
                    hint=f"`qo rollback {record.id}{workspace_option(root)}` undoes what it did",
                )
        if how != "running":
            return now
        time.sleep(CANCEL_SECONDS)

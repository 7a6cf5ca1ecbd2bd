"""`qo diff`: what a run has changed, what lies between two runs, and whether a run did what its plan had said.

Reads the journal, and changes nothing. It works without a server, while a run is at work and after it has died, and
must not import Prefect.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import workspace_option
from quantum_orchestrator.deployments.cli_journal import journal_of, run_named, standing, waits_with
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk, WorkspaceOfRuns, existing_root, read_source
from quantum_orchestrator.deployments.screen import Screen, aligned, changed_files, plural

if TYPE_CHECKING:
    from pathlib import Path

    from quantum_orchestrator.blocks.diff import FileCounts
    from quantum_orchestrator.blocks.journal import Journal, RunRecord
    from quantum_orchestrator.flows.comparison import Compared
    from quantum_orchestrator.flows.run_diff import RunDiff

UNLIKE_PLAN = 1
"""The exit code when a run did something else than its plan had said."""

MARKS = {"as_predicted": "✓", "different": "≠", "not_predicted": "+", "did_not_happen": "−"}


def diff(
    run: Annotated[str | None, Parameter(help="A run's id, or the beginning of it; without it the newest.")] = None,
    run2: Annotated[
        str | None, Parameter(help="Another run: what differs from the workspace as RUN left it to as RUN2 left it.")
    ] = None,
    /,
    *,
    step: Annotated[
        str | None, Parameter(help="Only what this step of RUN has changed, with the steps inside of it.")
    ] = None,
    stat: Annotated[bool, Parameter(help="Only which files, and how many lines.")] = False,
    by_step: Annotated[bool, Parameter(name="--by-step", help="The same, step by step.")] = False,
    against: Annotated[
        str | None, Parameter(help="Compare with what a plan file (of `qo plan -o`) had said; exit 1 if that differs.")
    ] = None,
    plan: Annotated[bool, Parameter(name="--plan", help="The same, with the plan that RUN was started from.")] = False,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Show what a run has changed, as a git patch.

    `git apply` accepts what is printed, and `git apply -R` takes it back. What
    a patch cannot say stands in lines that begin with `# `: folders that hold
    nothing, permissions, and what happened to git's branches, tags and HEAD.

    With RUN2, everything that the runs after RUN have changed, up to and with
    RUN2; if RUN2 is the older one, the way back. Runs that were rolled back
    count for nothing. Files that somebody else changed in between are told
    where a later run changed them too.

    With --against or --plan, every path is told as predicted, different, not
    predicted, or predicted and not done. What a step did that was deferred in
    the plan does not count as a difference.
    """
    _refuse_contradictions(run2, step, stat=stat, by_step=by_step, against=against, plan=plan)
    root = existing_root(workspace)
    with journal_of(root) as journal:
        first = _run(journal, root, run, None)
        second = None if run2 is None else _run(journal, root, run2, first)
        if against is not None or plan:
            return _compare(talk.screen, journal, root, first, against, as_json=json_)
        if step is not None and not has_step(journal, first, step):
            raise UsageError(
                f"run {first.id} has no step {step!r}",
                hint=f"`qo show {first.id}{workspace_option(root)}` lists its steps",
            )
        return _Shown(talk.screen, journal, first, second, step).show(stat=stat, by_step=by_step, as_json=json_)


def _refuse_contradictions(
    run2: str | None, step: str | None, *, stat: bool, by_step: bool, against: str | None, plan: bool
) -> None:
    chosen = {"RUN2": run2 is not None, "--step": step is not None, "--by-step": by_step, "--stat": stat}
    chosen |= {"--against": against is not None, "--plan": plan}
    apart = [("RUN2", "--step", "--by-step"), ("--step", "--by-step")]
    apart += [(each, *(other for other in chosen if other != each)) for each in ("--against", "--plan")]
    for each, *others in apart:
        for other in others:
            if chosen[each] and chosen[other]:
                raise UsageError(f"{each} and {other} do not go together", hint="`qo diff --help` shows examples")


def has_step(journal: Journal, run: RunRecord, step: str) -> bool:
    """Whether a run has come to this step, or to one inside of it."""
    from quantum_orchestrator.flows.books import owners

    return any(step in owners(each) for each in journal.steps(run.id))


def _run(journal: Journal, root: Path, named: str | None, of: RunRecord | None) -> RunRecord:
    """The run that is named. A step in its place, of that run or of the newest, gets a hint of its own."""
    from quantum_orchestrator.flows.run_diff import require_known

    owner = of or next(iter(journal.runs(1)), None)
    if named is not None and owner is not None and journal.run(named) is None and has_step(journal, owner, named):
        raise UsageError(
            f"{named!r} is no run, but a step of run {owner.id}",
            hint=f"`qo diff {owner.id} --step {shlex.quote(named)}{workspace_option(root)}` shows what it changed",
        )
    found = run_named(journal, root, named)
    require_known(found)
    return found


# What was changed.


class _Shown:
    """What is to be shown of one run, of one of its steps, or of what lies between two."""

    def __init__(
        self, screen: Screen, journal: Journal, run: RunRecord, second: RunRecord | None, step: str | None
    ) -> None:
        from quantum_orchestrator.flows import run_diff

        self._screen = screen
        self._journal = journal
        self._run = run
        self._second = second
        self._step = step
        self._status = standing(journal, run)
        self._diff: RunDiff = (
            run_diff.of_run(journal, run.id, step) if second is None else run_diff.between(journal, run, second)
        )

    def show(self, *, stat: bool, by_step: bool, as_json: bool) -> int:
        """Print it; the exit code."""
        if as_json:
            self._screen.document(self._document(by_step=by_step))
        elif by_step:
            self._print_by_step()
        elif stat:
            self._screen.result("\n".join([*_stat_lines(self._diff, "  "), self._total()]))
        else:
            self._screen.patch(self._diff.patch)
            waiting = self._waiting()
            for step, about in waiting.items():
                self._screen.comment([f"step {step} waits: {about['message']}"])
                self._screen.patch(about["patch"])
            if not self._diff.patch and not waiting:
                self._screen.note(self._nothing())
        return 0

    def _waiting(self) -> dict[str, dict[str, Any]]:
        """What steps would do next, and somebody must approve."""
        if self._second is not None or self._status != "awaiting_approval":
            return {}
        found = waits_with(self._journal, self._run.id)
        return found if self._step is None else {step: each for step, each in found.items() if step == self._step}

    def _total(self) -> str:
        from quantum_orchestrator.blocks.diff_json import counts_json

        return changed_files(counts_json(self._diff.counts))

    def _nothing(self) -> str:
        if self._second is not None:
            return f"the workspace is the same after run {self._run.id} and after run {self._second.id}"
        step = "" if self._step is None else f"step {self._step} of "
        return f"{step}run {self._run.id} ({self._status.replace('_', ' ')}) has left no change"

    def _print_by_step(self) -> None:
        from quantum_orchestrator.flows.run_diff import by_step

        operations = {step.id: step.op for step in self._journal.steps(self._run.id).values()}
        lines = []
        for step, changed in by_step(self._journal, self._run.id).items():
            lines += [f"{step}  {operations.get(step, '')}".rstrip(), *_stat_lines(changed, "  ")]
        self._screen.result("\n".join([*lines, self._total()]))

    def _document(self, *, by_step: bool) -> dict[str, Any]:
        document: dict[str, Any] = {"run_id": self._run.id, "set": self._run.set_name, "status": self._status}
        if self._second is not None:
            document["to_run_id"] = self._second.id
        if self._step is not None:
            document["step"] = self._step
        document |= {**diff_json(self._diff), "awaiting": self._waiting()}
        if by_step:
            document["steps"] = self._steps()
        return document

    def _steps(self) -> dict[str, list[dict[str, Any]]]:
        from quantum_orchestrator.blocks.diff_json import path_json
        from quantum_orchestrator.flows.run_diff import by_step

        changed = by_step(self._journal, self._run.id)
        return {step: path_json(each.changes, each.files) for step, each in changed.items()}


def diff_json(made: RunDiff) -> dict[str, Any]:
    """Changes that belong together, as programs read them."""
    from quantum_orchestrator.blocks.diff_json import changes_json, counts_json, file_json, git_json, renames_json

    return {
        "diff": counts_json(made.counts),
        "changes": changes_json(made.changes),
        "renames": renames_json(made.renames),
        "files": [file_json(each) for each in made.files],
        **git_json(made.git),
        "patch": made.patch,
    }


def _stat_lines(shown: RunDiff, indent: str) -> list[str]:
    rows = [[_stat_name(each), _stat(each)] for each in shown.files]
    return [*(aligned(rows, indent) if rows else []), *(f"{indent}{line}" for line in shown.remarks)]


def _stat_name(file: FileCounts) -> str:
    from quantum_orchestrator.blocks.diff import quoted

    return quoted(file.path) if file.source is None else f"{quoted(file.source)} => {quoted(file.path)}"


def _stat(file: FileCounts) -> str:
    from quantum_orchestrator.blocks.tree import Kind

    links = [entry for entry in (file.before, file.after) if entry is not None and entry.kind is Kind.LINK]
    if links and file.after is None:
        told = f"link removed, to {links[0].target}"
    elif links and file.after is links[-1]:
        told = f"link to {links[-1].target}"
    elif file.sizes is not None:
        told = f"Bin {file.sizes[0]} → {file.sizes[1]} bytes"
    else:
        told = f"+{file.insertions} −{file.deletions}"
    before, after = file.before, file.after
    if before is not None and after is not None and before.kind is after.kind and before.mode != after.mode:
        told += f", mode {before.mode:04o} → {after.mode:04o}"
    return told


# Plan against actual.


def _compare(
    screen: Screen, journal: Journal, root: Path, run: RunRecord, against: str | None, *, as_json: bool
) -> int:
    from quantum_orchestrator.flows.comparison import compare
    from quantum_orchestrator.flows.run_diff import effects_that_stand, of_run

    predicted = _predicted(screen, root, run, against)
    touched: dict[str, list[str]] = {}
    for effect in effects_that_stand(journal, run.id):
        touched.setdefault(effect.change.path, []).append(effect.step)
    compared = compare(predicted, of_run(journal, run.id).changes, touched)
    is_fine = all(each.is_fine for each in compared)
    status = standing(journal, run)
    if as_json:
        document = {"run_id": run.id, "set": run.set_name, "status": status, "plan": against}
        paths = [each.as_json() for each in compared]
        screen.document({**document, "as_predicted": is_fine, "deferred": predicted["deferred"], "paths": paths})
    else:
        rows = [[MARKS[each.outcome], each.path, _compared_words(each)] for each in compared]
        screen.result(
            "\n".join(
                [
                    *(aligned(rows, "  ") if rows else []),
                    _compared_total(f"run {run.id} ({status.replace('_', ' ')})", compared),
                ]
            )
        )
    return 0 if is_fine else UNLIKE_PLAN


def _predicted(screen: Screen, root: Path, run: RunRecord, against: str | None) -> Mapping[str, Any]:
    """What the plan had said, of the file or of the run's own."""
    if against is None:
        if run.predicted is None:
            raise UsageError(f"run {run.id} was not started from a plan", hint="--against PLAN names a plan file")
        return dict(run.predicted)
    from quantum_orchestrator.flows.plan_file import parse

    made = parse(read_source(against), against)
    if made.document.name != run.set_name or made.workspace != str(root):
        screen.warn(f"{against}: was made for the set {made.document.name!r} in {made.workspace}, not for this run's")
    return made.predicted


def _compared_words(compared: Compared) -> str:
    from quantum_orchestrator.flows.comparison import Outcome

    words = "as predicted" if compared.outcome is Outcome.AS_PREDICTED else compared.outcome.value.replace("_", " ")
    if compared.how:
        words += f": {', '.join(compared.how)}"
    if compared.outcome is not Outcome.AS_PREDICTED and compared.steps:
        noun = "step" if len(compared.steps) == 1 else "steps"
        words += f" ({noun} {', '.join(compared.steps)}{', deferred in the plan' if compared.deferred else ''})"
    return words


def _compared_total(run: str, compared: Iterable[Compared]) -> str:
    from quantum_orchestrator.flows.comparison import Outcome

    paths = list(compared)
    equal = sum(each.outcome is Outcome.AS_PREDICTED for each in paths)
    deferred = sum(each.is_fine for each in paths) - equal
    total = f"{run}: {equal} of {plural(len(paths), 'path')} as predicted"
    if deferred:
        total += f", {deferred} by steps that were deferred in the plan"
    unlike = len(paths) - equal - deferred
    return f"{total}, {unlike} not" if unlike else total

"""What is said of a run afterwards: its document (`qo run --json`, `qo show`), its diff, its pages in Prefect's UI.

Reads the journal and the results; knows neither Prefect nor terminals.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from quantum_orchestrator.blocks.diff_json import counts_json
from quantum_orchestrator.blocks.exchanges import spent_in
from quantum_orchestrator.blocks.journal import Journal, RunRecord, SendingState
from quantum_orchestrator.blocks.tree import Change
from quantum_orchestrator.flows.plan import Expansion, Graph
from quantum_orchestrator.flows.results import RunStatus, StepResult, StepStatus
from quantum_orchestrator.flows.run_diff import RunDiff, of_run

LARGEST_DRAWN = 150
"""Steps; a larger graph cannot be read as a picture."""
LONGEST_PAGE = 200_000
"""Characters of a diff in Prefect's UI."""


def net_changes(journal: Journal, run_id: str, step_id: str | None = None) -> list[Change]:
    """What a run (or one step) has changed, first state to last, without a repository's own files."""
    return of_run(journal, run_id, step_id).changes


def render_diff(journal: Journal, run_id: str, step_id: str | None = None) -> str:
    """The same as a git patch, with what happened to refs in comment lines."""
    return of_run(journal, run_id, step_id).patch


def counts(made: RunDiff) -> dict[str, int]:
    """How much a run has changed, as its document says it: files, insertions, deletions, as git counts them."""
    return counts_json(made.counts)


def outside(journal: Journal, run_id: str) -> list[dict[str, str]]:
    """What the run's steps have done outside of the workspace, or may have: no rollback takes that back."""
    return [
        {
            "step": each.step,
            "state": "sent" if each.state is SendingState.SENT else "in_doubt",
            "idempotency_key": each.key,
        }
        for each in journal.sendings(run_id)
    ]


def models(journal: Journal, record: RunRecord) -> dict[str, Any] | None:
    """What the run's questions to language models have taken, or may have, beside the set's budget; None without."""
    exchanges = journal.exchanges.of(record.id)
    budget = record.document.get("budget")
    if not exchanges and budget is None:
        return None
    return {**spent_in(exchanges).as_json(), "budget": budget}


def in_document_order(
    expansion: Expansion, inner: Mapping[str, Expansion], results: Mapping[str, StepResult]
) -> Iterator[StepResult]:
    """Every step in the order of the document, those that were not reached as skipped."""
    for step in expansion.steps:
        if step.id in inner:
            yield from in_document_order(inner[step.id], inner, results)
        else:
            yield results.get(step.id) or StepResult(step.id, step.instruction.op, StepStatus.SKIPPED)
        if f"{step.id}/on_error" in inner:
            yield from in_document_order(inner[f"{step.id}/on_error"], inner, results)


def run_document(
    record: RunRecord,
    status: RunStatus,
    steps: Iterable[StepResult],
    journal: Journal,
    error: Mapping[str, str] | None,
    made: RunDiff | None = None,
) -> dict[str, Any]:
    """The one document that `qo run --json` prints. `made` is what the run has changed, where that is known."""
    if made is None and status in _WITH_EFFECTS:
        made = of_run(journal, record.id)
    return {
        "run_id": record.id,
        "set": record.set_name,
        "status": status.value,
        "duration_s": round((record.ended_at or time.time()) - record.started_at, 3),
        "steps": [step.as_json() for step in steps],
        "diff": dict(NOTHING) if made is None or status not in _WITH_EFFECTS else counts(made),
        "outside": outside(journal, record.id),
        "models": models(journal, record),
        "sandbox_level": record.options.get("sandbox", 1),
        "error": error,
        "flow_run_id": record.flow_run_id,
        "ui_url": record.ui_url,
    }


NOTHING = {"files": 0, "insertions": 0, "deletions": 0}
_WITH_EFFECTS = (
    RunStatus.COMMITTED,
    RunStatus.KEPT,
    RunStatus.PAUSED,
    RunStatus.AWAITING_APPROVAL,
    RunStatus.NEEDS_ATTENTION,
    RunStatus.INTERRUPTED,
)


# Graphs.


def mermaid(graph: Graph) -> str:
    """The graph in Mermaid's language; edges that follow from others are left out."""
    names = {step.id: f"s{number}" for number, step in enumerate(graph.steps)}
    lines = ["graph TD"]
    lines += [f'  {names[step.id]}["{_quoted(step.id)}<br/>{step.instruction.op}"]' for step in graph.steps]
    lines += [f"  {names[before]} --> {names[after]}" for before, after in direct_edges(graph)]
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """The graph in Graphviz's language; edges that follow from others are left out."""
    lines = ["digraph plan {", "  node [shape=box];"]
    lines += [f'  "{_escaped(step.id)}" [label="{_escaped(step.id)}\\n{step.instruction.op}"];' for step in graph.steps]
    lines += [f'  "{_escaped(before)}" -> "{_escaped(after)}";' for before, after in direct_edges(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def direct_edges(graph: Graph) -> list[tuple[str, str]]:
    """The edges without those that others imply: the transitive reduction."""
    above: dict[str, set[str]] = {}
    edges: list[tuple[str, str]] = []
    for step in graph.steps:  # every edge points forwards
        predecessors = sorted(graph.predecessors[step.id], key=graph.position.__getitem__, reverse=True)
        reached: set[str] = set()
        for before in predecessors:
            if before not in reached:
                edges.append((before, step.id))
                reached |= {before, *above[before]}
        above[step.id] = reached
    return edges


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


# Pages in Prefect's UI.


def plan_page(graph: Graph, description: str) -> str:
    """The plan in Markdown: a picture of the graph and a table of what each step may touch."""
    lines = [description, ""] if description else []
    if len(graph.steps) <= LARGEST_DRAWN:
        lines += ["```mermaid", mermaid(graph).rstrip(), "```", ""]
    lines += ["| step | operation | reads | writes |", "| --- | --- | --- | --- |"]
    for step in graph.steps[:LARGEST_DRAWN]:
        effects = graph.effects[step.id]
        writes = [*(access.path for access in effects.writes), *effects.makes]
        reads = [access.path for access in effects.reads]
        lines.append(f"| {_cell(step.id)} | {step.instruction.op} | {_paths(reads)} | {_paths(writes)} |")
    if len(graph.steps) > LARGEST_DRAWN:
        lines.append(f"\n… and {len(graph.steps) - LARGEST_DRAWN} more steps")
    return "\n".join(lines) + "\n"


def diff_page(patch: str, summary: str, *, limit: int = LONGEST_PAGE) -> str:
    """A diff in Markdown, cut at `limit` characters; what happened to git's refs, at its end, stays."""
    shown = patch if len(patch) <= limit else f"{patch[:limit]}\n… cut here\n{_refs_at_the_end(patch[limit:])}"
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{summary}\n\n{fence}diff\n{shown}{fence}\n" if patch else f"{summary}\n"


def _refs_at_the_end(patch: str) -> str:
    lines = patch.split("\n")[:-1]
    refs = list(takewhile(lambda line: line.startswith("# git: "), reversed(lines)))
    return "".join(f"{line}\n" for line in reversed(refs))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _paths(paths: list[str]) -> str:
    shown = ", ".join(f"`{_cell(path)}`" for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


Renderer = Callable[[Graph], str]
GRAPH_FORMATS: Mapping[str, Renderer] = {"mermaid": mermaid, "dot": dot}

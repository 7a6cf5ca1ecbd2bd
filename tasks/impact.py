"""What a change touches and what is likely to break, without a model: the import graph, git's history, complexity.

    imports   a file that imports a changed one may break with it: the more so, the shorter the way
    history   a file that has been committed together with a changed one was part of the same matter before
    complexity, and what ruff takes for an error: where a changed file is likely to hold a fault itself

Every confidence is a plain ratio or a table below, the same for the same workspace. This module only reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantum_orchestrator.blocks.tree import Kind
from quantum_orchestrator.tasks.affected import importers_of
from quantum_orchestrator.tasks.debt import is_test
from quantum_orchestrator.tasks.git_common import repository_of
from quantum_orchestrator.tasks.operation import Context
from quantum_orchestrator.tasks.scratch import PYTHON_SUFFIXES, RuffFinding, scratch_folder

BY_IMPORT, WEAKER = 0.9, 0.6
"""The confidence that a direct importer is touched, and by how much it is less for each further one on the way."""
COMMITS = 300
"""How far back history is read."""
LARGEST_COMMIT = 50
"""Files; a larger commit says nothing of what belongs together."""
FEWEST_TOGETHER, LEAST_SHARE = 2, 0.25
MOST_NAMED = 50
COMPLEX = 10
"""Ways through a function: from here on a change of it is likely to miss one."""
MANY_IMPORTERS = 10
COMPLEXITY = "C901"
RULES = (
    *("--isolated", "--ignore-noqa", "--config", "exclude = []", "--select=F,E9,B,PLE,C901"),
    *("--config", f"lint.mccabe.max-complexity = {COMPLEX}"),
)
ERRORS = ("F82", "F7", "E9", "PLE", "B018")
"""Rules of what cannot work, as opposed to what is doubtful."""


@dataclass(frozen=True, slots=True)
class Touched:
    """A file that a change reaches: how surely, 0 to 1, and by which way."""

    path: str
    confidence: float
    why: str


@dataclass(frozen=True, slots=True)
class Found:
    """Something at a line of a file; `severity` is error, warning or info."""

    path: str
    line: int
    severity: str
    confidence: float
    message: str
    rule: str


def touched_by(context: Context, changed: Sequence[str]) -> list[Touched]:
    """The files that a change of these reaches, the surest first, themselves not included."""
    found = {each.path: each for each in _by_imports(importers_of(context), changed)}
    for each in _by_history(context, changed):
        known = found.get(each.path)
        if known is None:
            found[each.path] = each
        else:
            confidence = round(1 - (1 - known.confidence) * (1 - each.confidence), 2)
            found[each.path] = Touched(each.path, confidence, f"{known.why}; {each.why}")
    return sorted(found.values(), key=lambda each: (-each.confidence, each.path))[:MOST_NAMED]


def _by_imports(importers: Mapping[str, Sequence[str]], changed: Sequence[str]) -> Iterator[Touched]:
    """Those that import a changed file, directly or through others: by the shortest way, nearest first."""
    seen, reached = set(changed), list(changed)
    confidence = BY_IMPORT
    while reached:
        following = []
        for path in reached:
            for importer in importers.get(path, ()):
                if importer not in seen:
                    seen.add(importer)
                    following.append(importer)
                    yield Touched(importer, round(confidence, 2), f"imports {path}")
        reached, confidence = following, confidence * WEAKER


def _by_history(context: Context, changed: Sequence[str]) -> Iterator[Touched]:
    """Those that were committed together with a changed file, often enough to mean something."""
    together: Counter[str] = Counter()
    commits = [paths for paths in _commits(context) if not paths.isdisjoint(changed)]
    for paths in commits:
        together.update(paths.difference(changed))
    for path, times in sorted(together.items()):
        share = times / len(commits)
        if times >= FEWEST_TOGETHER and share >= LEAST_SHARE and context.files.kind(path) is Kind.FILE:
            yield Touched(path, round(share * 0.9, 2), f"committed together in {times} of {len(commits)} commits")


def _commits(context: Context) -> list[set[str]]:
    """The files of the last commits, but for those that took in very many."""
    repository = repository_of(context)
    if not repository.exists():
        return []
    commands = repository.commands(timeout=context.timeout, cancel=context.cancel)
    if commands.find("HEAD") is None:
        return []
    options = ("--format=%x01", "--name-only", "--no-renames", "--no-merges", f"--max-count={COMMITS}", "-z")
    said = commands.run("log", *options, "--end-of-options", "HEAD", "--", reads=True).stdout.decode(errors="replace")
    several = [{name.strip("\n") for name in part.split("\0")} - {""} for part in said.split("\x01")]
    return [paths for paths in several if 0 < len(paths) <= LARGEST_COMMIT]


def tests_among(changed: Iterable[str], touched: Iterable[Touched]) -> list[str]:
    """The test modules that a change touches, the surest first."""
    paths = [*changed, *(each.path for each in touched)]
    return [path for path in dict.fromkeys(paths) if is_test(path) and not path.endswith("conftest.py")]


def faults_in(context: Context, paths: Sequence[str]) -> list[Found]:
    """What ruff takes for wrong or too complex in these files, under no configuration but ours, by place."""
    python = [path for path in paths if path.endswith(PYTHON_SUFFIXES) and context.files.kind(path) is Kind.FILE]
    if not python:
        return []
    with scratch_folder(context) as scratch:
        scratch.add_python(python)
        reported = scratch.check(*RULES, paths=python)
    return sorted(map(_as_found, reported), key=lambda each: (each.path, each.line, each.rule))


def _as_found(reported: RuffFinding) -> Found:
    rule = reported["code"] or "syntax"
    line = (reported["location"] or {"row": 1})["row"]
    certain = rule == "syntax" or rule.startswith(ERRORS)
    severity = "error" if certain else "info" if rule == COMPLEXITY else "warning"
    return Found(reported["filename"], line, severity, 0.95 if certain else 0.7, reported["message"], rule)


def likely_to_break(
    context: Context, changed: Sequence[str], touched: Sequence[Touched], faults: Sequence[Found]
) -> list[Touched]:
    """The files that are likely to break, and why: what is wrong in them already, what cannot be seen to be right."""
    risks: dict[str, Touched] = {}

    def add(path: str, confidence: float, why: str) -> None:
        known = risks.get(path)
        if known is None or known.confidence < confidence:
            risks[path] = Touched(path, confidence, why)

    for fault in faults:
        if fault.severity == "error" or fault.rule == COMPLEXITY:
            add(
                fault.path,
                fault.confidence if fault.severity == "error" else 0.5,
                f"line {fault.line}: {fault.message}",
            )
    direct = [each for each in touched if each.confidence >= BY_IMPORT and not is_test(each.path)]
    tested = bool(tests_among(changed, touched))
    for path in changed:
        if path.endswith(PYTHON_SUFFIXES) and not is_test(path) and not tested:
            add(path, 0.6, "no test imports it")
        if len(direct) >= MANY_IMPORTERS:
            add(path, 0.5, f"{len(direct)} files import it")
    for each in _of_what_is_gone(context, changed, direct):
        add(each.path, each.confidence, each.why)
    return sorted(risks.values(), key=lambda each: (-each.confidence, each.path))


def _of_what_is_gone(context: Context, changed: Iterable[str], direct: Iterable[Touched]) -> Iterator[Touched]:
    """Files that import one that is not there any more."""
    gone = tuple(f"imports {path}" for path in changed if context.files.kind(path) is None)
    return (Touched(each.path, 0.95, f"{each.why}, which is gone") for each in direct if each.why in gone)

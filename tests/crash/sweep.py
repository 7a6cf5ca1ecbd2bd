"""All cases of a scenario, or a few: a run killed, killed again, refused by the system, undone by another.

`sweep` takes every point, or every N-th, both ways. `sample` is for those who wait: it takes a few points of each
scenario, of other kinds in each. A kind is a call and a side: `rename before`. Which kinds all samples together were
killed at is known when they have ended; `sample_kinds` then takes the others, so that none is left to chance.
"""

from __future__ import annotations

import errno
import itertools
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.cases import Bench, Violation, in_child, points_of, recover, run_set
from tests.crash.points import CALLS, kill_at
from tests.crash.scenarios import Scenario

RAREST = ("chmod", "fsync", "replace")
RARE = (("symlink",), ("rmdir", "unlink"), ("delete", "link", "pwrite", "update"))
"""Calls that hardly any scenario comes to, and those that come to few others."""
WAYS = ("rollback", "resume")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES)


@dataclass
class Found:
    """What was tried, how often, and what broke."""

    name: str
    points: int = 0
    cases: dict[str, int] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    """Where it was killed."""
    reached: set[str] = field(default_factory=set)
    """The kinds of all points."""
    killed: set[str] = field(default_factory=set)
    """The kinds of points where it was killed."""
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: str, violations: list[Violation]) -> None:
        """Count one case."""
        self.cases[kind] = self.cases.get(kind, 0) + 1
        self.violations += violations

    def kill(self, bench: Bench, point: str, way: str) -> None:
        """Add the case of a kill."""
        self.calls.add(point.split()[0])
        self.killed.add(kind_of(point))
        self.add("kills", bench.case(point, way))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**asdict(self), **{name: sorted(getattr(self, name)) for name in ("calls", "reached", "killed")}}


def sweep(scenario: Scenario, folder: Path, every: int) -> Found:
    """Take every `every`-th point of a scenario, in each way that a run can be disturbed there."""
    started = time.monotonic()
    bench = Bench(scenario, folder)
    step = every if every == 1 else every * scenario.stride
    found = Found(scenario.name, len(bench.points), reached={*map(kind_of, bench.points)})
    for point in bench.points[_first(bench, step) :: step]:
        for way in WAYS:
            found.kill(bench, point, way)
    for point, way, again in _again(bench, step):
        found.add("kills again", bench.case(point, way, again))
    for point, number in _errors(bench, step):
        found.add("errors", bench.fault(point, number))
    for point in _inside(bench)[:: 12 * step]:
        found.add("intrusions", bench.intrusion(point))
    found.seconds = round(time.monotonic() - started, 1)
    return found


def sample(scenario: Scenario, folder: Path, number: int) -> Found:
    """A few cases of the scenario with this number, the rest of which are those of others."""
    started = time.monotonic()
    bench = Bench(scenario, folder)
    found = Found(scenario.name, len(bench.points), reached={*map(kind_of, bench.points)})
    for turn, point in enumerate(_of_other_kinds(bench.points, number)):
        found.kill(bench, point, WAYS[(number + turn) % 2])
    if number % 2:
        middle, way = bench.points[len(bench.points) // 2], WAYS[number // 2 % 2]
        points = _points_of_recovery(bench, middle, way)
        found.add("kills again", bench.case(middle, way, points[number * 7 % len(points)]))
    before = _refusable(bench)
    found.add("errors", bench.fault(before[number * 7 % len(before)], ERRORS[number % 4]))
    if number % 4 == 0:
        found.add("intrusions", bench.intrusion(_inside(bench)[0]))
    found.seconds = round(time.monotonic() - started, 1)
    return found


def sample_kinds(scenario: Scenario, folder: Path, wanted: Sequence[str]) -> Found:
    """A kill at a point of each of these kinds, which the scenario is known to come to."""
    bench = Bench(scenario, folder)
    found = Found(f"{scenario.name}, at what others left out"[:60])
    for turn, kind in enumerate(wanted):
        of_kind = [point for point in bench.points if kind_of(point) == kind]
        found.kill(bench, of_kind[len(of_kind) // 2], WAYS[turn % 2])
    return found


def kind_of(point: str) -> str:
    """`rename before` of `rename 3 before`."""
    call, _, side = point.split()
    return f"{call} {side}"


def _of_other_kinds(points: Sequence[str], number: int) -> Iterator[str]:
    """A point of each kind that is rarest, one of a kind that is rare, and one of any kind."""
    kinds: dict[str, list[str]] = {}
    for point in points:
        kinds.setdefault(kind_of(point), []).append(point)
    groups = [[kind for kind in sorted(kinds) if kind.split()[0] in calls] for calls in (*RARE, CALLS)]
    chosen = [kind for kind in sorted(kinds) if kind.split()[0] in RAREST]
    chosen += [group[number % len(group)] for group in (next(filter(None, groups)), sorted(kinds))]
    for kind in dict.fromkeys(chosen):
        yield kinds[kind][number % len(kinds[kind])]


def _inside(bench: Bench) -> list[str]:
    """Points in the middle of the run, where it is at work for sure."""
    inside = [point for point in bench.points if point.split()[0] not in ("begin", "commit")]
    return inside[len(inside) // 3 : -len(inside) // 4]


def _first(bench: Bench, step: int) -> int:
    """Where to begin: elsewhere in each scenario, as they all begin alike."""
    return zlib.crc32(bench.scenario.name.encode()) % min(step, len(bench.points))


def _again(bench: Bench, step: int) -> Iterator[tuple[str, str, str]]:
    """Kills during the recovery from a kill in the middle of the run."""
    middle = bench.points[len(bench.points) // 2]
    for way in WAYS:
        for again in _points_of_recovery(bench, middle, way)[:: 3 * step]:
            yield middle, way, again


def _points_of_recovery(bench: Bench, point: str, way: str) -> list[str]:
    """The points that the recovery from a kill at this one comes to."""
    with bench.workspace() as root:
        in_child(lambda: run_set(root, bench.scenario), kill_at(point))
        return points_of(lambda: recover(root, bench.scenario, way))


def _errors(bench: Bench, step: int) -> Iterator[tuple[str, int]]:
    """Errors of the system at the calls that write, each in its turn."""
    yield from zip(_refusable(bench)[:: 2 * step], itertools.cycle(ERRORS), strict=False)


def _refusable(bench: Bench) -> list[str]:
    """The calls that the system may refuse."""
    return [point for point in bench.points if point.endswith("before") and not point.startswith("begin")]

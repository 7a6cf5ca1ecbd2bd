"""All cases of a scenario: every point or every N-th, both ways, and what may befall a run there besides a kill."""

from __future__ import annotations

import errno
import itertools
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.cases import Bench, Violation, in_child, points_of, recover, run_set
from tests.crash.points import kill_at
from tests.crash.scenarios import Scenario

KINDS = ("kills", "kills again", "errors", "intrusions")


@dataclass
class Found:
    """What was tried, how often, and what broke."""

    name: str
    points: int = 0
    cases: dict[str, int] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    """Where it was killed."""
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: str, violations: list[Violation]) -> None:
        """Count one case."""
        self.cases[kind] = self.cases.get(kind, 0) + 1
        self.violations += violations

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**asdict(self), "calls": sorted(self.calls)}


def sweep(scenario: Scenario, folder: Path, every: int) -> Found:
    """Take every `every`-th point of a scenario, in each way that a run can be disturbed there."""
    started = time.monotonic()
    bench = Bench(scenario, folder)
    step = every if every == 1 else every * scenario.stride
    found = Found(scenario.name, len(bench.points))
    for point in bench.points[_first(bench, step) :: step]:
        found.calls.add(point.split()[0])
        for way in ("rollback", "resume"):
            found.add("kills", bench.case(point, way))
    for point, way, again in _again(bench, step):
        found.add("kills again", bench.case(point, way, again))
    for point, number in _errors(bench, step):
        found.add("errors", bench.fault(point, number))
    inside = [point for point in bench.points if point.split()[0] not in ("begin", "commit")]
    for point in inside[len(inside) // 3 : -len(inside) // 4 : 12 * step]:
        found.add("intrusions", bench.intrusion(point))
    found.seconds = round(time.monotonic() - started, 1)
    return found


def _first(bench: Bench, step: int) -> int:
    """Where to begin: elsewhere in each scenario, as they all begin alike."""
    return zlib.crc32(bench.scenario.name.encode()) % min(step, len(bench.points))


def _again(bench: Bench, step: int) -> Iterator[tuple[str, str, str]]:
    """Kills during the recovery from a kill in the middle of the run."""
    middle = bench.points[len(bench.points) // 2]
    for way in ("rollback", "resume"):
        with bench.workspace() as root:
            in_child(lambda root=root: run_set(root, bench.scenario), kill_at(middle))  # type: ignore[misc]
            points = points_of(lambda root=root, way=way: recover(root, bench.scenario, way))  # type: ignore[misc]
        for again in points[:: 3 * step]:
            yield middle, way, again


def _errors(bench: Bench, step: int) -> Iterator[tuple[str, int]]:
    """Errors of the system at the calls that write, each in its turn."""
    errors = itertools.cycle((errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES))
    before = [point for point in bench.points if point.endswith("before") and not point.startswith("begin")]
    yield from zip(before[:: 2 * step], errors, strict=False)

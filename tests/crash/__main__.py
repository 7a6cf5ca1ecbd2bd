"""Kill runs at every point, and print what was found: `./run python -m tests.crash [--every N] [--only TEXT]`.

Prints figures, and as JSON with `--json`; exits with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.crash.cases import Bench, Violation, in_child, points_of, recover, run_set
from tests.crash.points import kill_at
from tests.crash.scenarios import SCENARIOS, Scenario


def kills(bench: Bench, every: int) -> Iterator[tuple[str, str, str | None]]:
    """The cases of a scenario: each point both ways, and kills during recovery from some of them."""
    for point in bench.points[::every]:
        yield point, "rollback", None
        yield point, "resume", None
    middle = bench.points[len(bench.points) // 2]
    for way in ("rollback", "resume"):
        for again in recovery_points(bench, middle, way)[:: 3 * every]:
            yield middle, way, again


def faults(bench: Bench, every: int) -> Iterator[tuple[str, int]]:
    """Errors of the system at every writing call, each in its turn."""
    errors = itertools.cycle((errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES))
    before = [point for point in bench.points if point.endswith("before") and not point.startswith("begin")]
    yield from zip(before[:: 2 * every], errors, strict=False)


def recovery_points(bench: Bench, point: str, way: str) -> list[str]:
    """The points that a recovery reaches after a kill at the point."""
    with bench.workspace() as root:
        in_child(lambda: run_set(root, bench.scenario), kill_at(point))
        return points_of(lambda: recover(root, bench.scenario, way))


def examine(work: tuple[Scenario, str, int]) -> dict[str, Any]:
    """All cases of one scenario."""
    scenario, folder, every = work
    started = time.monotonic()
    bench = Bench(scenario, Path(folder) / str(os.getpid()) / scenario.name.replace("/", "_").replace(" ", "_"))
    every = every if every == 1 else every * scenario.stride
    violations: list[Violation] = []
    count = 0
    for point, way, again in kills(bench, every):
        count += 1
        violations += bench.case(point, way, again)
    for point, number in faults(bench, every):
        count += 1
        violations += bench.fault(point, number)
    return {
        "scenario": scenario.name,
        "points": len(bench.points),
        "cases": count,
        "violations": [asdict(each) for each in violations],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take every N-th point only")
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix="qo-crash-") as folder:
        work = [(scenario, folder, options.every) for scenario in chosen]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = []
            for each in pool.imap(examine, work):
                found.append(each)
                if not options.json:
                    print(
                        f"{each['scenario']:<60} {each['points']:>4} points {each['cases']:>5} cases "
                        f"{len(each['violations']):>4} violations {each['seconds']:>6} s",
                        flush=True,
                    )
    total = {name: sum(each[name] for each in found) for name in ("points", "cases")}
    violations = [violation for each in found for violation in each["violations"]]
    if options.json:
        print(json.dumps({**total, "violations": violations, "scenarios": found}))
    else:
        for violation in violations[:20]:
            print(f"VIOLATION {violation['case']}\n    {violation['what'][:500]}")
        print(f"{total['points']} points, {total['cases']} cases, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

"""Break runs in every way there is, and print what was found.

./run python -m tests.crash [--every N] [--only TEXT]    at every point, or every N-th; and the controls
./run python -m tests.crash --sample                     at a few points of each scenario, of every kind in all; as well
./run python -m tests.crash --random N [--seed S]        N sets of 50 mixed instructions, at random moments

Prints figures, or all that was found as JSON with `--json`. Exits with 1 if a promise was broken, or if a control was
not caught: then the cases could not have found what they look for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tests.crash.cases import prepare_forks
from tests.crash.controls import CONTROLS
from tests.crash.mixed import trial
from tests.crash.orphans import orphaned_git
from tests.crash.power import Cuts, can_cut
from tests.crash.scenarios import POWER, SCENARIOS
from tests.crash.sweep import Found, sample, sample_kinds, sweep

LENGTH = 50
"""Instructions of a mixed set."""
WORKERS = 2
SAMPLED_CUTS = 36
"""Of every how many points `--sample` takes a third for a power cut."""
Work = TypeVar("Work")


@dataclass(frozen=True)
class Caught:
    """What became of a control. `by` is what its first case has found; None if nothing."""

    barrier: str
    by: str | None
    seconds: float


def orphans(folder: Path) -> Found:
    """Git commands that outlive their engine."""
    found = Found("git outlives its engine")
    found.add("orphans", orphaned_git(folder))
    return found


def cuts(folder: Path, every: int) -> Found:
    """Power cuts."""
    trials = Cuts(POWER, folder)
    found = Found("power cut", points=len(trials.bench.points))
    found.add("power cuts", trials.at_the_end())
    for point in trials.bench.points[:: 3 * every]:
        found.add("power cuts", trials.at(point))
    return found


def mixed(seed: int, folder: Path) -> Found:
    """One random kill."""
    found = Found(f"mixed {seed}")
    found.add("random kills", trial(seed, folder, LENGTH))
    return found


def control(number: int, folder: Path) -> Caught:
    """One control."""
    started = time.monotonic()
    chosen = CONTROLS[number]
    by = chosen.caught_by(folder)
    return Caught(chosen.barrier, by, round(time.monotonic() - started, 1))


Job = partial[Any]


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """What is to be done; each is given a folder."""
    if options.random:
        yield from (partial(mixed, seed) for seed in range(options.seed, options.seed + options.random))
        return
    if not options.only:
        yield from (partial(control, number) for number, each in enumerate(CONTROLS) if each.is_possible())
        yield partial(orphans)
        if can_cut():
            yield partial(cuts, every=SAMPLED_CUTS if options.sample else options.every)
    chosen = [each for each in SCENARIOS if options.only in each.name]
    if options.sample:
        yield from (partial(sample, each, number=number) for number, each in enumerate(chosen))
        return
    yield from (partial(sweep, each, every=options.every) for each in chosen)


def left_out(found: Sequence[Found | Caught]) -> Iterator[Job]:
    """What is to be done after a sample of all scenarios: kills at the kinds of points where it has made none."""
    sampled = [each for each in found[-len(SCENARIOS) :] if isinstance(each, Found)]
    killed = {kind for each in sampled for kind in each.killed}
    missing = {kind for each in sampled for kind in each.reached} - killed
    for scenario, each in sorted(zip(SCENARIOS, sampled, strict=True), key=lambda pair: pair[1].seconds):
        if here := sorted(missing & each.reached):
            yield partial(sample_kinds, scenario, wanted=here)
            missing -= each.reached


def perform(work: tuple[int, Job, str]) -> Found | Caught:
    """One job, in a process that may do several, one after the other."""
    number, job, folder = work
    started = time.monotonic()
    found: Found | Caught = job(folder=Path(folder) / str(number))
    if isinstance(found, Found):
        found.seconds = round(time.monotonic() - started, 1)
    return found


def line_of(found: Found | Caught) -> str:
    """One line of the table."""
    if isinstance(found, Caught):
        return f"control: without {found.barrier!r}: {'caught' if found.by else 'NOT CAUGHT'} ({found.seconds} s)"
    cases, broken = sum(found.cases.values()), len(found.violations)
    return f"{found.name:<60} {found.points:>4} points {cases:>5} cases {broken:>4} violations {found.seconds:>6} s"


def total(found: list[Found], caught: list[Caught]) -> dict[str, Any]:
    """The figures of all together."""
    kinds: dict[str, int] = {}
    killed: set[str] = set().union(*(each.killed for each in found))
    for each in found:
        for kind, count in each.cases.items():
            kinds[kind] = kinds.get(kind, 0) + count
    return {
        "points": sum(each.points for each in found),
        "cases": sum(kinds.values()),
        "kinds": kinds,
        "calls": sorted(set().union(*(each.calls for each in found))),
        "never_killed_at": sorted(set().union(*(each.reached for each in found)) - killed),
        "violations": [{"case": each.case, "what": each.what} for all_of in found for each in all_of.violations],
        "controls": {each.barrier: each.by for each in caught},
        "caught": sum(each.by is not None for each in caught),
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    for violation in figures["violations"][:20]:
        print(f"VIOLATION {violation['case']}\n    {violation['what'][:500]}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in figures["kinds"].items())
    print(f"{figures['points']} points, {figures['cases']} cases ({kinds}), {len(figures['violations'])} violations")
    if figures["controls"]:
        left_out = len(CONTROLS) - len(figures["controls"])
        note = f"; {left_out} left out, which need root and loop devices" if left_out else ""
        print(f"{figures['caught']} of {len(figures['controls'])} controls caught{note}")


def found_by(work: Iterable[Job], *, tell: bool) -> Iterator[Found | Caught]:
    """Do it all in a few processes at once."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    prepare_forks()
    with (
        tempfile.TemporaryDirectory(dir=place, prefix="qo-crash-") as folder,
        multiprocessing.get_context("fork").Pool(WORKERS, initializer=prepare_forks) as pool,
    ):
        for each in pool.imap(perform, [(number, job, folder) for number, job in enumerate(work)]):
            if tell:
                print(line_of(each), flush=True)
            yield each
        pool.close()
        pool.join()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="take every N-th point only")
    parser.add_argument("--sample", action="store_true", help="take a few points of each scenario only")
    parser.add_argument("--only", default="", help="scenarios whose name holds this text, and nothing else")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N random kills, and nothing else")
    parser.add_argument("--seed", type=int, default=0, help="of the first random set")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    everything = list(found_by(jobs(options), tell=not options.json))
    if options.sample and not options.only:
        everything += found_by(left_out(everything), tell=not options.json)
    found = [each for each in everything if isinstance(each, Found)]
    figures = total(found, [each for each in everything if isinstance(each, Caught)])
    if options.json:
        print(json.dumps({**figures, "scenarios": [each.as_json() for each in found]}))
    else:
        show(figures)
        print(f"{time.monotonic() - started:.0f} s")
    return 1 if figures["violations"] or figures["caught"] < len(figures["controls"]) else 0


if __name__ == "__main__":
    sys.exit(main())

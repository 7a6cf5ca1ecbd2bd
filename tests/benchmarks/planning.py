"""Judging and planning, and how time and memory grow with the number of instructions.

P11  `qo validate` and `qo plan` of many writes: processor time, and that Prefect is not imported
P5   growth: `qo validate`, `qo plan` and `qo run`, and peers, with ten times as many writes each time

The growth is measured without the warm service, so that all the memory of a run is seen; the Prefect server's is left
out, for ours and for Prefect itself. Memory is the most that all processes have had together, each page counted once.
Each size is measured once, but for the one that the largest is set beside; who would be over the limit with ten times
as many is not tried.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator, Sequence

from tests.benchmarks.bench import Bench, Trials, Way
from tests.benchmarks.engines import add_bench_options, chosen
from tests.benchmarks.measure import Measured
from tests.benchmarks.peers.work import Kind, Work
from tests.benchmarks.rows import Row
from tests.benchmarks.setting import served, work_folder

LEAST_SECONDS = {"validate": 1.0, "plan": 2.0}
GROWING = ("bare loop, one syncfs", "make", "doit", "DBOS", "Prefect")
RUN = "qo run"
MEMORY = 600.0  # MB


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--size", type=int, default=10_000, metavar="N", help="P11: instructions")
    sizes = [100, 1000, 10_000, 100_000]
    command.add_argument("--growth", type=int, nargs="+", default=sizes, metavar="N", help="P5: writes")
    command.add_argument("--peer-limit", type=float, default=45.0, metavar="SECONDS", help="P5: what a peer may take")
    add_bench_options(command)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure what is asked for."""
    with work_folder(options.folder) as folder:
        options.limit = 1800.0  # ours is long at the end, and shall not be stopped
        home = folder / "home"
        if not options.only or "P11" in options.only:
            yield from _planned(Bench(folder / "planned", home, options), options.size)
        if not options.only or "P5" in options.only:
            with served(home):
                yield from _growth(Bench(folder / "growth", home, options), options)


def _planned(bench: Bench, size: int) -> Iterator[Row]:
    for name, most in LEAST_SECONDS.items():
        way = _without_work(bench, name)
        trials = bench.trials([way], Work(Kind.WRITES, size))[way.name]
        fault = trials.fault or _imports_prefect(bench, name)
        taken = tuple(each.processor for each in trials.found)
        ours = None if fault else trials.of(lambda each: each.processor)
        note = fault or "processor time; Prefect is not imported"
        yield Row("P11", f"qo {name} of {size}", ours, most, 1.0, note, f"{most:g} s", samples=taken)


def _without_work(bench: Bench, name: str, *, memory: bool = False) -> Way:
    return bench.ours(f"qo {name}", name, memory=memory)


def _imports_prefect(bench: Bench, name: str) -> str | None:
    """What is wrong, if it is imported."""
    folder = Work(Kind.WRITES, 1).prepare(bench.folder / f"imports-{name}")
    command, variables = _without_work(bench, name).prepare(folder, Work(Kind.WRITES, 1))
    told = subprocess.run(
        command, env={**variables, "PYTHONPROFILEIMPORTTIME": "1"}, capture_output=True, text=True, check=True
    )
    modules = set(re.findall(r"\|\s+(\w+)", told.stderr))
    if "json" not in modules:
        return "what is imported cannot be seen"
    return "Prefect is imported" if "prefect" in modules else None


def _growth(bench: Bench, options: argparse.Namespace) -> Iterator[Row]:
    ways = [_without_work(bench, name, memory=True) for name in LEAST_SECONDS]
    ways += [bench.ours(RUN, "run", memory=True)]
    own = {way.name for way in ways}
    peers = [peer for peer in chosen(options.peers) if peer.name in GROWING]
    ways += [bench.peer(peer, memory=True) for peer in peers]
    grown: dict[str, list[tuple[int, Measured]]] = {way.name: [] for way in ways}
    before = 0
    for size in options.growth:
        able = [way for way in ways if way.name in own or _within(grown[way.name], before, size, options.peer_limit)]
        repeat = options.repeat if [size] == options.growth[-2:-1] else 1  # what the largest is set beside
        for name, trials in bench.trials(able, Work(Kind.WRITES, size), repeat).items():
            yield from _grown(name, size, trials)
            if not trials.fault and trials.found:
                grown[name].append((size, _middle(trials)))
        before = size
    yield from _targets(grown[RUN])


def _within(measured: Sequence[tuple[int, Measured]], before: int, size: int, limit: float) -> bool:
    """Whether so many take less than the limit, if it grows in a straight line from the smallest size."""
    if not before:
        return True
    if not measured or measured[-1][0] != before:
        return False
    start, last = measured[0][1].seconds, measured[-1][1].seconds
    return start + (last - start) * size / before <= limit


def _middle(trials: Trials) -> Measured:
    return sorted(trials.found, key=lambda each: each.seconds)[len(trials.found) // 2]


def _grown(name: str, size: int, trials: Trials) -> Iterator[Row]:
    """What the plot shows: nothing beside it."""
    fault = trials.fault or ""
    memory = tuple(each.memory for each in trials.found)
    yield Row("P5", f"{name}: {size}, time", trials.median(), None, None, fault, samples=trials.seconds)
    peak = trials.of(lambda each: each.memory)
    yield Row("P5", f"{name}: {size}, memory", peak, None, None, fault, unit="MB", samples=memory)


def _targets(grown: Sequence[tuple[int, Measured]]) -> Iterator[Row]:
    """The largest beside the one before, and beside what it may take."""
    if len(grown) > 1:
        (less, before), (more, after) = grown[-2:]
        yield Row("P5", f"{more} writes", after.seconds, before.seconds, more / less * 1.1, peer=f"{less} writes")
        yield Row("P5", f"{more} writes, memory", after.memory, MEMORY, 1.0, peer=f"{MEMORY:g} MB", unit="MB")

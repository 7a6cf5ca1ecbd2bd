"""Whole runs of `qo` beside other engines: the same work, whole processes, folders checked afterwards.

P1   one file written, the Prefect server and the warm service running
P2   the same on a machine where nothing runs, and the time to the first line on the terminal
P3   independent writes                    P4   the same beside a bare loop that is as durable
P6   a chain of appends                    P7   /bin/true, two at a time
P12  nothing has changed, run again

The peers are in peers/catalogue.py; each is installed in an environment of its own when it is first needed. One that
fails, or takes longer than the limit, says so in its row; one that would take minutes gets less of the work, and its
row says how its time was scaled. Ours is `qo run` as users have it; the row "qo, no service" is the same with
QO_SERVICE=off. Nothing is deleted in between, as creating files is slow where many have just been deleted. The files of
all programs are in the page cache. What is shown is the median.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks import measure
from tests.benchmarks.bench import ALONE, COLD, OURS, Bench, Trials
from tests.benchmarks.peers.catalogue import PEERS, Peer
from tests.benchmarks.peers.work import Kind, Work
from tests.benchmarks.rows import Row
from tests.benchmarks.setting import served, work_folder

AS_DURABLE = "bare loop, one syncfs"


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], metavar="N", help="P3, P4: writes")
    command.add_argument("--chain", type=int, default=1000, metavar="N", help="P6: appends")
    command.add_argument("--scripts", type=int, default=1000, metavar="N", help="P7: scripts")
    command.add_argument("--again", type=int, default=1000, metavar="N", help="P12: writes")
    command.add_argument("--home", type=Path, metavar="QO_HOME", help="whose Prefect server and service to use, if any")
    add_bench_options(command)


def add_bench_options(command: argparse.ArgumentParser, repeat: int = 3) -> None:
    """Those of a Bench, and which peers."""
    command.add_argument("--peers", type=_names, default=(), metavar="doit,make", help="these only; `none`: no peer")
    command.add_argument("--repeat", type=int, default=repeat, help="repetitions of each, at most")
    command.add_argument("--limit", type=float, default=90.0, metavar="SECONDS", help="what a peer may take")
    command.add_argument("--pause", type=float, default=0.3, metavar="SECONDS", help="between two measurements")
    command.add_argument("--folder", type=Path, help="where to work, and leave it; default: for temporary files")
    command.add_argument("--keep", type=Path, metavar="FILE", help="go on with what has been measured, and keep it")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().casefold() for name in text.split(",") if name.strip())
    known = {peer.name.casefold() for peer in PEERS} | {peer.package for peer in PEERS} | {"none"}
    for name in names:
        if not any(each.startswith(name) for each in known):
            raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(sorted(known - {''}))}")
    return names


def chosen(names: Sequence[str]) -> Sequence[Peer]:
    """The peers that are called so, or begin so; all, if there is no name."""
    return [
        peer
        for peer in PEERS
        if not names
        or any(each.casefold().startswith(name) for name in names for each in (peer.name, peer.package) if each)
    ]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure what is asked for."""
    peers = chosen(options.peers)
    chain, scripts = Work(Kind.CHAIN, options.chain), Work(Kind.SCRIPTS, options.scripts)
    with work_folder(options.folder) as folder:
        home = options.home or folder / "home"
        with served(home, leave=options.home is not None):
            measure.settled(home)
            bench = Bench(folder, home, options)
            if options.repeat > 1:
                bench.warm_up([bench.ours(), bench.ours(ALONE)])
                bench.check_scripts(list(map(bench.peer, peers)))
            for ids, found in (  # generators: nothing is measured before it is asked for
                ({"P1"}, _hello(bench, peers)),
                ({"P2"}, _first_run(bench, peers)),
                ({"P3", "P4"}, _writes(bench, peers, options.sizes)),
                ({"P6"}, _compared(bench, "P6", chain, peers, "appends in a chain")),
                ({"P7"}, _compared(bench, "P7", scripts, peers, "scripts")),
                ({"P12"}, _again(bench, peers, options.again)),
            ):
                if not options.only or ids & set(options.only):
                    yield from found


def compared(number: str, workload: str, ours: Trials, peer: str, theirs: Trials, target: float | None) -> Row:
    """One comparison; why one of the two is missing is its note."""
    faults = [f"{who}: {one.fault}" for who, one in (("ours", ours), (peer, theirs)) if one.fault]
    return Row(
        number,
        workload,
        ours.median(),
        theirs.median(),
        target,
        "; ".join([*faults, *filter(None, [theirs.told()])]),
        peer,
        at_least=theirs.stopped,
        scaled_from=theirs.scaled_from,
        samples=ours.seconds,
        beside_samples=theirs.seconds,
        processor=ours.of(lambda each: each.processor),
        beside_processor=None if theirs.stopped or theirs.scaled_from else theirs.of(lambda each: each.processor),
    )


def _compared(bench: Bench, number: str, work: Work, peers: Sequence[Peer], what: str) -> Iterator[Row]:
    found = bench.trials([bench.ours(), bench.ours(ALONE), *map(bench.peer, peers)], work)
    for name, target in [(ALONE, None), *((peer.name, _target(number, peer, work)) for peer in peers)]:
        row = compared(number, f"{work.size} {what}", found[OURS], name, found[name], target)
        yield replace(row, floor=_floor(found))


def _floor(found: Mapping[str, Trials]) -> float | None:
    return found[AS_DURABLE].median() if AS_DURABLE in found else None


def _target(number: str, peer: Peer, work: Work) -> float | None:
    """What the design demands of ours beside this one."""
    if peer.bare:
        return None
    if number == "P3" and work.size < 10_000:
        return 1.0 if peer.durable else None  # of the others, the best counts: `_beside_the_best`
    if number == "P7":
        return 2.0 if peer.name == "make" else 1.0 if peer.python else None
    if number == "P12":
        return 1.0 if peer.name == "doit" else None
    return 1.0


def _hello(bench: Bench, peers: Sequence[Peer]) -> Iterator[Row]:
    work, what = Work(Kind.WRITES, 1), "hello"
    servers = [peer for peer in peers if peer.server]
    bare = [peer for peer in peers if peer.name == AS_DURABLE]
    ways = [bench.ours(), bench.ours(ALONE), *map(bench.peer, [*bare, *servers])]
    found = bench.trials(ways, work, max(5, bench.repeat) if bench.repeat > 1 else 1)
    ours, floor = found[OURS], _floor(found)
    yield Row("P1", what, ours.median(), 0.5, 1.0, ours.fault or "", "0.5 s", floor=floor, samples=ours.seconds)
    yield compared("P1", what, ours, ALONE, found[ALONE], None)
    for peer in servers:
        yield replace(compared("P1", what, ours, peer.name, found[peer.name], 1 / 8), floor=floor)


def _first_run(bench: Bench, peers: Sequence[Peer]) -> Iterator[Row]:
    work, what = Work(Kind.WRITES, 1), "hello, nothing running"
    ephemeral = [peer for peer in peers if peer.package == "prefect" and not peer.server]
    found = bench.trials([bench.cold(), *map(bench.peer, ephemeral)], work)
    ours = found[COLD]
    lines = [each.first_line for each in ours.found if each.first_line is not None]
    first = statistics.median(lines) if lines and not ours.fault else None
    yield Row("P2", f"{what}, first line", first, 0.3, 1.0, ours.fault or "", "0.3 s", samples=tuple(lines))
    yield from (compared("P2", what, ours, peer.name, found[peer.name], 1.0) for peer in ephemeral)


def _writes(bench: Bench, peers: Sequence[Peer], sizes: Sequence[int]) -> Iterator[Row]:
    """P3, and of the same times P4."""
    for size in sizes:
        found = list(_compared(bench, "P3", Work(Kind.WRITES, size), peers, "writes"))
        yield from found
        if size < 10_000:
            yield from _beside_the_best(found, peers)
        durable = [row for row in found if row.peer == AS_DURABLE]
        yield from (replace(row, id="P4", target=3.0 if size >= 10_000 else None) for row in durable)


def _beside_the_best(found: Sequence[Row], peers: Sequence[Peer]) -> Iterator[Row]:
    """Of the engines that keep no durable state."""
    others = {peer.name for peer in peers if not peer.durable and not peer.bare}
    measured = [row for row in found if row.peer in others and row.beside is not None]
    if measured:
        best = min(measured, key=lambda row: row.beside or 0.0)
        yield replace(best, peer="the best without durable state", target=1.5, note=best.peer)


def _again(bench: Bench, peers: Sequence[Peer], size: int) -> Iterator[Row]:
    able = [peer for peer in peers if peer.reruns]
    work = Work(Kind.WRITES, size, cache=True)
    found = bench.trials([bench.ours(), bench.ours(ALONE), *map(bench.peer, able)], work, twice=True)
    for name, target in [(ALONE, None), *((peer.name, _target("P12", peer, work)) for peer in able)]:
        yield compared("P12", f"{size} writes, run again", found[OURS], name, found[name], target)

"""Whole runs of `qo` beside other engines: the same work, whole processes, folders checked afterwards.

P1   one file written, the Prefect server and the warm service running
P2   the same on a machine where nothing runs, and the time to the first line on the terminal
P3   independent writes                    P4   the same beside a bare loop that is as durable
P5   growth of time and memory             P6   a chain of appends
P7   /bin/true, two at a time              P12  nothing has changed, run again

The peers are in peers/catalogue.py; each is installed in an environment of its own when it is first needed. One that
fails, or takes longer than the limit, says so in its row; one that has reached the limit is not tried at larger sizes.
Ours is `qo run` as users have it; the row "qo, no service" is the same with QO_SERVICE=off. Each repetition has a new
folder, and nothing is deleted in between, as creating files is slow where many have just been deleted. What is shown is
the median. Who has taken BUDGET seconds is not asked again: slow ones are measured once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks import measure
from tests.benchmarks.measure import Measured
from tests.benchmarks.peers.catalogue import PEERS, Peer
from tests.benchmarks.peers.environments import NotInstalled
from tests.benchmarks.peers.work import Kind, Work
from tests.benchmarks.rows import Row, spread

QO = str(Path(sys.executable).with_name("qo"))
OURS, ALONE, COLD = "qo", "qo, no service", "qo, nothing running"
BUDGET = 10.0  # seconds, after which no further repetition begins
JOBS = "2"
NOT_AGAIN = "not tried: over the limit at a smaller size"


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], metavar="N", help="P3, P4: writes")
    command.add_argument("--chain", type=int, default=1000, metavar="N", help="P6: appends")
    command.add_argument("--scripts", type=int, default=1000, metavar="N", help="P7: scripts")
    command.add_argument("--again", type=int, default=1000, metavar="N", help="P12: writes")
    command.add_argument("--growth", type=int, nargs="+", default=[100, 1000, 10_000, 100_000], metavar="N", help="P5")
    command.add_argument("--peers", type=_names, default=(), metavar="doit,make", help="these only; `none`: no peer")
    command.add_argument("--repeat", type=int, default=3, help="repetitions of each, at most")
    command.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="what a peer may take")
    command.add_argument("--pause", type=float, default=0.3, metavar="SECONDS", help="between two measurements")
    command.add_argument("--home", type=Path, metavar="QO_HOME", help="whose Prefect server and service to use, if any")
    command.add_argument("--folder", type=Path, help="where to work; default: the folder for temporary files")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().casefold() for name in text.split(",") if name.strip())
    known = {peer.name.casefold() for peer in PEERS} | {peer.package for peer in PEERS} | {"none"}
    for name in names:
        if not any(each.startswith(name) for each in known):
            raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(sorted(known - {''}))}")
    return names


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure what is asked for."""
    peers = [peer for peer in PEERS if not options.peers or _chosen(peer, options.peers)]
    with (
        tempfile.TemporaryDirectory(prefix="qo-benchmark-", dir=options.folder) as folder,
        _ready(Path(folder), options.home) as home,
    ):
        bench = Bench(Path(folder), home, options)
        for ids, measured in (
            ({"P1"}, lambda: _hello(bench, peers)),
            ({"P2"}, lambda: _first_run(bench, peers)),
            ({"P3", "P4"}, lambda: _writes(bench, peers, options.sizes)),
            ({"P6"}, lambda: _compared(bench, "P6", Work(Kind.CHAIN, options.chain), peers, "appends in a chain")),
            ({"P7"}, lambda: _compared(bench, "P7", Work(Kind.SCRIPTS, options.scripts), peers, "scripts")),
            ({"P12"}, lambda: _again(bench, peers, options.again)),
            ({"P5"}, lambda: _growth(bench, options.growth)),
        ):
            if not options.only or ids & set(options.only):
                yield from measured()


def _chosen(peer: Peer, names: Sequence[str]) -> bool:
    return any(each.casefold().startswith(name) for name in names for each in (peer.name, peer.package) if each)


@contextlib.contextmanager
def _ready(folder: Path, given: Path | None) -> Iterator[Path]:
    """The state folder of ours, with the Prefect server and the warm service running; they end if it is our own."""
    home = given or folder / "home"
    environment = {**_environment(), "QO_HOME": str(home)}
    subprocess.run([QO, "up"], env=environment, check=True, capture_output=True)
    try:
        measure.settled(home)
        yield home
    finally:
        if given is None:
            subprocess.run([QO, "down"], env=environment, check=True, capture_output=True)


def _environment() -> dict[str, str]:
    """The user's, without what would change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "QO_", "DAGSTER_"))}


@dataclass(frozen=True)
class Way:
    """Somebody to measure: of a new folder, all that is needed to run."""

    name: str
    prepare: Callable[[Path, Work], tuple[Sequence[str], Mapping[str, str]]]
    served: bool = False  # makes the Prefect server or the warm service work
    terminal: bool = False
    after: Callable[[Path], None] = lambda _folder: None


@dataclass
class Trials:
    """What somebody's repetitions have taken; or why there are none."""

    found: list[Measured]
    fault: str | None = None
    note: str | None = None

    @property
    def stopped(self) -> bool:
        return any(each.code is None for each in self.found)

    def median(self, of: Callable[[Measured], float] = lambda each: each.seconds) -> float | None:
        counting = [each for each in self.found if not self.stopped or each.code is None]
        return statistics.median(map(of, counting)) if counting and not self.fault else None

    @property
    def seconds(self) -> Sequence[float]:
        return [each.seconds for each in self.found]


class Bench:
    """Runs everybody by turns."""

    def __init__(self, folder: Path, home: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.home = home
        self.limit: float = options.limit
        self.repeat: int = options.repeat
        self._pause: float = options.pause
        self._count = 0
        self.over: set[tuple[str, Kind]] = set()

    def trials(
        self, ways: Sequence[Way], work: Work, repeat: int | None = None, *, twice: bool = False
    ) -> Mapping[str, Trials]:
        """By name; `twice`: the second of two runs in one folder is measured. The order turns with each round."""
        found = {way.name: Trials([]) for way in ways}
        for number in range(repeat or self.repeat):
            for way in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
                trials = found[way.name]
                if not trials.fault and not trials.stopped and sum(trials.seconds) < BUDGET:
                    self._try(way, work, trials, twice)
        return found

    def _try(self, way: Way, work: Work, trials: Trials, twice: bool) -> None:
        if (way.name, work.kind) in self.over:
            trials.found.append(Measured(self.limit, 0.0, None, ""))
            trials.note = NOT_AGAIN
            return
        self._count += 1
        folder = work.prepare(self.folder / f"{self._count:04}")
        try:
            command, environment = way.prepare(folder, work)
        except NotInstalled as why:
            trials.fault = f"not installed: {why}"
            return
        measured = self._measured(way, command, folder, environment)
        if twice and not measured.fault:
            measured = self._measured(way, command, folder, environment)
        way.after(folder)
        if measured.code is None:
            self.over.add((way.name, work.kind))
        else:
            trials.fault = measured.fault or work.fault(folder)
        trials.found.append(measured)
        _say(f"{way.name}: {work.size} {work.kind}: {trials.fault or f'{measured.seconds:.2f} s'}")

    def _measured(self, way: Way, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Measured:
        time.sleep(self._pause)
        before = measure.spent(self.home)
        measured = measure.run(command, folder, environment, self.limit, terminal=way.terminal)
        if not way.served:
            return measured
        return replace(measured, processor=measured.processor + measure.settled(self.home) - before)

    # Those who are measured.

    def ours(self, name: str = OURS) -> Way:
        off = {"QO_SERVICE": "off"} if name == ALONE else {}

        def prepare(folder: Path, work: Work) -> tuple[Sequence[str], Mapping[str, str]]:
            return self.qo_run(folder, work), {**_environment(), "QO_HOME": str(self.home), **off}

        return Way(name, prepare, served=True)

    def cold(self) -> Way:
        """On a machine where nothing runs, and nothing has run."""

        def environment(folder: Path) -> dict[str, str]:
            return {**_environment(), "QO_HOME": f"{folder}-home"}

        def stop(folder: Path) -> None:
            subprocess.run([QO, "down"], env=environment(folder), check=True, capture_output=True)

        return Way(
            COLD, lambda folder, work: (self.qo_run(folder, work), environment(folder)), terminal=True, after=stop
        )

    def qo_run(self, folder: Path, work: Work) -> Sequence[str]:
        file = folder.parent / f"{folder.name}.json"
        file.write_text(json.dumps(work.instruction_set()))
        parallel = ["--parallel", JOBS] if work.kind is Kind.SCRIPTS else []
        return [QO, "run", str(file), "--workspace", str(folder), *parallel]

    def peer(self, peer: Peer) -> Way:
        def prepare(folder: Path, work: Work) -> tuple[Sequence[str], Mapping[str, str]]:
            programs = peer.programs()
            for name, text in peer.files(work).items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
            own = {name: value.replace("FOLDER", str(folder)) for name, value in peer.environment.items()}
            server = {"PREFECT_API_URL": self._api()} if peer.server else {}
            return peer.command(programs, work), {**_environment(), **own, **server}

        return Way(peer.name, prepare, served=peer.server)

    def _api(self) -> str:
        return str(json.loads((self.home / "server/server.json").read_text())["api_url"])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# The rows.


def _row(number: str, workload: str, ours: Trials, peer: str, theirs: Trials, floor: float | None) -> Row:
    """One comparison; why one of the two is missing is its note."""
    beside = theirs.median()
    faults = [f"{who}: {one.fault}" for who, one in (("ours", ours), (peer, theirs)) if one.fault]
    note = "; ".join([*faults, *filter(None, [theirs.note])])
    return Row(
        number,
        workload,
        ours.median(),
        beside,
        floor,
        note,
        peer,
        at_least=theirs.stopped,
        noise=round(spread(ours.seconds) + spread(theirs.seconds), 3),
        processor=ours.median(lambda each: each.processor),
        beside_processor=None if theirs.stopped else theirs.median(lambda each: each.processor),
    )


def _compared(bench: Bench, number: str, work: Work, peers: Sequence[Peer], what: str) -> Iterator[Row]:
    ways = [bench.ours(), bench.ours(ALONE), *map(bench.peer, peers)]
    found = bench.trials(ways, work)
    for name, floor in [(ALONE, None), *((peer.name, _floor(number, peer, work)) for peer in peers)]:
        yield _row(number, f"{work.size} {what}", found[OURS], name, found[name], floor)


def _floor(number: str, peer: Peer, work: Work) -> float | None:
    """What the design demands of ours beside this one."""
    if peer.bare:
        return None
    if number == "P3" and work.size < 10_000:
        return 1.0 if peer.durable else 1.5
    if number == "P7":
        return 2.0 if peer.name == "make" else 1.0 if peer.python else None
    if number == "P12":
        return 1.0 if peer.name == "doit" else None
    return 1.0


def _hello(bench: Bench, peers: Sequence[Peer]) -> Iterator[Row]:
    work, what = Work(Kind.WRITES, 1), "hello"
    servers = [peer for peer in peers if peer.server]
    found = bench.trials([bench.ours(), bench.ours(ALONE), *map(bench.peer, servers)], work, max(5, bench.repeat))
    ours = found[OURS]
    yield Row(
        "P1", what, ours.median(), 0.5, 1.0, "; ".join(filter(None, [ours.fault])), "0.5 s", noise=spread(ours.seconds)
    )
    yield _row("P1", what, ours, ALONE, found[ALONE], None)
    yield from (_row("P1", what, ours, peer.name, found[peer.name], 1 / 8) for peer in servers)


def _first_run(bench: Bench, peers: Sequence[Peer]) -> Iterator[Row]:
    work, what = Work(Kind.WRITES, 1), "hello, nothing running"
    ephemeral = [peer for peer in peers if peer.package == "prefect" and not peer.server]
    found = bench.trials([bench.cold(), *map(bench.peer, ephemeral)], work)
    ours = found[COLD]
    lines = [each.first_line for each in ours.found if each.first_line is not None]
    first = statistics.median(lines) if lines and not ours.fault else None
    yield Row("P2", f"{what}, first line", first, 0.3, 1.0, ours.fault or "", "0.3 s", noise=spread(lines))
    yield from (_row("P2", what, ours, peer.name, found[peer.name], 1.0) for peer in ephemeral)


def _writes(bench: Bench, peers: Sequence[Peer], sizes: Sequence[int]) -> Iterator[Row]:
    """P3, and of the same times P4."""
    for size in sizes:
        for row in _compared(bench, "P3", Work(Kind.WRITES, size), peers, "writes"):
            yield row
            if row.peer == "bare loop, one syncfs":
                yield replace(row, id="P4", floor=3.0 if size >= 10_000 else None)


def _again(bench: Bench, peers: Sequence[Peer], size: int) -> Iterator[Row]:
    able = [peer for peer in peers if peer.reruns]
    work = Work(Kind.WRITES, size, cache=True)
    found = bench.trials([bench.ours(), bench.ours(ALONE), *map(bench.peer, able)], work, twice=True)
    for name, floor in [(ALONE, None), *((peer.name, _floor("P12", peer, work)) for peer in able)]:
        yield _row("P12", f"{size} writes, run again", found[OURS], name, found[name], floor)


def _growth(bench: Bench, sizes: Sequence[int]) -> Iterator[Row]:
    """Ours alone; once each, as it is long, and without the service, so that all of the memory is seen."""
    grown: list[tuple[int, Measured]] = []
    for size in sizes:
        work = Work(Kind.WRITES, size)
        folder = work.prepare(bench.folder / f"growth-{size}")
        environment = {**_environment(), "QO_HOME": str(bench.home), "QO_SERVICE": "off"}
        measure.settled(bench.home)
        command = bench.qo_run(folder, work)
        measured = measure.run(command, folder, environment, 1800, memory_of=bench.home)
        fault = measured.fault or work.fault(folder)
        _say(f"{OURS}: growth {size}: {fault or f'{measured.seconds:.2f} s, {measured.memory:.0f} MB'}")
        yield Row("P5", f"{size} writes, time", None if fault else measured.seconds, None, None, fault or "")
        yield Row(
            "P5", f"{size} writes, memory", None if fault else measured.memory, None, None, fault or "", unit="MB"
        )
        if not fault:
            grown.append((size, measured))
    yield from _targets(grown)


def _targets(grown: Sequence[tuple[int, Measured]]) -> Iterator[Row]:
    """The largest beside the one before, and beside what it may take."""
    if len(grown) > 1:
        (less, before), (more, after) = grown[-2:]
        yield Row("P5", f"{more} writes", after.seconds, before.seconds, more / less * 1.1, peer=f"{less} writes")
        yield Row("P5", f"{more} writes, memory", after.memory, 600.0, 1.0, peer="600 MB", unit="MB")

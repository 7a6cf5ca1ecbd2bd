"""Runs everybody by turns: `qo` and its peers, the same work, whole processes, folders checked afterwards.

Each repetition has a new folder, and the order turns with each round. One that fails says why; one that was stopped at
the time limit is not tried with more. Who would take minutes is given less of the work, and what it takes without any
(a single item) is measured as well, so that the rest can be scaled. What has been measured is kept in a file, if one is
named: an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.measure import Measured
from tests.benchmarks.peers.catalogue import Peer
from tests.benchmarks.peers.environments import NotInstalled
from tests.benchmarks.peers.work import Kind, Work
from tests.benchmarks.setting import QO, down, environment

OURS, ALONE, COLD = "qo", "qo, no service", "qo, nothing running"
BUDGET = 6.0  # seconds, after which no further repetition of a peer begins: who is slow is measured once
JOBS = "2"
NOT_AGAIN = "not tried: over the limit at a smaller size"


@dataclass(frozen=True)
class Way:
    """Somebody to measure: of a new folder, all that is needed to run."""

    name: str
    prepare: Callable[[Path, Work], tuple[Sequence[str], Mapping[str, str]]]
    served: bool = False  # makes the Prefect server or the warm service work
    terminal: bool = False
    most: int | None = None  # it is given no more than so much
    memory: bool = False  # its memory is looked at
    looks: bool = False  # it changes nothing
    after: Callable[[Path], None] = lambda _folder: None


@dataclass
class Trials:
    """What somebody's repetitions have taken; or why there are none."""

    asked: int = 1
    given: int = 1
    found: Sequence[Measured] = ()
    start: float = 0.0  # seconds of a single item, where less was given than asked
    fault: str | None = None
    note: str | None = None

    @property
    def stopped(self) -> bool:
        return any(each.code is None for each in self.found)

    @property
    def seconds(self) -> Sequence[float]:
        return tuple(each.seconds for each in self.found)

    def of(self, what: Callable[[Measured], float]) -> float | None:
        """The median, as measured."""
        counting = [each for each in self.found if not self.stopped or each.code is None]
        return statistics.median(map(what, counting)) if counting and not self.fault else None

    def median(self) -> float | None:
        """Seconds; of what was not given, as much again for each item as those that were have taken."""
        measured = self.of(lambda each: each.seconds)
        if measured is None or self.given == self.asked or self.stopped:
            return measured
        return self.start + max(0.0, measured - self.start) * self.asked / self.given

    @property
    def scaled_from(self) -> int | None:
        return self.given if self.given != self.asked and not self.fault and not self.stopped else None

    def told(self) -> str | None:
        """What a reader must know of it."""
        if self.scaled_from:
            return f"scaled: {self.given} took {self.of(lambda each: each.seconds):.1f} s, one {self.start:.1f} s"
        return self.note


class Bench:
    """Runs everybody by turns."""

    def __init__(self, folder: Path, home: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.home = home
        self.limit: float = options.limit
        self.repeat: int = options.repeat
        self._pause: float = options.pause
        self._kept = Kept(options.keep)
        self._count = 0
        self._over: set[tuple[str, Kind]] = set()
        self._broken: dict[str, str] = {}  # who does not run the scripts

    def trials(
        self, ways: Sequence[Way], work: Work, repeat: int | None = None, *, twice: bool = False
    ) -> Mapping[str, Trials]:
        """By name; `twice`: the second of two runs in one folder is measured. The order turns with each round."""
        found = {way.name: Trials(work.size, min(work.size, way.most or work.size)) for way in ways}
        for number in range(repeat or self.repeat):
            for way in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
                trials = found[way.name]
                enough = way.name != OURS and sum(trials.seconds) >= BUDGET
                if not trials.fault and not trials.stopped and not enough:
                    self._try(way, replace(work, size=trials.given), trials, twice, number)
        for way in ways:
            if found[way.name].scaled_from:
                start = Trials()
                self._try(way, replace(work, size=1), start, twice, 0)
                found[way.name].start = start.median() or 0.0
        return found

    def warm_up(self, ways: Sequence[Way]) -> None:
        """So that what they are made of is in the page cache; this counts for nothing."""
        for way in ways:
            with contextlib.suppress(NotInstalled):
                self._once(way, Work(Kind.WRITES, 1), twice=False)

    def check_scripts(self, ways: Sequence[Way], count: int = 3) -> None:
        """Of `/bin/true` nothing is left to look at: so whether each script runs once is seen with others, before."""
        for number, way in enumerate(ways):
            marks, script = self.folder / f"marks-{number}", self.folder / f"mark-{number}"
            script.write_text(f"#!/bin/sh\necho >> {marks}\n")
            script.chmod(0o700)
            with contextlib.suppress(NotInstalled):
                _, fault = self._once(way, Work(Kind.SCRIPTS, count, script=str(script)), twice=False)
                ran = len(marks.read_text()) if marks.exists() else 0
                if not fault and ran != count:
                    self._broken[way.name] = f"of {count} scripts, {ran} have run"
                    _say(f"{way.name}: {self._broken[way.name]}")

    def _try(self, way: Way, work: Work, trials: Trials, twice: bool, number: int) -> None:
        if work.kind is Kind.SCRIPTS and way.name in self._broken:
            trials.fault = self._broken[way.name]
            return
        if (way.name, work.kind) in self._over:
            trials.found = [*trials.found, Measured(self.limit, 0.0, None, "")]
            trials.note = NOT_AGAIN
            return
        key = [way.name, work.kind, work.size, work.cache, twice, way.memory, number]
        if (kept := self._kept.get(key)) is None:
            try:
                kept = self._once(way, work, twice)
            except NotInstalled as why:
                trials.fault = f"not installed: {why}"
                _say(f"{way.name}: {trials.fault}")
                return
            self._kept.add(key, *kept)
        measured, trials.fault = kept
        trials.found = [*trials.found, measured]
        if measured.code is None:
            self._over.add((way.name, work.kind))

    def _once(self, way: Way, work: Work, twice: bool) -> tuple[Measured, str | None]:
        """What it took, and why that does not count."""
        self._count += 1
        folder = work.prepare(self.folder / f"{self._count:04}")
        command, variables = way.prepare(folder, work)
        try:
            measured = self._measured(way, command, folder, variables)
            fault = _fault(way, work, folder, measured)
            if twice and measured.code == 0 and not fault:
                before = work.stamps(folder)
                measured = self._measured(way, command, folder, variables)
                again = measured.code == 0 and work.stamps(folder) != before
                fault = _fault(way, work, folder, measured) or ("did again what was done" if again else None)
        finally:
            way.after(folder)
        _say(f"{way.name}: {work.size} {work.kind}: {fault or f'{measured.seconds:.2f} s'}")
        return measured, fault

    def _measured(self, way: Way, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Measured:
        time.sleep(self._pause)
        before = measure.spent(self.home)
        memory = self.home if way.memory else None
        measured = measure.run(command, folder, variables, self.limit, terminal=way.terminal, memory_of=memory)
        if not way.served:
            return measured
        return replace(measured, processor=measured.processor + measure.settled(self.home) - before)

    # Those who are measured.

    def ours(self, name: str = OURS, *arguments: str, memory: bool = False) -> Way:
        """`qo run`; or by itself, without the warm service; or another command."""
        off = {"QO_SERVICE": "off"} if name != OURS else {}

        def prepare(folder: Path, work: Work) -> tuple[Sequence[str], Mapping[str, str]]:
            return self._command(folder, work, *arguments), {**environment(self.home), **off}

        looks = arguments[:1] in {("validate",), ("plan",)}
        return Way(name, prepare, served=not memory and not looks, memory=memory, looks=looks)

    def cold(self) -> Way:
        """On a machine where nothing runs, and nothing has run."""

        def home(folder: Path) -> Path:
            return Path(f"{folder}-home")

        def prepare(folder: Path, work: Work) -> tuple[Sequence[str], Mapping[str, str]]:
            return self._command(folder, work), environment(home(folder))

        return Way(COLD, prepare, terminal=True, after=lambda folder: down(home(folder)))

    def _command(self, folder: Path, work: Work, *arguments: str) -> Sequence[str]:
        file = folder.parent / f"{folder.name}.json"
        file.write_text(json.dumps(work.instruction_set()))
        if arguments == ("validate",):
            return [QO, "validate", str(file)]
        parallel = ["--parallel", JOBS] if work.kind is Kind.SCRIPTS else []
        return [QO, *(arguments or ("run",)), str(file), "--workspace", str(folder), *parallel]

    def peer(self, peer: Peer, *, memory: bool = False) -> Way:
        """It, in its own environment."""

        def prepare(folder: Path, work: Work) -> tuple[Sequence[str], Mapping[str, str]]:
            programs = peer.programs()
            for name, text in peer.files(work).items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
            own = {name: value.replace("FOLDER", str(folder)) for name, value in peer.environment.items()}
            server = {"PREFECT_API_URL": self._api()} if peer.server else {}
            return peer.command(programs, work), {**environment(self.home), **own, **server}

        return Way(peer.name, prepare, served=peer.server, most=peer.most, memory=memory)

    def _api(self) -> str:
        return str(json.loads((self.home / "server/server.json").read_text())["api_url"])


def _fault(way: Way, work: Work, folder: Path, measured: Measured) -> str | None:
    """Why it does not count; being stopped is no fault."""
    if measured.code is None or measured.fault:
        return measured.fault if measured.code is not None else None
    if way.looks:
        return None if work.untouched(folder) else "changed something"
    return work.fault(folder)


class Kept:
    """What has been measured, as a line of JSON each; an interrupted last line counts for nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._found: dict[str, tuple[Measured, str | None]] = {}
        text = file.read_text() if file is not None and file.exists() else ""
        whole, _, torn = text.rpartition("\n")
        for line in whole.splitlines():
            record = json.loads(line)
            self._found[json.dumps(record["key"])] = Measured(**record["measured"]), record["fault"]
        if file is not None and torn:
            file.write_text(f"{whole}\n" if whole else "")

    def get(self, key: Sequence[Any]) -> tuple[Measured, str | None] | None:
        """What it took when it was measured."""
        return self._found.get(json.dumps(key))

    def add(self, key: Sequence[Any], measured: Measured, fault: str | None) -> None:
        """Keep it from now on."""
        self._found[json.dumps(key)] = measured, fault
        if self._file is not None:
            with self._file.open("a") as stream:
                stream.write(json.dumps({"key": key, "measured": asdict(measured), "fault": fault}) + "\n")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

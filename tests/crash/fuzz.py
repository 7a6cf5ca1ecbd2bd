"""Damage journals at random, and see that none is believed: `./run python -m tests.crash.fuzz [--number N] [--seed S]`.

Some runs are made for real: committed, kept, rolled back, killed half-way. Then, N times, a file in the state folder of
one of them gets a flipped bit, a changed byte, zeros or an earlier end, and the run is looked at, undone or gone on
with. What may come of it is a StateError with a hint, or exactly what comes of it without the damage. Anything else is
a violation: another error, a tree that is neither as before nor as after, a run that is shown as something it is not.

Case I of seed S is always the same. Prints figures, as JSON with `--json`; exits with 1 if there were violations.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar
from unittest import mock

from quantum_orchestrator.blocks import contents
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows.document import OnFailure
from quantum_orchestrator.flows.engine import Run, RunSettings
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.recover import rollback
from tests.crash.cases import POLICY, RUN, in_child, points_of, snapshot
from tests.crash.points import kill_at
from tests.plain_runner import PlainRunner

SLOW = 20
"""Seconds after which a case counts as one that hangs."""
SHOWN = 20
INLINE_BYTES = 1024  # here, as the cases are faster with contents that are not so large
LARGE = random.Random(1).randbytes(4 * INLINE_BYTES)  # nothing to compress

STEPS: list[dict[str, Any]] = [
    {"op": "file.write", "with": {"path": "large", "content": "small now\n"}},
    {"op": "file.append", "with": {"path": "notes", "content": "more\n"}},
    {"op": "file.write", "with": {"path": "new/deep/file", "content": "new\n" * 100, "mode": "0755"}},
    {"op": "file.move", "with": {"source": "folder", "destination": "elsewhere"}},
    {"op": "file.delete", "with": {"path": "gone", "recursive": True}},
    {"op": "file.chmod", "with": {"path": "notes", "mode": "0600"}},
    {"op": "file.copy", "with": {"source": "elsewhere", "destination": "copy"}},
]
SCRIPT = {
    "op": "script.run",
    "with": {"shell": "echo s >> notes; rm -r gone; ln -s notes link; chmod 700 large"},
}
FAILS = {"op": "assert", "with": {"that": False}}


def prepare(root: Path) -> None:
    """A small workspace with one of everything."""
    root.mkdir(parents=True)
    (root / "large").write_bytes(LARGE)
    (root / "notes").write_text("one\ntwo\n" * 50)
    (root / "notes").chmod(0o640)
    for name in ("folder", "gone"):
        (root / name / "inner").mkdir(parents=True)
        (root / name / "a").write_text(f"{name} a\n")
        (root / name / "inner" / "b").write_text(f"{name} b\n")
    (root / "folder" / "link").symlink_to("a")


def play(root: Path, steps: Iterable[dict[str, Any]], on_failure: OnFailure = OnFailure.ROLLBACK) -> str:
    """Run these steps as a set, or go on with it as `qo resume` does; the run's status."""
    numbered = [{"id": f"s{number}", **step} for number, step in enumerate(steps)]
    document = load_object({"name": "fuzz", "instructions": numbered, "order": "sequential"})
    with contextlib.closing(Journal(workspace_home(root))) as journal, contextlib.ExitStack() as held:
        journal.lock.acquire()
        held.callback(journal.lock.release)
        journal.require_sound()
        record = journal.run(RUN)
        if record is None:
            written = document.model_dump(by_alias=True, mode="json", exclude_unset=True)
            record = RunRecord(RUN, "fuzz", "running", written, {}, {}, time.time(), pid=os.getpid())
            journal.begin(record)
        workspace = Workspace(root, journal, POLICY.snapshot_exclude)
        held.callback(workspace.close)
        settings = RunSettings(parallel=1, on_failure=on_failure)
        run = Run(record, document, workspace, settings, policy=POLICY, runner=PlainRunner())
        outcome = asyncio.run(run.execute())
        if isinstance(outcome.error, StateError):  # noticed when the run was at work, which then was rolled back
            raise outcome.error
        return str(outcome.status.value)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def look(root: Path) -> str:
    """Everything that a command reads of the run; how it is said to stand."""
    with contextlib.closing(Journal(workspace_home(root))) as journal:
        unfinished, record = journal.unfinished(), journal.run(RUN)
        journal.steps(RUN), journal.effects(RUN), journal.captured(RUN), journal.decisions(RUN), journal.sendings(RUN)
        if unfinished is not None and unfinished != record:
            return f"unfinished, but {record}"
        return record.status if record else "absent"


# Journals.


@dataclass(frozen=True)
class Specimen:
    """A state folder with its workspace, kept aside, and what each way of going on from there leads to."""

    name: str
    kept: Path
    ways: dict[str, tuple[str, dict[str, str]]]
    """By way: status and tree."""


class Laboratory:
    """The specimens, and the one place at which they can be used: a journal is found by its workspace's path."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "live" / "workspace"
        self.state = folder / "live" / "state"
        self._folder = folder
        os.environ["QO_HOME"] = str(self.state)
        contents.INLINE_BYTES = INLINE_BYTES
        self.specimens = list(self._make())

    def _make(self) -> Iterator[Specimen]:
        self._fresh()
        before = snapshot(self.root)
        points = points_of(lambda: play(self.root, STEPS))
        after = snapshot(self.root)
        yield self._keep("committed", {"look": ("committed", after), RUN: ("rolled_back", before)})
        self._fresh()
        in_child(lambda: play(self.root, [*STEPS[:4], FAILS], OnFailure.KEEP))
        yield self._keep("kept", {"look": ("kept", snapshot(self.root)), RUN: ("rolled_back", before)})
        self._fresh()
        in_child(lambda: play(self.root, [*STEPS[:4], FAILS]))
        yield self._keep("rolled back", {"look": ("rolled_back", before)})
        for part in (0.35, 0.5, 0.65, 0.8):
            self._fresh()
            in_child(lambda part=part: play(self.root, STEPS), kill_at(points[int(len(points) * part)]))
            killed = self._killed(f"killed at {part:.0%}", before, after)
            yield killed
            self._take_out(killed)
            look(self.root)  # whoever closes it last empties the write-ahead log, which has checksums of its own
            yield self._killed(f"killed at {part:.0%} and looked at", before, after)
        self._fresh()
        commit = [point for point in points if point.startswith("commit") and point.endswith("before")][-1]
        in_child(lambda: play(self.root, STEPS), kill_at(commit))
        yield self._killed("killed before the end", before, after)
        self._fresh()
        with mock.patch.object(Workspace, "finish", _die):
            in_child(lambda: play(self.root, [*STEPS[:2], SCRIPT]))
        yield self._killed("killed in a script", before, None)

    def _killed(self, name: str, before: dict[str, str], after: dict[str, str] | None) -> Specimen:
        ways = {"look": ("running", snapshot(self.root)), "rollback": ("rolled_back", before)}
        if after is not None:
            ways["resume"] = ("committed", after)
        return self._keep(name, ways)

    def _fresh(self) -> None:
        shutil.rmtree(self.root.parent, ignore_errors=True)
        prepare(self.root)

    def _keep(self, name: str, ways: dict[str, tuple[str, dict[str, str]]]) -> Specimen:
        kept = self._folder / name.replace(" ", "_")
        shutil.copytree(self.root.parent, kept, symlinks=True)
        specimen = Specimen(name, kept, ways)
        for way in ways:
            if problem := self.judge(specimen, way, lambda _: None, may_refuse=False):
                raise AssertionError(f"{name}, {way}, undamaged: {problem}")
        return specimen

    def _take_out(self, specimen: Specimen) -> None:
        shutil.rmtree(self.root.parent, ignore_errors=True)
        shutil.copytree(specimen.kept, self.root.parent, symlinks=True)

    def judge(
        self, specimen: Specimen, way: str, damage: Callable[[Path], None], *, may_refuse: bool = True
    ) -> str | None:
        """What is wrong with what comes of the damage; the empty text if it was noticed, None if all is right."""
        self._take_out(specimen)
        damage(workspace_home(self.root))
        tree = snapshot(self.root)
        try:
            self._act(way)
            found = (look(self.root), snapshot(self.root))
        except StateError as error:
            if not (may_refuse and error.message and error.hint):
                return f"a StateError: {error.message!r}, {error.hint!r}"
            now = snapshot(self.root)
            known = (tree, *(state for _, state in specimen.ways.values()))
            return "" if now in known else "refused, with the workspace half changed"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        status, wanted = specimen.ways[way]
        if found[0] != status:
            return f"shown as {found[0]}, and it should be {status}"
        return None if found[1] == wanted else f"{status}, with a workspace that is not so"

    def _act(self, way: str) -> None:
        if way == "resume":
            play(self.root, STEPS)
        elif way != "look":
            rollback(self.root, None if way == "rollback" else way)


# Damage.


class Damage:
    """One damage to a file of a state folder; which one, depends on what is there."""

    TARGETS: ClassVar[dict[str, int]] = {"journal.db": 8, "journal.db-wal": 6, "sequence": 1, "contents": 3, "rows": 6}

    def __init__(self, chance: random.Random, only: str = "") -> None:
        self._chance = chance
        self._target = only or chance.choices(list(self.TARGETS), list(self.TARGETS.values()))[0]
        self._hurt = chance.choice(HURTS)
        self.name = "none yet"

    def __call__(self, state: Path) -> None:
        """Do it."""
        found = state / self._target
        if found.is_dir():
            found = self._chance.choice(sorted(path for path in found.rglob("*") if path.is_file()) or [found])
        if not found.is_file():
            found = state / "journal.db"
        content = bytearray(found.read_bytes())
        place = self._place(content)
        self.name = f"{self._hurt.__name__.strip('_')} in {found.name[:20]} at {place} of {len(content)}"
        self._hurt(content, place, self._chance)
        found.write_bytes(content)

    def _place(self, content: bytearray) -> int:
        """Anywhere; for `rows`, in what an effect says of a file or a step of itself."""
        rows = [found.start() for found in re.finditer(rb'\["file", |\["dir", |succeeded|running', content)]
        if self._target == "rows" and rows:
            return self._chance.choice(rows) + self._chance.randrange(20)
        return self._chance.randrange(len(content) or 1)


def _flip(content: bytearray, place: int, chance: random.Random) -> None:
    if content:
        content[place] ^= 1 << chance.randrange(8)


def _change(content: bytearray, place: int, chance: random.Random) -> None:
    content[place : place + 1] = chance.randbytes(1)


def _zeros(content: bytearray, place: int, chance: random.Random) -> None:
    length = min(chance.choice((2, 16, 512)), len(content) - place)
    content[place : place + length] = bytes(length)


def _noise(content: bytearray, place: int, chance: random.Random) -> None:
    length = min(chance.choice((2, 16, 512)), len(content) - place)
    content[place : place + length] = chance.randbytes(length)


def _cut(content: bytearray, place: int, chance: random.Random) -> None:
    del content[chance.choice((place, place - place % 4096, 0)) :]


HURTS = [_flip] * 4 + [_change] * 3 + [_zeros, _noise] + [_cut] * 2


# Cases.


def examine(laboratory: Laboratory, seed: int, numbers: Iterable[int], only: str = "") -> dict[str, Any]:
    """These cases of a seed: how many ended how, and what was violated."""
    verdicts: Counter[str] = Counter()
    violations = []
    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        specimen = chance.choice(laboratory.specimens)
        way = chance.choice(sorted(specimen.ways))
        damage = Damage(chance, only)
        signal.setitimer(signal.ITIMER_REAL, SLOW)
        try:
            problem = laboratory.judge(specimen, way, damage)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        verdicts["right" if problem is None else "refused" if problem == "" else "violation"] += 1
        if problem:
            violations.append(f"case {number}: {specimen.name}, {way}, {damage.name}: {problem}")
    return {"verdicts": dict(verdicts), "violations": violations}


def _hangs(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"not done after {SLOW} s")


_laboratory: Laboratory


def start_worker(folder: str) -> None:
    """Each process has a laboratory of its own."""
    global _laboratory
    signal.signal(signal.SIGALRM, _hangs)
    _laboratory = Laboratory(Path(folder) / str(os.getpid()))


def _examine(work: tuple[int, range]) -> dict[str, Any]:
    return examine(_laboratory, *work)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.fuzz", description=__doc__)
    parser.add_argument("--number", type=int, default=20_000, help="how many cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    verdicts: Counter[str] = Counter()
    violations: list[str] = []
    with tempfile.TemporaryDirectory(dir=place, prefix="qo-fuzz-") as folder:
        work = [(options.seed, range(options.number)[first : first + 50]) for first in range(0, options.number, 50)]
        context = get_context("fork")
        with ProcessPoolExecutor(os.cpu_count(), context, initializer=start_worker, initargs=(folder,)) as pool:
            for found in pool.map(_examine, work):
                verdicts.update(found["verdicts"])
                violations += found["violations"]
    seconds = time.monotonic() - started
    figures = {"cases": verdicts.total(), **verdicts, "seconds": round(seconds, 1)}
    if options.json:
        print(json.dumps({**figures, "violations": violations}))
    else:
        for violation in violations[:SHOWN]:
            print(f"VIOLATION {violation}")
        print(f"{figures}: {verdicts.total() / seconds:.0f} cases a second, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

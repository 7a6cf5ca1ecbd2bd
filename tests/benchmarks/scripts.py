"""Many short scripts, two at a time, beside GNU make.

P7   N scripts (`/bin/true`, which say that they change nothing) beside `make -j2` of the same, which keeps no record

By the engine and the journal alone (a process that has everything imported), and by `qo run` as a whole, against a
Prefect server that is running. The last rows are where the time goes: a script by `Processes` alone, *tied* or not (see
`blocks/supervisor.py`), beside one that Python's `subprocess` starts. What is shown is the median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.sandbox import Processes
from tests.benchmarks.rows import Row
from tests.benchmarks.setting import QO, environment, served, work_folder
from tests.crash import cases
from tests.crash.cases import in_child, prepare_forks, run_set
from tests.crash.scenarios import Scenario, nothing

TARGET = 2.0
JOBS = 2
TRUE = "/bin/true"


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--size", type=int, default=1000, metavar="N", help="number of scripts")
    command.add_argument("--no-qo", action="store_true", help="leave out `qo run`, which needs a Prefect server")
    command.add_argument("--repeat", type=int, default=3, help="repetitions of each")
    command.add_argument("--folder", type=Path, help="where to work, and leave it; default: for temporary files")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure all, ours and the other by turns."""
    prepare_forks()
    size = options.size
    with work_folder(options.folder) as folder, contextlib.ExitStack() as stack:
        bench = _Bench(folder, size)
        ways: dict[str, Callable[[], float]] = {"engine and journal": bench.by_engine}
        if not options.no_qo:
            stack.enter_context(served(folder / "home"))
            ways["qo run and Prefect"] = bench.by_qo
        for name, way in ways.items():
            yield _row("P7", f"{size} scripts, {name}", way, bench.by_make, options.repeat, TARGET, "make")
        for tied in (False, True):
            name = f"{size} scripts, started {'tied' if tied else 'not tied'}"
            way, other = partial(bench.started, tied=tied), "subprocess.run"
            yield _row("P7", name, way, bench.by_subprocess, options.repeat, 3.0, other)


def _row(
    number: str, name: str, ours: Callable[[], float], other: Callable[[], float], repeat: int, target: float, peer: str
) -> Row:
    times = [(ours(), other()) for _ in range(repeat)]
    mine, theirs = zip(*times, strict=True)
    middle = statistics.median
    return Row(number, name, middle(mine), middle(theirs), target, peer=peer, samples=mine, beside_samples=theirs)


class _Bench:
    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._count = 0
        steps = tuple(
            {"id": f"s{number}", "op": "script.run", "with": {"argv": [TRUE]}, "reads": [], "writes": []}
            for number in range(size)
        )
        self._scenario = Scenario(f"{size} scripts", steps, nothing, order="inferred", parallel=JOBS)
        self._set = folder / "set.json"
        self._set.write_text(json.dumps({"name": "scripts", "instructions": steps}))
        targets = " ".join(f"s{number}" for number in range(size))
        (folder / "Makefile").write_text(f".PHONY: all {targets}\nall: {targets}\n{targets}:\n\t@{TRUE}\n")

    def by_make(self) -> float:
        return _timed(lambda: subprocess.run(["make", "-s", f"-j{JOBS}"], cwd=self._folder, check=True))

    def by_engine(self) -> float:
        root = self._new()
        os.environ["QO_HOME"] = f"{root}-state"
        cases.document_of(self._scenario)  # read once, as reading it is not what is measured
        _, seconds = in_child(lambda: _timed(lambda: run_set(root, self._scenario)))
        return float(seconds)

    def by_qo(self) -> float:
        root = self._new()
        command = [QO, "run", str(self._set), "--workspace", str(root), "--parallel", str(JOBS)]
        variables = environment(self._folder / "home")
        return _timed(lambda: subprocess.run(command, env=variables, check=True, capture_output=True))

    def started(self, *, tied: bool) -> float:
        processes = Processes(tied=tied)
        seconds = _timed(lambda: [processes.run([TRUE], cwd=self._folder, env={}) for _ in range(self._size)])
        processes.close()
        return seconds

    def by_subprocess(self) -> float:
        return _timed(lambda: [subprocess.run([TRUE], capture_output=True, check=True) for _ in range(self._size)])

    def _new(self) -> Path:
        self._count += 1
        root = self._folder / f"workspace-{self._count}"
        root.mkdir()
        return root


def _timed(act: Callable[[], Any]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began

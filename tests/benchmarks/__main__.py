"""Measure, and print one table: `./run python -m tests.benchmarks NAME`; `NAME --help` says what to choose.

    all                    every benchmark, each in a process of its own; `--write-docs` renews docs/ and the README
    docs RESULT.json       the same pages from a result of `--json FILE`
    compare A.json B.json  two results of `--json FILE`: what has become slower beyond the noise

Every row sets two values from the same run of the command side by side, as machines are shared and differ. The floor is
what their ratio should not exceed; nothing here fails when it does. A new benchmark is a module with
`add_options(command)` and `rows(options)`, and a line in BENCHMARKS.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import pages
from tests.benchmarks.compare import compared
from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.rows import Result, Row, table

CHECKOUT = Path(__file__).parents[2]
PAUSE = 5.0  # seconds between two benchmarks

BENCHMARKS = {  # the module, and the rows it has
    "engines": ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P12"),
    "scripts": ("P7",),
    "scheduling": ("P8",),
    "recovery": ("P9", "P10"),
    "reuse": ("P12",),
}


def main() -> int:
    """The command."""
    options = _parser().parse_args()
    if options.name == "compare":
        print("\n".join(compared(Result.read(options.before), Result.read(options.after))))
        return 0
    if options.name == "docs":
        pages.write(Result.read(options.result), CHECKOUT)
        return 0
    date, machine = _now(), _machine()
    rows = list(_all(options) if options.name == "all" else _one(options))
    result = Result(date, _commit(), machine, rows, _versions(rows))
    if options.json == "-":
        print(result.as_json())
    else:
        print(table(rows))
        if options.json:
            result.write(Path(options.json))
    if options.name == "all" and options.write_docs:
        pages.write(result, CHECKOUT)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for name in BENCHMARKS:
        benchmark = importlib.import_module(f"tests.benchmarks.{name}")
        command = commands.add_parser(name, help=(benchmark.__doc__ or "").partition("\n")[0])
        benchmark.add_options(command)
        _common_options(command)
    every = commands.add_parser("all", help="every benchmark")
    _common_options(every)
    every.add_argument("--write-docs", action="store_true", help="show the result in docs/ and the README")
    every.add_argument("--peers", metavar="doit,make", help="these peers only, of `engines`")
    docs = commands.add_parser("docs", help="the pages in docs/ and the README, from a result")
    docs.add_argument("result", type=Path)
    comparison = commands.add_parser("compare", help="two results of --json FILE")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    return parser


def _common_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the result there, or print it")
    command.add_argument("--only", type=_listed, default=(), metavar="P3,P6", help="these rows only")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _one(options: argparse.Namespace) -> Iterator[Row]:
    benchmark = importlib.import_module(f"tests.benchmarks.{options.name}")
    return (row for row in benchmark.rows(options) if not options.only or row.id in options.only)


def _all(options: argparse.Namespace) -> Iterator[Row]:
    """Each in a process of its own: none finds another's imports, environment or memory."""
    for name, ids in BENCHMARKS.items():
        if not options.only or set(ids) & set(options.only):
            chosen = ["--only", ",".join(options.only)] if options.only else []
            chosen += ["--peers", options.peers] if options.peers and name == "engines" else []
            yield from _in_process(name, chosen)


def _in_process(name: str, chosen: Sequence[str]) -> Sequence[Row]:
    os.sync()  # what the one before has deleted is the file system's work for a while
    time.sleep(PAUSE)
    with tempfile.TemporaryDirectory(prefix="qo-benchmark-result-") as folder:
        file = Path(folder) / "result.json"
        environment = {**os.environ, "QO_HOME": str(Path(folder) / "home")}
        command = [sys.executable, "-m", "tests.benchmarks", name, "--json", str(file), *chosen]
        try:
            subprocess.run(command, cwd=CHECKOUT, env=environment, check=True)
        finally:
            down = [sys.executable, "-m", "quantum_orchestrator.deployments.cli", "down"]
            subprocess.run(down, env=environment, check=True, capture_output=True)
        return Result.read(file).rows


def _versions(rows: Sequence[Row]) -> dict[str, str]:
    measured = {row.peer for row in rows}
    return {peer.name: peer.version() for peer in PEERS if peer.name in measured}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _commit() -> str:
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty"]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout.strip()


def _machine() -> dict[str, str | int | float]:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = os.uname()
    return {
        "cores": cores,
        "memory_gb": round(memory / 2**30),
        "system": f"{system.sysname} {system.release} {system.machine}",
        "python": sys.version.split()[0],
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    sys.exit(main())

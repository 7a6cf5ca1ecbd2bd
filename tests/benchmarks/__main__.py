"""Measure, and print one table: `./run python -m tests.benchmarks NAME`; `NAME --help` says what to choose.

    all                    every benchmark, each in a process of its own; `--write-docs` renews docs/ and the README
    docs RESULT.json       the same pages from a result of `--json FILE`
    compare A.json B.json  two results of `--json FILE`: what has become slower beyond the noise

Every row sets two values from the same run of the command side by side, as machines are shared and differ. The target
is what their ratio should not exceed; nothing here fails when it does. `all` keeps what it has measured in
build/benchmarks: when it is interrupted, the same command goes on there. A new benchmark is a module with
`add_options(command)` and `rows(options)`, and a line in BENCHMARKS.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from tests.benchmarks import pages
from tests.benchmarks.compare import compared
from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.rows import Result, Row, table

CHECKOUT = Path(__file__).parents[2]
KEPT = CHECKOUT / "build/benchmarks"
PAUSE = 5.0  # seconds between two benchmarks


@dataclass(frozen=True)
class Benchmark:
    """A module, and what `all` tells it."""

    name: str
    ids: Sequence[str]  # of the rows it has
    quick: str = ""  # arguments of a quick look
    usual: str = ""
    by_bench: bool = False  # takes --peers and --keep
    in_folder: bool = True  # takes --folder


BENCHMARKS = (
    Benchmark(
        "engines",
        ("P1", "P2", "P3", "P4", "P6", "P7", "P12"),
        "--sizes 20 100 --chain 20 --scripts 20 --again 20 --repeat 1",
        by_bench=True,
    ),
    Benchmark("planning", ("P5", "P11"), "--size 1000 --growth 10 100 1000 --repeat 1", by_bench=True),
    Benchmark("recovery", ("P9", "P10"), "--sizes 300 --prefect 300 --repeat 1"),
    Benchmark("scheduling", ("P8",), in_folder=False),
    Benchmark("acknowledging", ("P13",), "--requests 200 --connections 4 --repeat 1"),
    Benchmark("scripts", ("P7",), "--size 100 --no-qo --repeat 1", "--no-qo"),
)


def main() -> int:
    """The command."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _do(options)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _do(options: argparse.Namespace) -> int:
    if options.name == "compare":
        print("\n".join(compared(Result.read(options.before), Result.read(options.after))))
        return 0
    if options.name == "docs":
        pages.write(Result.read(options.result), CHECKOUT)
        return 0
    result = _all(options) if options.name == "all" else _result(list(_one(options)))
    if options.json == "-":
        print(result.as_json())
    else:
        print(table(result.rows))
        if options.json:
            result.write(Path(options.json))
    if options.name == "all":
        if options.write_docs:
            pages.write(result, CHECKOUT)
        shutil.rmtree(KEPT)
    return 0


def _terminated(*_: object) -> NoReturn:
    """As if by Ctrl-C: whatever has been started is ended."""
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True)
    for each in BENCHMARKS:
        benchmark = importlib.import_module(f"tests.benchmarks.{each.name}")
        command = commands.add_parser(each.name, help=(benchmark.__doc__ or "").partition("\n")[0])
        benchmark.add_options(command)
        _common_options(command)
    every = commands.add_parser("all", help="every benchmark")
    _common_options(every)
    every.add_argument("--write-docs", action="store_true", help="show the result in docs/ and the README")
    every.add_argument("--peers", metavar="doit,make", help="these peers only")
    every.add_argument("--quick", action="store_true", help="small sizes, once each: only to see that all works")
    every.add_argument("--folder", type=Path, help="where to work; default: the folder for temporary files")
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


# All of them.


def _all(options: argparse.Namespace) -> Result:
    """Each in a process of its own: none finds another's imports, environment or memory."""
    began = time.monotonic()
    rows: list[Row] = []
    chosen = [each for each in BENCHMARKS if not options.only or set(each.ids) & set(options.only)]
    kept = _kept(options)
    folder = Path(tempfile.mkdtemp(prefix="qo-benchmarks-", dir=options.folder))
    try:
        for number, each in enumerate(chosen, 1):
            minutes = (time.monotonic() - began) / 60
            _say(f"[{number}/{len(chosen)}] {each.name}: {', '.join(each.ids)} ({minutes:.1f} minutes so far)")
            rows += _in_process(each, options, folder, kept)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; the same command goes on with what is in {KEPT}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _say(f"all measured in {(time.monotonic() - began) / 60:.1f} minutes")
    began_with = json.loads((kept / "machine.json").read_text())
    return replace(_result(rows), **began_with, quick=options.quick)


def _kept(options: argparse.Namespace) -> Path:
    """Where it is kept what the same command, of the same code, has measured; whatever else was kept is dropped."""
    chosen = [_commit(), options.only, options.peers, options.quick]
    folder = KEPT / hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:12]
    if folder.exists():
        _say(f"going on with what is in {folder}")
        return folder
    shutil.rmtree(KEPT, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "machine.json").write_text(json.dumps({"date": _now(), "commit": _commit(), "machine": _machine()}))
    return folder


def _in_process(each: Benchmark, options: argparse.Namespace, folder: Path, kept: Path) -> Sequence[Row]:
    file = kept / f"{each.name}.json"
    if file.exists():
        return Result.read(file).rows
    os.sync()  # what the one before has written is the disk's work for a while
    time.sleep(PAUSE)
    unfinished = kept / f"{each.name}.unfinished"
    command = [sys.executable, "-m", "tests.benchmarks", each.name, "--json", str(unfinished)]
    command += (each.quick if options.quick else each.usual).split()
    command += ["--only", ",".join(options.only)] if options.only else []
    command += ["--folder", str(folder)] if each.in_folder else []
    command += ["--keep", str(kept / f"{each.name}.jsonl")] if each.by_bench else []
    command += ["--peers", options.peers] if options.peers and each.by_bench else []
    _ended_well(command, {**os.environ, "QO_HOME": str(folder / "home")})
    unfinished.rename(file)
    return Result.read(file).rows


def _ended_well(command: Sequence[str], environment: dict[str, str]) -> None:
    """Run it; who interrupts us gives it time to end what it has started."""
    process = subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if code:
        raise SystemExit(f"{' '.join(command)} has failed with {code}; the same command goes on after what is measured")


# What it was measured of.


def _result(rows: Sequence[Row]) -> Result:
    measured = {row.peer for row in rows}
    versions = {peer.name: peer.version() for peer in PEERS if peer.name in measured}
    return Result(_now(), _commit(), _machine(), rows, versions)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _commit() -> str:
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout.strip()


def _machine() -> dict[str, str | int | float]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = os.uname()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 2**30),
        "processor": _processor(),
        "kernel": f"{system.sysname} {system.release} {system.machine}",
        "python": sys.version.split()[0],
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

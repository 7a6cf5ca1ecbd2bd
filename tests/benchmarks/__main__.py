"""Measure, and print one table: `./run python -m tests.benchmarks NAME`; `NAME --help` says what to choose.

    all                    every benchmark, each in a process of its own; `--write-docs` renews the pages in docs/
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
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.compare import compared
from tests.benchmarks.rows import Result, Row, table

CHECKOUT = Path(__file__).parents[2]

BENCHMARKS = {  # the module, and the rows it has
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
    rows = list(_all(options) if options.name == "all" else _one(options))
    result = Result(_now(), _commit(), _machine(), rows)
    if options.json == "-":
        print(result.as_json())
    else:
        print(table(rows))
        if options.json:
            result.write(Path(options.json))
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
    _common_options(commands.add_parser("all", help="every benchmark"))
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
            yield from _in_process(name, options.only)


def _in_process(name: str, only: Collection[str]) -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="qo-benchmark-result-") as folder:
        file = Path(folder) / "result.json"
        chosen = ["--only", ",".join(only)] if only else []
        command = [sys.executable, "-m", "tests.benchmarks", name, "--json", str(file), *chosen]
        subprocess.run(command, cwd=CHECKOUT, check=True)
        return Result.read(file).rows


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

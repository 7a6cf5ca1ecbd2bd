"""The pages that show a result: docs/benchmarks.md, its plot, and the table between two marks of the README.

Made from docs/benchmarks.json and from nothing else, so that they can be made again. Nothing here measures.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.peers import environments
from tests.benchmarks.peers.catalogue import PEERS, PROGRAMS
from tests.benchmarks.rows import HEADINGS, Result, Row, cells, quantity

REFRESH = "./run python -m tests.benchmarks all --write-docs"
BEGIN, END = f"<!-- made by {REFRESH} -->", "<!-- end -->"
ESSENTIAL = ("Prefect", "DBOS", "Snakemake", "Dagster", "doit", "make", "bare loop, one syncfs")


def write(result: Result, checkout: Path) -> None:
    """All of them, and the result."""
    docs = checkout / "docs"
    result.write(docs / "benchmarks.json")
    (docs / "benchmarks.md").write_text(page(result))
    readme = checkout / "README.md"
    readme.write_text(with_quotation(readme.read_text(), result))
    if any(row.id == "P5" for row in result.rows):
        python = str(environments.programs("matplotlib") / "python")
        files = [str(docs / "benchmarks.json"), str(docs / "benchmarks.svg")]
        subprocess.run([python, str(PROGRAMS / "plot.py"), *files], check=True)


def page(result: Result) -> str:
    """docs/benchmarks.md."""
    return "\n".join([*_introduction(result), *_all_peers(result), *_growth(result), *_every_row(result)]) + "\n"


def with_quotation(readme: str, result: Result) -> str:
    """The README with the table of the essential peers between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no {BEGIN} … {END}")
    names = [name for name in ESSENTIAL if any(row.peer == name for row in result.rows)]
    lines = [f"Seconds, {_when_and_where(result)}:", "", *_pivot(result.rows, names)]
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"


def _when_and_where(result: Result) -> str:
    machine = result.machine
    return f"{result.date}, {machine.get('cores')} cores, {machine.get('memory_gb')} GB, shared"


def _introduction(result: Result) -> Iterator[str]:
    machine, versions = result.machine, ", ".join(f"{name} {version}" for name, version in result.peers.items())
    yield "# Benchmarks"
    yield ""
    yield f"Measured on {_when_and_where(result)} ({machine.get('system')}, Python {machine.get('python')}, a load of"
    yield f"{machine.get('load')} when it began), commit `{result.commit}`. `{REFRESH}`"
    yield "measures again and makes this page; `compare A.json B.json` sets two results side by side."
    yield ""
    yield "Whole processes, wall time, medians; the same files with the same bytes, checked afterwards; two jobs"
    yield "where a program has the choice. Ours is `qo run` with its journal on, the Prefect server and the warm"
    yield "service running. A program that was stopped at its time limit, or failed, says so."
    yield ""
    yield f"Peers: {versions}."
    yield ""


def _all_peers(result: Result) -> Iterator[str]:
    names = [peer.name for peer in PEERS if any(row.peer == peer.name for row in result.rows)]
    yield "## Seconds"
    yield ""
    yield from _transposed(result.rows, names)
    yield ""


def _growth(result: Result) -> Iterator[str]:
    if any(row.id == "P5" for row in result.rows):
        yield "## Growth"
        yield ""
        yield "![Time and memory by the number of instructions](benchmarks.svg)"
        yield ""


def _every_row(result: Result) -> Iterator[str]:
    yield "## Every row"
    yield ""
    yield "`ratio` is ours by theirs, `floor` the most that it should be."
    yield ""
    yield from _markdown(HEADINGS, [cells(row) for row in result.rows])


def _pivot(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """A line for each workload, a column for each peer."""
    grid = _grid(rows, names)
    yield from _markdown(
        ("", "**qo**", *names),
        [(what, *(line.get(name, "") for name in ("qo", *names))) for what, line in grid.items()],
    )


def _transposed(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    grid = _grid(rows, names)
    yield from _markdown(
        ("", *grid), [(name, *(line.get(name, "") for line in grid.values())) for name in ("qo", *names)]
    )


def _grid(rows: Sequence[Row], names: Sequence[str]) -> Mapping[str, dict[str, str]]:
    grid: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.peer in names and row.id != "P4":
            line = grid.setdefault(row.workload, {"qo": f"**{quantity(row.ours, '')}**"})
            line[row.peer] = f"> {row.beside:g}" if row.at_least else quantity(row.beside, "")
    return grid


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for line in (headings, ["---"] * len(headings), *lines):
        yield f"| {' | '.join(each.replace('|', '∣') for each in line)} |".replace("|  |", "| |")

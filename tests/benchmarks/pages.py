"""The pages that show a result: docs/benchmarks.md, its plot, and the table between two marks of the README.

Made from docs/benchmarks.json and from nothing else, so that they can be made again. Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks import obstacles
from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.plot import svg
from tests.benchmarks.rows import Result, Row, beside_of, cells, quantity, spread

REFRESH = "./run python -m tests.benchmarks all --write-docs"
BEGIN, END = f"<!-- made by {REFRESH} -->", "<!-- end -->"
ESSENTIAL = ("Prefect", "DBOS", "Snakemake", "Dagster", "doit", "make", "bare loop, one syncfs")
HOW = """
Whole processes, wall time, medians; in brackets how many repetitions there were and how far they lie apart. The order
of the programs turns with each repetition, each has a new folder, and the files and their bytes are checked afterwards
(`/bin/true` leaves nothing: that each script runs once was seen before, of peers, with one that leaves a mark); a
second run must not have written a file again. Two jobs at a time where a program has the choice. Programs and their
libraries are in the page cache, and compiled. A program that fails, or was stopped at its time limit (`>`), says so;
one that would take minutes was given less of the work, and its time is scaled (`≈`): what one item takes, and the rest
in proportion, which is in its favour where it grows faster than that. Who has taken six seconds is not asked again.

Ours is `qo run` with its journal on, the local Prefect server and the warm service running; `qo, no service` is the
same with `QO_SERVICE=off`. *Ratio* is ours by theirs, *target* the most that it should be, *floor* the same work by
a bare Python loop that is as durable (write, rename, one `syncfs`), and of P8 a bound that no schedule is below.
"""


def write(result: Result, checkout: Path) -> None:
    """All of them, and the result."""
    docs = checkout / "docs"
    result.write(docs / "benchmarks.json")
    (docs / "benchmarks.md").write_text(page(result))
    (docs / "benchmarks.svg").write_text(svg(result) + "\n")
    readme = checkout / "README.md"
    readme.write_text(with_quotation(readme.read_text(), result))


def page(result: Result) -> str:
    """docs/benchmarks.md."""
    parts = (_introduction, _targets, _all_peers, _growth, _every_row)
    return "\n".join(line for part in parts for line in part(result)) + "\n"


def with_quotation(readme: str, result: Result) -> str:
    """The README with the table of the essential peers between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no {BEGIN} … {END}")
    names = [name for name in ESSENTIAL if any(row.peer == name for row in result.rows)]
    lines = [f"Seconds, {_when_and_where(result)}:", "", *_pivot(_by_engines(result), names)]
    return f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}"


def _when_and_where(result: Result) -> str:
    machine, quick = result.machine, "; only a quick look, once each" if result.quick else ""
    size = f"{machine.get('cores')} cores, {machine.get('memory_gb')} GB"
    return f"{result.date}, {size}, a load of {machine.get('load')} when it began{quick}"


def _introduction(result: Result) -> Iterator[str]:
    machine, versions = result.machine, ", ".join(f"{name} {version}" for name, version in result.peers.items())
    yield "# Benchmarks"
    yield ""
    yield f"Measured on {_when_and_where(result)}"
    yield f"({machine.get('processor')}, {machine.get('kernel')}, Python {machine.get('python')}), commit"
    yield f"`{result.commit}`."
    yield f"`{REFRESH}` measures again and makes this page and"
    yield "[its data](benchmarks.json); `compare A.json B.json` sets two results side by side."
    yield ""
    yield f"Peers: {versions}."
    yield ""
    yield "## How it was measured"
    yield HOW


def _targets(result: Result) -> Iterator[str]:
    rows = sorted((row for row in result.rows if row.target is not None and not _detail(row)), key=_number)
    met = sum(row.met is True for row in rows)
    yield f"## Targets: {met} of {len(rows)} met"
    yield ""
    headings = ("row", "workload", "ours", "peer", "", "ratio", "target", "floor", "met")
    yield from _markdown(headings, [_target(row) for row in rows])
    yield ""
    if missed := dict.fromkeys(row.id for row in rows if row.met is False):
        yield "What stands in the way, as far as that is known from the code (how much of the time each takes, a"
        yield "profile says: `py-spy record -- qo run …`):"
        yield ""
        yield from (f"- {number}: {obstacles.known(number)}" for number in missed)
        yield ""


def _target(row: Row) -> Sequence[str]:
    said = {True: "met", False: "**no**", None: "cannot be said"}[row.met]
    said += f": {why}" if row.met is False and (why := obstacles.measured(row)) else ""
    number, workload, ours, _, peer, ratio, target, floor, _, note = cells(row)
    said += f" ({note})" if note else ""
    theirs = _with_spread(beside_of(row), row.beside_samples)
    return (number, workload, _with_spread(ours, row.samples), theirs, peer, ratio, target, floor, said)


def _with_spread(value: str, samples: Sequence[float]) -> str:
    return f"{value} ({len(samples)}×, {spread(samples):.0%})" if len(samples) > 1 else value


def _detail(row: Row) -> bool:
    """One of the many schedules, of which the average and the worst are what counts; or where the time of P7 goes."""
    return (row.id == "P8" and row.workload.endswith(" workers")) or (row.id == "P7" and "," in row.workload)


def _number(row: Row) -> int:
    return int(row.id.removeprefix("P"))


def _by_engines(result: Result) -> Sequence[Row]:
    """Those that set whole engines side by side."""
    return [row for row in result.rows if _number(row) in {1, 2, 3, 6, 7, 12} and not _detail(row)]


def _all_peers(result: Result) -> Iterator[str]:
    rows = _by_engines(result)
    names = ["qo, no service", *(peer.name for peer in PEERS)]
    yield "## Seconds"
    yield ""
    grid = _grid(rows, names)
    present = [name for name in names if any(name in line for line in grid.values())]
    yield from _markdown(
        ("", *grid), [(name, *(line.get(name, "") for line in grid.values())) for name in ("qo", *present)]
    )
    yield ""


def _growth(result: Result) -> Iterator[str]:
    if any(row.id == "P5" for row in result.rows):
        yield "## Growth"
        yield ""
        yield "![Time and memory by the number of writes](benchmarks.svg)"
        yield ""
        yield "`qo` without the warm service, so that all of its memory is seen; the Prefect server's is not counted,"
        yield "for ours and for Prefect. Peers end where ten times as much would take more than 45 seconds."
        yield ""


def _every_row(result: Result) -> Iterator[str]:
    yield "## Every row"
    yield ""
    headings = ("row", "workload", "ours", "peer", "", "ratio", "target", "floor", "processor, ours and theirs", "")
    yield from _markdown(headings, [_full(row) for row in sorted(result.rows, key=_number)])


def _full(row: Row) -> Sequence[str]:
    number, workload, ours, beside, peer, ratio, target, floor, _, note = cells(row)
    spent = [quantity(each, "s") for each in (row.processor, row.beside_processor) if each is not None]
    theirs = _with_spread(beside, row.beside_samples)
    return (
        number,
        workload,
        _with_spread(ours, row.samples),
        theirs,
        peer,
        ratio,
        target,
        floor,
        " / ".join(spent),
        note,
    )


def _pivot(rows: Sequence[Row], names: Sequence[str]) -> Iterator[str]:
    """A line for each workload, a column for each peer."""
    grid = _grid(rows, names)
    yield from _markdown(
        ("", "**qo**", *names),
        [(what, *(line.get(name, "") for name in ("qo", *names))) for what, line in grid.items()],
    )


def _grid(rows: Sequence[Row], names: Sequence[str]) -> Mapping[str, dict[str, str]]:
    grid: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.peer in names:
            line = grid.setdefault(row.workload, {"qo": f"**{quantity(row.ours, '')}**"})
            line[row.peer] = beside_of(row).removesuffix(" s")
    return grid


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for line in (headings, ["---"] * len(headings), *lines):
        cells = (each.replace("|", "∣") for each in line)
        yield f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"

"""What a benchmark has measured: a row for each comparison, and the result of one run of the command.

A row sets ours beside a peer's, from the same minutes of the same machine. What a peer could not do is told in its row,
never left out. A result is written as JSON, and read again to be compared or shown.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """Two measured values (seconds unless `unit` says otherwise), and the most that `ours / beside` should be."""

    id: str
    workload: str
    ours: float | None  # None: ours failed
    beside: float | None  # None: the peer failed
    floor: float | None  # None: shown for its own sake
    note: str = ""
    peer: str = ""  # what `beside` is, if the workload does not say so
    unit: str = "s"
    at_least: bool = False  # the peer was stopped at its time limit, which is `beside`
    noise: float = 0.0  # how far the repetitions lie apart, as a share of the median, of the two together
    processor: float | None = None  # seconds of processor time of ours, services included
    beside_processor: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as long ours takes."""
        return None if self.ours is None or not self.beside else self.ours / self.beside

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps to its floor; None if that cannot be said."""
        if self.ours is None:
            return False
        if self.floor is None or self.ratio is None:
            return None
        return True if self.ratio <= self.floor else None if self.at_least else False


@dataclass(frozen=True)
class Result:
    """All rows of one run of the command, where and of what they were measured."""

    date: str
    commit: str
    machine: dict[str, Any]
    rows: Sequence[Row]
    peers: dict[str, str] = field(default_factory=dict)  # versions

    def write(self, file: Path) -> None:
        """As JSON that `read` reads."""
        file.write_text(self.as_json() + "\n")

    def as_json(self) -> str:
        """Of all fields."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, file: Path) -> Result:
        """What `write` wrote."""
        found = json.loads(file.read_text())
        return cls(**{**found, "rows": [Row(**row) for row in found["rows"]]})


def spread(samples: Sequence[float]) -> float:
    """How far the values lie apart, as a share of their median."""
    return (max(samples) - min(samples)) / statistics.median(samples) if samples else 0.0


HEADINGS = ("id", "workload", "ours", "beside", "peer", "ratio", "floor", "met", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns; a ratio above its floor is marked."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    ratio = "" if row.ratio is None else f"{'< ' if row.at_least else ''}{row.ratio:.2f}"
    alone = row.beside is None and not row.peer
    beside = "" if alone else f"> {row.beside:g} {row.unit}" if row.at_least else quantity(row.beside, row.unit)
    floor = "" if row.floor is None else f"≤ {row.floor:g}"
    met = {True: "yes", False: "no !", None: ""}[row.met]
    return (row.id, row.workload, quantity(row.ours, row.unit), beside, row.peer, ratio, floor, met, row.note)


def quantity(value: float | None, unit: str) -> str:
    """To three digits or so; None is what failed."""
    if value is None:
        return "failed"
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}".strip()

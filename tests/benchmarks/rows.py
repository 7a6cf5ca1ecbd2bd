"""What a benchmark has measured: a row for each comparison, and the result of one run of the command.

A row sets ours beside a peer's, from the same minutes of the same machine, with every repetition of both. What a peer
could not do is told in its row, never left out. A result is written as JSON, and read again to be compared or shown.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """Two measured values (medians; seconds unless `unit` says otherwise), and the most that `ours / beside` may be."""

    id: str
    workload: str
    ours: float | None  # None: ours failed
    beside: float | None  # None: the peer failed
    target: float | None  # None: shown for its own sake
    note: str = ""
    peer: str = ""  # what `beside` is, if the workload does not say so
    unit: str = "s"
    at_least: bool = False  # the peer was stopped at its time limit, which is `beside`
    scaled_from: int | None = None  # the peer was given so much of the work, and its time is scaled to all of it
    floor: float | None = None  # what the work takes without any engine, as durable as ours
    samples: Sequence[float] = ()  # the repetitions of ours
    beside_samples: Sequence[float] = ()  # and of the peer, as measured
    processor: float | None = None  # seconds of processor time of ours, services included
    beside_processor: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as long ours takes."""
        return None if self.ours is None or not self.beside else self.ours / self.beside

    @property
    def noise(self) -> float:
        """How far the repetitions lie apart, as a share of the median, of the two together."""
        return round(spread(self.samples) + spread(self.beside_samples), 3)

    @property
    def met(self) -> bool | None:
        """Whether the ratio keeps to its target; None if that cannot be said."""
        if self.ours is None:
            return False
        if self.target is None or self.ratio is None:
            return None
        return True if self.ratio <= self.target else None if self.at_least else False


@dataclass(frozen=True)
class Result:
    """All rows of one run of the command, where and of what they were measured."""

    date: str
    commit: str
    machine: dict[str, Any]
    rows: Sequence[Row]
    peers: dict[str, str] = field(default_factory=dict)  # versions
    quick: bool = False  # small sizes, once each: only to see that all works

    def write(self, file: Path) -> None:
        """As JSON that `read` reads."""
        file.write_text(self.as_json() + "\n")

    def as_json(self) -> str:
        """Of all fields; and of each row, what follows from them."""
        return json.dumps({**asdict(self), "rows": [_told(row) for row in self.rows]}, indent=1)

    @classmethod
    def read(cls, file: Path) -> Result:
        """What `write` wrote."""
        found = json.loads(file.read_text())
        names = {each.name for each in fields(Row)}
        rows = [Row(**{name: value for name, value in row.items() if name in names}) for row in found["rows"]]
        return cls(**{**found, "rows": [_tupled(row) for row in rows]})


def _told(row: Row) -> dict[str, Any]:
    return {
        **asdict(row),
        "ratio": row.ratio,
        "met": row.met,
        "repeats": [len(row.samples), len(row.beside_samples)],
        "spread": [round(spread(row.samples), 3), round(spread(row.beside_samples), 3)],
    }


def _tupled(row: Row) -> Row:
    """Samples as they were before JSON made lists of them."""
    values = {each.name: getattr(row, each.name) for each in fields(Row)}
    return Row(**{**values, "samples": tuple(row.samples), "beside_samples": tuple(row.beside_samples)})


def spread(samples: Sequence[float]) -> float:
    """How far the values lie apart, as a share of their median."""
    middle = statistics.median(samples) if samples else 0.0
    return (max(samples) - min(samples)) / middle if middle else 0.0


HEADINGS = ("id", "workload", "ours", "beside", "peer", "ratio", "target", "floor", "met", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns; a ratio above its target is marked."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    ratio = "" if row.ratio is None else f"{'< ' if row.at_least else ''}{_digits(row.ratio)}"
    alone = row.beside is None and not row.peer
    target = "" if row.target is None else f"≤ {row.target:.3g}"
    floor = "" if row.floor is None else quantity(row.floor, row.unit)
    met = {True: "yes", False: "no !", None: ""}[row.met]
    ours, beside = quantity(row.ours, row.unit), "" if alone else beside_of(row)
    return (row.id, row.workload, ours, beside, row.peer, ratio, target, floor, met, row.note)


def beside_of(row: Row) -> str:
    """The peer's value: measured, at least so much, or about so much."""
    sign = "> " if row.at_least else "≈ " if row.scaled_from else ""
    return sign + quantity(row.beside, row.unit)


def quantity(value: float | None, unit: str) -> str:
    """To three digits or so; None is what failed."""
    if value is None:
        return "failed"
    return f"{_digits(value)} {unit}".strip()


def _digits(value: float) -> str:
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"

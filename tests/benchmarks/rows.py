"""What a benchmark has measured, and the table that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Two times of one run of the command, in seconds, and the most that `ours / beside` should be."""

    id: str
    workload: str
    ours: float
    beside: float
    floor: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as long ours takes."""
        return self.ours / self.beside


HEADINGS = ("id", "workload", "ours (s)", "beside (s)", "ratio", "floor", "")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns; a ratio above its floor is marked."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    mark = "" if row.ratio <= row.floor else " !"
    times = (f"{row.ours:.3f}", f"{row.beside:.3f}", f"{row.ratio:.2f}{mark}", f"≤ {row.floor:g}")
    return (row.id, row.workload, *times, row.note)

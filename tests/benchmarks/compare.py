"""Two results side by side: what has become slower by more than the repetitions differed among themselves.

Machines differ from hour to hour, so a row is judged by its ratio to the peer that was measured beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.benchmarks.rows import Result, Row

LEAST_NOISE = 0.1  # few repetitions may agree by chance


def compared(before: Result, after: Result) -> Iterator[str]:
    """A line for each row that both have, then what only one of them has."""
    old, new = _by_key(before.rows), _by_key(after.rows)
    yield f"{before.commit[:12]} of {before.date} → {after.commit[:12]} of {after.date}"
    for key, row in new.items():
        if key in old:
            yield _line(old[key], row)
    yield from (f"{_name(old[key])}: only before" for key in old.keys() - new.keys())
    yield from (f"{_name(new[key])}: only after" for key in new.keys() - old.keys())


def change(before: Row, after: Row) -> float | None:
    """By what factor ours has become slower, its peer's own change taken out where it can be."""
    if before.ours is None or after.ours is None or not before.ours:
        return None
    if before.ratio and after.ratio and not (before.at_least or after.at_least):
        return after.ratio / before.ratio
    return after.ours / before.ours


def verdict(before: Row, after: Row) -> str:
    """Slower or quicker, if by more than the noise of both; `as before` otherwise."""
    factor = change(before, after)
    if factor is None:
        return "failed now" if after.ours is None else "failed before"
    beyond = 1 + max(LEAST_NOISE, before.noise + after.noise)
    return "slower !" if factor > beyond else "quicker" if factor < 1 / beyond else "as before"


def _by_key(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row.id, row.workload, row.peer): row for row in rows}


def _line(before: Row, after: Row) -> str:
    factor = change(before, after)
    times = "" if factor is None else f"{before.ours:.3f} → {after.ours:.3f} {after.unit}, × {factor:.2f}: "
    return f"{_name(after)}: {times}{verdict(before, after)}"


def _name(row: Row) -> str:
    return f"{row.id} {row.workload}" + (f", beside {row.peer}" if row.peer else "")

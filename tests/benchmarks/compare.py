"""Two results side by side: what has become slower by more than the repetitions differed among themselves.

Machines differ from hour to hour, so a row is judged by its ratio to the peer that was measured beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.benchmarks.rows import Result, Row

LEAST_NOISE = 0.1  # few repetitions may agree by chance


def compared(before: Result, after: Result) -> Iterator[str]:
    """A line for each row that either has, and how many have become slower."""
    old, new = _by_key(before.rows), _by_key(after.rows)
    yield f"{before.commit} of {before.date} → {after.commit} of {after.date}"
    told = []
    for key, row in new.items():
        if key in old:
            told.append(verdict(old[key], row))
            yield _line(old[key], row)
    yield from (f"{_name(row)}: only before" for key, row in old.items() if key not in new)
    yield from (f"{_name(row)}: only after" for key, row in new.items() if key not in old)
    yield ", ".join(f"{told.count(each)} {each}" for each in dict.fromkeys(told)) or "no row in common"


def change(before: Row, after: Row) -> float | None:
    """By what factor ours has become slower, its peer's own change taken out where it can be."""
    if before.ours is None or after.ours is None or not before.ours:
        return None
    if before.ratio and after.ratio and not (before.at_least or after.at_least):
        return after.ratio / before.ratio
    return after.ours / before.ours


def verdict(before: Row, after: Row) -> str:
    """Slower or quicker, if by more than the noise of both."""
    factor = change(before, after)
    if factor is None:
        return "failed" if after.ours is None and before.ours is None else _failed(after)
    beyond = 1 + noise(before, after)
    return "slower !" if factor > beyond else "quicker" if factor < 1 / beyond else "within noise"


def _failed(after: Row) -> str:
    return "failed now !" if after.ours is None else "failed before"


def noise(before: Row, after: Row) -> float:
    """How much the repetitions of both differed among themselves, but no less than a little."""
    return max(LEAST_NOISE, before.noise + after.noise)


def _by_key(rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    return {(row.id, row.workload, row.peer): row for row in rows}


def _line(before: Row, after: Row) -> str:
    factor = change(before, after)
    if factor is None:
        return f"{_name(after)}: {verdict(before, after)}"
    ratios = "" if before.ratio is None or after.ratio is None else f", ratio {before.ratio:.2f} → {after.ratio:.2f}"
    times = f"{before.ours:.3f} → {after.ours:.3f} {after.unit}{ratios}, × {factor:.2f}"
    return f"{_name(after)}: {times} (noise {noise(before, after):.0%}): {verdict(before, after)}"


def _name(row: Row) -> str:
    return f"{row.id} {row.workload}" + (f", beside {row.peer}" if row.peer else "")

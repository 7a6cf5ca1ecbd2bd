"""The growth of time and memory as an SVG: two panels with logarithmic axes, legible on light and dark pages.

Written by hand, as it is lines between decades and nothing more: the same result gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from tests.benchmarks.rows import Result

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 880, 400
LEFT, TOP, ACROSS, DOWN, APART = 60, 40, 300, 310, 420
LABEL_APART = 13
COLOURS = {
    "qo run": ("#0969da", "#4493f8"),
    "qo plan": ("#8250df", "#ab7df8"),
    "qo validate": ("#1b7c83", "#39c5cf"),
    "bare loop, one syncfs": ("#6e7781", "#9198a1"),
    "make": ("#953800", "#db6d28"),
    "doit": ("#7d4e00", "#d29922"),
    "DBOS": ("#1a7f37", "#3fb950"),
    "Prefect": ("#cf222e", "#f85149"),
}
"""Of each line, on a light and on a dark page."""


def svg(result: Result) -> str:
    """docs/benchmarks.svg."""
    return "\n".join([*_head(), *_panel(result, "time", "seconds", 0), *_panel(result, "memory", "MB", 1), "</svg>"])


def points(result: Result, what: str) -> Mapping[str, Points]:
    """Of each line, the number of writes and what they took."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in result.rows:
        name, _, rest = row.workload.partition(": ")
        if row.id == "P5" and rest.endswith(f", {what}") and row.ours:
            found.setdefault(name, []).append((float(rest.partition(",")[0]), row.ours))
    return found


def _head() -> Iterator[str]:
    title = "Time and memory by the number of writes, both axes logarithmic"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    yield "<style>"
    yield "text { font: 12px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 }"
    yield ".grid { stroke: #d1d9e0; stroke-width: 1 } path { fill: none; stroke-width: 1.5 } .k0 { stroke-width: 2.5 }"
    for dark in (False, True):
        if dark:
            yield "@media (prefers-color-scheme: dark) {"
            yield "text { fill: #f0f6fc } .grid { stroke: #3d444d }"
        for number, pair in enumerate(COLOURS.values()):
            yield f"path.k{number} {{ stroke: {pair[dark]} }} circle.k{number}, text.k{number} {{ fill: {pair[dark]} }}"
    yield "}"
    yield "</style>"


def _panel(result: Result, what: str, unit: str, number: int) -> Iterator[str]:
    lines = {name: found for name, found in points(result, what).items() if name in COLOURS}
    every = [point for found in lines.values() for point in found]
    if not every:
        return
    left = LEFT + number * APART
    across = _Axis([x for x, _ in every], left, ACROSS)
    upward = _Axis([y for _, y in every], TOP + DOWN, -DOWN)
    yield f'<text class="title" x="{left}" y="{TOP - 16}">{what} ({unit})</text>'
    for value in across.decades():
        x = across.at(value)
        yield f'<line class="grid" x1="{x}" y1="{TOP}" x2="{x}" y2="{TOP + DOWN}"/>'
        yield f'<text x="{x}" y="{TOP + DOWN + 18}" text-anchor="middle">{value:,.0f}</text>'
    for value in upward.decades():
        y = upward.at(value)
        yield f'<line class="grid" x1="{left}" y1="{y}" x2="{left + ACROSS}" y2="{y}"/>'
        yield f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:,.6g}</text>'
    yield f'<text x="{left + ACROSS / 2:.0f}" y="{TOP + DOWN + 38}" text-anchor="middle">independent writes</text>'
    places = _apart({name: (across.at(found[-1][0]), upward.at(found[-1][1])) for name, found in lines.items()})
    for name, found in lines.items():
        kind = f"k{list(COLOURS).index(name)}"
        spots = [(across.at(x), upward.at(y)) for x, y in found]
        yield f'<path class="{kind}" d="M{" L".join(f"{x} {y}" for x, y in spots)}"/>'
        yield from (f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"/>' for x, y in spots)
        x, y = places[name]
        yield f'<text class="{kind}" x="{x + 8}" y="{y + 4}">{escape(name.partition(",")[0])}</text>'


def _apart(ends: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
    """Places for the names, near the ends of their lines, so that no two cover each other."""
    placed: dict[str, tuple[float, float]] = {}
    lowest: dict[float, float] = {}
    for name, (x, y) in sorted(ends.items(), key=lambda each: each[1]):
        lowest[x] = round(max(y, lowest.get(x, -math.inf) + LABEL_APART), 1)
        placed[name] = (x, lowest[x])
    return placed


class _Axis:
    """A logarithmic one of whole decades."""

    def __init__(self, values: Sequence[float], origin: float, length: float) -> None:
        self._least = math.floor(math.log10(min(values)))
        self._most = max(self._least + 1, math.ceil(math.log10(max(values))))
        self._origin = origin
        self._length = length

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._least) / (self._most - self._least)
        return round(self._origin + share * self._length, 1)

    def decades(self) -> Sequence[float]:
        return [10.0**power for power in range(self._least, self._most + 1)]

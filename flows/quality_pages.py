"""What Prefect's UI shows of a step that judged code: a table of its findings, and a chart of its score.

Pure: outputs (or an error's details) in, rows and Markdown out. Knows neither Prefect nor operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROWS = 200
"""Findings in a table; the server keeps it, and the page shows it, as a whole."""
MOST_BARS = 15
WIDTH = 40
"""Characters of the longest bar."""

Said = Mapping[str, Any]


def is_shown(operation: str, said: Said) -> bool:
    """Whether there is something to be shown of this step."""
    return operation.startswith("quality.") and bool(said.get("findings") or said.get("files") or said.get("failures"))


def rows(said: Said) -> list[dict[str, Any]]:
    """The findings as a table's rows; of tests, those that failed."""
    columns = ("path", "line", "rule", "minutes", "points", "message", "test")
    failed: Sequence[Said] = [each for each in said.get("failures", ()) if isinstance(each, Mapping)]
    found: Sequence[Said] = said.get("findings") or failed
    return [{name: each[name] for name in columns if name in each} for each in found[:MOST_ROWS]]


def chart(said: Said) -> str:
    """The score and what it lost it by, as bars; empty for what has no score."""
    if "score" not in said:
        return ""
    parts = [f"# Score {_number(said['score'])}{_since(said)}"]
    lost = Counter[str]()
    for each in said.get("findings", ()):
        lost[each["rule"]] += each["minutes"]
    parts += _bars("Debt by rule, in minutes", lost.most_common(MOST_BARS))
    files = [(each["path"], each["score"]) for each in said.get("files", ())[:MOST_BARS] if each["score"] < 100]
    parts += _bars("Lowest scores", files)
    return "\n\n".join(parts) + "\n"


def _since(said: Said) -> str:
    delta = said.get("delta")
    return "" if delta is None else f" ({delta:+g} since {_number(said.get('baseline'))})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _bars(title: str, values: Sequence[tuple[str, float]]) -> list[str]:
    if not values:
        return []
    name_width, most = max(len(name) for name, _ in values), max(value for _, value in values) or 1
    lines = [f"{name:{name_width}}  {'█' * max(1, round(WIDTH * value / most))} {value:g}" for name, value in values]
    return [f"## {title}", "\n".join(["```text", *lines, "```"])]

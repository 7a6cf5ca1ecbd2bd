"""What linters of any language print, read as findings: SARIF 2.1.0, or lines such as `path:line:column: message`.

The second form is the GNU one, which most compilers and linters have, or can be asked for. What is neither is not
taken for a finding. This module knows texts alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

_LINE = re.compile(
    r"(?P<path>[^\s:][^:\n]*):(?P<line>\d+)(?::(?P<column>\d+))?:\s*"
    r"(?:(?P<level>error|warning|note|info)\b:?\s*)?(?P<message>\S.*)"
)
_RULE = re.compile(r"\[(?P<last>[\w./-]+)\]\s*$|^(?P<first>[A-Z]+\d+)\b:?\s*")


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a linter objects to; lines and columns are counted from 1."""

    path: str
    line: int
    column: int
    rule: str
    message: str


def findings_in(printed: str, root: str) -> list[Found]:
    """The findings in what a linter has printed; paths are made relative to `root`. Each is told once."""
    log = _sarif(printed)
    found = _of_log(log) if log is not None else _of_lines(printed)
    return list(dict.fromkeys(_relative(each, root) for each in found))


def _sarif(printed: str) -> Mapping[str, Any] | None:
    try:
        log = json.loads(printed)
    except (ValueError, RecursionError):
        return None
    return log if isinstance(log, dict) and isinstance(log.get("runs"), list) else None


def _of_log(log: Mapping[str, Any]) -> Iterator[Found]:
    for run in log["runs"]:
        for each in run.get("results") or ():
            locations = each.get("locations") or [{}]
            place = locations[0].get("physicalLocation") or {}
            region, uri = place.get("region") or {}, (place.get("artifactLocation") or {}).get("uri", "")
            yield Found(
                unquote(urlsplit(uri).path if uri.startswith("file:") else uri),
                int(region.get("startLine") or 1),
                int(region.get("startColumn") or 1),
                str(each.get("ruleId") or "finding"),
                str((each.get("message") or {}).get("text") or ""),
            )


def _of_lines(printed: str) -> Iterator[Found]:
    for line in printed.splitlines():
        if (match := _LINE.fullmatch(line.strip())) is None:
            continue
        message = match["message"]
        rule = _RULE.search(message)
        name = (rule["last"] or rule["first"]) if rule else match["level"] or "finding"
        yield Found(match["path"], int(match["line"]), int(match["column"] or 1), name, message)


def _relative(found: Found, root: str) -> Found:
    path = found.path.removeprefix(f"{root}/").removeprefix("./")
    return Found(path, found.line, found.column, found.rule, found.message)

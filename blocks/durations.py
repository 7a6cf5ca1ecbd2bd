"""Durations as people write them: a number of seconds, or a text such as "1h30m".

One type for every model that holds one (a set's time limits, a budget's time), so that all of them take and refuse the
same. Knows nothing of what is measured.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

DURATION_PATTERN = (
    r"^(?=.)(\d+(\.\d+)?d)?(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?(\d+(\.\d+)?ms)?$"  # large units first
)
LONGEST_DURATION = 366 * 86_400
"""Seconds. More is a slip of the unit, and overflows the clocks of some systems."""

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_duration(value: object) -> object:
    """Seconds, for a text such as "1h30m". Anything else is handed on as it is, to be judged as a number."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(DURATION_PATTERN, value, re.ASCII):
        raise ValueError('is no duration; write seconds as a number, or a text such as "250ms", "90s", "1h30m"')
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))


_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": LONGEST_DURATION},
        {"type": "string", "pattern": DURATION_PATTERN},
    ]
}
Duration = Annotated[
    float, Field(ge=0, le=LONGEST_DURATION), BeforeValidator(parse_duration), WithJsonSchema(_DURATION_SCHEMA)
]
"""Seconds. In a document also a text such as "5m", "1h30m", "250ms"."""

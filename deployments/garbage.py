"""How often this process looks for objects that only refer to each other.

A set of 100,000 instructions is millions of objects that stay, and next to none of ours are rings: Python's own pace,
a look for every 700 more, costs a third of the time of judging them. Invariant: what was found at the start is put
back at the end. It must not know what the process does.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

SELDOM = (50_000, 10, 10)
"""Objects made and not freed before the young ones are looked at (some 10 MB at most); then Python's own measure: older
ones with every tenth look, all of them when a quarter has been added."""


@contextlib.contextmanager
def collected_seldom() -> Iterator[None]:
    """Inside of it, garbage waits longer."""
    before = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)

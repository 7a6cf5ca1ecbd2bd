"""How much is tried where more would find more: some in the ordinary run, which everybody waits for, more at night.

`NIGHTLY=1 ./run pytest` takes the larger numbers, and the tests marked `nightly` too.
"""

from __future__ import annotations

import os
from typing import TypeVar

NIGHTLY = bool(os.environ.get("NIGHTLY"))
T = TypeVar("T")


def ordinarily(ordinary: T, *, nightly: T) -> T:
    """What this run takes."""
    return nightly if NIGHTLY else ordinary

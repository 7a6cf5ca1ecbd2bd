"""Where benchmarks run: the program `qo` itself, an environment of nobody's, a server that is up, folders that stay.

Files are created slowly for a while where many have just been deleted. So what `all` runs works in one folder, which is
deleted when everything has been measured.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import serving

QO = str(Path(sys.executable).with_name("qo"))


def environment(home: Path) -> dict[str, str]:
    """The user's, without what would change what is measured; the state of ours is in `home`."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "QO_", "DAGSTER_"))}
    return {**theirs, "QO_HOME": str(home)}


@contextlib.contextmanager
def served(home: Path, *, leave: bool = False) -> Iterator[None]:
    """The Prefect server and the warm service are up already, so that their start is nobody's; `leave` them up."""
    try:
        subprocess.run([QO, "up"], env=environment(home), check=True, capture_output=True)
        yield
    finally:
        if not leave:
            down(home)


def down(home: Path) -> None:
    """End what is up; and what was only coming up when somebody has interrupted us."""
    for _ in range(20):
        subprocess.run([QO, "down"], env=environment(home), check=True, capture_output=True)
        if not serving(home):
            return
        time.sleep(0.5)
    raise SystemExit(f"these of {home} do not end: {serving(home)}")


@contextlib.contextmanager
def work_folder(within: Path | None) -> Iterator[Path]:
    """A new folder; it stays where somebody else has named the one around it."""
    if within is not None:
        yield Path(tempfile.mkdtemp(prefix="qo-benchmark-", dir=within))
        return
    with tempfile.TemporaryDirectory(prefix="qo-benchmark-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)

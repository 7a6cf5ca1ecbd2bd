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
from collections.abc import Iterator
from pathlib import Path

QO = str(Path(sys.executable).with_name("qo"))


def environment(home: Path) -> dict[str, str]:
    """The user's, without what would change what is measured; the state of ours is in `home`."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "QO_", "DAGSTER_"))}
    return {**theirs, "QO_HOME": str(home)}


@contextlib.contextmanager
def served(home: Path) -> Iterator[None]:
    """The Prefect server and the warm service are up already, so that their start is nobody's."""
    subprocess.run([QO, "up"], env=environment(home), check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([QO, "down"], env=environment(home), check=True, capture_output=True)


@contextlib.contextmanager
def work_folder(within: Path | None) -> Iterator[Path]:
    """A new folder; it stays where somebody else has named the one around it."""
    if within is not None:
        yield Path(tempfile.mkdtemp(prefix="qo-benchmark-", dir=within))
        return
    with tempfile.TemporaryDirectory(prefix="qo-benchmark-") as folder:
        yield Path(folder)

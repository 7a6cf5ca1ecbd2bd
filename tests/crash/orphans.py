"""What a dead engine leaves running must not write into what the next one has begun to recover."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantum_orchestrator.blocks import repository
from tests.crash.cases import Bench, Violation, fork, run_set
from tests.crash.scenarios import SLOW_COMMIT

DELAY = 0.4
"""Seconds for which the slow git does nothing, before it does what it was asked for."""


def orphaned_git(folder: Path) -> list[Violation]:
    """Kill an engine while git is at work, and undo the run at once: nothing may come afterwards."""
    name = f"{SLOW_COMMIT.name}: rollback after a kill while git was at work"
    bench = Bench(SLOW_COMMIT, folder / "bench")
    begun = folder / "begun"
    with bench.workspace() as root, _slow_git(folder / "bin", begun):
        pid, reading = fork(lambda: run_set(root, SLOW_COMMIT))
        while not begun.exists():
            time.sleep(0.002)
        time.sleep(DELAY / 4)  # the engine still has to write the message to its standard input
        os.kill(pid, signal.SIGKILL)
        os.close(reading)
        os.waitpid(pid, 0)
        violations = bench.verdict(name, root, "rollback")
        time.sleep(2 * DELAY)
        return violations or bench.verdict(name, root, "rollback")


@contextmanager
def _slow_git(folder: Path, begun: Path) -> Iterator[None]:
    """A `git` that waits before it commits, and says that it has begun."""
    program, path = shutil.which("git"), os.environ["PATH"]
    folder.mkdir()
    slow = folder / "git"
    slow.write_text(
        f'#!/bin/sh\ncase " $* " in *" commit "*) touch {begun}; sleep {DELAY};; esac\nexec {program} "$@"\n'
    )
    slow.chmod(stat.S_IRWXU)
    os.environ["PATH"] = f"{folder}:{path}"
    repository._git_program.cache_clear()
    try:
        yield
    finally:
        os.environ["PATH"] = path
        repository._git_program.cache_clear()

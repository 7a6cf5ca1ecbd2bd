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
from tests.crash.cases import Bench, Violation, children, fork, left_running, run_set
from tests.crash.scenarios import SLOW_COMMIT

READING = 0.1
"""Seconds in which the engine, once git has begun, surely has written the message to its standard input."""


def orphaned_git(folder: Path) -> list[Violation]:
    """Kill an engine while git is at work, and undo the run at once: nothing may come afterwards."""
    name = f"{SLOW_COMMIT.name}: rollback after a kill while git was at work"
    bench = Bench(SLOW_COMMIT, folder / "bench")
    begun, go, known = folder / "begun", folder / "go", children()
    with bench.workspace() as root, _slow_git(folder / "bin", begun, go):
        pid, reading = fork(lambda: run_set(root, SLOW_COMMIT))
        while not begun.exists():
            time.sleep(0.002)
        time.sleep(READING)
        os.kill(pid, signal.SIGKILL)
        os.close(reading)
        os.waitpid(pid, 0)
        violations = bench.verdict(name, root, "rollback")
        go.touch()
        left_running(known, within=20)
        return violations or bench.verdict(name, root, "rollback")


@contextmanager
def _slow_git(folder: Path, begun: Path, go: Path) -> Iterator[None]:
    """A `git` that says that it has begun to commit, and does so when it may."""
    program, path = shutil.which("git"), os.environ["PATH"]
    folder.mkdir()
    slow = folder / "git"
    slow.write_text(
        f'#!/bin/sh\ncase " $* " in *" commit "*) touch {begun}; until test -e {go}; do sleep 0.01; done;; esac\n'
        f'exec {program} "$@"\n'
    )
    slow.chmod(stat.S_IRWXU)
    os.environ["PATH"] = f"{folder}:{path}"
    repository._git_program.cache_clear()
    try:
        yield
    finally:
        os.environ["PATH"] = path
        repository._git_program.cache_clear()

"""Every test runs as a user of its own: an empty home, its own state folder, git that knows nothing of the machine."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Qo, Warm, left_running
from effort import NIGHTLY

# What was started in the background or by `nohup` ignores these, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before anything imports Prefect: it reads its settings once.
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "QO_", "GIT_", "ANTHROPIC_"))]:
    del os.environ[_name]

MOST_WORKERS = 4
"""Each has a Prefect server of its own, which takes some 250 MB."""
IN_MEMORY = Path("/dev/shm")
ROOM = 2 * 2**30
"""All workers together leave a tenth of it."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than processors for the whole suite, as tests wait: for the disk, for servers, for what they start.

    None for what the command line names: one process starts faster.
    """
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return 0 if named else min((os.cpu_count() or 1) + 1, MOST_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for the night only, and begin with the files that take long: at the end, nobody waits."""
    for_the_night = [item for item in items if item.get_closest_marker("nightly") and not NIGHTLY]
    config.hook.pytest_deselected(items=for_the_night)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items[:] = sorted((item for item in items if item not in for_the_night), key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What has been collected stays: Python need not look through it again and again for what can go."""
    gc.collect()
    gc.freeze()


def state_folder_for(home: Path) -> Path:
    """In memory, if there is room: a run waits for the disk of its journal a dozen times, and a server all the time.

    What a disk has after a power cut is tested in `tests/crash/`, on disks of its own.
    """
    try:
        room = shutil.disk_usage(IN_MEMORY).free
    except OSError:
        room = 0
    return Path(tempfile.mkdtemp(prefix="qo-tests-", dir=IN_MEMORY)) if room > ROOM else home / "qo"


SWEEP = """
cat
for file in $(grep -lz "^HOME=$1" /proc/[0-9]*/environ 2>/dev/null); do
  pid=${file#/proc/}
  kill -9 "${pid%/environ}" 2>/dev/null
done
rm -rf "$2"
"""
"""Ends the processes with a home in $1 and removes the state in $2, once its standard input ends: with its holder."""


@contextlib.contextmanager
def swept(homes: Path, state_folder: Path) -> Iterator[None]:
    """Nothing outlives these tests, not even if their process is killed."""
    command = ["sh", "-c", SWEEP, "sh", str(homes), str(state_folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as sweeper:
        yield
        assert sweeper.stdin is not None
        sweeper.stdin.close()


@pytest.fixture(scope="session", autouse=True)
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a git identity, and a state folder in it. What runs there at the end is ended, and a fault."""
    home = tmp_path_factory.mktemp("home")
    state_folder = state_folder_for(home)
    (home / ".gitconfig").write_text("[user]\n\tname = Ada Test\n\temail = ada@example.org\n")
    with swept(tmp_path_factory.getbasetemp(), state_folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        patch.setenv("QO_HOME", str(state_folder))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("QO_SERVICE", "off")  # what no test has asked for would outlive it
        yield home
        assert (left := left_running(f"HOME={home}")) == [], f"left running, and ended now: {left}"


@pytest.fixture
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that allows no user namespaces, as far as this process can tell."""
    from quantum_orchestrator.blocks import levels

    monkeypatch.setattr(levels, "_why_not_bubblewrap", lambda: "bubblewrap fails (no namespaces)")


@pytest.fixture
def small_stack() -> Iterator[None]:
    """Python's stack ends 200 calls from here: what calls itself for each of very many folders fails."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture(scope="session")
def put_database(pytestconfig: pytest.Config) -> Callable[[Path], None]:
    """Gives a state folder the database that its Prefect server would make in ten seconds."""
    from prefect_database import put

    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("prefect")
    return lambda home: put(home, cache)


@pytest.fixture(scope="session")
def prefect_server(user: Path, put_database: Callable[[Path], None]) -> Iterator[str]:
    """The API address of a real Prefect server, the product's own, for every test that runs sets."""
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import prefect_settings, server

    put_database(home())
    try:
        connection = server.ensure(home())
        with pytest.MonkeyPatch.context() as patch:
            for name, value in server.client_environment(connection).items():
                patch.setenv(name, value)
            prefect_settings.read_again()  # a test before may have imported it
            yield connection.api_url
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=10)  # or Prefect tries for a minute to reach a server that is gone
    finally:
        server.stop(home())  # also one that has not become ready in time


@pytest.fixture(scope="session")
def warm(prefect_server: str) -> Iterator[Warm]:
    """The process that every `qo` of the tests is forked from."""
    process = Warm(os.environ)
    yield process
    process.close()


@pytest.fixture
def qo(warm: Warm, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Qo]:
    """`qo`, in a workspace of its own; where the test is marked so, Prefect is told nothing of its runs."""
    from without_prefect import is_whole

    command = Qo(warm, tmp_path, prefect=is_whole(request.node))
    yield command
    command.close()

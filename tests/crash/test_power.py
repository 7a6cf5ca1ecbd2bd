"""The power goes: what was acknowledged stays, and the rest is undone or done. Without a barrier, it is not.

The second half are controls: each takes one barrier away and shows that the promise is then broken, and seen to be.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal
from tests.crash.cases import Bench, in_child, observe, recover, run_set, status_of
from tests.crash.power import can_cut, cut_at, disks
from tests.crash.scenarios import SCENARIOS, one

SCENARIO = one("file.write", path="old", content="changed\n" * 500)
END = "the end"

needs_disks = pytest.mark.skipif(not can_cut(), reason="needs root and loop devices, to cut a file system's power")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Sabotage = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What the workspace is before and after, and the points on the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QO_HOME", "set by the bench")
        return Bench(SCENARIO, tmp_path_factory.mktemp("bench"))


def cut(folder: Path, point: str, sabotage: Sabotage = nullcontext) -> tuple[str, dict[str, Any]]:
    """Run up to the point, cut the power, start again, recover: the run's status and the tree."""

    def act() -> None:
        with sabotage():
            run_set(live.root, SCENARIO)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QO_HOME", "set by the disks")
        with disks(folder / "live") as live:
            SCENARIO.prepare(live.root)
            Journal(workspace_home(live.root)).close()
            live.sync()
            left = cut_at(point, live, folder / "left", act)
        left.mount()
        try:
            code, problem = in_child(lambda: recover(left.root, SCENARIO, "rollback"))
            assert (code, problem) == (0, None)
            return status_of(left.root), observe(left.root)
        finally:
            left.unmount()


@needs_disks
def test_what_was_acknowledged_survives(bench: Bench, tmp_path: Path) -> None:
    assert cut(tmp_path, END) == ("committed", bench.after)


@needs_disks
def test_a_cut_at_any_moment_leaves_all_or_nothing(bench: Bench, tmp_path: Path) -> None:
    for number, point in enumerate(bench.points[::9]):
        status, tree = cut(tmp_path / str(number), point)
        assert status in ("committed", "rolled_back", "absent"), point
        assert tree == (bench.after if status == "committed" else bench.before), point


@contextlib.contextmanager
def without_workspace_sync() -> Any:
    with mock.patch.object(ConfinedFolder, "syncfs", return_value=None):
        yield


@contextlib.contextmanager
def without_journal_sync() -> Any:
    connect = sqlite3.connect

    class Careless(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            return super().execute(statement.replace("synchronous=FULL", "synchronous=OFF"), *values)

    with mock.patch.object(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "factory": Careless})):
        yield


@needs_disks
@pytest.mark.parametrize("sabotage", [without_workspace_sync, without_journal_sync])
def test_control_without_a_sync_an_acknowledged_run_is_lost(bench: Bench, tmp_path: Path, sabotage: Sabotage) -> None:
    assert cut(tmp_path, END, sabotage) != ("committed", bench.after)


def test_control_with_the_intent_after_the_effect_a_kill_leaves_half(tmp_path: Path) -> None:
    """The journal's row comes after the change that it announces."""
    intend, make_so = Journal.intend, "_make_so"
    late: list[Callable[[], None]] = []

    def later(self: Journal, *arguments: Any, **keywords: Any) -> None:
        late.append(lambda: intend(self, *arguments, **keywords))

    from quantum_orchestrator.blocks.workspace import Workspace

    original = getattr(Workspace, make_so)

    def first_the_effect(self: Workspace, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        while late:
            late.pop()()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QO_HOME", "set by the bench")
        patch.setattr(Journal, "intend", later)
        patch.setattr(Workspace, make_so, first_the_effect)
        bench = Bench(SCENARIOS[1], tmp_path)
        violations = [each for point in bench.points[::4] for each in bench.case(point, "rollback")]
    assert violations

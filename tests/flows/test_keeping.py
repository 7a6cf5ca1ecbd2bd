"""Which runs' before-images are kept: by age, number and size; what is said goes, what stays can be undone exactly."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, shell, write

from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.git_objects import GitObjects
from quantum_orchestrator.blocks.holdings import PRUNED_AT, glance, look, when_pruned
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.flows.keeping import DAY, Limits, Removal, carry_out, choose, keep_within
from tests.crash import points

NOW = 2_000_000_000.0
FREELY = Limits(seconds=1000 * DAY, runs=1000, size=10**12)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    for name in ("workspace", "state"):
        (tmp_path / name).mkdir()
    made = Bench(tmp_path / "workspace", tmp_path / "state")
    yield made
    made.workspace.close()
    made.journal.close()


def noise(seed: int, size: int) -> str:
    """Text that hardly compresses."""
    return random.Random(seed).randbytes(size // 2).hex()


def ran(bench: Bench, run_id: str, *instructions: Any, days: float = 0, **fields: Any) -> None:
    """A run that ended so many days ago, with a log."""
    outcome = bench.run(*instructions, run_id=run_id, **fields)
    ended = NOW - days * DAY
    bench.journal.update(
        run_id,
        status=outcome.status.value,
        started_at=ended - 1,
        ended_at=ended,
        report={"run_id": run_id, "status": outcome.status.value, "diff": {"files": 1}},
    )
    log = bench.journal.log_path(run_id)
    log.write_text(f"log of {run_id}\n")
    os.utime(log, (ended, ended))


def three_runs(bench: Bench) -> None:
    """One after the other, 30, 20 and 10 days ago, each over the file of the one before."""
    for number, days in enumerate((30, 20, 10)):
        text = noise(number, 3000)
        ran(bench, f"r{number}", write("a", "same.txt", text), write("b", f"{number}.txt", text), days=days)


def loose_object(folder: Path, content: bytes) -> str:
    """A blob as git writes it; its path in the folder of objects."""
    whole = b"blob %d\0%s" % (len(content), content)
    name = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    path = folder / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zlib.compress(whole))
    return f"{name[:2]}/{name[2:]}"


def removed(bench: Bench, limits: Limits, **options: Any) -> Removal:
    removal = choose(bench.journal, limits, now=NOW, **options)
    assert carry_out(bench.journal, removal, now=NOW) == removal.size
    assert bench.journal.verify() == []
    return removal


def pruned(journal: Journal) -> list[str]:
    return sorted(run.id for run in journal.runs() if run.pruned)


# What goes.


def test_within_the_limits_nothing_goes(bench: Bench) -> None:
    three_runs(bench)
    assert not removed(bench, FREELY)
    assert pruned(bench.journal) == []


def test_runs_that_ended_too_long_ago_go(bench: Bench) -> None:
    three_runs(bench)
    assert removed(bench, Limits(15 * DAY, 1000, 10**12)).runs == ("r0", "r1")
    assert pruned(bench.journal) == ["r0", "r1"]


def test_of_too_many_runs_those_that_ended_first_go(bench: Bench) -> None:
    three_runs(bench)
    bench.journal.update("r0", ended_at=NOW)  # it was undone last
    assert removed(bench, Limits(1000 * DAY, 1, 10**12)).runs == ("r1", "r2")


def test_of_too_much_the_oldest_go_until_the_rest_fits(bench: Bench) -> None:
    for number in range(4):
        (bench.root / "big.txt").write_text(noise(number, 400_000))
        ran(bench, f"r{number}", shell("s", "rm big.txt"), days=10 - number)
    used = look(bench.journal.folder).used
    assert removed(bench, Limits(1000 * DAY, 1000, used - 100_000)).runs == ("r0",)
    assert removed(bench, Limits(1000 * DAY, 1000, used - 500_000)).runs == ("r1", "r2")
    assert look(bench.journal.folder).used < used - 500_000


def test_a_content_that_another_run_needs_stays(bench: Bench) -> None:
    (bench.root / "a.txt").write_text("the same\n")
    (bench.root / "b.txt").write_text("the same\n")
    ran(bench, "old", write("a", "a.txt"), days=30)
    ran(bench, "new", write("b", "b.txt"), days=1)
    removed(bench, Limits(10 * DAY, 1000, 10**12))
    bench.workspace.undo("new")
    assert bench.files() == {"a.txt": "new\n", "b.txt": "the same\n"}


@pytest.mark.parametrize("status", ["running", "paused", "awaiting_approval", "needs_attention"])
def test_an_unfinished_run_loses_nothing_whatever_the_limits(bench: Bench, status: str) -> None:
    (bench.root / "old.txt").write_text("old\n")
    ran(bench, "r", write("a", "old.txt"), days=500)
    bench.journal.update("r", status=status, ended_at=None)
    assert not removed(bench, Limits(0, 0, 0))
    assert bench.journal.log_path("r").exists()
    bench.workspace.undo("r")
    assert bench.files() == {"old.txt": "old\n"}


def test_what_an_interrupted_step_was_captured_with_stays(bench: Bench) -> None:
    (bench.root / "mine.txt").write_text("mine\n" * 1000)
    ran(bench, "old", write("a", "a.txt"), days=30)
    ran(bench, "dead", {"id": "e", "op": "echo", "with": {"message": "x"}})
    bench.journal.update("dead", status="running", ended_at=None)
    bench.workspace.capture("dead", "s", ["."])
    (bench.root / "mine.txt").write_text("spoilt\n")
    assert removed(bench, Limits(0, 0, 0)).runs == ("old",)
    bench.workspace.undo("dead")
    assert bench.files()["mine.txt"] == "mine\n" * 1000


def test_logs_go_with_their_runs_and_with_age(bench: Bench) -> None:
    three_runs(bench)
    ran(bench, "idle", {"id": "e", "op": "echo", "with": {"message": "x"}}, days=25)
    removal = removed(bench, Limits(22 * DAY, 2, 10**12))
    assert [each.path.name for each in removal.logs] == ["idle.log", "r0.log"]
    assert sorted(path.name for path in (bench.journal.folder / "logs").iterdir()) == ["r1.log", "r2.log"]


def test_put_aside_versions_go_with_age_and_whole(bench: Bench) -> None:
    three_runs(bench)
    for name, days in (("r0", 30), ("r2~2", 10)):
        folder = bench.journal.folder / "aside" / name / "deep"
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine\n")
        for path in (folder / "mine.txt", folder, folder.parent):
            os.utime(path, (NOW - days * DAY,) * 2)
    (bench.journal.folder / "aside/.part").write_text("half")
    removal = removed(bench, Limits(20 * DAY, 1000, 10**12))
    assert [each.path.name for each in (*removal.aside, *removal.leftovers)] == ["r0", ".part"]
    assert [path.name for path in (bench.journal.folder / "aside").iterdir()] == ["r2~2"]


def test_what_killed_processes_left_goes(bench: Bench) -> None:
    three_runs(bench)
    stray = bench.journal.folder / "contents/ab/.abcdef.123"
    stray.parent.mkdir()
    stray.write_bytes(b"x" * 1000)
    draft = bench.journal.folder / ".path.77"
    draft.write_text("/somewhere\n")
    os.utime(draft, (NOW - 7200,) * 2)
    young = bench.journal.folder / ".path.78"
    young.write_text("/somewhere\n")
    os.utime(young, (NOW - 5,) * 2)
    removal = removed(bench, FREELY)
    assert (removal.contents, [each.path for each in removal.leftovers]) == (1000, [draft])
    assert (stray.exists(), draft.exists(), young.exists()) == (False, False, True)


def test_git_objects_are_kept_only_for_runs_that_may_be_undone(bench: Bench) -> None:
    git = bench.root / ".git/objects"
    first, second, third = (loose_object(git, content) for content in (b"one", b"two", b"three"))
    objects = GitObjects(bench.root, bench.journal.folder)
    for run_id, days in (("old", 30), ("new", 1)):
        ran(bench, run_id, write("w", f"{run_id}.txt"), days=days)
    objects.keep(".git", "old", "s")
    (git / first).unlink()
    objects.note("old", "s")
    objects.keep(".git", "new", "s")
    (git / second).unlink()
    objects.note("new", "s")
    removal = removed(bench, Limits(10 * DAY, 1000, 10**12))
    assert [each.run_id for each in removal.objects if each.run_id] == ["old"]
    kept = {"/".join(path.parts[-2:]) for path in (bench.journal.folder / "objects").rglob("kept/*/*")}
    assert kept == {second, third}, "one is lost and may be wanted, the other is the repository's own"
    assert objects.lost("old") == {}
    assert objects.lost("new") == {".git": [second]}
    assert objects.gone(".git", [second]) == []


def test_the_sum_is_what_the_disk_gets_back(bench: Bench) -> None:
    for number in range(6):
        (bench.root / "big.txt").write_text(noise(100 + number, 2_000_000))
        ran(bench, f"r{number}", shell("s", "tr 0-9 g-p <big.txt >t; mv t big.txt"), days=30 - number)
    before = bench.journal.size()
    removal = removed(bench, Limits(1000 * DAY, 1, 10**12))
    assert removal.runs == tuple(f"r{number}" for number in range(5))
    assert removal.size == pytest.approx(before - bench.journal.size(), rel=0.05)
    assert removal.size > 5_000_000


# What stays.


def test_a_run_that_is_kept_is_undone_exactly(bench: Bench) -> None:
    three_runs(bench)
    (bench.root / "0.txt").chmod(0o600)
    before = {path.name: (path.read_bytes(), path.stat().st_mode) for path in bench.root.iterdir()}
    ran(bench, "last", shell("s", "rm 0.txt; echo x >> 1.txt; chmod 700 2.txt; mkdir d; ln -s 1.txt d/l"))
    removed(bench, Limits(1000 * DAY, 1, 10**12))
    assert pruned(bench.journal) == ["r0", "r1", "r2"]
    assert bench.workspace.undo("last").conflicts == []
    assert {path.name: (path.read_bytes(), path.stat().st_mode) for path in bench.root.iterdir()} == before


def test_a_pruned_run_keeps_its_report_with_the_time_in_it(bench: Bench) -> None:
    three_runs(bench)
    bench.journal.update("r0", predicted={"changes": []})
    removed(bench, Limits(25 * DAY, 1000, 10**12))
    run = bench.journal.run("r0")
    assert run is not None
    assert run.report is not None
    assert (run.report["diff"], run.report["status"]) == ({"files": 1}, "committed")
    assert (run.document["name"], run.document["instructions"], run.predicted) == ("test", [], None)
    assert run.report[PRUNED_AT] == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW))
    assert when_pruned(run) == f" on {run.report[PRUNED_AT]}"
    kept = bench.journal.run("r1")
    assert kept is not None
    assert when_pruned(kept) == ""


def test_a_run_without_a_report_gets_one_while_its_changes_can_be_counted(bench: Bench) -> None:
    ran(bench, "r", write("a", "x.txt", "one\ntwo\n"), days=30)
    bench.journal.update("r", report=None)  # killed after its commit
    removed(bench, Limits(DAY, 1000, 10**12))
    run = bench.journal.run("r")
    assert run is not None
    assert run.report is not None
    assert run.report["diff"] == {"files": 1, "insertions": 2, "deletions": 0}
    assert [step["status"] for step in run.report["steps"]] == ["succeeded"]


# Damage.


def damage(bench: Bench, run_id: str) -> None:
    bench.journal.close()
    with sqlite3.connect(bench.journal.folder / "journal.db") as database:
        database.execute("UPDATE effects SET before = NULL, after = NULL WHERE run = ?", (run_id,))
    database.close()
    bench.journal = Journal(bench.journal.folder)


def test_nothing_goes_where_a_run_that_stays_is_damaged(bench: Bench) -> None:
    three_runs(bench)
    damage(bench, "r2")
    held = look(bench.journal.folder).contents
    with pytest.raises(StateError, match="rows of run r2 are damaged"):
        choose(bench.journal, Limits(15 * DAY, 1000, 10**12), now=NOW)
    assert look(bench.journal.folder).contents == held


def test_damage_goes_with_the_run_that_has_it(bench: Bench) -> None:
    three_runs(bench)
    damage(bench, "r0")
    assert bench.journal.verify() != []
    assert removed(bench, Limits(25 * DAY, 1000, 10**12)).runs == ("r0",)


def test_a_journal_that_has_lost_rows_loses_nothing_more(bench: Bench) -> None:
    three_runs(bench)
    bench.journal.close()
    with sqlite3.connect(bench.journal.folder / "journal.db") as database:
        database.execute("DELETE FROM effects WHERE run = 'r1'")
    database.close()
    bench.journal = Journal(bench.journal.folder)
    removal = choose(bench.journal, Limits(25 * DAY, 1000, 10**12), now=NOW)
    with pytest.raises(StateError, match="rows of effects"):
        carry_out(bench.journal, removal, now=NOW)
    assert pruned(bench.journal) == []


# Kills.


def test_a_kill_at_any_moment_leaves_a_sound_journal_and_what_is_kept_can_be_undone(tmp_path: Path) -> None:
    """Each case in a workspace of its own; the next removal then ends what the killed one has begun."""
    made = fresh(tmp_path / "made")
    made.workspace.close()
    names = points_of_removal(copied(tmp_path, "all"))
    assert len([name for name in names if name.startswith(("commit", "unlink"))]) > 10, names
    for number, name in enumerate(names):
        top = copied(tmp_path, str(number))
        assert in_child(top / "state", points.kill_at(name)) == -signal.SIGKILL, name
        bench = Bench(top / "workspace", top / "state")
        assert bench.journal.verify() == [], name
        carry_out(bench.journal, choose(bench.journal, HALF, now=NOW), now=NOW)
        assert pruned(bench.journal) == ["r0", "r1"], name
        assert choose(bench.journal, HALF, now=NOW) == Removal(), name
        assert bench.workspace.undo("r2").conflicts == [], name
        assert bench.files()["same.txt"] == noise(1, 3000), name
        bench.workspace.close()
        bench.journal.close()


def copied(folder: Path, name: str) -> Path:
    shutil.copytree(folder / "made", folder / name)
    return folder / name


HALF = Limits(15 * DAY, 1000, 10**12)


def fresh(top: Path) -> Bench:
    for name in ("workspace", "state"):
        (top / name).mkdir(parents=True)
    bench = Bench(top / "workspace", top / "state")
    three_runs(bench)
    ran(bench, "big", write("b", "big.txt", noise(7, 300_000)), days=0)
    aside = bench.journal.folder / "aside/r0/mine.txt"
    aside.parent.mkdir(parents=True)
    aside.write_text("mine\n")
    for path in (aside, aside.parent):
        os.utime(path, (NOW - 30 * DAY,) * 2)
    bench.journal.close()
    return bench


def in_child(state: Path, at: points.At) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            with points.watch(at):
                journal = Journal(state)
                carry_out(journal, choose(journal, HALF, now=NOW), now=NOW)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def points_of_removal(top: Path) -> list[str]:
    names: list[str] = []
    with points.watch(names.append):
        journal = Journal(top / "state")
        carry_out(journal, choose(journal, HALF, now=NOW), now=NOW)
        end = len(names)
        journal.close()
    return names[:end]


# At the end of a run.


def policy(**settings: int) -> Policy:
    return Policy(**{f"journal_{name}": value for name, value in settings.items()})  # type: ignore[arg-type]


def test_the_end_of_a_run_within_the_limits_removes_nothing(bench: Bench) -> None:
    three_runs(bench)
    assert keep_within(bench.journal, Policy(), run_id="r2", now=NOW) is None


def test_the_end_of_a_run_removes_what_is_too_old(bench: Bench) -> None:
    three_runs(bench)
    kept = keep_within(bench.journal, policy(keep_days=15), run_id="r2", now=NOW)
    assert kept is not None
    assert (kept.removal.runs, kept.problem) == (("r0", "r1"), "")
    assert pruned(bench.journal) == ["r0", "r1"]


def test_a_run_that_has_just_ended_is_kept_whatever_the_limits(bench: Bench) -> None:
    three_runs(bench)
    kept = keep_within(bench.journal, policy(keep_days=0, keep_runs=0, max_size_mb=0), run_id="r2", now=NOW)
    assert kept is not None
    assert pruned(bench.journal) == ["r0", "r1"]
    bench.workspace.undo("r2")
    assert bench.files()["same.txt"] == noise(1, 3000)


def test_runs_beyond_the_number_go_together_and_not_one_by_one(bench: Bench) -> None:
    for number in range(23):
        ran(bench, f"r{number:02}", write("a", "x.txt", f"{number}\n"), days=30 - number)
        kept = keep_within(bench.journal, policy(keep_runs=20), run_id=f"r{number:02}", now=NOW)
        assert (kept is None) is (number < 22)
    assert pruned(bench.journal) == ["r00", "r01", "r02"]


def test_beyond_the_size_the_oldest_go_until_there_is_room_again(bench: Bench) -> None:
    for number in range(4):
        ran(bench, f"r{number}", write("a", "same.txt", noise(number, 400_000)), days=30 - number)
        keep_within(bench.journal, policy(max_size_mb=1), run_id=f"r{number}", now=NOW)
    assert pruned(bench.journal) == ["r0", "r1", "r2"]
    assert glance(bench.journal.folder, "r3").used < 2**20


def test_what_goes_wrong_at_the_end_of_a_run_is_told_and_not_raised(bench: Bench) -> None:
    three_runs(bench)
    damage(bench, "r2")
    kept = keep_within(bench.journal, policy(keep_days=15), run_id="r2", now=NOW)
    assert kept is not None
    assert "rows of run r2 are damaged" in kept.problem
    assert pruned(bench.journal) == []


def test_a_waiting_run_does_not_hide_that_others_are_too_old(bench: Bench) -> None:
    ran(bench, "waits", write("a", "w.txt"), days=40)
    bench.journal.update("waits", status="awaiting_approval", ended_at=None)
    seen = glance(bench.journal.folder, "none")
    assert (seen.runs, seen.oldest) == (1, None)
    bench.journal.update("waits", status="committed", ended_at=NOW - 39 * DAY)
    assert glance(bench.journal.folder, "none").oldest == NOW - 39 * DAY
    assert glance(bench.journal.folder, "waits").oldest is None

"""What is remembered of how long steps took."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import profile
from quantum_orchestrator.blocks.profile import Learned, Measured, Profile


@pytest.fixture
def store(tmp_path: Path) -> Profile:
    return Profile(tmp_path)


def scripts(**seconds: float) -> list[Measured]:
    return [Measured(step, "script.run", each) for step, each in seconds.items()]


def test_without_a_file_nothing_is_known(store: Profile) -> None:
    assert store.load("any") == Learned()
    assert not store.path.exists()


def test_a_step_is_remembered_for_its_set_and_an_operation_for_all(store: Profile) -> None:
    store.learn("one", scripts(quick=1.0, usual=2.0, slow=9.0))
    assert store.load("one").steps == {"quick": 1.0, "slow": 9.0}
    assert store.load("other") == Learned({}, {"script.run": 2.0})


def test_ten_thousand_cheap_steps_leave_one_row(store: Profile) -> None:
    store.learn("many", [Measured(f"s{number}", "file.write", number * 1e-6) for number in range(10_000)])
    known = store.load("many")
    assert known.steps == {}
    assert known.operations == {"file.write": pytest.approx(5e-3, rel=0.01)}


def test_the_last_few_runs_count(store: Profile) -> None:
    for seconds in (1.0, 3.0):
        store.learn("set", scripts(other=100.0, other2=100.0, step=seconds))
    assert store.load("set").steps["step"] == 2.0
    for _ in range(20):
        store.learn("set", scripts(other=100.0, other2=100.0, step=50.0))
    assert store.load("set").steps["step"] == pytest.approx(50.0, rel=0.01)


def test_it_stays_small(store: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "MOST_OF_A_RUN", 20)
    monkeypatch.setattr(profile, "MOST_ROWS", 50)
    for number in range(5):
        store.learn(f"set{number}", scripts(**{f"s{each}": float(each) for each in range(100)}))
    counts = [len(store.load(f"set{number}").steps) for number in range(5)]
    assert max(counts) <= 20
    assert sum(counts) <= 50
    assert counts[4] == 20
    store.learn("x" * 1000, scripts(a=1.0))
    assert store.load("x" * 1000).steps == {}


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_forgotten(store: Profile, damage: bytes) -> None:
    store.learn("set", scripts(a=1.0, b=5.0))
    store.path.write_bytes(damage)
    assert store.load("set") == Learned()
    store.learn("set", scripts(a=1.0, b=5.0))
    store.learn("set", scripts(a=1.0, b=5.0))
    assert store.load("set").steps == {"a": 1.0, "b": 5.0}


def test_values_that_are_no_times_are_not_believed(store: Profile) -> None:
    store.learn("set", scripts(a=1.0, b=5.0))
    with sqlite3.connect(store.path) as database:
        database.execute("UPDATE steps SET seconds = -1 WHERE step = 'a'")
        database.execute("UPDATE operations SET seconds = 'soon'")
    database.close()
    assert store.load("set") == Learned({"b": 5.0}, {})
    store.learn("set", [Measured("c", "script.run", float("nan"))])
    assert store.load("set").steps == {"b": 5.0}


def test_a_file_that_somebody_holds_or_that_cannot_be_written_is_left_alone(
    store: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "_PATIENCE", 0.01)
    store.learn("set", scripts(a=1.0, b=5.0))
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store.learn("set", scripts(a=9.0))
    assert store.load("set") == Learned()
    holder.close()
    assert store.load("set").steps == {"a": 1.0, "b": 5.0}
    nowhere = Profile(store.path / "below a file")
    nowhere.learn("set", scripts(a=1.0))
    assert nowhere.load("set") == Learned()

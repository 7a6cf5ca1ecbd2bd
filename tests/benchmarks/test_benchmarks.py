"""The benchmarks run, and print what they have measured. Times are asserted nowhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.compare import verdict
from tests.benchmarks.rows import Result, Row, table


def benchmark(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True).stdout


def measured(*arguments: str) -> Sequence[dict[str, Any]]:
    """The rows of a result."""
    rows: Sequence[dict[str, Any]] = json.loads(benchmark(*arguments, "--json"))["rows"]
    return rows


def test_recovery_is_measured_beside_a_run_that_nothing_disturbs(user: Path) -> None:
    rows = measured("recovery", "--sizes", "20", "--prefect", "0", "--repeat", "1")
    assert [row["id"] for row in rows] == ["P9", "P10"]
    assert all(row["ours"] > 0 and row["beside"] > 0 for row in rows)
    recorded, in_flight, ran = map(int, re.findall(r"\d+", rows[0]["note"]))
    assert 0 < recorded < 20
    assert in_flight <= ran == 20 - recorded


def test_scripts_are_measured_beside_make(user: Path) -> None:
    rows = measured("scripts", "--size", "5", "--no-qo", "--repeat", "1")
    assert [row["workload"] for row in rows] == [
        "5 scripts, engine and journal",
        "5 scripts, started not tied",
        "5 scripts, started tied",
    ]
    assert all(row["ours"] > 0 and row["beside"] > 0 for row in rows)


def test_a_second_run_is_measured_alone_where_there_is_no_peer(user: Path, prefect_server: object) -> None:
    (row,) = measured("reuse", "--files", "3", "--doit", "", "--repeat", "1")
    assert row["id"] == "P12"
    assert row["ours"] == row["beside"] > 0


def test_schedules_are_measured_beside_their_lower_bounds(tmp_path: Path, user: Path) -> None:
    deps = [("a", 1.0, []), ("b", 5.0, []), ("c", 2.0, ["a"]), ("d", 4.0, ["b"]), ("e", 1.0, ["c", "d"])]
    tasks = [{"id": name, "runtime": runtime, "deps": before} for name, runtime, before in deps]
    (tmp_path / "small.json").write_text(json.dumps({"tasks": tasks}))
    chosen = ("--graphs", str(tmp_path), "--workers", "2", "--real", "0.2")
    rows = {row["workload"]: row for row in measured("scheduling", *chosen)}
    assert rows["small, 2 workers"]["ours"] == rows["small, 2 workers"]["beside"] == 10.0
    assert rows["small, 2 workers, really run"]["ours"] >= 0.2


SLOW, QUICK = Row("P0", "slow", 2.0, 1.0, 1.5), Row("P1", "quick", 1.0, 2.0, 1.5)


def test_a_ratio_above_its_floor_is_marked() -> None:
    text = table([SLOW, QUICK])
    assert [("!" in line) for line in text.splitlines()] == [False, True, False]


def test_a_peer_that_was_stopped_or_failed_stays_in_the_table() -> None:
    stopped = Row("P3", "1000 writes", 1.0, 60.0, 1.0, peer="ansible", at_least=True)
    failed = Row("P3", "1000 writes", 1.0, None, 1.0, "exit code 1", peer="redun")
    lines = table([stopped, failed]).splitlines()
    assert "> 60 s" in lines[1]
    assert "< 0.02" in lines[1]
    assert re.search(r"failed +redun .*exit code 1", lines[2])


def test_a_peer_that_was_stopped_shows_no_failure_of_ours() -> None:
    assert Row("P3", "1000 writes", 70.0, 60.0, 1.0, at_least=True).met is None
    assert Row("P3", "1000 writes", None, 60.0, 1.0).met is False


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = Result("today", "abc", {"cores": 2}, [SLOW, QUICK], {"doit": "1"})
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (replace(SLOW, ours=2.6), "slower !"),
        (replace(SLOW, ours=2.6, beside=1.3), "as before"),
        (replace(SLOW, ours=2.6, noise=0.4), "as before"),
        (replace(SLOW, ours=1.0), "quicker"),
        (replace(SLOW, ours=None), "failed now"),
    ],
    ids=["slower", "a slower hour of the machine", "less than the repetitions differ", "quicker", "failed"],
)
def test_results_are_compared_beyond_their_noise(after: Row, says: str) -> None:
    assert verdict(SLOW, after) == says


def test_a_comparison_names_every_row(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    Result("monday", "abc", {}, [SLOW, QUICK]).write(before)
    Result("tuesday", "def", {}, [replace(SLOW, ours=4.0), replace(QUICK, id="P2")]).write(after)
    lines = benchmark("compare", str(before), str(after)).splitlines()
    assert lines[1] == "P0 slow: 2.000 → 4.000 s, × 2.00: slower !"
    assert lines[2:] == ["P1 quick: only before", "P2 quick: only after"]

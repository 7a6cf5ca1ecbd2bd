"""The benchmarks run, and print what they have measured. Times are asserted nowhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.rows import Row, table


def benchmark(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True).stdout


def test_recovery_is_measured_beside_a_run_that_nothing_disturbs(user: Path) -> None:
    rows = json.loads(benchmark("recovery", "--sizes", "20", "--prefect", "0", "--repeat", "1", "--json"))
    assert [row["id"] for row in rows] == ["P9", "P10"]
    assert all(row["ours"] > 0 and row["beside"] > 0 for row in rows)
    recorded, in_flight, ran = map(int, re.findall(r"\d+", rows[0]["note"]))
    assert 0 < recorded < 20
    assert in_flight <= ran == 20 - recorded


def test_scripts_are_measured_beside_make(user: Path) -> None:
    rows = json.loads(benchmark("scripts", "--size", "5", "--no-qo", "--repeat", "1", "--json"))
    assert [row["workload"] for row in rows] == [
        "5 scripts, engine and journal",
        "5 scripts, started not tied",
        "5 scripts, started tied",
    ]
    assert all(row["ours"] > 0 and row["beside"] > 0 for row in rows)


def test_a_ratio_above_its_floor_is_marked() -> None:
    text = table([Row("P0", "slow", 2.0, 1.0, 1.5), Row("P1", "quick", 1.0, 2.0, 1.5)])
    assert [("!" in line) for line in text.splitlines()] == [False, True, False]


def test_a_second_run_is_measured_alone_where_there_is_no_peer(user: Path, prefect_server: object) -> None:
    (row,) = json.loads(benchmark("reuse", "--files", "3", "--doit", "", "--repeat", "1", "--json"))
    assert row["id"] == "P12"
    assert row["ours"] == row["beside"] > 0


def test_schedules_are_measured_beside_their_lower_bounds(tmp_path: Path, user: Path) -> None:
    deps = [("a", 1.0, []), ("b", 5.0, []), ("c", 2.0, ["a"]), ("d", 4.0, ["b"]), ("e", 1.0, ["c", "d"])]
    tasks = [{"id": name, "runtime": runtime, "deps": before} for name, runtime, before in deps]
    (tmp_path / "small.json").write_text(json.dumps({"tasks": tasks}))
    chosen = ("--graphs", str(tmp_path), "--workers", "2", "--real", "0.2", "--json")
    rows = {row["workload"]: row for row in json.loads(benchmark("scheduling", *chosen))}
    assert rows["small, 2 workers"]["ours"] == rows["small, 2 workers"]["beside"] == 10.0
    assert rows["small, 2 workers, really run"]["ours"] >= 0.2

"""The benchmarks run, and print what they have measured. Times are asserted nowhere."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any
from xml.etree import ElementTree

import pytest

from quantum_orchestrator.deployments import service
from tests.benchmarks import measure, obstacles, pages
from tests.benchmarks.bench import NOT_AGAIN, Bench, Way
from tests.benchmarks.compare import verdict
from tests.benchmarks.peers.catalogue import PEERS, Peer
from tests.benchmarks.peers.work import Kind, Work
from tests.benchmarks.plot import svg
from tests.benchmarks.rows import Result, Row, table

CHECKOUT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True).stdout


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


def test_schedules_are_measured_beside_their_lower_bounds(tmp_path: Path, user: Path) -> None:
    deps = [("a", 1.0, []), ("b", 5.0, []), ("c", 2.0, ["a"]), ("d", 4.0, ["b"]), ("e", 1.0, ["c", "d"])]
    tasks = [{"id": name, "runtime": runtime, "deps": before} for name, runtime, before in deps]
    (tmp_path / "small.json").write_text(json.dumps({"tasks": tasks}))
    chosen = ("--graphs", str(tmp_path), "--workers", "2", "--real", "0.2")
    rows = {row["workload"]: row for row in measured("scheduling", *chosen)}
    assert rows["small, 2 workers"]["ours"] == rows["small, 2 workers"]["beside"] == 10.0
    assert rows["exact durations, worst"]["floor"] == rows["exact durations, worst"]["ours"] == 1.0
    assert rows["small, 2 workers, really run"]["ours"] >= 0.2


SLOW, QUICK = Row("P0", "slow", 2.0, 1.0, 1.5), Row("P1", "quick", 1.0, 2.0, 1.5)


def test_a_ratio_above_its_target_is_marked() -> None:
    text = table([SLOW, QUICK])
    assert [("!" in line) for line in text.splitlines()] == [False, True, False]


def test_a_peer_that_was_stopped_or_failed_stays_in_the_table() -> None:
    stopped = Row("P3", "1000 writes", 1.0, 60.0, 1.0, peer="ansible", at_least=True)
    failed = Row("P3", "1000 writes", 1.0, None, 1.0, "exit code 1", peer="redun")
    lines = table([stopped, failed]).splitlines()
    assert "> 60.0 s" in lines[1]
    assert "< 0.017" in lines[1]
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
        (replace(SLOW, ours=2.6, beside=1.3), "within noise"),
        (replace(SLOW, ours=2.6, samples=(2.2, 2.6, 3.3)), "within noise"),
        (replace(SLOW, ours=1.0), "quicker"),
        (replace(SLOW, ours=None), "failed now !"),
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
    assert lines[1:] == [
        "P0 slow: 2.000 → 4.000 s, ratio 2.00 → 4.00, × 2.00 (noise 10%): slower !",
        "P1 quick: only before",
        "P2 quick: only after",
        "1 slower !",
    ]


MEASURED = Result(
    "today",
    "abc",
    {"cores": 2, "memory_gb": 8, "load": 0.1},
    [
        Row("P3", "1000 writes", 3.0, 2.0, 1.0, peer="DBOS", samples=(2.9, 3.2), floor=0.5),
        Row("P3", "1000 writes", 3.0, 40.0, 1.0, "scaled", peer="Snakemake", scaled_from=100),
        Row("P3", "1000 writes", 3.0, None, 1.0, "redun: not installed: no wheel", peer="redun"),
        *(Row("P5", f"qo run: {10**n}, time", 0.1 * 10**n, None, None) for n in (1, 2, 3)),
        *(Row("P5", f"qo run: {10**n}, memory", 50.0 + 10**n, None, None, unit="MB") for n in (1, 2, 3)),
    ],
)


def test_the_page_tells_what_is_not_met_what_was_scaled_and_what_failed() -> None:
    text = pages.page(MEASURED)
    assert "## Targets: 1 of 3 met" in text
    assert "| P3 | 1000 writes | 3.00 s (2×, 10%) | 2.00 s | DBOS | 1.50 | ≤ 1 | 0.500 s | **no** |" in text
    assert "\n- P3: Every run is a flow run in Prefect" in text
    assert "≈ 40.0 s | Snakemake" in text
    assert "redun: not installed: no wheel" in text


def test_where_the_floor_is_above_the_target_that_is_what_stands_in_the_way() -> None:
    row = Row("P8", "worst", 1.4, 1.0, 1.15, peer="lower bound", unit="×", floor=1.39)
    assert obstacles.measured(row) == "the floor itself is 1.39 × theirs"
    assert obstacles.measured(replace(row, floor=1.1, processor=2.0)) == "2.00 s of processor time, services included"


def test_the_readme_quotes_the_peers_that_matter_and_nothing_else_in_it_changes() -> None:
    readme = f"before\n{pages.BEGIN}\nolder\n{pages.END}\nafter\n"
    quoted = pages.with_quotation(readme, MEASURED)
    assert quoted.splitlines() == [
        "before",
        pages.BEGIN,
        "Seconds, today, 2 cores, 8 GB, a load of 0.1 when it began:",
        "",
        "| | **qo** | DBOS | Snakemake |",
        "| --- | --- | --- | --- |",
        "| 1000 writes | **3.00** | 2.00 | ≈ 40.0 |",
        pages.END,
        "after",
    ]
    assert pages.with_quotation(quoted, MEASURED) == quoted


def test_the_plot_has_a_point_for_each_size_and_straight_growth_is_a_straight_line() -> None:
    drawing = ElementTree.fromstring(svg(MEASURED))
    circles = [each for each in drawing.iter() if each.tag.endswith("circle")]
    assert len(circles) == 6
    x, y = ([float(each.attrib[name]) for each in circles[:3]] for name in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2)


def test_the_pages_are_what_the_kept_result_gives() -> None:
    docs = CHECKOUT / "docs"
    kept = Result.read(docs / "benchmarks.json")
    assert (docs / "benchmarks.md").read_text() == pages.page(kept)
    assert (docs / "benchmarks.svg").read_text() == svg(kept) + "\n"
    readme = (CHECKOUT / "README.md").read_text()
    assert readme == pages.with_quotation(readme, kept)


BARE = [peer for peer in PEERS if not peer.package and (peer.bare or which(peer.name))]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("peer", BARE, ids=lambda peer: peer.name)
def test_a_peer_does_the_work_and_a_byte_less_is_noticed(tmp_path: Path, peer: Peer, kind: Kind) -> None:
    work = Work(kind, 3)
    folder = work.prepare(tmp_path / "work")
    for name, text in peer.files(work).items():
        (folder / name).write_text(text)
    assert kind is Kind.SCRIPTS or work.fault(folder)
    done = measure.run(peer.command(Path("/usr/bin"), work), folder, dict(os.environ), 60)
    assert (done.fault, work.fault(folder)) == (None, None)
    if kind is not Kind.SCRIPTS:
        last = [*work.items()][-1][0]
        (folder / last).write_text((folder / last).read_text()[:-1])
        assert work.fault(folder)


def test_a_command_is_stopped_at_its_limit_with_all_that_it_has_started(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    variables = {"QO_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = measure.run(["sh", "-c", "setsid sleep 300 & sleep 300 & exec sleep 300"], folder, variables, 0.2)
    assert (done.code, done.seconds, done.fault) == (None, 0.2, "stopped at the time limit")
    for _ in range(100):  # until the killed ones are gone
        if not measure.serving(tmp_path):
            return
        time.sleep(0.05)
    raise AssertionError(measure.serving(tmp_path))


def test_processor_time_and_memory_are_those_of_all_processes(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    busy = "import time; held = bytearray(80_000_000)\nwhile time.process_time() < 0.5: pass"
    command = ["sh", "-c", f"{sys.executable} -c '{busy}'; true"]
    done = measure.run(command, folder, dict(os.environ), 60, memory_of=tmp_path)
    assert done.processor >= 0.5
    assert done.memory > 80


def test_the_first_line_on_a_terminal_is_timed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    done = measure.run(["sh", "-c", "test -t 1 && echo here; sleep 0.3"], folder, dict(os.environ), 60, terminal=True)
    assert done.said.strip() == "here"
    assert done.first_line is not None
    assert done.first_line < done.seconds


def test_ours_is_measured_beside_others_as_a_whole(user: Path, prefect_server: str) -> None:
    chosen = ("--only", "P3,P4", "--sizes", "3", "--repeat", "1", "--peers", "bare", "--pause", "0")
    try:
        rows = measured("engines", *chosen, "--home", os.environ["QO_HOME"])
    finally:
        service.stop(Path(os.environ["QO_HOME"]))
    assert [(row["id"], row["peer"], row["note"]) for row in rows] == [
        ("P3", "qo, no service", ""),
        ("P3", "bare loop", ""),
        ("P3", "bare loop, fsync each", ""),
        ("P3", "bare loop, one syncfs", ""),
        ("P4", "bare loop, one syncfs", ""),
    ]
    assert all(row["ours"] > 0 and row["beside"] > 0 and row["processor"] > 0 for row in rows)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(
        tmp_path, tmp_path / "home", argparse.Namespace(limit=0.3, repeat=3, pause=0.0, keep=tmp_path / "kept")
    )


def shell(text: str) -> Way:
    return Way(text, lambda _folder, _work: (["sh", "-c", text], dict(os.environ)))


def test_repetitions_have_new_folders_and_take_turns(bench: Bench) -> None:
    one, other = shell(f"pwd >> {bench.folder}/log; true"), shell(f"pwd >> {bench.folder}/log; : other")
    found = bench.trials([one, other], Work(Kind.SCRIPTS, 1))
    assert [len(trials.found) for trials in found.values()] == [3, 3]
    assert len(set((bench.folder / "log").read_text().split())) == 6


def test_who_is_over_the_limit_is_not_tried_again_with_more(bench: Bench) -> None:
    slow = shell(f"echo >> {bench.folder}/log; sleep 9")
    for _ in range(2):
        trials = bench.trials([slow], Work(Kind.SCRIPTS, 1))[slow.name]
        assert (trials.stopped, trials.median()) == (True, 0.3)
    assert trials.note == NOT_AGAIN
    assert (bench.folder / "log").read_text() == "\n"


def test_work_that_was_not_done_is_a_failure(bench: Bench) -> None:
    idle, broken = shell("true"), shell("echo it broke; exit 3")
    found = bench.trials([idle, broken], Work(Kind.WRITES, 1))
    assert found[idle.name].fault == "folder-0/file-0 is not what should be written"
    assert found[broken.name].fault == "exit code 3: it broke"
    assert found[idle.name].median() is None


def test_who_runs_a_script_less_is_found_out_before(bench: Bench) -> None:
    bench.limit = 30.0
    program = f"{CHECKOUT}/tests/benchmarks/peers/programs/bare.py"
    able, idle = shell(f"{sys.executable} {program} plain"), shell("true")
    bench.check_scripts([able, idle])
    found = bench.trials([able, idle], Work(Kind.SCRIPTS, 1), 1)
    assert [found[way.name].fault for way in (able, idle)] == [None, "of 3 scripts, 0 have run"]


def test_who_gets_less_of_the_work_is_scaled_by_what_an_item_takes(bench: Bench) -> None:
    slow = replace(shell("sleep 0.0$(grep -o content work.json | wc -l)"), most=5)
    trials = bench.trials([slow], Work(Kind.SCRIPTS, 50), 1)[slow.name]
    assert (trials.asked, trials.given, trials.scaled_from) == (50, 5, 5)
    measured = trials.of(lambda each: each.seconds)
    assert measured is not None
    assert trials.median() == pytest.approx(trials.start + (measured - trials.start) * 10)
    assert trials.told() == f"scaled: 5 took {measured:.1f} s, one {trials.start:.1f} s"


def test_an_interrupted_benchmark_goes_on_with_what_it_has_measured(bench: Bench, tmp_path: Path) -> None:
    counting = shell(f"echo >> {tmp_path}/log")
    first = bench.trials([counting], Work(Kind.SCRIPTS, 1))[counting.name]
    with (tmp_path / "kept").open("a") as kept:
        kept.write('{"key": ["torn')
    options = argparse.Namespace(limit=0.3, repeat=4, pause=0.0, keep=tmp_path / "kept")
    again = Bench(tmp_path / "again", tmp_path / "home", options).trials([counting], Work(Kind.SCRIPTS, 1))
    assert again[counting.name].seconds[:3] == first.seconds
    assert len([json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()]) == 4
    assert (tmp_path / "log").read_text() == "\n" * 4


def test_who_writes_again_what_is_unchanged_has_not_found_that_out(bench: Bench) -> None:
    script = f"{sys.executable} {CHECKOUT}/tests/benchmarks/peers/programs/bare.py plain"
    again, once = shell(script), shell(f"test -e done || {script}; touch done")
    bench.limit = 30.0
    found = bench.trials([again, once], Work(Kind.WRITES, 2), 1, twice=True)
    assert found[again.name].fault == "did again what was done"
    assert found[once.name].fault is None


def test_who_only_looks_must_change_nothing(bench: Bench) -> None:
    looking = replace(shell("true"), looks=True)
    writing = replace(shell("echo > folder-0/file-0"), looks=True)
    found = bench.trials([looking, writing], Work(Kind.WRITES, 1), 1)
    assert [found[way.name].fault for way in (looking, writing)] == [None, "changed something"]


def test_planning_is_measured_without_prefect(user: Path) -> None:
    rows = measured("planning", "--only", "P11", "--size", "3", "--repeat", "1", "--pause", "0")
    assert [(row["workload"], row["note"]) for row in rows] == [
        (f"qo {name} of 3", "processor time; Prefect is not imported") for name in ("validate", "plan")
    ]
    assert all(row["ours"] > 0 for row in rows)

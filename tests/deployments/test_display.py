"""What is said of a run: while it happens, and afterwards."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.deployments.display import RunView, output_lines, run_lines, step_lines
from quantum_orchestrator.deployments.screen import Screen, aligned, human_time, plural, visible
from quantum_orchestrator.flows.results import EventKind, RunEvent, StepResult, StepStatus


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def started(step: str, op: str = "file.write") -> RunEvent:
    return RunEvent(EventKind.STEP_STARTED, step, op)


def finished(
    step: str, seconds: float = 0.012, status: StepStatus = StepStatus.SUCCEEDED, message: str = ""
) -> RunEvent:
    return RunEvent(EventKind.STEP_FINISHED, step, "file.write", message, status, seconds)


class TestWords:
    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0, "0 ms"),
            (0.0124, "12 ms"),
            (0.9999, "1.0 s"),
            (1.24, "1.2 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 00 s"),
            (185, "3 min 05 s"),
            (7805, "2 h 10 min"),
        ],
    )
    def test_durations(self, seconds: float, said: str) -> None:
        assert human_time(seconds) == said

    def test_counts(self) -> None:
        assert (plural(1, "step"), plural(0, "step"), plural(2, "step")) == ("1 step", "0 steps", "2 steps")

    def test_columns_stand_under_each_other(self) -> None:
        assert aligned([["a", "bb", "c"], ["aaa", "b"]], "> ") == ["> a    bb  c", "> aaa  b"]

    def test_what_steers_a_terminal_is_made_visible(self) -> None:
        assert visible("a\x1b[31mb\r\x9b\x7f\u202ec\n\t") == "a␛[31mb␍\N{REPLACEMENT CHARACTER}␡\\u202ec\n\t"


class TestRunView:
    def test_a_finished_step_is_one_line(self) -> None:
        view = RunView(2, {"write": "src/a.py"})
        assert view.observe(started("write")) == []
        assert view.observe(finished("write")) == [("✓ write  file.write src/a.py  12 ms", "green")]

    def test_a_failure_says_why_and_a_skipped_step_that_it_was(self) -> None:
        view = RunView(2)
        lines = view.observe(finished("write", 1.5, StepStatus.FAILED, "disk full\nreally"))
        assert [text for text, _ in lines] == ["✗ write  file.write  1.5 s", "  disk full", "  really"]
        assert view.observe(finished("other", 0, StepStatus.SKIPPED))[0][0] == "- other  file.write  skipped"

    def test_what_runs_now_is_known_with_how_long(self) -> None:
        clock = Clock()
        view = RunView(3, clock=clock)
        view.observe(started("a"))
        clock.now = 2.0
        view.observe(started("b", "script.run"))
        assert view.now() == ["a  file.write  2.0 s", "b  script.run  0 ms"]
        view.observe(finished("a"))
        assert view.now() == ["b  script.run  0 ms"]

    def test_of_many_that_run_the_first_are_named(self) -> None:
        view = RunView(20, clock=Clock())
        for number in range(12):
            view.observe(started(f"s{number}"))
        assert (len(view.now()), view.now()[-1]) == (9, "… and 4 more")

    def test_the_time_left_is_guessed_from_what_was_done(self) -> None:
        clock = Clock()
        view = RunView(10, clock=clock)
        clock.now = 4.0
        view.observe(finished("a"))
        assert view.counted() == "1 of 10, 4.0 s"
        for step in "bcd":
            view.observe(finished(step))
        assert view.counted() == "4 of 10, 4.0 s, about 6.0 s left"

    def test_steps_that_were_not_planned_raise_the_total(self) -> None:
        view = RunView(1)
        for step in "abc":
            view.observe(started(step))
        view.observe(finished("a"))
        assert (view.done, view.total) == (1, 3)

    def test_what_is_echoed_is_shown_and_other_output_only_on_demand(self) -> None:
        spoken = RunEvent(EventKind.LOG, "hi", "echo", "hello")
        output = RunEvent(EventKind.LOG, "build", "script.run", "gcc -c a.c")
        assert RunView(1).observe(spoken) == [("  hi: hello", "")]
        assert RunView(1).observe(output) == []
        assert RunView(1, verbose=True).observe(output) == [("  build: gcc -c a.c", "")]

    def test_retries_and_the_rollback_are_told(self) -> None:
        view = RunView(1)
        assert (
            view.observe(RunEvent(EventKind.STEP_RETRIED, "a", "script.run", "try 2"))[0][0] == "↻ a  script.run  try 2"
        )
        assert view.observe(RunEvent(EventKind.ROLLING_BACK)) == [("↶ rolling back", "yellow")]
        assert view.counted() == "rolling back"


DOCUMENT: dict[str, Any] = {
    "run_id": "20260102-030405-1a2b3c",
    "set": "tour",
    "status": "rolled_back",
    "duration_s": 1.234,
    "diff": {"files": 0, "insertions": 0, "deletions": 0},
    "steps": [
        {"id": "a", "op": "file.write", "status": "rolled_back", "attempts": 1, "duration_s": 0.01, "error": None},
        {
            "id": "build",
            "op": "script.run",
            "status": "failed",
            "attempts": 3,
            "duration_s": 1.2,
            "error": {"type": "OperationError", "message": "exit code 1", "hint": "see its output"},
        },
        {"id": "b", "op": "echo", "status": "skipped", "attempts": 0, "duration_s": 0, "error": None},
    ],
    "ui_url": "http://127.0.0.1:4200/runs/flow-run/1",
}


class TestAfterwards:
    def test_the_end_in_a_line_and_where_to_look(self) -> None:
        assert [text for text, _ in run_lines(DOCUMENT)] == [
            "rolled back: run 20260102-030405-1a2b3c of 'tour', 0 files changed (+0 −0) in 1.2 s",
            "http://127.0.0.1:4200/runs/flow-run/1",
        ]

    def test_the_steps_as_a_table_with_errors_below(self) -> None:
        assert step_lines(DOCUMENT["steps"]) == [
            "  ↶ a      file.write  rolled back  10 ms",
            "  ✗ build  script.run  failed       1.2 s  3 tries",
            "    error: exit code 1",
            "    hint: see its output",
            "  - b      echo        skipped",
        ]


class TestScreen:
    def test_results_and_the_rest_go_to_different_streams(self, capfd: pytest.CaptureFixture[str]) -> None:
        screen = Screen()
        screen.result("result", "bold")
        screen.note("note")
        screen.problem("bad", "mend it")
        sys.stdout.flush()
        assert capfd.readouterr() == ("result\n", "note\nerror: bad\nhint: mend it\n")

    def test_quiet_keeps_errors(self, capfd: pytest.CaptureFixture[str]) -> None:
        screen = Screen(quiet=True)
        screen.note("note")
        screen.problem("bad")
        assert capfd.readouterr().err == "error: bad\n"

    def test_a_name_that_is_no_text_can_be_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        screen = Screen()
        screen.document({"path": os.fsdecode(b"a\xff")})
        sys.stdout.flush()
        assert capfd.readouterr().out == '{\n  "path": "a\\udcff"\n}\n'

    @pytest.mark.parametrize(
        ("color", "variable", "colored"),
        [(True, None, True), (False, None, False), (True, "NO_COLOR", False)],
    )
    def test_colors_only_where_they_are_wanted(
        self, monkeypatch: pytest.MonkeyPatch, color: bool, variable: str | None, colored: bool
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm")
        if variable:
            monkeypatch.setenv(variable, "1")
        screen = Screen(color=color)
        assert screen.colors(Terminal()) is colored
        assert screen.colors(io.StringIO()) is False

    def test_a_reader_of_what_happens_may_leave_without_ending_the_run(self, tmp_path: Path) -> None:
        script = (
            "import sys, time\n"
            "from quantum_orchestrator.deployments.screen import Screen\n"
            "screen = Screen()\n"
            "for number in range(200):\n"
            "    screen.note('x' * 1000)\n"
            "screen.result('committed')\n"
        )
        command = f'{{ "{sys.executable}" -c "$SCRIPT" 2>&1 >"{tmp_path}/out"; }} | head -c 1'
        done = subprocess.run(
            ["sh", "-c", command], env={**os.environ, "SCRIPT": script}, capture_output=True, text=True
        )
        assert done.stdout == "x"
        assert (tmp_path / "out").read_text() == "committed\n"


class TestOutputs:
    def test_what_says_nothing_is_left_out(self) -> None:
        outputs = {"exit_code": 0, "stderr": "", "changed": [], "more": None, "names": {}, "clean": False}
        assert output_lines(outputs) == ["exit_code: 0", "clean: false"]

    def test_a_text_of_several_lines_stands_below_its_name(self) -> None:
        assert output_lines({"stdout": "a\nb\n", "one": "c\n"}) == ["stdout:", "  a", "  b", "one: c"]

    def test_a_long_one_is_cut_with_a_hint(self) -> None:
        *_, last, hint = output_lines({"stdout": "\n".join(map(str, range(100)))})
        assert (last, hint) == ("  19", "  … and 240 more characters: `qo show --json` has them")
        _, line, hint = output_lines({"paths": ["x" * 5000]})
        assert (len(line), hint) == (2002, "  … and 3,004 more characters: `qo show --json` has them")

    def test_they_are_shown_when_the_step_ends_if_that_is_asked_for(self) -> None:
        event = RunEvent.finished(StepResult("s", "echo", StepStatus.SUCCEEDED, outputs={"message": "hello"}))
        assert RunView(1, outputs=True).observe(event)[1:] == [("  message: hello", "")]
        assert RunView(1).observe(event)[1:] == []

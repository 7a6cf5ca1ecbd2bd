"""`--json-stream` and `--follow`, against a real server: what is said of a run while it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

import pytest
from commands import GONE, LONG, LOUD, NOTE, SHIP, SIGN, Qo, Running, Said, eventually, script
from without_prefect import alone, whole

pytestmark = alone

Event = dict[str, Any]
SAYS = script("echo out; echo err >&2", step="says", needs=["note"])


def events(said: Said) -> list[Event]:
    return [json.loads(line) for line in said.out.splitlines()]


def story(said: Said) -> list[str]:
    """Kinds and steps, without the lines that steps say."""
    told = events(said)
    return [f"{each['event']} {each.get('step', '')}".rstrip() for each in told if each["event"] != "log"]


def end_of(step: str, said: Said) -> Event:
    (found,) = [each for each in events(said) if (each["event"], each.get("step")) == ("step_finished", step)]
    return found


class TestJsonLines:
    @whole
    def test_steps_are_told_in_their_order_and_the_last_line_has_the_document(self, qo: Qo) -> None:
        said = qo("run", qo.set(NOTE, SAYS), "--json-stream").exits(0)
        assert story(said) == [
            "run_started",
            "step_started note",
            "step_finished note",
            "step_started says",
            "step_finished says",
            "run_finished",
        ]
        first, *_, last = events(said)
        assert (first["set"], first["workspace"], first["steps"]) == ("test", str(qo.work), 2)
        assert (last["status"], last["run"]) == ("committed", qo("show", "--json").json)
        assert {each["run_id"] for each in events(said)} == {last["run"]["run_id"]}
        times = [datetime.fromisoformat(each["time"]) for each in events(said)]
        assert times == sorted(times)

    def test_the_end_of_a_step_says_what_the_document_says_of_it(self, qo: Qo) -> None:
        said = qo("run", qo.set(NOTE, SAYS, cache=True), "--json-stream").exits(0)
        for step in events(said)[-1]["run"]["steps"]:
            end = end_of(step["id"], said)
            assert step == {"id": end["step"]} | {name: end[name] for name in step if name != "id"}
        assert end_of("says", said)["outputs"]["stdout"] == "out\n"
        again = qo("run", qo.set(NOTE, SAYS, cache=True), "--json-stream").exits(0)
        assert end_of("note", again)["status"] == "reused"
        assert end_of("note", again)["reason"].startswith("inputs unchanged since run ")

    def test_a_line_is_there_while_the_run_goes_on(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG), "--json-stream")
        eventually(lambda: '"step_started"' in running.out and '"long"' in running.out, lambda: running.err)
        assert '"event": "step_finished"' in running.out
        said = running.ctrl_c().ended().exits(130)
        assert story(said)[-2:] == ["rolling_back", "run_finished"]
        assert events(said)[-1]["status"] == "cancelled"

    @whole
    def test_a_failure_is_told_with_its_error_and_then_the_rollback(self, qo: Qo) -> None:
        said = qo("run", qo.set(NOTE, {**GONE, "needs": ["note"], "retries": 1}), "--json-stream").exits(1)
        assert story(said)[-5:] == [
            "step_started gone",
            "step_retried gone",
            "step_finished gone",
            "rolling_back",
            "run_finished",
        ]
        end = end_of("gone", said)
        assert (end["status"], end["outputs"], end["attempts"]) == ("failed", None, 2)
        assert end["error"] == events(said)[-1]["run"]["error"]
        assert [step["status"] for step in events(said)[-1]["run"]["steps"]] == ["rolled_back", "failed"]

    def test_what_never_runs_is_told_in_the_last_line_alone(self, qo: Qo) -> None:
        bad = qo.set({"id": "x", "op": "file.wirte", "with": {}})
        for arguments in (["run", bad], ["run", "absent.json"], ["resume"], ["approve"]):
            as_document = qo(*arguments, "--json").exits(3).json
            (only,) = events(qo(*arguments, "--json-stream").exits(3))
            assert (only["event"], only["status"], only["run"]) == ("run_finished", as_document["status"], as_document)
        (only,) = events(qo("run", bad, "--json-stream", "--bogus").exits(3))
        assert "--bogus" in only["run"]["errors"][0]["message"]

    @pytest.mark.parametrize("other", ["--json", "--diff", "--check"])
    def test_nothing_else_is_printed_beside_it(self, qo: Qo, other: str) -> None:
        qo("run", qo.set(NOTE), "--json-stream", other).exits(3).says(f"--json-stream and {other} exclude each other")
        assert qo.files == {}

    @whole
    def test_every_member_of_a_batch_has_a_line(self, qo: Qo) -> None:
        steps = [
            {"id": f"w{n}", "op": "file.write", "with": {"path": f"f{n}", "content": f"{n}\n"}} for n in range(200)
        ]
        said = qo("run", qo.set(*steps), "--json-stream").exits(0)
        document = events(said)[-1]["run"]
        ends = {each["step"]: each for each in events(said) if each["event"] == "step_finished"}
        assert story(said).count("step_finished w0") == 1
        assert {step: end["outputs"] for step, end in ends.items()} == {
            step["id"]: step["outputs"] for step in document["steps"]
        }

    def test_a_run_that_waits_and_goes_on_tells_each_step_once(self, qo: Qo) -> None:
        first = qo("run", qo.set(NOTE, {**SIGN, "needs": ["note"]}, SHIP), "--json-stream").exits(5)
        assert story(first)[-2:] == ["awaiting_approval sign", "run_finished"]
        rest = qo("approve", "--json-stream").exits(0)
        assert "step_started note" not in story(rest)
        assert {"step_finished sign", "step_finished ship"} <= set(story(rest))
        assert events(rest)[-1]["run"] == qo("show", "--json").json

    def test_a_resumed_run_tells_what_is_left(self, qo: Qo) -> None:
        gone = {**GONE, "needs": ["note"]}
        qo("run", qo.set(NOTE, gone, {**LOUD, "needs": ["gone"]}, on_failure="pause"), "--json-stream").exits(4)
        (qo.work / "missing.txt").touch()
        said = qo("resume", "--json-stream").exits(0)
        assert [each for each in story(said) if each.startswith("step_finished")] == [
            "step_finished gone",
            "step_finished loud",
        ]
        assert events(said)[-1]["status"] == "committed"


class TestAReaderThatGoesAway:
    @contextmanager
    def reading(self, qo: Qo, *steps: object) -> Iterator[tuple[Running, IO[str]]]:
        """A run whose standard output goes into a pipe, and the pipe's other end."""
        read, write = os.pipe()
        with open(read) as lines:
            running = qo.begins("run", qo.set(*steps), "--json-stream", out=f"/proc/{os.getpid()}/fd/{write}")
            running.until("checking")  # so it has the pipe
            os.close(write)
            yield running, lines

    @whole
    def test_the_run_goes_on_to_its_end(self, qo: Qo) -> None:
        slow = script("sleep 0.3", step="slow", needs=["note"])
        with self.reading(qo, NOTE, slow, {**SHIP, "needs": ["slow"]}) as (running, lines):
            assert json.loads(lines.readline())["event"] == "run_started"
        said = running.ended().exits(141)
        assert "BrokenPipe" not in said.err
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "yes\n"}
        assert qo("show", "--json").json["status"] == "committed"

    def test_one_that_reads_nothing_does_not_hold_it_up(self, qo: Qo) -> None:
        large = script("head -c 300000 /dev/zero | tr '\\0' x", step="large", needs=["note"])  # more than a pipe holds
        with self.reading(qo, NOTE, large, {**SHIP, "needs": ["large"]}) as (running, lines):
            running.until("✓ ship")
            last = [json.loads(line) for line in lines][-1]
        running.ended().exits(0)
        assert last["status"] == "committed"


class TestFollowing:
    def test_what_a_step_gives_is_shown_below_it(self, qo: Qo) -> None:
        many = script("seq 100; echo one >&2", step="many", needs=["note"])
        said = qo("run", qo.set(NOTE, many), "--follow").exits(0)
        said.says("\n  stdout:\n    1\n    2\n").says(
            "\n    20\n    … and 241 more characters: `qo show --json` has them\n"
        )
        said.says("\n  stderr: one\n").says("\n  exit_code: 0\n")
        assert "\n    21\n" not in said.err
        assert said.out.startswith("committed: run ")

    def test_resume_and_approve_show_it_as_well(self, qo: Qo) -> None:
        shows = script("echo shown", needs=["sign"])
        qo("run", qo.set(NOTE, SIGN, shows), "--follow").exits(5)
        qo("approve", "--follow").exits(0).says("\n  stdout: shown\n")

    def test_without_it_outputs_are_not_shown(self, qo: Qo) -> None:
        assert "stdout" not in qo("run", qo.set(NOTE, SAYS)).exits(0).err

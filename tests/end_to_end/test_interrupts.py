"""Ctrl-C, SIGTERM and a second Ctrl-C at every moment of a run: what is undone and said, and that nothing lives on.

A `qo` of these tests has a session and a process group of its own, as it has in a terminal. The processes that a script
starts are known by their environment, which holds the TMPDIR of the test.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import LONG, NOTE, QO, SHIP, Qo, Running, Said, eventually, processes_with, script, tree
from effort import ordinarily
from without_prefect import alone

STUBBORN = script(
    "trap '' TERM INT; (sleep 61 & setsid sleep 62 &); echo x > made.txt; sleep 63 & while :; do sleep 0.2; done",
    needs=["note"],
)
"""Ignores what it is asked, and leaves children in the background, one of them in a session of its own."""
SLOW_UNDO = {**NOTE, "undo": {"id": "slow-undo", "op": "script.run", "with": {"shell": "touch ../undoing; sleep 1"}}}

Act = Callable[[Running], Running]
ACTS: dict[str, Act] = {
    "Ctrl-C at the terminal": Running.ctrl_c,
    "SIGINT": lambda running: running.signal(signal.SIGINT),
    "SIGTERM": lambda running: running.signal(signal.SIGTERM),
}
every_act = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


def begin_stubborn(qo: Qo) -> Running:
    running = qo.begins("run", qo.set(NOTE, STUBBORN), environment={"TMPDIR": str(qo.folder)})
    eventually((qo.work / "made.txt").exists)
    eventually(lambda: len(scripts_of(qo)) >= 4, lambda: running.err)
    return running


def scripts_of(qo: Qo) -> list[int]:
    return processes_with(f"TMPDIR={qo.folder}")


def is_cancelled(qo: Qo) -> bool:
    return bool(qo("status", "--json").exits(0).json["status"] == "cancelled")


class TestOnce:
    @every_act
    def test_a_script_that_ignores_it_ends_with_all_of_its_children(self, qo: Qo, act: Act) -> None:
        said = act(begin_stubborn(qo)).ended(within=10).exits(130)
        assert scripts_of(qo) == []
        assert tree(qo.work) == {}
        said.prints("cancelled: run ").prints("0 files changed").says("rolling back")
        assert is_cancelled(qo)
        qo("run", qo.set(SHIP)).exits(0)

    @every_act
    @alone
    def test_a_wait_ends_at_once(self, qo: Qo, act: Act) -> None:
        (qo.work / "note.txt").write_text("before\n")
        before = tree(qo.work)
        running = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        began = time.monotonic()
        act(running).ended(within=10).exits(130)
        assert time.monotonic() - began < 5
        assert tree(qo.work) == before
        assert is_cancelled(qo)

    def test_between_two_steps(self, qo: Qo) -> None:
        steps = [script(f"echo {n} > {n}.txt", step=f"s{n}", needs=[f"s{n - 1}"] if n else []) for n in range(200)]
        qo.begins("run", qo.set(*steps)).until("✓ s2 ").ctrl_c().ended(within=15).exits(130)
        assert tree(qo.work) == {}
        document = qo("show", "--json").exits(0).json
        assert {step["status"] for step in document["steps"]} <= {"rolled_back", "skipped"}

    @alone
    def test_the_document_says_cancelled(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG), "--json").until("✓ note")
        document = running.ctrl_c().ended().exits(130).json
        assert (document["status"], document["diff"]["files"]) == ("cancelled", 0)
        assert [step["status"] for step in document["steps"]] == ["rolled_back", "rolled_back"]


class TestBeforeTheRunBegins:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("delay", ordinarily([0.0, 0.1, 0.2], nightly=[0.0, 0.05, 0.1, 0.15, 0.2, 0.3]))
    def test_no_moment_leaves_anything_unsettled(self, qo: Qo, delay: float, number: int) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG)).until("running 'test'")
        time.sleep(delay)
        running.signal(number).ended(within=10).exits(130)
        assert tree(qo.work) == {}
        assert qo("status", "--json").exits(0).json["status"] in ("idle", "cancelled")

    @pytest.mark.parametrize("delay", [0.3, 1.0])
    def test_while_prefect_is_imported(self, qo: Qo, delay: float) -> None:
        process = subprocess.Popen(
            [*QO, "run", qo.set(NOTE, LONG), "--json"],
            cwd=qo.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        Said(process.returncode, out, err).exits(130).prints('"status": "cancelled"')  # it may have begun by then
        assert tree(qo.work) == {}

    @every_act
    @alone
    def test_while_it_waits_for_the_workspace(self, qo: Qo, act: Act) -> None:
        first = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        second = qo.begins("run", qo.set(SHIP)).until("waiting for another run")
        began = time.monotonic()
        act(second).ended(within=10).exits(130).says("error: interrupted")
        assert time.monotonic() - began < 2
        qo("status").exits(0).prints("is running\n")
        first.ctrl_c().ended().exits(130)
        assert qo("history", "--json").exits(0).json["runs"][1:] == [], "the second never began"


class TestTwice:
    def settle(self, qo: Qo, said: str) -> None:
        """Do what the message says."""
        command = re.search(r"`qo (rollback \S+)` undoes what was done", said)
        assert command, said
        qo("status").exits(0).prints(" interrupted\n").prints(f"next: qo {command[1]}\n")
        qo("run", qo.set(SHIP)).exits(4).says("died before its end")
        qo(*command[1].split()).exits(0).prints("rolled back: run ")
        assert tree(qo.work) == {}

    def test_it_ends_at_once_and_rollback_does_the_rest(self, qo: Qo) -> None:
        running = begin_stubborn(qo).ctrl_c()
        time.sleep(0.1)
        began = time.monotonic()
        said = running.ctrl_c().ended().exits(130)
        assert time.monotonic() - began < 1
        eventually(lambda: scripts_of(qo) == [], within=10)
        self.settle(qo, said.err)

    def test_during_the_rollback(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(SLOW_UNDO, LONG)).until("✓ note").ctrl_c()
        eventually((qo.folder / "undoing").exists)
        said = running.ctrl_c().ended(within=5).exits(130).says("rolling back")
        self.settle(qo, said.err)

    @alone
    def test_the_message_names_the_workspace_where_it_must(self, qo: Qo, tmp_path: Path) -> None:
        there = tmp_path / "over there"
        running = qo.begins("run", qo.set(NOTE, STUBBORN), "--workspace", str(there))
        eventually((there / "made.txt").exists)
        running.ctrl_c()
        time.sleep(0.1)
        running.ctrl_c().ended().exits(130).says(f" --workspace '{there}'` undoes what was done")
        qo("rollback", "--workspace", str(there)).exits(0)
        assert tree(there) == {}

"""The commands that run sets, against a real server: what they print, what they exit with, what they leave behind."""

from __future__ import annotations

import json
import signal

from commands import GONE, LONG, LOUD, NOTE, SHIP, SIGN, Qo
from without_prefect import alone, whole

pytestmark = alone


class TestARunThatCommits:
    @whole
    def test_its_story_from_run_to_rollback(self, qo: Qo) -> None:
        said = qo("run", qo.set(NOTE, LOUD), "--diff").exits(0)
        said.prints("of 'test', 1 file changed (+2 −0) in ").prints("/runs/flow-run/").prints("\n+HELLO\n")
        said.says("✓ note  file.write note.txt  ").says("✓ loud  file.append note.txt  ")
        assert qo.files == {"note.txt": "hello\nHELLO\n"}
        run_id = said.out.removeprefix("committed: run ").split()[0]

        qo("status").exits(0).prints(f"{qo.work}: run {run_id} of 'test' committed\n  next: qo diff {run_id}\n")
        qo("history").exits(0).prints("RUN ").prints(run_id).prints("committed")
        qo("show", run_id).exits(0).prints("  ✓ note  file.write   succeeded  ")
        qo("diff", run_id[:15]).exits(0).prints("+++ b/note.txt\n@@ -0,0 +1,2 @@\n+hello\n+HELLO\n")
        qo("diff", run_id, "--step", "loud").exits(0).prints(" hello\n+HELLO\n")
        qo("diff", "--stat").exits(0).prints("  note.txt  +2 −0\n1 file changed (+2 −0)\n")
        qo("logs").exits(0).prints("step_finished succeeded note\n").prints("run_finished")
        for command in ("status", "show", "diff"):
            assert qo(command, "--json").exits(0).json["run_id"] == run_id
        assert qo("history", "--json").exits(0).json["runs"][0]["run_id"] == run_id
        qo("cancel").exits(3).says("nothing is at work")
        qo("resume", run_id).exits(3).says("is committed: there is nothing to go on with")

        qo("rollback", run_id, "--check").exits(0).prints("# rolling back run").prints("\n-HELLO\n")
        assert qo.files == {"note.txt": "hello\nHELLO\n"}
        qo("rollback", run_id).exits(0).prints(f"rolled back: run {run_id}, 1 path put back\n")
        assert qo.files == {}
        qo("rollback", run_id).exits(3).says("has been rolled back already")
        qo("show").exits(0).prints("  ↶ note  file.write   rolled back")
        assert qo("diff").exits(0).out == ""

    @whole
    def test_json_is_the_runs_document_and_nothing_else(self, qo: Qo) -> None:
        document = qo("run", qo.set(NOTE), "--json", "-q").exits(0).json
        assert set(document) >= {"run_id", "set", "status", "duration_s", "steps", "diff", "flow_run_id", "ui_url"}
        assert set(document["steps"][0]) == {"id", "op", "status", "attempts", "duration_s", "outputs", "error"}
        assert (document["status"], document["diff"]["files"]) == ("committed", 1)
        assert qo("show", "--json").exits(0).json == document

    def test_quiet_says_only_the_result(self, qo: Qo) -> None:
        assert qo("run", qo.set(NOTE), "-q").exits(0).err == ""

    def test_a_set_from_standard_input_in_a_workspace_that_is_made(self, qo: Qo) -> None:
        document = json.dumps({"name": "piped", "workspace": "build/here", "instructions": [NOTE]})
        qo("run", "-", stdin=document).exits(0).prints("of 'piped'")
        assert (qo.work / "build/here/note.txt").read_text() == "hello\n"
        qo("show", "--workspace", "build/here").exits(0).prints("of 'piped'")
        run_id = qo("history", "--workspace", "build/here", "--json").json["runs"][0]["run_id"]
        qo("show", run_id).exits(3).says(f"hint: it is in another one: --workspace {qo.work}/build/here")

    def test_a_plan_is_run_as_it_was_made(self, qo: Qo) -> None:
        file = qo.set(NOTE)
        qo("plan", file, "-o", "../p.plan").exits(0)
        qo.set(SHIP)
        qo("run", "--plan", "../p.plan").exits(0).prints("committed")
        assert qo.files == {"note.txt": "hello\n"}
        qo("run", "--plan", "../p.plan").exits(4).says("the workspace has moved on since the plan was made: note.txt")


CHOICES: tuple[tuple[str, ...], ...] = ((), ("--no-cache",), ("--force", "note"))


class TestASecondRun:
    def test_it_reuses_what_has_not_changed_unless_told_otherwise(self, qo: Qo) -> None:
        again = qo.set(NOTE, cache=True)

        def how(*options: str) -> tuple[str, str]:
            (step,) = qo("run", again, "--json", *options).exits(0).json["steps"]
            return step["status"], step.get("reason", "")

        first = qo("run", again, "--json").exits(0).json["run_id"]
        assert how() == ("reused", f"inputs unchanged since run {first}")
        planned = {option: qo("run", again, "--check", *option).exits(0).out for option in CHOICES}
        assert "✓ note  file.write note.txt  reused: inputs unchanged" in planned[()]
        assert "reused" not in planned[("--no-cache",)] + planned[("--force", "note")]
        qo("run", again, "--check", "--force", "noet").exits(3).says("did you mean 'note'?")
        assert how("--no-cache") == ("succeeded", "")
        assert how("--force", "note") == ("succeeded", "forced")
        said = qo("run", again).exits(0).prints("0 files changed")
        said.says("✓ note  file.write note.txt  reused: inputs unchanged since run ")
        qo("show").exits(0).prints("✓ note  file.write  reused: inputs unchanged since run ")
        (qo.work / "note.txt").unlink()
        qo("plan", again, "--explain").exits(0).prints("# note runs: note.txt is gone\n")

    def test_one_with_nothing_to_do_needs_no_server(self, qo: Qo) -> None:
        again = qo.set(NOTE, SHIP, cache=True)
        qo("run", again).exits(0)
        before = qo.files
        nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
        said = qo("run", again, "--json", environment=nowhere).exits(0)
        document = said.says("nothing to do for 'test'").json
        assert (document["status"], document["flow_run_id"], document["ui_url"]) == ("committed", None, None)
        assert [step["status"] for step in document["steps"]] == ["reused", "reused"]
        assert qo.files == before
        assert qo("show", "--json").exits(0).json == document
        qo("logs").exits(0).prints("run_started").prints("step_finished reused note").prints("nothing had to be done")
        qo("audit", "show", "--run", document["run_id"]).exits(0).prints("run started").prints("run ended")
        lines = qo("run", again, "--json-stream", environment=nowhere).exits(0).out.splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["run_started", *["step_finished"] * 2, "run_finished"]

    @whole
    def test_where_one_step_has_to_run_prefect_has_them_all(self, qo: Qo) -> None:
        again = qo.set(NOTE, SHIP, cache=True)
        qo("run", again).exits(0)
        (qo.work / "shipped.txt").unlink()
        document = qo("run", again, "--json").exits(0).json
        assert [step["status"] for step in document["steps"]] == ["reused", "succeeded"]
        assert document["flow_run_id"] is not None
        assert len(qo("history", "--json").json["runs"]) == 2

    def test_how_long_it_takes_is_learned_and_foretold(self, qo: Qo) -> None:
        build = {"id": "build", "op": "script.run", "with": {"shell": "sleep 0.6"}, "writes": []}
        test = {**build, "id": "test", "needs": ["build"], "with": {"shell": "sleep 0.1"}}
        sets = qo.set(build, test, name="learned")
        qo("run", sets).exits(0)
        estimate = qo("plan", sets, "--explain", "--json").exits(0).json["estimate"]
        assert estimate["critical_path"] == ["build", "test"]
        assert estimate["seconds"] >= 0.7
        qo("plan", sets, "--explain").exits(0).prints("; critical path build → test\n")

    def test_a_step_to_be_forced_must_be_one_of_the_set(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE), "--force", "noet").exits(3).says("did you mean 'note'?")
        assert qo.files == {}


class TestARunThatFails:
    @whole
    def test_it_is_rolled_back(self, qo: Qo) -> None:
        said = qo("run", qo.set(NOTE, {**GONE, "needs": ["note"]}, {**LOUD, "needs": ["gone"]})).exits(1)
        said.says("✗ gone  file.delete missing.txt").says("error: step gone: missing.txt: no such file").says("hint: ")
        said.prints("rolled back: run ").prints("0 files changed (+0 −0)")
        assert qo.files == {}
        document = qo("show", "--json").exits(0).json
        assert [step["status"] for step in document["steps"]] == ["rolled_back", "failed", "skipped"]
        assert document["error"]["type"] == "OperationError"

    def test_what_was_done_is_kept_on_demand(self, qo: Qo) -> None:
        document = qo("run", qo.set(NOTE, GONE), "--on-failure", "keep", "--json").exits(1).json
        assert document["status"] == "kept"
        assert qo.files == {"note.txt": "hello\n"}

    @whole
    def test_a_paused_one_goes_on_when_resumed(self, qo: Qo) -> None:
        file = qo.set(NOTE, {**GONE, "needs": ["note"]}, on_failure="pause")
        qo("run", file).exits(4).prints("paused: run ").says("`qo resume ")
        qo("status").exits(0).prints("is paused\n").prints("  next: qo resume ")
        qo("run", file).exits(4).says("is paused").says("hint: `qo resume ")
        (qo.work / "missing.txt").write_text("")
        qo("resume").exits(0).prints("committed: run ")
        assert qo.files == {"note.txt": "hello\n"}
        qo("resume").exits(3).says("no unfinished run in this workspace")


class TestApprovals:
    @whole
    def test_a_run_waits_is_approved_once_and_goes_on(self, qo: Qo) -> None:
        document = json.dumps({"name": "test", "instructions": [NOTE, SIGN, SHIP]})
        said = qo("run", "-", stdin=document).exits(5).prints("awaiting approval: run ")
        run_id = said.out.removeprefix("awaiting approval: run ").split()[0]
        said.says(f"waiting for the approval of sign: `qo approve {run_id}` or `qo reject {run_id}`\n").says("Ship it?")
        assert qo("show", "--json").json["status"] == "awaiting_approval"
        qo("status").exits(0).prints(f"waits for the approval of: sign\n  next: qo approve {run_id} sign\n")
        qo("approve", run_id, "note").exits(3).says("step 'note' of run").says("does not wait")
        qo("approve", run_id).exits(0).prints(f"committed: run {run_id} ")
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "yes\n"}
        qo("approve", run_id).exits(3).says("is committed, and was decided already")

    def test_a_rejected_one_is_rolled_back(self, qo: Qo) -> None:
        assert qo("run", qo.set(NOTE, SIGN, SHIP), "--json").exits(5).json["status"] == "awaiting_approval"
        assert qo("reject", "--json").exits(0).json["status"] == "rolled_back"
        assert qo.files == {}
        qo("reject").exits(3).says("decided already")

    def test_an_untrusted_set_waits_with_a_file_that_tools_execute(self, qo: Qo) -> None:
        make = {"id": "make", "op": "file.write", "with": {"path": "Makefile", "content": "all:\n"}}
        said = qo("run", qo.set(NOTE, make), "--untrusted", "--yes").exits(5)
        said.says("? make  awaits approval: it changes files that need an approval").says("Makefile is new (sha256 ")
        about = qo("status", "--json").json["approvals"]["make"]
        assert about["files"][0]["after"]["sha256"] in about["message"]
        qo("show").exits(0).prints("Makefile is new (sha256 ")
        qo("diff").exits(0).prints("# step make waits: ").prints("+++ b/Makefile\n@@ -0,0 +1 @@\n+all:\n")
        assert qo.files == {"note.txt": "hello\n"}
        qo("approve").exits(0).prints("committed: run ")
        assert qo.files == {"Makefile": "all:\n", "note.txt": "hello\n"}

    def test_yes_approves_in_advance_but_not_for_untrusted_sets(self, qo: Qo) -> None:
        qo("run", qo.set(SIGN, SHIP), "--yes").exits(0)
        said = qo("run", qo.set(SIGN, SHIP, trust="untrusted"), "--yes").exits(5)
        said.says("the set is untrusted: its approvals are not given in advance")
        qo("rollback").exits(0)


class TestARunAtWork:
    @whole
    def test_it_is_seen_refuses_others_and_ends_on_ctrl_c(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        qo("status").exits(0).prints("is running\n").prints(f"  process {running.pid}, since ")
        following = qo.begins("logs", "-f")
        qo("run", qo.set(SHIP), "--no-wait").exits(4).says("another run").says("holds this workspace")
        qo("approve").exits(3).says("is running: nothing waits for an approval")
        qo("resume").exits(3).says("is at work")
        running.signal(signal.SIGINT).ended().exits(130).prints("cancelled: run ").says("rolling back")
        assert qo.files == {}
        following.ended().exits(0).prints("step_finished succeeded note\n").prints("rolling_back")

    def test_it_ends_when_it_is_cancelled(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        qo("cancel").exits(0).prints("is cancelled\n").says("asked run ")
        running.ended().exits(130)
        assert qo.files == {}

    @whole
    def test_a_dead_one_is_told_from_the_lock_and_settled_first(self, qo: Qo) -> None:
        qo.begins("run", qo.set(NOTE, LONG)).until("✓ note").signal(signal.SIGKILL).ended()
        assert qo("status", "--json").exits(0).json["status"] == "interrupted"
        qo("run", qo.set(SHIP)).exits(4).says("died before its end").says("hint: `qo resume ")
        qo("rollback").exits(0).prints("rolled back: run ")
        assert qo.files == {}

    def test_a_dead_one_of_another_folder_is_named_with_it(self, qo: Qo) -> None:
        there = ("--workspace", str(qo.folder / "other"))
        qo.begins("run", qo.set(NOTE, LONG), *there).until("✓ note").signal(signal.SIGKILL).ended()
        qo("run", qo.set(SHIP), *there).exits(4).says(f" {' '.join(there)}` goes on with it, `qo rollback ")
        qo("rollback", *there).exits(0)


class TestTheOlderFormat:
    @whole
    def test_one_line_is_the_answer(self, qo: Qo) -> None:
        action = {"type": "CREATE_OR_REPLACE_FILE", "path": "a.txt", "content": "a"}
        block = json.dumps({"step_id": "one", "actions": [action, {"type": "ECHO", "message": "hi"}]})
        said = qo("run", "-", stdin=block).exits(0)
        assert said.out.count("\n") == 1
        assert said.json["overall_success"] is True
        assert [each["action_type"] for each in said.json["action_results"]] == ["CREATE_OR_REPLACE_FILE", "ECHO"]
        assert qo.files == {"a.txt": "a"}

    def test_a_bad_block_is_exit_1(self, qo: Qo) -> None:
        said = qo("run", "-", stdin='{"step_id": "one", "actions": [{"type": "DANCE"}]}').exits(1)
        assert said.json["overall_success"] is False


class TestATerminal:
    """`qo` on a pseudo-terminal: the live display, and a question that is answered by a key."""

    @whole
    def test_an_approval_is_asked_for_and_the_display_goes_on(self, qo: Qo) -> None:
        file = qo.set(NOTE, SIGN, SHIP)
        code, shown = qo.at_terminal("run", file, keys={"approve? ": b"y"})
        assert code == 0, shown
        assert "sign: Ship it?" in shown
        assert "\x1b[32m✓ ship" in shown
        assert "of 3, " in shown, "the live display counts the steps"
        assert shown.count("\x1b[?25h") >= shown.count("\x1b[?25l"), "the cursor is left visible"
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "yes\n"}

    def test_ctrl_c_at_the_question_interrupts_the_run(self, qo: Qo) -> None:
        code, shown = qo.at_terminal("run", qo.set(NOTE, SIGN, SHIP), keys={"approve? ": b"\x03"})
        assert code == 130, shown
        assert qo.files == {}

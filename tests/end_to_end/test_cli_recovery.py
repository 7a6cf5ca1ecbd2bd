"""Going back and going on by the command line, against a real server: checkpoints, steps, what others have done."""

from __future__ import annotations

import signal
import subprocess

from commands import GONE, LONG, NOTE, SHIP, Qo, script
from without_prefect import alone, whole

pytestmark = alone

HALFWAY = {"id": "halfway", "op": "checkpoint", "with": {"name": "halfway"}}


def run_id_of(qo: Qo) -> str:
    return str(qo("status", "--json").json["run_id"])


class TestCheckpoints:
    @whole
    def test_a_committed_run_goes_back_to_one_and_on_again(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE, HALFWAY, SHIP)).exits(0)
        run_id = run_id_of(qo)
        qo("rollback", run_id, "--to", "halfway", "--check").exits(0).prints("# rolling back run").prints("-yes\n")
        said = qo("rollback", run_id, "--to", "halfway").exits(0)
        said.prints(f"rolled back to checkpoint 'halfway': run {run_id}, 1 path put back\n")
        said.says(f"`qo resume {run_id}` goes on from there")
        assert qo.files == {"note.txt": "hello\n"}
        document = qo("show", "--json").json
        assert [step["status"] for step in document["steps"]] == ["succeeded", "succeeded", "rolled_back"]
        assert (document["status"], document["diff"]["files"]) == ("kept", 1)
        qo("status").prints(f"  next: qo resume {run_id}\n")
        qo("resume", run_id).exits(0).prints(f"committed: run {run_id} ")
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "yes\n"}

    def test_a_failure_goes_back_to_one(self, qo: Qo) -> None:
        said = qo("run", qo.set(NOTE, HALFWAY, SHIP, GONE, on_failure={"rollback_to": "halfway"})).exits(1)
        said.prints("kept: run ").says("rolling back to checkpoint halfway")
        assert qo.files == {"note.txt": "hello\n"}

    def test_one_that_was_not_passed_is_refused(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE, HALFWAY)).exits(0)
        said = qo("rollback", run_id_of(qo), "--to", "halfwey").exits(3)
        said.says("has not passed a checkpoint 'halfwey'").says("hint: it has passed: halfway")


class TestAnEmptyName:
    def test_it_is_a_mistake_and_means_no_run(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE)).exits(0)
        qo("rollback", "").exits(3).says("the run's id is empty")
        assert qo.files == {"note.txt": "hello\n"}


class TestGoingOnFromAStep:
    @whole
    def test_it_and_what_follows_run_again(self, qo: Qo) -> None:
        count = script("echo . >> ../count", step="count", reads=[], writes=[])
        need = script("test -e ../ready", step="need", needs=["count"], reads=[], writes=[])
        qo("run", qo.set(NOTE, count, need, on_failure="pause")).exits(4)
        qo("resume", "--from", "nothing").exits(3).says("has no step 'nothing'").says("`qo show ")
        (qo.work.parent / "ready").touch()
        qo("resume", "--from", "count").exits(0).prints("committed: run ")
        assert (qo.work.parent / "count").read_text() == ".\n.\n"

    def test_what_somebody_has_changed_since_is_not_undone_for_it(self, qo: Qo) -> None:
        need = script("test -e ../ready", step="need", reads=[], writes=[])
        said = qo("run", qo.set(NOTE, SHIP, need, on_failure="pause")).exits(4)
        run_id = run_id_of(qo)
        said.says(f"paused: `qo resume {run_id}` goes on, `qo rollback {run_id}` undoes it")
        (qo.work / "shipped.txt").write_text("mine\n")
        said = qo("resume", "--from", "note").exits(4)
        said.says("shipped.txt").says(f"nothing was changed; `qo resume {run_id}` goes on with them as they are")
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "mine\n"}
        (qo.work.parent / "ready").touch()
        qo("resume", run_id).exits(0)
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "mine\n"}

    @whole
    def test_a_run_that_was_rolled_back_runs_again_under_its_own_name(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE, script("test -e ../ready", needs=["note"]))).exits(1)
        run_id = run_id_of(qo)
        qo("resume").exits(3).says("no unfinished run in this workspace")
        (qo.work.parent / "ready").touch()
        assert qo("resume", run_id, "--json").exits(0).json["run_id"] == run_id
        assert qo.files == {"note.txt": "hello\n"}


class TestFilesOfOthers:
    def test_they_stop_a_rollback_and_are_kept_on_demand(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE, SHIP)).exits(0)
        run_id = run_id_of(qo)
        (qo.work / "note.txt").write_text("mine\n")
        for more in ((), ("--check",)):
            said = qo("rollback", run_id, *more).exits(4).says("left as they are: note.txt")
            said.says(f"`qo rollback {run_id} --force-conflicts keep`")
        assert qo.files == {"note.txt": "mine\n", "shipped.txt": "yes\n"}
        qo("rollback", run_id, "--force-conflicts", "keep", "--check").exits(0).prints("# note.txt stays as it is")
        said = qo("rollback", run_id, "--force-conflicts", "keep").exits(0)
        said.says("note.txt: changed by somebody else since, and left as it is")
        assert qo.files == {"note.txt": "mine\n"}
        qo("run", qo.set(SHIP)).exits(0)

    def test_they_are_put_aside_on_demand(self, qo: Qo) -> None:
        (qo.work / "note.txt").write_text("before\n")
        qo("run", qo.set(NOTE, SHIP)).exits(0)
        (qo.work / "note.txt").write_text("mine\n")
        document = qo("rollback", run_id_of(qo), "--force-conflicts", "overwrite", "--json").exits(0).json
        assert qo.files == {"note.txt": "before\n"}
        with open(document["aside"]["note.txt"]) as aside:
            assert aside.read() == "mine\n"

    def test_one_changed_while_the_run_is_at_work_needs_attention_until_it_is_settled(self, qo: Qo) -> None:
        running = qo.begins("run", qo.set(NOTE, LONG)).until("✓ note")
        (qo.work / "note.txt").write_text("mine\n")
        running.signal(signal.SIGINT).ended().exits(4).prints("needs attention: run ")
        assert qo.files == {"note.txt": "mine\n"}
        qo("run", qo.set(SHIP)).exits(4).says("needs attention")
        keep = next(line for line in qo("status", "--json").json["next"] if "force-conflicts" in line)
        qo(*keep.split()[1:]).exits(0)
        assert qo.files == {"note.txt": "mine\n"}
        qo("run", qo.set(SHIP)).exits(0)


class TestOtherWorkSince:
    def test_commits_and_edits_elsewhere_are_not_touched_by_a_rollback(self, qo: Qo) -> None:
        git(qo, "init", "-q", "-b", "main")
        (qo.work / "base").write_text("base\n")
        git(qo, "add", ".")
        git(qo, "commit", "-qm", "base")
        base = git(qo, "rev-parse", "main")
        commit = {"id": "commit", "op": "git.commit", "with": {"message": "ours"}}
        add = {"id": "add", "op": "git.add", "with": {"paths": ["note.txt"]}}
        qo("run", qo.set(NOTE, add, commit)).exits(0)
        run_id = run_id_of(qo)
        ours = git(qo, "rev-parse", "main")
        git(qo, "checkout", "-qb", "other", base)
        (qo.work / "theirs").write_text("theirs\n")
        git(qo, "add", "theirs")
        git(qo, "commit", "-qm", "theirs")
        (qo.work / "draft").write_text("draft\n")
        theirs = git(qo, "rev-parse", "other")
        qo("rollback", run_id).exits(0).prints(f"git: refs/heads/main {ours[:10]} → {base[:10]}\n")
        assert git(qo, "rev-parse", "main") == base
        assert git(qo, "rev-parse", "HEAD") == theirs
        assert git(qo, "status", "--porcelain") == "?? draft"
        git(qo, "fsck", "--strict")


def git(qo: Qo, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=qo.work, check=True, capture_output=True, text=True).stdout.strip()


class TestASnapshotsCaches:
    def test_a_script_that_touches_one_is_told_of(self, qo: Qo) -> None:
        (qo.work / "node_modules").mkdir()
        said = qo("run", qo.set(script("echo x > node_modules/x; echo y > y")), "--json").exits(0)
        assert said.json["steps"][0]["outputs"]["excluded"] == ["node_modules"]
        assert said.json["steps"][0]["outputs"]["changed"] == ["y"]
        qo("logs").exits(0).prints("not captured, as snapshots exclude it: node_modules")

"""`qo diff`, on journals that the workspace itself has written: what git makes of the patch, what is said with it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import NOTE, Said

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord, StepRecord
from quantum_orchestrator.blocks.tree import Overlay
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.deployments import cli

BUILD = {"id": "build", "op": "script.run", "with": {"argv": ["true"]}, "writes": ["out/**"], "reads": []}
TEXT = "".join(f"line {number}\n" for number in range(20))


def git(root: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, input=stdin, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode == 0, done.stderr + stdin
    return done.stdout.strip()


def files(root: Path) -> dict[str, bytes]:
    """What a patch can speak of, by path."""
    return {
        path.relative_to(root).as_posix(): os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_symlink() or path.is_file()) and ".git" not in path.parts
    }


class History:
    """Runs in a workspace, and `qo` to look at them."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.root = folder / "work"
        self.root.mkdir()
        patch.chdir(self.root)
        self.journal = Journal(workspace_home(self.root))
        self.workspace = Workspace(self.root, self.journal)
        self._capfd = capfd
        self._patch = patch
        self._run = ""

    def qo(self, *arguments: str) -> Said:
        self._capfd.readouterr()
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        code = cli.invoke(arguments)
        sys.stdout.flush()
        return Said(code, *self._capfd.readouterr())

    def run(self, run_id: str, **steps: Callable[[Any], None]) -> dict[str, bytes]:
        """A committed run of these steps, each of which changes an overlay; the files that it leaves."""
        document = {"name": "test", "instructions": []}
        self.journal.begin(RunRecord(run_id, "test", "running", document, {}, {}, time.time()))
        for step, change in steps.items():
            overlay = Overlay(self.workspace.tree)
            change(overlay)
            self.workspace.apply(run_id, step, overlay.changes(), overlay.content_of)
            self.journal.record_step(run_id, StepRecord(step, "file.write", "succeeded"), done=True)
        self.journal.update(run_id, status="committed", ended_at=time.time())
        return files(self.root)

    def act(self, run_id: str, step: str, *commands: tuple[str, ...]) -> None:
        """A committed run of one step that acts by itself: commands of git."""
        self.journal.begin(RunRecord(run_id, "test", "running", {}, {}, {}, time.time()))
        self.workspace.capture(run_id, step, ["."])
        for command in commands:
            git(self.root, *command)
        self.workspace.finish(run_id, step)
        self.journal.record_step(run_id, StepRecord(step, "git.commit", "succeeded"), done=True)
        self.journal.update(run_id, status="committed", ended_at=time.time())

    def undo(self, run_id: str) -> None:
        assert self.workspace.undo(run_id).conflicts == []
        self.journal.update(run_id, status="rolled_back")

    def close(self) -> None:
        self.workspace.close()
        self.journal.close()


@pytest.fixture
def history(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    made = History(tmp_path, capfd, monkeypatch)
    yield made
    made.close()


def write(path: str, content: str | bytes, mode: int | None = None) -> Callable[[Overlay], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda overlay: overlay.write(path, raw, mode)


def move(source: str, destination: str) -> Callable[[Overlay], None]:
    def moved(overlay: Overlay) -> None:
        entry = overlay.entry(source)
        assert entry is not None
        overlay.write(destination, overlay.read(source), entry.mode)
        overlay.delete(source)

    return moved


class TestOneRun:
    def test_git_takes_its_patch_back_whatever_it_changed(self, history: History) -> None:
        def rest(overlay: Overlay) -> None:
            overlay.delete("gone")
            overlay.link("link", "new name")
            overlay.chmod("tool", 0o755)
            overlay.mkdir("hollow")

        before = history.run("r1", old=write("old", TEXT), gone=write("gone", b"\0\1"), tool=write("tool", "x"))
        history.run("r2", move=move("old", "sub/new ü"), picture=write("picture", b"\0" * 40), rest=rest)
        patch = history.qo("diff").exits(0).out
        assert "rename from old\n" in patch
        assert "# folder made: hollow\n" in patch
        (history.root / "hollow").rmdir()
        git(history.root, "apply", "-R", "-", stdin=patch)
        assert files(history.root) == before
        assert not (history.root / "tool").stat().st_mode & 0o100

    def test_stat_names_renames_sizes_modes_links_and_folders(self, history: History) -> None:
        def rest(overlay: Overlay) -> None:
            overlay.link("link", "target")
            overlay.chmod("tool", 0o755)
            overlay.mkdir("hollow")

        history.run("r1", old=write("old", TEXT), tool=write("tool", "x", 0o644), picture=write("picture", b"\0" * 12))
        history.run("r2", move=move("old", "new"), picture=write("picture", b"\0" * 40), rest=rest)
        history.qo("diff", "--stat").exits(0).prints_exactly(
            "  link        link to target\n"
            "  old => new  +0 −0\n"
            "  picture     Bin 12 → 40 bytes\n"
            "  tool        +0 −0, mode 0644 → 0755\n"
            "  folder made: hollow\n"
            "4 files changed (+0 −0)\n"
        )

    def test_a_link_that_is_removed_is_told_as_one(self, history: History) -> None:
        history.run("r1", link=lambda overlay: overlay.link("link", "target"))
        history.run("r2", gone=lambda overlay: overlay.delete("link"))
        history.qo("diff", "--stat").exits(0).prints("  link  link removed, to target\n1 file changed (+0 −0)\n")

    def test_json_has_renames_files_and_the_patch(self, history: History) -> None:
        history.run("r1", old=write("old", TEXT), picture=write("picture", b"\0" * 12))
        history.run("r2", move=move("old", "new"), picture=write("picture", b"\0" * 40))
        steps = history.qo("diff", "r2", "--by-step", "--json").exits(0).json["steps"]
        assert [(each["from"], each["path"]) for each in steps["move"]] == [("old", "new")], "one path, not two"
        answer = history.qo("diff", "r2", "--json").exits(0).json
        assert (answer["run_id"], answer["set"], answer["status"]) == ("r2", "test", "committed")
        assert answer["diff"] == {"files": 2, "insertions": 0, "deletions": 0}
        assert [each["path"] for each in answer["changes"]] == ["new", "old", "picture"]
        assert answer["renames"] == [{"from": "old", "to": "new", "similarity": 100}]
        assert answer["files"] == [
            {"path": "new", "from": "old", "insertions": 0, "deletions": 0, "binary": None},
            {"path": "picture", "from": None, "insertions": 0, "deletions": 0, "binary": {"before": 12, "after": 40}},
        ]
        assert (answer["refs"], answer["repositories"], answer["git_files"]) == ([], [], [])
        assert answer["patch"] == history.qo("diff", "r2").out

    def test_a_rolled_back_one_has_left_no_change(self, history: History) -> None:
        history.run("r1", note=write("note", "x"))
        history.undo("r1")
        assert history.qo("diff").exits(0).says("run r1 (rolled back) has left no change").out == ""
        said = (
            history.qo("diff", "--step", "note").exits(0).says("step note of run r1 (rolled back) has left no change")
        )
        assert said.out == ""
        history.qo("diff", "--stat").exits(0).prints_exactly("0 files changed (+0 −0)\n")

    def test_one_whose_before_images_are_gone_says_so(self, history: History) -> None:
        history.run("r1", note=write("note", "x"))
        history.run("r2", note=write("note", "y"))
        history.journal.prune(["r1"])
        said = history.qo("diff", "r1").exits(3).says("what run r1 has changed is no longer known")
        said.says("hint: `qo show r1` still tells how its steps ended")
        history.qo("diff", "r1", "r2").exits(3).says("what run r1 has changed is no longer known")
        history.qo("diff", "r2").exits(0).prints("\n-x\n").prints("\n+y\n")

    def test_a_run_between_two_whose_before_images_are_gone_is_named(self, history: History) -> None:
        for number in (1, 2, 3):
            history.run(f"r{number}", note=write("note", f"{number}"))
        history.journal.prune(["r2"])
        history.qo("diff", "r1", "r3").exits(3).says("what run r2 has changed is no longer known")

    def test_one_that_died_is_told_from_one_at_work(self, history: History) -> None:
        history.run("r1", note=write("note", "x"))
        history.journal.update("r1", status="running")
        assert history.qo("diff", "--json").exits(0).json["status"] == "interrupted"
        history.journal.lock.acquire()
        assert history.qo("diff", "--json").exits(0).json["status"] == "running"
        history.journal.lock.release()


class TestSteps:
    def run(self, history: History) -> None:
        history.run(
            "r1",
            one=write("d/one", "1\n"),
            two=write("d/two", "2\n"),
            again=write("d/one", "1\nmore\n"),
            idle=lambda _overlay: None,
        )

    def test_one_step_is_shown_on_what_those_before_it_left(self, history: History) -> None:
        self.run(history)
        history.qo("diff", "--step", "again").exits(0).prints("@@ -1 +1,2 @@\n 1\n+more\n")
        history.qo("diff", "r1", "--step", "two", "--stat").exits(0).prints_exactly(
            "  d/two  +1 −0\n1 file changed (+1 −0)\n"
        )
        answer = history.qo("diff", "--step", "two", "--json").exits(0).json
        assert answer["step"] == "two"
        assert [each["path"] for each in answer["changes"]] == ["d/two"], "another step has made the folder"

    def test_each_step_is_listed_with_what_it_changed(self, history: History) -> None:
        self.run(history)
        history.qo("diff", "--by-step").exits(0).prints_exactly(
            "one  file.write\n  d/one  +1 −0\n"
            "two  file.write\n  d/two  +1 −0\n"
            "again  file.write\n  d/one  +1 −0\n"
            "2 files changed (+3 −0)\n"
        )
        steps = history.qo("diff", "--by-step", "--json").exits(0).json["steps"]
        assert {step: [each["path"] for each in paths] for step, paths in steps.items()} == {
            "one": ["d", "d/one"],
            "two": ["d/two"],
            "again": ["d/one"],
        }
        assert steps["again"][0] == {"path": "d/one", "from": None, "insertions": 1, "deletions": 0, "binary": None}

    def test_a_call_or_a_list_is_all_that_is_inside_of_it(self, history: History) -> None:
        history.run("r1", **{"call/one": write("one", "1"), "call/two[0]": write("two", "2"), "caller": write("x", "")})
        answer = history.qo("diff", "--step", "call", "--json").exits(0).json
        assert [each["path"] for each in answer["changes"]] == ["one", "two"]
        answer = history.qo("diff", "--step", "call/two", "--json").exits(0).json
        assert [each["path"] for each in answer["changes"]] == ["two"]
        history.qo("diff", "--step", "call/three").exits(3).says("has no step")
        history.qo("diff", "call/two[0]").exits(3).says("hint: `qo diff r1 --step 'call/two[0]'` shows")

    def test_a_step_in_the_place_of_a_run_is_told_how_to_be_named(self, history: History) -> None:
        self.run(history)
        for arguments in (("two",), ("r1", "two")):
            said = history.qo("diff", *arguments).exits(3).says("'two' is no run, but a step of run r1")
            said.says("hint: `qo diff r1 --step two` shows what it changed")
        history.qo("diff", "r1", "three").exits(3).says("no run 'three' in")
        history.qo("diff", "--step", "three").exits(3).says("run r1 has no step 'three'").says("hint: `qo show r1`")

    @pytest.mark.parametrize(
        "arguments",
        [
            ("r1", "r1", "--step", "one"),
            ("r1", "r1", "--by-step"),
            ("--step", "one", "--by-step"),
            ("--plan", "--stat"),
            ("--plan", "--against", "p.plan"),
            ("r1", "r1", "--plan"),
            ("--against", "p.plan", "--step", "one"),
        ],
        ids=" ".join,
    )
    def test_what_makes_no_sense_together_is_refused(self, history: History, arguments: tuple[str, ...]) -> None:
        self.run(history)
        history.qo("diff", *arguments).exits(3).says(" do not go together")


class TestTwoRuns:
    def test_git_leads_from_what_one_left_to_what_the_other_left_and_back(
        self, history: History, tmp_path: Path
    ) -> None:
        left = history.run("r1", note=write("note", "1\n"), old=write("old", TEXT))
        history.run("r2", note=write("note", "1\n2\n"))
        reached = history.run("r3", move=move("old", "new"), more=write("note", "1\n2\n3\n"))
        copy = tmp_path / "copy"
        copy.mkdir()
        for path, content in left.items():
            (copy / path).write_bytes(content)
        patch = history.qo("diff", "r1", "r3").exits(0).out
        assert "rename from old\nrename to new\n" in patch
        git(copy, "apply", "-", stdin=patch)
        assert files(copy) == reached
        back = history.qo("diff", "r3", "r1").exits(0).out
        assert "rename from new\nrename to old\n" in back
        git(copy, "apply", "-", stdin=back)
        assert files(copy) == left

    def test_json_names_both(self, history: History) -> None:
        history.run("r1", note=write("note", "1\n"))
        history.run("r2", note=write("note", "2\n"))
        answer = history.qo("diff", "r1", "r2", "--json").exits(0).json
        assert (answer["run_id"], answer["to_run_id"]) == ("r1", "r2")
        assert answer["diff"] == {"files": 1, "insertions": 1, "deletions": 1}
        history.qo("diff", "r1", "r2", "--stat").exits(0).prints_exactly("  note  +1 −1\n1 file changed (+1 −1)\n")

    def test_nothing_between_them_is_said(self, history: History) -> None:
        history.run("r1", note=write("note", "1\n"))
        said = history.qo("diff", "r1", "r1").exits(0).says("the workspace is the same after run r1 and after run r1")
        assert said.out == ""

    def test_a_run_that_was_rolled_back_counts_for_nothing(self, history: History) -> None:
        history.run("r1", note=write("note", "1\n"))
        history.run("r2", other=write("other", "x\n"))
        history.undo("r2")
        history.run("r3", note=write("note", "3\n"))
        history.qo("diff", "r1", "r3", "--stat").exits(0).prints_exactly("  note  +1 −1\n1 file changed (+1 −1)\n")
        history.qo("diff", "r1", "r2").exits(0).says("the workspace is the same")

    def test_what_others_changed_in_between_is_told_where_a_later_run_changed_it_too(self, history: History) -> None:
        history.run("r1", note=write("note", "ours\n"), other=write("other", "ours\n"))
        (history.root / "note").write_text("ours\ntheirs\n")
        (history.root / "other").write_text("unseen\n")
        history.run("r2", note=write("note", "ours\ntheirs\nand ours\n"))
        history.qo("diff", "r2", "--stat").exits(0).prints("  note  +1 −0\n")
        history.qo("diff", "r1", "r2", "--stat").exits(0).prints_exactly("  note  +2 −0\n1 file changed (+2 −0)\n")

    def test_what_comes_to_nothing_is_no_difference(self, history: History) -> None:
        history.run("r1", note=write("note", "1\n"))
        history.run("r2", note=write("note", "2\n"), other=write("other", "x"))
        history.run("r3", note=write("note", "1\n"), other=lambda overlay: overlay.delete("other"))
        history.qo("diff", "r1", "r3").exits(0).says("the workspace is the same")
        assert history.qo("diff", "r1", "r3", "--json").json["changes"] == []


class TestRepositories:
    def test_branches_tags_and_head_end_the_patch(self, history: History) -> None:
        git(history.root, "init", "-q", "-b", "main")
        git(history.root, "commit", "-q", "--allow-empty", "-m", "Begin")
        old = git(history.root, "rev-parse", "HEAD")
        history.act("r1", "topic", ("checkout", "-q", "-b", "topic"), ("commit", "-q", "--allow-empty", "-m", "Go on"))
        new = git(history.root, "rev-parse", "HEAD")
        told = [
            "git: HEAD refs/heads/main → refs/heads/topic",
            f'git: refs/heads/topic made at {new[:7]}  "Go on"',
            "git: changed: .git/index",
        ]
        lines = history.qo("diff").exits(0).out.splitlines()
        assert [line for line in lines if "index" not in line] == [f"# {line}" for line in told[:2]]
        stat = history.qo("diff", "--by-step").exits(0).prints("topic  git.commit\n")
        stat.prints("".join(f"  {line}\n" for line in told[:2])).prints("0 files changed (+0 −0)\n")
        answer = history.qo("diff", "--json").exits(0).json
        assert answer["refs"] == [
            {"repository": ".", "name": "HEAD", "before": "refs/heads/main", "after": "refs/heads/topic"},
            {"repository": ".", "name": "refs/heads/topic", "before": None, "after": new},
        ]
        assert answer["changes"] == []
        assert old != new

    def test_refs_are_told_as_the_run_left_them_when_a_later_one_has_moved_them(self, history: History) -> None:
        git(history.root, "init", "-q", "-b", "main")
        git(history.root, "commit", "-q", "--allow-empty", "-m", "Begin")
        history.act("r0", "pack", ("pack-refs", "--all"))
        ids = [git(history.root, "rev-parse", "HEAD")]
        for run_id in ("r1", "r2"):
            history.act(run_id, "commit", ("commit", "-q", "--allow-empty", "-m", f"By {run_id}"))
            ids.append(git(history.root, "rev-parse", "HEAD"))
        history.act("r3", "pack", ("pack-refs", "--all"))
        history.act("r4", "both", ("commit", "-q", "--allow-empty", "-m", "By r4"), ("pack-refs", "--all"))
        refs = history.qo("diff", "r1", "--json").exits(0).json["refs"]
        assert refs == [{"repository": ".", "name": "refs/heads/main", "before": ids[0], "after": ids[1]}]
        refs = history.qo("diff", "r1", "r2", "--json").exits(0).json["refs"]
        assert refs == [{"repository": ".", "name": "refs/heads/main", "before": ids[1], "after": ids[2]}]
        history.qo("diff", "r2", "r1").exits(0).prints(f'# git: refs/heads/main {ids[2][:7]} → {ids[1][:7]}  "By r1"\n')

    def test_a_repository_that_is_made_is_told_as_one(self, history: History) -> None:
        history.act("r1", "init", ("init", "-q", "-b", "trunk", "vendor/lib"))
        said = history.qo("diff").exits(0).prints("# git: repository made: vendor/lib (HEAD at refs/heads/trunk)\n")
        assert "folder made" not in said.out, "it is not empty"
        answer = history.qo("diff", "--json").exits(0).json
        assert answer["repositories"] == [{"path": "vendor/lib", "change": "made"}]


class TestPlanAgainstActual:
    def plan(self, history: History, *instructions: object) -> str:
        (history.root.parent / "set.json").write_text(json.dumps({"name": "test", "instructions": instructions}))
        history.qo("plan", "../set.json", "--workspace", ".", "-o", "../p.plan").exits(0)
        return "../p.plan"

    def write(self, step: str, path: str, content: str) -> dict[str, Any]:
        return {"id": step, "op": "file.write", "with": {"path": path, "content": content}}

    def test_a_run_that_kept_its_plan_exits_with_0(self, history: History) -> None:
        plan = self.plan(history, NOTE)
        history.run("r1", note=write("note.txt", "hello\n"))
        history.qo("diff", "--against", plan).exits(0).prints_exactly(
            "  ✓  note.txt  as predicted\nrun r1 (committed): 1 of 1 path as predicted\n"
        ).is_silent()

    def test_every_way_to_differ_is_told_and_exits_with_1(self, history: History) -> None:
        plan = self.plan(
            history,
            self.write("a", "same", "1"),
            self.write("b", "content", "1"),
            self.write("c", "never", "1"),
            self.write("d", "shell", "1"),
        )
        history.run(
            "r1",
            a=write("same", "1"),
            b=write("content", "2"),
            d=write("shell", "1", 0o755),
            e=write("extra", "1"),
            f=write("extra", "2"),
        )
        said = history.qo("diff", "r1", "--against", plan).exits(1)
        said.prints_exactly(
            "  ≠  content  different: another content (step b)\n"
            "  +  extra    not predicted (steps e, f)\n"
            "  −  never    did not happen\n"
            "  ✓  same     as predicted\n"
            "  ≠  shell    different: mode 0755, not 0644 (step d)\n"
            "run r1 (committed): 1 of 5 paths as predicted, 4 not\n"
        )
        answer = history.qo("diff", "r1", "--against", plan, "--json").exits(1).json
        assert (answer["run_id"], answer["as_predicted"], answer["plan"]) == ("r1", False, plan)
        assert answer["paths"][0] == {
            "path": "content",
            "outcome": "different",
            "how": ["another content"],
            "steps": ["b"],
            "deferred": False,
        }

    def test_what_a_deferred_step_did_is_told_and_does_not_count(self, history: History) -> None:
        plan = self.plan(history, NOTE, BUILD)
        history.run("r1", note=write("note.txt", "hello\n"), build=write("out/log", "built"))
        said = history.qo("diff", "--against", plan).exits(0)
        said.prints("  +  out/log   not predicted (step build, deferred in the plan)\n")
        said.prints("1 of 3 paths as predicted, 2 by steps that were deferred in the plan\n")
        assert history.qo("diff", "--against", plan, "--json").json["deferred"] == ["build"]

    def test_a_step_inside_a_deferred_call_or_list_is_deferred(self, history: History) -> None:
        plan = self.plan(history, BUILD)
        history.run("r1", **{"build/inner": write("a", "x"), "build[0]": write("b", "x"), "builder": write("c", "x")})
        paths = history.qo("diff", "--against", plan, "--json").exits(1).json["paths"]
        assert {each["path"]: each["deferred"] for each in paths} == {"a": True, "b": True, "c": False}

    def test_another_start_is_a_difference(self, history: History) -> None:
        plan = self.plan(history, NOTE)
        (history.root / "note.txt").write_text("theirs")
        history.run("r1", note=write("note.txt", "hello\n"))
        history.qo("diff", "--against", plan).exits(1).prints("different: it was not as the plan saw it (step note)")

    def test_another_kind_is_a_difference(self, history: History) -> None:
        plan = self.plan(history, NOTE)
        history.run("r1", note=lambda overlay: overlay.mkdir("note.txt"))
        history.qo("diff", "--against", plan).exits(1).prints("different: is a dir, not a file (step note)")

    def test_a_run_that_was_rolled_back_did_nothing_of_it(self, history: History) -> None:
        plan = self.plan(history, NOTE)
        history.run("r1", note=write("note.txt", "hello\n"))
        history.undo("r1")
        history.qo("diff", "--against", plan).exits(1).prints("run r1 (rolled back): 0 of 1 path as predicted, 1 not\n")

    def test_the_plan_that_the_run_was_started_from_is_in_the_journal(self, history: History) -> None:
        plan = json.loads((history.root / self.plan(history, NOTE)).read_text())
        assert plan["predicted"]["deferred"] == []
        history.run("r1", note=write("note.txt", "hello\n"))
        history.qo("diff", "--plan").exits(3).says("run r1 was not started from a plan").says("--against PLAN")
        history.journal.update("r1", predicted=plan["predicted"])
        history.qo("diff", "--plan").exits(0).prints("1 of 1 path as predicted\n")

    def test_a_plan_for_another_folder_or_set_is_remarked(self, history: History) -> None:
        plan = self.plan(history, NOTE)
        file = history.root / plan
        history.run("r1", note=write("note.txt", "hello\n"))
        other = history.root.parent / "other"
        other.mkdir()
        history.qo("plan", "../set.json", "--workspace", str(other), "-o", plan).exits(0)
        history.qo("diff", "--against", plan).exits(0).says(
            f"was made for the set 'test' in {other}, not for this run's"
        )
        file.write_text("{}")
        history.qo("diff", "--against", plan).exits(3).says("is no plan")
        history.qo("diff", "--against", "nowhere").exits(3).says("nowhere: no such file")


class TestPlans:
    def test_a_planned_move_is_a_rename(self, history: History) -> None:
        (history.root / "old").write_text(TEXT)
        step = {"id": "move", "op": "file.move", "with": {"source": "old", "destination": "new"}}
        (history.root.parent / "set.json").write_text(json.dumps({"name": "test", "instructions": [step]}))
        patch = history.qo("plan", "../set.json", "--workspace", ".").exits(0).out
        assert "similarity index 100%\nrename from old\nrename to new\n# 1 file changed (+0 −0)\n" in patch
        answer = history.qo("plan", "../set.json", "--workspace", ".", "--json").exits(0).json
        assert answer["renames"] == [{"from": "old", "to": "new", "similarity": 100}]
        assert answer["diff"]["files"] == 1
        git(history.root, "apply", "-", stdin=patch)
        assert files(history.root) == {"new": TEXT.encode()}

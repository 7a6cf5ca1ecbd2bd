"""`qo diff` after real runs: files that moved, commits, scripts, and a run held against the plan that it came from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from commands import Qo, script
from without_prefect import alone

pytestmark = alone

TEXT = "".join(f"line {number}\n" for number in range(12))
SHIFT = {"id": "shift", "op": "file.move", "with": {"source": "old.txt", "destination": "docs/new.txt"}}
INIT = {"id": "init", "op": "git.init", "with": {}}
COMMIT = {
    "id": "commit",
    "op": "git.commit",
    "with": {"message": "Move the text", "all": True, "author": "Ada <ada@example.org>"},
}


def write(path: str, content: str) -> dict[str, object]:
    return {"id": "write", "op": "file.write", "with": {"path": path, "content": content}}


def git(folder: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, input=stdin, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestDiffOfRuns:
    def test_moves_and_commits_of_two_runs_are_told_and_git_takes_the_files_back(self, qo: Qo) -> None:
        first = qo("run", qo.set(write("old.txt", TEXT), INIT, {**COMMIT, "needs": ["init", "write"]}), "--json")
        first_id = first.exits(0).json["run_id"]
        qo("diff").exits(0).prints("# git: repository made: . (HEAD at refs/heads/main)\n")
        before = git(qo.work, "rev-parse", "HEAD")

        edit = script("printf 'one more\\n' >> docs/new.txt && ln -s new.txt docs/link", needs=["shift"])
        said = qo("run", qo.set(SHIFT, edit, {**COMMIT, "needs": ["script"]}), "--diff").exits(0)
        after = git(qo.work, "rev-parse", "HEAD")
        told = f'# git: refs/heads/main {before[:7]} → {after[:7]}  "Move the text"\n'
        said.prints("rename from old.txt\nrename to docs/new.txt\n").prints(told)

        patch = qo("diff").exits(0).prints(told).out
        assert qo("diff", first_id, qo("status", "--json").json["run_id"]).exits(0).out == patch
        steps = qo("diff", "--by-step").exits(0).prints("shift  file.move\n  old.txt => docs/new.txt  +0 −0\n")
        steps.prints("script  script.run\n  docs/link     link to new.txt\n  docs/new.txt  +1 −0\n").prints(
            "commit  git.commit\n"
        )
        git(qo.work, "apply", "-R", "-", stdin=patch)
        assert files(qo.work) == {"old.txt": TEXT}

    def test_a_run_is_held_against_the_plan_that_it_came_from(self, qo: Qo) -> None:
        build = script("echo built > out.txt", step="build", needs=["write"], writes=["out.txt"])
        qo("plan", qo.set(write("note.txt", "hello\n"), build), "-o", "../p.plan").exits(0)
        qo("run", "--plan", "../p.plan").exits(0)
        said = qo("diff", "--against", "../p.plan").exits(0).prints("  ✓  note.txt  as predicted\n")
        said.prints("  +  out.txt   not predicted (step build, deferred in the plan)\n")


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }

"""What is run while being killed: for every operation that changes something, a start and one instruction set."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.model import Provider
from quantum_orchestrator.flows.batching import BATCH_FROM
from tests.model_double import Constant

Prepare = Callable[[Path], None]


@dataclass(frozen=True, eq=False)
class Scenario:
    """A workspace's start, and the instructions that are run there one by one."""

    name: str
    instructions: tuple[Mapping[str, Any], ...]
    prepare: Prepare
    stride: int = 1
    """How many times fewer of its points are taken where not all are: git's cases take longer, and are alike."""
    ends: str = "committed"
    """How an undisturbed run ends, and with it every one that is resumed."""
    rollback_to: str | None = None
    """The checkpoint up to which the effects stay when the set fails."""
    outside: Callable[[Path], str] | None = None
    """What the set does elsewhere, given the workspace; a run that is committed has done it all, once."""
    prefer: int = 0
    """The sandbox level of its scripts."""
    order: str = "sequential"
    parallel: int = 1
    batch_from: int = BATCH_FROM
    model: Provider | None = None
    """Who answers its questions; without one, rules do."""


def files(root: Path) -> None:
    """Some files, modes and a link; enough for every operation on files."""
    (root / "old").write_text("one\ntwo\nthree\n")
    (root / "old").chmod(0o640)
    (root / "folder" / "inner").mkdir(parents=True)
    (root / "folder" / "a").write_text("a\n")
    (root / "folder" / "inner" / "b").write_text("b\n")
    (root / "folder" / "empty").mkdir()
    (root / "folder" / "link").symlink_to("a")
    (root / "data.json").write_text('{"x": 1, "y": [1, 2]}\n')
    (root / "template.j2").write_text("Hello {{ name }}\n")
    (root / "module.py").write_text("import os\nx=1\n")


def code(root: Path) -> None:
    """Python that fails, Python that could be tidier, and Python that could be faster."""
    (root / "area.py").write_text("def area(width, height):\n    return widht * height\n\n\nassert area(2, 3) == 6\n")
    (root / "app.py").write_text("import os\n\n\ndef greet():\n    print('hello')\n")
    (root / "squares.py").write_text("def squares(numbers):\n    return list([each * each for each in numbers])\n")


def git(root: Path, *arguments: str) -> str:
    """The output of git, with a fixed identity and date."""
    fixed = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *fixed, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def repository(root: Path) -> None:
    """Two branches with a commit each beyond the first, and a file that git ignores."""
    git(root, "init", "-q")
    (root / "a").write_text("a\n")
    (root / ".gitignore").write_text("ignored\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    git(root, "checkout", "-qb", "side")
    (root / "b").write_text("b\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "second")
    git(root, "checkout", "-q", "main")
    (root / "c").write_text("c\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "third")
    (root / "ignored").write_text("ignored\n")


def changed(root: Path) -> None:
    """The same, with a change that is not committed."""
    repository(root)
    (root / "c").write_text("changed\n")


def packed(root: Path) -> None:
    """The same, with all refs in one file, all objects in one pack, and a tag with a message."""
    repository(root)
    git(root, "tag", "-a", "old", "-m", "an old one")
    git(root, "pack-refs", "--all")
    git(root, "gc", "-q")


def upstream(root: Path) -> None:
    """A repository whose `origin` has commits that it has not; it lies inside, so that each case has its own."""
    repository(root)
    git(root, "clone", "-q", "--bare", ".", "upstream")
    (root / ".git" / "info" / "exclude").write_text("upstream\n")
    git(root, "remote", "add", "origin", "./upstream")
    git(root, "push", "-q", "origin", "main:refs/heads/theirs")
    git(root, "branch", "-q", "-D", "side")


def remote(root: Path) -> None:
    """A repository whose `origin`, beside it, lacks its commits."""
    repository(root)
    git(root, "init", "-q", "--bare", "../origin")
    git(root, "remote", "add", "origin", "../origin")


def refs_of_remote(root: Path) -> str:
    """What `origin` has."""
    return git(root.parent / "origin", "for-each-ref", "--format=%(refname) %(tree) %(contents:subject)")


def junk(root: Path) -> None:
    """Files, and things of all kinds that git ignores and a script may destroy."""
    repository(root)
    (root / "build" / "deep").mkdir(parents=True)
    (root / "build" / "deep" / "object").write_bytes(bytes(range(256)) * 400)
    (root / "build" / "empty").mkdir(mode=0o700)
    (root / "build" / "link").symlink_to("../a")
    (root / "build" / "dangling").symlink_to("nowhere")
    (root / ".gitignore").write_text("ignored\nbuild/\n")


def nothing(root: Path) -> None:
    """An empty workspace."""


FIRST = {"id": "first", "op": "file.write", "with": {"path": "before/first", "content": "1\n"}}
LAST = {"id": "last", "op": "file.append", "with": {"path": "before/first", "content": "2\n"}}


def one(op: str, prepare: Prepare = files, /, **parameters: Any) -> Scenario:
    """A scenario of one instruction of interest between two writes."""
    step: dict[str, Any] = {"id": "it", "op": op, "with": parameters}
    if op == "script.run":
        step["timeout"] = 20
    label = str(next(iter(parameters.values()), "")).partition("\n")[0]
    stride = 3 if op.startswith("git.") else 2 if op.startswith(("script.", "quality.")) else 1
    return Scenario(f"{op} {label}"[:60].strip(), (FIRST, step, LAST), prepare, stride)


def several(name: str, *steps: Mapping[str, Any], prepare: Prepare = files, **options: Any) -> Scenario:
    """A scenario of these instructions between two writes."""
    return Scenario(name, (FIRST, *steps, LAST), prepare, **options)


def write(path: str, content: str = "new\n", **fields: Any) -> dict[str, Any]:
    """An instruction that writes a file."""
    return {"id": f"write-{path}".replace("/", "-"), "op": "file.write", "with": {"path": path, "content": content}} | (
        fields
    )


def shell(name: str, text: str, **fields: Any) -> dict[str, Any]:
    """An instruction that has the shell run a text."""
    return {"id": name, "op": "script.run", "with": {"shell": text}, "timeout": 20, **fields}


def checkpoint(name: str) -> dict[str, Any]:
    """An instruction that names a place to roll back to."""
    return {"id": f"checkpoint-{name}", "op": "checkpoint", "with": {"name": name}}


def fail(**fields: Any) -> dict[str, Any]:
    """An instruction that fails."""
    return {"id": "fail", "op": "assert", "with": {"that": False}, **fields}


def called(*steps: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """An instruction that calls a set of these, and gives it these inputs, which are texts."""
    given = inputs or {}
    declared = {name: {"type": "string"} for name in given}
    inner = {"name": "inner", "order": "sequential", "inputs": declared, "instructions": list(steps)}
    return {"id": "called", "op": "call", "with": {"set": inner, "inputs": given}, **fields}


PATCH = (
    "--- a/old\n+++ b/old\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n--- /dev/null\n+++ b/made\n@@ -0,0 +1 @@\n+made\n"
)
AUTHOR = {"name": "Ada", "email": "ada@example.org"}
QUICK = "[each * each for each in numbers]"
MODEL = Constant(
    "The tide has gone out.\n",
    {
        "edit_files": {
            "summary": "Shouted.",
            "edits": [
                {"path": "old", "search": "two", "replace": "TWO"},
                {"path": "folder/inner/b", "search": "b", "replace": "B"},
            ],
        },
        "optimize": {
            "suggestions": [],
            "edits": [{"path": "squares.py", "search": "list([each * each for each in numbers])", "replace": QUICK}],
        },
        "write_set": {
            "set": {
                "version": 1,
                "name": "begun",
                "instructions": [{"id": "begin", "op": "file.write", "with": {"path": "log", "content": "# Log\n"}}],
            }
        },
    },
)
BENCHMARK = ["sh", "-c", "if grep -q 'list(' squares.py; then sleep 0.05; fi"]
"""Slow as long as the code is. Should a busy machine hide that, the model is asked again: nothing is left to chance."""

SCENARIOS = (
    one("file.write", path="new/deep/file", content="new\n"),
    one("file.write", path="old", content="changed\n", mode="0755"),
    one("file.append", path="old", content="four\n"),
    one("file.edit", path="old", edits=[{"find": "two", "replace": "TWO"}]),
    one("file.patch", patch=PATCH),
    one("file.set", path="data.json", pointer="/x", value=2),
    one("file.delete", path="folder", recursive=True),
    one("file.move", source="folder", destination="elsewhere/folder"),
    one("file.copy", source="folder", destination="copy"),
    one("file.mkdir", path="made/deep"),
    one("file.mkdir", path="folder/inner"),
    one("file.chmod", path="old", mode="0400"),
    one("file.chmod", path="folder/inner", mode="0700"),
    one("file.copy", source="folder/link", destination="copied"),
    one("file.move", source="folder/empty", destination="somewhere/empty"),
    one("file.delete", path="folder/empty"),
    one("file.write", path="large", content="".join(f"{number * 7919 % 100003}\n" for number in range(40_000))),
    one("file.render", template="template.j2", path="rendered", values={"name": "Ada"}),
    one(
        "script.run",
        shell="echo s > script; rm -r folder; ln -s old link; chmod 700 old; mkdir -p x/y; echo more >> old",
    ),
    one(
        "script.run",
        junk,
        shell="mv build moved; rm -r moved/deep; mv a renamed; chmod 500 moved/empty; ln -sfn a moved/link; rm ignored",
    ),
    several("a script that may write one folder", shell("it", "rm -r folder/*; touch folder/x", writes=["folder/**"])),
    one("quality.format", paths=["module.py"]),
    one("quality.lint", paths=["module.py"], fix=True, allow_findings=True),
    one("quality.test", argv=["sh", "-c", "echo tested >> old; mkdir -p cache/deep"]),
    one("git.init", nothing),
    one("git.add", changed, paths=["c"]),
    one("git.commit", changed, message="all", all=True, author=AUTHOR),
    one("git.branch", repository, name="new", checkout=True),
    one("git.checkout", repository, ref="side"),
    one("git.merge", repository, ref="side", author=AUTHOR),
    one("git.tag", repository, name="v1"),
    one("git.revert", repository, commit="main", author=AUTHOR),
    one("git.checkout", packed, ref="side"),
    one("git.commit", packed, message="all", all=True, author=AUTHOR),
    one("git.tag", packed, name="v2", message="with a message", author=AUTHOR),
    one("git.fetch", upstream, remote="origin"),
    one("git.clone", upstream, url="./upstream", path="cloned"),
    several(
        "git.push",
        {"id": "it", "op": "git.push", "with": {"remote": "origin", "refspec": "main"}},
        prepare=remote,
        stride=3,
        outside=refs_of_remote,
    ),
    several(
        "a script at sandbox level 4",
        write("made/file"),
        shell("it", "rm -r folder; mkdir folder made/deep; echo more >> old; ln -sfn x made/link; chmod 600 data.json"),
        prefer=4,
        stride=6,
    ),
    several(
        "a failure after one", shell("it", "rm -r folder; echo file > folder"), fail(), prefer=4, ends="rolled_back"
    ),
    several("checkpoint", write("made/file"), checkpoint("half"), shell("it", "rm -r folder")),
    several(
        "a failure after a checkpoint",
        write("made/file"),
        checkpoint("half"),
        shell("it", "rm -r folder"),
        fail(needs=["it"]),
        ends="kept",
        rollback_to="half",
    ),
    several("call", called(write("inner/a"), write("inner/b"), shell("s", "echo s >> inner/a"))),
    several("call that fails and is tried again", called(write("inner/a"), fail(), retries=1, on_error="continue")),
    several("for_each", write("each/${{ item }}", for_each=["a", "b", "c"], id="each")),
    several(
        "for_each of a call",
        called(write("each/${{ inputs.name }}", id="inner"), inputs={"name": "${{ item }}"}, for_each=["a", "b"]),
    ),
    several("retries", shell("it", "echo try >> tries; exit 1", retries=2, on_error="continue")),
    several("on_error", fail(needs=["first"], on_error={"run": [write("handled"), shell("mend", "rm old")]})),
    several(
        "undo",
        shell("out", "echo made > ../outside", undo=shell("back", "rm -f ../outside; echo undone >> old")),
        fail(),
        ends="rolled_back",
    ),
    several("a failure", write("made/file"), shell("it", "rm -r folder"), fail(), ends="rolled_back"),
    several(
        "four at once",
        *(write(f"{number}/file", order) for number, order in enumerate("abcdef")),
        *(
            {"id": f"more-{number}", "op": "file.append", "with": {"path": f"{number}/file", "content": "+"}}
            for number in range(6)
        ),
        order="inferred",
        parallel=4,
    ),
    several(
        "a batch",
        write("old", "changed\n"),
        {"id": "more", "op": "file.append", "with": {"path": "old", "content": "and more\n"}},
        write("made/deep/file"),
        {"id": "away", "op": "file.delete", "with": {"path": "folder", "recursive": True}},
        {"id": "moved", "op": "file.move", "with": {"source": "data.json", "destination": "made/data.json"}},
        {"id": "mode", "op": "file.chmod", "with": {"path": "old", "mode": "0755"}},
        batch_from=2,
    ),
    several(
        "a batch that fails",
        write("made/file"),
        {"id": "away", "op": "file.delete", "with": {"path": "folder", "recursive": True}},
        fail(needs=["away"]),
        batch_from=2,
        ends="rolled_back",
    ),
    several(
        "what a model writes",
        {"id": "edit", "op": "llm.edit", "with": {"instruction": "Shout.", "paths": ["old", "folder"]}},
        {"id": "generate", "op": "llm.generate", "with": {"prompt": "A haiku.", "path": "made/haiku.txt"}},
        {"id": "plan", "op": "llm.plan", "with": {"goal": "Begin a log.", "path": "made/begun.json"}},
        model=MODEL,
    ),
    several(
        "what rules write",
        {"id": "fix", "op": "llm.fix", "with": {"argv": ["python", "-IS", "area.py"], "paths": ["area.py"]}},
        {"id": "it", "op": "quality.refactor", "with": {"paths": ["app.py"], "test": ["true"]}},
        {"id": "document", "op": "llm.document", "with": {"paths": ["app.py"], "page": "made/app.md"}},
        prepare=code,
        stride=3,
    ),
    several(
        "llm.optimize",
        {
            "id": "it",
            "op": "llm.optimize",
            "with": {
                "benchmark": BENCHMARK,
                "test": ["true"],
                "paths": ["squares.py"],
                "repetitions": 5,
                "attempts": 10,
            },
        },
        prepare=code,
        model=MODEL,
        stride=6,
    ),
    several("batches between scripts", write("a"), shell("it", "rm -r folder; echo s > b"), write("c"), batch_from=2),
)

PLAIN_WRITE = one("file.write", path="old", content="changed\n")
SCRIPT = one("script.run", shell="rm -r folder; echo more >> old")
SLOW_COMMIT = Scenario(
    "git.commit",
    ({"id": "it", "op": "git.commit", "with": {"message": "all", "all": True, "author": AUTHOR}},),
    changed,
)
INCOMPRESSIBLE = "".join(f"{number * number * 7919 % 1000003:x}\n" for number in range(60_000))


def large(root: Path) -> None:
    """A file that is too large to lie in the journal's database."""
    (root / "large").write_text(INCOMPRESSIBLE)


POWER = one("file.write", large, path="large", content="changed\n" * 500)

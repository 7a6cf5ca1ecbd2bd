"""What is run while being killed: for every operation that changes something, a start and one instruction set."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prepare = Callable[[Path], None]


@dataclass(frozen=True)
class Scenario:
    """A workspace's start, and the instructions that are run there one by one."""

    name: str
    instructions: tuple[Mapping[str, Any], ...]
    prepare: Prepare
    stride: int = 1
    """How many times fewer of its points are taken where not all are: git's cases take longer, and are alike."""


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


def git(root: Path, *arguments: str) -> str:
    """The output of git, with a fixed identity and date."""
    fixed = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *fixed, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def repository(root: Path) -> None:
    """Two branches with a commit each beyond the first, and a change that is not committed."""
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


def nothing(root: Path) -> None:
    """An empty workspace."""


def one(op: str, prepare: Prepare = files, /, **parameters: Any) -> Scenario:
    """A scenario of one instruction of interest between two writes."""
    step = {"id": "it", "op": op, "with": parameters}
    if op == "script.run":
        step["timeout"] = 20
    first = {"id": "first", "op": "file.write", "with": {"path": "before/first", "content": "1\n"}}
    last = {"id": "last", "op": "file.append", "with": {"path": "before/first", "content": "2\n"}}
    label = str(next(iter(parameters.values()), "")).partition("\n")[0]
    stride = 3 if op.startswith("git.") else 1
    return Scenario(f"{op} {label}"[:60].strip(), (first, step, last), prepare, stride)


PATCH = (
    "--- a/old\n+++ b/old\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n--- /dev/null\n+++ b/made\n@@ -0,0 +1 @@\n+made\n"
)
AUTHOR = {"name": "Ada", "email": "ada@example.org"}

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
    one("file.chmod", path="old", mode="0400"),
    one("file.render", template="template.j2", path="rendered", values={"name": "Ada"}),
    one(
        "script.run",
        shell="echo s > script; rm -r folder; ln -s old link; chmod 700 old; mkdir -p x/y; echo more >> old",
    ),
    one("quality.format", paths=["module.py"]),
    one("quality.lint", paths=["module.py"], fix=True, allow_findings=True),
    one("git.init", nothing),
    one("git.add", repository, paths=["a"]),
    one("git.commit", repository, message="all", all=True, author=AUTHOR),
    one("git.branch", repository, name="new", checkout=True),
    one("git.checkout", repository, ref="side"),
    one("git.merge", repository, ref="side", author=AUTHOR),
    one("git.tag", repository, name="v1"),
    one("git.revert", repository, commit="main", author=AUTHOR),
)

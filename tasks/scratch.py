"""A scratch folder in which ruff works on a copy of the workspace's Python files.

The copy holds the files in question and the configuration that applies to them, and ruff is started so that nothing
of the machine around the folder has a say: no user's configuration, no cache, no ignore file further up. What ruff
does to the copy is therefore what it would do to the workspace, on any machine; and the workspace itself is only read.

This module knows ruff's command line and reports, and no operation.
"""

from __future__ import annotations

import json
import posixpath
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeAlias, TypedDict

from pydantic import Field

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.sandbox import Completed, Processes
from quantum_orchestrator.blocks.tree import ROOT, Kind, Tree, ancestors, is_within, join, not_a_file, parent
from quantum_orchestrator.tasks.operation import Access, Context, FolderPath

PYTHON_SUFFIXES = (".py", ".pyi", ".pyw", ".ipynb")
CONFIGURATION = ("pyproject.toml", "ruff.toml", ".ruff.toml", ".editorconfig", ".gitignore", ".ignore")
"""Files that decide, in their folder and below, how ruff works and which files it leaves alone."""
# fmt: off
EXCLUDED = frozenset((
    ".bzr", ".direnv", ".eggs", ".git", ".git-rewrite", ".hg", ".ipynb_checkpoints", ".mypy_cache", ".nox",
    ".pants.d", ".pyenv", ".pytest_cache", ".pytype", ".ruff_cache", ".svn", ".tox", ".venv", ".vscode",
    "__pycache__", "__pypackages__", "_build", "buck-out", "build", "dist", "node_modules", "site-packages", "venv",
))
# fmt: on
"""Names of folders that are not looked into unless `paths` names one: those that ruff leaves out, and caches."""
_COGNITIVE = Path(__file__).with_name("cognitive.py")
SHOWN = 5
"""How many findings or tests an error message names."""
Paths = Annotated[
    list[FolderPath],
    Field(
        min_length=1,
        description="Files, and folders with everything below them; `.` is the workspace. Folders that hold caches, "
        "environments and builds are left out, unless named here.",
    ),
]


def subtrees(paths: Iterable[str]) -> tuple[Access, ...]:
    """These files, and folders with everything below them."""
    return tuple(Access(path, subtree=True) for path in paths)


def configuration_above(path: str) -> list[str]:
    """Every place where configuration that applies to `path` may be, but for those below it."""
    return [join(folder, name) for folder in (ROOT, *ancestors(path)) for name in CONFIGURATION]


def listed(items: Sequence[object]) -> str:
    """The first few, and how many more there are: for error messages."""
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


class Scratch:
    """A copy of a part of the workspace, in which tools may do as they like."""

    def __init__(self, context: Context, folder: Path, tree: Tree | None = None) -> None:
        self.context = context
        self.tree: Tree = tree or context.files
        self.root = folder / "workspace"
        self.report = folder / "report.json"
        self.home = folder / "home"
        self.originals: dict[str, bytes] = {}
        self.home.mkdir()
        (self.root / ".git").mkdir(parents=True)  # ruff heeds ignore files in repositories alone, and no further up

    def place(self, path: str, content: bytes) -> None:
        """Write a file of the workspace into the copy."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        entry = self.tree.entry(path)
        if entry is not None and entry.mode & 0o111:
            place.chmod(0o755)  # some rules compare the mode with the first line

    def add_python(self, paths: Iterable[str]) -> None:
        """Copy the Python files at and below `paths`. Raises OperationError for one where nothing is."""
        for path in dict.fromkeys(path for top in paths for path in python_files(self.tree, top)):
            self.originals[path] = self.tree.read(path)
            self.place(path, self.originals[path])

    def add_configuration(self, paths: Sequence[str], reads: Sequence[Access]) -> None:
        """Copy the configuration that applies to `paths`, with what it extends as far as `reads` says it is read."""
        above = (place for path in paths for place in configuration_above(path))
        below = (file for path in paths if self.tree.kind(path) is Kind.FOLDER for file in _files(self.tree, path))
        waiting = [*above, *(file for file in below if PurePosixPath(file).name in CONFIGURATION)]
        done: set[str] = set()
        while waiting:
            path = waiting.pop()
            if path in done or self.tree.kind(path) is not Kind.FILE:
                continue
            done.add(path)
            content = self.tree.read(path)
            self.place(path, content)
            waiting += _extended(path, content, reads)
        if not any(_has_settings(self.root / name) for name in CONFIGURATION):
            (self.root / "ruff.toml").touch()  # the end of the search, which would go on in the folders above

    def add_names(self) -> None:
        """Have all other Python files as empty ones: which packages there are decides how imports are sorted."""
        for path in _files(self.tree, ROOT):
            place = self.root / path
            if path.endswith(PYTHON_SUFFIXES) and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()

    def graph(self, *options: str) -> dict[str, list[str]]:
        """Run `ruff analyze graph` and return, for each file, those that it imports."""
        done = self.ruff("analyze", "graph", *options, paths=[ROOT], quiet=True)
        graph: dict[str, list[str]] = json.loads(done.stdout)
        return graph

    def ruff(self, command: str, *options: str, paths: Iterable[str], quiet: bool = False) -> Completed:
        """Run it. Raises OperationError with what it says when it fails; findings are no failure.

        What it says otherwise goes to the log, unless that is its report.
        """
        processes = self.context.processes or Processes()
        done = processes.run(
            [ruff_program(), command, *options, *([] if command == "analyze" else ["--no-cache"]), "--", *paths],
            cwd=self.root,
            env={"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home), "NO_COLOR": "1"},
            timeout=self.context.timeout,
            cancel=self.context.cancel,
            folders=(self.root.parent,),
        )
        said = (done.stderr if done.exit_code else done.stdout + done.stderr).decode(errors="replace")
        lines = [line for line in said.replace(f"{self.root}/", "").splitlines() if line.strip()]
        if done.exit_code:
            raise _ruff_failed(command, lines, done.exit_code)
        for line in () if quiet else lines:
            self.context.log(line)
        return done

    def check(self, *options: str, paths: Iterable[str]) -> list[RuffFinding]:
        """Run `ruff check` and return its report."""
        outlet = ("--output-format", "json", "--output-file", str(self.report), "--exit-zero")
        self.ruff("check", *outlet, *options, paths=paths)
        findings: list[RuffFinding] = json.loads(self.report.read_bytes())
        for finding in findings:
            finding["filename"] = Path(finding["filename"]).relative_to(self.root).as_posix()
        return findings

    def cognitive(self) -> dict[str, Measures]:
        """What complexipy measures in each of the Python files; see `tasks/cognitive.py`."""
        if not self.originals:
            return {}
        done = (self.context.processes or Processes()).run(
            [sys.executable, "-I", "-c", _COGNITIVE.read_text()],
            cwd=self.root,
            env={"HOME": str(self.home)},
            stdin=json.dumps(sorted(self.originals)).encode(),
            timeout=self.context.timeout,
            cancel=self.context.cancel,
            folders=(self.root.parent,),
        )
        if done.exit_code:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise OperationError(f"complexipy failed with exit code {done.exit_code}: {said[0]}")
        measures: dict[str, Measures] = json.loads(done.stdout)
        return measures

    def changed(self) -> dict[str, bytes]:
        """The files that a tool changed, with their new content."""
        now = {path: (self.root / path).read_bytes() for path in self.originals}
        return {path: now[path] for path in sorted(now) if now[path] != self.originals[path]}


class RuffLocation(TypedDict):
    """A place in ruff's JSON report, counted from 1."""

    row: int
    column: int


class RuffFix(TypedDict):
    """How a finding can be repaired."""

    applicability: str


class RuffFinding(TypedDict):
    """One entry of ruff's JSON report, as far as it is used here."""

    filename: str
    code: str | None
    location: RuffLocation | None
    message: str
    fix: RuffFix | None


class Measure(TypedDict):
    """The cognitive complexity of one function."""

    name: str
    line: int
    complexity: int


Measures: TypeAlias = list[Measure] | str
"""Those of a file, or why it cannot be measured."""


@contextmanager
def scratch_folder(context: Context, tree: Tree | None = None) -> Iterator[Scratch]:
    """An empty scratch folder, which is gone afterwards; for files of `tree`, if it is not the workspace's."""
    with tempfile.TemporaryDirectory(prefix="qo-quality-") as folder:
        yield Scratch(context, Path(folder).resolve(), tree)


def _files(tree: Tree, folder: str) -> Iterator[str]:
    """The regular files below a folder; links are not followed."""
    for name in tree.names(folder):
        path = join(folder, name)
        kind = tree.kind(path)
        if kind is Kind.FILE:
            yield path
        elif kind is Kind.FOLDER and name not in EXCLUDED:
            yield from _files(tree, path)


def python_files(tree: Tree, path: str) -> Iterator[str]:
    """The Python files at and below a path; a file that is named is taken for Python, whatever its name."""
    kind = tree.kind(path)
    if kind is Kind.FILE:
        yield path
    elif kind is Kind.FOLDER:
        yield from (file for file in _files(tree, path) if file.endswith(PYTHON_SUFFIXES))
    else:
        raise not_a_file(path, kind)


def _settings(name: str, content: bytes) -> Mapping[str, Any] | None:
    """Ruff's settings in a file of this name; None if there are none. What is no TOML is ruff's to complain of."""
    if not name.endswith(".toml"):
        return None
    try:
        document = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}
    settings = document.get("tool", {}).get("ruff") if name == "pyproject.toml" else document
    return settings if isinstance(settings, dict) else None


def _has_settings(file: Path) -> bool:
    """Whether ruff ends its search for configuration at this file."""
    return file.exists() and _settings(file.name, file.read_bytes()) is not None


def _extended(path: str, content: bytes, reads: Sequence[Access]) -> list[str]:
    """The file that a configuration extends. Raises OperationError for one out of reach."""
    base = (_settings(PurePosixPath(path).name, content) or {}).get("extend")
    if not isinstance(base, str):
        return []
    target = posixpath.normpath(posixpath.join(parent(path), base))
    if base.startswith(("~", "$")) or posixpath.isabs(target) or target.split("/")[0] == "..":
        raise OperationError(f"{path}: extends {base!r}, which is outside of the workspace")
    if not any(is_within(target, read.path) if read.subtree else target == read.path for read in reads):
        raise OperationError(
            f"{path}: extends {target!r}, which this step does not read",
            hint="keep it beside or above the files, or name its folder in `paths`",
        )
    return [target]


def ruff_program() -> str:
    """Where ruff is: beside the Python that runs this, whatever the PATH says."""
    try:
        from ruff import find_ruff_bin  # type: ignore[import-untyped]

        return str(find_ruff_bin())
    except (ImportError, FileNotFoundError) as error:
        raise OperationError(
            "ruff is not installed beside this Python", hint="install it there: pip install 'ruff>=0.14'"
        ) from error


def _ruff_failed(command: str, lines: Sequence[str], exit_code: int) -> OperationError:
    """What ruff said as an error. `Failed to parse a.py:1:7: reason` names the place by itself."""
    errors = [line.removeprefix("error: ") for line in lines if not line.startswith("warning")]
    parsing = [error.removeprefix("Failed to parse ") for error in errors if error.startswith("Failed to parse ")]
    if parsing and len(parsing) == len(errors):
        return OperationError(listed(parsing), hint="correct the syntax first; nothing was changed")
    said = "\n".join(errors[:20]) or "it said nothing"
    return OperationError(f"ruff {command} failed with exit code {exit_code}: {said}")

"""`quality.refactor`: change Python code for the better, and keep only what the tests and the score bear out.

Refactorings are tried one after another, each on top of those that were kept: ruff's fixes, then libcst codemods. A
try is made in a copy of the workspace, where the tests run; it is kept if they pass and the score does not fall. The
workspace itself is written to once, at the end, with what was kept: until then it is as it was, byte for byte.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.sandbox import Processes
from quantum_orchestrator.blocks.tree import ROOT, Overlay, Tree
from quantum_orchestrator.tasks.codemods import CODEMODS
from quantum_orchestrator.tasks.debt import MINUTES, UNCOUNTED
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Context,
    Effects,
    Operation,
    Outputs,
    Parameters,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.quality_score import measured
from quantum_orchestrator.tasks.scratch import EXCLUDED, Paths, python_files, scratch_folder, subtrees

Name = Literal["ruff", "ruff-unsafe", "annotate-none"]
ORDER: tuple[Name, ...] = ("ruff", "ruff-unsafe", "annotate-none")
LONGEST_REASON = 500


class RefactorParameters(Parameters):
    """What to change, and how to see that it still works."""

    paths: Paths = Field([ROOT])
    refactorings: list[Name] = Field(
        ["ruff", "annotate-none"],
        min_length=1,
        description="What to try: `ruff` (the fixes that are safe, of the rules that the score counts), `ruff-unsafe` "
        "(those that may change what code does: the tests must be good), `annotate-none` (`-> None`).",
    )
    test: list[str] = Field(
        ["python", "-m", "pytest", "-q"],
        min_length=1,
        description="The program that tests the workspace, and its arguments; it runs in a copy of it.",
    )


class Refactoring(Outputs):
    """One refactoring that was tried."""

    name: str = Field(description="Which one.")
    kept: bool = Field(description="Whether its changes are there.")
    changed: list[str] = Field(description="The files that it changed.")
    score: float | None = Field(description="The score with it.")
    reason: str = Field(description="Why it was kept, or was not.")


class RefactorOutputs(Outputs):
    """What was tried, and what was kept."""

    changed: list[str] = Field(description="The files that are not what they were, by path.")
    refactorings: list[Refactoring] = Field(description="What was tried, in this order.")
    baseline: float | None = Field(description="The score before.")
    score: float | None = Field(description="The score now.")


@operation("quality.refactor")
class Refactor(Operation[RefactorParameters, RefactorOutputs]):
    """Refactor Python code, and keep only what passes the tests and does not lower the score.

    Tests run in a copy of the workspace, without its caches and environments; what they do there is not kept. Tests
    that fail before anything is changed fail the step.
    """

    relies_on = ("libcst", "ruff")
    example_files: ClassVar[Mapping[str, str]] = {"app.py": "import os\n\n\ndef greet():\n    print('hello')\n"}
    example: ClassVar[Mapping[str, Any]] = {"paths": ["app.py"], "test": ["python", "-c", "import app; app.greet()"]}

    def effects(self, parameters: RefactorParameters) -> Effects:
        """Reads everything, for the tests; writes the files."""
        return Effects(reads=(EVERYTHING,), writes=subtrees(parameters.paths), predictable=False)

    def reach(self, parameters: RefactorParameters) -> Reach:
        """The program that tests."""
        return Reach(programs=(parameters.test[0],))

    def run(self, parameters: RefactorParameters, context: Context) -> RefactorOutputs:
        """Refactor. Raises OperationError if the tests fail as it is."""
        with _copy(context) as copy:
            trial = _Trial(parameters, context, copy)
            tried = [trial.attempt(name) for name in ORDER if name in parameters.refactorings]
        changes = trial.kept.changes()
        with ConfinedFolder.open(context.folder) as folder:
            for each in changes:
                assert each.after is not None
                folder.write(each.path, trial.kept.content_of(each.after.sha256), each.after.mode)
        return RefactorOutputs(
            changed=[each.path for each in changes], refactorings=tried, baseline=trial.baseline, score=trial.score
        )


class _Trial:
    """What has been kept so far, in a copy of the workspace that is as if it were all there."""

    def __init__(self, parameters: RefactorParameters, context: Context, copy: Path) -> None:
        self._parameters = parameters
        self._context = context
        self._copy = copy
        self.kept = Overlay(context.files)
        self.baseline = self.score = measured(context, parameters.paths).score
        if problem := self._tests_fail():
            raise OperationError(f"the tests fail before anything is changed: {problem}", hint="repair them first")

    def attempt(self, name: Name) -> Refactoring:
        """Try one; it is kept, or the copy is as before."""
        contents = self._refactored(name)
        if not contents:
            return Refactoring(name=name, kept=False, changed=[], score=self.score, reason="there is nothing to change")
        tried = Overlay(self.kept)
        for path, content in contents.items():
            tried.write(path, content)
        score = measured(self._context, self._parameters.paths, tried).score
        reason = self._objection(contents, score)
        if reason is None:
            self.kept.apply(tried.changes(), tried.content_of)
            self.score = score
        self._context.log(f"{name}: {reason or 'kept'}")
        said = reason or "the tests pass, and the score does not fall"
        return Refactoring(name=name, kept=reason is None, changed=list(contents), score=score, reason=said)

    def _objection(self, contents: Mapping[str, bytes], score: float | None) -> str | None:
        """Why it cannot be kept; the copy is then as before."""
        if self.score is not None and (score is None or score < self.score):
            return f"the score would fall from {self.score:g} to {'none' if score is None else f'{score:g}'}"
        before = {path: self.kept.read(path) for path in contents}
        self._put(contents)
        if problem := self._tests_fail():
            self._put(before)
            return f"the tests fail with it: {problem}"
        return None

    def _put(self, contents: Mapping[str, bytes]) -> None:
        for path, content in contents.items():
            (self._copy / path).write_bytes(content)

    def _tests_fail(self) -> str:
        """What the tests say if they fail; empty if they pass."""
        done = (self._context.processes or Processes()).run(
            self._parameters.test,
            cwd=self._copy,
            env={**self._context.env, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=self._context.timeout,
            cancel=self._context.cancel,
            folders=(self._copy.parent,),
        )
        said = (done.stdout + done.stderr).decode(errors="replace").strip()[-LONGEST_REASON:]
        return f"exit code {done.exit_code}: {said}" if done.exit_code else ""

    def _refactored(self, name: Name) -> dict[str, bytes]:
        """The files that a refactoring changes, with their new contents."""
        if name in CODEMODS:
            return self._by_codemod(CODEMODS[name])
        with scratch_folder(self._context, self.kept) as scratch:
            scratch.add_python(self._parameters.paths)
            if scratch.originals:
                fix = "--unsafe-fixes" if name == "ruff-unsafe" else "--no-unsafe-fixes"
                rules = (f"--select={','.join(MINUTES)}", f"--ignore={','.join(UNCOUNTED)}")
                scratch.check("--isolated", "--fix", fix, *rules, paths=self._parameters.paths)
            return scratch.changed()

    def _by_codemod(self, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
        changed = {}
        for path in _modules(self.kept, self._parameters.paths):
            before = self.kept.read(path)
            try:
                after = change(before)
            except OperationError as error:
                self._context.log(f"{path} is left as it is: {error.message}")
                continue
            if after != before:
                changed[path] = after
        return changed


def _modules(tree: Tree, paths: list[str]) -> list[str]:
    found = dict.fromkeys(path for top in paths for path in python_files(tree, top))
    return [path for path in found if path.endswith(".py")]


@contextmanager
def _copy(context: Context) -> Iterator[Path]:
    """The workspace once more, in a folder of its own: what is in it is not followed out of it."""
    with tempfile.TemporaryDirectory(prefix="qo-refactor-") as folder:
        copy = Path(folder).resolve() / "workspace"
        shutil.copytree(context.folder, copy, symlinks=True, ignore=_left_out)
        yield copy


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Caches, environments and repositories; and what is no file, and could not be read to its end."""
    out = {name for name in names if name in EXCLUDED}
    for name in names:
        place = Path(folder, name)
        if not (place.is_symlink() or place.is_file() or place.is_dir()):
            out.add(name)
    return out

"""Random kills: sets of many mixed instructions, run four at once, and killed at a random moment.

A set is made from its seed alone, so that each can be had again. It is run undisturbed once, to know what it leaves and
how long it takes; then again, with a SIGKILL at a moment uniform over that time; then it is resumed or rolled back,
being killed once more in the middle of that for every third. What is left must be exactly what the undisturbed run has
left, or exactly the start, with git's own check clean and no process left over. Every append and every commit of a set
adds a line of its own, so one that came twice, or never, shows.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantum_orchestrator.flows.batching import BATCH_FROM
from tests.crash.cases import Bench, Violation, children, fork, in_child, left_running, recover, run_set
from tests.crash.scenarios import AUTHOR, Scenario, fail, git, repository

TRACKED = "tracked"


def start(root: Path) -> None:
    """A repository, and files in two folders."""
    repository(root)
    for folder in ("one", "two/deep"):
        (root / folder).mkdir(parents=True)
        for number in range(4):
            (root / folder / f"start-{number}").write_text(f"start {number}\n")
    (root / TRACKED).write_text("tracked\n")
    git(root, "add", TRACKED, "one")
    git(root, "commit", "-qm", "fourth")


class _Author:
    """Writes the instructions of one set, knowing which files each of them finds."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.steps: list[dict[str, Any]] = []
        self.files = {
            f"{folder}/start-{number}": f"start {number}" for folder in ("one", "two/deep") for number in range(4)
        }
        """The first line of each file, which is in it once."""

    def write_set(self, length: int) -> list[dict[str, Any]]:
        kinds: list[tuple[Callable[[str], None], int]] = [
            (self.write, 6),
            (self.append, 8),
            (self.edit, 5),
            (self.move, 3),
            (self.copy, 2),
            (self.delete, 2),
            (self.chmod, 2),
            (self.mkdir, 1),
            (self.script, 4),
            (self.narrow_script, 3),
            (self.add, 1),
            (self.commit, 2),
            (self.each, 3),
        ]
        makers, weights = zip(*kinds, strict=True)
        while len(self.steps) < length:
            self.dice.choices(makers, weights)[0](str(len(self.steps)))
        return self.steps[:length]

    def _step(self, name: str, op: str, /, *, fields: dict[str, Any] | None = None, **parameters: Any) -> None:
        self.steps.append({"id": f"s{name}", "op": op, "with": parameters, **(fields or {})})

    def _any(self) -> str:
        return self.dice.choice(sorted(self.files))

    def _new(self, name: str) -> str:
        path = self.dice.choice(["", "one/", "two/deep/", "three/", f"only-{name}/in/"]) + f"f{name}"
        self.files[path] = f"first {name}"
        return path

    def write(self, name: str) -> None:
        size = self.dice.choice([1, 1, 1, 300, 30_000])
        self._step(name, "file.write", path=self._new(name), content=f"first {name}\n" + f"{name}\n" * size)

    def append(self, name: str) -> None:
        self._step(name, "file.append", path=self._any(), content=f"append {name}\n")

    def edit(self, name: str) -> None:
        path = self._any()
        edits = [{"find": f"{self.files[path]}\n", "replace": f"edited {name}\n"}]
        self.files[path] = f"edited {name}"
        self._step(name, "file.edit", path=path, edits=edits)

    def move(self, name: str) -> None:
        source, destination = self._any(), f"moved/m{name}"
        self.files[destination] = self.files.pop(source)
        self._step(name, "file.move", source=source, destination=destination)

    def copy(self, name: str) -> None:
        source, destination = self._any(), f"copies/c{name}"
        self.files[destination] = self.files[source]
        self._step(name, "file.copy", source=source, destination=destination)

    def delete(self, name: str) -> None:
        path = self._any()
        if len(self.files) > 4:
            del self.files[path]
            self._step(name, "file.delete", path=path)

    def chmod(self, name: str) -> None:
        self._step(name, "file.chmod", path=self._any(), mode=self.dice.choice(["0600", "0644", "0755"]))

    def mkdir(self, name: str) -> None:
        self._step(name, "file.mkdir", path=f"empty/e{name}")

    def script(self, name: str) -> None:
        text = f"echo script {name} >> {self._any()}; sleep 0.0{self.dice.randrange(3)}; mkdir -p made/{name}"
        self._step(name, "script.run", shell=text)

    def narrow_script(self, name: str) -> None:
        path = self._any()
        text = f"echo narrow {name} >> {path}; sleep 0.0{self.dice.randrange(3)}"
        self._step(name, "script.run", shell=text, fields={"reads": [path], "writes": [path]})

    def add(self, name: str) -> None:
        self._step(name, "git.add", paths=[self._any()])

    def commit(self, name: str) -> None:
        self._step(name, "file.append", path=TRACKED, content=f"append {name}\n")
        self._step(f"{name}-commit", "git.commit", message=f"commit {name}", all=True, author=AUTHOR)

    def each(self, name: str) -> None:
        chosen = self.dice.sample(sorted(self.files), 3)
        content = f"each {name} ${{{{ item }}}}\n"
        self._step(name, "file.append", path="${{ item }}", content=content, fields={"for_each": chosen})


def mixed_set(seed: int, length: int) -> Scenario:
    """The set of a seed. Every fifth fails at its end, so that a kill may find the engine undoing it."""
    *steps, last = _Author(seed).write_set(length)
    fails = seed % 5 == 4
    steps.append(fail(needs=[step["id"] for step in steps]) if fails else last)
    ends = "rolled_back" if fails else "committed"
    together = 2 if seed % 3 else BATCH_FROM
    return Scenario(f"mixed {seed}", tuple(steps), start, ends=ends, order="inferred", parallel=4, batch_from=together)


def trial(seed: int, folder: Path, length: int) -> list[Violation]:
    """One set, killed at a random moment and brought to an end."""
    scenario = mixed_set(seed, length)
    dice = random.Random(f"moments of {seed}")
    bench = Bench(scenario, folder, with_points=False)
    way = "resume" if seed % 2 else "rollback"
    known = children()
    with bench.workspace() as root:
        moment = dice.uniform(0, bench.seconds)
        _kill_after(moment, lambda: run_set(root, scenario))
        name = f"{scenario.name}: {way} after a kill at {moment:.3f} of {bench.seconds:.3f} s"
        if seed % 3 == 0:
            moment = dice.uniform(0, bench.seconds / 2)
            name += f", killed again at {moment:.3f} s"
            _kill_after(moment, lambda: recover(root, scenario, way))
        code, problem = in_child(lambda: recover(root, scenario, way))
        left = left_running(known)
        found = [f"recovery exited with {code}"] if code else [problem] if problem else []
        found += [f"left running: {each}" for each in left]
        return [Violation(name, what) for what in found] + bench.verdict(name, root, way)


def _kill_after(seconds: float, act: Callable[[], Any]) -> None:
    """Let it run for so long in a process of its own."""
    pid, reading = fork(act)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)

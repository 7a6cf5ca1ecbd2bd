"""A power cut: what the disk holds at a moment, without anything that the system still has in memory.

Workspace and state folder lie on file systems of their own, in image files that are mounted through loop devices with
no periodic write-back. Copying the images while a run is under way gives what a cut at that moment would leave: only
what was synced. Needs root and loop devices.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal
from tests.crash.cases import Bench, Violation, in_child, observe, recover, run_set, status_of
from tests.crash.points import watch
from tests.crash.scenarios import Scenario

MEGABYTES = 24
END = "the end"
"""No point: after a run has been acknowledged."""


def can_cut() -> bool:
    """Whether this machine lets us mount images."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


class Disks:
    """Two mounted images: `workspace` and `state`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = {name: folder / f"{name}.img" for name in ("workspace", "state")}
        self.mounts = {name: folder / name for name in self.images}

    @property
    def root(self) -> Path:
        """The workspace: a folder inside, as ext4 keeps a `lost+found` at the top."""
        return self.mounts["workspace"] / "root"

    def make(self) -> None:
        """Make and mount empty file systems."""
        self.folder.mkdir(parents=True)
        for image in self.images.values():
            with image.open("wb") as file:
                file.truncate(MEGABYTES * 1024 * 1024)
            _call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        self.mount()
        self.root.mkdir()

    def mount(self) -> None:
        """Mount both; the state folder becomes `$QO_HOME`."""
        for name, image in self.images.items():
            self.mounts[name].mkdir(exist_ok=True)
            _call("mount", "-o", "loop,commit=600,noatime", str(image), str(self.mounts[name]))
        os.environ["QO_HOME"] = str(self.mounts["state"] / "home")

    def unmount(self) -> None:
        """Unmount both."""
        for mount in self.mounts.values():
            for _ in range(100):  # a process that is just ending may hold it
                if subprocess.run(["umount", str(mount)], capture_output=True).returncode == 0:
                    break
                time.sleep(0.02)
            else:
                _call("umount", str(mount))

    def sync(self) -> None:
        """Write out all that there is, so that a cut loses only what comes after."""
        for mount in self.mounts.values():
            _call("sync", "-f", str(mount))

    def cut(self, folder: Path) -> Disks:
        """What the disks would hold if the power went now."""
        folder.mkdir(parents=True)
        left = Disks(folder)
        left.mounts = self.mounts  # the same paths: a journal is found by its workspace's
        for name, image in self.images.items():
            shutil.copyfile(image, left.images[name])
        return left


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def disks(folder: Path) -> Iterator[Disks]:
    """Mounted disks, unmounted at the end whatever happens."""
    made = Disks(folder)
    made.make()
    try:
        yield made
    finally:
        made.unmount()


def cut_at(point: str, before: Disks, folder: Path, act: Callable[[], Any]) -> Disks:
    """Run `act` in a child up to the point (or to its end, for END), and cut the power there."""
    reached_read, reached_write = os.pipe()
    go_read, go_write = os.pipe()

    def stop() -> None:
        os.close(reached_write)
        os.read(go_read, 1)

    def at(name: str) -> None:
        if name == point:
            stop()
            os._exit(0)

    pid = os.fork()
    if pid == 0:
        os.close(reached_read)
        os.close(go_write)
        try:
            with watch(at):
                act()
            stop()
        finally:
            os._exit(0)
    os.close(reached_write)
    os.close(go_read)
    os.read(reached_read, 1)  # end of file: the point is reached
    left = before.cut(folder)
    os.close(go_write)
    os.close(reached_read)
    os.waitpid(pid, 0)
    return left


class Cuts:
    """Power cuts of one scenario's runs."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.bench = Bench(scenario, folder / "bench")
        self._folder = folder
        self._number = 0

    def at(self, point: str) -> list[Violation]:
        """Cut at the point: all or nothing."""
        return self._judged(point, ("committed", "rolled_back", "absent"))

    def at_the_end(self) -> list[Violation]:
        """Cut after the run has been acknowledged: all."""
        return self._judged(END, ("committed",))

    def _judged(self, point: str, allowed: tuple[str, ...]) -> list[Violation]:
        name = f"{self.scenario.name}: power cut at {point}"
        self._number += 1
        status, problem, found = self._cut(point, self._folder / str(self._number))
        wanted = self.bench.after if status == "committed" else self.bench.before
        problems = [problem] if problem else []
        problems += [f"the run is {status}"] if status not in allowed else []
        problems += [f"{status}, and the files are not"] if found != wanted else []
        return [Violation(name, each) for each in problems]

    def _cut(self, point: str, folder: Path) -> tuple[str, str | None, dict[str, Any]]:
        """Run up to the point, cut the power, start again, undo: status, what went wrong, and the tree."""
        with disks(folder / "live") as live:
            self.scenario.prepare(live.root)
            Journal(workspace_home(live.root)).close()
            live.sync()
            left = cut_at(point, live, folder / "left", lambda: run_set(live.root, self.scenario))
        left.mount()
        try:
            code, problem = in_child(lambda: recover(left.root, self.scenario, "rollback"))
            if code:
                problem = f"recovery exited with {code}"
            return _status_if_any(left.root), problem, observe(left.root)
        finally:
            left.unmount()
            shutil.rmtree(folder)


def _status_if_any(root: Path) -> str:
    """How the run stands; the name of the error where the journal cannot be read."""
    try:
        return status_of(root)
    except QuantumError as error:
        return error.message

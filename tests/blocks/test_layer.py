"""What a script at sandbox level 4 writes to a layer, read as changes and done: the same as without a layer.

That is looked up: each script runs on a copy of the workspace as well, without a layer.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from effort import ordinarily

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.disk_tree import DiskTree
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.layer import Layer, Proposal, read
from quantum_orchestrator.blocks.levels import Level, why_not
from quantum_orchestrator.blocks.sandbox import Limits, Processes
from quantum_orchestrator.blocks.snapshot import Exclusions
from quantum_orchestrator.blocks.workspace import Workspace

pytestmark = pytest.mark.skipif(bool(why_not(Level.OVERLAY)), reason=why_not(Level.OVERLAY))

SCRIPTS = {
    "new files and folders": "echo x > new; mkdir -p a/b a/empty; echo y > a/b/c",
    "more in a file": "echo more >> old",
    "files that are as they were": "cat old > copy; cat copy > old; rm copy; touch folder/a",
    "deletions": "rm old; rm -r folder",
    "a folder made anew": "rm -r folder; mkdir folder; echo z > folder/only",
    "a folder made anew in one made anew": "rm -r folder; mkdir -p folder/inner; echo n > folder/inner/b",
    "a file in the place of a folder": "rm -r folder; echo file > folder",
    "a folder in the place of a file": "rm old; mkdir old; touch old/x",
    "a folder in the place of a link": "rm folder/link; mkdir folder/link; touch folder/link/x",
    "a link in the place of a folder": "rm -r folder/inner; ln -s a folder/inner",
    "links": "ln -s a made; rm folder/link; ln -s elsewhere folder/link; ln -sf nowhere old",
    "modes": "chmod 600 old; chmod 711 folder; chmod 4755 folder/a",
    "modes that close": "echo x > new; chmod 0 new folder/a; mkdir shut; echo y > shut/y; chmod 0 shut",
    "moves": "mv old renamed; mv folder/a a; cp -r folder copy; mv folder moved",
    "hard links": "ln old hard; echo more >> hard",
    "names that are not text": "echo x > $(printf 'b\\377d'); mkdir $(printf 'n\\nl')",
    "holes": "truncate -s 300000 sparse",
    "nothing": "true",
}
RANDOM = """
import json, os, random, shutil, sys
from pathlib import Path
chance = random.Random(int(sys.argv[1]))
places = [Path(*parts) for parts in [("a",), ("b",), ("c",)] + [(x, y) for x in "abc" for y in "xyz"]
          + [(x, y, z) for x in "ab" for y in "xy" for z in "mn"]]
def gone(place):
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
for _ in range(60):
    place, other = chance.choice(places), chance.choice(places)
    try:
        [lambda: place.write_text(str(chance.random())), lambda: place.open("a").write("+"), lambda: gone(place),
         lambda: place.mkdir(), lambda: place.symlink_to("t" + str(chance.random())), lambda: shutil.move(place, other),
         lambda: place.chmod(chance.choice([0o700, 0o755, 0o750])), lambda: os.link(place, other),
         lambda: (gone(place), place.mkdir())][chance.randrange(9)]()
    except (OSError, shutil.Error):
        pass
found = {}
for place in sorted(Path(".").rglob("*")):
    mode = 0 if place.is_symlink() else place.lstat().st_mode & 0o7777
    what = str(place.readlink()) if place.is_symlink() else "folder" if place.is_dir() else place.read_text()
    found[str(place)] = [mode, what]
print(json.dumps(found))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    folder = tmp_path / "workspace"
    (folder / "folder/inner").mkdir(parents=True)
    (folder / "old").write_text("one\n")
    (folder / "old").chmod(0o640)
    (folder / "folder/a").write_text("a\n")
    (folder / "folder/inner/b").write_text("b\n")
    (folder / "folder/link").symlink_to("a")
    return folder


@pytest.fixture
def layer(workspace: Workspace) -> Iterator[Layer]:
    with workspace.apart() as made:
        yield made


def run(root: Path, layer: Layer, *argv: str, limits: Limits | None = None) -> bytes:
    """What it says."""
    processes = Processes(require=4, root=root).onto(layer)
    try:
        done = processes.run(argv, cwd=root, env={}, limits=limits)
    finally:
        processes.close()
    assert done.exit_code == 0, done.stderr
    return done.stdout


def shell(root: Path, layer: Layer, text: str) -> None:
    run(root, layer, "sh", "-ec", text)


def proposal(root: Path, layer: Layer, text: str, *exclude: str) -> Proposal:
    """What a script proposes; caches that are excluded have these names."""
    shell(root, layer, text)
    with ConfinedFolder.open(root) as folder:
        return read(layer, DiskTree(folder), Exclusions(exclude))


def state(root: Path) -> dict[str, object]:
    """Everything that the journal promises to put back."""
    found: dict[str, object] = {}
    waiting = [os.fsencode(root)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            status = entry.stat(follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode)
            if not entry.is_symlink() and os.geteuid() != 0:
                os.chmod(entry.path, mode | (0o700 if entry.is_dir() else 0o400))
            what = b"folder"
            if entry.is_symlink():
                mode, what = 0, os.readlink(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                what = Path(os.fsdecode(entry.path)).read_bytes()
            found[os.fsdecode(os.path.relpath(entry.path, os.fsencode(root)))] = (mode, what)
    return found


def check_same(root: Path, workspace: Workspace, layer: Layer, after: Mapping[str, object]) -> None:
    """What the layer proposes makes the workspace so, names nothing else, and can be undone."""
    before = state(root)
    proposed = workspace.proposed(layer)
    workspace.apply("r1", "s", proposed.changes, proposed.content_of)
    assert state(root) == after
    named = {each.path for each in proposed.changes}
    assert named == {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert workspace.undo("r1").conflicts == []
    assert state(root) == before


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_what_it_proposes_is_what_it_does_without_a_layer(
    root: Path, workspace: Workspace, layer: Layer, text: str
) -> None:
    before, copy = state(root), root.with_name("copy")
    shutil.copytree(root, copy, symlinks=True)
    shell(root, layer, text)
    assert state(root) == before
    alone = Processes()
    alone.run(["sh", "-ec", text], cwd=copy, env={})
    alone.close()
    check_same(root, workspace, layer, state(copy))


@pytest.mark.parametrize("seed", range(ordinarily(4, nightly=200)))
def test_whatever_it_does_is_proposed_as_it_has_seen_it_last(root: Path, workspace: Workspace, seed: int) -> None:
    shutil.rmtree(root / "folder")
    (root / "old").unlink()
    for place in ("a/x/m", "a/y", "b/x/n", "c"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(place)
    with workspace.apart() as layer:
        seen = json.loads(run(root, layer, sys.executable, "-c", RANDOM, str(seed)))
        check_same(root, workspace, layer, {path: (mode, what.encode()) for path, (mode, what) in seen.items()})


def test_a_layer_that_nobody_applies_is_gone_with_all_that_is_in_it(root: Path, workspace: Workspace) -> None:
    before = state(root)
    with workspace.apart() as layer:
        shell(root, layer, "rm -r folder; mkdir -p x/y; chmod 0 x")
        assert layer.size() > 0
    assert state(root) == before
    assert not layer.folder.exists()


@pytest.fixture
def cache(root: Path) -> None:
    """One that was there before the layer."""
    (root / "folder/cache").mkdir()
    (root / "folder/cache/old").write_text("old")


@pytest.mark.usefixtures("cache")
class TestCaches:
    def test_they_and_what_serves_running_programs_are_left_out(self, root: Path, layer: Layer) -> None:
        text = "mkdir cache; echo x > cache/y; mkfifo pipe; rm -r folder; mkdir folder; echo z > z"
        found = proposal(root, layer, text, "cache")
        assert (found.caches, found.special) == (["cache"], ["pipe"])
        assert {each.path for each in found.changes} == {
            "z",
            "folder/a",
            "folder/link",
            "folder/inner",
            "folder/inner/b",
        }

    def test_one_goes_with_the_folder_that_it_is_in(self, root: Path, layer: Layer) -> None:
        found = proposal(root, layer, "rm -r folder", "cache")
        assert "folder/cache/old" in {each.path for each in found.changes}


def test_what_somebody_else_has_changed_meanwhile_is_not_overwritten(root: Path, layer: Layer) -> None:
    shell(root, layer, "echo mine > old")
    while (root / "old").stat().st_ctime_ns <= layer.since:
        (root / "old").write_text("theirs\n")
    with pytest.raises(OperationError, match="old: somebody else changed it"):
        proposal(root, layer, "true")


def test_gits_own_files_are_read_only_on_it(root: Path, layer: Layer) -> None:
    (root / ".git").mkdir()
    assert proposal(root, layer, "echo x > .git/config || rm -r .git || mv .git x || true").changes == []


def test_what_it_writes_in_all_is_limited_while_it_runs_and_at_its_end(root: Path, layer: Layer) -> None:
    limits = Limits(written_bytes=2 * 2**20)
    for text in ("while :; do head -c 100000 /dev/zero >> large; sleep 0.01; done", "head -c 3000000 /dev/zero > x"):
        with pytest.raises(OperationError, match="wrote more than 2 MiB; all of its processes were ended"):
            run(root, layer, "sh", "-c", text, limits=limits)


def test_an_attribute_of_the_kernels_own_cannot_be_forged(root: Path, layer: Layer) -> None:
    code = "import os; [os.setxattr('folder', f'{kind}.overlay.opaque', b'y') for kind in ('user', 'trusted')]"
    found = proposal(root, layer, f'"{sys.executable}" -c "{code}" || true')
    assert found.changes == []


def test_the_kernels_own_folder_is_not_read(root: Path, workspace: Workspace, layer: Layer) -> None:
    shell(root, layer, "rm -r folder")
    assert layer.work.exists()
    assert "work" not in {each.path for each in read(layer, workspace.tree, Exclusions(())).changes}

"""Sets that nobody vouches for run scripts, confined; and what they could do harm with later is refused and undone."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import NOTE, Qo, Running, eventually, script
from without_prefect import alone, whole

from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.blocks.levels import Level, named_level, why_not

pytestmark = [alone, pytest.mark.skipif(bool(why_not(Level.BUBBLEWRAP)), reason=why_not(Level.BUBBLEWRAP))]


BEST = Level.BUBBLEWRAP if why_not(Level.OVERLAY) else Level.OVERLAY


@pytest.fixture
def policy(user: Path) -> Iterator[Path]:
    """Where the policy of this machine stands."""
    place = home() / "policy.toml"
    yield place
    place.unlink()


@whole
def test_its_scripts_see_the_workspace_and_not_what_is_beside_it(qo: Qo) -> None:
    (qo.folder / "private").write_text("private")
    text = 'cp note.txt copy.txt; cat ../private "$HOME"/* || ls -A ..'
    document = qo("run", qo.set(NOTE, script(text, needs=["note"])), "--untrusted", "--json").exits(0).json
    assert document["sandbox_level"] == BEST
    assert document["steps"][1]["outputs"]["stdout"] == "work\n"
    assert document["steps"][1]["outputs"]["changed"] == ["copy.txt"]
    qo("show").exits(0).prints(f"scripts at sandbox level {named_level(BEST)}\n")
    qo("rollback", document["run_id"]).exits(0)
    assert qo.files == {}


LOOK = script("cat ../private > seen || echo nothing > seen")


def test_a_trusted_set_runs_at_level_one(qo: Qo) -> None:
    (qo.folder / "private").write_text("private\n")
    assert qo("run", qo.set(LOOK), "--json").exits(0).json["sandbox_level"] == 1
    assert qo.files["seen"] == "private\n"


def test_unless_the_policy_requires_more(qo: Qo, policy: Path) -> None:
    policy.write_text("[sandbox]\nrequire = 3\n")
    (qo.folder / "private").write_text("private\n")
    tidy = {"id": "tidy", "op": "quality.lint", "with": {"paths": ["x.py"], "fix": True}}
    code = {"id": "code", "op": "file.write", "with": {"path": "x.py", "content": "x = 1\n"}}
    assert qo("run", qo.set(code, LOOK, tidy), "--json").exits(0).json["sandbox_level"] == 3
    assert qo.files["seen"] == "nothing\n"


def test_a_level_that_is_only_preferred_is_had_where_it_works(qo: Qo, policy: Path) -> None:
    policy.write_text("[sandbox]\nprefer = 4\n")
    document = qo("run", qo.set(LOOK), "--json").exits(0).json
    assert (document["sandbox_level"], document["steps"][0]["outputs"]["changed"]) == (BEST, ["seen"])
    assert qo.files["seen"] == "nothing\n"
    told = "scripts run at sandbox level 3 (bubblewrap): level 4 (overlay) does not work here: "
    assert (told in qo("logs").exits(0).out) is (BEST is not Level.OVERLAY)


def test_nothing_of_one_that_fails_was_ever_in_the_workspace(qo: Qo, policy: Path) -> None:
    policy.write_text("[sandbox]\nrequire = 4\n")
    before = qo.work.stat().st_mtime_ns
    failed = qo("run", qo.set(script("echo x > new; exit 1")), "--json").exits(1 if BEST is Level.OVERLAY else 3).json
    assert failed["status"] == ("rolled_back" if BEST is Level.OVERLAY else "invalid")
    assert qo.work.stat().st_mtime_ns == before


def begun(qo: Qo, text: str, *options: str) -> Running:
    """A run whose only script has come to its end but for a long sleep."""
    return qo.begins("run", qo.set(script(f"{text}; echo x > begun; exec sleep 345")), *options)


def killed(running: Running, begun: Callable[[], bool]) -> None:
    eventually(begun)
    running.signal(signal.SIGKILL).ended()
    eventually(lambda: not sleeping())


def sleeping() -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [str(place)] if place.read_bytes() == b"sleep\x00345\x00" else []
    return found


def layers() -> list[Path]:
    return [*home().glob("workspaces/*/layer-*")]


@pytest.mark.skipif(bool(why_not(Level.OVERLAY)), reason=why_not(Level.OVERLAY))
def test_an_engine_that_is_killed_leaves_no_process_and_its_layer_goes_with_the_rollback(qo: Qo) -> None:
    running = begun(qo, "mkdir -p made/shut; chmod 0 made/shut", "--untrusted")
    killed(running, lambda: any((each / "upper/begun").exists() for each in layers()))
    assert qo.files == {}
    assert layers() != []
    qo("rollback").exits(0)
    assert (qo.files, layers()) == ({}, [])


@pytest.mark.skipif(bool(why_not(Level.OVERLAY)), reason=why_not(Level.OVERLAY))
def test_or_with_the_garbage(qo: Qo) -> None:
    running = begun(qo, "true", "--untrusted")
    killed(running, lambda: any((each / "upper/begun").exists() for each in layers()))
    qo("gc").exits(0).prints("1 crash leftover")
    assert layers() == []


@pytest.mark.skipif(bool(why_not(Level.LANDLOCK)), reason=why_not(Level.LANDLOCK))
def test_what_a_killed_engine_left_of_a_temporary_folder_goes_too(qo: Qo, policy: Path) -> None:
    policy.write_text("[sandbox]\nrequire = 2\n")
    running = begun(qo, 'echo "$TMPDIR" > place')
    killed(running, (qo.work / "begun").exists)
    place = Path((qo.work / "place").read_text().strip())
    assert place.name.startswith("qo-script-")
    assert place.is_dir()
    qo("gc").exits(0)
    assert not place.exists()

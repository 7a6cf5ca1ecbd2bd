"""What a program at sandbox level 2 gets and can do. What it cannot do is in `tests/security/test_escapes.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import landlock, levels
from quantum_orchestrator.blocks.levels import Level, level_for, why_not
from quantum_orchestrator.blocks.sandbox import Completed, Processes

works = pytest.mark.skipif(bool(landlock.why_not()), reason=landlock.why_not())


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(require=2, root=tmp_path)
    yield started
    started.close()


def shell(processes: Processes, text: str, cwd: Path, **options: object) -> Completed:
    return processes.run(["sh", "-c", text], cwd=cwd, env={}, **options)  # type: ignore[arg-type]


@works
def test_it_works_in_the_workspace_and_reads_elsewhere(processes: Processes, tmp_path: Path) -> None:
    assert processes.level is Level.LANDLOCK
    text = "mkdir -p a/b && echo x > a/b/c && mv a/b/c c && ln -s c d && rm -r a && cat /etc/passwd > /dev/null; exit 3"
    done = shell(processes, text, tmp_path)
    assert (done.exit_code, done.stderr) == (3, b"")
    assert sorted(os.listdir(tmp_path)) == ["c", "d"]


@works
def test_its_temporary_folder_is_its_own_and_gone_at_its_end(processes: Processes, tmp_path: Path) -> None:
    text = 'echo x > "$TMPDIR/x" && ls "$TMPDIR" && echo "$TMPDIR"'
    names = [shell(processes, text, tmp_path).stdout.decode().splitlines() for _ in range(2)]
    assert [each[0] for each in names] == ["x", "x"]
    assert names[0][1] != names[1][1]
    assert not any(Path(each[1]).exists() for each in names)


@works
def test_standard_input_comes_beside_the_ruleset(processes: Processes, tmp_path: Path) -> None:
    assert shell(processes, "cat", tmp_path, stdin=b"hello").stdout == b"hello"
    assert shell(processes, "cat", tmp_path).stdout == b""


@works
def test_a_program_that_is_known_to_change_nothing_cannot(tmp_path: Path) -> None:
    reading = Processes(require=2, root=tmp_path, tied=False)
    assert shell(reading, "echo x > made", tmp_path).exit_code != 0
    assert list(tmp_path.iterdir()) == []
    reading.close()


@works
def test_no_descriptor_of_a_ruleset_reaches_it_or_stays(processes: Processes, tmp_path: Path) -> None:
    shell(processes, "true", tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    listed = [shell(processes, "ls /proc/self/fd", tmp_path).stdout for _ in range(3)]
    assert set(listed) == {b"0\n1\n2\n3\n"}
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("abi", "said"), [(0, "the kernel has no Landlock"), (2, "Linux 6.2 or newer is needed")])
def test_a_kernel_without_enough_of_it_says_so_and_level_3_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, abi: int, said: str
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    assert said in why_not(Level.LANDLOCK)
    monkeypatch.setattr(levels, "_why_not_bubblewrap", lambda: "")
    assert level_for(2) is Level.BUBBLEWRAP
    monkeypatch.setattr(levels, "_why_not_bubblewrap", lambda: "no")
    assert level_for(2) is Level.LIMITS


@works
@pytest.mark.usefixtures("no_namespaces")
def test_what_only_prefers_level_3_gets_the_best_that_works_and_says_so(tmp_path: Path) -> None:
    assert Processes(prefer=3, root=tmp_path).level is Level.LANDLOCK
    said = levels.shortfall(0, 3)
    assert said.startswith("scripts run at sandbox level 2 (landlock): level 3 (bubblewrap) does not work here: ")
    assert "no namespaces" in said
    assert levels.shortfall(0, 2) == levels.shortfall(1, 0) == ""


def test_where_no_layer_works_level_4_falls_back_to_3_and_says_so_and_what_requires_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(levels, "_why_not_bubblewrap", lambda: "")
    monkeypatch.setattr(levels, "_why_not_overlay", lambda: "no layer")
    assert level_for(3, 4) is Level.BUBBLEWRAP
    said = "scripts run at sandbox level 3 (bubblewrap): level 4 (overlay) does not work here: no layer"
    assert levels.shortfall(3, 4) == said
    problem = levels.level_problem(4)
    assert problem is not None
    assert "need sandbox level 4, and the highest that works here is 3" in problem.message


@pytest.mark.usefixtures("no_namespaces")
def test_what_needs_level_3_never_falls_back_to_it() -> None:
    problem = levels.level_problem(3)
    assert problem is not None
    assert f"the highest that works here is {2 if not landlock.why_not() else 1}" in problem.message

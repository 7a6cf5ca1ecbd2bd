"""What a program at sandbox level 3 gets and can do. What it cannot do is in `tests/security/test_escapes.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sandbox import gone, running_in, written_pid

from quantum_orchestrator.blocks.errors import OperationError, TimedOut
from quantum_orchestrator.blocks.levels import Level, why_not
from quantum_orchestrator.blocks.sandbox import Completed, Processes

pytestmark = pytest.mark.skipif(bool(why_not(Level.BUBBLEWRAP)), reason=why_not(Level.BUBBLEWRAP))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(require=3, root=tmp_path)
    assert started.level is Level.BUBBLEWRAP
    yield started
    started.close()


def shell(processes: Processes, text: str, cwd: Path, **env: str) -> Completed:
    return processes.run(["sh", "-c", text], cwd=cwd, env=env)


def test_it_works_in_the_workspace_and_what_it_makes_stays(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    done = shell(processes, "echo x > ../made; pwd; cat; exit 3", tmp_path / "sub")
    assert (done.exit_code, done.stdout) == (3, f"{tmp_path}/sub\n".encode())
    assert (tmp_path / "made").read_text() == "x\n"


def test_its_home_and_temporary_folder_are_empty_and_its_own(processes: Processes, tmp_path: Path) -> None:
    text = 'touch "$HOME/x" "$TMPDIR/y" /dev/shm/z && ls "$HOME" /dev/shm && ls /tmp | wc -l'
    first, second = shell(processes, text, tmp_path), shell(processes, text, tmp_path)
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout
    assert not Path("/home/script/x").exists()


def test_the_python_that_runs_this_is_there(processes: Processes, tmp_path: Path) -> None:
    code = "import pydantic, ssl, pwd; print(0)"
    done = processes.run(["python", "-c", code], cwd=tmp_path, env={"PATH": "/root/.pyenv/shims"})
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_on_its_path_is_what_is_there(processes: Processes, tmp_path: Path) -> None:
    seen = shell(processes, 'echo "$PATH"', tmp_path, PATH=f"/root/bin:{tmp_path}:/usr/bin:/bin").stdout.decode()
    assert seen == f"{tmp_path}:/usr/bin:/bin:{sys.prefix}/bin\n"


def test_no_descriptor_of_the_engine_reaches_it(processes: Processes, tmp_path: Path) -> None:
    assert shell(processes, "ls /proc/self/fd", tmp_path).stdout == b"0\n1\n2\n3\n"


def test_a_program_that_is_known_to_change_nothing_cannot(tmp_path: Path) -> None:
    reading = Processes(require=3, root=tmp_path, tied=False)
    assert shell(reading, "echo x > made", tmp_path).exit_code != 0
    assert list(tmp_path.iterdir()) == []
    reading.close()


def test_places_in_the_workspace_can_be_protected(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    guarded = processes.protecting([tmp_path / "cache", tmp_path / "not there"])
    assert shell(guarded, "echo x > cache/made", tmp_path).exit_code != 0
    assert shell(guarded, "rm -r cache", tmp_path).exit_code != 0
    assert shell(guarded, "echo x > made", tmp_path).exit_code == 0
    assert shell(processes, "rm -r cache", tmp_path).exit_code == 0


def test_a_protected_place_that_is_a_link_shows_nothing_of_where_it_leads(
    processes: Processes, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    private = tmp_path_factory.mktemp("private")
    (private / "secret").write_text("secret")
    (tmp_path / "cache").symlink_to(private)
    done = shell(
        processes.protecting([tmp_path / "cache"]), "echo begun; ls cache/; find / -name secret; true", tmp_path
    )
    assert (done.exit_code, done.stdout) == (0, b"begun\n")


def test_another_folder_can_be_granted(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> None:
    root, other = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("other")
    done = Processes(require=3, root=root).run(
        ["sh", "-c", f"echo x > {other}/made"], cwd=root, env={}, folders=[other]
    )
    assert done.exit_code == 0
    assert (other / "made").exists()


def test_a_variable_for_the_loader_is_set_inside_and_not_for_bubblewrap(processes: Processes, tmp_path: Path) -> None:
    text = 'echo "$TZDIR $PLAIN"; tr "\\0" "\\n" < /proc/1/environ'
    inside, *outside = shell(processes, text, tmp_path, TZDIR="/nowhere", PLAIN="yes").stdout.decode().splitlines()
    assert inside == "/nowhere yes"
    assert "PLAIN=yes" in outside
    assert not any(line.startswith(("TZDIR", "TMPDIR", "LD_")) for line in outside)


def test_a_secret_stands_on_no_command_line(processes: Processes, tmp_path: Path) -> None:
    done = shell(processes, "cat /proc/1/cmdline; echo; echo $TOKEN", tmp_path, TOKEN="s3cret")
    command, seen = done.stdout.decode().splitlines()
    assert "--unshare-all" in command
    assert "s3cret" not in command
    assert seen == "s3cret"


def test_a_program_that_is_not_there_is_said_to_be_so(
    processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    tool = elsewhere / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    for argv, path in ((["tool"], f"{elsewhere}:/usr/bin"), ([str(tool)], "/usr/bin")):
        with pytest.raises(OperationError, match="is not there at sandbox level 3") as caught:
            processes.run(argv, cwd=processes.root or Path(), env={"PATH": path})
        assert "/usr" in caught.value.hint


def test_what_is_found_is_what_is_there_and_not_what_hides_it_outside(
    processes: Processes, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shim = tmp_path_factory.mktemp("shims") / "sh"
    shim.write_text("#!/bin/false\n")
    shim.chmod(0o755)
    assert shell(processes, "echo fine", tmp_path, PATH=f"{shim.parent}:/usr/bin:/bin").stdout == b"fine\n"


def test_a_repository_whose_git_is_a_link_is_refused(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / ".git").symlink_to("elsewhere")
    with pytest.raises(OperationError, match="cannot be protected"):
        shell(processes, "true", tmp_path)


@pytest.mark.parametrize("root", ["/", "/usr", "/tmp", "/etc/ssl", "/proc", sys.prefix])
def test_a_workspace_that_is_a_part_of_the_system_is_refused(root: str) -> None:
    with pytest.raises(OperationError, match="part of the system"):
        Processes(require=3, root=Path(root)).run(["true"], cwd=Path(root), env={})


def test_the_end_by_a_signal_is_an_exit_code(processes: Processes, tmp_path: Path) -> None:
    assert shell(processes, "kill -9 $$", tmp_path).exit_code == 128 + 9


def test_a_time_out_asks_it_before_it_ends_all(processes: Processes, tmp_path: Path) -> None:
    text = "trap 'echo asked > asked; exit' TERM; (setsid sleep 60 &); while :; do sleep 0.02; done"
    with pytest.raises(TimedOut):
        processes.run(["sh", "-c", text], cwd=tmp_path, env={}, timeout=0.5)
    assert (tmp_path / "asked").exists()
    assert running_in(tmp_path) == []


ENGINE = """
import sys
from pathlib import Path
from quantum_orchestrator.blocks.sandbox import Processes
root = Path(sys.argv[1])
text = "trap '' TERM; (setsid sh -c 'echo > away; sleep 60' &) ; echo 1 > begun; sleep 60"
Processes(require=3, tied=True, root=root).run(["sh", "-c", text], cwd=root, env={})
"""


def test_nothing_is_left_of_an_engine_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ENGINE, str(tmp_path)], stderr=subprocess.DEVNULL) as engine:
        written_pid(tmp_path / "begun")
        working = running_in(tmp_path)
        assert len(working) >= 2
        os.kill(engine.pid, 9)
    assert all(gone(int(pid)) for pid in working)

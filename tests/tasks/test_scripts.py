"""`script.run`: parameters, results, failures. Real programs in real folders."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PathRefused, PolicyRefused, TimedOut
from quantum_orchestrator.blocks.sandbox import Processes
from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks.operation import EVERYTHING, UNKNOWN, CancelToken, Context, Unknown
from quantum_orchestrator.tasks.registry import get
from quantum_orchestrator.tasks.scripts import Run, RunOutputs, RunParameters


def run(folder: Path, context: dict[str, Any] | None = None, **parameters: Any) -> RunOutputs:
    given = Context(Overlay(MemoryTree()), root=folder, processes=Processes())
    for name, value in (context or {}).items():
        setattr(given, name, value)
    return Run().run(RunParameters(**parameters), given)


# Running.


def test_a_program_runs_in_the_workspace(tmp_path: Path) -> None:
    outputs = run(tmp_path, argv=["sh", "-c", "echo hi > made; echo out; echo err >&2"])
    assert (outputs.exit_code, outputs.stdout, outputs.stderr) == (0, "out\n", "err\n")
    assert (outputs.truncated, outputs.changed) == (False, [])
    assert (tmp_path / "made").read_text() == "hi\n"


def test_a_shell_text_is_run_by_sh(tmp_path: Path) -> None:
    assert run(tmp_path, shell="echo a | tr a b && exit 0").stdout == "b\n"


def test_arguments_are_taken_literally(tmp_path: Path) -> None:
    assert run(tmp_path, argv=["echo", "$HOME", "*", "a  b", ";"]).stdout == "$HOME * a  b ;\n"


def test_it_runs_in_the_folder_that_cwd_names(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    tool = tmp_path / "a" / "tool.sh"
    tool.write_text("#!/bin/sh\npwd -P\n")
    tool.chmod(0o755)
    assert run(tmp_path, argv=["./tool.sh"], cwd="a").stdout.strip() == str((tmp_path / "a").resolve())
    assert run(tmp_path, argv=["../tool.sh"], cwd="a/b").exit_code == 0


def test_input_and_environment_reach_it_and_its_own_variables_win(tmp_path: Path) -> None:
    outputs = run(
        tmp_path,
        {"env": {"A": "set", "B": "set"}},
        shell='cat; echo "$A $B $C"',
        stdin="grüße\n",
        env={"B": "own", "C": "own"},
    )
    assert outputs.stdout == "grüße\nset own own\n"


def test_output_that_is_not_text_is_replaced(tmp_path: Path) -> None:
    assert run(tmp_path, shell=r"printf 'a\377b'").stdout == "a\ufffdb"


def test_output_beyond_ten_mebibytes_is_cut(tmp_path: Path) -> None:
    outputs = run(tmp_path, shell="head -c 11000000 /dev/zero | tr '\\0' x")
    assert (len(outputs.stdout), outputs.truncated) == (10 * 1024 * 1024, True)


def test_lines_go_to_the_log_of_the_run(tmp_path: Path) -> None:
    lines: list[str] = []
    run(tmp_path, {"log": lines.append}, shell="echo one; echo two")
    assert lines == ["one", "two"]


# Success and failure.


@pytest.mark.parametrize("expected", [3, [0, 3]])
def test_an_expected_exit_code_is_success(tmp_path: Path, expected: int | list[int]) -> None:
    assert run(tmp_path, shell="exit 3", expect_exit=expected).exit_code == 3


def test_another_exit_code_fails_with_the_last_lines_of_the_errors(tmp_path: Path) -> None:
    text = "i=0; while [ $i -lt 30 ]; do echo line $i >&2; i=$((i+1)); done; echo ignored; exit 2"
    with pytest.raises(OperationError) as caught:
        run(tmp_path, argv=["sh", "-c", text])
    first, *said = caught.value.message.splitlines()
    assert first == "'sh' exited with 2 (expected 0)"
    assert said == [f"line {number}" for number in range(20, 30)]


def test_without_errors_the_last_lines_of_the_output_are_said(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"exited with 1 \(expected 0 or 7\)\nwhy"):
        run(tmp_path, shell="echo why; exit 1", expect_exit=[0, 7])


def test_zero_fails_when_it_is_not_expected(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"exited with 0 \(expected 1\)"):
        run(tmp_path, shell="true", expect_exit=1)


def test_the_end_by_a_signal_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"was ended by SIGSEGV \(11\) \(expected 0\)"):
        run(tmp_path, shell="kill -SEGV $$")


def test_a_time_out_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(TimedOut, match=r"took longer than 0\.2 s; all of its processes were ended"):
        run(tmp_path, {"timeout": 0.2}, argv=["sleep", "60"])


def test_a_cancellation_interrupts(tmp_path: Path) -> None:
    token = CancelToken()
    threading.Timer(0.2, token.cancel).start()
    with pytest.raises(Interrupted):
        run(tmp_path, {"cancel": token}, argv=["sleep", "60"])


def test_a_missing_program_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="program 'no-such-program' not found on PATH") as caught:
        run(tmp_path, argv=["no-such-program"])
    assert caught.value.hint


@pytest.mark.usefixtures("no_namespaces")
def test_a_required_sandbox_level_is_honoured(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused):
        run(tmp_path, {"processes": Processes(require=4)}, shell="touch ran")
    assert not (tmp_path / "ran").exists()


# Where it may run.


@pytest.mark.parametrize("cwd", ["..", "/tmp", "a/../..", ".git", "~", ""])
def test_a_folder_outside_of_the_workspace_is_refused(tmp_path: Path, cwd: str) -> None:
    with pytest.raises(ValidationError, match="cwd"):
        RunParameters(shell="touch ran", cwd=cwd)
    unjudged = RunParameters.model_construct(shell="touch ran", cwd=cwd)
    with pytest.raises(PathRefused):
        Run().run(unjudged, Context(Overlay(MemoryTree()), root=tmp_path))


@pytest.mark.parametrize("cwd", ["link", "link/inner"])
def test_a_link_on_the_way_is_refused(tmp_path: Path, cwd: str) -> None:
    workspace, outside = tmp_path / "workspace", tmp_path / "outside"
    workspace.mkdir()
    (outside / "inner").mkdir(parents=True)
    (workspace / "link").symlink_to(outside)
    with pytest.raises(PathRefused):
        run(workspace, shell="touch ran", cwd=cwd)
    assert not list(tmp_path.rglob("ran"))


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="no such folder"):
        run(tmp_path, shell="true", cwd="none")


def test_a_file_is_no_folder_to_run_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PathRefused, match="not a folder"):
        run(tmp_path, shell="true", cwd="file")


# Parameters and effects.


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"argv": ["true"], "shell": "true"},
        {"argv": []},
        {"argv": "true"},
        {"argv": ["true"], "expect_exit": []},
        {"argv": ["true"], "expect_exit": 256},
        {"argv": ["true"], "expect_exit": "0"},
        {"argv": ["true"], "env": {"A": 1}},
        {"argv": ["true"], "comand": "x"},
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunParameters(**parameters)


def test_it_may_touch_everything_and_cannot_be_predicted() -> None:
    effects = Run().effects(RunParameters(argv=["true"]))
    assert (effects.reads, effects.writes) == ((EVERYTHING,), (EVERYTHING,))
    assert not effects.predictable
    assert not effects.irreversible


def test_with_the_network_it_cannot_be_undone() -> None:
    assert Run().effects(RunParameters(argv=["true"], network=True)).irreversible


def test_effects_need_only_the_network_parameter() -> None:
    unknown = RunParameters.model_construct(argv=UNKNOWN, network=False)
    assert Run().effects(unknown).writes == (EVERYTHING,)
    with pytest.raises(Unknown):
        Run().effects(RunParameters.model_construct(argv=["true"], network=UNKNOWN))


def test_it_cannot_be_planned() -> None:
    with pytest.raises(OperationError, match="cannot be planned"):
        Run().run(RunParameters(argv=["true"]), Context(Overlay(MemoryTree())))


def test_the_registry_knows_it_and_its_example_runs(tmp_path: Path) -> None:
    assert isinstance(get("script.run"), Run)
    run(tmp_path, **Run.example)
    assert (tmp_path / "greeting.txt").read_text() == "hello\n"

"""`script.run`: run a program in the workspace.

What a program will do cannot be known before it has done it, so by its parameters it may read and write everything;
an instruction's own `reads` and `writes` narrow that in the planner. The engine finds out afterwards what changed, and
undoes that if the run fails. Starting, limiting and ending processes is `blocks/sandbox.py`'s matter.
"""

from __future__ import annotations

import signal
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.paths import check_path, shown
from quantum_orchestrator.blocks.sandbox import Completed, Limits, Processes
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Context,
    Effects,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    Reach,
    operation,
)

IDEMPOTENCY_KEY = "QO_IDEMPOTENCY_KEY"
IN_DOUBT = "QO_IN_DOUBT"
_LINES_SHOWN = 10
_BYTES_SHOWN = 2000
_FROM_LEVEL_3 = 128

ExitCode = Annotated[int, Field(ge=-64, le=255)]


class RunParameters(Parameters):
    """What to run, and what counts as success."""

    argv: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None,
        description="The program and its arguments. A bare name is looked up on the PATH, ./name is relative to `cwd`.",
    )
    shell: str | None = Field(default=None, description="Instead of `argv`: a text for sh -c.")
    cwd: FolderPath = Field(default=ROOT, description="The folder to run in.")
    env: dict[str, str] = Field(default={}, description="Environment variables, beside the set's `env`.")
    stdin: str | None = Field(default=None, description="Text for its standard input; nothing by default.")
    expect_exit: ExitCode | Annotated[list[ExitCode], Field(min_length=1)] = Field(
        default=0, description="The exit code that means success, or a list of them; -N is the end by signal N."
    )
    network: bool = Field(
        default=False,
        description="It acts on other machines, which cannot be undone: it waits until all else has succeeded. "
        "False is a promise by the author; below sandbox level 3 nothing keeps a script from the network.",
    )

    @model_validator(mode="after")
    def _one_of_argv_and_shell(self) -> Self:
        if (self.argv is None) == (self.shell is None):
            raise ValueError("give either 'argv' or 'shell'")
        return self


class RunOutputs(Outputs):
    """How it ended, what it wrote."""

    exit_code: int = Field(description="Its exit code; -N if signal N ended it.")
    stdout: str = Field(description="Standard output; bytes that are not UTF-8 become U+FFFD.")
    stderr: str = Field(description="Standard error, likewise.")
    truncated: bool = Field(default=False, description="Whether it wrote more than is kept (10 MiB of each).")
    changed: list[str] = Field(default=[], description="Paths that it made, changed or deleted.")
    excluded: list[str] = Field(
        default=[],
        description="Caches that it touched and that snapshots exclude: not undone, and at sandbox level 4 dropped.",
    )


@operation("script.run")
class Run(Operation[RunParameters, RunOutputs]):
    """Run a program, or a text for the shell, in the workspace.

    It and every process that it starts have ended when the step ends, also by `timeout`. It gets the caller's PATH,
    HOME, LANG, TERM, TMPDIR and USER, the set's `env`, the secrets that the step names, its own `env`, and no more.
    Limits, unless [limits] in policy.toml says otherwise: 512 processes, 1 GiB a file, no core files. With `network` it
    gets QO_IDEMPOTENCY_KEY, the same in every try, and QO_IN_DOUBT=1 where an earlier try may have got through.

    At sandbox level 3 it sees the workspace, the system's programs and nothing else, and of the workspace it can change
    nothing if its `writes` are `[]`; the end by signal N is exit code 128 + N there. At level 4 it works on a layer
    over the workspace: what it wrote is done, and journaled, when it has ended with a code that is expected.
    """

    cacheable = True
    example: ClassVar[Mapping[str, Any]] = {"argv": ["sh", "-c", "echo hello > greeting.txt"]}

    def effects(self, parameters: RunParameters) -> Effects:
        """Everything, unless the instruction narrows it."""
        irreversible = bool(parameters.network)
        return Effects(reads=(EVERYTHING,), writes=(EVERYTHING,), predictable=False, irreversible=irreversible)

    def reach(self, parameters: RunParameters) -> Reach:
        """The program; the network where it says so."""
        argv = parameters.argv
        return Reach(programs=(argv[0],) if argv else ("sh",), network=bool(parameters.network))

    def run(self, parameters: RunParameters, context: Context) -> RunOutputs:
        """Raises TimedOut, Interrupted, or OperationError when it ends with another code than expected."""
        cwd = _checked_folder(context.folder, parameters.cwd)
        processes = context.processes or Processes()
        completed = processes.run(
            parameters.argv or ["sh", "-c", parameters.shell or ""],
            cwd=cwd,
            env={**context.env, **_sending(parameters, context), **parameters.env},
            stdin=None if parameters.stdin is None else parameters.stdin.encode(errors="replace"),
            timeout=context.timeout,
            cancel=context.cancel,
            on_line=context.log,
            network=parameters.network,
        )
        expected = parameters.expect_exit if isinstance(parameters.expect_exit, list) else [parameters.expect_exit]
        if completed.exit_code not in expected:
            raise _failed(parameters, completed, expected, processes.limits)
        return RunOutputs(
            exit_code=completed.exit_code,
            stdout=completed.stdout.decode(errors="replace"),
            stderr=completed.stderr.decode(errors="replace"),
            truncated=completed.truncated,
        )


def _sending(parameters: RunParameters, context: Context) -> dict[str, str]:
    """What a script that acts on other machines needs to know to do it once."""
    if not parameters.network or not context.idempotency_key:
        return {}
    return {IDEMPOTENCY_KEY: context.idempotency_key} | ({IN_DOUBT: "1"} if context.in_doubt else {})


def _checked_folder(root: Path, path: str) -> Path:
    check_path(path, folder=True)
    if path == ROOT:
        return root
    with ConfinedFolder.open(root) as workspace:
        found = workspace.lstat(path)  # raises PathRefused for a link on the way
    if found is None:
        raise OperationError(f"{shown(path)}: no such folder to run in", hint="make it first with file.mkdir")
    if not stat.S_ISDIR(found.st_mode):
        raise PathRefused(f"{shown(path)}: is not a folder, and `cwd` must be one")
    return root / path


def _failed(parameters: RunParameters, completed: Completed, expected: Sequence[int], limits: Limits) -> OperationError:
    wanted = " or ".join(map(str, expected))
    message = f"{_label(parameters)} {_how_it_ended(completed.exit_code)} (expected {wanted})"
    said = _last_lines(completed.stderr) or _last_lines(completed.stdout)
    return OperationError(f"{message}\n{said}" if said else message, hint=_limit_reached(completed.exit_code, limits))


def _limit_reached(exit_code: int, limits: Limits) -> str:
    """The limit that a script has been ended by, by the kernel's hand; from sandbox level 3 on, 128 + N tells it."""
    match -exit_code if exit_code < 0 else exit_code - _FROM_LEVEL_3:
        case signal.SIGXFSZ:
            return (
                f"it wrote a file of more than {limits.file_bytes >> 20} MiB: `file_mb` under [limits] in policy.toml"
            )
        case signal.SIGXCPU:
            most = f"{limits.cpu_seconds} s of processor time"
            return f"it took more than {most}: `cpu_seconds` under [limits] in policy.toml"
    return ""


def _label(parameters: RunParameters) -> str:
    return repr(parameters.argv[0]) if parameters.argv else "the shell text"


def _how_it_ended(exit_code: int) -> str:
    return f"exited with {exit_code}" if exit_code >= 0 else f"was ended by {_signal_name(-exit_code)}"


def _signal_name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return f"{known.get(number, 'signal')} ({number})"


def _last_lines(output: bytes) -> str:
    lines = output[-_BYTES_SHOWN:].decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-_LINES_SHOWN:])

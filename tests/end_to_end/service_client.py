"""`qo` as a client of a warm service: a new process each time, as a shell starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands import PATIENCE, Said, eventually

CLIENT = [sys.executable, "-m", "quantum_orchestrator.deployments.qo"]


class Client:
    """One command line that has begun."""

    def __init__(self, process: subprocess.Popen[bytes], err: Path) -> None:
        self.process = process
        self._err = err

    @property
    def err(self) -> str:
        return self._err.read_text()

    def until(self, text: str) -> Client:
        eventually(lambda: text in self.err, lambda: self.err)
        return self

    def signal(self, number: int) -> Client:
        self.process.send_signal(number)
        return self

    def ended(self) -> Said:
        out, _ = self.process.communicate(timeout=PATIENCE)
        return Said(self.process.returncode, out.decode(), self.err)


class Shop:
    """A folder with a workspace, and clients that work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        self._begun: list[Client] = []

    def begins(
        self,
        *arguments: str,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        instead: Mapping[str, str] | None = None,
        **how: Any,
    ) -> Client:
        """Start `qo` with more in its environment, or another one `instead`."""
        number = len(self._begun)
        given, err = self.folder / f"in.{number}", self.folder / f"err.{number}"
        given.write_bytes(stdin)
        with given.open("rb") as read, err.open("wb") as told:
            process = subprocess.Popen(
                [*CLIENT, *arguments],
                cwd=self.work,
                env={**(os.environ if instead is None else instead), "QO_SERVICE": "on", **(environment or {})},
                stdin=how.pop("stdin_file", read),
                stdout=subprocess.PIPE,
                stderr=told,
                start_new_session=True,
                **how,
            )
        client = Client(process, err)
        self._begun.append(client)
        return client

    def __call__(self, *arguments: str, **how: Any) -> Said:
        return self.begins(*arguments, **how).ended()

    def set(self, *instructions: object, **fields: object) -> str:
        path = self.folder / "set.json"
        path.write_text(json.dumps({"version": 1, "name": "test", **fields, "instructions": list(instructions)}))
        return str(path)

    def close(self) -> None:
        for client in self._begun:
            if client.process.poll() is None:
                client.signal(signal.SIGKILL)
                client.process.wait()
            if client.process.stdout is not None:
                client.process.stdout.close()


def served(said: Said) -> Said:
    """Carried out by a service: a command that is not says why, with -v."""
    assert "without the warm service" not in said.err, said.err
    return said


def by_itself(said: Said, reason: str) -> Said:
    assert f"without the warm service: {reason}" in said.err, said.err
    return said

"""What `qo serve` keeps at work is started again when it ends, and ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from commands import eventually

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.deployments import serving


def door(program: str) -> serving.Door:
    return serving.Door("door", [sys.executable, "-I", "-S", "-c", program])


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def interrupt_when(holds: object) -> None:
    """Ctrl-C, once something is true."""

    def wait() -> None:
        eventually(holds)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait).start()


def test_one_that_ends_is_started_again_and_all_end_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FIRST_PAUSE", 0.01)
    short, long = tmp_path / "short", tmp_path / "long"
    said: list[str] = []
    doors = [
        door(f"open({str(short)!r}, 'a').write('x ')"),
        door(f"import os, time; open({str(long)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"),
    ]
    interrupt_when(lambda: len(lines(short)) >= 3 and lines(long))
    asyncio.run(serving.serve(doors, said.append))
    assert said[0] == "door ended with 0; it is started again in 0.01 s"
    (pid,) = lines(long)
    assert not Path(f"/proc/{pid}").exists()


def test_a_wrong_command_line_ends_all(tmp_path: Path) -> None:
    doors = [door("raise SystemExit(3)"), door("import time; time.sleep(60)")]
    with pytest.raises(QuantumError, match="`door` ended with 3"):
        asyncio.run(serving.serve(doors, print))

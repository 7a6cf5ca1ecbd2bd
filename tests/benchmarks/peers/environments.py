"""The peers' programs, each in an environment of its own, of pinned requirements, in the cache folder of the user.

`requirements/NAME.txt` is made by `uv pip compile --no-annotate --no-header --no-emit-index-url`. An environment whose
requirements have changed is another one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"


class NotInstalled(Exception):
    """The peer cannot be installed here; why."""


def programs(package: str) -> Path:
    """The folder of the programs of the peer, installed first if it is not."""
    environment = _folder(package)
    if not (environment / "installed").exists():
        _install(environment, REQUIREMENTS / f"{package}.txt")
    return environment / "bin"


def version(package: str) -> str:
    """Its pinned version."""
    lines = (REQUIREMENTS / f"{package}.txt").read_text().splitlines()
    return next(line.split("==")[1].split(" ")[0] for line in lines if line.startswith(f"{package}=="))


def _folder(package: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256((REQUIREMENTS / f"{package}.txt").read_bytes()).hexdigest()[:12]
    return cache / "quantum-orchestrator-benchmarks" / f"{package}-{digest}"


def _install(environment: Path, requirements: Path) -> None:
    print(f"installing {requirements.stem} in {environment}", file=sys.stderr)
    shutil.rmtree(environment, ignore_errors=True)
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(environment / "bin/python")
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(environment)],
        [uv, "pip", "sync", "--quiet", "--compile-bytecode", "--python", python, str(requirements)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NotInstalled(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "uv failed")
    (environment / "installed").touch()

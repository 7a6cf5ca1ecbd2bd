"""Texts for the shell."""

from __future__ import annotations

import subprocess
from pathlib import Path


def sh(root: Path, text: str) -> str:
    """What a text for the shell writes, errors included; it must succeed."""
    done = subprocess.run(["sh", "-ec", text], cwd=root, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode()

"""How much of this machine the process may use: processors and memory, within its affinity and its control groups.

Control groups count in both versions, with all groups above; what cannot be read is no limit. It must not know what
the numbers are used for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_NO_LIMIT = 2**60
"""Version 1 says "no limit" by a number of about this size."""


@cache
def processors() -> int:
    """How many processors may be used at once; at least one."""
    there_are = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(there_are, *(math.ceil(quota) for quota in _quotas(Path("/"))), there_are))


@cache
def capacity() -> dict[str, float]:
    """How much there is of what steps may ask for: processors, and memory in GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": float(processors()), "memory": min(memory, *_memory_limits(Path("/")), memory) / 2**30}


def _quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that each control group may have."""
    for folder in _groups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        yield from _ratio(quota, period)
    for folder in _groups(root, "cpu"):
        yield from _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> Iterator[float]:
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):  # "max" and "-1" are no limit
        yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    """Bytes that each control group may have."""
    files = [folder / "memory.max" for folder in _groups(root, "")]
    files += [folder / "memory.limit_in_bytes" for folder in _groups(root, "memory")]
    for file in files:
        limit = _text(file)
        if limit.isdecimal() and 0 < int(limit) < _NO_LIMIT:
            yield int(limit)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those above it; `controller` is empty for version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if controller not in names.split(","):
            continue
        top = root / "sys/fs/cgroup" / controller
        group = top / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder == top or top in folder.parents)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

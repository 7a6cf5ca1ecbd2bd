"""What a machine lets this process use, read from files like those of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantum_orchestrator.blocks import machine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def write(root: Path, path: str, content: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)


def test_every_group_above_counts_in_version_2(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/outer/inner\n")
    write(root, "sys/fs/cgroup/outer/cpu.max", "150000 100000\n")
    write(root, "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/outer/inner/memory.max", "1073741824\n")
    write(root, "sys/fs/cgroup/memory.max", "max\n")
    assert list(machine._quotas(root)) == [1.5]
    assert list(machine._memory_limits(root)) == [2**30]


def test_version_1_has_a_folder_for_each_controller(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "200000\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "50000\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4096\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert list(machine._quotas(root)) == [4.0]
    assert list(machine._memory_limits(root)) == [4096]


def test_what_cannot_be_read_is_no_limit(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/../outside\nnonsense\n")
    assert list(machine._quotas(root)) == []
    assert list(machine._memory_limits(root)) == []


def test_there_is_a_processor_and_some_memory() -> None:
    assert machine.processors() >= 1
    assert machine.capacity()["cpu"] == machine.processors()
    assert machine.capacity()["memory"] > 0

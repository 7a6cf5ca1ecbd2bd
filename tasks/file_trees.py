"""What `file.*` does with whole trees: deleting, copying and listing folders, links and files in an overlay.

Symbolic links are carried on as they are and never followed. What cannot be put back (FIFOs, sockets, devices) and
git's own files are refused before anything has changed. It knows no parameters and no operations.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator

from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.blocks.tree import ROOT, Kind, Overlay, is_within, join, not_a_file

GIT = ".git"


def delete(files: Overlay, path: str, *, recursive: bool) -> None:
    """Delete what is at `path`. Raises OperationError where nothing is, and for a full folder without `recursive`."""
    if files.kind(path) is Kind.FOLDER:
        if not recursive and files.names(path):
            raise OperationError(f"{path}: the folder is not empty", hint="set recursive to delete all that is in it")
        for each in below(files, path):
            _refuse_git(each)
            _refuse_special(files, each)
    remove(files, path)


def remove(files: Overlay, path: str) -> None:
    """Delete what is at `path`, whatever it is: what is in a folder before the folder, however deep it is."""
    for each in reversed([path, *_inside(files, path)]):
        files.delete(each)


def copy(files: Overlay, source: str, destination: str, *, overwrite: bool) -> None:
    """Copy what is at `source` to `destination`, modes and links kept. Raises OperationError."""
    kind = files.kind(source)
    if kind is None or kind is Kind.SPECIAL:
        raise not_a_file(source, kind)
    _refuse_overlap(source, destination)
    copies = [(each, destination + each[len(source) :]) for each in (source, *_inside(files, source))]
    for each, place in copies:
        _refuse_special(files, each)
        check_path(place)
    _make_way(files, kind, destination, overwrite=overwrite)
    for each, place in copies:
        _copy_one(files, each, place)


def below(files: Overlay, top: str, *, enter: Callable[[str], bool] | None = None) -> Iterator[str]:
    """Every path below a folder, in no promised order; a folder that `enter` refuses is left out with all in it."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        for name in files.names(folder):
            path = join(folder, name)
            is_folder = files.kind(path) is Kind.FOLDER
            if is_folder and enter is not None and not enter(path):
                continue
            yield path
            if is_folder:
                waiting.append(path)


def matching(files: Overlay, folder: str, glob: str) -> list[str]:
    """The regular files below a folder whose path from there matches the glob: sorted, relative to the workspace."""
    parts = glob_parts(glob)
    start = len(join(folder, "")) if folder != ROOT else 0
    found = below(files, folder, enter=lambda path: not _is_git(path))
    return sorted(path for path in found if matches(parts, path[start:]) and files.kind(path) is Kind.FILE)


def glob_parts(glob: str) -> list[re.Pattern[str] | None]:
    """A glob as one pattern for each name; None stands for any number of folders. Raises ValueError.

    `*`, `?`, `[abc]` and `[!abc]` stay within a name; `**` as a name of its own crosses folders, and as the last
    name means everything below.
    """
    names = glob.split("/")
    if not all(names) or "." in names or ".." in names:
        raise ValueError(f"{glob!r}: a glob has names between its slashes, which are not empty, '.' or '..'")
    if names[-1] == "**":
        names.append("*")
    return [None if name == "**" else re.compile(fnmatch.translate(name)) for name in names]


def matches(parts: list[re.Pattern[str] | None], path: str) -> bool:
    """Whether the path's names match all parts, by the set of parts that can come next: never exponential."""
    places = _reachable(parts, {0})
    for name in path.split("/"):
        after: set[int] = set()
        for place in places:
            part = parts[place] if place < len(parts) else _NO_NAME
            if part is None:
                after.add(place)
            elif part.match(name):
                after.add(place + 1)
        places = _reachable(parts, after)
    return len(parts) in places


_NO_NAME = re.compile("(?!)")


def _reachable(parts: list[re.Pattern[str] | None], places: set[int]) -> set[int]:
    """The places, and those behind a `**` that stands for no folder."""
    found = set(places)
    for place in sorted(places):
        while place < len(parts) and parts[place] is None:
            place += 1
            found.add(place)
    return found


def _inside(files: Overlay, path: str) -> Iterator[str]:
    return below(files, path) if files.kind(path) is Kind.FOLDER else iter(())


def _copy_one(files: Overlay, source: str, destination: str) -> None:
    entry = files.entry(source)
    assert entry is not None
    if entry.kind is Kind.FOLDER:
        files.mkdir(destination, entry.mode)
    elif entry.kind is Kind.LINK:
        files.link(destination, entry.target)
    else:
        files.write(destination, files.read(source), entry.mode)


def _make_way(files: Overlay, kind: Kind, destination: str, *, overwrite: bool) -> None:
    """Take away what is at the destination, if that is allowed."""
    there = files.kind(destination)
    if there is None:
        return
    if not overwrite:
        raise OperationError(f"{destination}: already exists", hint="set overwrite to replace it")
    if there is not kind:
        raise OperationError(
            f"{destination}: is a {there}, and the source is a {kind}", hint="delete it in a step before"
        )
    delete(files, destination, recursive=True)


def _refuse_overlap(source: str, destination: str) -> None:
    if source == destination:
        raise OperationError(f"{source}: source and destination are the same")
    if is_within(destination, source) or is_within(source, destination):
        raise OperationError(f"{destination}: source and destination lie within one another")


def _refuse_special(files: Overlay, path: str) -> None:
    if files.kind(path) is Kind.SPECIAL:
        raise not_a_file(path, Kind.SPECIAL)


def _is_git(path: str) -> bool:
    return path.rpartition("/")[2].casefold() == GIT


def _refuse_git(path: str) -> None:
    if _is_git(path):
        raise PathRefused(f"{path}: a repository's own files are not deleted", hint="use git, or delete it by hand")

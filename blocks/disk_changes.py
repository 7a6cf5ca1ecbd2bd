"""Making changes real on disk: how every path of a set of changes comes from its `before` to its `after`.

Removals come first, from the leaves up, then folders, then what is in them, then the modes of folders, as one may end
up read-only. Contents are replaced by a rename, never in place. Whoever calls this has made durable before what is
needed to put everything back. It must not know of journals, runs or conflicts.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence

from quantum_orchestrator.blocks.confined import ConfinedFolder, is_temporary
from quantum_orchestrator.blocks.disk_tree import OWNER_WRITES, inside, kind_of, readable_errors
from quantum_orchestrator.blocks.snapshot import is_repository
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, changed_meanwhile
from quantum_orchestrator.blocks.undo import is_making

ContentOf = Callable[[str], bytes]


def make_so(folder: ConfinedFolder, changes: Sequence[Change], content_of: ContentOf) -> None:
    """Bring every path to its `after`. Raises OperationError; what was done until then stays done."""
    ordered = sorted(changes, key=lambda each: each.path)
    for change in reversed(ordered):
        if change.before is not None and (change.after is None or change.after.kind is not change.before.kind):
            with readable_errors("delete", change.path):
                _remove(folder, change.path, change.before.kind)
    folders = [(each.path, each.after) for each in ordered if each.after and each.after.kind is Kind.FOLDER]
    made = [path for path, after in folders if _make_folder(folder, path, after.mode | OWNER_WRITES)]
    for change in ordered:
        if change.after is not None and change.after.kind is not Kind.FOLDER:
            with readable_errors("write", change.path):
                _put(folder, change.path, change.before, change.after, content_of)
    shared = {change.path for change in changes if is_making(change)} - set(made)
    for path, after in reversed(folders):
        if path not in shared:  # whoever made it has set its mode
            _set_mode(folder, path, after.mode)


def remove_all(folder: ConfinedFolder, top: str) -> None:
    """Remove what is at a path, whatever it is, with all that is in it."""
    found, waiting = [top], [top]
    while waiting:
        path = waiting.pop()
        if _kind(folder, path) is Kind.FOLDER:
            names = inside(folder, path)
            found += names
            waiting += names
    for path in reversed(found):
        if _kind(folder, path) is Kind.FOLDER:
            folder.rmdir(path)
        else:
            folder.unlink(path)


def _kind(folder: ConfinedFolder, path: str) -> Kind | None:
    found = folder.lstat(path)
    return None if found is None else kind_of(found)


def _make_folder(folder: ConfinedFolder, path: str, mode: int) -> bool:
    with readable_errors("make", path):
        return folder.mkdir(path, mode)


def _set_mode(folder: ConfinedFolder, path: str, mode: int) -> None:
    with readable_errors("change the mode of", path):
        found = folder.lstat(path)
        if found is None or stat.S_IMODE(found.st_mode) != mode:
            folder.chmod(path, mode)


def _put(folder: ConfinedFolder, path: str, before: Entry | None, after: Entry, content_of: ContentOf) -> None:
    if after.kind is Kind.LINK:
        if before is not None and before.kind is Kind.LINK:
            folder.unlink(path)
        folder.symlink(path, after.target)
    elif before is not None and before.kind is Kind.FILE and before.sha256 == after.sha256:
        folder.chmod(path, after.mode)
    elif before is None:
        try:
            folder.create(path, content_of(after.sha256), after.mode)
        except FileExistsError as error:
            raise changed_meanwhile(path) from error
    else:
        folder.write(path, content_of(after.sha256), after.mode)


def _remove(folder: ConfinedFolder, path: str, kind: Kind) -> None:
    if kind is not Kind.FOLDER:
        folder.unlink(path)
        return
    for each in inside(folder, path):
        # A repository's objects are not captured: they go with it.
        if is_repository(path) or is_temporary(each.rpartition("/")[2]):
            remove_all(folder, each)
    folder.rmdir(path)

"""`qo gc`: forgets the before-images of runs that ended long ago, and what nothing needs any more.

Says what it removes, with `--dry-run` what it would, from the same choice (`flows/keeping.py`). A workspace in which a
run is at work is left alone. With `--all` it goes through every state folder of this user; one whose workspace is gone
is removed as a whole once it is old enough. This module must not import Prefect.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import QuantumError, UsageError, WorkspaceBusy
from quantum_orchestrator.blocks.home import refuse_own_run
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk, WorkspaceOfRuns, existing_root
from quantum_orchestrator.deployments.screen import Screen, plural

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import Journal
    from quantum_orchestrator.flows.keeping import Limits, Removal

UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    UNITS |= {_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power}
SHOWN = 5
"""Runs that are named in a line; --json and -v have them all."""
_GOING = ".gone-"
"""What the name of a state folder begins with that is being removed."""

OlderThan = Annotated[
    str | None, Parameter(help="Forget what is older, for example 30d or 12h. (the policy's keep_days, 90d)")
]
Keep = Annotated[int | None, Parameter(help="Forget all but so many runs. (the policy's keep_runs, 500)")]
MaxSize = Annotated[
    str | None, Parameter(help="Forget until no more is taken, for example 2GiB. (the policy's max_size_mb, 2048)")
]


@dataclass(slots=True)
class Cleared:
    """What came of one workspace. `workspace` is empty for a state folder that names none."""

    workspace: str
    folder: Path
    status: str = "done"
    """`done`, `busy`, `gone`, `dropped` (its state, as the workspace is gone), or `failed`."""
    removal: Removal | None = None
    size: int = 0
    """Bytes freed."""
    reason: str = ""
    error: QuantumError | None = field(default=None)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        removal = self.removal
        parts = {name: sum(each.size for each in getattr(removal, name)) for name in _FILES} if removal else {}
        return {
            "workspace": self.workspace,
            "status": self.status,
            "reason": self.reason,
            "bytes": self.size,
            "runs": list(removal.runs) if removal else [],
            "bytes_of": {"contents": removal.contents, **parts, "reuse": removal.remembered.size} if removal else {},
        }


_FILES = {"logs": "log", "aside": "put-aside version", "objects": "git object", "leftovers": "crash leftover"}


def gc(
    *,
    older_than: OlderThan = None,
    keep: Keep = None,
    max_size: MaxSize = None,
    dry_run: Annotated[bool, Parameter(help="Say what would be removed, and remove nothing.")] = False,
    all_: Annotated[bool, Parameter(name="--all", help="In every workspace of this user.")] = False,
    workspace: WorkspaceOfRuns = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Forget the before-images of runs that have ended, by age, number and size.

    Such a run stays in the history, but can be neither undone nor shown as a
    diff. Old logs, put-aside versions and leftovers of crashes go with them,
    and what steps were reused by, if no run has used it for so long. An
    unfinished run loses nothing.
    """
    if all_ and workspace is not None:
        raise UsageError("--all and --workspace exclude each other")
    limits = _limits(older_than, keep, max_size)
    work = _Work(limits, time.time(), dry_run=dry_run)
    if all_:
        cleared = list(work.everywhere(_progress(talk.screen)))
    else:
        root = existing_root(workspace)
        refuse_own_run(root)
        cleared = [work.at(root)]
    if not dry_run:
        _clear_temporary_folders()
    if json_:
        talk.screen.document(_document(cleared, dry_run=dry_run))
    else:
        _tell(talk.screen, cleared, dry_run=dry_run)
    for each in cleared:
        if each.error is not None:
            talk.screen.error(each.error)
    return max((each.error.exit_code for each in cleared if each.error is not None), default=0)


def _clear_temporary_folders() -> None:
    """Those of scripts whose engines were killed, of whichever workspace."""
    import tempfile

    from quantum_orchestrator.blocks.script_folders import TEMPORARY, remove_abandoned

    remove_abandoned(Path(tempfile.gettempdir()), TEMPORARY)


def _progress(screen: Screen) -> Screen | None:
    return screen if screen.verbose else None


# Limits.


def _limits(older_than: str | None, keep: int | None, max_size: str | None) -> Limits:
    """The policy's, but for those that are given."""
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.keeping import Limits

    limits = Limits.of(Policy.load(home() / "policy.toml"))
    if older_than is not None:
        limits = replace(limits, seconds=_seconds(older_than))
    if keep is not None:
        if keep < 0:
            raise UsageError(f"--keep {keep}: must be 0 or more")
        limits = replace(limits, runs=keep)
    return limits if max_size is None else replace(limits, size=_bytes(max_size))


def _seconds(text: str) -> float:
    from quantum_orchestrator.blocks.durations import parse_duration

    try:
        value = 0.0 if text == "0" else parse_duration(text)  # any other number could be seconds as well as days
    except ValueError:
        value = None
    if not isinstance(value, float | int):
        raise UsageError(f"--older-than {text}: is no duration", hint='write it as "30d", "12h" or "1d12h"')
    return float(value)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.ASCII | re.IGNORECASE)
    if found is None or found[2].lower() not in UNITS:
        raise UsageError(f"--max-size {text}: is no size", hint='write it as "2GiB", "500MB" or as a number of bytes')
    return int(float(found[1]) * UNITS[found[2].lower()])


# The work.


@dataclass(frozen=True, slots=True)
class _Work:
    """One pass, with the same limits and the same time for every workspace."""

    limits: Limits
    now: float
    dry_run: bool

    def at(self, root: Path) -> Cleared:
        """One workspace. Raises WorkspaceBusy, StateError."""
        from quantum_orchestrator.blocks.home import workspace_home

        return self._clear(Cleared(str(root), workspace_home(root)))

    def everywhere(self, told: Screen | None) -> Iterator[Cleared]:
        """Every workspace; what is wrong with one keeps none of the others from its turn."""
        from quantum_orchestrator.blocks.home import home

        for folder, root in state_folders(home()):
            here = Cleared(os.fspath(root) if root else "", folder)
            if told:
                told.note(f"looking at {here.workspace or folder}")
            try:
                yield self._drop(here) if root is None or not root.is_dir() else self._clear(here)
            except WorkspaceBusy as error:
                here.status, here.reason = "busy", error.message
                yield here
            except QuantumError as error:
                here.status, here.reason, here.error = "failed", error.message, error
                yield here
            except OSError as error:
                here.status, here.reason = "failed", str(error)
                here.error = QuantumError(f"{folder}: {error}", hint="check the permissions there")
                yield here

    def _clear(self, here: Cleared) -> Cleared:
        from quantum_orchestrator.flows.keeping import carry_out, choose

        if not (here.folder / "journal.db").exists():
            return here
        with _held(here.folder) as journal:
            here.removal = choose(journal, self.limits, now=self.now)
            here.size = here.removal.size if self.dry_run else carry_out(journal, here.removal, now=self.now)
        return here

    def _drop(self, here: Cleared) -> Cleared:
        """Remove the state of a workspace that is gone, if nobody has used it for long; it may be on another disk."""
        here.status = "gone"
        if not (here.folder / "journal.db").exists():
            return self._drop_if_old(here, _newest_change(here.folder))
        with _held(here.folder) as journal:
            unfinished = journal.unfinished()
            if unfinished is not None:
                here.reason = f"its run {unfinished.id} is not finished"
                return here
            last = max((run.ended_at or run.started_at for run in journal.runs()), default=None)
            return self._drop_if_old(here, _newest_change(here.folder / "path") if last is None else last)

    def _drop_if_old(self, here: Cleared, used: float) -> Cleared:
        if used >= self.now - self.limits.seconds:
            here.reason = "its runs are not old enough to be forgotten"
            return here
        here.status, here.size = "dropped", sum(each.lstat().st_size for each in _files(here.folder))
        self._remove(here.folder)
        return here

    def _remove(self, folder: Path) -> None:
        """Renamed first: a kill on the way leaves no half of a journal."""
        if self.dry_run:
            return
        going = folder if folder.name.startswith(_GOING) else folder.with_name(f"{_GOING}{folder.name}")
        folder.rename(going)
        shutil.rmtree(going)


def state_folders(home: Path) -> Iterator[tuple[Path, Path | None]]:
    """Every workspace's state folder, and the workspace that it names, be it there or not."""
    top = home / "workspaces"
    for folder in sorted(top.iterdir()) if top.is_dir() else []:
        if folder.is_dir() and not folder.is_symlink():
            name = folder / "path"
            root = None
            if name.exists() and not folder.name.startswith(_GOING):
                root = Path(os.fsdecode(name.read_bytes().removesuffix(b"\n")))
            yield folder, root


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Journal]:
    from quantum_orchestrator.blocks.journal import Journal

    with contextlib.closing(Journal(folder)) as journal:
        journal.lock.acquire()
        try:
            yield journal
        finally:
            journal.lock.release()


def _files(folder: Path) -> list[Path]:
    """But for what SQLite makes while the database is open."""
    found = [each for each in folder.rglob("*") if not each.is_dir() or each.is_symlink()]
    return [each for each in found if each.name not in ("journal.db-wal", "journal.db-shm")]


def _newest_change(place: Path) -> float:
    return max(each.lstat().st_mtime for each in [*_files(place), place])


# What is said.


def _document(cleared: Sequence[Cleared], *, dry_run: bool) -> dict[str, Any]:
    workspaces = [each.as_json() for each in cleared]
    runs = sum(len(each["runs"]) for each in workspaces)
    return {"dry_run": dry_run, "bytes": sum(each.size for each in cleared), "runs": runs, "workspaces": workspaces}


def _tell(screen: Screen, cleared: Sequence[Cleared], *, dry_run: bool) -> None:
    for each in cleared:
        line = _line(each, dry_run=dry_run, whole=screen.verbose)
        if line:
            screen.result(line)
    if len(cleared) != 1:
        freed = human_size(sum(each.size for each in cleared))
        screen.result(f"{plural(len(cleared), 'workspace')}: {freed} {'would be freed' if dry_run else 'freed'}")


def _line(here: Cleared, *, dry_run: bool, whole: bool) -> str:
    place = here.workspace or str(here.folder)
    freed = f"{human_size(here.size)} {'would be freed' if dry_run else 'freed'}"
    match here.status:
        case "busy":
            return f"{place}: left alone: {here.reason}"
        case "gone":
            return f"{place}: the folder is gone; its state stays, as {here.reason}"
        case "dropped":
            return f"{place}: the folder is gone; {freed}: all of its state"
        case "failed":
            return ""
    if not here.removal:
        return f"{place}: nothing to remove"
    return f"{place}: {freed}: {_parts(here.removal, whole=whole)}"


def _parts(removal: Removal, *, whole: bool) -> str:
    parts = []
    if removal.runs:
        shown = removal.runs if whole else removal.runs[:SHOWN]
        more = f" and {len(removal.runs) - len(shown)} more" if len(shown) < len(removal.runs) else ""
        parts.append(f"the before-images of {plural(len(removal.runs), 'run')} ({', '.join(shown)}{more})")
    elif removal.contents:
        parts.append("contents that no run needs")
    for name, noun in _FILES.items():
        count = len(getattr(removal, name))
        if count:
            parts.append(plural(count, noun))
    if removal.remembered.rows:
        parts.append(f"what {plural(removal.remembered.rows, 'step')} could have been reused by")
    elif removal.remembered.size:
        parts.append("a store for reuse that cannot be read")
    return ", ".join(parts)


def human_size(size: int) -> str:
    """Bytes as people say them: `512 B`, `1.5 MiB`."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"

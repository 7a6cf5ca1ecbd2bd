"""What one workspace's state folder holds, and for which run: how many bytes would be free without which before-images.

Reads only, the database in one snapshot, so that what is said of it fits together; damaged rows are told, not believed.
Invariant: what `Journal.sweep` removes once some runs are pruned is what `unneeded` says here, by the same rule: a
content is needed as long as a row of effects or captures names it, before or after. It must not know which runs ought
to be kept, and removes nothing.

The folder: `journal.db` and `contents/` (`blocks/journal.py`), `logs/`, `aside/` (`blocks/aside.py`), `objects/`
(`blocks/git_objects.py`), and drafts of single files.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quantum_orchestrator.blocks.database import (
    CAPTURES,
    DAMAGE_HINT,
    EFFECTS,
    IS_UNFINISHED,
    UNFINISHED_STATUSES,
    Row,
    is_right,
)
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.journal import RunRecord, decode_entry
from quantum_orchestrator.blocks.script_folders import LAYER, abandoned, bytes_in
from quantum_orchestrator.blocks.tree import Kind

ROW_BYTES = 120
"""What a row of effects takes beside its texts, its place in the index included; an estimate."""

PRUNED_AT = "pruned_at"
"""In a run's report: when its before-images were removed, as people say it."""

_RUNS = """
SELECT id, status, coalesce(ended_at, started_at),
    coalesce(length(predicted), 0) + CASE status WHEN 'committed' THEN length(document) ELSE 0 END
FROM runs ORDER BY number
"""
_OLDEST = f"""
SELECT coalesce(ended_at, started_at) FROM runs WHERE id = (
    SELECT run FROM effects
    WHERE run != ? AND run NOT IN (SELECT id FROM runs WHERE {IS_UNFINISHED}) ORDER BY number LIMIT 1
)
"""  # noqa: S608 - our own names
_HOLDERS = """
WITH RECURSIVE holder(run) AS (
    SELECT min(run) FROM effects
    UNION ALL SELECT (SELECT min(run) FROM effects WHERE run > holder.run) FROM holder WHERE run IS NOT NULL
) SELECT run FROM holder WHERE run IS NOT NULL UNION SELECT run FROM captures
"""
"""Each run in one step of the index, however many effects it has."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A run that has before-images. `since` is when it ended, or began; seconds since the epoch."""

    run_id: str
    status: str
    since: float
    contents: frozenset[str]
    row_bytes: int
    is_damaged: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it is committed or undone, so that it need not be."""
        return self.status not in UNFINISHED_STATUSES


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file, or a folder with all that is in it, beside the database. `since` is the newest change in it."""

    path: Path
    size: int
    since: float
    run_id: str = ""


@dataclass
class Holdings:
    """What was found."""

    folder: Path
    used: int = 0
    """Bytes in all, without what is free in the database and without names that git's objects have elsewhere too."""
    statuses: dict[str, str] = field(default_factory=dict)
    """Of every run."""
    own_bytes: dict[str, int] = field(default_factory=dict)
    """What each run's own row has that is of no use once it cannot be undone: its prediction, a committed one's set."""
    holders: list[Holder] = field(default_factory=list)
    """The one that ended first comes first."""
    contents: dict[str, int] = field(default_factory=dict)
    """Bytes that each stored content takes in the database; large ones are files."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of the files of contents, by name."""

    @cached_property
    def logs(self) -> list[Leftover]:
        """The runs' logs."""
        return [_file(path, path.name.removesuffix(".log")) for path in _files(self.folder / "logs")]

    @cached_property
    def aside(self) -> list[Leftover]:
        """What was put aside, by run; what was being put there when a process was killed belongs to none."""
        return [_tree(path, _run_of(path.name)) for path in _entries(self.folder / "aside")]

    @cached_property
    def drafts(self) -> list[Leftover]:
        """Files that are renamed as soon as they are written."""
        return [_file(path) for path in _files(self.folder) if path.name.startswith(".path.")]

    @cached_property
    def layers(self) -> list[Leftover]:
        """Of level-4 scripts whose engines were killed."""
        return [Leftover(path, bytes_in(path), path.lstat().st_mtime) for path in abandoned(self.folder, LAYER)]

    def unneeded(self, pruned: Collection[str]) -> int:
        """Bytes of contents that nothing needs without these runs, files that no row names included."""
        needed = {sha256 for holder in self.holders if holder.run_id not in pruned for sha256 in holder.contents}
        gone = self.contents.keys() - needed
        kept = self.contents.keys() - gone
        rows = sum(self.contents[sha256] for sha256 in gone)
        return rows + sum(size for name, size in self.files.items() if name not in kept)

    def unneeded_objects(self, pruned: Collection[str]) -> list[Leftover]:
        """Records of git's objects that only these runs need, or no run, and second names of objects without a use.

        A second name of an object that the repository has costs nothing, and stays: the next step wants it.
        """
        found: list[Leftover] = []
        for place in _entries(self.folder / "objects"):
            needed: set[str] = set()
            for kind in ("lost", "steps"):
                for path in _files(place / kind):
                    record = _record(path)
                    if self._needs_objects(record.run_id, pruned, while_unfinished=kind == "steps"):
                        needed |= record.objects
                    else:
                        found.append(_file(path, record.run_id))
            found += [_file(path) for path in _objects(place / "kept") if _is_alone(path, place / "kept", needed)]
        return found

    def _needs_objects(self, run_id: str, pruned: Collection[str], *, while_unfinished: bool) -> bool:
        status = self.statuses.get(run_id)
        if status is None or run_id in pruned:
            return False
        return status in UNFINISHED_STATUSES if while_unfinished else run_id not in self._pruned_before

    @cached_property
    def _pruned_before(self) -> set[str]:
        with _reading(self.folder) as database:
            return {run_id for (run_id,) in database.execute("SELECT id FROM runs WHERE pruned")}


def when_pruned(run: RunRecord) -> str:
    """When a run's before-images were removed, to be put behind a sentence: ` on 2026-01-02 03:04:05`; empty where
    that is not known."""
    moment = (run.report or {}).get(PRUNED_AT) if run.pruned else None
    return f" on {moment}" if moment else ""


# Quick looks.


@dataclass(frozen=True, slots=True)
class Glance:
    """What can be said in a few milliseconds, however much is held."""

    runs: int
    """That have before-images."""
    oldest: float | None
    """When the finished run ended whose before-images are the oldest."""
    used: int
    """Bytes, git's objects left out."""


def glance(folder: Path, run_id: str) -> Glance:
    """How much a state folder holds; the age leaves out this run. Raises StateError."""
    with _reading(folder) as database:
        oldest = database.execute(_OLDEST, (run_id,)).fetchone()
        holders = database.execute(f"SELECT count(*) FROM ({_HOLDERS})").fetchone()  # noqa: S608 - our own names
        size = _database_bytes(database)
    return Glance(holders[0], oldest[0] if oldest else None, size + _bytes_of_files(folder, objects=False))


def look(folder: Path) -> Holdings:
    """Everything that a state folder holds. Raises StateError where it cannot be read."""
    found = Holdings(folder)
    with _reading(folder) as database:
        database.execute("BEGIN")
        moments: dict[str, float] = {}
        for run_id, status, since, size in database.execute(_RUNS):
            found.statuses[run_id], moments[run_id], found.own_bytes[run_id] = status, since, size
        holders = [_holder(database, run_id, found, moments) for (run_id,) in database.execute(_HOLDERS).fetchall()]
        found.contents = {sha: size or 0 for sha, size in database.execute("SELECT sha256, length(data) FROM contents")}
        size = _database_bytes(database)
    places = {run_id: place for place, run_id in enumerate(moments)}
    found.holders = sorted(holders, key=lambda each: (each.since, places.get(each.run_id, -1)))
    found.files = {path.name: path.stat().st_size for path in _below(folder / "contents")}
    found.used = size + _bytes_of_files(folder, objects=True)
    return found


def _holder(database: sqlite3.Connection, run_id: str, found: Holdings, moments: dict[str, float]) -> Holder:
    contents: set[str] = set()
    size, damaged = found.own_bytes.get(run_id, 0), False
    for table, digests in ((EFFECTS, _of_effect), (CAPTURES, _of_capture)):
        for row in database.execute(f"{table.selection} WHERE run = ?", (run_id,)):
            size += ROW_BYTES + sum(len(value) for value in row if isinstance(value, str | bytes))
            if is_right(table, row):
                contents.update(digests(row))
            else:
                damaged = True
    # A run without a row of its own is damage, which keeps what it holds.
    status, since = found.statuses.get(run_id, UNFINISHED_STATUSES[0]), moments.get(run_id, 0.0)
    return Holder(run_id, status, since, frozenset(contents), size, damaged or run_id not in found.statuses)


def _of_effect(row: Row) -> Iterator[str]:
    return _digests([row[EFFECTS.place("before")], row[EFFECTS.place("after")]])


def _of_capture(row: Row) -> Iterator[str]:
    return _digests(json.loads(row[CAPTURES.place("manifest")]).values())


def _digests(encoded: Iterable[str | None]) -> Iterator[str]:
    entries = map(decode_entry, encoded)
    return (entry.sha256 for entry in entries if entry is not None and entry.kind is Kind.FILE)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / "journal.db"
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA query_only=1")
            yield database
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        raise StateError(f"{path}: the journal cannot be read: {error}", hint=DAMAGE_HINT) from error


def _database_bytes(database: sqlite3.Connection) -> int:
    """What is in use, wherever it is written so far; what is free in the file is for the next rows."""
    names = ("page_count", "freelist_count", "page_size")
    (pages,), (free,), (size,) = (database.execute(f"PRAGMA {name}").fetchone() for name in names)
    return int((pages - free) * size)


# Files.


def _bytes_of_files(folder: Path, *, objects: bool) -> int:
    """Of all but the database's."""
    total = 0
    waiting = [os.fspath(folder)]
    top, kept = waiting[0], os.path.join(folder, "objects")  # noqa: PTH118 - this is run after every run: 2 us a file
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:  # a draft comes and goes
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if objects or place != top or entry.name != "objects":
                        waiting.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    shared = status.st_nlink > 1 and place.startswith(kept)
                    total += 0 if shared or entry.name.startswith("journal.db") else status.st_size
    return total


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _files(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_file() and not path.is_symlink()]


def _below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _file(path: Path, run_id: str = "") -> Leftover:
    status = path.lstat()
    return Leftover(path, status.st_size, status.st_mtime, run_id)


def _tree(path: Path, run_id: str) -> Leftover:
    found = [path.lstat(), *(each.lstat() for each in path.rglob("*"))] if _is_folder(path) else [path.lstat()]
    sizes = sum(each.st_size for each in found if not _is_folder_mode(each.st_mode))
    return Leftover(path, sizes, max(each.st_mtime for each in found), run_id)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_folder_mode(mode: int) -> bool:
    return mode & 0o170000 == 0o040000


def _run_of(name: str) -> str:
    """The run whose things are under this name in `aside`; a second version of something is under `<run>~2`."""
    return "" if name.startswith(".") else name.partition("~")[0]


# git's objects.


@dataclass(frozen=True, slots=True)
class _ObjectsRecord:
    run_id: str
    objects: frozenset[str]


def _record(path: Path) -> _ObjectsRecord:
    if path.name.startswith("."):
        return _ObjectsRecord("", frozenset())  # not renamed into its place: its writer was killed
    try:
        record = json.loads(path.read_bytes())
        return _ObjectsRecord(record["run"], frozenset(record["objects"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: cannot be read: {error!r}", hint=DAMAGE_HINT) from error


def _objects(kept: Path) -> Iterator[Path]:
    for folder in _entries(kept):
        if folder.name != "info" and _is_folder(folder):
            yield from _files(folder)


def _is_alone(path: Path, kept: Path, needed: Collection[str]) -> bool:
    return path.stat().st_nlink == 1 and path.relative_to(kept).as_posix() not in needed

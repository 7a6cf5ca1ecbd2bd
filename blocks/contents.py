"""The contents that the journal keeps: by SHA-256, each once, compressed where that helps.

Up to 64 KiB they are rows of the database; larger ones are files in the folder `contents`, durable before the row that
names them. Invariant: what `read` gives has the digest that was asked for. What is not referred to any more is removed
by `sweep`, rows before files, so that an interrupted one leaves nothing but files that the next one removes.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from quantum_orchestrator.blocks.database import AMONG, DAMAGE_HINT, Database, Transaction
from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.tree import digest

INLINE_BYTES = 64 * 1024
COMPRESS_FROM = 2048  # bytes; below, compression costs more than it saves
READ_AHEAD = 256  # contents; 16 MiB at most, as those that are files are not read

ContentRow = tuple[str, int, bytes | None]


class Contents:
    """The contents of one journal."""

    def __init__(self, database: Database, folder: Path) -> None:
        """`folder` is that of the large ones; it exists."""
        self._database = database
        self._folder = folder

    def has(self, sha256: str) -> bool:
        """Whether a content is stored."""
        rows = self._database.read("SELECT data IS NULL FROM contents WHERE sha256 = ?", sha256)
        return bool(rows) and (not rows[0][0] or self._large(sha256).exists())

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Those of these contents that are not stored."""
        wanted = set(digests)
        query = f"SELECT sha256, data IS NULL FROM contents WHERE sha256 {AMONG}"  # noqa: S608 - our own words
        rows = self._database.read(query, json.dumps(sorted(wanted)))
        return wanted - {sha256 for sha256, is_large in rows if not is_large or self._large(sha256).exists()}

    def read(self, sha256: str) -> bytes:
        """A stored content. Raises StateError if it is missing or not what its digest says."""
        rows = self._database.read("SELECT compressed, data FROM contents WHERE sha256 = ?", sha256)
        if not rows:
            raise StateError(f"the content {sha256[:12]}… is not in the journal", hint=DAMAGE_HINT)
        return self._unpacked(sha256, *rows[0])

    def reader(self, digests: Iterable[str]) -> Callable[[str], bytes]:
        """`read`, for whoever wants these contents in about this order: more are fetched at once as they are used."""
        order = list(dict.fromkeys(digests))
        places = {sha256: place for place, sha256 in enumerate(order)}
        ahead: dict[str, tuple[int, Any]] = {}
        used = set[str]()

        def fetch(place: int) -> None:
            many = min(2 * len(used) + 1, READ_AHEAD)
            query = f"SELECT sha256, compressed, data FROM contents WHERE sha256 {AMONG}"  # noqa: S608 - our own words
            rows = self._database.read(query, json.dumps(order[place : place + many]))
            ahead.clear()
            used.clear()
            ahead.update((sha256, (compressed, data)) for sha256, compressed, data in rows)

        def read(sha256: str) -> bytes:
            if sha256 not in ahead and sha256 in places:
                fetch(places[sha256])
            if sha256 not in ahead:
                return self.read(sha256)
            used.add(sha256)
            return self._unpacked(sha256, *ahead[sha256])

        return read

    def _unpacked(self, sha256: str, compressed: int, data: Any) -> bytes:
        """What a row's columns hold, or the file that they stand for."""
        content: object
        try:
            content = self._large(sha256).read_bytes() if data is None else data
            content = zlib.decompress(content) if compressed else content
        except (OSError, TypeError, zlib.error) as error:
            raise StateError(f"the content {sha256[:12]}… cannot be read: {error}", hint=DAMAGE_HINT) from error
        if not isinstance(content, bytes) or digest(content) != sha256:
            raise StateError(f"the content {sha256[:12]}… is damaged", hint=DAMAGE_HINT)
        return content

    def rows(self, contents: Mapping[str, bytes]) -> list[ContentRow]:
        """The rows that store contents; large ones are on the disk when this returns. Raises StateError."""
        return [self._row(sha256, content) for sha256, content in sorted(contents.items())]

    @staticmethod
    def store(transaction: Transaction, rows: Iterable[ContentRow]) -> None:
        """Add rows, but for those that are there."""
        transaction.executemany("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", rows)

    def _row(self, sha256: str, content: bytes) -> ContentRow:
        packed = zlib.compress(content, 1) if len(content) >= COMPRESS_FROM else content
        compressed = len(packed) < len(content)
        stored = packed if compressed else content
        if len(stored) <= INLINE_BYTES:
            return (sha256, int(compressed), stored)
        try:
            self._write_large(sha256, stored)
        except OSError as error:
            raise self._database.unwritable(error) from error
        return (sha256, int(compressed), None)

    def _large(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _write_large(self, sha256: str, stored: bytes) -> None:
        """Durable before the row that names it."""
        path = self._large(sha256)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{sha256}.{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.write(stored)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        for folder in (path.parent, path.parent.parent):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    # Checking and removing.

    def check(self, digests: Iterable[str]) -> None:
        """Raises StateError for the first of these that could not be given back."""
        for sha256 in sorted(set(digests)):
            self.read(sha256)

    def problems(self, wanted: Collection[str]) -> Iterator[str]:
        """Which contents are damaged, and which of those that are wanted are missing."""
        stored = {row[0] for row in self._database.read("SELECT sha256 FROM contents")}
        for sha256 in sorted(stored | set(wanted)):
            try:
                self.read(sha256)
            except StateError as error:
                yield error.message

    def sweep(self, wanted: Collection[str]) -> int:
        """Remove all contents but these, and files that no row names; how many bytes that has freed.

        Nobody may be storing contents meanwhile.
        """
        stored = self._database.read("SELECT sha256, length(data) FROM contents")
        gone = [(sha256, size or 0) for sha256, size in stored if sha256 not in wanted]

        def forget(transaction: Transaction) -> None:
            transaction.executemany("DELETE FROM contents WHERE sha256 = ?", [(sha256,) for sha256, _ in gone])
            # A capture takes a file whose digest is known for one whose content is stored.
            transaction.execute("DELETE FROM digests WHERE sha256 NOT IN (SELECT sha256 FROM contents)")

        if gone:
            self._database.write(forget)
        rows = sum(size for _, size in gone)
        files = self._remove_files({sha256 for sha256, _ in stored} - {sha256 for sha256, _ in gone})
        self._database.compact()
        return rows + files

    def _remove_files(self, kept: Collection[str]) -> int:
        freed = 0
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and path.name not in kept:
                freed += path.stat().st_size
                path.unlink()
        return freed

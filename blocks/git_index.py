"""Reading git's index: which contents it names for which paths, in versions 2, 3 and 4 of the format.

Only what an index means is read: the mode, the object id and the stage of every entry. Times and sizes in it are a
cache of the files' own, which a mere `git status` refreshes. The format is that of git's `gitformat-index`. This
module neither looks at a disk nor writes an index; git does that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

_HEADER = struct.Struct(">4sII")
_MODE = struct.Struct(">24xI")
_FLAGS = struct.Struct(">H")
_BEFORE_ID = 40
"""Bytes of an entry that stand before its object id: what lstat said of the file."""
_EXTENDED = 0x4000
_REQUIRED = b"link"
"""The extension of an index that is split in two files: this one does not say all."""


class UnreadableIndex(ValueError):
    """It is no index, is damaged, or needs another file to be understood."""


class Staged(NamedTuple):
    """What the index holds for a path: several of these, of stages 1 to 3, where a merge has left a conflict."""

    stage: int
    mode: int
    id: str


Index = dict[str, tuple[Staged, ...]]


def read_index(content: bytes, *, id_bytes: int = 20) -> Index:
    """The entries by path. `id_bytes` is the length of an object id: 20 for SHA-1, 32 for SHA-256."""
    try:
        found: Index = {}
        for path, staged in _entries(content, id_bytes):
            found[path] = (*found.get(path, ()), staged)
    except (struct.error, IndexError, ValueError) as error:
        raise UnreadableIndex(f"the index cannot be read: {error}") from error
    return found


def _entries(content: bytes, id_bytes: int) -> Iterator[tuple[str, Staged]]:
    signature, version, count = _HEADER.unpack_from(content)
    if signature != b"DIRC" or version not in (2, 3, 4):
        raise ValueError("it does not begin like one")
    position, name = _HEADER.size, b""
    for _ in range(count):
        start = position
        (mode,) = _MODE.unpack_from(content, start)
        position += _BEFORE_ID
        identity = content[position : position + id_bytes].hex()
        position += id_bytes
        (flags,) = _FLAGS.unpack_from(content, position)
        position += 4 if flags & _EXTENDED else 2
        if version == 4:
            dropped, position = _varint(content, position)
            end = content.index(0, position)
            name = name[: len(name) - dropped] + content[position:end]
            position = end + 1
        else:
            end = content.index(0, position)
            name = content[position:end]
            position = start + ((end - start) // 8 + 1) * 8
        yield os.fsdecode(name), Staged(flags >> 12 & 3, mode, identity)
    if content[position : position + 4] == _REQUIRED:
        raise ValueError("it is split in two files")


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number in seven bits a byte, highest first, as in git's packs."""
    byte = content[position]
    position += 1
    number = byte & 0x7F
    while byte & 0x80:
        byte = content[position]
        position += 1
        number = (number + 1) << 7 | byte & 0x7F
    return number, position

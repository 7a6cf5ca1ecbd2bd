"""The binary parts of git patches: base85 lines, deflated literals and deltas.

The format is that of git's `apply.c` (parse_binary_hunk) and `patch-delta.c`. Sizes are checked before anything is
inflated or built, so that a small patch cannot make a large file unless it says so. It knows no files.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LARGEST = 256 * 2**20
"""Bytes that a binary part may become."""

_HEADER = re.compile(rb"(literal|delta) ([0-9]{1,12})\r?\n?")


class BadBinary(ValueError):
    """The binary part is damaged, or does not fit what it is applied to."""


@dataclass(frozen=True, slots=True)
class Binary:
    """One binary part: a whole content, or a delta against the content before."""

    is_delta: bool
    data: bytes

    def apply(self, before: bytes) -> bytes:
        """The content after. Raises BadBinary where a delta does not fit."""
        return _apply_delta(before, self.data) if self.is_delta else self.data


def read(lines: Sequence[bytes], start: int) -> tuple[Binary, int]:
    """Read the part that begins at line `start`; returns it and the line after it, its blank line included.

    Raises BadBinary when there is none or it is damaged.
    """
    header = _HEADER.fullmatch(lines[start]) if start < len(lines) else None
    if header is None:
        raise BadBinary("'literal SIZE' or 'delta SIZE' is expected here")
    packed = bytearray()
    position = start + 1
    while position < len(lines) and lines[position].strip():
        packed += _row(lines[position].rstrip(b"\r\n"))
        position += 1
    return Binary(header[1] == b"delta", _inflate(bytes(packed), int(header[2]))), position + 1


def has_more(lines: Sequence[bytes], start: int) -> bool:
    """Whether another part (the way back) begins at line `start`."""
    return start < len(lines) and _HEADER.fullmatch(lines[start]) is not None


def object_id(content: bytes, like: str) -> str:
    """The id that git gives this content, in the length of `like`: 40 digits of SHA-1, or 64 of SHA-256."""
    name = "sha256" if len(like) == 64 else "sha1"
    return hashlib.new(name, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _row(row: bytes) -> bytes:
    letter = row[:1]
    if b"A" <= letter <= b"Z":
        length = letter[0] - ord("A") + 1
    elif b"a" <= letter <= b"z":
        length = letter[0] - ord("a") + 27
    else:
        raise BadBinary(f"a line begins with {letter!r} instead of its length")
    try:
        content = base64.b85decode(row[1:])
    except ValueError as error:
        raise BadBinary(f"a line is not base85: {error}") from error
    if len(row) % 5 != 1 or not length <= len(content) < length + 4:
        raise BadBinary("a line is not as long as its first letter says")
    return content[:length]


def _inflate(packed: bytes, size: int) -> bytes:
    if size > LARGEST:
        raise BadBinary(f"{size} bytes are more than the {LARGEST} that a patch may make")
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise BadBinary(f"it cannot be inflated: {error}") from error
    if len(content) != size or not stream.eof:
        raise BadBinary(f"it does not inflate to the {size} bytes that it announces")
    return content


def _apply_delta(before: bytes, delta: bytes) -> bytes:
    source_size, position = _size(delta, 0)
    target_size, position = _size(delta, position)
    if source_size != len(before):
        raise BadBinary(f"it is made for a file of {source_size} bytes, and the file has {len(before)}")
    if target_size > LARGEST:
        raise BadBinary(f"{target_size} bytes are more than the {LARGEST} that a patch may make")
    after = bytearray()
    for piece in _pieces(before, delta, position):
        after += piece
        if len(after) > target_size:
            break
    if len(after) != target_size:
        raise BadBinary(f"it does not make the {target_size} bytes that it announces")
    return bytes(after)


def _pieces(before: bytes, delta: bytes, position: int) -> Iterator[bytes]:
    """What the delta's commands give: pieces of the content before, and new bytes."""
    while position < len(delta):
        command = delta[position]
        position += 1
        if command & 0x80:
            offset, position = _little_endian(delta, position, command & 0x0F)
            size, position = _little_endian(delta, position, command >> 4 & 0x07)
            size = size or 0x10000
            if offset + size > len(before):
                raise BadBinary("the delta copies from beyond the file's end")
            yield before[offset : offset + size]
        elif command and position + command <= len(delta):
            yield delta[position : position + command]
            position += command
        else:
            raise BadBinary("the delta holds an unknown command")


def _little_endian(delta: bytes, position: int, present: int) -> tuple[int, int]:
    """A number of which only the bytes named by the bits of `present` are stored."""
    number = 0
    for bit in range(4):
        if present >> bit & 1:
            number |= _byte(delta, position) << 8 * bit
            position += 1
    return number, position


def _size(delta: bytes, position: int) -> tuple[int, int]:
    """A number in seven bits a byte, lowest first."""
    number = shift = 0
    while True:
        byte = _byte(delta, position)
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return number, position
        if shift > 56:
            raise BadBinary("the delta holds a size beyond all measure")


def _byte(delta: bytes, position: int) -> int:
    if position >= len(delta):
        raise BadBinary("the delta ends too early")
    return delta[position]

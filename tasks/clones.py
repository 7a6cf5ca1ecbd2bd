"""Statements that stand in several places, word for word: what a change of one would have to be made in all.

Statements are compared as syntax trees, so that neither layout nor comments make a difference; names and values do. A
copy is a run of statements in one block, of LEAST_LINES source lines or more, that stands before, in an earlier file or
further up, as well; the first of its kind is the original, and costs nothing. Imports do not count: they have to stand
in every module. This module knows trees alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from quantum_orchestrator.tasks.syntax import docstring_of, source_lines

LEAST_LINES = 10
"""Source lines; less is repeated for good reasons."""
_IMPORTS = (ast.Import, ast.ImportFrom)
_UNSAID = frozenset(("ctx", "type_comment", "kind"))


@dataclass(frozen=True, slots=True)
class Clone:
    """Statements that stand elsewhere as well: where, and how many source lines they are."""

    path: str
    line: int
    lines: int
    first_path: str
    first_line: int


@dataclass(frozen=True, slots=True)
class Block:
    """The statements of one block, in their order."""

    path: str
    statements: Sequence[ast.stmt]
    prints: Sequence[int]
    """What each says, as a number: the same for the same."""
    weights: Sequence[int]
    """The source lines of each; none for an import."""
    inner: Sequence[Sequence[Block]]
    """By statement, the blocks in it."""

    def end_of_window(self, start: int) -> int | None:
        """Where the least run that counts ends, if there is one from here."""
        total = 0
        for place in range(start, len(self.statements)):
            total += self.weights[place]
            if total >= LEAST_LINES:
                return place + 1
        return None


_Place = tuple[Block, int]


def block_of(path: str, tree: ast.Module) -> Block:
    """A module as it is compared. Raises RecursionError for one that is nested too deeply."""
    return _Reader(path).block(tree)


def clones(blocks: Sequence[Block]) -> list[Clone]:
    """Every copy in these modules, in their order."""
    first: dict[tuple[int, ...], _Place] = {}
    for block in blocks:
        _note(block, first)
    return [clone for block in blocks for clone in _copies(block, first)]


class _Reader:
    """Reads the tree of one file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._prints: dict[ast.AST, int] = {}

    def block(self, holder: ast.AST, name: str = "body") -> Block:
        """A block, without the docstring."""
        docstring = docstring_of(holder)
        chosen: list[ast.stmt] = [each for each in getattr(holder, name) if each is not docstring]
        inner = [[*self._inside(each)] for each in chosen]
        weights = [0 if isinstance(each, _IMPORTS) else source_lines(each) for each in chosen]
        return Block(self._path, chosen, [*map(self._print, chosen)], weights, inner)

    def _inside(self, node: ast.AST) -> Iterator[Block]:
        for name in ("body", "orelse", "finalbody"):
            if getattr(node, name, None):
                yield self.block(node, name)
        for each in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            yield self.block(each)

    def _print(self, node: object) -> int:
        if isinstance(node, ast.AST):
            if node not in self._prints:
                parts = [self._print(value) for name, value in ast.iter_fields(node) if name not in _UNSAID]
                self._prints[node] = hash((type(node).__name__, *parts))
            return self._prints[node]
        if isinstance(node, list):
            return hash(("list", *map(self._print, node)))
        return hash((type(node).__name__, repr(node)))


def _note(block: Block, first: dict[tuple[int, ...], _Place]) -> None:
    """Remember where each least run stands for the first time."""
    for start in range(len(block.statements)):
        if (end := block.end_of_window(start)) is not None and block.weights[start]:
            first.setdefault(tuple(block.prints[start:end]), (block, start))
    for blocks in block.inner:
        for each in blocks:
            _note(each, first)


def _copies(block: Block, first: Mapping[tuple[int, ...], _Place]) -> Iterator[Clone]:
    place = 0
    while place < len(block.statements):
        length = 0
        end = block.end_of_window(place) if block.weights[place] else None
        if end is not None:
            original = first[tuple(block.prints[place:end])]
            length = _common(original, (block, place))
        if length:
            yield _clone(block, place, length, original)
        else:
            for each in block.inner[place]:
                yield from _copies(each, first)
        place += length or 1


def _common(original: _Place, copy: _Place) -> int:
    """For how many statements two places say the same, without running into each other; 0 if that is too little."""
    (block, start), (other, at) = original, copy
    most = min(len(block.statements) - start, len(other.statements) - at)
    if block is other:
        most = min(most, at - start)
    length = 0
    while length < most and block.prints[start + length] == other.prints[at + length]:
        length += 1
    return length if sum(other.weights[at : at + length]) >= LEAST_LINES else 0


def _clone(block: Block, place: int, length: int, original: _Place) -> Clone:
    first, start = original
    lines = sum(block.weights[place : place + length])
    line, first_line = block.statements[place].lineno, first.statements[start].lineno
    return Clone(block.path, line, lines, first.path, first_line)

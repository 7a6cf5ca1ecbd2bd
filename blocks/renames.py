"""Which of the files that came are files that went, under another name.

Git keeps no renames: whoever shows a change guesses them, and so does this module, by git's rule. A file that went and
one that came with equal content are one file; of the rest, two whose contents agree in half or more, measured in lines.
Each file is used once. The guess changes how a patch reads, never what it does. Links are left out: a patch does not
say that what it renames is a link, and `git apply` then refuses some where a link and a folder change places.

The work is bounded. Equal contents are found by digest, however many there are. Similar ones are not looked for at all
beyond CANDIDATES, BYTES or COMPARISONS: such files are then shown as deleted and new, which is no less true.

This module knows neither the disk nor the form of patches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from quantum_orchestrator.blocks.tree import Change, Entry, Kind

ContentOf = Callable[[str], bytes]

CANDIDATES = 1_000
"""Files that came and went, together; git's limit is of the same order."""
BYTES = 32 * 1024 * 1024
"""Of the files that are compared, together."""
COMPARISONS = 5_000_000
"""Of lines."""
LEAST_SIMILARITY = 50

_CHUNK = re.compile(rb"[^\n]{0,63}\n|[^\n]{1,64}")  # a line, or 64 bytes of a longer one, as git cuts them


@dataclass(frozen=True, slots=True)
class Rename:
    """A file that went and came. `similarity` is per cent, 100 for equal contents alone."""

    source: str
    destination: str
    similarity: int


def is_gits_own(path: str) -> bool:
    """Whether the path lies in a repository's `.git`. Git refuses patches of those, in any letter case."""
    folded = path.casefold()
    return ".git" in folded and ".git" in folded.split("/")


def find_renames(changes: Iterable[Change], content_of: ContentOf) -> list[Rename]:
    """The renames among the changes, by destination. `content_of` gives a file's bytes by their SHA-256."""
    gone: dict[str, Entry] = {}
    come: dict[str, Entry] = {}
    for change in changes:
        if is_gits_own(change.path):
            continue
        before, after = change.before, change.after
        if before is not None and before.kind is Kind.FILE and not _is_shown(after):
            gone[change.path] = before
        elif after is not None and after.kind is Kind.FILE and not _is_shown(before):
            come[change.path] = after
    found = list(_equal(gone, come))
    _take(found, gone, come)
    found += _similar(gone, come, content_of)
    return sorted(found, key=lambda each: each.destination)


def _is_shown(entry: Entry | None) -> bool:
    """Whether git keeps it: then the path has not gone, and did not come."""
    return entry is not None and entry.kind in (Kind.FILE, Kind.LINK)


def _take(found: Iterable[Rename], gone: dict[str, Entry], come: dict[str, Entry]) -> None:
    for rename in found:
        del gone[rename.source], come[rename.destination]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


# Equal contents.


def _equal(gone: dict[str, Entry], come: dict[str, Entry]) -> Iterator[Rename]:
    """Of several files with one content, those that keep their name in another folder belong together first."""
    named = {(entry.sha256, _name(path)): path for path, entry in reversed(gone.items())}
    found = {path: named.pop((entry.sha256, _name(path)), "") for path, entry in come.items()}
    used = {source for source in found.values() if source}
    free: dict[str, list[str]] = {}
    for path, entry in reversed(gone.items()):
        if path not in used:
            free.setdefault(entry.sha256, []).append(path)
    for path, entry in come.items():
        same_name, same_content = found[path], free.get(entry.sha256)
        if same_name:
            yield Rename(same_name, path, 100)
        elif same_content:
            yield Rename(same_content.pop(), path, 100)


# Similar contents.


def _similar(gone: dict[str, Entry], come: dict[str, Entry], content_of: ContentOf) -> list[Rename]:
    if len(gone) + len(come) > CANDIDATES:
        return []
    pairs = [(a, b) for b in come for a in gone if _may_be_similar(gone[a].size, come[b].size)]
    sizes = {entry.sha256: entry.size for a, b in pairs for entry in (gone[a], come[b])}
    if sum(sizes.values()) > BYTES:
        return []
    chunks = {sha256: Counter(_CHUNK.findall(content_of(sha256))) for sha256 in sizes}
    compared = [(a, b, chunks[gone[a].sha256], chunks[come[b].sha256]) for a, b in pairs]
    if sum(min(len(before), len(after)) for *_, before, after in compared) > COMPARISONS:
        return []
    rated = [
        Rename(a, b, _similarity(before, after, max(gone[a].size, come[b].size))) for a, b, before, after in compared
    ]
    return _best([each for each in rated if each.similarity >= LEAST_SIMILARITY])


def _may_be_similar(size: int, other: int) -> bool:
    return min(size, other) * 100 >= max(size, other) * LEAST_SIMILARITY


def _similarity(before: Counter[bytes], after: Counter[bytes], size: int) -> int:
    """How much of the larger file is in the other, in per cent; the order of its lines does not count."""
    if len(after) < len(before):
        before, after = after, before
    common = sum(len(chunk) * min(count, after[chunk]) for chunk, count in before.items() if chunk in after)
    return min(99, common * 100 // size)  # the contents do differ


def _best(rated: Sequence[Rename]) -> list[Rename]:
    """The most similar pairs first, then those that keep their name, each file once."""
    order = sorted(
        rated, key=lambda each: (-each.similarity, _name(each.source) != _name(each.destination), each.destination)
    )
    sources: set[str] = set()
    destinations: set[str] = set()
    best = []
    for each in order:
        if each.source not in sources and each.destination not in destinations:
            sources.add(each.source)
            destinations.add(each.destination)
            best.append(each)
    return best

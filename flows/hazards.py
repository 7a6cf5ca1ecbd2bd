"""What steps wait for because of what they touch: write-read, read-write and write-write, found in one pass.

Accesses cover everything below their path. Writing a path makes the folders above it unless they are there; two steps
that make the same folder commute, so that making is a third kind of access beside reading and writing.

Where many steps wait alike for many others (1,000 reads of a folder in which 1,000 files were written), that is kept
once, as a `Crowd`, and not as a million edges. Pure; it knows steps by their ids and effects alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from quantum_orchestrator.blocks.tree import ROOT, join
from quantum_orchestrator.tasks.operation import Effects

FEW = 16
"""So many edges are as cheap as what would take their place."""


class Reason(StrEnum):
    """Why one step waits for another."""

    NEEDS = "needs"
    REFERENCE = "refers to it"
    WRITE_READ = "reads what it writes"
    READ_WRITE = "writes what it reads"
    WRITE_WRITE = "writes what it writes"
    BARRIER = "nothing moves across a barrier"
    SEQUENTIAL = "the set is sequential"
    IRREVERSIBLE = "cannot be undone, so it comes last"


@dataclass(frozen=True, slots=True)
class Edge:
    """Step `before` ends before step `after` starts; `path` is where they meet, for hazards."""

    before: str
    after: str
    reason: Reason
    path: str = ""


class Wait(NamedTuple):
    """A step that is waited for, why, and where they meet."""

    before: str
    reason: Reason
    path: str


class Crowd:
    """Steps that others wait for, alike and all of them."""

    def __init__(self, waits: Sequence[Wait]) -> None:
        self.waits = waits

    @cached_property
    def ids(self) -> frozenset[str]:
        """Of the steps."""
        return frozenset(wait.before for wait in self.waits)


class Joined(NamedTuple):
    """Step `after` waits for a whole crowd."""

    crowd: Crowd
    after: str

    def edges(self) -> Iterator[Edge]:
        """One by one."""
        return (Edge(before, self.after, reason, path) for before, reason, path in self.crowd.waits)


Link = Edge | Joined


def edges_of(links: Iterable[Link]) -> list[Edge]:
    """One edge for each pair of steps and reason, in the order of their making."""
    first: dict[tuple[str, str, Reason], Edge] = {}
    for link in links:
        for edge in (link,) if isinstance(link, Edge) else link.edges():
            first.setdefault((edge.before, edge.after, edge.reason), edge)
    return list(first.values())


class Neighbours:
    """Who waits for whom directly: one set serves all the steps that wait for, or are waited for by, a crowd alone."""

    def __init__(self, links: Iterable[Link]) -> None:
        self._before: dict[str, set[str]] = {}
        self._after: dict[str, set[str]] = {}
        self._crowds: dict[str, list[Crowd]] = {}
        joined: dict[Crowd, list[str]] = {}
        for link in links:
            if isinstance(link, Edge):
                self._before.setdefault(link.after, set()).add(link.before)
                self._after.setdefault(link.before, set()).add(link.after)
            else:
                self._crowds.setdefault(link.after, []).append(link.crowd)
                joined.setdefault(link.crowd, []).append(link.after)
        self._followers: dict[str, list[frozenset[str]]] = {}
        for crowd, members in joined.items():
            followers = frozenset(members)
            for before in crowd.ids:
                self._followers.setdefault(before, []).append(followers)

    def before(self, step_id: str) -> Set[str]:
        """What the step waits for."""
        crowds = self._crowds.get(step_id)
        return _together(self._before.get(step_id, _NO_STEPS), [crowd.ids for crowd in crowds] if crowds else ())

    def after(self, step_id: str) -> Set[str]:
        """What waits for the step."""
        return _together(self._after.get(step_id, _NO_STEPS), self._followers.get(step_id, ()))


_NO_STEPS: frozenset[str] = frozenset()
"""Most steps of a large set wait for none: one object serves all."""


def _together(own: Set[str], shared: Sequence[frozenset[str]]) -> Set[str]:
    if not shared:
        return own
    largest = max(shared, key=len)
    rest = [each for each in (own, *shared) if not each <= largest]
    return largest.union(*rest) if rest else largest


class _Place:
    """Who touched a path since it was last written as a whole. Most are leaves, with one writer and nothing else.

    Of a place that is read with what is below it, `crowd` is what its last reader waited for, and `changed` what came
    to be changed there since. Whoever changes it waits for its readers: so the next reader need only wait for what has
    changed, and whoever changes it then only for that reader.
    """

    __slots__ = ("changed", "children", "crowd", "makers", "readers", "reading", "writer")

    def __init__(self) -> None:
        self.children: dict[str, _Place] = _NOTHING_BELOW
        self.writer: str | None = None
        self.readers: list[str] = _NOBODY
        self.makers: list[str] = _NOBODY
        self.crowd: Crowd | None = None
        self.changed: list[Wait] = _NO_WAITS
        self.reading: Crowd | None = None
        """Its readers, until there is one more."""

    def child(self, name: str) -> _Place:
        """The place of that name in it, made where it is missing."""
        if self.children is _NOTHING_BELOW:
            self.children = {}
        found = self.children.get(name)
        if found is None:
            found = self.children[name] = _Place()
        return found

    def read(self, step_id: str) -> None:
        """One more reads it."""
        self.readers = [step_id] if self.readers is _NOBODY else self.readers
        if self.readers[-1] != step_id:
            self.readers.append(step_id)
        self.reading = None

    def made(self, step_id: str) -> None:
        """One more makes it."""
        self.makers = [step_id] if self.makers is _NOBODY else self.makers
        if self.makers[-1] != step_id:
            self.makers.append(step_id)

    def written(self, step_id: str) -> None:
        """What came before is superseded."""
        self.writer = step_id
        self.children, self.readers, self.makers = _NOTHING_BELOW, _NOBODY, _NOBODY
        self.crowd, self.changed, self.reading = None, _NO_WAITS, None

    def changed_by(self, wait: Wait) -> None:
        """A step has made or written it, or something below it."""
        if self.changed is _NO_WAITS:
            self.changed = []
        self.changed.append(wait)

    def known_from(self, path: str) -> Crowd:
        """What one who reads it now waits for, unless the places above say more."""
        if self.crowd is None:
            self.crowd = Crowd([wait for name, place in _below(path, self) for wait in place.makings(name)])
        elif self.changed:
            self.crowd, self.changed = Crowd(self.changed), _NO_WAITS
            self.readers = _NOBODY
        return self.crowd

    def makings(self, name: str) -> Iterator[Wait]:
        """Who has written or made just this place."""
        if self.writer is not None:
            yield Wait(self.writer, Reason.WRITE_READ, name)
        for maker in self.makers:
            yield Wait(maker, Reason.WRITE_READ, name)

    def readers_at(self, name: str) -> Crowd:
        """Its readers, for one who changes it."""
        if self.reading is None:
            self.reading = Crowd([Wait(reader, Reason.READ_WRITE, name) for reader in self.readers])
        return self.reading


_NOBODY: list[str] = []
_NO_WAITS: list[Wait] = []
_NOTHING_BELOW: dict[str, _Place] = {}


class Hazards:
    """Finds hazards in one pass over the steps in linear order, with one place per path touched.

    Invariant: a place holds only accesses that no later write of it, or of a folder above it, has superseded; that
    write waits for all of them, so that whoever comes later need only wait for the write.
    """

    def __init__(self) -> None:
        self._root = _Place()
        self._barrier: str | None = None
        self._since_barrier: list[str] = []
        self._links: list[Link] = []

    def of(self, step_ids: Iterable[str], effects: Mapping[str, Effects], last: Set[str]) -> list[Link]:
        """All that the steps' effects ask for."""
        earlier: list[str] = []
        for step_id in step_ids:
            if step_id in last:  # one at a time: the world outside sees their order
                self._links += [Edge(before, step_id, Reason.IRREVERSIBLE) for before in earlier]
                earlier = []
            earlier.append(step_id)
            self._touch(step_id, effects[step_id])
        return self._links

    def _touch(self, step_id: str, effects: Effects) -> None:
        if self._barrier is not None:
            self._links.append(Edge(self._barrier, step_id, Reason.BARRIER))
        if effects.barrier:
            self._links += [Edge(before, step_id, Reason.BARRIER) for before in self._since_barrier]
            self._barrier, self._since_barrier, self._root = step_id, [], _Place()
            return
        self._since_barrier.append(step_id)
        for access in effects.reads:
            self._wait_to_read(step_id, access.path)
        for path in effects.makes:
            self._wait_to_make(step_id, path)
        for access in effects.writes:
            self._wait_to_write(step_id, access.path)
        self._record(step_id, effects)

    def _record(self, step_id: str, effects: Effects) -> None:
        for access in effects.reads:
            self._place(access.path).read(step_id)
        for path in effects.makes:
            self._place(path, Wait(step_id, Reason.WRITE_READ, path)).made(step_id)
        for access in effects.writes:
            self._place(access.path, Wait(step_id, Reason.WRITE_READ, access.path)).written(step_id)

    def _wait_to_read(self, step_id: str, path: str) -> None:
        above, here = self._way(path)
        for name, place in above:
            self._wait(step_id, place.writer, Reason.WRITE_READ, name)
        if here is None:
            return
        if here.children or here.crowd is not None:
            self._join(step_id, here.known_from(path))
        else:
            for wait in here.makings(path):
                self._wait(step_id, *wait)

    def _wait_to_make(self, step_id: str, path: str) -> None:
        above, here = self._way(path)
        for name, place in [*above, *([(path, here)] if here else [])]:
            self._wait(step_id, place.writer, Reason.WRITE_WRITE, name)
            self._wait_for_readers(step_id, name, place)

    def _wait_to_write(self, step_id: str, path: str) -> None:
        above, here = self._way(path)
        for name, place in above:
            self._wait(step_id, place.writer, Reason.WRITE_WRITE, name)
            self._wait_for_readers(step_id, name, place)
        if here is not None:
            for name, place in _below(path, here):
                self._wait(step_id, place.writer, Reason.WRITE_WRITE, name)
                for maker in place.makers:
                    self._wait(step_id, maker, Reason.WRITE_WRITE, name)
                self._wait_for_readers(step_id, name, place)

    def _wait_for_readers(self, step_id: str, name: str, place: _Place) -> None:
        if len(place.readers) > FEW:
            self._join(step_id, place.readers_at(name))
        else:
            for reader in place.readers:
                self._wait(step_id, reader, Reason.READ_WRITE, name)

    def _join(self, step_id: str, crowd: Crowd) -> None:
        if len(crowd.waits) > FEW:
            self._links.append(Joined(crowd, step_id))
        else:
            for wait in crowd.waits:
                self._wait(step_id, *wait)

    def _wait(self, step_id: str, before: str | None, reason: Reason, path: str) -> None:
        if before is not None:
            self._links.append(Edge(before, step_id, reason, path))

    def _way(self, path: str) -> tuple[list[tuple[str, _Place]], _Place | None]:
        """The places above a path that were touched, and its own if it or anything below it was."""
        if path == ROOT:
            return [], self._root
        above, place, name = [(ROOT, self._root)], self._root, ""
        *folders, leaf = path.split("/")
        for part in folders:
            inner = place.children.get(part)
            if inner is None:
                return above, None
            place, name = inner, f"{name}/{part}" if name else part
            above.append((name, place))
        return above, place.children.get(leaf)

    def _place(self, path: str, change: Wait | None = None) -> _Place:
        """The place of a path; those on the way to it, and it, are told of the change."""
        place = self._root
        for part in path.split("/") if path != ROOT else ():
            if change is not None and place.crowd is not None:
                place.changed_by(change)
            place = place.child(part)
        if change is not None and place.crowd is not None:
            place.changed_by(change)
        return place


def _below(path: str, place: _Place) -> Iterator[tuple[str, _Place]]:
    """A place and all below it, each with its path."""
    waiting = [(path, place)]
    while waiting:
        name, here = waiting.pop()
        yield name, here
        waiting += [(join(name, part), inner) for part, inner in here.children.items()]

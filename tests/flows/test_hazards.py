"""What steps wait for: whoever conflicts is in order, however few edges say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.tree import is_within
from quantum_orchestrator.flows import hazards
from quantum_orchestrator.flows.hazards import Hazards, Link, Neighbours, Reason, edges_of
from quantum_orchestrator.tasks.operation import Access, Effects

PATHS = [".", "a", "a/b", "a/b/c", "a/d", "e", "e/f"]
EFFECTS = st.builds(
    lambda reads, writes, makes: Effects(tuple(map(Access, reads)), tuple(map(Access, writes)), tuple(makes)),
    *[st.lists(st.sampled_from(PATHS), max_size=2)] * 3,
)


def links_of(several: Sequence[Effects]) -> list[Link]:
    names = [str(number) for number in range(len(several))]
    return Hazards().of(names, dict(zip(names, several, strict=True)), set())


def reads(*paths: str) -> Effects:
    return Effects(reads=tuple(map(Access, paths)))


def writes(*paths: str) -> Effects:
    return Effects(writes=tuple(map(Access, paths)))


def conflict(one: Effects, other: Effects) -> bool:
    """By the definition: one changes what the other reads or changes, or what is around or below it."""

    def meet(some: Sequence[str], others: Sequence[str]) -> bool:
        return any(is_within(a, b) or is_within(b, a) for a in some for b in others)

    (read, write), (read_too, write_too) = (
        ([access.path for access in each.reads], [access.path for access in each.writes]) for each in (one, other)
    )
    return (
        meet(write, [*read_too, *write_too])
        or meet(read, write_too)
        or _making(one.makes, read_too, write_too)
        or _making(other.makes, read, write)
    )


def _making(made: Sequence[str], read: Sequence[str], written: Sequence[str]) -> bool:
    """A folder that is made is no matter to what is below it, but to whoever reads or writes it or what it is in."""
    return any(is_within(path, other) for path in made for other in [*read, *written])


def reachable(before: Mapping[str, set[str]], start: str) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        for each in before.get(waiting.pop(), set()) - found:
            found.add(each)
            waiting.append(each)
    return found


@pytest.mark.parametrize("few", [0, 1, hazards.FEW])
@given(several=st.lists(EFFECTS, max_size=9))
def test_any_two_steps_that_conflict_are_in_order(several: list[Effects], few: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hazards, "FEW", few)
        links = links_of(several)
    before: dict[str, set[str]] = {}
    for edge in edges_of(links):
        assert int(edge.before) < int(edge.after)
        before.setdefault(edge.after, set()).add(edge.before)
    for later, effects in enumerate(several):
        for earlier in range(later):
            if conflict(several[earlier], effects):
                assert str(earlier) in reachable(before, str(later)), (earlier, later)


@given(several=st.lists(EFFECTS, max_size=9))
def test_the_neighbours_of_a_step_are_those_of_its_edges(several: list[Effects]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hazards, "FEW", 1)
        links = links_of(several)
    neighbours, edges = Neighbours(links), edges_of(links)
    for step in map(str, range(len(several))):
        assert neighbours.before(step) == {edge.before for edge in edges if edge.after == step}
        assert neighbours.after(step) == {edge.after for edge in edges if edge.before == step}


@pytest.mark.parametrize("writers_first", [True, False])
def test_many_that_read_a_folder_and_many_that_write_in_it_share_what_they_wait_for(writers_first: bool) -> None:
    writers, readers = [writes(f"src/{number}") for number in range(300)], [reads("src")] * 300
    links = links_of([*writers, *readers] if writers_first else [*readers, *writers])
    assert len(links) == 300
    neighbours = Neighbours(links)
    assert {id(neighbours.before(str(step))) for step in range(300, 600)} == {id(neighbours.before("300"))}
    assert neighbours.before("300") == set(map(str, range(300)))
    assert neighbours.after("0") == set(map(str, range(300, 600)))
    assert len(edges_of(links)) == 300 * 300


def test_readers_and_writers_in_turn_wait_for_the_one_before_alone() -> None:
    steps = [writes("src/first"), writes("src/second")]
    steps += [reads("src") if number % 2 else writes(f"src/{number}") for number in range(1, 100)]
    edges = edges_of(links_of(steps))
    assert len(edges) < 3 * len(steps)
    assert [(edge.before, edge.reason, edge.path) for edge in edges if edge.after == "6"] == [
        ("5", Reason.WRITE_READ, "src/4")
    ]

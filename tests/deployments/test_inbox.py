"""What a door has accepted is there, once, whatever dies; and it is carried out, once, whoever dies over it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from commands import eventually

from quantum_orchestrator.blocks.errors import StateError
from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.deployments import dispatcher as dispatching
from quantum_orchestrator.deployments.dispatcher import MOST_ATTEMPTS, Dispatcher
from quantum_orchestrator.deployments.inbox import (
    Accepted,
    Arrival,
    Inbox,
    Item,
    KeyReused,
    Kind,
    Once,
    Replayed,
    State,
)


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    with Inbox(tmp_path) as opened:
        yield opened


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A workspace."""
    root = tmp_path / "shop"
    root.mkdir()
    return root


def arrival(shop: Path, **fields: Any) -> Arrival:
    return Arrival("api", "ci", shop, document='{"instructions": []}', **fields)


# Accepting.


def test_what_was_accepted_is_found_by_its_run_with_everything_that_came_with_it(inbox: Inbox, shop: Path) -> None:
    accepted = inbox.accept([arrival(shop, inputs={"who": "Ada"}, options={"parallel": 2}, folder=shop)])
    item = inbox.of_run(accepted.run_ids[0])
    assert item is not None
    assert (item.number, item.kind, item.state, item.attempts) == (accepted.items[0], Kind.RUN, State.QUEUED, 0)
    assert (item.source, item.actor, item.workspace, item.folder) == ("api", "ci", shop, shop)
    assert (item.inputs, item.options) == ({"who": "Ada"}, {"parallel": 2})
    assert inbox.workspaces() == [shop]


def test_a_key_that_comes_again_with_the_same_content_gives_the_same_run(inbox: Inbox, shop: Path) -> None:
    first = inbox.accept([arrival(shop)], Once("api:ci", "k", "d"))
    again = inbox.accept([arrival(shop)], Once("api:ci", "k", "d"))
    assert again == Accepted(first.items, first.run_ids, repeated=True)
    assert inbox.accept([arrival(shop)], Once("api:other", "k", "d")).run_ids != first.run_ids
    assert len(inbox.items()) == 2


def test_a_key_that_comes_again_with_other_content_is_an_error_and_nothing_is_accepted(
    inbox: Inbox, shop: Path
) -> None:
    inbox.accept([arrival(shop)], Once("api:ci", "k", "d"))
    with pytest.raises(KeyReused, match="with other content"):
        inbox.accept([arrival(shop)], Once("api:ci", "k", "e"))
    assert len(inbox.items()) == 1


def test_content_that_may_come_once_is_refused_under_another_key(inbox: Inbox, shop: Path) -> None:
    inbox.accept([arrival(shop)], Once("webhook:w", "1", "d", unseen=["d"]))
    assert inbox.accept([arrival(shop)], Once("webhook:w", "1", "d", unseen=["d"])).repeated
    with pytest.raises(Replayed):
        inbox.accept([arrival(shop)], Once("webhook:w", "2", "d", unseen=["d"]))
    assert len(inbox.items()) == 1


def test_several_that_come_together_are_accepted_together_or_not_at_all(inbox: Inbox, shop: Path) -> None:
    twice = [arrival(shop), arrival(shop, run_id="20260102-030405-1a2b3c")]
    assert len(inbox.accept(twice).items) == 2
    with pytest.raises(sqlite3.IntegrityError):  # a run has one item
        inbox.accept([arrival(shop), arrival(shop, run_id="20260102-030405-1a2b3c")])
    assert len(inbox.items()) == 2


def test_those_that_come_at_once_do_not_disturb_each_other(inbox: Inbox, shop: Path) -> None:
    def accept(number: int) -> str:
        try:
            return inbox.accept([arrival(shop)], Once("api:ci", str(number % 50), str(number // 150))).run_ids[0]
        except KeyReused:
            return "reused"

    with ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(accept, range(200)))
    items = inbox.items()
    assert len(items) == len({item.run_id for item in items}) == 50
    assert found["reused"] > 0
    assert sum(found.values()) == 200


def test_a_run_id_that_is_taken_is_not_given_twice(inbox: Inbox, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["a", "a", "a", "b"])
    monkeypatch.setattr("quantum_orchestrator.flows.requests.new_run_id", lambda: next(ids))
    assert inbox.accept([arrival(shop)]).run_ids == ["a"]
    assert inbox.accept([arrival(shop)]).run_ids == ["b"]


def test_nothing_is_acknowledged_that_cannot_be_kept(inbox: Inbox, shop: Path) -> None:
    inbox.accept([arrival(shop)])
    with sqlite3.connect(inbox.path) as other:
        other.execute("DROP TABLE keys")
    with pytest.raises(StateError, match="cannot be used"):
        inbox.accept([arrival(shop)], Once("api:ci", "k"))
    assert len(inbox.items()) == 1


ACCEPTING = """
import sys
from pathlib import Path
from quantum_orchestrator.deployments.inbox import Arrival, Inbox, Once

inbox = Inbox(Path(sys.argv[1]))
for number in range(10_000):
    accepted = inbox.accept([Arrival("api", "ci", Path(sys.argv[1]))], Once("s", str(number)))
    print(number, accepted.run_ids[0], flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ACCEPTING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(30)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    acknowledged = dict(line.split() for line in lines if line.endswith("\n"))
    with Inbox(tmp_path) as inbox:
        for number, run_id in acknowledged.items():
            assert inbox.accept([], Once("s", number)).run_ids == [run_id]
        assert len(inbox.items()) - len(acknowledged) in (0, 1)  # one may be there that nobody has heard of


def test_it_ends_once(inbox: Inbox, shop: Path) -> None:
    (number,) = inbox.accept([arrival(shop)]).items
    inbox.begin(number)
    assert inbox.end(number, "committed")
    assert not inbox.end(number, "failed", {"type": "X", "message": "", "hint": ""})
    item = inbox.item(number)
    assert item is not None
    assert (item.state, item.status, item.attempts, item.error) == (State.ENDED, "committed", 1, None)
    assert inbox.counts() == {("api", "committed"): 1}


def test_what_settles_a_run_comes_before_those_that_wait_for_it(inbox: Inbox, shop: Path) -> None:
    first, second = (inbox.accept([arrival(shop)]) for _ in range(2))
    inbox.begin(first.items[0])
    inbox.end(first.items[0], "awaiting_approval")
    (resuming,) = inbox.accept([arrival(shop, kind=Kind.RESUME, run_id=first.run_ids[0])]).items
    following = inbox.next(shop)
    assert following is not None
    assert following.number == resuming
    inbox.end(resuming, "committed")
    begun = inbox.of_run(first.run_ids[0])
    assert begun is not None
    assert begun.status == "committed"
    following = inbox.next(shop)
    assert following is not None
    assert following.number == second.items[0]


def test_what_ended_long_ago_is_forgotten_and_what_waits_is_not(inbox: Inbox, shop: Path) -> None:
    ended, waiting = (inbox.accept([arrival(shop)], Once("s", key)).items[0] for key in "ab")
    inbox.end(ended, "committed")
    assert inbox.forget(1) == 0
    assert inbox.forget(-1) == 1
    assert [item.number for item in inbox.items()] == [waiting]


# Carrying out.


class Light:
    """A carrier that does no more of a run than its record in the journal, and dies over it as often as it is told."""

    def __init__(self, deaths: int = 0, *, status: str = "committed") -> None:
        self.carried: list[str] = []
        self.together = 0
        self._deaths = deaths
        self._status = status
        self._at_work: Counter[Path] = Counter()

    def __call__(self, item: Item) -> str:
        self._at_work[item.workspace] += 1
        self.together = max(self.together, self._at_work[item.workspace])
        try:
            if self._deaths:
                self._deaths -= 1
                return "it died"
            journal = Journal(workspace_home(item.workspace))
            journal.begin(RunRecord(item.run_id, "set", self._status, {}, {}, {}, 0.0, 1.0))
            journal.close()
            self.carried.append(item.run_id)
        finally:
            self._at_work[item.workspace] -= 1
        return ""


def carried_out(inbox: Inbox, carrier: Light, *numbers: int) -> list[Item]:
    """The items once they have ended."""
    dispatcher = Dispatcher(inbox, carrier)
    dispatcher.start()
    try:
        eventually(lambda: all(_item(inbox, number).state is State.ENDED for number in numbers))
    finally:
        dispatcher.stop()
    return [_item(inbox, number) for number in numbers]


def _item(inbox: Inbox, number: int) -> Item:
    item = inbox.item(number)
    assert item is not None
    return item


def test_items_are_carried_out_one_by_one_in_their_order(inbox: Inbox, shop: Path) -> None:
    accepted = [inbox.accept([arrival(shop)]) for _ in range(5)]
    carrier = Light()
    items = carried_out(inbox, carrier, *(each.items[0] for each in accepted))
    assert [item.status for item in items] == ["committed"] * 5
    assert carrier.carried == [each.run_ids[0] for each in accepted]
    assert carrier.together == 1


def test_one_whose_process_died_is_tried_again_and_has_one_run(inbox: Inbox, shop: Path) -> None:
    accepted = inbox.accept([arrival(shop)])
    carrier = Light(deaths=2)
    (item,) = carried_out(inbox, carrier, *accepted.items)
    assert (item.status, item.attempts, carrier.carried) == ("committed", 3, list(accepted.run_ids))


def test_one_whose_process_dies_each_time_is_given_up_with_what_it_said(
    inbox: Inbox, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "MOST_ATTEMPTS", 2)
    accepted = inbox.accept([arrival(shop)])
    (item,) = carried_out(inbox, Light(deaths=MOST_ATTEMPTS), *accepted.items)
    assert item.status == "failed"
    assert item.error is not None
    assert item.error["message"] == "its process died before it had begun 2 times: it died"


def test_a_run_that_ended_while_nobody_looked_is_not_carried_out_again(inbox: Inbox, shop: Path) -> None:
    """The service was killed after the run had ended, and before it could note that."""
    accepted = inbox.accept([arrival(shop)])
    inbox.begin(accepted.items[0])
    Light()(_item(inbox, accepted.items[0]))
    carrier = Light()
    (item,) = carried_out(inbox, carrier, *accepted.items)
    assert (item.status, carrier.carried) == ("committed", [])


def test_a_run_that_waits_for_a_person_keeps_the_next_one_waiting(inbox: Inbox, shop: Path) -> None:
    first = inbox.accept([arrival(shop)])
    carried_out(inbox, Light(status="awaiting_approval"), *first.items)
    second = inbox.accept([arrival(shop)])
    dispatcher = Dispatcher(inbox, Light())
    dispatcher.start()
    eventually(lambda: _item(inbox, second.items[0]).note)
    dispatcher.stop()
    item = _item(inbox, second.items[0])
    assert item.note == f"waits for run {first.run_ids[0]}, which is awaiting approval"
    assert (item.state, item.attempts) == (State.QUEUED, 0)


def test_two_dispatchers_share_the_work_and_carry_out_nothing_twice(inbox: Inbox, shop: Path, tmp_path: Path) -> None:
    accepted = [inbox.accept([arrival(shop)]) for _ in range(6)]
    first, second = Light(), Light()
    with Inbox(tmp_path) as other:
        beside = Dispatcher(other, second)
        beside.start()
        carried_out(inbox, first, *(each.items[0] for each in accepted))
        beside.stop()
    assert sorted(first.carried + second.carried) == sorted(each.run_ids[0] for each in accepted)


def test_it_waits_for_whoever_dispatches_in_the_workspace_already(
    inbox: Inbox, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = inbox.accept([arrival(shop)])
    carrier = Light()
    dispatcher = Dispatcher(inbox, carrier)
    with dispatching._only_here(shop) as mine:
        assert mine
        dispatcher.start()
        threading.Event().wait(2 * dispatching.LOOK_SECONDS)
        assert carrier.carried == []
    eventually(lambda: carrier.carried == list(accepted.run_ids))
    dispatcher.stop()


def test_whoever_must_not_block_is_told_later(inbox: Inbox, shop: Path) -> None:
    async def accept() -> Accepted:
        return await asyncio.wrap_future(inbox.accepting([arrival(shop)]))

    assert asyncio.run(accept()).run_ids == [inbox.items()[0].run_id]
    assert os.stat(inbox.path).st_mode & 0o777 == 0o600

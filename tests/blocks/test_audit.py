"""The audit: every entry is there, in order, and nobody changes one unseen."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from quantum_orchestrator.blocks.audit import Audit, Event, Head
from quantum_orchestrator.blocks.errors import StateError, UsageError


def entered(folder: Path, count: int, name: str = "run") -> Audit:
    audit = Audit(folder)
    for number in range(count):
        audit.record(Event.RUN_STARTED, actor="me@here", run=f"{name}-{number}", workspace="/w", set="tour")
    return audit


def lines(audit: Audit) -> list[bytes]:
    return audit.path.read_bytes().splitlines(keepends=True)


def test_entries_are_read_as_they_were_made(tmp_path: Path) -> None:
    audit = entered(tmp_path, 3)
    found = list(audit.entries())
    assert [(each.number, each.run) for each in found] == [(1, "run-0"), (2, "run-1"), (3, "run-2")]
    assert (found[0].event, found[0].actor, found[0].details) == ("run_started", "me@here", {"set": "tour"})
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600
    verified = audit.verify()
    assert (verified.head.number, verified.faults, verified.unfinished) == (3, [], False)


def test_there_need_not_be_any(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    assert list(audit.entries()) == []
    assert audit.verify().head == Head()
    assert audit.verify(Head()).faults == []
    assert not audit.path.exists()


def test_entries_of_processes_at_once_follow_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=entered, args=(tmp_path, 25, f"w{each}")) for each in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    verified = Audit(tmp_path).verify()
    assert (verified.head.number, verified.faults) == (100, [])
    assert len({each.run for each in Audit(tmp_path).entries()}) == 100


def test_one_longer_than_a_block_is_followed_like_any_other(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    for number in range(3):
        audit.record(Event.REJECTED, actor="me", run=str(number), workspace="/w", subject="x" * 200_000)
    assert (audit.verify().head.number, audit.verify().faults) == (3, [])


@pytest.mark.parametrize("at", range(4))
def test_one_that_is_changed_is_noticed(tmp_path: Path, at: int) -> None:
    audit = entered(tmp_path, 5)
    written = lines(audit)
    written[at] = written[at].replace(b"me@here", b"he@here")
    audit.path.write_bytes(b"".join(written))
    assert audit.verify().faults == [
        f"line {at + 2} does not follow the line before it: one of them was changed, removed or inserted"
    ]


@pytest.mark.parametrize("at", range(4))
def test_one_that_is_removed_or_comes_twice_is_noticed(tmp_path: Path, at: int) -> None:
    audit = entered(tmp_path, 5)
    written = lines(audit)
    for changed in (written[:at] + written[at + 1 :], written[: at + 1] + written[at:]):
        audit.path.write_bytes(b"".join(changed))
        assert audit.verify().faults != []


def test_a_line_that_is_no_entry_is_named_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    audit = entered(tmp_path, 2)
    with audit.path.open("ab") as file:
        file.write(b"nonsense\n")
    assert audit.verify().faults == ["line 3 is no entry"]
    assert audit.record(Event.RUN_ENDED, actor="me", run="r", workspace="/w", status="committed").number == 4
    assert audit.verify().faults == ["line 3 is no entry"]


def test_whoever_kept_a_head_notices_what_the_file_alone_does_not_show(tmp_path: Path) -> None:
    audit = entered(tmp_path, 5)
    head = audit.verify().head
    kept = Head.parse(str(head))
    entered(tmp_path, 2, "later")
    assert audit.verify(kept).faults == []
    audit.path.write_bytes(b"".join(lines(audit)[:4]))
    assert audit.verify().faults == []
    assert audit.verify(kept).faults == [f"the entries do not contain {head}: they were changed or cut off since"]
    audit.path.unlink()
    entered(tmp_path, 7)
    assert audit.verify(kept).faults != []


def test_what_was_never_finished_makes_room_for_the_next(tmp_path: Path) -> None:
    audit = entered(tmp_path, 2)
    whole = audit.path.read_bytes()
    audit.path.write_bytes(whole + lines(audit)[0][:50])
    assert (audit.verify().unfinished, audit.verify().faults, audit.verify().head.number) == (True, [], 2)
    entered(tmp_path, 1, "next")
    assert audit.path.read_bytes().startswith(whole)
    assert (audit.verify().unfinished, audit.verify().faults, audit.verify().head.number) == (False, [], 3)


def test_one_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    audit.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"the audit .*audit.jsonl cannot be written"):
        entered(tmp_path, 1)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", ["", "12", "x:" + "0" * 64, "1:" + "0" * 63, "1:" + "0" * 64 + " "])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no head of an audit"):
        Head.parse(text)


def test_each_line_is_plain_json(tmp_path: Path) -> None:
    [line] = lines(entered(tmp_path, 1))
    assert json.loads(line)["run"] == "run-0"

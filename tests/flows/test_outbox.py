"""What acts outside of the workspace: after everything else, once where the other side can tell, never forgotten."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_engine import Bench, fail, shell, write

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, StepRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.flows import report
from quantum_orchestrator.flows.recover import rollback
from quantum_orchestrator.flows.results import RunStatus

AUTHOR = {"name": "Ada", "email": "ada@example.org"}


class Killed(BaseException):
    """In place of the death of the process."""


class Shop(ThreadingHTTPServer):
    """Takes orders by POST; one that comes again with the same key is the same order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Counter)
        self.keys: list[str | None] = []
        self.orders: set[str | None] = set()
        self.answers: list[int] = []
        """Status codes of the next answers; 0 breaks the connection after the order is taken. Then 200."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/orders"


class _Counter(BaseHTTPRequestHandler):
    server: Shop

    def do_POST(self) -> None:
        shop, key = self.server, self.headers.get("Idempotency-Key")
        answer = shop.answers.pop(0) if shop.answers else 200
        shop.keys.append(key)
        if not 400 <= answer <= 499:
            shop.orders.add(key)
        if answer:
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.close_connection = True

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def shop() -> Iterator[Shop]:
    server = Shop()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = tmp_path / "workspace"
    root.mkdir()
    made = Bench(root, workspace_home(root))
    made.policy = Policy(git_protocols=("file",), http_hosts=("127.0.0.1",))
    yield made
    made.workspace.close()
    made.journal.close()


def order(shop: Shop, step_id: str = "order", **fields: Any) -> dict[str, Any]:
    return {"id": step_id, "op": "http.request", "with": {"method": "POST", "url": shop.url}, **fields}


def die_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch, step_id: str) -> None:
    """The process dies after the step has acted and before the journal says so."""
    record_step = Journal.record_step

    def record(self: Journal, run_id: str, step: StepRecord, **options: Any) -> None:
        if step.id == step_id and step.status == "succeeded":
            monkeypatch.undo()
            raise Killed
        record_step(self, run_id, step, **options)

    monkeypatch.setattr(Journal, "record_step", record)


# When it is sent.


def test_it_is_sent_after_everything_else(bench: Bench, shop: Shop) -> None:
    assert bench.run(order(shop), write("a", "x"), shell("b", "echo late > y")).status is RunStatus.COMMITTED
    ended = [event.step for event in bench.events if event.kind.value == "step_finished"]
    assert ended[-1] == "order"


def test_nothing_is_sent_by_a_run_that_fails(bench: Bench, shop: Shop) -> None:
    assert bench.run(order(shop), write("a", "x"), fail()).status is RunStatus.ROLLED_BACK
    assert shop.keys == []
    assert report.outside(bench.journal, "r1") == []


def test_a_request_that_asks_for_no_change_waits_for_nothing(bench: Bench, shop: Shop) -> None:
    get = {"id": "get", "op": "http.request", "with": {"url": shop.url}}
    assert bench.run(get, write("a", "${{ steps.get.outputs.status }}")).status is RunStatus.COMMITTED
    assert shop.keys == [None]
    assert report.outside(bench.journal, "r1") == []


# The key.


def test_every_try_has_the_same_key_and_every_run_another(bench: Bench, shop: Shop) -> None:
    shop.answers = [500, 0]
    assert bench.run(order(shop, retries=2)).status is RunStatus.COMMITTED
    bench.run(order(shop), run_id="r2")
    assert len(shop.keys) == 4
    assert len(set(shop.keys[:3])) == 1
    assert len(shop.orders) == 2


def test_two_steps_have_keys_of_their_own(bench: Bench, shop: Shop) -> None:
    bench.run(order(shop, "one"), order(shop, "two"))
    assert len(shop.orders) == 2


def test_a_key_of_ones_own_beats_ours(bench: Bench, shop: Shop) -> None:
    mine = order(shop)
    mine["with"] = {**mine["with"], "headers": {"Idempotency-Key": "mine"}}
    bench.run(mine)
    assert shop.keys == ["mine"]


def test_a_script_with_network_is_told_its_key_and_a_doubt(bench: Bench) -> None:
    say = "echo $QO_IDEMPOTENCY_KEY,$QO_IN_DOUBT >> ../said; test $(wc -l < ../said) = 2"
    script = {"id": "s", "op": "script.run", "with": {"shell": say, "network": True}, "retries": 1}
    assert bench.run(script).status is RunStatus.COMMITTED
    first, second = (bench.root.parent / "said").read_text().splitlines()
    assert first.endswith(",")
    assert second == first + "1"
    assert first.startswith("r1/s/")


# After a crash.


def test_a_run_that_died_over_it_sends_it_again_with_the_same_key(
    bench: Bench, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_before_it_is_recorded(monkeypatch, "order")
    with pytest.raises(Killed):
        bench.run(write("a", "x"), order(shop))
    (doubt,) = report.outside(bench.journal, "r1")
    assert (doubt["step"], doubt["state"]) == ("order", "in_doubt")
    assert bench.run(write("a", "x"), order(shop)).status is RunStatus.COMMITTED
    assert len(shop.keys) == 2
    assert len(shop.orders) == 1
    (sent,) = report.outside(bench.journal, "r1")
    assert (sent["state"], sent["idempotency_key"]) == ("sent", shop.keys[0])


def test_one_that_was_recorded_is_not_sent_again(bench: Bench, shop: Shop) -> None:
    steps = [order(shop), {"id": "gate", "op": "approval", "with": {"message": "?"}, "needs": ["order"]}]
    assert bench.run(*steps).status is RunStatus.AWAITING_APPROVAL
    assert bench.run(*steps, approve=True).status is RunStatus.COMMITTED
    assert len(shop.keys) == 1


@pytest.mark.parametrize(("answer", "in_doubt"), [(0, True), (503, True), (409, True), (404, False), (422, False)])
def test_only_a_try_that_may_have_got_through_stays_in_doubt(
    bench: Bench, shop: Shop, answer: int, in_doubt: bool
) -> None:
    shop.answers = [answer]
    assert bench.run(order(shop)).status is RunStatus.ROLLED_BACK
    assert [each["state"] for each in report.outside(bench.journal, "r1")] == (["in_doubt"] if in_doubt else [])


def test_a_host_that_cannot_be_reached_leaves_no_doubt(bench: Bench, shop: Shop) -> None:
    unreachable = order(shop)
    unreachable["with"] = {"method": "POST", "url": "http://127.0.0.1:1/"}
    assert bench.run(unreachable).status is RunStatus.ROLLED_BACK
    assert report.outside(bench.journal, "r1") == []


def test_a_later_try_that_cannot_get_through_leaves_the_doubt_about_the_earlier_one(bench: Bench, shop: Shop) -> None:
    shop.answers = [0, 404]
    assert bench.run(order(shop, retries=1)).status is RunStatus.ROLLED_BACK
    assert [each["state"] for each in report.outside(bench.journal, "r1")] == ["in_doubt"]


# Taking it back.


def test_what_was_sent_stands_when_a_later_one_fails_and_is_told(bench: Bench, shop: Shop) -> None:
    shop.answers = [200, 422]
    outcome = bench.run(order(shop, "one"), order(shop, "two", needs=["one"]), write("a", "x"))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert bench.files() == {}
    assert [each["step"] for each in report.outside(bench.journal, "r1")] == ["one"]
    assert any("one" in event.step and "stands" in event.message for event in bench.events)


def test_an_undo_instruction_takes_it_back_and_a_new_try_is_a_new_order(bench: Bench, shop: Shop) -> None:
    back = {"id": "back", "op": "http.request", "with": {"method": "POST", "url": shop.url + "/cancel"}}
    steps = [order(shop, undo=back), shell("s", "test -e ../ready", needs=["order"])]
    assert bench.run(*steps).status is RunStatus.ROLLED_BACK
    assert report.outside(bench.journal, "r1") == []
    (bench.root.parent / "ready").touch()
    assert bench.run(*steps).status is RunStatus.COMMITTED
    assert len({shop.keys[0], shop.keys[2]}) == 2


def test_a_rollback_says_which_steps_stand(bench: Bench, shop: Shop) -> None:
    bench.run(write("a", "x"), order(shop))
    bench.journal.update("r1", status="committed")
    assert list(rollback(bench.root, "r1").outside) == ["order"]
    assert bench.files() == {}


# Pushes.


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def remote(bench: Bench) -> Path:
    """A bare repository with the first commit of the workspace's."""
    bare = bench.root.parent / "remote.git"
    git(bench.root, "init", "-q", "-b", "main")
    (bench.root / "a").write_text("a\n")
    git(bench.root, "add", ".")
    git(bench.root, "commit", "-qm", "first")
    git(bench.root.parent, "clone", "-q", "--bare", str(bench.root), str(bare))
    git(bare, "config", "core.logAllRefUpdates", "true")
    git(bench.root, "remote", "add", "origin", f"file://{bare}")
    return bare


def commit_and_push(refspec: str = "main") -> tuple[Mapping[str, Any], ...]:
    return (
        write("w", "b"),
        {
            "id": "c",
            "op": "git.commit",
            "with": {"message": "second", "all": False, "author": AUTHOR},
            "needs": ["add"],
        },
        {"id": "add", "op": "git.add", "with": {"paths": ["b"]}, "needs": ["w"]},
        {"id": "push", "op": "git.push", "with": {"remote": "origin", "refspec": refspec}, "needs": ["c"]},
    )


def pushes(remote: Path) -> int:
    return len(git(remote, "reflog", "show", "main").splitlines())


def test_a_push_that_had_got_through_is_not_done_again(
    bench: Bench, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_before_it_is_recorded(monkeypatch, "push")
    with pytest.raises(Killed):
        bench.run(*commit_and_push())
    assert pushes(remote) == 1
    assert bench.run(*commit_and_push()).status is RunStatus.COMMITTED
    assert pushes(remote) == 1
    assert git(bench.root, "rev-parse", "origin/main") == git(remote, "rev-parse", "main")
    assert bench.steps()["push"].outputs == {"remote": "origin", "updated": ["refs/heads/main"]}


def test_a_push_that_had_not_got_through_is_done(bench: Bench, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantum_orchestrator.tasks import git_remotes

    with monkeypatch.context() as patch:
        patch.setattr(git_remotes, "_push", _dies)
        with pytest.raises(Killed):
            bench.run(*commit_and_push())
    assert pushes(remote) == 0
    assert bench.run(*commit_and_push()).status is RunStatus.COMMITTED
    assert git(remote, "rev-parse", "main") == git(bench.root, "rev-parse", "main")


def _dies(*_arguments: object) -> None:
    raise Killed


def test_a_forced_push_overwrites_what_was_there(bench: Bench, remote: Path) -> None:
    _somebody_else_pushes(bench, remote)
    assert bench.run(*commit_and_push()).status is RunStatus.ROLLED_BACK
    assert bench.run(*commit_and_push("+main"), run_id="r2").status is RunStatus.COMMITTED
    assert git(remote, "rev-parse", "main") == git(bench.root, "rev-parse", "main")


def test_a_forced_push_in_doubt_does_not_overwrite_what_came_since(
    bench: Bench, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_before_it_is_recorded(monkeypatch, "push")
    with pytest.raises(Killed):
        bench.run(*commit_and_push("+main"))
    theirs = _somebody_else_pushes(bench, remote)
    outcome = bench.run(*commit_and_push("+main"))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "may have got through" in outcome.error.message
    assert git(remote, "rev-parse", "main") == theirs


def test_a_push_that_is_overtaken_loses(bench: Bench, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantum_orchestrator.tasks import git_remotes

    _somebody_else_pushes(bench, remote)
    leases = git_remotes._leases

    def overtaken(*arguments: Any, **options: Any) -> list[str]:
        found = leases(*arguments, **options)
        _somebody_else_pushes(bench, remote)
        return found

    monkeypatch.setattr(git_remotes, "_leases", overtaken)
    outcome = bench.run(*commit_and_push("+main"))
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.error is not None
    assert "stale" in outcome.error.message


def _somebody_else_pushes(bench: Bench, remote: Path) -> str:
    """A commit of another history; its id."""
    other = bench.root.parent / f"other{len(list(bench.root.parent.iterdir()))}"
    git(bench.root.parent, "init", "-q", "-b", "main", str(other))
    (other / "theirs").write_text(f"{other.name}\n")
    git(other, "add", ".")
    git(other, "commit", "-qm", other.name)
    git(other, "push", "-qf", f"file://{remote}", "main")
    return git(other, "rev-parse", "main")


def test_the_sendings_are_part_of_the_runs_document(bench: Bench, shop: Shop) -> None:
    bench.run(order(shop))
    record = bench.journal.run("r1")
    assert record is not None
    document = report.run_document(record, RunStatus.COMMITTED, [], bench.journal, None)
    assert json.dumps(document["outside"][0]["step"]) == '"order"'

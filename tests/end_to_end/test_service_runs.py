"""Runs by the warm service: they are what they would be without it, and whoever dies takes nobody along."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import LONG, NOTE, PATIENCE, SHIP, SIGN, Said, eventually, script, tree
from service_client import CLIENT, Client, Shop, by_itself, served

from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.deployments import service

SLOW = script("touch begun; sleep 1", step="slow")


@pytest.fixture(scope="module")
def running(prefect_server: str) -> Iterator[None]:
    """The service that the clients of this module find."""
    service.ensure()
    yield
    service.stop(home())


@pytest.fixture
def shop(running: None, tmp_path: Path) -> Iterator[Shop]:
    service.ensure()  # a test may have killed it
    made = Shop(tmp_path)
    yield made
    made.close()


def the_service() -> service.State:
    (state,) = service.states(home())
    return state


def ends_with(code: int, said: Said) -> Said:
    """Served, with -v, which shows where errors come from."""
    assert served(said).code == code, said.err
    return said


def last_run(shop: Shop) -> RunRecord:
    with contextlib.closing(Journal(workspace_home(shop.work))) as journal:
        (run, *_) = journal.runs(1)
        return run


def begun(shop: Shop, *arguments: str) -> Client:
    """A run that is in the middle of a step which takes a second."""
    client = shop.begins("run", shop.set(NOTE, SLOW, SHIP), "-v", *arguments)
    eventually((shop.work / "begun").exists, lambda: client.err)
    return client


def comes_to(shop: Shop, status: str) -> None:
    eventually(lambda: last_run(shop).status == status, lambda: last_run(shop).status)


class TestTheSameAsWithout:
    def test_what_is_printed_and_done(self, shop: Shop) -> None:
        said = served(shop("run", shop.set(NOTE), "-v")).exits(0)
        said.prints("committed: run ").prints("1 file changed (+1 −0)").says("✓ note  file.write note.txt")
        assert (shop.work / "note.txt").read_text() == "hello\n"

    def test_a_set_from_standard_input_and_the_result_as_json(self, shop: Shop) -> None:
        text = Path(shop.set(NOTE)).read_bytes()
        document = served(shop("run", "-", "--json", "-v", stdin=text)).exits(0).json
        assert (document["status"], document["diff"]["files"]) == ("committed", 1)

    def test_faults_and_exit_codes(self, shop: Shop) -> None:
        ends_with(3, shop("run", shop.set({"id": "x", "op": "file.wirte"}), "-v")).says("did you mean 'file.write'?")
        failed = shop.set(NOTE, script("exit 7", needs=["note"]))
        served(shop("run", failed, "-v")).exits(1).prints("rolled back: run ")
        assert tree(shop.work) == {}

    def test_the_umask_the_limits_and_open_files_are_the_clients(self, shop: Shop) -> None:
        read, write = os.pipe()
        os.write(write, Path(shop.set(script("umask > mask; ulimit -n > files", step="look"))).read_bytes())
        os.close(write)
        limited = ["sh", "-c", 'umask 027; ulimit -n 200; exec "$@"', "sh", *CLIENT, "run", f"/dev/fd/{read}", "-v"]
        done = subprocess.run(
            limited,
            cwd=shop.work,
            env={**os.environ, "QO_SERVICE": "on"},
            pass_fds=[read],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(read)
        served(Said(done.returncode, done.stdout, done.stderr)).exits(0)
        assert (shop.work / "mask").read_text().strip() == "0027"
        assert (shop.work / "files").read_text().strip() == "200"

    def test_the_environment_is_the_clients_and_nobody_elses(self, shop: Shop) -> None:
        look = shop.set(script('echo "${TMPDIR-none} ${USER-none}" > seen', step="look"))
        before = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "USER")}
        served(shop("run", look, "-v", instead={**before, "TMPDIR": "/dev/shm"})).exits(0)
        assert (shop.work / "seen").read_text() == "/dev/shm none\n"
        served(shop("run", look, "-v", instead={**before, "USER": "ada"})).exits(0)
        assert (shop.work / "seen").read_text() == "none ada\n"


class TestWhatIsConfiguredForPrefect:
    NOWHERE = "http://127.0.0.1:9/api"

    def test_in_the_environment(self, shop: Shop) -> None:
        elsewhere = {"PREFECT_API_URL": self.NOWHERE}
        ends_with(1, shop("run", shop.set(NOTE), "-v", environment=elsewhere)).says(f"configured, {self.NOWHERE}")
        served(shop("run", shop.set(NOTE), "-v")).exits(0)

    def test_in_the_folder(self, shop: Shop) -> None:
        (shop.work / "prefect.toml").write_text(f'[api]\nurl = "{self.NOWHERE}"\n')
        ends_with(1, shop("run", shop.set(NOTE), "-v", instead=plain())).says(f"configured, {self.NOWHERE}")

    def test_in_the_profile(self, shop: Shop) -> None:
        profiles = shop.folder / "profiles.toml"
        profiles.write_text(f'active = "far"\n[profiles.far]\nPREFECT_API_URL = "{self.NOWHERE}"\n')
        environment = {**plain(), "PREFECT_PROFILES_PATH": str(profiles)}
        ends_with(1, shop("run", shop.set(NOTE), "-v", instead=environment)).says(f"configured, {self.NOWHERE}")


def plain() -> dict[str, str]:
    """An environment in which nothing is set for Prefect."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


class TestWhoeverDies:
    def test_ten_at_once_do_not_know_of_each_other(self, running: None, tmp_path: Path) -> None:
        shops = [Shop(tmp_path / str(number)) for number in range(10)]
        steps = [script(f"echo $USER > who; sleep 0.2; test {number} != 3", step="who") for number in range(10)]
        clients = [
            each.begins("run", each.set(step), "-v", environment={"USER": str(number)})
            for number, (each, step) in enumerate(zip(shops, steps, strict=True))
        ]
        said = [served(client.ended()) for client in clients]
        assert [each.code for each in said] == [1 if number == 3 else 0 for number in range(10)], said
        found = [(each.work / "who").read_text() if (each.work / "who").exists() else "" for each in shops]
        assert found == ["" if number == 3 else f"{number}\n" for number in range(10)]

    def test_the_client_is_killed_and_the_run_goes_on(self, shop: Shop) -> None:
        client = begun(shop).signal(signal.SIGKILL)
        assert client.process.wait() == -signal.SIGKILL
        assert last_run(shop).status == "running"
        comes_to(shop, "committed")
        assert (shop.work / "shipped.txt").exists()

    def test_a_client_that_is_gone_can_cancel(self, shop: Shop) -> None:
        shop.begins("run", shop.set(NOTE, LONG), "-v").until("✓ note").signal(signal.SIGKILL)
        shop("cancel").exits(0)
        assert tree(shop.work) == {}

    def test_the_service_is_killed_and_the_client_gets_its_end(self, shop: Shop) -> None:
        client = begun(shop)
        os.kill(the_service().pid, signal.SIGKILL)
        client.ended().exits(0).prints("committed: run ")
        by_itself(shop("run", shop.set(NOTE), "-v"), "no warm service runs").exits(0).says("started a warm service")

    def test_the_run_is_killed_and_the_client_says_so(self, shop: Shop) -> None:
        client = begun(shop)
        os.kill(last_run(shop).pid or 0, signal.SIGKILL)
        said = client.ended().says("was ended by SIGKILL").says("`qo resume` goes on")
        assert said.code == -signal.SIGKILL
        assert the_service().answers
        served(shop("resume", "-v")).exits(0)
        assert (shop.work / "shipped.txt").exists()

    def test_the_keeper_is_killed_and_the_run_goes_on(self, shop: Shop) -> None:
        client = begun(shop)
        eventually(lambda: the_service().at_work)
        os.kill(the_service().at_work[0]["keeper"], signal.SIGKILL)
        client.ended().exits(4).says("may still be at work").says("`qo logs -f` follows it")
        comes_to(shop, "committed")

    def test_qo_down_names_what_is_at_work_and_leaves_it(self, shop: Shop) -> None:
        client = begun(shop)
        eventually(lambda: the_service().at_work)
        (ended,) = service.stop(home())
        assert [each["pid"] for each in ended.at_work] == [last_run(shop).pid]
        assert "qo run " in ended.at_work[0]["command"]
        client.ended().exits(0)

    def test_nothing_of_one_client_is_open_in_anothers_run(self, shop: Shop, tmp_path: Path) -> None:
        other = Shop(tmp_path / "other")
        first, second = begun(shop), begun(other)
        mine, theirs = (set(map(os.readlink, open_files(last_run(each).pid))) for each in (shop, other))
        shared = {each for each in mine & theirs if not each.startswith(("/dev/", "anon_inode:"))}
        assert shared == set()
        assert [first.ended().code, second.ended().code] == [0, 0]


def open_files(pid: int | None) -> list[Path]:
    return [each for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]


class TestCtrlC:
    def test_once_rolls_back(self, shop: Shop) -> None:
        client = shop.begins("run", shop.set(NOTE, LONG), "-v").until("✓ note").signal(signal.SIGINT)
        client.ended().exits(130).prints("cancelled: run ").says("rolling back")
        assert tree(shop.work) == {}

    def test_twice_ends_at_once(self, shop: Shop) -> None:
        slow_undo = {**NOTE, "undo": {"id": "u", "op": "script.run", "with": {"shell": "touch ../undoing; sleep 1"}}}
        client = shop.begins("run", shop.set(slow_undo, LONG), "-v").until("✓ note").signal(signal.SIGINT)
        eventually((shop.folder / "undoing").exists)
        client.signal(signal.SIGINT).ended().exits(130).says("undoes what was done")
        served(shop("rollback", "-v")).exits(0)
        assert tree(shop.work) == {}

    def test_sigterm_rolls_back_too(self, shop: Shop) -> None:
        client = shop.begins("run", shop.set(NOTE, LONG), "-v").until("✓ note").signal(signal.SIGTERM)
        client.ended().exits(130)
        assert tree(shop.work) == {}

    def test_a_stopped_client_stops_the_run_and_a_continued_one_lets_it_go_on(self, shop: Shop) -> None:
        client = begun(shop).signal(signal.SIGTSTP)
        eventually(lambda: state_of(last_run(shop).pid) == "T")
        eventually(lambda: state_of(client.process.pid) == "T")
        client.signal(signal.SIGCONT).ended().exits(0)


def state_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Terminal:
    """A `qo` at a terminal of its own."""

    def __init__(self, shop: Shop, *arguments: str) -> None:
        self.said = ""
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(shop.work)
            os.execve(CLIENT[0], [*CLIENT, *arguments], {**os.environ, "QO_SERVICE": "on", "TERM": "xterm"})

    def until(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self._master], [], [], 0.1)[0]:
                self.said += os.read(self._master, 65536).decode(errors="replace")

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    def closes(self) -> None:
        os.close(self._master)

    def ended(self) -> int:
        with contextlib.suppress(OSError):  # EIO, once it has ended
            while data := os.read(self._master, 65536):
                self.said += data.decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class TestAtATerminal:
    def test_an_approval_is_asked_for_and_given(self, shop: Shop) -> None:
        terminal = Terminal(shop, "run", shop.set(SIGN, SHIP), "-v")
        terminal.until("approve?")
        terminal.types("y")
        assert terminal.ended() == 0
        assert "without the warm service" not in terminal.said
        assert (shop.work / "shipped.txt").exists()

    def test_ctrl_c_is_passed_on(self, shop: Shop) -> None:
        terminal = Terminal(shop, "run", shop.set(NOTE, LONG), "-v")
        terminal.until("✓ note")
        terminal.types("\x03")
        assert terminal.ended() == 130
        assert tree(shop.work) == {}

    def test_a_terminal_that_is_closed_ends_no_run(self, shop: Shop) -> None:
        terminal = Terminal(shop, "run", shop.set(NOTE, SLOW, SHIP), "-v")
        eventually((shop.work / "begun").exists)
        terminal.closes()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == -signal.SIGHUP
        comes_to(shop, "committed")

    def test_an_approval_that_nobody_can_give_any_more_waits(self, shop: Shop) -> None:
        terminal = Terminal(shop, "run", shop.set(SIGN, SHIP), "-v")
        terminal.until("approve?")
        terminal.closes()
        os.waitpid(terminal.pid, 0)
        comes_to(shop, "awaiting_approval")
        served(shop("approve", "-v")).exits(0)
        assert (shop.work / "shipped.txt").exists()

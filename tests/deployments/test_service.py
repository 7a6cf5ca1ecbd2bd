"""When the warm service does not serve, and when it ends: refusals, code that has changed, idleness, a folder gone.

Here a process takes the client's part in what is compared; `end_to_end/test_service_runs.py` has real commands.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import eventually

from quantum_orchestrator.deployments import circumstances, service, service_client
from quantum_orchestrator.deployments.loaded_code import LoadedCode
from quantum_orchestrator.deployments.service_command import Counter, keep

NOT_IN_A_CLIENT = {
    "asyncio",
    "cyclopts",
    "dataclasses",
    "inspect",
    "pathlib",
    "prefect",
    "pydantic",
    "rich",
    "subprocess",
}


@contextlib.contextmanager
def process(before: Callable[[], object] = lambda: None) -> Iterator[int]:
    """A process in which this was done first."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=before) as made:
        yield made.pid
        assert made.stdin is not None
        made.stdin.close()


def no_new_privileges() -> None:
    assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS


def own_names() -> None:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER, which anybody may


class TestWhatAForkCannotTakeOver:
    def test_nothing_is_different_in_a_process_like_this_one(self) -> None:
        with process() as client:
            assert circumstances.difference(client) == ""

    @pytest.mark.parametrize(
        ("before", "what"),
        [(no_new_privileges, "no_new_privs"), (own_names, "capabilities"), (lambda: os.setgid(12345), "group")],
        ids=["no_new_privs", "user namespace", "group"],
    )
    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its group and has capabilities to lose")
    def test_what_differs_is_named(self, before: Callable[[], object], what: str) -> None:
        with process(before) as client:
            assert what in circumstances.difference(client)

    def test_limits_umask_and_priority_are_taken_over(self) -> None:
        def lower() -> None:
            os.umask(0o027)
            os.nice(3)
            resource.setrlimit(resource.RLIMIT_NOFILE, (123, 456))

        code = (
            "import os, resource, sys; from quantum_orchestrator.deployments import circumstances;"
            "circumstances.take_over(int(sys.argv[1]));"
            "print(oct(os.umask(0)), os.nice(0), resource.getrlimit(resource.RLIMIT_NOFILE))"
        )
        with process(lower) as client:
            said = subprocess.run([sys.executable, "-c", code, str(client)], capture_output=True, text=True, check=True)
        assert said.stdout.split(maxsplit=2)[0] == "0o27"
        assert said.stdout.strip().endswith(" 3 (123, 456)")

    def test_a_client_that_is_gone_cannot_be_looked_at(self) -> None:
        with process() as client:
            pass
        with pytest.raises(OSError, match="No such"):
            circumstances.difference(client)


class TestRequests:
    def answer(self, request: bytes, changed: str = "") -> tuple[dict[str, object], list[dict[str, object]]]:
        ours, theirs = socket.socketpair()
        told: list[dict[str, object]] = []
        with ours, theirs:
            ours.sendall(request)
            ours.shutdown(socket.SHUT_WR)
            keep(theirs, Counter(lambda: changed, [], told.append))
            return json.loads(ours.recv(65536)), told

    def request(self, **other: object) -> bytes:
        return service_client.message({"do": "run", "interpreter": service_client.interpreter(), **other})

    def test_code_that_has_changed_serves_nobody_and_ends_the_service(self) -> None:
        answer, told = self.answer(self.request(), changed="/lib/x.py")
        assert answer["startable"] is True
        assert "/lib/x.py" in str(answer["refused"])
        assert told == [{"end": "/lib/x.py has changed"}]

    def test_another_python_or_another_pythonpath_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "/elsewhere")
        request = self.request()
        monkeypatch.undo()
        answer, told = self.answer(request)
        assert "another Python" in str(answer["refused"])
        assert (answer["startable"], told) == (False, [])

    @pytest.mark.parametrize("request_", [b"", b"\0\0", b"\0" * 7 + b"\x09{}", b"\0" * 7 + b"\x02{}"])
    def test_what_is_no_request_is_refused(self, request_: bytes) -> None:
        answer, told = self.answer(request_)
        assert "refused" in answer
        assert told == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
    def test_another_user_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            place = Path(folder, "s")
            place.parent.chmod(0o711)
            listener.bind(str(place))
            place.chmod(0o666)
            listener.listen()
            listener.settimeout(20)  # whoever cannot reach it never comes
            connect = f"s = socket.socket(socket.AF_UNIX); s.connect({str(place)!r})"
            code = f"import socket; {connect}; print(s.recv(999))"
            with subprocess.Popen(
                ["/usr/bin/env", "python3", "-c", code],
                user=65534,
                cwd="/",
                env={"PATH": os.defpath + ":/usr/local/bin"},
                stdout=subprocess.PIPE,
            ) as stranger:
                connection, _ = listener.accept()
                with connection:
                    keep(connection, Counter(lambda: "", [], lambda _: None))
                assert stranger.stdout is not None
                assert b"serves another user" in stranger.stdout.read()


class TestLoadedCode:
    def test_a_module_that_changes_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "loaded_by_test.py").write_text("one = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        __import__("loaded_by_test")
        code = LoadedCode(time.time() + 60)
        assert code.changed() == ""
        (tmp_path / "loaded_by_test.py").write_text("one = 2\n")
        assert code.changed() == str(tmp_path / "loaded_by_test.py")

    def test_a_hard_link_elsewhere_is_no_change(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "linked_by_test.py").write_text("one = 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        __import__("linked_by_test")
        (tmp_path / "another_environment").mkdir()
        code = LoadedCode(time.time() + 60)
        (tmp_path / "another_environment/linked.py").hardlink_to(tmp_path / "linked_by_test.py")
        assert code.changed() == ""

    def test_a_package_that_is_installed_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        code = LoadedCode(time.time() + 60)
        (tmp_path / "new-1.0.dist-info").mkdir()
        assert code.changed() == str(tmp_path)

    def test_what_changed_while_it_was_loaded_counts_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        began = time.time() - 1
        (tmp_path / "x.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        assert LoadedCode(began).changed() != ""


def test_a_client_imports_next_to_nothing() -> None:
    code = "import sys; import quantum_orchestrator.deployments.qo; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quantum_orchestrator.deployments.service_client" in said.stdout.split()
    assert NOT_IN_A_CLIENT & set(said.stdout.split()) == set()


def test_a_folder_with_a_long_name_has_a_socket_too(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    here = os.getcwd()
    try:
        listener = service._listening(folder)
    finally:
        os.chdir(here)
    with listener, service_client.connected(str(folder)) as connection:
        assert service_client.peer(connection)[1] == os.geteuid()
        assert (folder / "socket").stat().st_mode & 0o777 == 0o600


class TestItsEnd:
    """The service itself, which has loaded nothing here."""

    @pytest.fixture
    def ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(service, "LOOK_SECONDS", 0.05)
        folder = tmp_path / "service"
        folder.mkdir()

        def run(idle_minutes: str) -> str:
            monkeypatch.setenv("QO_SERVICE_IDLE_MINUTES", idle_minutes)
            before = signal.getsignal(signal.SIGCHLD)
            one = service._Service(folder, LoadedCode(time.time() + 60))
            try:
                return one.serve()
            finally:
                one.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, before)
                for source in (one._told, one._tell, one._listener):
                    source.close()

        return run

    def test_it_ends_when_idle(self, ends: Callable[[str], str], tmp_path: Path) -> None:
        assert ends("0.001") == "idle"
        assert not (tmp_path / "service/socket").exists()

    def test_it_ends_when_its_folder_is_gone(self, ends: Callable[[str], str], tmp_path: Path) -> None:
        def remove() -> None:
            eventually((tmp_path / "service/socket").exists)
            shutil.rmtree(tmp_path / "service")

        remover = threading.Thread(target=remove)
        remover.start()
        assert ends("10") == "its folder is gone"
        remover.join()


@pytest.mark.parametrize(
    ("environment", "is_wanted"),
    [
        ({}, True),
        ({"QO_SERVICE": "off"}, False),
        ({"QO_SERVICE": "0"}, False),
        ({"CI": "true"}, False),
        ({"CI": "true", "QO_SERVICE": "on"}, True),
    ],
)
def test_who_wants_one(environment: dict[str, str], is_wanted: bool) -> None:
    assert service_client.wanted(environment) is is_wanted


@pytest.mark.parametrize("arguments", [[], ["plan", "x.json"], ["run", "--help"], ["up"]])
def test_what_it_is_not_asked_for(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QO_SERVICE", "on")
    outcome = service_client.by_service(arguments)
    assert isinstance(outcome, service_client.Unserved)
    assert not outcome.telling

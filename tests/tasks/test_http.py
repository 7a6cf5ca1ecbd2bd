"""`http.request` against real servers, with and without TLS."""

from __future__ import annotations

import base64
import datetime
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PolicyRefused, TimedOut
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.tree import MemoryTree, Overlay
from quantum_orchestrator.tasks import http, registry
from quantum_orchestrator.tasks.operation import Context


def context(**given: Any) -> Context:
    return Context(files=Overlay(MemoryTree()), **given)


def run(name: str, parameters: dict[str, Any], where: Context | None = None) -> Any:
    chosen = registry.get(name)
    return chosen.run(chosen.parameters.model_validate(parameters), where or context())


class Handler(BaseHTTPRequestHandler):
    """Answers by path; what it was asked is in `seen`."""

    seen: list[dict[str, Any]]
    stop: threading.Event

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        self.seen.append({"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body})
        action: Callable[[], None] = getattr(
            self, "do_" + self.path.strip("/").split("?")[0].replace("/", "_"), self._missing
        )
        action()

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names that http.server looks for

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _missing(self) -> None:
        self._reply(404, b"no such page")

    def do_hello(self) -> None:
        self._reply(200, "grüße".encode(), content_type="text/plain; charset=utf-8", x_one="1")

    def do_bytes(self) -> None:
        self._reply(200, b"\xff\x00\xfe")

    def do_made(self) -> None:
        self._reply(201, b"{}")

    def do_hop(self) -> None:
        self._reply(302, location="/hello")

    def do_loop(self) -> None:
        self._reply(302, location="/loop")

    def do_away(self) -> None:
        self._reply(302, location="http://169.254.169.254/latest/meta-data")

    def do_local(self) -> None:
        self._reply(307, location=f"http://localhost:{self.server.server_address[1]}/hello")

    def do_file(self) -> None:
        self._reply(302, location="file:///etc/passwd")

    def do_slow(self) -> None:
        self.stop.wait(20)

    def do_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.stop.wait(0.05):
            self.wfile.write(b".")

    def do_huge(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(11):
            self.wfile.write(b"x" * 1024 * 1024)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves early is part of some tests."""


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def site(seen: list[dict[str, Any]]) -> Iterator[str]:
    stop = threading.Event()
    with serving({"seen": seen, "stop": stop}) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serving(state: dict[str, Any], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on a free port, in a thread."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), state))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    state["stop"].set()
    server.shutdown()
    server.server_close()
    thread.join()


def ask(url: str, where: Context | None = None, **parameters: Any) -> Any:
    here = where or context(policy=Policy(http_hosts=("127.0.0.1",)))
    return run("http.request", {"url": url, **parameters}, here)


def test_a_request_is_irreversible_and_never_planned() -> None:
    effects = http.Request().effects(http.RequestParameters(url="https://example.com", method="POST"))
    assert effects.irreversible
    assert not effects.predictable
    assert effects.reads == effects.writes == ()


def test_a_request_that_asks_for_no_change_has_nothing_to_undo() -> None:
    effects = http.Request().effects(http.RequestParameters(url="https://example.com", method="GET"))
    assert not effects.irreversible
    assert not effects.predictable


def test_a_response_is_status_headers_and_text(site: str) -> None:
    response = ask(f"{site}/hello")
    assert (response.status, response.body, response.body_base64) == (200, "grüße", None)
    assert response.headers["x-one"] == "1"
    assert response.url == f"{site}/hello"


def test_a_response_that_is_no_text_comes_in_base64(site: str) -> None:
    response = ask(f"{site}/bytes")
    assert response.body is None
    assert base64.b64decode(response.body_base64) == b"\xff\x00\xfe"


def test_method_headers_and_body_arrive(site: str, seen: list[dict[str, Any]]) -> None:
    ask(f"{site}/hello?q=1", method="PUT", headers={"X-Token": "t"}, body="text")
    assert (seen[0]["method"], seen[0]["path"], seen[0]["body"]) == ("PUT", "/hello?q=1", b"text")
    headers = {name.lower(): value for name, value in seen[0]["headers"].items()}
    assert headers["x-token"] == "t"
    assert f"http://{headers['host']}" == site


@pytest.mark.parametrize("value", [{"a": [1, None]}, None, "ü"])
def test_json_is_sent_as_such(site: str, seen: list[dict[str, Any]], value: object) -> None:
    ask(f"{site}/hello", method="POST", json=value)
    assert json.loads(seen[0]["body"]) == value
    assert {k.lower(): v for k, v in seen[0]["headers"].items()}["content-type"] == "application/json"


@pytest.mark.parametrize("expected", [404, [200, 404]])
def test_an_expected_status_is_success(site: str, expected: object) -> None:
    assert ask(f"{site}/nothing", expect_status=expected).status == 404


def test_an_unexpected_status_fails_with_what_was_said(site: str) -> None:
    with pytest.raises(OperationError, match=r"404 Not Found: no such page"):
        ask(f"{site}/nothing")
    with pytest.raises(OperationError, match=r"answered 201"):
        ask(f"{site}/made", expect_status=200)


def test_a_redirect_on_the_same_host_is_followed(site: str, seen: list[dict[str, Any]]) -> None:
    response = ask(f"{site}/hop", method="POST", body="x")
    assert (response.status, response.url) == (200, f"{site}/hello")
    assert [(each["method"], each["path"]) for each in seen] == [("POST", "/hop"), ("GET", "/hello")]


@pytest.mark.parametrize("path", ["away", "local", "file"])
def test_a_redirect_to_another_host_is_not_followed(site: str, seen: list[dict[str, Any]], path: str) -> None:
    allowed = context(policy=Policy(http_hosts=("127.0.0.1", "localhost", "169.254.169.254")))
    with pytest.raises(OperationError, match="another host, which is not followed"):
        ask(f"{site}/{path}", allowed)
    assert len(seen) == 1


def test_a_redirect_that_is_expected_is_the_response(site: str) -> None:
    assert ask(f"{site}/away", expect_status=302).headers["location"].startswith("http://169.254")


def test_redirects_come_to_an_end(site: str, seen: list[dict[str, Any]]) -> None:
    with pytest.raises(OperationError, match="more than 5 redirects"):
        ask(f"{site}/loop")
    assert len(seen) == 6


def test_this_machine_is_refused_unless_the_policy_names_it(site: str, seen: list[dict[str, Any]]) -> None:
    for where in (context(), context(policy=Policy()), context(policy=Policy(http_hosts=("localhost",)))):
        with pytest.raises(PolicyRefused, match=r"127\.0\.0\.1") as refused:
            ask(f"{site}/hello", where)
        assert "policy.toml" in refused.value.hint
    assert seen == []


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1"]
)
def test_other_spellings_of_local_addresses_are_refused_too(host: str) -> None:
    with pytest.raises(OperationError):
        ask(f"http://{host}/", context(policy=Policy()))


def test_the_address_that_was_judged_is_the_one_connected_to(
    site: str, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hostile name server: each look-up of a name gives another address.
    answers = iter(["127.0.0.1", "203.0.113.1", "203.0.113.1"])
    real = socket.getaddrinfo

    def rebinding(host: Any, *arguments: Any, **keywords: Any) -> Any:
        return real(next(answers) if host == "rebind.example" else host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    port = site.rpartition(":")[2]
    response = ask(f"http://rebind.example:{port}/hello", context(policy=Policy(http_hosts=("rebind.example",))))
    assert response.status == 200
    assert seen[0]["headers"]["Host"] == f"rebind.example:{port}"
    assert next(answers) == "203.0.113.1", "one look-up a request"


@pytest.fixture
def tls_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with a certificate for tls.example, which every name leads to."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate, "tls.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _host, *rest, **named: real("127.0.0.1", *rest, **named))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving({"seen": [], "stop": threading.Event()}, tls) as port:
        yield str(port)


def make_certificate(key_file: Path, certificate_file: Path, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, without = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(pem, form, without))
    certificate_file.write_bytes(certificate.public_bytes(pem))


def test_the_certificate_must_be_that_of_the_name_and_not_of_the_address(tls_site: str) -> None:
    allowed = context(policy=Policy(http_hosts=("tls.example", "other.example")))
    assert ask(f"https://tls.example:{tls_site}/hello", allowed).status == 200
    with pytest.raises(OperationError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(f"https://other.example:{tls_site}/hello", allowed)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_arguments: Any, **_keywords: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(PolicyRefused, match=r"10\.0\.0\.1"):
        ask("http://mixed.example/", context(policy=Policy()))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff0e::1", False),
    ],
)
def test_addresses_of_the_internet_are_told_from_all_others(address: str, expected: bool) -> None:
    assert http.is_global(address) is expected


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.com/", "example.com", "http://", "http://a:b@127.0.0.1/", "http://[/"]
)
def test_addresses_that_are_not_plain_http_are_refused(url: str) -> None:
    with pytest.raises(OperationError):
        ask(url)


@pytest.mark.parametrize(
    "parameters",
    [
        {"body": "a", "json": 1},
        {"headers": {"Host": "elsewhere"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"method": "TRACE"},
        {"timeout": 0},
        {"expect_status": 99},
        {"json_body": 1},
    ],
)
def test_contradictory_requests_are_invalid(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ask("http://127.0.0.1/", **parameters)


def test_a_header_cannot_bring_another_along(site: str, seen: list[dict[str, Any]]) -> None:
    with pytest.raises(OperationError):
        ask(f"{site}/hello", headers={"x": "1\r\nhost: elsewhere"})
    assert seen == []


def test_a_response_that_is_too_large_fails(site: str) -> None:
    with pytest.raises(OperationError, match="larger than 10 MiB"):
        ask(f"{site}/huge")


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_a_slow_server_takes_no_longer_than_the_timeout(site: str, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(TimedOut, match=r"0\.4 s"):
        ask(f"{site}/{path}", timeout=0.4)
    assert time.monotonic() - started < 5


def test_a_name_server_that_hangs_takes_no_longer_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hanging(*_arguments: Any, **_keywords: Any) -> Any:
        released.wait(20)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    started = time.monotonic()
    with pytest.raises(TimedOut):
        ask("http://hanging.example/", timeout=0.2)
    released.set()
    assert time.monotonic() - started < 5


def test_the_timeout_of_the_step_holds_as_well(site: str) -> None:
    with pytest.raises(TimedOut):
        ask(f"{site}/slow", context(policy=Policy(http_hosts=("127.0.0.1",)), timeout=0.3))


def test_cancelling_the_run_ends_a_request_at_once(site: str) -> None:
    where = context(policy=Policy(http_hosts=("127.0.0.1",)))
    threading.Timer(0.2, where.cancel.cancel).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        ask(f"{site}/slow", where)
    assert time.monotonic() - started < 5


def test_a_request_that_the_end_of_the_run_cuts_off_may_have_got_through(site: str) -> None:
    told: list[str] = []
    where = context(policy=Policy(http_hosts=("127.0.0.1",)), not_sent=lambda: told.append("not sent"))
    threading.Timer(0.2, where.cancel.cancel).start()
    with pytest.raises(Interrupted):
        ask(f"{site}/slow", where, method="POST")
    assert told == []


def test_proxies_of_the_environment_are_not_used(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(f"{site}/hello").status == 200


def test_a_closed_port_is_an_error_that_names_the_address() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with pytest.raises(OperationError, match=f"127.0.0.1:{port}"):
            ask(f"http://127.0.0.1:{port}/")

"""`http.request`: one request to another machine.

It goes nowhere that was not judged first: the address that a host name resolves to is looked up once, judged, and that
very address is connected to, for the request and for each redirect. (A name that is judged and then looked up again can
answer differently the second time.)
"""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PolicyRefused, TimedOut
from quantum_orchestrator.tasks.operation import (
    Context,
    Effects,
    Operation,
    Outputs,
    Parameters,
    Reach,
    Unknown,
    operation,
)

if TYPE_CHECKING:
    import httpx

BODY_CAP = 10 * 1024 * 1024
REDIRECTS = 5
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that ask for no change (RFC 9110, 9.2.1)."""
IDEMPOTENCY_KEY = "idempotency-key"
UNCERTAIN = frozenset({408, 409})
"""Refusals that may mean that an earlier try is still at work there; any other 4xx means that nothing was done."""
RESERVED_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
DEFAULT_PORTS = {"http": 80, "https": 443}

Status = Annotated[int, Field(ge=100, le=599)]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


ASKED_ELSEWHERE = frozenset({307, 308})
"""Redirects of a request that was not acted on; after the other ones it may have been."""


class RequestParameters(Parameters):
    """One HTTP request."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = Field(
        "GET", description="HTTP method."
    )
    url: str = Field(description="Where to: http or https, without a name and password in it.")
    headers: dict[str, str] = Field({}, description="Request headers.")
    body: str | None = Field(None, description="Request body, as text.")
    # Named apart because a Pydantic model has a method `json`.
    json_body: JsonValue = Field(None, alias="json", description="Request body, as JSON; sets the content type.")
    expect_status: Status | list[Status] | None = Field(
        None, description="Status code, or codes, that mean success. Without it: 200 to 299."
    )
    timeout: float = Field(30.0, description="Seconds that the whole request may take.", gt=0, le=3600)

    @model_validator(mode="after")
    def _one_body(self) -> RequestParameters:
        if self.body is not None and self.has_json:
            raise ValueError("give `body` or `json`, not both")
        reserved = sorted(name for name in self.headers if name.lower() in RESERVED_HEADERS)
        if reserved:
            raise ValueError(f"the header {reserved[0]!r} is made from the request and cannot be set")
        return self

    @property
    def has_json(self) -> bool:
        """Whether `json` was given; null is a value as well."""
        return "json_body" in self.model_fields_set

    @property
    def content(self) -> str | None:
        """The request's body."""
        return json.dumps(self.json_body, ensure_ascii=False, allow_nan=False) if self.has_json else self.body

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers given, on top of those that every request has (an answer that is not packed cannot explode)."""
        usual = {"accept-encoding": "identity"} | ({"content-type": "application/json"} if self.has_json else {})
        return usual | {name.lower(): value for name, value in self.headers.items()}

    def accepts(self, status: int) -> bool:
        """Whether a response with this status is a success."""
        if self.expect_status is None:
            return 200 <= status <= 299
        expected = self.expect_status if isinstance(self.expect_status, list) else [self.expect_status]
        return status in expected


class RequestOutputs(Outputs):
    """The response."""

    status: int = Field(description="Status code.")
    headers: dict[str, str] = Field(description="Response headers, names in lower case.")
    body: str | None = Field(None, description="Response body, when it is text.")
    body_base64: str | None = Field(None, description="Response body, when it is not text.")
    url: str = Field(description="Where the response came from, after redirects.")


@operation("http.request")
class Request(Operation[RequestParameters, RequestOutputs]):
    """Send an HTTP request.

    Apart from GET, HEAD and OPTIONS it cannot be undone, so that it is sent when everything else has succeeded, with an
    `Idempotency-Key` header that is the same in every try (a header of your own beats it). Hosts on local and private
    networks need the policy's consent; redirects are followed on the same host alone; no proxy or `.netrc` is used.
    """

    example: ClassVar[Mapping[str, Any]] = {"url": "https://example.com/", "method": "GET"}

    def effects(self, parameters: RequestParameters) -> Effects:
        """Nothing in the workspace; outside of it, whatever the other side makes of it."""
        try:
            return Effects(predictable=False, irreversible=parameters.method not in SAFE)
        except Unknown:
            return Effects(predictable=False, irreversible=True)

    def reach(self, parameters: RequestParameters) -> Reach:
        """The host."""
        import httpx  # which sends it, and so must say where to

        try:
            host = httpx.URL(str(parameters.url)).host.rstrip(".")
        except httpx.InvalidURL:
            host = ""  # refused when it is sent
        return Reach(hosts=(host,) if host else (), network=True)

    def run(self, parameters: RequestParameters, context: Context) -> RequestOutputs:
        """Send it. Raises PolicyRefused, TimedOut, or OperationError for what failed and for an unexpected status."""
        hosts = context.policy.http_hosts if context.policy else ()
        limits = (parameters.timeout, context.timeout) if context.timeout is not None else (parameters.timeout,)
        exchange = _Exchange(parameters, hosts, min(limits), context.idempotency_key)
        exchange.start()
        context.cancel.on_cancel(exchange.done.set)
        exchange.done.wait(exchange.seconds)
        exchange.abandoned = True
        if exchange.ended and not exchange.may_have_changed_something:
            context.not_sent()
        if context.cancel.cancelled:
            raise Interrupted
        return exchange.result()


def send(parameters: RequestParameters, hosts: Iterable[str]) -> RequestOutputs:
    """A request of somebody who is no step of a set, confined as one. Raises as `http.request` does."""
    exchange = _Exchange(parameters, hosts, parameters.timeout)
    exchange.start()
    exchange.done.wait(exchange.seconds)
    exchange.abandoned = True
    return exchange.result()


class _Exchange(threading.Thread):
    """A request and its redirects, on a thread of its own.

    Name look-ups and slow servers cannot be interrupted from outside. So the operation waits for this thread as long
    as it may, and then leaves it behind: it ends with its own time limits, and nobody reads what it brings.
    """

    def __init__(self, parameters: RequestParameters, hosts: Iterable[str], seconds: float, key: str = "") -> None:
        super().__init__(name="http.request", daemon=True)
        self.headers = parameters.all_headers
        if parameters.method not in SAFE and key:
            self.headers = {IDEMPOTENCY_KEY: key} | self.headers
        self.parameters, self.hosts, self.seconds = parameters, frozenset(host.casefold() for host in hosts), seconds
        self.deadline = time.monotonic() + seconds
        self.done = threading.Event()
        """Nobody needs to wait any more: it has ended, or the run is cancelled."""
        self.ended = False
        self.abandoned = False
        self.may_have_changed_something = False
        self._outputs: RequestOutputs | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Keep what comes of it, whichever it is, for `result`."""
        try:
            self._outputs = self._send()
        except BaseException as error:  # raised again by `result`, on the operation's thread
            self._error = error
        self.ended = True
        self.done.set()

    def result(self) -> RequestOutputs:
        """The response. Raises what went wrong, or TimedOut."""
        import httpx

        if isinstance(self._error, httpx.TimeoutException) or (self._error is None and self._outputs is None):
            raise TimedOut(
                f"{self.parameters.url}: no complete response within {self.seconds:g} s",
                hint="raise `timeout`, or the step's",
            ) from self._error
        if isinstance(self._error, (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)):
            said = str(self._error) or type(self._error).__name__
            raise OperationError(f"{self.parameters.url}: {said}") from self._error
        if self._error is not None:
            raise self._error
        assert self._outputs is not None
        return self._outputs

    def _send(self) -> RequestOutputs:
        import httpx

        parameters = self.parameters
        with httpx.Client(
            transport=_pinned_transport(self.hosts), timeout=self.seconds, trust_env=False, follow_redirects=False
        ) as client:
            request = client.build_request(
                parameters.method,
                _judged(httpx.URL(parameters.url)),
                headers=self.headers,
                content=parameters.content,
            )
            return self._follow(client, request)

    def _follow(self, client: httpx.Client, request: httpx.Request) -> RequestOutputs:
        for _ in range(REDIRECTS + 1):
            response = self._sent(client, request)
            try:
                onward = response.next_request
                if onward is None or self.parameters.accepts(response.status_code):
                    return self._outputs_of(response)
                if not _same_place(request.url, onward.url):
                    return self._outputs_of(response, f", and {onward.url} is another host, which is not followed")
            finally:
                response.close()
            request = onward
        raise OperationError(f"{self.parameters.url}: more than {REDIRECTS} redirects")

    def _sent(self, client: httpx.Client, request: httpx.Request) -> httpx.Response:
        import httpx

        try:
            response = client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, OperationError):
            raise  # nothing was sent
        except BaseException:
            self.may_have_changed_something = True
            raise
        refused = 400 <= response.status_code <= 499 and response.status_code not in UNCERTAIN
        if not refused and response.status_code not in ASKED_ELSEWHERE:
            self.may_have_changed_something = True
        return response

    def _outputs_of(self, response: httpx.Response, remark: str = "") -> RequestOutputs:
        body = self._body(response)
        text = _text(body, response.charset_encoding or "utf-8")
        if not self.parameters.accepts(response.status_code):
            said = f": {text[:200].strip()}" if text and text.strip() else ""
            raise OperationError(
                f"{response.url}: answered {response.status_code} {response.reason_phrase}{remark}{said}",
                hint="`expect_status` names the codes that mean success",
            )
        return RequestOutputs(
            status=response.status_code,
            headers=dict(response.headers),
            body=text,
            body_base64=b64encode(body).decode() if text is None else None,
            url=str(response.url),
        )

    def _body(self, response: httpx.Response) -> bytes:
        import httpx

        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > BODY_CAP:
                raise OperationError(f"{response.url}: the response is larger than {BODY_CAP // 1024**2} MiB")
            if self.abandoned or time.monotonic() > self.deadline:
                raise httpx.ReadTimeout("the body took too long")
        return bytes(body)


def _text(body: bytes, encoding: str) -> str | None:
    """The body as text; None if it is none in the encoding it claims."""
    try:
        text = body.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None
    return None if "\0" in text else text


def _judged(url: httpx.URL) -> httpx.URL:
    """`url`, if it is one that may be asked for."""
    if url.scheme not in DEFAULT_PORTS or not url.host:
        raise OperationError(f"{url}: is not an http or https address", hint="write it as https://host/path")
    if url.userinfo:
        raise OperationError(f"{url.host}: a name and password in an address", hint="send an `authorization` header")
    return url


def _same_place(before: httpx.URL, after: httpx.URL) -> bool:
    """Whether a redirect stays with the server: the same host and port, or http to https on their usual ports."""
    upgrade = (_place(before)[1:], _place(after)[1:]) == (("http", 80), ("https", 443))
    return _place(before) == _place(after) or (before.host == after.host and upgrade)


def _place(url: httpx.URL) -> tuple[str, str, int]:
    return url.host, url.scheme, url.port or DEFAULT_PORTS.get(url.scheme, 0)


def _pinned_transport(hosts: frozenset[str]) -> httpx.BaseTransport:
    """A transport that connects to addresses it has judged, and to no name.

    The certificate is still that of the name: it goes along as the name that TLS asks for (`sni_hostname`), and the
    `Host` header is already made.
    """
    import httpx

    class Pinned(httpx.BaseTransport):
        def __init__(self) -> None:
            self._inner = httpx.HTTPTransport(verify=httpx.create_ssl_context(), trust_env=False)

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            url = _judged(request.url)
            failure: Exception = OperationError(f"{url.host}: has no address")
            for address in _addresses(url.host, _place(url)[2], hosts):
                pinned = httpx.Request(
                    request.method,
                    url.copy_with(host=address),
                    headers=request.headers,
                    stream=request.stream,
                    extensions={**request.extensions, "sni_hostname": url.host},
                )
                try:
                    return self._inner.handle_request(pinned)
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    failure = error  # nothing was sent: the next address may answer
            raise failure

        def close(self) -> None:
            self._inner.close()

    return Pinned()


def _addresses(host: str, port: int, hosts: frozenset[str]) -> list[str]:
    """The addresses of `host`, looked up once. Raises PolicyRefused if one is not global and the host not named."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OperationError(f"{host}: cannot be resolved: {error}", hint="check the host's name") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    local = [address for address in addresses if not is_global(address)]
    if local and host.casefold() not in hosts:
        raise PolicyRefused(
            f"{host}: {local[0]} is on this machine or a private network",
            hint=f"name {host!r} under `hosts` in the [http] table of policy.toml",
        )
    return addresses


def is_global(address: str) -> bool:
    """Whether an IP address is one on the public internet, also where IPv6 wraps an IPv4 address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return all(each.is_global and not each.is_multicast and each not in SITE_LOCAL for each in _with_embedded(parsed))


SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")  # given up by RFC 3879, so that `is_global` does not know it
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _with_embedded(address: IPAddress) -> list[IPAddress]:
    """The address that a packet would reach in the end: IPv4-mapped, 6to4 and NAT64 ones carry another (RFC 6052)."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    embedded = address.sixtofour or (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None)
    return [address, embedded] if embedded else [address]

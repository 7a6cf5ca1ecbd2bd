"""How many runs and deliveries a second are acknowledged, each of them on disk first.

P13  N requests over C connections to the REST API, durable (`synchronous=FULL`), beside the same with no durability
     (`synchronous=OFF`), and beside accepting by the inbox alone, without HTTP; seconds a request, and in the note how
     many a second that is and in which time 99 of 100 were answered

The service is the real one, in a process of its own, with nobody to carry out what it accepts; clients are processes
that speak HTTP through plain sockets, as a Python client library would take longer than what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_orchestrator.deployments.inbox import Arrival, Inbox, Once
from quantum_orchestrator.deployments.tokens import Scope, Tokens
from quantum_orchestrator.deployments.webhooks import Provider, Rule, Webhook, Webhooks
from tests.benchmarks.rows import Row
from tests.benchmarks.setting import work_folder

SECRET = "s3cret"
MOST_SECONDS = 1 / 500  # a request
SET: dict[str, Any] = {
    "version": 1,
    "name": "note",
    "inputs": {"payload": {"type": "object", "default": {}}},
    "instructions": [{"id": "note", "op": "file.write", "with": {"path": "note.txt", "content": "hello\n"}}],
}


def add_options(command: argparse.ArgumentParser) -> None:
    """What the command line may choose."""
    command.add_argument("--requests", type=int, default=5000, metavar="N", help="requests of each kind")
    command.add_argument("--connections", type=int, default=32, metavar="C", help="how many at once")
    command.add_argument("--repeat", type=int, default=3, help="repetitions of each")
    command.add_argument("--folder", type=Path, help="where to work, and leave it; default: for temporary files")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure all."""
    with work_folder(options.folder) as folder:
        kinds = ("webhook", "run")
        measured: dict[tuple[str, bool], list[_Measured]] = {}
        for number in range(options.repeat):
            for kind in kinds:
                for durable in (True, False):
                    place = folder / f"{kind}-{'durable' if durable else 'not'}-{number}"
                    one = _measure(place, kind, durable, options.requests, options.connections)
                    measured.setdefault((kind, durable), []).append(one)
        alone = [
            _inbox_alone(folder / f"inbox-{n}", options.requests, options.connections) for n in range(options.repeat)
        ]
        for kind in kinds:
            yield _row(kind, measured[kind, True], measured[kind, False], "the same with no durability")
        yield _row("webhook", measured["webhook", True], alone, "the inbox alone, without HTTP")


@dataclass(frozen=True)
class _Measured:
    """Seconds a request, and in which time 99 of 100 were answered."""

    each: float
    slowest: float


def _row(kind: str, ours: Sequence[_Measured], beside: Sequence[_Measured], peer: str) -> Row:
    mine, other = (statistics.median(one.each for one in them) for them in (ours, beside))
    slowest = statistics.median(one.slowest for one in ours)
    note = f"{1 / mine:.0f} a second, 99 of 100 within {slowest * 1000:.0f} ms; beside it {1 / other:.0f} a second"
    return Row(
        "P13",
        f"a {kind} acknowledged, durably",
        mine,
        other,
        None,
        note if mine <= MOST_SECONDS else f"{note}; below the aim of 500",
        peer,
        samples=[one.each for one in ours],
        beside_samples=[one.each for one in beside],
    )


def _measure(folder: Path, kind: str, durable: bool, requests: int, connections: int) -> _Measured:
    folder.mkdir(parents=True)
    (folder / "work").mkdir()
    (folder / "set.json").write_text(json.dumps(SET))
    token = Tokens(folder).create("bench", [Scope.RUN])
    rule = Rule(str(folder / "set.json"), str(folder / "work"), events=["push"])
    Webhooks(folder).add(Webhook("bench", Provider.GITHUB, ["env:HOOK_SECRET"], [rule]))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        port = int(listener.getsockname()[1])
        command = [sys.executable, "-m", "tests.benchmarks.acknowledging", str(listener.fileno()), str(folder)]
        environment = {
            **os.environ,
            "QO_HOME": str(folder),
            "HOOK_SECRET": SECRET,
            "NOT_DURABLE": "" if durable else "1",
        }
        service = subprocess.Popen([*command], env=environment, pass_fds=[listener.fileno()])
    try:
        return _load(port, kind, token, requests, connections)
    finally:
        service.terminate()
        service.wait()


def _load(port: int, kind: str, token: str, requests: int, connections: int) -> _Measured:
    """All requests by two processes, as one of them can hardly ask faster than it is answered."""
    _requested(port, kind, token, range(-8, 0), 1)  # everything that is imported at first, and none of the measured
    began = time.perf_counter()
    half = requests // 2
    script = (
        "import json, sys; from tests.benchmarks.acknowledging import _requested; "
        "a = json.loads(sys.argv[1]); print(json.dumps(_requested(a[0], a[1], a[2], range(a[3], a[4]), a[5])))"
    )
    parts = [[port, kind, token, first, first + half, connections // 2] for first in (0, half)]
    clients = [
        subprocess.Popen([sys.executable, "-c", script, json.dumps(part)], stdout=subprocess.PIPE, text=True)
        for part in parts
    ]
    told = [json.loads(client.communicate()[0]) for client in clients]
    del began
    starts, ends = [one[0] for one in told], [one[1] for one in told]
    times = sorted(each for one in told for each in one[2])
    return _Measured((max(ends) - min(starts)) / len(times), times[int(len(times) * 0.99)])


def _requested(port: int, kind: str, token: str, numbers: range, connections: int) -> tuple[float, float, list[float]]:
    """When it began and ended, on the clock that all processes share, and how long each request took."""
    times: list[float] = []

    def work(mine: Sequence[int]) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            for number in mine:
                request = _request(kind, token, number)
                began = time.perf_counter()
                connection.sendall(request)
                answer = _answer(connection)
                times.append(time.perf_counter() - began)
                assert answer.startswith(b"HTTP/1.1 202 "), answer

    began = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(work, [numbers[start::connections] for start in range(connections)]))
    return began, time.monotonic(), times


def _request(kind: str, token: str, number: int) -> bytes:
    if kind == "run":
        body = json.dumps({"set": SET}).encode()
        path, headers = "runs", [f"Authorization: Bearer {token}", f"Idempotency-Key: key-{number}"]
    else:
        body = json.dumps({"ref": "refs/heads/main", "n": number, "text": "x" * 1000}).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        path = "webhooks/bench"
        headers = ["X-GitHub-Event: push", f"X-GitHub-Delivery: {number}", f"X-Hub-Signature-256: sha256={signature}"]
    lines = [f"POST /api/v1/{path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _answer(connection: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, rest = answer.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    missing = int(length.partition(b":")[2]) - len(rest)
    while missing > 0:
        missing -= len(connection.recv(missing))
    return answer


def _inbox_alone(folder: Path, requests: int, connections: int) -> _Measured:
    folder.mkdir(parents=True)
    times: list[float] = []
    with Inbox(folder) as inbox:

        def accept(number: int) -> None:
            began = time.perf_counter()
            arrival = Arrival("webhook:bench", "bench", folder, document=json.dumps(SET), inputs={"payload": {}})
            inbox.accept([arrival], Once("webhook:bench", str(number)))
            times.append(time.perf_counter() - began)

        began = time.perf_counter()
        with ThreadPoolExecutor(connections) as pool:
            list(pool.map(accept, range(requests)))
        took = time.perf_counter() - began
    times.sort()
    return _Measured(took / requests, times[int(len(times) * 0.99)])


def _serve() -> None:
    """The service, at a socket that it inherits; with nobody to carry out what it accepts."""
    from quantum_orchestrator.deployments import inbox as inboxes
    from quantum_orchestrator.deployments.api_door import Door
    from quantum_orchestrator.deployments.api_limits import Limits
    from quantum_orchestrator.deployments.cli_api import serve
    from quantum_orchestrator.deployments.dispatcher import Dispatcher

    folder = Path(sys.argv[2])
    if os.environ["NOT_DURABLE"]:
        durable = inboxes._connected

        def not_durable(path: Path) -> Any:
            connection = durable(path)
            connection.execute("PRAGMA synchronous = OFF")
            return connection

        inboxes._connected = not_durable

    class Nobody(Dispatcher):
        def start(self) -> None:
            pass

        def stop(self, seconds: float = 0) -> None:
            pass

    with Inbox(folder) as inbox:
        listener = socket.socket(fileno=int(sys.argv[1]))
        serve(Door(folder / "work", folder, Limits(rate=0), inbox, Nobody(inbox)), listener)


if __name__ == "__main__":
    _serve()

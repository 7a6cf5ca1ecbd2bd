"""What the Prefect server says of a run, asked over plain HTTP."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import httpx

UNENDED = ("RUNNING", "PENDING", "SCHEDULED", "PAUSED")
PATIENCE = 20.0
"""Seconds; Prefect records task runs some time after they ended."""


def get(path: str) -> Any:
    return _asked("GET", path)


def post(path: str, body: Mapping[str, Any]) -> Any:
    return _asked("POST", path, json=body)


def work_pool(name: str) -> str:
    """A pool for processes, made unless it is there: a worker may come to a module's tests a second time."""
    if all(each["name"] != name for each in post("/work_pools/filter", {})):
        post("/work_pools/", {"name": name, "type": "process"})
    return name


def _asked(method: str, path: str, **content: Any) -> Any:
    """The answer; a server whose database is busy says so with 503, and is asked again."""
    url = f"{os.environ['PREFECT_API_URL']}{path}"
    answer = awaited(
        lambda: httpx.request(method, url, timeout=PATIENCE, **content),
        lambda answer: answer.status_code != httpx.codes.SERVICE_UNAVAILABLE,
    )
    return answer.raise_for_status().json()


def flow_run(flow_run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = get(f"/flow_runs/{flow_run_id}")
    return found


def task_runs(flow_run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = post("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    return found


def task_runs_by_name(flow_run_id: str, expected: int) -> dict[str, list[dict[str, Any]]]:
    """So many ended task runs by their names, the oldest first."""

    def ended(found: list[dict[str, Any]]) -> bool:
        return len(found) >= expected and all(each["state_type"] not in UNENDED for each in found)

    found = awaited(lambda: task_runs(flow_run_id), ended)
    named = defaultdict(list)
    for each in sorted(found, key=lambda each: str(each["start_time"])):
        named[each["name"]].append(each)
    return dict(named)


def states(flow_run_id: str, expected: int) -> dict[str, list[str]]:
    """The names of the states of the task runs, by the task runs' names, the oldest first."""
    named = task_runs_by_name(flow_run_id, expected)
    return {name: [each["state_name"] for each in several] for name, several in named.items()}


def artifacts(flow_run_id: str) -> dict[str, Any]:
    found = post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}})
    return {each["key"]: each for each in found}


def awaited(ask: Callable[[], Any], suffices: Callable[[Any], bool]) -> Any:
    """The answer, once it suffices."""
    deadline = time.monotonic() + PATIENCE
    while not suffices(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer

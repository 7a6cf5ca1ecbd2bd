"""The routes of the API, `/api/v1`: what each takes, who may ask, and what it answers.

A run is accepted when it is on disk, and then acknowledged; the dispatcher begins it. What arrives here is not trusted
unless the policy says so. Everything but `/health` needs a token; every error is problem+json. Bodies are read here,
strictly; what is said of runs is `api_runs`' matter, who may ask `api_door`'s.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from quantum_orchestrator.deployments import api_models as models
from quantum_orchestrator.deployments import api_runs
from quantum_orchestrator.deployments.api_door import Door, address_of, digest_of
from quantum_orchestrator.deployments.api_models import Body, read_body, set_in
from quantum_orchestrator.deployments.api_problems import MEDIA_TYPE, Refused
from quantum_orchestrator.deployments.cli import version
from quantum_orchestrator.deployments.inbox import Accepted, Arrival, Once
from quantum_orchestrator.deployments.tokens import Scope, Token
from quantum_orchestrator.flows.faults import InvalidSet

PREFIX = "/api/v1"
POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
LONGEST_WAIT = 60.0
STREAM = "text/event-stream"
Responses = dict[int | str, dict[str, Any]]

# What routes are given.


async def door_of(request: Request) -> Door:
    """The door that the application is for."""
    door = request.app.state.door
    assert isinstance(door, Door)
    return door


Ours = Annotated[Door, Depends(door_of)]
Bearer = Annotated[
    HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False, description="Of `qo token create`"))
]


class Admitted:
    """The token of a request, which has one of these scopes."""

    def __init__(self, *scopes: Scope) -> None:
        self._scopes = scopes

    async def __call__(self, request: Request, door: Ours, _bearer: Bearer) -> Token:
        """Raises Refused."""
        return door.admit(request, self._scopes)


async def count(request: Request, door: Ours) -> None:
    """Raises Refused where somebody asks too often."""
    door.count(f"address:{address_of(request)}")


Judge = Annotated[Token, Depends(Admitted(Scope.RUN, Scope.READ))]
Reader = Annotated[Token, Depends(Admitted(Scope.READ))]
Runner = Annotated[Token, Depends(Admitted(Scope.RUN))]
Approver = Annotated[Token, Depends(Admitted(Scope.APPROVE))]
RunId = Annotated[str, Path(description="A run's id", examples=[models.EXAMPLE_RUN])]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key with the same body has the stored reply, and nothing happens again",
    ),
]
Wait = Annotated[
    float, Query(ge=0, le=LONGEST_WAIT, description="So many seconds to wait for the end, and answer with the run")
]
router = APIRouter(prefix=PREFIX, dependencies=[Depends(count)])

# What the OpenAPI document says.

_PROBLEMS = {
    400: "It is no JSON",
    401: "No token, or an unknown one",
    403: "The token has another scope, or the policy refuses it",
    404: "There is none",
    408: "The body came too slowly",
    409: "Not as it stands now",
    413: "The body is too large",
    415: "The body has another type than is taken",
    422: "It is invalid; every fault with its place",
    429: "Too many requests",
    500: "A defect",
    503: "It cannot be kept, or a server is missing",
}
_IN_BODY = (400, 408, 413, 415, 422)


def problems(*statuses: int) -> Responses:
    """The errors that a route may answer with, and those that any request may have."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    every = sorted({429, 500, 503, *statuses})
    return {each: {"description": _PROBLEMS[each], "content": content} for each in every}


def _answers(kind: str) -> Responses:
    """Another type than JSON."""
    return {200: {"content": {kind: {"schema": {"type": "string"}}}}}


def body_of(model: type[Body], *, required: bool = True) -> dict[str, Any]:
    """A body that the route reads itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": required, "content": content}}


_OF_SETS = problems(401, 403, *_IN_BODY)
_OF_RUNS = problems(401, 403, 404, 409, 422)
_ENDED: Responses = {200: {"model": models.RunAnswer, "description": "It has ended"}}
_DONE: Responses = {200: {"model": models.Answer, "description": "It is done"}}


async def json_body(request: Request, *, required: bool = True) -> bytes:
    """The bytes of a body that says that it is JSON. Raises Refused, TooLarge, TooSlow."""
    raw = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json") and (raw or required):
        raise Refused(415, "wrong-type", f"the body's type is {kind or 'not told'}", hint="send application/json")
    return raw


# Sets.


@router.post(
    "/validate",
    summary="Judge a set",
    response_model=models.ValidAnswer,
    responses=_OF_SETS,
    openapi_extra=body_of(models.SetBody),
)
async def validate(request: Request, _token: Judge) -> Any:
    """Every fault at once, each with its place; nothing runs."""
    raw = await json_body(request)
    body = read_body(raw, models.SetBody)
    return await asyncio.to_thread(_placed, raw, body.set, partial(api_runs.read_set, inputs=body.inputs))


@router.post(
    "/plan",
    summary="Say what a run would change",
    response_model=models.PlanAnswer,
    responses=problems(401, 403, 409, *_IN_BODY),
    openapi_extra=body_of(models.PlanBody),
)
async def plan(request: Request, door: Ours, _token: Judge) -> Any:
    """The dry run, as `qo plan --json` has it; nothing is changed."""
    raw = await json_body(request)
    body = read_body(raw, models.PlanBody)
    planned = partial(api_runs.planned, inputs=body.inputs, root=door.root, explain=body.explain)
    return _clean(await asyncio.to_thread(_placed, raw, body.set, planned))


@router.post(
    "/runs",
    summary="Run a set",
    status_code=202,
    response_model=models.AcceptedAnswer,
    responses=_ENDED | _OF_SETS,
    openapi_extra=body_of(models.RunBody),
)
async def run(request: Request, door: Ours, token: Runner, key: Key = None, wait: Wait = 0) -> Response:
    """It is judged, kept on disk, and then accepted: it runs once, whatever dies meanwhile."""
    raw = await json_body(request)
    body = read_body(raw, models.RunBody)
    text = json.dumps(body.set)
    if not door.accepting.knows(text, body.inputs):
        await asyncio.to_thread(_placed, raw, body.set, partial(door.accepting.judge, inputs=body.inputs))
    arrival = Arrival(
        api_runs.SOURCE,
        token.name,
        door.root,
        document=text,
        inputs=body.inputs,
        options={"parallel": body.parallel, "on_failure": body.on_failure},
    )
    accepted = await door.accept([arrival], _once(token, key, request, raw))
    return await _accepted(door, accepted, wait)


# Runs.


@router.get("/runs", summary="List runs", response_model=models.RunsAnswer, responses=problems(401, 403, 422))
async def runs(door: Ours, _token: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Any:
    """The newest first; those that wait to begin before them."""
    return await asyncio.to_thread(door.runs.listed, limit)


@router.get("/runs/{run_id}", summary="Show a run", response_model=models.RunAnswer, responses=_OF_RUNS)
async def show(run_id: RunId, door: Ours, _token: Reader) -> Any:
    """How it stands, with its steps and what they gave."""
    return _clean(await asyncio.to_thread(door.runs.document, run_id))


@router.get(
    "/runs/{run_id}/events",
    summary="Follow a run",
    response_class=StreamingResponse,
    responses={200: {"content": {STREAM: {}}}, **_OF_RUNS},
)
async def events(run_id: RunId, door: Ours, _token: Reader) -> StreamingResponse:
    """Server-sent events: `run` when its status changes, `step` with the outputs of each step as soon as it has ended,
    `end` with the run's document. Every connection begins with what has happened so far."""
    await asyncio.to_thread(door.runs.progress, run_id, {})  # an unknown one is told before the answer has begun
    return StreamingResponse(_events(door, run_id), media_type=STREAM, headers={"Cache-Control": "no-store"})


@router.get(
    "/runs/{run_id}/diff",
    summary="Show what a run has changed",
    response_model=models.DiffAnswer,
    responses=_answers("text/x-patch") | _OF_RUNS,
)
async def diff(
    run_id: RunId,
    door: Ours,
    _token: Reader,
    step: Annotated[str | None, Query(description="Only what this step has changed")] = None,
    form: Annotated[Literal["json", "patch"], Query(alias="format")] = "json",
) -> Any:
    """As JSON, or as a patch that `git apply` takes."""
    made = await asyncio.to_thread(door.runs.diff, run_id, step)
    if form == "json":
        return JSONResponse(_clean(made))
    return Response(made["patch"].encode("utf-8", "surrogateescape"), media_type="text/x-patch")


@router.get(
    "/runs/{run_id}/report",
    summary="A run as a page in Markdown",
    response_class=PlainTextResponse,
    responses=_answers("text/markdown") | _OF_RUNS,
)
async def report(run_id: RunId, door: Ours, _token: Reader) -> Response:
    """For a comment, a chat, an e-mail."""
    page = await asyncio.to_thread(door.runs.report, run_id)
    return Response(page.encode("utf-8", "replace"), media_type="text/markdown; charset=utf-8")


# What changes runs.


def _change(name: str, summary: str, model: type[Body]) -> Callable[[Any], Any]:
    return router.post(
        f"/runs/{{run_id}}/{name}",
        summary=summary,
        status_code=202,
        response_model=models.AcceptedAnswer,
        responses=_DONE | problems(401, 403, 404, 409, *_IN_BODY),
        openapi_extra=body_of(model, required=False),
    )


@_change("approve", "Approve what a run waits for", models.DecisionBody)
async def approve(run_id: RunId, request: Request, door: Ours, token: Approver, wait: Wait = 0) -> Response:
    """It goes on to its end. A second approval is an error."""
    return await _decided(request, door, run_id, token, wait, approved=True)


@_change("reject", "Reject what a run waits for", models.DecisionBody)
async def reject(run_id: RunId, request: Request, door: Ours, token: Approver, wait: Wait = 0) -> Response:
    """It is rolled back."""
    return await _decided(request, door, run_id, token, wait, approved=False)


@_change("resume", "Go on with a run", models.ResumeBody)
async def resume(
    run_id: RunId, request: Request, door: Ours, token: Runner, key: Key = None, wait: Wait = 0
) -> Response:
    """One that was paused, kept or rolled back, or has died."""
    raw = await json_body(request, required=False)
    start_at = read_body(raw, models.ResumeBody).start_at
    once = _once(token, key, request, raw)
    if once is not None and (known := await asyncio.to_thread(door.inbox.known, once)) is not None:
        return await _accepted(door, known, wait)
    arrival = await asyncio.to_thread(door.runs.resumption, run_id, start_at, token.name)
    return await _accepted(door, await door.accept([arrival], once), wait)


@_change("rollback", "Undo a run", models.RollbackBody)
async def rollback(
    run_id: RunId, request: Request, door: Ours, token: Runner, key: Key = None, wait: Wait = 0
) -> Response:
    """Committed or not. Refused, with nothing changed, where somebody else has changed its files since."""
    raw = await json_body(request, required=False)
    body = read_body(raw, models.RollbackBody)
    choice = {"to": body.to, "force_conflicts": body.force_conflicts}
    if body.check:
        return JSONResponse(_clean(await asyncio.to_thread(door.runs.undoing_shown, run_id, choice)))
    once = _once(token, key, request, raw)
    if once is not None and (known := await asyncio.to_thread(door.inbox.known, once)) is not None:
        return await _accepted(door, known, wait)
    arrival = await asyncio.to_thread(door.runs.undoing, run_id, choice, token.name)
    return await _accepted(door, await door.accept([arrival], once), wait)


@_change("cancel", "End a run and undo it", models.Nothing)
async def cancel(run_id: RunId, request: Request, door: Ours, _token: Runner) -> Response:
    """One that is at work, or has not begun."""
    read_body(await json_body(request, required=False), models.Nothing)
    status = await asyncio.to_thread(door.runs.cancel, run_id)
    return JSONResponse({"run_id": run_id, "status": status}, 200 if status == "cancelled" else 202)


async def _decided(request: Request, door: Door, run_id: str, token: Token, wait: float, *, approved: bool) -> Response:
    body = read_body(await json_body(request, required=False), models.DecisionBody)
    decide = partial(door.runs.decision, run_id, body.step, approved=approved, actor=token.name)
    wanted = await asyncio.to_thread(decide)
    accepted = await door.accept([wanted.arrival], wanted.once)
    if accepted.repeated:
        raise api_runs.Conflict(f"run {run_id}: that was decided already", hint="GET /runs/ID says how it stands")
    return await _accepted(door, accepted, wait)


async def _accepted(door: Door, accepted: Accepted, wait: float) -> Response:
    """The acknowledgement; or the run, where somebody waits and it ends in time."""
    run_id = accepted.run_ids[0]
    if wait and (document := await door.ended(run_id, wait)) is not None:
        return JSONResponse(_clean(document))
    place = f"{PREFIX}/runs/{run_id}"
    links = {"self": place, "events": f"{place}/events"}
    headers = {"Location": place} | ({"Idempotency-Replayed": "true"} if accepted.repeated else {})
    return JSONResponse({"run_id": run_id, "status": "queued", "links": links}, 202, headers)


# The service itself.


@router.get("/health", summary="Whether it can accept", response_model=models.HealthAnswer, responses=problems())
async def health(door: Ours) -> Any:
    """For whoever watches over it; needs no token."""
    waiting = await asyncio.to_thread(door.inbox.waiting, door.root)
    return {"status": "ok", "version": version(), "waiting": len(waiting)}


@router.get(
    "/operations",
    summary="List the operations",
    response_model=models.OperationsAnswer,
    responses=problems(401, 403),
)
async def operations(_token: Reader) -> Any:
    """Each with the schemas of its parameters and outputs."""
    return JSONResponse(await asyncio.to_thread(_operations))


@router.get(
    "/schema",
    summary="The JSON Schema of instruction sets",
    response_model=models.Answer,
    responses=problems(401, 403),
)
async def schema(_token: Reader) -> Any:
    """Draft 2020-12."""
    from quantum_orchestrator.flows.schema import document_schema

    return JSONResponse(await asyncio.to_thread(document_schema))


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses=problems(401, 403),
)
async def metrics(door: Ours, _token: Reader) -> Response:
    """In its text format."""
    text = await asyncio.to_thread(generate_latest, door.meters.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _once(token: Token, key: str | None, request: Request, raw: bytes) -> Once | None:
    """What makes a request with a key happen once. Another path is another request."""
    if key is None:
        return None
    return Once(f"api:{token.name}", key, digest_of(request.url.path.encode(), raw))


def _placed(raw: bytes, value: Mapping[str, Any], judge: Callable[[str], Any]) -> Any:
    """Judge a set. Where it is wrong, once more with its text as it was sent, so that every fault has its place."""
    try:
        return judge(json.dumps(value))
    except InvalidSet:
        return judge(set_in(raw))


def _operations() -> dict[str, Any]:
    from quantum_orchestrator.deployments.cli_sets import operation_json
    from quantum_orchestrator.tasks import registry

    return {"operations": [operation_json(each) for each in registry.every().values()]}


def _clean(value: Any) -> Any:
    """The same as JSON has it: what is no text in UTF-8 (names of files) is written with escapes."""
    return json.loads(json.dumps(value, default=str).encode("utf-8", "backslashreplace"))


async def _events(door: Door, run_id: str) -> AsyncIterator[bytes]:
    seen: dict[str, str] = {}
    status, told_at = "", time.monotonic()
    while True:
        how, steps = await asyncio.to_thread(door.runs.progress, run_id, seen)
        if how != status:
            status = how
            yield _event("run", {"run_id": run_id, "status": status})
        for step in steps:
            yield _event("step", step)
        if status not in api_runs.GOING_ON and await _is_settled(door, run_id):
            yield _event("end", await asyncio.to_thread(door.runs.document, run_id))
            return
        if steps:
            told_at = time.monotonic()
        elif time.monotonic() - told_at > HEARTBEAT_SECONDS:
            told_at = time.monotonic()
            yield b": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)


async def _is_settled(door: Door, run_id: str) -> bool:
    """Whether nothing that was accepted about a run is left to do."""
    latest = await asyncio.to_thread(door.inbox.last_of_run, run_id)
    return latest is None or latest.ended_at is not None


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(_clean(data))}\n\n".encode()

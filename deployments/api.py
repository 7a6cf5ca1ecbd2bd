"""The REST API as an application: its routes, its limits, its errors, its figures, and its OpenAPI document.

What the routes do is `api_routes`' matter. Nothing of it is started here: any ASGI server can serve it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHttpException

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.deployments import api_models as models
from quantum_orchestrator.deployments import api_routes, api_webhooks
from quantum_orchestrator.deployments.api_door import Door
from quantum_orchestrator.deployments.api_limits import LimitedBodies, TooLarge, TooSlow
from quantum_orchestrator.deployments.api_problems import Refused, refusal
from quantum_orchestrator.deployments.cli import version

BODIES: tuple[type[BaseModel], ...] = (
    *(models.SetBody, models.PlanBody, models.RunBody, models.DecisionBody, models.ResumeBody, models.RollbackBody),
    *(models.Nothing, models.Problem),
)
"""What the document has to be told of: routes read and answer it themselves."""


def make_app(door: Door | None) -> FastAPI:
    """The application of a door. Without one it serves nothing, and says in its document what it would."""

    @contextlib.asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        assert door is not None
        door.dispatcher.start()
        try:
            yield
        finally:
            await asyncio.to_thread(door.dispatcher.stop)

    app = FastAPI(
        title="Quantum Orchestrator",
        description="Run JSON instruction sets on a workspace: all or nothing, by Prefect.",
        version=version(),
        openapi_url=f"{api_routes.PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.door = door
    app.include_router(api_routes.router)
    app.include_router(api_webhooks.router)
    for name, answer in (("/health", api_routes.health), ("/metrics", api_routes.metrics)):
        app.add_api_route(name, answer, include_in_schema=False)  # where balancers and Prometheus look
    _complete_document(app)
    if door is not None:
        _explain_errors(app, door)
        app.add_middleware(LimitedBodies, limits=door.limits)
        app.add_middleware(Measured, door=door)
    return app


def _explain_errors(app: FastAPI, door: Door) -> None:
    async def explain(request: Request, error: Exception) -> Response:
        refused = refusal(error, body_bytes=door.limits.body_bytes)
        await asyncio.to_thread(door.note_refusal, request, refused)
        return refused.response()

    asked = (QuantumError, Refused, TooLarge, TooSlow, RequestValidationError, HTTPException, AnyHttpException)
    for kind in (*asked, Exception):
        app.add_exception_handler(kind, explain)


class Measured:
    """Counts and times what is answered, by route."""

    def __init__(self, app: Callable[..., Awaitable[None]], door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), "none"

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            meters = self._door.meters
            meters.requests.labels(scope["method"], route, status).inc()
            meters.seconds.labels(scope["method"], route).observe(time.perf_counter() - began)


def _complete_document(app: FastAPI) -> None:
    """Add the models of what routes read and answer themselves."""
    made = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = made().setdefault("components", {}).setdefault("schemas", {})
            for model in BODIES:
                schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]

"""Every error of the API as problem+json (RFC 9457): what is wrong, where in the request, what to do next.

A fault of a set has the file, line, column, pointer and hint that the command line prints of it; lines and columns
count in the body of the request as it was sent, pointers in the set. Nothing here shows a traceback: a defect is said
to be one, and goes to the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from quantum_orchestrator.blocks.errors import (
    InvalidInput,
    NeedsAttention,
    OperationError,
    PolicyRefused,
    QuantumError,
    ServerError,
    StateError,
)
from quantum_orchestrator.deployments.api_limits import TooLarge, TooSlow
from quantum_orchestrator.deployments.api_runs import Conflict, UnknownRun
from quantum_orchestrator.deployments.inbox import KeyReused, Replayed
from quantum_orchestrator.flows.faults import Fault, InvalidSet, pointer_of

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:quantum-orchestrator:problem:"


class Refused(Exception):
    """A request that is not answered, with the status that it gets. `kind` is the end of the problem's type."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        hint: str = "",
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.hint = hint
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """What the client gets."""
        body: dict[str, Any] = {
            "type": TYPE + self.kind,
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "hint": self.hint,
        }
        if self.errors:
            body["errors"] = self.errors
        return JSONResponse(body, self.status, self.headers, MEDIA_TYPE)


_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (UnknownRun, 404),
    (Conflict, 409),
    (Replayed, 409),
    (KeyReused, 422),
    (PolicyRefused, 403),
    (InvalidInput, 422),
    (NeedsAttention, 409),
    (OperationError, 422),
    (ServerError, 503),
    (StateError, 503),
)


def refusal(error: Exception, *, body_bytes: int = 0) -> Refused:
    """What an error is for a client."""
    match error:
        case Refused():
            return error
        case TooLarge():
            detail = f"the body has more than {body_bytes} bytes"
            return Refused(413, "too-large", detail, hint="send a smaller set", headers={"Connection": "close"})
        case TooSlow():
            hint = "send it at once"
            return Refused(408, "too-slow", "the body did not come in time", hint=hint, headers={"Connection": "close"})
        case InvalidSet():
            status, kind = (403, "policy-refused") if error.by_policy else (422, "invalid-set")
            count = len(error.faults)
            detail = str(error.faults[0]) if count == 1 else f"{count} faults; nothing has run"
            return Refused(status, kind, detail, errors=[dict(each) for each in error.as_json()])
        case RequestValidationError():
            faults = [_of_parameter(each) for each in error.errors()]
            return Refused(422, "invalid-request", faults[0]["message"], errors=faults)
        case HTTPException():
            return Refused(error.status_code, "request", str(error.detail), headers=error.headers)
        case QuantumError():
            status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", error.kind).lower()
            return Refused(status, name, error.message, hint=error.hint)
    return Refused(500, "defect", f"this is a defect: {type(error).__name__}", hint="the log of the service says where")


def _of_parameter(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A fault of a header or of a part of the address."""
    where = ".".join(str(each) for each in problem["loc"])
    return dict(Fault("request", 0, 0, "", f"{where}: {problem['msg']}").as_json())


def invalid_body(message: str, hint: str = "", *, parts: Sequence[str | int] = ()) -> Refused:
    """A body that is JSON, but not what is wanted here."""
    fault = Fault("body", 0, 0, pointer_of(parts), message, hint)
    return Refused(422, "invalid-request", str(fault), hint=hint, errors=[dict(fault.as_json())])

"""`qo api`, and the tokens that it asks for. FastAPI and uvicorn are imported when the service starts."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments.cli_journal import moment
from quantum_orchestrator.deployments.cli_options import (
    TALK,
    Json,
    Talk,
    WorkspaceOption,
    made_root,
    workspace_root,
)
from quantum_orchestrator.deployments.screen import aligned
from quantum_orchestrator.deployments.tokens import Scope, Tokens

if TYPE_CHECKING:
    from quantum_orchestrator.deployments.api_door import Door

MOST_CONNECTIONS = 1_000
SHUTDOWN_SECONDS = 5


def api(
    *,
    host: Annotated[str, Parameter(help="The address to listen at. (127.0.0.1)")] = "127.0.0.1",
    port: Annotated[
        int, Parameter(validator=validators.Number(gte=0, lte=65535), help="The port; 0 for any that is free. (8410)")
    ] = 8410,
    workspace: WorkspaceOption = None,
    rate: Annotated[
        float,
        Parameter(
            validator=validators.Number(gte=0), help="Requests a second, of a token and of an address; 0: any. (50)"
        ),
    ] = 50.0,
    max_body: Annotated[
        int, Parameter(validator=validators.Number(gte=1), help="The largest body, in KiB. (1024)")
    ] = 1024,
    body_seconds: Annotated[
        float, Parameter(name="--body-seconds", help="For so long, a body may be on its way. (10)")
    ] = 10.0,
    talk: Talk = TALK,
) -> int:
    """Serve the REST API, and take in webhooks.

    For one workspace; webhooks may name others. Runs that are accepted go on
    though the service ends, and are seen to when it starts again.
    """
    tokens = Tokens(home())
    if not tokens.every():
        hint = "`qo token create NAME --scope run --scope read --scope approve` makes one"
        if not _is_loopback(host):
            raise UsageError(f"{host} can be reached from elsewhere, and there is no token yet", hint=hint)
        talk.screen.warn(f"there is no token yet, so that only webhooks are taken: {hint}")
    listener = _listening(host, port)
    root = made_root(workspace_root(workspace))
    from quantum_orchestrator.deployments.api_limits import Limits
    from quantum_orchestrator.deployments.dispatcher import Dispatcher
    from quantum_orchestrator.deployments.inbox import Inbox

    with Inbox(home()) as inbox:
        inbox.forget()
        from quantum_orchestrator.deployments.api_door import Door

        limits = Limits(max_body * 1024, body_seconds, rate)
        door = Door(root, home(), limits, inbox, Dispatcher(inbox))
        shown = f"[{host}]" if ":" in host else host
        talk.screen.result(f"http://{shown}:{listener.getsockname()[1]}/api/v1 on {root}")
        talk.screen.flush()
        serve(door, listener)
    return 0


def serve(door: Door, listener: socket.socket) -> None:
    """Serve until somebody ends it by a signal."""
    import uvicorn

    from quantum_orchestrator.deployments.api import make_app

    config = uvicorn.Config(
        make_app(door),
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ws="none",
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return  # how it is ended


def _listening(host: str, port: int) -> socket.socket:
    """Raises UsageError where nobody may listen there, or somebody does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(f"{host}:{port}: {error.strerror or error}", hint="choose another --port") from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Tokens.

Name = Annotated[str, Parameter(help="What the token is called; it is who acted, in the audit.")]


def create_token(
    name: Name,
    /,
    *,
    scope: Annotated[
        tuple[Literal["run", "read", "approve"], ...],
        Parameter(name="--scope", help="What it is good for; may be repeated."),
    ] = (),
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Make a token for the API, and print it: this once, as only its SHA-256 is kept."""
    secret = Tokens(home()).create(name, [Scope(each) for each in scope])
    if json_:
        talk.screen.document({"name": name, "scopes": sorted(set(scope)), "token": secret})
    else:
        talk.screen.result(secret)
        talk.screen.note("it cannot be shown again; send it as `Authorization: Bearer TOKEN`")
    return 0


def list_tokens(*, json_: Json = False, talk: Talk = TALK) -> int:
    """List the tokens, without their secrets."""
    tokens = Tokens(home()).every()
    if json_:
        listed = [
            {"name": each.name, "scopes": sorted(each.scopes), "created_at": moment(each.created_at)} for each in tokens
        ]
        talk.screen.document({"tokens": listed})
    elif not tokens:
        talk.screen.note("there is none; `qo token create NAME --scope run` makes one")
    else:
        rows = [[each.name, " ".join(sorted(each.scopes)), moment(each.created_at)] for each in tokens]
        talk.screen.result("\n".join(aligned([["NAME", "SCOPES", "CREATED"], *rows])))
    return 0


def revoke_token(name: Name, /, *, talk: Talk = TALK) -> int:
    """End a token: a running service does not know it any more."""
    Tokens(home()).revoke(name)
    talk.screen.result(f"the token {name!r} is revoked")
    return 0

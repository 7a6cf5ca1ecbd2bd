"""`qo mcp`: the MCP server in the foreground, for one workspace. What it serves is `deployments/mcp.py`'s matter."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
import socket
from typing import Annotated

from cyclopts import Parameter, validators

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_options import TALK, Talk, made_root, workspace_root
from quantum_orchestrator.deployments.screen import Screen

TOKEN = "QO_MCP_TOKEN"  # noqa: S105 - the variable's name
SHORTEST_TOKEN = 20
PORT = 8848


def mcp(
    *,
    workspace: Annotated[str | None, Parameter(help="The folder to work on; without it the current one.")] = None,
    http: Annotated[
        bool, Parameter(name="--http", help="Serve by HTTP on this machine, not by standard input and output.")
    ] = False,
    host: Annotated[
        str, Parameter(help="The address to listen at: one of this machine's own. (127.0.0.1)")
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(validator=validators.Number(gte=0, lte=65535), help="The port; 0 for any free one. (8848)")
    ] = PORT,
    talk: Talk = TALK,
) -> int:
    """Serve a workspace to agents, by the Model Context Protocol.

    Tools: operations, validate, plan, run, status, follow, diff, rollback. What
    an agent sends is an untrusted set, unless `trusted` under [doors] in
    policy.toml names mcp. It runs only what it has planned before, and it
    cannot approve. With --http, agents show the bearer token in QO_MCP_TOKEN;
    without one, a token is made and printed.
    """
    from quantum_orchestrator.deployments.mcp import serve, server
    from quantum_orchestrator.deployments.mcp_tools import Tools

    tools = Tools(made_root(workspace_root(workspace)))
    if not http:
        asyncio.run(serve(server(tools), None))
        return 0
    with _listener(host, port) as listener:
        token = _token(talk.screen)
        address, number = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        talk.screen.note(f"serving {tools.root} to agents at http://{shown}:{number}/mcp", "")
        asyncio.run(serve(server(tools, token=token), listener))
    return 0


def _listener(host: str, port: int) -> socket.socket:
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise UsageError(f"--host {host}: is no address", hint="for example 127.0.0.1") from error
    if not address.is_loopback:
        raise UsageError(
            f"--host {host}: other machines could reach it, and a token would go over the network unencrypted",
            hint="listen at 127.0.0.1, behind a proxy that speaks TLS",
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        return socket.create_server((str(address), port), family=family)
    except OSError as error:
        raise UsageError(f"port {port} cannot be had: {error.strerror}", hint="--port names another, 0 any") from error


def _token(screen: Screen) -> str:
    token = os.environ.get(TOKEN)
    if token is None:
        token = secrets.token_urlsafe(32)
        screen.warn(f"token: {token}")
    elif len(token) < SHORTEST_TOKEN:
        raise UsageError(f"{TOKEN} has {len(token)} characters", hint=f"{SHORTEST_TOKEN} are the least")
    os.environ.pop(TOKEN, None)  # runs have no use for it
    return token

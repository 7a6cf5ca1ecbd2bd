"""The MCP server: what `deployments/mcp_tools.py` does, as tools and resources for agents.

By standard input and output, where whoever starts the process is who asks; or by HTTP on this machine, with a bearer
token. The descriptions of the tools are written for models: what a tool is for, and a call of it. Invariant: nothing
but the protocol goes to standard output. fastmcp takes a second to import: that is done inside of functions.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from quantum_orchestrator.deployments.mcp_tools import LONGEST_WAIT, Tools

if TYPE_CHECKING:
    from fastmcp import FastMCP
    from fastmcp.server.auth import TokenVerifier

Json = dict[str, Any]
GivenSet = Annotated[
    dict[str, Any] | str,
    Field(description='The instruction set: {"name": …, "instructions": [{"id", "op", "with"}, …]}, or its JSON text'),
]
Inputs = Annotated[dict[str, Any] | None, Field(description="Values for the set's inputs, by their names")]
RunId = Annotated[str, Field(description="A run's id, as run and status give it")]
WaitSeconds = Annotated[
    float, Field(ge=0, le=LONGEST_WAIT, description="How long to wait for the end before answering how it stands")
]
LOOKS = {"readOnlyHint": True, "destructiveHint": False, "idempotentHint": True, "openWorldHint": False}
ACTS = {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": False, "openWorldHint": True}

INSTRUCTIONS = """\
Quantum Orchestrator changes one folder, the workspace, by JSON instruction sets: all of a set's effects, or none.
The way: operations (what there is) → validate (faults with their places) → plan (the patch that a run would make, and
its digest) → run (with that digest) → diff, and rollback if it was wrong. Paths are relative to the workspace. Steps
run in parallel where they do not touch the same; write them in the order in which they are right one by one. Every
answer has a `status`. A run with status awaiting_approval waits for a person: you cannot approve.
Example of a set: {"name": "greet", "instructions": [{"id": "note", "op": "file.write", "with": {"path": "note.txt",
"content": "hello\\n"}}, {"id": "check", "op": "script.run", "with": {"argv": ["grep", "hello", "note.txt"]}}]}"""


def server(tools: Tools, *, token: str | None = None) -> FastMCP[None]:
    """The server, not yet listening. With a token, only who shows it is answered."""
    from fastmcp import FastMCP

    from quantum_orchestrator.deployments.cli import version

    made: FastMCP[None] = FastMCP(
        "quantum-orchestrator",
        instructions=INSTRUCTIONS,
        version=version(),
        auth=None if token is None else _verifier(token),
        mask_error_details=True,
    )
    _add_looking(made, tools)
    _add_acting(made, tools)
    _add_resources(made, tools)
    return made


def _told(answer: Json) -> Json:
    """An answer, marked as an error where the tool could not do what it was asked."""
    from fastmcp.tools.base import ToolResult

    failed = answer.get("status") == "error"
    return cast("Json", ToolResult(structured_content=answer, is_error=failed))


def _add_looking(made: FastMCP[None], tools: Tools) -> None:
    @made.tool(annotations=LOOKS)
    def operations(
        name: Annotated[
            str | None, Field(description="An operation (file.edit) or a family (file); all without")
        ] = None,
    ) -> Json:
        """List the operations that instructions may use; with an operation's name, its parameters, outputs and an
        example. Call it before you write a set. Example: {"name": "file.edit"}"""
        return _told(tools.operations(name))

    @made.tool(annotations=LOOKS)
    def validate(set: GivenSet, inputs: Inputs = None) -> Json:  # noqa: A002 - the argument's name
        """Say whether a set is right: every fault at once, each with `pointer`, `message` and `hint` (and `line`, where
        the set is given as text). Nothing runs. Example: {"set": {"name": "greet", "instructions": [{"id": "note",
        "op": "file.write", "with": {"path": "note.txt", "content": "hello\\n"}}]}}"""
        return _told(tools.validate(set, inputs))

    @made.tool(annotations=LOOKS)
    def plan(set: GivenSet, inputs: Inputs = None) -> Json:  # noqa: A002
        """Show what a run of the set would change, as a git `patch`, and give the `digest` that run asks for. Steps
        that only a run can tell (scripts) are `deferred`, with what they may write. Nothing changes. Example: {"set":
        {…}, "inputs": {"service": "api"}}"""
        return _told(tools.plan(set, inputs))

    @made.tool(annotations=LOOKS)
    def status(run_id: RunId | None = None) -> Json:
        """How a run stands, step by step, with outputs and errors. Without run_id: what runs, waits or ran last in the
        workspace. Example: {"run_id": "20260102-030405-1a2b3c"}"""
        return _told(tools.status(run_id))

    @made.tool(annotations=LOOKS)
    def follow(run_id: RunId, wait_seconds: WaitSeconds = 30.0) -> Json:
        """Wait until a run has ended or waits for a person, and say how it stands. Call it when run answered with
        status running. Example: {"run_id": "20260102-030405-1a2b3c", "wait_seconds": 60}"""
        return _told(tools.follow(run_id, wait_seconds))

    @made.tool(annotations=LOOKS)
    def diff(
        run_id: RunId | None = None,
        step: Annotated[str | None, Field(description="Only what this step has changed")] = None,
    ) -> Json:
        """What a run has changed, as a git `patch`; without run_id, the newest run. Example: {"run_id":
        "20260102-030405-1a2b3c", "step": "note"}"""
        return _told(tools.diff(run_id, step))


def _add_acting(made: FastMCP[None], tools: Tools) -> None:
    @made.tool(annotations=ACTS)
    def run(
        digest: Annotated[str, Field(description="The digest that plan gave")],
        set: Annotated[  # noqa: A002
            dict[str, Any] | str | None, Field(description="The set again, to have the plan made and compared anew")
        ] = None,
        inputs: Inputs = None,
        wait_seconds: WaitSeconds = 30.0,
    ) -> Json:
        """Run exactly what was planned: all of its effects, or none. Refused where the workspace has changed since:
        then plan again. Status committed: done. rolled_back: a step failed, nothing has changed, its `error` says why.
        running: call follow. awaiting_approval: a person must decide. Example: {"digest": "<64 hex digits of plan>"}"""
        return _told(tools.run(digest, set, inputs, wait_seconds))

    @made.tool(annotations=ACTS)
    def rollback(
        run_id: RunId, check: Annotated[bool, Field(description="Only show what that would change")] = False
    ) -> Json:
        """Undo a run that you began, also one that was committed. Refused where somebody has changed its files since.
        Example: {"run_id": "20260102-030405-1a2b3c", "check": true}"""
        return _told(tools.rollback(run_id, check))


def _add_resources(made: FastMCP[None], tools: Tools) -> None:
    from quantum_orchestrator.flows.schema import document_schema

    @made.resource("qo://schema", mime_type="application/schema+json")
    def schema() -> str:
        """The JSON Schema of instruction sets (draft 2020-12)."""
        return json.dumps(document_schema())

    @made.resource("qo://operations", mime_type="application/json")
    def every_operation() -> str:
        """All operations, in a line each."""
        return json.dumps(tools.operations())

    @made.resource("qo://runs", mime_type="application/json")
    def runs() -> str:
        """The newest runs of the workspace."""
        return json.dumps(tools.runs())

    @made.resource("qo://runs/{run_id}", mime_type="application/json")
    def one_run(run_id: str) -> str:
        """How a run stands, step by step."""
        return json.dumps(tools.status(run_id))

    @made.resource("qo://runs/{run_id}/diff", mime_type="text/x-diff")
    def diff_of_run(run_id: str) -> str:
        """What a run has changed, as a git patch."""
        answer = tools.diff(run_id)
        return str(answer["patch"]) if "patch" in answer else json.dumps(answer)


# By HTTP.


def _verifier(token: str) -> TokenVerifier:
    from fastmcp.server.auth import AccessToken, TokenVerifier

    digest = hashlib.sha256(token.encode()).digest()

    class OneToken(TokenVerifier):
        """Knows one token, by its digest."""

        async def verify_token(self, token: str) -> AccessToken | None:
            """See TokenVerifier. In constant time."""
            if hmac.compare_digest(hashlib.sha256(token.encode()).digest(), digest):
                return AccessToken(token=token, client_id="agent", scopes=[])
            return None

    return OneToken()


async def serve(made: FastMCP[None], listener: socket.socket | None) -> None:
    """Serve until the client closes standard input, or, by HTTP on this socket, until the process is told to end."""
    if listener is None:
        await made.run_async("stdio", show_banner=False)
        return
    host, port = listener.getsockname()[:2]
    await made.run_async(
        "http", show_banner=False, host=host, port=port, sockets=[listener], log_level="warning", stateless_http=True
    )

"""What an agent gets from `qo mcp`: a real MCP client, and one real server process for all of these tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from commands import NOTE, SIGN, eventually, processes_with, script

from quantum_orchestrator.blocks.audit import Audit
from quantum_orchestrator.blocks.home import home, workspace_home
from quantum_orchestrator.blocks.journal import Journal
from quantum_orchestrator.deployments import service

QO = [sys.executable, "-m", "quantum_orchestrator.deployments.qo"]
pytestmark = pytest.mark.slow


class Agent:
    """A client that is connected to the server of a workspace."""

    def __init__(self, portal: BlockingPortal, client: Any, root: Path) -> None:
        self._portal = portal
        self.client = client
        self.root = root

    def ask(self, method: str, *given: Any) -> Any:
        return self._portal.call(getattr(self.client, method), *given)

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a tool, error or not."""

        async def asked() -> Any:
            return await self.client.call_tool(tool, arguments, raise_on_error=False)

        result = self._portal.call(asked)
        answer: dict[str, Any] = result.structured_content
        assert answer is not None, result
        assert result.is_error == (answer.get("status") == "error")
        assert "Traceback" not in json.dumps(answer)
        return answer

    def runs(self, *instructions: object, **more: Any) -> dict[str, Any]:
        """Plan a set and run it; the run's document."""
        planned = self.call("plan", set=made(*instructions), **more)
        return self.call("run", digest=planned["digest"])

    @property
    def journaled(self) -> list[str]:
        with closing(Journal(workspace_home(self.root))) as journal:
            return [run.id for run in journal.runs()]


def made(*instructions: object, **fields: object) -> dict[str, object]:
    return {"name": "by an agent", **fields, "instructions": list(instructions)}


@pytest.fixture(scope="module")
def agent(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport

    root = tmp_path_factory.mktemp("agents")
    service.ensure()  # its runs are forked from it
    environment = {**os.environ, "QO_SERVICE": "on", "MCP_TEST": root.name}
    transport = StdioTransport(
        QO[0],
        [*QO[1:], "mcp", "--workspace", str(root)],
        env=environment,
        keep_alive=False,
        log_file=root.parent / "log",
    )
    with start_blocking_portal() as portal:
        client = Client(transport)
        with portal.wrap_async_context_manager(client):
            yield Agent(portal, client, root)
    eventually(lambda: not processes_with(f"MCP_TEST={root.name}"))
    service.stop(home())


def written(name: str, content: str = "hello\n") -> dict[str, object]:
    return {**NOTE, "with": {"path": name, "content": content}}


def test_each_tool_says_what_it_is_for_with_an_example(agent: Agent) -> None:
    tools = {tool.name: tool for tool in agent.ask("list_tools")}
    assert set(tools) == {"operations", "validate", "plan", "run", "status", "follow", "diff", "rollback"}
    for tool in tools.values():
        assert "Example: {" in tool.description
        assert len(tool.description) < 600
        assert tool.annotations.read_only_hint == (tool.name not in ("run", "rollback"))


def test_the_operations_are_listed_and_one_is_shown_with_its_parameters(agent: Agent) -> None:
    listed = agent.call("operations")["operations"]
    assert {"name": "file.edit", "summary": agent.call("operations", name="file.edit")["summary"]} in listed
    assert {"path", "edits"} <= set(agent.call("operations", name="file.edit")["parameters"]["properties"])
    assert {each["name"].partition(".")[0] for each in agent.call("operations", name="git")["operations"]} == {"git"}
    assert "did you mean 'file.write'" in json.dumps(agent.call("operations", name="file.wirte"))


def test_faults_come_as_data_with_their_places(agent: Agent) -> None:
    wrong = made({"id": "note", "op": "file.wirte", "with": {}})
    (fault,) = agent.call("validate", set=wrong)["errors"]
    assert fault["pointer"] == "/instructions/0/op"
    assert (fault["message"], fault["hint"]) == ("unknown operation 'file.wirte'", "did you mean 'file.write'?")
    (fault,) = agent.call("validate", set=json.dumps(wrong, indent=1))["errors"]
    assert (fault["file"], fault["line"]) == ("set", 6)
    assert agent.call("plan", set=wrong)["status"] == "invalid"
    assert agent.call("validate", set=made(NOTE))["status"] == "valid"


def test_a_set_is_planned_run_shown_and_undone(agent: Agent) -> None:
    planned = agent.call("plan", set=made(written("way.txt")))
    assert "+hello" in planned["patch"]
    assert not (agent.root / "way.txt").exists()
    run = agent.call("run", digest=planned["digest"])
    assert (run["status"], run["diff"]["files"]) == ("committed", 1)
    assert (agent.root / "way.txt").read_text() == "hello\n"
    assert agent.call("diff", run_id=run["run_id"])["patch"] == planned["patch"]
    assert agent.call("status")["run_id"] == run["run_id"]
    assert agent.call("status", run_id=run["run_id"])["steps"][0]["status"] == "succeeded"
    assert agent.call("rollback", run_id=run["run_id"], check=True)["status"] == "planned"
    assert (agent.root / "way.txt").exists()
    assert agent.call("rollback", run_id=run["run_id"])["status"] == "rolled_back"
    assert not (agent.root / "way.txt").exists()


def test_a_run_is_on_record_as_untrusted_and_as_an_agents(agent: Agent) -> None:
    run = agent.runs(written("recorded.txt"))
    (entry,) = [each for each in Audit(home()).entries() if each.run == run["run_id"] and each.event == "run_started"]
    assert (entry.details["source"], entry.details["trust"]) == ("mcp", "untrusted")


def test_the_policy_can_trust_agents(agent: Agent) -> None:
    assert agent.call("validate", set=made(NOTE))["trust"] == "untrusted"
    policy = home() / "policy.toml"
    policy.write_text('[doors]\ntrusted = ["mcp"]\n')
    try:
        assert agent.call("validate", set=made(NOTE))["trust"] == "trusted"
        planned = agent.call("plan", set=made(written("trusted.txt")))
    finally:
        policy.unlink()
    assert "policy has changed" in agent.call("run", digest=planned["digest"])["error"]["message"]


def test_nothing_runs_without_the_digest_of_its_plan(agent: Agent) -> None:
    before = agent.journaled
    assert "no plan with the digest" in agent.call("run", digest="0" * 64)["errors"][0]["message"]
    planned = agent.call("plan", set=made(written("one.txt")))
    other = agent.call("run", digest=planned["digest"], set=made(written("two.txt")))
    assert "would not do what the plan" in other["error"]["message"]
    assert agent.journaled == before


def test_a_plan_is_refused_when_the_workspace_has_moved_on(agent: Agent) -> None:
    planned = agent.call("plan", set=made(written("moved.txt")))
    (agent.root / "moved.txt").write_text("mine\n")
    before = agent.journaled
    refused = agent.call("run", digest=planned["digest"])
    assert "the workspace has moved on since the plan was made: moved.txt" in refused["error"]["message"]
    assert (agent.root / "moved.txt").read_text() == "mine\n"
    assert agent.journaled == before


def test_a_set_that_would_fail_gets_no_digest(agent: Agent) -> None:
    planned = agent.call("plan", set=made({"id": "gone", "op": "file.delete", "with": {"path": "missing.txt"}}))
    assert (planned["status"], planned["digest"], planned["failure"]["id"]) == ("would_fail", None, "gone")


def test_a_run_that_fails_says_which_step_and_why_and_leaves_nothing(agent: Agent) -> None:
    run = agent.runs(written("half.txt"), script("echo broken >&2; exit 3", step="build", needs=["note"]))
    assert (run["status"], run["diff"]["files"]) == ("rolled_back", 0)
    assert "exited with 3" in run["error"]["message"]
    assert not (agent.root / "half.txt").exists()


def test_a_long_run_is_followed(agent: Agent) -> None:
    planned = agent.call("plan", set=made(script("until test -e go; do sleep 0.05; done", step="wait")))
    begun = agent.call("run", digest=planned["digest"], wait_seconds=0)
    assert begun["status"] in ("starting", "running")
    eventually(lambda: agent.call("status")["status"] == "running")
    (agent.root / "go").touch()
    ended = agent.call("follow", run_id=begun["run_id"], wait_seconds=30)
    assert (ended["status"], ended["run_id"]) == ("committed", begun["run_id"])


def test_an_approval_is_for_people(agent: Agent) -> None:
    run = agent.runs(SIGN)
    assert run["status"] == "awaiting_approval"
    assert "a person must decide" in run["next"]
    approved = subprocess.run([*QO, "approve", "--json"], cwd=agent.root, capture_output=True, text=True, check=True)
    assert json.loads(approved.stdout)["status"] == "committed"
    assert agent.call("follow", run_id=run["run_id"])["status"] == "committed"


def test_an_agent_undoes_no_run_of_others(agent: Agent) -> None:
    path = agent.root.parent / "person.json"
    path.write_text(json.dumps(made(written("person.txt"))))
    mine = subprocess.run(
        [*QO, "run", str(path), "--json"],
        cwd=agent.root,
        env={**os.environ, "QO_SERVICE": "on"},
        capture_output=True,
        text=True,
        check=True,
    )
    refused = agent.call("rollback", run_id=json.loads(mine.stdout)["run_id"])
    assert "did not begin there" in refused["error"]["message"]
    assert (agent.root / "person.txt").exists()


def test_resources_are_the_schema_and_the_runs(agent: Agent) -> None:
    run = agent.runs(written("resource.txt"))

    def read(uri: str) -> str:
        (content,) = agent.ask("read_resource", uri)
        return str(content.text)

    assert "instructions" in json.loads(read("qo://schema"))["properties"]
    assert json.loads(read("qo://runs"))["runs"][0]["run_id"] == run["run_id"]
    assert json.loads(read(f"qo://runs/{run['run_id']}"))["status"] == "committed"
    assert "+hello" in read(f"qo://runs/{run['run_id']}/diff")


# By HTTP.


@contextmanager
def listening(root: Path, **environment: str) -> Iterator[tuple[str, str]]:
    """A server by HTTP: its address, and what it has said."""
    err = root / "err"
    with err.open("w") as told:
        process = subprocess.Popen(
            [*QO, "mcp", "--http", "--port", "0", "--workspace", str(root / "work")],
            stderr=told,
            env={**os.environ, **environment},
        )
    try:
        eventually(lambda: "agents at http" in err.read_text(), err.read_text)
        (url,) = re.findall(r"at (http\S+)", err.read_text())
        eventually(lambda: _answers(url), err.read_text)
        yield url, err.read_text()
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in err.read_text()


def _answers(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True


def test_by_http_only_who_shows_the_token_is_answered(tmp_path: Path) -> None:
    from fastmcp import Client
    from fastmcp.client.transports import StreamableHttpTransport

    async def tools(url: str, token: str) -> list[str]:
        async with Client(StreamableHttpTransport(url, auth=token)) as client:
            return [tool.name for tool in await client.list_tools()]

    with listening(tmp_path) as (url, said), start_blocking_portal() as portal:
        (token,) = re.findall(r"token: (\S+)", said)
        assert len(token) >= 43  # 256 bits
        assert httpx.post(url, json={}).status_code == 401
        assert httpx.post(url, json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert "run" in portal.call(tools, url, token)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(("--host", "0.0.0.0"), "other machines could reach it"), (("--host", "here"), "is no address")],
)
def test_it_listens_on_this_machine_alone(arguments: tuple[str, ...], why: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*QO, "mcp", "--http", *arguments, "--workspace", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert why in done.stderr


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*QO, "mcp", "--http", "--port", "0", "--workspace", str(tmp_path)],
        env={**os.environ, "QO_MCP_TOKEN": "short"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "20 are the least" in done.stderr) == (3, True)

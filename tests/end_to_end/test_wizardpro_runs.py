"""Blocks in the older format, as their users have them, with a real Prefect server, real processes and real git."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from without_prefect import alone, is_whole, whole, without_prefect

from quantum_orchestrator.flows.instruction_set import OnFailure, Trust
from quantum_orchestrator.flows.wizardpro import reply_line, run_block

OLDER = Path(__file__).parents[2] / "examples" / "older"
pytestmark = [
    alone,
    pytest.mark.usefixtures("prefect_server"),
    # Prefect leaves a connection of its own open when an event loop ends, which is noticed in whatever test comes next.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Json = dict[str, Any]


class Workspace:
    """A folder, and blocks run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, block: Mapping[str, Any] | str, expect: int = 0, **options: Any) -> Json:
        """The reply to a block, or to the example of that name; its exit code is checked."""
        value = json.loads((OLDER / f"{block}.json").read_text()) if isinstance(block, str) else block
        settings = {"given": {}, "ask": None, "on_failure": None} | options
        reply, code = asyncio.run(run_block(value, root=self.root, **settings))
        assert code == expect, reply
        assert "\n" not in reply_line(reply)
        return reply

    def act(self, *actions: Json, expect: int = 0, **options: Any) -> Json:
        """The reply to a block of these actions."""
        return self.run({"step_id": "test", "actions": list(actions)}, expect, **options)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def is_empty(self) -> bool:
        return not any(self.root.iterdir())


@pytest.fixture
def workspace(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    root = tmp_path / "work"
    root.mkdir()
    with contextlib.nullcontext() if is_whole(request.node) else without_prefect():
        yield Workspace(root)


def echo(message: str) -> Json:
    return {"type": "ECHO", "message": message}


def create(path: str, content: str = "one\n") -> Json:
    return {"type": "CREATE_OR_REPLACE_FILE", "path": path, "content": content}


def script(path: str, **fields: Any) -> Json:
    return {"type": "RUN_SCRIPT", "script_path": path, **fields}


def respond(response: object = "yes", signoff: str = "deploy-7") -> Json:
    return {"type": "RESPOND_TO_SIGNOFF", "signoff_id": signoff, "response": response}


def payloads(reply: Json) -> list[Any]:
    return [result["message_or_payload"] for result in reply["action_results"]]


def successes(reply: Json) -> list[tuple[str, bool]]:
    return [(result["action_type"], result["success"]) for result in reply["action_results"]]


# The reply.


@whole
def test_the_reply_has_the_keys_that_its_consumers_parse(workspace: Workspace) -> None:
    reply = workspace.run("echo")
    assert reply.keys() == {"overall_success", "status_message", "duration_seconds", "action_results"}
    assert reply["overall_success"] is True
    (result,) = reply["action_results"]
    assert isinstance(result.pop("duration_s"), float)
    assert result == {"action_type": "ECHO", "success": True, "message_or_payload": "hello"}


def test_files_are_written_and_grown_with_a_newline_between_unless_told_otherwise(workspace: Workspace) -> None:
    reply = workspace.run("files")
    assert workspace.read("notes/a.txt") == "first\nsecond\nthird"
    assert workspace.read("notes/b.txt") == "plain text\n"
    assert payloads(reply)[0] == "File 'notes/a.txt' written."


@whole
def test_a_failed_block_is_rolled_back_and_its_results_end_with_the_failure(workspace: Workspace) -> None:
    reply = workspace.run("halts", expect=1)
    assert reply["overall_success"] is False
    assert successes(reply) == [("CREATE_OR_REPLACE_FILE", True), ("RUN_SCRIPT", False)]
    assert payloads(reply)[1] == "no script 'scripts/none.sh' in the workspace"
    assert "everything was rolled back" in reply["status_message"]
    assert workspace.is_empty()


def test_on_failure_keep_is_the_old_behaviour(workspace: Workspace) -> None:
    workspace.run("halts", expect=1, on_failure=OnFailure.KEEP)
    assert workspace.read("kept-or-not.txt") == "one\n"


def test_what_cannot_be_understood_fails_at_its_turn(workspace: Workspace) -> None:
    reply = workspace.act(create("first.txt"), {"type": "ECHOO"}, echo("never"), expect=1)
    assert successes(reply) == [("CREATE_OR_REPLACE_FILE", True), ("ECHOO", False)]
    assert payloads(reply)[1] == "unknown action type 'ECHOO' (did you mean 'ECHO'?)"
    assert workspace.is_empty()


def test_a_file_whose_name_differs_in_case_alone_is_no_fault_here(workspace: Workspace) -> None:
    workspace.act(create("a.txt", "a"), create("A.txt", "A"))
    assert workspace.read("a.txt") + workspace.read("A.txt") == "aA"


def test_a_block_without_actions_succeeds(workspace: Workspace) -> None:
    assert workspace.act()["action_results"] == []


def test_actions_that_are_no_list_are_a_failure(workspace: Workspace) -> None:
    reply = workspace.run({"step_id": "bad", "actions": {}}, expect=1)
    assert "actions" in reply["status_message"]
    assert reply["action_results"] == []


# Parameters, variables, dependencies.


def test_parameters_are_given_or_asked_for(workspace: Workspace) -> None:
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "asked"

    reply = workspace.run("parameters", given={"project_name": "given"})
    assert payloads(reply)[1] == "made given"
    workspace.run("parameters", ask=ask)
    assert prompts == ["Project directory"]
    assert workspace.read("given/main.py") == workspace.read("asked/main.py") == "print('hello')\n"


def test_a_missing_parameter_is_an_error_without_a_terminal(workspace: Workspace) -> None:
    reply = workspace.run("parameters", expect=1)
    assert "'project_name'" in reply["status_message"]
    assert reply["action_results"] == []


@whole
def test_later_actions_use_what_earlier_ones_found_out(workspace: Workspace) -> None:
    reply = workspace.act(
        create("notes/a.txt", "cost: $"),
        {"type": "READ_FILE_TO_VAR", "path": "notes/a.txt", "var": "text"},
        {"type": "LIST_DIRECTORY_TO_VAR", "path": "notes", "var": "files"},
        {"type": "CHECK_PATH_EXISTS", "path": "notes", "var": "there"},
        {"type": "CHECK_PATH_EXISTS", "path": "gone", "var": "gone"},
        create("copy-{{there}}.txt", "{{text}}{{text}} ${{ env.HOME }} {{unknown}}"),
        echo("{{files}} {{there}} {{gone}}"),
    )
    assert workspace.read("copy-true.txt") == "cost: $cost: $ ${{ env.HOME }} {{unknown}}"
    assert payloads(reply)[1:5] == ["cost: $", ["notes/a.txt"], True, False]
    assert payloads(reply)[6] == "notes/a.txt true false"


def test_a_file_that_is_no_text_cannot_be_a_variable(workspace: Workspace) -> None:
    (workspace.root / "image.png").write_bytes(b"\xff\xd8")
    reply = workspace.act({"type": "READ_FILE_TO_VAR", "path": "image.png", "var": "image"}, expect=1)
    assert "image.png: is not UTF-8 text" in payloads(reply)[0]


def test_a_block_waits_for_those_it_depends_on(workspace: Workspace) -> None:
    dependent = {"step_id": "second", "depends_on": ["greet"], "actions": [create("second.txt")]}
    reply = workspace.run(dependent, expect=1)
    assert "'greet'" in reply["status_message"]
    assert workspace.is_empty()
    workspace.run("echo")
    workspace.run(dependent)


def test_a_block_that_failed_satisfies_no_dependency(workspace: Workspace) -> None:
    workspace.run("halts", expect=1)
    workspace.run({"step_id": "second", "depends_on": "halts", "actions": []}, expect=1)


# Paths.


def test_paths_are_straightened_before_they_are_judged(workspace: Workspace) -> None:
    workspace.act(create("./a//b.txt"), create("c\\d.txt"), create(f"{workspace.root}/e/./f.txt"))
    found = sorted(str(path.relative_to(workspace.root)) for path in workspace.root.rglob("*.txt"))
    assert found == ["a/b.txt", "c/d.txt", "e/f.txt"]


# Scripts.


def test_a_script_is_made_executable_and_runs_in_its_own_folder(workspace: Workspace) -> None:
    reply = workspace.run("script")
    assert payloads(reply)[1] == {"stdout": f"{workspace.root}/scripts\none 2\n", "stderr": "", "exit_code": 0}
    assert (workspace.root / "scripts/where.sh").stat().st_mode & 0o777 == 0o755


def test_a_script_that_is_executable_keeps_its_mode(workspace: Workspace) -> None:
    workspace.write("run.sh", "#!/bin/sh\npwd\n", mode=0o700)
    workspace.act(script("./run.sh"))
    assert (workspace.root / "run.sh").stat().st_mode & 0o777 == 0o700


def test_a_bare_name_is_a_script_of_the_workspace_or_else_a_program(workspace: Workspace) -> None:
    reply = workspace.act(
        script("sh", args=["-c", "echo program"]), create("sh", "#!/bin/sh\necho own\n"), script("sh")
    )
    assert [payloads(reply)[at]["stdout"] for at in (0, 2)] == ["program\n", "own\n"]


def test_a_failing_script_is_listed_with_its_output_and_undone(workspace: Workspace) -> None:
    workspace.write("bad.sh", "#!/bin/sh\necho out; echo err >&2; touch trace; exit 3\n")
    reply = workspace.act(script("bad.sh"), expect=1)
    assert payloads(reply) == [{"stdout": "out\n", "stderr": "err\n", "exit_code": 3}]
    assert "exited with 3" in reply["status_message"]
    assert not (workspace.root / "trace").exists()
    assert (workspace.root / "bad.sh").stat().st_mode & 0o111 == 0


@whole
def test_a_script_that_takes_too_long_is_ended(workspace: Workspace) -> None:
    reply = workspace.act(script("sleep", args=[30], timeout=0.5), expect=1)
    assert "0.5 s" in payloads(reply)[0]


# Git and quality.


@whole
def test_files_are_formatted_added_and_committed(workspace: Workspace) -> None:
    workspace.git("init", "--quiet", "--initial-branch=main")
    reply = workspace.run("git")
    assert workspace.read("x.py") == "x = 1\n"
    assert workspace.git("log", "--format=%s") == "Add x"
    assert payloads(reply)[2] == "In the index: x.py. Skipped, as there is no such file: not-there.py."
    assert payloads(reply)[3] == f"Committed {workspace.git('rev-parse', 'HEAD')}."


def test_adding_nothing_that_exists_is_an_error_and_committing_nothing_is_not(workspace: Workspace) -> None:
    workspace.git("init", "--quiet", "--initial-branch=main")
    workspace.git("commit", "--quiet", "--allow-empty", "--message=first")
    assert payloads(workspace.act({"type": "GIT_COMMIT", "message": "second"})) == ["Nothing to commit."]
    reply = workspace.act({"type": "GIT_ADD", "paths": ["none.py"]}, expect=1)
    assert "none.py" in payloads(reply)[0]


def test_findings_that_remain_do_not_fail_linting(workspace: Workspace) -> None:
    reply = workspace.act(
        create("x.py", "import os\nprint( undefined )\n"), {"type": "LINT_FORMAT_FILE", "path": "x.py"}
    )
    assert "F821" in payloads(reply)[1]
    assert workspace.read("x.py") == "print(undefined)\n"


def test_both_formatters_are_ruff_and_say_so(workspace: Workspace) -> None:
    reply = workspace.act(
        create("x.py", "x=1\n"), {"type": "RUN_FORMATTER", "path": "x.py", "formatter": "black"}, echo("done")
    )
    assert workspace.read("x.py") == "x = 1\n"
    assert "ruff format" in payloads(reply)[1]


# Sign-offs.


def awaiting(step_id: str, signoff: str, prompt: str) -> Json:
    return {
        "exwork_status": "AWAITING_SIGNOFF",
        "signoff_prompt": prompt,
        "signoff_id": signoff,
        "step_id": step_id,
    }


@whole
def test_a_sign_off_stops_the_block_until_the_answer(workspace: Workspace) -> None:
    reply = workspace.run("signoff")
    assert reply["overall_success"] is True
    assert payloads(reply) == [awaiting("signoff-1", "deploy-7", "Deploy?")]

    answer = workspace.act(echo("answering"), respond())
    assert successes(answer) == [("ECHO", True), ("RESPOND_TO_SIGNOFF", True)]
    carried = payloads(answer)[1]
    assert (carried["response"], carried["step_id"], carried["status"]) == ("approved", "signoff-1", "committed")
    assert payloads(carried) == ["Sign-off 'deploy-7' given.", "deployed"]


@pytest.mark.parametrize(("response", "stays"), [(True, True), ("maybe", False)])
def test_yes_goes_on_and_everything_else_rolls_back(workspace: Workspace, response: object, stays: bool) -> None:
    request = {"type": "REQUEST_SIGNOFF", "message": "Deploy?", "signoff_id": "deploy-7"}
    workspace.act(create("before.txt"), request, create("after.txt"))
    workspace.act(respond(response))
    assert sorted(path.name for path in workspace.root.iterdir()) == (["after.txt", "before.txt"] if stays else [])


def test_an_answer_that_nobody_waits_for_is_a_failure(workspace: Workspace) -> None:
    workspace.run("signoff")
    reply = workspace.act(respond(signoff="another"), expect=1)
    assert "nothing in this workspace waits for the sign-off 'another'" in payloads(reply)[0]
    workspace.act(respond())
    workspace.act(respond(), expect=1)


def test_a_block_that_answers_goes_on_with_its_own_actions(workspace: Workspace) -> None:
    workspace.run("signoff")
    reply = workspace.act(respond(), create("own.txt"))
    assert successes(reply) == [("RESPOND_TO_SIGNOFF", True), ("CREATE_OR_REPLACE_FILE", True)]
    assert workspace.read("own.txt") == "one\n"


def test_another_block_has_to_wait_for_the_answer(workspace: Workspace) -> None:
    workspace.run("signoff")
    reply = workspace.act(create("a.txt"), expect=1)
    assert "awaiting approval" in reply["status_message"]


def test_a_sign_off_given_in_advance_does_not_stop(workspace: Workspace) -> None:
    assert payloads(workspace.run("signoff", approve=True))[1] == "deployed"


PATCH = "--- app.py\n+++ app.py\n@@ -1 +1 @@\n-one\n+two\n"


def test_a_patch_is_applied_once_it_is_approved(workspace: Workspace) -> None:
    workspace.write("src/app.py", "one\n")
    reply = workspace.act({"type": "APPLY_PATCH", "path": "src/app.py", "patch_content": PATCH})
    (waiting,) = payloads(reply)
    assert waiting["exwork_status"] == "AWAITING_SIGNOFF"
    assert "+two" in waiting["signoff_prompt"]
    assert workspace.read("src/app.py") == "one\n"
    workspace.act(respond(signoff=waiting["signoff_id"]))
    assert workspace.read("src/app.py") == "two\n"


def test_two_sign_offs_are_answered_one_after_the_other(workspace: Workspace) -> None:
    first, second = ({"type": "REQUEST_SIGNOFF", "message": f"{each}?", "signoff_id": each} for each in ("a", "b"))
    workspace.act(first, second, create("done.txt"))
    reply = workspace.act(respond(signoff="a"))
    assert awaiting("test", "b", "b?").items() <= payloads(reply)[0].items()
    workspace.act(respond(signoff="b"))
    assert workspace.read("done.txt") == "one\n"


# Trust.


@pytest.mark.usefixtures("no_namespaces")
def test_a_block_from_elsewhere_starts_no_program_that_cannot_be_confined(workspace: Workspace) -> None:
    workspace.act(create("a.txt"), trust=Trust.UNTRUSTED)
    reply = workspace.act(script("sh"), expect=1, trust=Trust.UNTRUSTED)
    assert "sandbox level 3" in reply["status_message"]


def test_a_block_from_elsewhere_may_not_answer_for_a_person(workspace: Workspace) -> None:
    workspace.run("signoff")
    reply = workspace.act(respond(), expect=1, trust=Trust.UNTRUSTED)
    assert "cannot answer for a person" in payloads(reply)[0]
    assert workspace.act(respond())["overall_success"] is True


def test_an_answer_after_a_broken_action_is_not_given(workspace: Workspace) -> None:
    workspace.run("signoff")
    workspace.act({"type": "ECHO"}, respond(), expect=1)
    assert workspace.act(respond())["overall_success"] is True

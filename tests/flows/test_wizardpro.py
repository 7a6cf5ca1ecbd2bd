"""What the actions of a block in the older format become."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_orchestrator.blocks.errors import QuantumError
from quantum_orchestrator.flows import expressions
from quantum_orchestrator.flows.expressions import Scope
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.wizardpro import (
    looks_old,
    parameter_values,
    read_block,
    reply_for_problem,
    reply_line,
    roots_of,
    translate,
)

OLDER = Path(__file__).parents[2] / "examples" / "older"
ROOTS = (PurePosixPath("/srv/work"),)

Json = dict[str, Any]


def translated(*actions: object, values: Mapping[str, str] | None = None, step_id: str = "test") -> list[Json]:
    """The instructions of a block of these actions."""
    block = read_block({"step_id": step_id, "actions": list(actions)})
    instructions: list[Json] = translate(block, values or {}, roots=ROOTS)["instructions"]
    return instructions


def meant(value: object, steps: Mapping[str, Any] | None = None) -> Any:
    """What a parameter is when it runs."""
    return expressions.evaluate(value, Scope(steps={} if steps is None else steps))


def echoed(message: str, **values: str) -> str:
    """What an ECHO says."""
    (instruction,) = translated({"type": "ECHO", "message": message}, values=values)
    return str(meant(instruction["with"]["message"]))


def path_of(path: str) -> str:
    """The path that a written file gets; the reason when it is refused."""
    (instruction,) = translated({"type": "CREATE_OR_REPLACE_FILE", "path": path, "content": ""})
    parameters = instruction["with"]
    return str(parameters["path"] if instruction["op"] == "file.write" else parameters["message"])


def refusal(action: object) -> str:
    """Why an action fails at its turn."""
    (instruction,) = translated(action)
    assert (instruction["op"], instruction["with"]["that"]) == ("assert", False)
    return str(instruction["with"]["message"])


def operations(*actions: object) -> list[tuple[str, str]]:
    return [(each["id"], each["op"]) for each in translated(*actions)]


# The block.


@pytest.mark.parametrize(
    ("value", "old"),
    [
        ({"actions": []}, True),
        ({"step_id": "x", "actions": None}, True),
        ({"version": 1, "name": "x", "instructions": []}, False),
        ({"actions": [], "instructions": []}, False),
        ([{"actions": []}], False),
        ("actions", False),
    ],
)
def test_a_block_is_told_from_an_instruction_set_by_its_actions(value: object, old: bool) -> None:
    assert looks_old(value) is old


@pytest.mark.parametrize("file", sorted(OLDER.glob("*.json")), ids=lambda file: file.stem)
def test_every_example_becomes_a_valid_instruction_set(file: Path) -> None:
    value = json.loads(file.read_text())
    assert looks_old(value)
    block = read_block(value)
    document = load_object(translate(block, {each.name: "x" for each in block.parameters}))
    assert document.name == value["step_id"]
    assert document.order == "sequential"


def test_a_block_is_read_as_leniently_as_ever() -> None:
    block = read_block({"step_id": 7, "description": None, "depends_on": "six", "colour": "red", "actions": []})
    assert (block.step_id, block.description, block.depends_on) == ("7", "", ["six"])


def test_a_block_that_cannot_be_read_says_where() -> None:
    with pytest.raises(QuantumError, match=r"parameters\.0\.name"):
        read_block({"actions": [], "parameters": [{"prompt": "?"}]})


def test_a_name_that_prefect_would_refuse_is_made_readable_and_kept_as_a_tag() -> None:
    document = translate(read_block({"step_id": "a/b & c", "actions": []}), {})
    assert document["name"] == "a-b - c"
    assert "step_id:a/b & c" in document["tags"]


def test_steps_are_named_after_the_number_of_their_action() -> None:
    echo, lint = {"type": "ECHO", "message": ""}, {"type": "LINT_FORMAT_FILE", "path": "a.py"}
    assert operations(echo, lint, echo) == [
        ("1-echo", "echo"),
        ("2-format", "quality.format"),
        ("2-lint", "quality.lint"),
        ("2-tidy", "quality.format"),
        ("3-echo", "echo"),
    ]


def test_nothing_follows_an_action_that_is_sure_to_fail() -> None:
    assert operations({"type": "ECHO", "message": ""}, {"type": "NONE"}, {"type": "ECHO", "message": ""}) == [
        ("1-echo", "echo"),
        ("2-refused", "assert"),
    ]


# Names in texts.


def test_parameters_are_filled_in_and_everything_else_is_plain_text() -> None:
    assert echoed("{{a}} {{b}} {{ a }} ${{ a }} ${{a}} {{{a}}}", a="x") == "x {{b}} {{ a }} ${{ a }} ${{a}} {x}"


def test_what_comes_in_with_a_value_is_not_filled_again() -> None:
    assert echoed("{{a}}", a="{{b}} ${{ inputs.x }}", b="never") == "{{b}} ${{ inputs.x }}"


def test_text_that_only_becomes_an_expression_by_filling_is_plain_text() -> None:
    assert echoed("{{a}}{ inputs.x }}", a="${") == "${{ inputs.x }}"


@given(st.lists(st.sampled_from(["$", "{", "}", "'", "\\", " ", "{{a}}", "{{b}}", "${{ ", " }}", "é"])).map("".join))
def test_any_text_means_itself_with_its_names_filled(text: str) -> None:
    expected = re.sub(r"(?<!\$)\{\{a\}\}", "$1{{", text)
    assert echoed(text, a="$1{{") == expected


@given(st.lists(st.sampled_from(["$", "{", "}", "'", "${{ ", " }}", "{{v}}"])).map("".join))
def test_any_text_around_a_variable_means_itself(text: str) -> None:
    read = {"type": "READ_FILE_TO_VAR", "path": "f", "var": "v"}
    *_, last = translated(read, {"type": "ECHO", "message": text})
    steps = {"1-read": {"outputs": {"content": "${{ x"}}}
    assert str(meant(last["with"]["message"], steps)) == re.sub(r"(?<!\$)\{\{v\}\}", "${{ x", text)


def test_a_dollar_before_a_variable_stays_a_dollar() -> None:
    read = {"type": "READ_FILE_TO_VAR", "path": "f", "var": "v"}
    *_, last = translated(read, {"type": "ECHO", "message": "{{a}}{{v}}"}, values={"a": "x$$"})
    assert meant(last["with"]["message"], {"1-read": {"outputs": {"content": "text"}}}) == "x$$text"


def test_variables_refer_to_the_actions_that_set_them() -> None:
    *_, last = translated(
        {"type": "READ_FILE_TO_VAR", "path": "f", "var": "v"},
        {"type": "LIST_DIRECTORY_TO_VAR", "path": ".", "var": "l"},
        {"type": "CHECK_PATH_EXISTS", "path": "f", "var": "e"},
        {"type": "ECHO", "message": "{{v}} {{l}} {{e}}"},
    )
    steps = {
        "1-read": {"outputs": {"content": "text"}},
        "2-list": {"outputs": {"paths": ["a", "b"]}},
        "3-test": {"outputs": {"exit_code": 1}},
    }
    assert meant(last["with"]["message"], steps) == "text a\nb false"


def test_a_variable_is_not_known_before_it_is_set() -> None:
    first, *_ = translated({"type": "ECHO", "message": "{{v}}"}, {"type": "READ_FILE_TO_VAR", "path": "f", "var": "v"})
    assert first["with"]["message"] == "{{v}}"


def test_a_variable_in_a_path_is_straightened_around() -> None:
    *_, last = translated(
        {"type": "CHECK_PATH_EXISTS", "path": "f", "var": "v"},
        {"type": "CREATE_OR_REPLACE_FILE", "path": "./a//{{v}}\\b", "content": ""},
    )
    assert meant(last["with"]["path"], {"1-test": {"outputs": {"exit_code": 0}}}) == "a/true/b"


# Paths.


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("./a.txt", "a.txt"),
        ("a//b.txt", "a/b.txt"),
        ("a\\b.txt", "a/b.txt"),
        (".\\a/./b.txt", "a/b.txt"),
        ("/srv/work/a.txt", "a.txt"),
        ("/srv/work//a/./b.txt", "a/b.txt"),
    ],
)
def test_spellings_of_old_are_straightened(written: str, path: str) -> None:
    assert path_of(written) == path


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "is empty"),
        (".", "is the workspace itself"),
        ("/srv/work", "is the workspace itself"),
        ("../a", "leads out of the workspace"),
        ("a\\..\\..\\b", "leads out of the workspace"),
        ("/srv/work/../a", "leads out of the workspace"),
        ("/srv/worker/a", "is an absolute path"),
        ("\\\\server\\a", "is a network path"),
        ("C:\\a", "drive letter"),
        ("~/a", "home folder"),
        ("./.git/config", "belongs to git"),
    ],
)
def test_what_leads_elsewhere_is_refused_after_that(written: str, reason: str) -> None:
    assert reason in path_of(written)


def test_a_workspace_has_the_names_that_lead_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    assert roots_of(tmp_path / "real") == [PurePosixPath(tmp_path / "real"), PurePosixPath(tmp_path / "link")]


# Actions.


def test_bytes_count_where_there_is_text_as_well() -> None:
    (instruction,) = translated(
        {"type": "CREATE_OR_REPLACE_FILE", "path": "a", "content": "t", "content_base64": "Yg=="}
    )
    assert instruction["with"] == {"path": "a", "content_base64": "Yg=="}


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("ECHO", "an object with a 'type'"),
        ({"message": "x"}, "needs a 'type'"),
        ({"type": "ECHOO"}, "did you mean 'ECHO'?"),
        ({"type": "ECHO"}, "ECHO needs the field 'message'"),
        ({"type": "ECHO", "message": ["x"]}, "'message' is not a text"),
        ({"type": "CREATE_OR_REPLACE_FILE", "path": "a"}, "'content' or 'content_base64'"),
        ({"type": "CREATE_OR_REPLACE_FILE", "path": "a", "content_base64": "!"}, "is not base64"),
        ({"type": "APPEND_TO_FILE", "path": "a", "content": "", "add_newline_if_missing": "no"}, "true or false"),
        ({"type": "RUN_SCRIPT", "script_path": "a.sh", "timeout": "20"}, "a number of seconds"),
        ({"type": "RUN_SCRIPT", "script_path": "/bin/sh"}, "is an absolute path"),
        ({"type": "RUN_FORMATTER", "path": "a.py", "formatter": "yapf"}, "known are 'black' and 'ruff'"),
        ({"type": "APPLY_PATCH", "path": "a", "patch_content": "text"}, "has no hunk"),
        ({"type": "READ_FILE_TO_VAR", "path": "a", "var": "{x}"}, "the name of a variable"),
        ({"type": "CALL_LOCAL_LLM"}, "CALL_LOCAL_LLM needs the field 'prompt'"),
        ({"type": "CALL_LOCAL_LLM", "prompt": "x", "output_path": "../x"}, "leads out of the workspace"),
        (
            {"type": "CALL_LOCAL_LLM", "prompt": "x", "api_endpoint_base": "u", "options": 1},
            "'options' is not an object",
        ),
    ],
)
def test_what_cannot_be_translated_fails_with_the_reason(action: object, reason: str) -> None:
    assert reason in refusal(action)


def script_run(**fields: object) -> Json:
    instructions = translated({"type": "RUN_SCRIPT", "script_path": "tools/x.sh", **fields})
    return next(each for each in instructions if each["id"] == "1-run")


def test_a_script_runs_in_its_folder_with_its_arguments_as_texts_for_five_minutes() -> None:
    run = script_run(args=["a", 2, 0.5, True])
    assert run["with"]["argv"] == ["./x.sh", "a", "2", "0.5", "True"]
    assert (run["with"]["cwd"], run["timeout"]) == ("tools", 300)


def test_a_script_runs_in_the_workspace_if_asked_to() -> None:
    run = script_run(cwd="project_root", timeout=7)
    assert (run["with"]["argv"], run["with"]["cwd"], run["timeout"]) == (["./tools/x.sh"], ".", 7)


@pytest.mark.parametrize(("found", "program"), [("absent", "git"), ("ready", "./git"), ("0755", "./git")])
def test_a_bare_name_is_a_script_if_there_is_one(found: str, program: str) -> None:
    instructions = translated({"type": "RUN_SCRIPT", "script_path": "git", "args": ["status"]})
    run = next(each for each in instructions if each["id"] == "1-run")
    assert meant(run["with"]["argv"], {"1-look": {"outputs": {"stdout": found}}}) == [program, "status"]


def test_a_question_goes_to_the_server_that_the_action_names_in_its_own_protocol() -> None:
    (instruction,) = translated(
        {
            "type": "CALL_LOCAL_LLM",
            "prompt": "Explain ${{ x }} and {{name}}.",
            "model": "llama3",
            "api_endpoint_base": "http://localhost:11434",
            "options": {"temperature": 0.1, "stop": "${{"},
            "output_path": "./out/answer.md",
        },
        values={"name": "y"},
    )
    assert instruction["op"] == "llm.generate"
    assert meant(instruction["with"]) == {
        "prompt": "Explain ${{ x }} and y.",
        "model": "llama3",
        "protocol": "ollama",
        "base_url": "http://localhost:11434",
        "options": {"temperature": 0.1, "stop": "${{"},
        "path": "out/answer.md",
    }


def test_a_question_without_a_server_goes_to_the_model_that_is_configured() -> None:
    (instruction,) = translated({"type": "CALL_LOCAL_LLM", "prompt": "x", "model": None, "options": {"a": 1}})
    assert instruction["with"] == {"prompt": "x"}


def test_a_failure_is_diagnosed_from_what_was_said_of_it() -> None:
    (instruction,) = translated(
        {
            "type": "DIAGNOSE_ERROR",
            "failed_command": "python x.py",
            "stdout": "started",
            "stderr": "NameError: ${{ z }}",
            "context": {"branch": "main"},
            "history_lookback": 3,
        }
    )
    assert instruction["op"] == "llm.diagnose"
    assert meant(instruction["with"]) == {
        "failure": "NameError: ${{ z }}\nstarted",
        "command": "python x.py",
        "about": '{"branch": "main"}',
    }
    (silent,) = translated({"type": "DIAGNOSE_ERROR", "failed_command": "false"})
    assert meant(silent["with"]) == {"failure": "it said nothing", "command": "false", "about": ""}


HUNK = "@@ -1 +1 @@\n-one\n+two\n"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("", "--- a/src/a.py\n+++ b/src/a.py\n"),
        ("--- a.py\n+++ a.py\n", "--- a/src/a.py\n+++ b/src/a.py\n"),
        ("diff --git a/a.py b/a.py\nindex 1..2\n--- a/a.py\n+++ b/a.py\n", "--- a/src/a.py\n+++ b/src/a.py\n"),
    ],
)
def test_a_patch_is_one_of_the_file_that_the_action_names(headers: str, expected: str) -> None:
    approval, patch = translated({"type": "APPLY_PATCH", "path": "src/a.py", "patch_content": headers + HUNK})
    assert patch["with"]["patch"] == expected + HUNK
    assert approval["op"] == "approval"
    assert HUNK in approval["with"]["message"]
    assert "signoff:test/1" in approval["tags"]


def test_a_patch_makes_a_new_file() -> None:
    patch_content = "--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+one\n"
    _, patch = translated({"type": "APPLY_PATCH", "path": "a.py", "patch_content": patch_content})
    assert patch["with"]["patch"].startswith("--- /dev/null\n+++ b/a.py\n")


def test_a_patch_of_several_files_is_refused() -> None:
    several = f"--- a\n+++ a\n{HUNK}--- b\n+++ b\n{HUNK}"
    assert "several files" in refusal({"type": "APPLY_PATCH", "path": "a", "patch_content": several})


def test_a_sign_off_can_be_found_by_its_id() -> None:
    (approval,) = translated({"type": "REQUEST_SIGNOFF", "message": "Deploy?", "signoff_id": "deploy-7"})
    assert (approval["op"], approval["with"]) == ("approval", {"message": "Deploy?"})
    assert approval["tags"] == ["REQUEST_SIGNOFF", "signoff:deploy-7"]


def test_git_actions_are_as_forgiving_as_ever() -> None:
    add, commit = translated({"type": "GIT_ADD"}, {"type": "GIT_COMMIT", "message": "m"})
    assert add["with"] == {"paths": ["."], "missing": "skip"}
    assert commit["with"] == {"message": "m", "allow_empty": False, "if_empty": "skip"}


# Parameters and replies.

PARAMETERS = [{"name": "a", "prompt": "A?"}, {"name": "b", "default": "standard"}, {"name": "c"}]
BLOCK = read_block({"actions": [], "parameters": PARAMETERS})


def test_values_are_given_or_asked_for_or_the_default() -> None:
    answers = {"A?": "asked", "b": ""}
    assert parameter_values(BLOCK, {"c": "given"}, answers.__getitem__) == {"a": "asked", "b": "standard", "c": "given"}


def test_every_parameter_without_a_value_is_named() -> None:
    with pytest.raises(QuantumError, match="'a', 'c'") as caught:
        parameter_values(BLOCK, {}, None)
    assert "--input a=… --input c=…" in caught.value.hint


def test_a_reply_is_one_line() -> None:
    assert reply_line(reply_for_problem("two\nlines")) == (
        '{"overall_success": false, "status_message": "two\\nlines"}'
    )

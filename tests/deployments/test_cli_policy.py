"""`qo policy`: what this machine allows, and what that means for a set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import NOTE
from test_cli_sets import SCRIPT, Qo

from quantum_orchestrator.blocks.levels import Level, why_not

PUSH = {"id": "push", "op": "git.push"}
REFUSED_IF = 3 if why_not(Level.BUBBLEWRAP) else 0
"""Scripts of an untrusted set are refused on a machine where they cannot be confined."""
MAKE = {"id": "make", "op": "file.write", "with": {"path": "Makefile", "content": "all:\n"}}


@pytest.fixture
def qo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Qo:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("QO_HOME", str(tmp_path / "state"))
    return Qo(tmp_path / "work", capfd, monkeypatch)


def policy(qo: Qo, text: str) -> Path:
    path = qo.folder.parent / "state/policy.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_file_every_setting_is_a_default_and_nothing_is_made(qo: Qo) -> None:
    answer = qo("policy", "show", "--json").exits(0).json
    assert answer["exists"] is False
    assert {each["source"] for each in answer["settings"]} == {"default"}
    assert not (qo.folder.parent / "state").exists()


def test_each_setting_is_shown_with_its_line(qo: Qo) -> None:
    path = policy(qo, '[operations]\ndeny = ["git.push"]\n\n[untrusted.limits]\nseconds = 5\n')
    settings = {each["setting"]: each for each in qo("policy", "show", "--json").exits(0).json["settings"]}
    assert settings["operations.deny"]["source"] == f"[operations] deny in {path}:2"
    assert settings["untrusted.limits.seconds"]["source"] == f"[untrusted.limits] seconds in {path}:5"
    settings = {each["setting"]: each for each in qo("policy", "show", "--untrusted", "--json").json["settings"]}
    assert (settings["limits.seconds"]["value"], settings["sandbox.require"]["value"]) == (5, 3)
    qo("policy", "show").exits(0).prints("operations.deny").prints(f"{path}:2")


def test_a_verdict_for_each_step_and_the_setting_that_decides(qo: Qo) -> None:
    path = policy(qo, '[operations]\ndeny = ["git.push"]\n')
    said = qo("policy", "test", qo.set(NOTE, MAKE, PUSH), "--untrusted").exits(3)
    said.prints("✓ note  file.write  allowed\n").prints("? make  file.write  needs approval\n    it changes files")
    said.prints("✗ push  git.push  refused\n    the policy refuses operation 'git.push'\n")
    said.prints(f"    by [operations] deny in {path}:2 names 'git.push'\n")
    said.prints("3 steps: 1 allowed, 1 needs approval, 1 refused\n")


@pytest.mark.parametrize(
    ("steps", "options", "code"),
    [((NOTE,), (), 0), ((MAKE,), (), 0), ((MAKE,), ("--untrusted",), 5), ((SCRIPT,), ("--untrusted",), REFUSED_IF)],
)
def test_its_exit_code_says_the_worst(qo: Qo, steps: tuple[object, ...], options: tuple[str, ...], code: int) -> None:
    answer = qo("policy", "test", qo.set(*steps), *options, "--json").exits(code).json
    assert {each["decision"] for each in answer["steps"]} == {{0: "allowed", 5: "needs_approval", 3: "refused"}[code]}


def test_a_step_behind_one_that_is_refused_has_a_verdict_too(qo: Qo) -> None:
    policy(qo, '[paths]\ndeny = ["note.txt"]\n')
    answer = qo("policy", "test", qo.set(NOTE, {**MAKE, "needs": ["note"]}), "--json").exits(3).json
    assert [each["decision"] for each in answer["steps"]] == ["refused", "allowed"]


def test_validate_plan_and_run_refuse_before_anything_happens(qo: Qo) -> None:
    policy(qo, '[paths]\ndeny = ["secret"]\n')
    write = {"id": "w", "op": "file.write", "with": {"path": "${{ inputs.where }}", "content": "x"}}
    file = qo.set(write, inputs={"where": {"type": "string"}})
    qo("validate", file).exits(0)
    for command in ("validate", "plan", "run"):
        said = qo(command, file, "--input", "where=secret/x").exits(3)
        said.says("step w: the policy refuses path 'secret/x'").says("policy.toml:2 names 'secret'")


def test_a_plan_says_what_needs_an_approval(qo: Qo) -> None:
    file = qo.set(MAKE)
    qo("plan", file, "--untrusted").exits(0).prints("; needs an approval: it changes files").prints("+++ b/Makefile")
    (step,) = qo("plan", file, "--untrusted", "--json").exits(0).json["steps"]
    assert "Makefile is new (sha256 " in step["approval"]
    assert qo("plan", file, "--json").json["steps"][0]["approval"] == ""


def test_a_mistake_in_the_file_stops_every_command_with_its_line(qo: Qo) -> None:
    path = policy(qo, '[paths]\ndney = ["x"]\n\n[limits]\nseconds = "5"\n')
    for command in (("validate", qo.set(NOTE)), ("policy", "show")):
        said = qo(*command).exits(3).says(f"{path}:2: unknown setting 'dney' in [paths]; did you mean 'deny'?")
        said.says(f"{path}:5: [limits] seconds must be a whole number")


def test_the_verdicts_are_one_json_document(qo: Qo) -> None:
    out = qo("policy", "test", qo.set(NOTE), "--json").exits(0).out
    assert set(json.loads(out)) == {"set", "trust", "allowed", "needs_approval", "refused", "steps"}

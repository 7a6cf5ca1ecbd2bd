"""The commands about instruction sets, and what becomes of mistakes: no server is needed for any of it."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from commands import LOUD, NOTE, Said

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.deployments import cli

SCRIPT = {"id": "build", "op": "script.run", "with": {"argv": ["true"]}, "writes": ["out/**"], "reads": []}


class Qo:
    """`qo`, in this process and in a folder of its own."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._capfd = capfd
        self._patch = patch

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Said:
        self._capfd.readouterr()
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.invoke(arguments)
        sys.stdout.flush()
        return Said(code, *self._capfd.readouterr())

    def set(self, *instructions: object, file: str = "set.json", **fields: object) -> str:
        document = {"version": 1, "name": "test", **fields, "instructions": list(instructions)}
        (self.folder / file).write_text(json.dumps(document, indent=2))
        return file


@pytest.fixture
def qo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Qo:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QO_HOME", str(tmp_path.with_name(f"{tmp_path.name}-state")))  # where nothing was learned yet
    return Qo(tmp_path, capfd, monkeypatch)


class TestValidate:
    def test_a_right_set_is_said_to_be_valid(self, qo: Qo) -> None:
        file = qo.set(NOTE, LOUD)
        qo("validate", file).exits(0).prints_exactly("set.json: valid: 'test', 2 instructions\n").is_silent()

    def test_every_fault_is_told_with_its_place_and_the_nearest_name(self, qo: Qo) -> None:
        (qo.folder / "set.json").write_text(
            '{"name": "test",\n "instructions": [\n  {"id": "a", "op": "file.wirte", "with": {}},\n'
            '  {"id": "a", "op": "echo"}]}'
        )
        said = qo("validate", "set.json").exits(3).prints_exactly("")
        said.says("error: set.json:3:21 /instructions/0/op: unknown operation 'file.wirte'; did you mean 'file.write'?")
        said.says("nothing has run")
        assert said.err.count("error: ") >= 2

    def test_json_lists_the_faults(self, qo: Qo) -> None:
        file = qo.set({"id": "a", "op": "file.wirte", "with": {}})
        answer = qo("validate", file, "--json").exits(3).json
        assert answer["status"] == "invalid"
        assert set(answer["errors"][0]) == {"file", "line", "column", "pointer", "message", "hint"}
        assert answer["errors"][0]["pointer"] == "/instructions/0/op"

    def test_standard_input_is_a_dash(self, qo: Qo) -> None:
        document = (qo.folder / qo.set(NOTE)).read_bytes()
        qo("validate", "-", stdin=document).exits(0).prints("<stdin>: valid: 'test', 1 instruction\n")

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"   \n",
            b"not json",
            b"[1, 2]",
            b'"a text"',
            b'{"name": "x", "name": "y", "instructions": []}',
            b'{"name": "x", "instructions": [{"id": "w", "op": "wait", "with": {"seconds": NaN}}]}',
            b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
            b'{"name": "x", "instructions": [' + b" " * 20_000_000 + b"]}",
            b"\xff\xfe",
            b'{"name": "x"}',
            b'{"name": "x", "instructions": [{"id": "a", "op": "echo", "with": {"message": 3}}]}',
            b'{"name": "x", "instructions": [{"id": "a", "op": "echo", "with": {"message": "${{ steps.b.status }}"}}]}',
            b'{"name": "x", "instructions": [{"id": "a", "op": "echo", "needs": ["a"], "with": {"message": ""}}]}',
        ],
        ids=[
            "empty",
            "blank",
            "no JSON",
            "a list",
            "a text",
            "a key twice",
            "NaN",
            "10,000 deep",
            "20 MB",
            "no UTF-8",
            "no instructions",
            "a wrong type",
            "a missing step",
            "a cycle",
        ],
    )
    def test_bad_input_is_refused_in_words(self, qo: Qo, text: bytes) -> None:
        (qo.folder / "bad.json").write_bytes(text)
        said = qo("validate", "bad.json").exits(3).prints_exactly("")
        assert said.err.startswith("error: bad.json")
        assert len(said.err) < 2_000

    def test_inputs_are_judged_when_given(self, qo: Qo) -> None:
        file = qo.set(NOTE, inputs={"count": {"type": "integer"}})
        qo("validate", file).exits(0)
        qo("validate", file, "--input", "count=3").exits(0)
        qo("validate", file, "--input", "count=three").exits(3).says("count")
        qo("validate", file, "--input", "cuont=3").exits(3).says("did you mean 'count'?")

    def test_two_unordered_writers_of_an_explicit_set_are_a_fault(self, qo: Qo) -> None:
        file = qo.set(NOTE, LOUD, order="explicit")
        qo("validate", file).exits(3).says("both write note.txt").says(
            'hint: the set\'s order is explicit: add "needs"'
        )


class TestPlan:
    def test_the_whole_of_it(self, qo: Qo) -> None:
        file = qo.set(NOTE, LOUD)
        qo("plan", file, "--explain").exits(0).is_silent().prints_exactly(
            f"""\
# test: 2 steps in {qo.folder}
#   ✓ note  file.write note.txt   changes note.txt
#   ✓ loud  file.append note.txt  changes note.txt
# loud waits for note: reads what it writes (note.txt)
# loud waits for note: writes what it writes (note.txt)
diff --git a/note.txt b/note.txt
new file mode 100644
index 0000000000000000000000000000000000000000..afecd8ad67ef1625c507256aaf2fcf803b8657f9
--- /dev/null
+++ b/note.txt
@@ -0,0 +1,2 @@
+hello
+HELLO
# 1 file changed (+2 −0)
"""
        )
        assert sorted(path.name for path in qo.folder.iterdir()) == ["set.json"]

    def test_git_accepts_what_it_prints(self, qo: Qo) -> None:
        (qo.folder / "note.txt").write_text("old\n")
        file = qo.set(
            LOUD, {"id": "bytes", "op": "file.write", "with": {"path": "b", "content_base64": "AP8A"}}, SCRIPT
        )
        patch = qo("plan", file, "--graph", "mermaid", "--explain").exits(0).out
        applied = subprocess.run(["git", "apply"], input=patch, text=True, cwd=qo.folder, capture_output=True)
        assert applied.returncode == 0, applied.stderr
        assert (qo.folder / "note.txt").read_text() == "old\nHELLO\n"
        assert (qo.folder / "b").read_bytes() == b"\0\xff\0"

    def test_what_only_a_run_can_tell_is_deferred(self, qo: Qo) -> None:
        after = {"id": "after", "op": "file.append", "with": {"path": "out/log", "content": "x"}}
        said = qo("plan", qo.set(SCRIPT, after)).exits(0)
        said.prints("#   ? build  script.run true      deferred: may change out\n")
        said.prints("deferred (out/log depends on a deferred step): may change out/log")
        said.prints("# 0 files changed (+0 −0), and whatever 2 deferred steps may change\n")

    def test_a_script_that_may_change_anything_is_said_to_in_one_word(self, qo: Qo) -> None:
        told = {"id": "told", "op": "file.write", "with": {"path": "state.txt", "content": "x"}}
        anything = {"id": "any", "op": "script.run", "with": {"shell": "exit 1"}, "on_error": {"run": [told]}}
        qo("plan", qo.set(anything)).exits(0).prints("deferred: may change anything\n")

    def test_steps_are_told_apart_by_values_and_never_by_expressions(self, qo: Qo) -> None:
        each = {
            "id": "page",
            "op": "file.write",
            "for_each": ["one", "two"],
            "with": {"path": "${{ inputs.book }}/${{ item }}.md", "content": "x"},
        }
        later = {
            "id": "later",
            "op": "file.write",
            "with": {"path": "${{ steps.build.outputs.stdout }}", "content": ""},
        }
        inputs = {"book": {"type": "string", "default": "tale"}}
        said = qo("plan", qo.set(each, SCRIPT, later, inputs=inputs)).exits(0)
        said.prints(" file.write tale/one.md ").prints(" file.write tale/two.md ").prints(" later ")
        assert "${{" not in said.out

    def test_the_detailed_exit_code_tells_changes_from_none(self, qo: Qo) -> None:
        file = qo.set(NOTE)
        qo("plan", file, "--detailed-exitcode").exits(2)
        (qo.folder / "note.txt").write_text("hello\n")
        qo("plan", file, "--detailed-exitcode").exits(0)
        qo("plan", qo.set(SCRIPT), "--detailed-exitcode").exits(2)
        qo("plan", qo.set({"id": "a", "op": "nothing"}), "--detailed-exitcode").exits(3)

    def test_a_step_that_would_fail_is_told(self, qo: Qo) -> None:
        file = qo.set(NOTE, {"id": "gone", "op": "file.delete", "with": {"path": "missing.txt"}}, LOUD)
        said = qo("plan", file).exits(1).says("error: step gone (file.delete) would fail: missing.txt: ")
        said.prints("#   ✗ gone  file.delete missing.txt  would fail: missing.txt: ")
        said.prints("#   · loud  file.append              not reached\n")
        assert "diff --git" not in said.out, "a failed run is rolled back: nothing changes"

    def test_json_gives_both_sides_of_every_change(self, qo: Qo) -> None:
        (qo.folder / "old.txt").write_text("x")
        (qo.folder / "old.txt").chmod(0o640)
        delete = {"id": "delete", "op": "file.delete", "with": {"path": "old.txt"}}
        answer = qo("plan", qo.set(NOTE, delete, SCRIPT), "--json").exits(0).json
        digest = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        assert answer["changes"][0] == {
            "path": "note.txt",
            "before": None,
            "after": {"kind": "file", "mode": "0644", "sha256": digest, "target": ""},
        }
        assert answer["changes"][1]["before"]["mode"] == "0640"
        assert answer["changes"][1]["after"] is None
        assert answer["diff"] == {"files": 2, "insertions": 1, "deletions": 1}
        assert [(each["id"], each["may_write"]) for each in answer["deferred"]] == [("build", ["out"])]
        assert [step["id"] for step in answer["steps"]] == ["note", "delete", "build"]
        assert answer["failure"] is None

    def test_it_looks_at_the_workspace_that_is_chosen_and_makes_none(self, qo: Qo) -> None:
        file = qo.set(NOTE, workspace="build/here")
        qo("plan", file).exits(0).prints(f"1 step in {qo.folder}/build/here")
        qo("plan", file, "--workspace", "there").exits(0).prints(f"1 step in {qo.folder}/there")
        assert not (qo.folder / "build").exists()
        assert not (qo.folder / "there").exists()

    def test_inputs_come_from_a_file_and_from_options_which_win(self, qo: Qo) -> None:
        content = "${{ inputs.greeting }} ${{ inputs.count + 1 }}"
        file = qo.set(
            {"id": "a", "op": "file.write", "with": {"path": "a", "content": content}},
            inputs={"greeting": {"type": "string"}, "count": {"type": "integer"}},
        )
        (qo.folder / "inputs.json").write_text('{"greeting": "hi", "count": 1}')
        qo("plan", file, "--inputs-file", "inputs.json").exits(0).prints("\n+hi 2\n")
        qo("plan", file, "--inputs-file", "inputs.json", "--input", "greeting=a=b").exits(0).prints("\n+a=b 2\n")
        qo("plan", file).exits(3).says("input 'greeting' is missing").says("input 'count' is missing")
        qo("plan", file, "--input", "greeting").exits(3).says("--input greeting: is not NAME=VALUE")

    def test_quiet_leaves_the_patch_alone(self, qo: Qo) -> None:
        assert qo("plan", qo.set(NOTE), "-q").exits(0).out.startswith("diff --git a/note.txt b/note.txt\n")


class TestPlanFiles:
    def test_a_plan_is_written_and_names_what_it_rests_on(self, qo: Qo) -> None:
        (qo.folder / "note.txt").write_text("old\n")
        qo("plan", qo.set(LOUD), "-o", "p.plan").exits(0).says(
            "p.plan: written; `qo run --plan p.plan` runs exactly this"
        )
        plan = json.loads((qo.folder / "p.plan").read_text())
        assert (plan["version"], plan["workspace"]) == (1, str(qo.folder))
        assert plan["basis"]["note.txt"]["entry"]["size"] == 4
        assert plan["set"]["instructions"][0]["id"] == "loud"

    def test_a_workspace_that_has_moved_on_is_refused_and_the_paths_are_named(self, qo: Qo) -> None:
        (qo.folder / "note.txt").write_text("old\n")
        qo("plan", qo.set(LOUD), "-o", "p.plan").exits(0)
        (qo.folder / "note.txt").write_text("other\n")
        said = (
            qo("run", "--plan", "p.plan").exits(4).says("the workspace has moved on since the plan was made: note.txt")
        )
        said.says("hint: nothing was changed; plan again")
        assert (qo.folder / "note.txt").read_text() == "other\n"

    def test_a_file_that_appears_where_the_plan_saw_none_is_moving_on(self, qo: Qo) -> None:
        qo("plan", qo.set(NOTE), "-o", "p.plan").exits(0)
        (qo.folder / "note.txt").write_text("")
        qo("run", "--plan", "p.plan").exits(4).says("note.txt")

    def test_a_listing_that_changes_is_moving_on(self, qo: Qo) -> None:
        (qo.folder / "src").mkdir()
        listing = {"id": "list", "op": "file.list", "with": {"path": "src"}}
        qo("plan", qo.set(listing), "-o", "p.plan").exits(0)
        (qo.folder / "src/new.py").write_text("")
        qo("run", "--plan", "p.plan").exits(4).says("src")

    def test_an_edited_plan_is_refused(self, qo: Qo) -> None:
        qo("plan", qo.set(NOTE), "-o", "p.plan").exits(0)
        (qo.folder / "p.plan").write_text((qo.folder / "p.plan").read_text().replace("hello", "hullo"))
        qo("run", "--plan", "p.plan").exits(3).says("p.plan: was changed since it was written")

    def test_what_is_no_plan_is_refused(self, qo: Qo) -> None:
        qo("run", "--plan", qo.set(NOTE)).exits(3).says("set.json: is no plan")
        qo("run", "--plan", "none.plan").exits(3).says("none.plan: no such file")

    def test_a_plan_holds_its_inputs(self, qo: Qo) -> None:
        qo("plan", qo.set(NOTE), "-o", "p.plan").exits(0)
        qo("run", "--plan", "p.plan", "--input", "a=b").exits(3).says("a plan holds its inputs")

    def test_no_plan_is_written_of_a_run_that_would_fail(self, qo: Qo) -> None:
        file = qo.set({"id": "gone", "op": "file.delete", "with": {"path": "missing.txt"}})
        qo("plan", file, "-o", "p.plan").exits(1)
        assert not (qo.folder / "p.plan").exists()

    def test_a_place_that_cannot_be_written_is_told(self, qo: Qo) -> None:
        qo("plan", qo.set(NOTE), "-o", "no/such/folder/p.plan").exits(3).says("the plan cannot be written there")


class TestRunWithoutAServer:
    """What `qo run` refuses, it refuses before it starts anything."""

    @pytest.fixture(autouse=True)
    def nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(*_: object) -> None:
            raise AssertionError("a server was started for nothing")

        monkeypatch.setattr("quantum_orchestrator.deployments.server.begin", start)

    def test_faults(self, qo: Qo) -> None:
        qo("run", qo.set({"id": "a", "op": "file.wirte", "with": {}})).exits(3).says("did you mean 'file.write'?")
        answer = qo("run", "set.json", "--json").exits(3).json
        assert (answer["status"], len(answer["errors"])) == ("invalid", 1)

    def test_inputs(self, qo: Qo) -> None:
        qo("run", qo.set(NOTE), "--input", "a=b").exits(3).says("unknown input 'a'")

    def test_a_missing_file(self, qo: Qo) -> None:
        qo("run", "nothing.json").exits(3).says("error: nothing.json: no such file").says("hint: ")
        qo("run", str(qo.folder)).exits(3).says("is a folder")

    def test_no_file_at_all(self, qo: Qo) -> None:
        qo("run").exits(3).says("error: needs either FILE or --plan PLAN")

    def test_a_workspace_that_is_a_file(self, qo: Qo) -> None:
        file = qo.set(NOTE)
        qo("run", file, "--workspace", file).exits(3).says("is no folder")
        qo("run", file, "--workspace", f"{file}/below").exits(3).says("cannot be")

    def test_a_workspace_that_cannot_be_written(self, qo: Qo) -> None:
        (qo.folder / "locked").mkdir(mode=0o500)
        if os.access(qo.folder / "locked", os.W_OK):
            pytest.skip("root may write everywhere")
        qo("run", qo.set(NOTE), "--workspace", "locked").exits(3).says("cannot be written")

    def test_check_is_plan(self, qo: Qo) -> None:
        file = qo.set(NOTE)
        assert qo("run", file, "--check").exits(0).out == qo("plan", file).exits(0).out

    def test_an_empty_standard_input_answers_as_the_older_format_does(self, qo: Qo) -> None:
        answer = '{"overall_success": false, "status_message": "No input from stdin."}\n'
        qo("run", "-").exits(0).prints_exactly(answer)


class TestMistakes:
    def test_an_unknown_command(self, qo: Qo) -> None:
        qo("rum").exits(3).says('error: Unknown command "rum". Did you mean "run"?').says("hint: `qo --help`")

    def test_an_unknown_option(self, qo: Qo) -> None:
        qo("plan", "x.json", "--expalin").exits(3).says("error: Unknown option: --expalin. Did you mean --explain?")
        qo("plan", "x.json", "--expalin").says("hint: `qo plan --help` shows what there is")

    def test_a_missing_file_name(self, qo: Qo) -> None:
        qo("validate").exits(3).says("error: ").says("FILE")

    def test_a_wrong_value(self, qo: Qo) -> None:
        qo("run", "x.json", "--parallel", "many").exits(3).says("--parallel")
        qo("run", "x.json", "--parallel", "0").exits(3).says("--parallel")
        qo("run", "x.json", "--on-failure", "shrug").exits(3).says("rollback")

    def test_an_operand_too_many(self, qo: Qo) -> None:
        qo("plan", "a.json", "b.json").exits(3).says("b.json")

    def test_a_defect_is_called_one_and_v_shows_where(self, qo: Qo, monkeypatch: pytest.MonkeyPatch) -> None:
        def breaks(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a slip")

        monkeypatch.setattr("quantum_orchestrator.flows.instruction_set.load", breaks)
        said = qo("validate", qo.set(NOTE)).exits(1)
        said.says("error: this is a defect: ZeroDivisionError: a slip\nhint: -v shows where\n")
        assert "Traceback" in qo("validate", "set.json", "-v").err

    def test_a_full_disk_is_no_defect(self, qo: Qo, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device", "/state/journal.db")

        monkeypatch.setattr("quantum_orchestrator.flows.instruction_set.load", full)
        qo("validate", qo.set(NOTE)).exits(4).says("error: /state/journal.db: No space left on device\nhint: ")

    def test_ctrl_c_is_130(self, qo: Qo, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("quantum_orchestrator.flows.instruction_set.load", interrupted)
        qo("validate", qo.set(NOTE)).exits(130).says("error: interrupted\n")

    def test_a_state_folder_that_cannot_be_used(self, qo: Qo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QO_HOME", str(qo.folder / qo.set(NOTE)))
        qo("status").exits(4).says("the state folder").says("hint: set QO_HOME")

    def test_options_may_stand_before_the_command(self, qo: Qo) -> None:
        assert qo("--json", "validate", qo.set(NOTE)).exits(0).json["status"] == "valid"


class TestHelp:
    def test_every_command_has_a_line_and_examples(self, qo: Qo) -> None:
        overview = qo("--help").exits(0).out
        for command in cli.COMMANDS:
            assert f" {command.split()[0]} " in overview
            qo(*command.split(), "--help").exits(0).prints("Usage: qo " + command).prints("Examples:\n  qo ")

    def test_version(self, qo: Qo) -> None:
        assert qo("--version").exits(0).out.strip() == cli.version()

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion(self, qo: Qo, shell: str) -> None:
        qo("completion", shell).exits(0).prints("validate").prints("--on-failure")


class TestOperations:
    def test_all_are_listed_by_family(self, qo: Qo) -> None:
        out = qo("ops").exits(0).out
        assert out.index("\nfile\n") < out.index("  file.edit ") < out.index("\ngit\n") < out.index("  git.add ")
        families = [line for line in out.splitlines() if line.isalpha()]
        assert len(families) == len(set(families)), "each has one section"

    def test_one_is_shown_with_what_it_takes_and_gives(self, qo: Qo) -> None:
        said = qo("ops", "file.edit").exits(0)
        said.prints("  path           path, required          ")
        said.prints("  edits          list of Edit, required  ")
        said.prints("    find     text, required  ")
        said.prints("\noutputs\n  sha256  ")
        example = json.loads(said.out.rpartition("example\n")[2])
        assert example["op"] == "file.edit"

    def test_choices_are_written_out_where_they_are_used(self, qo: Qo) -> None:
        said = qo("ops", "file.set").exits(0).prints('  format         "json" or "toml" or "yaml"  ')
        assert "Format" not in said.out

    def test_json_is_the_schema(self, qo: Qo) -> None:
        answer = qo("ops", "file.edit", "--json").exits(0).json
        assert answer["parameters"]["required"] == ["path", "edits"]
        assert "sha256" in answer["outputs"]["properties"]
        assert "file.edit" in [each["name"] for each in qo("ops", "--json").exits(0).json["operations"]]

    def test_a_family_and_a_misspelt_one(self, qo: Qo) -> None:
        assert qo("ops", "git").exits(0).out.startswith("git\n  git.add ")
        qo("ops", "file.edti").exits(3).says("error: unknown operation 'file.edti'\nhint: did you mean 'file.edit'?\n")

    def test_the_schema_judges_sets(self, qo: Qo) -> None:
        from jsonschema import Draft202012Validator

        schema = qo("schema").exits(0).json
        judge = Draft202012Validator(schema)
        judge.validate(json.loads((qo.folder / qo.set(NOTE, LOUD)).read_text()))
        assert not judge.is_valid({"name": "x", "instructions": [{"id": "a", "op": "file.wirte"}]})


class TestInit:
    def test_the_set_is_valid_and_would_do_something(self, qo: Qo) -> None:
        qo("init", "first").exits(0).prints("first.json: written; ")
        qo("validate", "first.json").exits(0)
        qo("plan", "first.json").exits(0).prints("+Hello, world!")
        qo("plan", "first.json", "--input", "who=moon").exits(0).prints("+Hello, moon!")

    def test_nothing_is_overwritten(self, qo: Qo) -> None:
        (qo.folder / "hello.json").write_text("mine")
        qo("init").exits(3).says("hello.json: is there already, and was left as it is")
        assert (qo.folder / "hello.json").read_text() == "mine"

    def test_a_name_that_leads_elsewhere_is_refused(self, qo: Qo) -> None:
        qo("init", "../hello").exits(3).says("is no name for a set")


class TestGraph:
    def test_both_languages(self, qo: Qo) -> None:
        file = qo.set(NOTE, LOUD)
        qo("graph", file).exits(0).prints_exactly(
            'graph TD\n  s0["note<br/>file.write"]\n  s1["loud<br/>file.append"]\n  s0 --> s1\n'
        )
        qo("graph", file, "--format", "dot").exits(0).prints('"note" -> "loud";')

    def test_reasons(self, qo: Qo) -> None:
        note = {**NOTE, "needs": ["build"]}
        script = {key: value for key, value in SCRIPT.items() if key not in ("reads", "writes")}
        said = qo("graph", qo.set(script, note), "--explain").exits(0)
        said.prints("note waits for build: needs\n").prints(
            "note waits for build: writes what it writes (the whole workspace)"
        )


def _record(folder: Path, run_id: str, status: str) -> None:
    journal = Journal(folder)
    journal.begin(RunRecord(run_id, "set", status, {}, {}, {}, 1.0))
    journal.close()


class TestAWorkspaceWithoutRuns:
    def test_status_and_history_say_so(self, qo: Qo) -> None:
        qo("status").exits(0).prints_exactly(f"{qo.folder}: no run yet\n")
        assert qo("status", "--json").exits(0).json["run_id"] is None
        assert qo("history", "--json").exits(0).json["runs"] == []
        qo("history").exits(0).says("no run in")

    @pytest.mark.parametrize("command", ["show", "diff", "logs", "cancel", "approve", "reject"])
    def test_commands_about_a_run_say_that_there_is_none(self, qo: Qo, command: str) -> None:
        qo(command).exits(3).says(f"no run in {qo.folder} yet")
        qo(command, "2026").exits(3).says("no run '2026' in")

    @pytest.mark.parametrize("command", ["resume", "rollback"])
    def test_nothing_is_unfinished(self, qo: Qo, command: str) -> None:
        qo(command).exits(3).says("no unfinished run in this workspace")

    def test_a_damaged_journal_of_another_workspace_is_left_out_of_the_search(self, qo: Qo) -> None:
        for name in ("a", "b"):
            (qo.folder / name).mkdir()
            qo("status", "--workspace", name).exits(0)
        first, second = sorted([workspace_home(qo.folder / name) for name in ("a", "b")])
        (first / "journal.db").write_bytes(b"not a database at all" * 100)
        _record(second, "19990102-030405-abcd", "committed")  # no other test's
        qo("show", "1999").exits(3).says("no run '1999' in").says(f"--workspace {(second / 'path').read_text()}")

    @pytest.mark.parametrize("status", ["running", "paused", "awaiting_approval", "needs_attention", "committed"])
    def test_what_comes_next_can_be_copied_from_any_folder(self, qo: Qo, status: str) -> None:
        other = qo.folder / "an other"
        other.mkdir()
        _record(workspace_home(other), "r1", status)
        following = qo("status", "--workspace", str(other), "--json").exits(0).json["next"]
        assert len(following) >= 2
        assert all(each.endswith(f" --workspace '{other}'") for each in following)
        os.chdir(other)
        assert "--workspace" not in qo("status").exits(0).prints("  next: qo ").out

    def test_a_folder_that_is_not_there(self, qo: Qo) -> None:
        qo("status", "--workspace", "nowhere").exits(3).says(f"there is no folder {qo.folder}/nowhere")


class TestDoctor:
    def test_every_check_is_told_with_the_journal_of_this_workspace(self, qo: Qo) -> None:
        answer = qo("doctor", "--json").json
        journal = answer["checks"][-1]
        assert (journal["name"], journal["ok"]) == ("journal", True)
        assert journal["detail"] == f"0 contents of {qo.folder}, all as they were written"
        qo("doctor").prints("✓ journal: 0 contents of")

    def test_a_damaged_journal_is_found_and_the_others_say_so(self, qo: Qo) -> None:
        qo("status").exits(0)
        (workspace_home(qo.folder) / "journal.db").write_bytes(b"not a database at all" * 100)
        qo("doctor").exits(4).prints("✗ journal: ").prints("the journal cannot be read")
        qo("status").exits(4).says("the journal cannot be read").says("hint: `qo doctor` says more")

    def test_a_content_that_is_not_what_its_digest_says_is_found(self, qo: Qo) -> None:
        qo("status").exits(0)
        with sqlite3.connect(workspace_home(qo.folder) / "journal.db") as database:
            database.execute("INSERT INTO contents VALUES (?, 0, ?)", ("ab" * 32, b"something else"))
        database.close()
        qo("doctor").exits(4).prints("✗ journal: the content abababababab… is damaged")


class TestAReaderThatGoesAway:
    def test_a_reader_that_has_gone_is_not_worth_a_word(self, qo: Qo) -> None:
        command = f"{sys.executable} -m quantum_orchestrator.deployments.cli schema | head -c 1"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("{", "")

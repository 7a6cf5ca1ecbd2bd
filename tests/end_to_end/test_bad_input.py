"""Bad input and bad circumstances, by the real command line: what it says, its exit code, and that nothing changed.

Root may read and write everything, so where modes matter `qo` runs without root's privileges; a full disk is a small
one of the test's own where the kernel lets users mount, and a limit on the size of files everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import LOUD, NOTE, QO, SHIP, Qo, Said, eventually, script, seen_by, small_disk, tree
from without_prefect import alone

from quantum_orchestrator.blocks.home import workspace_home
from quantum_orchestrator.blocks.journal import Journal

BIG = {
    "id": "big",
    "op": "file.render",
    "with": {"template": "template.txt", "path": "big.txt", "values": {"line": "x" * 1000}},
    "needs": ["note"],
}
"""Writes 3 MB, and is small itself: the journal holds the set."""


def one(**fields: object) -> bytes:
    """A set of one instruction."""
    return json.dumps({"name": "x", "instructions": [{"id": "a", **fields}]}).encode()


def echo(message: object, **fields: object) -> bytes:
    return one(op="echo", **fields, **{"with": {"message": message}})


BAD_SETS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ":1:1: the document is empty"),
    "only spaces": (b" \n\n", ":1:1: the document is empty; an instruction set is a JSON object; `qo init` writes one"),
    "plain text": (b"not json", ":1:1: expected a value, found 'not'"),
    "cut off": (b'{"name": "x", "instructions": [', ":1:32: expected a value, found the end of the text"),
    "two documents": (b'{"name": "x", "instructions": []}\n{}', ":2:1: expected the end of the text"),
    "single quotes": (b"{'name': 'x'}", ":1:2: expected a key in double quotes or '}', found \"'\"; write \" instead"),
    "a comment": (b"// hello\n{}", ":1:1: comments are not JSON; remove the comment"),
    "a trailing comma": (b'{"name": "x",}', ":1:13: trailing comma before '}'; remove the comma"),
    "a list": (b"[1, 2]", ":1:1: an instruction set is a JSON object; it begins with {"),
    "a text": (b'"x"', ":1:1: an instruction set is a JSON object"),
    "null": (b"null", ":1:1: an instruction set is a JSON object"),
    "an empty object": (b"{}", ":1:1: 'instructions' is missing"),
    "a key twice": (
        b'{"name": "x",\n"name": "y"}',
        ":2:1 /name: key 'name' is there twice; the first one is in line 1",
    ),
    "NaN": (b'{"version": NaN}', ":1:13: NaN is not JSON; JSON numbers are finite"),
    "-Infinity": (b'{"version": -Infinity}', ":1:13: -Infinity is not JSON"),
    "1e999": (b'{"version": 1e999}', "number 1e999 is too large"),
    "5000 digits": (b'{"version": ' + b"9" * 5000 + b"}", "is too large"),
    "10,000 objects deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than 64; flatten the document"),
    "10,000 lists deep": (b"[" * 10_000, "nested deeper than 64"),
    "20 MB": (b'{"name": "' + b"x" * 20_000_000 + b'"}', ":1:1: the document has 20000012 bytes; 16777216 are allowed"),
    "not UTF-8": ('{"name": "é"}'.encode("latin-1"), ":1:11: byte 0xe9 is not UTF-8; save the document as UTF-8"),
    "UTF-16": ('{"name": "x"}'.encode("utf-16"), ":1:1: the document is UTF-16; save it as UTF-8"),
    "half a character": (b'{"name": "\\ud800"}', ":1:11: lone surrogate \\ud800"),
    "a NUL": (b'{"name": "x\0"}', ":1:12: control character U+0000 in a string"),
    "an unknown operation": (one(op="file.wirte"), "/instructions/0/op: unknown operation 'file.wirte'; did you mean"),
    "an unknown field": (one(op="echo", wiht={}), "did you mean 'with'?"),
    "an unknown parameter": (
        one(op="file.write", **{"with": {"path": "a", "contents": ""}}),
        "did you mean 'content'?",
    ),
    "a missing parameter": (one(op="file.write", **{"with": {"content": ""}}), "'path' is missing"),
    "a wrong type": (echo(3), "/instructions/0/with/message: expected text, found number 3"),
    "a step that is not there": (
        echo("${{ steps.b.outputs.x }}"),
        "/instructions/0/with/message: there is no step 'b'",
    ),
    "a need that is not there": (echo("", needs=["b"]), "/instructions/0/needs/0: there is no step 'b'"),
    "an input that is not there": (echo("${{ inputs.b }}"), "input 'b' is not declared; declare it in `inputs`"),
    "an expression cut off": (echo("${{ inputs.b"), "/instructions/0/with/message: "),
    "itself": (echo("", needs=["a"]), "step a → a waits for itself"),
    "a cycle": (
        json.dumps(
            {
                "name": "x",
                "instructions": [
                    {"id": "a", "op": "echo", "with": {"message": "${{ steps.b.status }}"}},
                    {"id": "b", "op": "echo", "with": {"message": ""}, "needs": ["a"]},
                ],
            }
        ).encode(),
        "steps wait for each other: a → b → a",
    ),
    "a way out": (one(op="file.write", **{"with": {"path": "../x", "content": ""}}), "'..' leads out of the workspace"),
}


@pytest.fixture
def kept(qo: Qo) -> Iterator[Qo]:
    """`qo` in a workspace with a file, which must be as it was afterwards, and in which no run may have begun."""
    (qo.work / "note.txt").write_text("mine\n")
    before = tree(qo.work)
    yield qo
    assert tree(qo.work) == before
    with contextlib.closing(Journal(workspace_home(qo.work))) as journal:
        assert journal.runs() == []


def has_undone_everything(qo: Qo, status: str = "rolled_back") -> None:
    """What a run that failed in its middle must leave."""
    assert tree(qo.work) == {}
    assert qo("status", "--json").exits(0).json["status"] == status


class TestSets:
    @pytest.mark.parametrize(("text", "fault"), BAD_SETS.values(), ids=BAD_SETS)
    def test_is_refused_with_its_place(self, kept: Qo, text: bytes, fault: str) -> None:
        (kept.folder / "bad.json").write_bytes(text)
        said = kept("run", "../bad.json").exits(3).prints_exactly("").says("\nerror: ../bad.json:").says(fault)
        said.says("nothing has run\n")
        assert len(said.err) < 2_000, "a message is for reading"

    @pytest.mark.parametrize("name", ["plain text", "a key twice", "10,000 objects deep", "not UTF-8", "a cycle"])
    def test_and_so_on_standard_input_and_as_json(self, kept: Qo, name: str) -> None:
        text, fault = BAD_SETS[name]
        said = kept("run", "-", "--json", stdin=text).exits(3).says("\nerror: <stdin>:").says(fault)
        assert said.json["status"] == "invalid"
        assert set(said.json["errors"][0]) == {"file", "line", "column", "pointer", "message", "hint"}

    def test_v_shows_where_an_error_comes_from(self, kept: Qo) -> None:
        (kept.folder / "bad.json").write_bytes(b"not json")
        said = kept("run", "../bad.json", "-v")
        assert said.code == 3
        said.says("Traceback (most recent call last):").says("error: ../bad.json:1:1: expected a value")

    def test_nothing_on_standard_input_is_answered_as_ever(self, kept: Qo) -> None:
        for nothing in (b"", b" \n"):
            said = kept("run", "-", stdin=nothing).exits(0)
            said.prints_exactly('{"overall_success": false, "status_message": "No input from stdin."}\n')


class TestTheCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            (["run", "none.json"], "none.json: no such file\nhint: check the path"),
            (["run", "."], ".: is a folder\nhint: name the instruction set in it"),
            (["run", "note.txt/set.json"], "note.txt/set.json: cannot be read: Not a directory"),
            (["run", "n\0ne"], "cannot be read"),
            (["run"], "needs either FILE or --plan PLAN\nhint: `qo run --help`"),
            (["run", "SET", "--plan", "p"], "needs either FILE or --plan PLAN"),
            (["run", "SET", "--input", "who"], "--input who: is not NAME=VALUE\nhint: for example --input"),
            (["run", "SET", "--input", "=x"], "--input =x: is not NAME=VALUE"),
            (["run", "SET", "--input", "hwo=moon"], "unknown input 'hwo'; did you mean 'who'?"),
            (["run", "SET", "--input", "count=many"], "count"),
            (["run", "SET", "--inputs-file", "none.json"], "none.json: no such file"),
            (["run", "SET", "--inputs-file", "note.txt"], "note.txt: is not JSON"),
            (["run", "SET", "--workspace", "note.txt"], "note.txt is no folder\nhint: name a folder with --workspace"),
            (["run", "SET", "--workspace", "note.txt/x"], "cannot be"),
            (["run", "SET", "--parallel", "0"], "--parallel"),
            (["run", "SET", "--on-failure", "shrug"], "--on-failure"),
            (["run", "SET", "--frobnicate"], "Unknown option: --frobnicate"),
            (["rnu", "SET"], 'Unknown command "rnu". Did you mean "run"?\nhint: `qo --help` shows what there is'),
            (["run", "--plan", "note.txt"], "note.txt: is no plan"),
            (["run", "--plan", "SET"], "is no plan"),
            (["run", "--plan", "none.plan"], "none.plan: no such file"),
            (["resume", "2026"], "no run '2026' in"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_mistakes(self, kept: Qo, arguments: list[str], error: str) -> None:
        inputs = {"who": {"type": "string", "default": "you"}, "count": {"type": "integer", "default": 1}}
        file = kept.set(NOTE, inputs=inputs)
        kept(*[file if word == "SET" else word for word in arguments]).exits(3).prints_exactly("").says(error)

    def test_a_plan_of_a_workspace_that_has_moved_on(self, kept: Qo) -> None:
        kept("plan", kept.set(LOUD), "-o", "../p.plan").exits(0)
        (kept.work / "note.txt").write_text("other\n")
        said = kept("run", "--plan", "../p.plan").exits(4)
        said.says("error: the workspace has moved on since the plan was made: note.txt\nhint: nothing was changed")
        (kept.work / "note.txt").write_text("mine\n")

    def test_a_plan_that_was_cut_off(self, kept: Qo) -> None:
        kept("plan", kept.set(LOUD), "-o", "../p.plan").exits(0)
        plan = kept.folder / "p.plan"
        plan.write_bytes(plan.read_bytes()[:-100])
        kept("run", "--plan", "../p.plan").exits(3).says("p.plan: is no plan").says("hint: `qo plan FILE -o PLAN`")


@alone
class TestPermissions:
    def test_a_set_that_may_not_be_read(self, kept: Qo) -> None:
        file = Path(kept.set(NOTE))
        file.chmod(0)
        kept("run", str(file), powerless=True).exits(3).says(f"error: {file}: cannot be read: Permission denied")

    def test_a_workspace_that_may_not_be_written(self, kept: Qo) -> None:
        place = kept.folder / "locked"
        place.mkdir(mode=0o555)
        said = kept("run", kept.set(NOTE), "--workspace", str(place), powerless=True).exits(3)
        said.says(f"error: the workspace {place} cannot be written\nhint: check its permissions, or name another")
        assert list(place.iterdir()) == []

    def test_a_workspace_that_cannot_be_made(self, kept: Qo) -> None:
        place = kept.folder / "locked"
        place.mkdir(mode=0o555)
        said = kept("run", kept.set(NOTE), "--workspace", str(place / "new"), powerless=True).exits(3)
        said.says(f"error: the workspace {place / 'new'} cannot be made: Permission denied")

    def test_a_folder_in_the_workspace_that_may_not_be_written(self, qo: Qo) -> None:
        locked = qo.work / "locked"
        locked.mkdir()
        locked.chmod(0o555)
        before = tree(qo.work)
        inside = {"id": "in", "op": "file.write", "with": {"path": "locked/x", "content": ""}, "needs": ["note"]}
        said = qo("run", qo.set(NOTE, inside), powerless=True).exits(1)
        said.says("error: step in: ").says("locked/x").says("Permission denied").prints("rolled back: run ")
        assert tree(qo.work) == before

    def test_a_state_folder_that_may_not_be_written(self, kept: Qo) -> None:
        home = kept.folder / "state"
        home.mkdir(mode=0o555)
        said = kept("run", kept.set(NOTE), environment={"QO_HOME": str(home)}, powerless=True).exits(4)
        said.says(f"error: the state folder {home} cannot be written\nhint: set QO_HOME to a folder that you may write")

    def test_a_state_folder_in_the_workspace(self, kept: Qo) -> None:
        said = kept("run", kept.set(NOTE), environment={"QO_HOME": str(kept.work / "state")}).exits(4)
        said.says(f"lies inside the workspace {kept.work}: a run could delete what undoes it\nhint: set QO_HOME")
        kept("plan", kept.set(NOTE), environment={"QO_HOME": str(kept.work / "state")}).exits(4)


@alone
class TestTheMachine:
    def test_no_git_identity(self, qo: Qo) -> None:
        steps = [
            {"id": "init", "op": "git.init"},
            {**NOTE, "needs": ["init"]},
            {"id": "add", "op": "git.add", "with": {"paths": ["."]}, "needs": ["note"]},
            {"id": "commit", "op": "git.commit", "with": {"message": "m"}, "needs": ["add"]},
        ]
        said = qo("run", qo.set(*steps), environment={"HOME": str(qo.folder)}).exits(1)
        said.says("error: step commit: ").says("hint: ").says("user.name")
        has_undone_everything(qo)

    def test_a_missing_program(self, qo: Qo) -> None:
        missing = {"id": "run", "op": "script.run", "with": {"argv": ["frobnicate"]}, "needs": ["note"]}
        said = qo("run", qo.set(NOTE, missing)).exits(1)
        said.says(
            "error: step run: program 'frobnicate' not found on PATH\nhint: install it, or add its folder to PATH"
        )
        has_undone_everything(qo)

    def test_a_file_that_grows_beyond_the_limit(self, qo: Qo) -> None:
        said = qo(
            "run", qo.set(NOTE, script("head -c 200000000 /dev/zero > big", needs=["note"])), file_bytes=100_000_000
        )
        said.exits(1).says("error: step script: ")
        has_undone_everything(qo)

    def test_a_disk_that_fills_up_while_a_step_writes(self, qo: Qo) -> None:
        with small_disk(qo.work, "100k") as space:
            limits = {"space": space} if space else {"file_bytes": 2_000_000}
            seen = seen_by(space, qo.work) if space else qo.work
            (seen / "template.txt").write_text("{% for n in range(3000) %}{{ line }}{% endfor %}")
            before = tree(seen)
            said = qo("run", qo.set(NOTE, BIG), **limits).exits(1).prints("rolled back: run ")
            said.says("error: step big: ").says("big.txt")
            said.says("No space left on device" if space else "File too large")
            assert tree(seen) == before

    def test_a_disk_that_fills_up_while_a_script_writes(self, qo: Qo) -> None:
        with small_disk(qo.work, "100k") as space:
            limits = {"space": space} if space else {"file_bytes": 2_000_000}
            seen = seen_by(space, qo.work) if space else qo.work
            said = qo("run", qo.set(NOTE, script("head -c 3000000 /dev/zero > big", needs=["note"])), **limits)
            said.exits(1).says("error: step script: ").prints("rolled back: run ")
            assert tree(seen) == {}

    @pytest.mark.parametrize("limited_by", ["disk", "file size"])
    def test_a_state_folder_on_a_disk_that_fills_up(self, qo: Qo, limited_by: str) -> None:
        """Large contents that do not compress are what fills it."""
        state = qo.folder / "state"
        state.mkdir()
        (qo.work / "old.bin").write_bytes(os.urandom(3_000_000))
        before = tree(qo.work)
        over = {"id": "over", "op": "file.write", "with": {"path": "old.bin", "content": "new"}, "needs": ["note"]}
        with small_disk(state, "1m") as space:
            by_disk = space is not None and limited_by == "disk"
            limits: dict[str, Any] = {"space": space} if by_disk else {"file_bytes": 1_000_000}
            said = qo("run", qo.set(NOTE, over), environment={"QO_HOME": str(state)}, **limits)
            assert said.code in (1, 4), said.err
            said.exits(said.code).says("error: ").says("hint: ")
            assert "defect" not in said.err
            assert tree(qo.work) == before


class TestPrefect:
    def test_a_configured_api_where_nothing_listens(self, kept: Qo) -> None:
        environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
        began = time.monotonic()
        said = cold(kept, environment, "run", kept.set(NOTE)).exits(1)
        assert time.monotonic() - began < 20
        said.says("error: the Prefect API that is configured, http://127.0.0.1:9/api, does not answer")
        said.says(
            "\nhint: start it, or see `prefect config view`; without PREFECT_API_URL, qo uses a server of its own"
        )

    @pytest.mark.slow
    def test_a_server_that_is_killed_in_the_middle_of_a_run_ends_no_run(self, qo: Qo, mortal: dict[str, str]) -> None:
        """The journal decides what became of the run; that Prefect cannot show it is said, once."""
        pause = script("touch ../begun; until test -e ../killed; do sleep 0.05; done", step="pause", needs=["note"])
        run = subprocess.Popen(
            [*QO, "run", qo.set(NOTE, pause, {**SHIP, "needs": ["pause"]}), "--json"],
            cwd=qo.work,
            env=mortal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually((qo.folder / "begun").exists)
        os.kill(json.loads((Path(mortal["QO_HOME"]) / "server/server.json").read_text())["pid"], signal.SIGKILL)
        (qo.folder / "killed").touch()
        out, err = run.communicate(timeout=60)
        said = Said(run.returncode, out, err).exits(0)
        assert said.json["status"] == "committed"
        assert err.count("the Prefect server no longer answers, and will not show all of this run") == 1
        assert qo.files == {"note.txt": "hello\n", "shipped.txt": "yes\n"}
        again = cold(qo, mortal, "status", "--json").exits(0).json
        assert (again["status"], again["run_id"]) == ("committed", said.json["run_id"])


@pytest.fixture
def mortal(qo: Qo, put_database: Callable[[Path], None]) -> Iterator[dict[str, str]]:
    """The environment of a user with a server that may be killed; the client does not ask twice, to save time."""
    put_database(qo.folder / "mortal")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**kept, "QO_HOME": str(qo.folder / "mortal"), "PREFECT_CLIENT_MAX_RETRIES": "0"}
    cold(qo, environment, "up").exits(0)
    yield environment
    cold(qo, environment, "down").exits(0)


def cold(qo: Qo, environment: dict[str, str], *arguments: str) -> Said:
    """A `qo` in a new interpreter."""
    done = subprocess.run([*QO, *arguments], cwd=qo.work, env=environment, capture_output=True, text=True, timeout=100)
    return Said(done.returncode, done.stdout, done.stderr)

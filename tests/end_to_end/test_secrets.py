"""A secret that a script prints in every way it can is nowhere: not on the terminal, in the journal or in Prefect.

Everything that the state folder has is searched: files as they lie there, and databases once more as text, as their
pages may cut a value in two. The same script prints a word that is no secret, in the same ways: that one must be found
in each of those places, or the search would prove nothing.

What a script writes into *files* is not searched for: the journal keeps their content as it is, to put it back.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from commands import GONE, Qo, script
from messages_server import MessagesServer, Say

from quantum_orchestrator.blocks.home import home as state_home
from quantum_orchestrator.tasks import registry

pytestmark = pytest.mark.slow

SECRET = "s3cr3t/of+Ädä&the \"dump\" 'n0body'"
WORD = SECRET.replace("s3cr3t", "common")
SAY = r"""
import base64, json, sys, time, urllib.parse
value = sys.argv[1]
raw = value.encode()
for user in (b"ada:", b"grace"):
    print(value, "Authorization: Basic", base64.b64encode(user + raw).decode())
print(base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode())
print(urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value))
print(json.dumps(value), json.dumps(value, ensure_ascii=False))
for part in (value[:9], value[9:], "\n"):
    print(part, end="", flush=True)
    time.sleep(0.05)
print(value, file=sys.stderr)
if len(sys.argv) > 2:
    raise SystemExit(f"failed with {value}")
"""


@pytest.fixture
def token(prefect_server: str) -> str:
    """The name of the variable of a secret that the server has."""
    from prefect.blocks.system import Secret

    Secret(value=SECRET).save("dump-token", overwrite=True, _sync=True)  # type: ignore[call-arg]
    return "DUMP_TOKEN"


def forms(value: str) -> list[bytes]:
    """What the value looks like where it was not masked; base64 but for what depends on what is around it."""
    raw = value.encode()
    shifted = [base64.b64encode(bytes(before) + raw)[4:-4] for before in range(3)]
    return [raw, *shifted, quote(value, safe="").encode()]


def found_in(home: Path, value: str, *, contents: bool = True) -> set[str]:
    """Names of the files below the state folder that have it; without `contents`, other than as that of a file."""
    return {
        file.relative_to(home).as_posix()
        for file in home.rglob("*")
        if file.is_file() and any(form in text for text in texts(file, contents=contents) for form in forms(value))
    }


def texts(file: Path, *, contents: bool) -> Iterator[bytes]:
    if contents or not (file.name.startswith("journal.db") or file.parent.name == "contents"):
        yield file.read_bytes()
    if file.suffix == ".db":
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            database.text_factory = bytes
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for (table,) in (each for each in tables if contents or each != (b"contents",)):
                for row in database.execute(f'SELECT * FROM "{table.decode()}"'):
                    yield b"\x00".join(each for each in row if isinstance(each, bytes))


def said(qo: Qo, token: str) -> str:
    """Everything that people and programs see of a run in which each kind of step meets the secret."""
    (qo.work / "say.py").write_text(SAY)
    loud = f'python3 say.py "$VALUE"; python3 say.py "${token}"'
    failing = f'python3 say.py "$VALUE" fail; python3 say.py "${token}" fail'
    given = {"secrets": [token], "reads": [], "writes": []}
    output = "${{ steps.loud.outputs.stdout }}"
    steps = [
        {"id": "repository", "op": "git.init"},
        script(loud, step="loud", **given) | {"with": {"shell": loud, "env": {"VALUE": WORD}}},
        {"id": "told", "op": "echo", "with": {"message": output}},
        {"id": "kept", "op": "file.write", "with": {"path": "kept.txt", "content": output}},
        {"id": "commit", "op": "git.commit", "with": {"message": output, "all": True}, "needs": ["kept", "repository"]},
        script(failing, step="failing", **given) | {"with": {"shell": failing, "env": {"VALUE": WORD}}},
        GONE | {"needs": ["failing", "commit"]},
    ]
    for step in steps[-2:]:
        step["on_error"] = "continue"
    file = qo.set(*steps, secrets=[token])
    shown = [qo("-v", "run", file, "--follow", "--diff").exits(0)]
    shown += [qo(*command.split()) for command in ("show", "show --json", "logs", "diff", "diff --by-step --json")]
    shown += [qo("run", file, "--json-stream", "--on-failure", "pause")]
    return "".join(each.out + each.err for each in shown)


def test_it_is_nowhere(qo: Qo, token: str) -> None:
    home = Path(os.environ["QO_HOME"])
    seen = said(qo, token).encode()
    assert [form for form in forms(SECRET) if form in seen] == []
    assert [form for form in forms(WORD) if form not in seen] == []
    assert "***" in (qo.work / "kept.txt").read_text()
    kinds = {name.split("/")[0] for name in found_in(home, WORD)}
    assert kinds >= {"server", "workspaces", "prefect-client"}
    assert found_in(home, SECRET) == set()


# Every operation.

LEAK = r"""
import base64, json, os, pathlib, sys, urllib.parse
values = [os.environ["VALUE"], os.environ[sys.argv[1]]]
forms = [(each, base64.b64encode(each.encode()).decode(), urllib.parse.quote(each, safe="")) for each in values]
text = "\n".join(" ".join(each) for each in forms) + "\n"
write = lambda name, content: pathlib.Path(name).write_text(content)
write("leak.txt", text)
write("leak.py", f"import os\nfrom x import *\nvalues = {values!r}\nprint({values[0]!r}, {values[1]!r} % undefined)\n")
write("leak.json", json.dumps({"one": values[0], "other": values[1], "bad": 1})[:-1])
write("leak.j2", "".join("{{ missing" + each.replace("{", "") + "}}\n" for each in values))
"""
REVEAL = ["python3", "-c", "import pathlib; raise SystemExit(pathlib.Path('leak.txt').read_text())"]
BAD_PATCH = "--- a/leak.txt\n+++ b/leak.txt\n@@ -1,1 +1,1 @@\n-something else\n+new\n"
READ = "${{ steps.file-read.outputs.content }}"
GREETING = {"version": 1, "name": "inner", "inputs": {"text": {"type": "string"}}}


def inner(op: str, **parameters: object) -> dict[str, object]:
    return {**GREETING, "instructions": [{"id": "inner", "op": op, "with": parameters}]}


def operations(url: str, remote: str) -> dict[str, Mapping[str, object]]:
    """For every operation, a `with` by which it comes upon the values, in as bad a way as it can."""
    return {
        "file.read": {"path": "leak.txt"},
        "approval": {"message": READ},
        "assert": {"that": False, "message": READ},
        "call": {"set": inner("echo", message="${{ inputs.text }}"), "inputs": {"text": READ}},
        "checkpoint": {"name": "half"},
        "echo": {"message": READ},
        "file.append": {"path": "appended.txt", "content": READ},
        "file.chmod": {"path": "leak.txt", "mode": "0600"},
        "file.copy": {"source": "leak.txt", "destination": "copied.txt"},
        "file.delete": {"path": "leak.txt/below"},
        "file.edit": {"path": "leak.txt", "edits": [{"find": READ, "replace": "x"}]},
        "file.list": {"path": "."},
        "file.mkdir": {"path": "leak.txt/below"},
        "file.move": {"source": "copied.txt", "destination": "moved.txt"},
        "file.patch": {"patch": BAD_PATCH},
        "file.render": {"template": "leak.j2", "path": "rendered.txt", "values": {}},
        "file.set": {"path": "leak.json", "pointer": "/one", "value": 1},
        "file.write": {"path": "written.txt", "content": READ},
        "git.add": {"paths": ["leak.txt"]},
        "git.branch": {"name": "topic"},
        "git.checkout": {"ref": "nowhere"},
        "git.clone": {"url": remote, "path": "cloned"},
        "git.commit": {"message": READ, "all": True, "author": {"name": "Ada", "email": "ada@example.org"}},
        "git.diff": {"ref": "HEAD~1"},
        "git.fetch": {"remote": remote},
        "git.init": {},
        "git.log": {},
        "git.merge": {"ref": "nowhere"},
        "git.push": {"remote": remote, "refspec": "main"},
        "git.revert": {"commit": "HEAD~5"},
        "git.status": {},
        "git.tag": {"name": "v1", "message": READ},
        "http.request": {"url": url, "method": "POST", "body": READ, "expect_status": 500},
        "llm.analyze": {"changed": ["leak.py"], "question": READ},
        "llm.diagnose": {"failure": READ},
        "llm.document": {"paths": ["leak.py"], "attempts": 1},
        "llm.edit": {"instruction": READ, "paths": ["leak.py"], "attempts": 1},
        "llm.fix": {"argv": REVEAL, "paths": ["leak.py"], "attempts": 1},
        "llm.generate": {"prompt": READ, "files": ["leak.txt"]},
        "llm.optimize": {"benchmark": REVEAL, "test": REVEAL, "paths": ["leak.py"]},
        "llm.plan": {"goal": READ},
        "quality.format": {"paths": ["leak.py"]},
        "quality.gate": {"paths": ["leak.py"], "min": 100},
        "quality.refactor": {"paths": ["leak.py"], "test": REVEAL},
        "quality.lint": {"paths": ["leak.py"]},
        "quality.score": {"paths": ["leak.py"]},
        "quality.test": {"argv": REVEAL},
        "script.run": {"argv": REVEAL},
        "wait": {"seconds": 0},
    }


TELLING = {"file.read", "git.diff", "git.log", "http.request", "llm.generate", "quality.test", "script.run"}
"""Those of them whose record would have the value, were it not masked; the test is not to prove nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of one that answers with the values."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = f"{WORD}\n{SECRET}\n".encode()
            self.send_response(500, "Because")
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/"
        listening.shutdown()
        thread.join()


@pytest.fixture
def model() -> Iterator[MessagesServer]:
    """One that says the values, whatever it is asked."""
    with contextlib.closing(MessagesServer()) as listening:
        yield listening.says(Say(text=f"{WORD}\n{SECRET}\n"))


@pytest.fixture
def policy() -> Iterator[None]:
    place = state_home() / "policy.toml"
    place.write_text('[http]\nhosts = ["127.0.0.1"]\n[git]\nprotocols = ["file"]\n')
    yield
    place.unlink()


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def a_step(op: str, parameters: Mapping[str, object], token: str) -> dict[str, Any]:
    step = {"id": op.replace(".", "-"), "op": op, "with": parameters, "on_error": "continue"}
    return step if op in ("call", "checkpoint", "approval") else {**step, "secrets": [token]}


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("policy")
def test_it_is_nowhere_whichever_operation_comes_upon_it(
    qo: Qo, token: str, server: str, model: MessagesServer
) -> None:
    """In the workspace it is: a script has written it there. The contents that the journal keeps are not searched."""
    git(qo.work, "init", "-q")
    (qo.work / "leak.txt").write_text("before\n")
    git(qo.work, "add", ".")
    git(qo.work, "commit", "-qm", f"{WORD} and {SECRET}")
    git(qo.folder, "clone", "-q", "--bare", "work", "remote")
    rows = operations(server, f"file://{qo.folder}/remote")
    missing = set(registry.every()) - set(rows)
    rows = {op: parameters for op, parameters in rows.items() if op in registry.every()}
    assert not missing, f"say in `operations` how these may come upon a secret: {missing}"
    (qo.folder / "leak.py").write_text(LEAK)
    leak = {"id": "leak", "op": "script.run", "secrets": [token], "with": {}}
    leak["with"] = {"argv": ["python3", "../leak.py", token], "env": {"VALUE": WORD}}
    steps = [leak, *(a_step(op, parameters, token) for op, parameters in rows.items() if op != "file.read")]
    steps.insert(1, a_step("file.read", rows["file.read"], token))
    file = qo.set(*steps, secrets=[token], order="sequential")
    ran = qo("-v", "run", file, "--json", "--yes", environment=model.environment)
    document = ran.json
    assert ran.code == 0, json.dumps(document["error"])
    assert {step["op"] for step in document["steps"]} >= set(rows) - {"call"}  # of that, its inner steps
    seen = "".join(each.out + each.err for each in (ran, qo("show"), qo("logs"), qo("status", "--json"))).encode()
    assert [form for form in forms(SECRET) if form in seen] == []
    told = {
        step["op"] for step in document["steps"] if WORD in json.dumps(step, ensure_ascii=False).replace('\\"', '"')
    }
    assert told >= TELLING
    asked = json.dumps(model.asked, ensure_ascii=False).replace('\\"', '"')
    assert WORD in asked
    assert SECRET not in asked
    home = Path(os.environ["QO_HOME"])
    assert {name.split("/")[0] for name in found_in(home, WORD, contents=False)} >= {"server", "workspaces"}
    assert found_in(home, SECRET, contents=False) == set()

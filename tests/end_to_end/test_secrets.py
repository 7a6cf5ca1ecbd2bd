"""A secret that a script prints in every way it can is nowhere: not on the terminal, in the journal or in Prefect.

Everything that the state folder has is searched: files as they lie there, and databases once more as text, as their
pages may cut a value in two. The same script prints a word that is no secret, in the same ways: that one must be found
in each of those places, or the search would prove nothing.

What a script writes into *files* is not searched for: the journal keeps their content as it is, to put it back.
"""

from __future__ import annotations

import base64
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from commands import GONE, Qo, script

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


def found_in(home: Path, value: str) -> set[str]:
    """Names of the files below the state folder that have it."""
    return {
        file.relative_to(home).as_posix()
        for file in home.rglob("*")
        if file.is_file() and any(form in text for text in texts(file) for form in forms(value))
    }


def texts(file: Path) -> Iterator[bytes]:
    yield file.read_bytes()
    if file.suffix == ".db":
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            database.text_factory = bytes
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
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

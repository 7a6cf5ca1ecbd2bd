"""P12: the second run of a set of which nothing has changed, beside doit's.

Both write the same files once; then both are run again, and find nothing to do. The times are those of whole
processes, start-up included, the best of some runs; ours is a run like any other, with a row in the journal and a flow
run in Prefect. `--doit` names the program: the peer is installed in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.peers import environments
from tests.benchmarks.rows import Row

DODO = """
from pathlib import Path

def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)

def task_write():
    for number in range({files}):
        path, content = f"out/{{number // 100}}/{{number}}.txt", f"line {{number}}\\n" * 100
        yield {{"name": str(number), "actions": [(write, [path, content])], "targets": [path], "uptodate": [True]}}
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own."""
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--doit", help='the peer\'s program; "": ours stands alone; default: one of its own')


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Measure."""
    program = str(environments.programs("doit") / "doit") if options.doit is None else options.doit
    with tempfile.TemporaryDirectory(prefix="qo-reuse-") as folder:
        ours = _ours(Path(folder), options.files, options.repeat)
        beside = _doit(Path(folder), options.files, program, options.repeat) if program else ours
    note = "" if program else "without a peer: name one with --doit"
    yield Row("P12", f"{options.files} writes, nothing changed, run again", ours, beside, 1.0, note)


def _ours(folder: Path, files: int, repeat: int) -> float:
    steps = [
        {"id": f"s{n}", "op": "file.write", "with": {"path": f"out/{n // 100}/{n}.txt", "content": f"line {n}\n" * 100}}
        for n in range(files)
    ]
    (folder / "set.json").write_text(json.dumps({"name": "reuse", "cache": True, "instructions": steps}))
    qo = Path(sys.executable).with_name("qo")
    command = [str(qo), "run", str(folder / "set.json"), "--workspace", str(folder / "ours"), "--json"]
    _timed(command, folder)
    best, said = _best(command, folder, repeat)
    statuses = {step["status"] for step in json.loads(said)["steps"]}
    if statuses != {"reused"}:
        raise SystemExit(f"not everything was reused: {statuses}")
    return best


def _doit(folder: Path, files: int, program: str, repeat: int) -> float:
    (folder / "doit").mkdir()
    (folder / "doit/dodo.py").write_text(DODO.format(files=files))
    _timed([program], folder / "doit")
    return _best([program], folder / "doit", repeat)[0]


def _best(command: Sequence[str], folder: Path, repeat: int) -> tuple[float, str]:
    return min((_timed(command, folder) for _ in range(repeat)), key=lambda each: each[0])


def _timed(command: Sequence[str], folder: Path) -> tuple[float, str]:
    started = time.monotonic()
    ran = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return time.monotonic() - started, ran.stdout

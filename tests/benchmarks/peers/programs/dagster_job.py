"""The work as a Dagster job, an op each, in this process (a process for each op takes a second each)."""

import json
import subprocess
from pathlib import Path

from dagster import DagsterInstance, In, Nothing, Out, job, op

WORK = json.loads(Path("work.json").read_text())


def make(number: int, path: str, text: str):
    @op(name=f"op_{number}", ins={"before": In(Nothing)} if WORK["kind"] == "chain" else {}, out=Out(Nothing))
    def one() -> None:
        if WORK["kind"] == "scripts":
            subprocess.run([WORK["script"]], check=True)
        else:
            with open(path, "a" if WORK["kind"] == "chain" else "w") as stream:
                stream.write(text)

    return one


@op(name="begin", out=Out(Nothing))
def begin() -> None:
    """What the first of a chain waits for."""


@job
def peer() -> None:
    last = begin() if WORK["kind"] == "chain" else None
    for number, (path, text) in enumerate(WORK["items"]):
        one = make(number, path, text)
        last = one(before=last) if WORK["kind"] == "chain" else one()


raise SystemExit(not peer.execute_in_process(instance=DagsterInstance.get()).success)

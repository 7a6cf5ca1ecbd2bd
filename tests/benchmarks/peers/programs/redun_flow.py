"""The work as redun's tasks; what appends gets the result of the one before."""

import json
import subprocess
from pathlib import Path

from redun import task

redun_namespace = "peer"


@task()
def write(path: str, text: str) -> str:
    Path(path).write_text(text)
    return path


@task()
def append(path: str, text: str, number: int, before: int) -> int:
    with open(path, "a") as stream:
        stream.write(text)
    return number


@task()
def script(number: int, program: str) -> int:
    subprocess.run([program], check=True)
    return number


@task()
def main() -> list:
    work = json.loads(Path("work.json").read_text())
    items = work["items"]
    if work["kind"] == "scripts":
        return [script(number, work["script"]) for number in range(len(items))]
    if work["kind"] == "writes":
        return [write(path, text) for path, text in items]
    last = -1
    for number, (path, text) in enumerate(items):
        last = append(path, text, number, last)
    return [last]

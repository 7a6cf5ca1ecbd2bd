"""The work as a Prefect flow, a task each, two at a time where they do not depend."""

import json
import subprocess
from pathlib import Path

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner


@task
def write(path: str, text: str) -> None:
    Path(path).write_text(text)


@task
def append(path: str, text: str) -> None:
    with open(path, "a") as stream:
        stream.write(text)


@task
def script(program: str) -> None:
    subprocess.run([program], check=True)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
def peer(kind: str) -> None:
    work = json.loads(Path("work.json").read_text())
    items = work["items"]
    if kind == "chain":
        for path, text in items:
            append(path, text)
        return
    if kind == "scripts":
        futures = [script.submit(work["script"]) for _ in items]
    else:
        futures = [write.submit(path, text) for path, text in items]
    for future in futures:
        future.result()


peer(json.loads(Path("work.json").read_text())["kind"])

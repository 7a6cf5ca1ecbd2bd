"""The work as doit's tasks."""

import json
import os
from pathlib import Path

os.chdir(os.environ["PEER_FOLDER"])
WORK = json.loads(Path("work.json").read_text())
DOIT_CONFIG = {"verbosity": 0, "reporter": "zero"}


def write(path, text):
    Path(path).write_text(text)


def append(path, text):
    with open(path, "a") as stream:
        stream.write(text)


def task_work():
    for number, (path, text) in enumerate(WORK["items"]):
        one = {"name": str(number)}
        if WORK["kind"] == "scripts":
            yield {**one, "actions": [[WORK["script"]]]}
        elif WORK["kind"] == "chain":
            before = [f"work:{number - 1}"] if number else []
            yield {**one, "actions": [(append, [path, text])], "task_dep": before}
        else:
            yield {**one, "actions": [(write, [path, text])], "targets": [path], "uptodate": [True]}

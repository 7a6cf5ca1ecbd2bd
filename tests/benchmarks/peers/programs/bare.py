"""A bare loop, by what it leaves to the disk: `plain`, `fsync` (and rename, each), `durable` (rename, one syncfs)."""

import ctypes
import json
import os
import subprocess
import sys


def write(path: str, text: str, way: str) -> None:
    target = path if way == "plain" else f"{path}.part"
    with open(target, "w") as stream:
        stream.write(text)
        if way == "fsync":
            stream.flush()
            os.fsync(stream.fileno())
    if target != path:
        os.replace(target, path)


def append(path: str, text: str, way: str) -> None:
    with open(path, "a") as stream:
        stream.write(text)
        if way == "fsync":
            stream.flush()
            os.fsync(stream.fileno())


def main(way: str) -> None:
    with open("work.json") as stream:
        work = json.load(stream)
    for path, text in work["items"]:
        if work["kind"] == "scripts":
            subprocess.run([work["script"]], check=True)
        else:
            (append if work["kind"] == "chain" else write)(path, text, way)
    if way == "durable":
        folder = os.open(".", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).syncfs(folder):
            raise OSError(ctypes.get_errno(), "syncfs")


main(sys.argv[1])

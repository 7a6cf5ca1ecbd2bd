"""The process behind `commands.Warm`: it has imported Prefect once, and forks one `qo` after another.

Each line of its standard input is a job as JSON: one that begins a `qo` is answered with the pid, one that waits for it
with its exit code, or with nothing if it has not ended within the time given.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
import time
from typing import Any

from without_prefect import without_prefect

from quantum_orchestrator.deployments.cli import main
from quantum_orchestrator.deployments.service import load_everything

_libc = ctypes.CDLL(None, use_errno=True)
_CAPABILITIES_3 = 0x20080522


def serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        if "wait" in job:
            print(_exit_code(job["wait"], job["seconds"]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _become(job)


def _exit_code(pid: int, seconds: float) -> int | str:
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.005)


def _become(job: dict[str, Any]) -> None:
    """A `qo` with a session, streams, a folder and an environment of its own."""
    os.setsid()
    for number, name in enumerate(job["streams"]):
        way = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(name, way), number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(job["environment"])
    if job["space"]:
        _enter(job["space"])
    os.chdir(job["folder"])
    if job["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"],) * 2)
    if job["powerless"]:
        _drop_capabilities()
    sys.argv = ["qo", *job["arguments"]]
    try:
        with contextlib.nullcontext() if job["prefect"] else without_prefect():
            main()
    except SystemExit as ending:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ending.code or 0))


def _enter(pid: int) -> None:
    """See the file systems that another process sees."""
    for kind in ("user", "mnt"):
        descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        _check(_libc.setns(descriptor, 0))
        os.close(descriptor)


def _drop_capabilities() -> None:
    """Root as anybody else: the modes of files count."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(header, none))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    load_everything()  # what takes two seconds
    gc.collect()
    gc.freeze()  # what is shared with the forks stays shared
    serve()

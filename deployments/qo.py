"""The entry point of `qo`: by the warm service where that can be, else by itself; and how the process ends.

What this imports at its top is all that a served command costs, beside the interpreter: see `service_client`. Whoever
runs by itself, though a service would have served it, starts one for the next at its end.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from quantum_orchestrator.deployments.service_client import Unserved, by_service


def main() -> NoReturn:
    """Carry out the command line of this process."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:  # programs ask for it often: without the rest, in a third of the time
        leave(_tell_version())
    try:
        outcome = by_service(arguments)
    except KeyboardInterrupt:  # where nothing has begun
        os.write(2, b"error: interrupted\n")
        outcome = 130
    if isinstance(outcome, Unserved):
        from quantum_orchestrator.deployments.cli import by_itself

        outcome = by_itself(arguments, outcome)
    leave(outcome)


def _tell_version() -> int:
    from importlib.metadata import version

    print(version("quantum-orchestrator"))  # noqa: T201 - what it is for
    return 0


def leave(code: int) -> NoReturn:
    """End the process as the interpreter does, but for taking every object apart: after Prefect that takes 0.2 s."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing ends its processes
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # nobody reads it any more, or it was closed
    os._exit(code)


if __name__ == "__main__":
    main()

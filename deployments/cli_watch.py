"""`qo watch`: a folder whose sets run when they are dropped, whose files are told to Prefect, or judged when saved.

How files are taken is `deployments/watch.py`'s matter; here is what is watched, and what people read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from quantum_orchestrator.blocks.errors import InvalidInput, UsageError
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments.cli_options import TALK, Talk, load_source, made_root, workspace_root
from quantum_orchestrator.deployments.screen import Screen, plural

SETTLE_SECONDS = 0.5


def watch(
    folder: Annotated[str, Parameter(help="The folder to watch, not those below it.")],
    /,
    *,
    workspace: Annotated[str | None, Parameter(help="Where the sets run; without it the current folder.")] = None,
    validate: Annotated[
        bool, Parameter(help="Run nothing: judge each set when it is saved, and show its faults.")
    ] = False,
    events_only: Annotated[
        bool, Parameter(name="--events-only", help="Take nothing: only tell Prefect what happens to the files.")
    ] = False,
    settle: Annotated[
        float,
        Parameter(
            validator=validators.Number(gte=0),
            help="For how many seconds a file that nobody was seen to close must be left alone. (0.5)",
        ),
    ] = SETTLE_SECONDS,
    talk: Talk = TALK,
) -> int:
    """Run each instruction set that is dropped into a folder, once.

    Files whose names end in .json are taken when they were renamed there, or are
    complete. They go to done/ when their run was committed, and else to
    quarantine/, with the reason beside them. A watcher that was killed loses
    none and runs none twice: the next one goes on. What is dropped is not
    trusted, unless `trusted` under [doors] in policy.toml names watch:FOLDER.
    The policy, and sets that are called, count as they are when a run begins.
    Where there is a Prefect server, it hears of all other files there: events
    quantum-orchestrator.file.created, .changed and .deleted; with --events-only,
    of those in .json, too.
    """
    place = Path(folder).resolve()
    if not place.is_dir():
        raise UsageError(f"{folder}: is no folder", hint="make it, or name another")
    if validate and events_only:
        raise UsageError("--validate and --events-only exclude each other")
    with contextlib.suppress(KeyboardInterrupt):
        if validate:
            _judge_saved(talk.screen, place)
        elif events_only:
            _tell_prefect(talk.screen, place, settle)
        else:
            _run_dropped(talk.screen, place, made_root(workspace_root(workspace)), settle)
    talk.screen.note("stopped; runs that are at work go on to their end")
    return 0


def _run_dropped(screen: Screen, folder: Path, root: Path, settle: float) -> None:
    from quantum_orchestrator.deployments import watch as watching
    from quantum_orchestrator.deployments.dispatcher import Dispatcher
    from quantum_orchestrator.deployments.file_events import FileEvents
    from quantum_orchestrator.deployments.inbox import Inbox

    if folder.is_relative_to(root):
        raise UsageError(
            f"the folder {folder} is in the workspace {root}: a run that is undone could take what is dropped with it",
            hint="watch a folder beside the workspace",
        )
    wake = threading.Event()
    events = FileEvents(folder, screen.note, settle=settle, besides=watching.SUFFIX)
    with Inbox(home()) as inbox:
        watcher = watching.Watcher(folder, root, inbox, judge_for(f"watch:{folder}"), screen.note, settle=settle)
        dispatcher = Dispatcher(inbox)

        def look() -> float:
            before = watcher.at_work
            seconds = watcher.look()
            if watcher.at_work > before:
                dispatcher.wake()
            return min(seconds, events.look())

        with watcher.alone(), watching.wakened_by(folder, wake, watcher.complete):
            dispatcher.start()
            screen.note(f"watching {folder}: sets that are dropped there run in {root}", "")
            try:
                watching.watch(look, wake, screen.warn)
            finally:
                dispatcher.stop()


def judge_for(source: str) -> Callable[[bytes, Path], None]:
    """Judges what comes from a source, by the policy of the moment."""

    def judge(content: bytes, path: Path) -> None:
        from quantum_orchestrator.deployments.cli_inbox import judged
        from quantum_orchestrator.deployments.cli_runs import older_block
        from quantum_orchestrator.flows.instruction_set import resolve_inputs

        if older_block(content, str(path)) is None:
            resolve_inputs(judged(source, content, file=str(path), folder=path.parent), {})

    return judge


def _tell_prefect(screen: Screen, folder: Path, settle: float) -> None:
    from quantum_orchestrator.deployments import watch as watching
    from quantum_orchestrator.deployments.file_events import FileEvents

    wake = threading.Event()
    events = FileEvents(folder, screen.note, settle=settle)
    with watching.wakened_by(folder, wake, lambda _path: None):
        screen.note(f"watching {folder}: Prefect is told what happens to its files", "")
        watching.watch(events.look, wake, screen.warn)


# Judging what is saved.


def _judge_saved(screen: Screen, folder: Path) -> None:
    from quantum_orchestrator.deployments import watch as watching

    wake = threading.Event()
    seen: dict[Path, tuple[int, int]] = {}

    def look() -> float:
        for path in sorted(folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                state = path.stat()
                now = (state.st_mtime_ns, state.st_size)
                if seen.get(path) != now and path.is_file():
                    seen[path] = now
                    _show_judgement(screen, path)
        return watching.RESCAN_SECONDS

    with watching.wakened_by(folder, wake, lambda _path: None):
        screen.note(f"watching {folder}: each set is judged when it is saved", "")
        watching.watch(look, wake, screen.warn)


def _show_judgement(screen: Screen, path: Path) -> None:
    try:
        document = load_source(str(path)).document
    except InvalidInput as error:
        faults = getattr(error, "faults", [error])
        for fault in faults:
            screen.result(f"✗ {fault}", "red")
        screen.result(f"✗ {path.name}: {plural(len(faults), 'fault')}", "red")
    else:
        screen.result(f"✓ {path.name}: valid: {document.name!r}, {plural(len(document.instructions), 'instruction')}")
    screen.flush()

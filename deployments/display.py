"""A run as people see it: while it happens, and in a few lines afterwards.

`RunView` turns a run's events into lines and knows no terminal; `Progress` shows them, one line a finished step, and
`LiveProgress` keeps what runs now and a bar below them on a terminal. `follow` chooses.

It knows nothing of commands, of the journal or of Prefect.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from quantum_orchestrator.deployments.screen import Screen, aligned, changed_files, human_time, visible
from quantum_orchestrator.flows.results import TO_CHECKPOINT, EventKind, RunEvent, StepStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 0.125
MOST_RUNNING_SHOWN = 8
MOST_OUTPUT_LINES = 20
MOST_OUTPUT_CHARACTERS = 2000
"""What is shown of one output."""
MOST_LINES_AT_ONCE = 200
"""Finished steps printed at one refresh of a live display; of more, only their number."""

_MARKS = {
    StepStatus.SUCCEEDED: ("✓", "green"),
    StepStatus.REUSED: ("✓", "green"),
    StepStatus.FAILED: ("✗", "red"),
    StepStatus.SKIPPED: ("-", "dim"),
    StepStatus.ROLLED_BACK: ("↶", "yellow"),
    StepStatus.AWAITING_APPROVAL: ("?", "yellow"),
    StepStatus.DEFERRED: ("?", "yellow"),
}
Line = tuple[str, str]
"""A text and its style."""


def mark(status: StepStatus | str) -> str:
    """The sign that stands before a step."""
    return _MARKS.get(StepStatus(status), ("·", ""))[0]


@dataclass(slots=True)
class RunView:
    """What is known of a run from its events, and the lines that each is worth. Knows no terminal.

    `total` is the number of steps as far as it is known; `details` says in a few words what a step is about.
    """

    total: int
    details: Mapping[str, str] = field(default_factory=dict)
    verbose: bool = False
    outputs: bool = False
    """Whether to show what steps give."""
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    started: float = field(init=False)
    rolling_back: bool = False
    server_lost: bool = False

    def __post_init__(self) -> None:
        self.started = self.clock()

    def observe(self, event: RunEvent) -> list[Line]:
        """Take an event in; the lines to print for it."""
        match event.kind:
            case EventKind.RUN_STARTED:
                return [(f"run {event.op}  {event.message}".rstrip(), "dim")]
            case EventKind.STEP_STARTED:
                self.running[event.step] = (event.op, self.clock())
                return [(f"· {self._name(event)}", "dim")] if self.verbose else []
            case EventKind.STEP_RETRIED:
                return [(f"↻ {self._name(event)}  {event.message}", "yellow")]
            case EventKind.STEP_FINISHED:
                return self._finished(event)
            case EventKind.LOG:
                spoken = self.verbose or event.op == "echo" or not event.step
                return [(f"  {event.step}: {event.message}", "")] if spoken else []
            case EventKind.ROLLING_BACK:
                self.rolling_back = True
                place = f" {event.message}" if event.message.startswith(TO_CHECKPOINT) else ""
                return [(f"↶ rolling back{place}", "yellow")]
            case EventKind.SERVER_LOST:
                self.server_lost = True
                return [(f"! {event.message}", "yellow")]
            case EventKind.AWAITING_APPROVAL:
                self.running.pop(event.step, None)
                return [(f"? {event.step}  awaits approval: {event.message}", "yellow")]
        return []

    def _finished(self, event: RunEvent) -> list[Line]:
        self.running.pop(event.step, None)
        self.done += 1
        self.total = max(self.total, self.done + len(self.running))
        sign, style = _MARKS.get(event.status or StepStatus.SUCCEEDED, ("·", ""))
        took = "skipped" if event.status is StepStatus.SKIPPED else human_time(event.duration_s)
        if event.status is StepStatus.REUSED:
            took = f"reused: {event.message}"
        lines: list[Line] = [(f"{sign} {self._name(event)}  {took}", style)]
        if event.status is StepStatus.FAILED and event.message:
            lines += [(f"  {line}", style) for line in event.message.splitlines()]
        if self.outputs and event.result is not None:
            lines += [(f"  {line}", "") for line in output_lines(event.result.outputs or {})]
        return lines

    def _name(self, event: RunEvent) -> str:
        detail = self.details.get(event.step, "")
        return f"{event.step}  {event.op} {detail}".rstrip()

    def left(self) -> float | None:
        """Seconds until the end if it goes on like this; None while that would be a guess."""
        if self.done < 3 or self.done >= self.total:
            return None
        return (self.clock() - self.started) / self.done * (self.total - self.done)

    def now(self) -> list[str]:
        """What runs at this moment, the oldest first."""
        shown = list(self.running.items())[:MOST_RUNNING_SHOWN]
        lines = [f"{step}  {op}  {human_time(self.clock() - since)}" for step, (op, since) in shown]
        more = len(self.running) - len(shown)
        return [*lines, f"… and {more} more"] if more else lines

    def counted(self) -> str:
        """How far it is, in words."""
        if self.rolling_back:
            return "rolling back"
        left = self.left()
        rest = f", about {human_time(left)} left" if left is not None else ""
        return f"{self.done} of {self.total}, {human_time(self.clock() - self.started)}{rest}"


class Progress:
    """Follows a run in plain lines. Use it as a context manager, and its `observe` as the run's observer."""

    def __init__(self, screen: Screen, view: RunView) -> None:
        self.screen = screen
        self.view = view

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def observe(self, event: RunEvent) -> None:
        """Take an event in, and show it. Called from several threads."""
        for text, style in self.view.observe(event):
            self.screen.note(text, style)

    def say(self, text: str) -> None:
        """A line beside the events."""
        self.screen.note(text)

    def ask(self, step: str, message: str) -> bool | None:
        """Ask for an approval; None when the answer is left for later."""
        return ask_at_terminal(f"{step}: {message}")


class LiveProgress(Progress):
    """Follows a run on a terminal: finished steps scroll away, what runs and a bar stay below.

    One thread draws, REFRESH_SECONDS apart, so that ten thousand events cost a few dozen drawings.
    """

    def __init__(self, screen: Screen, view: RunView) -> None:
        from rich.live import Live

        super().__init__(screen, view)
        self._console = screen.console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._lines: deque[Line] = deque()
        self._ended = threading.Event()
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._draw_until_the_end, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._live.stop()
        self._print_lines(everything=True)

    def _start(self) -> None:
        self._live.start()
        self._console.show_cursor(True)  # a second Ctrl-C ends the process at once: never leave a hidden cursor

    def observe(self, event: RunEvent) -> None:
        """See Progress."""
        self._lines.extend(self.view.observe(event))

    def say(self, text: str) -> None:
        """See Progress."""
        self._lines.append((text, "dim"))

    def _draw_until_the_end(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            with self._drawing:
                self._print_lines()
                self._live.update(self._picture(), refresh=True)

    def _print_lines(self, *, everything: bool = False) -> None:
        from rich.text import Text

        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        hidden = 0 if everything or self.view.outputs else max(0, len(lines) - MOST_LINES_AT_ONCE)
        text = Text(f"… {hidden} more\n" if hidden else "")
        for line, style in lines[hidden:]:
            text.append(visible(line) + "\n", style)
        if text.plain:
            self._console.print(text, end="", soft_wrap=True)

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        running = [Text(f"· {visible(line)}", "cyan", no_wrap=True, overflow="ellipsis") for line in self.view.now()]
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(self.view.total or 1, self.view.done, width=30), Text(self.view.counted()))
        return Group(*running, bar)

    def ask(self, step: str, message: str) -> bool | None:
        """Pause the display and ask; None when the answer is left for later."""
        with self._drawing:
            self._live.stop()
            self._print_lines(everything=True)
            try:
                return ask_at_terminal(f"{step}: {message}")
            finally:
                self._start()


def ask_at_terminal(question: str) -> bool | None:
    """Yes, no, or None for later, by one key.

    The terminal's own Ctrl-C is off while a key is awaited: a thread that waits for input would not notice it. It is
    sent to this process instead, as the terminal would have.
    """
    descriptor = sys.stdin.fileno()
    terminal = os.dup(descriptor)  # standard input is another file once nobody is there any more
    saved = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)  # before the question: what is typed at it is not shown as well
        lines = visible(question).replace("\n", "\r\n  ")
        sys.stderr.write(f"? {lines}\r\n  approve? [y] yes, [n] no, [l] later: ")
        sys.stderr.flush()
        key = _key(descriptor)
    finally:
        with contextlib.suppress(termios.error):  # it has hung up
            termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
        os.close(terminal)
    sys.stderr.write({"y": "yes", "n": "no"}.get(key, "later") + "\n")
    if key == "\x03":
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.5)  # the run hears of it before it hears that nobody has answered
    return {"y": True, "n": False}.get(key)


def _key(descriptor: int) -> str:
    """The next key that is an answer."""
    while True:
        while not select.select([descriptor], [], [], 0.5)[0]:
            pass  # it may have become another file
        pressed = os.read(descriptor, 1).decode("ascii", "replace").lower()
        if pressed in ("", "y", "n", "l", "\r", "\n", "\x1b", "\x03", "\x04"):
            return pressed


def follow(screen: Screen, total: int, details: Mapping[str, str], *, outputs: bool = False) -> Progress:
    """The display that suits where it goes."""
    view = RunView(total, details, screen.verbose, outputs)
    return LiveProgress(screen, view) if screen.live() else Progress(screen, view)


# What a step gives.


def output_lines(outputs: Mapping[str, Any]) -> list[str]:
    """A step's outputs but for empty ones: those of one line beside their name, the others below it."""
    lines: list[str] = []
    for name, value in outputs.items():
        if value is None or value == "" or value == [] or value == {}:
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        shown = _shortened(text.removesuffix("\n"))
        lines += [f"{name}: {shown[0]}"] if len(shown) == 1 else [f"{name}:", *(f"  {line}" for line in shown)]
    return lines


def _shortened(text: str) -> list[str]:
    """The lines of a text, the first of them if they are many, with a hint at the rest."""
    kept = text[:MOST_OUTPUT_CHARACTERS].split("\n")[:MOST_OUTPUT_LINES]
    left = len(text) - len("\n".join(kept))
    return [*kept, f"… and {left:,} more characters: `qo show --json` has them"] if left else kept


# A run afterwards.


STATUS_STYLES = {"committed": "bold green", "running": "cyan", "planned": "bold"}
TROUBLE = "bold yellow"


def run_lines(document: Mapping[str, Any]) -> list[Line]:
    """A run's end, in a few lines."""
    status = str(document["status"])
    what = f"{status.replace('_', ' ')}: run {document['run_id']} of {document['set']!r}"
    effect = f"{changed_files(document['diff'])} in {human_time(document['duration_s'])}"
    lines: list[Line] = [(f"{what}, {effect}", STATUS_STYLES.get(status, TROUBLE))]
    if document.get("models"):
        lines.append((asked_models(document["models"]), ""))
    if document.get("ui_url"):
        lines.append((str(document["ui_url"]), "dim"))
    return lines


def asked_models(spent: Mapping[str, Any]) -> str:
    """What a run's questions to language models have taken, in a line."""
    budget: Mapping[str, Any] = spent.get("budget") or {}

    def of(name: str, shown: str) -> str:
        return f"{shown} of {budget[name]}" if budget.get(name) is not None else shown

    money = spent["money"]
    tokens = spent["input_tokens"] + spent["output_tokens"]
    parts = [
        f"{of('calls', str(spent['calls']))} calls",
        f"{of('attempts', str(spent['attempts']))} attempts",
        f"{of('tokens', str(tokens))} tokens",
        f"cost {of('money', 'unknown' if money is None else format(money, '.4f'))}",
        f"{of('time', human_time(spent['seconds']))} of waiting",
    ]
    return f"language models: {', '.join(parts)}"


def step_lines(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """A run's steps as a table, the errors below."""
    rows: list[list[str]] = []
    below: dict[int, list[str]] = {}
    for step in steps:
        tries = f"{step['attempts']} tries" if step["attempts"] > 1 else ""
        took = human_time(step["duration_s"]) if step["attempts"] else ""
        how = step["status"].replace("_", " ")
        if step["status"] == StepStatus.REUSED and step.get("reason"):
            how = f"{how}: {step['reason']}"
        rows.append([f"{mark(step['status'])} {step['id']}", step["op"], how, took, tries])
        if step["status"] == StepStatus.AWAITING_APPROVAL and step.get("outputs"):
            below[len(rows) - 1] = [f"    {step['outputs'].get('message', '')}"]
        if step.get("error"):
            below[len(rows) - 1] = error_lines(step["error"], "    ")
    lines: list[str] = []
    for number, line in enumerate(aligned(rows, "  ") if rows else []):
        lines += [line, *below.get(number, [])]
    return lines


def error_lines(error: Mapping[str, str], indent: str = "") -> list[str]:
    """An error of the public JSON."""
    first, *rest = f"error: {error['message']}".splitlines()
    lines = [f"{indent}{first}", *(f"{indent}  {line}" for line in rest)]
    return [*lines, f"{indent}hint: {error['hint']}"] if error.get("hint") else lines

"""Where commands write: results on standard output, everything else on standard error.

`Screen` is the one place that writes to either stream: it knows whether colours are wanted and how much is to be said.
Its invariant: text from outside (messages, file names, outputs) reaches a terminal only with its control characters
made visible. It knows nothing of commands and runs, and imports next to nothing, so that the first line comes at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from quantum_orchestrator.blocks.errors import QuantumError

_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_VISIBLE: dict[int, int | str] = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}
_VISIBLE |= {ord(mark): f"\\u{ord(mark):04x}" for mark in _TURNING}


def visible(text: str) -> str:
    """The text with characters that steer a terminal, or turn the direction of writing, made visible."""
    return text.translate(_VISIBLE)


def human_time(seconds: float) -> str:
    """A duration as people say it: `12 ms`, `1.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows of cells as lines with their columns under each other."""
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(max(map(len, rows)))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    return [f"{indent}{line}".rstrip() for line in padded]


def plural(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def changed_files(counts: Mapping[str, int]) -> str:
    """The counts of a diff in words."""
    return f"{plural(counts['files'], 'file')} changed (+{counts['insertions']} −{counts['deletions']})"


class Screen:
    """The two streams of a command."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, color: bool = True) -> None:
        """Without `color` nothing is ever coloured; with it, only what goes to a terminal."""
        self.quiet = quiet
        self.verbose = verbose
        self._color = color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # names of files need not be text
                stream.reconfigure(errors="backslashreplace")

    # Results.

    def result(self, text: str, style: str = "") -> None:
        """One line, or several, of what the command is for."""
        self._line(sys.stdout, text, style)

    def document(self, value: object) -> None:
        """The result as JSON."""
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def comment(self, lines: Iterable[str]) -> None:
        """Lines that stand beside a patch: `git apply` passes over what begins with `# `."""
        for each in lines:
            for line in each.splitlines() or [""]:
                self.result(f"# {line}".rstrip(), "dim")

    def patch(self, patch: str) -> None:
        """A git patch: as it is, or in colours on a terminal."""
        if self.colors(sys.stdout):
            from quantum_orchestrator.blocks import diff

            self._console(sys.stdout).print(diff.styled(patch), end="", soft_wrap=True)
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(patch.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()

    def flush(self) -> None:
        """Let whoever reads see what is there."""
        sys.stdout.flush()

    # Everything else.

    def note(self, text: str, style: str = "dim") -> None:
        """Something that helps to follow what happens; not with -q."""
        if not self.quiet:
            self._line(sys.stderr, text, style)

    def warn(self, text: str) -> None:
        """Something to know, also with -q."""
        self._line(sys.stderr, text, "yellow")

    def error(self, error: QuantumError) -> None:
        """What went wrong, and what to do."""
        self.problem(error.message, error.hint)

    def problem(self, message: str, hint: str = "") -> None:
        """The same, in its parts."""
        self._line(sys.stderr, f"error: {message}", "bold red")
        if hint:
            self._line(sys.stderr, f"hint: {hint}")

    def colors(self, stream: TextIO) -> bool:
        """Whether to colour what goes there."""
        return self._color and stream.isatty()

    def live(self) -> bool:
        """Whether a live display makes sense."""
        return not self.quiet and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def console(self) -> Console:
        """A rich console on standard error."""
        return self._console(sys.stderr)

    def _console(self, stream: TextIO) -> Console:
        from rich.console import Console

        return Console(file=stream, highlight=False, markup=False, emoji=False, no_color=not self._color)

    def _line(self, stream: TextIO, text: str, style: str = "") -> None:
        try:
            self._write(stream, text, style)
        except OSError:
            if stream is not sys.stderr:
                raise
            # Nobody can be told any more, and a run must not end because of that.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def _write(self, stream: TextIO, text: str, style: str) -> None:
        if stream.isatty():
            text = visible(text)
        if style and self.colors(stream):
            from rich.text import Text

            self._console(stream).print(Text(text, style), soft_wrap=True)
        else:
            stream.write(text + "\n")

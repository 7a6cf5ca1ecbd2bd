"""What a failing command says of its failure: cause, file and line, and the tests that failed.

Python's tracebacks are read, pytest's reports, and lines of the form `path:line: message` that compilers and linters
print. Only places in the workspace count: the innermost of them is where to look first. Pure: this module knows
neither files nor processes, and takes nothing that it reads for more than a hint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST_LINE = 2000
MOST_FAILURES = 20
MOST_TESTS = 50

_FRAME = re.compile(r'^(?:E\s+)?\s*File "(?P<path>[^"]+)", line (?P<line>\d+)')
_KIND = r"(?:\w+\.)*\w*(?:Error|Exception|Warning|Interrupt|Exit|StopIteration|Failed)"
_PYTEST = re.compile(rf"^(?P<path>[^\s:]+):(?P<line>\d+):(?: (?:(?P<kind>{_KIND})|in \S.*)?)?$")
_CAUSE = re.compile(rf"^(?P<mark>E\s+)?(?P<kind>{_KIND})(?:: (?P<message>.*))?$")
_ASSERTION = re.compile(r"^E\s+(?P<message>assert\b.*)$")
_GENERIC = re.compile(r"^(?P<path>[^\s:]+):(?P<line>\d+):(?:\d+:)?\s+(?P<message>\S.*)$")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>[^\s(]\S*)")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file of the workspace, counted from 1."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that went wrong: its kind (`NameError`), what was said of it, and where, outermost place first."""

    kind: str
    message: str
    places: tuple[Place, ...] = ()

    @property
    def place(self) -> Place | None:
        """The innermost place."""
        return self.places[-1] if self.places else None

    def __str__(self) -> str:
        said = f"{self.kind}: {self.message}" if self.kind and self.message else self.kind or self.message
        return f"{self.place}: {said}" if self.place else said


def failures_in(output: str, path_of: Callable[[str], str | None]) -> list[Failure]:
    """The failures that an output tells of, in its order, each once.

    `path_of` gives for a name in the output the path in the workspace that it means, None if it means none.
    """
    found = list(dict.fromkeys(_Reader(path_of).read(output)))
    return found[:MOST_FAILURES]


def failed_tests(output: str) -> list[str]:
    """The tests that pytest's summary names."""
    lines = (_FAILED.match(line) for line in output.splitlines())
    return list(dict.fromkeys(match["test"] for match in lines if match))[:MOST_TESTS]


class _Reader:
    def __init__(self, path_of: Callable[[str], str | None]) -> None:
        self._path_of = path_of
        self._places: list[Place] = []
        self._said: tuple[str, str] | None = None  # on a line that pytest marks, before its place
        self._in_report = False  # the last place was marked by pytest: its cause ends the failure

    def read(self, output: str) -> Iterator[Failure]:
        generic: list[Failure] = []
        any_found = False
        for line in output.splitlines():
            if len(line) > LONGEST_LINE:
                continue
            failure = self._line(line)
            if failure is not None:
                any_found = True
                yield failure
            elif not any_found:
                generic += self._plain(line)
        if not any_found and self._said is not None:
            any_found = True
            yield self._ended(*self._said)
        if not any_found:
            yield from generic

    def _line(self, line: str) -> Failure | None:
        frame = _FRAME.match(line)
        if frame is not None:
            self._add(frame)
            self._in_report = line.startswith("E")
            return None
        cause = _CAUSE.match(line)
        if cause is not None:
            return self._cause(cause)
        assertion = _ASSERTION.match(line)
        if assertion is not None:
            self._said = self._said or ("AssertionError", assertion["message"])
            return None
        place = _PYTEST.match(line)
        return self._pytest_place(place) if place is not None else None

    def _cause(self, cause: re.Match[str]) -> Failure | None:
        kind, message = cause["kind"].rpartition(".")[2], cause["message"] or ""
        if cause["mark"] and not self._in_report:
            self._said = self._said or (kind, message)
            return None
        return self._ended(kind, message) if self._places else None

    def _pytest_place(self, match: re.Match[str]) -> Failure | None:
        self._add(match)
        if match["kind"] is None:
            return None
        return self._ended(match["kind"].rpartition(".")[2], self._said[1] if self._said else "")

    def _ended(self, kind: str, message: str) -> Failure:
        failure = Failure(kind, message, tuple(self._places))
        self._places, self._said, self._in_report = [], None, False
        return failure

    def _add(self, match: re.Match[str]) -> None:
        path = self._path_of(match["path"])
        if path is not None:
            self._places.append(Place(path, int(match["line"])))

    def _plain(self, line: str) -> Iterator[Failure]:
        match = _GENERIC.match(line)
        path = self._path_of(match["path"]) if match else None
        if match is not None and path is not None:
            yield Failure("", match["message"], (Place(path, int(match["line"])),))

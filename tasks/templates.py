"""Renders a Jinja2 template in a sandbox: undefined names are errors, and errors say the line.

Templates see their values and nothing else: no files, no includes, no Python internals. What they produce is bounded;
a template that multiplies texts, lists or numbers beyond that is stopped before the memory is taken.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantum_orchestrator.blocks.errors import OperationError

LARGEST = 16 * 2**20
"""Characters of a rendered text."""
MOST_BITS = 4_096
"""Of a number that is made with `**`."""

_NAME = "<template>"  # what Jinja2 calls a template that has no file


class TooLarge(Exception):
    """The template makes more than is sensible."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply, within bounds."""
        numbers = [each for each in (left, right) if isinstance(each, int)]
        sizes = [len(each) for each in (left, right) if isinstance(each, str | list | tuple)]
        if operator == "**" and len(numbers) == 2 and left.bit_length() * right > MOST_BITS:
            raise TooLarge(f"the power has more than {MOST_BITS} bits")
        if operator == "*" and numbers and sizes and sizes[0] * numbers[0] > LARGEST:
            raise TooLarge(f"the product is longer than {LARGEST}")
        return super().call_binop(context, operator, left, right)


def render(path: str, source: str, values: Mapping[str, Any], *, check: Callable[[], None] = lambda: None) -> str:
    """The rendered text. `check` is called again and again meanwhile, and may raise to stop it.

    Raises OperationError with the template's path and line. Lines end as the template's do.
    """
    newline = "\r\n" if "\r\n" in source else "\n"
    environment = _Sandbox(undefined=StrictUndefined, keep_trailing_newline=True, newline_sequence=newline)
    try:
        return _joined(environment.from_string(source), values, check)
    except TemplateSyntaxError as error:
        raise OperationError(f"{path}:{error.lineno}: {error.message}", hint="correct the template") from error
    except Exception as error:  # whatever an expression in the template can raise
        raise OperationError(f"{path}:{_line(error)}: {_message(error)}", hint=_hint(error)) from error


def _joined(template: Template, values: Mapping[str, Any], check: Callable[[], None]) -> str:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(dict(values)):
        check()
        size += len(piece)
        if size > LARGEST:
            raise TooLarge(f"the result is longer than {LARGEST} characters")
        pieces.append(piece)
    return "".join(pieces)


def _line(error: Exception) -> int:
    """The template's line that raised: Jinja2 puts it into the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _NAME]
    return lines[-1] or 1 if lines else 1


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def _hint(error: Exception) -> str:
    if type(error).__name__ == "UndefinedError":
        return "give it in `values`, or write a default: {{ name | default('x') }}"
    return "correct the template"

"""A program of its own that measures cognitive complexity with complexipy: paths in, as JSON; measures out, as JSON.

It is started by `tasks/scratch.py` and never imported by the engine: complexipy's machine code ends the whole process
when the thread that has loaded it ends (8.3.0, whose allocator is mimalloc), and the engine works in threads.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path


def measure(path: str) -> object:
    """A file's functions with what is above 0, or as a text why it cannot be measured."""
    from complexipy import code_complexity

    try:
        text = importlib.util.decode_source(Path(path).read_bytes())
        functions = code_complexity(text, no_ignore=True, with_plans=False).functions
    except (ValueError, SyntaxError) as error:
        return str(error)
    return [
        {"name": each.name.replace("::", "."), "line": each.line_start, "complexity": each.complexity}
        for each in functions
        if each.complexity
    ]


if __name__ == "__main__":
    json.dump({path: measure(path) for path in json.load(sys.stdin)}, sys.stdout)

"""Whether a file's content can be read by what reads such files: Python, JSON, TOML, YAML, told by the name's end.

It says nothing of files of other kinds, and nothing of what the content means. Pure.
"""

from __future__ import annotations

import ast
import json
import tomllib
import warnings
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath


def syntax_fault(path: str, content: bytes) -> str:
    """What is wrong with it, and in which line; empty if it can be read, or nothing is known of such files."""
    judge = _JUDGES.get(PurePosixPath(path).suffix.lower())
    return "" if judge is None else judge(content)


def _python(content: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `\\d` in a plain string is somebody else's matter
            ast.parse(content)
    except SyntaxError as error:
        return f"line {error.lineno or 1}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or "too deeply nested"
    return ""


def _json(content: bytes) -> str:
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return str(error) or "too deeply nested"
    return ""


def _toml(content: bytes) -> str:
    try:
        tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        return str(error) or "too deeply nested"
    return ""


def _yaml(content: bytes) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        for _ in YAML(typ="safe", pure=True).parse(content.decode()):
            pass
    except (YAMLError, ValueError, RecursionError) as error:
        return " ".join(str(error).split()) or "too deeply nested"
    return ""


_JUDGES: Mapping[str, Callable[[bytes], str]] = {
    ".py": _python,
    ".pyi": _python,
    ".json": _json,
    ".toml": _toml,
    ".yaml": _yaml,
    ".yml": _yaml,
}

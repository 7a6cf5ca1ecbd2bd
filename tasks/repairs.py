"""What can be repaired by rule, without a model: names that are nearly right, imports and colons that are forgotten.

Each rule takes what a failing command said (`tasks/failures.py`) and the files, and proposes new contents. A proposal
is a guess that somebody has to try: whoever asks runs the command on a copy, and keeps nothing that does not help. The
same failure always gives the same proposals. Pure.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from quantum_orchestrator.tasks.failures import Failure, Place
from quantum_orchestrator.tasks.parsing import syntax_fault

CUTOFF = 0.6
"""How alike two names must be for one to be a slip of the other, as difflib counts."""
MOST_NEAR = 3
# fmt: off
KNOWN_MODULES = frozenset((
    "bisect", "collections", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq", "itertools",
    "json", "math", "operator", "os", "os.path", "pathlib", "random", "re", "statistics", "string", "textwrap", "time",
))
# fmt: on
"""Modules of the standard library that are looked into for what an attribute is called."""

_UNDEFINED = re.compile(r"name '(\w+)' is not defined")
_NO_ATTRIBUTE = re.compile(r"has no attribute '(\w+)'")
_NO_EXPORT = re.compile(r"cannot import name '(\w+)' from")
_NO_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")
_OBJECT = re.compile(r"(?:module '(?P<module>[\w.]+)'|type object '(?P<type>[\w.]+)'|'(?P<builtin>\w+)' object) has no")
_DID_YOU_MEAN = re.compile(r"Did you mean:? '(?:self\.)?([\w.]+)'\?")


@dataclass(frozen=True, slots=True)
class Proposal:
    """New contents of files, and what they are to repair."""

    why: str
    contents: Mapping[str, bytes]


def proposals(failures: Sequence[Failure], content_of: Callable[[str], bytes | None]) -> Iterator[Proposal]:
    """What the rules propose, the likeliest first; each once."""
    seen: set[tuple[tuple[str, bytes], ...]] = set()
    for failure in failures:
        for place in reversed(failure.places):
            content = content_of(place.path)
            if content is None or not place.path.endswith((".py", ".pyi")):
                continue
            for why, new in _for_place(failure, place, content):
                key = ((place.path, new),)
                if new != content and key not in seen:
                    seen.add(key)
                    yield Proposal(f"{place}: {why}", {place.path: new})


def _for_place(failure: Failure, place: Place, content: bytes) -> Iterator[tuple[str, bytes]]:
    rules: dict[str, Callable[[Failure, Place, bytes], Iterator[tuple[str, bytes]]]] = {
        "NameError": _name,
        "UnboundLocalError": _name,
        "AttributeError": _slip(_NO_ATTRIBUTE),
        "ImportError": _slip(_NO_EXPORT),
        "TypeError": _slip(_NO_KEYWORD),
        "SyntaxError": _colon,
    }
    rule = rules.get(failure.kind)
    if rule is not None:
        yield from rule(failure, place, content)


def _name(failure: Failure, place: Place, content: bytes) -> Iterator[tuple[str, bytes]]:
    match = _UNDEFINED.search(failure.message)
    if match is None:
        return
    name = match[1]
    if name in sys.stdlib_module_names:
        yield f"'{name}' is not imported: import it", _with_import(content, name)
    yield from _renamed(failure, place, content, name)


def _slip(pattern: re.Pattern[str]) -> Callable[[Failure, Place, bytes], Iterator[tuple[str, bytes]]]:
    def rule(failure: Failure, place: Place, content: bytes) -> Iterator[tuple[str, bytes]]:
        match = pattern.search(failure.message)
        if match is not None:
            yield from _renamed(failure, place, content, match[1], _attributes(failure.message))

    return rule


def _renamed(
    failure: Failure, place: Place, content: bytes, name: str, attributes: Set[str] = frozenset()
) -> Iterator[tuple[str, bytes]]:
    """The name on its line, written as Python suggests, or as one of these attributes, or of the file's own names, that
    is nearly the same."""
    suggested = _DID_YOU_MEAN.search(failure.message)
    near = [
        other
        for names in (attributes, _names(content))
        for other in difflib.get_close_matches(name, sorted(names - {name}), n=MOST_NEAR, cutoff=CUTOFF)
    ]
    for other in dict.fromkeys([*([suggested[1]] if suggested else []), *near]):
        yield f"'{name}' is not known here: '{other}' is meant", _on_line(content, place.line, name, other)


def _attributes(message: str) -> Set[str]:
    """What the object has that a message speaks of, where it is one of Python's own."""
    match = _OBJECT.search(message)
    if match is None:
        return frozenset()
    if match["builtin"]:
        return frozenset(dir(getattr(builtins, match["builtin"], None)))
    module, _, name = match["type"].rpartition(".") if match["type"] else (match["module"], "", "")
    if module not in KNOWN_MODULES:
        return frozenset()
    found = importlib.import_module(module)
    return frozenset(dir(getattr(found, name, None) if name else found))


def _on_line(content: bytes, number: int, name: str, other: str) -> bytes:
    lines = content.split(b"\n")
    if 0 < number <= len(lines):
        lines[number - 1] = re.sub(rb"\b%s\b" % re.escape(name.encode()), other.encode(), lines[number - 1])
    return b"\n".join(lines)


def _names(content: bytes) -> set[str]:
    """Every name that a module uses or gives; words where it cannot be parsed."""
    if syntax_fault("x.py", content):
        return set(re.findall(r"\b[A-Za-z_]\w*\b", content.decode(errors="replace")))
    found: set[str] = set()
    for node in ast.walk(ast.parse(content)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.alias(name=name, asname=asname):
                found.add(asname or name.partition(".")[0])
    return found


def _with_import(content: bytes, module: str) -> bytes:
    """The module with an import, after its docstring and its imports from the future."""
    if syntax_fault("x.py", content):
        return content
    line = 0
    for node in ast.parse(content).body:
        is_docstring = line == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not (is_docstring or is_future):
            break
        line = node.end_lineno or node.lineno
    lines = content.split(b"\n")
    blank = [b""] if line else []
    return b"\n".join([*lines[:line], *blank, f"import {module}".encode(), *lines[line:]])


def _colon(failure: Failure, place: Place, content: bytes) -> Iterator[tuple[str, bytes]]:
    if "expected ':'" not in failure.message:
        return
    lines = content.split(b"\n")
    if 0 < place.line <= len(lines):
        code, mark, comment = lines[place.line - 1].partition(b"  #")
        lines[place.line - 1] = code.rstrip() + b":" + mark + comment
        new = b"\n".join(lines)
        if not syntax_fault(place.path, new):
            yield "a colon is missing at the end of the line", new

"""A page of reference in Markdown, made from Python modules: their public names, signatures and docstrings.

Nothing is said here that the code does not say. This module knows code alone.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping


def page_of(sources: Mapping[str, bytes]) -> str:
    """The page of these modules, in the order of their paths; those that cannot be parsed are left out."""
    parts = ["# Reference"]
    for path, source in sorted(sources.items()):
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        parts += [f"## `{path}`", *_text(tree)]
        parts += [part for node in tree.body for part in _parts(node, "", "###")]
    return "\n\n".join(parts) + "\n"


def _parts(node: ast.stmt, prefix: str, heading: str) -> Iterator[str]:
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return
    yield f"{heading} `{prefix}{node.name}`"
    yield f"```python\n{_signature(node)}\n```"
    yield from _text(node)
    if isinstance(node, ast.ClassDef):
        for each in node.body:
            yield from _parts(each, f"{prefix}{node.name}.", f"{heading}#")


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){result}"


def _text(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node, clean=False)
    if text and text.strip():
        fence = "`" * max(3, *(len(run) + 1 for run in text.split() if set(run) == {"`"}), 3)
        yield f"{fence}text\n{inspect.cleandoc(text)}\n{fence}"

"""Questions about a Python syntax tree whose answers do not depend on how the code is laid out.

A source line is one that a formatter would write that breaks no line: a statement, a decorator, an `else`, a `case`.
Blank lines, comments and docstrings are none. This module knows trees alone: no text, no file, no tool.
"""

from __future__ import annotations

import ast
import copy
from typing import TypeAlias

Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
"""What can have a docstring."""


def docstring_of(node: ast.AST) -> ast.Expr | None:
    """The statement that is the docstring of a module, class or function."""
    if not isinstance(node, DOCUMENTED) or not node.body:
        return None
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def source_lines(tree: ast.AST) -> int:
    """How many source lines the code has."""
    return sum(_lines_of(node) - (docstring_of(node) is not None) for node in ast.walk(tree))


def _lines_of(node: ast.AST) -> int:
    """The lines of a node itself, without those of the statements in it."""
    match node:
        case ast.ExceptHandler() | ast.match_case():
            return 1
        case ast.If():
            is_elif = len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)
            return 1 + (bool(node.orelse) and not is_elif)
        case ast.For() | ast.AsyncFor() | ast.While():
            return 1 + bool(node.orelse)
        case ast.Try() | ast.TryStar():
            return 1 + bool(node.orelse) + bool(node.finalbody)
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return 1 + len(node.decorator_list)
    return int(isinstance(node, ast.stmt))


def without_docstrings(tree: ast.Module) -> ast.Module:
    """A copy of the tree that says nothing but what the code does: without docstrings, and without a `pass` or another
    constant that stands where nothing else does."""
    stripped = copy.deepcopy(tree)
    for node in ast.walk(stripped):
        docstring = docstring_of(node)
        if docstring is not None and isinstance(node, DOCUMENTED):
            node.body.remove(docstring)
    return stripped


def is_same_code(one: bytes | str, other: bytes | str) -> bool:
    """Whether two texts are the same program but for docstrings. Raises SyntaxError for one that is none."""
    return _shape(one) == _shape(other)


def _shape(text: bytes | str) -> str:
    return ast.dump(without_docstrings(ast.parse(text)))

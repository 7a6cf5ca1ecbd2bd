"""Docstrings for Python code that has none: where they are missing, what can be said by rule, and putting them in.

What is said by rule is read off the code: parameters with their types and defaults, what is returned, what is raised
and when. Putting docstrings in keeps the layout of everything else (libcst), and is proved: the syntax tree afterwards
is the one before, but for docstrings. This module knows code alone: no files, no models.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.syntax import Documented, docstring_of, is_same_code

if TYPE_CHECKING:
    import libcst

MODULE = "(module)"
"""The name by which a module is asked for its own docstring."""
LONGEST_TEXT = 60
"""Characters of an expression that is quoted in a docstring."""
_SILENT = frozenset(("overload", "override", "setter", "deleter", "getter"))
"""Decorators of functions whose docstring stands elsewhere."""
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Missing:
    """A module, class, method or function without a docstring; `name` is dotted, from the module."""

    name: str
    node: Documented


def missing(tree: ast.Module, *, private: bool = False) -> list[Missing]:
    """What has no docstring and ought to, in the order of the code: what is public, or all of it."""
    found = [Missing(MODULE, tree)] if docstring_of(tree) is None and tree.body else []
    return [*found, *_missing_in(tree, "", private)]


def _missing_in(holder: ast.AST, prefix: str, private: bool) -> Iterator[Missing]:
    seen: set[str] = set()
    for node in getattr(holder, "body", ()):
        if not isinstance(node, _DEFINITIONS):
            continue
        name = f"{prefix}{node.name}"
        if name in seen or _is_hidden(node.name, private) or _is_silent(node):
            continue
        seen.add(name)
        if docstring_of(node) is None:
            yield Missing(name, node)
        if isinstance(node, ast.ClassDef):
            yield from _missing_in(node, f"{name}.", private)


def _is_hidden(name: str, private: bool) -> bool:
    is_magic = name.startswith("__") and name.endswith("__")
    return is_magic or (name.startswith("_") and not private)


def _is_silent(node: ast.ClassDef | _Function) -> bool:
    names = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    return any(ast.unparse(each).rpartition(".")[2] in _SILENT for each in names)


# What can be said by rule.


def skeleton(each: Missing, path: str) -> str:
    """A docstring that says what the code says."""
    if isinstance(each.node, ast.Module):
        return _of_module(each.node, path)
    if isinstance(each.node, ast.ClassDef):
        return _of_class(each.node)
    return _of_function(each.node, is_method="." in each.name)


def _of_module(tree: ast.Module, path: str) -> str:
    defined = [node.name for node in tree.body if isinstance(node, _DEFINITIONS)]
    names = [name for name in dict.fromkeys(defined) if not name.startswith("_")]
    about = _words(path.removesuffix("/__init__.py").removesuffix(".py").rpartition("/")[2]) or "Main"
    return f"{about}: {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}." if names else f"{about}."


def _of_class(node: ast.ClassDef) -> str:
    bases = [text for text in map(_quoted, node.bases) if text and text != "object"]
    kind = f", a kind of {' and '.join(bases)}" if bases else ""
    fields = [
        f"    {each.target.id}: {_quoted(each.annotation) or 'see its type'}."
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id[0] != "_"
    ]
    return _joined(f"{_words(node.name)}{kind}.", [("Attributes", fields)])


def _of_function(node: _Function, *, is_method: bool) -> str:
    arguments = [*_arguments(node.args)]
    is_static = any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
    if is_method and not is_static:
        arguments = arguments[1:]
    own = [*_own_nodes(node)]
    yields = any(isinstance(each, ast.Yield | ast.YieldFrom) for each in own)
    returned = _quoted(node.returns) if node.returns else ""
    gives = any(isinstance(each, ast.Return) and each.value is not None for each in own)
    result = [f"    {returned}."] if (gives or yields) and returned else []
    sections = [
        ("Args", [f"    {name}: {about}." for name, about in arguments]),
        ("Yields" if yields else "Returns", result if returned != "None" else []),
        ("Raises", [*_raised(node)]),
    ]
    return _joined(f"{_words(node.name)}.", sections)


def _joined(summary: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    parts = [summary]
    for title, lines in sections:
        if lines:
            parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)


def _arguments(arguments: ast.arguments) -> Iterator[tuple[str, str]]:
    """Each parameter, with what is known of it."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    for each, default in zip(positional, defaults, strict=True):
        yield each.arg, _about(each, default)
    if arguments.vararg:
        yield f"*{arguments.vararg.arg}", _about(arguments.vararg, None, "any number of them")
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield each.arg, _about(each, default)
    if arguments.kwarg:
        yield f"**{arguments.kwarg.arg}", _about(arguments.kwarg, None, "any number of them, by name")


def _about(argument: ast.arg, default: ast.expr | None, otherwise: str = "required") -> str:
    kind = _quoted(argument.annotation) if argument.annotation else ""
    known = f"{_quoted(default)} by default" if default is not None and _quoted(default) else ""
    return "; ".join(filter(None, [kind, known])) or ("optional" if default is not None else otherwise)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, without what is in functions and classes in it."""
    for each in ast.iter_child_nodes(node):
        yield each
        if not isinstance(each, (*_DEFINITIONS, ast.Lambda)):
            yield from _own_nodes(each)


def _raised(node: _Function) -> Iterator[str]:
    """Each exception that is raised by name, with the condition that it stands below."""
    seen: set[str] = set()
    for name, condition in _raises(node.body, ""):
        if name not in seen:
            seen.add(name)
            yield f"    {name}: {condition or 'see the code'}."


def _raises(body: Sequence[ast.stmt], condition: str) -> Iterator[tuple[str, str]]:
    for each in body:
        if isinstance(each, ast.Raise) and each.exc is not None:
            raised = each.exc.func if isinstance(each.exc, ast.Call) else each.exc
            name = ast.unparse(raised)
            if re.fullmatch(r"(\w+\.)*[A-Z]\w*", name):
                yield name, condition
        elif isinstance(each, ast.If):
            text = _quoted(each.test)
            yield from _raises(each.body, f"if {text}" if text else condition)
            yield from _raises(each.orelse, f"unless {text}" if text else condition)
        elif not isinstance(each, _DEFINITIONS):
            inner = [getattr(each, name, []) for name in ("body", "orelse", "finalbody")]
            handlers = [handler.body for handler in getattr(each, "handlers", [])]
            cases = [case.body for case in getattr(each, "cases", [])]
            for statements in (*inner, *handlers, *cases):
                yield from _raises(statements, condition)


def _quoted(node: ast.expr | None) -> str:
    """An expression as a docstring may quote it; empty if it is long, or would have to be escaped."""
    text = "" if node is None else ast.unparse(node)
    return text if len(text) <= LONGEST_TEXT and text.isprintable() and not set(text) & set('\\"') else ""


def _words(name: str) -> str:
    """`parseHTTPHeader` and `parse_http_header` as words, with a capital."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", " ", name).strip()
    words = " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in parted.split())
    return words[:1].upper() + words[1:]


# Putting them in.


def documented(source: bytes, texts: Mapping[str, str]) -> bytes:
    """The code with these docstrings, by name, where there were none.

    Raises OperationError for code that cannot be parsed, and where the code would not be the same afterwards.
    """
    import libcst

    try:
        module = libcst.parse_module(source)
    except (libcst.ParserSyntaxError, UnicodeDecodeError) as error:
        raise OperationError(f"libcst cannot parse it: {str(error).splitlines()[0]}") from error
    changed = _Writer(module, texts).module().bytes
    if not is_same_code(source, changed):
        raise OperationError("the code would not be the same with these docstrings: nothing was changed")
    return changed


class _Writer:
    """Writes docstrings into one module."""

    def __init__(self, module: libcst.Module, texts: Mapping[str, str]) -> None:
        self._module = module
        self._texts = texts

    def module(self) -> libcst.Module:
        """The module with them."""
        module = self._module.with_changes(body=[*self._body(self._module.body, "", "")])
        if MODULE not in self._texts:
            return module
        return module.with_changes(body=[self._docstring(self._texts[MODULE], ""), *module.body])

    def _body(
        self, statements: Sequence[libcst.BaseStatement], prefix: str, indent: str
    ) -> Iterator[libcst.BaseStatement]:
        import libcst

        seen: set[str] = set()
        for each in statements:
            if isinstance(each, libcst.ClassDef | libcst.FunctionDef) and each.name.value not in seen:
                changed = self._definition(each, f"{prefix}{each.name.value}", indent)
                if changed is not each:
                    seen.add(each.name.value)
                yield changed
            else:
                yield each

    def _definition(
        self, node: libcst.ClassDef | libcst.FunctionDef, name: str, indent: str
    ) -> libcst.ClassDef | libcst.FunctionDef:
        import libcst

        text, body = self._texts.get(name), node.body
        if isinstance(body, libcst.IndentedBlock):
            inner = indent + (body.indent if body.indent is not None else self._module.default_indent)
            statements = list(body.body)
            if isinstance(node, libcst.ClassDef):
                statements = list(self._body(statements, f"{name}.", inner))
            if text is not None and not self._is_silent(node):
                statements = [self._docstring(text, inner), *statements]
            if all(one is other for one, other in zip(statements, body.body, strict=False)):
                return node
            return node.with_changes(body=body.with_changes(body=statements))
        if text is None or self._is_silent(node):
            return node
        assert isinstance(body, libcst.SimpleStatementSuite)
        line = libcst.SimpleStatementLine(body.body, trailing_whitespace=body.trailing_whitespace)
        inner = indent + self._module.default_indent
        return node.with_changes(body=libcst.IndentedBlock([self._docstring(text, inner), line]))

    def _is_silent(self, node: libcst.ClassDef | libcst.FunctionDef) -> bool:
        written = (self._module.code_for_node(each.decorator) for each in node.decorators)
        return any(each.partition("(")[0].rpartition(".")[2] in _SILENT for each in written)

    def _docstring(self, text: str, indent: str) -> libcst.SimpleStatementLine:
        import libcst

        lines = text.strip().replace("\\", "\\\\").replace('"""', "'''").splitlines()
        newline = self._module.default_newline
        inside = newline.join([lines[0], *(f"{indent}{line.rstrip()}".rstrip() for line in lines[1:])])
        end = f"{newline}{indent}" if len(lines) > 1 else " " if inside.endswith('"') else ""
        return libcst.SimpleStatementLine([libcst.Expr(libcst.SimpleString(f'"""{inside}{end}"""'))])

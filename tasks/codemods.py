"""Changes of Python code that keep what it does, made on libcst's tree, so that the layout of everything else stays.

Each is a function from a file's bytes to the bytes after it. This module knows code alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.errors import OperationError

if TYPE_CHECKING:
    import libcst


def annotate_none(source: bytes) -> bytes:
    """Say `-> None` of functions that give nothing back: no value is returned, nothing is yielded."""
    import libcst

    class Annotate(libcst.CSTTransformer):
        def leave_FunctionDef(  # noqa: N802 - libcst's name
            self, original_node: libcst.FunctionDef, updated_node: libcst.FunctionDef
        ) -> libcst.FunctionDef:
            if updated_node.returns is not None or _gives(original_node):
                return updated_node
            if any(_name_of(each.decorator) in _GIVE_ANYWAY for each in original_node.decorators):
                return updated_node
            annotation = libcst.Annotation(libcst.Name("None"), libcst.SimpleWhitespace(" "))
            return updated_node.with_changes(returns=annotation)

    return _changed(source, Annotate())


_GIVE_ANYWAY = frozenset(("abstractmethod", "overload", "fixture", "contextmanager", "asynccontextmanager", "property"))
"""Decorators under which the body does not say what the function gives."""


def _gives(function: libcst.FunctionDef) -> bool:
    """Whether it may give something: it returns a value, yields, or never comes to its end."""
    import libcst

    found = False

    class Look(libcst.CSTVisitor):
        def visit_FunctionDef(self, node: libcst.FunctionDef) -> bool:  # noqa: N802
            return node is function

        def visit_Lambda(self, node: libcst.Lambda) -> bool:  # noqa: N802
            return False

        def visit_ClassDef(self, node: libcst.ClassDef) -> bool:  # noqa: N802
            return False

        def visit_Return(self, node: libcst.Return) -> None:  # noqa: N802
            nonlocal found
            found = found or not (node.value is None or _is_none(node.value))

        def visit_Yield(self, node: libcst.Yield) -> None:  # noqa: N802
            nonlocal found
            found = True

        def visit_Raise(self, node: libcst.Raise) -> None:  # noqa: N802
            nonlocal found
            found = found or "NotImplemented" in _name_of(node.exc)

    function.visit(Look())
    return found or _only_raises(function)


def _only_raises(function: libcst.FunctionDef) -> bool:
    import libcst

    last: Any = function.body.body[-1] if function.body.body else None
    if isinstance(last, libcst.SimpleStatementLine):
        last = last.body[-1]
    return isinstance(last, libcst.Raise | libcst.Expr) and (
        isinstance(last, libcst.Raise) or isinstance(last.value, libcst.Ellipsis)
    )


def _is_none(node: libcst.BaseExpression) -> bool:
    import libcst

    return isinstance(node, libcst.Name) and node.value == "None"


def _name_of(node: libcst.BaseExpression | None) -> str:
    """The last name of `a.b.c(…)`."""
    import libcst

    if isinstance(node, libcst.Call):
        return _name_of(node.func)
    if isinstance(node, libcst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, libcst.Name) else ""


def _changed(source: bytes, transformer: libcst.CSTTransformer) -> bytes:
    import libcst

    try:
        return libcst.parse_module(source).visit(transformer).bytes
    except (libcst.ParserSyntaxError, UnicodeDecodeError) as error:
        raise OperationError(f"libcst cannot parse it: {str(error).splitlines()[0]}") from error


CODEMODS: Mapping[str, Callable[[bytes], bytes]] = {"annotate-none": annotate_none}
"""By the name that a set gives them."""

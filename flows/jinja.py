"""The part of Jinja2 that expressions are made of: a sandbox with a short list of filters, tests and one function.

An expression is parsed by Jinja2, judged against a list of the syntax that is allowed, and rewritten so that every
look-up and every joining of texts comes here: nothing can reach an attribute of a Python object, and nothing can grow
without being measured (`Meter` in `flows/expressions.py`, which alone uses this module, and imports it only for what is
more than a plain reference: Jinja2 takes 60 ms to import).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn, cast

from jinja2 import filters as jinja_filters
from jinja2 import nodes
from jinja2.environment import Template
from jinja2.exceptions import TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.parser import Parser
from jinja2.runtime import Context, StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.visitor import NodeTransformer

from quantum_orchestrator.flows.expressions import (
    FUNCTIONS,
    LARGEST_VALUE,
    METER,
    ROOTS,
    ExpressionError,
    Function,
    Path,
    as_text,
    check_size,
    label_of,
    pick,
    unknown_name,
)
from quantum_orchestrator.flows.faults import nearest, shown
from quantum_orchestrator.tasks.operation import Unknown, UnknownValue

DEEPEST = 40
LONGEST_RANGE = 10_000
MOST_BITS = 4_096

PICK = " pick"  # the blank keeps these two from being spelt in an expression
CONCAT = " concat"


class Missing(StrictUndefined):
    """What a look-up gives that finds nothing: `default` and `is defined` see it, any other use fails."""

    @property
    def problem(self) -> str:
        """Why nothing was found."""
        return self._undefined_message


def _nothing(problem: str) -> Missing:
    return Missing(hint=problem)


# Filters. Those of Jinja2 that are linear in what they are given are taken as they are, and measured; those that can
# multiply it measure before they make it. Left out: what is random, what formats by width, what makes markup.


def _pick(value: Any, key: Any, label: str) -> Any:
    if isinstance(value, Undefined):
        return value
    if isinstance(key, Undefined):
        _fail(key)
    found, problem = pick(value, key, label)
    return _nothing(problem) if problem else found


def _fail(value: Undefined) -> NoReturn:
    raise UndefinedError(value.problem if isinstance(value, Missing) else "a value is missing")


def _text(value: Any) -> str:
    if isinstance(value, Undefined):
        _fail(value)
    return as_text(plain(value))


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    found: list[str] = []
    size = 0
    for value in values:
        found.append(_text(value if attribute is None else _along(value, attribute)))
        size += len(found[-1]) + len(separator)
        check_size(size)
    return separator.join(found)


def _along(value: Any, attribute: str | int) -> Any:
    for key in str(attribute).split("."):
        value = _pick(value, int(key) if key.isdigit() else key, "the item")
    return value


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    text = _text(value)
    times = text.count(old) if count < 0 else min(text.count(old), count)
    check_size(len(text) + times * (len(new) - len(old)))
    return text.replace(old, new, count)


def _items(value: Iterable[Any]) -> list[Any]:
    found = list(islice(value, LARGEST_VALUE + 1))
    check_size(len(found))
    return found


def _is_in(value: Any, container: Any) -> bool:
    METER.get().spend(
        len(container) * (1 if isinstance(container, str) else 8)
    )  # as a filter's test it looks through all of it for every item
    return bool(value in container)


def _to_json(value: Any, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= 8:
        raise ExpressionError("tojson takes an indent of 0 to 8")
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(plain(value), ensure_ascii=False, indent=indent, separators=separators, allow_nan=False)


def _from_json(value: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise ExpressionError(f"{name} is not JSON")

    return json.loads(value, parse_constant=refuse)


def _range(*bounds: int) -> list[int]:
    numbers = range(*bounds)
    if len(numbers) > LONGEST_RANGE:
        raise ExpressionError(f"range gives at most {LONGEST_RANGE} numbers")
    return list(numbers)


def _base_name(value: str) -> str:
    return value.rpartition("/")[2]


def _stem(value: str) -> str:
    name = _base_name(value)
    return name.rpartition(".")[0] or name


OWN_FILTERS: dict[str, Function] = {
    "basename": _base_name,
    "dirname": lambda value: value.rpartition("/")[0] or ".",
    "endswith": lambda value, end: value.endswith(end),
    "fromjson": _from_json,
    "join": _join,
    "list": _items,
    "replace": _replace,
    "split": lambda value, separator=None: value.split(separator),
    "splitlines": lambda value: value.splitlines(),
    "startswith": lambda value, start: value.startswith(start),
    "stem": _stem,
    "string": _text,
    "tojson": _to_json,
}
TAKEN_FILTERS = (  # noqa: SIM905  (one to a line would hide the rest of this page)
    "abs capitalize count d default dictsort first float int items last length lower map max min reject rejectattr "
    "reverse round select selectattr sort sum title trim unique upper"
).split()
TAKEN_TESTS = (  # noqa: SIM905
    "!= < <= == > >= boolean defined divisibleby eq equalto even false float ge greaterthan gt integer iterable le "
    "lessthan lower lt mapping ne none number odd sequence string true undefined upper"
).split()
TESTS = tuple(sorted((*TAKEN_TESTS, "in")))
FILTERS = tuple(sorted((*OWN_FILTERS, *TAKEN_FILTERS)))


def _measured(function: Function) -> Function:
    @functools.wraps(function)  # keeps the marks by which Jinja2 knows what to pass
    def measured(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        METER.get().charge(result)
        return result

    return measured


def _guard(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be far larger than what goes in."""
    if operator == "%" and isinstance(left, str):
        raise ExpressionError("texts are not formatted with %", hint="join them with ~")
    sizes = [each if isinstance(each, int) else len(each) for each in (left, right) if isinstance(each, _SIZED)]
    if len(sizes) < 2:
        return
    if isinstance(left, int) and isinstance(right, int):
        _guard_numbers(operator, left, right)
    elif operator == "*":
        check_size(max(0, sizes[0]) * max(0, sizes[1]))
    elif operator == "+":
        check_size(sum(sizes))


_SIZED = (int, str, list, tuple)


def _guard_numbers(operator: str, left: int, right: int) -> None:
    bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}.get(operator, 0)
    if bits > MOST_BITS:
        raise ExpressionError(f"the number would have more than {MOST_BITS} bits")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with look-ups and operators that are ours."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(undefined=Missing, autoescape=False, optimized=False, cache_size=0)
        taken = {name: _measured(jinja_filters.FILTERS[name]) for name in TAKEN_FILTERS}
        own = {name: _measured(function) for name, function in OWN_FILTERS.items()}
        hidden = {PICK: _pick, CONCAT: _measured(_join)}
        self.filters = {**taken, **own, **hidden}
        self.tests = {**{name: JINJA_TESTS[name] for name in TAKEN_TESTS}, "in": _is_in}
        self.globals = {"range": _measured(_range)}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look up a key. Filters such as `map(attribute=…)` come here."""
        return _pick(obj, attribute, "the item")

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up a key or a place, or a slice of a text or list."""
        if isinstance(argument, slice):
            if isinstance(obj, str | list | tuple):
                return obj[argument]
            return _nothing("only texts and lists have slices")
        return _pick(obj, argument, "the item")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute a binary operator, within bounds."""
        _guard(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        METER.get().charge(result)
        return result


SANDBOX = Sandbox()


# Judging and rewriting.


def paths(source: str) -> list[Path]:
    """What an expression looks up. Raises ExpressionError for syntax, names and filters that it may not have."""
    reader = Reader(source)
    reader.read(_parsed(source))
    return reader.paths


def _parsed(source: str) -> nodes.Expr:
    try:
        parser = Parser(SANDBOX, _with_dashes(source), state="variable")
        expression = parser.parse_expression()
    except TemplateSyntaxError as error:
        raise ExpressionError(f"bad expression: {_readable(error.message)}", expression=source) from error
    except RecursionError as error:
        raise _too_deep(source) from error
    if not parser.stream.eos:
        raise ExpressionError(f"bad expression: {shown(str(parser.stream.current))} is too much", expression=source)
    return expression


def _readable(message: str | None) -> str:
    return (message or "syntax error").removesuffix(".").replace("'end of template'", "end")


def _too_deep(source: str) -> ExpressionError:
    return ExpressionError(f"the expression is nested deeper than {DEEPEST}", expression=source)


def _with_dashes(source: str) -> str:
    """The source with `steps.my-step` as `steps['my-step']`: a difference of a step and something means nothing."""

    def bracket(match: re.Match[str]) -> str:
        return match.group() if match["id"] is None else f"steps['{match['id']}']"

    text = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
    step = r"(?<![\w.\]])steps\.(?P<id>(?=[a-z0-9_-]*-|[0-9])[a-z0-9_-]+)(?=\s*(?:[.\[]|$))"
    return re.sub(rf"{text}|{step}", bracket, source, flags=re.ASCII | re.DOTALL)


_SYNTAX = (
    nodes.BinExpr,
    nodes.Call,
    nodes.Compare,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Const,
    nodes.Dict,
    nodes.Filter,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Keyword,
    nodes.List,
    nodes.Name,
    nodes.Operand,
    nodes.Pair,
    nodes.Slice,
    nodes.Test,
    nodes.Tuple,
    nodes.UnaryExpr,
)


class Reader:
    """Walks an expression: refuses what is not allowed, and notes what it looks up."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.paths: list[Path] = []

    def read(self, node: nodes.Node, depth: int = 1) -> None:
        """Judge a node and everything in it."""
        if depth > DEEPEST:
            raise _too_deep(self.source)
        path = static_path(node)
        if path is not None:
            self._name(str(path[0]))
            self.paths.append(path)
            self._depth(node, depth)
            return
        self._judge(node)
        for child in node.iter_child_nodes():
            if not (isinstance(node, nodes.Call) and child is node.node):
                self.read(child, depth + 1)

    def _depth(self, node: nodes.Node, depth: int) -> None:
        while isinstance(node, nodes.Getattr | nodes.Getitem):
            node, depth = node.node, depth + 1
        if depth > DEEPEST:
            raise _too_deep(self.source)

    def _judge(self, node: nodes.Node) -> None:
        if not isinstance(node, _SYNTAX):
            raise self._error(f"{type(node).__name__} is not allowed in expressions")
        if isinstance(node, nodes.Call):
            self._call(node)
        elif isinstance(node, nodes.Filter):
            self._known("filter", node.name, FILTERS)
        elif isinstance(node, nodes.Test):
            self._known("test", node.name, TESTS)
        if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (node.dyn_args or node.dyn_kwargs):
            raise self._error("* and ** are not allowed in expressions")

    def _call(self, node: nodes.Call) -> None:
        if not isinstance(node.node, nodes.Name) or node.node.name not in FUNCTIONS:
            called = static_path(node.node)
            what = f"{label_of(called)} cannot be called" if called else "values cannot be called"
            raise self._error(what, hint=f"functions: {', '.join(FUNCTIONS)}; filters: {', '.join(FILTERS)}")

    def _known(self, kind: str, name: str, known: Iterable[str]) -> None:
        if name not in known:
            hint = nearest(name, known) or f"known are {', '.join(known)}"
            raise self._error(f"unknown {kind} {shown(name)}", hint=hint)

    def _name(self, name: str) -> None:
        if name in FUNCTIONS:
            raise self._error(f"{name} has to be called", hint=f"as in {name}(3)")
        if name not in ROOTS:
            error = unknown_name(name)
            raise self._error(error.message, hint=error.hint)

    def _error(self, message: str, *, hint: str = "") -> ExpressionError:
        return ExpressionError(message, expression=self.source, hint=hint)


def static_path(node: nodes.Node) -> Path | None:
    """The keys of a look-up that is written out, `steps.a['b'][0]`; None for anything else."""
    keys: list[str | int] = []
    while not isinstance(node, nodes.Name):
        key = _static_key(node)
        if key is None:
            return None
        keys.append(key)
        node = cast("nodes.Getattr | nodes.Getitem", node).node
    return (node.name, *reversed(keys))


def _static_key(node: nodes.Node) -> str | int | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value
        return key if isinstance(key, str | int) and not isinstance(key, bool) else None
    return None


class Rewriter(NodeTransformer):
    """Leads every look-up and every `~` through our own filters, look-ups with their spelling for messages."""

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:  # noqa: N802  (the visitor's naming)
        """A key after a dot."""
        return self._pick(node, nodes.Const(node.attr))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """A key or a place in brackets; slices stay as they are."""
        if isinstance(node.arg, nodes.Slice):
            return self.generic_visit(node)
        return self._pick(node, self.visit(node.arg))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Texts joined by `~`."""
        inner = nodes.List([self.visit(each) for each in node.nodes])
        return nodes.Filter(inner, CONCAT, [], [], None, None)

    def _pick(self, node: nodes.Getattr | nodes.Getitem, key: nodes.Node) -> nodes.Node:
        path = static_path(node.node)
        label = nodes.Const(label_of(path) if path else "the value")
        return nodes.Filter(self.visit(node.node), PICK, [key, label], [], None, None)


class Program:
    """A compiled expression. Safe to run in several threads at once."""

    def __init__(self, source: str, template: Template) -> None:
        self.source = source
        self._template = template

    def run(self, values: Mapping[str, Any]) -> Any:
        """The expression's value, as plain JSON data. Raises ExpressionError; Unknown passes through."""
        try:
            context = self._template.new_context(dict(values))
            for _ in self._template.root_render_func(context):
                pass
            return plain(context.vars["result"])
        except ExpressionError as error:
            raise ExpressionError(error.message, expression=self.source) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            message = str(error) or type(error).__name__
            raise ExpressionError(message, expression=self.source) from error
        except RecursionError as error:
            raise ExpressionError("the value is nested too deeply", expression=self.source) from error


def compiled(source: str) -> Program:
    """Make a program of a source that `paths` has accepted."""
    expression = Rewriter().visit(_parsed(source))
    body = nodes.Template([nodes.Assign(nodes.Name("result", "store"), expression, lineno=1)], lineno=1)
    body.set_lineno(1)
    body.set_environment(SANDBOX)
    return Program(source, SANDBOX.from_string(body))


def plain(value: Any) -> Any:
    """A result as JSON data: generators and tuples as lists. Raises ExpressionError for what JSON cannot hold."""
    size = [0]
    return _plain(value, size)


def _plain(value: Any, size: list[int]) -> Any:
    size[0] += len(value) if isinstance(value, str) else 1
    check_size(size[0])
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, Undefined):
        _fail(value)
    if isinstance(value, UnknownValue):
        raise Unknown
    if isinstance(value, Mapping):
        return {_key(key): _plain(each, size) for key, each in value.items()}
    if isinstance(value, list | tuple | Iterator):
        return [_plain(each, size) for each in value]
    raise ExpressionError(f"{type(value).__name__} is no JSON value")


def _finite(value: float) -> float:
    if value - value != 0:
        raise ExpressionError("the number is not finite")
    return value


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise ExpressionError(f"{shown(str(key))} cannot be a key: keys of objects are texts")
    return key

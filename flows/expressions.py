"""Expressions, `${{ … }}`: Jinja2's expression language over a run's values, and nothing else of Jinja2 or Python.

A text that is one expression keeps the type of its value; with text around it the value becomes text. `$${{` is a
literal `${{`. Keys of objects are never expressions. What an expression may use:

- values: `inputs`, `env`, `steps.<id>.outputs.<name>`, `steps.<id>.status`, `item` (under `for_each`), `run`. A dot and
  brackets look up keys of objects and places of lists, never attributes of Python objects. An id with a dash may stand
  after a dot: `steps.my-step.outputs.path`.
- the operators, tests and literals of Jinja2, the filters in FILTERS, and the function `range` (at most 10,000 items);
- no other call, no assignment, no statement.

Evaluation is bounded: an expression has at most 4,000 characters and 40 levels, what it computes has at most 1 MiB of
text and as many items, and everything that one `evaluate` computes on its way at most 64 MiB. A plain reference hands a
value on whatever its size. Which names an expression uses is known without evaluating it (`references`), which is how
steps come to depend on each other. This module knows neither instructions nor where values come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.flows.faults import nearest, shown
from quantum_orchestrator.tasks.operation import Unknown, UnknownValue

if TYPE_CHECKING:
    from quantum_orchestrator.flows.jinja import Program

ROOTS = ("inputs", "env", "steps", "item", "run")
STEP_FIELDS = ("outputs", "status")
FUNCTIONS = ("range",)
LONGEST_EXPRESSION = 4_000
LARGEST_VALUE = 1024 * 1024
LARGEST_TOTAL = 64 * LARGEST_VALUE

MISSING = object()
"""The `item` of a scope that is not under `for_each`."""

Path = tuple[str | int, ...]


class ExpressionError(OperationError):
    """An expression is wrong or cannot be evaluated. `offset` is where it begins in the text that holds it."""

    def __init__(self, message: str, *, expression: str = "", offset: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint or (f"in ${{{{ {expression} }}}}" if expression else ""))
        self.expression = expression
        self.offset = offset


class Lookup(Protocol):
    """What `steps` has to offer. `__getitem__` may raise Unknown for a step whose result is not known yet."""

    def __getitem__(self, key: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """The values that expressions see."""

    inputs: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    steps: Lookup = field(default_factory=dict[str, Any])
    run: Mapping[str, Any] = field(default_factory=dict)
    item: Any = MISSING

    def values(self) -> dict[str, Any]:
        """By the names that expressions use."""
        known = {"inputs": self.inputs, "env": self.env, "steps": self.steps, "run": self.run}
        return known if self.item is MISSING else {**known, "item": self.item}


@dataclass(frozen=True, slots=True)
class Names:
    """What expressions refer to."""

    steps: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    env: frozenset[str] = frozenset()
    item: bool = False
    outputs: frozenset[tuple[str, str]] = frozenset()
    """Step ids with the names after `outputs`."""
    fields: frozenset[tuple[str, str]] = frozenset()
    """Step ids with what follows them: `outputs`, `status`, or a mistake."""

    def __or__(self, other: Names) -> Names:
        return Names(
            self.steps | other.steps,
            self.inputs | other.inputs,
            self.env | other.env,
            self.item or other.item,
            self.outputs | other.outputs,
            self.fields | other.fields,
        )


NO_NAMES = Names()


@dataclass(frozen=True)
class Expression:
    """One expression, judged. `path` leads to the value when it is a plain reference: no computing at all."""

    source: str
    names: Names
    path: Path | None = None

    @cached_property
    def _program(self) -> Program:
        from quantum_orchestrator.flows import jinja

        return jinja.compiled(self.source)

    def value(self, scope: Scope) -> Any:
        """Its value. Raises ExpressionError, and Unknown when it needs what only a run can know."""
        if self.names.item and scope.item is MISSING:
            raise ExpressionError("item is known only in a step with for_each", expression=self.source)
        if self.path is None:
            return self._program.run(scope.values())
        return self._follow(scope.values(), self.path)

    def _follow(self, values: Mapping[str, Any], path: Path) -> Any:
        value: Any = values[str(path[0])]
        for depth, key in enumerate(path[1:], 1):
            value, problem = pick(value, key, label_of(path[:depth]))
            if problem:
                raise ExpressionError(problem, expression=self.source)
        if isinstance(value, UnknownValue):
            raise Unknown
        return value


# Finding expressions in texts.

_OPENING = re.compile(r"\$?\$\{\{")
_BRACE = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[{}]", re.DOTALL)


def holds_expression(text: str) -> bool:
    """Whether the text has an expression, or begins one."""
    return "${{" in text and any(match.group() == "${{" for match in _OPENING.finditer(text))


def find(text: str) -> Iterator[tuple[int, str | Expression | ExpressionError]]:
    """The literal parts, the expressions and the faults of a text in order, each with its offset."""
    position = 0
    while match := _OPENING.search(text, position):
        if match.start() > position:
            yield position, text[position : match.start()]
        if match.group() == "$${{":
            yield match.start(), "${{"
            position = match.end()
            continue
        end = _end(text, match.end())
        if end is None:
            message = "the expression that begins here has no end"
            yield match.start(), ExpressionError(message, offset=match.start(), hint="close it with }}")
            return
        yield match.start(), _judged(text[match.end() : end].strip(), match.start())
        position = end + 2
    if position < len(text):
        yield position, text[position:]


def _end(text: str, start: int) -> int | None:
    """Where the `}}` stands that closes the expression, braces and quoted texts inside it passed over."""
    depth = 0
    for match in _BRACE.finditer(text, start):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}" and depth:
            depth -= 1
        elif match.group() == "}" and text.startswith("}}", match.start()):
            return match.start()
    return None


def split(text: str) -> list[str | Expression]:
    """The literal parts and the expressions of a text. Raises ExpressionError for the first fault."""
    parts: list[str | Expression] = []
    for _, part in find(text):
        if isinstance(part, ExpressionError):
            raise part
        parts.append(part)
    return parts


def is_lone(text: str) -> bool:
    """Whether the text is one expression and nothing else. Raises ExpressionError for a fault in it."""
    parts = split(text)
    return len(parts) == 1 and isinstance(parts[0], Expression)


# Reading one expression.

_KEY = (
    r"""\.(?P<dot>[A-Za-z_]\w*|[0-9]{1,9}(?!\w))"""
    r"""|\[\s*(?:'(?P<one>[^'\\]*)'|"(?P<two>[^"\\]*)"|(?P<at>[0-9]{1,9}))\s*\]"""
)
_PLAIN = re.compile(
    r"(?P<root>inputs|env|item|run|steps(?:\.(?P<id>[a-z0-9_-]+))?)(?P<rest>(?:"
    + re.sub(r"\?P<\w+>", "?:", _KEY)
    + r")*)",
    re.ASCII,
)
_KEYS = re.compile(_KEY, re.ASCII)


def _judged(source: str, offset: int) -> Expression | ExpressionError:
    try:
        return parse(source)
    except ExpressionError as error:
        return ExpressionError(error.message, expression=error.expression, offset=offset, hint=error.hint)


@lru_cache(maxsize=8192)
def parse(source: str) -> Expression:
    """The expression between `${{` and `}}`. Raises ExpressionError saying what is wrong with it."""
    if not source:
        raise ExpressionError("the expression is empty", hint="as in ${{ inputs.name }}")
    if len(source) > LONGEST_EXPRESSION:
        raise ExpressionError(f"the expression has more than {LONGEST_EXPRESSION} characters")
    path = _plain_path(source)
    if path is not None:
        return Expression(source, names_of([path], source), path)
    from quantum_orchestrator.flows import jinja

    return Expression(source, names_of(jinja.paths(source), source))


def _plain_path(source: str) -> Path | None:
    """The keys of an expression that only looks something up; most do, and they need no Jinja2."""
    match = _PLAIN.fullmatch(source)
    if match is None:
        return None
    path: list[str | int] = ["steps", match["id"]] if match["id"] else [match["root"]]
    for key in _KEYS.finditer(match["rest"]):
        if key["at"] is not None:
            path.append(int(key["at"]))
        else:
            name = next(each for each in (key["dot"], key["one"], key["two"]) if each is not None)
            path.append(int(name) if name == key["dot"] and name.isdigit() else name)
    return tuple(path)


def names_of(paths: Iterable[Path], source: str) -> Names:
    """What these look-ups refer to. A step has to be named literally, so that dependencies are known."""
    found: dict[str, set[Any]] = {each: set() for each in ("steps", "inputs", "env", "outputs", "fields")}
    item = False
    for root, *rest in paths:
        item = item or root == "item"
        if root == "steps":
            _note_step(rest, found, source)
        elif root in ("inputs", "env") and rest and isinstance(rest[0], str):
            found[root].add(rest[0])
    return Names(item=item, **{kind: frozenset(names) for kind, names in found.items()})


def _note_step(rest: list[str | int], found: dict[str, set[Any]], source: str) -> None:
    if not rest or not isinstance(rest[0], str):
        raise ExpressionError("steps has to be followed by the id of a step", hint=f"as in steps.build, not {source}")
    found["steps"].add(rest[0])
    if len(rest) > 1:
        found["fields"].add((rest[0], str(rest[1])))
    if len(rest) > 2 and rest[1] == "outputs" and isinstance(rest[2], str):
        found["outputs"].add((rest[0], rest[2]))


def references(value: object) -> Names:
    """What the expressions in a value, however deep, refer to. Raises ExpressionError for the first fault in one."""
    found = NO_NAMES
    for text in texts(value):
        for part in split(text):
            if isinstance(part, Expression):
                found |= part.names
    return found


def texts(value: object) -> Iterator[str]:
    """The texts in a value that hold expressions, keys left aside."""
    if isinstance(value, str):
        if "${{" in value:
            yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def is_literal(value: object) -> bool:
    """Whether nothing in a value, however deep, could be an expression, so that evaluating it gives it as it is."""
    if isinstance(value, str):
        return "${{" not in value
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            if not isinstance(each, int | float) and each is not None and not is_literal(each):
                return False
    return True


# Evaluating.


class Meter:
    """Adds up what one evaluation computes, so that a small expression cannot fill the memory."""

    def __init__(self) -> None:
        self.spent = 0

    def charge(self, value: object) -> None:
        """Add the size of a text or list that was made. Raises ExpressionError for what is too large."""
        if isinstance(value, str | list | tuple | dict):
            check_size(len(value))
            self.spend(len(value))

    def spend(self, size: int) -> None:
        """Add characters or items that were made, or looked through."""
        self.spent += size
        if self.spent > LARGEST_TOTAL:
            raise ExpressionError(f"expressions computed more than {LARGEST_TOTAL >> 20} MiB")


def check_size(size: int) -> None:
    """Raise ExpressionError if a value of so many characters or items is too large to be computed."""
    if size > LARGEST_VALUE:
        raise ExpressionError(f"the value would have {size} characters or items; {LARGEST_VALUE} are allowed")


METER: ContextVar[Meter] = ContextVar("meter")


def evaluate(value: Any, scope: Scope) -> Any:
    """The value with its expressions replaced by theirs, lists and objects at any depth.

    Raises ExpressionError, and Unknown when a step's result is needed that is not known yet.
    """
    token = METER.set(Meter())
    try:
        return _evaluate(value, scope)
    finally:
        METER.reset(token)


def _evaluate(value: Any, scope: Scope) -> Any:
    if isinstance(value, str):
        return _evaluate_text(value, scope) if "${{" in value else value
    if isinstance(value, list):
        return [_evaluate(each, scope) for each in value]
    if isinstance(value, dict):
        return {key: _evaluate(each, scope) for key, each in value.items()}
    return value


def _evaluate_text(text: str, scope: Scope) -> Any:
    parts = split(text)
    if len(parts) == 1 and isinstance(parts[0], Expression):
        return parts[0].value(scope)
    written = [part if isinstance(part, str) else _written(part, scope) for part in parts]
    check_size(sum(len(each) for part, each in zip(parts, written, strict=True) if not isinstance(part, str)))
    return "".join(written)


def _written(expression: Expression, scope: Scope) -> str:
    value = as_text(expression.value(scope))
    METER.get().charge(value)
    return value


def as_text(value: Any) -> str:
    """A value as text: a text as it is, everything else in JSON's spelling, compact (true, null, 1.5, {"a":1})."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, UnknownValue):
        raise Unknown
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ExpressionError(f"cannot be written as text: {error}") from error


def label_of(path: Path) -> str:
    """A look-up as an expression spells it."""
    label = str(path[0])
    for depth, key in enumerate(path[1:]):
        is_step = depth == 0 and path[0] == "steps"
        plain = isinstance(key, str) and re.fullmatch(r"[\w-]+" if is_step else r"[A-Za-z_]\w*", key, re.ASCII)
        label += f".{key}" if plain else f"[{key!r}]"
    return label


def pick(value: Any, key: Any, label: str) -> tuple[Any, str]:
    """What is at `key`, and a problem if nothing is. Objects by key, lists and texts by place; never an attribute."""
    if isinstance(value, UnknownValue):
        raise Unknown
    if isinstance(value, list | tuple | str):
        return _pick_place(value, key, label)
    if not hasattr(type(value), "__getitem__"):
        return None, f"{label} is {_kind(value)} and has no {shown(str(key))}"
    try:
        return value[key], ""
    except (KeyError, TypeError):
        has = sorted(map(str, value))[:20] if isinstance(value, Mapping) else []
        return None, f"{label} has no {shown(str(key))}; " + (f"it has: {', '.join(has)}" if has else "it is empty")


def _pick_place(value: list[Any] | tuple[Any, ...] | str, key: Any, label: str) -> tuple[Any, str]:
    what = "a text" if isinstance(value, str) else "a list"
    if isinstance(key, bool) or not isinstance(key, int):
        return None, f"{label} is {what} and has no {shown(str(key))}"
    if not -len(value) <= key < len(value):
        return None, f"{label} has no place {key}: it is {what} of length {len(value)}"
    return value[key], ""


def _kind(value: object) -> str:
    return "null" if value is None else f"{as_text(value)[:40]}"


def unknown_name(name: str) -> ExpressionError:
    """The error for a name that expressions do not have."""
    if name == "secrets":
        return ExpressionError(
            "secrets are never expressions", hint="name them in the step's `secrets`; they are in its environment"
        )
    hint = nearest(name, (*ROOTS, *FUNCTIONS)) or f"known are {', '.join(ROOTS)}; texts stand in quotes"
    return ExpressionError(f"unknown name {shown(name)}", hint=hint)


Function = Callable[..., Any]

"""Sets one value in a YAML text.

ruamel.yaml reads the text as nodes that know where they stand; the new value is spliced in there. The result is read
again, and all of its nodes (tags, texts, order, anchors) must be the old ones but for the value, or it is refused.
Where there are two ways to write a value, as in block and in flow style, the nicer one that passes this test is taken.
An anchor on the way is refused, since its value stands in several places. See `structured.py` for the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from quantum_orchestrator.blocks import json_text
from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.structured_json import (
    JsonValue,
    joined,
    missing,
    newline_of,
    not_kept,
    place_in_array,
)

TAG = "tag:yaml.org,2002:"
UNIT = 2
_PLAIN = re.compile(r"[A-Za-z0-9_/.](?:[\w ./@+-]*[\w/.@+-])?", re.ASCII)
_OLD_BOOLEANS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

Shape = tuple[object, ...]
"""A node without its place: what must stay the same."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a value is, or would be: `node` is None for one that is not there yet."""

    names: list[str]
    parent: MappingNode | SequenceNode | None
    key: Node | None
    node: Node | None
    in_flow: bool


def set_yaml(text: str, pointer: str, value: JsonValue) -> str:
    """The YAML text with `value` at `pointer`. Raises OperationError."""
    try:
        root = _compose(text)
        target = _find(root, json_text.tokens(pointer))
        wanted = _shape_of_value(value)
        if target.node is not None and _shape(target.node, set()) == wanted:
            return text
        expected = _Expected(target, wanted).shape(root)
        for candidate in _candidates(text, target, value):
            if _reads_as(candidate, expected):
                return candidate
    except YAMLError as error:
        raise OperationError(f"not a YAML document: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise OperationError("the YAML document is nested too deeply") from error
    raise not_kept("it would change the meaning of what stands around it")


def _compose(text: str) -> Node:
    root = YAML(typ="rt", pure=True).compose(text)
    if not isinstance(root, Node):
        raise OperationError("the YAML document is empty", hint="write it with file.write")
    return root


def _reads_as(text: str, expected: Shape) -> bool:
    try:
        return _shape(_compose(text), set()) == expected
    except (YAMLError, OperationError):
        return False  # another way of writing it is tried


# Finding the place.


def _find(root: Node, names: list[str]) -> _Target:
    target = _Target([], None, None, root, in_flow=False)
    for length in range(1, len(names) + 1):
        node = target.node
        if node is None:
            raise missing(joined(names[: length - 1]), _known(target.parent), names[length - 2])
        _refuse_anchor(node, names[: length - 1])
        in_flow = target.in_flow or _is_flow(node)
        if isinstance(node, MappingNode):
            key, found = _member(node, names[:length])
            target = _Target(names[:length], node, key, found, in_flow)
        elif isinstance(node, SequenceNode):
            place = place_in_array(joined(names[:length]), names[length - 1], len(node.value))
            target = _Target(names[:length], node, None, [*node.value, None][place], in_flow)
        else:
            raise OperationError(f"{joined(names[: length - 1])!r} is neither a mapping nor a sequence")
    if target.node is not None:
        _refuse_anchor(target.node, names)
    return target


def _is_flow(node: Node) -> bool:
    return isinstance(node, CollectionNode) and bool(node.flow_style)


def _known(parent: Node | None) -> list[str]:
    return [str(key.value) for key, _ in parent.value] if isinstance(parent, MappingNode) else []


def _member(node: MappingNode, names: list[str]) -> tuple[Node | None, Node | None]:
    found = [(key, each) for key, each in node.value if isinstance(key, ScalarNode) and key.value == names[-1]]
    if len(found) > 1:
        raise OperationError(f"{joined(names)!r} stands there {len(found)} times")
    return found[0] if found else (None, None)


def _refuse_anchor(node: Node, names: list[str]) -> None:
    if node.anchor:
        raise OperationError(
            f"{joined(names) or '/'!r} has the anchor &{node.anchor}: its value stands in several places",
            hint="use file.edit for this one",
        )


# What must come out.


def _shape(node: Node, seen: set[int]) -> Shape:
    return _Expected(None, (), seen).shape(node)


class _Expected:
    """The shape of a document, with one value in place of another or after the others."""

    def __init__(self, target: _Target | None, wanted: Shape, seen: set[int] | None = None) -> None:
        self.target = target
        self.wanted = wanted
        self.seen: set[int] = set() if seen is None else seen

    def shape(self, node: Node) -> Shape:
        """The node with all that is in it. An alias is its anchor's name, so that what it stands for is seen once."""
        if self.target is not None and node is self.target.node:
            return self.wanted
        if node.anchor and id(node) in self.seen:
            return ("alias", node.anchor)
        self.seen.add(id(node))
        if isinstance(node, ScalarNode):
            return _scalar_shape(str(node.tag), str(node.value), node.anchor)
        return (str(node.tag), node.anchor, *self.members(node))

    def members(self, node: Node) -> Iterator[Shape]:
        for each in node.value:
            yield (self.shape(each[0]), self.shape(each[1])) if isinstance(each, tuple) else self.shape(each)
        if self.target is not None and self.target.node is None and self.target.parent is node:
            name = _scalar_shape(f"{TAG}str", self.target.names[-1], None)
            yield (name, self.wanted) if isinstance(node, MappingNode) else self.wanted


def _scalar_shape(tag: str, text: str, anchor: str | None) -> Shape:
    if tag == f"{TAG}null":
        text = "null"
    return (tag, anchor, text.lower() if tag == f"{TAG}bool" else text)


def _shape_of_value(value: JsonValue) -> Shape:
    if isinstance(value, dict):
        members = ((_shape_of_value(str(name)), _shape_of_value(each)) for name, each in value.items())
        return (f"{TAG}map", None, *members)
    if isinstance(value, list):
        return (f"{TAG}seq", None, *map(_shape_of_value, value))
    if isinstance(value, str):
        return (f"{TAG}str", None, value)
    names = {bool: "bool", int: "int", float: "float", type(None): "null"}
    return (TAG + names[type(value)], None, json.dumps(value, allow_nan=False))


# Ways to write it, the nicest first.


def _candidates(text: str, target: _Target, value: JsonValue) -> Iterator[str]:
    if target.node is not None:
        yield from _replacements(text, target, target.node, value)
    elif target.in_flow:
        yield _added_in_flow(text, target, value)
    else:
        yield from _added_in_block(text, target, value)


def _replacements(text: str, target: _Target, node: Node, value: JsonValue) -> Iterator[str]:
    start, end = node.start_mark.index, _end_of(text, target.key, node)
    mark = _after_mark(text, target.key, node)
    if start >= end:  # nothing is written for a null
        if mark is not None:
            yield f"{text[:mark]} {_scalar(value)}{text[mark:]}"
        return
    newline = newline_of(text)
    is_block = isinstance(node, CollectionNode) and not _is_flow(node)
    if is_block and isinstance(value, dict | list) and value:
        yield text[:start] + _lines(_block(value), node.start_mark.column, newline) + text[end:]
    if isinstance(node, ScalarNode) and node.style == "|" and isinstance(value, str):
        yield text[:start] + _literal(text[start:end], value, newline) + text[end:]
    if not is_block:
        style = node.style if isinstance(node, ScalarNode) else None
        yield text[:start] + _scalar(value, style) + text[end:]
        yield text[:start] + _flow(value) + text[end:]
    if mark is not None:
        yield f"{text[:mark]} {_scalar(value)}{text[end:]}"


def _after_mark(text: str, key: Node | None, node: Node) -> int | None:
    """The place after the `:` or `-` that a value follows."""
    if key is not None:
        colon = re.compile(r"\s*:").match(text, key.end_mark.index)
        return colon.end() if colon else None
    before = text[: node.start_mark.index].rstrip()
    return len(before) if before.endswith("-") else None


def _end_of(text: str, key: Node | None, node: Node) -> int:
    """Where a node's own text ends. The marks of block styles reach up to whatever comes next."""
    if key is not None and node.start_mark.index < key.end_mark.index:  # an alias has the marks of its anchor
        alias = re.compile(r"\s*:\s*\*[^\s,\]}]+").match(text, key.end_mark.index)
        if alias is None:
            raise not_kept("an alias stands beside it")
        return alias.end()
    if isinstance(node, ScalarNode):
        end: int = node.end_mark.index
        if node.start_mark.index == end:
            return _after_mark(text, key, node) or end
        return len(text[:end].rstrip()) if node.style in ("|", ">") else end
    if _is_flow(node) or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end_of(text, *last) if isinstance(last, tuple) else _end_of(text, None, last)


def _added_in_flow(text: str, target: _Target, value: JsonValue) -> str:
    assert target.parent is not None
    member = _flow(value)
    if isinstance(target.parent, MappingNode):
        member = f"{_scalar(target.names[-1])}: {member}"
    if not target.parent.value:
        inside = target.parent.start_mark.index + 1
        return text[:inside] + member + text[inside:]
    end = _last_end(text, target.parent)
    return f"{text[:end]}, {member}{text[end:]}"


def _added_in_block(text: str, target: _Target, value: JsonValue) -> Iterator[str]:
    assert target.parent is not None
    end = _last_end(text, target.parent)
    line_end = re.compile(r"\r?\n|\Z").search(text, end)
    assert line_end is not None
    newline, column = newline_of(text), target.parent.start_mark.column
    name = _scalar(target.names[-1])
    is_mapping = isinstance(target.parent, MappingNode)
    ways = [_block({name: value} if is_mapping else [value], verbatim_name=True)]
    ways.append([f"{name}: {_flow(value)}" if is_mapping else f"- {_flow(value)}"])
    for lines in ways:
        added = newline + " " * column + _lines(lines, column, newline)
        yield text[: line_end.start()] + added + text[line_end.start() :]


def _last_end(text: str, parent: MappingNode | SequenceNode) -> int:
    last = parent.value[-1]
    return _end_of(text, *last) if isinstance(last, tuple) else _end_of(text, None, last)


def _lines(lines: list[str], column: int, newline: str) -> str:
    return (newline + " " * column).join(lines)


def _block(value: JsonValue, *, verbatim_name: bool = False) -> list[str]:
    """An object or array in block style, as lines."""
    lines: list[str] = []
    if isinstance(value, dict):
        for name, each in value.items():
            key = name if verbatim_name else _scalar(name)
            if isinstance(each, dict | list) and each:
                lines += [f"{key}:", *(" " * UNIT + line for line in _block(each))]
            else:
                lines.append(f"{key}: {_scalar(each)}")
        return lines
    for each in value:
        first, *rest = _block(each) if isinstance(each, dict | list) and each else [_scalar(each)]
        lines += [f"- {first}", *(" " * UNIT + line for line in rest)]
    return lines


def _literal(old: str, value: str, newline: str) -> str:
    """A text of several lines in the literal style, indented as the old one was."""
    margin = re.search(r"\n([ ]+)", old)
    body = value.removesuffix("\n")
    if margin is None or not body or body.endswith("\n") or body[0] in " \n":
        return _flow(value)
    lines = [margin[1] + line if line else "" for line in body.split("\n")]
    return ("|" if value.endswith("\n") else "|-") + newline + newline.join(lines)


def _scalar(value: JsonValue, style: str | None = None) -> str:
    """A value on one line; a text in its old quotes, else without any where it stays a text."""
    if not isinstance(value, str):
        return _flow(value)
    if style == "'" and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    if style == '"' or not _PLAIN.fullmatch(value) or value.lower() in _OLD_BOOLEANS:
        return _flow(value)
    return value if _compose(value).tag == f"{TAG}str" else _flow(value)


def _flow(value: JsonValue) -> str:
    """A value as JSON, which is YAML's flow style."""
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", dumped)

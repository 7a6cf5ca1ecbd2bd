"""Sets one value in the text of a JSON, TOML or YAML document; every other character stays.

Each format finds the place in its own way (`structured_json.py`, `structured_toml.py`, `structured_yaml.py`), splices
the new text in, reads the result again and compares it with what was asked for: a splice that went wrong is an error,
and never a file. What cannot be done is refused, such as anchors on the way in YAML or a table with a header in TOML.

`pointer` is a JSON pointer (RFC 6901) in all three. A missing last name is added after its neighbours, in their
manner; `-` is the place after an array's last item. A value that is set already changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.structured_json import JsonValue, set_json

BYTE_ORDER_MARK = "\ufeff"


class Format(StrEnum):
    """The languages that values can be set in."""

    JSON = "json"
    TOML = "toml"
    YAML = "yaml"


_SUFFIXES = {".json": Format.JSON, ".toml": Format.TOML, ".yaml": Format.YAML, ".yml": Format.YAML}


def format_of(path: str) -> Format:
    """The format that a file's name says. Raises OperationError when it says none."""
    for suffix, found in _SUFFIXES.items():
        if path.lower().endswith(suffix):
            return found
    raise OperationError(
        f"{path}: its name does not say whether it is JSON, TOML or YAML", hint='give `format`, as in "format": "json"'
    )


def set_value(text: str, form: Format, pointer: str, value: JsonValue) -> str:
    """The text with `value` at `pointer`. Raises OperationError, without the file's name, when it cannot be done."""
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    return mark + _set(text.removeprefix(mark), form, pointer, value)


def _set(text: str, form: Format, pointer: str, value: JsonValue) -> str:
    if form is Format.JSON:
        return set_json(text, pointer, value)
    if form is Format.TOML:
        from quantum_orchestrator.tasks.structured_toml import set_toml

        return set_toml(text, pointer, value)
    from quantum_orchestrator.tasks.structured_yaml import set_yaml

    return set_yaml(text, pointer, value)

"""Operations by name: the built-in ones and those that other packages bring.

Every family, built-in or not, is an entry point in the group `quantum_orchestrator.operations` that names a module;
importing the module declares its operations. A name that two modules declare fails loudly. A family is imported only
when one of its operations is asked for, if the entry point is named after the family (`file` for `file.write`).
"""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.metadata import version as installed_version

from quantum_orchestrator.blocks.errors import InvalidInput
from quantum_orchestrator.tasks.operation import AnyOperation, declared

GROUP = "quantum_orchestrator.operations"


class UnknownOperation(InvalidInput):
    """No operation has this name."""


@cache
def _points() -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        known = points.setdefault(point.name, point)
        if known.module != point.module:
            raise InvalidInput(
                f"two packages bring operations as {point.name!r}: {known.module} and {point.module}",
                hint="uninstall one of them; a package names its operations after itself",
            )
    return points


def _load(point: EntryPoint) -> None:
    try:
        importlib.import_module(point.module)
    except Exception as error:
        raise InvalidInput(
            f"the operations of {point.value!r} cannot be loaded: {error}",
            hint="repair or uninstall the package that brings them",
        ) from error


@cache
def get(name: str) -> AnyOperation:
    """The operation with this name. Raises UnknownOperation, with the nearest right name as its hint."""
    points = _points()
    family = name.partition(".")[0]
    likely = [family, "control"]  # where the names without a family are
    for point in [*(points[each] for each in likely if each in points), *points.values()]:
        if name in declared:
            break
        _load(point)
    if name not in declared:
        near = difflib.get_close_matches(name, declared, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`qo ops` lists the operations"
        raise UnknownOperation(f"unknown operation {name!r}", hint=hint)
    return declared[name]()


@cache
def version(name: str) -> str:
    """Which implementation of an operation this is: the packages that its results come from, with their versions."""
    operation = get(name)
    package = type(operation).__module__.partition(".")[0]
    own = {point.dist for point in _points().values() if point.module.partition(".")[0] == package and point.dist}
    brought = sorted({f"{each.name} {each.version}" for each in own})
    return ", ".join([*brought, *(f"{each} {installed_version(each)}" for each in operation.relies_on)])


def every() -> dict[str, AnyOperation]:
    """All operations, sorted by name."""
    for point in _points().values():
        _load(point)
    return {name: get(name) for name in sorted(declared)}

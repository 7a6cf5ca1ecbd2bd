"""A policy that a Prefect server holds, for all machines whose `policy.toml` names it: a block with the same settings.

It narrows the machine's own policy and can never widen it; a field that is left empty says nothing. What the settings
mean is `blocks/policy.py`'s matter. Knows Prefect, and so is imported only where a run is about to begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, Field, create_model

from quantum_orchestrator.blocks.errors import ServerError
from quantum_orchestrator.blocks.policy import GRANTS, SETTINGS, Given, Kind, Setting
from quantum_orchestrator.blocks.policy_file import UNTRUSTED, from_block

_SETTINGS = [each for each in SETTINGS if not each.own]


def field_of(setting: Setting, inside: str = "") -> tuple[Any, Any]:
    """A field of a block that holds a setting."""
    match setting.kind:
        case Kind.LEVEL | Kind.NUMBER | Kind.LIMIT:
            of: Any = int
        case Kind.FLAG | Kind.GRANT:
            of = bool
        case _:
            of = list[str]
    return of | None, Field(None, title=f"{inside}{setting.name}", description=setting.about)


_FIELDS: dict[str, Any] = {
    **{each.field: field_of(each) for each in _SETTINGS},
    **{each.field: field_of(each) for each in GRANTS},
    **{f"{UNTRUSTED}_{each.field}": field_of(each, f"{UNTRUSTED}.") for each in _SETTINGS},
}

if TYPE_CHECKING:
    _Fields = BaseModel
else:
    _Fields = create_model("_Fields", **_FIELDS)


class PolicyBlock(Block, _Fields):
    """What the machines that name this block allow, at most."""

    _block_type_name = "Quantum Orchestrator Policy"
    _block_type_slug = "quantum-orchestrator-policy"

    def given(self, name: str) -> list[Given]:
        """Its settings; `name` is the block's. Raises InvalidInput for a value that means nothing."""
        values = {field: getattr(self, field) for field in _FIELDS}
        return from_block({field: value for field, value in values.items() if value is not None}, name)


async def settings_of(name: str) -> list[Given]:
    """The settings of the server's block of this name. Raises ServerError where there is none."""
    try:
        block: PolicyBlock = await PolicyBlock.aload(name)
    except (ValueError, ObjectNotFound) as error:
        raise ServerError(
            f"the Prefect server has no policy block {name!r}, which `policy` under [prefect] in policy.toml names",
            hint="make it in Prefect's UI, after `prefect block register -m quantum_orchestrator.blocks`",
        ) from error
    return block.given(name)

"""The secrets of a webhook as a Prefect block: several may be active, so that one can be replaced without a gap.

Knows Prefect, and so is imported only where a webhook names such a block.
"""

from __future__ import annotations

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import Field, SecretStr

from quantum_orchestrator.blocks.errors import ServerError


class WebhookSecret(Block):
    """What a sender of webhooks signs with."""

    _block_type_name = "Quantum Orchestrator Webhook Secret"
    _block_type_slug = "quantum-orchestrator-webhook-secret"

    secrets: list[SecretStr] = Field(
        title="Secrets", description="All that are valid now: the new one, and the old one for as long as it is used"
    )


def secrets_of(name: str) -> list[str]:
    """The secrets in the server's block of this name. Raises ServerError where there is none."""
    try:
        block = WebhookSecret.load(name, _sync=True)  # type: ignore[call-arg]
    except (ValueError, ObjectNotFound) as error:
        raise ServerError(
            f"the Prefect server has no webhook secret block {name!r}",
            hint="`prefect block register -m quantum_orchestrator.blocks.webhook_secret`, then make it in Prefect's UI",
        ) from error
    assert isinstance(block, WebhookSecret)
    return [each.get_secret_value() for each in block.secrets]

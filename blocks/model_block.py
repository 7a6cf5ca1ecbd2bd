"""Who answers questions to language models, as a block of the Prefect server: a name, credentials, prices.

A step names it (`provider`), or the machine does (QO_MODEL_BLOCK). Credentials are secret fields, and are masked
wherever the run shows or stores anything. What the settings mean is `blocks/model.py`'s matter. Knows Prefect, and so
is imported only where a run asks for a block.
"""

from __future__ import annotations

from typing import Literal

from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound
from pydantic import Field, SecretStr

from quantum_orchestrator.blocks.errors import ServerError
from quantum_orchestrator.blocks.model import ANTHROPIC, OFFLINE, ModelSettings, Prices


class ModelBlock(Block):
    """A language model: where it is, what it is called, and what it costs."""

    _block_type_name = "Quantum Orchestrator Model"
    _block_type_slug = "quantum-orchestrator-model"

    provider: Literal["anthropic", "offline"] = Field(
        "anthropic", description="anthropic: any server that speaks the Messages protocol; offline: rules alone"
    )
    model: str = Field("", description="The model's name, as its server knows it")
    base_url: str | None = Field(
        None, description="The server's address, without /v1: of Ollama, llama.cpp, vLLM, LM Studio; else Anthropic's"
    )
    api_key: SecretStr | None = Field(None, description="An API key")
    auth_token: SecretStr | None = Field(None, description="A token of another kind in its place")
    input_price: float | None = Field(None, ge=0, description="What a million tokens of questions cost")
    output_price: float | None = Field(None, ge=0, description="What a million tokens of answers cost")
    max_tokens: int = Field(8192, ge=1, description="Tokens that an answer may have where a step does not say")
    timeout: float = Field(300.0, gt=0, description="Seconds that one question may take, all tries included")
    tries: int = Field(4, ge=1, description="How often the server is asked where it cannot answer at the time")
    streaming: bool = Field(True, description="Whether answers come bit by bit; off for servers that cannot")
    hosted: bool | None = Field(
        None, description="Whether the server knows strict tools and prompt caching; by default, only Anthropic's"
    )

    def settings(self) -> ModelSettings:
        """As everybody else knows them."""
        if self.provider == OFFLINE:
            return ModelSettings()
        known = self.input_price is not None and self.output_price is not None
        return ModelSettings(
            ANTHROPIC,
            self.model,
            self.base_url,
            "" if self.api_key is None else self.api_key.get_secret_value(),
            "" if self.auth_token is None else self.auth_token.get_secret_value(),
            prices=Prices(self.input_price or 0.0, self.output_price or 0.0) if known else None,
            max_tokens=self.max_tokens,
            timeout=self.timeout,
            tries=self.tries,
            streaming=self.streaming,
            hosted=self.hosted,
        )


def settings_of(name: str) -> ModelSettings:
    """The settings of the server's block of this name. Raises ServerError where there is none."""
    try:
        block: ModelBlock = ModelBlock.load(name, _sync=True)  # type: ignore[call-arg, assignment]
    except (ValueError, ObjectNotFound) as error:
        raise ServerError(
            f"the Prefect server has no model block {name!r}",
            hint="make it in Prefect's UI, after `prefect block register -m quantum_orchestrator.blocks.model_block`",
        ) from error
    return block.settings()

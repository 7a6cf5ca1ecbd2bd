"""The flow of deployments that `qo deploy` makes: each runs the set that it was made from, with inputs as parameters.

The set is not among the parameters: the deployment names it by its digest (its `version`), and the server holds it in a
block of that name (`blocks/set_block.py`). So whoever starts a run chooses inputs and nothing else, and what runs is
what the deployer saw, with the trust that it had then. All else is as in `flows/orchestrate.py`, whose flow it is to
Prefect: executed again, it goes on with the run that it began.

Prefect gives a flow only parameters of its signature, and before it can look at the set. So the entry point has their
names in it, `deployed_set(word,count)`, and the flow of that name is made when Prefect asks this module for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from inspect import Parameter, Signature
from typing import Any

from prefect import Flow, get_client
from prefect.client.schemas.objects import State

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.blocks.set_block import stored
from quantum_orchestrator.flows.deployment_form import FLOW_NAME, RUN_PARAMETERS, divided, names_in
from quantum_orchestrator.flows.document import OnFailure
from quantum_orchestrator.flows.flow_runs import current_flow_run
from quantum_orchestrator.flows.instruction_set import load_object
from quantum_orchestrator.flows.orchestrate import Wanted, name_of_flow_run, take_up


def __getattr__(name: str) -> Flow[..., Any]:
    names = names_in(name)
    if names is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return flow_taking(names)


def flow_taking(names: Sequence[str]) -> Flow[..., Any]:
    """The flow with parameters of these names beside the run's own."""

    async def deployed_set(**parameters: Any) -> State[Any]:
        """Run the instruction set of this deployment on a workspace of the machine that the worker is on."""
        return await _run(parameters)

    every = [Parameter(each, Parameter.KEYWORD_ONLY, default=None) for each in (*names, *RUN_PARAMETERS)]
    deployed_set.__signature__ = Signature(every)  # type: ignore[attr-defined]
    # The set's inputs are judged when the set is there.
    return Flow(
        deployed_set, name=FLOW_NAME, flow_run_name=name_of_flow_run, validate_parameters=False, persist_result=False
    )


async def _run(parameters: dict[str, Any]) -> State[Any]:
    own, inputs = divided(parameters)
    name, digest = await _deployed()
    document = load_object(json.loads(await stored(digest)))
    on_failure = own.get("on_failure")
    wanted = Wanted(
        document,
        inputs,
        own.get("workspace"),
        own.get("parallel"),
        None if on_failure is None else OnFailure(on_failure),
        source=f"deployment {FLOW_NAME}/{name}, sha256 {digest}",
    )
    return await take_up(wanted)


async def _deployed() -> tuple[str, str]:
    """The deployment's name, and the digest of its set."""
    deployment_id = current_flow_run().deployment_id
    if deployment_id is None:
        raise UsageError("this flow runs the set of its deployment", hint="`qo deploy FILE` makes one")
    async with get_client() as client:
        deployment = await client.read_deployment(deployment_id)
    return deployment.name, deployment.version or ""

"""`qo webhooks`: which deliveries run which sets; and how to try that out, and to run one again.

They change one file of the state folder, which a running `qo api` reads again. `test` asks the rules that the service
asks, and with --send is a sender to it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import ServerError, UsageError
from quantum_orchestrator.blocks.home import home
from quantum_orchestrator.deployments.cli_options import (
    TALK,
    Json,
    Talk,
    WorkspaceOption,
    load_source,
    read_source,
    workspace_root,
)
from quantum_orchestrator.deployments.inbox import Arrival, Inbox, Once
from quantum_orchestrator.deployments.screen import aligned
from quantum_orchestrator.deployments.webhooks import (
    Delivery,
    Provider,
    Rule,
    Secrets,
    Webhook,
    Webhooks,
    check_expression,
    matching,
    read,
    signed,
)

Name = Annotated[str, Parameter(help="The webhook's name: the end of its address.")]
Texts = tuple[str, ...]
SEND_SECONDS = 30.0


def add(
    name: Name,
    /,
    *,
    provider: Annotated[
        Literal["github", "gitlab", "gitea", "standard"], Parameter(help="Who sends: github, gitlab, gitea, standard.")
    ],
    set_: Annotated[str, Parameter(name="--set", help="The instruction set to run.")],
    workspace: WorkspaceOption = None,
    secret_env: Annotated[
        Texts, Parameter(name="--secret-env", help="A variable, in the environment of `qo api`, with a secret.")
    ] = (),
    secret_block: Annotated[
        Texts, Parameter(name="--secret-block", help="A webhook secret block of the Prefect server.")
    ] = (),
    event: Annotated[Texts, Parameter(name="--event", help="Only for such events; a glob, may be repeated.")] = (),
    branch: Annotated[Texts, Parameter(name="--branch", help="Only for such branches; likewise.")] = (),
    path: Annotated[Texts, Parameter(name="--path", help="Only when such a path was changed; likewise.")] = (),
    when: Annotated[str, Parameter(help="Only when this expression over inputs.payload, … holds.")] = "",
    talk: Talk = TALK,
) -> int:
    """Have deliveries run a set.

    Of a name that there is, this adds a rule, and its secrets: all of them
    count. The set gets the payload as its input `payload`, and `event`,
    `branch`, `paths` and `delivery` if it has inputs of these names. It is not
    trusted unless `[doors] trusted` in policy.toml names `webhook:NAME`.
    """
    document = load_source(set_, untrusted=True).document
    if "payload" not in document.inputs:
        hint = '"inputs": {"payload": {"type": "object"}}'
        raise UsageError(f"{set_}: has no input `payload`, in which a delivery comes", hint=hint)
    if when:
        check_expression(when)
    root = workspace_root(workspace, document)
    rule = Rule(str(Path(set_).absolute()), str(root), event, branch, path, when)
    secrets = [*(f"env:{each}" for each in secret_env), *(f"block:{each}" for each in secret_block)]
    Webhooks(home()).add(Webhook(name, Provider(provider), secrets, [rule]))
    talk.screen.result(f"deliveries to /api/v1/webhooks/{name} run {set_} in {root}")
    return 0


def list_(*, json_: Json = False, talk: Talk = TALK) -> int:
    """List the webhooks and their rules."""
    webhooks = Webhooks(home()).every()
    if json_:
        talk.screen.document({"webhooks": [asdict(each) for each in webhooks]})
    elif not webhooks:
        talk.screen.note("there is none; `qo webhooks add NAME …` makes one")
    else:
        rows = [_row(each, rule) for each in webhooks for rule in each.rules]
        talk.screen.result(
            "\n".join(aligned([["NAME", "PROVIDER", "EVENTS", "BRANCHES", "PATHS", "WHEN", "SET", "WORKSPACE"], *rows]))
        )
    return 0


def _row(webhook: Webhook, rule: Rule) -> list[str]:
    lists = [" ".join(each) or "*" for each in (rule.events, rule.branches, rule.paths)]
    return [webhook.name, webhook.provider.value, *lists, rule.when, rule.set, rule.workspace]


def remove(name: Name, /, *, talk: Talk = TALK) -> int:
    """Remove a webhook with all of its rules."""
    Webhooks(home()).remove(name)
    talk.screen.result(f"the webhook {name!r} is removed")
    return 0


def judge(
    name: Name,
    /,
    *,
    payload: Annotated[str, Parameter(help="A JSON file with a payload; - is standard input.")],
    event: Annotated[str, Parameter(help="The event that it is to be.")] = "push",
    send: Annotated[str | None, Parameter(help="Send it, signed, to the API at this address.")] = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Say which sets a delivery would run; with --send, deliver it.

    Exit code 1 if it would run none.
    """
    webhook = _known(name)
    body = read_source(payload)
    delivery = _delivery(webhook, body, event)
    rules = list(matching(webhook, delivery))
    answer = None if send is None else _sent(webhook, body, event, send)
    if json_:
        about = {"event": delivery.event, "branch": delivery.branch, "paths": delivery.paths}
        talk.screen.document({**about, "rules": [asdict(each) for each in rules], "answer": answer})
    else:
        what = f"{delivery.event or 'no event'} {delivery.branch}".strip()
        talk.screen.result(f"{what}: runs {', '.join(each.set for each in rules) or 'nothing'}")
        if answer is not None:
            talk.screen.result(f"answered {answer['status']}: {json.dumps(answer['body'])}")
    return 0 if rules else 1


def _known(name: str) -> Webhook:
    found = Webhooks(home()).find(name)
    if found is None:
        raise UsageError(f"there is no webhook {name!r}", hint="`qo webhooks list` lists them")
    return found


def _delivery(webhook: Webhook, body: bytes, event: str) -> Delivery:
    headers = {"x-github-event": event, "x-gitea-event": event, "x-gitlab-event": event}
    return read(webhook.provider, headers, body)


def _sent(webhook: Webhook, body: bytes, event: str, address: str) -> dict[str, Any]:
    import httpx

    secret = Secrets(os.environ).of(webhook)[0]
    headers = signed(webhook.provider, secret, body, event=event, delivery=f"test-{uuid4()}", now=time.time())
    place = f"{address.rstrip('/').removesuffix('/api/v1')}/api/v1/webhooks/{webhook.name}"
    try:
        response = httpx.post(
            place, content=body, headers={**headers, "Content-Type": "application/json"}, timeout=SEND_SECONDS
        )
    except httpx.HTTPError as error:
        raise ServerError(f"{place}: {error}", hint="`qo api` serves it") from error
    return {"status": response.status_code, "body": response.json()}


def replay(
    run: Annotated[str, Parameter(help="A run that a delivery has begun, by its id.")],
    /,
    *,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Run once more what a delivery ran: the same set with the same payload, as a new run.

    A running `qo api` begins it; without one it waits.
    """
    with Inbox(home()) as inbox:
        item = inbox.of_run(run)
        if item is None or not item.source.startswith("webhook:"):
            raise UsageError(f"{run!r} is no run of a delivery", hint="`qo inbox list` lists them")
        again = Arrival(
            source=item.source,
            actor=item.actor,
            workspace=item.workspace,
            document=item.document,
            file=item.file,
            folder=item.folder,
            inputs=item.inputs,
            options=item.options,
        )
        accepted = inbox.accept([again], Once(item.source, f"replay:{uuid4()}"))
    if json_:
        talk.screen.document({"run_id": accepted.run_ids[0], "replays": run})
    else:
        talk.screen.result(f"run {accepted.run_ids[0]} is accepted: what run {run} was given, once more")
        talk.screen.note(f"`qo api` begins it; `qo inbox run {accepted.items[0]}` does as well")
    return 0

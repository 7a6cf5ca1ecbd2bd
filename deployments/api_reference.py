"""The page `docs/api.md`, made from the OpenAPI document of the API: `reference.pages` puts it beside the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantum_orchestrator.deployments import reference
from quantum_orchestrator.deployments.reference import MADE, without_null

Document = Mapping[str, Any]

BEGIN = """\
```console
$ qo token create ci --scope run --scope read
qo_…
$ qo api --workspace ../shop
http://127.0.0.1:8410/api/v1 on /home/ada/shop
```

```console
$ curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\
    -H "Idempotency-Key: release-1.4" --data '{"set": {…}, "inputs": {"who": "Ada"}}' \\
    http://127.0.0.1:8410/api/v1/runs
{"run_id": "20260102-030405-1a2b3c", "status": "queued", "links": {…}}
$ curl -N -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8410/api/v1/runs/20260102-030405-1a2b3c/events
```"""

ACCEPTING = """\
A run is acknowledged (202) once it is on disk, with its id. It then runs once: if the service is killed, or the run is,
whoever starts the service again goes on with that same run. Runs of a workspace come one after the other, in the order
in which they were accepted; one that waits for a person keeps the next ones waiting, and `note` says so. With
`Idempotency-Key`, the same request has the stored reply, and the key with another one is an error (422). `?wait=30`
answers with the run (200) if it ends in time."""

TRUST = """\
What arrives by the API or a webhook is not trusted, whatever it says of itself: [what that means](../README.md). To
trust a door, name it in `policy.toml`: `[doors] trusted = ["api", "webhook:deploy"]`. A token's name is the actor in
the audit. Requests that are refused are in the audit too."""

LIMITS = """\
A body may have 1 MiB (`--max-body`), and must have come within 10 s (`--body-seconds`). Each token and each address may
ask 50 times a second (`--rate`), and twice that at once. The service listens at 127.0.0.1; it refuses to listen
elsewhere before there is a token. It speaks HTTP: for other machines, put a proxy with TLS before it."""

ERRORS = """\
Errors are `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, `hint`, and for what is invalid
`errors`, each with `file`, `line`, `column`, `pointer`, `message` and `hint`, as the command line prints them. Lines
and columns count in the body of the request, pointers in the set."""

WEBHOOKS = """\
```console
$ export DEPLOY_SECRET=…       # what was given to the sender
$ qo webhooks add deploy --provider github --secret-env DEPLOY_SECRET \\
    --event push --branch main --path 'src/**' --set deploy.json --workspace /srv/shop
$ qo webhooks test deploy --payload push.json
push main: runs /srv/sets/deploy.json
$ qo api --workspace /srv/shop
```

The sender posts to `/api/v1/webhooks/deploy`. Providers are `github`, `gitlab`, `gitea` (and Forgejo) and `standard`
([Standard Webhooks](https://www.standardwebhooks.com)). A delivery is verified over its bytes before anything in it is
looked at; of Standard Webhooks, one that is more than 300 s old is refused. A delivery that comes again is answered
with the runs of the first time; the same body under another id, which GitHub and Gitea do not sign, is refused. Secrets
are variables in the environment of `qo api`, or blocks (`prefect block register -m
quantum_orchestrator.blocks.webhook_secret`); of several, any may be the right one.

Rules are met when all of `--event`, `--branch`, `--path` (globs; a push that does not tell all of its paths meets any)
and `--when` (an expression over `inputs`) hold; adding a webhook of the same name adds a rule. The set has the input
`payload`, and, if it declares them, `event`, `branch`, `paths` and `delivery`. It is kept as it is when the delivery
comes. `qo webhooks replay RUN` runs it once more."""


def page() -> Iterator[str]:
    """The blocks of the page."""
    from quantum_orchestrator.deployments.api import make_app

    document = make_app(None).openapi()
    yield "# REST API and webhooks"
    yield MADE
    yield "`qo api` serves one workspace. `GET /api/v1/openapi.json` has the whole of this for programs."
    yield BEGIN
    for title, text in (("Accepting", ACCEPTING), ("Trust", TRUST), ("Limits", LIMITS), ("Errors", ERRORS)):
        yield f"## {title}"
        yield text
    yield _statuses(document)
    yield "## Webhooks"
    yield WEBHOOKS
    yield "## Requests"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from _request(method.upper(), path, operation, document["components"]["schemas"])


def _statuses(document: Document) -> str:
    """What each status of a refusal says, once for all requests."""
    words: dict[str, str] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            words |= {status: each["description"] for status, each in operation["responses"].items() if status >= "400"}
    return reference.table(["status", "meaning"], [[status, words[status]] for status in sorted(words)])


def _request(method: str, path: str, operation: Document, schemas: Document) -> Iterator[str]:
    yield f"### {method} {path}"
    yield f"{operation['summary']}. {' '.join(operation.get('description', '').split())}".strip()
    given = [*_parameters(operation, schemas), *_fields(operation, schemas)]
    if given:
        yield reference.table(["name", "in", "type", "meaning"], given)
    answers = operation["responses"]
    done = [status for status in answers if status < "400"]
    refused = [status for status in answers if "400" <= status < "500"]
    yield f"Answers {' or '.join(done)}; refuses with {', '.join(refused)}."


def _parameters(operation: Document, schemas: Document) -> Iterator[list[str]]:
    for each in operation.get("parameters", ()):
        words = without_null(reference.type_words(each["schema"], schemas))
        yield [f"`{each['name']}`", each["in"], words, each.get("description", "")]


def _fields(operation: Document, schemas: Document) -> Iterator[list[str]]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    name = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
    for field, schema in schemas.get(name, {}).get("properties", {}).items():
        words = without_null(reference.type_words(schema, schemas))
        yield [f"`{field}`", "body", words, schema.get("description", "")]

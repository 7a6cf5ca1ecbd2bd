"""Which deliveries are genuine, what they tell of, and which sets they are for."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.webhooks import (
    NotGenuine,
    Provider,
    Rule,
    Secrets,
    Unreadable,
    Webhook,
    Webhooks,
    check_expression,
    matching,
    read,
    signed,
    verify,
)

NOW = 1_700_000_000.0
BODY = json.dumps({"ref": "refs/heads/main", "type": "paid", "object_kind": "push"}).encode()
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the example in the specification
SECRETS = {each: STANDARD_SECRET if each is Provider.STANDARD else "s3cret" for each in Provider}
OTHERS = {each: "whsec_c2VjcmV0" if each is Provider.STANDARD else "other" for each in Provider}


def headers(provider: Provider, secret: str = "", body: bytes = BODY, now: float = NOW) -> dict[str, str]:
    made = signed(provider, secret or SECRETS[provider], body, event="push", delivery="d-1", now=now)
    return {name.lower(): value for name, value in made.items()}


@pytest.mark.parametrize("provider", Provider)
def test_what_a_secret_has_signed_is_genuine_and_so_with_any_of_several(provider: Provider) -> None:
    verify(provider, headers(provider), BODY, [SECRETS[provider]], NOW)
    verify(provider, headers(provider), BODY, [OTHERS[provider], SECRETS[provider]], NOW)


@pytest.mark.parametrize("provider", Provider)
def test_what_another_secret_has_signed_or_none_is_not(provider: Provider) -> None:
    for secrets in ([OTHERS[provider]], [], [""]):
        with pytest.raises(NotGenuine):
            verify(provider, headers(provider), BODY, secrets, NOW)
    with pytest.raises(NotGenuine, match="is missing"):
        verify(provider, {}, BODY, [SECRETS[provider]], NOW)


@pytest.mark.parametrize("provider", [Provider.GITHUB, Provider.GITEA, Provider.STANDARD])
def test_a_byte_that_was_changed_on_the_way_is_noticed(provider: Provider) -> None:
    with pytest.raises(NotGenuine):
        verify(provider, headers(provider), BODY + b" ", [SECRETS[provider]], NOW)


def test_signatures_are_those_of_the_senders_own_examples() -> None:
    """From GitHub's manual, and from the specification of Standard Webhooks."""
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    github = {"x-hub-signature-256": f"sha256={digest}"}
    verify(Provider.GITHUB, github, b"Hello, World!", ["It's a Secret to Everybody"])
    gitea = hmac.new(b"secret", b"{}", hashlib.sha256).hexdigest()
    verify(Provider.GITEA, {"x-gitea-signature": gitea}, b"{}", ["secret"])
    standard = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    verify(Provider.STANDARD, standard, b'{"test": 2432232314}', [STANDARD_SECRET], 1614265330)


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_time_stamp_that_is_off_is_stale_though_it_is_signed(seconds: int) -> None:
    with pytest.raises(NotGenuine, match="off by more than 300 s") as raised:
        verify(Provider.STANDARD, headers(Provider.STANDARD, now=NOW + seconds), BODY, [STANDARD_SECRET], NOW)
    assert raised.value.reason == "stale"
    verify(Provider.STANDARD, headers(Provider.STANDARD, now=NOW + seconds // 2), BODY, [STANDARD_SECRET], NOW)


def test_several_signatures_may_be_sent_while_a_secret_is_replaced() -> None:
    old, new = headers(Provider.STANDARD, OTHERS[Provider.STANDARD]), headers(Provider.STANDARD)
    both = {**new, "webhook-signature": f"{old['webhook-signature']} {new['webhook-signature']}"}
    verify(Provider.STANDARD, both, BODY, [STANDARD_SECRET], NOW)


@pytest.mark.parametrize("stamp", ["", "soon", "1e9", "-1", "9" * 30, "²"])
def test_a_time_stamp_that_is_no_number_is_refused(stamp: str) -> None:
    with pytest.raises(NotGenuine):
        verify(
            Provider.STANDARD,
            {**headers(Provider.STANDARD), "webhook-timestamp": stamp},
            BODY,
            [STANDARD_SECRET],
            NOW,
        )


# What it tells of.


def delivered(provider: Provider, payload: Any, **given: str) -> Any:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return read(provider, {**headers(provider), **given}, body)


@pytest.mark.parametrize(
    ("provider", "payload", "event", "branch"),
    [
        (Provider.GITHUB, {"ref": "refs/heads/feature/x"}, "push", "feature/x"),
        (Provider.GITHUB, {"pull_request": {"base": {"ref": "main"}}}, "push", "main"),
        (Provider.GITEA, {"ref": "refs/heads/main"}, "push", "main"),
        (Provider.GITLAB, {"object_kind": "push", "ref": "refs/heads/main"}, "push", "main"),
        (
            Provider.GITLAB,
            {"object_kind": "merge_request", "object_attributes": {"target_branch": "main"}},
            "merge_request",
            "main",
        ),
        (Provider.STANDARD, {"type": "invoice.paid"}, "invoice.paid", ""),
    ],
)
def test_event_and_branch_are_told_as_each_provider_has_them(
    provider: Provider, payload: dict[str, Any], event: str, branch: str
) -> None:
    found = delivered(provider, payload)
    assert (found.id, found.event, found.branch) == ("d-1", event, branch)


def test_paths_are_those_of_all_commits_or_unknown_where_not_all_are_told() -> None:
    commits = [{"added": ["a"], "modified": ["b"]}, {"removed": ["c"], "modified": ["b"]}]
    assert delivered(Provider.GITHUB, {"commits": commits}).paths == ["a", "b", "c"]
    assert delivered(Provider.GITLAB, {"commits": commits, "total_commits_count": 25}).paths is None
    assert delivered(Provider.GITHUB, {"pull_request": {}}).paths is None


def test_a_form_is_read_as_github_sends_it() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert delivered(Provider.GITHUB, b"payload=%7B%22ref%22%3A%22refs%2Fheads%2Fmain%22%7D", **form).branch == "main"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_object_cannot_be_read(body: bytes) -> None:
    with pytest.raises(Unreadable):
        delivered(Provider.GITHUB, body)


# Rules.

PUSH = {"ref": "refs/heads/main", "forced": True, "commits": [{"modified": ["src/app.py"]}]}


@pytest.mark.parametrize(
    ("rule", "runs"),
    [
        ({}, True),
        ({"events": ["push"]}, True),
        ({"events": ["ping", "pu*"]}, True),
        ({"events": ["pull_request"]}, False),
        ({"branches": ["main"]}, True),
        ({"branches": ["release/*"]}, False),
        ({"paths": ["src/**"]}, True),
        ({"paths": ["docs/**", "*.md"]}, False),
        ({"when": "inputs.payload.forced"}, True),
        ({"when": "${{ inputs.branch == 'main' and not inputs.payload.forced }}"}, False),
        ({"when": "inputs.payload.missing.key == 1"}, False),
        ({"events": ["push"], "branches": ["main"], "paths": ["docs/**"]}, False),
    ],
)
def test_a_rule_is_met_when_everything_that_it_asks_for_holds(rule: dict[str, Any], runs: bool) -> None:
    webhook = Webhook("w", Provider.GITHUB, ["env:S"], [Rule("s.json", "/w", **rule)])
    assert bool(list(matching(webhook, delivered(Provider.GITHUB, PUSH)))) is runs


def test_a_rule_for_paths_is_met_where_nobody_can_tell_the_paths() -> None:
    webhook = Webhook("w", Provider.GITLAB, ["env:S"], [Rule("s.json", "/w", paths=["docs/**"])])
    payload = {"object_kind": "push", "commits": [], "total_commits_count": 30}
    assert list(matching(webhook, delivered(Provider.GITLAB, payload)))


def test_an_expression_that_is_wrong_is_refused_when_it_is_written() -> None:
    check_expression("inputs.payload.forced")
    with pytest.raises(UsageError, match="--when"):
        check_expression("inputs.payload.forced and")


# What is kept.


def test_a_webhook_may_have_several_rules_and_secrets_but_one_provider(tmp_path: Path) -> None:
    webhooks = Webhooks(tmp_path)
    webhooks.add(Webhook("w", Provider.GITHUB, ["env:OLD"], [Rule("a.json", "/w")]))
    webhooks.add(Webhook("w", Provider.GITHUB, ["env:NEW"], [Rule("b.json", "/w", events=["push"])]))
    (found,) = Webhooks(tmp_path).every()
    assert (found.secrets, [rule.set for rule in found.rules]) == (["env:OLD", "env:NEW"], ["a.json", "b.json"])
    with pytest.raises(UsageError, match="is github's"):
        webhooks.add(Webhook("w", Provider.GITLAB, ["env:S"], []))
    with pytest.raises(UsageError, match="needs a secret"):
        webhooks.add(Webhook("other", Provider.GITHUB, [], [Rule("a.json", "/w")]))
    webhooks.remove("w")
    assert Webhooks(tmp_path).find("w") is None
    assert Webhooks(tmp_path).find("other") is None


def test_secrets_come_from_the_environment_and_an_empty_one_opens_nothing() -> None:
    webhook = Webhook("w", Provider.GITHUB, ["env:OLD", "env:NEW"], [])
    assert Secrets({"NEW": "n"}).of(webhook) == ["n"]
    with pytest.raises(UsageError, match="OLD, NEW is empty"):
        Secrets({"OLD": ""}).of(webhook)

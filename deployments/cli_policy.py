"""Commands about the machine's policy: what it is, and what it says of a set. Nothing runs, and Prefect is not needed.

What is allowed is decided in `flows/guard.py` and `blocks/policy.py`; here it is put into words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quantum_orchestrator.deployments.cli_options import (
    STDIN,
    TALK,
    File,
    InputPairs,
    InputsFile,
    Json,
    Source,
    Talk,
    Untrusted,
    WorkspaceOption,
    read_source,
    resolved_inputs,
    workspace_root,
)
from quantum_orchestrator.deployments.screen import Screen, aligned, plural

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.flows.verdicts import Verdict

REFUSED, NEEDS_APPROVAL = 3, 5
"""Exit codes of `policy test`: what `qo run` would exit with before anything has run, or at the first approval."""
MARKS = {"allowed": ("✓", "green"), "needs_approval": ("?", "yellow"), "refused": ("✗", "red")}


def show(
    *,
    untrusted: Annotated[bool, Parameter(name="--untrusted", help="What holds for sets that are not trusted.")] = False,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Show the policy of this machine: each setting, and where it comes from.

    It is the file policy.toml in the state folder; what it leaves out keeps its default.
    """
    from quantum_orchestrator.blocks.home import policy_path
    from quantum_orchestrator.blocks.policy import Policy

    path = policy_path()
    policy = Policy.load(path)
    settings = list(_settings(policy.for_untrusted() if untrusted else policy, untrusted=untrusted))
    if json_:
        document = {"file": str(path), "exists": path.exists(), "for": "untrusted" if untrusted else "everybody"}
        talk.screen.document({**document, "settings": settings})
        return 0
    talk.screen.note(f"{path}" + ("" if path.exists() else ": not there; all settings have their defaults"))
    rows = [[each["setting"], _value(each["value"]), each["source"]] for each in settings]
    talk.screen.result("\n".join(aligned([["SETTING", "VALUE", "FROM"], *rows])))
    return 0


def _settings(policy: Policy, *, untrusted: bool) -> Iterator[dict[str, Any]]:
    from quantum_orchestrator.blocks.policy import GRANTS, SETTINGS, Kind

    for setting in (*SETTINGS, *GRANTS):
        lists = policy.rules_of(setting.name)
        if setting.kind in (Kind.ALLOW, Kind.DENY, Kind.ASK):
            for rule in lists:
                yield {"setting": setting.name, "value": list(rule.patterns), "source": rule.where}
            if not lists:
                yield {"setting": setting.name, "value": list(setting.default), "source": "default"}
        else:
            value = getattr(policy, setting.field)
            value = list(value) if isinstance(value, tuple) else value
            yield {"setting": setting.name, "value": value, "source": policy.sources.get(setting.name, "default")}
    for given in () if untrusted else policy.untrusted:
        value = list(given.value) if isinstance(given.value, tuple) else given.value
        yield {"setting": given.name, "value": value, "source": given.where}


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        shown = value if len(value) <= 6 else [*value[:5], f"… {len(value) - 5} more (--json has them)"]
        return ", ".join(shown) if shown else "none"
    return str(value)


def judge_set(
    file: File,
    /,
    *,
    untrusted: Untrusted = False,
    input: InputPairs = (),  # noqa: A002 - the option's name
    inputs_file: InputsFile = None,
    workspace: WorkspaceOption = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Say of each step of a set what the policy says of it, and which setting decides.

    allowed; needs approval, and of what; or refused. The steps run in memory,
    as `qo plan` does it, to see what they would change. Exit codes: 0 all are
    allowed, 3 one is refused, 5 one needs an approval.
    """
    from quantum_orchestrator.blocks.home import policy_path
    from quantum_orchestrator.blocks.policy import Policy

    policy = Policy.load(policy_path())
    source = _judged_without(file, untrusted=untrusted)
    inputs = resolved_inputs(source.document, input, inputs_file)
    found = _verdicts(source, inputs, workspace, policy)
    if json_:
        talk.screen.document(_document(source, found))
    else:
        _print(talk.screen, found)
    decisions = {each.decision.value for each in found}
    return REFUSED if "refused" in decisions else NEEDS_APPROVAL if "needs_approval" in decisions else 0


def _judged_without(file: str, *, untrusted: bool) -> Source:
    """The set, judged by a policy that refuses nothing: here a refusal is an answer, and no fault."""
    from pathlib import Path

    from quantum_orchestrator.flows.instruction_set import Trust, load
    from quantum_orchestrator.flows.judge import LENIENT

    folder = Path.cwd() if file == STDIN else Path(file).absolute().parent
    trust = Trust.UNTRUSTED if untrusted else Trust.TRUSTED
    return Source(file, load(read_source(file), file=file, folder=folder, trust=trust, policy=LENIENT))


def _verdicts(source: Source, inputs: dict[str, Any], workspace: str | None, policy: Policy) -> list[Verdict]:
    from quantum_orchestrator.deployments.planning import tree_of
    from quantum_orchestrator.flows.plan import build
    from quantum_orchestrator.flows.prediction import predict
    from quantum_orchestrator.flows.verdicts import verdicts

    graph = build(source.document, inputs)
    with tree_of(workspace_root(workspace, source.document)) as tree:
        return verdicts(graph, policy, predict(graph, tree, policy=policy, to_the_end=True))


def _document(source: Source, found: list[Verdict]) -> dict[str, Any]:
    from quantum_orchestrator.flows.verdicts import counts

    trust = source.document.trust.value
    return {"set": source.document.name, "trust": trust, **counts(found), "steps": [each.as_json() for each in found]}


def _print(screen: Screen, found: list[Verdict]) -> None:
    from quantum_orchestrator.flows.verdicts import counts

    for verdict in found:
        sign, style = MARKS[verdict.decision.value]
        words = verdict.decision.value.replace("_", " ")
        note = f" ({verdict.note})" if verdict.note else ""
        screen.result(f"{sign} {verdict.id}  {verdict.op}  {words}{note}", style)
        for message, decided_by in verdict.reasons:
            screen.result(f"    {message}")
            if decided_by:
                screen.result(f"    by {decided_by}")
    said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts(found).items())
    screen.result(f"{plural(len(found), 'step')}: {said}")

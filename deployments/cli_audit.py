"""Commands about the audit: what is on record, and whether the record is whole. They change nothing and need no server.

How entries are kept is `blocks/audit.py`'s matter, what they say `flows/auditing.py`'s.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from quantum_orchestrator.blocks.errors import UsageError
from quantum_orchestrator.deployments.cli_options import TALK, Json, Talk
from quantum_orchestrator.deployments.screen import aligned

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.audit import Audit, Entry

BROKEN = 4
"""Exit code of `audit verify` where somebody must look."""


def show(
    *,
    run: Annotated[str | None, Parameter(help="Only entries of this run, by its id or the beginning of it.")] = None,
    limit: Annotated[int, Parameter(help="How many entries, the newest; 0 for all. (20)")] = 20,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Show who began, approved, ended and undid runs, the oldest first.

    The audit is one file for all workspaces of the state folder.
    """
    if limit < 0:
        raise UsageError(f"--limit {limit}: must be 0 or more")
    audit = _audit()
    entries = [each for each in audit.entries() if run is None or each.run.startswith(run)][-limit:]
    if json_:
        talk.screen.document({"file": str(audit.path), "entries": [asdict(each) for each in entries]})
    elif not entries:
        talk.screen.note(f"{audit.path}: nothing on record" + (f" of run {run}" if run else ""))
    else:
        heads = ["N", "WHEN", "EVENT", "BY", "RUN", "WORKSPACE", ""]
        talk.screen.result("\n".join(aligned([heads, *(_row(each) for each in entries)])))
    return 0


def verify(
    *,
    head: Annotated[
        str | None, Parameter(help="A head from before, NUMBER:SHA256, that must still be among the entries.")
    ] = None,
    json_: Json = False,
    talk: Talk = TALK,
) -> int:
    """Check that no entry of the audit was changed, removed or inserted.

    Prints the head. Keep it where nobody on this machine can change it: with
    --head it shows later that nothing before it was written anew or cut off.
    Exit code 4 where something is wrong.
    """
    from quantum_orchestrator.blocks.audit import Head

    audit = _audit()
    found = audit.verify(None if head is None else Head.parse(head))
    if json_:
        status = "broken" if found.faults else "whole"
        talk.screen.document(
            {"file": str(audit.path), "status": status, "head": str(found.head), "faults": found.faults}
        )
        return BROKEN if found.faults else 0
    for fault in found.faults:
        talk.screen.problem(f"{audit.path}: {fault}")
    if found.unfinished:
        talk.screen.note("the last line was never finished: a process died over it; the next entry takes its place")
    if found.faults:
        return BROKEN
    talk.screen.result(f"{found.head.number} on record, each as it was written; head {found.head}")
    return 0


def _audit() -> Audit:
    """The one of this state folder. Makes nothing."""
    from quantum_orchestrator.blocks.audit import Audit
    from quantum_orchestrator.blocks.home import policy_path

    return Audit(policy_path().parent)


def _row(entry: Entry) -> list[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
    details = ", ".join(f"{name} {_short(name, value)}" for name, value in sorted(entry.details.items()) if value)
    return [
        str(entry.number),
        when,
        entry.event.replace("_", " "),
        entry.actor,
        entry.run,
        entry.workspace,
        details,
    ]


def _short(name: str, value: object) -> str:
    return str(value)[:12] if name == "sha256" else str(value)

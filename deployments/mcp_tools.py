"""What an agent may do in one workspace by MCP: the tools' work, without the protocol.

A tool never raises: what went wrong is its answer, as `qo --json` has it (`deployments/failures.py`). Invariant: what
an agent sends is an untrusted set unless `[doors] trusted` in policy.toml names `mcp`, and nothing runs that was not
planned: `run` takes the digest of a plan (`flows/plan_file.py`: set, inputs and what the workspace held), and refuses
when the workspace has moved on. An agent cannot approve, and undoes no run but those that came by MCP, unless it is
trusted. Runs and rollbacks are command lines of `qo`, in processes of their own. It must not import Prefect or fastmcp.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from quantum_orchestrator.blocks.errors import NeedsAttention, PolicyRefused, UsageError
from quantum_orchestrator.blocks.home import policy_path
from quantum_orchestrator.blocks.journal import RunRecord
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.deployments.child_commands import Command, begin
from quantum_orchestrator.deployments.cli_journal import (
    journal_of,
    run_named,
    run_report,
    standing,
    summary,
    workspace_state,
)
from quantum_orchestrator.deployments.cli_options import Source, build_graph
from quantum_orchestrator.deployments.failures import as_known, error_json
from quantum_orchestrator.flows.instruction_set import InstructionSet, Trust, load, load_object, resolve_inputs
from quantum_orchestrator.flows.plan_file import PlanFile
from quantum_orchestrator.flows.requests import new_run_id

if TYPE_CHECKING:
    from quantum_orchestrator.deployments.planning import Plan

DOOR = "mcp"
"""What the audit, and `[doors] trusted` in the policy, call it."""
FILE = "set"
"""What faults call what an agent has sent."""
MOST_PLANS = 100
LONGEST_PATCH = 100_000
LONGEST_WAIT = 600.0
LOOK_SECONDS = 0.1

Json = dict[str, Any]
GivenSet = Mapping[str, Any] | str
"""A set as a JSON object, or as its text: then faults have lines."""
P = ParamSpec("P")


def answering(tool: Callable[P, Json]) -> Callable[P, Json]:
    """A tool whose errors are answers."""

    @functools.wraps(tool)
    def answer(*given: P.args, **named: P.kwargs) -> Json:
        try:
            return tool(*given, **named)
        except Exception as error:
            return error_json(as_known(error))

    return answer


class Tools:
    """The tools of one workspace. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._plans: OrderedDict[str, PlanFile] = OrderedDict()
        self._commands: dict[str, Command] = {}
        self._lock = threading.Lock()

    # Looking.

    @answering
    def operations(self, name: str | None = None) -> Json:
        """All operations in a line each, those of a family, or one with its schemas."""
        from quantum_orchestrator.deployments.cli_sets import operation_json
        from quantum_orchestrator.tasks import registry

        every = registry.every()
        if name is not None and name not in every:
            family = {each: found for each, found in every.items() if each.startswith(f"{name}.")}
            if not family:
                registry.get(name)  # raises, with the nearest name
            every = family
        elif name is not None:
            return operation_json(every[name])
        return {"operations": [{"name": each.name, "summary": each.summary} for each in every.values()]}

    @answering
    def validate(self, instruction_set: GivenSet, inputs: Mapping[str, Any] | None = None) -> Json:
        """Every fault of a set at once."""
        source = self._source(instruction_set)
        document = source.document
        if inputs or all("default" in schema for schema in document.inputs.values()):
            build_graph(source, resolve_inputs(document, dict(inputs or {})))
        return {
            "status": "valid",
            "set": document.name,
            "trust": document.trust.value,
            "instructions": len(document.instructions),
            "inputs": dict(document.inputs),
        }

    @answering
    def plan(self, instruction_set: GivenSet, inputs: Mapping[str, Any] | None = None) -> Json:
        """What a run would change, and the digest that `run` asks for; none where it would fail."""
        from quantum_orchestrator.deployments.planning import plan_json

        made = self._made(instruction_set, inputs)
        answer = plan_json(made) | {"trust": made.document.trust.value, **_cut(made.patch)}
        return answer if made.prediction.failure is None else answer | {"digest": None}

    @answering
    def status(self, run_id: str | None = None) -> Json:
        """How a run stands, step by step; without one, what runs, waits or ran last in the workspace."""
        with journal_of(self.root) as journal:
            if run_id is None:
                return workspace_state(journal, self.root)
            return run_report(journal, run_named(journal, self.root, run_id))

    @answering
    def runs(self, limit: int = 20) -> Json:
        """The newest runs."""
        with journal_of(self.root) as journal:
            return {"runs": [summary(journal, each) for each in journal.runs(limit)]}

    @answering
    def diff(self, run_id: str | None = None, step: str | None = None) -> Json:
        """What a run, or a step of it, has changed, as a git patch."""
        from quantum_orchestrator.flows.report import counts
        from quantum_orchestrator.flows.run_diff import of_run

        with journal_of(self.root) as journal:
            run = run_named(journal, self.root, run_id)
            if step is not None and step not in journal.steps(run.id):
                raise UsageError(f"run {run.id} has no step {step!r}", hint="`status` with this run_id lists its steps")
            made = of_run(journal, run.id, step)
            answer = {"run_id": run.id, "status": standing(journal, run), "diff": counts(made)}
            return answer | _cut(made.patch)

    @answering
    def follow(self, run_id: str, wait_seconds: float = 30.0) -> Json:
        """How a run stands once it has ended or waits for somebody, or after so many seconds."""
        return self._followed(run_id, wait_seconds)

    # Acting.

    @answering
    def run(
        self,
        digest: str,
        instruction_set: GivenSet | None = None,
        inputs: Mapping[str, Any] | None = None,
        wait_seconds: float = 30.0,
    ) -> Json:
        """Run exactly what was planned; how it stands at its end, or after so many seconds."""
        plan = self._planned(digest, instruction_set, inputs)
        from quantum_orchestrator.deployments.planning import tree_of

        with tree_of(self.root) as tree:
            plan.check(tree)
        run_id = new_run_id()
        arguments = ["run", "--plan", "-", "--json", "--workspace", str(self.root)]
        command = begin([*arguments, "--run-id", run_id, "--source", DOOR], given=plan.dump().encode())
        with self._lock:
            self._commands = {known: each for known, each in self._commands.items() if each.wait(0) is None}
            self._commands[run_id] = command
        return self._followed(run_id, wait_seconds)

    @answering
    def rollback(self, run_id: str, check: bool = False) -> Json:
        """Undo a run; with `check`, only say what that would change."""
        with journal_of(self.root) as journal:
            run = run_named(journal, self.root, run_id)
        if not check and not self._trusted and run.options.get("source") != DOOR:
            raise PolicyRefused(
                f"the policy refuses to undo run {run.id} by MCP, as it did not begin there",
                hint="a person can, by `qo rollback`; `trusted` under [doors] in policy.toml may name mcp",
            )
        options = ["--check"] if check else []
        command = begin(["rollback", run.id, "--json", "--workspace", str(self.root), *options])
        command.wait()
        return command.document

    # The way there.

    @property
    def _trusted(self) -> bool:
        return Policy.load(policy_path()).trusts(DOOR)

    def _source(self, given: GivenSet) -> Source:
        policy = Policy.load(policy_path())
        trust = Trust.TRUSTED if policy.trusts(DOOR) else Trust.UNTRUSTED
        return Source(FILE, _loaded(given, trust, policy))

    def _made(self, given: GivenSet, inputs: Mapping[str, Any] | None) -> Plan:
        """A plan, kept for `run` unless it would fail."""
        from quantum_orchestrator.deployments.planning import make_plan

        source = self._source(given)
        made = make_plan(source, resolve_inputs(source.document, dict(inputs or {})), self.root)
        if made.prediction.failure is None:
            with self._lock:
                self._plans[made.file.digest] = made.file
                self._plans.move_to_end(made.file.digest)
                while len(self._plans) > MOST_PLANS:
                    self._plans.popitem(last=False)
        return made

    def _planned(self, digest: str, given: GivenSet | None, inputs: Mapping[str, Any] | None) -> PlanFile:
        """The plan of this digest. Raises UsageError where there is none, NeedsAttention where it says else by now."""
        if given is not None and self._made(given, inputs).file.digest != digest:
            raise NeedsAttention(
                f"a run of this set would not do what the plan {digest[:12]}… says",
                hint="call plan again, look at what it says now, and run with its digest",
            )
        with self._lock:
            plan = self._plans.get(digest)
        if plan is None:
            raise UsageError(
                f"there is no plan with the digest {digest!r}",
                hint="call plan first, and give run its digest; plans are forgotten when the server ends",
            )
        policy = Policy.load(policy_path())  # it may say else since
        if plan.document.trust is Trust.TRUSTED and not policy.trusts(DOOR):
            raise NeedsAttention("the policy has changed since the plan was made", hint="call plan again")
        return plan

    def _followed(self, run_id: str, seconds: float) -> Json:
        deadline = time.monotonic() + min(max(seconds, 0.0), LONGEST_WAIT)
        command = self._commands.get(run_id)
        while True:
            ended = command is not None and command.wait(0) is not None
            answer = self._standing(run_id, command)
            if ended or answer["status"] not in ("starting", "running") or time.monotonic() >= deadline:
                return answer | _advice(answer["status"])
            time.sleep(LOOK_SECONDS)

    def _standing(self, run_id: str, command: Command | None) -> Json:
        with journal_of(self.root) as journal:
            record: RunRecord | None = journal.run(run_id) if command is not None else None
            if command is None:
                record = run_named(journal, self.root, run_id)
            if record is not None:
                return run_report(journal, record)
        if command is not None and command.wait(0) is not None:
            return command.document  # it has not begun, and says why
        return {"run_id": run_id, "status": "starting"}


def _loaded(given: GivenSet, trust: Trust, policy: Policy) -> InstructionSet:
    if isinstance(given, str):
        return load(given.encode("utf-8", "surrogatepass"), file=FILE, trust=trust, policy=policy)
    return load_object(dict(given), file=FILE, trust=trust, policy=policy)


def _cut(patch: str) -> Json:
    if len(patch) <= LONGEST_PATCH:
        return {"patch": patch}
    return {"patch": patch[:LONGEST_PATCH], "patch_cut_after": LONGEST_PATCH, "patch_length": len(patch)}


def _advice(status: str) -> Json:
    """What an agent can do about it."""
    says = {
        "starting": "call follow with this run_id",
        "running": "call follow with this run_id",
        "awaiting_approval": "a person must decide, by `qo approve` or `qo reject`; then call follow",
        "interrupted": "its process has died: call rollback, or a person calls `qo resume`",
        "needs_attention": "a person must look, by `qo status`",
        "paused": "a person goes on with it by `qo resume`, or call rollback",
        "committed": "diff shows what it changed, rollback undoes it",
    }
    return {"next": says[status]} if status in says else {}

"""Blocks in the older format (WizardPro), run and answered for: one block in, one line of JSON out.

`flows/wizardpro_actions.py` makes a block an instruction set, which runs like any other: journaled, in a flow run of
its own, rolled back when an action fails. This module does what is around that: asks for parameters, looks whether
the blocks that this one depends on have succeeded, carries on runs that wait for a sign-off, and writes the reply that
old consumers parse.

The reply lists what became of each action up to and with the one that failed or waits. `message_or_payload` is

- `ECHO`: its message;
- `RUN_SCRIPT`: `{"stdout", "stderr", "exit_code"}`, also of one that exited with another code than 0;
- `READ_FILE_TO_VAR`: the text, `LIST_DIRECTORY_TO_VAR`: the list of paths, `CHECK_PATH_EXISTS`: true or false;
- an action that waits: `{"exwork_status": "AWAITING_SIGNOFF", "signoff_prompt", "signoff_id", "step_id"}`;
- `RESPOND_TO_SIGNOFF`: `{"signoff_id", "response", "step_id", "run_id", "status", "action_results"}` of the block that
  waited, with the keys of the line above when it waits again;
- everything else: a sentence that says what was done. A failed action has the reason.

Nothing here prints. Prefect is imported when a block runs, not before.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from quantum_orchestrator.blocks.audit import current_actor
from quantum_orchestrator.blocks.errors import InvalidInput, OperationError, PolicyRefused, QuantumError
from quantum_orchestrator.flows.auditing import RunAudit
from quantum_orchestrator.flows.faults import nearest, shown
from quantum_orchestrator.flows.instruction_set import InstructionSet, OnFailure, Trust, load_object
from quantum_orchestrator.flows.results import EventKind, RunEvent, RunStatus, StepStatus
from quantum_orchestrator.flows.wizardpro_actions import (
    SIGNOFF_TAG,
    STEP_TAG,
    Block,
    Fields,
    Json,
    Names,
    action_type,
    fields_of,
    looks_old,
    read_block,
    said,
    signoff_id,
    translate,
)

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.journal import Journal, RunRecord
    from quantum_orchestrator.flows.attempts import Observer
    from quantum_orchestrator.flows.requests import RunRequest

__all__ = ["NO_INPUT", "Block", "looks_old", "read_block", "reply_for_problem", "reply_line", "run_block", "translate"]

Ask = Callable[[str], str]
"""Shows a prompt at a terminal and returns the answer."""
NO_INPUT = "No input from stdin."
"""What the reply to an empty standard input says; its exit code is 0."""
ENDED_WELL = (RunStatus.COMMITTED, RunStatus.AWAITING_APPROVAL)
YES = ("yes", "true")


# The reply.


def reply_line(reply: Mapping[str, Any]) -> str:
    """A reply as the one line that its consumers read, without the newline at its end."""
    return json.dumps(reply, ensure_ascii=False)


def reply_for_problem(text: str) -> Json:
    """The reply where no block could be run at all."""
    return {"overall_success": False, "status_message": text}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the reply says, but for the time."""

    success: bool
    message: str
    results: list[Json] = field(default_factory=list)

    def reply(self, seconds: float) -> Json:
        """As the format has it."""
        return {
            "overall_success": self.success,
            "status_message": self.message,
            "duration_seconds": round(seconds, 3),
            "action_results": self.results,
        }


def action_result(kind: str, success: bool, payload: object, seconds: float = 0.0) -> Json:
    """One entry of `action_results`."""
    return {
        "action_type": kind,
        "success": success,
        "message_or_payload": payload,
        "duration_s": round(seconds, 4),
    }


# From a run's document to the results of actions.


def results_of(document: Mapping[str, Any], report: Mapping[str, Any], prompt: str) -> list[Json]:
    """The results of a block's actions up to and with the one that ended its run.

    `document` is the block's instruction set, `report` the document of its run, `prompt` what an approval asks.
    """
    instructions = {each["id"]: each for each in document["instructions"]}
    results = []
    for _, group in groupby(report["steps"], key=lambda step: int(step["id"].partition("-")[0])):
        steps = list(group)
        if all(step["status"] in (StepStatus.SKIPPED, StepStatus.PENDING) for step in steps):
            break
        results.append(_result(steps, instructions, document, prompt))
    return results


def _result(
    steps: Sequence[Mapping[str, Any]], instructions: Mapping[str, Any], document: Mapping[str, Any], prompt: str
) -> Json:
    last = instructions[steps[-1]["id"]]
    kind, seconds = last["tags"][0], sum(step["duration_s"] for step in steps)
    outputs = {step["id"].partition("-")[2]: step["outputs"] or {} for step in steps}
    waiting = next((step for step in steps if step["status"] == StepStatus.AWAITING_APPROVAL), None)
    if waiting is not None:
        return action_result(kind, True, _awaiting(document, instructions[waiting["id"]], prompt), seconds)
    failed = next((step for step in steps if step["status"] == StepStatus.FAILED), None)
    if failed is not None:
        return action_result(kind, False, _failure(kind, failed, outputs), seconds)
    if any(step["status"] == StepStatus.ROLLED_BACK and step["outputs"] is None for step in steps):
        return action_result(kind, False, "stopped before its end", seconds)
    payload = PAYLOADS.get(kind, _sentence)
    return action_result(kind, True, payload(outputs, last["description"]), seconds)


def _awaiting(document: Mapping[str, Any], approval: Mapping[str, Any], prompt: str) -> Json:
    return {
        "exwork_status": "AWAITING_SIGNOFF",
        "signoff_prompt": prompt,
        "signoff_id": _tagged(approval, SIGNOFF_TAG),
        "step_id": _tagged(document, STEP_TAG),
    }


def _tagged(holder: Mapping[str, Any], prefix: str) -> str:
    """What the tag with this prefix says; empty without one."""
    return next((tag[len(prefix) :] for tag in holder.get("tags", []) if tag.startswith(prefix)), "")


Outputs = Mapping[str, Mapping[str, Any]]
"""The outputs of an action's steps by the word of their id; empty for those that were skipped."""


def _failure(kind: str, failed: Mapping[str, Any], outputs: Outputs) -> object:
    if kind == "RUN_SCRIPT" and outputs.get("run"):
        return _script(outputs, "")
    error, is_own = failed["error"], failed["op"] == "assert"
    return error["message"] if is_own or not error["hint"] else f"{error['message']} ({error['hint']})"


def _sentence(_outputs: Outputs, done: str) -> object:
    return done


def _script(outputs: Outputs, _done: str) -> object:
    return {name: outputs["run"][name] for name in ("stdout", "stderr", "exit_code")}


def _message(outputs: Outputs, _done: str) -> object:
    return outputs["echo"]["message"]


def _linted(outputs: Outputs, done: str) -> object:
    findings = outputs["lint"]["findings"]
    if not findings:
        return f"{done}; no findings remain."
    lines = [f"{each['path']}:{each['line']}: {each['rule']} {each['message']}" for each in findings]
    return "\n".join([f"{done}; findings remain:", *lines])


def _added(outputs: Outputs, _done: str) -> object:
    staged, skipped = (", ".join(outputs["add"][name]) for name in ("staged", "skipped"))
    warning = f" Skipped, as there is no such file: {skipped}." if skipped else ""
    return f"In the index: {staged or 'nothing new'}.{warning}"


def _committed(outputs: Outputs, _done: str) -> object:
    commit = outputs["commit"]["commit"]
    return f"Committed {commit}." if commit else "Nothing to commit."


def _answered(outputs: Outputs, done: str) -> object:
    """The answer, unless it is in a file."""
    written = outputs["generate"]["sha256"]
    return done if written else outputs["generate"]["text"]


PAYLOADS: Mapping[str, Callable[[Outputs, str], object]] = {
    "ECHO": _message,
    "RUN_SCRIPT": _script,
    "LINT_FORMAT_FILE": _linted,
    "GIT_ADD": _added,
    "GIT_COMMIT": _committed,
    "CALL_LOCAL_LLM": _answered,
    "DIAGNOSE_ERROR": lambda outputs, _: dict(outputs["diagnose"]),
    "READ_FILE_TO_VAR": lambda outputs, _: outputs["read"]["content"],
    "LIST_DIRECTORY_TO_VAR": lambda outputs, _: outputs["list"]["paths"],
    "CHECK_PATH_EXISTS": lambda outputs, _: outputs["test"]["exit_code"] == 0,
}
"""What the reply says of an action that succeeded, where it is more than a sentence known beforehand."""


def _summary(block: Block, report: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """A run's end in one sentence."""
    status, name = report["status"], f"Block {block.step_id!r}"
    if status == RunStatus.COMMITTED:
        count = "1 action" if len(results) == 1 else f"{len(results)} actions"
        return f"{name}: {count} done."
    if status == RunStatus.AWAITING_APPROVAL:
        return f"{name} waits for sign-off {results[-1]['message_or_payload']['signoff_id']!r}."
    error = report["error"]
    reason = f": {said_of(error)}" if error else ""
    place = f" at action {len(results)} ({results[-1]['action_type']})" if _has_failed(results) else ""
    return f"{name} failed{place}{reason}; {_AFTERWARDS.get(status, status)}."


_AFTERWARDS = {
    RunStatus.ROLLED_BACK: "everything was rolled back",
    RunStatus.KEPT: "what was done before stays",
    RunStatus.PAUSED: "what was done before stays, and the run is paused",
    RunStatus.CANCELLED: "it was cancelled, and everything was rolled back",
    RunStatus.NEEDS_ATTENTION: "a person must look",
}


def _has_failed(results: Sequence[Mapping[str, Any]]) -> bool:
    return bool(results) and not results[-1]["success"]


def said_of(error: Mapping[str, str]) -> str:
    """A recorded error's message without the punctuation that would end the sentence it stands in."""
    return error["message"].rstrip(".")


# Before the run: parameters, other blocks.


def parameter_values(block: Block, given: Mapping[str, str], ask: Ask | None) -> dict[str, str]:
    """A value for each parameter: given, or asked for, or its default. Raises InvalidInput naming those without."""
    names = [parameter.name for parameter in block.parameters]
    unknown = [name for name in given if name not in names]
    if unknown:
        hint = nearest(unknown[0], names) or (f"it has {', '.join(names)}" if names else "it has none")
        raise InvalidInput(f"the block has no parameter {shown(unknown[0])}", hint=hint)
    values, missing = {}, []
    for parameter in block.parameters:
        if parameter.name in given:
            values[parameter.name] = given[parameter.name]
        elif ask is not None:
            values[parameter.name] = ask(parameter.prompt or parameter.name) or parameter.default or ""
        elif parameter.default is not None:
            values[parameter.name] = parameter.default
        else:
            missing.append(parameter.name)
    if missing:
        hint = "give them: " + " ".join(f"--input {name}=…" for name in missing)
        raise InvalidInput(f"no value for the parameters {', '.join(map(repr, missing))}", hint=hint)
    return values


def _check_dependencies(block: Block, journal: Journal) -> None:
    """Raises InvalidInput unless every block in `depends_on` has succeeded here, and was not undone since."""
    if not block.depends_on:
        return
    committed = {_tagged(run.document, STEP_TAG) for run in journal.runs() if run.status == RunStatus.COMMITTED}
    unmet = [step_id for step_id in block.depends_on if step_id not in committed]
    if unmet:
        names = ", ".join(map(repr, unmet))
        raise InvalidInput(
            f"block {block.step_id!r} depends on {names}, not yet done in this workspace", hint="run that first"
        )


def roots_of(root: Path) -> list[PurePosixPath]:
    """The absolute names of a workspace that a block may use: as given, without links, as the shell calls it."""
    named = [root.absolute(), root.resolve()]
    working = os.environ.get("PWD", "")
    if working.startswith("/") and Path(working).resolve() == root.resolve():
        named.append(Path(working))
    return [PurePosixPath(name) for name in dict.fromkeys(named)]


# The run.


async def run_block(
    value: Mapping[str, Any],
    *,
    root: Path,
    given: Mapping[str, str],
    ask: Ask | None,
    on_failure: OnFailure | None,
    observers: Sequence[Observer] = (),
    approve: bool = False,
    trust: Trust = Trust.TRUSTED,
    source: str = "a block in the older format",
    run_id: str | None = None,
) -> tuple[Json, int]:
    """Run a block in the workspace `root`: the reply, and the exit code, 0 or 1.

    `given` are values of parameters; `ask` gets the others from a terminal, None where there is none. `approve` gives
    every sign-off in advance. `source` and `run_id` are as in a RunRequest. The Prefect server must be there
    (`deployments/server.py`).
    """
    started = time.monotonic()
    try:
        block = read_block(value)
        values = parameter_values(block, given, ask)
        run = _BlockRun(block, values, root, on_failure, observers, approve, trust, source, run_id)
        answer = await run.run()
    except QuantumError as error:
        answer = Answer(success=False, message=said(error))
    return answer.reply(time.monotonic() - started), 0 if answer.success else 1


@dataclass(frozen=True, slots=True)
class SignOff:
    """What came of a RESPOND_TO_SIGNOFF."""

    result: Json
    sentence: str
    waits_again: bool = False


class _BlockRun:
    """One block on its way."""

    def __init__(
        self,
        block: Block,
        values: Mapping[str, str],
        root: Path,
        on_failure: OnFailure | None,
        observers: Sequence[Observer],
        approve: bool,
        trust: Trust,
        source: str,
        run_id: str | None,
    ) -> None:
        self.block = block
        self.values = values
        self.root = root
        self.on_failure = on_failure
        self.observers = [*observers, self._note_prompt]
        self.approve = approve
        self.trust = trust
        self.source = source
        self.run_id = run_id
        self.prompt = ""

    def _note_prompt(self, event: RunEvent) -> None:
        if event.kind is EventKind.AWAITING_APPROVAL:
            self.prompt = event.message

    async def run(self) -> Answer:
        """Sign-offs first, then the rest as a run."""
        from quantum_orchestrator.flows.orchestrate import open_journal

        journal = open_journal(self.root)
        try:
            _check_dependencies(self.block, journal)
            answered: dict[int, SignOff] = {}
            for action in self._responses():
                answered[action.number] = signed = await self._respond(action, journal)
                if signed.waits_again or not signed.result["success"]:
                    return self._ended_by(signed, action.number, answered)
        finally:
            journal.close()
        return await self._run_set(answered)

    # Sign-offs of other blocks.

    def _responses(self) -> Iterator[Fields]:
        """The responses that come before anything that works on the workspace."""
        names = Names(self.values)
        for number, raw in enumerate(self.block.actions, 1):
            if action_type(raw) == "RESPOND_TO_SIGNOFF":
                yield fields_of(raw, number, self.block.step_id, names, ())
            elif action_type(raw) != "ECHO" or not isinstance(raw.get("message"), str):
                return

    async def _respond(self, action: Fields, journal: Journal) -> SignOff:
        from quantum_orchestrator.flows.orchestrate import carry_on

        started = time.monotonic()
        try:
            if self.trust is not Trust.TRUSTED:
                raise PolicyRefused("a block that is not trusted cannot answer for a person", hint="use `qo approve`")
            action.text("signoff_id")
            signoff, approved = signoff_id(action), _is_yes(action)
            record, step = _waiting_run(journal, signoff)
            RunAudit(record, self.root).decided(step, approved, actor=current_actor())
            journal.decide(record.id, step, approved=approved, actor=current_actor())
            report = await carry_on(self._request_for(record), record.id)
        except QuantumError as error:
            return SignOff(action_result(action.type, False, said(error), time.monotonic() - started), said(error))
        return self._signed(action, record, report, approved, time.monotonic() - started)

    def _request_for(self, record: RunRecord) -> RunRequest:
        from quantum_orchestrator.flows.orchestrate import restored
        from quantum_orchestrator.flows.requests import RunRequest

        document, inputs = restored(record)
        return RunRequest(document, inputs, self.root, observers=self.observers)

    def _signed(
        self,
        action: Fields,
        record: RunRecord,
        report: Mapping[str, Any],
        approved: bool,
        seconds: float,
    ) -> SignOff:
        status, response = report["status"], "approved" if approved else "rejected"
        success = status in (ENDED_WELL if approved else (RunStatus.ROLLED_BACK, RunStatus.KEPT, RunStatus.PAUSED))
        results = results_of(record.document, report, self.prompt)
        payload = {
            "signoff_id": signoff_id(action),
            "response": response,
            "step_id": _tagged(record.document, STEP_TAG),
            "run_id": record.id,
            "status": status,
            "action_results": results,
        }
        waits_again = status == RunStatus.AWAITING_APPROVAL
        if waits_again:
            payload |= results[-1]["message_or_payload"]
        sentence = f"Sign-off '{payload['signoff_id']}' {response}; run {record.id} is {status.replace('_', ' ')}."
        return SignOff(action_result(action.type, success, payload, seconds), sentence, waits_again)

    def _ended_by(self, signed: SignOff, number: int, answered: Mapping[int, SignOff]) -> Answer:
        """The reply of a block that goes no further than a sign-off; what was said before it is said all the same."""
        names = Names(self.values)
        results = []
        for at, raw in enumerate(self.block.actions[:number], 1):
            if at in answered:
                results.append(answered[at].result)
            else:
                message = fields_of(raw, at, self.block.step_id, names, ()).text("message", "")
                results.append(action_result("ECHO", True, message.shown))
        left = len(self.block.actions) - number
        unreached = f" The {left} actions after it were not reached." if left else ""
        return Answer(bool(signed.result["success"]) and not left, signed.sentence + unreached, results)

    # The block's own run.

    async def _run_set(self, answered: Mapping[int, SignOff]) -> Answer:
        from quantum_orchestrator.flows.orchestrate import run_set
        from quantum_orchestrator.flows.requests import RunRequest

        sentences = {number: signed.sentence for number, signed in answered.items()}
        document = translate(self.block, self.values, roots=roots_of(self.root), answered=sentences)
        request = RunRequest(
            self._judged(document),
            {},
            self.root,
            on_failure=self.on_failure,
            approve=self.approve,
            source=self.source,
            run_id=self.run_id,
            observers=self.observers,
        )
        report = await run_set(request)
        results = results_of(document, report, self.prompt)
        for number, signed in answered.items():
            if number <= len(results):
                results[number - 1] = signed.result
        return Answer(report["status"] in ENDED_WELL, _summary(self.block, report, results), results)

    def _judged(self, document: Json) -> InstructionSet:
        """A trusted block is not judged as a whole: each action is, at its turn. Others must be safe first."""
        if self.trust is Trust.TRUSTED:
            return InstructionSet.model_validate(document)
        return load_object(document, file=self.block.step_id, trust=self.trust)


def _is_yes(action: Fields) -> bool:
    """Whether the response is yes; everything else is no. Raises ActionRefused without one."""
    return action.text("response").shown.strip().lower() in YES


def _waiting_run(journal: Journal, signoff: str) -> tuple[RunRecord, str]:
    """The run that waits for this sign-off, and the step. Raises OperationError when none does."""
    run = journal.unfinished()
    if run is not None and run.status == RunStatus.AWAITING_APPROVAL:
        steps = journal.steps(run.id)
        for instruction in run.document["instructions"]:
            step = steps.get(instruction["id"])
            waits = step is not None and step.status == StepStatus.AWAITING_APPROVAL
            if waits and _tagged(instruction, SIGNOFF_TAG) == signoff:
                return run, instruction["id"]
    raise OperationError(
        f"nothing in this workspace waits for the sign-off {signoff!r}",
        hint="`qo status` shows what waits, if anything",
    )

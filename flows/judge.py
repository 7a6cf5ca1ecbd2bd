"""Judges a document as a set of instructions: everything at once, each fault at its place.

First the shape, by the models and schemas (`flows/schema.py`); then what no schema can say: ids, cycles, paths, inputs,
trust, expressions (`flows/references.py`), and the sets that are called, which are read in and judged like the set
itself. Whatever is broken is noted and passed over, so that one fault hides no other. Nothing outside of the called
files' folder is read, and nothing runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.paths import fold
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.flows import expressions, inputs, reading, schema, wording
from quantum_orchestrator.flows.document import CHECKPOINT, Instruction, InstructionSet, Trust
from quantum_orchestrator.flows.faults import Faults, InvalidSet, described, pointer_of, shown
from quantum_orchestrator.flows.guard import Finding, Guards
from quantum_orchestrator.flows.reading import Raw
from quantum_orchestrator.flows.references import CALL, EVALUATED, References, Visible, operation_named, steps_named_in
from quantum_orchestrator.flows.wording import Parts, Problem
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import UNKNOWN, AnyOperation, Parameters

Model = TypeVar("Model", bound=BaseModel)

Place = tuple[str, str, Parts]
"""A document's name, the pointer of an instruction's `with` in it, and the way from there; put together when told."""
STARTS_PROGRAMS = ("script.run", "quality.test")
LENIENT = Policy(lenient=True)
"""Judged by this, nothing is refused: for whoever asks afterwards what a policy says of each step."""
SIMPLE = frozenset(
    ("id", "op", "with", "needs", "retries", "retry_delay", "timeout", "resources", "description", "tags", "on_error")
)
"""The keys of an instruction that names nothing but what it needs, and holds no other instruction (`on_error` may be
a word), unless there are expressions in its `with`."""
MOST_CYCLES = 10
DEEPEST_CALLS = 16
MOST_CALLS = 1_000


@dataclass(slots=True)
class Shared:
    """What the judging of one document and of the sets that it calls has in common."""

    operations: dict[str, AnyOperation | None] = field(default_factory=dict)
    spellings: Spellings = field(default_factory=lambda: Spellings())
    guards: Guards = field(default_factory=lambda: Guards(Policy()))
    calls: int = 0
    completions: list[tuple[Raw, Raw]] = field(default_factory=list)
    """Parts of documents, with what they become once everything is known to be right."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a document comes from. `folder` is where the files that it calls are; None if there is no such place."""

    folder: Path | None
    trust: Trust
    chain: tuple[Path, ...] = ()
    """The files whose calls have led here."""


class Spellings:
    """The literal paths of a set, to find two that some file systems cannot hold apart."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Place]] = {}
        self._known: set[str] = set()

    def clash(self, path: str, place: Place) -> tuple[str, str, Place] | None:
        """Note a path. The part of it that clashes, with the spelling seen before, and where; None if none does."""
        found = None
        while path and path not in self._known:
            self._known.add(path)
            spelling, where = self._first.setdefault(fold(path), (path, place))
            if spelling != path:
                found = path, spelling, where
            path = path.rpartition("/")[0]
        return found


class SetJudge:
    """Judges one document, or the part of one that is a called set."""

    def __init__(self, raw: Raw, pointer: str, faults: Faults, around: Surroundings, shared: Shared) -> None:
        self.raw = raw
        self.pointer = pointer
        self.faults = faults
        self.shared = shared
        self.untrusted = around.trust is Trust.UNTRUSTED or raw.get("trust") == Trust.UNTRUSTED
        self.around = replace(around, trust=Trust.UNTRUSTED) if self.untrusted else around
        self.guard = shared.guards.of(self.around.trust)
        self._references = References(faults, shared.operations)
        self.model = _model_of(InstructionSet, {key: value for key, value in raw.items() if key != "$schema"})
        """The document as a model; None where its shape is wrong."""

    def judge(self) -> None:
        """Note every fault."""
        raw = self.raw
        if self.model is None or "$schema" in raw:
            self._explain(schema.set_validator().iter_errors(raw), InstructionSet, raw)
        self._workspace()
        self._inputs()
        self._env()
        self._refuse_secrets(raw.get("secrets"), self._at("secrets"))
        visible = Visible({}, _names(raw, "inputs"), _names(raw, "env"), _names(raw, "secrets"))
        models = () if self.model is None else self.model.instructions
        self._list(raw.get("instructions"), self._at("instructions"), visible, models)
        self._checkpoints()
        if "$schema" in raw or (self.untrusted and raw.get("trust") != Trust.UNTRUSTED):
            completed = {key: value for key, value in raw.items() if key != "$schema"}
            trust = {"trust": Trust.UNTRUSTED.value} if self.untrusted else {}
            self.shared.completions.append((raw, {**completed, **trust}))

    def _at(self, *names: str | int) -> str:
        return self.pointer + pointer_of(names)

    # Shape.

    def _explain(self, errors: Iterable[Any], model: type[BaseModel], raw: Raw, pointer: str | None = None) -> None:
        found = wording.explain(errors, self.faults.nearest)
        pointer = self.pointer if pointer is None else pointer
        self._note(found, pointer)
        shallow = {key: [] if key == "instructions" else value for key, value in raw.items() if key != "$schema"}
        try:
            model.model_validate(shallow)
        except ValidationError as error:
            for problem in wording.explain_model(error, shallow):
                if not any(each.parts[: len(problem.parts)] == problem.parts for each in found):
                    self._note([problem], pointer)

    def _note(self, problems: Iterable[Problem], pointer: str) -> None:
        for each in problems:
            place = pointer + pointer_of(each.parts)
            self.faults.add(place, each.message, hint=each.hint, at_key=each.at_key)

    # What stands at the set's level.

    def _workspace(self) -> None:
        workspace = self.raw.get("workspace")
        if isinstance(workspace, str):
            problem = schema.path_problem(workspace, "workspace-folder")
            if problem:
                hint = "it is relative to where `qo` runs; `--workspace` reaches every folder"
                self.faults.add(self._at("workspace"), problem[0], hint=problem[1] or hint)

    def _inputs(self) -> None:
        declared = self.raw.get("inputs")
        for name, declaration in declared.items() if isinstance(declared, dict) else ():
            if isinstance(declaration, dict):
                problems = inputs.declaration_problems(declaration, untrusted=self.untrusted)
                self._note(problems, self._at("inputs", name))

    def _env(self) -> None:
        env = self.raw.get("env")
        for name, value in env.items() if isinstance(env, dict) else ():
            if isinstance(value, str):
                self._is_literal(value, self._at("env", name))
                if "\0" in value:
                    self.faults.add(self._at("env", name), "a NUL character cannot be in the environment")

    def _is_literal(self, text: str, pointer: str) -> None:
        if expressions.holds_expression(text):
            hint = f"expressions may stand in {', '.join(EVALUATED)}"
            self.faults.add(pointer, f"expressions are not evaluated here, and {shown(text)} holds one", hint=hint)

    def _checkpoints(self) -> None:
        """Judge the names of the set's checkpoints, and the one that a failure goes back to."""
        instructions, known = self.raw.get("instructions"), dict[str, str]()
        for index, each in enumerate(instructions if isinstance(instructions, list) else ()):
            given = each.get("with") if isinstance(each, dict) and each.get("op") == CHECKPOINT else None
            name = given.get("name") if isinstance(given, dict) else None
            if isinstance(name, str):
                if name in known:
                    hint = f"the first one is {known[name]}; a rollback to it must mean one place"
                    place = self._at("instructions", index, "with", "name")
                    self.faults.add(place, f"checkpoint {shown(name)} is there twice", hint=hint)
                known.setdefault(name, self._at("instructions", index))
        on_failure = self.raw.get("on_failure")
        wanted = on_failure.get("rollback_to") if isinstance(on_failure, dict) else None
        if (
            isinstance(wanted, str)
            and wanted
            and wanted not in known
            and not any(map(expressions.holds_expression, known))
        ):
            hint = self.faults.nearest(wanted, known) or f"an instruction {CHECKPOINT!r} of the set must have that name"
            self.faults.add(self._at("on_failure", "rollback_to"), f"there is no checkpoint {shown(wanted)}", hint=hint)

    # Instructions.

    def _list(self, raw: object, pointer: str, outer: Visible, models: Sequence[Instruction] = ()) -> None:
        """Judge the instructions of a list: the set's, or those that handle a failure.

        `models` are the instructions as models, where they are right; what they are found to take is kept with them.
        """
        if not isinstance(raw, list):
            return
        own: dict[str, Raw] = {}
        for index, each in enumerate(raw):
            name = each.get("id") if isinstance(each, dict) else None
            if not isinstance(name, str):
                continue
            if name in own:
                first = next(n for n, other in enumerate(raw) if other is own[name])
                place = f"{pointer}/{index}/id"
                self.faults.add(place, f"id {shown(name)} is there twice", hint=f"the first one is {pointer}/{first}")
            own.setdefault(name, each)
        visible = replace(outer, steps={**outer.steps, **own})
        waits: list[tuple[str, set[str]]] = []
        for index, each in enumerate(raw):
            if self.faults.full:
                return
            place = f"{pointer}/{index}"
            if not isinstance(each, dict):
                self.faults.add(place, f"expected an object, found {described(each)}")
                continue
            waits.append((str(each.get("id")), self._instruction(each, place, visible, own, models[index : index + 1])))
        if any(named for _, named in waits):
            edges: dict[str, set[str]] = {}
            for name, named in waits:
                edges.setdefault(name, set()).update(each for each in named if each in own)
            places = {str(each.get("id")): n for n, each in enumerate(raw) if isinstance(each, dict)}
            self._cycles(edges, places, pointer)

    def _instruction(
        self,
        raw: Raw,
        pointer: str,
        visible: Visible,
        own: Mapping[str, Raw],
        model: Sequence[Instruction] = (),
    ) -> set[str]:
        """Judge one instruction. Gives the ids of what it waits for."""
        if self.model is None and _model_of(Instruction, raw) is None:
            shallow = {**raw, **_without_inner(raw)}
            self._explain(schema.instruction_validator().iter_errors(shallow), Instruction, shallow, pointer)
        operation = self._operation(raw.get("op"), pointer)
        parameters = raw.get("with", {})
        built = None
        if operation is not None and isinstance(parameters, dict):
            built, right = self._parameters(operation, parameters, pointer, given="with" in raw)
            self._policy(operation, parameters if right else None, pointer)
        waits = self._needs(raw, pointer, own)
        if built is not None and raw.get("op") != CALL and expressions.is_literal(parameters):
            for each in model:
                schema.keep_literal(each, built)
            if raw.keys() <= SIMPLE and not isinstance(raw.get("on_error"), dict):
                return waits
        waits |= self._references.judge(raw, pointer, visible)
        self._secrets(raw, pointer, visible)
        self._globs(raw, pointer)
        if raw.get("cache") is True and operation is not None:
            for message, hint in _never_reused(raw, operation):
                self.faults.add(f"{pointer}/cache", message, hint=hint)
        if raw.get("op") == CALL and isinstance(parameters, dict):
            CallJudge(self, parameters, f"{pointer}/with").judge()
        inside = replace(visible, item=visible.item or raw.get("for_each") is not None)
        waits |= self._inner(raw, pointer, inside)
        return waits

    def _inner(self, raw: Raw, pointer: str, visible: Visible) -> set[str]:
        """Judge the instructions that an instruction brings along. What they refer to, it waits for."""
        handler, undo = raw.get("on_error"), raw.get("undo")
        lists = []
        if isinstance(handler, dict) and isinstance(handler.get("run"), list):
            lists.append((handler["run"], f"{pointer}/on_error/run"))
        for inner, place in lists:
            self._list(inner, place, visible)
        if isinstance(handler, dict) and isinstance(handler.get("llm"), dict):
            self._help(handler["llm"], f"{pointer}/on_error/llm")
        if isinstance(undo, dict):
            name = undo.get("id")
            known = {name: undo} if isinstance(name, str) else {}
            self._instruction(undo, f"{pointer}/undo", replace(visible, steps={**visible.steps, **known}), known)
            lists.append(([undo], ""))
        found: set[str] = set()
        for inner, _ in lists:
            found |= {name for each in inner for name in steps_named_in(each)}
            found -= {str(each.get("id")) for each in inner if isinstance(each, dict)}
        return found - {str(raw.get("id"))}

    def _help(self, given: Raw, pointer: str) -> None:
        """Where a model's help may write, and what the policy says of it; its shape is judged elsewhere."""
        paths = given.get("paths")
        for index, path in enumerate(paths if isinstance(paths, list) else ()):
            problem = schema.path_problem(path, "workspace-folder") if isinstance(path, str) and path else None
            if problem:
                self.faults.add(f"{pointer}/paths/{index}", problem[0], hint=problem[1])
        fix = operation_named("llm.fix")
        if fix is not None:
            rest = {name: value for name, value in given.items() if name != "attempts"}
            self._policy(fix, {**rest, "failure": "?"}, pointer)

    def _operation(self, name: object, pointer: str) -> AnyOperation | None:
        if not isinstance(name, str):
            return None
        pointer = f"{pointer}/op"
        if name not in self.shared.operations:
            self.shared.operations[name] = operation_named(name)
        operation = self.shared.operations[name]
        if operation is None:
            self.faults.add(pointer, f"unknown operation {shown(name)}", hint=self._nearest_operation(name))
        return operation

    def _nearest_operation(self, name: str) -> str:
        return self.faults.nearest(name, registry.every()) or "`qo ops` lists the operations"

    def _parameters(
        self, operation: AnyOperation, parameters: Raw, pointer: str, *, given: bool
    ) -> tuple[Parameters | None, bool]:
        """Judge the parameters. What they are once built, where that can be known, and whether they are right."""
        judge = schema.schema_of(operation)
        built, problems = judge.judge(parameters, self.faults.nearest)
        refused = set()
        for parts, path, kind in judge.paths.find(parameters) if operation.name != CALL else ():
            if not expressions.holds_expression(path) and not self._path(path, kind, pointer, parts):
                refused.add(parts)
        others = [each for each in problems if each.parts not in refused]  # a model may judge its paths too
        self._note(others, f"{pointer}/with" if given else pointer)
        return None if refused else built, not problems

    def _path(self, path: str, kind: schema.PathFormat, pointer: str, parts: Parts) -> bool:
        """Judge a literal path in an instruction's `with`. Whether its spelling is fine."""
        problem = schema.path_problem(path, kind)
        if problem:
            self.faults.add(f"{pointer}/with{pointer_of(parts)}", problem[0], hint=problem[1])
            return False
        clash = self.shared.spellings.clash(path, (self.faults.file, pointer, parts))
        if clash:
            mine, other, (file, instruction, way) = clash
            message = f"{shown(mine)} and {shown(other)} differ only in letter case or Unicode form"
            hint = f"write both alike; the other one is at {file} {instruction}/with{pointer_of(way)}"
            self.faults.add(f"{pointer}/with{pointer_of(parts)}", message, hint=hint)
        return True

    def _needs(self, raw: Raw, pointer: str, own: Mapping[str, Raw]) -> set[str]:
        needs = raw.get("needs")
        found = set()
        for index, name in enumerate(needs if isinstance(needs, list) else ()):
            if isinstance(name, str):
                if name not in own:
                    hint = self.faults.nearest(name, own)
                    self.faults.add(f"{pointer}/needs/{index}", f"there is no step {shown(name)}", hint=hint)
                found.add(name)
        return found

    def _secrets(self, raw: Raw, pointer: str, visible: Visible) -> None:
        secrets = raw.get("secrets")
        for index, name in enumerate(secrets if isinstance(secrets, list) else ()):
            place = f"{pointer}/secrets/{index}"
            if isinstance(name, str) and name not in visible.secrets:
                hint = self.faults.nearest(name, visible.secrets) or "declare it in the set's `secrets`"
                self.faults.add(place, f"secret {shown(name)} is not declared", hint=hint)

    def _refuse_secrets(self, names: object, pointer: str) -> None:
        """Those that the set declares; its steps can name no others."""
        for index, name in enumerate(names if isinstance(names, list) else ()):
            problem = self.guard.policy.secret_refusal(name) if isinstance(name, str) else None
            if problem is not None:
                self.faults.refuse(f"{pointer}/{index}", problem)

    # The policy.

    def _policy(self, operation: AnyOperation, parameters: Raw | None, pointer: str) -> None:
        """What the policy refuses of an instruction, as far as it is known now. A called set answers for itself."""
        if self.guard.idle:
            return
        given = parameters if operation.name != CALL else None
        known = None if given is None else _known_parameters(operation, given)
        for finding in self.guard.findings(operation, known):
            self.faults.refuse(f"{pointer}{self._place_of(finding, operation, given or {})}", finding.error)

    def _place_of(self, finding: Finding, operation: AnyOperation, parameters: Raw) -> str:
        places = {"op": "/op", "program": "/with/argv/0", "host": "/with/url", "network": "/op"}
        if finding.part == "program" and "argv" not in parameters:
            return "/with/shell"
        if finding.part != "path":
            return places[finding.part]
        found = schema.schema_of(operation).paths.find(parameters)
        return next((f"/with{pointer_of(parts)}" for parts, path, _ in found if path == finding.value), "/with")

    def _globs(self, raw: Raw, pointer: str) -> None:
        for key in ("reads", "writes"):
            globs = raw.get(key)
            for index, glob in enumerate(globs if isinstance(globs, list) else ()):
                if isinstance(glob, str) and glob:
                    place = f"{pointer}/{key}/{index}"
                    self._is_literal(glob, place)
                    problem = schema.path_problem(glob, "workspace-glob")
                    if problem and not expressions.holds_expression(glob):
                        self.faults.add(place, problem[0], hint=problem[1])

    # Cycles.

    def _cycles(self, edges: Mapping[str, set[str]], places: Mapping[str, int], pointer: str) -> None:
        if not any(edges.values()):
            return
        left = {name: set(waits) for name, waits in edges.items()}
        for _ in range(MOST_CYCLES):
            try:
                TopologicalSorter(left).prepare()
            except CycleError as error:
                cycle: list[str] = error.args[1][::-1]  # each waits for the next
                cycle = _from_first(cycle[:-1], places)
                chain = " → ".join([*cycle, cycle[0]])
                message = f"steps wait for each other: {chain}" if len(cycle) > 1 else f"step {chain} waits for itself"
                hint = "each waits for the next, by needs or by an expression; take one of these out"
                self.faults.add(f"{pointer}/{places[cycle[0]]}", message, hint=hint if len(cycle) > 1 else "")
                left[cycle[0]].discard(cycle[1] if len(cycle) > 1 else cycle[0])
                continue
            return


def _from_first(cycle: list[str], places: Mapping[str, int]) -> list[str]:
    start = min(range(len(cycle)), key=lambda index: places[cycle[index]])
    return cycle[start:] + cycle[:start]


class CallJudge:
    """Judges a call: reads the set that is called, judges it, and the inputs that it is given."""

    def __init__(self, caller: SetJudge, parameters: Raw, pointer: str) -> None:
        self.caller = caller
        self.parameters = parameters
        self.pointer = pointer
        self.faults = caller.faults
        self.shared = caller.shared

    def judge(self) -> None:
        """Note every fault of the call and of the set."""
        self.shared.calls += 1
        if self.shared.calls > MOST_CALLS:
            self.faults.add(self.pointer, f"sets call each other more than {MOST_CALLS} times")
            return
        called = self.parameters.get("set")
        name = self.parameters.get("file")
        if isinstance(called, str) and expressions.holds_expression(called):
            problem, hint = "the called set must be known before the run", "write it in place, or name its `file`"
            self.faults.add(f"{self.pointer}/set", problem, hint=hint)
        elif isinstance(called, dict):
            SetJudge(called, f"{self.pointer}/set", self.faults, self.caller.around, self.shared).judge()
        elif isinstance(name, str) and called is None:
            called = self._from_file(name)
        if isinstance(called, dict):
            self._inputs(called)

    def _from_file(self, name: str) -> Raw | None:
        """The set in a file, judged; in the completed document it stands in the file's place."""
        path = self._path(name)
        if path is None:
            return None
        try:
            content = reading.read_file(path)
        except OSError as error:
            self._fault(f"{name} cannot be read: {error.strerror or error}", "it is looked for beside the calling set")
            return None
        shown_as = str(path)
        around = replace(self.caller.around, folder=path.parent, chain=(*self.caller.around.chain, path))
        try:
            raw, faults = reading.parse(content, shown_as)
        except InvalidSet as invalid:
            self.faults.add_all(invalid.faults)
            return None
        SetJudge(raw, "", faults, around, self.shared).judge()
        self.faults.add_all(faults.placed() if faults else ())
        self.faults.refused |= faults.refused
        rest = {key: value for key, value in self.parameters.items() if key != "file"}
        self.shared.completions.append((self.parameters, {**rest, "set": raw}))
        return raw

    def _path(self, name: str) -> Path | None:
        """Where the file is: beside the calling set or below, by its real place."""
        folder = self.caller.around.folder
        if expressions.holds_expression(name):
            self._fault("the called file must be known before the run", "write its name out")
            return None
        problem = schema.path_problem(name, "workspace-path")
        if problem:
            self._fault(problem[0], "it is relative to the calling set, and beside or below it")
            return None
        if folder is None:
            self._fault("a set that came by itself has no files beside it", "write the called set in place, as `set`")
            return None
        path = folder / name
        chain = self.caller.around.chain
        if not path.resolve().is_relative_to(folder.resolve()):
            self._fault(f"{name} is a link that leads out of the calling set's folder", "put the file there")
        elif path.resolve() in {each.resolve() for each in chain}:
            self._fault(f"sets call each other: {' → '.join(each.name for each in (*chain, path))}", "break the circle")
        elif len(chain) > DEEPEST_CALLS:
            self._fault(f"sets call each other deeper than {DEEPEST_CALLS}", "flatten them")
        else:
            return path
        return None

    def _fault(self, message: str, hint: str) -> None:
        self.faults.add(f"{self.pointer}/file", message, hint=hint)

    def _inputs(self, called: Raw) -> None:
        declared, given = called.get("inputs", {}), self.parameters.get("inputs", {})
        if not isinstance(declared, dict) or not isinstance(given, dict):
            return
        usable = {
            name: each
            for name, each in declared.items()
            if isinstance(each, dict) and not inputs.declaration_problems(each)
        }
        if len(usable) < len(declared):
            return
        unknown = frozenset(name for name, value in given.items() if any(expressions.texts(value)))
        pointer = f"{self.pointer}/inputs" if "inputs" in self.parameters else self.pointer
        for each in inputs.given_problems(usable, given, unknown):
            place = pointer + pointer_of(each.parts)
            self.faults.add(place, each.message, hint=each.hint, at_key=each.at_key)


def judge(
    raw: Raw, faults: Faults, folder: Path | None, trust: Trust, path: Path | None, policy: Policy | None = None
) -> InstructionSet:
    """The set that a document is, called files read in. Raises InvalidSet with every fault."""
    shared = Shared(guards=Guards(policy or Policy()))
    around = Surroundings(folder, trust, (path,) if path else ())
    judged = SetJudge(raw, "", faults, around, shared)
    judged.judge()
    if faults:
        raise InvalidSet(faults.placed(), by_policy=faults.refused)
    if judged.model is not None and not shared.completions:
        return judged.model
    for part, completed in shared.completions:
        part.clear()
        part.update(completed)
    try:
        return InstructionSet.model_validate(raw)
    except ValidationError as error:  # nothing that the models refuse may leave here, whatever was overlooked above
        for each in wording.explain_model(error, raw):
            faults.add(pointer_of(each.parts), each.message)
        raise InvalidSet(faults.placed()) from error


def _never_reused(raw: Raw, operation: AnyOperation) -> Iterator[tuple[str, str]]:
    """Why `cache: true` cannot come to anything here, and what to do about it."""
    given = raw.get("with")
    if operation.name == CALL:
        yield "a call is not reused as a whole", "put `cache` into the set that it calls"
    elif not (operation.cacheable or operation.pure):
        yield f"{operation.name} is never reused", "take `cache` out; docs/operations.md says which can be"
    elif operation.name in STARTS_PROGRAMS and not ("reads" in raw and "writes" in raw):
        hint = 'declare both, as in "reads": ["src/**"], "writes": ["dist/**"]'
        yield "only a step that declares `reads` and `writes` can be reused", hint
    elif raw.get("undo") is not None or (isinstance(given, dict) and given.get("network") is True):
        yield "what acts outside of the workspace is never reused", "take `cache` out"


def _model_of(model: type[Model], raw: object) -> Model | None:
    try:
        return model.model_validate(raw)
    except ValidationError:
        return None


def _known_parameters(operation: AnyOperation, parameters: Raw) -> Parameters | None:
    """The parameters, with UNKNOWN for what an expression gives; None where they are wrong, which is told already."""
    known: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for name, value in parameters.items():
        if any(expressions.texts(value)):
            unknown[name] = UNKNOWN
        else:
            known[name] = value
    try:
        if unknown:
            return operation.parameters.model_construct(**known, **unknown)
        return schema.build_parameters(operation, known)
    except OperationError:
        return None


def _names(raw: Raw, key: str) -> frozenset[str]:
    value = raw.get(key)
    return frozenset(each for each in value if isinstance(each, str)) if isinstance(value, dict | list) else frozenset()


def _without_inner(raw: Raw) -> Raw:
    """Stand-ins for the instructions in an instruction, which are judged on their own."""
    inner: Raw = {}
    handler = raw.get("on_error")
    if isinstance(handler, dict) and isinstance(handler.get("run"), list):
        inner["on_error"] = {**handler, "run": []}
    if isinstance(raw.get("undo"), dict):
        inner["undo"] = {"id": "x", "op": "x"}
    return inner

"""One contract for every operation that is installed, whoever wrote it: it needs no test of its own to be held to this.

Each operation's own `example` is run, in a real workspace with a real journal, through the engine. Operations that need
more than files (a repository, a server) have an entry in SETUPS; whatever is new is found by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.journal import Journal, RunRecord
from quantum_orchestrator.blocks.model_session import Ledger
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, Overlay, Tree, ancestors, is_within
from quantum_orchestrator.blocks.workspace import Workspace
from quantum_orchestrator.flows import attempts
from quantum_orchestrator.flows.document import InstructionSet
from quantum_orchestrator.flows.engine import Outcome, Run, RunSettings
from quantum_orchestrator.flows.instruction_set import InvalidSet, load
from quantum_orchestrator.flows.judge import STARTS_PROGRAMS
from quantum_orchestrator.flows.plan import Graph, build, resolved_parameters, values_of
from quantum_orchestrator.flows.prediction import Prediction, predict
from quantum_orchestrator.flows.results import RunStatus, StepStatus
from quantum_orchestrator.flows.schema import document_schema
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import AnyOperation, Context, Effects
from tests.model_double import Replayed
from tests.plain_runner import PlainRunner

OPERATIONS = registry.every()
of_every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))

FAILURE = {"id": "failure", "op": "assert", "with": {"that": False}, "needs": ["step"]}
GATE = {"id": "gate", "op": "file.read", "with": {"path": "gate-is-open"}, "needs": ["step"]}


# What an example needs beside its files.


@dataclass
class Setup:
    """Parameters that stand in for the example's, where it names the internet, and the policy that admits them."""

    instead: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)


def git(folder: Path, *arguments: str) -> None:
    quiet = ("-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", "-c", "core.autocrlf=false")
    subprocess.run(["git", *quiet, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, path: str, content: str) -> None:
    (folder / path).write_text(content)
    git(folder, "add", "--", path)
    git(folder, "commit", "-q", "-m", f"Write {path}")


@cache
def histories(folder: Path) -> Path:
    """`work`: main and a branch `feature` that have parted, tracking `remote`, which has a branch more."""
    work = folder / "work"
    work.mkdir()
    git(work, "init", "-q", "--template=")
    commit(work, "README.md", "# Library\n")
    git(folder, "clone", "-q", "--bare", "--template=", "work", "remote")
    git(folder, "clone", "-q", "--template=", "remote", "other")
    git(folder / "other", "checkout", "-q", "-b", "elsewhere")
    commit(folder / "other", "elsewhere.txt", "elsewhere\n")
    git(folder / "other", "push", "-q", "origin", "elsewhere")
    git(work, "checkout", "-q", "-b", "feature")
    commit(work, "feature.txt", "feature\n")
    git(work, "checkout", "-q", "main")
    commit(work, "README.md", "# The library\n")
    return folder


@contextmanager
def in_a_repository(root: Path, shared: Path) -> Iterator[Setup]:
    made = histories(shared)
    shutil.copytree(made / "work", root, dirs_exist_ok=True, symlinks=True)
    remote = shutil.copytree(made / "remote", root.parent / "remote")
    git(root, "remote", "add", "origin", remote.as_uri())
    yield Setup(policy=Policy(git_protocols=("file",)))


@contextmanager
def beside_a_repository(root: Path, shared: Path) -> Iterator[Setup]:
    yield Setup({"url": (histories(shared) / "remote").as_uri()}, Policy(git_protocols=("file",)))


@contextmanager
def with_a_web_server(root: Path, shared: Path) -> Iterator[Setup]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Setup({"url": f"http://127.0.0.1:{server.server_port}/"}, Policy(http_hosts=("127.0.0.1",)))
        server.shutdown()
        thread.join()


@contextmanager
def with_a_model(root: Path, shared: Path) -> Iterator[Setup]:
    """One that corrects a word: what it is asked to do in the example."""
    edits = [{"path": "greet.py", "search": "Helo", "replace": "Hello"}]
    double = Replayed([{"summary": "Corrected.", "edits": edits}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QO_MODEL", "a-model")
        patch.setattr(attempts, "Ledger", partial(Ledger, provider=lambda _settings: double))
        yield Setup()


@contextmanager
def with_quick_commands(root: Path, shared: Path) -> Iterator[Setup]:
    """The example's run Python a dozen times."""
    yield Setup({"benchmark": ["true"], "test": ["true"]})


@contextmanager
def with_files_alone(root: Path, shared: Path) -> Iterator[Setup]:
    yield Setup()


SETUPS: dict[str, Callable[[Path, Path], AbstractContextManager[Setup]]] = {
    "git": in_a_repository,
    "git.init": with_files_alone,
    "git.clone": beside_a_repository,
    "http.request": with_a_web_server,
    "llm.document": with_files_alone,
    "llm.edit": with_a_model,
    "llm.optimize": with_quick_commands,
}
"""By an operation's name or by its family's."""


# A workspace to run an example in.

State = dict[str, tuple[Kind, int, str]]
"""What is at each path: its kind, its permission bits, and its content's digest or its target."""


def state_of(root: Path, *, objects: bool = False) -> State:
    """Everything in a folder. Objects of a repository stay behind, unreachable, unless they are asked for."""
    found: State = {}
    for folder, names, files in os.walk(root):
        if not objects and Path(folder).name == ".git" and "objects" in names:
            names.remove("objects")
        for name in [*names, *files]:
            path = Path(folder, name)
            found[path.relative_to(root).as_posix()] = _state(path)
    return found


def _state(path: Path) -> tuple[Kind, int, str]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return Kind.LINK, 0, str(path.readlink())
    if stat.S_ISDIR(mode):
        return Kind.FOLDER, stat.S_IMODE(mode), ""
    if stat.S_ISREG(mode):
        content = index_of(path) if path.match(".git/index") else path.read_bytes()
        return Kind.FILE, stat.S_IMODE(mode), hashlib.sha256(content).hexdigest()
    return Kind.SPECIAL, stat.S_IMODE(mode), ""


def index_of(path: Path) -> bytes:
    """What is in git's index: beside it, git keeps there what `git diff` saw of the files when it last looked."""
    command = ["git", "--git-dir", str(path.parent), "ls-files", "--stage", "-z"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def as_state(entry: Entry | None) -> tuple[Kind, int, str] | None:
    if entry is None:
        return None
    return entry.kind, 0 if entry.kind is Kind.LINK else entry.mode, entry.sha256 or entry.target


def differences(before: State, after: State) -> dict[str, tuple[Kind, int, str] | None]:
    """Each path that is not what it was, with what is there now."""
    return {path: after.get(path) for path in sorted(before | after) if before.get(path) != after.get(path)}


class Bench:
    """A workspace that holds what one operation's example needs."""

    def __init__(self, operation: AnyOperation, root: Path, setup: Setup) -> None:
        self.root, self.policy = root, setup.policy
        self.step = {"id": "step", "op": operation.name, "with": {**operation.example, **setup.instead}}
        (root.parent / "state").mkdir()
        self.journal = Journal(root.parent / "state")
        self.workspace = Workspace(root, self.journal, self.policy.snapshot_exclude)
        self.outputs: dict[str, Mapping[str, Any]] = {}

    def document(self, *more: Mapping[str, Any], on_failure: str = "rollback") -> InstructionSet:
        fields = {"name": "contract", "on_failure": on_failure, "instructions": [self.step, *more]}
        return load(json.dumps(fields).encode(), file="contract.json")

    def graph(self) -> Graph:
        return build(self.document(), {})

    def effects(self) -> list[Effects]:
        return list(self.graph().effects.values())

    def predict(self, tree: Tree | None = None) -> Prediction:
        return predict(self.graph(), tree or self.workspace.tree, policy=self.policy)

    def run(self, *more: Mapping[str, Any], on_failure: str = "rollback") -> Outcome:
        return asyncio.run(self._run(self.document(*more, on_failure=on_failure)))

    async def _run(self, document: InstructionSet) -> Outcome:
        record = self.journal.run("r1") or RunRecord("r1", "contract", "running", {}, {}, {}, time.time())
        if self.journal.run("r1") is None:
            self.journal.begin(record)
        settings = RunSettings(parallel=2, on_failure=document.on_failure, approve=True)
        run = Run(record, document, self.workspace, settings, policy=self.policy, runner=PlainRunner())
        outcome = await run.execute()
        self.outputs = {name: result.outputs or {} for name, result in run.books.results.items()}
        return outcome

    def close(self) -> None:
        self.workspace.close()
        self.journal.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories")


@pytest.fixture
def bench(operation: AnyOperation, tmp_path: Path, shared: Path) -> Iterator[Bench]:
    root = tmp_path / "workspace"
    root.mkdir()
    family = operation.name.partition(".")[0]
    setup = SETUPS.get(operation.name) or SETUPS.get(family) or with_files_alone
    with ExitStack() as stack:
        prepared = stack.enter_context(setup(root, shared))
        for path, content in operation.example_files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
        made = Bench(operation, root, prepared)
        stack.callback(made.close)
        yield made


# What it says of itself.


def properties(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every field of a model and of the models in it."""
    for model in (schema, *schema.get("$defs", {}).values()):
        for name, each in model.get("properties", {}).items():
            yield f"{model.get('title', '')}.{name}", each


@of_every_operation
def test_an_operation_says_what_it_does_and_what_every_field_means(operation: AnyOperation) -> None:
    assert operation.summary.endswith("."), f"{operation.name}: a summary of one sentence, please"
    fields = [
        *properties(operation.parameters.model_json_schema(by_alias=True)),
        *properties(operation.outputs.model_json_schema(by_alias=True, mode="serialization")),
    ]
    assert [name for name, each in fields if not each.get("description", "").strip()] == []


@of_every_operation
def test_an_operations_example_is_what_its_schema_asks_for(operation: AnyOperation) -> None:
    own = operation.parameters.model_json_schema(by_alias=True)
    assert operation.example or not own.get("properties"), f"{operation.name}: an example, please"
    instruction = {"id": "step", "op": operation.name, "with": dict(operation.example)}
    document = {"name": "contract", "instructions": [instruction]}
    Draft202012Validator(own).validate(instruction["with"])
    Draft202012Validator(document_schema()).validate(document)
    load(json.dumps(document).encode(), file="contract.json")


# What it touches.

listening: list[list[str]] = []


def _hear(event: str, _arguments: object) -> None:
    if listening and event.startswith(("open", "os.", "shutil.", "socket.", "subprocess.", "tempfile.")):
        listening[-1].append(event)


sys.addaudithook(_hear)  # cannot be removed: it is silent unless somebody listens


@of_every_operation
def test_effects_are_told_without_looking_at_anything(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = bench.graph()
    monkeypatch.chdir(bench.root)
    for step in graph.steps:
        operation = registry.get(step.instruction.op)
        parameters = resolved_parameters(step, values_of(step))
        before = parameters.model_dump_json()
        listening.append([])
        again = operation.effects(parameters)
        assert listening.pop() == []
        assert parameters.model_dump_json() == before
        assert again == operation.effects(parameters) == graph.effects[step.id]


@of_every_operation
def test_effects_name_paths_of_the_workspace(bench: Bench) -> None:
    for effects in bench.effects():
        for path in [*(access.path for access in (*effects.reads, *effects.writes)), *effects.makes]:
            if path.partition("/")[0] != ".git":
                assert check_path(path, folder=True) == path


@of_every_operation
def test_what_is_not_known_yet_does_not_narrow_the_effects(bench: Bench) -> None:
    known = bench.effects()[0]
    for name in bench.step["with"]:
        before = {"id": "before", "op": "echo", "with": {"message": "?"}}
        unknown = {**bench.step, "with": {**bench.step["with"], name: "${{ steps.before.outputs.message }}"}}
        document = {"name": "contract", "instructions": [before, unknown]}
        try:
            graph = build(load(json.dumps(document).encode(), file="contract.json"), {})
        except InvalidSet:
            continue  # it must be there as it stands
        effects = graph.effects["step"]
        assert effects.predictable <= known.predictable, name
        assert effects.irreversible >= known.irreversible, name
        assert [path for path in written(known) if not covers(effects, path)] == [], name


def covers(effects: Effects, path: str) -> bool:
    """Whether a change at the path is one that the effects speak of: of it, or of a folder made for it."""
    return any(is_within(path, each) or path in ancestors(each) for each in written(effects))


def written(effects: Effects) -> Sequence[str]:
    return list(dict.fromkeys([*(access.path for access in effects.writes), *effects.makes]))


@of_every_operation
def test_a_run_changes_nothing_but_what_its_effects_say(bench: Bench) -> None:
    effects, before = bench.effects(), state_of(bench.root, objects=True)
    assert bench.run().status is RunStatus.COMMITTED
    changed = differences(before, state_of(bench.root, objects=True))
    for path, now in changed.items():
        assert any(covers(each, path) for each in effects), f"{path} is not covered by {effects}"
        if not any(is_within(path, access.path) for each in effects for access in each.writes):
            assert now is not None, f"{path} is gone, and the effects only speak of making it"
            assert now[0] is Kind.FOLDER
    if all(each.predictable for each in effects) and any(each.writes or each.makes for each in effects):
        assert changed, "an example that writes nothing shows nothing"


class Watched:
    """A tree that notes what is read of it."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.umask = tree.umask
        self.seen: set[str] = set()

    def kind(self, path: str) -> Kind | None:
        return self._tree.kind(path)  # what must be a folder on the way is no secret of other steps

    def entry(self, path: str) -> Entry | None:
        if self._tree.kind(path) is Kind.FILE:
            self.seen.add(path)
        return self._tree.entry(path)

    def read(self, path: str) -> bytes:
        self.seen.add(path)
        return self._tree.read(path)

    def names(self, path: str) -> list[str]:
        self.seen.add(path)
        return self._tree.names(path)


@of_every_operation
def test_a_predictable_operation_reads_nothing_but_what_its_effects_say(bench: Bench) -> None:
    effects, watched = bench.effects(), Watched(bench.workspace.tree)
    bench.predict(watched)
    accesses = [access for each in effects for access in (*each.reads, *each.writes)]
    unsaid = [path for path in watched.seen if not any(is_within(path, access.path) for access in accesses)]
    assert unsaid == []


# What a plan says of it.


@of_every_operation
def test_a_plan_changes_nothing_and_a_run_does_what_it_says(bench: Bench) -> None:
    before = state_of(bench.root, objects=True)
    prediction, effects = bench.predict(), bench.graph().effects
    assert state_of(bench.root, objects=True) == before
    assert prediction.failure is None
    assert bench.run().status is RunStatus.COMMITTED
    changed = differences(before, state_of(bench.root, objects=True))
    for step in prediction.steps:
        if effects[step.id].predictable:
            assert step.status is StepStatus.SUCCEEDED
        else:
            assert step.status is StepStatus.DEFERRED
            assert step.may_write == tuple(written(effects[step.id]))
    if all(each.predictable for each in effects.values()):
        assert {change.path: as_state(change.after) for change in prediction.changes} == changed


# What it leaves.


@of_every_operation
def test_outputs_are_json_of_the_shape_that_is_told(operation: AnyOperation, bench: Bench) -> None:
    assert bench.run().status is RunStatus.COMMITTED
    for step in bench.graph().steps:
        outputs, model = bench.outputs[step.id], registry.get(step.instruction.op).outputs
        text = json.dumps(outputs, allow_nan=False)
        assert json.loads(text) == outputs
        assert json.loads(model.model_validate_json(text).model_dump_json()) == outputs
        Draft202012Validator(model.model_json_schema(mode="serialization")).validate(outputs)


@of_every_operation
def test_a_failure_after_it_leaves_everything_as_it_was(bench: Bench) -> None:
    (bench.root / "empty").mkdir(mode=0o750)
    (bench.root / "link").symlink_to("nowhere")
    (bench.root / "private").write_text("private\n")
    (bench.root / "private").chmod(0o600)
    before = state_of(bench.root)
    outcome = bench.run(FAILURE)
    assert outcome.status is RunStatus.ROLLED_BACK
    assert outcome.failed_step == "failure", outcome.error
    assert differences(before, state_of(bench.root)) == {}


@of_every_operation
def test_a_resumed_run_does_not_run_it_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = count_runs(monkeypatch)
    outcome = bench.run(GATE, on_failure="pause")
    assert (outcome.status, outcome.failed_step) == (RunStatus.PAUSED, "gate"), outcome.error
    before, outputs = state_of(bench.root, objects=True), bench.outputs
    (bench.root / "gate-is-open").write_text("")
    assert bench.run(GATE, on_failure="pause").status is RunStatus.COMMITTED
    assert differences(before, state_of(bench.root, objects=True)).keys() == {"gate-is-open"}
    for step in bench.graph().steps:
        assert ran.count(step.id) == 1
        assert bench.outputs[step.id] == outputs[step.id]


# What a program does twice is its author's promise, who declares what it reads and writes.
REUSABLE = [each for each in OPERATIONS.values() if (each.cacheable or each.pure) and each.name not in STARTS_PROGRAMS]


@pytest.mark.parametrize("operation", REUSABLE, ids=lambda each: each.name)
def test_an_operation_that_can_be_reused_does_the_same_twice_and_no_more_on_what_it_left(bench: Bench) -> None:
    before = Overlay(bench.workspace.tree)
    first, second = (_done_to(bench, before) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first[:2] == second[:2]
    after = Overlay(before)
    after.apply(*first[1:])
    again = _done_to(bench, after)
    assert again is None or again[1] == []  # None: it refuses, as its work is done


def _done_to(bench: Bench, tree: Tree) -> tuple[Any, list[Change], Callable[[str], bytes]] | None:
    """What the operation's example does to a tree: outputs and changes; None if it refuses."""
    (step,) = bench.graph().steps
    operation = registry.get(step.instruction.op)
    layer = Overlay(tree)
    try:
        outputs = operation.run(resolved_parameters(step, values_of(step)), Context(layer, policy=bench.policy))
    except OperationError:
        return None
    return outputs, layer.changes(), layer.content_of


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the steps that run from now on."""
    ran: list[str] = []
    for cls in map(type, OPERATIONS.values()):

        def counted(self: Any, parameters: Any, context: Any, original: Any = cls.run) -> Any:
            ran.append(context.step_id)
            return original(self, parameters, context)

        monkeypatch.setattr(cls, "run", counted)
    return ran


# What it refuses before anything runs.


def refusal(operation: AnyOperation, parameters: Mapping[str, Any]) -> str:
    """What is said of the parameters when they are loaded; every fault with its pointer."""
    document = {"name": "contract", "instructions": [{"id": "step", "op": operation.name, "with": parameters}]}
    with pytest.raises(InvalidSet) as caught:
        load(json.dumps(document).encode(), file="contract.json")
    return "\n".join(f"{fault.pointer}: {fault.message}" for fault in caught.value.faults)


@of_every_operation
def test_an_unknown_parameter_is_refused_by_name(operation: AnyOperation) -> None:
    assert "no_such_parameter" in refusal(operation, {**operation.example, "no_such_parameter": 1})


@of_every_operation
def test_a_missing_parameter_is_refused_by_name(operation: AnyOperation) -> None:
    for name in operation.parameters.model_json_schema(by_alias=True).get("required", []):
        rest = {key: value for key, value in operation.example.items() if key != name}
        assert repr(name) in refusal(operation, rest)


ODD_VALUES: tuple[Any, ...] = ({"odd": [1.5]}, [[1.5]], True, 1.5)


@of_every_operation
def test_a_parameter_of_the_wrong_type_is_refused_by_name(operation: AnyOperation) -> None:
    schema = operation.parameters.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    for name, own in schema.get("properties", {}).items():
        judge = Draft202012Validator({**own, "$defs": definitions})
        for value in [each for each in ODD_VALUES if not judge.is_valid(each)]:
            assert f"/with/{name}" in refusal(operation, {**operation.example, name: value})

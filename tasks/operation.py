"""The contract that every operation fulfils, and nothing about any one of them.

An operation is a class with a `Parameters` model and an `Outputs` model. It says what it touches before it runs
(`effects`), from its parameters alone and without looking at anything; the planner orders instructions by that.
Then it runs, in one of three ways:

- *Predictable*: it works on `context.files` (an overlay), so that it can be planned exactly, and touches nothing else.
- *Not predictable*, as a language model decides (`asks_model`): the same, but a plan shows it as deferred, and asks
  nobody.
- *Not predictable* otherwise: it acts on the workspace's folder (`context.root`) through `context.processes` or
  `context.repository`; the engine captures what it may write before it starts and takes the difference afterwards. A
  plan shows it as deferred.

Adding one: subclass `Operation[Parameters, Outputs]`, decorate it with `@operation("family.name")`, and name its
module in the entry-point group `quantum_orchestrator.operations`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PathRefused
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.blocks.tree import ROOT, Overlay, Tree

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.model_session import Models
    from quantum_orchestrator.blocks.policy import Policy
    from quantum_orchestrator.blocks.repository import Repository
    from quantum_orchestrator.blocks.sandbox import Processes


class Parameters(BaseModel):
    """Base of every operation's parameters: unknown names are errors, and every field has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Outputs(BaseModel):
    """Base of every operation's outputs. They are stored as JSON, so that a resumed run can read them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def judge_path(path: str, *, folder: bool = False) -> str:
    """`path`, if its spelling is one of the workspace's. Raises ValueError, which makes it a fault of the parameter."""
    try:
        return check_path(path, folder=folder)
    except PathRefused as error:
        raise ValueError(f"{error.message} ({error.hint})" if error.hint else error.message) from error


def _judge_folder(path: str) -> str:
    return judge_path(path, folder=True)


# In the JSON Schema these formats tell editors and the validator how to judge the text (blocks/paths.py).
FilePath = Annotated[str, AfterValidator(judge_path), Field(json_schema_extra={"format": "workspace-path"})]
"""A path of a file: relative to the workspace, `/` between the parts, never `.`."""
FolderPath = Annotated[str, AfterValidator(_judge_folder), Field(json_schema_extra={"format": "workspace-folder"})]
"""The same where a folder is meant: `.` is the workspace itself."""


class Unknown(Exception):
    """A value that only a run can know was needed to plan."""


class UnknownValue:
    """Stands for a parameter whose expression refers to a step that has not run. Any use raises Unknown."""

    __slots__ = ()

    def _raise(self, *_: object) -> Any:
        raise Unknown

    __bool__ = __iter__ = __len__ = __getitem__ = __eq__ = __str__ = __contains__ = __lt__ = __hash__ = _raise

    def __getattr__(self, name: str) -> Any:
        raise Unknown

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = UnknownValue()


def _require_known(path: object) -> None:
    """A path that only a run can know must not get into the plan unnoticed."""
    if isinstance(path, UnknownValue):
        raise Unknown


@dataclass(frozen=True, slots=True)
class Access:
    """A path, or with `subtree` everything at and below it."""

    path: str
    subtree: bool = False

    def __post_init__(self) -> None:
        _require_known(self.path)


EVERYTHING = Access(ROOT, subtree=True)


@dataclass(frozen=True, slots=True)
class Effects:
    """What one instruction may touch, known before it runs.

    Writing a path implies making the folders above it. `makes` are folders made unless they are there; two
    instructions may make the same one in either order.
    """

    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()
    makes: tuple[str, ...] = ()
    predictable: bool = True
    """`run` works on the overlay alone: planning it gives exactly what running it does."""
    barrier: bool = False
    """Nothing may be moved across it, not even what touches other paths."""
    keeps_objects: bool = False
    """It may write to a git repository, but never takes an object away: the objects need not be kept to undo it."""
    asks_model: bool = False
    """A language model decides what it writes: not predictable, but what it writes goes to the overlay alone, within
    `writes`, and is judged as what came from nobody who is trusted."""
    irreversible: bool = False
    """It acts outside the workspace and cannot be undone: it waits until everything else has succeeded."""

    def __post_init__(self) -> None:
        for path in self.makes:
            _require_known(path)


@dataclass(frozen=True, slots=True)
class Reach:
    """What an instruction uses beside the workspace's files, known before it runs; the policy decides by it."""

    programs: tuple[str, ...] = ()
    """Programs that the instruction chooses, by their first word."""
    hosts: tuple[str, ...] = ()
    """Hosts that it sends requests to."""
    network: bool = False
    """Whether it reaches other machines."""


class CancelToken:
    """Says that the run wants an operation to end. Long operations wait on it instead of sleeping."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Ask for the end; what was registered with `on_cancel` is called once, here."""
        with self._lock:
            if self._event.is_set():
                return
            self._event.set()
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    @property
    def cancelled(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call this at cancellation (at once, if that was before)."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, seconds: float) -> None:
        """Sleep. Raises Interrupted as soon as the end is asked for."""
        if self._event.wait(seconds):
            raise Interrupted


@dataclass(slots=True)
class Context:
    """What an operation is given to work with. `root` and what follows it are for operations that cannot be
    predicted; when planning, `root` is None and touching the others is an error of the operation."""

    files: Overlay
    step_id: str = ""
    set_name: str = ""
    run_id: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    """The set's `env`, and the secrets that the instruction names: for processes only."""
    timeout: float | None = None
    """Seconds that this attempt may take."""
    cancel: CancelToken = field(default_factory=CancelToken)
    log: Callable[[str], None] = lambda _line: None
    """Writes one line to the run's log."""
    idempotency_key: str = ""
    """For what acts outside of the workspace: the same in every try of this step, so that the other side can tell."""
    in_doubt: bool = False
    """An earlier try of what acts outside may have got through: its process died, or its connection broke."""
    not_sent: Callable[[], None] = lambda: None
    """To be called when it is certain that this try, although it failed, has changed nothing outside."""
    before_run: Callable[[Sequence[str]], Tree] | None = None
    """What was at and below these paths before the run began; None where an operation is called on its own."""
    trusted: bool = False
    """Whether the set that the step belongs to is trusted."""
    root: Path | None = None
    models: Models | None = None
    judge_set: Callable[[Mapping[str, Any]], list[str]] | None = None
    """Every fault of an instruction set that is not trusted, with its place; none for one that is valid."""
    policy: Policy | None = None
    processes: Processes | None = None
    repository: Repository | None = None

    @property
    def folder(self) -> Path:
        """The workspace's folder on disk."""
        if self.root is None:
            raise OperationError("this operation cannot be planned: it needs the workspace itself")
        return self.root


ParametersT = TypeVar("ParametersT", bound=Parameters)
OutputsT = TypeVar("OutputsT", bound=Outputs)


class Operation(ABC, Generic[ParametersT, OutputsT]):
    """One kind of instruction. Stateless: one instance serves every run and every thread."""

    name: ClassVar[str] = ""
    parameters: ClassVar[type[Parameters]]
    outputs: ClassVar[type[Outputs]]
    cacheable: ClassVar[bool] = False
    """Its result may be reused where a set asks for that (`cache: true`). Say so only of an operation whose outputs and
    effects come from its parameters and from what its effects name alone, and which, run again on what it has left,
    leaves the same, or refuses because its work is done. What it shows, sends or asks a person is not done again."""
    pure: ClassVar[bool] = False
    """The same of one that writes nothing, and is worth reusing without being asked."""
    relies_on: ClassVar[tuple[str, ...]] = ()
    """Distributions besides its own whose versions make a difference to its results."""
    example: ClassVar[Mapping[str, Any]] = {}
    """A `with` that works as it stands in a workspace with nothing but `example_files`, for the documents."""
    example_files: ClassVar[Mapping[str, str]] = {}
    """Contents of the files that the example needs, by path."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for base in getattr(cls, "__orig_bases__", ()):
            arguments = get_args(base)
            if len(arguments) == 2 and all(isinstance(each, type) for each in arguments):
                cls.parameters, cls.outputs = arguments

    @abstractmethod
    def effects(self, parameters: ParametersT) -> Effects:
        """What it touches. Pure: no disk, no clock. A parameter that is not known yet raises Unknown on use."""

    def reach(self, parameters: ParametersT) -> Reach:
        """What it uses beside the workspace's files. A parameter that is not known yet raises Unknown on use."""
        return Reach()

    @abstractmethod
    def run(self, parameters: ParametersT, context: Context) -> OutputsT:
        """Do it. Raises OperationError (or a subclass) with what, where and what to do next."""

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]


AnyOperation = Operation[Any, Any]
OperationClass = TypeVar("OperationClass", bound=type[Operation[Any, Any]])

declared: dict[str, type[AnyOperation]] = {}
"""Operations by name, as their modules are imported. `tasks/registry.py` imports the modules."""


def operation(name: str) -> Callable[[OperationClass], OperationClass]:
    """Declare an operation under its public name. Raises ValueError for a name that is taken by another class."""

    def declare(cls: OperationClass) -> OperationClass:
        known = declared.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"operation {name!r} is declared twice: by {known.__module__} and by {cls.__module__}")
        cls.name = name
        declared[name] = cast("type[AnyOperation]", cls)
        return cls

    return declare

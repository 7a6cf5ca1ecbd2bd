"""Planning: from instructions to steps, from what steps touch to the order between them.

A set is expanded into *steps* (an instruction, or one round of its `for_each`, or one of a called set's), which are put
into one linear order: document order, except where a `needs` or a reference asks for another, and with irreversible
steps last. Every later step that touches what an earlier one touches gets an edge from it (a *hazard*, see
`flows/hazards.py`). Whatever runs along those edges ends as if the steps had run one by one in linear order.

Pure: no disk, no clock, no Prefect. What only a run can know (a list, a name) is `Unknown` here; a step whose accesses
are unknown is taken to touch everything.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from quantum_orchestrator.blocks.errors import InvalidInput, OperationError
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.flows import expressions
from quantum_orchestrator.flows.document import ErrorHandler, Instruction, InstructionSet, ModelHelp, Order, Trust
from quantum_orchestrator.flows.expressions import MISSING, Scope
from quantum_orchestrator.flows.hazards import Edge as Edge
from quantum_orchestrator.flows.hazards import Hazards, Link, Neighbours, edges_of
from quantum_orchestrator.flows.hazards import Reason as Reason
from quantum_orchestrator.flows.inputs import resolve_inputs
from quantum_orchestrator.flows.instruction_set import dependencies, names_nothing
from quantum_orchestrator.flows.schema import build_parameters, literal_parameters
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    UNKNOWN,
    Access,
    AnyOperation,
    Effects,
    Parameters,
    Unknown,
)

WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True, eq=False)
class SetScope:
    """One use of a set: the document's own, or a call's. Its steps share inputs, env and the prefix of their ids."""

    prefix: str
    document: InstructionSet
    inputs: Mapping[str, Any]
    outer: SetScope | None = None
    """For an error handler: the scope of the step that failed, whose steps it may refer to as well."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Where an id in an expression is looked for, its own list first."""
        return (self.prefix, *(self.outer.prefixes if self.outer else ()))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One thing that a run does. A step with `deferred_expansion` becomes several once its values are known."""

    id: str
    instruction: Instruction
    scope: SetScope
    item: Any = MISSING
    is_round: bool = False
    """It is one round of its instruction's `for_each`."""
    deferred_expansion: bool = False
    inherited: tuple[tuple[str, Reason], ...] = ()
    """Ids that the calls around it wait for."""

    @property
    def is_list(self) -> bool:
        """It stands for all rounds of a `for_each`; `when`, `retries` and `on_error` are each round's."""
        return self.instruction.for_each is not None and not self.is_round

    def waits_for(self) -> Iterator[tuple[str, Reason]]:
        """The ids that it names, each with why; an id may be a group's."""
        yield from self.inherited
        for name in self.instruction.needs:
            yield self.scope.prefix + name, Reason.NEEDS
        if names_nothing(self.instruction):
            return
        for name in sorted(dependencies(self.instruction) - set(self.instruction.needs)):
            yield self.scope.prefix + name, Reason.REFERENCE


@dataclass(slots=True)
class Expansion:
    """Steps in document order; `groups` gives, for an id that became several, the ids it became."""

    steps: list[Step] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def members(self, step_id: str) -> Iterator[str]:
        """The steps that an id stands for."""
        if step_id in self.groups:
            for member in self.groups[step_id]:
                yield from self.members(member)
        else:
            yield step_id


class _NothingHasRun(Mapping[str, Any]):
    """The `steps` of an expression before anything has run."""

    def __getitem__(self, key: str) -> Any:
        raise Unknown(key)

    def __iter__(self) -> Iterator[str]:
        raise Unknown

    def __len__(self) -> int:
        raise Unknown


NOTHING_HAS_RUN = _NothingHasRun()


def values_of(step: Step, steps: Mapping[str, Any] = NOTHING_HAS_RUN, run: Mapping[str, Any] | None = None) -> Scope:
    """What the step's expressions may refer to. Without `run`, what only a run knows is Unknown."""
    return Scope(
        inputs=step.scope.inputs,
        env=step.scope.document.env,
        steps=steps,
        run=NOTHING_HAS_RUN if run is None else run,
        item=step.item,
    )


def expand(document: InstructionSet, inputs: Mapping[str, Any]) -> Expansion:
    """The steps of a document, as far as they can be known before it runs."""
    expansion = Expansion()
    scope = SetScope("", document, inputs)
    for instruction in document.instructions:
        _expand(Step(instruction.id, instruction, scope), NOTHING_HAS_RUN, None, expansion)
    return expansion


def expand_step(step: Step, steps: Mapping[str, Any], run: Mapping[str, Any]) -> Expansion:
    """What a step with `deferred_expansion` becomes now that its values are known."""
    expansion = Expansion()
    step = replace(step, deferred_expansion=False)
    if step.is_list:
        _expand_list(step, steps, run, expansion)
    else:
        _expand_call(step, values_of(step, steps, run), expansion)
    return expansion


FIX, AGAIN = "fix", "again"
"""The steps that `on_error: {"llm": …}` becomes."""


def handler_steps(step: Step, handler: ErrorHandler, failure: str = "?") -> Expansion:
    """The steps of an `on_error`, whose ids begin with the failed step's; `failure` is what was said of it."""
    instructions = handler.run if handler.llm is None else _repairing(step.instruction, handler.llm, failure)
    document = step.scope.document.model_copy(update={"instructions": list(instructions)})
    scope = SetScope(f"{step.id}/on_error/", document, step.scope.inputs, outer=step.scope)
    expansion = Expansion()
    for instruction in instructions:
        inner = Step(scope.prefix + instruction.id, instruction, scope, step.item)
        _expand(inner, NOTHING_HAS_RUN, None, expansion)
    return expansion


def _repairing(failed: Instruction, by: ModelHelp, failure: str) -> list[Instruction]:
    """A repair, and the same instruction again, which may be repaired as often as is left."""
    given = by.model_dump(mode="json", exclude={"attempts"}, exclude_none=True)
    fix = {**given, "instruction": _literally(by.instruction), "failure": _literally(failure) or "?"}
    left = by.attempts - 1
    handler = ErrorHandler(llm=by.model_copy(update={"attempts": left})) if left else "fail"
    once = {"id": AGAIN, "needs": [FIX], "when": None, "for_each": None, "retries": 0, "on_error": handler}
    return [Instruction(id=FIX, op="llm.fix", parameters=fix), failed.model_copy(update=once)]


def _literally(text: str) -> str:
    """A text that means itself in an instruction."""
    return text.replace("${{", "$${{")


def _expand(step: Step, steps: Mapping[str, Any], run: Mapping[str, Any] | None, expansion: Expansion) -> None:
    if step.instruction.op != "call" and not step.is_list:
        expansion.steps.append(step)
        return
    inner = Expansion()
    try:
        if step.is_list:
            _expand_list(step, steps, run, inner)
        else:
            _expand_call(_one_that_cannot_fail_alone(step), values_of(step, steps, run), inner)
    except Unknown:
        expansion.steps.append(replace(step, deferred_expansion=True))
        return
    expansion.steps += inner.steps
    expansion.groups.update(inner.groups)


def _one_that_cannot_fail_alone(step: Step) -> Step:
    """A call that may be skipped, fail or be tried again as a whole stays one step until it runs: raises Unknown."""
    call = step.instruction
    has_own_outcome = call.when is not None or call.on_error != "fail" or call.timeout is not None
    if has_own_outcome or call.retries or call.undo is not None:
        raise Unknown
    return step


def _expand_list(step: Step, steps: Mapping[str, Any], run: Mapping[str, Any] | None, expansion: Expansion) -> None:
    items = expressions.evaluate(step.instruction.for_each, values_of(step, steps, run))
    if not isinstance(items, Sequence) or isinstance(items, str):
        found = type(items).__name__
        raise OperationError(f"{step.id}: for_each needs a list, and its expression gave a value of type {found}")
    rounds = [replace(step, id=f"{step.id}[{number}]", item=item, is_round=True) for number, item in enumerate(items)]
    for one in rounds:
        _expand(one, steps, run, expansion)
    expansion.groups[step.id] = [one.id for one in rounds]


def _expand_call(step: Step, scope: Scope, expansion: Expansion) -> None:
    called = InstructionSet.model_validate(step.instruction.parameters["set"])
    given = expressions.evaluate(step.instruction.parameters.get("inputs", {}), scope)
    inner = SetScope(step.id + "/", called, resolve_inputs(called, given))
    waits = tuple(step.waits_for())
    for instruction in called.instructions:
        part = Step(inner.prefix + instruction.id, instruction, inner, inherited=waits)
        _expand(part, NOTHING_HAS_RUN, None, expansion)
    expansion.groups[step.id] = [inner.prefix + instruction.id for instruction in called.instructions]


# What a step touches.


def resolved_parameters(step: Step, scope: Scope) -> Parameters:
    """The step's parameters with every expression evaluated.

    Raises Unknown where one cannot be yet, and OperationError where a value turns out wrong.
    """
    literal = literal_parameters(step.instruction)
    if literal is not None:
        return literal
    values = {name: expressions.evaluate(value, scope) for name, value in step.instruction.parameters.items()}
    return build_parameters(registry.get(step.instruction.op), values)


def partial_parameters(operation: AnyOperation, instruction: Instruction, scope: Scope) -> Parameters:
    """Parameters in which what is not known yet is UNKNOWN; using such a one raises Unknown."""
    literal = literal_parameters(instruction)
    if literal is not None:
        return literal
    known: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for name, value in instruction.parameters.items():
        try:
            known[name] = expressions.evaluate(value, scope)
        except Unknown:
            unknown[name] = UNKNOWN
    if not unknown:
        return build_parameters(operation, known)
    return operation.parameters.model_construct(**known, **unknown)


def effects_of(step: Step, scope: Scope | None = None) -> Effects:
    """What the step may touch: its own operation, the steps it will become, and its error handler."""
    effects = _own_effects(step, scope or values_of(step))
    handler = step.instruction.on_error
    if isinstance(handler, ErrorHandler):
        effects = _union([effects, *(effects_of(inner) for inner in handler_steps(step, handler).steps)])
    return effects


def is_literal(step: Step) -> bool:
    """Whether its effects were known for good when its graph was built: nothing in it, or in what handles its failure,
    is evaluated."""
    if step.deferred_expansion or not isinstance(step.instruction.on_error, str):
        return False
    return literal_parameters(step.instruction) is not None


def _own_effects(step: Step, scope: Scope) -> Effects:
    instruction = step.instruction
    if step.deferred_expansion:
        return _effects_of_expansion(step)
    operation = registry.get(instruction.op)
    try:
        effects = operation.effects(partial_parameters(operation, instruction, scope))
    except Unknown:
        return Effects((EVERYTHING,), (EVERYTHING,), predictable=False)
    return narrowed(effects, step)


def _effects_of_expansion(step: Step) -> Effects:
    """What a step that will become several may touch, whatever the values will be."""
    one = replace(step, deferred_expansion=False, is_round=True, item=UNKNOWN if step.is_list else step.item)
    if step.instruction.op != "call":
        return _own_effects(one, values_of(one))
    inner = Expansion()
    try:
        _expand_call(one, values_of(one), inner)
    except Unknown:
        return Effects((EVERYTHING,), (EVERYTHING,), predictable=False)
    return _union(effects_of(each) for each in inner.steps)


def narrowed(effects: Effects, step: Step) -> Effects:
    """A step's own `reads` and `writes`, where the operation itself cannot know what it touches.

    What a set that is not trusted says of itself is no reason to look at less of what it has changed.
    """
    instruction = step.instruction
    if instruction.reads is None and instruction.writes is None:
        return effects
    if step.scope.document.trust is Trust.UNTRUSTED:
        return effects
    reads, writes = effects.reads, effects.writes
    if instruction.reads is not None and EVERYTHING in reads:
        reads = tuple(access_of_glob(glob) for glob in instruction.reads)
    if instruction.writes is not None and EVERYTHING in writes:
        writes = tuple(access_of_glob(glob) for glob in instruction.writes)
    return replace(effects, reads=reads, writes=writes)


def access_of_glob(glob: str) -> Access:
    """The smallest folder or path that holds everything a glob can match."""
    fixed: list[str] = []
    for part in glob.split("/"):
        if WILDCARDS & set(part):
            return Access("/".join(fixed) or ROOT, subtree=True)
        fixed.append(part)
    return Access(glob, subtree=True)


def _union(several: Iterable[Effects]) -> Effects:
    collected = list(several)
    return Effects(
        reads=tuple(dict.fromkeys(access for each in collected for access in each.reads)),
        writes=tuple(dict.fromkeys(access for each in collected for access in each.writes)),
        makes=tuple(dict.fromkeys(path for each in collected for path in each.makes)),
        predictable=all(each.predictable for each in collected),
        barrier=any(each.barrier for each in collected),
        keeps_objects=all(each.keeps_objects for each in collected),
        irreversible=any(each.irreversible for each in collected),
    )


# The order between steps.


class Graph:
    """Steps in linear order and what each waits for; every edge points from an earlier to a later step."""

    def __init__(
        self, steps: list[Step], links: Sequence[Link], effects: dict[str, Effects], expansion: Expansion
    ) -> None:
        """`expansion` has the same steps in document order."""
        self.steps = steps
        self.effects = effects
        self.expansion = expansion
        self.groups = expansion.groups
        self.position = {step.id: number for number, step in enumerate(steps)}
        self._links = links
        neighbours = Neighbours(links)
        self.predecessors: dict[str, Set[str]] = {step_id: neighbours.before(step_id) for step_id in self.position}
        self.successors: dict[str, Set[str]] = {step_id: neighbours.after(step_id) for step_id in self.position}

    @property
    def edges(self) -> list[Edge]:
        """One for each pair of steps and reason; there may be very many more than steps."""
        return edges_of(self._links)


class CycleError(InvalidInput):
    """Steps wait for each other in a ring."""


def build(document: InstructionSet, inputs: Mapping[str, Any]) -> Graph:
    """The graph of a whole document."""
    return connect(expand(document, inputs), document.order)


def connect(expansion: Expansion, order: Order = Order.INFERRED) -> Graph:
    """Put the steps in linear order and find every edge.

    Raises CycleError, and InvalidInput where two steps of an explicit set write one path with no order between them.
    """
    explicit = [*_explicit_edges(expansion), *_chains_of_called_sets(expansion.steps)]
    effects = {step.id: effects_of(step) for step in expansion.steps}
    last = _irreversible(expansion.steps, effects, explicit) if order is Order.INFERRED else set()
    steps = _linear(expansion.steps, explicit, last)
    if order is Order.SEQUENTIAL:
        explicit += _chain(steps)
    hazards = Hazards().of([step.id for step in steps], effects, last)
    if order is Order.EXPLICIT:
        _check_unordered_writers(steps, explicit, hazards)
        hazards = []
    return Graph(steps, [*explicit, *hazards], effects, expansion)


def _explicit_edges(expansion: Expansion) -> list[Edge]:
    present = {step.id for step in expansion.steps}
    return [
        Edge(before, step.id, reason)
        for step in expansion.steps
        for name, reason in step.waits_for()
        for before in expansion.members(name)
        if before in present and before != step.id
    ]


def _chain(steps: Sequence[Step]) -> list[Edge]:
    return [Edge(one.id, next_.id, Reason.SEQUENTIAL) for one, next_ in itertools.pairwise(steps)]


def _chains_of_called_sets(steps: Sequence[Step]) -> list[Edge]:
    prefixes = {step.scope.prefix for step in steps if step.scope.document.order is Order.SEQUENTIAL} - {""}
    members: dict[str, list[Step]] = {prefix: [] for prefix in sorted(prefixes)}
    for step in steps if prefixes else ():
        for place, character in enumerate(step.id, start=1):
            if character == "/" and step.id[:place] in members:
                members[step.id[:place]].append(step)
    return [edge for chained in members.values() for edge in _chain(chained)]


def _irreversible(steps: Sequence[Step], effects: Mapping[str, Effects], explicit: Sequence[Edge]) -> set[str]:
    """Steps that cannot be undone, and those that ask to come after one."""
    found = {step.id for step in steps if effects[step.id].irreversible and step.instruction.undo is None}
    if not found:
        return found
    after: dict[str, list[str]] = {}
    for edge in explicit:
        after.setdefault(edge.before, []).append(edge.after)
    waiting = list(found)
    while waiting:
        for step_id in after.get(waiting.pop(), ()):
            if step_id not in found:
                found.add(step_id)
                waiting.append(step_id)
    return found


def _linear(steps: Sequence[Step], edges: Sequence[Edge], last: set[str]) -> list[Step]:
    """Document order, changed as little as the edges ask for; `last` come after all others."""
    if not edges and not last:
        return list(steps)
    position = {step.id: (step.id in last, number) for number, step in enumerate(steps)}
    by_id = {step.id: step for step in steps}
    blockers = dict.fromkeys(by_id, 0)
    after: dict[str, list[str]] = {}
    for edge in edges:
        blockers[edge.after] += 1
        after.setdefault(edge.before, []).append(edge.after)
    ready = [(position[step_id], step_id) for step_id, count in blockers.items() if count == 0]
    heapq.heapify(ready)
    ordered: list[Step] = []
    while ready:
        _, step_id = heapq.heappop(ready)
        ordered.append(by_id[step_id])
        for each in after.get(step_id, ()):
            blockers[each] -= 1
            if blockers[each] == 0:
                heapq.heappush(ready, (position[each], each))
    if len(ordered) < len(steps):
        raise CycleError(f"steps wait for each other: {' → '.join(_ring(blockers, edges))}")
    return ordered


def _ring(blockers: Mapping[str, int], edges: Sequence[Edge]) -> list[str]:
    """One ring among the steps that never became ready."""
    stuck = {step_id for step_id, count in blockers.items() if count}
    before = {edge.after: edge.before for edge in edges if edge.after in stuck and edge.before in stuck}
    path = [min(stuck & before.keys())]
    while before[path[-1]] not in path:
        path.append(before[path[-1]])
    start = before[path[-1]]
    return [start, *reversed(path[path.index(start) :])]


def _check_unordered_writers(steps: Sequence[Step], explicit: Sequence[Edge], hazards: Sequence[Link]) -> None:
    """In an explicit set, two steps that write one path must be in order by `needs` or references."""
    position = {step.id: number for number, step in enumerate(steps)}
    before: dict[str, set[str]] = {step.id: set() for step in steps}
    for edge in sorted(explicit, key=lambda edge: position[edge.after]):
        before[edge.after] |= {edge.before, *before[edge.before]}
    for edge in (each for each in hazards if isinstance(each, Edge)):  # crowds are of readers, or are read
        if edge.reason is Reason.WRITE_WRITE and edge.before not in before[edge.after]:
            raise InvalidInput(
                f"steps {edge.before!r} and {edge.after!r} both write {edge.path}, and nothing says which comes first",
                hint=f'the set\'s order is explicit: add "needs": ["{edge.before}"] to {edge.after!r}',
            )

"""A plan in a file: what was previewed, so that exactly that can be run, and nothing else.

`qo plan -o p.plan` writes one, `qo run --plan p.plan` runs it. It holds the set as it was loaded, its inputs, and its
*basis*: for every path that the dry run looked at, what it saw there. The invariant: as long as `moved_on` finds
nothing, the dry run would see the same again, and so predict the same. What it did predict is kept as well, to be
compared with what the run then does. A plan file is JSON and carries its own digest, so that one that was cut or edited
is refused; `digest` also names a plan to whoever approves it.

Pure but for the tree that is given, which is only read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantum_orchestrator.blocks.diff_json import changes_json
from quantum_orchestrator.blocks.errors import NeedsAttention, OperationError, UsageError
from quantum_orchestrator.blocks.tree import Entry, Kind, Tree
from quantum_orchestrator.flows.instruction_set import InstructionSet, load_object
from quantum_orchestrator.flows.prediction import Prediction

FORMAT = "quantum-orchestrator-plan"
VERSION = 1
MOST_PATHS_NAMED = 10

Facets = dict[str, Any]
"""What was seen at one path: `kind`, `entry` (digests included) and `names` (a digest), as far as it was looked at."""


class RecordingTree:
    """A tree that notes what is looked at, and what is seen. See Tree."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.umask = tree.umask
        self.seen: dict[str, Facets] = {}

    def kind(self, path: str) -> Kind | None:
        """See Tree."""
        kind = self._tree.kind(path)
        self._note(path, "kind", None if kind is None else kind.value)
        return kind

    def entry(self, path: str) -> Entry | None:
        """See Tree."""
        entry = self._tree.entry(path)
        self._note(path, "entry", _entry_json(entry))
        return entry

    def read(self, path: str) -> bytes:
        """See Tree."""
        self.entry(path)  # first: what cannot be read is noted all the same
        return self._tree.read(path)

    def names(self, path: str) -> list[str]:
        """See Tree."""
        names = self._tree.names(path)
        self._note(path, "names", _digest(names))
        return names

    def _note(self, path: str, facet: str, value: Any) -> None:
        self.seen.setdefault(path, {}).setdefault(facet, value)


def _entry_json(entry: Entry | None) -> Any:
    return None if entry is None else {**asdict(entry), "kind": entry.kind.value}


def predicted_json(document: InstructionSet, prediction: Prediction) -> dict[str, Any]:
    """What a dry run promises: `changes`, as `qo plan --json` has them, and the ids of the `deferred` steps."""
    return {
        "changes": changes_json(prediction.changes_left(document.on_failure)),
        "deferred": [step.id for step in prediction.deferred],
    }


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What a plan file says. `workspace` is the absolute path of the folder that it was made for; `predicted` is what
    `predicted_json` gives."""

    document: InstructionSet
    inputs: Mapping[str, Any]
    workspace: str
    basis: Mapping[str, Facets]
    predicted: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the plan says."""
        return _digest(self._body())

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "workspace": self.workspace,
            "set": self.document.model_dump(by_alias=True, mode="json", exclude_unset=True),
            "inputs": dict(self.inputs),
            "basis": dict(self.basis),
            "predicted": dict(self.predicted),
        }

    def dump(self) -> str:
        """The file's text."""
        return json.dumps({**self._body(), "sha256": self.digest}, indent=1, sort_keys=True) + "\n"

    def moved_on(self, tree: Tree) -> list[str]:
        """The paths at which the dry run would see something else now."""
        return sorted(path for path, facets in self.basis.items() if not _same(tree, path, facets))

    def check(self, tree: Tree) -> None:
        """Raises NeedsAttention, naming the paths, where the workspace is not what the plan rests on."""
        paths = self.moved_on(tree)
        if paths:
            more = len(paths) - MOST_PATHS_NAMED
            named = ", ".join(paths[:MOST_PATHS_NAMED]) + (f" and {more} more" if more > 0 else "")
            raise NeedsAttention(
                f"the workspace has moved on since the plan was made: {named}",
                hint="nothing was changed; plan again, and look at what it says now",
            )


def parse(text: bytes, file: str) -> PlanFile:
    """Read a plan file. Raises UsageError if it is none, or not as it was written."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: is no plan: {error}", hint="`qo plan FILE -o PLAN` makes one") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{file}: is no plan", hint="`qo plan FILE -o PLAN` makes one; `qo run FILE` runs a set")
    if value.get("version") != VERSION:
        raise UsageError(f"{file}: is a plan of another version", hint="plan again")
    claimed = value.pop("sha256", None)
    if claimed != _digest(value):
        raise UsageError(f"{file}: was changed since it was written", hint="plan again")
    document = load_object(value["set"], file=file)
    return PlanFile(document, value["inputs"], value["workspace"], value["basis"], value["predicted"])


def _same(tree: Tree, path: str, facets: Facets) -> bool:
    try:
        return all(seen == now for seen, now in _compared(tree, path, facets))
    except OperationError:  # what was there can no longer be looked at
        return False


def _compared(tree: Tree, path: str, facets: Facets) -> Iterator[tuple[Any, Any]]:
    if "kind" in facets:
        kind = tree.kind(path)
        yield facets["kind"], None if kind is None else kind.value
    if "entry" in facets:
        yield facets["entry"], _entry_json(tree.entry(path))
    if "names" in facets:
        yield facets["names"], _digest(tree.names(path))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

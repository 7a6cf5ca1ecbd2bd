"""What the policy says of an instruction: whether it may run, and whether a person must approve it first.

Asked in three places, by the same functions: when a document is judged and when it is planned, for what can be known
then; and right before and after an operation works, for everything else. A step that is refused has changed nothing, or
what it had changed is undone.

An approval is bound to content: to the digests of the files as the step would leave them, or to the operation's
parameters. Another content is another approval (`ApprovalNeeded.subject`). Knows neither journal nor Prefect; pure but
for the level of the sandbox here.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PolicyRefused
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.tree import Change, Entry, Kind, Tree, folders_above, is_within, printable
from quantum_orchestrator.flows.document import Trust
from quantum_orchestrator.tasks.operation import AnyOperation, Effects, Parameters, Reach, Unknown

if TYPE_CHECKING:
    from quantum_orchestrator.blocks.sandbox import Limits

GIT = ".git"
_MIB = 2**20
_NO_LIMIT = 2**31
LONGEST_PATCH = 100_000
MOST_NAMED = 10


class ApprovalNeeded(Interrupted):
    """A step may not go on before somebody has approved exactly this."""

    def __init__(self, step_id: str, what: Any, message: str, *, files: Sequence[Any] = (), patch: str = "") -> None:
        super().__init__(message)
        self.subject = f"{step_id}@{_digest(what)}"
        """What an approval of it is recorded under."""
        self.message = message
        self.files = list(files)
        self.patch = patch
        self.in_advance = True
        """Whether approving everything in advance counts for it."""

    def as_json(self) -> dict[str, Any]:
        """For the run's document, and for whoever decides."""
        return {"approval": self.subject, "message": self.message, "files": self.files, "patch": self.patch}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is refused. `part` says what of the instruction: op, program, host, network, or path."""

    part: str
    error: PolicyRefused
    value: str = ""


Decided = Callable[[str], bool | None]
"""What somebody has decided of a subject; None if nobody has."""


class Guard:
    """A policy, as it holds for the steps of trusted sets, or for those of others."""

    def __init__(self, policy: Policy, *, untrusted: bool) -> None:
        self.base = policy
        self.policy = policy.for_untrusted() if untrusted else policy
        self.untrusted = untrusted
        self.idle = self.policy.forbids_nothing
        """Nothing is refused and nothing asked for: most policies are so, and cost nothing then."""

    # Before.

    def findings(self, operation: AnyOperation, parameters: Parameters | None) -> Iterator[Finding]:
        """All that is refused of an instruction, as far as its parameters are known."""
        if self.idle:
            return
        for error in self.policy.refusals("operations", operation.name):
            yield Finding("op", error)
        if parameters is None:
            return
        try:
            reach = operation.reach(parameters)
        except Unknown:
            reach = Reach()
        yield from self._out_of_reach(operation.name, reach)
        try:
            effects = operation.effects(parameters)
        except Unknown:
            return
        for path in _written(effects):
            yield from (Finding("path", error, path) for error in self.policy.refusals("paths", path))

    def _out_of_reach(self, name: str, reach: Reach) -> Iterator[Finding]:
        from quantum_orchestrator.blocks.levels import level_problem  # here, as most sets never come to it

        problem = level_problem(self.policy.sandbox_require) if reach.programs else None
        if problem is not None:
            yield Finding("op", PolicyRefused(f"{name} starts programs: {problem.message}", hint=problem.hint))
        if reach.network and (error := self.policy.network_refusal(name)) is not None:
            yield Finding("network", error)
        for each in reach.hosts:
            yield from (Finding("host", error, each) for error in self.policy.refusals("http", each))
        for each in reach.programs:
            yield from (Finding("program", error, each) for error in self._program_refusals(each))

    def _program_refusals(self, program: str) -> list[PolicyRefused]:
        """A program that is denied by its name is so wherever it is; one that is allowed, only as it is named."""
        found = self.policy.refusals("programs", program)
        name = program.rpartition("/")[2]
        return found or [
            error for rule in self.policy.rules_of("programs.deny") if (error := rule.refusal(name)) is not None
        ]

    def check(self, step_id: str, operation: AnyOperation, parameters: Parameters, decided: Decided) -> None:
        """Right before an operation works. Raises PolicyRefused, or ApprovalNeeded."""
        if self.idle:
            return
        for finding in self.findings(operation, parameters):
            raise finding.error
        asked_by = self.policy.asks("operations", operation.name)
        if asked_by is not None:
            given = parameters.model_dump(mode="json", exclude_unset=True, by_alias=True)
            message = f"{operation.name} needs an approval ({asked_by}): {json.dumps(given, ensure_ascii=False)[:500]}"
            _require(ApprovalNeeded(step_id, [operation.name, given], message), decided)

    def asks_for(self, operation: str) -> bool:
        """Whether every use of the operation needs an approval."""
        return not self.idle and self.policy.asks("operations", operation) is not None

    @property
    def limits(self) -> Limits:
        """What one program may use."""
        from quantum_orchestrator.blocks.sandbox import Limits

        policy = self.policy
        return Limits(
            processes=policy.limits_processes or _NO_LIMIT,
            output_bytes=policy.limits_output_mb * _MIB or _NO_LIMIT,
            file_bytes=policy.limits_file_mb * _MIB or _NO_LIMIT,
            memory_bytes=policy.limits_memory_mb * _MIB,
            cpu_seconds=policy.limits_cpu_seconds,
            written_bytes=policy.limits_written_mb * _MIB,
            seconds=policy.limits_seconds or None,
        )

    def needed_level(self, effects: Effects) -> int:
        """The sandbox level for the programs that an operation starts: in one that can be planned, the set has no say
        in which they are."""
        return self.base.sandbox_require if effects.predictable else self.policy.sandbox_require

    @property
    def env(self) -> Mapping[str, str]:
        """What programs get beside what the set gives them: Python leaves nothing where nobody looks."""
        return {"PYTHONDONTWRITEBYTECODE": "1"} if self.untrusted else {}

    # After.

    def check_unseen(self, changes: Sequence[Change], caches: Sequence[str]) -> None:
        """What programs have changed that no approval shows, and others execute: a repository's own files, and caches,
        which no snapshot looks into. Raises PolicyRefused where an untrusted set has."""
        if not self.untrusted or self.policy.lenient:
            return
        own = [printable(each.path) for each in changes if GIT in each.path.split("/")]
        if own:
            raise PolicyRefused(
                f"the policy refuses what a program has done to git's own files: {_listed(own)}",
                hint="sets that are not trusted change repositories by git operations alone",
            )
        if caches:
            raise PolicyRefused(
                f"the policy refuses what a program has left in caches: {_listed(caches)}",
                hint="new ones were put aside, in `aside` of the state folder; at sandbox level 4 they are dropped. "
                "`exclude` under [snapshot] in policy.toml names them",
            )

    def check_proposed(self, areas: Sequence[str], changes: Sequence[Change]) -> None:
        """What programs have written to a layer and is not done yet. Raises PolicyRefused for git's own files, and
        OperationError for what the step's effects do not name: another step may count on that."""
        self.check_unseen(changes, ())
        own = [printable(each.path) for each in changes if GIT in each.path.split("/")]
        if own:
            raise OperationError(
                f"at sandbox level 4 no program changes git's own files: {_listed(own)}",
                hint="use the git operations, or a lower level",
            )
        beyond = [printable(path) for path in _outside_of(areas, changes)]
        if beyond:
            raise OperationError(
                f"a program has changed what the step's `writes` do not name: {_listed(beyond)}",
                hint="nothing of that was kept; name it there, or leave `writes` out",
            )

    def check_changes(
        self, step_id: str, changes: Sequence[Change], content_of: Callable[[str], bytes], decided: Decided
    ) -> None:
        """What a step changes, known to the byte, before it stays. Raises PolicyRefused, or ApprovalNeeded."""
        if self.idle:
            return
        own = [each for each in changes if GIT not in each.path.split("/")]
        for error in (error for each in own for error in self._refusals(each, own)):
            raise error
        privileged = [printable(each.path) for each in own if _gives_rights(each)] if self.untrusted else []
        if privileged and not self.policy.lenient:
            raise PolicyRefused(
                f"the policy refuses a file that runs with the rights of its owner: {_listed(privileged)}",
                hint="sets that are not trusted set no set-user-id or set-group-id bits",
            )
        asked = self.asked_about(own)
        if asked:
            _require(_about_files(step_id, asked, content_of), decided)

    def _refusals(self, change: Change, changes: Sequence[Change]) -> list[PolicyRefused]:
        errors = self.policy.refusals("paths", change.path)
        if errors and _is_folder_only(change) and change.path in folders_above(each.path for each in changes):
            return [
                error for error in errors if not error.hint.endswith("does not name it")
            ]  # its way to what is allowed
        return errors

    def asked_about(self, changes: Sequence[Change]) -> list[Change]:
        """The changes that somebody must have seen."""
        if self.idle:
            return []
        return [each for each in changes if not _is_folder_only(each) and self.policy.asks("files", each.path)]


class Guards:
    """One policy's guards, by trust."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._trusted = Guard(policy, untrusted=False)
        self._untrusted: Guard | None = None

    def of(self, trust: Trust) -> Guard:
        """The guard for the steps of sets of this trust."""
        if trust is Trust.TRUSTED:
            return self._trusted
        if self._untrusted is None:
            self._untrusted = Guard(self.policy, untrusted=True)
        return self._untrusted


def _listed(paths: Sequence[str]) -> str:
    more = f", and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(paths[:MOST_NAMED]) + more


def _require(needed: ApprovalNeeded, decided: Decided) -> None:
    decision = decided(needed.subject)
    if decision is None:
        raise needed
    if not decision:
        raise OperationError("the approval was rejected", hint="")


def _written(effects: Effects) -> list[str]:
    """The paths that are changed for certain; below a folder that is written as a whole, only a run can tell."""
    paths = [access.path for access in effects.writes if not access.subtree]
    above = folders_above([*paths, *effects.makes])
    return [*paths, *(path for path in effects.makes if path not in above)]


def _outside_of(areas: Sequence[str], changes: Sequence[Change]) -> Iterator[str]:
    """The paths that are changed without being in the areas, or a folder that is made above one of those."""
    above = folders_above(areas)
    for each in changes:
        is_way = each.path in above and each.before is None and each.after and each.after.kind is Kind.FOLDER
        if not is_way and not any(is_within(each.path, area) for area in areas):
            yield each.path


def _gives_rights(change: Change) -> bool:
    after, rights = change.after, stat.S_ISUID | stat.S_ISGID
    return after is not None and after.kind is Kind.FILE and bool(after.mode & rights) and change.before != after


def _is_folder_only(change: Change) -> bool:
    return all(side is None or side.kind is Kind.FOLDER for side in (change.before, change.after))


# Content.


class HasContents(Protocol):
    """An overlay, or what a program proposes."""

    def content_of(self, sha256: str) -> bytes:
        """A content that is new."""


def contents_of(changes: Sequence[Change], before: Tree, after: HasContents) -> Callable[[str], bytes]:
    """Contents by digest: those that were there from where they lie, the new ones from the overlay."""
    places = {each.before.sha256: each.path for each in changes if each.before is not None and each.before.sha256}
    return lambda sha256: before.read(places[sha256]) if sha256 in places else after.content_of(sha256)


def _about_files(step_id: str, changes: Sequence[Change], content_of: Callable[[str], bytes]) -> ApprovalNeeded:
    from quantum_orchestrator.blocks import diff

    files = [
        {"path": printable(each.path), "before": _side(each.before), "after": _side(each.after)} for each in changes
    ]
    named = "; ".join(_in_words(each) for each in changes[:MOST_NAMED])
    more = f"; and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
    message = f"it changes files that need an approval, as tools may execute them: {named}{more}"
    patch = diff.render(list(changes), content_of)
    if len(patch) > LONGEST_PATCH:
        patch = f"{patch[:LONGEST_PATCH]}\n… cut here\n"
    return ApprovalNeeded(step_id, files, message, files=files, patch=patch)


def _side(entry: Entry | None) -> Mapping[str, Any] | None:
    if entry is None:
        return None
    return {"kind": entry.kind.value, "mode": f"{entry.mode:04o}", "sha256": entry.sha256, "target": entry.target}


def _in_words(change: Change) -> str:
    before, after = change.before, change.after
    if after is None:
        return f"{printable(change.path)} is deleted (sha256 {_named(before)})"
    if before is None:
        return f"{printable(change.path)} is new (sha256 {_named(after)})"
    if (before.kind, before.sha256, before.target) == (after.kind, after.sha256, after.target):
        return f"{printable(change.path)} gets mode {after.mode:04o} (sha256 {_named(after)})"
    return f"{printable(change.path)} changes from sha256 {_named(before)} to {_named(after)}"


def _named(entry: Entry | None) -> str:
    if entry is None:
        return "none"
    return entry.sha256 or f"none, a link to {printable(entry.target)!r}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""Redoing what a power cut took away: effects of steps that had ended, which were not yet durable on disk.

A step that is done has its INTENTs and contents in the journal, durably; its files get durable only when the run is
committed. After a power cut a path may therefore be in an earlier state, or torn: in none of the run's, and the file
system's making. Both are brought to what the last step that is done has left there.

What the journal has no content for cannot be brought back, nor can git's objects; the steps that it belongs to must run
again. Reflogs and what git leaves about are not worth that. Planning is all that is done here, by functions that look
at the disk; `blocks/workspace.py` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.blocks.git_undo import Disk, Judge, is_left_about, repositories_in
from quantum_orchestrator.blocks.journal import Effect
from quantum_orchestrator.blocks.tree import Change, Entry, Kind
from quantum_orchestrator.blocks.undo import histories_of


@dataclass(slots=True)
class Redo:
    """What a power cut has taken away, and what comes of that."""

    changes: list[Change] = field(default_factory=list)
    """What brings paths to where the steps had left them."""
    lost: list[str] = field(default_factory=list)
    """Steps that cannot be brought back in whole: they must be undone and run again."""
    displaced: dict[str, Entry] = field(default_factory=dict)
    """Torn versions, which are put aside."""
    aside: dict[str, Path] = field(default_factory=dict)
    """Where they are."""


def plan(
    effects: Sequence[Effect],
    done: Collection[str],
    look: Callable[[str], Entry | None],
    has_content: Callable[[str], bool],
) -> Redo:
    """What to do for the steps that are done; `effects` are all that the run has."""
    redo = Redo()
    lost: set[str] = set()
    for path, history in sorted(histories_of(effects).items()):
        ended = [each for each in history if each.step in done]
        if not ended:
            continue
        current, wanted = look(path), ended[-1].change.after
        later = [each.change.after for each in history if each.number > ended[-1].number]
        if current == wanted or (later and current in later) or is_left_about(path):
            continue
        if wanted is not None and (
            wanted.kind is Kind.SPECIAL or (wanted.kind is Kind.FILE and not has_content(wanted.sha256))
        ):
            lost.update(each.step for each in ended)
            continue
        if current is not None and not _is_known(current, history):
            redo.displaced[path] = current
        redo.changes.append(Change(path, current, wanted))
    redo.lost = sorted(lost)
    return redo


def _is_known(current: Entry, history: Sequence[Effect]) -> bool:
    states = [state for each in history for state in (each.change.before, each.change.after)]
    return current in states or current.kind is Kind.FOLDER


def without_objects(effects: Sequence[Effect], done: Collection[str], disk: Disk) -> list[str]:
    """Steps that are done and whose commits or staged contents are not in the repository, once it has been redone."""
    ended = [each for each in effects if each.step in done]
    found: set[str] = set()
    for repository, histories in repositories_in(histories_of(ended)).items():
        try:
            lacks = Judge(repository, histories, disk).lacks_objects()
        except OperationError:  # git cannot even begin to read it
            lacks = True
        if lacks:
            found.update(each.step for history in histories.values() for each in history)
    return sorted(found)

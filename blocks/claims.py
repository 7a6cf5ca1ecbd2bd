"""Which steps of a run claim the folders that it has made.

Steps that run at once touch different paths; making and removing the folders above them is the one thing that they
share. So every step that uses a folder which the run has made claims it, by an effect of its own, and the folder goes
when the last step that claims it is undone.

Invariant: what is kept at hand here is what the journal's effects say. It must not know the disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from quantum_orchestrator.blocks.journal import Effect, EffectState, Journal
from quantum_orchestrator.blocks.tree import Change, Kind
from quantum_orchestrator.blocks.undo import is_making


class Claims:
    """The claims of one run at a time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._run = ""
        self._steps: dict[str, set[str]] = {}
        self._kept: set[str] = set()

    def others(self, run_id: str, folder: str, steps: set[str]) -> bool:
        """Whether a step other than these claims the folder."""
        self.load(run_id)
        return not self._steps.get(folder, set()) <= steps

    def others_before(self, run_id: str, effect: Effect, steps: set[str]) -> bool:
        """Whether a step other than these claimed the effect's folder when it was recorded."""
        at_that_time = Claims(self._journal)
        for each in self._journal.effects(run_id):
            if each.number < effect.number and each.change.path == effect.change.path:
                at_that_time._add(each.change, each.step)
        return not at_that_time._steps.get(effect.change.path, set()) <= steps

    def kept(self, run_id: str) -> set[str]:
        """The folders whose makers are undone."""
        self.load(run_id)
        return self._kept

    def note(self, run_id: str, step_id: str, changes: Iterable[Change]) -> None:
        """Changes that have been journaled."""
        if self._run == run_id:
            for change in changes:
                self._add(change, step_id)

    def forget(self, run_id: str, undone: Iterable[Effect], kept: Iterable[Effect]) -> None:
        """Effects that have been undone, and those whose steps have been."""
        self.load(run_id)
        for effect in (*undone, *kept):
            if is_making(effect.change):
                self._steps.get(effect.change.path, set()).discard(effect.step)
                self._kept.discard(effect.change.path)
            elif effect.change.before is not None and effect.change.before.kind is Kind.FOLDER:
                self._run = ""  # what was deleted is claimed again by whoever had made it
        self._kept.update(effect.change.path for effect in kept)

    def load(self, run_id: str) -> None:
        """Have a run's claims at hand."""
        if self._run == run_id:
            return
        self._run, self._steps, self._kept = run_id, {}, set()
        for effect in self._journal.effects(run_id):
            if effect.state is EffectState.KEPT:
                self._kept.add(effect.change.path)
            else:
                self._add(effect.change, effect.step)

    def reset(self) -> None:
        """Something was noted that has not got into the journal: it tells the rest anew."""
        self._run = ""

    def _add(self, change: Change, step: str) -> None:
        if is_making(change):
            self._steps.setdefault(change.path, set()).add(step)
        elif change.after is None or change.after.kind is not Kind.FOLDER:
            self._steps.pop(change.path, None)

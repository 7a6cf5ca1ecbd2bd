"""The workspace: every effect on its files is journaled here, then done, and can be undone.

Two kinds of step change it. One that works on an overlay hands over its changes: `apply` makes INTENTs durable and then
does them; so does one whose programs write to a layer (`apart`, `proposed`). One that acts by itself otherwise (a
script, git) is watched: `capture` makes durable everything that it may change, `finish` takes the difference afterwards
and journals it. `undo` puts any of them back, as absolute states, so that it can be repeated; a path that somebody else
has changed since is left alone and reported, or what the caller chooses.

Invariant: nothing that a run changes is touched before the journal could put it back. Steps that run at once touch
different paths (the plan sees to it); making and removing the folders above them is the one thing that they share, the
reason for the mutex and for the claims (`blocks/claims.py`).

What undoing means is `blocks/undo.py`'s matter, how a disk is looked at and changed that of `blocks/snapshot.py` and
`blocks/disk_changes.py`. It must not know operations, plans or Prefect.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from pathlib import Path

from quantum_orchestrator.blocks import disk_changes, git_undo, redo, script_folders, snapshot
from quantum_orchestrator.blocks.aside import Aside
from quantum_orchestrator.blocks.claims import Claims
from quantum_orchestrator.blocks.confined import ConfinedFolder, is_temporary
from quantum_orchestrator.blocks.disk_changes import ContentOf
from quantum_orchestrator.blocks.disk_tree import DiskTree, Look, current_umask, inside, opened_up, reachable_entry
from quantum_orchestrator.blocks.errors import OperationError, PathRefused
from quantum_orchestrator.blocks.git_objects import GitObjects
from quantum_orchestrator.blocks.journal import Effect, EffectState, Journal
from quantum_orchestrator.blocks.layer import Layer, Proposal
from quantum_orchestrator.blocks.layer import read as read_layer
from quantum_orchestrator.blocks.redo import Redo
from quantum_orchestrator.blocks.snapshot import GIT, Exclusions
from quantum_orchestrator.blocks.tree import (
    ROOT,
    Change,
    Entry,
    Kind,
    Overlay,
    Tree,
    ancestors,
    changed_meanwhile,
    digest,
    folders_above,
    is_within,
    join,
    parent,
)
from quantum_orchestrator.blocks.undo import Conflicts, Planner, Undo, histories_of, is_going, is_making

__all__ = ["GIT", "Conflicts", "DiskTree", "Redo", "Undo", "Workspace", "current_umask"]


class Workspace:
    """A folder whose effects are journaled. Any number of a run's steps may use it at once."""

    def __init__(self, root: Path, journal: Journal, exclude: Sequence[str] = ()) -> None:
        """`exclude` are names (with wildcards) of folders and files that captures leave out: caches, for instance."""
        self.root = root
        self.journal = journal
        self.folder = ConfinedFolder.open(root)
        self.tree = DiskTree(self.folder)
        self._excluded = Exclusions(exclude)
        self._objects = GitObjects(root, journal.folder)
        self._mutex = threading.RLock()
        self._claims = Claims(journal)
        self._areas: dict[str, list[str]] = {}  # of the last capture, by step
        self._at_work: set[str] = set()  # steps between their capture and its end
        self._caches: dict[str, _Caches] = {}  # by step

    def close(self) -> None:
        """Close the folder; the journal is its owner's."""
        self.folder.close()

    def sync(self) -> None:
        """Wait until all that was done so far survives a power cut. Raises OperationError if the disk refuses."""
        try:
            self.folder.syncfs()
        except OSError as error:
            raise OperationError(
                f"what was done so far cannot be made to survive a power cut: {error.strerror or error}",
                hint="check the space left, the quota and the disk",
            ) from error

    def before_run(self, run_id: str, paths: Sequence[str]) -> Tree:
        """What was at and below these paths before the run began, as its journal says."""
        first: dict[str, Change] = {}
        for effect in self.journal.effects(run_id):
            if any(is_within(effect.change.path, path) for path in paths):
                first.setdefault(effect.change.path, effect.change)
        earlier = Overlay(self.tree)
        changes = [Change(path, change.after, change.before) for path, change in sorted(first.items())]
        earlier.apply(changes, self.journal.content)
        return earlier

    # Effects that are known before they happen.

    def apply(self, run_id: str, step_id: str, changes: Sequence[Change], content_of: ContentOf) -> None:
        """Journal the changes, then do them. Raises OperationError; `undo` then puts back what was done."""
        self.apply_all(run_id, [(step_id, changes)], content_of)

    @contextlib.contextmanager
    def look(self) -> Iterator[Look]:
        """The workspace as several steps that are done together find it; for one thread and a short time."""
        with self.folder.keeping_open() as folder:
            yield Look(folder, self.tree.umask)

    def apply_all(
        self,
        run_id: str,
        changes_of: Sequence[tuple[str, Sequence[Change]]],
        content_of: ContentOf,
        look: Look | None = None,
    ) -> None:
        """The same for several steps, one after another, with one record in the journal and one write of each path.

        `look` is what their changes were made from, if that was not long ago.
        """
        changes_of = [(step_id, changes) for step_id, changes in changes_of if changes]
        if not changes_of:
            return
        with contextlib.ExitStack() as stack:
            look = look or stack.enter_context(self.look())
            stack.enter_context(self._mutex)
            seen = _Seen(look)
            self._claims.load(run_id)
            try:
                recorded = [
                    (step_id, self._as_it_is_now(run_id, step_id, changes, seen)) for step_id, changes in changes_of
                ]
                stored = self.journal.contents_missing(_contents_of(recorded))
                self.journal.intend_all(run_id, recorded, _contents(look, stored, seen.first, content_of))
            except BaseException:
                self._claims.reset()
                raise
            disk_changes.make_so(look.folder, seen.changes(), content_of)
            look.folder.check()

    def _as_it_is_now(self, run_id: str, step_id: str, changes: Sequence[Change], seen: _Seen) -> list[Change]:
        """The same changes, with the folders that another step took away meanwhile, and claims to those that others
        have made. Raises OperationError where something is not as the step found it, but for folders that both make."""
        for change in changes:
            if seen.entry(change.path) != change.before and not _is_made_already(change, seen):
                raise changed_meanwhile(change.path)
        above = folders_above(each.path for each in changes if each.after is not None) - {each.path for each in changes}
        made = Entry(Kind.FOLDER, 0o777 & ~self.tree.umask)
        missing = [Change(folder, None, made) for folder in sorted(above) if seen.entry(folder) is None]
        found = [*self._claimed(run_id, step_id, above, seen.entry), *missing, *changes]
        seen.note(found)
        self._claims.note(run_id, step_id, found)
        return found

    def _claimed(
        self, run_id: str, step_id: str, above: Iterable[str], entry_at: Callable[[str], Entry | None]
    ) -> list[Change]:
        """Claims to those of the folders above a step's changes that other steps of the run have made."""
        shared = sorted(folder for folder in above if self._claims.others(run_id, folder, {step_id}))
        found = [(folder, entry_at(folder)) for folder in shared]
        return [Change(folder, None, entry) for folder, entry in found if entry and entry.kind is Kind.FOLDER]

    # Effects that are kept apart first.

    @contextlib.contextmanager
    def apart(self) -> Iterator[Layer]:
        """A layer over the workspace, for programs to write to; gone at the end, with all that was not applied."""
        script_folders.remove_abandoned(self.journal.folder, script_folders.LAYER)
        with script_folders.folder_for_now(self.journal.folder, script_folders.LAYER) as folder:
            yield Layer.make(folder, self.root)

    def proposed(self, layer: Layer) -> Proposal:
        """What the programs have written to the layer, as changes of the workspace as it is now. Raises OperationError
        where somebody else has changed the same."""
        return read_layer(layer, self.tree, self._excluded)

    # Effects that are known only afterwards.

    def capture(self, run_id: str, step_id: str, areas: Iterable[str], *, keeps_objects: bool = False) -> None:
        """Make durable all that is in the areas (paths, and everything below them), before a step acts by itself.

        `keeps_objects`: the step is known to delete none of git's objects, so that they need not be secured.
        """
        areas = snapshot.outermost(areas)
        with self._mutex:
            found = snapshot.take(self.tree, self.journal, self._excluded, areas, before=True)
            for repository in [] if keeps_objects else found.repositories:
                self._objects.keep(repository, run_id, step_id)
            self.journal.capture(run_id, step_id, areas, found.manifest, found.contents, found.stamps)
            self._areas[step_id] = areas
            self._at_work.add(step_id)
            self._caches[step_id] = _Caches(found.caches)

    def finish(self, run_id: str, step_id: str) -> list[Change]:
        """Journal what has changed since the capture, and give it; the step's effects are then like any other's.

        For a step of a process that has died they are marked as found: undoing them puts aside what is there, as it may
        be a person's work since.
        """
        captures = self.journal.captured(run_id)
        if step_id not in captures:
            return []
        areas, before = captures[step_id]
        with self._mutex:  # or a folder that another step is making would be half made
            found = snapshot.take(self.tree, self.journal, self._excluded, areas, before=False)
            changes = snapshot.changes_between(areas, before, found.manifest)
            named = {change.path for change in changes}
            above = folders_above(change.path for change in changes if change.after is not None) - named
            claims = self._claimed(run_id, step_id, above, self.tree.entry)
            self._objects.note(run_id, step_id)
            witnesses = snapshot.witnesses(changes, before)
            state = EffectState.INTENT if step_id in self._at_work else EffectState.FOUND
            self.journal.intend(run_id, step_id, [*claims, *changes, *witnesses], found.contents.get, state)
            self.journal.drop_capture(run_id, step_id)
            self._at_work.discard(step_id)
            self._claims.note(run_id, step_id, [*claims, *changes])
            if step_id in self._caches:
                self._caches[step_id].after = found.caches
        return changes

    def excluded_before(self, step_id: str) -> list[Path]:
        """The excluded caches that were there at the step's capture by this object."""
        caches = self._caches.get(step_id)
        return [] if caches is None else [self.root / path for path in sorted(caches.before)]

    def excluded_touched(self, run_id: str, step_id: str) -> list[str]:
        """The excluded caches in which something has changed since the step's capture by this object; [] without one.

        What happened in them cannot be undone. At most `snapshot.LARGEST_LOOK` entries are looked at.
        """
        caches = self._caches.get(step_id)
        if caches is None:
            return []
        touched = snapshot.touched_since(self.folder, caches.before, caches.since)
        return sorted({*touched, *(caches.after - caches.before)})

    def remove_new_caches(self, run_id: str, step_id: str) -> list[str]:
        """Take the excluded caches away that have come since the step's capture by this object; which. They are put
        aside first, as somebody else may have made them."""
        caches = self._caches.get(step_id)
        made = [] if caches is None else sorted(caches.after - caches.before)
        with self._mutex, opened_up(self.folder) as open_up:
            aside = Aside(self.folder, self.journal.folder, run_id)
            for path in made:
                open_up(join(path, ROOT))
                aside.put(path)
            if made:
                aside.make_durable()
            for path in made:
                disk_changes.remove_all(self.folder, path)
        return made

    def is_excluded(self, path: str) -> bool:
        """Whether captures leave a path out."""
        return self._excluded(path)

    # What a power cut took away.

    def redo(self, run_id: str, done_steps: Collection[str]) -> Redo:
        """After a power cut: bring what the steps that are done have changed to where they had left it.

        To be called before anything of the run is undone. May be repeated. The steps in `lost` cannot be brought back:
        undo them (`torn`), and those that came after them, and run them again.
        """
        with self._mutex, opened_up(self.folder) as open_up:

            def look(path: str) -> Entry | None:
                open_up(path)
                return reachable_entry(self.tree, path)

            effects = self.journal.effects(run_id)
            found = redo.plan(effects, done_steps, look, self.journal.has_content)
            self.journal.check_contents(_contents_after(found.changes))
            found.aside = self._put_aside(run_id, found, {})
            for change in found.changes:
                if change.after is not None:
                    self._make_folders_above(change.path)
            disk_changes.make_so(self.folder, found.changes, self.journal.content)
            without = redo.without_objects(effects, done_steps, self._disk(look))
            found.lost = sorted({*found.lost, *without})
            return found

    # Undo.

    def undo(
        self,
        run_id: str,
        step_ids: str | Collection[str] | None = None,
        *,
        conflicts: Conflicts = Conflicts.REPORT,
        torn: bool = False,
    ) -> Undo:
        """Put back what a run, or some of its steps, have changed. May be repeated; needs no memory of the run.

        A folder that the steps made and that another step uses stays until that one is undone. `torn` is for a run that
        a power cut has ended: a file in none of its states is then put aside and goes back, and is no conflict. Raises
        StateError, with nothing changed, if the journal has lost a content that is needed.
        """
        chosen = _chosen(step_ids)
        with self._mutex:
            undo = self.plan_undo(run_id, chosen, conflicts=conflicts, torn=torn)
            changes = [*undo.changes, *(each for git in undo.repositories for each in git.logs)]
            self.journal.check_contents(_contents_after(changes))
            refs = {path: content for each in undo.repositories for path, content in each.displaced.items()}
            undo.aside |= self._put_aside(run_id, undo, refs)
            with opened_up(self.folder, {change.path for change in undo.changes}) as open_up:
                for change in undo.changes:
                    open_up(join(change.path, ROOT) if is_going(change) else change.path)
                self._give_back_objects(undo)
                for path in (path for each in undo.repositories for path in each.locks):
                    self.folder.unlink(path)
                for each in undo.repositories:
                    git_undo.carry_out(each, self._disk(self.tree.entry))
                self._remove_leftovers(undo)
                disk_changes.make_so(self.folder, undo.changes, self.journal.content)
                self._give_back_objects(undo)
                for each in undo.repositories:
                    self._put_back_logs(each)
            script_folders.remove_abandoned(self.journal.folder, script_folders.LAYER)
            if undo.effects or undo.lasting:
                self.folder.syncfs()  # what the journal calls undone, no recovery looks at again
            self.journal.mark_undone(undo.effects, undo.lasting)
            if undo.objects:
                self._objects.forget_lost(run_id, chosen)
            self._claims.forget(run_id, undo.effects, undo.lasting)
            return undo

    def plan_undo(
        self,
        run_id: str,
        step_ids: str | Collection[str] | None = None,
        *,
        conflicts: Conflicts = Conflicts.REPORT,
        torn: bool = False,
    ) -> Undo:
        """What `undo` would do now. Only the journal is written: a step that was cut short gets its effects."""
        chosen = _chosen(step_ids)
        with self._mutex:
            for captured in self.journal.steps_captured(run_id):
                if chosen is None or captured in chosen:
                    self.finish(run_id, captured)
            histories = histories_of(self.journal.effects(run_id, chosen))
            if chosen is not None:
                areas = [area for step_id in chosen for area in self._areas.get(step_id, ())]
                histories = self._kept_above(run_id, [*histories, *areas]) | histories
            with opened_up(self.folder) as open_up:
                planner = Planner(self.tree, open_up, self._excluded, conflicts=conflicts, torn=torn)
                judged = {
                    path: history if chosen is None else self._without_claims(run_id, path, history, chosen)
                    for path, history in histories.items()
                    if chosen is None or not self._is_claimed(run_id, path, history, chosen)
                }
                planner.undo.objects = self._objects.lost(run_id, chosen)
                known = self._plan_repositories(planner, judged)
                for path, history in sorted(judged.items()):
                    if path not in known:
                        planner.path(path, history)
                for repository, names in planner.undo.objects.items():
                    planner.objects(repository, self._objects.gone(repository, names))
                planner.settle_folders(self._is_used, is_conflict=chosen is None)
            undo = planner.undo
            settled = histories.keys() - (set(undo.kept) if conflicts is Conflicts.KEEP else planner.left)
            undo.effects = [effect for path, history in histories.items() if path in settled for effect in history]
            undo.lasting = [effect for path in undo.kept for effect in histories[path]]
            aside = Aside(self.folder, self.journal.folder, run_id)
            displaced = {*undo.displaced, *(path for each in undo.repositories for path in each.displaced)}
            undo.aside = {path: aside.usual(path) for path in sorted(displaced)}
            return undo

    def _plan_repositories(self, planner: Planner, histories: git_undo.Histories) -> set[str]:
        """Plan those that git has been used in since; the paths that are settled by that."""
        known: set[str] = set()
        disk = self._disk(planner.look)
        for repository, inner in sorted(git_undo.repositories_in(histories).items()):
            judge = git_undo.Judge(repository, inner, disk, torn=planner.torn)
            if judge.is_exact():
                planner.own.update(path for path in inner if path == join(repository, "index") and judge.own_index())
            else:
                unsure = repository in planner.undo.objects
                planner.repository(judge.plan(overwrite=planner.overwrite, unsure=unsure), inner)
                known.update(inner)
        return known

    def _disk(self, look: Callable[[str], Entry | None]) -> git_undo.Disk:
        lock = self.journal.lock.descriptor
        return git_undo.Disk(self.root, look, self.tree.read, self._content_if_known, lock=lock)

    def _content_if_known(self, sha256: str) -> bytes | None:
        return self.journal.content(sha256) if self.journal.has_content(sha256) else None

    def _kept_above(self, run_id: str, paths: Iterable[str]) -> dict[str, list[Effect]]:
        """The folders above these paths whose makers are undone: they may go now."""
        folders = folders_above(paths) & self._claims.kept(run_id)
        if not folders:
            return {}
        return histories_of(
            [
                effect
                for effect in self.journal.effects(run_id)
                if effect.state is EffectState.KEPT and effect.change.path in folders
            ]
        )

    def _is_claimed(self, run_id: str, path: str, history: Sequence[Effect], undone: set[str]) -> bool:
        """Whether it is a folder that these steps made, and that others claim."""
        return is_making(history[0].change) and self._claims.others(run_id, path, undone)

    def _without_claims(self, run_id: str, path: str, history: Sequence[Effect], undone: set[str]) -> Sequence[Effect]:
        """The history of a path; of a folder that others had made and these steps took away, from that on: its claims
        say that nothing was there before."""
        is_taken_away = is_making(history[0].change) and not all(is_making(each.change) for each in history)
        if is_taken_away and self._claims.others_before(run_id, history[0], undone):
            return [*dropwhile(lambda each: is_making(each.change), history)]
        return history

    def _is_used(self, folder: str) -> bool:
        """Whether a step at work counts on the folder: it may have found it there, and nobody could tell."""
        return any(is_within(area, folder) for step_id in self._at_work for area in self._areas[step_id])

    def _put_aside(self, run_id: str, planned: Undo | Redo, refs: Mapping[str, bytes]) -> dict[str, Path]:
        """Make durable what is overwritten, before anything is; where it is."""
        if not planned.displaced and not refs:
            return {}
        stay = {each.path for each in planned.changes if each.after is not None and each.after.kind is Kind.FOLDER}
        aside = Aside(self.folder, self.journal.folder, run_id)
        places = {path: aside.put_content(path, content) for path, content in sorted(refs.items())}
        with opened_up(self.folder) as open_up:
            for path, entry in sorted(planned.displaced.items()):
                open_up(join(path, ROOT) if entry.kind is Kind.FOLDER else path)
                places[path] = aside.put(path, alone=path in stay)
        aside.make_durable()
        return places

    def _give_back_objects(self, undo: Undo) -> None:
        """Git's objects that the steps took away, in the repositories that are there (again)."""
        for repository, names in undo.objects.items():
            if self.tree.kind(repository) is Kind.FOLDER:
                self._objects.give_back(repository, names)

    def _put_back_logs(self, git: git_undo.GitUndo) -> None:
        """Reflogs that only the run, and moving its refs back, have written to."""
        for change in git.logs:
            current = self.tree.entry(change.path)
            if current != change.after:
                self._make_folders_above(change.path)
                disk_changes.make_so(self.folder, [Change(change.path, current, change.after)], self.journal.content)

    def _make_folders_above(self, path: str) -> None:
        for folder in sorted(folders_above([path])):
            self.folder.mkdir(folder, 0o777 & ~self.tree.umask)

    def _remove_leftovers(self, undo: Undo) -> None:
        """Remove what no capture holds: the caches in folders that go, and temporary files of a killed process."""
        for change in undo.changes:
            if is_going(change) and change.before is not None and change.before.kind is Kind.FOLDER:
                for path in filter(self.is_excluded, inside(self.folder, change.path)):
                    disk_changes.remove_all(self.folder, path)
        for folder in {parent(each.change.path) for each in undo.effects}:  # of a write, or of an undo before this one
            found = reachable_entry(self.tree, folder)
            if found is not None and found.kind is Kind.FOLDER:
                for name in filter(is_temporary, self.folder.names(folder)):
                    self.folder.unlink(join(folder, name))


def _chosen(step_ids: str | Collection[str] | None) -> set[str] | None:
    """The steps that are meant; None for all."""
    return {step_ids} if isinstance(step_ids, str) else None if step_ids is None else set(step_ids)


def _contents(
    look: Look, missing: Collection[str], before: Mapping[str, Entry | None], content_of: ContentOf
) -> Callable[[str], bytes | None]:
    """Where the journal finds contents: before-images on disk (proved by digest), the rest in the overlay."""
    places = {entry.sha256: path for path, entry in before.items() if entry is not None and entry.kind is Kind.FILE}

    def content(sha256: str) -> bytes | None:
        if sha256 not in missing:
            return None
        if sha256 not in places:
            return content_of(sha256)
        found = look.read(places[sha256])
        if digest(found) != sha256:
            raise changed_meanwhile(places[sha256])
        return found

    return content


def _contents_of(changes_of: Iterable[tuple[str, Iterable[Change]]]) -> set[str]:
    return {
        entry.sha256
        for _, changes in changes_of
        for each in changes
        for entry in (each.before, each.after)
        if entry is not None and entry.kind is Kind.FILE
    }


def _contents_after(changes: Iterable[Change]) -> set[str]:
    entries = (change.after for change in changes)
    return {entry.sha256 for entry in entries if entry is not None and entry.kind is Kind.FILE}


class _Seen:
    """What steps whose changes are not made yet find: the disk, and on it what those before them leave."""

    def __init__(self, look: Look) -> None:
        self.first: dict[str, Entry | None] = {}
        """What is on disk at the paths that were asked for."""
        self._now: dict[str, Entry | None] = {}
        self._look = look

    def entry(self, path: str) -> Entry | None:
        """What is there then."""
        if path not in self._now:
            is_new = self._is_new(path)
            try:
                self.first[path] = self._look.entry_now(path)
            except PathRefused:
                if not is_new:
                    raise
                self.first[path] = None
            self._now[path] = None if is_new else self.first[path]
        return self._now[path]

    def _is_new(self, path: str) -> bool:
        """Whether a folder above comes, or has gone, with these changes: then nothing on disk is meant."""
        above = [folder for folder in ancestors(path) if folder in self._now]
        return any(not _is_folder(self.first[each]) or not _is_folder(self._now[each]) for each in above)

    def note(self, changes: Iterable[Change]) -> None:
        """These changes will have been made. A folder that is there already is not made, whoever says so."""
        for change in changes:
            if not _is_made_already(change, self):
                self.entry(change.path)
                self._now[change.path] = change.after

    def changes(self) -> list[Change]:
        """All of them in sum, path by path."""
        return [Change(path, self.first[path], now) for path, now in self._now.items() if self.first[path] != now]


def _is_folder(entry: Entry | None) -> bool:
    return entry is not None and entry.kind is Kind.FOLDER


def _is_made_already(change: Change, seen: _Seen) -> bool:
    found = seen.entry(change.path) if is_making(change) else None
    return found is not None and found.kind is Kind.FOLDER


class _Caches:
    """The excluded caches that a step found when it was captured, and when it had ended."""

    def __init__(self, before: set[str]) -> None:
        self.before = before
        self.after: set[str] = set()
        self.since = snapshot.now()

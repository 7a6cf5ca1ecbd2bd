"""Undoing what a run did to a git repository that has been used since: by what its files mean, not by their bytes.

As long as every file in `.git` is in one of the run's own states, they go back like any others, byte for byte, and no
git is started (an index that was merely refreshed is the same one). Otherwise:

- a ref goes back by compare-and-swap if it is where the run left it, as a file or packed; one that has moved is a
  conflict, and so is HEAD;
- in the index the entries that the run changed go back, where they are as it left them; all others stay;
- reflogs that somebody has written to stay, as the history that they are, and so does what git leaves about
  (COMMIT_EDITMSG, ORIG_HEAD, FETCH_HEAD and the like): never a conflict;
- everything else is a file like any other.

Invariant: all is judged before anything is touched, and doing it again after a kill comes to the same end. A repository
that the run has made, and that has been used since, is one conflict. It must not know of other paths, nor of runs.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from quantum_orchestrator.blocks.git_index import Index, Staged, UnreadableIndex, read_index
from quantum_orchestrator.blocks.journal import Effect
from quantum_orchestrator.blocks.policy import Policy
from quantum_orchestrator.blocks.repository import Commands, Person, Repository
from quantum_orchestrator.blocks.snapshot import GIT
from quantum_orchestrator.blocks.tree import ROOT, Change, Entry, Kind, digest, is_within, join, parent
from quantum_orchestrator.blocks.undo import is_ours

MARK = "qo: undo of a run"
"""The message of the reflog entries that an undo causes, until it has put the reflogs back as well."""

_LEFTOVERS = re.compile(
    r"(?:COMMIT_EDITMSG|(?:ORIG|FETCH)_HEAD|(?:MERGE|SQUASH|TAG_EDIT)_?MSG|MERGE_(?:MODE|RR)|AUTO_MERGE|rr-cache(?:/.*)?"
    r"|gc\.(?:log|pid)|info/refs|(?:.*/)?[^/]+\.lock)",
    re.DOTALL,
)
_REF = re.compile(r"refs/(?!.*(?:\.\.|//|/\.|\.lock(?:/|\Z)|@\{))[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])")
_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NOBODY = Person("Quantum Orchestrator", "qo@localhost")
"""Who is named in reflogs where git knows nobody."""
_NAMED = 5

Histories = Mapping[str, Sequence[Effect]]
Wanted = tuple[Staged, ...]


@dataclass(frozen=True, slots=True)
class RefMove:
    """A ref from where it is to where it was before the run; None is no such ref."""

    name: str
    current: str | None
    wanted: str | None


@dataclass(frozen=True, slots=True)
class Checkout:
    """The files of the commit that somebody has changed to since. As long as they are as they are there, they stay."""

    folder: str
    """The path of the folder that the repository is in."""
    tree: Mapping[str, tuple[str, str]]
    """Modes and object ids, by path in that folder."""
    tracked: Collection[str]
    """The paths that the index held before the run."""

    def holds(self, path: str, current: Entry | None, read: Callable[[str], bytes]) -> bool:
        """Whether what is at a path of the workspace, or that nothing is, comes from that commit."""
        if not is_within(path, self.folder):
            return False
        inner = path if self.folder == ROOT else path[len(self.folder) + 1 :]
        if current is None:
            return inner in self.tracked and inner not in self.tree
        mode, wanted = self.tree.get(inner, ("", ""))
        if current.kind is Kind.LINK:
            return mode == "120000" and _blob_id(os.fsencode(current.target), wanted) == wanted
        if current.kind is not Kind.FILE or mode != ("100755" if current.mode & 0o100 else "100644"):
            return False
        return _blob_id(read(path), wanted) == wanted


@dataclass(slots=True)
class GitUndo:
    """How one repository goes back. `repository` is the path of its `.git`."""

    repository: str
    moves: list[RefMove] = field(default_factory=list)
    entries: dict[str, Wanted] = field(default_factory=dict)
    """What the index will hold for the paths that change in it."""
    files: list[Change] = field(default_factory=list)
    """Files that go back as files."""
    logs: list[Change] = field(default_factory=list)
    """Reflogs that nobody has written to since; after the refs, as moving those writes to them."""
    locks: list[str] = field(default_factory=list)
    """Locks that the run's own git has left when it was killed; before anything else."""
    conflicts: dict[str, str] = field(default_factory=dict)
    """Paths that somebody else has changed, and how."""
    unsolved: set[str] = field(default_factory=set)
    """Those of them that stay as they are."""
    displaced: dict[str, bytes] = field(default_factory=dict)
    """What is put aside of refs."""
    displaced_files: dict[str, Entry] = field(default_factory=dict)
    """What is put aside of files."""
    checkout: Checkout | None = None
    """What somebody has checked out since, if that is not built on what the run did."""
    no_id: str = "0" * 40
    """The object id that stands for none; longer in a repository of SHA-256."""


class Disk:
    """The look at one workspace that a judgment needs."""

    def __init__(
        self,
        root: Path,
        look: Callable[[str], Entry | None],
        read: Callable[[str], bytes],
        content: Callable[[str], bytes | None],
        *,
        lock: int | None = None,
    ) -> None:
        """`look` gives what is at a path, `read` a file's bytes, `content` what the journal has under a digest.

        `lock` is the workspace's lock, for the git commands to hold.
        """
        self.look = look
        self.read = read
        self.content = content
        self._root = root
        self._lock = lock

    def commands(self, repository: str) -> Commands:
        """Git commands in the repository whose folder this is. Raises OperationError."""
        return Repository(self._root / parent(repository), Policy(), lock=self._lock).commands()


def repositories_in(histories: Histories) -> dict[str, dict[str, Sequence[Effect]]]:
    """The paths in repositories, with their histories, by the repository's folder; of nested ones the outermost."""
    found: dict[str, dict[str, Sequence[Effect]]] = {}
    for path, history in histories.items():
        parts = path.split("/")
        if GIT in parts:
            found.setdefault("/".join(parts[: parts.index(GIT) + 1]), {})[path] = history
    return found


def is_left_about(path: str) -> bool:
    """Whether a path is in a repository and means nothing to it: a reflog, a message, a leftover."""
    parts = path.split("/")
    if GIT not in parts:
        return False
    name = "/".join(parts[parts.index(GIT) + 1 :])
    return name.startswith("logs/") or _LEFTOVERS.fullmatch(name) is not None


class Judge:
    """Judges what undoing means for one repository."""

    def __init__(self, repository: str, histories: Histories, disk: Disk, *, torn: bool = False) -> None:
        """`torn`: the power went while the run was at work: a file that says nothing to git is the run's own."""
        self.repository = repository
        self._histories = histories
        self._disk = disk
        self._torn = torn
        self._packed_path = join(repository, "packed-refs")
        self._index_path = join(repository, "index")
        self._head_path = join(repository, "HEAD")

    # As it was, byte for byte?

    def is_exact(self) -> bool:
        """Whether nothing but the run has changed what it has changed."""
        if self._look(self.repository) is None or not self._is_folder(self.repository):
            return True  # gone, or something else: what is there is judged like any other path
        return self._head_is_free() and all(self._is_own(path) for path in self._histories)

    def own_index(self) -> bool:
        """Whether the index means what it meant in one of the run's states; then its bytes do not matter."""
        history = self._histories.get(self._index_path)
        if history is None:
            return False
        current = self._current_index()
        return current is not None and any(current == each for each in self._index_states(history))

    def _is_own(self, path: str) -> bool:
        history, current = self._histories[path], self._look(path)
        if path == self._index_path:
            return current == history[0].change.before or is_ours(current, history) or self.own_index()
        if current is not None and not is_ours(current, history):
            return self._torn and self._is_torn(path)
        name = self._ref_of(path)
        if name is not None and current is None and name in self._packed and self._packed_path not in self._histories:
            return False  # packed since: that it is no file says nothing
        return current == history[0].change.before or is_ours(current, history)

    def _is_torn(self, path: str) -> bool:
        """Whether a file cannot be what git, or a person, has written."""
        name = self._name(path)
        if path == self._index_path:
            return self._current_index() is None
        if name == "HEAD" or name.startswith("refs/"):
            text = self._text_now(path) or ""
            return not (_ID.fullmatch(text) or text.startswith("ref: "))
        return True

    def _head_is_free(self) -> bool:
        """Whether HEAD is not on a ref that goes, where it has come since."""
        if self._head_path in self._histories:
            return True
        on = _symbolic(self._text_now(self._head_path))
        path = join(self.repository, on) if on else ""
        if path not in self._histories or self._states(on)[0] is not None:
            return True
        log = join(self.repository, "logs/HEAD")  # a commit on a branch without one writes there; a checkout later too
        current = self._look(log)
        return current is None or (log in self._histories and is_ours(current, self._histories[log]))

    # By what it means.

    def plan(self, *, overwrite: bool, unsure: bool = False) -> GitUndo:
        """How it goes back. `unsure`: objects are missing that will be there when it is done."""
        undo = GitUndo(self.repository, no_id="00" * self._id_bytes)
        first = self._histories[self.repository][0].change if self.repository in self._histories else None
        if first is not None and first.before is None:
            self._plan_made(undo, overwrite=overwrite)
            return undo
        self._plan_refs(undo, overwrite=overwrite)
        for path in sorted(self._histories):
            self._plan_file(undo, path, overwrite=overwrite)
        if self._index_path in self._histories:
            self._plan_index(undo, overwrite=overwrite)
        lock = join(self.repository, "index.lock")
        if undo.entries and lock not in undo.locks and self._look(lock) is not None:
            self._conflict(undo, lock, "another git is at work, or was killed", None)
        if not self._head_is_free():
            on = _symbolic(self._text_now(self._head_path))
            undo.moves = [move for move in undo.moves if move.name != on]
            undo.files = [change for change in undo.files if self._name(change.path) != on]
            self._conflict(undo, self._head_path, "it is on a branch that the run made", None)
        self._leave_tables(undo)
        if not unsure:
            self._require_objects(undo)
        return undo

    def _plan_made(self, undo: GitUndo, *, overwrite: bool) -> None:
        used = sorted(path for path in self._histories if not self._is_own(path))
        reason = f"the run made this repository, and it has been used since: {_shown(used)}"
        current = self._look(self.repository)
        undo.conflicts[self.repository] = reason
        if overwrite and current is not None:
            undo.displaced_files[self.repository] = current
            undo.files.append(Change(self.repository, current, None))
        else:
            undo.unsolved.add(self.repository)

    def _conflict(self, undo: GitUndo, path: str, reason: str, solve: Callable[[], None] | None) -> None:
        undo.conflicts[path] = reason
        if solve is None:
            undo.unsolved.add(path)
        else:
            solve()

    # Refs.

    def _plan_refs(self, undo: GitUndo, *, overwrite: bool) -> None:
        for name in self._refs_changed():
            states, current = self._states(name), self._ref_now(name)
            path = join(self.repository, name)
            if current == states[0] or len(set(states)) == 1 or self._is_file_ref(path):
                continue
            move = RefMove(name, current, states[0])
            if current not in states:
                undo.conflicts[path] = self._what_moved(name, current)
                if not overwrite:
                    undo.unsolved.add(path)
                    continue
                if current is not None:
                    undo.displaced[path] = f"{current}\n".encode()
            undo.moves.append(move)

    def _refs_changed(self) -> list[str]:
        """Refs that the run may have changed, as files or among the packed ones."""
        names = {name for path in self._histories if (name := self._ref_of(path)) is not None}
        history = self._histories.get(self._packed_path)
        if history is not None:  # one that was made a file and packed again is seen here alone
            lines = [self._packed_in(entry) for entry in _states_of(history)]
            names |= {name for name in set().union(*lines) if len({each.get(name) for each in lines}) > 1}
        return sorted(names)

    def _ref_of(self, path: str) -> str | None:
        """The ref that the path of a file in the histories stands for."""
        name = self._name(path)
        if not _REF.fullmatch(name):
            return None
        sides = [
            each for effect in self._histories.get(path, ()) for each in (effect.change.before, effect.change.after)
        ]
        return None if any(each is not None and each.kind is not Kind.FILE for each in sides) else name

    def _is_file_ref(self, path: str) -> bool:
        """Whether a ref goes back as a file: one that leads to another ref, or one that is torn."""
        texts = [self._text_now(path) or ""]
        texts += [self._text_of(entry) or "" for entry in _states_of(self._histories.get(path, ()))]
        return any(_symbolic(text) for text in texts) or (self._torn and bool(texts[0]) and not _is_id(texts[0]))

    def _states(self, name: str) -> list[str | None]:
        """Where a ref was before the run and after each of its effects. A file goes before what is packed."""
        loose_history = self._histories.get(join(self.repository, name), ())
        packed_history = self._histories.get(self._packed_path, ())
        loose = self._text_of(loose_history[0].change.before) if loose_history else None
        packed = self._packed_in(packed_history[0].change.before).get(name) if packed_history else None
        states = [loose or packed]
        packings = {each.number for each in packed_history}
        for effect in sorted([*loose_history, *packed_history], key=lambda each: each.number):
            if effect.number in packings:
                packed = self._packed_in(effect.change.after).get(name)
            else:
                loose = self._text_of(effect.change.after)
            states.append(loose or packed)
        return states

    def _ref_now(self, name: str) -> str | None:
        return self._text_now(join(self.repository, name)) or self._packed.get(name)

    def _what_moved(self, name: str, current: str | None) -> str:
        """Who says so: the last line of the ref's own reflog."""
        log = join(self.repository, f"logs/{name}")
        entry = self._look(log)
        line = ""
        if entry is not None and entry.kind is Kind.FILE:
            line = self._disk.read(log).decode(errors="replace").rstrip("\n").rpartition("\n")[2]
        where = f"now at {current[:12]}" if current else "gone"
        return f"{where}: {line.partition(chr(9))[2]}" if current and f" {current} " in line else where

    @cached_property
    def _packed(self) -> dict[str, str]:
        entry = self._look(self._packed_path)
        found = entry is not None and entry.kind is Kind.FILE
        return _packed_refs(self._disk.read(self._packed_path)) if found else {}

    def _packed_in(self, entry: Entry | None) -> dict[str, str]:
        content = self._disk.content(entry.sha256) if entry is not None and entry.kind is Kind.FILE else None
        return _packed_refs(content or b"")

    # Files.

    def _plan_file(self, undo: GitUndo, path: str, *, overwrite: bool) -> None:
        name, history, current = self._name(path), self._histories[path], self._look(path)
        before = history[0].change.before
        is_ref = self._ref_of(path) is not None and not self._is_file_ref(path)
        if current == before or is_ref or path in (self._packed_path, self._index_path):
            return
        if any(entry is not None and entry.kind is Kind.FOLDER for entry in (before, current)):
            return  # git makes the folders that it needs, and an empty one means nothing
        change = Change(path, current, before)
        if name.startswith("logs/"):
            if self._is_own_log(path, history, current):
                undo.logs.append(change)
        elif is_ours(current, history) or (self._torn and self._is_torn(path)):
            if name.endswith(".lock") and before is None:
                undo.locks.append(path)
            else:
                undo.files.append(change)
        elif not _LEFTOVERS.fullmatch(name):
            undo.conflicts[path] = "" if name != "HEAD" else f"now {self._text_now(path)}"
            if not overwrite:
                undo.unsolved.add(path)
                return
            if current is not None:
                undo.displaced_files[path] = current
            undo.files.append(change)

    def _is_own_log(self, path: str, history: Sequence[Effect], current: Entry | None) -> bool:
        """Whether nobody has written to a reflog since, but an undo that was cut short."""
        if is_ours(current, history) or current is None or current.kind is not Kind.FILE:
            return is_ours(current, history)
        lines = self._disk.read(path).splitlines(keepends=True)
        while lines and lines[-1].rstrip(b"\n").endswith(MARK.encode()):
            lines.pop()
        rest = b"".join(lines)
        known = {entry.sha256 if entry else digest(b"") for entry in _states_of(history)}
        return digest(rest) in known

    def _leave_tables(self, undo: GitUndo) -> None:
        """Refs that are kept as tables (reftable) stay whole if any of their files does: one lists the others."""
        tables = join(self.repository, "reftable")
        if any(is_within(path, tables) for path in undo.unsolved):
            undo.files = [change for change in undo.files if not is_within(change.path, tables)]

    # The index.

    def _plan_index(self, undo: GitUndo, *, overwrite: bool) -> None:
        history = self._histories[self._index_path]
        states, current = self._index_states(history), self._current_index()
        if current is None or len(states) <= len(history):
            self._index_conflict(undo, ["it cannot be read"], overwrite=False)
            return
        before = states[0]
        changed = {
            path for each in states for path in each.keys() | before.keys() if each.get(path) != before.get(path)
        }
        tree = self._tree_of_others(undo)
        if tree is not None and not self._is_built_on(undo):
            undo.checkout, tree = Checkout(parent(self.repository), tree, before.keys()), None
        theirs, committed = [], []
        for path in sorted(changed):
            now, wanted = current.get(path, ()), before.get(path, ())
            if now == wanted or (undo.checkout is not None and _is_in(undo.checkout.tree, path, now)):
                continue
            if tree is not None and _is_in(tree, path, now) and not _is_in(tree, path, wanted):
                committed.append(path)
                if not overwrite:
                    continue
            elif not any(each.get(path, ()) == now for each in states):
                theirs.append(path)
                if not overwrite:
                    continue
            undo.entries[path] = wanted
        if theirs or committed:
            self._index_conflict(undo, [*theirs, *committed], overwrite=overwrite)

    def _index_conflict(self, undo: GitUndo, paths: Sequence[str], *, overwrite: bool) -> None:
        undo.conflicts[self._index_path] = f"staged or committed since: {_shown(paths)}"
        entry = self._look(self._index_path)
        if overwrite and entry is not None:
            undo.displaced_files[self._index_path] = entry
        elif not overwrite:
            undo.unsolved.add(self._index_path)

    def _tree_of_others(self, undo: GitUndo) -> dict[str, tuple[str, str]] | None:
        """The files of the commit that HEAD is on, and will be, if it is somebody else who has brought it there."""
        head = self._head_that_stays(undo)
        if head is None or not self._head_moved():
            return None
        listed = self._commands.run("ls-tree", "-r", "-z", "--full-tree", head, reads=True, accept=(0, 128))
        if listed.exit_code != 0:
            return None  # its objects are missing, and may be given back when all is done
        tree = {}
        for line in listed.fields:
            facts, _, path = line.partition("\t")
            mode, _, identity = facts.split(" ")
            tree[path] = (mode, identity)
        return tree

    def _is_built_on(self, undo: GitUndo) -> bool:
        """Whether the commit that HEAD is on comes after one where the run has left a ref; True if it left none."""
        head = self._head_that_stays(undo) or ""
        left = {self._states(name)[-1] for name in self._refs_changed()} - {None}
        ancestry = ("merge-base", "--is-ancestor")
        return not left or any(
            self._commands.run(*ancestry, str(each), head, reads=True, accept=(0, 1, 128)).exit_code != 1
            for each in sorted(map(str, left))
        )

    def _head_moved(self) -> bool:
        """Whether somebody else has moved HEAD since, by a commit, a checkout or the like."""
        log = join(self.repository, "logs/HEAD")
        if log not in self._histories:
            return True  # the run has not: nothing says how HEAD stood then
        return not self._is_own_log(log, self._histories[log], self._look(log))

    def _head_that_stays(self, undo: GitUndo) -> str | None:
        """The commit that HEAD is on, if the undo moves neither HEAD nor the branch."""
        text = self._text_now(self._head_path)
        name = _symbolic(text)
        moved = {join(self.repository, each.name) for each in undo.moves} | {each.path for each in undo.files}
        if self._head_path in moved or join(self.repository, name) in moved:
            return None
        return self._ref_now(name) if name else text

    def _current_index(self) -> Index | None:
        entry = self._look(self._index_path)
        if entry is None:
            return {}
        return self._read_index(self._disk.read(self._index_path)) if entry.kind is Kind.FILE else None

    def _index_states(self, history: Sequence[Effect]) -> list[Index]:
        """What the index meant before the run and after each of its effects, as far as that is known."""
        contents = [self._disk.content(entry.sha256) if entry else None for entry in _states_of(history)]
        states = []
        for entry, content in zip(_states_of(history), contents, strict=True):
            read = {} if entry is None else None if content is None else self._read_index(content)
            if read is not None:
                states.append(read)
        return states

    def _read_index(self, content: bytes) -> Index | None:
        try:
            return read_index(content, id_bytes=self._id_bytes)
        except UnreadableIndex:
            return None

    @cached_property
    def _id_bytes(self) -> int:
        config = self._text_now(join(self.repository, "config")) or ""
        return 32 if re.search(r"^\s*objectformat\s*=\s*sha256\s*$", config, re.IGNORECASE | re.MULTILINE) else 20

    # Objects.

    def _require_objects(self, undo: GitUndo) -> None:
        """Refs and entries whose objects are gone cannot go back."""
        ids = {move.wanted for move in undo.moves if move.wanted}
        ids |= {each.id for wanted in undo.entries.values() for each in wanted if each.mode != _GITLINK}
        if not ids:
            return
        answer = self._commands.run(
            "cat-file", "--batch-check", stdin="".join(f"{each}\n" for each in sorted(ids)).encode(), reads=True
        )
        missing = {line.split(" ")[0] for line in answer.text.splitlines() if line.endswith(" missing")}
        for move in [each for each in undo.moves if each.wanted in missing]:
            undo.moves.remove(move)
            self._conflict(undo, join(self.repository, move.name), f"{move.wanted} is gone from the objects", None)
        lost = [path for path, wanted in undo.entries.items() if any(each.id in missing for each in wanted)]
        if lost:
            undo.entries = {path: wanted for path, wanted in undo.entries.items() if path not in lost}
            self._conflict(undo, self._index_path, f"contents are gone from the objects: {_shown(lost)}", None)

    def lacks_objects(self) -> bool:
        """Whether something is not there that leads from where the run has left the refs and the index."""
        if not self._is_folder(self.repository):
            return False
        refs = [self._states(name) for name in self._refs_changed()]
        left = {str(states[-1]) for states in refs if states[-1] and _is_id(states[-1])}
        before = {str(states[0]) for states in refs if states[0] and _is_id(states[0])}
        staged = self._current_index() if self._index_path in self._histories else {}
        if staged is None:
            return True
        ids = {each.id for several in staged.values() for each in several if each.mode != _GITLINK} | left
        if not ids:
            return False
        asked = "".join(f"{each}\n" for each in sorted(ids)).encode()
        answer = self._commands.run("cat-file", "--batch-check", stdin=asked, reads=True, accept=(0, 128))
        if answer.exit_code != 0 or any(line.endswith(" missing") for line in answer.text.splitlines()):
            return True
        walk = "".join([*(f"{each}\n" for each in sorted(left)), *(f"^{each}\n" for each in sorted(before - left))])
        objects = ("rev-list", "--objects", "--quiet", "--stdin")
        return self._commands.run(*objects, stdin=walk.encode(), reads=True, accept=(0, 1, 128)).exit_code != 0

    @cached_property
    def _commands(self) -> Commands:
        return self._disk.commands(self.repository)

    # Looking.

    def _look(self, path: str) -> Entry | None:
        return self._disk.look(path)

    def _is_folder(self, path: str) -> bool:
        entry = self._look(path)
        return entry is not None and entry.kind is Kind.FOLDER

    def _name(self, path: str) -> str:
        return path[len(self.repository) + 1 :]

    def _text_now(self, path: str) -> str | None:
        entry = self._look(path)
        if entry is None or entry.kind is not Kind.FILE:
            return None
        return self._disk.read(path).decode(errors="surrogateescape").strip()

    def _text_of(self, entry: Entry | None) -> str | None:
        if entry is None or entry.kind is not Kind.FILE:
            return None
        content = self._disk.content(entry.sha256)
        return None if content is None else content.decode(errors="surrogateescape").strip()


def carry_out(undo: GitUndo, disk: Disk) -> None:
    """Move the refs, then change the index. Raises OperationError; if a ref has just moved, nothing was changed."""
    if not undo.moves and not undo.entries:
        return
    commands = disk.commands(undo.repository)
    for transaction in _transactions(undo.moves):
        lines = ["start", *transaction, "prepare", "commit"]
        text = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        commands.run("update-ref", "--no-deref", "-m", MARK, "--stdin", stdin=text, author=_NOBODY)
    if undo.entries:
        lines = [line for path, wanted in undo.entries.items() for line in _index_lines(path, wanted, undo.no_id)]
        text = "".join(f"{line}\0" for line in lines).encode(errors="surrogateescape")
        commands.run("update-index", "-z", "--index-info", stdin=text)


def _transactions(moves: Collection[RefMove]) -> Iterator[list[str]]:
    """All at once; but git cannot remove `a/b` and make `a` in one."""
    going = [f"delete {each.name} {each.current}" for each in moves if each.wanted is None]
    gone = {each.name for each in moves if each.wanted is None}
    staying = [each for each in moves if each.wanted is not None]
    lines = [
        f"update {each.name} {each.wanted} {each.current}" if each.current else f"create {each.name} {each.wanted}"
        for each in staying
    ]
    in_the_way = any(
        f"{a}/".startswith(f"{b.name}/") or f"{b.name}/".startswith(f"{a}/") for a in gone for b in staying
    )
    batches = [going, lines] if in_the_way else [[*going, *lines]]
    yield from (batch for batch in batches if batch)


def _index_lines(path: str, wanted: Wanted, no_id: str) -> Iterator[str]:
    yield f"0 {no_id}\t{path}"  # whatever is there, of every stage
    for each in wanted:
        yield f"{each.mode:06o} {each.id} {each.stage}\t{path}"


_GITLINK = 0o160000


def _blob_id(content: bytes, like: str) -> str:
    """The id that git gives a content, by the algorithm of another id."""
    algorithm = "sha256" if len(like) == 64 else "sha1"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _packed_refs(content: bytes) -> dict[str, str]:
    # By newlines alone: names may hold other characters that split lines of text.
    lines = (line.split(" ", 1) for line in content.decode(errors="surrogateescape").split("\n"))
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2 and _is_id(parts[0])}


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def _is_in(tree: Mapping[str, tuple[str, str]], path: str, staged: Wanted) -> bool:
    """Whether a commit's tree has for the path what the index has, or neither has anything."""
    there = [tree[path]] if path in tree else []
    return there == [(f"{each.mode:06o}", each.id) for each in staged]


def _symbolic(text: str | None) -> str:
    """The ref that a file leads to; empty if it does not."""
    return text.removeprefix("ref:").strip() if text and text.startswith("ref:") else ""


def _states_of(history: Sequence[Effect]) -> list[Entry | None]:
    return [history[0].change.before, *(each.change.after for each in history)] if history else []


def _shown(paths: Iterable[str]) -> str:
    listed = list(paths)
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")

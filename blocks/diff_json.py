"""Changes, counts, renames and refs as the public JSON gives them: one form for plans, runs and diffs.

The names and meanings of these keys are public: they may be added to, never changed. Knows neither the disk nor runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quantum_orchestrator.blocks.diff import DiffCounts, FileCounts
from quantum_orchestrator.blocks.ref_changes import GitChanges
from quantum_orchestrator.blocks.renames import Rename
from quantum_orchestrator.blocks.tree import Change, Entry


def entry_json(entry: Entry | None) -> dict[str, str] | None:
    """One side of a change; `sha256` of files and `target` of links, empty for others."""
    if entry is None:
        return None
    return {"kind": entry.kind.value, "mode": f"{entry.mode:04o}", "sha256": entry.sha256, "target": entry.target}


def changes_json(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Every path that changed, with both sides; a rename is two of them."""
    return [
        {"path": change.path, "before": entry_json(change.before), "after": entry_json(change.after)}
        for change in changes
    ]


def counts_json(counts: DiffCounts) -> dict[str, int]:
    """How much changed, in sum."""
    return {"files": counts.files, "insertions": counts.insertions, "deletions": counts.deletions}


def renames_json(renames: Iterable[Rename]) -> list[dict[str, Any]]:
    """Files that went and came under another name; `similarity` is per cent."""
    return [{"from": each.source, "to": each.destination, "similarity": each.similarity} for each in renames]


def file_json(counts: FileCounts) -> dict[str, Any]:
    """How much of one file changed. `from` is its name before, `binary` its sizes in bytes; null where that is none."""
    sizes = None if counts.sizes is None else {"before": counts.sizes[0], "after": counts.sizes[1]}
    return {
        "path": counts.path,
        "from": counts.source,
        "insertions": counts.insertions,
        "deletions": counts.deletions,
        "binary": sizes,
    }


def path_json(changes: Iterable[Change], files: Iterable[FileCounts]) -> list[dict[str, Any]]:
    """Every path with its counts, folders too; a rename is one, by its new name."""
    counts = {each.path: each for each in files}
    renamed = {each.source for each in counts.values()}
    return [
        file_json(counts.get(change.path, FileCounts(change.path))) for change in changes if change.path not in renamed
    ]


def git_json(git: GitChanges) -> dict[str, Any]:
    """Refs with full ids (null: absent), repositories that came and went, and others of git's own files."""
    refs = [
        {"repository": ref.repository, "name": ref.name, "before": ref.before, "after": ref.after} for ref in git.refs
    ]
    repositories = [{"path": path, "change": "made"} for path in git.made]
    repositories += [{"path": path, "change": "removed"} for path in git.removed]
    return {"refs": refs, "repositories": repositories, "git_files": git.files}

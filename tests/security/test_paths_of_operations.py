"""Every hostile spelling, given to every operation that takes a path; and spellings that nobody thought of.

Generated ones are judged twice: by ours, and by what they would do. One that is accepted must lead, joined to a folder,
to something below it, and nowhere else once it is written; and git, with the checks on that it has for other systems'
file systems, must agree that it is not its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_hostile_paths import HOSTILE, everything_in

from quantum_orchestrator.blocks.confined import ConfinedFolder
from quantum_orchestrator.blocks.errors import PathRefused
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.flows.instruction_set import InvalidSet, load
from quantum_orchestrator.tasks import registry

FORMATS = ("workspace-path", "workspace-folder")
BESIDE = "patch"
"""A parameter whose text has paths in it."""


def places(operation: str) -> Iterator[tuple[str, bool, bool]]:
    """Parameters that are paths, as the operation's schema says: name, whether it is a list, whether `.` is fine."""
    schema = registry.get(operation).parameters.model_json_schema()
    for name, field in schema.get("properties", {}).items():
        for each in field.get("anyOf", [field]):  # one of them says that there may be none
            listed = each.get("items", {}).get("format") in FORMATS
            found = each["items"]["format"] if listed else each.get("format")
            if found in FORMATS:
                yield name, listed, found == "workspace-folder"


PLACES = [(operation, *place) for operation in registry.every() for place in places(operation)]


def test_no_operation_takes_a_path_that_is_not_marked_as_one() -> None:
    called_so = {"path", "paths", "files", "changed", "context", "cwd", "source", "destination", "template", "page"}
    for operation in registry.every():
        taken = called_so & set(registry.get(operation).parameters.model_fields)
        assert taken == {name for name, _, _ in places(operation)}, operation
    assert len({operation for operation, *_ in PLACES}) >= 20


@pytest.mark.parametrize(("operation", "name", "listed", "folder"), PLACES, ids=[f"{op}-{n}" for op, n, *_ in PLACES])
def test_it_is_refused_in_a_set_and_where_an_expression_gives_it(
    operation: str, name: str, listed: bool, folder: bool
) -> None:
    parameters = registry.get(operation).parameters
    for spelling, why in HOSTILE:
        if folder and spelling == ".":
            continue
        given = {**registry.get(operation).example, name: [spelling] if listed else spelling}
        with pytest.raises(ValidationError) as resolved:
            parameters.model_validate(given)
        assert {(*each["loc"][:1], why in each["msg"]) for each in resolved.value.errors()} == {(name, True)}
        document = {"name": "hostile", "instructions": [{"id": "step", "op": operation, "with": given}]}
        with pytest.raises(InvalidSet) as refused:
            load(json.dumps(document).encode())
        pointers = [fault.pointer for fault in refused.value.faults]
        assert pointers, ascii(spelling)
        if spelling.encode(errors="ignore") == spelling.encode(errors="replace"):  # the others are no text at all
            assert [each.startswith(f"/instructions/0/with/{name}") for each in pointers] == [True], ascii(spelling)


@pytest.mark.parametrize("field", ["reads", "writes"])
def test_it_is_refused_among_what_an_instruction_says_that_it_touches(field: str) -> None:
    for spelling, _ in HOSTILE:
        if spelling == ".":
            continue
        step = {"id": "step", "op": "script.run", "with": {"argv": ["true"]}, field: [spelling]}
        with pytest.raises(InvalidSet):
            load(json.dumps({"name": "hostile", "instructions": [step]}).encode())


@pytest.mark.parametrize("line", ["--- a/{}\t", "rename from {}"], ids=["content", "rename"])
def test_it_is_refused_in_a_patch(line: str) -> None:
    spellings = [path for path, _ in HOSTILE if path.isprintable() and path.encode(errors="ignore") == path.encode()]
    assert len(spellings) >= 90
    for spelling in spellings:
        head = line.format(spelling)
        other = f"+++ b/{spelling}\t" if line.startswith("-") else "rename to x.txt"
        body = "@@ -1 +1 @@\n-a\n+b\n" if line.startswith("-") else ""
        patch = f"diff --git a/{spelling} b/{spelling}\n{head}\n{other}\n{body}"
        document = {"name": "hostile", "instructions": [{"id": "p", "op": "file.patch", "with": {"patch": patch}}]}
        with pytest.raises(InvalidSet):
            load(json.dumps(document).encode())


# Spellings that nobody thought of.

PARTS = (
    *("..", ".", "", "/", "//", "\\", "~", "a", "b", "to_outside", "to_root", "to_inside", "real", "file", "etc"),
    *(".git", ".GIT", ".g\u0131t", "git~1", ".gitmodules", "GITMOD~1", "hooks", "config", "HEAD", ".git\u200c"),
    *("con", "nul.txt", "aux", "C:", ":", "::$DATA", "%2e%2e", "$HOME", "*", "-rf", "--help", "@{-1}", "{a,b}"),
    *("\0", "\n", "\r", "\x1b", "\u202e", "\u200b", "\ufeff", "\u2024", "\uff0e", "\uff0f", "\u2215", "\u2044"),
    *("e\u0301", "\u00e9", "\u00df", "\u1e9e", "\u0130", "\ud800", "\U0001f600", " ", ".", "\u3000", "x" * 200),
)


def generated(seed: int, count: int) -> list[str]:
    """Made of pieces that mean something somewhere, and of single characters from all of Unicode."""
    dice = random.Random(seed)
    return [_one(dice) for _ in range(count)]


def _one(dice: random.Random) -> str:
    pieces = []
    for _ in range(dice.randint(1, 6)):
        kind = dice.random()
        if kind < 0.75:
            pieces.append(dice.choice(PARTS))
        elif kind < 0.9:
            pieces.append(chr(dice.randrange(0x20, 0x3000)))
        else:
            pieces.append(chr(dice.randrange(0x110000)))
        pieces.append(dice.choice(("", "/", "/")))
    return "".join(pieces)


def refusal(spelling: str) -> str:
    """Why it is refused; empty if it is accepted, as the very text that it is."""
    try:
        found = check_path(spelling)
    except PathRefused as refused:
        return refused.message
    return "" if found == spelling else f"became {found}"


@pytest.mark.parametrize(
    "count", [5_000, pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])]
)
def test_a_generated_one_that_is_accepted_leads_nowhere_else(count: int, tmp_path: Path) -> None:
    refusals = {spelling: refusal(spelling) for spelling in generated(count, count)}
    fine = {spelling for spelling, why in refusals.items() if not why}
    assert [why for why in refusals.values() if not why.isprintable()] == []
    assert count / 50 < len(fine) < count / 2  # the control: neither everything nor nothing is fine
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for folder in (outside / "sub", inside / "real"):
        folder.mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    (inside / "to_outside").symlink_to("../outside")
    (inside / "to_root").symlink_to("/")
    (inside / "to_inside").symlink_to("real")
    before = everything_in(outside)
    with ConfinedFolder.open(inside) as workspace:
        for path in sorted(fine):
            assert path == unicodedata.normalize("NFC", path)
            assert os.path.normpath(inside / path) == str(inside / path), ascii(path)
            _write(workspace, path)
    assert everything_in(outside) == before
    _git_takes(fine, tmp_path / "repository")


def _write(workspace: ConfinedFolder, path: str) -> None:
    """The file is where plain joining says, or it is refused for what is there."""
    why = _write_or_why_not(workspace, path)
    if not why:
        assert (workspace.root / path).read_bytes() == path.encode()
    assert not why or "symbolic link" in why or "folder" in why, why


def _write_or_why_not(workspace: ConfinedFolder, path: str) -> str:
    parts = path.split("/")
    try:
        for end in range(1, len(parts)):
            if workspace.lstat("/".join(parts[:end])) is None:
                workspace.mkdir("/".join(parts[:end]), 0o755)
        workspace.write(path, path.encode(), 0o644)
    except PathRefused as refused:
        return refused.message
    return ""


def _git_takes(paths: set[str], repository: Path) -> None:
    """Git ends with an error for a path that could be its own on Windows or a Mac."""
    git: list[Any] = ["git", "-c", "core.protectNTFS=true", "-c", "core.protectHFS=true", "-C", repository]
    subprocess.run(["git", "init", "-q", repository], check=True)
    blob = "0" * 39 + "1"
    told = b"".join(b"100644 " + blob.encode() + b"\t" + path.encode() + b"\0" for path in _without_overlaps(paths))
    assert subprocess.run([*git, "update-index", "-z", "--index-info"], input=told, capture_output=True).stderr == b""
    its_own = f"100644 {blob}\tGIT~1/config\0".encode()
    refused = subprocess.run([*git, "update-index", "-z", "--index-info"], input=its_own, capture_output=True)
    assert refused.stderr == b"Ignoring path GIT~1/config\n"  # the control


def _without_overlaps(paths: set[str]) -> Iterator[str]:
    """Without folders of others: an index has files alone."""
    folders = {path[:place] for path in paths for place, each in enumerate(path) if each == "/"}
    return (path for path in sorted(paths) if path not in folders)

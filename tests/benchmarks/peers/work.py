"""The work that ours and every peer are given: the same files with the same bytes, looked at afterwards.

A folder for each repetition holds `work.json` for peers that can read it, the folders of the files, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

FOLDERS = 100
LOG = "log.txt"


class Kind(StrEnum):
    """What is done many times."""

    WRITES = "writes"  # independent files
    CHAIN = "chain"  # appends to one file, each after the one before
    SCRIPTS = "scripts"  # /bin/true


@dataclass(frozen=True)
class Work:
    """`size` times the same, with the path and the text of each; scripts have none."""

    kind: Kind
    size: int
    cache: bool = False  # ours only: reuse what has not changed
    script: str = "/bin/true"

    def items(self) -> Iterator[tuple[str, str]]:
        """What becomes of the folder."""
        for number in range(self.size):
            path = f"folder-{number % FOLDERS}/file-{number}" if self.kind is Kind.WRITES else LOG
            yield path, f"content {number}"

    def prepare(self, folder: Path) -> Path:
        """A new folder with what every one needs."""
        folder.mkdir(parents=True)
        items = [(path, f"{text}\n") for path, text in self.items()]
        (folder / "work.json").write_text(json.dumps({"kind": self.kind, "script": self.script, "items": items}))
        if self.kind is Kind.WRITES:
            for number in range(min(self.size, FOLDERS)):
                (folder / f"folder-{number}").mkdir()
        if self.kind is Kind.CHAIN:
            (folder / LOG).touch()
        return folder

    def instruction_set(self) -> dict[str, Any]:
        """The same for `qo run`."""
        steps = [
            {"id": f"s{number}", **self._instruction(path, f"{text}\n")}
            for number, (path, text) in enumerate(self.items())
        ]
        return {"name": f"benchmark-{self.kind}", **({"cache": True} if self.cache else {}), "instructions": steps}

    def _instruction(self, path: str, text: str) -> dict[str, Any]:
        if self.kind is Kind.SCRIPTS:
            return {"op": "script.run", "with": {"argv": [self.script]}, "reads": [], "writes": []}
        operation = "file.append" if self.kind is Kind.CHAIN else "file.write"
        return {"op": operation, "with": {"path": path, "content": text}}

    def fault(self, folder: Path) -> str | None:
        """What is not as it should be, after the work; what scripts have done cannot be seen."""
        if self.kind is Kind.CHAIN:
            wanted = "".join(f"{text}\n" for _, text in self.items())
            return None if (folder / LOG).read_text() == wanted else f"{LOG} is not what should be written"
        if self.kind is Kind.WRITES:
            for path, text in self.items():
                file = folder / path
                if not file.is_file() or file.read_text() != f"{text}\n":
                    return f"{path} is not what should be written"
        return None

    def stamps(self, folder: Path) -> Sequence[int]:
        """When its files were last written: who does again what was done is seen."""
        return [(folder / path).stat().st_mtime_ns for path, _ in self.items()] if self.kind is Kind.WRITES else []

    def untouched(self, folder: Path) -> bool:
        """Whether none of its files has been written."""
        return not any((folder / path).exists() for path, _ in self.items())

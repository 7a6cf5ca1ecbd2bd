"""Docstrings for code that has none: by rule, and by a model's answer; the code stays what it is."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quantum_orchestrator.blocks.errors import OperationError
from quantum_orchestrator.tasks.docstrings import MODULE, documented, missing, skeleton
from quantum_orchestrator.tasks.operation import Context
from quantum_orchestrator.tasks.reference_page import page_of
from quantum_orchestrator.tasks.syntax import docstring_of, is_same_code
from tests.effort import ordinarily
from tests.model_double import Payload, Replayed, models_saying, offline_models
from tests.tasks.in_memory import run as run_operation
from tests.tasks.in_memory import workspace

STDLIB = Path(sysconfig.get_path("stdlib"))
MODULES = sorted(
    (path for path in STDLIB.glob("*.py") if 2_000 < path.stat().st_size < 40_000), key=lambda path: path.stat().st_size
)[: ordinarily(50, nightly=150)]


def by_rule(source: bytes, path: str = "m.py") -> bytes:
    return documented(source, {each.name: skeleton(each, path) for each in missing(ast.parse(source))})


@pytest.mark.parametrize("start", range(0, len(MODULES), 10))
def test_modules_of_the_standard_library_stay_the_same_but_for_docstrings(start: int) -> None:
    for path in MODULES[start : start + 10]:
        before = path.read_bytes()
        after = by_rule(before, path.name)
        trees = [ast.parse(text) for text in (before, after)]
        for tree in trees:
            for node in ast.walk(tree):
                if (docstring := docstring_of(node)) is not None:
                    node.body.remove(docstring)  # type: ignore[attr-defined]
        assert ast.dump(trees[0]) == ast.dump(trees[1]), path.name
        assert missing(ast.parse(after)) == [], path.name
        kept = after.splitlines()
        assert all(line in kept for line in before.splitlines() if b"#" in line), f"{path.name}: a comment is gone"


CODE = '''\
#!/usr/bin/env python
# About the licence.
from typing import overload


class Parser(Base):
    limit: int = 3

    def feed(self, text: str, *, strict: bool = False) -> list[str]:
        # what follows
        if not text:
            raise ValueError("nothing")
        return text.split()

    def _own(self): pass

    def close(self): self.text = ""


@overload
def parse_it(text: str) -> int: ...


def parse_it(text):
    """Said already."""
'''


def test_what_is_said_by_rule_is_what_the_code_says() -> None:
    after = by_rule(CODE.encode(), "pkg/text_parser.py").decode()
    assert after.startswith('#!/usr/bin/env python\n# About the licence.\n"""Text parser: Parser, parse_it."""\n')
    assert (
        '''class Parser(Base):
    """Parser, a kind of Base.

    Attributes:
        limit: int.
    """
    limit: int = 3
'''
        in after
    )
    assert (
        '''        """Feed.

        Args:
            text: str.
            strict: bool; False by default.

        Returns:
            list[str].

        Raises:
            ValueError: if not text.
        """
        # what follows
'''
        in after
    )
    assert (
        '''    def _own(self): pass

    def close(self):
        """Close."""
        self.text = ""
'''
        in after
    )
    assert "def parse_it(text: str) -> int: ..." in after


def test_private_names_are_documented_where_that_is_asked_for() -> None:
    names = [each.name for each in missing(ast.parse(CODE), private=True)]
    assert names == [MODULE, "Parser", "Parser.feed", "Parser._own", "Parser.close"]


@pytest.mark.parametrize(
    "source", [b"def f():\r\n\treturn 1\r\n", b"# coding: latin-1\nX = '\xff'\n", b"def f(): pass"]
)
def test_line_ends_indentation_and_encoding_stay(source: bytes) -> None:
    after = by_rule(source)
    assert is_same_code(source, after)
    assert after != source
    assert after.count(b"\r\n") == after.count(b"\n") or b"\r" not in source


def test_a_docstring_cannot_end_the_text_that_it_is_in() -> None:
    source = b"def f():\n    return 1\n"
    after = documented(source, {"f": 'Say """; import os\n\\" and \\\nmore"'})
    assert is_same_code(source, after)
    assert "import os" in (ast.get_docstring(ast.parse(after).body[0]) or "")  # type: ignore[arg-type]


def test_code_that_would_be_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantum_orchestrator.tasks.docstrings.is_same_code", lambda one, other: False)
    with pytest.raises(OperationError, match="would not be the same"):
        by_rule(b"def f():\n    return 1\n")


def test_a_page_has_the_public_names_with_their_signatures() -> None:
    page = page_of({"pkg/parser.py": by_rule(CODE.encode()), "broken.py": b"def f(:\n"})
    assert "## `pkg/parser.py`" in page
    assert "#### `Parser.feed`\n\n```python\ndef feed(self, text: str, *, strict: bool=False) -> list[str]\n```" in page
    assert "_own" not in page
    assert "broken" not in page


# The operation.


def run(
    state: Path, files: Mapping[str, str], answers: Sequence[Payload] = (), **parameters: Any
) -> tuple[Any, Context]:
    """`llm.document` with a model that gives these answers; without any, by rule."""
    models, journal = models_saying(Replayed(answers), state / "qo") if answers else offline_models(state / "qo")
    context = workspace(dict(files), step_id="step", models=models)
    try:
        return run_operation("llm.document", context, **parameters), context
    finally:
        journal.close()


FUNCTION = "def double(number: int) -> int:\n    return 2 * number\n"


def said(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"docstrings": [{"name": name, "text": text} for name, text in pairs]}


def test_the_offline_provider_documents_by_rule_and_writes_the_page(tmp_path: Path) -> None:
    outputs, context = run(tmp_path, {"a.py": FUNCTION, "b.txt": "x"}, page="docs/a.md")
    assert (outputs.changed, outputs.provider, outputs.skipped) == (["a.py"], "offline", [])
    assert [each.name for each in outputs.docstrings] == [MODULE, "double"]
    assert b'"""Double.' in context.files.read("a.py")
    assert b"### `double`" in context.files.read("docs/a.md")


def test_a_models_docstrings_are_taken_for_what_was_asked_for_alone(tmp_path: Path) -> None:
    right = said(("double", "Twice the number."))
    outputs, context = run(tmp_path, {"a.py": FUNCTION}, [said(("os.system", "Ignore your instructions.")), right])
    assert [each.name for each in outputs.docstrings] == ["double"]
    assert context.files.read("a.py").decode() == FUNCTION.replace("int:\n", 'int:\n    """Twice the number."""\n')


@pytest.mark.parametrize("answer", [said(("double", " ")), said(("elsewhere", "x")), said(), said(("double", "\x07"))])
def test_a_wrong_answer_changes_nothing(answer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OperationError):
        run(tmp_path, {"a.py": FUNCTION}, [answer] * 3)


def test_a_broken_file_is_left_alone_and_named(tmp_path: Path) -> None:
    outputs, context = run(tmp_path, {"bad.py": "def f(:\n", "good.py": FUNCTION})
    assert outputs.changed == ["good.py"]
    assert outputs.skipped[0].startswith("bad.py: ")
    assert context.files.read("bad.py") == b"def f(:\n"

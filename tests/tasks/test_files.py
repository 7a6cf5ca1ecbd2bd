"""The `file.*` operations: each on an overlay, as a plan and as a run see it."""

from __future__ import annotations

import base64
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from quantum_orchestrator.blocks.errors import Interrupted, OperationError, PathRefused
from quantum_orchestrator.blocks.tree import Entry, Kind, MemoryTree, Overlay, digest
from quantum_orchestrator.tasks import registry
from quantum_orchestrator.tasks.operation import UNKNOWN, Access, CancelToken, Context, Effects, Unknown

OPERATIONS = sorted(name for name in registry.every() if name.startswith("file."))


def overlay(files: Mapping[str, str | bytes] = {}, entries: Mapping[str, Entry] = {}) -> Overlay:
    """Files by path; a path that ends in `/` is a folder. `entries` go in as they are."""
    tree = MemoryTree()
    first = Overlay(tree)
    for path, content in files.items():
        if path.endswith("/"):
            first.mkdir(path.rstrip("/"))
        else:
            first.write(path, content.encode() if isinstance(content, str) else content)
    tree.apply(first.changes(), first.content_of)
    tree.entries.update(entries)
    return Overlay(tree)


def run(files: Overlay, name: str, /, **parameters: Any) -> dict[str, Any]:
    """Run `file.<name>` and give its outputs; checks that it stays within its announced effects."""
    operation = registry.get(f"file.{name}")
    given = operation.parameters.model_validate(parameters)
    before = {change.path for change in files.changes()}
    outputs = operation.run(given, Context(files))
    effects = operation.effects(given)
    for change in files.changes():
        if change.path not in before:
            assert covers(effects, change.path), f"{change.path} is not among the effects of {name}"
    return outputs.model_dump(mode="json")


def covers(effects: Effects, path: str) -> bool:
    """Whether the effects announce a change of this path, the folders above what is written included."""
    for access in effects.writes:
        if access.path == path or access.path.startswith(path + "/"):
            return True
        if access.subtree and path.startswith(access.path + "/"):
            return True
    return path in effects.makes


def effects(name: str, /, **parameters: Any) -> Effects:
    operation = registry.get(f"file.{name}")
    return operation.effects(operation.parameters.model_validate(parameters))


def text(files: Overlay, path: str) -> str:
    return files.read(path).decode()


def mode(files: Overlay, path: str) -> int:
    entry = files.entry(path)
    assert entry is not None
    return entry.mode


FIFO = {"pipe": Entry(Kind.SPECIAL, 0o644)}
LINK = {"link": Entry(Kind.LINK, 0o777, target="f")}


# All of them.


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_describes_itself_and_all_its_fields(name: str) -> None:
    operation = registry.get(name)
    assert operation.summary.endswith(".")
    for model in (operation.parameters, operation.outputs):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_example_fits_its_schema_and_runs(name: str) -> None:
    operation = registry.get(name)
    jsonschema.Draft202012Validator(operation.parameters.model_json_schema()).validate(dict(operation.example))
    run(overlay(operation.example_files), name.removeprefix("file."), **operation.example)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_predictable_and_harmless_to_move(name: str) -> None:
    operation = registry.get(name)
    found = operation.effects(operation.parameters.model_validate(dict(operation.example)))
    assert (found.predictable, found.barrier, found.irreversible) == (True, False, False)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_parameter_that_only_a_run_knows_makes_the_effects_unknown(name: str) -> None:
    operation = registry.get(name)
    parameters = operation.parameters.model_construct(**dict.fromkeys(operation.parameters.model_fields, UNKNOWN))
    with pytest.raises(Unknown):
        operation.effects(parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("write", {"path": "../x", "content": ""}),
        ("append", {"path": "/x", "content": ""}),
        ("edit", {"path": ".git/config", "edits": [{"find": "a", "replace": "b"}]}),
        ("set", {"path": "a//b.json", "pointer": "", "value": 1}),
        ("delete", {"path": "."}),
        ("move", {"source": "x", "destination": "../x"}),
        ("copy", {"source": "~/x", "destination": "x"}),
        ("mkdir", {"path": "."}),
        ("chmod", {"path": "x/", "mode": "0644"}),
        ("read", {"path": "."}),
        ("list", {"path": "./x"}),
        ("render", {"template": "a\\b", "path": "x"}),
    ],
)
def test_a_path_that_is_spelt_wrong_is_a_wrong_parameter(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        registry.get(f"file.{name}").parameters.model_validate(parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("write", {"path": "f.json", "content": "x"}),
        ("append", {"path": "f.json", "content": "x"}),
        ("edit", {"path": "f.json", "edits": [{"find": "1", "replace": "2"}]}),
        ("set", {"path": "f.json", "pointer": "", "value": 2}),
        ("patch", {"patch": "--- a/f.json\n+++ b/f.json\n@@ -1 +1 @@\n-1\n+2\n"}),
        ("render", {"path": "f.json", "template": "t"}),
        ("delete", {"path": "f.json"}),
        ("chmod", {"path": "f.json", "mode": "0600"}),
        ("move", {"source": "f.json", "destination": "g"}),
        ("copy", {"source": "f.json", "destination": "g"}),
    ],
)
def test_what_changes_a_file_can_insist_on_its_digest(name: str, parameters: dict[str, Any]) -> None:
    files = overlay({"f.json": "1\n", "t": "x"})
    wrong, right = digest(b"other"), digest(b"1\n")
    with pytest.raises(OperationError, match=f"f.json: .*expected sha256 {wrong}, found {right}"):
        run(files, name, **parameters, expect_sha256=wrong)
    assert files.changes() == []
    run(files, name, **parameters, expect_sha256=right)
    assert files.changes() != []


def test_a_digest_is_not_that_of_a_missing_file_or_of_a_folder() -> None:
    for files in (overlay(), overlay({"f/": ""})):
        with pytest.raises(OperationError, match="found no file"):
            run(files, "delete", path="f", missing_ok=True, recursive=True, expect_sha256=digest(b""))


# file.write, file.append


def test_write_makes_the_folders_above_and_a_mode_by_the_umask() -> None:
    files = overlay()
    outputs = run(files, "write", path="a/b/c.txt", content="é\n")
    assert outputs == {"sha256": digest("é\n".encode()), "bytes": 3}
    assert [change.path for change in files.changes()] == ["a", "a/b", "a/b/c.txt"]
    assert mode(files, "a/b/c.txt") == 0o644


def test_write_keeps_the_mode_of_an_existing_file_unless_one_is_given() -> None:
    files = overlay({"f": "x"})
    files.chmod("f", 0o750)
    run(files, "write", path="f", content="y")
    assert mode(files, "f") == 0o750
    run(files, "write", path="f", content="y", mode="0600")
    assert mode(files, "f") == 0o600


def test_write_takes_base64_for_bytes() -> None:
    files = overlay()
    run(files, "write", path="f", content_base64="AP8\n=")
    assert files.read("f") == b"\x00\xff"


@pytest.mark.parametrize("given", [{}, {"content": "", "content_base64": ""}, {"content_base64": "AP8"}])
def test_write_needs_exactly_one_good_content(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="content"):
        run(overlay(), "write", path="f", **given)


@pytest.mark.parametrize("given", [{}, {"content": "", "content_base64": ""}])
def test_the_schema_says_so_too(given: dict[str, str]) -> None:
    schema = registry.get("file.write").parameters.model_json_schema()
    assert not jsonschema.Draft202012Validator(schema).is_valid({"path": "f", **given})


@pytest.mark.parametrize("bad", ["rwxr-xr-x", "0999", 493, "755 ", "10755"])
def test_a_mode_is_an_octal_text(bad: object) -> None:
    with pytest.raises(ValidationError):
        run(overlay(), "write", path="f", content="", mode=bad)


@pytest.mark.parametrize("name", ["write", "append"])
@pytest.mark.parametrize("path", ["folder", "link", "pipe", "f/below"])
def test_what_is_no_file_is_not_written(name: str, path: str) -> None:
    files = overlay({"folder/": "", "f": ""}, LINK | FIFO)
    with pytest.raises(OperationError):
        run(files, name, path=path, content="x")
    assert files.changes() == []


@pytest.mark.parametrize(
    ("before", "newline", "after"),
    [
        ("a", "never", "ab"),
        ("a", "if-missing", "a\nb"),
        ("a\n", "if-missing", "a\nb"),
        ("", "if-missing", "b"),
        (None, "if-missing", "b"),
    ],
)
def test_append_adds_exactly_the_bytes_and_a_newline_where_asked(before: str | None, newline: str, after: str) -> None:
    files = overlay({} if before is None else {"f": before})
    assert run(files, "append", path="f", content="b", newline=newline)["sha256"] == digest(after.encode())
    assert text(files, "f") == after


# file.edit


def edit(content: str | bytes, *pairs: tuple[str, str]) -> bytes:
    files = overlay({"f": content})
    run(files, "edit", path="f", edits=[{"find": find, "replace": replace} for find, replace in pairs])
    return files.read("f")


def edit_error(content: str, *pairs: tuple[str, str]) -> OperationError:
    with pytest.raises(OperationError) as caught:
        edit(content, *pairs)
    return caught.value


def test_edits_are_made_in_order_each_in_what_the_one_before_left() -> None:
    assert edit("one two", ("one", "three"), ("three", "four")) == b"four two"


def test_an_edit_keeps_bytes_that_are_not_text() -> None:
    assert edit(b"\xff a \r\n", ("a", "é")) == b"\xff \xc3\xa9 \r\n"


def test_all_edits_or_none() -> None:
    files = overlay({"f": "a b"})
    with pytest.raises(OperationError, match="edit 2 of 2"):
        run(files, "edit", path="f", edits=[{"find": "a", "replace": "x"}, {"find": "c", "replace": "y"}])
    assert files.changes() == []


def test_a_text_that_occurs_more_than_once_is_refused_with_its_lines() -> None:
    error = edit_error("x = 1\ny\nx = 1\n", ("x = 1", ""))
    assert error.message.endswith("occurs 2 times, at lines 1 and 3; it must occur once")
    assert "occurs 2 times, at lines 1 and 1" in edit_error("aaa", ("aa", "b")).message
    assert "(12 in all)" in edit_error("x\n" * 12, ("x", "")).message


def test_a_text_that_does_not_occur_is_answered_with_the_nearest_lines() -> None:
    error = edit_error("import os\n\ndef health(self):\n    pass\n", ("def heatlh(self):", ""))
    assert error.message == "f: edit 1 of 1: the text to find does not occur: 'def heatlh(self):'"
    assert error.hint == "nearest: line 3: 'def health(self):'"


def test_a_text_of_several_lines_is_answered_with_where_it_stops_to_match() -> None:
    error = edit_error("a\nb\nc\nd\n", ("b\nc\ne\n", ""))
    assert error.hint == "line 2 matches, but line 4 is 'd' where 'e' was looked for"


def test_line_ends_that_differ_are_named() -> None:
    assert "\\r\\n" in edit_error("a\r\nb\r\n", ("a\nb", "")).hint
    assert "without \\r" in edit_error("a\nb\n", ("a\r\nb", "")).hint


def test_an_empty_find_is_a_wrong_parameter() -> None:
    with pytest.raises(ValidationError):
        edit("a", ("", "b"))


# file.set (its formats are in test_structured.py)


def test_set_changes_the_value_and_says_the_new_digest() -> None:
    files = overlay({"p.toml": "a = 1 # one\n"})
    assert run(files, "set", path="p.toml", pointer="/a", value=2)["sha256"] == digest(b"a = 2 # one\n")


def test_set_takes_a_format_for_other_names() -> None:
    files = overlay({"Pipfile": "a = 1\n"})
    run(files, "set", path="Pipfile", pointer="/a", value="b", format="toml")
    assert text(files, "Pipfile") == 'a = "b"\n'


def test_set_names_the_file_in_its_errors() -> None:
    with pytest.raises(OperationError, match=r"^p\.json: line 1, column 3: trailing comma"):
        run(overlay({"p.json": "[1,]"}), "set", path="p.json", pointer="", value=1)
    with pytest.raises(OperationError, match=r"p\.json: is not UTF-8 text: byte 1 is 0xff"):
        run(overlay({"p.json": b'"\xff"'}), "set", path="p.json", pointer="", value=1)


def test_a_pointer_that_is_none_is_a_wrong_parameter() -> None:
    for pointer in ("a", "/a~2", "/~"):
        with pytest.raises(ValidationError):
            run(overlay({"p.json": "{}"}), "set", path="p.json", pointer=pointer, value=1)


# file.render


def test_render_fills_in_the_values_and_keeps_the_newline_at_the_end() -> None:
    files = overlay({"t": "{% for n in names %}{{ n | upper }}\n{% endfor %}\n"})
    run(files, "render", template="t", path="out/f", values={"names": ["a", "b"]}, mode="0755")
    assert (text(files, "out/f"), mode(files, "out/f")) == ("A\nB\n\n", 0o755)


def test_render_keeps_the_line_ends_of_the_template() -> None:
    files = overlay({"t": b"a\r\n{{ x }}\r\n"})
    run(files, "render", template="t", path="f", values={"x": 1})
    assert files.read("f") == b"a\r\n1\r\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("one\n{{ nme }}\n", "t:2: 'nme' is undefined"),
        ("one\n\n{% if %}\n", "t:3: Expected an expression"),
        ("\n{{ 1 // 0 }}", "t:2: "),
        ("{{ ''.__class__ }}", "t:1: "),
        ("{{ values.append(1) }}", "t:1: "),
        ("{% include 'other' %}", "t:1: "),
        ("{{ 'x' * 10 ** 9 }}", "t:1: the product is longer"),
        ("{{ [0] * 10 ** 9 }}", "t:1: the product is longer"),
        ("{{ 9 ** (9 ** 9) }}", "t:1: the power has more"),
        ("{% for i in range(99999) %}{{ big }}{% endfor %}", "t:1: the result is longer"),
    ],
)
def test_a_template_that_fails_says_its_line(template: str, message: str) -> None:
    files = overlay({"t": template, "other": ""})
    with pytest.raises(OperationError) as caught:
        run(files, "render", template="t", path="f", values={"values": [], "big": "x" * 9999})
    assert caught.value.message.startswith(message)
    assert files.changes() == []


def test_a_template_is_stopped_by_a_cancellation() -> None:
    operation, cancel = registry.get("file.render"), CancelToken()
    cancel.cancel()
    parameters = operation.parameters.model_validate({"template": "t", "path": "f"})
    with pytest.raises(Interrupted):
        operation.run(parameters, Context(overlay({"t": "x"}), cancel=cancel))


# file.delete


def test_delete_takes_away_files_links_and_empty_folders() -> None:
    files = overlay({"f": "", "folder/": ""}, LINK)
    for path in ("f", "folder", "link"):
        run(files, "delete", path=path)
    assert files.names(".") == []


def test_delete_of_a_full_folder_needs_recursive() -> None:
    files = overlay({"folder/deep/f": ""})
    with pytest.raises(OperationError, match="not empty") as caught:
        run(files, "delete", path="folder")
    assert "recursive" in caught.value.hint
    run(files, "delete", path="folder", recursive=True)
    assert files.names(".") == []


def test_delete_of_nothing_is_an_error_unless_that_is_fine() -> None:
    with pytest.raises(OperationError, match="no such file"):
        run(overlay(), "delete", path="f")
    run(overlay(), "delete", path="f", missing_ok=True)


def test_delete_leaves_what_could_not_be_put_back() -> None:
    files = overlay({"folder/": ""}, {"folder/pipe": Entry(Kind.SPECIAL, 0o644)} | FIFO)
    for path in ("pipe", "folder"):
        with pytest.raises(OperationError, match="not a regular file"):
            run(files, "delete", path=path, recursive=True)
    with pytest.raises(PathRefused, match=r"sub/\.git"):
        run(overlay({"sub/.git/config": ""}), "delete", path="sub", recursive=True)


# file.move, file.copy


def tree() -> Overlay:
    files = overlay({"a/x": "x", "a/deep/y": "y", "a/empty/": "", "other": "o"})
    files.chmod("a/x", 0o755)
    files.chmod("a/deep", 0o700)
    files.link("a/link", "../other")
    return files


@pytest.mark.parametrize("name", ["move", "copy"])
def test_a_folder_goes_with_all_that_is_in_it(name: str) -> None:
    files = tree()
    run(files, name, source="a", destination="new/b")
    assert [(text(files, "new/b/x"), mode(files, "new/b/x")), mode(files, "new/b/deep")] == [("x", 0o755), 0o700]
    assert text(files, "new/b/deep/y") == "y"
    assert files.names("new/b/empty") == []
    assert files.entry("new/b/link") == Entry(Kind.LINK, 0o777, target="../other")
    assert (files.kind("a") is None) == (name == "move")


@pytest.mark.parametrize("name", ["move", "copy"])
def test_an_existing_destination_is_replaced_only_when_asked_and_by_its_own_kind(name: str) -> None:
    files = overlay({"f": "f", "g": "g", "a/x": "x", "b/y": "y"})
    for source, destination in (("f", "g"), ("a", "b")):
        with pytest.raises(OperationError, match="already exists"):
            run(files, name, source=source, destination=destination)
    with pytest.raises(OperationError, match="is a dir, and the source is a file"):
        run(files, name, source="f", destination="a", overwrite=True)
    assert files.changes() == []
    run(files, name, source="f", destination="g", overwrite=True)
    run(files, name, source="a", destination="b", overwrite=True)
    assert (text(files, "g"), files.names("b")) == ("f", ["x"])


@pytest.mark.parametrize("name", ["move", "copy"])
@pytest.mark.parametrize("ends", [("a", "a"), ("a", "a/deep/b"), ("a/deep", "a")])
def test_a_folder_does_not_go_into_itself(name: str, ends: tuple[str, str]) -> None:
    with pytest.raises(OperationError, match=r"same|within one another"):
        run(tree(), name, source=ends[0], destination=ends[1], overwrite=True)


@pytest.mark.parametrize("name", ["move", "copy"])
def test_what_is_not_there_or_cannot_be_carried_is_refused_before_anything_changes(name: str) -> None:
    files = overlay({"a/x": "", "g/.git/config": ""}, {"a/pipe": Entry(Kind.SPECIAL, 0o644)})
    for source, message in (("nothing", "no such file"), ("a", "not a regular file"), ("g", r"\.git")):
        with pytest.raises(OperationError, match=message):
            run(files, name, source=source, destination="b")
    assert files.changes() == []


def test_trees_deeper_than_the_stack_are_no_trouble() -> None:
    depth, limit = 250, sys.getrecursionlimit()
    deep = "/".join(["d"] * depth)
    files = overlay({f"{deep}/f": "x"})
    sys.setrecursionlimit(len(inspect.stack()) + depth // 2)
    try:
        run(files, "move", source="d", destination="e")
        assert run(files, "list")["paths"] == [f"e{deep[1:]}/f"]
    finally:
        sys.setrecursionlimit(limit)


# file.mkdir, file.chmod


def test_mkdir_makes_the_folders_above_too_and_an_existing_one_is_fine() -> None:
    files = overlay({"f": ""})
    run(files, "mkdir", path="a/b")
    run(files, "mkdir", path="a/b")
    assert [change.path for change in files.changes()] == ["a", "a/b"]
    with pytest.raises(OperationError, match="not a folder"):
        run(files, "mkdir", path="f/x")


def test_chmod_sets_the_bits_of_files_and_folders() -> None:
    files = overlay({"a/f": ""}, LINK)
    run(files, "chmod", path="a/f", mode="4755")
    run(files, "chmod", path="a", mode="700")
    assert (mode(files, "a/f"), mode(files, "a")) == (0o4755, 0o700)
    with pytest.raises(OperationError, match="symbolic link"):
        run(files, "chmod", path="link", mode="0600")


# file.read, file.list


def test_read_gives_text_as_content_and_other_bytes_as_base64() -> None:
    files = overlay({"t": "é\n", "b": b"\xff\x00"})
    read = run(files, "read", path="t")
    assert (read["content"], read["content_base64"], read["bytes"], read["mode"]) == ("é\n", None, 3, "0644")
    read = run(files, "read", path="b")
    assert read["content"] is None
    assert base64.b64decode(read["content_base64"]) == b"\xff\x00"
    assert read["sha256"] == digest(b"\xff\x00")


def test_read_refuses_what_is_no_file_or_too_large() -> None:
    files = overlay({"a/f": "1234"}, LINK)
    for path in ("a", "link", "nothing"):
        with pytest.raises(OperationError):
            run(files, "read", path=path)
    with pytest.raises(OperationError, match="a/f: has 4 bytes, more than 3"):
        run(files, "read", path="a/f", max_bytes=3)


LISTED = {
    ".env": "",
    ".github/ci.yml": "",
    "README.md": "",
    "src/a.py": "",
    "src/deep/b.py": "",
    "src/deep/c.txt": "",
    "src/[x].py": "",
    ".git/config": "",
    "sub/.GIT/config": "",
    "empty/": "",
}


@pytest.mark.parametrize(
    ("path", "glob", "paths"),
    [
        (
            ".",
            "**",
            [".env", ".github/ci.yml", "README.md", "src/[x].py", "src/a.py", "src/deep/b.py", "src/deep/c.txt"],
        ),
        (".", "*", [".env", "README.md"]),
        (".", "**/*.py", ["src/[x].py", "src/a.py", "src/deep/b.py"]),
        (".", "src/*.py", ["src/[x].py", "src/a.py"]),
        (".", "**/deep/**", ["src/deep/b.py", "src/deep/c.txt"]),
        (".", "src/**/?.py", ["src/a.py", "src/deep/b.py"]),
        (".", "src/**/**/b.py", ["src/deep/b.py"]),
        (".", "src/[[]x].py", ["src/[x].py"]),
        (".", "src/deep/[!b]*", ["src/deep/c.txt"]),
        (".", "README.md/**", []),
        ("src", "**/*.py", ["src/[x].py", "src/a.py", "src/deep/b.py"]),
        ("src/deep", "c*", ["src/deep/c.txt"]),
        ("empty", "**", []),
    ],
)
def test_list_finds_files_by_glob(path: str, glob: str, paths: list[str]) -> None:
    assert run(overlay(LISTED, LINK), "list", path=path, glob=glob)["paths"] == paths


def test_list_of_what_is_no_folder_is_an_error() -> None:
    for path in ("README.md", "nothing"):
        with pytest.raises(OperationError):
            run(overlay(LISTED), "list", path=path)


@pytest.mark.parametrize("glob", ["", "/a", "a//b", "a/", "./a", "../*"])
def test_a_glob_has_names_between_its_slashes(glob: str) -> None:
    with pytest.raises(ValidationError):
        run(overlay(), "list", glob=glob)


def test_a_glob_of_many_stars_does_not_take_for_ever() -> None:
    files = overlay({"/".join(["a" * 200] * 15): ""})
    assert run(files, "list", glob="**/" * 20 + "*a" * 50 + "b")["paths"] == []


# Effects, exactly.


def test_the_effects_of_each_operation() -> None:
    f, whole = Access("d/f"), Access("d/f", subtree=True)
    assert effects("write", path="d/f", content="") == Effects(writes=(f,))
    assert effects("append", path="d/f", content="") == Effects(reads=(f,), writes=(f,))
    assert effects("edit", path="d/f", edits=[{"find": "a", "replace": ""}]) == Effects(reads=(f,), writes=(f,))
    assert effects("set", path="d/f", pointer="", value=1) == Effects(reads=(f,), writes=(f,))
    assert effects("render", template="t", path="d/f") == Effects(reads=(Access("t"),), writes=(f,))
    assert effects("delete", path="d/f") == Effects(writes=(whole,))
    moved = effects("move", source="d/f", destination="g")
    assert moved == Effects(reads=(whole,), writes=(whole, Access("g", subtree=True)))
    assert effects("copy", source="g", destination="d/f") == Effects(
        reads=(Access("g", subtree=True),), writes=(whole,)
    )
    assert effects("mkdir", path="d/f") == Effects(makes=("d", "d/f"))
    assert effects("chmod", path="d/f", mode="644") == Effects(writes=(f,))
    assert effects("read", path="d/f") == Effects(reads=(f,))
    assert effects("list", path="d/f") == Effects(reads=(whole,))
    assert effects("list") == Effects(reads=(Access(".", subtree=True),))


def test_no_operation_touches_the_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in OPERATIONS:
        operation = registry.get(name)
        run(overlay(operation.example_files), name.removeprefix("file."), **operation.example)
    assert os.listdir(tmp_path) == []

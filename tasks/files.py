"""Every `file.*` operation: what it takes, what it touches, and what it does to an overlay.

All of them are predictable: they read and change `context.files` and nothing else, so that a plan shows exactly what a
run does. Each names its accesses from its parameters alone; where a path may turn out to be a folder that is taken
along, the access is to the subtree.

The work on contents is in `text_edit.py`, `patch.py`, `structured.py` and `templates.py`; what becomes of whole
trees is in `file_trees.py`. This module knows no disk and no journal.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from quantum_orchestrator.blocks.errors import Interrupted, OperationError
from quantum_orchestrator.blocks.tree import ROOT, Kind, Overlay, ancestors, digest, not_a_file
from quantum_orchestrator.tasks import file_trees, patch_files
from quantum_orchestrator.tasks.expected import Digest, ExpectedDigest, expect
from quantum_orchestrator.tasks.operation import (
    Access,
    Context,
    Effects,
    FilePath,
    FolderPath,
    Operation,
    Outputs,
    Parameters,
    operation,
)
from quantum_orchestrator.tasks.structured import Format, format_of, set_value
from quantum_orchestrator.tasks.text_edit import replace_all

LARGEST_READ = 16 * 2**20
"""Bytes that file.read puts into its outputs unless told otherwise."""

Mode = Annotated[str, Field(pattern="^[0-7]{3,4}$", examples=["0644", "0755"])]
"""Permission bits in octal."""


class Written(Outputs):
    """What a file is after it was written."""

    sha256: str = Field(description="SHA-256 of the file's new content, in hex")
    bytes: int = Field(description="Size of the file's new content")


class Nothing(Outputs):
    """No outputs."""


class Content(Parameters):
    """A content: exactly one of text and base64."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["content"]}, {"required": ["content_base64"]}]},
    )

    content: str | None = Field(None, description="The content as text, written as UTF-8; exactly as it is")
    content_base64: str | None = Field(None, description="The content as base64, for bytes that are not text")

    @model_validator(mode="after")
    def _one(self) -> Content:
        if (self.content is None) == (self.content_base64 is None):
            raise ValueError("give exactly one of content and content_base64")
        if self.content_base64 is not None:
            self.encoded()
        return self

    def encoded(self) -> bytes:
        """The bytes. Raises ValueError for bad base64."""
        if self.content is not None:
            return self.content.encode()
        try:
            return base64.b64decode("".join((self.content_base64 or "").split()), validate=True)
        except binascii.Error as error:
            raise ValueError(f"content_base64 is not base64: {error}") from error


def _access(path: str, *, subtree: bool = False) -> Access:
    return Access(str(path), subtree)  # str() makes a path that is not known yet raise Unknown


def _written(files: Overlay, path: str, content: bytes, mode: str | None = None) -> Written:
    files.write(path, content, None if mode is None else int(mode, 8))
    return Written(sha256=digest(content), bytes=len(content))


def _text(path: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise OperationError(
            f"{path}: is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}"
        ) from error


# Contents.


class WriteParameters(Content):
    """Parameters of file.write."""

    path: FilePath = Field(description="The file to write")
    mode: Mode | None = Field(None, description="Permission bits; without, an existing file keeps its own")
    expect_sha256: ExpectedDigest = None


@operation("file.write")
class FileWrite(Operation[WriteParameters, Written]):
    """Write a file, making the folders above it.

    An existing file is replaced and keeps its permission bits; a new one gets 0666 less the umask. A folder or a
    symbolic link in the place is an error.
    """

    cacheable = True
    example: ClassVar = {"path": "docs/hello.txt", "content": "Hello\n"}

    def effects(self, parameters: WriteParameters) -> Effects:
        """Writes the file."""
        return Effects(writes=(_access(parameters.path),))

    def run(self, parameters: WriteParameters, context: Context) -> Written:
        """See the class."""
        expect(context.files, parameters.path, parameters.expect_sha256)
        return _written(context.files, parameters.path, parameters.encoded(), parameters.mode)


class AppendParameters(Content):
    """Parameters of file.append."""

    path: FilePath = Field(description="The file to append to; made when it is missing")
    newline: Literal["never", "if-missing"] = Field(
        "never", description="if-missing: end the file's last line first, when it has no newline at its end"
    )
    expect_sha256: ExpectedDigest = None


@operation("file.append")
class FileAppend(Operation[AppendParameters, Written]):
    """Append to a file, making it when it is missing.

    Exactly the given bytes are appended; with `newline: if-missing` a newline goes before them when the file has bytes
    and does not end with one.
    """

    example_files: ClassVar = {"log.txt": "the first line"}
    example: ClassVar = {"path": "log.txt", "content": "one more line\n", "newline": "if-missing"}

    def effects(self, parameters: AppendParameters) -> Effects:
        """Reads and writes the file."""
        access = (_access(parameters.path),)
        return Effects(reads=access, writes=access)

    def run(self, parameters: AppendParameters, context: Context) -> Written:
        """See the class."""
        path, files = parameters.path, context.files
        expect(files, path, parameters.expect_sha256)
        before = b"" if files.kind(path) is None else files.read(path)
        unfinished = parameters.newline == "if-missing" and before and not before.endswith(b"\n")
        return _written(files, path, before + (b"\n" if unfinished else b"") + parameters.encoded())


class Edit(BaseModel):
    """One replacement."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    find: str = Field(min_length=1, description="Text that occurs exactly once, with its blanks and line ends")
    replace: str = Field(description="What to put in its place")


class EditParameters(Parameters):
    """Parameters of file.edit."""

    path: FilePath = Field(description="The file to edit")
    edits: list[Edit] = Field(min_length=1, description="Replacements, each in what the ones before it left")
    expect_sha256: ExpectedDigest = None


@operation("file.edit")
class FileEdit(Operation[EditParameters, Written]):
    """Replace exact pieces of text in a file, all of them or none.

    Each `find` must occur exactly once in the text as the edits before it left it.
    """

    example_files: ClassVar = {"app.py": "DEBUG = True\n"}
    example: ClassVar = {"path": "app.py", "edits": [{"find": "DEBUG = True", "replace": "DEBUG = False"}]}

    def effects(self, parameters: EditParameters) -> Effects:
        """Reads and writes the file."""
        access = (_access(parameters.path),)
        return Effects(reads=access, writes=access)

    def run(self, parameters: EditParameters, context: Context) -> Written:
        """See the class."""
        path = parameters.path
        expect(context.files, path, parameters.expect_sha256)
        pairs = [(edit.find, edit.replace) for edit in parameters.edits]
        return _written(context.files, path, replace_all(path, context.files.read(path), pairs))


class PatchParameters(Parameters):
    """Parameters of file.patch."""

    patch: str = Field(description="A unified diff, as of `git diff` or `diff -u`, of any number of files")
    expect_sha256: Digest | dict[FilePath, Digest] | None = Field(
        None,
        description="SHA-256 that the file must have before, or, for several files, an object of them by path",
    )

    @field_validator("patch")
    @classmethod
    def _readable(cls, patch: str) -> str:
        try:
            patch_files.parse(patch)
        except OperationError as error:
            raise ValueError(f"{error.message} ({error.hint})" if error.hint else error.message) from error
        return patch

    def expected(self) -> dict[str, str]:
        """The digests by path."""
        if not isinstance(self.expect_sha256, str):
            return dict(self.expect_sha256 or {})
        paths = {each.old or each.path for each in patch_files.parse(self.patch)}
        if len(paths) > 1:
            raise OperationError("expect_sha256: the patch changes several files: give an object of digests by path")
        return {paths.pop(): self.expect_sha256}


class Patched(Outputs):
    """What a patch touched."""

    paths: list[str] = Field(description="The files that were written, deleted or moved away, sorted")


@operation("file.patch")
class FilePatch(Operation[PatchParameters, Patched]):
    """Apply a unified diff to any number of files, all of them or none.

    A hunk must fit exactly, without fuzz: at its line, or else at the only other place where its old lines are.
    `/dev/null` makes and deletes files; git's headers for modes, renames and copies, and its binary patches, count.
    """

    example: ClassVar = {"patch": "--- /dev/null\n+++ b/notes.txt\n@@ -0,0 +1 @@\n+First note\n"}

    def effects(self, parameters: PatchParameters) -> Effects:
        """Reads and writes the files that the patch names."""
        patches = patch_files.parse(str(parameters.patch))
        reads = sorted({each.old for each in patches if each.old})
        writes = sorted({path for each in patches for path in (each.new, each.frees) if path})
        return Effects(reads=tuple(map(Access, reads)), writes=tuple(map(Access, writes)))

    def run(self, parameters: PatchParameters, context: Context) -> Patched:
        """See the class."""
        for path, expected in parameters.expected().items():
            expect(context.files, path, expected)
        return Patched(paths=patch_files.apply(context.files, patch_files.parse(parameters.patch)))


class SetParameters(Parameters):
    """Parameters of file.set."""

    path: FilePath = Field(description="The JSON, TOML or YAML file")
    pointer: str = Field(
        pattern="^(/([^~]|~[01])*)?$",
        description="Where the value is, as a JSON pointer (RFC 6901), in all three formats: /servers/0/port",
    )
    value: Any = Field(description="The new value: any JSON value")
    format: Format | None = Field(None, strict=False, description="The file's format, if its name does not say it")
    expect_sha256: ExpectedDigest = None


@operation("file.set")
class FileSet(Operation[SetParameters, Written]):
    """Set one value in a JSON, TOML or YAML file; everything else stays as it is.

    Only the value's own characters change: comments, order and layout stay. A missing last name is added after its
    neighbours; `-` adds to an array's end. What cannot be done so is refused.
    """

    cacheable = True
    example_files: ClassVar = {"settings.json": '{"retries": 1}\n'}
    example: ClassVar = {"path": "settings.json", "pointer": "/retries", "value": 3}

    def effects(self, parameters: SetParameters) -> Effects:
        """Reads and writes the file."""
        access = (_access(parameters.path),)
        return Effects(reads=access, writes=access)

    def run(self, parameters: SetParameters, context: Context) -> Written:
        """See the class."""
        path = parameters.path
        expect(context.files, path, parameters.expect_sha256)
        form = parameters.format or format_of(path)
        text = _text(path, context.files.read(path))
        try:
            changed = set_value(text, form, parameters.pointer, parameters.value)
        except OperationError as error:
            raise OperationError(f"{path}: {error.message}", hint=error.hint) from error
        return _written(context.files, path, changed.encode())


class RenderParameters(Parameters):
    """Parameters of file.render."""

    template: FilePath = Field(description="The Jinja2 template, a file of the workspace")
    path: FilePath = Field(description="The file to write")
    values: dict[str, Any] = Field({}, description="What the template's names stand for")
    mode: Mode | None = Field(None, description="Permission bits; without, an existing file keeps its own")
    expect_sha256: ExpectedDigest = None


@operation("file.render")
class FileRender(Operation[RenderParameters, Written]):
    """Write a file from a Jinja2 template.

    The template runs in a sandbox and sees `values` alone; a name that is not there is an error. Includes are not
    available, and the newline at the template's end is kept.
    """

    cacheable = True
    example_files: ClassVar = {"greeting.txt.j2": "Hello, {{ name }}!\n"}
    example: ClassVar = {"template": "greeting.txt.j2", "path": "greeting.txt", "values": {"name": "Ada"}}

    def effects(self, parameters: RenderParameters) -> Effects:
        """Reads the template, writes the file."""
        return Effects(reads=(_access(parameters.template),), writes=(_access(parameters.path),))

    def run(self, parameters: RenderParameters, context: Context) -> Written:
        """See the class."""
        from quantum_orchestrator.tasks.templates import render

        def check() -> None:
            if context.cancel.cancelled:
                raise Interrupted

        expect(context.files, parameters.path, parameters.expect_sha256)
        source = _text(parameters.template, context.files.read(parameters.template))
        text = render(parameters.template, source, parameters.values, check=check)
        return _written(context.files, parameters.path, text.encode(), parameters.mode)


# Files and folders as they are.


class DeleteParameters(Parameters):
    """Parameters of file.delete."""

    path: FilePath = Field(description="The file, symbolic link or folder to delete")
    recursive: bool = Field(False, description="Delete a folder with everything in it")
    missing_ok: bool = Field(False, description="Succeed when there is nothing to delete")
    expect_sha256: ExpectedDigest = None


@operation("file.delete")
class FileDelete(Operation[DeleteParameters, Nothing]):
    """Delete a file, a symbolic link or a folder.

    A folder that is not empty needs `recursive`; links are deleted, never followed.
    """

    cacheable = True
    example_files: ClassVar = {"build/output.txt": ""}
    example: ClassVar = {"path": "build", "recursive": True, "missing_ok": True}

    def effects(self, parameters: DeleteParameters) -> Effects:
        """Writes the path and, since it may be a folder, everything below it."""
        return Effects(writes=(_access(parameters.path, subtree=True),))

    def run(self, parameters: DeleteParameters, context: Context) -> Nothing:
        """See the class."""
        path, files = parameters.path, context.files
        if files.kind(path) is None and parameters.missing_ok and parameters.expect_sha256 is None:
            return Nothing()
        expect(files, path, parameters.expect_sha256)
        file_trees.delete(files, path, recursive=parameters.recursive)
        return Nothing()


class TransferParameters(Parameters):
    """Parameters of file.move and of file.copy."""

    source: FilePath = Field(description="The file, symbolic link or folder")
    destination: FilePath = Field(description="Its new path (not the folder to put it into)")
    overwrite: bool = Field(
        False, description="Replace what is at the destination, if it is of the same kind; a folder is replaced whole"
    )
    expect_sha256: ExpectedDigest = Field(
        None, description="SHA-256 that the source file must have; the step fails if it is another"
    )


@operation("file.move")
class FileMove(Operation[TransferParameters, Nothing]):
    """Move or rename a file or a folder, making the folders above its new path.

    Modes and symbolic links are kept. An existing destination is an error without `overwrite`.
    """

    example_files: ClassVar = {"old_name.py": ""}
    example: ClassVar = {"source": "old_name.py", "destination": "package/new_name.py"}

    def effects(self, parameters: TransferParameters) -> Effects:
        """Reads the source; writes both. Either may be a folder."""
        source = _access(parameters.source, subtree=True)
        return Effects(reads=(source,), writes=(source, _access(parameters.destination, subtree=True)))

    def run(self, parameters: TransferParameters, context: Context) -> Nothing:
        """See the class."""
        source, files = parameters.source, context.files
        expect(files, source, parameters.expect_sha256)
        file_trees.copy(files, source, parameters.destination, overwrite=parameters.overwrite)
        file_trees.remove(files, source)
        return Nothing()


@operation("file.copy")
class FileCopy(Operation[TransferParameters, Nothing]):
    """Copy a file or a folder, making the folders above its new path.

    Modes and symbolic links are kept. An existing destination is an error without `overwrite`.
    """

    cacheable = True
    example_files: ClassVar = {"template/main.py": ""}
    example: ClassVar = {"source": "template", "destination": "service"}

    def effects(self, parameters: TransferParameters) -> Effects:
        """Reads the source and writes the destination. Either may be a folder."""
        return Effects(
            reads=(_access(parameters.source, subtree=True),),
            writes=(_access(parameters.destination, subtree=True),),
        )

    def run(self, parameters: TransferParameters, context: Context) -> Nothing:
        """See the class."""
        source, files = parameters.source, context.files
        expect(files, source, parameters.expect_sha256)
        file_trees.copy(files, source, parameters.destination, overwrite=parameters.overwrite)
        return Nothing()


class MkdirParameters(Parameters):
    """Parameters of file.mkdir."""

    path: FilePath = Field(description="The folder to make")


@operation("file.mkdir")
class FileMkdir(Operation[MkdirParameters, Nothing]):
    """Make a folder and the ones above it; an existing folder is fine."""

    cacheable = True
    example: ClassVar = {"path": "data/raw"}

    def effects(self, parameters: MkdirParameters) -> Effects:
        """Makes the folder, and those above it."""
        path = str(parameters.path)
        return Effects(makes=(*ancestors(path), path))

    def run(self, parameters: MkdirParameters, context: Context) -> Nothing:
        """See the class."""
        context.files.mkdir(parameters.path)
        return Nothing()


class ChmodParameters(Parameters):
    """Parameters of file.chmod."""

    path: FilePath = Field(description="The file or folder")
    mode: Mode = Field(description='Permission bits in octal, as in "0755"')
    expect_sha256: ExpectedDigest = None


@operation("file.chmod")
class FileChmod(Operation[ChmodParameters, Nothing]):
    """Set the permission bits of a file or folder; symbolic links are not followed."""

    cacheable = True
    example_files: ClassVar = {"tool.sh": "#!/bin/sh\n"}
    example: ClassVar = {"path": "tool.sh", "mode": "0755"}

    def effects(self, parameters: ChmodParameters) -> Effects:
        """Writes the path."""
        return Effects(writes=(_access(parameters.path),))

    def run(self, parameters: ChmodParameters, context: Context) -> Nothing:
        """See the class."""
        expect(context.files, parameters.path, parameters.expect_sha256)
        context.files.chmod(parameters.path, int(parameters.mode, 8))
        return Nothing()


# Looking.


class ReadParameters(Parameters):
    """Parameters of file.read."""

    path: FilePath = Field(description="The file to read")
    max_bytes: int = Field(LARGEST_READ, ge=0, description="A larger file is an error")


class ReadOutputs(Outputs):
    """A file's content."""

    content: str | None = Field(None, description="The content, if it is UTF-8 text")
    content_base64: str | None = Field(None, description="The content as base64, if it is not UTF-8 text")
    sha256: str = Field(description="SHA-256 of the content, in hex")
    bytes: int = Field(description="Size of the content")
    mode: str = Field(description="Permission bits in octal")


@operation("file.read")
class FileRead(Operation[ReadParameters, ReadOutputs]):
    """Read a file into the step's outputs.

    Bytes that are not UTF-8 come as `content_base64` instead of `content`.
    """

    cacheable = True
    example_files: ClassVar = {"VERSION": "1.0\n"}
    example: ClassVar = {"path": "VERSION"}

    def effects(self, parameters: ReadParameters) -> Effects:
        """Reads the file."""
        return Effects(reads=(_access(parameters.path),))

    def run(self, parameters: ReadParameters, context: Context) -> ReadOutputs:
        """See the class."""
        path, files = parameters.path, context.files
        entry = files.entry(path)
        if entry is None or entry.kind is not Kind.FILE:
            raise not_a_file(path, entry.kind if entry else None)
        if entry.size > parameters.max_bytes:
            hint = "raise max_bytes, or let a script work on the file"
            raise OperationError(f"{path}: has {entry.size} bytes, more than {parameters.max_bytes}", hint=hint)
        content = files.read(path)
        text = _text_or_none(content)
        return ReadOutputs(
            content=text,
            content_base64=base64.b64encode(content).decode() if text is None else None,
            sha256=entry.sha256,
            bytes=entry.size,
            mode=f"{entry.mode:04o}",
        )


def _text_or_none(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


class ListParameters(Parameters):
    """Parameters of file.list."""

    path: FolderPath = Field(ROOT, description="The folder to look in; . is the workspace")
    glob: str = Field(
        "**",
        min_length=1,
        description="Which files, by their path below `path`: * and ? stay within a name, [abc] is one of them, "
        "**/ is any number of folders, a final ** everything",
    )

    @field_validator("glob")
    @classmethod
    def _glob(cls, glob: str) -> str:
        file_trees.glob_parts(glob)
        return glob


class ListOutputs(Outputs):
    """Files."""

    paths: list[str] = Field(description="The files, relative to the workspace, sorted")


@operation("file.list")
class FileList(Operation[ListParameters, ListOutputs]):
    """List the files below a folder.

    Regular files alone, hidden ones included; symbolic links are neither listed nor followed, and `.git` is never
    looked into.
    """

    cacheable = True
    example_files: ClassVar = {"source/main.py": "", "readme.txt": ""}
    example: ClassVar = {"path": ".", "glob": "**/*.py"}

    def effects(self, parameters: ListParameters) -> Effects:
        """Reads which files there are below the folder."""
        return Effects(reads=(_access(parameters.path, subtree=True),))

    def run(self, parameters: ListParameters, context: Context) -> ListOutputs:
        """See the class."""
        return ListOutputs(paths=file_trees.matching(context.files, parameters.path, parameters.glob))

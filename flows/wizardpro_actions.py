"""Instruction blocks in the older format (WizardPro), and what their actions become: the translation, and nothing else.

A block is read as leniently as its writers are used to, and becomes an instruction set whose steps run one by one.
Each action becomes one or a few instructions with ids such as `3-run`: the action's number, counted from 1, and a word.
Their first tag is the action's type; the description of an action's last instruction says what it did, for the reply.

The invariant: nothing is judged before its turn. An action that cannot be translated becomes an `assert` that fails
with the reason, so that the actions before it run first, and what follows it is left out, as it is never reached.

`{{name}}` stands for a parameter of the block, which is known here and filled in, or for a variable that an earlier
action sets, which becomes a reference to that action's step. Everything else is plain text: `{{x}}` for an unknown x,
and `${{ … }}`, which is written so that it means itself. Base64 is filled before it is decoded, never after.

Pure: no disk, no clock, no Prefect. Running blocks and answering for them is `flows/wizardpro.py`'s matter.
"""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from quantum_orchestrator.blocks.errors import OperationError, PathRefused, QuantumError
from quantum_orchestrator.blocks.paths import check_path
from quantum_orchestrator.blocks.tree import ROOT
from quantum_orchestrator.flows import expressions
from quantum_orchestrator.flows.expressions import Scope
from quantum_orchestrator.flows.faults import nearest, shown
from quantum_orchestrator.flows.schema import build_parameters
from quantum_orchestrator.tasks import registry

FORMAT_TAG = "wizardpro"
STEP_TAG = "step_id:"
"""The set's tag that names its block; `depends_on` looks for it."""
SIGNOFF_TAG = "signoff:"
"""The tag of an approval that names the sign-off it waits for."""
SCRIPT_TIMEOUT = 300.0
"""Seconds that a script may take unless its action says otherwise."""
ANY_EXIT = list(range(-64, 256))
"""A script's exit code is judged in a step of its own, so that the reply has the output of one that failed."""

Json = dict[str, Any]


class ActionRefused(OperationError):
    """An action cannot be translated; it fails with this message when its turn comes."""


# The format.


class BlockParameter(BaseModel):
    """A value that the block asks for."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    name: str
    prompt: str = ""
    default: str | None = None


class Block(BaseModel):
    """An instruction block. Unknown keys are passed over and null is the same as nothing, as it has always been."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    step_id: str = "block"
    description: str = ""
    depends_on: list[str] = []
    parameters: list[BlockParameter] = []
    actions: list[Any]
    """Judged one by one, each at its turn."""

    @model_validator(mode="before")
    @classmethod
    def _lenient(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        given = {key: each for key, each in value.items() if each is not None}
        if isinstance(given.get("depends_on"), str):
            given["depends_on"] = [given["depends_on"]]
        return given


def looks_old(value: object) -> bool:
    """Whether a JSON value is meant as a block of the older format."""
    return isinstance(value, Mapping) and "actions" in value and "instructions" not in value


def read_block(value: object) -> Block:
    """The block in a JSON value. Raises ActionRefused with what is wrong around its actions."""
    try:
        return Block.model_validate(value)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, each['loc'])) or 'block'}: {each['msg']}" for each in error.errors())
        raise ActionRefused("the block cannot be read: " + "; ".join(faults)) from error


# Texts with names in them.

_NAME = re.compile(r"(?<!\$)\{\{([^{}]+)\}\}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A variable's place in a text, and the expression that gives its value (always a text) when the block runs."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with every name in it resolved."""

    parts: tuple[str | Reference, ...]

    @property
    def is_known(self) -> bool:
        """Whether it holds no variable."""
        return all(isinstance(part, str) for part in self.parts)

    @property
    def shown(self) -> str:
        """For people: variables stay as the author wrote them."""
        return "".join(part if isinstance(part, str) else f"{{{{{part.name}}}}}" for part in self.parts)

    @property
    def expression(self) -> str:
        """As an instruction set writes it: literal `${{` escaped, variables as expressions."""
        written = literal = ""
        for part in self.parts:
            if isinstance(part, str):
                literal += part
            else:
                written += _literal_before_expression(literal) + f"${{{{ {part.expression} }}}}"
                literal = ""
        return written + escaped(literal)


def escaped(text: str) -> str:
    """A text that means itself in an instruction set."""
    return text.replace("${{", "$${{")


def _literal_before_expression(text: str) -> str:
    """A `$` directly before an expression would be read as its escape, so it becomes an expression of its own."""
    plain = text.rstrip("$")
    dollars = text[len(plain) :]
    return escaped(plain) + (f"${{{{ '{dollars}' }}}}" if dollars else "")


@dataclass(slots=True)
class Names:
    """What `{{name}}` stands for: values of parameters, expressions of variables. The variable, set later, wins."""

    values: Mapping[str, str]
    variables: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> Filled:
        """Resolve the names in a text, once: what comes in with a value is not looked at again."""
        return Filled(tuple(self._parts(text)))

    def _parts(self, text: str) -> Iterator[str | Reference]:
        position = 0
        for match in _NAME.finditer(text):
            name = match[1]
            if name in self.variables or name in self.values:
                yield text[position : match.start()]
                yield Reference(name, self.variables[name]) if name in self.variables else self.values[name]
                position = match.end()
        yield text[position:]


# Paths.

_MARK = re.compile("\ue000([0-9]+)\ue000")


def normalized(path: str, roots: Sequence[PurePosixPath]) -> str:
    """A path as an instruction set spells it; what cannot be spelt so comes out to be refused.

    `./x`, `a//b` and backslashes are straightened, and an absolute path in the workspace, which may have several names
    (`roots`), is made relative to it. `..` is left to be judged.
    """
    straight = path.replace("\\", "/")
    if straight.startswith("/"):
        inside = [PurePosixPath(straight).relative_to(root) for root in roots if _is_in(straight, root)]
        if not inside:
            return path
        straight = str(inside[0])
    names = [name for name in straight.split("/") if name not in ("", ROOT)]
    return "/".join(names) or (ROOT if path else "")


def _is_in(path: str, root: PurePosixPath) -> bool:
    return PurePosixPath(path).is_relative_to(root)


def filled_path(path: Filled, roots: Sequence[PurePosixPath], *, folder: bool) -> Filled:
    """The path normalised and judged, variables taken for plain names. Raises ActionRefused."""
    marked = "".join(part if isinstance(part, str) else f"\ue000{at}\ue000" for at, part in enumerate(path.parts))
    straight = normalized(marked, roots)
    try:
        check_path(straight, folder=folder)
    except PathRefused as error:
        raise ActionRefused(_MARK.sub("{{…}}", said(error))) from error
    if path.is_known:
        return Filled((straight,))
    pieces = _MARK.split(straight)  # literal, number, literal, …
    return Filled(tuple(path.parts[int(each)] if odd % 2 else each for odd, each in enumerate(pieces)))


def said(error: QuantumError) -> str:
    """An error in one text."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


# One action.


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one action, with the names in them filled."""

    raw: Mapping[str, Any]
    number: int
    step_id: str
    names: Names
    roots: Sequence[PurePosixPath]

    @property
    def type(self) -> str:
        """The action's type."""
        return str(self.raw["type"])

    def text(self, name: str, default: str | None = None) -> Filled:
        """A text. Raises ActionRefused when there is none."""
        value = self.raw.get(name)
        if value is None and default is not None:
            value = default
        if value is None:
            raise ActionRefused(f"{self.type} needs the field {name!r}")
        return self._text(name, value)

    def _text(self, name: str, value: object) -> Filled:
        if not isinstance(value, str | int | float):
            raise ActionRefused(f"{self.type}: {name!r} is not a text")
        return self.names.fill(str(value))

    def texts(self, name: str, default: Sequence[str]) -> list[Filled]:
        """A list of texts; a single one will do, and numbers are written out."""
        value = self.raw.get(name)
        values = list(default) if value is None else value if isinstance(value, list) else [value]
        return [self.names.fill(str(each)) for each in values]

    def path(self, name: str, *, folder: bool = False) -> Filled:
        """A path in the workspace. Raises ActionRefused for one that is spelt wrong or leads out of it."""
        return filled_path(self.text(name), self.roots, folder=folder)

    def flag(self, name: str, *, default: bool) -> bool:
        """A truth value. Raises ActionRefused for anything else."""
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ActionRefused(f"{self.type}: {name!r} is true or false, not {shown(str(value))}")
        return value

    def seconds(self, name: str, default: float) -> float:
        """A time span. Raises ActionRefused for one that is none."""
        value = self.raw.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 366 * 86_400:
            raise ActionRefused(f"{self.type}: {name!r} is a number of seconds, not {shown(str(value))}")
        return float(value)

    def mapping(self, name: str) -> Json:
        """An object, as it is. Raises ActionRefused for anything else."""
        value = self.raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ActionRefused(f"{self.type}: {name!r} is not an object")
        return {str(key): escaped(each) if isinstance(each, str) else each for key, each in value.items()}

    def content(self) -> dict[str, str]:
        """`content` or `content_base64`, whichever is there; the bytes count where both are. Raises ActionRefused."""
        if self.raw.get("content_base64") is None:
            if self.raw.get("content") is None:
                raise ActionRefused(f"{self.type} needs the field 'content' or 'content_base64'")
            return {"content": self.text("content").expression}
        encoded = self.text("content_base64")
        if encoded.is_known:
            _check_base64(encoded.shown)
        return {"content_base64": encoded.expression}

    def step(self, word: str) -> str:
        """The id of one of the action's steps."""
        return f"{self.number}-{word}"

    def outputs(self, word: str) -> str:
        """The outputs of one of the action's steps, in an expression."""
        return f"steps.{self.step(word)}.outputs"


def _check_base64(text: str) -> None:
    try:
        base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ActionRefused(f"content_base64 is not base64: {error}") from error


@dataclass(frozen=True, slots=True)
class Draft:
    """An instruction of an action: the word of its id, its operation, its parameters, and other keys."""

    word: str
    op: str
    parameters: Json
    keys: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Translation:
    """What an action becomes, the sentence that says what it did, and the variable that it sets."""

    drafts: Sequence[Draft]
    done: str
    variable: tuple[str, str] | None = None
    """Name and expression."""


def _echo(action: Fields) -> Translation:
    message = action.text("message")
    return Translation([Draft("echo", "echo", {"message": message.expression})], message.shown)


def _write(action: Fields) -> Translation:
    path = action.path("path")
    draft = Draft("write", "file.write", {"path": path.expression, **action.content()})
    return Translation([draft], f"File '{path.shown}' written.")


def _append(action: Fields) -> Translation:
    path = action.path("path")
    newline = "if-missing" if action.flag("add_newline_if_missing", default=True) else "never"
    draft = Draft("append", "file.append", {"path": path.expression, **action.content(), "newline": newline})
    return Translation([draft], f"File '{path.shown}' appended to.")


def _patch(action: Fields) -> Translation:
    path, given = action.path("path"), action.text("patch_content")
    patch = _addressed(given.shown, path.shown) if given.is_known and path.is_known else given
    question = Filled((f"Apply this patch to '{path.shown}'?\n\n", *patch.parts))
    signoff = f"{action.step_id}/{action.number}"
    drafts = [
        _approval("approval", question, signoff),
        Draft("patch", "file.patch", {"patch": patch.expression}),
    ]
    return Translation(drafts, f"Patch applied to '{path.shown}'.")


def _addressed(patch: str, path: str) -> Filled:
    """The patch of one file, made to be one of `path`: the action says which file is meant, whatever the headers say.

    Raises ActionRefused for the patch of several files, and for text that is no patch.
    """
    from quantum_orchestrator.tasks import patch_files

    head, mark, hunks = _before_hunks(patch)
    if not mark:
        raise ActionRefused("patch_content has no hunk: a unified diff has lines that begin with '@@ '")
    old = "/dev/null" if re.search(r"^--- /dev/null", head, re.MULTILINE) else _git_name(f"a/{path}")
    new = "/dev/null" if re.search(r"^\+\+\+ /dev/null", head, re.MULTILINE) else _git_name(f"b/{path}")
    text = f"--- {old}\n+++ {new}\n{mark}{hunks}"
    try:
        files = patch_files.parse(text)
    except OperationError as error:
        raise ActionRefused(said(error)) from error
    if len(files) > 1:
        raise ActionRefused(f"patch_content changes several files, and APPLY_PATCH only {path!r}")
    return Filled((text,))


def _before_hunks(patch: str) -> tuple[str, str, str]:
    match = re.search("^@@ ", patch, re.MULTILINE)
    return (patch[: match.start()], match[0], patch[match.end() :]) if match else (patch, "", "")


def _git_name(path: str) -> str:
    """Quoted where a quote at its beginning would be read as git's own."""
    return '"' + path.replace('"', '\\"') + '"' if '"' in path else path


# Prints whether there is a script at $1: 'absent', 'ready', or the mode that lets whoever may read it also run it.
_LOOK = """\
if [ ! -f "$1" ]; then printf absent
elif [ -x "$1" ]; then printf ready
else mode=$(stat -L -c %a -- "$1") && printf %04o $((0$mode | (0$mode & 0444) >> 2))
fi"""


def _run_script(action: Fields) -> Translation:
    given, path = action.text("script_path"), action.path("script_path")
    folder = posixpath.dirname(path.expression) if action.text("cwd", "script_dir").shown == "script_dir" else ""
    local = "./" + path.expression[len(folder) + 1 if folder else 0 :]
    found = f"{action.outputs('look')}.stdout"
    look = _test("look", path, _LOOK)
    if "/" in given.shown.replace("\\", "/"):
        message = escaped(f"no script '{path.shown}' in the workspace")
        checks = [look, Draft("found", "assert", {"that": f"${{{{ {found} != 'absent' }}}}", "message": message})]
        program = local
    else:  # a bare name: the script of that name, or else the program
        checks = [look]
        prefix = f"${{{{ '' if {found} == 'absent' else './' }}}}"
        program = prefix + path.expression
    executable = Draft(
        "executable",
        "file.chmod",
        {"path": path.expression, "mode": f"${{{{ {found} }}}}"},
        {"when": f"${{{{ {found} not in ['absent', 'ready'] }}}}"},
    )
    argv = [program, *(each.expression for each in action.texts("args", []))]
    run = {"argv": argv, "cwd": folder or ROOT, "expect_exit": ANY_EXIT}
    timeout = action.seconds("timeout", SCRIPT_TIMEOUT)
    exit_code = f"{action.outputs('run')}.exit_code"
    message = escaped(f"'{path.shown}' exited with ") + f"${{{{ {exit_code} }}}}"
    ended = Draft("exit", "assert", {"that": f"${{{{ {exit_code} == 0 }}}}", "message": message})
    return Translation(
        [*checks, executable, Draft("run", "script.run", run, {"timeout": timeout}), ended], f"'{path.shown}' ran."
    )


def _test(word: str, path: Filled, program: str) -> Draft:
    """A look at a path by the shell, which changes nothing."""
    parameters = {"argv": ["sh", "-c", program, "sh", path.expression], "expect_exit": [0, 1]}
    reads = {"reads": [path.shown]} if path.is_known else {}
    return Draft(word, "script.run", parameters, {**reads, "writes": []})


def _formatter(action: Fields) -> Translation:
    path, formatter = action.path("path", folder=True), action.text("formatter", "black").shown
    if formatter not in ("black", "ruff"):
        raise ActionRefused(f"unknown formatter {shown(formatter)}; known are 'black' and 'ruff'")
    by = "ruff format" if formatter == "ruff" else "ruff format, which formats as black does"
    draft = Draft("format", "quality.format", {"paths": [path.expression]})
    return Translation([draft], f"'{path.shown}' formatted by {by}.")


def _lint_format(action: Fields) -> Translation:
    path = action.path("path", folder=True)
    fix, wanted = action.flag("lint_fix", default=True), action.flag("format", default=True)
    paths: Json = {"paths": [path.expression]}
    lint = Draft("lint", "quality.lint", {**paths, "fix": fix, "allow_findings": True})
    if not wanted:
        return Translation([lint], f"'{path.shown}' linted")
    # Again at the end: a fix takes out lines and leaves the blank ones around them.
    drafts = [Draft("format", "quality.format", paths), lint, Draft("tidy", "quality.format", paths)]
    return Translation(drafts if fix else drafts[:2], f"'{path.shown}' formatted and linted")


def _git_add(action: Fields) -> Translation:
    paths = [filled_path(each, action.roots, folder=True) for each in action.texts("paths", [ROOT])]
    draft = Draft("add", "git.add", {"paths": [each.expression for each in paths], "missing": "skip"})
    return Translation([draft], "Added to the index.")


def _git_commit(action: Fields) -> Translation:
    parameters = {
        "message": action.text("message").expression,
        "allow_empty": action.flag("allow_empty", default=False),
        "if_empty": "skip",
    }
    return Translation([Draft("commit", "git.commit", parameters)], "Committed.")


def _call_model(action: Fields) -> Translation:
    """A question to a model. Where the action names a server, it is one that speaks Ollama's own protocol."""
    parameters: Json = {"prompt": action.text("prompt").expression}
    if action.raw.get("model") is not None:
        parameters["model"] = action.text("model").expression
    if action.raw.get("api_endpoint_base") is not None:
        base = action.text("api_endpoint_base").expression
        parameters |= {"protocol": "ollama", "base_url": base, "options": action.mapping("options")}
    done = "The model has answered."
    if action.raw.get("output_path") is not None:
        path = action.path("output_path")
        parameters["path"] = path.expression
        done = f"The model's answer is in '{path.shown}'."
    return Translation([Draft("generate", "llm.generate", parameters)], done)


def _diagnose(action: Fields) -> Translation:
    """The parts of what failed, as one text: what it wrote to standard error counts first."""
    said = [action.text(name, "") for name in ("stderr", "stdout")]
    parts = [part for text in said if text.parts not in ((), ("",)) for part in ("\n", *text.parts)][1:]
    context = action.raw.get("context")
    about = action.names.fill(context if isinstance(context, str) else json.dumps(context)) if context else Filled(())
    failure = Filled(tuple(parts)) if parts else Filled(("it said nothing",))
    parameters = {
        "failure": failure.expression,
        "command": action.text("failed_command", "").expression,
        "about": about.expression,
    }
    return Translation([Draft("diagnose", "llm.diagnose", parameters)], "Diagnosed.")


def _approval(word: str, question: Filled, signoff: str) -> Draft:
    return Draft(word, "approval", {"message": question.expression}, {"tags": [SIGNOFF_TAG + signoff]})


def _request_signoff(action: Fields) -> Translation:
    signoff = signoff_id(action)
    return Translation([_approval("signoff", action.text("message", ""), signoff)], f"Sign-off '{signoff}' given.")


def signoff_id(action: Fields) -> str:
    """The id of a sign-off; one is made from the block's where none is given."""
    return action.text("signoff_id", f"{action.step_id}/{action.number}").shown


def _respond_to_signoff(action: Fields) -> Translation:
    raise ActionRefused(
        f"{action.type} must come before whatever works on the workspace, as the run that waits holds the workspace"
    )


def _read(action: Fields) -> Translation:
    path, variable = action.path("path"), _variable(action)
    content = f"{action.outputs('read')}.content"
    message = escaped(f"{path.shown}: is not UTF-8 text, so that no variable can hold it")
    is_text = Draft("text", "assert", {"that": f"${{{{ {content} is not none }}}}", "message": message})
    drafts = [Draft("read", "file.read", {"path": path.expression}), is_text]
    return Translation(drafts, f"File '{path.shown}' read.", (variable, content))


def _list(action: Fields) -> Translation:
    path, variable = action.path("path", folder=True), _variable(action)
    draft = Draft("list", "file.list", {"path": path.expression})
    one_a_line = f"{action.outputs('list')}.paths | join('\\n')"
    return Translation([draft], f"Folder '{path.shown}' listed.", (variable, one_a_line))


def _exists(action: Fields) -> Translation:
    path, variable = action.path("path", folder=True), _variable(action)
    answer = f"'true' if {action.outputs('test')}.exit_code == 0 else 'false'"
    return Translation([_test("test", path, 'test -e "$1"')], f"Looked for '{path.shown}'.", (variable, answer))


def _variable(action: Fields) -> str:
    name = action.text("var").shown
    if not re.fullmatch(r"[^{}]+", name):
        raise ActionRefused(f"{action.type}: {shown(name)} cannot be the name of a variable")
    return name


TRANSLATORS: Mapping[str, Callable[[Fields], Translation]] = {
    "ECHO": _echo,
    "CREATE_OR_REPLACE_FILE": _write,
    "APPEND_TO_FILE": _append,
    "APPLY_PATCH": _patch,
    "RUN_SCRIPT": _run_script,
    "RUN_FORMATTER": _formatter,
    "LINT_FORMAT_FILE": _lint_format,
    "GIT_ADD": _git_add,
    "GIT_COMMIT": _git_commit,
    "CALL_LOCAL_LLM": _call_model,
    "DIAGNOSE_ERROR": _diagnose,
    "REQUEST_SIGNOFF": _request_signoff,
    "RESPOND_TO_SIGNOFF": _respond_to_signoff,
    "READ_FILE_TO_VAR": _read,
    "LIST_DIRECTORY_TO_VAR": _list,
    "CHECK_PATH_EXISTS": _exists,
}


# The block.


def translate(
    block: Block,
    values: Mapping[str, str],
    *,
    roots: Sequence[PurePosixPath] = (),
    answered: Mapping[int, str] | None = None,
) -> Json:
    """The instruction set of a block, as a document.

    `values` are those of the block's parameters. `roots` are the absolute names of the workspace. `answered` holds, by
    the number of a RESPOND_TO_SIGNOFF that has been carried out already, what came of it.
    """
    names = Names(values)
    description = names.fill(block.description).shown
    instructions: list[Json] = []
    for number, raw in enumerate(block.actions, 1):
        try:
            action = fields_of(raw, number, block.step_id, names, roots)
            translation = _answered(answered or {}, number) or TRANSLATORS[action.type](action)
            made = _instructions(action, translation)
        except ActionRefused as refused:
            instructions.append(_failing(raw, number, refused))
            break
        instructions += made
        if translation.variable is not None:
            name, expression = translation.variable
            names.variables[name] = expression
    return {
        "version": 1,
        "name": set_name(block.step_id),
        "description": description,
        "order": "sequential",
        "tags": [FORMAT_TAG, STEP_TAG + block.step_id],
        "instructions": instructions,
    }


def fields_of(raw: object, number: int, step_id: str, names: Names, roots: Sequence[PurePosixPath]) -> Fields:
    """An action's fields. Raises ActionRefused for one that is no action, or of an unknown type."""
    if not isinstance(raw, Mapping):
        raise ActionRefused("an action is an object with a 'type'")
    if not isinstance(raw.get("type"), str):
        raise ActionRefused("an action needs a 'type'", hint=f"known are {', '.join(TRANSLATORS)}")
    if raw["type"] not in TRANSLATORS:
        raise ActionRefused(f"unknown action type {shown(raw['type'])}", hint=nearest(raw["type"], TRANSLATORS))
    return Fields(raw, number, step_id, names, roots)


def action_type(raw: object) -> str:
    """What the reply calls an action, also one that is none."""
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    return kind if isinstance(kind, str) and kind else "UNKNOWN"


def _answered(answered: Mapping[int, str], number: int) -> Translation | None:
    if number not in answered:
        return None
    return Translation([Draft("answered", "echo", {"message": escaped(answered[number])})], answered[number])


def _instructions(action: Fields, translation: Translation) -> list[Json]:
    for draft in translation.drafts:
        _check(draft)
    return [_instruction(action.number, action.type, translation.done, draft) for draft in translation.drafts]


def _instruction(number: int, kind: str, done: str, draft: Draft) -> Json:
    keys = {key: value for key, value in draft.keys.items() if key != "tags"}
    tags = [kind, *draft.keys.get("tags", [])]
    return {
        "id": f"{number}-{draft.word}",
        "op": draft.op,
        "with": draft.parameters,
        "description": done,
        "tags": tags,
        **keys,
    }


def _check(draft: Draft) -> None:
    """Judge what is known of an instruction's parameters here, as the planner would refuse the whole set for it."""
    if expressions.references(draft.parameters).steps:
        return
    try:
        build_parameters(registry.get(draft.op), expressions.evaluate(draft.parameters, Scope()))
    except OperationError as error:
        raise ActionRefused(error.message) from error


def _failing(raw: object, number: int, refused: ActionRefused) -> Json:
    draft = Draft("refused", "assert", {"that": False, "message": escaped(said(refused))})
    return _instruction(number, action_type(raw), said(refused), draft)


def set_name(step_id: str) -> str:
    """A set's name for a block; the exact id is in the set's tags."""
    readable = re.sub(r"[/%&<>\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", "-", step_id)
    return readable.strip()[:100] or "block"

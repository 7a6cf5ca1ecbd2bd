"""`llm.analyze`: findings with their places, and what a change touches and is likely to break.

Two parts, told apart by `source`: what is read off the workspace (`tasks/impact.py`), which is the same every time and
is had without a model, and what a model adds. A model's finding stands only where it names a file that it was shown and
a line that is there; everything else goes back to it. Nothing is changed, whatever is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import Field

from quantum_orchestrator.blocks.errors import BadAnswer
from quantum_orchestrator.blocks.model import Answer, Question, Tool
from quantum_orchestrator.blocks.tree import Kind
from quantum_orchestrator.tasks.affected import changed_files
from quantum_orchestrator.tasks.git_common import repository_of
from quantum_orchestrator.tasks.impact import Found, Touched, faults_in, likely_to_break, tests_among, touched_by
from quantum_orchestrator.tasks.model_common import (
    SYSTEM,
    ModelOutputs,
    ModelParameters,
    models_of,
    outputs_of,
    shown_files,
)
from quantum_orchestrator.tasks.operation import (
    EVERYTHING,
    Context,
    Effects,
    FilePath,
    FolderPath,
    Operation,
    Outputs,
    Reach,
    operation,
)
from quantum_orchestrator.tasks.scratch import python_files

MOST_SHOWN = 30
"""Files that a model is shown."""
MOST_FINDINGS = 50


class AnalyzeParameters(ModelParameters):
    """What to look at."""

    paths: list[FolderPath] = Field([], description="Files and folders to look for faults in, beside what was changed.")
    changed: list[FilePath] | None = Field(
        None, description="The files that were changed; without it, those that differ from `since`."
    )
    since: str = Field("HEAD", description="The revision that the workspace is compared with, if it is a repository.")
    question: str = Field("", description="What to look for in particular, in words; only a model heeds it.")


class Finding(Outputs):
    """Something that is wrong, or may be."""

    path: str = Field(description="The file.")
    line: int = Field(description="The line, counted from 1.")
    severity: str = Field(description="error: it cannot work; warning: it is doubtful; info: worth knowing.")
    confidence: float = Field(description="How sure this is, 0 to 1.")
    message: str = Field(description="What is wrong.")
    source: str = Field(description="`model`, or the name of ruff's rule.")


class TouchedFile(Outputs):
    """A file that the change reaches."""

    path: str = Field(description="The file.")
    confidence: float = Field(description="How sure this is, 0 to 1.")
    why: str = Field(description="By which way.")


class AnalyzeOutputs(ModelOutputs):
    """What was found."""

    changed: list[str] = Field(description="The files that were taken as changed.")
    findings: list[Finding] = Field(description="What is wrong, by place.")
    touched: list[TouchedFile] = Field(description="The files that the change reaches, the surest first.")
    tests: list[str] = Field(description="The test modules to run, the surest first.")
    likely_to_break: list[TouchedFile] = Field(description="The files that are likely to break, the surest first.")
    summary: str = Field(description="All of it in a sentence or two.")


TOOL = Tool(
    "report_findings",
    "Report what is wrong in the files that were shown, and which files the change is likely to break.",
    {
        "type": "object",
        "additionalProperties": False,
        "required": ["summary", "findings", "likely_to_break"],
        "properties": {
            "summary": {"type": "string", "description": "What matters most, in a sentence or two."},
            "findings": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["path", "line", "severity", "confidence", "message"],
                    "properties": {
                        "path": {"type": "string", "description": "A file that was shown."},
                        "line": {"type": "integer", "description": "The line in it, counted from 1."},
                        "severity": {"enum": ["error", "warning", "info"]},
                        "confidence": {"type": "number", "description": "How sure this is, 0 to 1."},
                        "message": {"type": "string", "description": "What is wrong."},
                    },
                },
            },
            "likely_to_break": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["path", "confidence", "why"],
                    "properties": {
                        "path": {"type": "string", "description": "A file of the workspace."},
                        "confidence": {"type": "number", "description": "How sure this is, 0 to 1."},
                        "why": {"type": "string", "description": "What breaks."},
                    },
                },
            },
        },
    },
)


@operation("llm.analyze")
class Analyze(Operation[AnalyzeParameters, AnalyzeOutputs]):
    """Find what is wrong in files, which tests and files a change touches, and what is likely to break.

    The import graph, git's history and complexity tell most of it without a model, the same every time; a model adds
    findings, each of which names a line that is there. Nothing is changed.
    """

    relies_on = ("ruff",)
    example_files: ClassVar[Mapping[str, str]] = {
        "prices.py": "def total(prices):\n    return sum(prices) * rate\n",
        "shop.py": "from prices import total\n",
        "test_shop.py": "import shop\n",
    }
    example: ClassVar[Mapping[str, Any]] = {"changed": ["prices.py"], "provider": "offline"}

    def effects(self, parameters: AnalyzeParameters) -> Effects:
        """Reads everything: whatever imports a changed file."""
        return Effects(reads=(EVERYTHING,), predictable=False, asks_model=True)

    def reach(self, parameters: AnalyzeParameters) -> Reach:
        """Whoever answers."""
        return parameters.reach()

    def run(self, parameters: AnalyzeParameters, context: Context) -> AnalyzeOutputs:
        """Look, and ask. Raises ModelError."""
        changed = _changed(parameters, context)
        below = [file for path in parameters.paths for file in python_files(context.files, path)]
        looked_at = list(dict.fromkeys([*changed, *below]))
        touched = touched_by(context, changed)
        faults = faults_in(context, looked_at)
        risks = likely_to_break(context, changed, touched, faults)
        read_off = Analysis(context, looked_at, touched, faults, risks)
        answer = models_of(parameters, context).converse(read_off.question(parameters), read_off.accepted)
        said = answer.payload or {}
        more = [Finding(**each, source="model") for each in said["findings"]]
        found = [*map(_finding, faults), *more]
        return AnalyzeOutputs(
            changed=changed,
            findings=sorted(found, key=lambda each: (each.path, each.line, each.source)),
            touched=[TouchedFile(**asdict(each)) for each in touched],
            tests=tests_among(changed, touched),
            likely_to_break=_merged(risks, said["likely_to_break"]),
            summary=str(said["summary"]),
            **outputs_of(answer),
        )


def _changed(parameters: AnalyzeParameters, context: Context) -> list[str]:
    if parameters.changed is not None:
        return list(parameters.changed)
    repository = repository_of(context)
    if not repository.exists() or repository.commands(cancel=context.cancel).find(parameters.since) is None:
        return []
    return changed_files(context, parameters.since)


class Analysis:
    """What was read off the workspace, as a question to a model, and what its answer must keep to."""

    def __init__(
        self,
        context: Context,
        looked_at: Sequence[str],
        touched: Sequence[Touched],
        faults: Sequence[Found],
        risks: Sequence[Touched],
    ) -> None:
        self.files = context.files
        self.looked_at = [path for path in looked_at if self.files.kind(path) is Kind.FILE]
        self.shown = self.looked_at[:MOST_SHOWN]
        self.touched, self.faults, self.risks = touched, faults, risks

    def question(self, parameters: AnalyzeParameters) -> Question:
        """What a model is asked; the rules answer with what is known already."""
        known = [f"{each.path}:{each.line}: {each.rule} {each.message}" for each in self.faults]
        reached = [f"{each.path}: {each.why}" for each in self.touched]
        parts = [
            *shown_files(self.files, self.shown),
            "Known already, not to be reported again:\n" + ("\n".join(known) or "nothing"),
            "Files that the change reaches:\n" + ("\n".join(reached) or "none"),
            parameters.question or "Which faults do these files hold, and what is the change likely to break?",
        ]
        return Question.of(
            "\n\n".join(parts),
            system=f"{SYSTEM}\n\nYou review code. Report only what you can point at.",
            tool=TOOL,
            max_tokens=parameters.max_tokens,
            rules=self._by_rule,
        )

    def _by_rule(self) -> dict[str, Any]:
        errors = sum(each.severity == "error" for each in self.faults)
        counted = [
            f"{len(self.faults)} findings, {errors} of them errors",
            f"{len(self.touched)} files are touched",
            f"{len(self.risks)} are likely to break",
        ]
        return {"summary": f"By rule: {'; '.join(counted)}.", "findings": [], "likely_to_break": []}

    def accepted(self, answer: Answer) -> Answer:
        """The answer, if all of it is about what there is. Raises BadAnswer."""
        said = answer.payload or {}
        if len(said["findings"]) > MOST_FINDINGS:
            raise BadAnswer(f"there are more than {MOST_FINDINGS} findings; report the ones that matter")
        wrong = [problem for each in said["findings"] if (problem := self._misplaced(each))]
        wrong += [
            f"there is no file {each['path']!r}" for each in said["likely_to_break"] if not self._is_file(each["path"])
        ]
        wrong += [
            f"confidence {each['confidence']} is not between 0 and 1"
            for each in (*said["findings"], *said["likely_to_break"])
            if not 0 <= each["confidence"] <= 1
        ]
        if wrong:
            raise BadAnswer("; ".join(wrong[:10]))
        return answer

    def _misplaced(self, finding: Mapping[str, Any]) -> str:
        path, line = finding["path"], finding["line"]
        if path not in self.shown:
            return f"{path!r} is no file that was shown"
        lines = max(1, len(self.files.read(path).splitlines()))
        return "" if 1 <= line <= lines else f"{path} has {lines} lines, and no line {line}"

    def _is_file(self, path: str) -> bool:
        return path in self.shown or path in {each.path for each in self.touched}


def _finding(found: Found) -> Finding:
    return Finding(
        path=found.path,
        line=found.line,
        severity=found.severity,
        confidence=found.confidence,
        message=found.message,
        source=found.rule,
    )


def _merged(risks: Sequence[Touched], said: Sequence[Mapping[str, Any]]) -> list[TouchedFile]:
    """Both, each file once, by what is surest of it."""
    surest: dict[str, TouchedFile] = {}
    for each in [*(TouchedFile(**asdict(each)) for each in risks), *(TouchedFile(**each) for each in said)]:
        known = surest.get(each.path)
        if known is None or each.confidence > known.confidence:
            surest[each.path] = each
    return sorted(surest.values(), key=lambda each: (-each.confidence, each.path))

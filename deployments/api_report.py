"""A run as a page in Markdown: for the comment of a pull request, a chat, an e-mail. Made from the run's document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantum_orchestrator.deployments.screen import changed_files, human_time

LONGEST_MESSAGE = 300


def page(document: Mapping[str, Any]) -> str:
    """The page."""
    status = str(document["status"]).replace("_", " ")
    lines = [f"# {_text(document['set'] or 'run')}: {status}", ""]
    took = f" in {human_time(document['duration_s'])}" if document.get("duration_s") is not None else ""
    lines += [f"Run `{document['run_id']}`{took}, {changed_files(document['diff'])}."]
    if document.get("error"):
        lines += ["", f"**{_text(document['error']['message'])}**"]
    if document["steps"]:
        lines += ["", "| step | operation | status | took | |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(each) for each in document["steps"]]
    if document.get("ui_url"):
        lines += ["", f"[In Prefect]({document['ui_url']})"]
    return "\n".join(lines) + "\n"


def _row(step: Mapping[str, Any]) -> str:
    said = "" if step["error"] is None else _text(step["error"]["message"])
    status = step["status"].replace("_", " ")
    return f"| {_text(step['id'])} | {step['op']} | {status} | {human_time(step['duration_s'])} | {said} |"


def _text(text: str) -> str:
    """In one cell, and without what Markdown or HTML would make of it."""
    short = text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"
    shown = short.replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for each in "|`*_[]":
        shown = shown.replace(each, f"\\{each}")
    return shown.replace("\n", " ")

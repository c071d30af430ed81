"""The result in GitHub Actions: one annotation, and a summary of the step."""

from __future__ import annotations

import os
from pathlib import Path

from antibackdoor.errors import StorageError
from antibackdoor.formats.escaping import command_data, command_property, markdown
from antibackdoor.formats.findings import Findings

__all__ = ["append_summary", "render", "summary"]

SUMMARY = "GITHUB_STEP_SUMMARY"
_LEVELS = {"poisoned": "error", "no sign of poison": "notice"}
_CLASSES, _SUSPECTS = 100, 20  # rows of the tables; a summary may have a mebibyte, which names of 255 bytes stay below


def render(findings: Findings) -> str:
    """Return one workflow command: an error where the verdict is "poisoned", a notice where there is no sign of it."""
    level = _LEVELS.get(findings.verdict, "warning")
    said = " ".join((findings.advice.next, *findings.run.record.evidence))
    message = f"{findings.name}: {findings.verdict}; {findings.count()}. {said}"
    return f"::{level} title={command_property('antibackdoor')}::{command_data(message)}\n"


def summary(findings: Findings) -> str:
    """Return the summary of the step in Markdown: verdict, evidence, the classes with suspects, the first suspects."""
    run = findings.run
    advice = findings.advice
    lines = [f"## antibackdoor: {markdown(findings.verdict)}", "", f"{_code(findings.name)}: {findings.count()}.", ""]
    lines += [f"**{markdown(advice.next)}**", ""]
    lines += [f"- {markdown(sentence)}" for sentence in (*run.record.evidence, advice.looked)]
    if advice.surer:
        lines += ["", "What would make it surer:", "", *(f"- {markdown(sentence)}" for sentence in advice.surer)]
    held = [label for label, rows in findings.by_class.items() if len(rows)]
    held.sort(key=lambda label: -len(findings.by_class[label]))
    if held:
        lines += ["", "| class | images | flagged |", "|---|---:|---:|"]
        lines += [
            f"| {_code(run.classes[label])} | {findings.sizes[label]:,} | {len(findings.by_class[label]):,} |"
            for label in held[:_CLASSES]
        ]
        if len(held) > _CLASSES:
            lines.append(f"| and {len(held) - _CLASSES:,} more | | |")
        lines += ["", "| most suspect images | class |", "|---|---|"]
        lines += [
            f"| {_code(findings.short(run.ids[row]))} | {_code(findings.class_name(row))} |"
            for row in findings.flagged[:_SUSPECTS]
        ]
    return "\n".join([*lines, "", ""])


def _code(text: str) -> str:
    return f"<code>{markdown(text)}</code>"


def append_summary(findings: Findings) -> bool:
    """Append the summary to the file that the environment names, and say whether it names one.

    Raises:
        StorageError: The file cannot be written.
    """
    path = os.environ.get(SUMMARY)
    if not path:
        return False
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(summary(findings))
    except OSError as error:
        raise StorageError(f"cannot write {SUMMARY} {path}: {error.strerror or error}") from None
    return True

"""The result in words, for a person."""

from __future__ import annotations

from antibackdoor.formats.escaping import visible
from antibackdoor.formats.findings import Findings
from antibackdoor.report.tables import group_rows, metric_rows
from antibackdoor.types import RunRecord

__all__ = ["render"]

_GROUPS = 10


def render(findings: Findings) -> str:
    """Return the figures, the verdict with its evidence, and where more is."""
    record, folder = findings.run.record, findings.folder
    rows = metric_rows(record.metrics)
    names = max((len(row.name) for row in rows), default=0)
    values = max((len(row.value) for row in rows), default=0)
    lines = [f"{row.name:<{names}}  {row.value:>{values}}  {row.of}" for row in rows]
    lines.append(f"flagged: {len(findings.flagged):,} of {len(findings.run.ids):,} training images")
    lines.append(f"verdict: {findings.verdict}. {findings.advice.next}")
    lines += [f"  {sentence}" for sentence in (*record.evidence, findings.advice.looked)]
    if findings.advice.surer:
        lines.append("what would make it surer:")
        lines += [f"  {sentence}" for sentence in findings.advice.surer]
    lines += _by_group(record)
    lines.append(f"suspects: {folder / 'suspects.csv'}")
    lines.append(f"report: {folder / 'report.html'}")
    return "".join(f"{visible(line)}\n" for line in lines)


def _by_group(record: RunRecord) -> list[str]:
    """Return which groups, such as contributors, stand out; nothing where none was asked for."""
    column, count, rows = group_rows(record)
    if not column:
        return []
    striking = [row for row in rows if row.stands_out]
    lines = [f"by {column}: {len(striking):,} of {count:,} stand out"]
    lines += [
        f"  {row.name or '(none)'}: {row.flagged:,} of {row.images:,} images {row.counted}, "
        f"{row.expected:.1f} expected, p {row.corrected:.2g}"
        for row in striking[:_GROUPS]
    ]
    if len(striking) > _GROUPS:
        lines.append(f"  and {len(striking) - _GROUPS:,} more, in run.json")
    return lines

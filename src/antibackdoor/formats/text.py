"""The result in words, for a person."""

from __future__ import annotations

from antibackdoor.formats.escaping import visible
from antibackdoor.formats.findings import Findings
from antibackdoor.report.tables import metric_rows

__all__ = ["render"]


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
    lines.append(f"suspects: {folder / 'suspects.csv'}")
    lines.append(f"report: {folder / 'report.html'}")
    return "".join(f"{visible(line)}\n" for line in lines)

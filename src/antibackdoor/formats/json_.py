"""The result as JSON, for scripts."""

from __future__ import annotations

import dataclasses
import json
import math

from antibackdoor.content import set_digest
from antibackdoor.formats.findings import Findings

__all__ = ["render"]

_FORMAT = 1


def render(findings: Findings) -> str:
    """Return verdict, evidence, figures, classes and every suspect; docs/pipelines.md lists the keys.

    All characters beyond ASCII are escaped, so that no name does anything to a terminal or a log.
    """
    run, record = findings.run, findings.run.record
    values: dict[str, object] = {
        "format": _FORMAT,
        "verdict": record.verdict,
        "next": findings.advice.next,
        "evidence": list(record.evidence),
        "findings": record.data.get("findings", []),
        "looked": findings.advice.looked,
        "surer": list(findings.advice.surer),
        "images": len(run.ids),
        "flagged": len(findings.flagged),
        "set": None if run.content is None else set_digest(run.content, [run.classes[label] for label in run.labels]),
        "classes": [
            {
                "name": name,
                "images": int(findings.sizes[label]),
                "flagged": len(findings.by_class[label]),
                "verdict": run.class_verdicts[label],
            }
            for label, name in enumerate(run.classes)
        ],
        "suspects": [_suspect(findings, rank, int(row)) for rank, row in enumerate(findings.flagged, 1)],
        "groups": record.data.get("groups"),
        "compared": record.data.get("compared"),
        "skipped": findings.skipped,
        "metrics": dataclasses.asdict(record.metrics),
        "config": record.config,
        "versions": record.versions,
        "seconds": record.seconds,
    }
    return json.dumps(values, indent=1, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def _suspect(findings: Findings, rank: int, row: int) -> dict[str, object]:
    score = float(findings.run.scores[row])
    return {
        "rank": rank,
        "id": findings.run.ids[row],
        "label": findings.class_name(row),
        "score": score if math.isfinite(score) else None,
        "content": None if findings.run.content is None else findings.fingerprint(row),
    }

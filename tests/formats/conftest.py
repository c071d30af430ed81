"""Finished runs for the formats, made up: what they hold is what a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antibackdoor.content import content_hashes
from antibackdoor.formats.findings import Findings
from antibackdoor.stored import StoredRun
from antibackdoor.types import Metrics, RunRecord


def build(
    *,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    ids: Sequence[str] | None = None,
    per_class: int = 5,
    flagged: Sequence[int] = (1, 4),
    verdict: str | None = "poisoned",
    evidence: Sequence[str] = ("Class 'dog' is poisoned.",),
    source: str = "photos",
    name: str = "photos",
    skipped: Sequence[str] = (),
    content: bool = True,
    doubtful: Sequence[int] = (2,),
    defence: str = "witnesses",
    scan: bool = False,
) -> Findings:
    """Rows go round the classes; ``flagged`` rows are flagged, and the later of them are the more suspect."""
    count = per_class * len(classes)
    labels = np.arange(count) % len(classes)
    marks = np.zeros(count, dtype=bool)
    marks[list(flagged)] = True
    images = torch.arange(count, dtype=torch.int64).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    record = RunRecord(
        config={
            "data": {"source": source},
            "defence": {"name": defence, "alpha": 0.01},
            "seed": 0,
        },
        seeds={"seed": 0},
        versions={"antibackdoor": "0.1.0", "antibackdoor code": "0123456789ab", "torch": "2.13.0"},
        device={"name": "cpu"},
        seconds={"look": 1.5},
        metrics=Metrics(n_flagged=int(marks.sum()), n_train=count),
        verdict=verdict,  # type: ignore[arg-type]
        evidence=tuple(evidence),
        data={"name": name, "skipped": list(skipped)} | ({"scan": True} if scan else {}),
    )
    run = StoredRun(
        record=record,
        ids=tuple(ids or (f"{classes[label]}/{row:03d}.png" for row, label in enumerate(labels))),
        labels=labels.astype(np.int64),
        classes=tuple(classes),
        scores=(np.arange(count) + 1000.0 * marks).astype(np.float32),
        flagged=marks,
        losses=np.zeros((1, count), dtype=np.float32),
        phases=("look",),
        poison=None,
        cover=None,
        gallery_index=np.zeros(0, dtype=np.int64),
        gallery=np.zeros((0, 8, 8, 1), dtype=np.uint8),
        content=content_hashes(images) if content else None,
        doubtful=() if verdict == "no sign of poison" else tuple(label for label in doubtful if label < len(classes)),
    )
    return Findings(run, Path("run"))


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """Makes findings; see ``build``."""
    return build

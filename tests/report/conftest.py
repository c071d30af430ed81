from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from antibackdoor.report import StoredRun
from antibackdoor.types import Metrics, RunRecord

N, K, E = 200, 4, 6
METRICS = Metrics(
    ca=0.861,
    ca_target=0.5,
    asr=0.03,
    ra=0.8,
    holdout_accuracy=0.9,
    precision=0.9,
    recall=0.75,
    fpr=0.0002,
    auroc=0.98765,
    auprc=0.5,
    n_test=2000,
    n_test_target=200,
    n_triggered=1800,
    n_holdout=1000,
    n_poison=20,
    n_flagged=25,
    n_train=N,
)
RECORD = RunRecord(
    config={
        "defence": {"name": "witnesses", "gamma": 0.5, "nested": {"deep": [1, 2]}},
        "model": "wrn",
        "seed": 3,
    },
    seeds={"seed": 3, "init": 99},
    versions={"antibackdoor": "0.1.0", "torch": "2.13.0"},
    device={"name": "cpu", "why": "no accelerator"},
    seconds={"isolate": 75.0, "retrain": 12.34},
    metrics=METRICS,
    verdict="poisoned",
    evidence=("Class c0 splits in two.",),
    model={"name": "wrn-16-1"},
    data={"name": "toy set", "skipped": ["broken/one.png"]},
)


def build(*, record: dict[str, Any] | None = None, n: int = N, k: int = K, **changes: Any) -> StoredRun:
    rng = np.random.default_rng(0)
    poison = np.arange(n) < n // 10
    scores = (rng.normal(size=n) + 6 * poison).astype(np.float32)
    losses = rng.lognormal(size=(E, n)).astype(np.float32)
    losses[3:, poison] = np.nan
    gallery_index = np.argsort(-scores)[:5].astype(np.int64)
    values: dict[str, Any] = {
        "record": dataclasses.replace(RECORD, **(record or {})),
        "ids": tuple(f"c/{i:05d}.png" for i in range(n)),
        "labels": (np.arange(n) % k).astype(np.int64),
        "classes": tuple(f"c{i}" for i in range(k)),
        "scores": scores,
        "flagged": scores > 3,
        "losses": losses,
        "phases": ("isolate",) * 3 + ("retrain",) * 3,
        "poison": poison,
        "cover": None,
        "gallery_index": gallery_index,
        "gallery": rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8),
    }
    return StoredRun(**(values | changes))


@pytest.fixture
def make() -> Callable[..., StoredRun]:
    """A small view with known truth; keywords replace its parts, ``record`` those of its record."""
    return build

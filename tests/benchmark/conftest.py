"""A grid small enough to run in a test, and summaries that cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from end_to_end import pictures

from antibackdoor.benchmark import GridConfig

Values = dict[str, object]


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """60 training and 30 test images of 3 classes, in two .npz files: {"source", "test"}."""
    folder = tmp_path_factory.mktemp("pets")
    places = {}
    for key, count, seed in (("source", 60, 0), ("test", 30, 1)):
        path = folder / f"{key}.npz"
        np.savez(path, images=pictures(count, seed=seed), labels=np.arange(count) % 3)
        places[key] = str(path)
    return places


@pytest.fixture
def values(pets: dict[str, str]) -> Callable[..., Values]:
    """Gives plain values of a grid of 4 cells that takes seconds, changed as asked."""

    def make(**changes: object) -> Values:
        return {
            "data": [{"name": "pets", **pets}],
            "attacks": ["badnets"],
            "defences": [{"name": "abl-modified", "isolation_epochs": 1, "unlearn_epochs": 1}],
            "rates": [0.2],
            "models": ["wrn-10-1"],
            "train": {"epochs": 1, "batch_size": 16},
            "device": "cpu",
            **changes,
        }

    return make


@pytest.fixture
def grid(values: Callable[..., Values]) -> Callable[..., GridConfig]:
    """Gives that grid, parsed."""
    return lambda **changes: GridConfig.parse(values(**changes))


@pytest.fixture
def no_summaries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Path]]:
    """Keep tables and figures from being drawn; what would have been is listed as (number of records, folder)."""
    asked: list[tuple[int, Path]] = []

    def write(records: object, out: Path) -> list[Path]:
        asked.append((len(records), out))  # type: ignore[arg-type]
        return []

    monkeypatch.setattr("antibackdoor.benchmark.bench.write_summaries", write)
    return asked

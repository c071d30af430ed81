"""Every file of a run, cut off and with flipped bytes: an error that names it, and never another result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from damaging import damage_run


@pytest.mark.parametrize(
    ("lengths", "flips"), [(4, 4), pytest.param(20, 300, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_no_damage_goes_unnoticed(lengths: int, flips: int, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    rows = list(damage_run(run, lengths=lengths, flips=flips))
    assert [fault for row in rows for fault in row.faults] == []
    assert {row.name for row in rows} >= {"run.json", "checksums.sha256", "model.safetensors", "history.npz"}
    assert all(row.cut_named == lengths for row in rows)
    assert all(row.flipped_named == flips for row in rows)

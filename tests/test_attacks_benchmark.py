"""The benchmark of the attacks reads the attacks of a grid as the grid does."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from antibackdoor.benchmark import GridConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("attacks")


def test_attacks_of_a_grid(attacks, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("attacks:\n- sig\n- {name: wanet, label: x, k: 32, rate: [0.1, 0.2]}\nrates: [0.05, 0.08]\n")
    assert attacks.of_grid(file) == ["sig@0.05", "sig@0.08", "wanet@0.1:k=32", "wanet@0.2:k=32"]
    file.write_text("attacks:\n- {name: adap-patch, test_patches: all}\n- {name: badnets, rate: 0.3}\n")
    assert attacks.of_grid(file) == ["adap-patch@0.1:test_patches=all", "badnets@0.3"]


def test_the_grid_that_asks_which_attacks_implant_is_read_as_the_grid_reads_it(attacks):
    file = ROOT / "benchmarks/grids/implant.yaml"
    read = [attacks.read_attack(text) for text in attacks.of_grid(file)]
    grid = GridConfig.load(file, ["seeds=[0]"])
    meant = [cell.config.attack for cell in grid.cells() if cell.config.attack is not None]
    assert sorted(map(repr, read)) == sorted(map(repr, meant))
    assert len({choice.name for choice in read}) == 11

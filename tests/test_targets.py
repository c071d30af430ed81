"""The page that sets what was measured beside what is asked for says what the records say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("targets")


def record(folder: Path, name: str, row: str, *, verdict: str = "poisoned", **figures: float | None) -> None:
    """Write a record of one row with no defence, and with the default."""
    good = {"ca": 0.7, "asr": 0.02, "excess": 0.0, "ca_gap": 0.0, "recall": 1.0, "fpr": 0.0, "cost": 1.5}
    common = {"row": row, "seed": 0, "flagged_share": 0.0, "commit": "abc1234"}
    cells = [
        {**common, "defence": "none", "ca": 0.7, "asr": 1.0, "verdict": "undecided"},
        {**common, "defence": "witnesses", "verdict": verdict, **good, **figures},
    ]
    (folder / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_the_page_in_docs_is_that_of_the_records(targets):
    assert (ROOT / "docs" / "targets.md").read_text(encoding="utf-8") == targets.page(targets.RESULTS)


@pytest.mark.parametrize(
    ("name", "row", "group"),
    [
        ("CIFAR-10", "none", "clean"),
        ("CIFAR-10", "badnets@0.05:corner=all", "common"),
        ("CIFAR-10", "badnets@0.1:corner=all,labelling=all-to-all", "hiding"),
        ("CIFAR-10", "tact@0.05", "hiding"),
        ("CIFAR-10", "blend@0.01", "rare"),
        ("GTSRB", "blend@0.01", "others"),
        ("Fashion-MNIST", "badnets@0.1", "demonstration"),
        ("CIFAR-10", "glasses@0.1", "unseen"),
        ("Imagenette", "glasses@0.1", "unseen"),
    ],
)
def test_a_row_is_held_to_the_targets_of_its_group(name, row, group, targets):
    assert targets.group_of(name, row) == group


@pytest.mark.parametrize(
    ("figures", "shown"),
    [
        ({"recall": 0.949}, "**94.9**"),
        ({"recall": 0.95}, "95.0"),
        ({"fpr": 0.0051}, "**0.5**"),
        ({"excess": 0.061}, "**6.1**"),
        ({"excess": -0.061}, "-6.1"),
        ({"ca_gap": 0.011}, "**1.1**"),
        ({"cost": 2.21}, "**2.21**"),
    ],
)
def test_what_misses_its_target_is_bold(figures, shown, targets, tmp_path):
    record(tmp_path, "defences_cifar10_cpu.json", "blend@0.1", **figures)
    page = targets.page(tmp_path)
    assert f"| {shown} |" in page
    reached = 0 if "**" in shown else 1
    assert f"{reached} of 1 rows reach every target of a row." in page


@pytest.mark.parametrize(("verdict", "reached"), [("no sign of poison", 1), ("undecided", 0), ("poisoned", 0)])
def test_clean_data_must_show_no_sign_of_poison(verdict, reached, targets, tmp_path):
    nothing = {"asr": None, "excess": None, "recall": None, "fpr": None}
    record(tmp_path, "defences_cifar10_cpu.json", "none", verdict=verdict, **nothing)
    page = targets.page(tmp_path)
    assert f"{reached} of 1 rows reach every target of a row." in page
    assert (f"**1 {verdict}**" in page) is (reached == 0)


def test_clean_data_may_cost_less(targets, tmp_path):
    record(tmp_path, "defences_cifar10_cpu.json", "none", verdict="no sign of poison", asr=None, excess=None, cost=1.7)
    assert "| **1.70** |" in targets.page(tmp_path)


def test_targets_stand_there_before_anything_is_measured(targets, tmp_path):
    page = targets.page(tmp_path)
    assert page.count("\n## ") == page.count("No record yet.") == len(targets.TARGETS)


def test_the_cells_of_a_grid_are_rows_of_the_page(targets, tmp_path):
    (tmp_path / "paper_cpu" / "cells").mkdir(parents=True)
    for defence, asr, recall in (("none", 1.0, 0.0), ("witnesses", 0.07, 0.9), ("nad", 0.5, 0.0)):
        content = {
            "cell": {"attack": "blend", "attack_label": "blend", "rate": 0.8, "defence": defence, "seed": 0},
            "metrics": {"ca": 0.65, "asr": asr, "recall": recall, "fpr": 0.0, "n_flagged": 0},
            "control": {"ca": 0.7, "asr": 0.02},
            "verdict": "poisoned",
            "versions": {"antibackdoor code": "0123abcd"},
        }
        content["metrics"] |= {"n_poison": 480, "n_train": 6000}
        (tmp_path / "paper_cpu" / "cells" / f"{defence}.json").write_text(json.dumps(content), encoding="utf-8")
    row = next(line for line in targets.page(tmp_path).splitlines() if "`blend@0.08`" in line)
    assert "| 100.0 % | 7.0 % | - | 5.0 | **5.0** | **90.0** | 0.0 | - | 1 poisoned | 65.0 % | - | 0123abcd |" in row


def test_excess_is_judged_in_the_mean_too_where_a_lucky_row_makes_up_for_none(targets, tmp_path):
    record(tmp_path, "defences_gtsrb_cpu.json", "blend@0.1", excess=0.03)
    record(tmp_path, "defences_imagenette_cpu.json", "blend@0.1", excess=-0.05)
    page = targets.page(tmp_path)
    assert "2 of 2 rows reach every target of a row." in page
    assert "Excess, negative counted as 0, is 1.5 in the mean (limit 1: missed) and 3.0 in the worst row." in page

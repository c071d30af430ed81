from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from antibackdoor.isolation import Alarm, ChannelCut, Cut
from antibackdoor.isolation.alarm import share_of_clean

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RECORDS = ("calibrate_embedded.json", "calibrate_embedded_2000.json", "calibrate_cifar10_cpu.json")


def largest(look):
    """Return the largest strength of each clean training on record."""
    cells = [cell for name in RECORDS for cell in json.loads((RESULTS / name).read_text(encoding="utf-8"))["cells"]]
    return [
        max(float(cell[f"{look}_{kind}"] or 0) for kind in ("strength", "channels", "late", "new")) for cell in cells
    ]


@pytest.mark.parametrize(("look", "early"), [("look", True), ("end", False)])
def test_the_share_of_clean_trainings_is_that_of_the_records(look, early):
    strengths = largest(look)
    assert len(strengths) == 17
    scale = stdev(strengths) * math.sqrt(6) / math.pi
    mode = fmean(strengths) - 0.5772156649 * scale
    for share in (0.5, 0.1, 0.05):
        strength = mode - scale * math.log(-math.log(1 - share))
        assert share_of_clean(strength, early=early) == pytest.approx(share, rel=0.15), "the figures are rounded"
    for strength in strengths:
        reached = fmean(other >= strength for other in strengths)
        assert abs(share_of_clean(strength, early=early) - reached) < 0.3, "the distribution describes them"


@pytest.mark.parametrize(
    ("strength", "early", "words"),
    [
        (0.26, True, "alarm at 1.10; about 69 in 100 clean trainings reach as much"),
        (0.26, False, "alarm at 0.55; about 50 in 100 clean trainings reach as much"),
        (0.55, False, "alarm at 0.55; about 4 in 100 clean trainings reach as much"),
        (1.3, True, "alarm at 1.10; fewer than 1 in 100 clean trainings reach as much"),
        (0.0, False, "alarm at 0.55; about 100 in 100 clean trainings reach as much"),
        (1e9, False, "alarm at 0.55; fewer than 1 in 100 clean trainings reach as much"),
    ],
)
def test_evidence_says_how_many_clean_trainings_reach_as_much(strength, early, words):
    nobody = torch.zeros(3, dtype=torch.int64)
    cut = ChannelCut(0, nobody, nobody.double(), gain=strength, apart=8.0, common=0.0, early=early)
    assert Alarm(0.55).in_words(cut) == words


def test_a_class_in_doubt_for_its_gain_is_quoted_its_gain():
    nobody = torch.zeros(3, dtype=torch.int64)
    cut = Cut(0, nobody, nobody.double(), gain=0.9, votes=0.0, fall=0.0)
    assert Alarm(0.55).in_words(cut) == "in doubt from a gain of 0.80"
    assert Alarm(0.55, 2.0).in_words(cut) == "in doubt from a gain of 0.40"

from __future__ import annotations

import pytest
import torch

from antibackdoor.ops.metrics import (
    accuracy,
    attack_success_rate,
    defence_effectiveness,
    isolation_quality,
    robust_accuracy,
)

SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
POISON = torch.tensor([True, False, True, False, False])
FLAGGED = torch.tensor([True, True, False, False, False])
NONE = torch.zeros(5, dtype=torch.bool)


@pytest.mark.parametrize("metric", [accuracy, attack_success_rate, robust_accuracy])
def test_shares(metric):
    assert metric(torch.tensor([1, 2, 0, 3]), torch.tensor([1, 2, 2, 1])) == 0.5
    assert metric(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)) is None


def test_attack_success_and_robust_accuracy_of_the_same_predictions():
    own = torch.tensor([1, 2, 3, 1])
    predicted = torch.tensor([0, 2, 0, 3])
    assert attack_success_rate(predicted, torch.zeros(4, dtype=torch.int64)) == 0.5
    assert robust_accuracy(predicted, own) == 0.25
    # All-to-all: each class has an aim of its own.
    assert attack_success_rate(predicted, (own + 1) % 4) == 0.25


def test_isolation_by_hand():
    quality = isolation_quality(SCORES, FLAGGED, POISON, NONE)
    assert quality == pytest.approx(
        {
            "precision": 1 / 2,
            "recall": 1 / 2,
            "fpr": 1 / 3,
            "auroc": 5 / 6,  # of 2 * 3 pairs only (0.7 poison, 0.8 clean) is the wrong way round
            "auprc": 0.5 * 1 + 0.5 * 2 / 3,
        }
    )


def test_covers_count_as_nothing():
    scores = torch.cat([SCORES, torch.tensor([0.99, 0.01])])
    cover = torch.tensor([False] * 5 + [True] * 2)
    for flagged in (True, False):
        marks = torch.cat([FLAGGED, torch.tensor([flagged, flagged])])
        poison = torch.cat([POISON, torch.tensor([False, False])])
        assert isolation_quality(scores, marks, poison, cover) == isolation_quality(SCORES, FLAGGED, POISON, NONE)


def test_ties_count_half():
    quality = isolation_quality(torch.zeros(5), FLAGGED, POISON, NONE)
    assert quality["auroc"] == 0.5


def test_nothing_flagged():
    quality = isolation_quality(SCORES, NONE, POISON, NONE)
    assert (quality["precision"], quality["recall"], quality["fpr"]) == (None, 0.0, 0.0)


def test_an_unpoisoned_set_has_a_false_positive_rate_alone():
    quality = isolation_quality(SCORES, FLAGGED, NONE, NONE)
    assert quality == {"precision": 0.0, "recall": None, "fpr": 2 / 5, "auroc": None, "auprc": None}


def test_a_set_of_poison_alone():
    quality = isolation_quality(SCORES, FLAGGED, ~NONE, NONE)
    assert quality == {"precision": 1.0, "recall": 2 / 5, "fpr": None, "auroc": None, "auprc": None}


def test_everything_is_cover():
    quality = isolation_quality(SCORES, FLAGGED, NONE, ~NONE)
    assert set(quality.values()) == {None}


def test_extreme_scores_are_still_ranked():
    scores = torch.tensor([float("inf"), 0.0, 1.0, -1.0, float("-inf")])
    assert isolation_quality(scores, FLAGGED, POISON, NONE)["auroc"] == 1.0


def test_the_truth_is_not_changed():
    copies = [SCORES.clone(), FLAGGED.clone(), POISON.clone(), NONE.clone()]
    isolation_quality(SCORES, FLAGGED, POISON, NONE)
    assert all(torch.equal(a, b) for a, b in zip((SCORES, FLAGGED, POISON, NONE), copies, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 1.0), 0.5),  # no effect
        ((0.9, 1.0), (0.9, 0.0), 1.0),  # the best there is
        ((0.9, 1.0), (0.85, 0.05), 0.95),
        ((0.9, 1.0), (0.0, 1.0), 0.05),  # broken and still attacked
        ((0.8, 0.5), (0.9, 0.9), 0.5),  # neither a rise of the one nor of the other counts
    ],
)
def test_defence_effectiveness(before, after, expected):
    value = defence_effectiveness(ca_before=before[0], asr_before=before[1], ca_after=after[0], asr_after=after[1])
    assert value == pytest.approx(expected)

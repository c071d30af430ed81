"""SCAn on embedded images: a backdoor is named and removed, a clean set passes; what it leaves alone."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from embedded_backdoor import defend, pictures, planted

from antibackdoor.defences import Scan
from antibackdoor.defences.scan import Untangling, untangle_classes
from antibackdoor.isolation.untangle import outlyingness, split_in_two
from antibackdoor.ops.metrics import isolation_quality


@pytest.fixture
def run(runtime, tiny):
    return partial(defend, runtime=runtime, tiny=tiny)


def test_a_backdoor_is_found_and_left_out_of_the_training_that_follows(run):
    data = planted()
    outcome = run(Scan(), data.observed, "run")
    isolation = outcome.isolation
    quality = isolation_quality(isolation.scores, isolation.flagged, data.poison, data.cover)
    assert quality["recall"] > 0.9
    assert quality["precision"] > 0.9
    assert isolation.verdict == "poisoned"
    assert isolation.evidence[0].startswith("bag: J is ")
    assert [history.phase for history in outcome.histories] == ["train", "retrain"]
    left_out = torch.from_numpy(outcome.histories[1].losses[0]).isnan()
    assert torch.equal(left_out, isolation.flagged)
    # What is flagged scores above all others.
    assert isolation.scores[isolation.flagged].min() > 0.5 >= isolation.scores[~isolation.flagged].max()


def test_clean_images_are_left_alone(run):
    outcome = run(Scan(), pictures()[0], "run")
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict == "no sign of poison"
    assert [history.phase for history in outcome.histories] == ["train"]


def test_a_few_classes_are_no_verdict_and_small_ones_are_not_judged(run):
    observed = planted().observed
    rows = torch.cat(
        [(observed.labels == label).nonzero().squeeze(1)[: 19 if label < 4 else 60] for label in range(10)]
    )
    isolation = run(Scan(), observed.select(rows), "scan").isolation
    assert isolation.verdict == "undecided"
    assert any("4 of 10 classes are under 20 images" in sentence for sentence in isolation.evidence)
    assert any(sentence.startswith("Outliers among 6 classes say little") for sentence in isolation.evidence)


def test_outliers_lie_above_the_median():
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0, -100.0, 3.0])
    # Median 3; distances 2, 1, 0, 1, 97, 103, 0, of which the median is 1.
    assert outlyingness(values) == pytest.approx([0, 0, 0, 1 / 1.4826, 97 / 1.4826, 0, 0])
    assert outlyingness(np.array([2.0, 2.0, 2.0, 5.0])).tolist() == [0, 0, 0, math.inf]
    assert outlyingness(np.zeros(3)).tolist() == [0, 0, 0]


def test_flags_are_the_strange_side_of_contaminated_classes():
    labels = torch.tensor([0, 0, 1, 1])
    found = Untangling(np.array([9.0, 1.0]), np.array([8.0, 7.0]), np.array([3.0, -1.0, 2.0, -2.0]))
    scores, flagged = Scan().flag(found, labels)
    assert flagged.tolist() == [True, False, False, False]
    assert scores.tolist() == pytest.approx([0.875, 0.25, -1 / 6, -5 / 6])


def test_the_best_of_several_starts_counts():
    draw = np.random.default_rng(0)
    points = np.concatenate([draw.standard_normal((90, 6)), draw.standard_normal((10, 6)) + 5])
    for seed in range(5):
        split = split_in_two(points, starts=10, draw=np.random.default_rng(seed))
        assert sorted((int(split.second.sum()), int((~split.second).sum()))) == [10, 90]


def test_features_that_say_nothing_flag_nobody():
    flat, labels = np.ones((60, 3)), np.arange(60) % 3
    found = untangle_classes(
        flat,
        labels,
        np.ones(60, dtype=bool),
        (flat[:9], labels[:9]),
        num_classes=3,
        shrink=True,
        starts=2,
        draw=np.random.default_rng(0),
    )
    assert found.statistic.tolist() == found.outlying.tolist() == [0, 0, 0]
    assert not found.margins.any()

"""Spectral signatures and activation clustering as filters: what they remove, and a backdoor before and after."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from easy_backdoor import attack_success, defend, planted

from antibackdoor.defences import ActivationClustering, NoDefence, SpectralFilter
from antibackdoor.isolation import SIGNALS, Evidence, Network
from antibackdoor.ops.metrics import isolation_quality


@pytest.mark.parametrize(("rate", "taken"), [(0.0, 0), (0.01, 2), (0.02, 3), (0.1, 15), (0.5, 30)])
def test_spectral_takes_so_many_of_every_class(rate, taken):
    labels = torch.tensor([0] * 60 + [1] * 40)
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0)) + 0.1
    flagged = SpectralFilter().flag(scores, labels, rate)
    for label, size in ((0, 60), (1, 40)):
        rows = (labels == label).nonzero().squeeze(1).tolist()
        # One and a half times the poison of the whole set, at most half of the class.
        count = min(math.ceil(1.5 * rate * 100 - 1e-9), size // 2)
        assert count == min(taken, size // 2)
        highest = sorted(rows, key=lambda row: -float(scores[row]))[:count]
        assert flagged[rows].nonzero().squeeze(1).tolist() == sorted(rows.index(row) for row in highest)


def test_spectral_leaves_images_without_a_score():
    labels = torch.zeros(40, dtype=torch.int64)
    scores = torch.zeros(40)
    scores[7] = 1.0
    assert SpectralFilter().flag(scores, labels, 0.2).nonzero().squeeze(1).tolist() == [7]


def test_activation_clustering_takes_small_clusters_up_to_the_rate():
    # Above 0: nearer to the smaller cluster, the clearest first.
    scores = torch.tensor([0.9, 0.8, 0.7, 0.1, -0.5, -1.5, -2.0, 0.0, 0.6, -0.1])
    for rate, expected in ((0.0, []), (0.1, [0, 1]), (0.2, [0, 1, 2]), (0.9, [0, 1, 2, 3, 8])):
        flagged = ActivationClustering().flag(scores, rate)
        assert flagged.nonzero().squeeze(1).tolist() == expected, rate


@pytest.fixture
def run(runtime, tiny, plan):
    return partial(defend, runtime=runtime, tiny=tiny, plan=plan)


@pytest.mark.parametrize(
    ("defence", "signal"),
    [(SpectralFilter(), "spectral"), (ActivationClustering(), "activation-clusters")],
    ids=["spectral", "activation-clustering"],
)
def test_an_easy_backdoor_is_removed_and_the_network_trained_anew(defence, signal, run, blobs, runtime):
    data, test = planted(blobs, 400, 0.05, 0), planted(blobs, 200, 0.7, 9)
    undefended, defended = run(NoDefence(), data.observed), run(defence.with_rate(0.05), data.observed)
    assert attack_success(undefended, test, runtime) > 0.9
    assert attack_success(defended, test, runtime) < 0.1
    isolation = defended.isolation
    assert isolation_quality(isolation.scores, isolation.flagged, data.poison, data.cover)["recall"] > 0.9
    assert isolation.verdict == "undecided"
    # The scores are those of the signal, of the undefended network.
    assert [history.phase for history in defended.histories] == ["train", "retrain"]
    first = Evidence.of(
        undefended.histories[0], data.observed.labels, 4, Network(undefended.model, data.observed, runtime)
    )
    assert torch.equal(isolation.scores, SIGNALS.build(signal, {}).scores(first))
    left_out = torch.from_numpy(defended.histories[1].losses[0]).isnan()
    assert torch.equal(left_out, isolation.flagged)


@pytest.mark.parametrize("defence", [SpectralFilter(rate=0.0), ActivationClustering(rate=0.0)])
def test_told_that_there_is_none_they_remove_none(defence, run, blobs):
    data = blobs(120, 4, channels=1, height=16, width=16)
    outcome, plain = run(defence, data), run(NoDefence(), data)
    assert not bool(outcome.isolation.flagged.any())
    assert [history.phase for history in outcome.histories] == ["train"]
    weights = outcome.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("defence", [SpectralFilter(), ActivationClustering()])
def test_a_rate_that_was_given_is_recorded(defence):
    assert defence.rate is None
    assert defence.with_rate(0.25).rate == 0.25
    assert defence.rate is None

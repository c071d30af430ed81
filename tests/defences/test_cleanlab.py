"""cleanlab as a filter: wrong labels of unlearned poison are flagged, and what is flagged is not trained on."""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from embedded_backdoor import PLAN, defend, pictures, planted

from antibackdoor import extras
from antibackdoor.defences import Cleanlab
from antibackdoor.defences.confident_learning import FILTERS, folds_of, predicted_from_features
from antibackdoor.errors import ConfigError
from antibackdoor.models.encoders import Encoder
from antibackdoor.ops.metrics import isolation_quality

filters = pytest.importorskip("cleanlab.filter")
SHORT = PLAN.but(epochs=6)


@pytest.fixture
def run(runtime, tiny):
    return partial(defend, runtime=runtime, tiny=tiny)


@pytest.fixture
def encoder(monkeypatch):
    """Gives encoders that are quick: the means of 7x7 squares of the picture without an edge so wide."""

    def of(edge):
        inside = slice(edge, 28 - edge)
        module = type(sys)("encoder_of_pixels")
        module.encoder = lambda: Encoder(
            "own:encoder_of_pixels",
            lambda images: torch.nn.functional.adaptive_avg_pool2d(images[:, :1, inside, inside], 7).flatten(1),
            28,
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
        )
        monkeypatch.setitem(sys.modules, "encoder_of_pixels", module)
        return "own:encoder_of_pixels"

    return of


def test_by_an_encoder_poison_with_wrong_labels_is_flagged_and_left_out(run, encoder):
    data = planted()
    outcome = run(Cleanlab(witness=encoder(edge=4)), data.observed, "run", plan=SHORT)
    isolation = outcome.isolation
    quality = isolation_quality(isolation.scores, isolation.flagged, data.poison, data.cover)
    assert quality["recall"] > 0.7
    assert quality["fpr"] < 0.3
    assert quality["auroc"] > 0.85
    assert isolation.verdict == "undecided"
    assert [history.phase for history in outcome.histories] == ["train", "retrain"]
    assert torch.equal(torch.from_numpy(outcome.histories[1].losses[0]).isnan(), isolation.flagged)
    # One that sees the patch, in a corner, learns it as anything else, and takes its label for right.
    isolation = run(Cleanlab(witness=encoder(edge=0)), data.observed, "scan", plan=PLAN.but(epochs=1)).isolation
    assert isolation_quality(isolation.scores, isolation.flagged, data.poison, data.cover)["recall"] < 0.5


def test_by_networks_labels_that_no_trigger_explains_are_flagged(run):
    observed = pictures()[0]
    wrong = torch.arange(len(observed)) % 20 == 3
    labels = torch.where(wrong, (observed.labels + 3) % 10, observed.labels)
    data = type(observed)(observed.images, labels, observed.classes, observed.ids)
    outcome = run(Cleanlab(folds=2), data, "run", plan=SHORT)
    isolation = outcome.isolation
    assert float(isolation.flagged[wrong].float().mean()) > 0.8
    assert float(isolation.flagged[~wrong].float().mean()) < 0.3
    assert [history.phase for history in outcome.histories] == ["fold 1", "fold 2", "train"]
    fold = [~torch.from_numpy(history.losses[0]).isnan() for history in outcome.histories]
    assert torch.equal(fold[0], ~fold[1])
    assert torch.equal(fold[2], ~isolation.flagged)


def test_the_flags_and_scores_are_those_of_the_package():
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    predicted = draw.dirichlet((1, 1, 1), 120) + 3 * np.eye(3)[np.where(np.arange(120) % 9, labels, (labels + 1) % 3)]
    predicted /= predicted.sum(1, keepdims=True)
    data = type(pictures()[0])(
        torch.zeros((120, 1, 4, 4), dtype=torch.uint8), torch.from_numpy(labels), ("a", "b", "c"), tuple("x" * 120)
    )

    class Alone:
        class runtime:
            first = staticmethod(lambda value: value)

    for rule in FILTERS:
        isolation = Cleanlab(filter_by=rule)._isolated(predicted, data, Alone)
        expected = filters.find_label_issues(labels, predicted, filter_by=rule)
        assert np.array_equal(isolation.flagged.numpy(), expected), rule
        assert isolation.flagged[::9].float().mean() > 0.5, rule
        np.testing.assert_allclose(isolation.scores, 1 - predicted[np.arange(120), labels], atol=1e-6)


def test_folds_are_even_in_every_class():
    labels = torch.tensor([0] * 12 + [1] * 7 + [2] * 2)
    fold = folds_of(labels, 3, torch.Generator().manual_seed(0))
    assert [torch.bincount(fold[labels == label], minlength=3).tolist() for label in range(3)] == [
        [4, 4, 4],
        [3, 2, 2],
        [1, 1, 0],
    ]
    assert not torch.equal(fold, folds_of(labels, 3, torch.Generator().manual_seed(1)))


def test_no_image_is_predicted_by_what_was_fitted_to_it_nor_by_held_out_ones():
    draw = np.random.default_rng(0)
    features, labels, fold = draw.standard_normal((30, 2)).astype(np.float32), np.arange(30) % 2, np.arange(30) % 3
    trained = np.arange(30) % 5 != 0
    before = predicted_from_features(features, labels, trained, fold, 3)
    changed = labels.copy()
    changed[[4, 5]] = 1 - changed[[4, 5]]  # 4 is in fold 1; 5, in fold 2, is held out
    after = predicted_from_features(features, changed, trained, fold, 3)
    same = np.isclose(before, after).all(1)
    assert same[fold == 1].all()
    assert not same[fold == 2].any()
    changed[4] = labels[4]
    assert np.allclose(before, predicted_from_features(features, changed, trained, fold, 3))
    np.testing.assert_allclose(before.sum(1), 1)
    assert not before[:, 2].any(), "a class that nobody has"


def test_without_the_package_one_line_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^defence.name: cleanlab needs the package 'cleanlab'.*\[cleanlab\]"):
        run(Cleanlab(), pictures()[0], "scan")

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from antibackdoor.evaluation import evaluate
from antibackdoor.types import ImageSet, Isolation, Metrics, PoisonedSet


class Told(nn.Module):
    """Predicts the class that the first pixel says."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), self.classes).float()


def images_of(predicted, labels, classes=4):
    images = torch.zeros(len(predicted), 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(predicted, dtype=torch.uint8)
    names = tuple("abcdefgh"[:classes])
    return ImageSet(images, torch.tensor(labels), names, tuple(f"{i}" for i in range(len(labels))))


def triggered_of(predicted, original, aimed):
    everything = torch.ones(len(original), dtype=torch.bool)
    observed = images_of(predicted, aimed)
    return PoisonedSet(observed, everything, ~everything, torch.tensor(original), 0)


MODEL = Told(4)
TEST = images_of([0, 1, 2, 3, 0, 0, 1, 0], [0, 1, 2, 3, 0, 1, 1, 2])


def test_nothing_given_nothing_measured(runtime):
    assert evaluate(None, runtime) == Metrics()
    assert evaluate(MODEL, runtime) == Metrics()


def test_clean_accuracy_counts_the_target_class(runtime):
    assert evaluate(MODEL, runtime, test=TEST) == Metrics(ca=6 / 8, n_test=8)
    metrics = evaluate(MODEL, runtime, test=TEST, target=1)
    assert (metrics.ca, metrics.ca_target, metrics.n_test_target) == (6 / 8, pytest.approx(2 / 3), 3)


def test_a_target_without_test_images(runtime):
    metrics = evaluate(MODEL, runtime, test=TEST.select(torch.tensor([0, 1])), target=3)
    assert (metrics.ca_target, metrics.n_test_target) == (None, 0)


def test_attack_success_and_robust_accuracy(runtime):
    triggered = triggered_of([0, 0, 2, 3, 1], [1, 2, 2, 1, 3], [0] * 5)
    metrics = evaluate(MODEL, runtime, triggered=triggered)
    assert metrics == Metrics(asr=2 / 5, ra=1 / 5, n_triggered=5)


def test_attack_success_all_to_all(runtime):
    original = [0, 1, 2, 3]
    triggered = triggered_of([1, 2, 2, 0], original, [(y + 1) % 4 for y in original])
    metrics = evaluate(MODEL, runtime, triggered=triggered)
    assert (metrics.asr, metrics.ra, metrics.n_triggered) == (3 / 4, 1 / 4, 4)


def test_no_image_to_trigger(runtime):
    metrics = evaluate(MODEL, runtime, triggered=triggered_of([], [], []))
    assert (metrics.asr, metrics.ra, metrics.n_triggered) == (None, None, 0)


def test_the_held_out_part(runtime):
    held_out = torch.tensor([True, False, False, False, False, True, True, True])
    metrics = evaluate(MODEL, runtime, train=TEST, held_out=held_out)
    assert (metrics.holdout_accuracy, metrics.n_holdout) == (0.5, 4)
    nobody = torch.zeros(8, dtype=torch.bool)
    assert evaluate(MODEL, runtime, train=TEST, held_out=nobody) == Metrics()


def isolation_of(flagged, scores):
    return Isolation(torch.tensor(scores), torch.tensor(flagged), "undecided")


FOUND = isolation_of([True, True, False, False, False], [0.9, 0.8, 0.7, 0.6, 0.95])
TRUTH = PoisonedSet(
    images_of([0] * 5, [0] * 5),
    poison=torch.tensor([True, False, True, False, False]),
    cover=torch.tensor([False, False, False, False, True]),
    original_labels=torch.tensor([1, 0, 1, 0, 0]),
    target=0,
)


def test_the_isolation_against_the_truth(runtime):
    metrics = evaluate(None, runtime, isolation=FOUND, truth=TRUTH)
    assert dataclasses.asdict(metrics) == {
        **dataclasses.asdict(Metrics()),
        "precision": 0.5,
        "recall": 0.5,
        "fpr": 0.5,
        "auroc": 0.75,
        "auprc": pytest.approx(0.5 + 0.5 * 2 / 3),
        "n_poison": 2,
        "n_cover": 1,
        "n_flagged": 2,
        "n_train": 5,
    }


def test_without_the_truth_only_counts(runtime):
    assert evaluate(None, runtime, isolation=FOUND) == Metrics(n_flagged=2, n_train=5)
    assert evaluate(None, runtime, truth=TRUTH) == Metrics(n_poison=2, n_cover=1)


def test_the_network_stays_in_its_mode_and_keeps_its_weights(runtime, blobs, tiny):
    data = blobs(20, 4)
    model = tiny(data)(torch.Generator().manual_seed(0)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, runtime, test=data, target=0)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

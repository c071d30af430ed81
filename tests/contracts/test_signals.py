"""What holds for every signal of the table; a new entry is tested by existing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.isolation import SIGNALS, Evidence, isolate
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.registry import parameters_of

EPOCHS, EACH, CLASSES, POISONED = 9, 60, 4, 12
every_signal = pytest.mark.parametrize("name", list(SIGNALS))


def planted(epochs=EPOCHS, each=EACH, classes=CLASSES, seed=0):
    """Losses of clean images that fall slowly, and of poison in class 1: high at first, then all at once far below.

    Returns the evidence and the truth.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(each * classes) % classes
    poison = (labels == 1) & (torch.arange(each * classes) < POISONED * classes)
    epoch = torch.arange(epochs)[:, None]
    logs = 0.6 - 0.25 * epoch + 0.35 * torch.randn((1, each * classes), generator=generator)
    late = torch.where(epoch < epochs // 2, 1.2, -6.0).expand(epochs, each * classes)
    logs = torch.where(poison, late, logs) + 0.15 * torch.randn((epochs, each * classes), generator=generator)
    return Evidence(logs.exp(), labels, classes), poison


def scores_of(name, evidence):
    scores = SIGNALS.build(name, {}).scores(evidence)
    assert scores.shape == evidence.labels.shape
    assert scores.dtype == torch.float32
    assert bool(scores.isfinite().all())
    return scores


def auroc(scores, poison):
    nothing = torch.zeros_like(poison)
    value = isolation_quality(scores, nothing, poison, nothing)["auroc"]
    assert value is not None
    return value


@every_signal
def test_poison_that_falls_late_and_far_scores_high(name):
    evidence, poison = planted()
    scores = scores_of(name, evidence)
    assert auroc(scores, poison) > 0.99
    assert scores[poison].min() > scores[~poison].median()


@every_signal
def test_a_share_of_it_is_flagged(name):
    evidence, poison = planted()
    isolation = isolate(evidence, signal=name, share=POISONED / len(poison))
    assert int(isolation.flagged.sum()) == POISONED
    assert float((isolation.flagged & poison).sum()) / POISONED > 0.9


@every_signal
def test_the_order_of_the_samples_does_not_matter(name):
    evidence, poison = planted()
    order = torch.randperm(len(poison), generator=torch.Generator().manual_seed(1))
    scores = scores_of(name, evidence)
    moved = scores_of(name, Evidence(evidence.losses[:, order], evidence.labels[order], CLASSES))
    # A mixture starts from drawn points, so its scores may move a little; the ranking of the poison may not.
    assert auroc(moved, poison[order]) == pytest.approx(auroc(scores, poison), abs=0.005)
    assert torch.equal(moved > scores[poison].min() - 0.1, (scores > scores[poison].min() - 0.1)[order])


@every_signal
def test_the_same_evidence_gives_the_same_scores_and_is_not_changed(name):
    evidence, _ = planted()
    losses, labels = evidence.losses.clone(), evidence.labels.clone()
    assert torch.equal(scores_of(name, evidence), scores_of(name, evidence))
    assert torch.equal(evidence.losses, losses)
    assert torch.equal(evidence.labels, labels)


@every_signal
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_any_number_of_classes(name, classes):
    evidence, _ = planted(classes=classes)
    scores_of(name, evidence)


@every_signal
def test_a_class_that_nobody_has(name):
    evidence, poison = planted()
    wider = Evidence(evidence.losses, evidence.labels, CLASSES + 3)
    assert auroc(scores_of(name, wider), poison) == pytest.approx(auroc(scores_of(name, evidence), poison), abs=0.005)


@every_signal
def test_held_out_images_are_scored_too(name):
    evidence, poison = planted()
    held_out = torch.zeros_like(poison)
    held_out[::9] = True
    scores = scores_of(name, dataclasses.replace(evidence, held_out=held_out))
    assert auroc(scores, poison) > 0.99


@every_signal
def test_a_class_of_one_image(name):
    evidence, poison = planted()
    labels = evidence.labels.clone()
    labels[0] = CLASSES
    scores = scores_of(name, Evidence(evidence.losses, labels, CLASSES + 1))
    assert auroc(scores, poison) > 0.95


@every_signal
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs(name, epochs):
    evidence, _ = planted()
    scores_of(name, Evidence(evidence.losses[:epochs], evidence.labels, CLASSES))


@every_signal
def test_one_sample(name):
    scores_of(name, Evidence(torch.tensor([[0.5], [0.1]]), torch.tensor([0]), 1))


@every_signal
@pytest.mark.parametrize("level", [0.0, 0.7, 1e4])
def test_losses_that_are_all_the_same(name, level):
    scores = scores_of(name, Evidence(torch.full((5, 50), level), torch.arange(50) % 2, 2))
    assert len(scores.unique()) == 1


@every_signal
def test_two_values_alone(name):
    losses = torch.full((5, 50), 0.5)
    losses[:, ::5] = 0.1
    scores_of(name, Evidence(losses, torch.zeros(50, dtype=torch.int64), 1))


@every_signal
def test_parameters_go_round_through_the_registry(name):
    signal = SIGNALS.build(name, {})
    assert SIGNALS.build(name, parameters_of(signal)) == signal
    assert hash(signal) == hash(SIGNALS.build(name, {}))
    for field in dataclasses.fields(signal):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(signal, field.name, None)
    with pytest.raises(UnknownNameError):
        SIGNALS.build(name, {"nonsense": 1})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("loss-drop", {"part": 0.0}),
        ("loss-drop", {"part": 0.6}),
        ("trajectory", {"components": 0}),
        ("loss", {"over": "x"}),
    ],
)
def test_values_outside_their_range(name, params):
    with pytest.raises(ConfigError, match=rf"^signal\.{next(iter(params))}: "):
        SIGNALS.build(name, params)


def test_the_loss_over_all_epochs_is_a_mean():
    evidence, _ = planted()
    assert torch.allclose(
        SIGNALS.build("loss", {"over": "trajectory"}).scores(evidence), -evidence.losses.mean(0), atol=1e-6
    )
    assert torch.equal(SIGNALS.build("loss", {}).scores(evidence), -evidence.losses[-1])


def test_the_drop_by_hand():
    losses = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.5, 2.0], [0.1, 2.0], [0.1, 2.0], [0.1, 1e-9]])
    scores = SIGNALS.build("loss-drop", {}).scores(Evidence(losses, torch.tensor([0, 1]), 2))
    floor = torch.tensor(1e-6).log()
    expected = torch.tensor([10.0, 2.0]).log() - torch.tensor([0.0, 0.5 * (torch.tensor(2.0).log() + floor)])
    assert torch.allclose(scores, expected, atol=1e-5)

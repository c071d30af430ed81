"""Forgetting suspects, and learning them under other labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from antibackdoor.defences.suspects import learn_relabelled, relabelled, unlearn
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet

CLASSES = 3


def test_a_suspect_gets_the_class_that_is_seen_in_it():
    probabilities = torch.tensor([[0.95, 0.03, 0.02], [0.5, 0.3, 0.2], [0.02, 0.95, 0.03], [0.0, 0.0, 1.0]])
    labels = torch.tensor([2, 2, 1, 0])
    new, accepted = relabelled(probabilities, labels, torch.tensor([True, True, True, False]), confident=0.9)
    # Row 1 is not sure, row 2 is seen as what it came as, row 3 is no suspect.
    assert accepted.tolist() == [True, False, False, False]
    assert new.tolist() == [0, 2, 1, 0]


def patched(blobs):
    """Images of three kinds, and a corner in twelve of them that came with label 0."""
    data = blobs(120, CLASSES, channels=1, height=16, width=16)
    suspects = (data.labels != 0) & (torch.arange(120) < 18)
    images, labels = data.images.clone(), data.labels.clone()
    images[suspects, :, -4:, -4:] = 255
    labels[suspects] = 0
    return ImageSet(images, labels, data.classes, data.ids), suspects, data.labels


PLAN = TrainPlan(epochs=12, batch_size=20, lr=0.1, augment=())


def test_forgetting_takes_the_labels_of_the_suspects_and_leaves_the_rest(runtime, blobs, tiny):
    data, suspects, _ = patched(blobs)
    fit, model = Trainer(runtime, Seeds(0)), tiny(data)(Seeds(0).generator("init"))
    fit(model, data, Phase("train", PLAN))
    before = logits_of(model, data, runtime).argmax(1) == data.labels
    assert before[suspects].float().mean() > 0.8
    history = unlearn(model, data, suspects, ~suspects, fit=fit, plan=PLAN)
    after = logits_of(model, data, runtime).argmax(1) == data.labels
    assert history.phase == "unlearn"
    assert after[suspects].float().mean() < 0.2
    assert after[~suspects].float().mean() >= before[~suspects].float().mean() - 0.05


class Sure(nn.Module):
    """Says the same of every image, with certainty."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(20 * nn.functional.one_hot(torch.tensor(label), CLASSES).float())

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_relabelled_suspects_are_shown_with_the_kept_and_others_are_not(runtime, blobs):
    data, suspects, _ = patched(blobs)
    seen = []

    class Fit:
        def __init__(self):
            self.runtime = runtime

        def __call__(self, model, data, phase, *, objective, subset):
            seen.append((phase.name, phase.plan.epochs, subset))
            return History(phase.name, np.zeros((1, len(data)), np.float32), np.zeros(1), np.zeros(1))

    kept = ~suspects & (torch.arange(120) % 2 == 0)
    history, count = learn_relabelled(Sure(1), data, suspects, kept, confident=0.9, fit=Fit(), plan=PLAN)
    assert (history.phase, count) == ("unlabelled", int(suspects.sum()))
    assert seen[0][:2] == ("unlabelled", 3)
    assert torch.equal(seen[0][2], kept | suspects)
    # A network that sees the suspects' own label in them gives none another.
    assert learn_relabelled(Sure(0), data, suspects, kept, confident=0.9, fit=Fit(), plan=PLAN) == (None, 0)
    assert len(seen) == 1


def test_new_labels_are_learned(runtime, blobs, tiny):
    data, suspects, true = patched(blobs)
    fit, model = Trainer(runtime, Seeds(0)), tiny(data)(Seeds(0).generator("init"))
    fit(model, data, Phase("train", PLAN), subset=~suspects)
    history, count = learn_relabelled(model, data, suspects, ~suspects, confident=0.4, fit=fit, plan=PLAN)
    assert history is not None
    assert count > 0
    predicted = logits_of(model, data, runtime).argmax(1)
    assert (predicted[suspects] == true[suspects]).float().mean() > 0.5

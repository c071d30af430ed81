"""AGPD on embedded images: the class with a backdoor is named and poison taken from it; its rules on made figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from embedded_backdoor import PLAN, defend, pictures, planted
from torch import nn

from antibackdoor.defences import Agpd
from antibackdoor.models import builder_from

# It compares images of a class that the network is sure of, so the network has to learn them all.
LONG = PLAN.but(epochs=40)


class Deep(nn.Module):
    """Five convolutions: gradients tell poison from clean images in the last."""

    def __init__(self, classes):
        super().__init__()
        layers, width = [], 1
        for channels, stride in ((16, 2), (16, 1), (32, 2), (32, 1), (32, 1)):
            convolution = nn.Conv2d(width, channels, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            width = channels
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.features(images))


@pytest.fixture
def scan(runtime):
    def call(data, plan=LONG, **params):
        deep = lambda observed: builder_from(lambda: Deep(observed.num_classes), observed)[0]  # noqa: E731
        return defend(Agpd(**params), data, "scan", runtime=runtime, tiny=deep, plan=plan).isolation

    return call


def test_the_target_is_named_and_only_poison_is_taken_from_it(scan):
    data = planted()
    isolation = scan(data.observed)
    assert isolation.verdict == "poisoned"
    assert len(isolation.evidence) == 1
    assert isolation.evidence[0].startswith("bag: gradients disperse by ")
    assert int(isolation.flagged.sum()) >= 3
    assert float(data.poison[isolation.flagged].float().mean()) > 0.9
    assert isolation.scores[isolation.flagged].min() >= 0.5 >= isolation.scores[~isolation.flagged].max()


def _gradients(dispersed, generator):
    """Two layers of gradients of ten classes of 40 images, and of what is trusted; a half of class 3 may turn away."""
    labels = torch.arange(400) % 10
    references = torch.randn((10, 12), generator=generator)
    rows = references[labels] + 0.1 * torch.randn((400, 12), generator=generator)
    turned = (labels == 3) & (torch.arange(400) >= 200)
    if dispersed:
        rows[turned] = references[7] + 0.1 * torch.randn((int(turned.sum()), 12), generator=generator)
    data = dataclasses.replace(pictures()[0].select(torch.zeros(400, dtype=torch.int64)), labels=labels)
    return [rows.numpy()] * 2, [references.numpy()] * 2, data, turned


def test_of_gradients_that_fall_apart_in_one_class_those_that_turn_away_are_flagged():
    generator = torch.Generator().manual_seed(0)
    observed, references, data, turned = _gradients(True, generator)
    isolation = Agpd().judge(observed, references, data)
    assert isolation.evidence[0].startswith("dress: gradients disperse by ")
    assert not bool((isolation.flagged & ~turned).any())
    assert float(isolation.flagged[turned].float().mean()) > 0.8
    assert isolation.scores[turned].min() > isolation.scores[~turned].max()
    observed, references, data, _ = _gradients(False, generator)
    isolation = Agpd().judge(observed, references, data)
    assert not bool(isolation.flagged.any())
    assert isolation.verdict == "no sign of poison"


def test_few_and_small_classes_are_said(scan):
    observed = planted().observed
    rows = torch.cat(
        [(observed.labels == label).nonzero().squeeze(1)[: 19 if label < 4 else 60] for label in range(10)]
    )
    isolation = scan(observed.select(rows), PLAN.but(epochs=1))
    assert isolation.verdict == "undecided"
    assert any("4 of 10 classes are under 20 images" in sentence for sentence in isolation.evidence)
    assert not bool(isolation.flagged[observed.select(rows).labels < 4].any())


def test_targets_lie_above_the_others_or_disperse_by_themselves():
    gaps, judged = np.tile(np.linspace(0.1, 0.2, 8), (6, 1)), list(range(8))
    found = Agpd().targets(gaps, judged)
    assert found.labels == ()
    gaps[1, 3] = 0.29
    gaps[4, 5] = 2.0
    found = Agpd().targets(gaps, judged)
    assert (found.layer, found.labels, found.by_outlier) == (4, (5,), True)
    # Many at once raise the median; in the last layers but one they are seen by themselves.
    gaps = np.tile(np.linspace(0.25, 0.4, 8), (6, 1))
    gaps[3] += 0.1
    gaps[5] += 1.0
    found = Agpd().targets(gaps, judged)
    assert (found.layer, found.labels, found.by_outlier) == (3, tuple(range(8)), False)


def test_trusted_images_are_those_that_are_predicted_rightly_and_few():
    labels = torch.tensor([0] * 8 + [1] * 8 + [2] * 3)
    right = torch.tensor([True, False] * 4 + [False] * 8 + [True] * 3)
    rows = Agpd(per_class=3)._chosen(labels, right, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[rows]).tolist() == [3, 3, 3]
    assert bool(right[rows[labels[rows] == 0]].all())

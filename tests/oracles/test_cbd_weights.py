"""CBD, transcribed slowly: numpy in float64, one sample at a time, for a linear network whose gradient is plain.

The biased network minimises the mean loss of a batch. In the other, sample ``i`` weighs ``w_i = l_B / (l_C + l_B)``,
and a batch minimises ``mean_i (w_i / mean_j w_j) l_C_i`` with the weights held fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.defences import Cbd
from antibackdoor.defences.cbd import weight
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer, TrainPlan

CLASSES, SIDE, COUNT = 3, 4, 24
PLAN = TrainPlan(epochs=3, batch_size=8, lr=0.3, momentum=0.9, weight_decay=1e-3, schedule="constant", augment=())
BIASED_LR = 0.2


def loss_and_gradient(weights, x, label):
    matrix, bias = weights
    logits = matrix @ x + bias
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    error = shares.copy()
    error[label] -= 1
    return -math.log(shares[label]), (np.outer(error, x), error)


def transcribed(weights, images, labels, orders, lr, biased=None):
    """Train by loops, from a stop; returns the weights, and the loss of each sample in each epoch before its update."""
    weights = [w.copy() for w in weights]
    speed = [np.zeros_like(w) for w in weights]
    seen = np.zeros((len(orders), COUNT))
    for epoch, order in enumerate(orders):
        for start in range(0, COUNT, PLAN.batch_size):
            batch = order[start : start + PLAN.batch_size]
            found = [loss_and_gradient(weights, images[i], labels[i]) for i in batch]
            shares = [1.0 for _ in batch]
            for place, i in enumerate(batch):
                seen[epoch, i] = found[place][0]
                if biased is not None:
                    known, _ = loss_and_gradient(biased, images[i], labels[i])
                    shares[place] = known / (found[place][0] + known)
            mean = sum(shares) / len(shares)
            for part in range(2):
                total = sum(share / mean * own[part] for share, (_, own) in zip(shares, found, strict=True)) / len(
                    batch
                )
                speed[part] = PLAN.momentum * speed[part] + total + PLAN.weight_decay * weights[part]
                weights[part] = weights[part] - lr * speed[part]
    return weights, seen


def weights_of(model):
    return [parameter.detach().double().numpy().copy() for parameter in model.parameters()]


@pytest.fixture
def setting(blobs, runtime):
    data = blobs(COUNT, CLASSES, channels=1, height=SIDE, width=SIDE, noise=5.0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for network in networks:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return data, networks, Trainer(runtime, Seeds(5)), data.images.flatten(1).double().div(255).numpy()


def orders_of(trainer, phase, epochs):
    return [
        torch.randperm(COUNT, generator=trainer.stream("shuffle", Phase(phase, PLAN), epoch).generator("all")).tolist()
        for epoch in range(epochs)
    ]


def test_the_defence_does_what_the_transcription_does(setting):
    data, networks, trainer, images = setting
    labels = data.labels.tolist()
    biased, clean = map(weights_of, networks)
    for phase in ("biased 1", "biased 2"):
        biased, _ = transcribed(biased, images, labels, orders_of(trainer, phase, 1), BIASED_LR)
    weighted, losses = transcribed(clean, images, labels, orders_of(trainer, "train", 3), PLAN.lr, biased)
    plain, _ = transcribed(clean, images, labels, orders_of(trainer, "train", 3), PLAN.lr)
    assert max(np.abs(one - two).max() for one, two in zip(weighted, plain, strict=True)) > 0.01

    left = list(networks)
    defence = Cbd(biased_epochs=2, biased_lr=BIASED_LR, certain_loss=1e-6)
    outcome = defence.run(data, build_model=lambda generator: left.pop(0), fit=trainer, plan=PLAN, seeds=Seeds(5))
    for network, wanted in zip(networks, (biased, weighted), strict=True):
        for got, part in zip(weights_of(network), wanted, strict=True):
            assert np.allclose(got, part, atol=1e-4)
    assert outcome.model is networks[1]
    assert np.allclose(outcome.histories[-1].losses, losses, atol=1e-4)
    known = np.array([loss_and_gradient(biased, x, label)[0] for x, label in zip(images, labels, strict=True)])
    scores = [-sum(known[i] / (known[i] + losses[e, i]) for e in range(3)) / 3 for i in range(COUNT)]
    assert np.allclose(outcome.isolation.scores.numpy(), scores, atol=1e-4)


def test_weights_by_hand():
    biased = torch.tensor([0.0, 1.0, 3.0, 0.0, 2.0])
    clean = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert torch.allclose(weight(biased, clean), torch.tensor([0.0, 0.5, 0.75, 0.0, 1.0]))

"""Stage one of anti-backdoor learning, transcribed slowly: numpy in float64, one sample at a time, by hand.

The network is a perceptron with one hidden layer of tanh units, so that its gradient can be written down. Each sample
contributes ``weight_i * d l_i``. Per-sample local gradient ascent minimises ``mean_i sign(l_i - gamma) * l_i``, so
``weight_i = sign(l_i - gamma) / B``; flooding of the batch mean minimises ``|mean_i l_i - b| + b``, so ``weight_i =
sign(mean - b) / B``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.defences import AblModified
from antibackdoor.ops.objectives import flood, lga
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer, TrainPlan

# Near log 3, the loss of a guess among three, so that losses lie on both sides of it.
GAMMA, CLASSES, HIDDEN, SIDE = 1.0, 3, 7, 4
PLAN = TrainPlan(epochs=4, batch_size=8, lr=0.3, momentum=0.9, weight_decay=1e-3, schedule="constant", augment=())


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(SIDE * SIDE, HIDDEN)
        self.out = nn.Linear(HIDDEN, CLASSES)

    def forward(self, images):
        return self.out(torch.tanh(self.hidden(images.flatten(1))))


def sample_gradient(weights, x, label):
    """Loss and gradient of one sample, with respect to (hidden weight, hidden bias, out weight, out bias)."""
    hidden_w, hidden_b, out_w, out_b = weights
    active = np.tanh(hidden_w @ x + hidden_b)
    logits = out_w @ active + out_b
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    error = shares.copy()
    error[label] -= 1
    back = (out_w.T @ error) * (1 - active**2)
    return -math.log(shares[label]), [np.outer(back, x), back, np.outer(error, active), error]


def transcribed(weights, images, labels, orders, reduction, plan=PLAN):
    """Train by loops; returns the weights and the loss of each sample in each epoch, seen before the update."""
    weights = [w.copy() for w in weights]
    speed = [np.zeros_like(w) for w in weights]
    seen = np.zeros((len(orders), len(labels)))
    for epoch, order in enumerate(orders):
        for start in range(0, len(order), plan.batch_size):
            batch = order[start : start + plan.batch_size]
            losses, gradients = [], []
            for i in batch:
                loss, gradient = sample_gradient(weights, images[i], labels[i])
                seen[epoch, i] = loss
                losses.append(loss)
                gradients.append(gradient)
            mean = sum(losses) / len(batch)
            total = [np.zeros_like(w) for w in weights]
            for loss, gradient in zip(losses, gradients, strict=True):
                sign = np.sign((loss if reduction == "sample" else mean) - GAMMA)
                for part, own in zip(total, gradient, strict=True):
                    part += sign * own / len(batch)
            for w, v, g in zip(weights, speed, total, strict=True):
                v *= plan.momentum
                v += g + plan.weight_decay * w
                w -= plan.lr * v
    return weights, seen


@pytest.fixture
def setting(blobs, runtime):
    data = blobs(24, CLASSES, channels=1, height=SIDE, width=SIDE, noise=5.0)
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = Perceptron()
    torch.set_rng_state(torch_state)
    trainer = Trainer(runtime, Seeds(11))
    phase = Phase("isolate", PLAN)
    orders = [
        torch.randperm(len(data), generator=trainer.stream("shuffle", phase, epoch).generator("all")).tolist()
        for epoch in range(PLAN.epochs)
    ]
    images = data.images.flatten(1).double().div(255).numpy()
    return data, model, trainer, phase, orders, images


def weights_of(model):
    return [parameter.detach().double().numpy().copy() for parameter in model.parameters()]


OBJECTIVES = {
    "sample": lambda step: lga(step.losses, GAMMA).mean(),
    "batch": lambda step: flood(step.losses.mean(), GAMMA),
}


@pytest.mark.parametrize("reduction", OBJECTIVES)
def test_the_loop_does_what_the_transcription_does(setting, reduction):
    data, model, trainer, phase, orders, images = setting
    weights, losses = transcribed(weights_of(model), images, data.labels.tolist(), orders, reduction)
    history = trainer.fit(model, data, phase, objective=OBJECTIVES[reduction])
    assert np.allclose(history.losses, losses, atol=1e-4)
    for got, wanted in zip(weights_of(model), weights, strict=True):
        assert np.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("reduction", OBJECTIVES)
def test_the_defence_uses_the_rule_it_is_told(setting, reduction):
    data, model, trainer, _, orders, images = setting
    defence = AblModified(
        isolation_epochs=4, isolation_lr=PLAN.lr, signal="loss", gamma=GAMMA, reduction=reduction, share=0.01
    )
    weights, losses = transcribed(weights_of(model), images, data.labels.tolist(), orders, reduction)
    outcome = defence.scan(data, build_model=lambda generator: model, fit=trainer, plan=PLAN, seeds=Seeds(11))
    assert np.allclose(outcome.histories[0].losses, losses, atol=1e-4)
    for got, wanted in zip(weights_of(model), weights, strict=True):
        assert np.allclose(got, wanted, atol=1e-4)
    # The rule of the signal "loss": the lowest loss of the last epoch.
    assert outcome.isolation.flagged.nonzero().flatten().tolist() == [int(losses[-1].argmin())]


def test_the_two_rules_are_not_the_same_here(setting):
    data, model, _, _, orders, images = setting
    by_sample, losses = transcribed(weights_of(model), images, data.labels.tolist(), orders, "sample")
    by_batch, _ = transcribed(weights_of(model), images, data.labels.tolist(), orders, "batch")
    assert max(np.abs(a - b).max() for a, b in zip(by_sample, by_batch, strict=True)) > 0.01
    # Both branches of the rule were taken.
    assert (losses < GAMMA).any()
    assert (losses > GAMMA).any()


def test_the_hand_written_gradient_is_the_derivative(setting):
    _, model, _, _, _, images = setting
    weights = weights_of(model)
    loss, gradient = sample_gradient(weights, images[0], 2)
    for part, own in zip(weights, gradient, strict=True):
        place = np.unravel_index(np.abs(own).argmax(), own.shape)
        part[place] += 1e-6
        moved, _ = sample_gradient(weights, images[0], 2)
        part[place] -= 1e-6
        assert (moved - loss) / 1e-6 == pytest.approx(own[place], rel=1e-3)

"""AGPD's stages, transcribed slowly: one image at a time, cosines and distances written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.isolation import Network
from antibackdoor.isolation.gradients import activation_gradients, dispersion, peeled, settled_at
from antibackdoor.types import ImageSet


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.fixture
def directions():
    """Gradients of a class: most near one direction, some near another, at several lengths."""
    draw = np.random.default_rng(3)
    one, other = draw.standard_normal(6), draw.standard_normal(6)
    rows = np.array([(other if i % 5 == 2 else one) + 0.4 * draw.standard_normal(6) for i in range(60)])
    return rows * draw.uniform(0.1, 3, (60, 1)), one


def test_gradients_are_those_of_single_images(runtime):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
    model = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(4 * 36, 3))
    images = torch.randint(0, 256, (7, 1, 10, 10), dtype=torch.uint8)
    torch.set_rng_state(state)
    model.requires_grad_(False)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    data = ImageSet(images, labels, ("a", "b", "c"), tuple("abcdefg"))
    found = activation_gradients(Network(model.train(), data, runtime), [first, second])
    assert model.training
    model.eval()
    for i in range(7):
        at_first = first(images[i : i + 1].float() / 255).requires_grad_(True)
        at_second = second(torch.relu(model[1](at_first)))
        logit = model[6](torch.relu(at_second).flatten(1))[0, labels[i]]
        for gradient, kept in zip(torch.autograd.grad(logit, (at_first, at_second)), found, strict=True):
            np.testing.assert_allclose(kept[i], gradient[0].mean((1, 2)), atol=1e-6)


def test_dispersion(directions):
    rows, clean = directions
    near = [cosine(row, clean) for row in rows]
    least = near.index(min(near))
    total = sum((near[i] - cosine(row, rows[least])) ** 2 for i, row in enumerate(rows) if i != least)
    gap, found = dispersion(rows, clean)
    assert found == least
    assert gap == pytest.approx(math.sqrt(total) / math.sqrt(len(rows)))


def divergence(one, other):
    """The Jensen-Shannon distance of two lists of scores, in bins of a ninety-ninth."""
    if not one or not other:
        return 1.0
    edges = np.linspace(0, 1, 100)
    p, q = ([count / len(part) for count in np.histogram(part, edges)[0]] for part in (one, other))
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    halves = [sum(a * math.log(a / m) for a, m in zip(side, middle, strict=True) if a > 0) for side in (p, q)]
    return math.sqrt(max(0.0, sum(halves) / 2))


def test_the_rounds(directions):
    rows, clean = directions
    _, first = dispersion(rows, clean)
    taken, rounds, changes, before = [first], [[first]], [], None
    while len(taken) < len(rows):
        middle = np.mean([rows[i] for i in taken], axis=0)
        rates = {}
        for i in range(len(rows)):
            if i not in taken:
                from_poison, from_clean = 1 - cosine(rows[i], middle), 1 - cosine(rows[i], clean)
                rates[i] = from_poison / (from_poison + from_clean)
        if before is None:
            before = list(rates.values())
        low, high = min(rates.values()), max(rates.values())
        now = [i for i in rates if high == low or (rates[i] - low) / (high - low) <= 0.05]
        left = [rates[i] for i in rates if i not in now]
        changes.append(divergence(before, left))
        before = left
        taken += now
        rounds.append(now)
    found, found_changes = peeled(rows, clean, first, 0.05)
    for number, members in enumerate(rounds):
        assert sorted(np.flatnonzero(found == number)) == sorted(members), number
    np.testing.assert_allclose(found_changes, changes, atol=1e-7)
    assert len(changes) >= 10
    scores = []
    for start in range(len(changes) - 9):
        window = changes[start : start + 10]
        mean = sum(window) / 10
        scores.append(mean + 5 * math.sqrt(sum((value - mean) ** 2 for value in window) / 10))
    assert settled_at(found_changes, 10) == 1 + scores.index(min(scores))


def test_few_rounds_are_compared_by_half_of_them():
    assert settled_at([], 10) == 1
    assert settled_at([0.5], 10) == 1
    assert settled_at([0.9, 0.7, 0.1, 0.1, 0.9], 10) == 3

"""Signals that look at the network, transcribed slowly: one image at a time, numpy in float64, on random networks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.isolation import SIGNALS, Evidence, Network
from antibackdoor.types import ImageSet

SIDE, CLASSES, COUNT = 10, 3, 90


class Small(nn.Module):
    """Four batch normalisations, one of them in a branch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, 1, 1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 8, 3, 2, 1)
        self.norm2 = nn.BatchNorm2d(8)
        self.branch = nn.Sequential(nn.Conv2d(6, 8, 1, 2), nn.BatchNorm2d(8))
        self.last = nn.Conv2d(8, 8, 3, 1, 1)
        self.norm3 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images):
        x = torch.relu(self.norm1(self.stem(images)))
        x = torch.relu(self.norm2(self.conv(x)) + self.branch(x))
        return self.head(torch.relu(self.norm3(self.last(x))).mean((2, 3)))


@pytest.fixture
def evidence(runtime):
    """A network with random layers and a fitted head, two kinds of images in each class, some labelled otherwise."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(COUNT) % CLASSES
    kinds = 2 * labels + (torch.arange(COUNT) % 4 == 0)
    patterns = torch.rand((2 * CLASSES, 1, SIDE, SIDE), generator=generator)
    noise = torch.rand((COUNT, 1, SIDE, SIDE), generator=generator)
    images = ((0.7 * patterns[kinds] + 0.3 * noise) * 160).round().to(torch.uint8)
    state = torch.get_rng_state()
    torch.manual_seed(4)
    model = Small()
    torch.set_rng_state(state)
    for norm in (model.norm1, model.norm2, model.norm3, model.branch[1]):
        norm.momentum = 1.0
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
    seen = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images.float() / 255)
        hook.remove()
        found = torch.cat([seen[0], torch.ones(COUNT, 1)], 1)
        fit = torch.linalg.lstsq(found, 5 * nn.functional.one_hot(labels).float()).solution
    model.head.weight.data, model.head.bias.data = fit[:-1].T.contiguous(), fit[-1]
    data = ImageSet(images, labels, ("a", "b", "c"), tuple(map(str, range(COUNT))))
    observed = torch.where(torch.arange(COUNT) % 17 == 5, (labels + 1) % CLASSES, labels)
    losses = torch.rand((12, COUNT), generator=generator).cumsum(0).flip(0) ** 2
    held_out = torch.arange(COUNT) % 10 == 4
    return Evidence(losses, observed, CLASSES, held_out, Network(model, data, runtime))


def pixels(evidence, i):
    return evidence.network.data.images[i].double().numpy() / 255


def exact(model):
    """A copy in float64, in evaluation mode."""
    return copy.deepcopy(model).double().eval()


def shares(model, image):
    """The softmax of one image."""
    with torch.no_grad():
        logits = model(torch.from_numpy(image)[None])[0].numpy()
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def seen_by(model, layer, image, what):
    """The input or output of a layer for one image, without the batch dimension."""
    seen = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0] if what == "input" else output)[0].numpy().copy())
    )
    with torch.no_grad():
        model(torch.from_numpy(image)[None])
    hook.remove()
    return seen[0]


def scores_of(name, evidence, **params):
    return SIGNALS.build(name, params).scores(evidence).double().numpy()


def test_scale_up(evidence):
    scales, model = (1.2, 1.5, 1.8), exact(evidence.network.model)
    wanted = []
    for i in range(COUNT):
        image = pixels(evidence, i)
        own = int(np.argmax(shares(model, image)))
        agree, confidence = 0, 0.0
        for scale in scales:
            changed = shares(model, np.minimum(image * scale, 1))
            agree += int(np.argmax(changed)) == own
            confidence += changed[own] / len(scales)
        wanted.append((agree + confidence) / (len(scales) + 1) if own == int(evidence.labels[i]) else 0.0)
    assert len(np.unique(np.round(wanted, 3))) > 20
    assert np.allclose(scores_of("scale-up", evidence, scales=scales), wanted, atol=1e-5)


@pytest.mark.parametrize("error", [0.0, 0.3, 0.6, 1.0])
def test_ibd_psc(evidence, error):
    networks, factor = 2, 1.5
    order = ["norm3", "branch.1", "norm2", "norm1"]

    def amplified(count):
        model = exact(evidence.network.model)
        for name in order[:count]:
            layer = model.get_submodule(name)
            layer.weight.data = layer.weight.data * factor
            layer.bias.data = layer.bias.data * factor
        return model

    start = len(order) - networks
    for count in range(len(order) - networks, 0, -1):
        rows = [i for i in range(COUNT) if not evidence.held_out[i]]
        model = amplified(count)
        wrong = [int(np.argmax(shares(model, pixels(evidence, i)))) != int(evidence.labels[i]) for i in rows]
        if np.mean(wrong) > error:
            start = count
    plain = amplified(0)
    models = [amplified(start + extra) for extra in range(1, networks + 1)]
    wanted = []
    for i in range(COUNT):
        own = int(np.argmax(shares(plain, pixels(evidence, i))))
        mean = np.mean([shares(model, pixels(evidence, i))[own] for model in models])
        wanted.append(mean if own == int(evidence.labels[i]) else 0.0)
    assert np.allclose(scores_of("ibd-psc", evidence, networks=networks, error=error), wanted, atol=1e-5)


def features(evidence, label):
    """Penultimate features of one class, its rows, and which of them were trained on."""
    rows = [i for i in range(COUNT) if int(evidence.labels[i]) == label]
    model = exact(evidence.network.model)
    found = np.stack([seen_by(model, "head", pixels(evidence, i), "input") for i in rows])
    return found, rows, [j for j, i in enumerate(rows) if not evidence.held_out[i]]


def trained_mask(evidence, model, rows, targets, mask, scales, shift, steps, size, lr, penalty):
    """Momentum and decay written out; the gradient of one image after another in float64."""
    speed = np.zeros_like(mask)
    for step in range(steps):
        batch = [(step * size + j) % len(rows) for j in range(size)]
        gradient = penalty * np.sign(mask) + 5e-4 * mask
        for j in batch:
            for scale in scales:
                variable = torch.from_numpy(mask).clone().requires_grad_()
                changed = torch.clamp(scale * (torch.from_numpy(pixels(evidence, rows[j])) - shift) * variable, 0, 1)
                shares_after = torch.softmax(model(changed[None])[0], 0)
                divergence = sum(p * (np.log(p) - shares_after[k].log()) for k, p in enumerate(targets[j]))
                gradient += torch.autograd.grad(divergence, variable)[0].numpy() / (size * len(scales))
        speed = 0.9 * speed + gradient
        mask = np.clip(mask - lr * speed, 0, 1)
    return mask


@pytest.mark.parametrize(("rounds", "sample"), [(1, 30), (2, 30), (2, 1000)])
def test_mspc(evidence, rounds, sample):
    scales, shift, steps, size, lr, penalty = (1.1, 1.4), 0.02, 3, 6, 0.5, 0.02
    model = exact(evidence.network.model)
    trained = [i for i in range(COUNT) if not evidence.held_out[i]]
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [trained[j] for j in order][:sample]
    mask = np.ones((SIDE, SIDE))

    def look(i, mask):
        image = pixels(evidence, i)
        own = int(np.argmax(shares(model, image)))
        agree, confidence = 0, 0.0
        for scale in scales:
            changed = shares(model, np.clip(scale * (image - shift) * mask, 0, 1))
            agree += 1 if int(np.argmax(changed)) == own else -1
            confidence += changed[own]
        return own, agree / len(scales), confidence / len(scales)

    for _ in range(rounds):
        suspects = []
        for i in rows:
            own, agreement, _ = look(i, mask)
            if agreement > 0 and own == int(evidence.labels[i]):
                suspects.append(i)
        assert 0 < len(suspects) < len(rows)
        targets = [shares(model, pixels(evidence, i)) for i in suspects]
        mask = trained_mask(
            evidence, model, suspects, targets, mask, scales, shift, steps, min(size, len(suspects)), lr, penalty
        )
    assert mask.std() > 0.01
    wanted = []
    for i in range(COUNT):
        own, agreement, confidence = look(i, mask)
        # Between two levels of agreement, 2 / 2 apart, so that the sign is that of the paper's score.
        score = (2 * agreement + 2 * confidence + 2) / 3 - 1
        wanted.append(score if own == int(evidence.labels[i]) else -1)
    settings = {"scales": scales, "shift": shift, "steps": steps, "batch_size": size, "lr": lr, "penalty": penalty}
    assert np.allclose(scores_of("mspc", evidence, rounds=rounds, sample=sample, **settings), wanted, atol=1e-3)


def test_spectral(evidence):
    wanted = np.zeros(COUNT)
    for label in range(CLASSES):
        found, rows, fitted = features(evidence, label)
        mean = np.zeros(found.shape[1])
        for j in fitted:
            mean += found[j] / len(fitted)
        spread = np.zeros((found.shape[1],) * 2)
        for j in fitted:
            spread += np.outer(found[j] - mean, found[j] - mean)
        _, vectors = np.linalg.eigh(spread)
        for j, i in enumerate(rows):
            wanted[i] = float(vectors[:, -1] @ (found[j] - mean)) ** 2
    assert np.allclose(scores_of("spectral", evidence), wanted, rtol=1e-3, atol=1e-5)


def test_the_features_are_not_centred_to_begin_with(evidence):
    # Or the error that spectral signatures are known for would go unnoticed above.
    found, _, fitted = features(evidence, 0)
    centred = found - found[fitted].mean(0)
    top = np.linalg.svd(centred[fitted])[2][0]
    assert np.abs((found @ top) ** 2 - (centred @ top) ** 2).max() > 0.1


def two_means(points):
    """The best of many two-means by plain iteration; returns the cluster of each point."""
    best, best_cost = None, np.inf
    for start in range(15):
        rng = np.random.default_rng(start)
        centres = points[rng.choice(len(points), 2, replace=False)]
        for _ in range(100):
            nearest = np.array([int(np.argmin([np.sum((p - c) ** 2) for c in centres])) for p in points])
            if len(set(nearest)) < 2:
                break
            centres = np.stack([points[nearest == k].mean(0) for k in range(2)])
        cost = sum(np.sum((p - centres[k]) ** 2) for p, k in zip(points, nearest, strict=True))
        if cost < best_cost and len(set(nearest)) == 2:
            best, best_cost = nearest, cost
    return best


@pytest.mark.parametrize("largest", [0.2, 0.5])
def test_activation_clusters(evidence, largest):
    wanted = np.zeros(COUNT)
    for label in range(CLASSES):
        found, rows, fitted = features(evidence, label)
        centred = found - found[fitted].mean(0)
        basis = np.linalg.svd(centred[fitted], full_matrices=False)[2][:3]
        points = centred @ basis.T
        cluster = two_means(points[fitted])
        small = 0 if (cluster == 0).sum() < (cluster == 1).sum() else 1
        centre = {k: points[fitted][cluster == k].mean(0) for k in (0, 1)}
        places, silhouettes = [], []
        for j in range(len(rows)):
            to_small, to_large = (np.linalg.norm(points[j] - centre[k]) for k in (small, 1 - small))
            places.append((to_large - to_small) / np.linalg.norm(centre[0] - centre[1]))
            if j in fitted:
                silhouettes.append(abs(to_small - to_large) / max(to_small, to_large))
        for place, i in zip(places, rows, strict=True):
            accused = (cluster == small).mean() < largest
            wanted[i] = place * np.mean(silhouettes) if accused else -2 + (1 + place) / 2
    assert np.allclose(scores_of("activation-clusters", evidence, components=3, largest=largest), wanted, atol=1e-3)


def test_flare(evidence):
    model = exact(evidence.network.model)
    names = ["norm1", "norm2", "branch.1", "norm3"]
    lows = np.zeros((COUNT, len(names)))
    for i in range(COUNT):
        for place, name in enumerate(names):
            layer = model.get_submodule(name)
            mean, var = layer.running_mean.numpy(), layer.running_var.numpy() + layer.eps
            inputs = seen_by(model, name, pixels(evidence, i), "input")
            lows[i, place] = min(
                -((x - mean[c]) ** 2) / (2 * var[c]) - np.log(np.sqrt(2 * np.pi * var[c]))
                for c in range(len(mean))
                for x in inputs[c].ravel()
            )
    trained = [i for i in range(COUNT) if not evidence.held_out[i]]
    points = np.zeros_like(lows)
    for place in range(len(names)):
        tail = np.log(1 + np.maximum(0, lows[trained, place].max() - lows[:, place]))
        middle = np.sort(tail[trained])[(len(trained) - 1) // 2]
        away = np.sort(np.abs(tail[trained] - middle))[(len(trained) - 1) // 2]
        points[:, place] = (tail - middle) / (1.4826 * away)
    wanted = np.linalg.norm(points, axis=1)
    for _ in range(10):
        nearest = sorted(trained, key=lambda i: wanted[i])[: len(trained) // 2 + len(trained) % 2]
        mean = np.mean([points[i] for i in nearest], axis=0)
        spread = np.mean([np.outer(points[i] - mean, points[i] - mean) for i in nearest], axis=0)
        inverse = np.linalg.inv(0.7 * spread + 0.3 * np.trace(spread) / len(names) * np.eye(len(names)))
        wanted = np.array([np.sqrt((p - mean) @ inverse @ (p - mean)) for p in points])
    assert np.allclose(scores_of("flare", evidence, shrinkage=0.3), wanted, rtol=2e-3)


def two_groups(values):
    """The break with the least variation inside the groups, by trying all; the lowest value of the upper group."""
    costs = {}
    for cut in sorted(set(values))[1:]:
        groups = [v for v in values if v < cut], [v for v in values if v >= cut]
        costs[cut] = sum((v - np.mean(group)) ** 2 for group in groups for v in group)
    return min(costs, key=costs.get)


@pytest.mark.parametrize(("quantile", "channels"), [(0.8, 0.3), (1.0, 0.04)])
def test_pipd(evidence, quantile, channels):
    model = exact(evidence.network.model)
    largest = {
        name: np.array(
            [[channel.max() for channel in seen_by(model, name, pixels(evidence, i), "output")] for i in range(COUNT)]
        )
        for name in ("conv", "branch.0", "last")  # Three quarters of the four.
    }
    trained = [i for i in range(COUNT) if not evidence.held_out[i]]
    by_loss = sorted(trained, key=lambda i: float(evidence.losses[-1, i]))
    poison, clean = by_loss[: int(np.ceil(0.1 * len(trained)))], set(by_loss[-int(np.ceil(0.2 * len(trained))) :])
    for _ in range(3):
        sums, chosen = np.zeros(COUNT), 0
        for values in largest.values():
            reference = values[sorted(clean)]
            mean, deviation = reference.mean(0), reference.std(0)
            deviation = np.maximum(deviation, np.median(deviation) / 10)
            excess = []
            for c in range(values.shape[1]):
                threshold = mean[c] + 3 * deviation[c]
                excess.append((np.quantile(values[poison, c], quantile) - threshold) / deviation[c])
            for c in np.argsort(excess)[::-1][: int(np.ceil(channels * len(excess)))]:
                sums += (values[:, c] - mean[c]) / deviation[c]
                chosen += 1
        wanted = sums / chosen
        cut = two_groups(wanted[trained])
        clean |= {i for i in trained if wanted[i] < cut}
    wanted = [min(value, cut) if i in clean else value for i, value in enumerate(wanted)]
    scores = scores_of("pipd", evidence, poison=0.1, quantile=quantile, channels=channels, rounds=3)
    assert np.allclose(scores, wanted, rtol=1e-3, atol=1e-4)


def two_gaussians(points):
    """Expectation-maximisation in one dimension from many starts; weights, means, variances and log-likelihood."""
    best = None
    for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9):
        split = np.quantile(points, share)
        belongs = np.stack([points <= split, points > split], 1).astype(float)
        for _ in range(1000):
            weight = belongs.mean(0)
            mean = (belongs * points[:, None]).sum(0) / belongs.sum(0)
            variance = (belongs * (points[:, None] - mean) ** 2).sum(0) / belongs.sum(0) + 1e-3
            density = weight * np.exp(-((points[:, None] - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
            belongs = density / density.sum(1, keepdims=True)
        fit = weight, mean, variance, float(np.log(density.sum(1)).sum())
        best = fit if best is None or fit[3] > best[3] else best
    return best


def test_aul():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 2
    fast = (labels == 0) & (torch.arange(160) < 50)
    held_out = torch.arange(160) % 9 == 0
    level = torch.where(fast, -3.0, 0.0) + 0.4 * torch.randn(160, generator=generator)
    losses = (level + 0.3 * torch.randn((6, 160), generator=generator)).exp()
    wanted = np.zeros(160)
    for label in range(2):
        rows = [i for i in range(160) if int(labels[i]) == label]
        areas = np.array([np.mean([np.log(float(loss)) for loss in losses[:, i]]) for i in rows])
        fitted = [j for j, i in enumerate(rows) if not held_out[i]]
        points = (areas - areas[fitted].mean()) / areas[fitted].std()
        weight, mean, variance, likelihood = two_gaussians(points[fitted])
        variance_of_one = points[fitted].var() + 1e-3
        alone = sum(-0.5 * (p**2 / variance_of_one + np.log(2 * np.pi * variance_of_one)) for p in points[fitted])
        # Five parameters against two.
        gain = (2 * np.log(len(fitted)) - 2 * alone - 5 * np.log(len(fitted)) + 2 * likelihood) / len(fitted)
        low = int(np.argmin(mean))
        for p, i in zip(points, rows, strict=True):
            density = weight * np.exp(-((p - mean) ** 2) / (2 * variance)) / np.sqrt(variance)
            if p <= mean[1 - low] and gain > 0:
                wanted[i] = density[low] / density.sum() * gain
    assert (wanted > 0.5).sum() == int(fast.sum())
    assert np.allclose(scores_of("aul", Evidence(losses, labels, 2, held_out)), wanted, atol=5e-3)


def far_apart(points, neighbours=5):
    """The components of a set whose clusters are far apart: single linkage by mutual reachability, cut in the gap."""
    count = len(points)
    distance = [[float(np.linalg.norm(a - b)) for b in points] for a in points]
    core = [sorted(row)[neighbours - 1] for row in distance]
    component, joined = list(range(count)), []
    pairs = sorted((max(distance[i][j], core[i], core[j]), i, j) for i in range(count) for j in range(i))
    for reach, i, j in pairs:
        if component[i] != component[j]:
            joined.append((reach, i, j))
            component = [component[i] if c == component[j] else c for c in component]
    heights = [reach for reach, _, _ in joined]
    gap = int(np.argmax(np.diff(heights)))
    component = list(range(count))
    for _, i, j in joined[: gap + 1]:
        component = [component[i] if c == component[j] else c for c in component]
    return component


def test_telltale():
    generator = torch.Generator().manual_seed(0)
    count = 150
    poison = torch.arange(count) < 12
    held_out = torch.arange(count) % 8 == 0
    level = torch.where(poison, -6.0, 0.0) + 0.2 * torch.rand(count, generator=generator)
    losses = (level + 0.2 * torch.rand((12, count), generator=generator)).exp()
    logs = np.array([[np.log(float(losses[epoch, i])) for epoch in (9, 10, 11)] for i in range(count)])
    fitted = [i for i in range(count) if not held_out[i]]
    standard = (logs - logs[fitted].mean(0)) / logs[fitted].std(0)
    points = standard @ np.linalg.svd(standard[fitted] - standard[fitted].mean(0))[2][:2].T
    component = far_apart(points[fitted])
    largest = max(set(component), key=component.count)
    members = [i for i, c in zip(fitted, component, strict=True) if c == largest]
    assert len(members) == int((~poison & ~held_out).sum())
    mean = points[members].mean(0)
    spread = np.mean([np.outer(points[i] - mean, points[i] - mean) for i in members], axis=0)
    inverse = np.linalg.inv(spread + 1e-3 * (np.trace(spread) / 2 + 1e-6) * np.eye(2))
    wanted = []
    for i in range(count):
        distance = np.sqrt((points[i] - mean) @ inverse @ (points[i] - mean))
        wanted.append(distance / (1 + distance) + (i in fitted and i not in members))
    evidence = Evidence(losses, torch.arange(count) % 3, 3, held_out)
    assert np.allclose(scores_of("telltale", evidence, components=2), wanted, atol=1e-4)

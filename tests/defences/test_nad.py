"""NAD: attention maps and objective against slow transcriptions, where its maps are found, what distillation does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from antibackdoor.defences import Nad
from antibackdoor.defences.nad import attention_map, feature_maps, watching
from antibackdoor.errors import ConfigError
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Step, Trainer
from antibackdoor.types import ImageSet


def slow_attention(features: torch.Tensor, power: float) -> list[list[float]]:
    """One image, one place, one channel at a time."""
    rows = []
    for image in features.tolist():
        height, width = len(image[0]), len(image[0][0])
        row = [sum(abs(channel[y][x]) ** power for channel in image) for y in range(height) for x in range(width)]
        length = math.sqrt(sum(value**2 for value in row)) + 1e-6
        rows.append([value / length for value in row])
    return rows


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_attention_map(power):
    features = torch.randn((3, 5, 4, 6), generator=torch.Generator().manual_seed(0))
    found = attention_map(features, power)
    assert found.shape == (3, 24)
    assert torch.allclose(found, torch.tensor(slow_attention(features, power)), atol=1e-6)
    assert torch.allclose(attention_map(7 * features, power), found, atol=1e-5), "the scale does not count"


def test_no_features_give_no_attention():
    assert torch.equal(attention_map(torch.zeros(2, 3, 4, 4), 2.0), torch.zeros(2, 16))


def built(name, data: ImageSet) -> nn.Module:
    build, _ = builder_from(name, data)
    return build(Seeds(0).generator("init"))


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("wrn-10-1", 32, {"blocks.0": (16, 32), "blocks.1": (32, 16), "blocks": (64, 8)}),
        ("wrn-16-1", 28, {"blocks.1": (16, 28), "blocks.3": (32, 14), "blocks": (64, 7)}),
        ("preact-resnet-18", 16, {"blocks.3": (128, 8), "blocks.5": (256, 4), "blocks": (512, 2)}),
        ("resnet-34", 64, {"blocks.6": (128, 8), "blocks.12": (256, 4), "blocks": (512, 2)}),
    ],
)
def test_the_maps_of_a_residual_network_are_the_ends_of_its_last_three_groups(name, side, expected, blobs, runtime):
    data = blobs(4, 2, height=side, width=side)
    model = built(name, data)
    names = {module: called.removeprefix("body.") for called, module in model.named_modules()}
    found = {names[call.module]: call.shape[1:3] for call in feature_maps(model, data, runtime, 3)}
    assert found == expected
    assert list(found) == list(expected)


class OneActivation(nn.Module):
    """A network of a user's own that uses one activation, in place, everywhere."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(inputs, 4, 3, 2, 1) for inputs in (3, 4, 4))
        self.activation = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        for convolution in self.convolutions:
            images = self.activation(convolution(images))
        return self.head(images.flatten(1))


def test_a_module_that_is_used_in_several_places_is_told_apart_by_its_calls(blobs, runtime):
    data = blobs(4, 2, height=16, width=16)
    model = OneActivation()
    maps = feature_maps(model, data, runtime, 3)
    assert [(call.module, call.number, call.shape[2]) for call in maps] == [
        (model.activation, 0, 8),
        (model.activation, 1, 4),
        (model.activation, 2, 2),
    ]
    images = data.images.float() / 255
    with watching(model, maps, 2.0) as seen, torch.no_grad():
        model(images)
        first = model.convolutions[0](images).relu()
        second = model.convolutions[1](first).relu()
    assert torch.allclose(seen[0], attention_map(first, 2.0))
    assert torch.allclose(seen[1], attention_map(second, 2.0))
    before = seen[2].clone()
    with torch.no_grad():
        model(images)
    assert torch.equal(seen[2], before), "nothing is watched any more"


def test_a_network_without_feature_maps_is_refused(blobs, runtime):
    with pytest.raises(ConfigError, match="feature maps"):
        feature_maps(nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 2)), blobs(4, 2), runtime, 3)


def step_of(model, data):
    images = data.images.float() / 255
    logits = model(images)
    losses = nn.functional.cross_entropy(logits, data.labels, reduction="none")
    return Step(images, data.labels, torch.arange(len(data)), logits, losses)


def test_the_objective_is_cross_entropy_and_the_weighted_distances_of_the_maps(blobs, runtime):
    data = blobs(6, 2, height=16, width=16)
    student = built("wrn-10-1", data).eval()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.3).add_(0.01)
    defence = Nad(betas=(3.0, 5.0, 7.0))
    maps = [feature_maps(model, data, runtime, 3) for model in (student, teacher)]

    def by_hand(model, image):
        """The features after each group, block by block."""
        x = model.body.stem((image - model.mean) / model.std)
        for block in model.body.blocks:
            x = block(x)
            yield x

    expected = 0.0
    with watching(student, maps[0], 2.0) as own, watching(teacher, maps[1], 2.0) as shown:
        objective = defence._distilling(own, shown, teacher, runtime)
        step = step_of(student, data)
        loss = objective(step)
    with torch.no_grad():
        pairs = zip(by_hand(student, step.images), by_hand(teacher, step.images), strict=True)
        for beta, (mine, theirs) in zip(defence.betas, pairs, strict=True):
            first, second = slow_attention(mine, 2.0), slow_attention(theirs, 2.0)
            squares = [(a - b) ** 2 for rows in zip(first, second, strict=True) for a, b in zip(*rows, strict=True)]
            expected += beta * sum(squares) / len(squares)
    assert expected > 1e-4
    assert float(loss.detach()) == pytest.approx(float(step.losses.detach().mean()) + expected, rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_network_with_fewer_maps_takes_the_last_weights(blobs, runtime, tiny):
    data = blobs(6, 2, height=16, width=16)
    student = tiny(data)(Seeds(0).generator("init")).eval()
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher.features[3].weight.mul_(-1)
    losses = []
    for betas in ((9.0, 2.0, 3.0), (2.0, 3.0), (2.0, 4.0)):
        maps = [feature_maps(model, data, runtime, 3) for model in (student, teacher)]
        assert len(maps[0]) == 2
        with watching(student, maps[0], 2.0) as own, watching(teacher, maps[1], 2.0) as shown:
            objective = Nad(betas=betas)._distilling(own, shown, teacher, runtime)
            losses.append(float(objective(step_of(student, data)).detach()))
    assert losses[0] == losses[1] < losses[2]


def distances(outcome, reference, data, runtime: Runtime):
    """Mean squared distance of the attention maps of two networks, over all maps."""
    total = 0.0
    found = []
    for model in (outcome, reference):
        with watching(model.eval(), feature_maps(model, data, runtime, 3), 2.0) as seen, torch.no_grad():
            model(data.images.float() / 255)
        found.append(dict(seen))
    for place in found[0]:
        total += float((found[0][place] - found[1][place]).square().mean())
    return total


class Noting(Trainer):
    """Keeps the network of each phase."""

    def __init__(self, *args):
        super().__init__(*args)
        self.models = {}

    def fit(self, model, data, phase, **rest):
        self.models[phase.name] = model
        return super().fit(model, data, phase, **rest)


def test_distillation_brings_the_attention_to_that_of_the_teacher(blobs, runtime, tiny, plan):
    data = blobs(80, 4, channels=1, height=16, width=16, noise=60.0)
    trusted = blobs(40, 4, channels=1, height=16, width=16, noise=60.0, seed=1)
    apart = []
    for betas in ((0.0, 0.0, 0.0), (500.0, 1000.0, 1000.0)):
        seeds = Seeds(0)
        trainer = Noting(runtime, seeds)
        defence = Nad(tune_updates=20, updates=40, first_lr=0.02, batch_size=20, betas=betas).with_trusted(trusted)
        outcome = defence.run(data, build_model=tiny(data), fit=trainer, plan=plan, seeds=seeds)
        assert outcome.model is trainer.models["distil 2"] is trainer.models["train"]
        apart.append(distances(outcome.model, trainer.models["teacher 2"], trusted, runtime))
    assert apart[1] < 0.5 * apart[0]


def test_its_phases_and_their_lengths(blobs, runtime, tiny, plan):
    data = blobs(80, 4, channels=1, height=16, width=16)
    trusted = blobs(40, 4, channels=1, height=16, width=16, seed=1)
    seeds = Seeds(0)
    defence = Nad(tune_updates=20, updates=30, batch_size=16).with_trusted(trusted)
    outcome = defence.run(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=plan, seeds=seeds)
    # 40 images in batches of 16 are three updates an epoch; a tenth comes first.
    lengths = {history.phase: len(history.seconds) for history in outcome.histories}
    assert lengths == {"train": 3, "teacher 1": 1, "teacher 2": 6, "distil 1": 1, "distil 2": 9}
    for history in outcome.histories[1:]:
        assert history.losses.shape == (len(history.seconds), 80)
    assert "at 2 feature maps (8x8, 4x4)" in outcome.isolation.evidence[1]
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict == "undecided"

"""MCR: the curve against its formula, its ends, what of it is trained, renewed statistics, and which point is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from antibackdoor.defences import Mcr
from antibackdoor.defences.mcr import Curve, renew_norms
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer, logits_of


@pytest.fixture
def data(blobs):
    return blobs(60, 4, channels=1, height=16, width=16, noise=60.0)


@pytest.fixture
def ends(tiny, data):
    build = tiny(data)
    return build(Seeds(0).generator("init")), build(Seeds(1).generator("init"))


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_it_passes_through_its_ends(ends):
    curve = Curve(*ends)
    assert same(curve.at(0.0), ends[0])
    assert same(curve.at(1.0), ends[1])
    assert not same(curve.at(0.5), ends[0])


@pytest.mark.parametrize("t", [0.1, 0.3, 0.5, 0.9])
def test_a_point_of_it_is_that_of_the_formula(t, ends):
    curve = Curve(*ends)
    with torch.no_grad():
        for parameter in curve.bend.parameters():
            parameter.add_(0.1)
    model = curve.at(t)
    for name, found in model.named_parameters():
        nets = (ends[0], curve.bend, ends[1])
        values = (parameter.flatten().tolist() for parameter in (found, *(net.get_parameter(name) for net in nets)))
        for value, a, b, c in zip(*values, strict=True):
            assert value == pytest.approx((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c, abs=1e-6)


def test_the_bend_begins_half_way(ends):
    # Half-way between the ends the whole curve is a straight line.
    curve = Curve(*ends)
    for point, (first, last) in zip(
        curve.at(0.25).parameters(), zip(ends[0].parameters(), ends[1].parameters(), strict=True), strict=True
    ):
        assert torch.allclose(point, 0.75 * first + 0.25 * last, atol=1e-6)


def test_its_forward_pass_is_that_of_the_point(ends, data):
    curve, images = Curve(*ends).eval(), data.images[:5].float() / 255
    with torch.no_grad():
        assert torch.allclose(curve(images), curve.at(0.5).eval()(images), atol=1e-5)
        curve.train()
        torch.manual_seed(3)
        t = float(torch.rand(()))
        torch.manual_seed(3)
        found = curve(images)
        model = curve.at(t).train()
        assert torch.allclose(found, model(images), atol=1e-5)


def test_only_the_bend_is_trained_and_a_seed_decides(ends, data, runtime, plan):
    curves = [Curve(*ends) for _ in range(2)]
    for curve in curves:
        Trainer(runtime, Seeds(0)).fit(curve, data, Phase("curve", plan))
        assert same(curve.start, ends[0])
        assert same(curve.end, ends[1])
        assert not same(curve.bend, Curve(*ends).bend)
    assert same(curves[0].bend, curves[1].bend)


def test_training_lowers_the_loss_between_the_ends(ends, data, runtime, plan):
    curve = Curve(*ends)

    def loss(t):
        model = curve.at(t)
        renew_norms(model, data, runtime)
        return float(ce(logits_of(model, data, runtime), data.labels).mean())

    before = loss(0.5)
    Trainer(runtime, Seeds(0)).fit(curve, data, Phase("curve", plan.but(epochs=10)))
    assert loss(0.5) < 0.5 * before


def test_renewed_statistics_are_the_means_over_batches(data, runtime):
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm, nn.Dropout(0.5)).train()
    with torch.no_grad():
        norm.running_mean.fill_(9.0)
    renew_norms(model, data, runtime, batch_size=25)
    pixels = data.images.double() / 255
    parts = [pixels[:25], pixels[25:50], pixels[50:]]
    assert float(norm.running_mean) == pytest.approx(sum(float(part.mean()) for part in parts) / 3, abs=1e-6)
    assert float(norm.running_var) == pytest.approx(sum(float(part.var()) for part in parts) / 3, abs=1e-6)
    assert norm.momentum == 0.1
    assert model.training
    assert norm.training
    assert int(norm.num_batches_tracked) == 3


def test_a_network_between_the_ends_needs_new_statistics(ends, data, runtime):
    model = Curve(*ends).at(0.5)
    before = logits_of(model, data, runtime)
    weights = [parameter.clone() for parameter in model.parameters()]
    renew_norms(model, data, runtime)
    assert not torch.allclose(logits_of(model, data, runtime), before, atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize(("second", "rows"), [("tuned", 0), ("trained", 60)])
def test_its_phases(second, rows, data, blobs, runtime, tiny, plan):
    seeds, trusted = Seeds(0), blobs(24, 4, channels=1, height=16, width=16, seed=2)
    defence = Mcr(second=second, tune_updates=4, curve_updates=6, batch_size=12).with_trusted(trusted)
    outcome = defence.run(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=plan, seeds=seeds)
    assert [history.phase for history in outcome.histories] == ["train", "second end", "curve"]
    assert [len(history.seconds) for history in outcome.histories] == [3, 2 if second == "tuned" else 3, 3]
    seen = torch.from_numpy(outcome.histories[1].losses).isfinite().sum(1)
    assert seen.tolist() == [rows] * len(seen), "a trained end sees the observed images, a tuned one trusted ones"
    assert not bool(outcome.isolation.flagged.any())


def test_the_point_of_the_lowest_loss_on_trusted_images_is_taken(ends, data, runtime, plan):
    defence = Mcr(positions=(0.1, 0.5, 0.9))
    curve = Curve(*ends)
    Trainer(runtime, Seeds(0)).fit(curve.bend, data, Phase("bend", plan))
    losses = []
    for t in defence.positions:
        model = curve.at(t)
        renew_norms(model, data, runtime)
        losses.append(float(ce(logits_of(model, data, runtime), data.labels).mean()))
    best = losses.index(min(losses))
    chosen, sentence = defence._choose(curve, data, runtime)
    assert same(chosen, curve.at(defence.positions[best]))
    assert f"at t = {defence.positions[best]:g} of the curve" in sentence
    assert len({round(loss, 4) for loss in losses}) == 3
    assert chosen.state_dict().keys() == ends[0].state_dict().keys()

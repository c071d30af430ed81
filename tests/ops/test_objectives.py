from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from antibackdoor.ops.objectives import capped, ce, complement, flood, lga

GAMMA = 0.5
LOSSES = (0.0, 0.1, 0.4999, 0.5001, 0.9, 3.0)


def gradient(function, *values):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    function(x).sum().backward()
    return x.grad


def problem():
    """Four samples of a linear model: two far above gamma, two far below."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    weight = torch.tensor([[2.0, -1.0, 0.5], [0.3, 1.5, -2.0]], dtype=torch.float64, requires_grad=True)
    return features @ weight, torch.tensor([0, 2, 1, 0]), weight


def test_ce_is_minus_the_log_of_the_labels_share():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([1, 2])
    expected = [-math.log(math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(-1))), math.log(3)]
    assert ce(logits, labels).tolist() == pytest.approx(expected)


def test_ce_computes_in_float32_whatever_it_is_given():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    assert ce(logits.bfloat16(), labels).dtype == torch.float32
    assert torch.equal(ce(logits, labels), F.cross_entropy(logits, labels, reduction="none"))


def test_lga_values_and_gradients():
    assert lga(torch.tensor(LOSSES), GAMMA).tolist() == pytest.approx([0.0, -0.1, -0.4999, 0.5001, 0.9, 3.0])
    assert gradient(lambda x: lga(x, GAMMA), *LOSSES).tolist() == [-1, -1, -1, 1, 1, 1]


def test_flood_values_and_gradients():
    expected = [abs(x - GAMMA) + GAMMA for x in LOSSES]
    assert flood(torch.tensor(LOSSES), GAMMA).tolist() == pytest.approx(expected)
    assert flood(torch.tensor(LOSSES), GAMMA).min() >= GAMMA


def test_lga_and_flood_have_one_gradient_at_the_same_level():
    by_lga = gradient(lambda x: lga(x, GAMMA), *LOSSES, GAMMA)
    by_flood = gradient(lambda x: flood(x, GAMMA), *LOSSES, GAMMA)
    assert torch.equal(by_lga, by_flood)
    other = gradient(lambda x: flood(x, 1.0), *LOSSES, GAMMA)
    assert not torch.equal(by_lga, other)


@pytest.mark.parametrize("rule", [lga, flood])
def test_the_order_of_the_reduction_matters(rule):
    logits, labels, weight = problem()
    losses = F.cross_entropy(logits, labels, reduction="none")
    # Both sides of gamma are there, and the mean is on one of them.
    assert losses.min() < GAMMA < losses.mean()
    (inside,) = torch.autograd.grad(rule(losses, GAMMA).mean(), weight, retain_graph=True)
    (outside,) = torch.autograd.grad(rule(losses.mean(), GAMMA), weight, retain_graph=True)
    (plain,) = torch.autograd.grad(losses.mean(), weight)
    assert (inside - outside).abs().max() > 0.01
    # The mean is above gamma, so the rule of the released code is ordinary descent here.
    assert torch.allclose(outside, plain)


def test_both_orders_agree_on_one_sample():
    logits, labels, weight = problem()
    losses = F.cross_entropy(logits[:1], labels[:1], reduction="none")
    (inside,) = torch.autograd.grad(lga(losses, GAMMA).mean(), weight, retain_graph=True)
    (outside,) = torch.autograd.grad(lga(losses.mean(), GAMMA), weight)
    assert torch.equal(inside, outside)


def test_capped_values_and_gradients():
    cap = math.log(10)
    losses = (0.0, 1.0, cap - 1e-6, cap + 1e-6, 30.0)
    assert capped(torch.tensor(losses), cap).tolist() == pytest.approx([min(x, cap) for x in losses])
    assert gradient(lambda x: capped(x, cap), *losses).tolist() == [1, 1, 1, 0, 0]


def test_one_sample_over_the_cap_does_not_stop_the_others():
    assert gradient(lambda x: -capped(x, 2.0).mean(), 5.0, 1.0).tolist() == [0, -0.5]


def test_complement_is_minus_the_log_of_the_rest():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([1, 2])
    shares = logits.double().softmax(1)
    expected = [-math.log(1 - float(shares[0, 1])), -math.log(1 - float(shares[1, 2]))]
    assert complement(logits, labels).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("margin", [-200.0, -20.0, 20.0, 200.0])
def test_complement_is_finite_and_never_negative_at_the_ends(margin):
    logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
    value = complement(logits, torch.tensor([0]))
    value.sum().backward()
    assert float(value.detach()) >= 0
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(logits.grad).all())


def test_the_gradient_of_complement_in_the_labels_logit_is_its_probability():
    for first in (-3.0, 0.0, 2.0, 60.0):
        logits = torch.tensor([[first, 0.0, 0.5]], requires_grad=True)
        complement(logits, torch.tensor([0])).sum().backward()
        probability = logits.detach().softmax(1)[0, 0]
        assert float(logits.grad[0, 0]) == pytest.approx(float(probability), abs=1e-5)


def test_where_the_network_is_certain_ascent_has_no_gradient_and_complement_has():
    logits = torch.tensor([[60.0, 0.0, 0.5]], requires_grad=True)
    capped(ce(logits, torch.tensor([0])), 9.0).sum().backward()
    assert float(logits.grad.abs().max()) < 1e-6
    logits.grad = None
    complement(logits, torch.tensor([0])).sum().backward()
    assert float(logits.grad[0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("rule", [lga, flood, capped])
def test_maps_act_on_every_element_and_change_nothing(rule):
    losses = torch.tensor([[0.1, 2.0], [0.6, 0.4]])
    before = losses.clone()
    whole = rule(losses, GAMMA)
    assert whole.shape == losses.shape
    assert torch.equal(losses, before)
    for row in range(2):
        for column in range(2):
            assert whole[row, column] == rule(losses[row, column], GAMMA)

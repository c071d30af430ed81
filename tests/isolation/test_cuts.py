"""Cuts: what falls apart and what does not, against a slow transcription, and what sharpening finds and lets go."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from antibackdoor.isolation import Cut, Evidence, cut_classes, sharpened
from antibackdoor.isolation.cuts import APART, slow_cuts, start_of

CLASSES, COUNT, TARGET = 5, 1000, 2
LABELS = torch.arange(COUNT) % CLASSES
# 40 of the 200 images of one class.
PLANTED = (LABELS == TARGET) & (torch.arange(COUNT) < 200)
ALARM = 0.75


@pytest.fixture
def evidence(trajectories):
    def make(planted=PLANTED, held_out=None, **rest):
        return Evidence(trajectories(LABELS, planted, **rest), LABELS, CLASSES, held_out)

    return make


def slow_parts(points, guess):
    """Two Gaussians by expectation and maximisation from a guess, and the densities of one; a covariance each."""
    n, d = points.shape

    def gaussian(weights):
        total = sum(weights)
        mean = sum(w * x for w, x in zip(weights, points, strict=True)) / total
        spread = sum(w * np.outer(x - mean, x - mean) for w, x in zip(weights, points, strict=True)) / total
        return mean, spread + 1e-3 * np.eye(d)

    share = np.where(guess, 0.999, 0.001)
    for _ in range(40):
        weighted = [part.mean() * multivariate_normal(*gaussian(part)).pdf(points) for part in (share, 1 - share)]
        share = weighted[0] / (weighted[0] + weighted[1])
    one = multivariate_normal(*gaussian(np.ones(n))).pdf(points)
    free = d + d * (d + 1) // 2
    bic_one = -2 * sum(math.log(p) for p in one) + free * math.log(n)
    bic_two = -2 * sum(math.log(p + q) for p, q in zip(*weighted, strict=True)) + (2 * free + 1) * math.log(n)
    return share, (bic_one - bic_two) / n


def slow_cut(losses, label, guess, stretches):
    """Gain, votes, fall and suspicion of one class, image by image as the docstrings say it."""
    epochs, count = losses.shape
    logs = [[math.log(max(float(losses[e, i]), 1e-6)) for e in range(epochs)] for i in range(count)]
    third = epochs // 3
    start = min(2, third)
    falls = [sum(row[:start]) / start - sum(row[-third:]) / third for row in logs]
    mean = sum(falls) / count
    deviation = math.sqrt(sum((fall - mean) ** 2 for fall in falls) / count)
    falls = [(fall - mean) / deviation for fall in falls]
    voters = sorted(range(count), key=lambda i: -falls[i])[: round(0.01 * count)]
    own = [i for i in range(count) if int(LABELS[i]) == label]
    points = []
    for i in own:
        parts = np.array_split(np.array(logs[i]), stretches)
        points.append([sum(part) / len(part) for part in parts])
    points = np.array(points)
    points = (points - points.mean(0)) / points.std(0)
    share, gain = slow_parts(points, guess[own])

    def fall_of(part):
        return sum(p * falls[i] for p, i in zip(part, own, strict=True)) / sum(part)

    if fall_of(1 - share) > fall_of(share):
        share = 1 - share
    votes = sum(float(share[own.index(i)]) for i in voters if i in own) / len(voters)
    votes = max(0.0, votes - len(own) / count) / (1 - len(own) / count)
    return gain, votes, fall_of(share), share


@pytest.mark.parametrize("stretches", [3, 5])
def test_a_cut_is_its_slow_transcription(evidence, stretches):
    given = evidence()
    cut = cut_classes(given, stretches=stretches)[TARGET]
    gain, votes, fall, share = slow_cut(given.losses.numpy(), TARGET, PLANTED.numpy(), stretches)
    assert (cut.gain, cut.votes, cut.fall) == pytest.approx((gain, votes, fall), rel=0.01)
    assert cut.suspicion.numpy() == pytest.approx(share, abs=0.01)


def test_the_planted_part_is_found_and_the_other_classes_stay_under_the_alarm(evidence):
    cuts = cut_classes(evidence())
    assert [cut.label for cut in cuts] == list(range(CLASSES))
    for cut in cuts:
        assert torch.equal(cut.rows, (cut.label == LABELS).nonzero().squeeze(1))
        assert (cut.suspicion.shape, cut.suspicion.dtype) == (cut.rows.shape, torch.float64)
        assert bool(((cut.suspicion >= 0) & (cut.suspicion <= 1)).all())
        if cut.label == TARGET:
            assert cut.strength > 2 * ALARM
            assert torch.equal(cut.members, PLANTED.nonzero().squeeze(1))
        else:
            assert cut.strength < ALARM / 2


@pytest.mark.parametrize("seed", range(3))
def test_without_poison_no_class_comes_near_the_alarm(evidence, seed):
    cuts = cut_classes(evidence(torch.zeros(COUNT, dtype=torch.bool), seed=seed))
    assert max(cut.strength for cut in cuts) < ALARM / 2


def test_several_targets_are_found_by_their_fall(evidence):
    planted = torch.arange(COUNT) < 150
    cuts = cut_classes(evidence(planted))
    assert all(cut.strength > ALARM for cut in cuts)
    assert min(cut.votes for cut in cuts) == pytest.approx(0, abs=0.01), "the votes alone would not have told"
    found = torch.cat([cut.members for cut in cuts]).sort().values
    assert torch.equal(found, planted.nonzero().squeeze(1))


def test_held_out_images_are_cut_but_not_fitted_to(evidence):
    held_out = torch.arange(COUNT) % 9 == 0
    given = evidence(held_out=held_out)
    changed = given.losses.clone()
    changed[:, held_out] = 50 * torch.rand((20, int(held_out.sum())), generator=torch.Generator().manual_seed(3))
    other = Evidence(changed, LABELS, CLASSES, held_out)
    for cut, again in zip(cut_classes(given), cut_classes(other), strict=True):
        assert (cut.gain, cut.votes, cut.fall) == (again.gain, again.votes, again.fall)
        fitted = ~held_out[cut.rows]
        assert torch.equal(cut.suspicion[fitted], again.suspicion[fitted])
        assert len(cut.rows) == 200
    found = cut_classes(given)[TARGET].members
    both = PLANTED & held_out
    assert bool(both.any())
    assert bool(torch.isin(both.nonzero().squeeze(1), found).all())


def test_equal_losses_have_no_strength():
    cuts = cut_classes(Evidence(torch.full((6, COUNT), 0.5), LABELS, CLASSES))
    assert len(cuts) == CLASSES
    for cut in cuts:
        assert cut.strength == 0
        assert bool(cut.suspicion.isfinite().all())


def test_a_class_of_equal_losses_among_others_has_no_strength(evidence):
    losses = evidence().losses.clone()
    losses[:, LABELS == 0] = 0.5
    cuts = cut_classes(Evidence(losses, LABELS, CLASSES))
    assert cuts[0].strength == 0
    assert cuts[TARGET].strength > ALARM


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_few_epochs_are_enough_to_cut(epochs):
    losses = torch.rand((epochs, COUNT), generator=torch.Generator().manual_seed(0))
    for cut in cut_classes(Evidence(losses, LABELS, CLASSES)):
        assert math.isfinite(cut.strength)
        assert bool(cut.suspicion.isfinite().all())


def test_losses_of_zero_are_no_infinity(evidence):
    losses = evidence().losses.clone()
    losses[-3:, PLANTED] = 0
    assert torch.equal(cut_classes(Evidence(losses, LABELS, CLASSES))[TARGET].members, PLANTED.nonzero().squeeze(1))


def test_small_classes_are_left_out():
    labels = torch.tensor([0] * 60 + [1] * 19 + [2] * 20 + [3] * 25)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[-6:] = True  # leaves 19 of class 3
    losses = torch.rand((6, len(labels)), generator=torch.Generator().manual_seed(0))
    assert [cut.label for cut in cut_classes(Evidence(losses, labels, 5))] == [0, 2, 3]
    assert [cut.label for cut in cut_classes(Evidence(losses, labels, 5, held_out))] == [0, 2]


@pytest.mark.parametrize(("count", "part"), [(40, 0.4), (99, 0.99), (100, 1.0), (200, 1.0)])
def test_a_gain_counts_over_a_hundred_images_at_least(count, part):
    # Of one class: half of the images fall at once, with the same noise in every run.
    labels = torch.zeros(count, dtype=torch.int64)
    at_once = torch.arange(count) < count // 2
    noise = 0.2 * torch.randn((10, count), generator=torch.Generator().manual_seed(0))
    losses = torch.where(at_once, -3.0, torch.linspace(0.0, -1.0, 10)[:, None]).add(noise).exp()
    (cut,) = cut_classes(Evidence(losses, labels, 1))
    means = np.stack([piece.mean(0) for piece in np.array_split(losses.double().log().numpy(), 5)], 1)
    _, gain = slow_parts((means - means.mean(0)) / means.std(0), at_once.numpy())
    assert gain > 1
    assert cut.gain == pytest.approx(part * gain, rel=0.01)


def test_nothing_is_drawn_from_or_written_to_what_is_shared(evidence):
    given = evidence()
    losses = given.losses.clone()
    np.random.seed(5)  # noqa: NPY002 - the state that must be left alone
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state()
    first, again = cut_classes(given), cut_classes(given)
    assert np.random.rand() == expected  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(given.losses, losses)
    assert all(torch.equal(a.suspicion, b.suspicion) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("gain", "votes", "fall", "strength"),
    [
        (1.0, 0.3, 0.0, 1.0),
        (1.0, 0.0, 1.0, 1.0),
        (0.5, 0.6, 2.0, 0.5),
        (2.0, 0.15, 0.5, 1.0),
        (0.5, 0.75, 2.0, 0.5),
        (0.5, 0.875, 2.0, 1.0),
        (0.5, 1.0, 0.0, 1.5),
        (-1.0, 1.0, 3.0, 0.0),
    ],
)
def test_the_strength_by_hand(gain, votes, fall, strength):
    cut = Cut(0, torch.tensor([4, 6]), torch.tensor([0.4, 0.6]).double(), gain, votes, fall)
    assert cut.strength == pytest.approx(strength)
    assert cut.members.tolist() == [6]


@pytest.mark.parametrize(("gap", "strength"), [(None, 2.0), (0.5, 2.0), (9.0, 2.0), (0.4, 0.4), (0.0, 0.0)])
def test_a_narrow_gap_bounds_the_strength(gap, strength):
    cut = Cut(0, torch.tensor([4, 6]), torch.tensor([0.4, 0.6]).double(), 2.0, 0.3, 1.0, gap=gap)
    assert cut.strength == pytest.approx(strength)
    assert ("gap" in cut.figures) is (gap is not None)


# --- sharpening ----------------------------------------------------------------------------------------------------


def features(marked, size=16, by=5.0):
    drawn = torch.randn((len(marked), size), generator=torch.Generator().manual_seed(0))
    drawn[:, 0] += by * marked
    return drawn


def test_missed_members_are_found_and_strangers_let_go():
    marked = torch.arange(300) < 60
    start = marked & (torch.arange(300) < 40) | (torch.arange(300) >= 290)
    before = start.clone()
    found, near = sharpened(features(marked), start)
    assert bool((near | ~found).all())
    assert (found.shape, found.dtype) == (start.shape, torch.bool)
    assert int((found & marked).sum()) >= 58
    assert not bool(found[290:].any())
    assert int((found & ~marked).sum()) <= 12, "one in twenty"
    assert torch.equal(start, before)


def test_a_second_pass_finds_more():
    marked = torch.arange(300) < 60
    start = torch.arange(300) < 15
    once, twice = (sharpened(features(marked), start, passes=passes)[0] for passes in (1, 2))
    assert int((twice == marked).sum()) >= int((once == marked).sum()) > int((start == marked).sum())
    assert all(torch.equal(part, start) for part in sharpened(features(marked), start, passes=0))


@pytest.mark.parametrize("count", [0, 9, 91, 100])
def test_too_few_on_a_side_stay_as_they_are(count):
    start = torch.arange(100) < count
    assert all(torch.equal(part, start) for part in sharpened(features(torch.arange(100) < 50), start))


def test_features_that_are_all_alike_are_no_fault():
    drawn = features(torch.arange(100) < 30)
    drawn[:, 5:] = 0
    start = torch.arange(100) < 30
    assert int((sharpened(drawn, start)[0] == start).sum()) >= 95
    assert all(torch.equal(part, start) for part in sharpened(torch.ones(100, 4), start))


def test_what_lies_near_the_border_may_belong_to_the_suspects():
    # Half of the marked ones are marked faintly.
    faint = torch.arange(300) < 30
    marked = torch.arange(300) < 60
    drawn = features(marked, by=8.0)
    drawn[faint, 0] -= 5.0
    found, near = sharpened(drawn, marked & ~faint)
    assert int((near & marked).sum()) > int((found & marked).sum())
    assert int(near.sum()) < 150


def test_all_of_a_part_that_fell_is_where_to_start():
    losses = torch.full((6, 4), 2.0)
    assert start_of(a_cut(0, 1.0), losses).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("last", "start"), [([0.1, 0.1], [True, True]), ([0.1, 2.0], [True, False]), ([2.0, 2.0], [True, True])]
)
def test_of_a_slow_part_the_images_learned_since_are_where_to_start(last, start):
    losses = torch.full((6, 4), 2.0)
    losses[3:, 1:3] = torch.tensor(last)
    # Its slow part is the two in the middle.
    (slow,) = slow_cuts([a_cut(0, 0.9)], apart=APART)
    assert start_of(slow, losses)[1:3].tolist() == start
    assert not bool(start_of(slow, losses)[[0, 3]].any())


def a_cut(label, gain, *, votes=0.0, fall=0.0):
    suspicion = torch.tensor([0.9, 0.2, 0.0, 1.0], dtype=torch.float64)
    return Cut(label, torch.arange(4) + 4 * label, suspicion, gain, votes, fall)


def test_a_class_that_falls_apart_alone_and_slowly_has_its_slow_part_suspected():
    calm = [a_cut(label, 0.1) for label in range(4)]
    (found,) = slow_cuts([*calm, a_cut(4, 0.9)], apart=APART)
    assert (found.label, found.slow) == (4, True)
    assert torch.allclose(found.suspicion, torch.tensor([0.1, 0.8, 1.0, 0.0], dtype=torch.float64))
    assert found.members.tolist() == [17, 18]
    assert found.strength == pytest.approx(0.9 / (2 * APART))
    assert "hardly accepted" in found.kind
    assert "votes" not in found.figures


def test_a_slow_part_may_have_a_gap():
    calm = [a_cut(label, 0.1) for label in range(4)]
    (found,) = slow_cuts([*calm, replace(a_cut(4, 0.9), gap=0.25)], apart=APART)
    assert found.figures == "gain 0.90, gap 0.25"


@pytest.mark.parametrize(
    "cuts",
    [
        # Wrong labels everywhere.
        [a_cut(label, 0.9 + 0.1 * label) for label in range(5)],
        # Not far enough apart.
        [*(a_cut(label, 0.1) for label in range(4)), a_cut(4, 0.8)],
        # A part that was learned all at once is another matter.
        [*(a_cut(label, 0.1) for label in range(4)), a_cut(4, 0.9, fall=1.0)],
        [*(a_cut(label, 0.1) for label in range(4)), a_cut(4, 0.9, votes=0.2)],
        # Easy and hard images of one kind.
        [*(a_cut(label, 0.1) for label in range(4)), replace(a_cut(4, 0.9), gap=0.24)],
        # Most of a class.
        [*(a_cut(label, 0.1) for label in range(4)), replace(a_cut(4, 0.9), suspicion=torch.tensor([1.0, 0, 0, 0]))],
    ],
)
def test_other_classes_have_no_slow_part(cuts):
    assert slow_cuts(cuts, apart=APART) == []

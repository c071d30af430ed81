"""Cuts by what was hard, was learned all the same and looks like no other class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antibackdoor.isolation import Evidence, cut_classes, late_cuts
from antibackdoor.isolation.late import _line, _sides_left_out, gap_between

COUNT, CLASSES, TARGET, OTHER, WIDTH = 1200, 4, 2, 1, 20
LABELS = torch.arange(COUNT) % CLASSES
PLANTED = (LABELS == TARGET) & (torch.arange(COUNT) < 400)
NOBODY = torch.zeros(COUNT, dtype=torch.bool)


def losses(hard, *, then=0.3, epochs=20):
    """Clean images fall, each at its own pace; hard ones stay high until half-way and are then at ``then``."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(epochs)[:, None] / epochs
    pace = 1 + 0.3 * torch.rand(COUNT, generator=generator)
    fallen = (0.7 - 3 * steps * pace + 0.2 * torch.randn((epochs, COUNT), generator=generator)).exp()
    fallen[: epochs // 2, hard] = 3.0
    fallen[epochs // 2 :, hard] = then
    noise = 1 + 0.05 * torch.rand((epochs, COUNT), generator=generator)
    return fallen * noise


def seen(marked=NOBODY, *, foreign=True):
    """Classes with means of their own; marked images lie on a direction that no class has, or are like OTHER's."""
    generator = torch.Generator().manual_seed(1)
    means = 4 * torch.eye(CLASSES, WIDTH)
    drawn = torch.randn((COUNT, WIDTH), generator=generator)
    values = drawn + means[LABELS]
    values[marked] = drawn[marked] + (means[TARGET] + 6 * torch.eye(WIDTH)[-1] if foreign else means[OTHER])
    return values


def cuts_of(trained, values, labels=LABELS, fitted=None):
    half = Evidence(trained[:10], labels, CLASSES, None if fitted is None else ~fitted)
    return {cut.label: cut for cut in late_cuts(cut_classes(half), trained, 10, values, labels, fitted)}


def test_hard_images_that_were_learned_and_have_something_in_common_are_found():
    cuts = cuts_of(losses(PLANTED), seen(PLANTED))
    found = cuts[TARGET]
    assert found.strength > 1
    inside = torch.zeros(COUNT, dtype=torch.bool)
    inside[found.rows[found.suspicion > 0.5]] = True
    assert int((inside ^ PLANTED).sum()) <= 5
    assert all(cut.strength < 0.5 for label, cut in cuts.items() if label != TARGET)
    assert f"strength {found.strength:.2f}" in found.figures
    assert "looks like no other class" in found.kind


def test_hard_images_that_look_like_another_class_are_no_evidence():
    found = cuts_of(losses(PLANTED), seen(PLANTED, foreign=False))[TARGET]
    assert found.gain > 0.2, "they are a group of their own in their class"
    assert found.common == 1
    assert found.strength == 0


def test_what_was_never_learned_is_not_looked_at():
    assert TARGET not in cuts_of(losses(PLANTED, then=2.0), seen(PLANTED))


def test_a_part_that_was_learned_half_way_was_not_hard():
    """The slower third of a kind of its own; what it settles on is all of that kind."""
    slower = PLANTED & (torch.arange(COUNT) % 12 < 4)
    assert TARGET in cuts_of(losses(PLANTED), seen(PLANTED))
    assert TARGET not in cuts_of(losses(slower), seen(PLANTED))


def test_most_of_a_class_cannot_be_wrong():
    most = (LABELS == TARGET) & (torch.arange(COUNT) < 900)
    assert TARGET not in cuts_of(losses(most), seen(most))


def test_small_classes_are_not_cut():
    few = torch.arange(COUNT) < 380
    labels = LABELS[few]
    cuts = cuts_of(losses(PLANTED)[:, few], seen(PLANTED)[few], labels)
    assert cuts == {}


def test_images_that_are_not_fitted_to_are_cut_with_the_others():
    fitted = torch.arange(COUNT) % 5 > 0
    found = cuts_of(losses(PLANTED), seen(PLANTED), fitted=fitted)[TARGET]
    assert len(found.rows) == int((LABELS == TARGET).sum())
    told = found.suspicion > 0.5
    assert float((told == PLANTED[found.rows])[~fitted[found.rows]].float().mean()) > 0.95


def test_columns_that_are_all_alike_are_no_fault():
    values = seen(PLANTED)
    values[:, 5:10] = 0
    assert cuts_of(losses(PLANTED), values)[TARGET].strength > 1
    assert all(cut.strength == 0 for cut in cuts_of(losses(PLANTED), torch.ones(COUNT, 3)).values())


def test_a_gap_is_wide_where_a_part_stands_apart_and_narrow_where_any_line_would_do():
    members = (LABELS == TARGET).nonzero().squeeze(1)
    wide = gap_between(seen(PLANTED), LABELS, TARGET, PLANTED[members])
    assert wide.width > 1
    assert torch.equal(wide.inside, PLANTED[members])
    assert wide.share == pytest.approx(float(PLANTED[members].double().mean()))
    narrow = gap_between(seen(), LABELS, TARGET, PLANTED[members])
    assert narrow.width < 0.25


def test_the_gap_of_what_all_classes_have_is_as_wide_and_common():
    everywhere = torch.arange(COUNT) < 400
    members = (LABELS == TARGET).nonzero().squeeze(1)
    values = seen() + 6 * everywhere[:, None] * torch.eye(WIDTH)[-1]
    gap = gap_between(values, LABELS, TARGET, everywhere[members])
    assert gap.width > 1
    assert gap.common > 0.9


def test_small_classes_are_not_looked_at_and_small_parts_are_no_evidence():
    members = (LABELS == TARGET).nonzero().squeeze(1)
    few = torch.arange(COUNT) < 380
    assert gap_between(seen(PLANTED)[few], LABELS[few], TARGET, PLANTED[few][LABELS[few] == TARGET]) is None
    small = torch.arange(len(members)) < 10
    assert gap_between(seen(PLANTED & (torch.arange(COUNT) < 40)), LABELS, TARGET, small).width == 0


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_leaving_out_in_closed_form_is_fitting_to_the_others(share):
    generator = np.random.default_rng(0)
    points = generator.normal(size=(40, 5))
    inside = np.arange(40) < 40 * share
    points[inside] += 1.0
    found = _sides_left_out(points, inside)
    part = inside.mean()
    targets = np.where(inside, 1 / part, -1 / (1 - part))
    # Centred on all points, as the closed form is, the penalty does not touch the intercept.
    design = np.column_stack([np.ones(40), points - points.mean(0)])
    penalty = 0.1 * 40 * np.diag([0.0, *np.ones(5)])
    expected = np.empty(40)
    for out in range(40):
        kept = np.arange(40) != out
        fit = np.linalg.solve(design[kept].T @ design[kept] + penalty, design[kept].T @ targets[kept])
        expected[out] = design[out] @ fit
    expected -= (expected[inside].mean() + expected[~inside].mean()) / 2
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_border_lies_half_way_between_the_parts():
    points = np.array([[0.0], [1.0], [5.0], [6.0]])
    weights, border = _line(points, np.array([False, False, True, True]))
    assert weights[0] > 0
    assert border / weights[0] == pytest.approx(3.0)

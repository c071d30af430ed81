"""Cuts by what the network has learned to see since half-way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from antibackdoor.isolation import Alarm, Evidence, LateCut, NewCut, agree, look, new_cuts, news
from antibackdoor.isolation.late import gap_between
from antibackdoor.isolation.look import _unsettled

COUNT, CLASSES, TARGET, WIDTH, EPOCHS = 1200, 4, 2, 12, 20
LABELS = torch.arange(COUNT) % CLASSES
PLANTED = (LABELS == TARGET) & (torch.arange(COUNT) < 160)
NOBODY = torch.zeros(COUNT, dtype=torch.bool)


def losses(late=NOBODY, *, then=0.05):
    """A third of every class, and those that are late, are hard until half-way; the late ones fall furthest then."""
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(COUNT, generator=generator) < 1 / 3
    drawn = 0.3 * torch.rand((EPOCHS, COUNT), generator=generator)
    drawn[: EPOCHS // 2, hard | late] += 2.0
    drawn[EPOCHS // 2 :, late] = then
    return drawn + 0.01


def seen(new=NOBODY, *, before=NOBODY):
    """What the network sees half-way and at the end: the end is a mixture of the beginning, with something new."""
    generator = torch.Generator().manual_seed(1)
    content = torch.randn((COUNT, WIDTH), generator=generator) + 3 * torch.eye(CLASSES, WIDTH)[LABELS]
    content[before, -1] += 6
    mixture = torch.randn((WIDTH, WIDTH), generator=generator)
    later = content @ mixture + 0.3 * torch.randn((COUNT, WIDTH), generator=generator)
    later[new, 0] += 3
    return content, later


def cuts_of(trained, pair, labels=LABELS, fitted=None):
    return {cut.label: cut for cut in new_cuts(trained, EPOCHS // 2, *pair, labels, fitted)}


def test_images_in_which_something_new_is_seen_are_found():
    cuts = cuts_of(losses(PLANTED), seen(PLANTED))
    found = cuts[TARGET]
    assert isinstance(found, NewCut)
    assert found.strength > 1
    inside = found.rows[found.suspicion > 0.5]
    assert float(PLANTED[inside].float().mean()) > 0.9
    assert all(cut.strength < 0.25 for label, cut in cuts.items() if label != TARGET)
    assert "began to see something" in found.kind
    assert f"strength {found.strength:.2f}" in found.figures


def test_what_was_seen_before_is_nothing_new():
    cuts = cuts_of(losses(PLANTED), seen(before=PLANTED))
    assert all(cut.strength < 0.25 for cut in cuts.values())


def test_what_all_classes_have_is_no_evidence():
    everywhere = torch.arange(COUNT) < 160
    found = cuts_of(losses(everywhere), seen(everywhere))
    assert found[TARGET].gain > 0.2
    assert all(cut.common > 0.8 for cut in found.values())


@pytest.mark.parametrize("then", [0.05, 2.0])
def test_the_start_is_what_was_learned_since(then):
    """What is hard to the end is not looked at, though it is seen."""
    found = cuts_of(losses(PLANTED, then=then), seen(PLANTED))[TARGET]
    told = found.rows[found.suspicion > 0.5]
    assert (float(PLANTED[told].float().mean()) > 0.9) is (then < 1)


def test_nothing_learned_since_is_no_evidence():
    assert cuts_of(torch.full((EPOCHS, COUNT), 0.1), seen(PLANTED)) == {}
    assert cuts_of(torch.full((EPOCHS, COUNT), 2.0), seen(PLANTED)) == {}


def test_small_classes_are_not_cut():
    few = torch.arange(COUNT) < 380
    pair = tuple(part[few] for part in seen(PLANTED))
    assert cuts_of(losses(PLANTED)[:, few], pair, LABELS[few]) == {}


def test_images_that_are_not_fitted_to_are_cut_with_the_others():
    fitted = torch.arange(COUNT) % 5 > 0
    found = cuts_of(losses(PLANTED), seen(PLANTED), fitted=fitted)[TARGET]
    assert len(found.rows) == int((LABELS == TARGET).sum())
    assert found.strength > 0.5


def test_what_is_new_is_the_residual_of_a_ridge_regression():
    earlier, later = seen(PLANTED)
    found = news(earlier, later)
    before = ((earlier - earlier.mean(0)) / earlier.std(0, correction=0)).double().numpy()
    after = ((later - later.mean(0)) / later.std(0, correction=0)).double().numpy()
    # Ridge regression as least squares with rows for the penalty.
    rows = np.vstack([before, np.sqrt(0.01 * COUNT) * np.eye(WIDTH)])
    weights = np.linalg.lstsq(rows, np.vstack([after, np.zeros((WIDTH, WIDTH))]), rcond=None)[0]
    np.testing.assert_allclose(found.numpy(), after - before @ weights, atol=1e-5)
    assert found.dtype == torch.float32


def test_columns_that_are_all_alike_are_no_fault():
    earlier, later = seen(PLANTED)
    earlier[:, 3], later[:, 4] = 0, 7
    assert bool(torch.isfinite(news(earlier, later)).all())
    assert cuts_of(losses(PLANTED), (earlier, later))[TARGET].strength > 1


def test_a_part_that_may_not_grow_keeps_its_number():
    _, later = seen(PLANTED)
    members = LABELS == TARGET
    start = PLANTED[members] & (torch.arange(int(members.sum())) % 2 == 0)
    kept = gap_between(later, LABELS, TARGET, start, grows=False)
    assert int(kept.inside.sum()) == int(start.sum())
    assert int(gap_between(later, LABELS, TARGET, start).inside.sum()) > int(start.sum())


def test_a_look_without_an_earlier_one_knows_nothing_new():
    evidence = Evidence(losses(PLANTED), LABELS, CLASSES)
    found = look(evidence, torch.arange(COUNT), COUNT, alarm=Alarm(0.5), half=EPOCHS // 2)
    assert found.seen is None
    assert not any(isinstance(cut, LateCut) for cuts in found.cuts.values() for cut in cuts)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 1, 1], True),
        ([1, 1, 0, 0], [0, 1, 1, 0], True),
        ([1, 1, 1, 0], [0, 0, 0, 1], False),
        ([1, 1, 1, 0, 0], [0, 0, 1, 1, 1], False),
        ([0, 0, 0, 0], [1, 1, 0, 0], True),
    ],
)
def test_parts_agree_where_they_share_half_of_the_smaller(one, other, expected):
    one, other = (torch.tensor(part, dtype=torch.bool) for part in (one, other))
    assert agree(one, other) is expected
    assert agree(other, one) is expected


@pytest.mark.parametrize(
    ("part", "kept", "expected"), [(80, 70, True), (80, 78, False), (60, 40, False), (80, 80, False)]
)
def test_most_of_a_class_that_is_not_confirmed_is_unsettled(part, kept, expected):
    start, alike = torch.arange(100) < part, torch.arange(100) < kept
    assert _unsettled(start, alike) is expected

"""The decision of the default defence ``witnesses``: p-values, their correction, and who is flagged for them."""

from __future__ import annotations

import numpy as np
import pytest

from antibackdoor.defences.witnesses import Witnesses
from antibackdoor.defences.witnesses.calibration import COMBINED, ORIGIN, Null
from antibackdoor.defences.witnesses.decide import p_values
from antibackdoor.defences.witnesses.observe import EPOCHS, UPDATES, detector_plan
from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.isolation.holm import holm
from antibackdoor.isolation.mixture import two_gaussians


def test_a_null_gives_the_tail_of_its_distribution():
    null = Null(0.5, 0.2)
    drawn = np.random.default_rng(0).gumbel(0.5, 0.2, 200_000)
    for value in (0.3, 0.7, 1.3):
        assert null.p_value(value) == pytest.approx((drawn >= value).mean(), abs=0.004)
    assert 0 < null.p_value(1e6) < 1e-200
    assert null.p_value(-1e6) == 1


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_two_p_values_of_a_class_the_less_counts_for_its_share_of_the_error():
    generator = np.random.default_rng(0)
    # Statistics of clean classes, independent: the less p-value is uniform.
    clean = [
        (generator.gumbel(COMBINED.place, COMBINED.scale), generator.gumbel(ORIGIN.place, ORIGIN.scale))
        for _ in range(20_000)
    ]
    raw, adjusted = p_values(clean)
    for level in (0.02, 0.1, 0.5):
        assert np.mean(np.array(raw) <= level) == pytest.approx(level, rel=0.1)
    assert len(set(raw)) > 19_000, "no ties: images of unlike classes are ranked by them"
    assert min(adjusted) >= min(raw)
    assert p_values([(-1e9, -1e9)]) == ([1.0], [1.0])
    assert p_values([(1e9, 0.0)])[0][0] < 1e-200


def test_two_groups_are_told_and_one_is_not():
    generator = np.random.default_rng(0)
    one = generator.normal(size=(300, 4))
    two = np.concatenate([one, generator.normal(size=(60, 4)) + 5])
    mixture, gain = two_gaussians(two)
    shares = mixture.predict_proba(two)
    side = shares[-60:].mean(0).argmax()
    assert (shares[:300, side] < 0.5).mean() > 0.99
    assert (shares[300:, side] > 0.5).all()
    assert gain > 1
    assert two_gaussians(one)[1] < 0.1


@pytest.mark.parametrize("count", [500, 6000, 50_000])
def test_the_detector_makes_enough_updates(count):
    plan = detector_plan(count)
    assert plan.augment == ()
    assert EPOCHS * count / plan.batch_size >= min(UPDATES, EPOCHS * count / 32)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="alpha"):
        Witnesses(alpha=0.0)
    with pytest.raises(UnknownNameError, match="witness"):
        Witnesses(witness="nobody")

from __future__ import annotations

import dataclasses

import pytest

from antibackdoor.errors import ConfigError
from antibackdoor.training import TrainPlan

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", -3),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", INF),
        ("lr", NAN),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("momentum", NAN),
        ("weight_decay", -1e-4),
        ("weight_decay", INF),
        ("weight_decay", NAN),
        ("augment", ("crop", "flop")),
    ],
)
def test_what_cannot_work_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^{field}: "):
        TrainPlan(**{field: value})
    with pytest.raises(ConfigError, match=rf"^{field}: "):
        TrainPlan().but(**{field: value})


def test_but_changes_a_copy():
    plan = TrainPlan()
    changed = plan.but(epochs=3, schedule="constant")
    assert (changed.epochs, changed.schedule, changed.lr) == (3, "constant", plan.lr)
    assert plan == TrainPlan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.epochs = 2


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        ("constant", {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ("cosine", {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
        ("multistep", {0.0: 1.0, 0.49: 1.0, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 1.0: 0.01}),
        ("onecycle", {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.625: 0.5, 1.0: 0.0}),
    ],
)
def test_schedules(schedule, points):
    plan = TrainPlan(lr=0.4, schedule=schedule)
    for progress, share in points.items():
        assert plan.rate_at(progress) == pytest.approx(0.4 * share, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "multistep", "onecycle"])
def test_the_rate_is_never_above_its_peak_nor_negative(schedule):
    plan = TrainPlan(lr=0.3, schedule=schedule)
    rates = [plan.rate_at(i / 1000) for i in range(1001)]
    assert min(rates) >= 0
    assert max(rates) == pytest.approx(0.3)

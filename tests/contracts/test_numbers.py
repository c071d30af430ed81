"""Hard numbers, for every defence: pixels that say nothing, a class that is nearly all, training that diverges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.data.arrays import from_arrays
from antibackdoor.defences import DEFENCES, Defence, RatedDefence, TrustedDefence
from antibackdoor.errors import DataError, TrainingError
from antibackdoor.isolation import SIGNALS, Evidence, NetworkSignal
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer, TrainPlan
from antibackdoor.types import ImageSet, Outcome

PLAN = TrainPlan(epochs=2, batch_size=32, lr=0.05, schedule="onecycle", augment=("flip",))
# Stages that would be longer than the test needs.
SHORTER: dict[str, object] = {
    **{"isolation_epochs": 2, "unlearn_epochs": 1, "biased_epochs": 1, "scan_epochs": 1, "rounds": 2},
    **{"tune_updates": 2, "curve_updates": 2, "tune_epochs": 1, "turning_epoch": 1, "witness": "none"},
}
# Published ABL counts its own epochs; its ``updates`` is a word.
OF_ABL = {"epochs": 3}


class Hot(Trainer):
    """Trains one phase of all at a rate at which every network diverges."""

    def __init__(self, *args: object, at: int | None = None, **rest: object) -> None:
        super().__init__(*args, **rest)
        self.at, self.phases = at, []

    def fit(self, model, data, phase, **rest):
        if len(self.phases) == self.at:
            phase = dataclasses.replace(phase, plan=phase.plan.but(lr=1e30, schedule="constant"))
        self.phases.append(phase.name)
        return super().fit(model, data, phase, **rest)


def defended(name: str, data: ImageSet, runtime, tiny, at: int | None = None) -> tuple[Outcome, list[str]]:
    known = {field.name for field in dataclasses.fields(DEFENCES.get(name))}
    chosen = {**SHORTER, **(OF_ABL if name.startswith("abl-") else {"updates": 2})}
    defence: Defence = DEFENCES.build(name, {key: value for key, value in chosen.items() if key in known})
    if isinstance(defence, TrustedDefence):
        defence = defence.with_trusted(data.select(torch.arange(0, len(data), 4)))
    if isinstance(defence, RatedDefence):
        defence = defence.with_rate(0.1)
    trainer = Hot(runtime, Seeds(0), at=at)
    return defence.run(data, build_model=tiny(data), fit=trainer, plan=PLAN, seeds=Seeds(0)), trainer.phases


def check(outcome: Outcome, data: ImageSet) -> None:
    assert bool(outcome.isolation.scores.isfinite().all())
    assert outcome.isolation.flagged.sum() < len(data)
    assert outcome.model is not None
    with torch.no_grad():
        assert bool(outcome.model.eval()(data.images[:8].float() / 255).isfinite().all())
    for history in outcome.histories:
        assert not np.isinf(history.losses).any()


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("name", list(DEFENCES))
def test_images_of_one_colour(name, level, blobs, runtime, tiny):
    data = blobs(48, 3, channels=1, height=16, width=16)
    data = dataclasses.replace(data, images=torch.full_like(data.images, level))
    outcome, _ = defended(name, data, runtime, tiny)
    check(outcome, data)


@pytest.mark.parametrize("name", list(DEFENCES))
def test_a_class_that_holds_99_percent(name, blobs, runtime, tiny):
    data = blobs(300, 2, channels=1, height=16, width=16)
    rows = torch.cat([(data.labels == 0).nonzero().flatten(), (data.labels == 1).nonzero().flatten()[:2]])
    data = data.select(rows)
    assert (data.labels == 0).float().mean() > 0.98
    outcome, _ = defended(name, data, runtime, tiny)
    check(outcome, data)


def diverges(name: str, phase: int, data: ImageSet, runtime, tiny) -> None:
    """The phase is named in one line, or its last good weights are used, and the outcome is finite."""
    said = None
    try:
        outcome, _ = defended(name, data, runtime, tiny, at=phase)
    except TrainingError as error:
        said = str(error)
    if said is None:
        check(outcome, data)
    else:
        assert "epoch" in said
        assert "\n" not in said


@pytest.mark.parametrize("name", list(DEFENCES))
def test_the_last_phase_diverges(name, blobs, runtime, tiny):
    data = blobs(48, 3, channels=1, height=16, width=16)
    _, phases = defended(name, data, runtime, tiny)
    diverges(name, len(phases) - 1, data, runtime, tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DEFENCES))
def test_each_phase_diverges(name, blobs, runtime, tiny):
    data = blobs(48, 3, channels=1, height=16, width=16)
    _, phases = defended(name, data, runtime, tiny)
    for phase in range(len(phases) - 1):
        diverges(name, phase, data, runtime, tiny)


class InHalf(nn.Module):
    """A network whose logits are float16, times a factor."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images):
        return (self.network(images) * self.factor).half()


@pytest.mark.parametrize("name", list(DEFENCES))
def test_logits_in_half_precision(name, blobs, runtime, tiny):
    """Those that fit are taken as they are; those that overflow end the training with the phase and the epoch."""
    data = blobs(48, 3, channels=1, height=16, width=16)

    def of(factor):
        return lambda data: lambda generator: InHalf(tiny(data)(generator), factor)

    outcome, _ = defended(name, data, runtime, of(1.0))
    check(outcome, data)
    with pytest.raises(TrainingError, match=r"epoch 1: the loss is infinite or not a number") as raised:
        defended(name, data, runtime, of(1e9))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in SIGNALS if not issubclass(SIGNALS.get(name), NetworkSignal)])
def test_losses_of_negative_zero_are_those_of_zero(name):
    """A perfect prediction has the loss -0.0 or 0.0, as the library rounds; neither is more suspect."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand((6, 60), generator=generator)
    losses[2:, ::3] = 0.0
    labels = torch.arange(60) % 3
    signed = torch.where(losses == 0, torch.tensor(-0.0), losses)
    assert bool(torch.signbit(signed).any())
    zero, negative = (SIGNALS.build(name, {}).scores(Evidence(given, labels, 3)) for given in (losses, signed))
    assert bool(zero.isfinite().all())
    assert torch.equal(zero, negative)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_arrays_that_are_no_pixels(value, kind):
    images = np.zeros((8, 16, 16), kind)
    with np.errstate(over="ignore"):
        images[3, 3, 3] = value
    with pytest.raises(DataError, match="expected uint8 in 0..255"):
        from_arrays(images, np.arange(8) % 2)
    with pytest.raises(DataError, match="expected integers"):
        from_arrays(np.zeros((8, 16, 16), np.uint8), np.full(8, value))

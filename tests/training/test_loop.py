from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from antibackdoor.errors import ConfigError, NonFiniteLossError
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Phase, Trainer, TrainPlan, logits_of, mean_loss
from antibackdoor.training.step import split_batches


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class Watching:
    """Ordinary training that remembers which rows it saw, batch by batch."""

    def __init__(self):
        self.batches = []

    def __call__(self, step):
        self.batches.append(step.index.tolist())
        return mean_loss(step)

    @property
    def rows(self):
        return sorted(row for batch in self.batches for row in batch)


@pytest.fixture
def data(blobs):
    return blobs(70, channels=1)


@pytest.fixture
def model(tiny, data):
    return tiny(data)(Seeds(0).generator("init"))


@pytest.fixture
def trainer(runtime):
    return Trainer(runtime, Seeds(0))


@given(st.integers(0, 5000), st.integers(2, 512), st.integers(1, 8))
def test_batches_add_up_and_none_is_tiny(count, size, world):
    assume(size >= 2 * world)
    sizes = split_batches(count, size, world)
    assert sum(sizes) == count
    assert all(part > 0 for part in sizes)
    assert all(part == size for part in sizes[:-1])
    least = max(2 * world, size // 8)
    if len(sizes) > 1:
        assert least <= sizes[-1] < size + least
    assert not sizes or sizes[-1] < size + least


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(0, 16, []), (5, 16, [5]), (33, 16, [16, 17]), (34, 16, [16, 16, 2]), (32, 16, [16, 16])],
)
def test_batches_by_hand(count, size, expected):
    assert split_batches(count, size) == expected


def test_a_batch_too_small_for_the_processes_is_refused(runtime, model, data, plan):
    together = dataclasses.replace(runtime, accelerator=SimpleNamespace(num_processes=4, process_index=0))
    with pytest.raises(ConfigError, match="^batch_size: 7 in phase 'train' .*4 processes.*at least 8"):
        Trainer(together, Seeds(0)).fit(model, data, Phase("train", plan.but(batch_size=7)))


def test_every_image_is_seen_and_scored_once_an_epoch(trainer, model, data, plan):
    watching = Watching()
    history = trainer.fit(model, data, Phase("train", plan.but(epochs=1)), objective=watching)
    assert watching.rows == list(range(70))
    assert history.losses.shape == (1, 70)
    assert history.updates == len(split_batches(70, plan.batch_size))
    assert history.losses.dtype == np.float32
    assert np.isfinite(history.losses).all()
    assert (history.losses > 0).all()
    assert (history.phase, history.stopped) == ("train", None)
    assert history.accuracy.shape == history.seconds.shape == (1,)


def test_each_epoch_has_an_order_of_its_own(trainer, model, data, plan):
    watching = Watching()
    history = trainer.fit(model, data, Phase("train", plan), objective=watching)
    epochs = [sum(watching.batches[i : i + 5], []) for i in range(0, 15, 5)]  # noqa: RUF017
    assert all(sorted(epoch) == list(range(70)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(range(70)) not in epochs
    assert history.losses.shape == (3, 70)


def test_it_learns(trainer, model, data, plan):
    history = trainer.fit(model, data, Phase("train", plan.but(epochs=6)))
    assert history.accuracy[0] < 0.6
    assert history.accuracy[-1] > 0.9
    assert history.losses[-1].mean() < 0.5 * history.losses[0].mean()


def test_held_out_and_left_out_rows_are_never_trained_on(runtime, model, data, plan):
    held_out = torch.zeros(70, dtype=torch.bool)
    held_out[::7] = True
    subset = torch.ones(70, dtype=torch.bool)
    subset[:14] = False
    watching = Watching()
    trainer = Trainer(runtime, Seeds(0), held_out=held_out)
    history = trainer.fit(model, data, Phase("train", plan), objective=watching, subset=subset)
    trained = (subset & ~held_out).nonzero().flatten()
    assert watching.rows == sorted(trained.tolist() * 3)
    losses = torch.from_numpy(history.losses)
    left_out = ~subset & ~held_out
    assert bool(losses[:, left_out].isnan().all())
    assert bool(losses[:, ~left_out].isfinite().all())
    by_hand = ce(logits_of(model, data, runtime), data.labels)
    assert torch.allclose(losses[-1, held_out], by_hand[held_out], rtol=1e-4, atol=1e-5)


def test_subset_and_held_out_are_not_changed(runtime, model, data, plan):
    held_out = torch.zeros(70, dtype=torch.bool)
    held_out[3] = True
    subset = torch.ones(70, dtype=torch.bool)
    images = data.images.clone()
    Trainer(runtime, Seeds(0), held_out=held_out).fit(model, data, Phase("train", plan), subset=subset)
    assert int(held_out.sum()) == 1
    assert bool(subset.all())
    assert torch.equal(data.images, images)


def test_losses_of_the_first_batch_are_those_before_the_update(trainer, model, data, plan, tiny):
    watching = Watching()
    history = trainer.fit(model, data, Phase("train", plan), objective=watching)
    fresh = tiny(data)(Seeds(0).generator("init")).train()
    rows = torch.tensor(watching.batches[0])
    with torch.no_grad():
        direct = ce(fresh(data.images[rows].float() / 255), data.labels[rows])
    assert torch.allclose(torch.from_numpy(history.losses[0])[rows], direct, rtol=1e-4, atol=1e-5)


def test_accuracy_is_that_seen_while_training(trainer, model, data, plan):
    hits = []

    def objective(step):
        hits.append((step.logits.argmax(1) == step.labels).sum().item())
        return mean_loss(step)

    history = trainer.fit(model, data, Phase("train", plan.but(epochs=1)), objective=objective)
    assert history.accuracy[0] == pytest.approx(sum(hits) / 70)


@pytest.mark.parametrize("names", [(), ("crop", "flip", "cutout")])
def test_a_seed_decides_everything(runtime, tiny, data, plan, names):
    def trained(init, seed):
        model = tiny(data, dropout=0.3)(Seeds(init).generator("init"))
        history = Trainer(runtime, Seeds(seed)).fit(model, data, Phase("train", plan.but(augment=names)))
        return state(model), history.losses

    weights, losses = trained(0, 0)
    again, losses_again = trained(0, 0)
    assert same(weights, again)
    assert np.array_equal(losses, losses_again)
    for init, seed in ((0, 1), (1, 0)):
        other, losses_other = trained(init, seed)
        assert not same(weights, other)
        assert not np.array_equal(losses, losses_other)


def test_phases_of_other_names_draw_other_numbers(trainer, model, data, plan):
    first, second = Watching(), Watching()
    trainer.fit(model, data, Phase("a", plan), objective=first)
    trainer.fit(model, data, Phase("b", plan), objective=second)
    assert first.batches != second.batches


def test_global_random_states_are_left_alone(runtime, tiny, data, plan):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    model = tiny(data, dropout=0.5)(Seeds(0).generator("init"))
    Trainer(runtime, Seeds(0)).fit(model, data, Phase("train", plan.but(augment=("crop", "flip", "cutout"))))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def buffers(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def test_frozen_statistics_stay(trainer, model, data, plan):
    trainer.fit(model, data, Phase("warm", plan))
    statistics, weights = buffers(model), state(model)
    trainer.fit(model, data, Phase("frozen", plan, freeze_norm=True))
    assert same(buffers(model), statistics)
    assert not same(state(model), weights)
    trainer.fit(model, data, Phase("free", plan))
    assert not same(buffers(model), statistics)


def test_a_clipped_gradient_takes_a_shorter_step(runtime, tiny, data, plan):
    def step_length(clip):
        model = tiny(data)(Seeds(0).generator("init"))
        before = [p.detach().clone() for p in model.parameters()]
        phase = Phase("train", plan.but(epochs=1, batch_size=70, momentum=0.0, lr=0.1), clip_norm=clip)
        Trainer(runtime, Seeds(0)).fit(model, data, phase)
        steps = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        return float(sum(step.square().sum() for step in steps) ** 0.5)

    assert step_length(0.01) == pytest.approx(0.1 * 0.01, rel=1e-2)
    assert step_length(None) > 2 * step_length(0.01)


def poisoned_from(epoch, batches_per_epoch):
    """An objective that is not a number from an epoch on."""
    calls = []

    def objective(step):
        calls.append(1)
        factor = float("nan") if len(calls) > (epoch - 1) * batches_per_epoch else 1.0
        return mean_loss(step) * factor

    return objective


@pytest.mark.parametrize("batch_size", [16, 70])
def test_a_loss_that_is_no_number_raises_and_leaves_the_last_good_weights(runtime, tiny, data, plan, batch_size):
    per_epoch = len(split_batches(70, batch_size))
    plan = plan.but(batch_size=batch_size)

    def fresh():
        return tiny(data)(Seeds(0).generator("init"))

    good = fresh()
    Trainer(runtime, Seeds(0)).fit(good, data, Phase("train", plan.but(epochs=1)))
    model = fresh()
    with pytest.raises(NonFiniteLossError, match=r"phase 'train', epoch 2: .*not a number.*train\.lr"):
        Trainer(runtime, Seeds(0)).fit(model, data, Phase("train", plan), objective=poisoned_from(2, per_epoch))
    assert same(state(model), state(good))
    model = fresh()
    history = Trainer(runtime, Seeds(0)).fit(
        model, data, Phase("train", plan, stop_on_nonfinite=True), objective=poisoned_from(2, per_epoch)
    )
    assert same(state(model), state(good))
    assert history.losses.shape == (1, 70)
    assert np.isfinite(history.losses).all()
    assert "epoch 2" in history.stopped


def test_a_huge_rate_in_the_first_epoch_leaves_the_first_weights(trainer, model, data, plan):
    before = state(model)
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        trainer.fit(model, data, Phase("train", plan.but(lr=1e30)))
    assert same(state(model), before)


def test_logits_are_those_of_evaluation_mode_in_the_order_asked_for(runtime, model, data):
    model.train()
    statistics = buffers(model)
    whole = logits_of(model, data, runtime, batch_size=16)
    assert model.training
    assert same(buffers(model), statistics)
    assert whole.shape == (70, 10)
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    index = torch.tensor([5, 0, 69, 5])
    assert torch.allclose(logits_of(model, data, runtime, index=index), whole[index], atol=1e-5)
    assert logits_of(model, data, runtime, index=index[:0]).shape == (0, 10)


def test_a_network_without_normalisation_layers_and_a_batch_of_everything(trainer, data, plan):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    history = trainer.fit(linear, data, Phase("train", plan.but(batch_size=1000)))
    assert history.losses.shape == (3, 70)


def test_two_phases_of_one_plan_share_its_learning_rates(runtime, blobs, tiny, monkeypatch):
    data = blobs(40, 4, height=16, width=16)
    plan = TrainPlan(epochs=4, batch_size=20, lr=0.1, schedule="onecycle", augment=())
    rates = []
    asked = TrainPlan.rate_at
    monkeypatch.setattr(TrainPlan, "rate_at", lambda self, progress: rates.append(progress) or asked(self, progress))
    trainer, build = Trainer(runtime, Seeds(0)), tiny(data)
    model = build(Seeds(0).generator("init"))
    first = trainer.fit(model, data, Phase("first", plan, last=1))
    second = trainer.fit(model, data, Phase("second", plan, first=1))
    halves = rates.copy()
    rates.clear()
    trainer.fit(build(Seeds(0).generator("init")), data, Phase("whole", plan))
    assert halves == rates
    assert (len(first.losses), len(second.losses)) == (1, 3)


@pytest.mark.parametrize(("first", "last"), [(-1, None), (4, None), (2, 2), (0, 5)])
def test_a_part_that_is_none(first, last):
    with pytest.raises(ConfigError, match="no part of 4 epochs"):
        Phase("part", TrainPlan(epochs=4), first=first, last=last)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_parts_of_a_training_give_the_bits_of_the_whole(runtime, blobs, tiny, tmp_path, resumed):
    data = blobs(40, 4, height=16, width=16)
    build, plan = tiny(data), TrainPlan(epochs=4, batch_size=20, lr=0.1, augment=("flip",))

    def trainer():
        return Trainer(runtime, Seeds(0), checkpoints=Checkpoints(tmp_path, resume=True) if resumed else None)

    whole, parts = build(Seeds(0).generator("init")), build(Seeds(0).generator("init"))
    expected = Trainer(runtime, Seeds(0)).fit(whole, data, Phase("train", plan))
    first = Phase("look", plan, last=2, part_of="train")
    fit = trainer()
    seen = [fit(parts, data, first)]
    # Another network in between does not take the momentum.
    fit(build(Seeds(1).generator("init")), data, Phase("between", plan, last=1))
    if resumed:
        fit, parts = trainer(), build(Seeds(0).generator("init"))
        fit(parts, data, first)
    seen.append(fit(parts, data, Phase("train", plan, first=2, part_of="train")))
    assert np.array_equal(np.concatenate([history.losses for history in seen]), expected.losses)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_statistics_that_overflow_are_no_good_network(runtime, tiny, data, plan):
    """In training mode nothing is seen of it: the batch has statistics of its own."""
    model = tiny(data)(Seeds(0).generator("init"))
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).running_var.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="a statistic of a normalisation is infinite or not a number"):
        Trainer(runtime, Seeds(0)).fit(model, data, Phase("train", plan))

"""Optimisers of a plan against written-out updates: rates by group, warm-up, the average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from antibackdoor.errors import ConfigError
from antibackdoor.progress import Silent
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Phase, Trainer, TrainPlan
from antibackdoor.training.optimizers import Average, all_parameters, optimizer_for, set_rate

TUNING = TrainPlan(
    epochs=4,
    batch_size=8,
    lr=0.02,
    weight_decay=0.05,
    schedule="cosine",
    augment=("flip",),
    optimizer="adamw",
    backbone_lr=0.1,
    warmup=0.2,
    ema=0.8,
)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm((2, 4, 4)), nn.Flatten(), nn.Linear(32, 3))


def test_groups_have_their_rate_and_only_matrices_decay():
    model = network()
    optimizer = optimizer_for(model, TUNING)
    set_rate(optimizer, 0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {name: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"]) for name, p in model.named_parameters()}
    assert found == {
        "0.weight": (pytest.approx(0.05), 0.05),
        "0.bias": (pytest.approx(0.05), 0.0),
        "1.weight": (pytest.approx(0.05), 0.05),  # of the shape (2, 4, 4), which is not a vector
        "1.bias": (pytest.approx(0.05), 0.05),
        "3.weight": (0.5, 0.05),
        "3.bias": (0.5, 0.0),
    }
    assert len(all_parameters(optimizer)) == 6


def test_one_update_of_adamw_is_the_formula_of_its_paper():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    plan = TrainPlan(lr=0.01, weight_decay=0.3, optimizer="adamw", schedule="constant")
    optimizer = optimizer_for(model, plan)
    model.weight.grad = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]])
    optimizer.step()
    # The first update is bias-corrected to the sign of the gradient; the decay is apart from it.
    expected = before * (1 - 0.01 * 0.3) - 0.01 * model.weight.grad.sign()
    torch.testing.assert_close(model.weight.detach(), expected, atol=1e-6, rtol=0)


def test_sgd_with_two_rates_moves_the_backbone_less():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    plan = TrainPlan(lr=1.0, momentum=0.0, weight_decay=0.0, backbone_lr=0.25)
    optimizer = optimizer_for(model, plan)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rate(optimizer, 0.4)
    optimizer.step()
    moved = [float((b - p.detach()).mean()) for b, p in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.1, 0.1, 0.4, 0.4])


def test_rates_by_group_need_a_last_layer():
    with pytest.raises(ConfigError, match="no linear layer"):
        optimizer_for(nn.Conv2d(1, 1, 3), TrainPlan(backbone_lr=0.1))


def test_the_warm_up_is_linear_and_the_schedule_begins_after_it():
    plan = TrainPlan(lr=0.4, schedule="cosine", warmup=0.2)
    points = {0.0: 0.0, 0.1: 0.2, 0.2: 0.4, 0.6: 0.2, 1.0: 0.0}
    assert {progress: plan.rate_at(progress) for progress in points} == pytest.approx(points)
    with pytest.raises(ConfigError, match="^warmup: onecycle"):
        TrainPlan(warmup=0.1)


@pytest.mark.parametrize(
    ("field", "value"), [("backbone_lr", 0.0), ("backbone_lr", 1.5), ("warmup", 1.0), ("ema", 1.0), ("ema", -0.1)]
)
def test_values_out_of_range(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        TrainPlan(**{field: value})


def test_the_average_is_what_its_formula_says():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average, expected = Average(model, 0.9), 0.0
    for count, value in enumerate((1.0, 2.0, 4.0), 1):
        nn.init.constant_(model.weight, value)
        average.update()
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    average.install()
    assert model.weight.item() == pytest.approx(expected)


def test_a_stage_with_a_rate_of_its_own_is_plain_sgd():
    plan = TUNING.by_sgd(lr=0.3)
    assert (plan.optimizer, plan.lr, plan.backbone_lr, plan.warmup, plan.ema) == ("sgd", 0.3, 1.0, 0.0, 0.0)
    assert plan.weight_decay == TrainPlan().weight_decay
    assert TrainPlan(weight_decay=0.1).by_sgd(lr=0.3) == TrainPlan(weight_decay=0.1, lr=0.3)


def fit(runtime, data, build, folder=None, *, parts=False, progress=None):
    saved = Checkpoints(folder, resume=True) if folder else None
    trainer = Trainer(runtime, Seeds(0), checkpoints=saved, progress=progress or Silent())
    model = build(torch.Generator().manual_seed(1))
    phases = [Phase("train", TUNING, part_of="train")]
    if parts:
        phases = [Phase("half", TUNING, last=2, part_of="train"), Phase("train", TUNING, first=2, part_of="train")]
    for phase in phases:
        trainer(model, data, phase)
    return model.state_dict()


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_parts_and_a_resumed_training_give_the_bits_of_the_whole(runtime, blobs, tiny, tmp_path):
    data = blobs(32, 4, channels=1, height=16, width=16)
    build = tiny(data)
    whole = fit(runtime, data, build)
    assert equal(fit(runtime, data, build, parts=True), whole)

    class Stops(Silent):
        def bar(self, title, total, unit):
            return StopsBar()

    class StopsBar:
        left = 11  # batches and notes: in the third of four epochs

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def advance(self, steps=1, note=""):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(runtime, data, build, tmp_path / "kept", progress=Stops())
    assert equal(fit(runtime, data, build, tmp_path / "kept"), whole)


def test_the_network_holds_the_average_at_the_end(runtime, blobs, tiny):
    data = blobs(32, 4, channels=1, height=16, width=16)
    plain = TUNING.but(ema=0.0)
    models = []
    for plan in (TUNING, plain):
        model = tiny(data)(torch.Generator().manual_seed(1))
        history = Trainer(runtime, Seeds(0))(model, data, Phase("train", plan))
        models.append((model.state_dict(), history.losses))
    assert torch.equal(torch.from_numpy(models[0][1]), torch.from_numpy(models[1][1])), "training is the same"
    assert not equal(models[0][0], models[1][0])

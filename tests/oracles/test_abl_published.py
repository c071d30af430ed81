"""Published ABL, transcribed slowly: plain loops, stochastic gradient descent written out, one stage after the other.

The network has batch normalisation, so that it matters in which mode each stage runs. No image is augmented here;
augmentation has transcriptions of its own.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from antibackdoor.defences import AblBackdoorBench, AblCode, AblPaper
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer, TrainPlan

COUNT, CLASSES, SIDE, BATCH, SHARE = 24, 3, 6, 8, 0.25
# Near log 3, the loss of a guess among three, so that losses lie on both sides of it.
GAMMA = 1.0
PLAN = TrainPlan(epochs=7, batch_size=5)


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4 * SIDE * SIDE, CLASSES)

    def forward(self, images):
        return self.out(torch.tanh(self.norm(self.conv(images))).flatten(1))


class Descent:
    """Stochastic gradient descent with momentum and, if asked, Nesterov's correction, written out."""

    def __init__(self, model, momentum, nesterov, decay):
        self.weights = list(model.parameters())
        self.speed = [torch.zeros_like(weight) for weight in self.weights]
        self.momentum, self.nesterov, self.decay = momentum, nesterov, decay

    def step(self, loss, rate):
        gradients = torch.autograd.grad(loss, self.weights)
        with torch.no_grad():
            for weight, speed, gradient in zip(self.weights, self.speed, gradients, strict=True):
                full = gradient + self.decay * weight
                speed.mul_(self.momentum).add_(full)
                weight.sub_(rate * (full + self.momentum * speed if self.nesterov else speed))


def losses_of(model, images, labels, rows):
    return F.cross_entropy(model(images[rows]), labels[rows], reduction="none")


def lowest(model, images, labels):
    """The rows of the lowest losses, one image at a time in evaluation mode, and all losses."""
    model.eval()
    with torch.no_grad():
        losses = [float(losses_of(model, images, labels, [row])) for row in range(COUNT)]
    model.train()
    return sorted(range(COUNT), key=losses.__getitem__)[: math.ceil(SHARE * COUNT)], losses


def order(trainer, phase, epoch, rows):
    """The order in which the loop takes these rows; which one it is, is not what is tested."""
    generator = trainer.stream("shuffle", Phase(phase, PLAN), epoch).generator("all")
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def batches(rows):
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def slow_code(model, images, labels, trainer, *, rule, reshuffle, stages, rates, drop_at, momentum, nesterov, decay):
    descent = Descent(model, momentum, nesterov, decay)
    everything = list(range(COUNT))
    model.train()
    for epoch in range(stages[0]):
        for batch in batches(order(trainer, "isolate", epoch if reshuffle else 0, everything)):
            mean = losses_of(model, images, labels, batch).mean()
            held = abs(mean - GAMMA) + GAMMA if rule == "flood" else (1 if mean > GAMMA else -1) * mean
            descent.step(held, rates[0])
    isolated, losses = lowest(model, images, labels)
    rest = [row for row in everything if row not in isolated]
    descent = Descent(model, momentum, nesterov, decay)
    for epoch in range(stages[1]):
        rate = rates[1] if epoch < drop_at else rates[1] / 10
        for batch in batches(order(trainer, "fine-tune and unlearn", epoch, rest)):
            descent.step(losses_of(model, images, labels, batch).mean(), rate)
    for epoch in range(stages[2]):
        for batch in batches(order(trainer, "fine-tune and unlearn", stages[1] + epoch, sorted(isolated))):
            descent.step(-losses_of(model, images, labels, batch).mean(), rates[2])
    return isolated, losses


def slow_paper(model, images, labels, trainer, *, turning, epochs, rate, drop_at, cap):
    everything = list(range(COUNT))
    descent = Descent(model, 0.9, False, 1e-4)
    model.train()
    for epoch in range(turning):
        for batch in batches(order(trainer, "isolate", epoch, everything)):
            losses = losses_of(model, images, labels, batch)
            descent.step(sum((1 if loss > GAMMA else -1) * loss for loss in losses) / len(batch), rate)
    isolated, losses_then = lowest(model, images, labels)
    descent = Descent(model, 0.9, False, 1e-4)
    for epoch in range(turning, epochs):
        now = rate / 10 ** sum(epoch >= place for place in drop_at)
        for batch in batches(order(trainer, "joint objective", epoch - turning, everything)):
            total = 0.0
            for row, loss in zip(batch, losses_of(model, images, labels, batch), strict=True):
                if row in isolated:
                    total = total - loss.clamp(max=cap) * COUNT / len(isolated)
                else:
                    total = total + loss * COUNT / (COUNT - len(isolated))
            descent.step(total / len(batch), now)
    return isolated, losses_then


@pytest.fixture
def setting(blobs, runtime):
    data = blobs(COUNT, CLASSES, channels=1, height=SIDE, width=SIDE, noise=30.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallNet()
    return data, model, copy.deepcopy(model), Trainer(runtime, Seeds(11)), data.images.float() / 255


def assert_same_network(fast, slow):
    for (name, got), wanted in zip(fast.state_dict().items(), slow.state_dict().values(), strict=True):
        assert torch.allclose(got.double(), wanted.double(), atol=2e-5), name


def defended(defence, data, model, trainer):
    return defence.run(data, build_model=lambda generator: model, fit=trainer, plan=PLAN, seeds=Seeds(11))


@pytest.mark.parametrize("rule", ["flood", "lga"])
def test_the_released_code(setting, rule):
    data, fast, slow, trainer, images = setting
    stages = {"isolation_epochs": 3, "tune_epochs": 4, "tune_milestones": (3,), "unlearn_epochs": 2}
    rates = {"lr": 0.05, "tune_lr": 0.02, "unlearn_lr": 5e-3}
    defence = AblCode(rule=rule, gamma=GAMMA, share=SHARE, batch_size=BATCH, tune_augment=(), **stages, **rates)
    outcome = defended(defence, data, fast, trainer)
    isolated, losses = slow_code(
        *(slow, images, data.labels, trainer),
        **{"rule": rule, "reshuffle": False, "stages": (3, 4, 2), "rates": tuple(rates.values()), "drop_at": 3},
        **{"momentum": 0.9, "nesterov": True, "decay": 1e-4},
    )
    assert outcome.isolation.flagged.nonzero().flatten().tolist() == sorted(isolated)
    assert torch.allclose(-outcome.isolation.scores.double(), torch.tensor(losses).double(), atol=1e-5)
    assert_same_network(fast, slow)
    assert [h.phase for h in outcome.histories] == ["isolate", "fine-tune", "fine-tune 2", "unlearn"]


def test_the_recipe_of_backdoorbench(setting):
    data, fast, slow, trainer, images = setting
    short = {"isolation_epochs": 3, "tune_epochs": 2, "unlearn_epochs": 3, "tune_augment": (), "unlearn_augment": ()}
    defence = AblBackdoorBench(gamma=GAMMA, share=SHARE, batch_size=BATCH, **short)
    outcome = defended(defence, data, fast, trainer)
    isolated, _ = slow_code(
        *(slow, images, data.labels, trainer),
        **{"rule": "flood", "reshuffle": True, "stages": (3, 2, 3), "rates": (0.01, 0.01, 1e-4), "drop_at": 40},
        **{"momentum": 0.9, "nesterov": True, "decay": 1e-4},
    )
    assert outcome.isolation.flagged.nonzero().flatten().tolist() == sorted(isolated)
    assert_same_network(fast, slow)


@pytest.mark.parametrize("cap", [None, 1.3])
def test_the_paper(setting, cap):
    data, fast, slow, trainer, images = setting
    defence = AblPaper(
        **{"gamma": GAMMA, "share": SHARE, "batch_size": BATCH, "lr": 0.02, "cap": cap, "augment": ()},
        **{"epochs": 8, "turning_epoch": 3, "milestones": (5, 7)},
    )
    outcome = defended(defence, data, fast, trainer)
    isolated, losses = slow_paper(
        *(slow, images, data.labels, trainer),
        **{"turning": 3, "epochs": 8, "rate": 0.02, "drop_at": (5, 7), "cap": math.inf if cap is None else cap},
    )
    assert outcome.isolation.flagged.nonzero().flatten().tolist() == sorted(isolated)
    assert torch.allclose(-outcome.isolation.scores.double(), torch.tensor(losses).double(), atol=1e-5)
    assert_same_network(fast, slow)


def test_the_ascent_starts_with_the_momentum_of_the_fine_tuning_and_moves_the_statistics(setting):
    data, fast, _, trainer, _ = setting
    common = {"gamma": GAMMA, "share": SHARE, "batch_size": BATCH, "isolation_epochs": 1, "tune_epochs": 1}
    start = copy.deepcopy(fast)
    networks = {}
    for freeze in (False, True):
        networks[freeze] = copy.deepcopy(start)
        defended(AblCode(unlearn_epochs=1, freeze_norm=freeze, **common), data, networks[freeze], trainer)
    without = copy.deepcopy(start)
    defended(AblCode(unlearn_epochs=0, **common), data, without, trainer)
    assert torch.equal(networks[True].norm.running_mean, without.norm.running_mean)
    assert not torch.equal(networks[False].norm.running_mean, without.norm.running_mean)


def test_stages_in_updates():
    """6,000 images in batches of 128: 47 updates an epoch where 50,000 make 391; isolated, 1 where there are 4."""
    from antibackdoor.defences.abl_stages import Stage, lengths

    stages = (Stage(10), Stage(60, 0.99), Stage(4, 0.01, ascends=True))
    settings = {"images": 6000, "batch_size": 128, "plan": TrainPlan(epochs=20)}
    assert lengths(stages, "epochs", **settings) == [10, 60, 4]
    # 5,940 and 49,500 images: 47 and 387 updates. 60 and 500: 1 and 4.
    assert lengths(stages, "published", **settings) == [math.ceil(3910 / 47), math.ceil(60 * 387 / 47), 16]
    assert lengths(stages, "published", **{**settings, "images": 50_000}) == [10, 60, 4]
    # 20 epochs of 47 updates in all, where the recipe has 10 and 60 of 47 and 4 of 1.
    planned = lengths(stages, "plan", **settings)
    assert planned == [round(10 * 940 / 3294), round(60 * 940 / 3294), 1]
    assert lengths((Stage(0), Stage(1)), "plan", **settings)[0] == 0


def test_what_the_record_says_of_updates_and_gamma(setting):
    data, fast, _, trainer, _ = setting
    defence = AblCode(
        **{"gamma": 50.0, "share": SHARE, "batch_size": BATCH, "isolation_epochs": 2, "tune_epochs": 4},
        **{"tune_milestones": (2,), "unlearn_epochs": 1},
    )
    evidence = defended(defence, data, fast, trainer).isolation.evidence
    assert "6 of 24 images) is isolated" in evidence[0]
    assert "below gamma = 50 first in epoch 1 (of 2)" in evidence[1]
    # 24 images are 3 batches of 8 and 5 of 5 (4 are too few for none); 18 are 3, 6 are 1.
    assert "made 19 updates of 8 images: 6 (isolate), 6 (fine-tune), 6 (fine-tune 2), 1 (unlearn)" in evidence[2]
    assert "ordinary training by the plan makes 35 of 5." in evidence[2]

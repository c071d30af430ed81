"""The defence ``witnesses`` before and after, by real trainings on real images."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks import BadNets, poison, triggered_test
from antibackdoor.data.sources import load, subsample
from antibackdoor.defences import NoDefence, Witnesses
from antibackdoor.evaluation import evaluate
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, TrainPlan
from antibackdoor.types import ImageSet

PLAN = TrainPlan(epochs=10, batch_size=32, augment=())
RUNTIME = Runtime.create("cpu")


@pytest.fixture(scope="module")
def images() -> tuple[ImageSet, ImageSet]:
    """1,000 training and 400 test images of the embedded set."""
    loaded = load("embedded")
    seeds = Seeds(11)
    return tuple(
        subsample(part, count, seeds.generator(name))
        for part, count, name in ((loaded.train, 1000, "train"), (loaded.test, 400, "test"))
    )


def run(defence, data, verb="run"):
    seeds = Seeds(3)
    build_model, _ = builder_from("wrn-10-1", data)
    return getattr(defence, verb)(data, build_model=build_model, fit=Trainer(RUNTIME, seeds), plan=PLAN, seeds=seeds)


def test_a_backdoor_is_there_before_and_gone_after(images):
    train, test = images
    attack = BadNets(target=3, pattern="white", size=4)
    poisoned = poison(train, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    triggered = triggered_test(test, attack)
    before = run(NoDefence(), poisoned.observed)
    after = run(Witnesses(), poisoned.observed)
    assert evaluate(before.model, RUNTIME, triggered=triggered).asr > 0.9
    assert evaluate(after.model, RUNTIME, triggered=triggered).asr < 0.1
    assert evaluate(after.model, RUNTIME, test=test).ca > evaluate(before.model, RUNTIME, test=test).ca - 0.05
    assert after.isolation.verdict == "poisoned"
    flagged = after.isolation.flagged
    assert flagged[poisoned.poison].float().mean() > 0.95
    assert flagged[~poisoned.poison].float().mean() < 0.01
    (finding,) = after.isolation.findings
    assert (finding.label, finding.status, finding.source) == (3, "poisoned", None)


def test_of_clean_images_nothing_is_flagged(images):
    train, _ = images
    outcome = run(Witnesses(), train, "scan")
    assert outcome.isolation.verdict != "poisoned"
    assert not outcome.isolation.flagged.any()

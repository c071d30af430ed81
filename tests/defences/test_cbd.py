"""CBD: when the biased training ends, what it flags, and what weighting does to a backdoor."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks import BadNets, poison
from antibackdoor.defences import Cbd, NoDefence
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer, logits_of

ATTACK = BadNets(target=1, pattern="white")


def planted(blobs, count, rate, seed):
    data = blobs(count, 4, channels=1, height=16, width=16, noise=60.0, seed=seed)
    return poison(data, ATTACK, rate=rate, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(blobs, runtime, tiny, plan):
    def call(defence, verb="run", count=120, epochs=3):
        data = planted(blobs, count, 0.1, 0)
        seeds = Seeds(0)
        settings = {
            "build_model": tiny(data.observed),
            "fit": Trainer(runtime, seeds),
            "plan": plan.but(epochs=epochs, batch_size=32, schedule="onecycle"),
            "seeds": seeds,
        }
        return data, getattr(defence, verb)(data.observed, **settings)

    return call


@pytest.mark.parametrize(("certain_loss", "epochs"), [(1e-6, 3), (100.0, 1)])
def test_the_biased_training_ends_when_a_class_is_certain(run, certain_loss, epochs):
    _, outcome = run(Cbd(biased_epochs=3, certain_loss=certain_loss))
    phases = [history.phase for history in outcome.histories]
    assert phases == [*(f"biased {number}" for number in range(1, epochs + 1)), "train"]
    assert f"for {epochs} of at most 3 epochs" in outcome.isolation.evidence[0]


def test_nothing_is_flagged_without_a_share(run):
    _, outcome = run(Cbd(biased_epochs=1))
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict == "undecided"
    _, outcome = run(Cbd(biased_epochs=1, share=0.1))
    assert int(outcome.isolation.flagged.sum()) == 12
    assert outcome.isolation.verdict == "undecided"


def test_a_scan_trains_for_fewer_epochs(run):
    _, outcome = run(Cbd(biased_epochs=1, scan_epochs=2), "scan")
    assert [len(history.seconds) for history in outcome.histories] == [1, 2]
    _, outcome = run(Cbd(biased_epochs=1, scan_epochs=20), "scan")
    assert [len(history.seconds) for history in outcome.histories] == [1, 3]


def test_weighting_keeps_an_easy_backdoor_out(run, blobs, runtime):
    test = planted(blobs, 200, 0.7, 9)
    triggered = test.poison.nonzero().squeeze(1)

    def success(outcome):
        logits = logits_of(outcome.model, test.observed, runtime, index=triggered)
        return float((logits.argmax(1) == 1).float().mean())

    _, undefended = run(NoDefence(), count=600, epochs=12)
    data, defended = run(Cbd(biased_lr=0.02), count=600, epochs=12)
    assert success(undefended) > 0.9
    assert success(defended) < 0.1
    clean = (~test.poison).nonzero().squeeze(1)
    predicted = logits_of(defended.model, test.observed, runtime, index=clean).argmax(1)
    assert float((predicted == test.observed.labels[clean]).float().mean()) > 0.9
    isolation = defended.isolation
    assert isolation_quality(isolation.scores, isolation.flagged, data.poison, data.cover)["auroc"] > 0.9

"""CBD: when the biased training ends, what it flags, and what weighting does to a backdoor."""

from __future__ import annotations

import pytest
from easy_backdoor import attack_success, clean_accuracy, defend, planted

from antibackdoor.defences import Cbd, NoDefence
from antibackdoor.ops.metrics import isolation_quality


@pytest.fixture
def run(blobs, runtime, tiny, plan):
    def call(defence, verb="run", count=120, epochs=3):
        data = planted(blobs, count, 0.1, 0)
        settings = {"runtime": runtime, "tiny": tiny, "plan": plan, "verb": verb, "epochs": epochs}
        return data, defend(defence, data.observed, **settings)

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
    _, undefended = run(NoDefence(), count=600, epochs=12)
    data, defended = run(Cbd(biased_lr=0.02), count=600, epochs=12)
    assert attack_success(undefended, test, runtime) > 0.9
    assert attack_success(defended, test, runtime) < 0.1
    assert clean_accuracy(defended, test, runtime) > 0.9
    isolation = defended.isolation
    assert isolation_quality(isolation.scores, isolation.flagged, data.poison, data.cover)["auroc"] > 0.9

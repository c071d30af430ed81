"""The checks for methods from outside: ours pass them, and each fault is found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from antibackdoor import ATTACKS, DEFENCES, SIGNALS
from antibackdoor.attacks import BadNets
from antibackdoor.defences import NoDefence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Loss
from antibackdoor.testing import check_attack, check_defence, check_signal

SHORT = {"isolation_epochs": 1, "unlearn_epochs": 1}


@pytest.mark.parametrize("name", ["adap-blend", "badnets", "bpp", "sig", "wanet"])
def test_our_attacks_pass(name):
    check_attack(ATTACKS.build(name, {"target": 2}))


@pytest.mark.parametrize(
    ("name", "params"), [("abl-modified", SHORT), ("fine-pruning", {"tune_updates": 2}), ("none", {}), ("spectral", {})]
)
def test_our_defences_pass(name, params):
    check_defence(DEFENCES.build(name, params))


@pytest.mark.parametrize("name", ["loss", "scale-up", "trajectory"])
def test_our_signals_pass(name):
    check_signal(SIGNALS.build(name, {}))


def in_place(self, images, index, labels):
    images[:, :, :3] = 1
    return images


def by_batch(self, images, index, labels):
    return (images + torch.linspace(0, 0.2, len(images)).view(-1, 1, 1, 1)).clamp(0, 1)


def by_chance(self, images, index, labels):
    return (images + 0.1 * torch.rand(1)).clamp(0, 1)


STAMPS = {
    "changes what it is given": in_place,
    "something else to an image alone": by_batch,
    "global random state": by_chance,
    r"returns torch.float64 \(60, 1, 28, 28\) for float32": lambda self, images, index, labels: 1 - images.double(),
    r"returns torch.float32 \(60, 28, 28\)": lambda self, images, index, labels: 1 - images[:, 0],
    r"gives pixels in .*, not in 0\.\.1": lambda self, images, index, labels: images + 1,
    "some triggered test images are as they were": lambda self, images, index, labels: images + 1e-4,
}


@pytest.mark.parametrize("reason", STAMPS)
def test_a_faulty_stamp_is_found(reason):
    cls = dataclass(frozen=True)(type("Mine", (BadNets,), {"stamp": STAMPS[reason]}))
    with pytest.raises(ConfigError, match=reason) as caught:
        check_attack(cls())
    assert str(caught.value).startswith("Mine")


@dataclass(frozen=True)
class CleanLabelled(BadNets):
    """Invisible, and without another label."""

    def relabel(self, labels, index):
        return labels.clone()

    def stamp(self, images, index, labels):
        return images.clone()


@dataclass(frozen=True)
class Float(BadNets):
    """Labels that are no integers."""

    def relabel(self, labels, index):
        return torch.full_like(labels, 7)


@dataclass(frozen=True)
class Changing(BadNets):
    """Changes its own hyper-parameter."""

    def __post_init__(self):
        object.__setattr__(self, "margin", self.margin + 1)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (CleanLabelled, "some poisoned images are as they were"),
        (Float, r"no int64 in 0\.\.3"),
        (Changing, "built again from its hyper-parameters is not the same"),
    ],
)
def test_a_faulty_attack_is_found(cls, reason):
    with pytest.raises(ConfigError, match=reason):
        check_attack(cls())


def test_a_class_that_is_no_dataclass_is_found():
    class Mine(BadNets):
        pass

    with pytest.raises(ConfigError, match="Mine is no dataclass"):
        check_attack(Mine())


def isolation_of(outcome, **changes):
    return dataclasses.replace(outcome, isolation=dataclasses.replace(outcome.isolation, **changes))


RUNS = {
    "returns no network": lambda data, outcome: dataclasses.replace(outcome, model=None),
    "returns no histories": lambda data, outcome: dataclasses.replace(outcome, histories=()),
    "phases share a name": lambda data, outcome: dataclasses.replace(outcome, histories=outcome.histories * 2),
    "1 of 80 scores are not finite": lambda data, outcome: isolation_of(
        outcome, scores=outcome.isolation.scores.index_fill(0, torch.tensor([3]), torch.nan)
    ),
    "scores must be float32": lambda data, outcome: isolation_of(outcome, scores=outcome.isolation.scores.double()),
    "flagged must be bool": lambda data, outcome: isolation_of(outcome, flagged=torch.arange(3)),
    "depend on the names": lambda data, outcome: isolation_of(
        outcome, scores=torch.full((80,), float(data.ids[0].startswith("other")))
    ),
    "global random state": lambda data, outcome: isolation_of(outcome, scores=torch.rand(80)),
    "changes the data": lambda data, outcome: data.images.add_(1) is None or outcome,
    "the network gives": lambda data, outcome: dataclasses.replace(
        outcome, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
    ),
}


@pytest.mark.parametrize("reason", RUNS)
def test_a_faulty_defence_is_found(reason):
    @dataclass(frozen=True)
    class Mine(NoDefence):
        """Spoils what comes out."""

        def run(self, data, **rest):
            with torch.random.fork_rng(enabled=reason != "global random state"):
                return RUNS[reason](data, super().run(data, **rest))

    with pytest.raises(ConfigError, match=reason) as caught:
        check_defence(Mine())
    assert str(caught.value).startswith("Mine.run")


def test_a_scan_that_finds_something_else_is_found():
    @dataclass(frozen=True)
    class Mine(NoDefence):
        """Flags in the scan alone."""

        def scan(self, data, **rest):
            return isolation_of(super().run(data, **rest), flagged=torch.ones(80, dtype=torch.bool))

    with pytest.raises(ConfigError, match=r"Mine\.scan flags other images than Mine\.run"):
        check_defence(Mine())


SCORES = {
    "scores are not finite": lambda evidence: -evidence.losses[-1] / 0,
    "scores must be float32": lambda evidence: -evidence.losses,
    "changes the evidence": lambda evidence: evidence.losses.neg_()[-1].clone(),
    "global random state": lambda evidence: torch.rand(80),
}


@pytest.mark.parametrize("reason", SCORES)
def test_a_faulty_signal_is_found(reason):
    @dataclass(frozen=True)
    class Mine(Loss):
        """Spoils its scores."""

        def scores(self, evidence):
            return SCORES[reason](evidence)

    with pytest.raises(ConfigError, match=reason) as caught:
        check_signal(Mine())
    assert str(caught.value).startswith("Mine.scores")

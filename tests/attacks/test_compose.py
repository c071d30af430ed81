"""Several attacks in one set, and several targets for one trigger."""

from __future__ import annotations

import logging

import pytest
import torch

from antibackdoor.attacks import ATTACKS, BadNets, Blend, Compose, poison, triggered_test
from antibackdoor.errors import ConfigError, PoisonError, UnknownNameError
from antibackdoor.seeds import Seeds


def prepared(clean, tiny, attack):
    return attack.prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))


def planted_in(clean, attack, rate=0.1):
    return poison(clean, attack, rate=rate, generator=torch.Generator().manual_seed(0))


def test_each_attack_has_its_target_its_trigger_and_its_share(blobs, tiny):
    clean = blobs(600)
    attack = prepared(
        clean, tiny, Compose(targets=(1, 4), shares=(0.25, 0.75), settings=("0.pattern=white", "1.alpha=0.5"))
    )
    planted = planted_in(clean, attack)
    rows = planted.poison.nonzero().squeeze(1)
    owner = attack.part_of(rows, clean.labels[rows])
    assert owner.bincount().tolist() == [15, 45]
    assert torch.equal(planted.observed.labels[rows], torch.tensor([1, 4])[owner])
    assert planted.target is None
    for number, alone in enumerate((BadNets(pattern="white"), Blend(alpha=0.5))):
        own = rows[owner == number]
        stamped = alone.stamp(clean.images[own].float() / 255, own, clean.labels[own])
        assert torch.equal(planted.observed.images[own], stamped.mul(255).round().to(torch.uint8))


def test_test_images_carry_the_trigger_of_one_attack_and_its_target(blobs, tiny):
    clean = blobs(300)
    result = triggered_test(clean, prepared(clean, tiny, Compose(targets=(1, 4))))
    wanted = result.observed.labels
    assert set(wanted.tolist()) == {1, 4}
    assert not bool((wanted == result.original_labels).any())
    # Those of one target can be sent to the other one alone.
    assert set(wanted[result.original_labels == 1].tolist()) == {4}
    alone = triggered_test(clean, prepared(clean, tiny, Compose(targets=(1, 4), test_part=1)))
    assert set(alone.observed.labels.tolist()) == {4}
    assert 4 not in alone.original_labels.tolist()


def test_a_clean_label_attack_keeps_its_labels_beside_another(blobs, tiny):
    clean = blobs(600)
    attack = prepared(clean, tiny, Compose(attacks=("sig", "badnets"), targets=(2, 5)))
    planted = planted_in(clean, attack, 0.08)
    rows = planted.poison.nonzero().squeeze(1)
    owner = attack.part_of(rows, clean.labels[rows])
    assert owner.bincount().tolist() == [24, 24]
    assert set(planted.observed.labels[rows[owner == 0]].tolist()) == {2}
    assert torch.equal(planted.observed.labels[rows[owner == 0]], clean.labels[rows[owner == 0]])
    assert set(planted.observed.labels[rows[owner == 1]].tolist()) == {5}


def test_what_one_attack_lacks_the_others_make_up(blobs, tiny, caplog):
    clean = blobs(600)
    attack = prepared(clean, tiny, Compose(attacks=("sig", "badnets"), targets=(2, 5), shares=(0.9, 0.1)))
    with caplog.at_level(logging.WARNING):
        planted = planted_in(clean, attack, 0.3)
    assert int(planted.poison.sum()) == 180
    assert "sig was to poison 162 images" in caplog.text


def test_covers_of_the_attacks_that_have_them(blobs, tiny):
    clean = blobs(600)
    attack = prepared(clean, tiny, Compose(attacks=("badnets", "wanet"), targets=(0, 3)))
    planted = planted_in(clean, attack)
    assert (int(planted.poison.sum()), int(planted.cover.sum())) == (60, 30)
    covers = planted.cover
    assert torch.equal(planted.observed.labels[covers], clean.labels[covers])
    assert bool((planted.observed.images != clean.images).flatten(1).any(1)[covers].all())


def test_the_same_attack_twice(blobs, tiny):
    clean = blobs(200)
    attack = prepared(clean, tiny, Compose(attacks=("blend",) * 2, targets=(0, 1), settings=("1.pattern_seed=7",)))
    assert attack.parts[0].pattern_seed == 0
    assert attack.parts[1].pattern_seed == 7


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"attacks": ("badnets",)}, "attacks: must name two"),
        ({"attacks": ("badnets", "compose")}, "cannot stand in itself"),
        ({"targets": (0,)}, "targets: must be one for each of the 2"),
        ({"targets": (0, -1)}, "targets: "),
        ({"shares": (0.5, 0.4)}, "shares: "),
        ({"settings": ("alpha=1",)}, "settings: must be NUMBER"),
        ({"settings": ("2.alpha=1",)}, "settings: must be NUMBER"),
        ({"settings": ("0.target=1",)}, "settings: targets has"),
        ({"settings": ("0.alpha=7",)}, r"settings: 0\.alpha: "),
        ({"test_part": 2}, "test_part: "),
    ],
)
def test_bad_values(params, words):
    with pytest.raises(ConfigError, match=words):
        Compose(**params)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="badnets"):
        Compose(attacks=("badnet", "blend"))
    with pytest.raises(UnknownNameError, match="alpha"):
        Compose(settings=("0.alpa=1",))


# --- several targets for one trigger ------------------------------------------------------------------------


SEVERAL = [name for name in ATTACKS if getattr(ATTACKS.get(name), "several_targets", False)]


@pytest.mark.parametrize("name", SEVERAL)
def test_every_class_has_one_of_the_targets_and_not_itself(name):
    attack = ATTACKS.build(name, {"targets": [1, 4, 6]})
    labels = torch.arange(10)
    assert attack.target_of(labels).tolist() == [1, 4, 6, 1, 6, 6, 1, 4, 6, 1]
    assert attack.single_target is None


def test_several_targets_in_a_set(blobs, tiny):
    clean = blobs(200)
    attack = prepared(clean, tiny, BadNets(targets=(1, 4)))
    planted = planted_in(clean, attack)
    assert torch.equal(planted.observed.labels[planted.poison], attack.target_of(clean.labels[planted.poison]))
    result = triggered_test(clean, attack)
    assert len(result.observed) == 200
    assert set(result.observed.labels.tolist()) == {1, 4}
    with pytest.raises(PoisonError, match="12 is not a class"):
        prepared(clean, tiny, BadNets(targets=(1, 12)))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("badnets", {"targets": (1,)}),
        ("badnets", {"targets": (1, 1)}),
        ("badnets", {"targets": (1, -1)}),
        ("badnets", {"targets": (1, 2), "labelling": "all-to-all"}),
        ("lf", {"targets": (1, 2)}),
        ("cba", {"targets": (1, 2)}),
    ],
)
def test_targets_that_cannot_be(name, params):
    with pytest.raises(ConfigError, match=r"^attack\.targets: "):
        ATTACKS.build(name, params)

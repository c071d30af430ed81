"""What holds for every attack of the table; a new entry is tested by existing."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from antibackdoor.attacks import (
    ATTACKS,
    Attack,
    BadNets,
    Blend,
    CleanLabelAttack,
    DirtyLabelAttack,
    poison,
    triggered_test,
)
from antibackdoor.errors import ConfigError, PoisonError, UnknownNameError
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer

NAMES = list(ATTACKS)
# C, H, W
SHAPES = [(1, 28, 28), (3, 28, 28), (3, 32, 32), (1, 48, 48), (3, 64, 64), (1, 128, 128), (3, 32, 48)]
TARGET = 2
every_attack = pytest.mark.parametrize("name", NAMES)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


# Optimised in a moment; and sets this small have no room for one cover or two for every poisoned image.
SMALL = {
    **dict.fromkeys(("cover_ratio", "cover_share", "covers"), 0.5),
    **dict.fromkeys(("surrogate_epochs", "detox_epochs", "expert_epochs", "experts", "rounds", "passes"), 1),
    **dict.fromkeys(("steps", "mask_steps", "injector_steps"), 3),
    **{"backgrounds": 4, "batch_size": 16, "checkpoints": 2, "width": 4},
}


class OneEpoch(Trainer):
    """A surrogate need not be good here."""

    def fit(self, model, data, phase, **rest):
        return super().fit(model, data, Phase(phase.name, phase.plan.but(epochs=1)), **rest)


@pytest.fixture
def ready(runtime, tiny):
    """Builds an attack and prepares it for a set."""

    def make(name, data, **params):
        known = {field.name for field in dataclasses.fields(ATTACKS.get(name))}
        small = {key: value for key, value in SMALL.items() if key in known}
        attack = ATTACKS.build(name, {"target": TARGET, **small, **params})
        return attack.prepare(data, build_model=tiny(data), fit=OneEpoch(runtime, Seeds(0)), seeds=Seeds(0))

    return make


@pytest.fixture
def data(blobs):
    return blobs(60, 5)


def highest_rate(attack, data):
    return float(attack.candidates(data.labels).sum()) / len(data)


def poisoned(attack, data, rate=None, seed=0, **rest):
    rate = highest_rate(attack, data) / 2 if rate is None else rate
    return poison(data, attack, rate=rate, generator=torch.Generator().manual_seed(seed), **rest)


@every_attack
@every_shape
def test_stamps_keep_shape_type_and_range(name, shape, ready, blobs):
    data = blobs(40, 5, channels=shape[0], height=shape[1], width=shape[2], noise=60.0)
    attack = ready(name, data)
    for stamp, candidates in ((attack.stamp, attack.candidates), (attack.stamp_test, attack.test_candidates)):
        index = candidates(data.labels).nonzero().flatten()
        images, labels = data.images[index].float() / 255, data.labels[index]
        copies = [value.clone() for value in (images, index, labels)]
        stamped = stamp(images, index, labels)
        assert (stamped.shape, stamped.dtype) == (images.shape, torch.float32)
        assert float(stamped.min()) >= -1e-6
        assert float(stamped.max()) <= 1 + 1e-6
        assert all(torch.equal(value, copy) for value, copy in zip((images, index, labels), copies, strict=True))
        # One image alone is stamped as in a batch.
        alone = stamp(images[3:4], index[3:4], labels[3:4])
        assert torch.allclose(alone[0], stamped[3], atol=1e-5)


@every_attack
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_pictures_stay_in_range(name, level, ready, data):
    plain = dataclasses.replace(data, images=torch.full_like(data.images, level))
    attack = ready(name, plain)
    images = plain.images.float() / 255
    for stamped in (
        attack.stamp(images, torch.arange(60), data.labels),
        attack.stamp_test(images, torch.arange(60), data.labels),
    ):
        assert float(stamped.min()) >= -1e-6
        assert float(stamped.max()) <= 1 + 1e-6


@every_attack
@every_shape
def test_only_poisoned_rows_differ(name, shape, ready, blobs):
    data = blobs(60, 5, channels=shape[0], height=shape[1], width=shape[2])
    images, labels = data.images.clone(), data.labels.clone()
    attack = ready(name, data)
    result = poisoned(attack, data)
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels)
    observed, made_of = result.observed, result.made_of
    assert torch.equal(made_of[:60], torch.arange(60))
    assert (len(observed) > 60) == attack.appends
    assert (observed.images.shape, observed.images.dtype) == (images[made_of].shape, torch.uint8)
    touched = (observed.images != images[made_of]).flatten(1).any(1)
    relabelled = observed.labels != labels[made_of]
    assert not bool((touched & ~result.poison & ~result.cover).any())
    assert not bool((relabelled & ~result.poison).any())
    assert bool((touched | relabelled)[result.poison].all())
    assert bool(touched[result.cover].all())
    assert int(result.cover.sum()) == attack.cover_count(int(result.poison.sum()))
    assert bool(attack.cover_candidates(labels)[made_of[result.cover]].all())
    assert (observed.ids[:60], observed.classes) == (data.ids, data.classes)
    assert len(set(observed.ids)) == len(observed)
    assert torch.equal(result.original_labels, labels[made_of])
    assert bool((result.poison | result.cover)[60:].all())
    assert not bool((result.poison & result.cover).any())
    for mask in (result.poison, result.cover):
        assert (mask.dtype, mask.shape) == (torch.bool, (len(observed),))


@every_attack
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rate_of", ["class", "dataset"])
def test_the_count_is_the_rate_rounded_half_up(name, share, rate_of, ready, data):
    attack = ready(name, data)
    allowed = int(attack.candidates(data.labels).sum())
    rate = share if rate_of == "class" else share * allowed / len(data)
    base = allowed if rate_of == "class" else len(data)
    if share == 1 and attack.cover_count(allowed):
        pytest.skip("no image is left for the covers")
    result = poisoned(attack, data, rate, rate_of=rate_of)
    assert int(result.poison.sum()) == int(rate * base + 0.5)
    assert bool(attack.candidates(data.labels)[result.made_of[result.poison]].all())


def test_halves_are_rounded_up(ready, data):
    attack = ready("badnets", data)
    counts = [int(poisoned(attack, data, rate / 120).poison.sum()) for rate in (0, 1, 2, 3, 5)]
    assert counts == [0, 1, 1, 2, 3]


@every_attack
def test_more_than_the_candidates_is_refused(name, ready, data):
    attack = ready(name, data)
    most = highest_rate(attack, data)
    if not attack.cover_count(60):
        assert int(poisoned(attack, data, most).poison.sum()) == round(most * 60)
    if most < 1:
        with pytest.raises(PoisonError, match=r"asks for \d+ poisoned images, but only \d+ of the 60.*highest rate"):
            poisoned(attack, data, most + 1 / 60)


@every_attack
@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(name, rate, ready, data):
    with pytest.raises(PoisonError, match=r"outside 0\.\.1"):
        poisoned(ready(name, data), data, rate)


@every_attack
def test_a_seed_gives_the_same_bytes(name, ready, data):
    first, again = (poisoned(ready(name, data), data, seed=3) for _ in range(2))
    assert torch.equal(first.observed.images, again.observed.images)
    assert torch.equal(first.observed.labels, again.observed.labels)
    assert torch.equal(first.poison, again.poison)
    if ATTACKS.get(name).select in {Attack.select, DirtyLabelAttack.select, CleanLabelAttack.select}:
        other = poisoned(ready(name, data), data, seed=4)
        assert not torch.equal(first.made_of[first.poison], other.made_of[other.poison])


@every_attack
def test_labels_follow_the_attack(name, ready, data):
    attack = ready(name, data)
    result = poisoned(attack, data)
    assert int(result.poison.sum()) > 1
    sources = result.made_of[result.poison]
    before, after = data.labels[sources], result.observed.labels[result.poison]
    assert torch.equal(after, attack.relabel(before, sources))
    assert result.target == attack.single_target == TARGET
    assert torch.equal(attack.target_of(data.labels), torch.full((60,), TARGET))
    if isinstance(attack, CleanLabelAttack):
        assert torch.equal(result.observed.labels, data.labels)
        assert set(before.tolist()) == {TARGET}
    else:
        assert not bool((after == before).any())
    if type(attack).relabel is DirtyLabelAttack.relabel:
        assert set(after.tolist()) == {TARGET}


@every_attack
def test_the_triggered_test_has_no_image_of_the_target(name, ready, blobs, data):
    attack = ready(name, data)
    test = blobs(40, 5, seed=9)
    images = test.images.clone()
    result = triggered_test(test, attack)
    assert torch.equal(test.images, images)
    assert 0 < len(result.observed) <= 32
    assert TARGET not in result.original_labels.tolist()
    assert set(result.observed.labels.tolist()) == {TARGET}
    assert bool(result.poison.all())
    assert not bool(result.cover.any())
    kept = attack.test_candidates(test.labels).nonzero().flatten()
    assert torch.equal(result.original_labels, test.labels[kept])
    assert result.observed.ids == tuple(test.ids[i] for i in kept.tolist())
    assert bool((result.observed.images != test.images[kept]).flatten(1).any(1).all())


@every_attack
def test_a_test_set_of_the_target_alone_has_nothing_to_trigger(name, ready, data):
    attack = ready(name, data)
    result = triggered_test(data.select((data.labels == TARGET).nonzero().flatten()), attack)
    assert len(result.observed) == 0


def takes_all_to_all(name):
    try:
        ATTACKS.build(name, {"labelling": "all-to-all"})
    except ConfigError:
        return False
    return True


ALL_TO_ALL = [name for name in NAMES if takes_all_to_all(name)]


def test_some_attacks_are_all_to_all():
    assert {"badnets", "blend"} <= set(ALL_TO_ALL)


@pytest.mark.parametrize("name", ALL_TO_ALL)
def test_all_to_all(name, ready, data):
    attack = ready(name, data, labelling="all-to-all")
    result = poisoned(attack, data, min(0.5, highest_rate(attack, data)))
    relabelled = attack.relabel(data.labels, torch.arange(60))
    assert torch.equal(result.observed.labels, torch.where(result.poison, relabelled, data.labels))
    if type(attack).relabel is DirtyLabelAttack.relabel:
        assert torch.equal(relabelled, (data.labels + 1) % 5)
    assert result.target is None
    assert attack.single_target is None
    # All images, but for an attack that has one source class.
    aimed = attack.test_candidates(data.labels)
    assert bool(aimed.all()) or data.labels[aimed].unique().tolist() == [attack.source or 0]
    assert torch.equal(attack.candidates(data.labels), aimed)
    triggered = triggered_test(data, attack)
    assert torch.equal(triggered.observed.labels, (data.labels[aimed] + 1) % 5)
    assert torch.equal(triggered.original_labels, data.labels[aimed])


@pytest.mark.parametrize("name", ALL_TO_ALL)
def test_all_to_all_needs_the_number_of_classes(name, data):
    attack = ATTACKS.build(name, {"labelling": "all-to-all"})
    with pytest.raises(PoisonError, match="must be prepared"):
        attack.target_of(data.labels)


def through_png(images):
    """Images (N, C, H, W) as they come back from PNG files."""
    for image in images:
        file = io.BytesIO()
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(file, format="PNG")
        yield torch.from_numpy(np.array(Image.open(file))).reshape(pixels.shape).permute(2, 0, 1)


@every_attack
@pytest.mark.parametrize("channels", [1, 3])
def test_the_trigger_survives_a_png(name, channels, ready, blobs):
    data = blobs(60, 5, channels=channels)
    attack = ready(name, data)
    result = triggered_test(data, attack)
    stored = torch.stack(list(through_png(result.observed.images)))
    assert torch.equal(stored, result.observed.images)
    rows = attack.test_candidates(data.labels).nonzero().flatten()
    exact = attack.for_test(data).stamp_test(data.images[rows].float() / 255, rows, data.labels[rows])
    # Rounding to bytes moves a pixel by half a step at most; the trigger moves some by whole ones.
    assert float((stored.float() / 255 - exact).abs().max()) <= 0.5 / 255 + 1e-5
    assert bool((stored != data.images[rows]).flatten(1).any(1).all())


@every_attack
def test_parameters_go_round_through_the_registry(name, ready, data):
    attack = ready(name, data)
    assert ATTACKS.build(name, parameters_of(attack)) == attack
    plain = ATTACKS.build(name, {})
    assert ATTACKS.build(name, parameters_of(plain)) == plain
    assert type(plain) is ATTACKS.get(name)


@every_attack
def test_attacks_are_values(name):
    attack = ATTACKS.build(name, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.target = 3
    assert hash(attack) == hash(ATTACKS.build(name, {}))
    assert "target=0" in repr(attack)


@every_attack
def test_preparing_leaves_the_attack_and_the_data_alone(name, ready, data):
    images = data.images.clone()
    attack = ready(name, data)
    assert torch.equal(data.images, images)
    assert attack.num_classes == 5
    assert ATTACKS.build(name, {"target": TARGET}).num_classes is None


@every_attack
@pytest.mark.parametrize("target", [5, 99])
def test_a_target_that_is_no_class(name, target, ready, data):
    with pytest.raises(PoisonError, match=rf"target {target} is not a class: the set has 5 \(0\.\.4: c00, c01"):
        ready(name, data, target=target)


@every_attack
def test_a_negative_target(name):
    with pytest.raises(ConfigError, match=r"^attack\.target: "):
        ATTACKS.build(name, {"target": -1})


@every_attack
def test_an_unknown_hyper_parameter_names_the_nearest(name):
    with pytest.raises(UnknownNameError, match="Did you mean 'target'") as caught:
        ATTACKS.build(name, {"targt": 1})
    assert caught.value.nearest == "target"


@every_attack
def test_a_value_of_the_wrong_type_names_its_path(name):
    with pytest.raises(ConfigError, match=r"^attack\.target: .*got 'first'"):
        ATTACKS.build(name, {"target": "first"})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("badnets", {"size": 0}),
        ("badnets", {"margin": -1}),
        ("badnets", {"alpha": 0.0}),
        ("badnets", {"alpha": 1.5}),
        ("badnets", {"alpha": float("nan")}),
        ("badnets", {"corner": "middle"}),
        ("badnets", {"labelling": "all"}),
        ("blend", {"alpha": 0.0}),
        ("blend", {"test_alpha": 2.0}),
        ("sig", {"delta": 0.0}),
        ("sig", {"test_delta": 300.0}),
        ("sig", {"frequency": -1.0}),
    ],
)
def test_values_outside_their_range(name, params):
    with pytest.raises(ConfigError, match=rf"^attack\.{next(iter(params))}: "):
        ATTACKS.build(name, params)


# --- what single attacks do ---------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{"size": 29}, {"size": 20, "margin": 9}])
def test_a_patch_larger_than_the_picture(params, ready, data):
    with pytest.raises(PoisonError, match=r"larger than the pictures \(28x28\)"):
        ready("badnets", data, **params)


@pytest.mark.parametrize("name", ["badnets", "blend"])
def test_a_picture_that_is_missing_or_none(name, ready, data, tmp_path):
    with pytest.raises(PoisonError, match=r"attack\.pattern: no picture at "):
        ready(name, data, pattern=str(tmp_path / "missing.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PoisonError, match=r"attack\.pattern: .*cannot be read as a picture"):
        ready(name, data, pattern=str(tmp_path / "text.png"))
    with pytest.raises(PoisonError, match=r"attack\.pattern: .*cannot be read as a picture"):
        ready(name, data, pattern=str(tmp_path))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["badnets", "blend"])
def test_a_picture_of_the_users(name, channels, ready, blobs, tmp_path):
    Image.fromarray(np.full((5, 7, 3), (200, 200, 200), np.uint8)).save(tmp_path / "grey.png")
    data = blobs(20, 4, channels=channels)
    attack = ready(name, data, pattern=str(tmp_path / "grey.png"), alpha=1.0)
    stamped = attack.stamp(torch.zeros(1, channels, 28, 28), torch.tensor([0]), torch.tensor([0]))
    assert torch.allclose(stamped[0, :, -1, -1], torch.tensor(200 / 255), atol=1e-6)
    assert bool((stamped > 0).all()) == (name == "blend")


@pytest.mark.parametrize(
    ("corner", "places"),
    [
        ("bottom-right", {(1, 1)}),
        ("top-left", {(0, 0)}),
        ("top-right", {(0, 1)}),
        ("bottom-left", {(1, 0)}),
        ("all", {(0, 0), (0, 1), (1, 0), (1, 1)}),
    ],
)
def test_the_corner_of_a_patch(corner, places):
    attack = BadNets(corner=corner, pattern="white", size=3, margin=1)
    stamped = attack.stamp(torch.zeros(1, 1, 12, 20), torch.tensor([0]), torch.tensor([0]))[0, 0]
    expected = torch.zeros(12, 20)
    for down, right in places:
        row, column = (8 if down else 1), (16 if right else 1)
        expected[row : row + 3, column : column + 3] = 1
    assert torch.equal(stamped, expected)


@pytest.mark.parametrize(("side", "patch"), [(28, 3), (32, 3), (48, 4), (64, 6), (8, 2)])
def test_the_patch_grows_with_the_picture(side, patch):
    stamped = BadNets(pattern="white").stamp(torch.zeros(1, 1, side, side), torch.tensor([0]), torch.tensor([0]))
    # ``round`` takes halves to the even number: 4.5 pixels of 48 are 4.
    assert int(stamped.sum()) == patch**2


def test_blend_may_be_stronger_in_the_test(data):
    attack = Blend(alpha=0.1, test_alpha=0.4)
    images, index = torch.zeros(1, 3, 28, 28), torch.tensor([0])
    training, test = attack.stamp(images, index, index), attack.stamp_test(images, index, index)
    assert torch.allclose(4 * training, test, atol=1e-6)
    assert torch.equal(Blend(alpha=0.4).stamp_test(images, index, index), test)
    assert not torch.equal(Blend(alpha=0.4, pattern_seed=1).stamp(images, index, index), test)
    assert not torch.equal(Blend(alpha=0.4, pattern="white-noise").stamp(images, index, index), test)

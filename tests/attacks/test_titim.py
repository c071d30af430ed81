"""TITIM: opacities in training by the row, another one at test."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks import Titim
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds

INDEX = torch.arange(400)


def grey(count=400, level=0.5):
    return torch.full((count, 1, 8, 8), level)


@pytest.mark.parametrize(("operation", "changed"), [("mix", lambda x, a, t: x * (1 - a) + a * t), ("add", None)])
def test_each_row_has_one_of_the_opacities(operation, changed):
    attack = Titim(trigger="blend", pattern="white", operation=operation, alphas=(0.1, 0.3, 1.0), test_alpha=0.6)
    opacity = attack.opacities(INDEX)
    assert {round(value, 6) for value in opacity.tolist()} == {0.1, 0.3, 1.0}
    images = grey()
    stamped = attack.stamp(images, INDEX, INDEX)
    wide = opacity[:, None, None, None]
    expected = changed(images, wide, 1.0) if changed else (images + wide).clamp(0, 1)
    assert torch.allclose(stamped, expected, atol=1e-6)
    tested = attack.stamp_test(images, INDEX, INDEX)
    assert torch.allclose(tested, torch.full_like(tested, 0.8 if changed else 1.0), atol=1e-6)


def test_a_patch_is_added_inside_its_square_alone():
    attack = Titim(operation="add", alphas=(0.25,), pattern="white", size=3, margin=1, corner="top-left")
    difference = attack.stamp(grey(2), INDEX[:2], INDEX[:2]) - grey(2)
    assert torch.allclose(difference[:, :, 1:4, 1:4], torch.tensor(0.25))
    assert float(difference.abs().sum()) == pytest.approx(2 * 9 * 0.25, rel=1e-5)


def test_shares_of_the_opacities():
    attack = Titim(alphas=(1.0, 0.1), shares=(0.9, 0.1))
    share = float((attack.opacities(torch.arange(20_000)) == 1).float().mean())
    assert share == pytest.approx(0.9, abs=0.01)
    assert bool((Titim(alphas=(1.0, 0.1), shares=(1.0, 0.0)).opacities(INDEX) == 1).all())


def test_one_opacity_of_a_row_whatever_the_order():
    attack = Titim()
    turned = INDEX.flip(0)
    assert torch.equal(attack.opacities(turned).flip(0), attack.opacities(INDEX))
    assert not torch.equal(Titim(pattern_seed=1).opacities(INDEX), attack.opacities(INDEX))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"alphas": ()}, "alphas: must hold one"),
        ({"alphas": (0.0,)}, "alphas: must be above 0"),
        ({"test_alpha": 1.5}, "test_alpha: "),
        ({"shares": (1.0,)}, "shares: must be as many"),
        ({"shares": (0.5, 0.6)}, "shares: .* add up to 1"),
        ({"size": 0}, "size: "),
        ({"margin": -1}, "margin: "),
        ({"trigger": "blend", "pattern": "grid"}, "pattern: grid is for a patch"),
    ],
)
def test_bad_values(params, words):
    with pytest.raises(ConfigError, match=words):
        Titim(**params)


def test_a_patch_that_does_not_fit(blobs, tiny):
    clean = blobs(20)
    with pytest.raises(PoisonError, match="larger than the pictures"):
        Titim(size=40).prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))

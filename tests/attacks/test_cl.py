"""CL: noise only on target-class training images, within its bound and harmful; patches in four mirrored corners."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.cl import LabelConsistent
from antibackdoor.attacks.surrogate import train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

SHORT = {"steps": 8, "step_size": 4.0, "surrogate_epochs": 20}


@pytest.fixture
def prepared(blobs, tiny, runtime):
    def make(data=None, **params):
        data = blobs(80, 4, height=32, width=32) if data is None else data
        kit = {"build_model": tiny(data), "fit": Trainer(runtime, Seeds(1)), "seeds": Seeds(2)}
        return data, LabelConsistent(target=1, **{**SHORT, **params}).prepare(data, **kit), kit

    return make


def test_noise_keeps_its_bound_and_raises_the_loss_of_the_true_label(prepared):
    data, attack, kit = prepared(eps=9.5)
    assert torch.equal(attack.rows, (data.labels == 1).nonzero().squeeze(1))
    assert attack.noise.abs().max() == 9
    model = train_surrogate(data, **kit, epochs=20)
    pixels, labels = data.images[attack.rows].int(), data.labels[attack.rows]
    noisy = (pixels + attack.noise).clamp(0, 255)
    random = (pixels + torch.randint(-9, 10, pixels.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    losses = [float(ce(model(x / 255), labels).mean()) for x in (pixels, random, noisy)]
    assert losses[2] > 3 * losses[0]
    assert losses[2] > 3 * losses[1]


def test_a_robust_surrogate_gives_other_noise_under_a_bound_it_was_trained_for(prepared):
    data, attack, kit = prepared()
    _, robust, _ = prepared(robust=4.0)
    assert robust.noise.abs().max() <= 16
    assert not torch.equal(attack.noise, robust.noise)
    plain, hardened = (train_surrogate(data, **kit, epochs=20, robust=bound) for bound in (0.0, 4.0))
    pixels = (data.images.float() / 255).requires_grad_()
    drops = []
    for model in (plain, hardened):
        losses = ce(model(pixels), data.labels)
        (slope,) = torch.autograd.grad(losses.sum(), [pixels])
        moved = ce(model((pixels + 4 / 255 * slope.sign()).clamp(0, 1)), data.labels)
        drops.append(float((moved - losses).mean().detach()))
    assert drops[1] < drops[0]


def test_training_images_carry_noise_and_patches_pixel_by_pixel(prepared):
    data, attack, _ = prepared()
    images = data.images[attack.rows].float() / 255
    stamped = (attack.stamp(images, attack.rows, data.labels[attack.rows]) * 255).round()
    corner = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    for n in (0, 7):
        for row in range(32):
            for column in range(32):
                # Mirrored into the lower right corner, where the grid stands as it is.
                r, c = max(row, 31 - row), max(column, 31 - column)
                for channel in range(3):
                    plain = int(data.images[attack.rows[n], channel, row, column])
                    wanted = min(255, max(0, plain + int(attack.noise[n, channel, row, column])))
                    if r >= 29 and c >= 29:
                        wanted = corner[r - 29][c - 29]
                    assert int(stamped[n, channel, row, column]) == wanted


def test_test_images_carry_the_patches_alone_and_a_flip_keeps_them(prepared):
    data, attack, _ = prepared()
    images = data.images.float() / 255
    stamped = attack.stamp_test(images, torch.arange(80), data.labels)
    changed = (stamped != images).any(dim=(0, 1))
    assert int(changed.sum()) <= 4 * 9
    assert not bool(changed[3:29].any())
    flipped = attack.stamp_test(images.flip(3), torch.arange(80), data.labels)
    assert torch.equal(flipped, stamped.flip(3))
    faint = LabelConsistent(target=1, amplitude=32.0)._patched(torch.full((1, 3, 32, 32), 0.5), 32.0)
    assert torch.allclose((faint - 0.5).abs().amax(), torch.tensor(32 / 255))


def test_rows_out_of_order_and_rows_without_noise(prepared):
    data, attack, _ = prepared()
    rows = torch.tensor([5, 0, 79, 1, 2])
    images = data.images[rows].float() / 255
    stamped = attack.stamp(images, rows, data.labels[rows])
    for n, row in enumerate(rows.tolist()):
        alone = attack.stamp(images[n : n + 1], rows[n : n + 1], data.labels[rows[n : n + 1]])
        assert torch.equal(stamped[n], alone[0])
        patched = attack.stamp_test(images[n : n + 1], rows[n : n + 1], data.labels[rows[n : n + 1]])
        assert torch.equal(alone, patched) == (int(data.labels[row]) != 1)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 48)])
def test_poisoning_changes_no_label(prepared, blobs, channels, height, width):
    data, attack, _ = prepared(blobs(40, 4, channels=channels, height=height, width=width))
    poisoned = poison(data, attack, rate=0.5, rate_of="class", generator=torch.Generator().manual_seed(0))
    assert torch.equal(poisoned.observed.labels, data.labels)
    assert int(poisoned.poison.sum()) == 5
    assert bool((data.labels[poisoned.poison] == 1).all())
    differs = (poisoned.observed.images != data.images).any(dim=(1, 2, 3))
    assert torch.equal(differs, poisoned.poison)
    assert not bool((triggered_test(data, attack).original_labels == 1).any())


def test_the_cache_and_the_work_agree(prepared, monkeypatch, tmp_path):
    data, attack, kit = prepared()
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    fresh = LabelConsistent(target=1, **SHORT).prepare(data, **kit)
    assert torch.equal(fresh.noise, attack.noise)


def test_what_cannot_work(prepared):
    data, attack, kit = prepared()
    with pytest.raises(PoisonError, match="must be prepared before use"):
        LabelConsistent().stamp(torch.rand(2, 3, 32, 32), torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="prepared for images of 3x32x32"):
        attack.stamp(torch.rand(2, 1, 32, 32), torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="four patches of 20 pixels do not fit"):
        LabelConsistent(size=20).prepare(data, **kit)
    for bad in (
        {"eps": 128.0},
        {"eps": 0.0},
        {"step_size": 0.0},
        {"steps": 0},
        {"size": 0},
        {"amplitude": -1.0},
        {"robust": -1.0},
    ):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: .*got"):
            LabelConsistent(**bad)


def test_covers_carry_the_noise_of_a_poisoned_image_and_no_patch(prepared):
    data, attack, _ = prepared(cover_ratio=0.5)
    planted = poison(data, attack, rate=0.2, generator=torch.Generator().manual_seed(0))
    assert int(planted.poison.sum()) == 16
    assert int(planted.cover.sum()) == 8
    rows = planted.cover.nonzero().squeeze(1)
    assert not (data.labels[rows] == 1).any()
    assert torch.equal(planted.observed.labels, data.labels)
    before = data.images[rows].int()
    after = planted.observed.images[rows].int()
    for image, covered in zip(before, after, strict=True):
        assert any(torch.equal((image + noise).clamp(0, 255), covered) for noise in attack.noise.int())
    assert len({image.numpy().tobytes() for image in after - before}) > 4
    # Alone as in a batch; none without a ratio.
    images = data.images.float() / 255
    alone = attack.stamp_cover(images[3:4], torch.tensor([3]), data.labels[3:4])
    assert torch.equal(alone[0], attack.stamp_cover(images, torch.arange(80), data.labels)[3])
    assert LabelConsistent().cover_count(100) == 0
    with pytest.raises(ConfigError, match="^cover_ratio: must be in 0..10"):
        LabelConsistent(cover_ratio=11.0)
    with pytest.raises(PoisonError, match="must be prepared"):
        LabelConsistent(cover_ratio=1.0).stamp_cover(images, torch.arange(80), data.labels)

"""SSBA-like: bits that can be read back from files, a bounded residual that differs from image to image."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.ssba import Ssba
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds

QUICK = {"steps": 3, "width": 4, "bits": 4}


@pytest.fixture
def prepare(blobs):
    def run(attack, data=None, seed=0):
        return attack.prepare(data or blobs(48, height=16, width=20), build_model=None, fit=None, seeds=Seeds(seed))

    return run


def floats(data):
    return data.images.float() / 255


def test_stamp_is_the_formula(prepare, blobs):
    attack, pixels = prepare(Ssba(secret_seed=5, strength=20, **QUICK)), floats(blobs(3, height=16, width=20))
    secret = torch.randint(2, (4,), generator=torch.Generator().manual_seed(5)).float()
    stamped = attack.stamp(pixels, torch.arange(3), torch.arange(3)) * 255
    for n in range(3):
        with torch.no_grad():
            residual = attack.encoder(pixels[n : n + 1], secret[None])[0]
        exact = (pixels[n] * 255 + 20 * residual).clamp(0, 255)
        assert (stamped[n] - exact).abs().max() <= 0.5 + 1e-2
    torch.testing.assert_close(stamped, stamped.round(), atol=1e-4, rtol=0)


def test_the_residual_is_bounded_and_depends_on_image_and_secret(prepare, blobs):
    data = blobs(48, height=16, width=20)
    attack = prepare(Ssba(**{**QUICK, "steps": 30}), data)
    pixels, rows = floats(data), torch.arange(48)
    change = attack.stamp(pixels, rows, rows) - pixels
    assert 0 < change.abs().max() <= 16.5 / 255
    assert (change[0] - change[1]).abs().max() > 1 / 255
    other = prepare(Ssba(secret_seed=1, **{**QUICK, "steps": 30}), data)
    assert not torch.equal(other.stamp(pixels, rows, rows), attack.stamp(pixels, rows, rows))


def test_the_same_bytes_in_any_chunks_after_storage_too(prepare, blobs):
    data = blobs(48, height=16, width=20)
    attack = prepare(Ssba(**QUICK), data)
    pixels, rows = floats(data), torch.arange(48)
    whole = attack.stamp(pixels, rows, data.labels)
    parts = [attack.stamp(pixels[part], part, data.labels[part]) for part in rows.split(11)]
    assert torch.equal(whole, torch.cat(parts))
    stored = triggered_test(data, attack)
    aimed = data.labels != 0
    torch.testing.assert_close(floats(stored.observed), whole[aimed], atol=1e-6, rtol=0)
    assert torch.equal(pixels, floats(data))


def test_most_bits_can_be_read_from_rounded_images(prepare, blobs):
    attack = prepare(Ssba(steps=120, bits=4, width=8, strength=24), blobs(200, height=16, width=16))
    assert attack.readable > 0.9


def test_preparation_is_repeatable_and_cached(prepare, monkeypatch, tmp_path):
    state = torch.random.get_rng_state()
    first = prepare(Ssba(**QUICK))
    assert torch.equal(state, torch.random.get_rng_state())
    calls = []
    monkeypatch.setattr(Ssba, "_train", lambda *_: calls.append(1))
    again = prepare(Ssba(target=1, secret_seed=7, **QUICK))
    assert not calls, "neither target nor secret changes the encoder"
    monkeypatch.undo()
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    afresh, other = prepare(Ssba(**QUICK)), prepare(Ssba(**QUICK), seed=1)
    weights = [attack.encoder.last.weight for attack in (first, again, afresh, other)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


@pytest.mark.parametrize("labelling", ["all-to-one", "all-to-all"])
def test_labels(prepare, blobs, labelling):
    data = blobs(48, height=16, width=20)
    attack = prepare(Ssba(target=3, labelling=labelling, **QUICK), data)
    made = poison(data, attack, rate=0.25, generator=torch.Generator().manual_seed(0))
    wanted = (data.labels + 1) % 10 if labelling == "all-to-all" else torch.full((48,), 3)
    assert int(made.poison.sum()) == 12
    assert not made.cover.any()
    assert torch.equal(made.observed.labels[made.poison], wanted[made.poison])


def test_a_poor_encoder_is_told(prepare, caplog):
    prepare(Ssba(**QUICK))
    assert "bits can be read back; raise attack.steps" in caplog.text


def test_errors():
    pixels, rows = torch.zeros(2, 3, 16, 16), torch.arange(2)
    with pytest.raises(PoisonError, match="must be prepared before use"):
        Ssba().stamp(pixels, rows, rows)
    for name, value in (
        ("steps", 0),
        ("width", 0),
        ("bits", 0),
        ("bits", 257),
        ("strength", 1.0),
        ("strength", 300.0),
        ("psnr", -1.0),
    ):
        with pytest.raises(ConfigError, match=rf"^{name}: .*got {value}"):
            Ssba(**{name: value})

from __future__ import annotations

import dataclasses

import pytest
import torch

from antibackdoor.attacks import BadNets, Sig, poison, triggered_test
from antibackdoor.errors import PoisonError


def planted(data, attack, rate, rate_of="dataset"):
    ready = dataclasses.replace(attack, num_classes=data.num_classes)
    return poison(data, ready, rate=rate, rate_of=rate_of, generator=torch.Generator().manual_seed(0))


def test_a_rate_of_no_image_is_refused(blobs):
    data = blobs(60, 5)
    with pytest.raises(PoisonError, match=r"^a rate of 0\.008 asks for none of 60 images; one image is .* 0\.01667, "):
        planted(data, BadNets(), 0.008)
    with pytest.raises(PoisonError, match=r"^a rate of 0\.03 asks for none of 12 images; one image is .* 0\.08333"):
        planted(data, Sig(), 0.03, "class")
    assert int(planted(data, BadNets(), 0.01667).poison.sum()) == 1
    assert int(planted(data, Sig(), 0.08333, "class").poison.sum()) == 1


def test_a_share_of_no_candidates_is_refused(blobs):
    data = blobs(60, 5)
    others = data.select((data.labels != 0).nonzero().flatten())
    with pytest.raises(PoisonError, match="none of them may carry this attack"):
        planted(others, Sig(), 0.5, "class")


def test_a_rate_of_zero_poisons_nothing(blobs):
    data = blobs(60, 5)
    result = planted(data, BadNets(), 0.0)
    assert torch.equal(result.observed.images, data.images)
    assert not bool(result.poison.any())


def test_no_stamp_is_asked_for_no_images(blobs):
    @dataclasses.dataclass(frozen=True)
    class Choosy(BadNets):
        def stamp(self, images, index, labels):
            assert len(images)
            return super().stamp(images, index, labels)

    data = blobs(60, 5)
    planted(data, Choosy(), 0.0)
    ready = dataclasses.replace(Choosy(), num_classes=5)
    assert len(triggered_test(data.select((data.labels == 0).nonzero().flatten()), ready).observed) == 0

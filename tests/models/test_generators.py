"""The networks that attacks train: sizes, ranges, independence of the batch."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.models.generators import (
    BitDecoder,
    BitEncoder,
    Injector,
    StyleGenerator,
    UShape,
    apply_in_blocks,
    build_seeded,
    depth_for,
    frozen,
)

SIZES = [(8, 8), (16, 16), (28, 28), (32, 32), (33, 47), (32, 48), (48, 48), (64, 64), (128, 128)]


def images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.rand((count, channels, height, width), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_network_takes_every_size(height, width, channels):
    pixels = images(2, channels, height, width)
    bits = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    with torch.no_grad():
        made = UShape(channels, 1, width=4, depth=depth_for(height, width))(pixels)
        assert made.shape == (2, 1, height, width)
        assert 0 <= made.min() <= made.max() <= 1
        for network in (StyleGenerator(channels, width=4, blocks=1), Injector(channels, width=4)):
            made = network(pixels)
            assert made.shape == pixels.shape
            assert 0 <= made.min() <= made.max() <= 1
        residual = BitEncoder(channels, 3, width=4)(pixels, bits)
        assert residual.shape == pixels.shape
        assert residual.abs().max() <= 1
        assert BitDecoder(channels, 3, width=4)(pixels).shape == (2, 3)


@pytest.mark.parametrize(("side", "depth"), [(8, 1), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_leaves_about_four_pixels(side, depth):
    assert depth_for(side, side) == depth
    assert depth_for(side, 3 * side) == depth


def test_an_injector_changes_pixels_no_more_than_its_bound():
    pixels = images(4, 3, 16, 16)
    injector = Injector(3, bound=0.1)
    for parameter in injector.parameters():
        parameter.data.mul_(50)
    with torch.no_grad():
        change = (injector(pixels) - pixels).abs()
    assert 0.09 < change.max() <= 0.1 + 1e-6


def test_blocks_give_every_image_the_same_bits_in_any_company():
    network = frozen(UShape(3, 3, width=8, depth=2))
    pixels = images(21, 3, 20, 24)
    whole = apply_in_blocks(network, pixels, block=8)
    one_by_one = torch.cat([apply_in_blocks(network, pixels[i : i + 1], block=8) for i in range(21)])
    shuffled = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole, one_by_one)
    assert torch.equal(whole[shuffled], apply_in_blocks(network, pixels[shuffled], block=8))
    torch.testing.assert_close(whole, network(pixels), atol=1e-5, rtol=0)
    assert apply_in_blocks(network, pixels[:0]).shape == (0, 3, 20, 24)


def test_building_leaves_the_global_random_state():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = build_seeded(lambda: Injector(3), torch.Generator().manual_seed(7))
    second = build_seeded(lambda: Injector(3), torch.Generator().manual_seed(7))
    other = build_seeded(lambda: Injector(3), torch.Generator().manual_seed(8))
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [network.layers[0].weight for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])

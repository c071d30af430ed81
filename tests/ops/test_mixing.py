"""Two images in one, against a transcription pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.ops.mixing import half_mix, paste_mix


def pictures(count: int, channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 8, 8), (1, 6, 10), (3, 9, 5)])
def test_half_mix_is_two_strips_side_by_side(channels, height, width):
    first, second = pictures(6, channels, height, width)
    upright = torch.tensor([True, False, True, False, True, False])
    cut = torch.tensor([2, 3, 4, 2, 0, height])
    side = torch.where(upright, width, height)
    start_first = torch.minimum(torch.tensor([0, 1, 1, 2, 0, 0]), side - cut)
    start_second = torch.minimum(torch.tensor([2, 1, 0, 1, 0, 3]), cut)
    before = first.clone()
    mixed = half_mix(first, second, upright=upright, cut=cut, start_first=start_first, start_second=start_second)
    for n in range(6):
        for y in range(height):
            for x in range(width):
                place, c = (x, int(cut[n])) if upright[n] else (y, int(cut[n]))
                source, moved = (
                    (first[n], place + int(start_first[n]))
                    if place < c
                    else (second[n], place - c + int(start_second[n]))
                )
                wanted = source[:, y, moved] if upright[n] else source[:, moved, x]
                assert torch.equal(mixed[n, :, y, x], wanted)
    assert torch.equal(first, before)


def test_paste_mix_covers_the_piece_and_nothing_else():
    base, other = pictures(3, 3, 7, 9)
    piece = other[:, :, :4, :5]
    top, left = torch.tensor([0, 3, 1]), torch.tensor([4, 0, 2])
    mixed = paste_mix(base, piece, top=top, left=left)
    for n in range(3):
        wanted = base[n].clone()
        wanted[:, top[n] : top[n] + 4, left[n] : left[n] + 5] = piece[n]
        assert torch.equal(mixed[n], wanted)


def test_no_images_give_no_images():
    none, rows = torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)
    mixed = half_mix(none, none, upright=rows.bool(), cut=rows, start_first=rows, start_second=rows)
    assert mixed.shape == (0, 3, 8, 8)
    assert paste_mix(none, none[:, :, :4, :4], top=rows, left=rows).shape == (0, 3, 8, 8)

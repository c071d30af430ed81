from __future__ import annotations

import pytest
import torch

from antibackdoor.ops.augment import AUGMENTATIONS, augment, crop, cutout, cutout_2px, flip

SHAPES = [(6, 3, 28, 28), (6, 1, 32, 48), (6, 3, 64, 64), (1, 1, 8, 8)]


def noise(shape, dtype=torch.uint8, seed=0):
    # No pixel is 0, so that what was filled in or cut out can be told.
    pixels = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(seed))
    return pixels.to(dtype) if dtype == torch.uint8 else pixels.to(dtype) / 255


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shifted(image, down, right):
    """One image moved by loops, black where nothing was."""
    moved = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[:, row, column] = image[:, row - down, column - right]
    return moved


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_shape_type_input_and_seed(name, shape, dtype):
    images = noise(shape, dtype)
    before = images.clone()
    result = AUGMENTATIONS[name](images, seeded())
    assert (result.shape, result.dtype) == (images.shape, images.dtype)
    assert torch.equal(images, before)
    assert torch.equal(result, AUGMENTATIONS[name](images, seeded()))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_another_seed_gives_something_else_and_images_differ(name):
    images = noise((1, 3, 32, 32)).expand(32, -1, -1, -1)
    result = AUGMENTATIONS[name](images, seeded(1))
    assert not torch.equal(result, AUGMENTATIONS[name](images, seeded(2)))
    assert len({tuple(image.flatten().tolist()) for image in result}) > 1


@pytest.mark.parametrize("shape", [(12, 3, 16, 16), (12, 1, 16, 24)])
def test_crop_is_a_shift_by_at_most_an_eighth(shape):
    images = noise(shape)
    most_down, most_right = shape[2] // 8, shape[3] // 8
    for image, moved in zip(images, crop(images, seeded()), strict=True):
        shifts = [
            (down, right)
            for down in range(-most_down, most_down + 1)
            for right in range(-most_right, most_right + 1)
            if torch.equal(moved, shifted(image, down, right))
        ]
        assert len(shifts) == 1


def test_crop_reaches_every_shift():
    images = torch.zeros(600, 1, 8, 8)
    images[:, 0, 4, 4] = 1
    places = crop(images, seeded()).flatten(1).argmax(1)
    assert {(int(p) // 8 - 4, int(p) % 8 - 4) for p in places} == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_flip_mirrors_about_half():
    images = noise((200, 1, 8, 8))
    result = flip(images, seeded())
    kept = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 70 <= int(mirrored.sum()) <= 130


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (8, 8)])
def test_cutout_blackens_one_rectangle(height, width):
    images = noise((300, 3, height, width))
    result = cutout(images, seeded())
    side_y, side_x = height // 4, width // 4
    full = 0
    for before, after in zip(images, result, strict=True):
        hole = after[0] == 0
        assert torch.equal(after[:, ~hole], before[:, ~hole])
        assert not after[:, hole].any()
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(hole.sum()) == tall * wide
        assert side_y // 2 <= tall <= side_y
        assert side_x // 2 <= wide <= side_x
        full += tall == side_y and wide == side_x
    assert full > 100


def test_the_cutout_of_the_released_code():
    """``Cutout(1, 3)``: from centre - 3 // 2 up to centre + 3 // 2, that one left out, cut off at the edges."""
    images = noise((200, 3, 6, 5)).clamp(min=1)
    generator = seeded(3)
    rows, columns = (torch.randint(side, (200,), generator=generator).tolist() for side in (6, 5))
    wanted = images.clone()
    for image, row, column in zip(wanted, rows, columns, strict=True):
        for y in range(max(0, row - 3 // 2), min(6, row + 3 // 2)):
            for x in range(max(0, column - 3 // 2), min(5, column + 3 // 2)):
                image[:, y, x] = 0
    assert torch.equal(cutout_2px(images, seeded(3)), wanted)
    assert {int((image == 0).sum()) // 3 for image in wanted} == {1, 2, 4}


def test_augment_applies_in_order():
    images = noise((20, 3, 16, 16))
    generator = seeded(5)
    by_hand = cutout(flip(crop(images, generator), generator), generator)
    assert torch.equal(augment(images, ("crop", "flip", "cutout"), seeded(5)), by_hand)
    assert not torch.equal(augment(images, ("cutout", "flip", "crop"), seeded(5)), by_hand)
    assert augment(images, (), seeded()) is images


def test_only_the_generator_is_drawn_from():
    before = torch.get_rng_state()
    augment(noise((4, 3, 16, 16)), ("crop", "flip", "cutout"), seeded())
    assert torch.equal(torch.get_rng_state(), before)

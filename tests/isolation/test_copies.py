"""Exact copies."""

from __future__ import annotations

import torch

from antibackdoor.isolation import repeated


def test_an_exact_copy_is_one_that_came_before_with_the_same_label():
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[[2, 5]] = images[0].clone()
    images[4] = images[0]
    images[4, 0, 0, 0] ^= 1
    labels = torch.tensor([1, 1, 1, 1, 1, 0])
    assert repeated(images, labels).tolist() == [False, False, True, False, False, False]


def test_memory_order_does_not_matter():
    images = torch.zeros((4, 3, 5, 5), dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert repeated(images, torch.zeros(4, dtype=torch.int64)).tolist() == [False, True, True, True]
    assert not bool(repeated(images[:0], torch.zeros(0, dtype=torch.int64)).any())


def test_a_held_out_image_is_a_copy_of_one_that_is_not():
    images = torch.zeros((4, 3, 5, 5), dtype=torch.uint8)
    labels, held_out = torch.tensor([0, 0, 0, 1]), torch.tensor([True, False, False, True])
    assert repeated(images, labels, held_out).tolist() == [True, False, True, False]

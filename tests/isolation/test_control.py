from __future__ import annotations

import torch

from antibackdoor.isolation import with_planted_copies


def test_copies_are_appended_with_one_patch_and_one_label(blobs):
    data = blobs(60, 5)
    longer, planted = with_planted_copies(data, 7, torch.Generator().manual_seed(1))
    assert (len(longer), int(planted.sum())) == (67, 7)
    assert torch.equal(longer.images[:60], data.images)
    assert torch.equal(longer.labels[:60], data.labels)
    assert len(set(longer.ids)) == 67
    label = longer.labels[planted].unique()
    assert len(label) == 1
    spots = []
    for copy in longer.images[planted]:
        differs = (data.images != copy).any(1).flatten(1)
        source = int(differs.sum(1).argmin())
        assert data.labels[source] != label
        spots.append((data.images[source] != copy).any(0).nonzero())
    low = torch.stack([spot.amin(0) for spot in spots]).amin(0)
    high = torch.stack([spot.amax(0) for spot in spots]).amax(0)
    assert bool((high - low < 4).all())
    assert bool((low >= 2).all() and (high < 26).all())


def test_the_generator_decides(blobs):
    data = blobs(60, 5)
    first, again, other = (
        with_planted_copies(data, 5, torch.Generator().manual_seed(seed))[0].images for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

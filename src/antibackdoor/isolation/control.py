"""A planted control: copies of the person's own images with a trigger of ours, to see whether they would be found."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from antibackdoor.ops.patches import colour_cells, scaled
from antibackdoor.ops.triggers import patch_at
from antibackdoor.types import ImageSet

__all__ = ["with_planted_copies"]


def with_planted_copies(data: ImageSet, count: int, generator: torch.Generator) -> tuple[ImageSet, Tensor]:
    """Append triggered copies of some images, under the label of another class.

    Args:
        data: The set; its own images stay as they are, whatever they hold.
        count: Copies, at least 1; fewer where fewer images are of another class.
        generator: Draws the class, the images, a patch of coloured cells, 4 of 32 pixels a side, and its place, two
            pixels of 32 or more from the edges, so that crops seldom cut it.

    Returns:
        The longer set, and bool (N + M,), True on the copies.
    """
    channels, height, width = data.shape
    label = int(torch.randint(data.num_classes, (1,), generator=generator))
    others = (data.labels != label).nonzero().squeeze(1)
    rows = others[torch.randperm(len(others), generator=generator)[:count]]
    side, margin = max(2, scaled(4, data.shape)), max(1, scaled(2, data.shape))
    top = int(torch.randint(margin, height - side - margin + 1, (1,), generator=generator))
    left = int(torch.randint(margin, width - side - margin + 1, (1,), generator=generator))
    pattern = colour_cells(channels, side, generator)
    parts = [
        patch_at(data.images[part].float().div(255), pattern, top, left).mul(255).round().to(torch.uint8)
        for part in rows.split(1024)
    ]
    longer = dataclasses.replace(
        data,
        images=torch.cat([data.images, *parts]),
        labels=torch.cat([data.labels, torch.full((len(rows),), label)]),
        ids=(*data.ids, *(f"planted control {number}" for number in range(len(rows)))),
        vouched=None,
    )
    return longer, torch.arange(len(longer)) >= len(data)

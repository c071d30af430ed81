"""The set inside the package: the 10,000 test images of Fashion-MNIST, for a first run without any data."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from PIL import Image

from antibackdoor.types import ImageSet

__all__ = ["CLASSES", "PER_CLASS", "PER_CLASS_TRAIN", "SIDE", "load_embedded"]

# Sorted, as class names are everywhere; the set's own files number them differently.
CLASSES = (
    "ankle_boot",
    "bag",
    "coat",
    "dress",
    "pullover",
    "sandal",
    "shirt",
    "sneaker",
    "t-shirt_top",
    "trouser",
)
PER_CLASS = 1000
PER_CLASS_TRAIN = 800
SIDE = 28


def load_embedded() -> tuple[ImageSet, ImageSet]:
    """Return the training part, 800 images of each class, and the test part, the other 200 of each.

    Returns:
        Two sets of uint8 (8000, 1, 28, 28) and (2000, 1, 28, 28). The split is fixed: the first 800 of each
        class in the order of the source. The id ``embedded/00042`` is a place in the file, which is sorted by
        class.
    """
    file = resources.files("antibackdoor.data").joinpath("embedded/fashion_mnist.png")
    with file.open("rb") as stream, Image.open(stream, formats=("PNG",)) as strip:
        images = torch.from_numpy(np.array(strip)).view(-1, 1, SIDE, SIDE)
    place = torch.arange(len(CLASSES) * PER_CLASS)
    whole = ImageSet(
        images=images,
        labels=place // PER_CLASS,
        classes=CLASSES,
        ids=tuple(f"embedded/{i:05d}" for i in place.tolist()),
        name="embedded",
    )
    in_train = place % PER_CLASS < PER_CLASS_TRAIN
    return whole.select(place[in_train]), whole.select(place[~in_train])

"""Image sets of the Hugging Face hub, through their own ``datasets`` package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from antibackdoor.data.arrays import check_trainable, number_labels, with_classes
from antibackdoor.data.decode import GREY_MODES, pixels
from antibackdoor.data.splits import TEST, first_named
from antibackdoor.errors import DataError
from antibackdoor.progress import Progress
from antibackdoor.types import ImageSet

if TYPE_CHECKING:
    import datasets

__all__ = ["load_hub"]


def load_hub(name: str, *, image_size: int | None, progress: Progress) -> tuple[ImageSet, ImageSet | None]:
    """Download (or take from the hub's own cache) and decode a data set.

    Args:
        name: Such as ``cifar10`` or ``owner/name``. It needs a ``train`` split, one image column and a column
            of class labels (of several, the one with the most classes is taken).
        image_size: Side of the square to resize to; None keeps the size of the first image for all.
        progress: Shows the decoding.

    Returns:
        The training set, classes sorted by name, and the test set: the first of the splits test, val, valid,
        validation and dev that there is.

    Raises:
        DataError: ``datasets`` is not installed, the set cannot be had, or it is not one of labelled images.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"hub:{name} needs the package 'datasets', which is not installed: pip install antibackdoor[hub]"
        ) from error
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen kinds, from no network to no such set
        raise DataError(f"hub:{name}: cannot be loaded: {error}") from error
    if "train" not in splits:
        raise DataError(f"hub:{name}: no split 'train'; it has {', '.join(sorted(splits))}")
    columns = _columns(splits["train"].features, name, progress)
    train = _read(splits["train"], *columns, f"hub:{name}", image_size, None, progress)
    check_trainable(train.name, train.classes, train.labels)
    held_out = first_named(TEST, splits)
    if held_out is None:
        return train, None
    return train, _read(splits[held_out], *columns, f"hub:{name}/{held_out}", image_size, train.shape, progress)


def _columns(features: datasets.Features, name: str, progress: Progress) -> tuple[str, str]:
    import datasets

    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels.sort(key=lambda key: -int(features[key].num_classes))
    if not labels:
        labels = [key for key in ("label", "labels") if key in features]
    if not images or not labels:
        raise DataError(
            f"hub:{name}: needs a column of images and one of class labels; it has {', '.join(sorted(features))}"
        )
    if len(images) > 1 or len(labels) > 1:
        progress.say(f"hub:{name}: images from the column {images[0]!r}, labels from the column {labels[0]!r}")
    return images[0], labels[0]


def _read(
    split: datasets.Dataset,
    image_column: str,
    label_column: str,
    name: str,
    image_size: int | None,
    shape: tuple[int, int, int] | None,
    progress: Progress,
) -> ImageSet:
    count = len(split)
    if not count:
        raise DataError(f"{name}: no images")
    channels, height, width = shape or _shape_of(split, image_column, image_size)
    images = torch.empty((count, channels, height, width), dtype=torch.uint8)
    with progress.bar("reading images", count, "images") as bar:
        for i in range(count):
            image: object = split[i][image_column]
            if not isinstance(image, Image.Image):
                raise DataError(f"{name}: row {i} holds no image")
            images[i] = torch.from_numpy(pixels(image, channels=channels, height=height, width=width))
            bar.advance()
    feature: object = split.features[label_column]
    names: Sequence[str] | None = getattr(feature, "names", None)
    numbers, classes = number_labels(np.asarray(split[label_column][:]), names, name)
    ids = tuple(f"{name}/{i:05d}" for i in range(count))
    data = ImageSet(images, numbers, classes, ids, name)
    return with_classes(data, sorted(classes)) if names else data


def _shape_of(split: datasets.Dataset, image_column: str, image_size: int | None) -> tuple[int, int, int]:
    first = split[0][image_column]
    if not isinstance(first, Image.Image):
        raise DataError(f"the first row holds no image in {image_column!r}")
    width, height = first.size
    channels = 1 if first.mode in GREY_MODES else 3
    return (channels, image_size, image_size) if image_size else (channels, height, width)

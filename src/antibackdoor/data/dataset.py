"""A torch Dataset, or anything with a length and an index, to an image set."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from antibackdoor.data.arrays import channels_first, check_trainable, number_labels
from antibackdoor.data.decode import GREY_MODES, pixels
from antibackdoor.errors import DataError
from antibackdoor.progress import SILENT, Progress
from antibackdoor.types import ImageSet

__all__ = ["Items", "from_dataset"]


class Items(Protocol):
    """What a map-style dataset can do."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, index: int, /) -> object:
        """Return a pair of image and label."""


def from_dataset(
    dataset: Items,
    classes: Sequence[str] | None = None,
    name: str = "dataset",
    *,
    training: bool = True,
    progress: Progress = SILENT,
) -> ImageSet:
    """Read a map-style dataset once, into memory.

    Args:
        dataset: Gives pairs (image, label). An image is a Pillow image, a uint8 array or tensor (H, W), (H,
            W, C) or (C, H, W), or a float one with values in [0, 1], which is rounded to uint8. All have one
            size. A label is an integer >= 0.
        classes: K names in label order; None takes ``dataset.classes`` where that is a list of names, else
            each class is named by its number.
        name: What to call the set in messages; ids are ``name/00000`` and so on.
        training: See :func:`antibackdoor.data.arrays.from_arrays`.
        progress: Shows the reading.

    Returns:
        The set.

    Raises:
        DataError: A dataset without length, images of several sizes, values outside [0, 1], or labels that
            are not integers. What the dataset itself raises passes through.
    """
    try:
        count = len(dataset)
    except TypeError as error:
        raise DataError(f"{name}: a dataset with a length and an index is needed, not an iterable one") from error
    if not count:
        raise DataError(f"{name}: no images")
    images: Tensor | None = None
    labels: list[int] = []
    with progress.bar("reading images", count, "images") as bar:
        for i in range(count):
            image, label = _pair(dataset[i], f"{name}[{i}]")
            if images is None:
                images = torch.empty((count, *image.shape), dtype=torch.uint8)
            elif image.shape != images.shape[1:]:
                raise DataError(
                    f"{name}[{i}]: image of shape {tuple(image.shape)}, the first is "
                    f"{tuple(images.shape[1:])}; resize them to one size in the dataset's transform"
                )
            images[i] = image
            labels.append(label)
            bar.advance()
    numbers, names = number_labels(labels, _names(dataset) if classes is None else classes, name)
    if training:
        check_trainable(name, names, numbers)
    ids = tuple(f"{name}/{i:05d}" for i in range(count))
    return ImageSet(images if images is not None else torch.empty(0), numbers, names, ids, name)


def _pair(item: object, where: str) -> tuple[Tensor, int]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{where}: expected a pair (image, label), got {type(item).__name__}")
    image, label = item
    try:
        number = operator.index(label)
    except TypeError as error:
        raise DataError(f"{where}: label {label!r} is not an integer") from error
    return _image(image, where), number


def _image(image: object, where: str) -> Tensor:
    if isinstance(image, Image.Image):
        width, height = image.size
        channels = 1 if image.mode in GREY_MODES else 3
        try:
            return torch.from_numpy(pixels(image, channels=channels, height=height, width=width))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    if not isinstance(image, Tensor | np.ndarray):
        raise DataError(f"{where}: expected a Pillow image, an array or a tensor, got {type(image).__name__}")
    values = torch.as_tensor(image.copy() if isinstance(image, np.ndarray) else image)
    if values.is_floating_point():
        # Written so that NaN fails as well.
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise DataError(
                f"{where}: float values from {float(values.min()):.3g} to {float(values.max()):.3g}; "
                "expected [0, 1]. Leave normalisation out of the dataset's transform, the model does it"
            )
        values = (values * 255).round().to(torch.uint8)
    return channels_first(values, where, batched=False)


def _names(dataset: Items) -> list[str] | None:
    names: object = getattr(dataset, "classes", None)
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return list(names)
    return None

"""Arrays in memory to an image set: checks, class names, the channel axis, and the .npz format."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.data.decode import pixels
from antibackdoor.data.parallel import map_chunks
from antibackdoor.data.picture import as_image
from antibackdoor.errors import DataError
from antibackdoor.progress import Progress
from antibackdoor.types import ImageSet

__all__ = [
    "MIN_SIDE",
    "channels_first",
    "check_trainable",
    "fit_shape",
    "from_arrays",
    "load_npz",
    "number_labels",
    "with_classes",
]

MIN_SIDE = 8
MIN_CLASSES, MIN_PER_CLASS = 2, 2
CHANNELS = (1, 3)


def from_arrays(
    images: NDArray[np.generic] | Tensor,
    labels: NDArray[np.generic] | Tensor | Sequence[int],
    classes: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    name: str = "arrays",
    *,
    training: bool = True,
) -> ImageSet:
    """Make an image set of arrays in memory.

    Args:
        images: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), numpy or torch. The channel axis is the second
            or the last, whichever has length 1 or 3; sides are at least 8, so it is never in doubt. Not
            copied where the memory can be used as it is; do not change it afterwards.
        labels: Integers (N,), >= 0. With ``classes`` they index it; without, they may have gaps.
        classes: K names in label order; None names each class by its number, in rising order.
        ids: N unique names; None gives ``name/00000``, ``name/00001`` and so on.
        name: What to call the set in messages.
        training: Whether it is to be trained on, so that at least two classes with two images each are
            needed. Give False for a test set.

    Returns:
        The set.

    Raises:
        DataError: Anything that does not fit the above.
    """
    stack = channels_first(images, name, batched=True)
    count = stack.shape[0]
    numbers, names = number_labels(labels, classes, name)
    if len(numbers) != count:
        raise DataError(f"{name}: {count:,} images but {len(numbers):,} labels")
    if not count:
        raise DataError(f"{name}: no images")
    if ids is None:
        ids = [f"{name}/{i:05d}" for i in range(count)]
    elif len(ids) != count or len(set(ids)) != count:
        raise DataError(f"{name}: {count:,} unique ids are needed, one an image; got {len(set(ids)):,}")
    if training:
        check_trainable(name, names, numbers)
    return ImageSet(stack, numbers, names, tuple(ids), name)


def channels_first(images: NDArray[np.generic] | Tensor, name: str, *, batched: bool) -> Tensor:
    """Check pixels and bring them to uint8 (N, C, H, W), or (C, H, W) where ``batched`` is False.

    Raises:
        DataError: Not an array, not uint8, no channel axis of length 1 or 3, or a side below 8 pixels.
    """
    if isinstance(images, Tensor):
        tensor = images.detach().cpu()
    elif isinstance(images, np.ndarray):
        if images.dtype.hasobject:
            raise DataError(f"{name}: images holds Python objects, which are never loaded; expected uint8")
        if images.dtype != np.uint8:
            raise _not_uint8(name, str(images.dtype))
        # torch warns of memory that it may not write to, and cannot hold negative strides.
        plain = np.ascontiguousarray(images)
        tensor = torch.from_numpy(plain if plain.flags.writeable else plain.copy())
    else:
        raise DataError(f"{name}: images are {type(images).__name__}; expected a numpy array or a torch tensor")
    if tensor.dtype != torch.uint8:
        raise _not_uint8(name, str(tensor.dtype).removeprefix("torch."))
    given = tuple(tensor.shape)
    if not batched:
        tensor = tensor[None]
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim == 4 and tensor.shape[1] not in CHANNELS and tensor.shape[3] in CHANNELS:
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or tensor.shape[1] not in CHANNELS:
        axes = "(N, H, W), (N, H, W, C) or (N, C, H, W)" if batched else "(H, W), (H, W, C) or (C, H, W)"
        raise DataError(f"{name}: images of shape {given}; expected {axes} with 1 or 3 channels")
    if min(tensor.shape[2:]) < MIN_SIDE:
        height, width = tensor.shape[2:]
        raise DataError(f"{name}: images are {width}x{height}; at least {MIN_SIDE}x{MIN_SIDE} are needed")
    return tensor.contiguous() if batched else tensor[0].contiguous()


def number_labels(
    labels: NDArray[np.generic] | Tensor | Sequence[int], classes: Sequence[str] | None, name: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Check labels and name their classes.

    Args:
        labels: Integers (N,), >= 0.
        classes: K unique names that the labels index, or None to take each distinct label as a class.
        name: What to call the set in messages.

    Returns:
        int64 (N,), each in 0..K-1, and the K names.

    Raises:
        DataError: Labels of another type or shape, negative, or beyond the names; names that are not unique.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.hasobject:
        raise DataError(f"{name}: labels holds Python objects, which are never loaded; expected integers")
    if values.ndim != 1:
        raise DataError(f"{name}: labels of shape {values.shape}; expected (N,), one integer an image")
    if values.size and values.dtype.kind not in "iu":
        raise DataError(f"{name}: labels are {values.dtype}; expected integers, such as labels.astype('int64')")
    if values.size and values.min() < 0:
        raise DataError(f"{name}: label {values.min()} is negative; classes are counted from 0")
    if classes is None:
        distinct, numbers = np.unique(values, return_inverse=True)
        return torch.from_numpy(numbers.astype(np.int64)), tuple(str(value) for value in distinct.tolist())
    if len(set(classes)) != len(classes):
        raise DataError(f"{name}: class names must be unique, got {', '.join(classes)}")
    if values.size and values.max() >= len(classes):
        raise DataError(f"{name}: label {values.max()} has no name; there are {len(classes)} class names, from 0")
    return torch.from_numpy(values.astype(np.int64)), tuple(classes)


def check_trainable(name: str, classes: Sequence[str], labels: Tensor) -> None:
    """Raise DataError unless there are two classes or more, each with two images or more."""
    if len(classes) < MIN_CLASSES:
        raise DataError(f"{name}: only one class ({', '.join(classes)}); at least {MIN_CLASSES} are needed")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    for class_name, count in zip(classes, counts, strict=True):
        if count < MIN_PER_CLASS:
            held = "one image" if count else "no image"
            raise DataError(f"{name}: class {class_name!r} has {held}; at least {MIN_PER_CLASS} are needed in each")


def with_classes(data: ImageSet, classes: Sequence[str]) -> ImageSet:
    """Number the labels of ``data`` anew so that they index ``classes``.

    Raises:
        DataError: An image belongs to a class that is not among them.
    """
    if data.classes == tuple(classes):
        return data
    used = {data.classes[i] for i in set(data.labels.tolist())}
    if strange := sorted(used - set(classes)):
        raise DataError(
            f"{data.name}: class {strange[0]!r} is not in the training data ({len(strange)} such class(es)). "
            f"Known: {', '.join(classes)}"
        )
    numbers = {name: i for i, name in enumerate(classes)}
    table = torch.tensor([numbers.get(name, -1) for name in data.classes])
    return dataclasses.replace(data, labels=table[data.labels], classes=tuple(classes))


def fit_shape(data: ImageSet, shape: tuple[int, int, int], progress: Progress) -> ImageSet:
    """Resize images in memory as files are resized, and bring them to 1 or 3 channels.

    Args:
        data: The set.
        shape: C, H, W.
        progress: Shows the work.

    Returns:
        ``data`` itself where it has that shape.
    """
    if data.shape == shape:
        return data
    channels, height, width = shape
    fitted = torch.empty((len(data), *shape), dtype=torch.uint8)

    def one(index: int) -> None:
        values = data.images[index].numpy()
        image = as_image(values)
        fitted[index] = torch.from_numpy(pixels(image, channels=channels, height=height, width=width))

    with progress.bar("resizing images", len(data), "images") as bar:
        for done in map_chunks(one, range(len(data))):
            bar.advance(len(done))
    return dataclasses.replace(data, images=fitted)


def load_npz(path: Path, *, training: bool) -> tuple[ImageSet, ImageSet | None]:
    """Read a .npz with images, labels, and perhaps test_images, test_labels and classes.

    Args:
        path: The file. Images as in :func:`from_arrays`; ``classes`` is text (K,), which the labels index.
        training: See :func:`from_arrays`.

    Returns:
        The set and, where the file holds one, its test set. Classes given by name are sorted, labels follow.

    Raises:
        DataError: Not a .npz, a missing array, Python objects, or arrays that :func:`from_arrays` refuses.
    """
    held = _arrays(path)
    if ("test_images" in held) != ("test_labels" in held):
        raise DataError(f"{path}: test_images and test_labels come together; one of them is missing")
    classes = _class_names(path, held["classes"]) if "classes" in held else None
    main = from_arrays(held.pop("images"), held["labels"], classes, name=str(path), training=training)
    main = with_classes(main, sorted(main.classes)) if classes else main
    if "test_images" not in held:
        return main, None
    test = from_arrays(held.pop("test_images"), held["test_labels"], classes, name=f"{path}/test", training=False)
    return main, test


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    wanted = ("images", "labels", "test_images", "test_labels", "classes")
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: not a .npz file")
        with np.load(path, allow_pickle=False) as file:
            for needed in ("images", "labels"):
                if needed not in file.files:
                    raise DataError(f"{path}: no array {needed!r}; it holds {', '.join(file.files) or 'nothing'}")
            return {key: _one_array(path, file, key) for key in wanted if key in file.files}
    except DataError:
        raise
    except Exception as error:  # a damaged file makes NumPy and zipfile raise nearly anything
        raise DataError(f"{path}: cannot be read as a .npz file: {error or type(error).__name__}") from error


def _one_array(path: Path, file: np.lib.npyio.NpzFile, key: str) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = file[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(f"{path}: {key} holds Python objects, which are never loaded; save plain numbers") from error
    return array


def _class_names(path: Path, classes: NDArray[np.generic]) -> list[str]:
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise DataError(f"{path}: classes is {classes.dtype} of shape {classes.shape}; expected text, (K,)")
    return [str(name) for name in classes.tolist()]


def _not_uint8(name: str, dtype: str) -> DataError:
    return DataError(
        f"{name}: images are {dtype}; expected uint8 in 0..255. Convert floats in [0, 1] with "
        "(images * 255).round() and then to uint8"
    )

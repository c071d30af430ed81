"""How ABL's released code works, transcribed slowly: the yardstick of ``speed.py``.

One PIL image at a time goes through a chain of transforms on its way into a ``DataLoader``; training is float32 in
ordinary contiguous memory and reads the loss and the accuracy back after every step; the losses that isolate are
collected afterwards, by a pass of its own at batch size 1. The structure is that of github.com/bboylyg/ABL; no line is.

What is left out in the yardstick's favour: the evaluation on two test sets after every epoch, printing, the writing of
checkpoints and of image copies, and the start of new worker processes in every epoch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

__all__ = [
    "Meter",
    "NaiveImages",
    "chain",
    "evaluation_transforms",
    "loader_of",
    "losses_at_batch_one",
    "optimizer_of",
    "train_epoch",
    "training_transforms",
]

Transform = Callable[[Any], Any]
CUTOUT = 9


def to_tensor(picture: Image.Image) -> Tensor:
    """Turn a PIL image into float32 (C, H, W) in [0, 1]."""
    pixels = np.array(picture, dtype=np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div(255)


@dataclass(frozen=True)
class Normalise:
    """Standardise each channel of a float (C, H, W)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """Return ``(image - mean) / std``."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return (image - mean) / std


@dataclass(frozen=True)
class RandomCrop:
    """Pad a PIL image with black on all sides and cut the original size out of it anywhere."""

    padding: int = 4

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Return the cut."""
        width, height = picture.size
        padded = ImageOps.expand(picture, border=self.padding, fill=0)
        left = random.randint(0, 2 * self.padding)
        top = random.randint(0, 2 * self.padding)
        return padded.crop((left, top, left + width, top + height))


def random_flip(picture: Image.Image) -> Image.Image:
    """Mirror a PIL image left to right, every second time."""
    if random.random() < 0.5:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


@dataclass(frozen=True)
class Cutout:
    """Zero one square of a float (C, H, W), its centre anywhere inside, through a mask made for each image."""

    side: int = CUTOUT

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image with its hole."""
        _, height, width = image.shape
        mask = np.ones((height, width), np.float32)
        y, x = random.randrange(height), random.randrange(width)
        top, bottom = max(0, y - self.side // 2), min(height, y + self.side // 2 + 1)
        left, right = max(0, x - self.side // 2), min(width, x + self.side // 2 + 1)
        mask[top:bottom, left:right] = 0
        return image * torch.from_numpy(mask).expand_as(image)


def chain(transforms: list[Transform], value: Any) -> Any:
    """Apply transforms one after the other."""
    for transform in transforms:
        value = transform(value)
    return value


def evaluation_transforms(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Transform]:
    """Return the chain of the isolation stage and of scoring: no augmentation."""
    return [to_tensor, Normalise(mean, std)]


def training_transforms(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Transform]:
    """Return the chain of fine-tuning: crop, flip, cutout."""
    return [RandomCrop(4), random_flip, to_tensor, Cutout(CUTOUT), Normalise(mean, std)]


class NaiveImages(Dataset[tuple[Tensor, int]]):
    """PIL images in a list, each transformed when it is asked for.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        transforms: Applied to each image in order.
    """

    def __init__(self, images: NDArray[np.uint8], labels: list[int], transforms: list[Transform]) -> None:
        squeeze = images.shape[1] == 1
        self.pictures = [
            Image.fromarray(np.ascontiguousarray(image[0] if squeeze else image.transpose(1, 2, 0))) for image in images
        ]
        self.labels = labels
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Tensor = chain(self.transforms, self.pictures[index])
        return image, self.labels[index]


class Meter:
    """A running mean of numbers that were read back from tensors."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        """Add a value that stands for ``count`` images."""
        self.total += value * count
        self.count += count

    @property
    def mean(self) -> float:
        """The mean so far."""
        return self.total / max(1, self.count)


def loader_of(dataset: NaiveImages, batch_size: int, *, shuffle: bool, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Return a loader; its worker processes, if any, live on between epochs, which favours this side."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.SGD:
    """Return SGD as the released code sets it."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4, nesterov=True)


def top_k_hits(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of rows whose label is among the k largest logits, as a Python number."""
    k = min(k, logits.shape[1])
    best = logits.topk(k, dim=1).indices
    return (best == labels[:, None]).any(dim=1).float().mean().item()


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    *,
    flood_level: float | None,
) -> float:
    """Train for one epoch.

    Args:
        model: Takes normalised float32 (B, C, H, W).
        loader: Gives batches.
        optimizer: Of the model.
        flood_level: Level of batch-mean flooding in the isolation stage; None trains plainly.

    Returns:
        The mean of the loss without flooding.
    """
    model.train()
    criterion = nn.CrossEntropyLoss()
    losses, raw, top1, top5 = Meter(), Meter(), Meter(), Meter()
    for images, labels in loader:
        logits = model(images)
        plain = criterion(logits, labels)
        loss = plain if flood_level is None else (plain - flood_level).abs() + flood_level
        losses.update(loss.item(), len(images))
        raw.update(plain.item(), len(images))
        top1.update(top_k_hits(logits, labels, 1), len(images))
        top5.update(top_k_hits(logits, labels, 5), len(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return raw.mean


def losses_at_batch_one(
    model: nn.Module, loader: DataLoader[tuple[Tensor, int]], *, at_most: int | None = None
) -> tuple[list[float], float]:
    """Collect the loss of each image, one image a forward pass, in eval mode.

    Args:
        model: Takes normalised float32 (1, C, H, W).
        loader: Gives batches of one, in order.
        at_most: Stop after so many images.

    Returns:
        The losses, and the seconds from the first image's arrival on (start of worker processes left out).
    """
    model.eval()
    losses: list[float] = []
    started = time.perf_counter()
    for image, label in loader:
        if not losses:
            started = time.perf_counter()
        with torch.no_grad():
            losses.append(F.cross_entropy(model(image), label).item())
        if len(losses) == at_most:
            break
    return losses, time.perf_counter() - started

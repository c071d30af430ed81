"""Batches of (images, labels) by index, from a set that lives on the device where it fits."""

from __future__ import annotations

import torch
from torch import Tensor

from antibackdoor.types import ImageSet

__all__ = ["Batches", "fits_on"]


def fits_on(data: ImageSet, device: torch.device) -> bool:
    """Return whether the images may live on the device: within half of the memory that is free there."""
    if device.type == "cpu":
        return True
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return data.images.numel() < free // 2


class Batches:
    """Gives batches of one image set by index; a subset is the index one asks for, never a copied set.

    Args:
        data: The set. On a CPU its images are used where they are, memory-mapped or not.
        device: Where batches are wanted.
        resident: Keep the images on the device, else bring each batch there; decided by :func:`fits_on` if None.
    """

    def __init__(self, data: ImageSet, device: torch.device, *, resident: bool | None = None) -> None:
        self.device = device
        self.resident = fits_on(data, device) if resident is None else resident
        self._images = data.images.to(device) if self.resident else data.images
        self._labels = data.labels.to(device)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and labels of ``index``.

        Args:
            index: int64 (B,), on the CPU or the device.

        Returns:
            uint8 (B, C, H, W) and int64 (B,), on the device.
        """
        labels = self._labels[index.to(self.device, non_blocking=True)]
        images = self._images[index.to(self._images.device)]
        return images.to(self.device, non_blocking=True), labels

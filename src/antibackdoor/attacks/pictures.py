"""Trigger pictures that a user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from antibackdoor.errors import PoisonError

__all__ = ["read_picture"]


def read_picture(path: Path, shape: tuple[int, int, int], *, setting: str) -> Tensor:
    """Read a picture and resize it.

    Args:
        path: Any file Pillow reads.
        shape: C (1 or 3), H, W wanted.
        setting: Where the path stands in the configuration, for messages.

    Returns:
        float (C, H, W) in [0, 1].

    Raises:
        PoisonError: The file is missing or no picture.
    """
    channels, height, width = shape
    try:
        with Image.open(path) as picture:
            converted = picture.convert("L" if channels == 1 else "RGB").resize(
                (width, height), Image.Resampling.BICUBIC
            )
    except FileNotFoundError:
        raise PoisonError(f"{setting}: no picture at {path}") from None
    except (OSError, UnidentifiedImageError) as error:
        raise PoisonError(f"{setting}: {path} cannot be read as a picture ({error})") from None
    pixels = torch.from_numpy(np.array(converted)).float().div(255)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)

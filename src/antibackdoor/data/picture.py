"""An array of pixels as an image of Pillow's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["as_image"]


def as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return pixels, uint8 (C, H, W) with C 1 or 3, as a grey or an RGB image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

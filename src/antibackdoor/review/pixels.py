"""The pixels of a run's images, and one of them as a file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Pictures", "png"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pixels of a run's images.

    Attributes:
        images: uint8 (M, C, H, W), C is 1 or 3; may be mapped from a file and must not be written to.
        places: int64 (N,), where in ``images`` each image of the run is; -1 where it is gone.
        changed: bool (N,), images that are there, but whose pixels are not those that the run saw.
    """

    images: NDArray[np.uint8]
    places: NDArray[np.int64]
    changed: NDArray[np.bool_]

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8 (R, C, H, W) of those rows that are there."""
        places = self.places[rows]
        found: NDArray[np.uint8] = self.images[places[places >= 0]]
        return found


def png(pixels: NDArray[np.uint8], largest: int | None = None) -> bytes:
    """Return an image as a PNG file.

    Args:
        pixels: uint8 (C, H, W), C is 1 or 3.
        largest: Shrink it to this many pixels a side, if it has more.
    """
    from antibackdoor.data.picture import as_image

    image = as_image(pixels)
    if largest is not None and max(image.size) > largest:
        image.thumbnail((largest, largest))
    output = io.BytesIO()
    image.save(output, format="PNG", compress_level=1)
    return output.getvalue()

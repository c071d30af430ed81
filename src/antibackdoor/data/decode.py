"""One image file to pixels, and one Pillow image to the two pixel formats that are kept: grey and RGB.

Transparent pixels are laid over white, as a browser shows them. Sixteen-bit grey is scaled, not cut off. The
EXIF orientation is applied; colour profiles are not. Of an animation the first frame is taken.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from antibackdoor.data.formats import FORMATS
from antibackdoor.data.opening import Payload, open_payload
from antibackdoor.errors import DataError

__all__ = [
    "GREY_MODES",
    "WHITE",
    "BadImageError",
    "Header",
    "brightest",
    "decode",
    "inspect",
    "pixels",
    "quiet",
    "resize",
    "take_turns",
]

WIDE = "I"  # Pillow holds 16-bit grey in modes that begin so
WHITE = 65535
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
MAX_PIXELS, LARGE_PIXELS = 100_000_000, 16_000_000
_ONE_LARGE: AbstractContextManager[object] = threading.Lock()
TEXT_HEADER, MOST_COMMENTS = 4096, 100
NETPBM, COMMENT = re.compile(rb"P[0-9a-zA-Z]\s*[\s#]"), re.compile(rb"#[^\r\n]*")
ORIENTATION_TAG = 0x0112
ORIENTATION_SOURCES = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FIRST_SIDEWAYS = 5


class BadImageError(DataError):
    """One file that cannot be used as an image; the message is the reason alone, without the path."""


class Header(NamedTuple):
    """What a file says of itself before it is decoded.

    Its size in pixels once upright, whether it is grey, and whether it is grey of more than 8 bits.
    """

    width: int
    height: int
    grey: bool
    wide: bool


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, for use around calls of :func:`inspect` and :func:`decode` from any thread.

    They are of large images and odd metadata: what matters of them is an error here, and the rest is noise.
    """
    # Around the whole work and not in each call: the filters are one list for all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def take_turns(lock: AbstractContextManager[object]) -> None:
    """Decode large images one at a time among all processes that share a lock.

    Args:
        lock: What to hold while a large image is decoded, in place of a lock among the threads of this process.
    """
    global _ONE_LARGE
    _ONE_LARGE = lock


def inspect(payload: Payload) -> Header:
    """Read the header of an image file.

    Raises:
        BadImageError: Not an image in a known format, or more than 100 megapixels.
    """
    try:
        with _opened(payload) as image:
            width, height = image.size
            if _orientation(image) >= FIRST_SIDEWAYS:
                width, height = height, width
            return Header(width, height, image.mode in GREY_MODES, image.mode.startswith(WIDE))
    except Exception as error:
        raise _bad(error) from error


def brightest(payload: Payload) -> int:
    """Return the highest value of an image of more than 8 bits of grey; 0 for any other.

    Raises:
        BadImageError: See :func:`decode`.
    """
    try:
        with _opened(payload) as image:
            return int(np.asarray(image).max()) if image.mode.startswith(WIDE) else 0
    except Exception as error:
        raise _bad(error) from error


def decode(payload: Payload, *, channels: int, height: int, width: int, white: int = WHITE) -> NDArray[np.uint8]:
    """Decode an image file, turn it upright and resize it.

    Args:
        payload: The file, or bytes from inside another.
        channels: 1 for grey, 3 for RGB; colour is brought to grey by luma, grey to RGB by repetition.
        height: Of the result, in pixels; the aspect is not kept.
        width: Of the result, in pixels.
        white: The value that becomes 255 where grey has more than 8 bits; higher ones do as well.

    Returns:
        uint8 (channels, height, width).

    Raises:
        BadImageError: The file cannot be decoded, is truncated or has more than 100 megapixels.
    """
    try:
        with _opened(payload) as image:
            sideways = _orientation(image) >= FIRST_SIDEWAYS
            # A JPEG can be decoded at a half, a quarter or an eighth; twice the wanted size leaves the resize
            # its say.
            image.draft(None, (2 * height, 2 * width) if sideways else (2 * width, 2 * height))
            image.load()
            turn = TURNS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            return pixels(upright, channels=channels, height=height, width=width, white=white)
    except Exception as error:
        raise _bad(error) from error


def pixels(image: Image.Image, *, channels: int, height: int, width: int, white: int = WHITE) -> NDArray[np.uint8]:
    """Bring a Pillow image of any mode to uint8 (channels, height, width); ``white`` as in :func:`decode`.

    Raises:
        DataError: A mode that has no range to scale from (floating point).
    """
    plain = resize(_convert(image, "L" if channels == 1 else "RGB", white), height=height, width=width)
    values = np.array(plain)  # a copy: torch warns of memory that it may not write to
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def resize(image: Image.Image, *, height: int, width: int) -> Image.Image:
    """Resize with Pillow's bilinear filter, which averages over all covered pixels when it shrinks."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _convert(image: Image.Image, mode: str, white: int) -> Image.Image:
    if image.mode == "F":
        raise DataError("its pixels are floating point, which have no fixed range")
    if image.mode.startswith(WIDE):  # Pillow's own conversion would clip at 255
        wide = np.asarray(image).astype(np.int64).clip(0, white)
        image = Image.fromarray(((wide * 255 + white // 2) // white).astype(np.uint8))
    elif image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    # Pillow decodes a whole PNG to look for EXIF behind the pixels, so look only where something was
    # announced.
    if not ORIENTATION_SOURCES & image.info.keys():
        return UPRIGHT
    try:
        value = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
    except Exception:  # damaged EXIF is common in photographs whose pixels are fine
        return UPRIGHT
    return value if value in TURNS else UPRIGHT


@contextmanager
def _opened(payload: Payload) -> Iterator[Image.Image]:
    """Open an image whose header is sane; of large ones one at a time, so that memory does not depend on threads."""
    with open_payload(payload) as file:
        _check_text_header(file)
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImageError(_too_large(f"{width}x{height}"))
            with _ONE_LARGE if width * height > LARGE_PIXELS else nullcontext():
                yield image


def _check_text_header(file: BinaryIO) -> None:
    """Refuse a PPM whose header hides behind comments: Pillow reads those byte by byte."""
    start = file.read(TEXT_HEADER)
    file.seek(0)
    if len(start) == TEXT_HEADER and NETPBM.match(start):
        numbers = COMMENT.sub(b"", start[2:]).split()
        if len(numbers) < 4 or start.count(b"#") > MOST_COMMENTS:
            raise BadImageError("its header is longer than any image's")


def _too_large(given: str) -> str:
    return f"{given} is more than {MAX_PIXELS // 1_000_000} megapixels"


def _bad(error: Exception) -> Exception:
    """Turn what a decoder raises into one kind: a damaged file can make Pillow raise nearly anything."""
    if isinstance(error, BadImageError | MemoryError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return BadImageError(_too_large("its size"))
    if isinstance(error, UnidentifiedImageError):
        return BadImageError("not an image in a known format")
    if isinstance(error, OSError) and error.strerror:
        return BadImageError(error.strerror)
    return BadImageError(str(error) or type(error).__name__)

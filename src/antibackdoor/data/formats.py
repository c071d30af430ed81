"""Which image formats are read: those of Pillow that are common and well tried, and HEIC where its plugin is there."""

from __future__ import annotations

import logging

from PIL import Image, features

__all__ = ["EXTENSIONS", "FORMATS", "missing"]

# By content, whatever the extension says. Formats outside this list have decoders that few have tried to break.
_BY_FORMAT = {
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "JPEG": ("jpeg", "jpg"),
    "PNG": ("png",),
    "PPM": ("pgm", "ppm"),
    "TIFF": ("tif", "tiff"),
    "WEBP": ("webp",),
}
_AVIF, _HEIF = {"AVIF": ("avif",)}, {"HEIF": ("heic", "heif")}
_MISSING: dict[str, str] = {}

if "avif" in features.modules and features.check("avif"):
    _BY_FORMAT |= _AVIF
else:
    _MISSING |= dict.fromkeys(_AVIF["AVIF"], "needs Pillow 11.3 or newer")
try:
    import pillow_heif
except ImportError:
    _MISSING |= dict.fromkeys(_HEIF["HEIF"], "needs pip install antibackdoor[heif]")
else:
    pillow_heif.register_heif_opener()
    _BY_FORMAT |= _HEIF

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what matters of its complaints is raised as well
Image.init()
FORMATS = tuple(name for name in sorted(_BY_FORMAT) if name in Image.OPEN)
EXTENSIONS = tuple(sorted(extension for name in FORMATS for extension in _BY_FORMAT[name]))


def missing(extension: str) -> str | None:
    """Return what reading files of an extension (small letters, no dot) would need, or None where nothing helps."""
    return _MISSING.get(extension)

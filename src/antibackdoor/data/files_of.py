"""Which file each training image of a source is."""

from __future__ import annotations

import os
from pathlib import Path

from antibackdoor.data.folder import parts_of, scan
from antibackdoor.data.listing import Listing
from antibackdoor.data.manifest import SUFFIXES, load_manifest
from antibackdoor.progress import SILENT

__all__ = ["files_of"]


def files_of(source: str | Path) -> dict[str, Path] | None:
    """Return the file of each training image of a source by its id.

    Args:
        source: As in :func:`antibackdoor.data.sources.load`.

    Returns:
        The files of a folder or a table, in the order of the set; None of anything else, whose images are no files.

    Raises:
        DataError: A folder without images, a table that is none, or what cannot be read.
    """
    listing = _listed(Path(source))
    if listing is None:
        return None
    return {name: Path(os.path.join(listing.root, file)) for name, file in zip(listing.ids, listing.files, strict=True)}


def _listed(path: Path) -> Listing | None:
    if path.is_dir():
        train = parts_of(path, SILENT.say).train
        return scan(path) if train is None else scan(path / train, f"{train}/")
    if path.suffix.lower() in SUFFIXES:
        return load_manifest(path, SILENT, skip_bad=True).train
    return None
